"""A run as the rules of the doctor see it: curves, settings and measurements, read from the run's folder."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from utils.errors import ConfigError, DataNotFoundError
from utils.storage import read_json_lines, read_json_object
from utils.training.config_files import read_config_file
from utils.training.task_kinds import kind_of_task
from utils.training.training_config import TrainingConfig

if TYPE_CHECKING:
    from utils.training.task_spec import TaskSpec

#: File in the run's folder that holds what `DoctorCallback` measured.
MEASUREMENTS = "doctor.jsonl"

Row = dict[str, Any]
Values = NDArray[np.float64]

#: A finished run, or one that did this share of its plan, is judged on what it has learned.
JUDGED_SHARE = 0.5
#: Fewest optimizer steps (and epochs, unless there are many steps) after which a lack of progress means something.
FEWEST_STEPS, FEWEST_EPOCHS, MANY_STEPS = 30, 2, 200

#: Relative distance to the baseline within which a loss counts as the baseline's.
AT_BASELINE = 0.03

_ENDED = ("finished", "max_steps", "early_stopping", "finish_now")


@dataclass(frozen=True)
class Guess:
    """Score of a model that ignores its inputs and knows only the label frequencies.

    Attributes:
        loss: its loss in the task's unit: the entropy of the labels, the variance of the targets, the unigram loss.
        accuracy: share of the most frequent class; None where there are no classes.
        what: the baseline in words.
    """

    loss: float
    accuracy: float | None
    what: str

    @property
    def score(self) -> str:
        """Its loss, or its accuracy where the loss has no baseline."""
        return f"{self.loss:.4g}" if math.isfinite(self.loss) else f"an accuracy of {self.accuracy or 0.0:.2f}"


def constant_baseline(folder: Path) -> tuple[str, Guess] | None:
    """Name and validation score of the best constant answer, for a run in `folder` that learns classes or numbers.

    None of language models, whose baseline is the unigram model; of several classes a sample; and where nothing was measured.
    Its loss is infinite where the run's loss has no such baseline, as with label smoothing.
    """
    try:
        record = RunRecord.read(folder)
    except (DataNotFoundError, ConfigError):
        return None
    guess = None if record.over_tokens or record.multi_label else record.validation_guess
    return None if guess is None else ("class frequencies" if guess.accuracy is not None else "mean target", guess)


@dataclass
class RunRecord:
    """One run.

    Attributes:
        rows: everything in history.jsonl; state: state.json; measurements: rows of doctor.jsonl.
        config: the settings; spec: the type of the task that was given or inferred.
        unigram: loss of a unigram model on the validation data, where the caller knows it.
        running: whether the run is still under way.
    """

    name: str
    config: TrainingConfig
    spec: str | None = None
    multi_label: bool = False
    rows: Sequence[Row] = ()
    state: Mapping[str, Any] = field(default_factory=dict)
    measurements: Sequence[Row] = ()
    unigram: float | None = None
    running: bool = False

    @classmethod
    def read(cls, folder: Path, *, running: bool = False, unigram: float | None = None) -> RunRecord:
        """The run in `folder`.

        Raises:
            DataNotFoundError: there is no run in it. ConfigError: its config.yaml cannot be read.
        """
        if not (folder / "history.jsonl").is_file() and not (folder / "config.yaml").is_file():
            raise DataNotFoundError(f"{folder} holds no run: it has neither history.jsonl nor config.yaml.")
        sections: Mapping[str, Any] = {}
        if (folder / "config.yaml").is_file():
            sections = read_config_file(folder / "config.yaml")
        settings, task = sections.get("training") or {}, sections.get("task") or {}
        if not isinstance(settings, Mapping) or not isinstance(task, Mapping):
            raise ConfigError(f"{folder / 'config.yaml'}: training and task must be sections with settings.")
        known = {name: value for name, value in settings.items() if name in TrainingConfig.model_fields}
        record = cls(
            name=folder.name, config=TrainingConfig.from_dict(known), spec=task.get("task_type"),
            multi_label=bool(task.get("multi_label")), unigram=unigram,
        )  # fmt: skip
        return record.updated(folder, running=running)

    @classmethod
    def begun(cls, folder: Path, config: TrainingConfig, task_spec: TaskSpec) -> RunRecord:
        """A run of this process that is under way in `folder`, with the settings that its config.yaml has."""
        record = cls(folder.name, config, task_spec.task_type, bool(task_spec.multi_label))
        return record.updated(folder, running=True)

    def updated(self, folder: Path, *, running: bool) -> RunRecord:
        """The same run with its rows, state and measurements read again; its settings, which do not change, are kept."""
        return RunRecord(
            name=self.name, config=self.config, spec=self.spec, multi_label=self.multi_label, unigram=self.unigram,
            rows=read_json_lines(folder / "history.jsonl"), state=read_json_object(folder / "state.json"),
            measurements=read_json_lines(folder / MEASUREMENTS), running=running,
        )  # fmt: skip

    @property
    def task(self) -> str | None:
        """The task whose loss is minimised; None where the caller brought a criterion."""
        return None if self.facts.get("criterion") else self.spec

    # What happened

    @cached_property
    def epochs(self) -> list[Row]:
        """One row for each epoch; a continued epoch counts once."""
        return list({row["epoch"]: row for row in self._of("epoch") if "train/loss" in row}.values())

    @cached_property
    def validations(self) -> list[Row]:
        """One row for each validation."""
        return self._of("evaluate")

    @cached_property
    def skipped(self) -> list[Row]:
        """Steps that were skipped because a number was not finite."""
        return [row for row in self._of("step") if row.get("skipped")]

    def _of(self, event: str) -> list[Row]:
        return [row for row in self.rows if row.get("event") == event]

    @cached_property
    def _steps(self) -> list[Row]:
        return [
            row for row in self._of("step") if not row.get("skipped") and math.isfinite(row.get("train/loss", math.nan))
        ]

    @cached_property
    def steps(self) -> Values:
        """The optimizer steps that have a row; `losses`, `norms` and `rates` belong to them (means since the last row)."""
        return np.array([row["step"] for row in self._steps], dtype=np.float64)

    @cached_property
    def losses(self) -> Values:
        """Training losses."""
        return np.array([row["train/loss"] for row in self._steps], dtype=np.float64)

    @cached_property
    def norms(self) -> Values:
        """Gradient norms before clipping."""
        return np.array([row.get("train/grad_norm", math.nan) for row in self._steps], dtype=np.float64)

    @cached_property
    def rates(self) -> Values:
        """Learning rates."""
        return np.array([row.get("train/learning_rate", math.nan) for row in self._steps], dtype=np.float64)

    @property
    def done(self) -> int:
        """Optimizer steps done."""
        return max([0, *(int(row["step"]) for row in self.rows[-50:] if "step" in row)])

    @property
    def planned(self) -> int | None:
        """Optimizer steps of the whole run, where that is known."""
        total: int | None = self.facts.get("total_steps", self.config.max_steps)
        return total

    @property
    def ended(self) -> bool:
        """Whether the run came to its planned end."""
        return self.state.get("stop_reason") in _ENDED and not self.running

    @property
    def judged(self) -> str:
        """Reason why it is too early to judge what the run has learned; empty when it is not."""
        if self.done < FEWEST_STEPS or len(self.losses) < 10:
            return f"{self.done} optimizer steps are too few to judge; {FEWEST_STEPS} are needed"
        if self.done < MANY_STEPS and len(self.epochs) < FEWEST_EPOCHS:
            return f"less than {FEWEST_EPOCHS} epochs and {MANY_STEPS} steps are too few to judge"
        if not self.ended and self.planned is not None and self.done < JUDGED_SHARE * self.planned:
            return f"{self.done} of {self.planned} planned steps are too few to judge"
        return ""

    # Measurements

    @cached_property
    def facts(self) -> Row:
        """Measurements at the start: sizes, data, optimizer; {} for runs without any."""
        found: Row = {}
        for row in self.measurements:
            if row.get("event") == "start":
                found |= row
        return found

    def counts(self, part: str) -> list[Row]:
        """Statistics of targets and outputs of each epoch ("train") or validation ("val"), in order."""
        return [row for row in self.measurements if row.get("event") == "counts" and row.get("part") == part]

    @cached_property
    def looks(self) -> list[Row]:
        """Looks at the parameters around single steps, in order."""
        return [row for row in self.measurements if row.get("event") == "look" and row.get("tensors")]

    @cached_property
    def intervals(self) -> list[Row]:
        """Steps, clipped steps and times, an entry for each epoch or validation."""
        return [row for row in self.measurements if row.get("event") == "interval"]

    @property
    def over_tokens(self) -> bool:
        """Whether the loss is over tokens of a vocabulary."""
        return kind_of_task(self.task).over_tokens

    # Derived numbers

    @cached_property
    def start(self) -> float:
        """Training loss of the first steps."""
        return float(self.losses[: max(1, min(10, len(self.losses) // 10))].mean())

    @cached_property
    def end(self) -> float:
        """Training loss of the last tenth of the run."""
        return float(self.losses[-self._last :].mean())

    @property
    def _last(self) -> int:
        return max(3, len(self.losses) // 10)

    @cached_property
    def scatter(self) -> float:
        """Standard deviation of single step losses around their trend, in the second half of the run."""
        half = self.losses[len(self.losses) // 2 :]
        if len(half) < 3:
            return math.inf
        # A trend has no part in differences of neighbours; those of independent values have twice the variance.
        return float(np.std(np.diff(half)) / math.sqrt(2))

    @property
    def error(self) -> float:
        """Standard error of `end`."""
        return self.scatter / math.sqrt(self._last)

    @cached_property
    def guess(self) -> Guess | None:
        """The baseline on the training data; None where it is not known."""
        return self._guess_of("train")

    @cached_property
    def validation_guess(self) -> Guess | None:
        """The baseline on the validation data."""
        return self._guess_of("val")

    def _guess_of(self, part: str) -> Guess | None:
        if self.over_tokens:
            known = (self.unigram, self.facts.get("validation_unigram_loss") if part == "val" else None)
            measured = next((loss for loss in known if loss is not None), self.facts.get("unigram_loss"))
            here = part == "train" and self.unigram is None
            what = "the frequencies of the training tokens" if here else "a unigram model"
            return None if measured is None else Guess(float(measured), None, what)
        counted = [row for row in self.counts(part) if row.get("guess_loss") is not None]
        row = counted[-1] if counted else self.facts.get("labels", {})
        if row.get("guess_loss") is None:  # not measured, or not finite
            return None
        classes = row.get("majority") is not None
        loss = float(row["guess_loss"])
        if self.task is None:
            loss = self._guess_of_criterion(row)
        elif self.config.label_smoothing and classes:
            loss = math.inf  # smoothing adds to the loss what depends on the model; only the accuracy can be compared
        if not classes and not math.isfinite(loss):
            return None
        what = "always answering by the frequency of the classes" if classes else "always answering the mean target"
        return Guess(loss, row.get("majority"), what)

    def _guess_of_criterion(self, row: Row) -> float:
        """The baseline's loss under a criterion that is known; infinite, which compares with nothing, under others."""
        criterion, classes = self.facts.get("criterion"), row.get("majority") is not None
        known = {("MSELoss", False): "guess_loss", ("CrossEntropyLoss", True): "guess_loss"}
        known |= {("BCEWithLogitsLoss", False): "binary_entropy", ("BCELoss", False): "binary_entropy"}
        value = row.get(known.get((str(criterion), classes), ""))
        return math.inf if value is None else float(value)

    @cached_property
    def no_better_than_guess(self) -> bool | None:
        """Whether the training ends no better than its baseline; None where that is not known."""
        return self._no_better(self.guess, self.end, self.epochs, "train")

    def _no_better(self, guess: Guess | None, loss: float, rows: Sequence[Row], part: str) -> bool | None:
        if guess is None:
            return None
        measured = [row[f"{part}/loss"] for row in rows[-3:] if f"{part}/loss" in row]
        worse = min([loss, *measured]) >= (1 - AT_BASELINE) * guess.loss
        if guess.accuracy is None or not rows or f"{part}/accuracy" not in rows[-1]:
            return worse if math.isfinite(guess.loss) else None
        best = max(row.get(f"{part}/accuracy", 0.0) for row in rows[-3:])
        chance = best <= guess.accuracy + self.accuracy_margin(part, guess.accuracy)
        return chance and (worse or not math.isfinite(guess.loss))

    def accuracy_margin(self, part: str, share: float) -> float:
        """Two standard errors of an accuracy at chance, and two points."""
        counted = self.counts(part)
        number = counted[-1].get("targets", 0) if counted else self.facts.get("num_train", 0)
        return 0.02 + 2 * math.sqrt(share * (1 - share) / max(number, 1))

    @cached_property
    def movement(self) -> float | None:
        """Relative movement of the weights over the run: an upper bound, the typical relative update of the median
        matrix times the steps. None where it was not measured."""
        seen = [ratio for look in self.looks if (ratio := relative_update(look)) is not None]
        return None if not seen else float(np.median(seen)) * self.done

    @cached_property
    def highest(self) -> float:
        """The highest training loss, averaged over neighbouring steps, relative to the first loss and to the baseline."""
        window = max(3, len(self.losses) // 50)
        if len(self.losses) < window:
            return 0.0
        smoothed = np.convolve(self.losses, np.full(window, 1 / window), mode="valid")
        known = self.guess.loss if self.guess is not None and math.isfinite(self.guess.loss) else 0.0
        floor = max(float(self.losses[0]), known)
        return float(smoothed.max() / floor) if floor > 0 else 0.0

    @property
    def still_falling(self) -> bool:
        """Whether the training loss of the last epoch is below 90 % of that of the epoch before: too early for a verdict on
        what the model can reach."""
        losses = [row["train/loss"] for row in self.epochs[-2:]]
        return len(losses) == 2 and 0 < losses[1] < 0.9 * losses[0]

    def flat_since(self) -> float:
        """Share of the run, from its end backwards, in which the training loss stayed level."""
        number = len(self.losses)
        blocks = np.array_split(self.losses, min(20, max(1, number // 3)))
        means = np.array([block.mean() for block in blocks])
        errors = self.scatter / math.sqrt(max(1, number // len(blocks)))
        last = means[-1]
        level = np.abs(means - last) <= max(3 * errors, 0.01 * abs(last))
        away = np.flatnonzero(~level)
        return 1.0 if not len(away) else (len(means) - 1 - int(away[-1])) / len(means)


def relative_update(look: Row, *, from_zero: bool = True) -> float | None:
    """The update of one step relative to the weights, of the median matrix; None where there is no matrix to go by.

    Args:
        from_zero: count the matrices of LoRA that start at zero, of which every first step is a multiple.
    """
    ratios = [
        t["update"] / t["weight"]
        for t in look["tensors"]
        if t["matrix"] and t["weight"] and t["update"] is not None and (from_zero or ".lora_B." not in t["name"])
    ]
    return float(np.median(ratios)) if ratios else None
