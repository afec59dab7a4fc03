"""Baselines that a trained model must beat: class or token frequencies, the mean, and a linear model on the same inputs.

Shapes: N samples, F features, C classes, K numbers.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from utils.checks.real_data import CheckData, batches, class_counts
from utils.data.batch import IGNORED

# The L2 penalty of scikit-learn's LogisticRegression and Ridge: half the squared norm against the sum over all samples.
_PENALTY = 0.5
_ITERATIONS = 100
# Samples that a linear model is fitted to: enough for its best, and seconds of work.
_MOST_SAMPLES = 20_000
# Pixels of an image are averaged down to this many on a side.
_MOST_PIXELS = 32


@dataclass(frozen=True)
class Baseline:
    """A baseline and its errors on held-out samples.

    Attributes:
        name: such as "majority class".
        errors: (N,) loss in nats, squared error, or 1 for a wrong class, of each held-out target; fp64 on the CPU.
    """

    name: str
    errors: Tensor

    @property
    def error(self) -> float:
        """The mean error."""
        return float(self.errors.mean())


def unigram(model: nn.Module, data: CheckData, targets: Tensor, classes: int) -> Baseline:
    """Losses in nats of held-out tokens or classes under their frequencies in training, each counted once more."""
    counts = class_counts(model, data, data.train, classes)
    losses = -((counts + 1) / (counts.sum() + classes)).log()
    return Baseline("frequencies alone", losses[targets.cpu()])


def majority(targets: Tensor) -> Baseline:
    """Errors of always predicting the most frequent held-out class: the best that is possible without looking at the input.

    The most frequent class of training may be another one where classes are about as frequent; a model that ignores its input
    would beat that one by chance.
    """
    targets = targets.cpu()
    return Baseline("majority class", (targets != targets.mode().values).double())


def mean(targets: Tensor) -> Baseline:
    """Squared errors of always predicting the mean of the held-out targets (N, K); see `majority`."""
    targets = targets.cpu().double()
    return Baseline("mean", (targets - targets.mean(0)).square().mean(1))


def linear(model: nn.Module, data: CheckData, targets: Tensor, classes: int) -> Baseline:
    """Errors of a linear model on the same inputs: logistic or ridge regression with scikit-learn's default penalty.

    Features are bags of words (tf-idf of token ids and of pairs of neighbours), pixels, or columns of numbers; the latter
    two are standardised by training statistics.
    """
    train, train_labels = _samples(model, data, data.train)
    held_out, labels = _samples(model, data, data.validation, len(targets))
    if isinstance(train, list):
        name, fit = "bag-of-words linear model", _Bags(train)
        assert isinstance(held_out, list)
        inputs, outputs = fit(train), fit(held_out)
    else:
        assert isinstance(held_out, Tensor)
        name = "linear model"
        inputs, outputs = _standardised(train, train, held_out)
    if data.task_spec.task_type == "regression":
        weights = _ridge(inputs, train_labels.double())
        return Baseline(name, (_with_one(outputs) @ weights - labels.double()).square().mean(1))
    logits = _logistic(inputs, train_labels, outputs, classes)
    return Baseline(name, (logits.argmax(1) != labels).double())


def _samples(
    model: nn.Module, data: CheckData, part: Any, most: int = _MOST_SAMPLES
) -> tuple[Tensor | list[Tensor], Tensor]:
    """Inputs of samples, token ids without padding or flat numbers (N, F), and their labels."""
    inputs: list[Tensor] = []
    labels: list[Tensor] = []
    for batch in batches(model, data, part, most):
        target = batch["labels"]
        if data.task_spec.task_type == "regression":
            target = target.float().reshape(len(target), -1)
            known = ~target.isnan().any(1)
        else:
            known = target != IGNORED
        labels.append(target[known])
        if (ids := batch.get("input_ids")) is not None:
            mask = batch.get("attention_mask")
            mask = torch.ones_like(ids) if mask is None else mask
            inputs += [row[keep != 0] for row, keep in zip(ids[known], mask[known], strict=True)]
        else:
            main = next(value for name, value in batch.items() if name != "labels")
            inputs.append(_flat(main[known].float()))
    return (inputs if "input_ids" in batch else torch.cat(inputs)), torch.cat(labels)


def _flat(values: Tensor) -> Tensor:
    if values.dim() == 4 and max(values.shape[2:]) > _MOST_PIXELS:
        values = F.adaptive_avg_pool2d(values, _MOST_PIXELS)
    return values.flatten(1)


def _standardised(train: Tensor, *parts: Tensor) -> list[Tensor]:
    mean, scale = train.double().mean(0), train.double().std(0, unbiased=False)
    scale[scale == 0] = 1.0
    return [(part.double() - mean) / scale for part in parts]


def _with_one(features: Tensor) -> Tensor:
    return torch.cat([features.double(), features.new_ones(len(features), 1).double()], 1)


def _ridge(features: Tensor, targets: Tensor) -> Tensor:
    """(F + 1, K) weights of ridge regression; the last row is the intercept, which is not penalised."""
    inputs = _with_one(features)
    penalty = torch.eye(inputs.shape[1], dtype=torch.float64)
    penalty[-1, -1] = 1e-9
    weights: Tensor = torch.linalg.solve(inputs.T @ inputs + penalty, inputs.T @ targets)
    return weights


def _logistic(inputs: Tensor, labels: Tensor, outputs: Tensor, classes: int) -> Tensor:
    """Scores (M, C) for `outputs` of logistic regression fitted to `inputs` by L-BFGS; both dense or sparse (N, F)."""
    weights = torch.zeros(inputs.shape[1], classes, dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(classes, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights, bias], max_iter=_ITERATIONS, line_search_fn="strong_wolfe")
    count = len(labels)

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(inputs @ weights + bias, labels) + _PENALTY / count * weights.square().sum()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    with torch.enable_grad():
        optimizer.step(loss)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        return outputs @ weights + bias


class _Bags:
    """Token ids of a text as a sparse row of tf-idf weights of length 1, over ids and pairs of neighbours seen in training."""

    def __init__(self, texts: list[Tensor]) -> None:
        documents = [self._terms(text) for text in texts]
        frequency: dict[Any, int] = {}
        for terms in documents:
            for term in terms:
                frequency[term] = frequency.get(term, 0) + 1
        # A pair that stands in one text only says nothing about others.
        kept = [term for term, number in frequency.items() if number > 1 or isinstance(term, int)]
        self._columns = {term: column for column, term in enumerate(kept)}
        self._weights = [math.log((1 + len(texts)) / (1 + frequency[term])) + 1 for term in kept]

    @staticmethod
    def _terms(text: Tensor) -> set[Any]:
        ids = text.tolist()
        return {*ids, *itertools.pairwise(ids)}

    def __call__(self, texts: list[Tensor]) -> Tensor:
        rows, columns, values = [], [], []
        for row, text in enumerate(texts):
            known = [self._columns[term] for term in self._terms(text) if term in self._columns]
            length = math.sqrt(sum(self._weights[column] ** 2 for column in known)) or 1.0
            rows += [row] * len(known)
            columns += known
            values += [self._weights[column] / length for column in known]
        size = (len(texts), max(1, len(self._columns)))
        return torch.sparse_coo_tensor(
            torch.tensor([rows, columns]), torch.tensor(values, dtype=torch.float64), size, check_invariants=False
        ).coalesce()
