"""Suggest learning rate and batch size by real training steps on a copy of the model.

Both finders train with `Trainer` in a temporary folder. The model with its gradients and modes, its optimizer, every random
generator and the data are as before; the copy needs the model's memory once more, and a temporary folder one checkpoint.
The batch-size finder is in `utils.training.batch_size_finder`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import nn

from utils.adapters.facts import model_facts
from utils.errors import ConfigError, DataError, NonFiniteError
from utils.training.batch_size_finder import BatchSizeSuggestion, find_batch_size
from utils.training.engine.callbacks import Callback, Logs
from utils.training.engine.compute.optim import Schedule
from utils.training.engine.trainer import Trainer
from utils.training.training_config import TrainingConfig
from utils.training.trial_training import TrialTraining

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from utils.training.task_spec import TaskSpec
    from utils.views.html import Html

__all__ = ["BatchSizeSuggestion", "LearningRateSuggestion", "find_batch_size", "find_learning_rate"]

# The test ends when the loss, averaged over some steps, is this many times its best: as in fastai's finder.
_DIVERGED = 4.0
_AVERAGED = 0.8  # weight of the past in that average
# Fewer steps than this draw no curve.
_FEWEST_STEPS = 10
# Part of the curve, on each side, over which the loss is smoothed.
_SMOOTHED_SHARE = 0.05
# A model that knows nothing has a loss of ln V; below this share of it, it has been trained before.
_KNOWS_NOTHING = 0.75
# Devlin et al. 2019 (BERT), appendix A.3: the rates that worked over all tasks were 2e-5 to 5e-5.
_FINE_TUNING = "2e-5 to 5e-5"


@dataclass(frozen=True)
class LearningRateSuggestion:
    """Result of a learning-rate range test.

    Attributes:
        steps: optimizer steps, from 1; rates, losses, smoothed: the learning rate of each, its loss (nats per target, before
            the update) and the losses averaged with their neighbours.
        suggestion: the rate at which the smoothed loss falls fastest; None when it never fell clearly.
        a_tenth_of_minimum: a tenth of the rate with the lowest smoothed loss: the other customary choice.
        applies: False for a model that was trained before, whose learning rate should be far lower.
        diverged: whether the test ended because the loss grew.
        note: all of this in words.
    """

    steps: list[int]
    rates: list[float]
    losses: list[float]
    smoothed: list[float]
    suggestion: float | None
    a_tenth_of_minimum: float
    applies: bool
    diverged: bool
    note: str

    def plot(self) -> Figure:
        """Loss over learning rate."""
        from utils.views.finder import range_test_curve

        return range_test_curve(self.rates, self.losses, self.smoothed, self.suggestion, self.note)

    def show(self) -> None:
        """Show the figure (in a notebook) and what it says."""
        from utils.views.design import styled
        from utils.views.display import show_html
        from utils.views.tables import summary_text

        show_html(styled(self.to_html()), summary_text("Learning rate", self.rows()))

    def to_html(self) -> Html:
        """The figure and what it says, without a style sheet."""
        from utils.views.finder import range_test_figure
        from utils.views.html import element, joined, table

        drawn = range_test_figure(self.rates, self.losses, self.smoothed, self.suggestion)
        return joined([element("div", drawn, class_="tb-plot"), table("Learning rate", self.rows())])

    def rows(self) -> dict[str, str]:
        """The suggestion as a table."""
        return {
            "Suggestion": "none" if self.suggestion is None else f"{self.suggestion:.2g}",
            "A tenth of the rate with the lowest loss": f"{self.a_tenth_of_minimum:.2g}",
            "Steps": f"{len(self.steps)}, rates {self.rates[0]:.1e} to {self.rates[-1]:.1e}",
            "Note": self.note,
        }


def find_learning_rate(
    model: nn.Module | Trainer, train_data: Any, *, training_config: Any = None, task_spec: TaskSpec | None = None,
    tokenizer: Any = None, data_collator: Any = None, steps: int = 100, lowest: float = 1e-7, highest: float = 1.0,
    callbacks: Sequence[Callback] = (),
) -> LearningRateSuggestion:  # fmt: skip
    """The learning-rate range test: train while the rate rises exponentially, and see where the loss falls fastest.

    Smith 2015, "Cyclical Learning Rates for Training Neural Networks", section 3.3, with the exponential rise, the stop at
    four times the best loss and the choice by steepest descent over log(rate) of fastai's finder. The smoothing is centred
    (a triangle over 5 % of the steps on each side): a running average would lag, and with it the suggestion.

    Args:
        model: the model, or a `Trainer`, whose model and settings are then used where none are given here.
        train_data: what `Trainer.train` takes, or a PreparedData. Not data that only come in their own order.
        training_config: a TrainingConfig, or a setup that has one. Batch, optimizer, precision and clipping are its own.
        steps: at most so many; lowest, highest: the learning rates of the first and the last.
        callbacks: follow the test; one that requests a stop ends it early.
    Raises:
        ConfigError, DataError, ModelError: as in training; DataError also for data that cannot be read twice.
        NonFiniteError: the loss is not a number from the first step on.
    Not covered: warm-up, weight decay's long-term effect, and everything that only shows in a long training.
    """
    if steps < _FEWEST_STEPS or not 0 < lowest < highest:
        raise ConfigError(
            f"find_learning_rate needs steps of at least {_FEWEST_STEPS} and 0 < lowest < highest; got steps={steps}, "
            f"lowest={lowest}, highest={highest}."
        )
    job = TrialTraining.of(model, train_data, training_config, task_spec, tokenizer, data_collator)
    job.refuse_streams()
    watch = _RangeTest(steps, lowest, highest)
    try:
        # Each epoch has at least one step, so `steps` epochs are enough whatever the data's length.
        job.train(watch, *callbacks, epochs=min(steps, 100_000), max_steps=steps, save_every_n_epochs=steps)
    except NonFiniteError:
        watch.diverged = True
        if not watch.losses:
            raise
    if not watch.losses:
        raise DataError("train_data holds no target to score: every label is -100. Check its labels.")
    return _suggested(watch, _trained_before(job.model, watch.losses[0]))


class _Rising(Schedule):
    """Learning rate that rises from `lowest` to `highest`, by the same factor each step."""

    def __init__(self, config: TrainingConfig, steps: int, lowest: float, highest: float) -> None:
        super().__init__(config, steps)
        self._steps, self._lowest, self._highest = steps, lowest, highest

    def at(self, step: int) -> float:
        return float(self._lowest * (self._highest / self._lowest) ** (step / (self._steps - 1)))


class _RangeTest(Callback):
    """Replace the schedule by the rising rate, record the losses, and stop when they grow."""

    def __init__(self, steps: int, lowest: float, highest: float) -> None:
        self.steps: list[int] = []
        self.rates: list[float] = []
        self.losses: list[float] = []
        self.diverged = False
        self._plan = steps, lowest, highest
        self._average, self._best = 0.0, math.inf

    def on_train_begin(self, trainer: Trainer, logs: Logs | None = None) -> None:
        assert trainer.parts is not None
        trainer.parts.schedule = _Rising(trainer.training_config, *self._plan)

    def on_step_end(self, step: int, trainer: Trainer, logs: Logs | None = None) -> None:
        assert logs is not None
        loss = logs["train/loss"]
        if math.isnan(loss):  # a step without targets
            return
        self.steps.append(step)
        self.rates.append(logs["train/learning_rate"])
        self.losses.append(loss)
        self._average = _AVERAGED * self._average + (1 - _AVERAGED) * loss
        average = self._average / (1 - _AVERAGED ** len(self.losses))
        self._best = min(self._best, average)
        if len(self.losses) > _FEWEST_STEPS and average > _DIVERGED * self._best:
            self.diverged = True
            trainer.request_stop("diverged")


def _suggested(watch: _RangeTest, trained_before: str) -> LearningRateSuggestion:
    losses, rates = np.array(watch.losses), np.array(watch.rates)
    smoothed = _smoothed(losses)
    lowest_at = int(smoothed.argmin())
    suggestion = None
    if len(losses) >= _FEWEST_STEPS and _fell_clearly(losses, smoothed, lowest_at):
        slopes = np.gradient(smoothed, np.log(rates))[: lowest_at + 1]
        suggestion = float(rates[int(slopes.argmin())])
    return LearningRateSuggestion(
        watch.steps, watch.rates, watch.losses, smoothed.tolist(), suggestion, float(rates[lowest_at] / 10),
        not trained_before, watch.diverged, _rate_note(suggestion, trained_before, watch),
    )  # fmt: skip


def _smoothed(losses: np.ndarray) -> np.ndarray:
    """Each loss averaged with its neighbours, nearer ones more; at the ends with those that there are."""
    reach = max(1, round(_SMOOTHED_SHARE * len(losses)))
    weights = 1.0 - np.abs(np.arange(-reach, reach + 1)) / (reach + 1)
    ones = np.ones_like(losses)
    smoothed: np.ndarray = np.convolve(losses, weights)[reach:-reach] / np.convolve(ones, weights)[reach:-reach]
    return smoothed


def _fell_clearly(losses: np.ndarray, smoothed: np.ndarray, lowest_at: int) -> bool:
    """Whether the loss fell by more than its own scatter from step to step, measured before the lowest point."""
    scatter = float(np.std(np.diff(losses[: lowest_at + 1]))) if lowest_at > 1 else math.inf
    return float(smoothed[0] - smoothed[lowest_at]) > max(scatter, 0.01 * abs(float(smoothed[0])))


def _trained_before(model: nn.Module, first_loss: float) -> str:
    """Evidence that the model does not start from random weights; empty without any."""
    vocab_size = model_facts(model).vocab_size
    knows_nothing = math.log(vocab_size) if vocab_size is not None and vocab_size > 1 else None
    if knows_nothing is not None and first_loss < _KNOWS_NOTHING * knows_nothing:
        return f"its first loss, {first_loss:.2f}, is far below ln V = {knows_nothing:.2f}"
    name = getattr(getattr(model, "config", None), "_name_or_path", None) or getattr(model, "name_or_path", None)
    return f"it was loaded from {name!r}" if isinstance(name, str) and name else ""


def _rate_note(suggestion: float | None, trained_before: str, watch: _RangeTest) -> str:
    if trained_before:
        return (
            f"This does not apply: the model was trained before ({trained_before}), and fine-tuning wants far less than a "
            f"range test shows, or it forgets; start with {_FINE_TUNING}."
        )
    if suggestion is None:
        why = "before it grew" if watch.diverged else f"up to {watch.rates[-1]:.1e}"
        return (
            f"No suggestion: the loss did not fall clearly {why}. Try more steps or a larger batch, and check the data."
        )
    return (
        f"The loss falls fastest at {suggestion:.2g}: a peak learning rate for this batch size and optimizer, with warm-up. "
        "Another batch size wants another one."
    )
