"""Runs side by side: their curves in one figure, the settings in which they differ, and which one is best."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from utils.errors import ConfigError, DataNotFoundError
from utils.storage import absolute_path
from utils.training.config_files import read_config_file
from utils.training.run_state import read_state
from utils.ui.run_on_disk import run_on_disk
from utils.views.curves import Points
from utils.views.design import styled
from utils.views.display import show_html
from utils.views.figures import FALLBACK, Line, figure
from utils.views.html import Html, columns, element, text
from utils.views.tables import columns_text
from utils.views.values import value_text

# Most runs in one figure: more curves cannot be told apart.
MOST_RUNS = 10

_DASHES = (None, "6 4")


@dataclass(frozen=True)
class ComparedRun:
    """Data of one run for a comparison.

    Attributes:
        validation, smoothed: curves; best: lowest validation loss and its step, or None.
        settings: of config.yaml's sections, by name.
        measured_on: what its validation loss depends on besides the model: task, data and tokenizer, by name.
    """

    name: str
    steps: int
    smoothed: Points
    validation: Points
    best: tuple[float, int] | None
    settings: Mapping[str, Any]
    measured_on: Mapping[str, Any] = field(default_factory=dict)


def compare_runs(*runs: str | Path, output_dir: str | Path = "runs") -> None:
    """Show runs side by side: overlaid curves, the best validation loss of each, and the settings in which they differ.

    Args:
        runs: names in `output_dir`, or folders; two to ten. None: all runs in `output_dir` that have a step.
        output_dir: where runs are.
    Raises:
        ConfigError: there is no such run, or not between two and ten.
    """
    folder = absolute_path(output_dir)
    names: Sequence[str | Path] = runs or _all_runs(folder)
    if not 2 <= len(names) <= MOST_RUNS:
        raise ConfigError(f"compare_runs takes two to {MOST_RUNS} runs; got {len(names)}. Name those to compare.")
    compared = [read_run(_folder_of(name, folder)) for name in names]
    header, rows = comparison_rows(compared)
    note = _differences(compared)
    show_html(comparison(compared), "\n".join(filter(None, ["Runs compared", columns_text(header, rows), note])))


#: Settings that decide which text or rows a validation loss is measured on, and in which tokens.
_DATA = (
    "dataset_source", "dataset_path", "dataset_name", "config_name", "dataset_split", "text_column", "label_column",
    "conversation_layout", "data_kind", "mixture", "tokenizer_strategy", "val_split",
)  # fmt: skip
#: Entries of the task that do the same, and what a reader calls them; so do the settings of the tokenizer.
_KINDS = {"task_type": "tasks", "vocab_size": "tokenizers", "tokenizer_strategy": "tokenizers"}
_NOT_COMPARABLE = "No run is marked as the best: their losses are of different {0} and cannot be compared."

# Runs whose table fits beside the curves.
_BESIDE = 3


def comparison(runs: Sequence[ComparedRun]) -> Html:
    """Curves and table as markup with the style sheet."""
    header, rows = comparison_rows(runs)
    by_validation = any(run.validation for run in runs)
    colours = list(FALLBACK)
    lines = [
        Line(
            run.name, run.validation if by_validation else run.smoothed, colours[index % len(colours)], 2.0,
            _DASHES[index // len(colours)], marks=by_validation,
        )
        for index, run in enumerate(runs)
    ]  # fmt: skip
    what = "validation loss" if by_validation else "training loss (smoothed)"
    spoken = ", ".join(f"{line.name} {line.points[-1][1]:.3g}" for line in lines if line.points)
    drawn = figure(lines, f"Curves of the {what} of {len(runs)} runs. {spoken}.", axis=what)
    few = len(runs) <= _BESIDE
    curves = element(
        "div", element("div", text("Runs compared"), class_="tb-title"), element("div", drawn, class_="tb-plot"),
        class_="tb-card tb-wide" if few else "tb-card",
    )  # fmt: skip
    note = _differences(runs)
    remark = [element("div", text(note), class_="tb-help")] if note else []
    look = f"tb-card tb-scroll{' tb-narrow' if few else ''}"
    table = element("div", columns("", header, rows), *remark, class_=look)
    return styled(
        element("div", curves, table, class_="tb-split" if few else "tb-stack"),
        css_class="tb-compared",
    )


def comparison_rows(runs: Sequence[ComparedRun]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the table: a column for each run, first the results, then the settings that differ.

    The lowest loss has a star where all losses are of the same task, data and tokenizer.
    """
    losses = [run.best[0] for run in runs if run.best is not None]
    best = min(losses, default=None) if not _differences(runs) else None
    rows = [
        ["best validation loss", *(_best_text(run, best) for run in runs)],
        ["optimizer steps", *(f"{run.steps:,}" for run in runs)],
    ]
    names = dict.fromkeys(name for run in runs for name in run.settings)
    for name in names:
        values = [run.settings.get(name) for run in runs]
        if any(value != values[0] for value in values):
            rows.append([name, *("" if value is None else value_text(value) for value in values)])
    return ["", *(run.name for run in runs)], rows


def _differences(runs: Sequence[ComparedRun]) -> str:
    """Explain why the runs' losses cannot be compared; "" where they can."""
    first = runs[0].measured_on
    names = dict.fromkeys(name for run in runs for name in run.measured_on if run.measured_on[name] != first.get(name))
    words = dict.fromkeys(_KINDS.get(name, "data") for name in names)
    return _NOT_COMPARABLE.format(" and ".join(words)) if words else ""


def _best_text(run: ComparedRun, best: float | None) -> str:
    if run.best is None:
        return "–"
    loss, step = run.best
    return f"{'★ ' if loss == best else ''}{loss:.4f} (step {step:,})"


def read_run(folder: Path) -> ComparedRun:
    """The run in `folder` as its files describe it."""
    live, _ = run_on_disk(folder)
    points = live.validation.points
    lowest = min(points, key=lambda point: point[1], default=None)
    best = None if lowest is None else (lowest[1], int(lowest[0]))
    return ComparedRun(folder.name, live.step, live.smoothed.points, points, best, *_settings(folder))


def _settings(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """What `ComparedRun` calls settings and measured_on; two times {} where config.yaml cannot be read."""
    try:
        found = read_config_file(folder / "config.yaml")
    except (ConfigError, DataNotFoundError):
        return {}, {}
    sections = [found.get(name) for name in ("setup", "data", "model", "training")]
    merged = {key: value for values in sections if isinstance(values, Mapping) for key, value in values.items()}
    task = found.get("task")
    measured = {name: task.get(name) for name in _KINDS if name in task} if isinstance(task, Mapping) else {}
    measured |= {name: merged[name] for name in _DATA if name in merged}
    return {name: value for name, value in merged.items() if name not in ("run_name", "name")}, measured


def _all_runs(folder: Path) -> list[str | Path]:
    found = sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    return [path for path in found if (read_state(path) or {}).get("step")]


def _folder_of(run: str | Path, output_dir: Path) -> Path:
    for folder in (output_dir / run, Path(run)):
        if folder.is_dir() and read_state(folder) is not None:
            return folder.absolute()
    raise ConfigError(f"There is no run {str(run)!r} in {output_dir}; `show_runs()` lists those that are there.")
