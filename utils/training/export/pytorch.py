"""A PyTorch state_dict (.pt): the weights of any module, for whoever has its code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from utils.errors import ExportError, first_line
from utils.storage import write_json
from utils.training.export.folders import check_space, size_of, staged_folder
from utils.training.export.manifest import MARKER
from utils.training.export.result import ExportResult

#: The file's name in the export's folder.
FILE_NAME = "model.pt"


def refuse_unsupported(model: Any) -> None:
    """Raise `ExportError` for a module whose state holds something other than tensors."""
    if not isinstance(model, nn.Module):
        raise ExportError(f"{type(model).__name__} is not an nn.Module, so it has no weights to export")
    for name, value in model.state_dict().items():
        if not isinstance(value, Tensor):
            raise ExportError(
                f"{type(model).__name__}.{name} is a {type(value).__name__}; only tensors are exported, because loading "
                "anything else can run code. Return a tensor from get_extra_state."
            )


def export_pytorch(
    model: nn.Module, tokenizer: Any, target: Path, source: str, notes: tuple[str, ...] = (), *, task_spec: Any = None
) -> ExportResult:
    """Write the state_dict to `target`/model.pt, load it with `weights_only=True`, and compare bit for bit.

    Args:
        model: any module, on the CPU.
        tokenizer: not used: the file holds weights only.
        target: the folder; an export that is there is replaced.
        source: the checkpoint that the weights come from, for the record.
        notes: further sentences for the result.
        task_spec: not used either.
    Raises:
        ExportError: not written, or what was written is not the same. `target` is then what it was.
    """
    # Detached tensors in a plain dict: a state_dict is an OrderedDict with an attribute, which older loaders refuse.
    state = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    try:
        with staged_folder(target) as staging:
            check_space(staging, target, model)
            torch.save(state, staging / FILE_NAME)
            loaded = torch.load(staging / FILE_NAME, map_location="cpu", weights_only=True)
            different = [name for name, tensor in state.items() if not _same(tensor, loaded.get(name))]
            if different or loaded.keys() != state.keys():
                raise ExportError(f"the written file does not hold the model's weights: {different[:3]} differ")
            parity = {"max_abs_diff": 0.0, "tensors": len(state)}
            record = {"format": "pytorch", "source": source, "class": type(model).__name__, "parity": parity}
            write_json(staging / MARKER, record)
    # torch reports a full disk as a RuntimeError of its zip writer.
    except (OSError, RuntimeError) as error:
        if isinstance(error, ExportError):
            raise
        reason = getattr(error, "strerror", None) or first_line(error)
        raise ExportError(f"{target} could not be written: {reason}. What was there before is unchanged.") from error
    return ExportResult("pytorch", target, size_of(target), parity, None, notes)


def _same(first: Tensor, second: Tensor | None) -> bool:
    """Whether two tensors have the same bytes: NaN equals itself then."""
    if second is None or first.shape != second.shape or first.dtype != second.dtype:
        return False
    raw = [one.contiguous().flatten().view(torch.uint8) for one in (first, second)]
    return torch.equal(raw[0], raw[1])
