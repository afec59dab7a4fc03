"""Whether a model can learn: overfit a single batch."""

from __future__ import annotations

import copy
import tempfile
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset

from utils.adapters.forward import ModelCall
from utils.check_result import CheckResult, Limit
from utils.checks.checking import check
from utils.checks.copies import Budget, Watch
from utils.checks.probe import Probe

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAME = "overfit one batch"

# Share of the first loss that must be left at most: a model with as many parameters as the batch has targets reaches next to
# nothing, and one in which only a bias learns stays near the batch's unigram loss, about nine tenths.
LARGEST_LEFT = 0.5
# With most parameters frozen, what is left to train may not suffice for that; it must learn something all the same.
_LARGEST_LEFT_FROZEN = 0.98
# A model that fails is tried again at this fraction of the learning rate: a rate can be too high for a sound model.
LOWER = 10
_ROWS, _LENGTH = 8, 16


class _OneBatch(Dataset[dict[str, Tensor]]):
    """The rows of one batch again and again, so that an epoch has many steps and one checkpoint."""

    def __init__(self, batch: dict[str, Tensor], times: int) -> None:
        self._batch, self._times = batch, times

    def __len__(self) -> int:
        return _ROWS * self._times

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {name: value[index % _ROWS] for name, value in self._batch.items()}


#: Limits of the measured values, and where each is from.
_LIMITS = (
    Limit("share_left", at_most="share_left", source="a model in which only a bias learns keeps about nine tenths"),
)  # fmt: skip


@check(NAME, limits=_LIMITS)
def test_overfit_one_batch(
    found: Probe, steps: int = 150, learning_rate: float = 3e-3, budget: Budget | None = None
) -> CheckResult:
    """Train a copy on one batch of random inputs and labels, with the engine and without weight decay.

    Called as (model, config=None, *, task_spec=None, steps=150, learning_rate=3e-3). Fails when more than half of the
    first loss is left at the end (with most parameters frozen: 98 %), at this learning rate and at a tenth of it: layers that
    are used several times (ALBERT) move several times as far. The model itself is not changed. Not covered:
    encoder-decoders and outputs that are numbers.
    """
    if found.encoder_decoder or found.output == "numbers":
        return CheckResult(
            NAME, "not run", "Made for language models and classifiers.", remedy="Train it on a few rows."
        )
    limit = LARGEST_LEFT if _mostly_trainable(found) else _LARGEST_LEFT_FROZEN
    for rate in (learning_rate, learning_rate / LOWER):
        watch = Watch(budget or Budget())
        _train(found, steps, rate, watch)
        losses = watch.losses
        left = losses[-1] / losses[0] if losses[0] else 0.0
        if left <= limit or watch.ended_early:
            break
    measured = {
        "first_loss": losses[0], "last_loss": losses[-1], "share_left": left, "steps": len(losses), "learning_rate": rate,
    }  # fmt: skip
    thresholds, figure = {"share_left": limit}, _figure(losses)
    summary = (
        f"{left:.0%} of the first loss is left after {len(losses)} steps on one batch "
        f"({losses[0]:.3g} to {losses[-1]:.3g})."
    )
    if watch.ended_early and not left <= limit:
        return CheckResult(
            NAME, "not run", f"{watch.budget.reason.capitalize()}. {summary}", measured, thresholds,
            "Give more time (time_limit_minutes).", figure,
        )  # fmt: skip
    if not left <= limit:
        return CheckResult(
            NAME, "fail", summary, measured, thresholds,
            "A model that cannot memorise eight rows will not learn more: look at the gradient flow, at frozen "
            "layers, and at what comes after the output layer.", figure,
        )  # fmt: skip
    return CheckResult(NAME, "pass", summary, measured, thresholds, figure=figure)


def _train(found: Probe, steps: int, learning_rate: float, watch: Watch) -> None:
    from utils.training.engine.trainer import Trainer  # heavy, and the other tiers do without it
    from utils.training.task_spec import TaskSpec
    from utils.training.training_config import TrainingConfig

    model = copy.deepcopy(found.model)
    twin = replace(found, model=model, call=ModelCall(model))
    batch = twin.batch(_ROWS, min(_LENGTH, found.max_length), seed=14)
    batch = {name: value.cpu() for name, value in batch.items()}
    if found.output == "classes" or not found.causal:
        with torch.no_grad():
            shape = found.call({name: value.to(found.device) for name, value in batch.items()}).shape
        generator = torch.Generator().manual_seed(15)
        labels = torch.randint(shape[-1], tuple(shape[:-1]), generator=generator)
        if found.output == "tokens":
            labels[:, ::2] = -100  # masked language models are not trained on every position
        batch["labels"] = labels
    spec = None if found.feature_shape is not None else TaskSpec(_task(found))
    data: Dataset[Any] = _OneBatch(batch, steps)
    if found.feature_shape is not None:
        data = TensorDataset(*(value.repeat(steps, *[1] * (value.dim() - 1)) for value in batch.values()))
    with tempfile.TemporaryDirectory() as folder:
        config = TrainingConfig(
            epochs=1, batch_size=_ROWS, learning_rate=learning_rate, weight_decay=0.0, use_lr_schedule=False, precision="32",
            output_dir=folder,
        )  # fmt: skip
        Trainer(model, training_config=config, task_spec=spec, callbacks=[watch]).train(data)


def _mostly_trainable(found: Probe) -> bool:
    parameters = list(found.model.parameters())
    return sum(p.numel() for p in parameters if p.requires_grad) > 0.5 * sum(p.numel() for p in parameters)


def _task(found: Probe) -> str:
    if found.output == "classes":
        return "image_classification" if found.image_shape is not None else "text_classification"
    if found.causal:
        return "causal_lm"
    return "masked_lm" if found.scores_vocabulary else "token_classification"


def _figure(losses: list[float]) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 2.6), dpi=110, layout="constrained")
    axes = figure.subplots()
    axes.plot(range(1, len(losses) + 1), losses, color="#1f4e9c")
    axes.set_xlabel("steps on the same batch")
    axes.set_ylabel("training loss (nats)")
    return figure
