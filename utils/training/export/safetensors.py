"""A safetensors file with the weights of any module, and the few lines that load them again."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from utils.errors import ExportError
from utils.storage import write_json
from utils.training.export.folders import check_space, size_of, staged_folder
from utils.training.export.hf import save_tokenizer
from utils.training.export.manifest import MARKER
from utils.training.export.result import ExportResult

#: The files' names in the export's folder.
FILE_NAME, SNIPPET_NAME = "model.safetensors", "load.py"


def refuse_unsupported(model: Any) -> None:
    """Raise `ExportError` for a module whose state holds something other than tensors that the format knows."""
    if not isinstance(model, nn.Module):
        raise ExportError(f"{type(model).__name__} is not an nn.Module, so it has no weights to export")
    state = model.state_dict()
    if not state:
        raise ExportError(f"{type(model).__name__} has no parameters and no buffers, so there is nothing to export")
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise ExportError(
                f"{type(model).__name__}.{name} is a {type(value).__name__}; safetensors files hold tensors only. Return a "
                "tensor from get_extra_state, or load the checkpoint instead."
            )
        if value.layout != torch.strided or value.is_quantized or value.dtype == torch.complex128:
            kind = (
                "quantised"
                if value.is_quantized
                else str(value.layout if value.layout != torch.strided else value.dtype)
            )
            raise ExportError(
                f"{type(model).__name__}.{name} is {kind.removeprefix('torch.')}, which safetensors files cannot hold. "
                "Convert it to a dense tensor of another format before exporting."
            )


def export_safetensors(
    model: nn.Module, tokenizer: Any, target: Path, source: str, notes: tuple[str, ...] = ()
) -> ExportResult:
    """Write the state_dict of `model` to `target`/model.safetensors, load it into a copy, and compare bit for bit.

    Tied weights are written under each of their names, so that `load_state_dict` takes the file as it is.

    Args:
        model: any module, on the CPU.
        tokenizer: saved with it; None: none.
        target: the folder; an export that is there is replaced.
        source: the checkpoint that the weights come from, for the record.
        notes: further sentences for the result.
    Raises:
        ExportError: not written, or what was written is not the same. `target` is then what it was.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    # Copies: tied weights and views share memory, which the format does not allow.
    state = {
        name: tensor.detach().clone(memory_format=torch.contiguous_format)
        for name, tensor in model.state_dict().items()
    }
    # Without the path of this machine in it: the folder is meant to be passed on.
    portable = _snippet(model, f'Path(__file__).with_name("{FILE_NAME}")', "\nfrom pathlib import Path\n")
    try:
        with staged_folder(target) as staging:
            check_space(staging, target, model)
            save_file(state, staging / FILE_NAME)
            (staging / SNIPPET_NAME).write_text(portable, encoding="utf-8")
            _verify(model, state, staging / FILE_NAME)
            if tokenizer is not None:
                notes += save_tokenizer(tokenizer, staging)
            parity = {"max_abs_diff": 0.0, "tensors": len(state)}
            record = {"format": "safetensors", "source": source, "class": type(model).__name__, "parity": parity}
            write_json(staging / MARKER, record)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ExportError(f"{target} could not be written: {reason}. What was there before is unchanged.") from error
    notes += (f"To load it, see {SNIPPET_NAME}, or:\n{_snippet(model, repr(str(target / FILE_NAME)))}",)
    return ExportResult("safetensors", target, size_of(target), parity, None, notes)


def _verify(model: nn.Module, state: dict[str, Tensor], file: Path) -> None:
    """Load `file` into a copy of the model whose weights are zero, and compare with `state`, bit for bit."""
    from safetensors.torch import load_file

    loaded = copy.deepcopy(model)
    with torch.no_grad():
        for tensor in loaded.state_dict().values():
            tensor.zero_()
    loaded.load_state_dict(load_file(file))
    for name, tensor in loaded.state_dict().items():
        if not torch.equal(_bytes_of(tensor), _bytes_of(state[name])):
            raise ExportError(
                f"the exported file does not load as the same model: {name} differs; nothing was exported"
            )


def _bytes_of(tensor: Tensor) -> Tensor:
    """The tensor's bytes: NaN equals itself there, and formats without comparison can be compared."""
    return tensor.detach().contiguous().flatten().view(torch.uint8)


def _snippet(model: nn.Module, file: str, imports: str = "") -> str:
    """Python code that loads the weights from the path that the expression `file` stands for."""
    name, module = type(model).__qualname__, type(model).__module__
    if module == "__main__" or "<locals>" in name:  # defined in a notebook, a script or a function
        name, hint = name.rpartition(".")[2], ", once its class is defined"
    else:
        imports, hint = f"{imports}\nfrom {module} import {name.partition('.')[0]}", ""
    return (
        f"from safetensors.torch import load_file\n{imports}\n\n"
        f"model = {name}(...)  # with the arguments that it was created with{hint}\n"
        f"model.load_state_dict(load_file({file}))\n"
        "model.eval()\n"
    )
