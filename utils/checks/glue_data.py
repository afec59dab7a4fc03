"""The nine tasks of GLUE: their files in the official layout, their names on the Hub, and their metrics."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from utils.checks.glue_metrics import Metric, accuracy, f1, matthews, pearson, spearman
from utils.errors import ConfigError, DataError, DataNotFoundError, HubError, first_line

HUB_NAME = "nyu-mll/glue"

_ENTAILMENT = ("entailment", "not_entailment")


@dataclass(frozen=True)
class GlueTask:
    """One task.

    Attributes:
        name: as GLUE and its folders write it; hub: the configuration's name on the Hub.
        texts: columns of the one or two texts in the files; hub_texts: on the Hub.
        label: the column of the label in the files.
        classes: names of the classes in the order of their numbers; empty for STS-B, whose labels are numbers from 0 to 5.
        metrics: by name, the one that decides first.
        evaluation: the part to evaluate on by its file's name -> its name on the Hub.
        columns: names of the columns where the files have no header.
    """

    name: str
    hub: str
    texts: tuple[str, ...]
    hub_texts: tuple[str, ...]
    label: str
    classes: tuple[str, ...]
    metrics: Mapping[str, Metric]
    evaluation: Mapping[str, str] = field(default_factory=lambda: {"dev": "validation"})
    columns: tuple[str, ...] = ()

    @property
    def num_outputs(self) -> int:
        """Scores of the model's head."""
        return len(self.classes) or 1


_PAIR = ("sentence1", "sentence2")
_QUESTIONS = ("question1", "question2")
_ACCURACY: dict[str, Metric] = {"accuracy": accuracy}
_ACCURACY_F1: dict[str, Metric] = {"accuracy": accuracy, "f1": f1}

#: By name, in the order of the GLUE leaderboard.
TASKS: dict[str, GlueTask] = {
    task.name: task
    for task in (
        GlueTask(
            "CoLA", "cola", ("sentence",), ("sentence",), "label", ("0", "1"), {"matthews": matthews},
            columns=("source", "label", "judgement", "sentence"),
        ),
        GlueTask("SST-2", "sst2", ("sentence",), ("sentence",), "label", ("0", "1"), _ACCURACY),
        GlueTask("MRPC", "mrpc", ("#1 String", "#2 String"), _PAIR, "Quality", ("0", "1"), _ACCURACY_F1),
        GlueTask("STS-B", "stsb", _PAIR, _PAIR, "score", (), {"pearson": pearson, "spearman": spearman}),
        GlueTask("QQP", "qqp", _QUESTIONS, _QUESTIONS, "is_duplicate", ("0", "1"), _ACCURACY_F1),
        GlueTask(
            "MNLI", "mnli", _PAIR, ("premise", "hypothesis"), "gold_label", ("entailment", "neutral", "contradiction"),
            _ACCURACY,
            {"dev_matched": "validation_matched", "dev_mismatched": "validation_mismatched"},
        ),
        GlueTask("QNLI", "qnli", ("question", "sentence"), ("question", "sentence"), "label", _ENTAILMENT, _ACCURACY),
        GlueTask("RTE", "rte", _PAIR, _PAIR, "label", _ENTAILMENT, _ACCURACY),
        GlueTask("WNLI", "wnli", _PAIR, _PAIR, "label", ("0", "1"), _ACCURACY),
    )
}  # fmt: skip

_MOST_NAMED = 5


@dataclass(frozen=True)
class GlueData:
    """A task's examples.

    Attributes:
        train: records with text, pair (for two texts) and label: a class's number, or a number.
        evaluation: the same for each part that is evaluated: "dev", or "dev_matched" and "dev_mismatched".
        notes: what was left out, one sentence for each file.
    """

    train: list[dict[str, Any]]
    evaluation: dict[str, list[dict[str, Any]]]
    notes: list[str]


def load_task(task: GlueTask, data_dir: str | os.PathLike[str] | None) -> GlueData:
    """A task's training and evaluation examples.

    Args:
        data_dir: the folder that holds CoLA/, SST-2/, … as GLUE's download script leaves them; None: the Hub.
    Raises:
        DataNotFoundError: a file is missing; says which one. DataError: a file cannot be used.
        HubError: the Hub cannot be reached; says what else works.
    """
    if data_dir is None:
        return _from_hub(task)
    folder = _folder(Path(data_dir).expanduser(), task)
    notes: list[str] = []
    train = _read(folder / "train.tsv", task, notes)
    return GlueData(train, {part: _read(folder / f"{part}.tsv", task, notes) for part in task.evaluation}, notes)


def _folder(root: Path, task: GlueTask) -> Path:
    """The task's folder, however it is capitalised."""
    if not root.is_dir():
        raise DataNotFoundError(
            f"data_dir: there is no folder {root}; give the one that holds CoLA/, SST-2/, and so on."
        )
    wanted = {task.name.casefold(), task.hub.casefold(), task.name.replace("-", "").casefold()}
    found = sorted(path for path in root.iterdir() if path.is_dir() and path.name.casefold() in wanted)
    if not found:
        raise DataNotFoundError(
            f"{root} has no folder {task.name}; GLUE's download script makes it. tasks=[…] evaluates only those that are there."
        )
    return found[0]


