"""Exported ONNX files as functions from a batch to logits, run by ONNX Runtime on the CPU."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from utils.errors import ExportError, first_line, root_cause
from utils.training.export.other_process import Loaded, UnreadableError


class Session(Protocol):
    """An ONNX file that is loaded: `session(inputs) -> outputs`, both by name.

    Attributes:
        inputs: shapes of the inputs by name, in the file's order; a size that may vary is a name or None.
        outputs: names of the outputs.
    Raises:
        ExportError: ONNX Runtime cannot load the file, or cannot compute inputs of that shape.
    """

    inputs: dict[str, list[Any]]
    outputs: list[str]

    def __call__(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]: ...


class OtherSession:
    """A `Session` in another process."""

    def __init__(self, loaded: Loaded, file: Path) -> None:
        self._loaded, self._file = loaded, str(file)
        self.inputs, self.outputs = loaded.ask("onnx_session", file=self._file)

    def __call__(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        given = {name: inputs[name].detach().cpu() for name in self.inputs}
        try:
            found: dict[str, Tensor] = self._loaded.ask("onnx_run", file=self._file, inputs=given)
        except UnreadableError as error:
            reason = first_line(root_cause(error))
            raise ExportError(f"the exported file cannot compute {_shapes(inputs)}: {reason}.") from error
        return found


class LocalSession:
    """A `Session` in this process, with as many threads as torch has."""

    def __init__(self, file: Path) -> None:
        import onnxruntime  # type: ignore[import-untyped]

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors; they are also raised
        options.intra_op_num_threads = torch.get_num_threads()
        try:
            self._session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        except RuntimeError as error:  # every error of onnxruntime is one
            raise ExportError(
                f"ONNX Runtime cannot load the exported file: {first_line(root_cause(error))}."
            ) from error
        #: Names of the inputs and outputs, and the shapes of the inputs, in the file's order.
        self.inputs = {one.name: list(one.shape) for one in self._session.get_inputs()}
        self.outputs = [one.name for one in self._session.get_outputs()]

    def __call__(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        given = {name: inputs[name].detach().cpu().numpy() for name in self.inputs}
        try:
            found = self._session.run(self.outputs, given)
        except (RuntimeError, ValueError) as error:  # ValueError: an input of another shape
            reason = first_line(root_cause(error))
            raise ExportError(f"the exported file cannot compute {_shapes(inputs)}: {reason}.") from error
        return {name: torch.from_numpy(value) for name, value in zip(self.outputs, found, strict=True)}


def _shapes(inputs: Mapping[str, Tensor]) -> str:
    return ", ".join(f"{name} {tuple(value.shape)}" for name, value in inputs.items())


class ForwardRun:
    """Logits of a file that holds the whole forward pass. An attention mask that a batch has not is one of ones.

    Args:
        names: of the file's inputs, by the batch's; None: the same names.
    """

    def __init__(self, session: Session, names: Mapping[str, str] | None = None) -> None:
        self._session, self._names = session, names or {}

    def __call__(self, batch: Mapping[str, Tensor]) -> Tensor:
        mask = self._names.get("attention_mask", "attention_mask")
        filled = {mask: torch.ones_like(batch["input_ids"])} if mask in self._session.inputs else {}
        given = {**filled, **{self._names.get(name, name): value for name, value in batch.items()}}
        return self._session(given)[self._session.outputs[0]]


class EncoderDecoderRun:
    """Logits of an encoder's and a decoder's file. The encoder runs once for the same input."""

    def __init__(self, encoder: Session, decoder: Session) -> None:
        self._encoder, self._decoder = encoder, decoder
        self._seen: tuple[Tensor, Tensor] | None = None
        self._state: Tensor | None = None

    def __call__(self, batch: Mapping[str, Tensor]) -> Tensor:
        ids_BT = batch["input_ids"]
        mask_BT = batch.get("attention_mask", torch.ones_like(ids_BT))
        if self._seen is None or not all(map(torch.equal, self._seen, (ids_BT, mask_BT))):
            self._seen = (ids_BT, mask_BT)
            self._state = self._encoder({"input_ids": ids_BT, "attention_mask": mask_BT})["last_hidden_state"]
        assert self._state is not None
        given = {"input_ids": batch["decoder_input_ids"], "encoder_hidden_states": self._state}
        return self._decoder({**given, "encoder_attention_mask": mask_BT})["logits"]


class CachedRun:
    """Logits of the positions that a file with a key/value cache has not seen yet.

    Ids that continue those of the call before are computed from its cache; others start with an empty one.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._seen: Tensor | None = None
        self._past: dict[str, Tensor] = {}

    def __call__(self, batch: Mapping[str, Tensor]) -> Tensor:
        ids_BT = batch["input_ids"]
        seen = 0 if self._seen is None else self._seen.shape[1]
        if self._seen is None or seen >= ids_BT.shape[1] or not torch.equal(ids_BT[:, :seen], self._seen):
            seen, self._past = 0, self._empty(len(ids_BT))
        mask_BT = batch.get("attention_mask", torch.ones_like(ids_BT))
        outputs = self._session({"input_ids": ids_BT[:, seen:], "attention_mask": mask_BT, **self._past})
        self._past = {
            name.replace("present", "past_key_values"): value for name, value in outputs.items() if name != "logits"
        }
        self._seen = ids_BT
        return outputs["logits"]

    def _empty(self, rows: int) -> dict[str, Tensor]:
        """A cache of no position for `rows` sequences."""
        caches = {name: shape for name, shape in self._session.inputs.items() if name.startswith("past_key_values")}
        return {name: torch.zeros(rows, shape[1], 0, shape[3]) for name, shape in caches.items()}
