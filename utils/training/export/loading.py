"""Load exported files: each function takes a format's main file and the model, whose weights and code it may need, and returns
a function from a batch to logits on the CPU; None for formats that only other programs run.

They raise ExportError for files that hold another model's weights, and whatever the format's library raises.
"""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from utils.adapters.forward import ModelCall, logits_of
from utils.errors import ExportError
from utils.training.export.manifest import MARKER

Run = Callable[[Mapping[str, Tensor]], Tensor]


def hf(file: Path, model: nn.Module) -> Run:
    import transformers

    names = json.loads(file.read_text(encoding="utf-8")).get("architectures") or [""]
    kind: Any = getattr(transformers, names[0], type(model))
    if not hasattr(kind, "from_pretrained"):
        raise ExportError(f"{kind.__name__} is not a transformers model, so {file.parent.name} cannot be loaded as one")
    return ModelCall(kind.from_pretrained(file.parent, local_files_only=True).eval())


def safetensors(file: Path, model: nn.Module) -> Run:
    from safetensors.torch import load_file

    return _with_weights(model, load_file(file))


def pytorch(file: Path, model: nn.Module) -> Run:
    found = torch.load(file, map_location="cpu", weights_only=True)
    inner = next((found[key] for key in ("model_state_dict", "state_dict", "model") if key in found), found)
    return _with_weights(model, inner)


def _with_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> Run:
    loaded = copy.deepcopy(model).cpu().eval()
    try:
        loaded.load_state_dict(weights)
    except RuntimeError as error:
        raise ExportError(
            f"the file holds other weights than {type(model).__name__} has: {str(error)[:300]}"
        ) from error
    return ModelCall(loaded)


def onnx(file: Path, model: nn.Module) -> Run:
    encoder_file = file.with_name("encoder_model.onnx")
    if not encoder_file.is_file():
        return _session(file)
    encode, decode = _session(encoder_file), _session(file.with_name("decoder_model.onnx"))

    def run(batch: Mapping[str, Tensor]) -> Tensor:
        mask = batch.get("attention_mask", torch.ones_like(batch["input_ids"]))
        state = encode({"input_ids": batch["input_ids"], "attention_mask": mask})
        decoder_ids = batch["decoder_input_ids"]
        return decode({"input_ids": decoder_ids, "encoder_hidden_states": state, "encoder_attention_mask": mask})

    return run


def _session(file: Path) -> Run:
    import onnxruntime  # type: ignore[import-untyped]

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    wanted = [one.name for one in session.get_inputs()]

    def run(batch: Mapping[str, Tensor]) -> Tensor:
        given = _with_masks(batch, wanted)
        outputs = session.run(None, {name: given[name].cpu().numpy() for name in wanted})
        return torch.from_numpy(outputs[0])

    return run


def _with_masks(batch: Mapping[str, Tensor], wanted: list[str]) -> dict[str, Tensor]:
    """The batch under the names that a graph has, with masks of ones where it wants them."""
    given = dict(batch)
    for name in wanted:
        if name.endswith("attention_mask") and name not in given:
            ids = "decoder_input_ids" if name.startswith("decoder_") else "input_ids"
            given[name] = torch.ones_like(batch[ids])
    if len(wanted) == 1 and wanted[0] not in given:
        given[wanted[0]] = next(iter(batch.values()))
    return given


def torchscript(file: Path, model: nn.Module) -> Run:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch deprecates the format, not this file
        loaded = torch.jit.load(str(file), map_location="cpu").eval()  # type: ignore[no-untyped-call]
    names = [argument.name for argument in loaded.forward.schema.arguments][1:]

    def run(batch: Mapping[str, Tensor]) -> Tensor:
        given = _with_masks(batch, names)
        arguments = [given[name] for name in names if name in given] or list(batch.values())
        return logits_of(loaded(*arguments), model)

    return run


def torch_export(file: Path, model: nn.Module) -> Run:
    return _graph(torch.export.load(str(file)).module(), file, model)


def aot_inductor(file: Path, model: nn.Module) -> Run:
    return _graph(torch._inductor.aoti_load_package(str(file)), file, model)


def _graph(loaded: Callable[..., Any], file: Path, model: nn.Module) -> Run:
    """A graph as a function: its inputs by position as its record names them, else as the batch has them."""
    marker = file.with_name(MARKER)
    names = json.loads(marker.read_text(encoding="utf-8")).get("inputs") if marker.is_file() else None

    def run(batch: Mapping[str, Tensor]) -> Tensor:
        given = _with_masks(batch, names or [])
        return logits_of(loaded(*(given[name] for name in names or given)), model)

    return run


def peft(file: Path, model: nn.Module) -> None:
    from safetensors import safe_open

    with safe_open(file, "pt") as weights:
        if not list(weights.keys()):
            raise ExportError(f"{file.name} holds no tensors")


def gguf(file: Path, model: nn.Module) -> None:
    from gguf import GGUFReader

    if not GGUFReader(file).tensors:
        raise ExportError(f"{file.name} holds no tensors")