def _read(path: Path, task: GlueTask, notes: list[str]) -> list[dict[str, Any]]:
    """The records of a file; rows that cannot be used are left out, and a note names and counts them.

    Fields are separated by tabs and never quoted: a quotation mark is part of the text, even a single one.
    """
    if not path.is_file():
        raise DataNotFoundError(
            f"{path} is missing; {task.name} needs {', '.join(['train', *task.evaluation])} (.tsv)."
        )
    try:
        # Only \n ends a row: texts hold other characters that Python takes for line ends.
        lines = path.read_bytes().decode("utf-8-sig").replace("\r\n", "\n").rstrip("\n").split("\n")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 ({error}).") from error
    columns, start = (task.columns, 0) if task.columns else (tuple(lines[0].split("\t")), 1)
    missing = [name for name in (*task.texts, task.label) if name not in columns]
    if missing:
        raise DataError(f"{path} has no column {missing[0]!r}; {task.name} has {', '.join(columns[:12])}.")
    places, label = [columns.index(name) for name in task.texts], columns.index(task.label)
    records: list[dict[str, Any]] = []
    bad: list[int] = []
    for number, line in enumerate(lines[start:], start + 1):
        fields = line.split("\t")
        record = _record(task, fields, places, label) if len(fields) == len(columns) else None
        if record is None:
            bad.append(number)
        else:
            records.append(record)
    if bad:
        more = f" and {len(bad) - _MOST_NAMED:,} more" if len(bad) > _MOST_NAMED else ""
        notes.append(
            f"{path.name}: {len(bad):,} of {len(bad) + len(records):,} rows were left out, which lack "
            "columns, a text or a label "
            f"(lines {', '.join(map(str, bad[:_MOST_NAMED]))}{more})."
        )
    if not records:
        raise DataError(f"{path} holds no row that can be used; the first bad one is line {bad[0] if bad else 1}.")
    return records


def _record(task: GlueTask, fields: list[str], places: list[int], label: int) -> dict[str, Any] | None:
    """A row as text, pair and label; None where it lacks one of them."""
    texts = [fields[place].strip() for place in places]
    value = _label(task, fields[label].strip())
    if value is None or not all(texts):
        return None
    return {**dict(zip(("text", "pair"), texts, strict=False)), "label": value}


def _label(task: GlueTask, text: str) -> int | float | None:
    """A class's number or a score; None for what is neither, such as MNLI's "-" where annotators did not agree."""
    if task.classes:
        return task.classes.index(text) if text in task.classes else None
    try:
        value = float(text)
    except ValueError:
        return None
    return value if 0 <= value <= 5 else None


def _from_hub(task: GlueTask) -> GlueData:
    from utils.data.text.hub import load_hub_table

    try:
        table = load_hub_table(HUB_NAME, task.hub)
    except HubError as error:
        raise HubError(
            f"GLUE's {task.name} cannot be read from the Hub ({first_line(error)}). Give data_dir=, the folder "
            "that GLUE's download script leaves, with train.tsv and dev.tsv for each task."
        ) from error
    notes: list[str] = []
    parts = {name: _records(task, table.splits[name], name, notes) for name in ("train", *task.evaluation.values())}
    return GlueData(parts["train"], {part: parts[name] for part, name in task.evaluation.items()}, notes)


def _records(task: GlueTask, rows: Any, name: str, notes: list[str]) -> list[dict[str, Any]]:
    """Rows of the Hub as records; those without a label (-1) are left out and counted."""
    records, left_out = [], 0
    for row in rows:
        label = row["label"]
        if label is None or (task.classes and not 0 <= label < len(task.classes)):
            left_out += 1
            continue
        texts = [row[column] for column in task.hub_texts]
        records.append({**dict(zip(("text", "pair"), texts, strict=False)), "label": label})
    if left_out:
        notes.append(f"{name}: {left_out:,} rows without a label were left out.")
    if not records:
        raise DataError(f"{HUB_NAME} {task.hub} has no labelled rows in {name}.")
    return records


def chosen_tasks(names: Any) -> list[GlueTask]:
    """The tasks of these names, in any spelling ("sst2", "SST-2"); None: all nine. Raises `ConfigError` for others."""
    if names is None:
        return list(TASKS.values())
    spellings = {spelling.casefold(): task for task in TASKS.values() for spelling in (task.name, task.hub)}
    listed = [names] if isinstance(names, str) else list(names)
    unknown = [name for name in listed if str(name).casefold() not in spellings]
    if unknown or not listed:
        raise ConfigError(f"tasks: {unknown} are not tasks of GLUE; it has {', '.join(TASKS)}.")
    return list({spellings[str(name).casefold()].name: spellings[str(name).casefold()] for name in listed}.values())
