"""export_model: from the results of a training to files that others can load."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NoReturn

from torch import nn

from utils.errors import ExportError, TrainbookError
from utils.schema import shown
from utils.training.engine.checkpointing.store import read_checkpoint
from utils.training.engine.checkpointing.weights import load_model_weights, weights_to_use
from utils.training.export.other_process import kept_processes, prepare
from utils.training.export.result import ExportResult, Exports
from utils.training.export.stages import watched
from utils.training.export_formats import FORMATS, unknown_format

log = logging.getLogger("trainbook.export")


def export_model(
    results: Any,
    formats: Sequence[str] = ("hf",),
    which: Literal["best", "last"] = "best",
    output_dir: str | Path | None = None,
    tokenizer: Any = None,
    on_stage: Callable[[str, str], None] | None = None,
) -> Exports:
    """Export the trained model of `results`, or a module, verified by loading it again.

    The weights come from a checkpoint and are written in the model's own dtype; the live model, its mode and its
    gradients are not touched. A second call replaces the export that the first one made.

    Args:
        results: a TrainingResults; or any `nn.Module`, whose weights are taken as they are.
        formats: names in FORMATS; docs/EXPORT.md says what each is for. "safetensors" holds the weights of any module.
        which: the checkpoint with the best monitored metric, or the last one; a module has no checkpoints.
        output_dir: each format gets a folder of its name in it; default: `exports` in the run's folder. Needed for a module.
        tokenizer: saved with the model; None: the one of `results`.
        on_stage: called with a format's name and what is done next, such as "onnx", "measuring the speed". What it raises
            ends the format, whose folder is then what it was; an `Exception` counts as the failure of that format, anything
            else ends the call.
    Returns:
        {format: ExportResult}, in the order of `formats`. A format that does not fit the model, or whose package is missing,
        does not affect the others: it is logged, and its reason is in the attribute `not_written`.
    Raises:
        ExportError: an unknown format, no checkpoint, or no format could be written; with the reason of each.
        MissingPackageError: the only format needs a package that is not installed.
        CheckpointError: the checkpoint is damaged or of another model.
    """
    names = _checked_formats(formats)
    trained = _bare_model(results)
    failures: dict[str, Exception] = {}
    for name in names:
        try:
            FORMATS[name].refuse(trained)
        except TrainbookError as error:
            failures[name] = error
    done: dict[str, ExportResult] = {}
    given = _weights_of(results, trained, which, output_dir)
    if len(failures) < len(names):
        model, source, notes, run_dir, step = given()
        parent = Path(output_dir).expanduser().absolute() if output_dir is not None else Path(str(run_dir)) / "exports"
        tokenizer = getattr(results, "tokenizer", None) if tokenizer is None else tokenizer
        task_spec = getattr(results, "task_spec", None)
        with kept_processes():
            for kind in dict.fromkeys(FORMATS[name].process for name in names if name not in failures):
                if kind is not None:
                    prepare(kind)  # imports its packages while the first format is written
            # A format that is made from another one's graphs comes after it.
            for name in sorted((name for name in names if name not in failures), key=_is_derived):
                origin = done.get(FORMATS[name].made_from or "")
                further = {"task_spec": task_spec, "traced": origin.path if origin else None}
                try:
                    with watched(_named(name, on_stage)):
                        result = FORMATS[name].write(model.eval(), tokenizer, parent / name, source, notes, **further)
                # Exporters run the model's own code and other libraries': whatever these raise concerns one format only.
                except Exception as error:  # noqa: BLE001 - see above
                    failures[name] = error
                else:
                    done[name] = _with_card(replace(result, run_dir=run_dir, step=step), results, trained)
    reasons = {name: _reason(error, trained) for name, error in failures.items()}
    if not done:
        _raise_failures(failures, reasons)
    for name, reason in reasons.items():
        log.warning("%s was not exported: %s", name, reason)
    return Exports({name: done[name] for name in names if name in done}, reasons)


def _named(name: str, on_stage: Callable[[str, str], None] | None) -> Callable[[str], None] | None:
    return None if on_stage is None else lambda sentence: on_stage(name, sentence)


#: A model to export, where its weights come from, what to say of them, the run's folder and the step.
_Weights = tuple[nn.Module, str, tuple[str, ...], Path | None, int | None]


def _bare_model(results: Any) -> Any:
    """The model without the adapter that some results have around it."""
    if isinstance(results, nn.Module):
        return results
    bare = getattr(results, "bare_model", None)
    return results.model if bare is None else bare


def _weights_of(results: Any, trained: nn.Module, which: str, output_dir: Any) -> Callable[[], _Weights]:
    """Check what is there; the returned function reads it."""
    if isinstance(results, nn.Module):
        if output_dir is None:
            raise ExportError("a module belongs to no run: give output_dir, the folder to export to")
        return lambda: (_cpu_copy(trained), f"a {type(trained).__name__} in memory", (), None, None)
    path, notes = _checkpoint_of(results, which)

    def read() -> _Weights:
        checkpoint = read_checkpoint(path, mapped=True)
        model = _cpu_copy(trained)
        load_model_weights(model, weights_to_use(checkpoint), str(path))
        run_dir = Path(results.run_dir).absolute()
        return model, _portable(path, run_dir), notes, run_dir, (checkpoint["state"] or {}).get("step")

    return read


def _is_derived(name: str) -> bool:
    return FORMATS[name].made_from is not None


def _with_card(result: ExportResult, results: Any, model: Any) -> ExportResult:
    """The export with a model card in its folder; with a note where the card could not be written."""
    from utils.training.export.model_card import add_card

    try:
        return add_card(result, results, model)
    except Exception as error:  # noqa: BLE001 - the export is verified; a card reads configs and code of any kind
        reason = str(error) if isinstance(error, ExportError) else f"{type(error).__name__}: {str(error)[:300]}"
        return replace(result, notes=(*result.notes, f"There is no model card in the folder: {reason}"))


def _raise_failures(failures: Mapping[str, Exception], reasons: Mapping[str, str]) -> NoReturn:
    name, first = next(iter(failures.items()))
    if len(failures) == 1:
        if isinstance(first, TrainbookError):
            raise first
        raise ExportError(reasons[name]) from first
    listed = "\n  ".join(f"{name}: {reason}" for name, reason in reasons.items())
    hint = "" if "safetensors" in failures else "\nformats=['safetensors'] holds the weights of any module."
    raise ExportError(f"nothing was exported:\n  {listed}{hint}") from first


def _reason(error: Exception, model: Any) -> str:
    if isinstance(error, TrainbookError):
        return str(error)
    return f"{type(model).__name__} cannot be exported: {type(error).__name__}: {str(error)[:300]}"


def _portable(checkpoint: str, run_dir: Path) -> str:
    """The checkpoint's name in the run, without the folders of this machine."""
    path = Path(checkpoint).absolute()
    inside = path.relative_to(run_dir) if path.is_relative_to(run_dir) else Path(path.name)
    return (Path(run_dir.name) / inside).as_posix()


def _checked_formats(formats: Sequence[str]) -> list[str]:
    """`formats` without repeats, all of them known."""
    names = list(dict.fromkeys([formats] if isinstance(formats, str) else formats))
    if not names:
        raise ExportError(f"formats is empty; choose from: {', '.join(FORMATS)}")
    for name in names:
        if name not in FORMATS:
            raise ExportError(unknown_format(name))
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
