"""export_model: from the results of a training to files that others can load."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from torch import nn

from utils.errors import ExportError
from utils.schema import nearest, shown
from utils.training.engine.checkpoint import load_model_weights, read_checkpoint
from utils.training.export import hf, onnx
from utils.training.export.result import ExportResult

Exporter = Callable[[nn.Module, Any, Path, str, tuple[str, ...]], ExportResult]

#: What can be exported: format -> (refuses models it cannot hold, writes one).
FORMATS: Mapping[str, tuple[Callable[[Any], None], Exporter]] = {
    "hf": (hf.refuse_unsupported, hf.export_hf),
    "onnx": (onnx.refuse_unsupported, onnx.export_onnx),
}


def export_model(
    results: Any,
    formats: Sequence[str] = ("hf",),
    which: Literal["best", "last"] = "best",
    output_dir: str | Path | None = None,
) -> dict[str, ExportResult]:
    """Export the trained model of `results`, verified by loading it again.

    The weights come from a checkpoint; the live model, its mode and its gradients are not touched. A second call
    replaces the export that the first one made.

    Args:
        results: a TrainingResults.
        formats: names in FORMATS, "hf" and "onnx". All are checked before anything is written.
        which: the checkpoint with the best monitored metric, or the last one.
        output_dir: each format gets a folder of its name in it; default: `exports` in the run's folder.
    Returns:
        {format: ExportResult}, in the order of `formats`.
    Raises:
        ExportError: an unknown format, a model that a format cannot hold, no checkpoint, or an exported model that does
            not compute the same. No half folder is left behind; formats before the one that failed stay, and are named.
        MissingPackageError: a format needs a package that is not installed.
        CheckpointError: the checkpoint is damaged or of another model.
    """
    names = _checked_formats(formats)
    # Some results have an adapter around the model.
    trained = getattr(results, "bare_model", None)
    trained = results.model if trained is None else trained
    for name in names:
        FORMATS[name][0](trained)
    path, notes = _checkpoint_of(results, which)
    model = _cpu_copy(trained)
    load_model_weights(model, read_checkpoint(path, mapped=True)["model"], str(path))
    parent = Path(output_dir).expanduser() if output_dir is not None else Path(results.run_dir) / "exports"
    parent = parent.absolute()
    done: dict[str, ExportResult] = {}
    for name in names:
        try:
            done[name] = FORMATS[name][1](model.eval(), results.tokenizer, parent / name, str(path), notes)
        except ExportError as error:
            if not done:
                raise
            kept = ", ".join(str(result.path) for result in done.values())
            raise ExportError(f"{name}: {error} Already exported and kept: {kept}.") from error
    return done


def _checked_formats(formats: Sequence[str]) -> list[str]:
    """`formats` without repeats, all of them known."""
    names = list(dict.fromkeys([formats] if isinstance(formats, str) else formats))
    if not names:
        raise ExportError(f"formats is empty; choose from: {', '.join(FORMATS)}")
    for name in names:
        if name not in FORMATS:
            guess = nearest(str(name), FORMATS)
            hint = f" Did you mean {guess!r}?" if guess else ""
            raise ExportError(f"got the format {shown(name)}; this version exports: {', '.join(FORMATS)}.{hint}")
    return names


def _checkpoint_of(results: Any, which: str) -> tuple[str, tuple[str, ...]]:
    """The checkpoint file to export, and a note when it is another one than was asked for."""
    if which not in ("best", "last"):
        raise ExportError(f"got which={shown(which)}; must be 'best' or 'last'")
    best, last = results.best_model_path, results.checkpoint_path
    if which == "best" and best is not None:
        return str(best), ()
    if last is None:
        raise ExportError(
            "the run has no checkpoint yet: nothing was trained, or saving failed; train before exporting"
        )
    note = ("There is no best checkpoint, because the run has no monitored value: this is the last one.",)
    return str(last), note if which == "best" else ()


def _cpu_copy(model: nn.Module) -> nn.Module:
    """A copy on the CPU without gradients; takes no device memory, draws no random number. Tied tensors stay tied."""
    memo: dict[int, Any] = {}
    for parameter in model.parameters():
        memo[id(parameter)] = nn.Parameter(parameter.detach().cpu().clone(), requires_grad=parameter.requires_grad)
    for buffer in model.buffers():
        memo[id(buffer)] = buffer.detach().cpu().clone()
    return copy.deepcopy(model, memo)
