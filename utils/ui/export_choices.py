"""Data of the export panel: formats and their purposes, results with their verification, and the archive."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from utils.errors import ExportError, TrainbookError
from utils.storage import atomic_write, free_bytes
from utils.training.export_formats import FORMATS, ExportFormat
from utils.views.tables import columns_text

HEADER = ("Format", "Result", "Agreement with the model", "Size", "Speed")


@dataclass(frozen=True)
class ExportChoice:
    """A format for one model.

    Attributes:
        name: in `export_model`'s `formats`.
        title, purpose: for people.
        refusal: why this model cannot be exported so; None: it can, as far as is known before it is tried.
    """

    name: str
    title: str
    purpose: str
    refusal: str | None


def export_choices(results: Any) -> list[ExportChoice]:
    """Every format with what it is for, and whether the trained model of `results` can be exported so."""
    trained = getattr(results, "bare_model", None)
    trained = results.model if trained is None else trained
    return [ExportChoice(name, one.title, one.purpose, _refusal(one, trained)) for name, one in FORMATS.items()]


def _refusal(kind: ExportFormat, model: Any) -> str | None:
    try:
        kind.refuse(model)
    except TrainbookError as error:
        return str(error)
    return None


def export_one(
    results: Any,
    name: str,
    written: MutableMapping[str, Any],
    failures: MutableMapping[str, str],
    on_stage: Callable[[str], None] = lambda sentence: None,
) -> None:
    """Export one format and note its result in `written`, or the reason why it failed in `failures`.

    What goes wrong in one format, of whatever class, concerns this format only.

    Args:
        on_stage: called with what is done next; may raise `Cancelled`, which passes through.
    """
    from utils.training.export import export_model

    try:
        done = export_model(results, formats=[name], on_stage=lambda _, sentence: on_stage(sentence))
    except Exception as error:  # noqa: BLE001 - see above; shown beside the format
        known = isinstance(error, TrainbookError)
        failures[name] = str(error) if known else f"{type(error).__name__}: {str(error)[:300]}"
        written.pop(name, None)
        return
    failures.pop(name, None)
    written.update(done)


def verification_rows(written: Mapping[str, Any], failures: Mapping[str, str]) -> list[tuple[str, ...]]:
    """A row of `HEADER` for each format that was written or failed."""
    rows: list[tuple[str, ...]] = [
        (name, "verified", result.agreement, f"{result.size_bytes / 1e6:.1f}\u00a0MB", speed_text(result.benchmark))
        for name, result in written.items()
    ]
    return rows + [(name, f"not written: {reason}", "-", "-", "-") for name, reason in failures.items()]


def speed_text(benchmark: Mapping[str, Any] | None) -> str:
    """Milliseconds of a forward pass of an exported model, beside PyTorch's; "not measured" where nothing was."""
    times = {
        name.removesuffix("_ms"): value
        for name, value in (benchmark or {}).items()
        if name.endswith("_ms") and isinstance(value, (int, float))
    }
    pytorch = times.pop("pytorch", None)
    if not times:
        return "not measured"
    runtime, taken = next(iter(times.items()))
    against = "" if pytorch is None else f" (PyTorch {pytorch:.2f} ms)"
    return f"{taken:.2f} ms with {runtime}{against}"


def panel_text(choices: Sequence[ExportChoice], written: Mapping[str, Any], failures: Mapping[str, str]) -> str:
    """The panel without widgets: formats, verification, and the call that exports others."""
    formats = [(one.name, one.purpose, "yes" if one.refusal is None else f"no: {one.refusal}") for one in choices]
    parts = [f"Export formats\n{columns_text(('Format', 'For', 'This model'), formats)}"]
    if rows := verification_rows(written, failures):
        parts.append(f"Exports\n{columns_text(HEADER, rows)}")
    others = [one.name for one in choices if one.refusal is None and one.name not in written]
    if others:
        parts.append(f"To export other formats: export_model(results, formats={others})")
    return "\n\n".join(parts)


def archive_path(results: Any) -> Path:
    """Path of the archive of a run's exports."""
    run_dir = Path(results.run_dir).absolute()
    return run_dir / "exports" / f"{run_dir.name}-exports.zip"


def write_archive(written: Mapping[str, Any], target: Path) -> Path:
    """Write one zip file with every export, each in a folder of its format's name; an older one is replaced in one step.

    Raises:
        ExportError: there is nothing to pack, or the disk is full.
    """
    if not written:
        raise ExportError("there is no export to pack yet; export a format first.")
    size = sum(result.size_bytes for result in written.values())
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if free_bytes(target.parent) < size:
            raise ExportError(f"{target}: not enough disk space for {size:,} bytes. Free some space.")
        return atomic_write(target, lambda file: _pack(file, written))
    except OSError as error:
        raise ExportError(f"{target} could not be written: {error.strerror or error}. Free some space.") from error


def _pack(file: IO[bytes], written: Mapping[str, Any]) -> None:
    # Stored, not deflated: weights hardly get smaller, and packing them takes minutes.
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, result in written.items():
            path = Path(result.path)
            for one in sorted(path.rglob("*")) if path.is_dir() else [path]:
                if one.is_file():
                    inside = one.relative_to(path) if path.is_dir() else Path(one.name)
                    archive.write(one, f"{name}/{inside.as_posix()}")
