"""Run the artifacts of this folder: a batch of arrays to logits. One class for each kind of artifact."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

# Arguments that a batch has under their own names; see `_standard_name`.
_KNOWN = ("input_ids", "attention_mask", "pixel_values", "token_type_ids")


class OnnxRunner:
    """An ONNX file in ONNX Runtime."""

    def __init__(self, path: Path) -> None:
        import onnxruntime  # type: ignore[import-untyped]

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(path, options, providers=onnxruntime.get_available_providers())
        self._names = [one.name for one in self._session.get_inputs()]
        self.inputs = tuple(_standard_name(name, position) for position, name in enumerate(self._names))
        outputs = [one.name for one in self._session.get_outputs()]
        self._output = "logits" if "logits" in outputs else outputs[0]

    def __call__(self, batch: Mapping[str, Array]) -> Array:
        fed = {name: batch[standard] for name, standard in zip(self._names, self.inputs, strict=True)}
        (logits,) = self._session.run([self._output], fed)
        return np.asarray(logits)


class TorchRunner:
    """A TorchScript file (.pt) or a program of torch.export (.pt2)."""

    def __init__(self, path: Path) -> None:
        import torch

        self._torch = torch
        self._device = torch.device("cpu")
        names: Sequence[Any]
        if path.suffix == ".pt2":
            program = torch.export.load(path)
            self._model: Any = program.module()
            names = program.graph_signature.user_inputs
        else:
            self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
            self._model = torch.jit.load(str(path), map_location=self._device)  # type: ignore[no-untyped-call]
            names = [argument.name for argument in self._model.forward.schema.arguments[1:]]
        self.inputs = tuple(_standard_name(str(name), position) for position, name in enumerate(names))

    def __call__(self, batch: Mapping[str, Array]) -> Array:
        arrays = [np.ascontiguousarray(batch[name]) for name in self.inputs if name in batch]
        with self._torch.inference_mode():
            return _logits_of(self._model(*(self._torch.from_numpy(one).to(self._device) for one in arrays)))


class TransformersRunner:
    """A Hugging Face folder."""

    def __init__(self, path: Path) -> None:
        import torch
        import transformers

        self._torch = torch
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
        model_class = getattr(transformers, config["architectures"][0])
        self._model = model_class.from_pretrained(path, local_files_only=True).eval().float().to(self._device)
        # Segment ids are left out: where a model needs them, it makes its own zeros, and elsewhere zero is not neutral.
        taken = inspect.signature(self._model.forward).parameters
        self.inputs = tuple(name for name in ("input_ids", "attention_mask", "pixel_values") if name in taken)

    def __call__(self, batch: Mapping[str, Array]) -> Array:
        tensors = {name: self._tensor(array) for name, array in batch.items() if name in self.inputs}
        with self._torch.inference_mode():
            return _logits_of(self._model(**tensors))

    def _tensor(self, values: Any) -> Any:
        return self._torch.as_tensor(values).to(self._device)

    def steps(self, prompt: Sequence[int], max_length: int | None) -> Callable[[Sequence[int]], Array]:
        """A function from the new tokens so far to the logits of the next one. It keeps a key/value cache."""
        fixed: dict[str, Any] = {"use_cache": True}
        name, start = "input_ids", list(prompt)
        if self._model.config.is_encoder_decoder:
            with self._torch.inference_mode():
                fixed["encoder_outputs"] = self._model.get_encoder()(input_ids=self._tensor([start]))
            name, start = "decoder_input_ids", [self._decoder_start()]
        past: Any = None
        cached = 0

        def step(new_ids: Sequence[int]) -> Array:
            nonlocal past, cached
            ids = [*start, *new_ids]
            if max_length is not None and len(ids) > max_length:
                # The window slides, and every position in it changes: what was cached is of other positions.
                ids, past, cached = ids[-max_length:], None, 0
            with self._torch.inference_mode():
                outputs = self._model(**{name: self._tensor([ids[cached:]])}, past_key_values=past, **fixed)
            past = getattr(outputs, "past_key_values", None)
            cached = 0 if past is None else len(ids)
            return np.asarray(outputs.logits[0, -1].float().cpu())

        return step

    def _decoder_start(self) -> int:
        for config in (self._model.generation_config, self._model.config):
            for name in ("decoder_start_token_id", "bos_token_id"):
                if isinstance(value := getattr(config, name, None), int):
                    return value
        raise RuntimeError("the model's config names no decoder_start_token_id, so nothing can be generated")


def load_runner(backend: str, path: Path) -> Any:
    """The runner of an artifact: callable on a batch, with `inputs`, the names of the arrays that it takes."""
    if backend == "hf":
        return TransformersRunner(path)
    return OnnxRunner(path) if path.suffix == ".onnx" else TorchRunner(path)


def _standard_name(name: str, position: int) -> str:
    """The name of a batch's array for an argument of a traced module, whatever the module calls it."""
    return name if name in _KNOWN else ("main", "attention_mask")[min(position, 1)]


def _logits_of(outputs: Any) -> Array:
    if hasattr(outputs, "keys"):
        outputs = outputs["logits"]
    elif isinstance(outputs, (tuple, list)):
        outputs = next(value for value in outputs if value.dim())
    return np.asarray(outputs.detach().float().cpu())
