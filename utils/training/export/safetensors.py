"""A safetensors file with the weights of any module, and the few lines that load them again."""

from __future__ import annotations

import copy
import inspect
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from utils.adapters.forward import ModelCall
from utils.errors import ExportError
from utils.storage import write_json
from utils.training.export.folders import check_space, size_of, staged_folder
from utils.training.export.greedy import greedy_parity
from utils.training.export.hf import save_tokenizer, scores_elsewhere, scores_of
from utils.training.export.manifest import MARKER
from utils.training.export.other_process import Loaded, UnreadableError, code_room, loaded_elsewhere
from utils.training.export.parity import compare_logits, example_batches
from utils.training.export.reader_program import digest
from utils.training.export.result import ExportResult

#: The files' names in the export's folder.
FILE_NAME, SNIPPET_NAME = "model.safetensors", "load.py"

# The same code computes the same weights on both sides: anything above rounding is another model.
_TOLERANCE = 1e-5

# Parameters of a constructor that nobody has to give.
_OPTIONAL = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


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
    model: nn.Module, tokenizer: Any, target: Path, source: str, notes: tuple[str, ...] = (), *, task_spec: Any = None
) -> ExportResult:
    """Write the state_dict of `model` to `target`/model.safetensors, load it into the same module in another process, and
    compare bit for bit.

    The other process imports the module's class and makes a new one: from its config if it is a transformers model, without
    arguments if it needs none. Other modules, and classes of a notebook, are compared in this process; a note says so. Tied
    weights are written under each of their names, so that `load_state_dict` takes the file as it is.

    Args:
        model: any module, on the CPU.
        tokenizer: saved with it; None: none.
        target: the folder; an export that is there is replaced.
        source: the checkpoint that the weights come from, for the record.
        notes: further sentences for the result.
        task_spec: fills what the model does not state of its inputs.
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
            other_process, unverified = _verify(model, state, staging / FILE_NAME, task_spec)
            if tokenizer is not None:
                notes += save_tokenizer(tokenizer, staging)
            parity = {"max_abs_diff": 0.0, "tensors": len(state)}
            record = {"format": "safetensors", "source": source, "class": type(model).__name__, "parity": parity}
            write_json(staging / MARKER, record)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ExportError(f"{target} could not be written: {reason}. What was there before is unchanged.") from error
    how = f"To load it, see {SNIPPET_NAME}, or:\n{_snippet(model, repr(str(target / FILE_NAME)))}"
    notes += (*unverified, how)
    return ExportResult("safetensors", target, size_of(target), parity, None, notes, other_process=other_process)


def _verify(
    model: nn.Module, state: dict[str, Tensor], file: Path, task_spec: Any
) -> tuple[dict[str, Any] | None, tuple[str, ...]]:
    """Load `file` into the same module in another process, and compare its state with `state`, bit for bit, and its answers.

    Returns:
        What was compared in the other process, None without one; and why there was none, in a sentence.
    """
    try:
        with loaded_elsewhere("module", code_room(model), **_made_by(model)) as elsewhere:
            got = elsewhere.ask("weights", file=str(file))
            _require_equal({name: digest(tensor) for name, tensor in state.items()}, got)
            return {"tensors": len(state), **_compared_answers(model, elsewhere, task_spec)}, ()
    except UnreadableError as error:
        reason = str(error)
    _verify_here(model, state, file)
    return None, (f"It was loaded and compared in this process only: {reason.rstrip('.')}.",)


def _made_by(model: nn.Module) -> dict[str, Any]:
    """Request with which another process makes a module of the same class. Raises UnreadableError: it cannot."""
    made, config = type(model), getattr(model, "config", None)
    found = {"loader": (made.__module__, made.__qualname__), "path": list(sys.path)}
    if config is not None and hasattr(model, "save_pretrained") and hasattr(config, "to_json_string"):
        return {**found, "config": config.to_json_string(use_diff=False)}
    parameters = inspect.signature(made).parameters.values()
    needed = [one.name for one in parameters if one.default is one.empty and one.kind not in _OPTIONAL]
    if needed:
        raise UnreadableError(f"what {made.__name__} was created with is not known ({', '.join(needed)})")
    return {**found, "config": None}


def _compared_answers(model: nn.Module, loaded: Loaded, task_spec: Any) -> dict[str, Any]:
    """Compare logits, and the tokens of language models, where the model takes inputs that can be made up and always gives the
    same answer to them.

    Raises:
        UnreadableError: other answers with the same weights, so the cause is nothing that the file holds.
    """
    call = ModelCall(model)
    scores = scores_of(model, call)
    try:
        batches = example_batches(model, task_spec)
        with torch.no_grad():
            once, again = ([scores(batch) for batch in batches] for _ in range(2))
    # Any module can be exported, also one that computes something else than logits, or nothing.
    except Exception:  # noqa: BLE001 - see above
        return {}
    if not all(bool(one.isfinite().all()) and torch.equal(one, two) for one, two in zip(once, again, strict=True)):
        return {}
    elsewhere = scores_elsewhere(call, loaded)
    try:
        parity = compare_logits(scores, elsewhere, batches, _TOLERANCE)
        return parity | greedy_parity(model, scores, elsewhere, batches, _TOLERANCE)
    except ExportError as error:
        raise UnreadableError(
            f"with the same weights a new {type(model).__name__} gives other answers, because of an argument or a buffer that "
            "its state does not hold"
        ) from error


def _require_equal(expected: Mapping[str, str], got: Mapping[str, str]) -> None:
    different = next((name for name in expected if got.get(name) != expected[name]), None)
    if different is not None:
        raise ExportError(
            f"the exported file does not load as the same model: {different} differs; nothing was exported"
        )


def _verify_here(model: nn.Module, state: dict[str, Tensor], file: Path) -> None:
    """Load `file` into a copy of the model whose weights are zero, and compare with `state`, bit for bit."""
    from safetensors.torch import load_file

    loaded = copy.deepcopy(model)
    with torch.no_grad():
        for tensor in loaded.state_dict().values():
            tensor.zero_()
    loaded.load_state_dict(load_file(file))
    _require_equal(*({name: digest(tensor) for name, tensor in one.items()} for one in (state, loaded.state_dict())))


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
