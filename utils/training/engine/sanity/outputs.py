"""Rules on a model's outputs for the first samples: whether they can be what the targets are, and what they depend on."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from utils.adapters.output_reach import output_reach
from utils.training.engine import rng
from utils.training.engine.loss.objective import Objective
from utils.training.engine.loss.tasks.classes import ClassTask
from utils.training.engine.loss.tasks.regression import Regression
from utils.training.engine.loss.tasks.text_classification import MultiLabelClassification
from utils.training.engine.loss.tasks.tokens import TokenTask
from utils.training.engine.sanity.trial import Trial, own_criterion, part

# Rows from which on units that are active for none of them are not so by chance, and units that a layer must have.
_LEAST_ROWS, _LEAST_UNITS = 16, 4
_DEAD_SHARE = 0.95
# Bounds between which softmax stays unsure: a spread of 2 gives the better class of two 88 %.
_NARROW_BOUND = 5.0
# Scores of right classes against wrong ones that are sure in any format; loss that is none, and loss that is some.
_SURE, _NEARLY_ZERO, _SOME_LOSS = 30.0, 1e-3, 0.1
# Relative difference of outputs that is rounding, of fp32 and of TF32.
_TOLERANCE = 1e-3


def outputs_reach_targets(trial: Trial) -> Iterator[str]:
    """Whether outputs that numbers are compared with can take the targets' values."""
    labels, outputs = trial.labels, trial.outputs
    if labels is None or not labels.is_floating_point() or not _takes_numbers(trial.objective):
        return
    if outputs.numel() != labels.numel():
        return
    known = labels[~labels.isnan()].float()
    reach = output_reach(trial.model, lambda: trial.call())
    if reach is None or not reach.bounded or not known.numel():
        return
    margin = 1e-2 * float(known.abs().max())
    below, above = (known < reach.bottom - margin), (known > reach.top + margin)
    if bool(below.any()):
        why = "negative" if reach.bottom == 0 else f"below {reach.bottom:.3g}"
        kind = (
            "an activation such as ReLU"
            if reach.top == float("inf")
            else "a squashing function such as sigmoid or tanh"
        )
        yield (
            f"The output is never {why}, whatever the weights ({kind} follows the last layer), but targets are: "
            f"{_share(below)} of the first {known.numel():,}, down to {float(known.min()):.3g}. Return the last layer's output "
            "itself."
        )
    elif bool(above.any()):
        yield (
            f"The output is never above {reach.top:.3g}, whatever the weights (an activation follows the last layer), but "
            f"targets are: {_share(above)} of the first {known.numel():,}, up to {float(known.max()):.3g}. Return the last "
            "layer's output itself, or scale the targets."
        )


def outputs_are_scores(trial: Trial) -> Iterator[str]:
    """Whether what the loss applies softmax or sigmoid to can take any value."""
    kind = _scores_kind(trial.objective) or _kind_by_trial(trial)
    if kind is None or not bool(trial.outputs.isfinite().all()):
        return
    outputs, classes = trial.outputs, trial.outputs.shape[-1]
    applied = "sigmoid" if kind == "yes or no" else "softmax"
    rows = outputs.reshape(-1, classes)
    if kind != "yes or no" and classes > 1 and len(rows) > 1 and _are_probabilities(rows):
        yield (
            "The scores are probabilities already: each row sums to 1, so a softmax is in the model, and the loss applies "
            "another one. Return the last layer's output itself."
        )
        return
    if kind == "tokens":
        return  # the last layer is large, and model checks drive it
    reach = output_reach(trial.model, lambda: trial.call())
    if reach is None or not reach.bounded:
        return
    if reach.bottom >= 0 and reach.top <= 1.001:
        yield (
            f"The scores lie between 0 and 1 whatever the weights: a sigmoid or softmax follows the last layer, and the loss "
            f"applies {applied} once more. Return the last layer's output itself."
        )
    elif max(abs(reach.bottom), abs(reach.top)) <= _NARROW_BOUND:
        yield (
            f"The scores stay between {reach.bottom:.3g} and {reach.top:.3g} whatever the weights, so no answer can become "
            "certain: they are squashed or clipped after the last layer. Return its output itself."
        )
    elif reach.bottom == 0:
        yield (
            "The scores are never negative, whatever the weights: an activation such as ReLU follows the last layer, and a "
            "class whose score it cuts off gets no gradient. Return the last layer's output itself."
        )


def rows_are_independent(trial: Trial) -> Iterator[str]:
    """Whether the last row's outputs change with the other rows of the batch, in evaluation mode."""
    if trial.rows < 2 or len(trial.outputs) != trial.rows or not bool(trial.outputs.isfinite().all()):
        return
    alone = trial.call(part(trial.batch, slice(-1, None)))
    together = trial.outputs[-1:]
    size = trial.outputs.abs().max().clamp_min(1e-6)
    difference = float((alone - together).abs().max() / size) if alone.shape == together.shape else float("inf")
    if difference <= _TOLERANCE or not difference < float("inf"):
        return
    with rng.preserved():
        rng.seed_all(1)
        again = trial.call()
    if float((again - trial.outputs).abs().max() / size) > _TOLERANCE:
        return  # it draws in evaluation mode, so that not even the same batch gives the same outputs
    recurrent = [
        name
        for name, module in trial.model.named_modules()
        if isinstance(module, nn.RNNBase) and not module.batch_first
    ]
    hint = (
        f"{recurrent[0]} takes the first dimension for time; make it with batch_first=True."
        if recurrent else "Look for a softmax, mean or normalisation along the batch instead of the classes or features."
    )  # fmt: skip
    yield (
        f"Examples of a batch mix: the outputs of one change by {difference:.2g} of their size with the others of its batch. "
        f"{hint}"
    )


def units_are_alive(trial: Trial) -> Iterator[str]:
    """Whether the ReLU layers are active for any of the first samples."""
    for name, active in trial.active_relus.items():
        dead = float((~active).float().mean())
        if trial.rows >= _LEAST_ROWS and len(active) >= _LEAST_UNITS and dead >= _DEAD_SHARE:
            yield (
                f"{dead:.0%} of the {len(active)} units of {name or 'the ReLU'} are dead from the start: ReLU gets only "
                f"negative inputs for each of the first {trial.rows} samples, so no gradient passes. Start biases at "
                "zero and weights around zero."
            )


def model_bends(trial: Trial) -> Iterator[str]:
    """Whether several layers of weights are together one linear map of their input."""
    layers = [m for m in trial.model.modules() if isinstance(m, (nn.Linear, nn.modules.conv._ConvNd))]
    main = next(name for name in trial.batch if name != "labels")
    inputs = trial.batch[main]
    trained = [layer for layer in layers if layer.weight.requires_grad]
    if (
        len(trained) < 2
        or len(trained) < len(layers)
        or not inputs.is_floating_point()
        or isinstance(trial.objective, TokenTask)
    ):
        return
    # A layer that is narrower than both ends limits the rank of the map, which may be what it is there for.
    ends = min(trained[0].weight[0].numel(), len(trained[-1].weight))
    if min(len(layer.weight) for layer in trained[:-1]) < ends:
        return
    generator = torch.Generator().manual_seed(0)
    size = 10 * inputs.std().clamp_min(1.0)  # large, so that biases do not keep units on one side of a ReLU
    first, second = (
        (size * torch.randn(inputs[:4].shape, generator=generator).to(inputs)).to(inputs.dtype) for _ in range(2)
    )
    if len(first) < 2:
        return
    base, one, two, both = (
        trial.call({**trial.first(len(first)), main: value}) for value in (first * 0, first, second, first + second)
    )
    change = (both - base).abs().max()
    departure = float(((both - base) - (one - base) - (two - base)).abs().max())
    if float(change) > 1e-4 * float(base.abs().max().clamp_min(1e-6)) and departure < 1e-4 * float(change):
        yield (
            f"The model is linear: its {len(layers)} layers with weights are together one linear map, because activations "
            "between them are missing. Put a nonlinearity such as ReLU or GELU between the layers."
        )


def _takes_numbers(objective: Objective) -> bool:
    """Whether outputs are compared with labels as numbers: no function that maps all numbers to (0, 1) is applied first."""
    criterion = own_criterion(objective)
    if criterion is None:
        return isinstance(objective, Regression)
    return not isinstance(criterion, nn.BCEWithLogitsLoss) and criterion is not F.binary_cross_entropy_with_logits


def _scores_kind(objective: Objective) -> str | None:
    """How the loss treats logits: "classes" and "tokens" by softmax, "yes or no" by sigmoid; None: unknown."""
    criterion = own_criterion(objective)
    if criterion is not None:
        if isinstance(criterion, nn.CrossEntropyLoss) or criterion is F.cross_entropy:
            return "classes"
        with_logits = isinstance(criterion, nn.BCEWithLogitsLoss) or criterion is F.binary_cross_entropy_with_logits
        return "yes or no" if with_logits else None
    if isinstance(objective, MultiLabelClassification):
        return "yes or no"
    if isinstance(objective, ClassTask):
        return "classes"
    return "tokens" if isinstance(objective, TokenTask) else None


def _kind_by_trial(trial: Trial) -> str | None:
    """As `_scores_kind`, for a criterion that is only known as a function: is its loss near 0 for sure scores alone?

    A loss of probabilities or of amounts is least where outputs equal the targets; one that applies sigmoid or softmax itself
    is not, and falls on as right scores grow.
    """
    criterion, labels, outputs = own_criterion(trial.objective), trial.labels, trial.outputs
    if criterion is None or labels is None:
        return None
    if outputs.numel() == labels.numel() and bool(((labels == 0) | (labels == 1)).all()):
        kind, equal = "yes or no", labels.to(outputs).view(outputs.shape)
        sure = _SURE * (2 * equal - 1)
    elif outputs.dim() == 2 and labels.dim() == 1 and not labels.is_floating_point() and outputs.shape[1] > 1:
        if bool(((labels < 0) | (labels >= outputs.shape[1])).any()):
            return None
        kind, equal = "classes", F.one_hot(labels.long(), outputs.shape[1]).to(outputs)
        sure = _SURE * equal
    else:
        return None
    try:
        with torch.no_grad():
            at_targets, at_sure = (float(criterion(values, labels).mean()) for values in (equal, sure))
    except Exception:  # noqa: BLE001 - the caller's code: one that refuses scores beyond 0 to 1 takes probabilities
        return None
    # The cross-entropy of scores of 1 against 0 is 0.31 to 0.69 for two classes, and more for more of them.
    return kind if 0 <= at_sure < _NEARLY_ZERO and at_targets > _SOME_LOSS else None


def _are_probabilities(rows: Tensor) -> bool:
    return bool((rows >= 0).all()) and bool(((rows.sum(-1) - 1).abs() < 1e-3).all())


def _share(which: Tensor) -> str:
    return f"{float(which.float().mean()):.0%}"
