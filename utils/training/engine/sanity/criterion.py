"""Rules on a criterion of the caller's, tried on outputs of the first samples: how it adds up, its sign, where it breaks."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from utils.training.engine.sanity.trial import Trial, own_criterion

Criterion = Callable[[Tensor, Tensor], Tensor]

# Relative difference within which the loss of a batch is that of its halves together, or their mean.
_SAME = 1e-3
# Label smoothing at which the right class keeps half of the target.
_MOST_SMOOTHING = 0.5
# Samples from which shares of classes are judged, and how far apart the weights are.
_ROWS_FOR_SHARES, _TWICE = 16, 2
# Sizes of the score of the right class against the others. Scores of 64 are sure in any format.
_SCALES = (1.0, 4.0, 16.0, 64.0, 256.0)
# Share of the loss of equal scores that sure and right ones still have, from which on the criterion holds them back.
_FLOOR = 0.05


def criterion_is_a_mean(trial: Trial) -> Iterator[str]:
    """Whether the criterion of a batch is the sum over its halves. One that says so (`reduction="sum"`) is divided anyway."""
    criterion, labels = own_criterion(trial.objective), trial.labels
    if criterion is None or labels is None:
        return
    if getattr(criterion, "reduction", None) == "sum":
        yield (
            f"{type(criterion).__name__} has reduction='sum': its sum is divided by the number of samples, so the gradient"
            " does not grow with batch_size."
        )
        return
    if trial.rows < 4:
        return
    rows = 4 * (trial.rows // 4)
    with torch.no_grad():
        whole, *quarters = (
            _scalar(criterion, trial.outputs[where], labels[where])
            for where in (slice(rows), *(slice(start, start + rows // 4) for start in range(0, rows, rows // 4)))
        )
    if whole is None or any(quarter is None for quarter in quarters):
        return
    total = sum(quarter for quarter in quarters if quarter is not None)
    if abs(whole) > 0 and abs(whole - total) <= _SAME * abs(whole):
        yield (
            f"The criterion is a sum over the batch: its loss of {rows} samples ({whole:.4g}) is that of its quarters added up,"
            " so the gradient, and with it each step, grows with batch_size. Return the mean over samples, a loss for each "
            'sample, or set reduction = "sum" on the criterion, which is then divided by the number of samples.'
        )


def criterion_has_the_right_sign(trial: Trial) -> Iterator[str]:
    """Whether the loss grows as outputs move away from their labels: the direction of its gradient at neutral outputs.

    The sign of the loss itself says nothing: a negative log-likelihood of a density and a negative cosine are right.
    """
    criterion, labels, outputs = own_criterion(trial.objective), trial.labels, trial.outputs
    if criterion is None or labels is None:
        return
    classes = outputs.dim() == 2 and outputs.shape[1] > 1 and labels.dim() == 1 and not labels.is_floating_point()
    if classes:
        neutral = torch.full_like(outputs, 1 / outputs.shape[1])
        away = neutral - F.one_hot(labels.clamp(0, outputs.shape[1] - 1), outputs.shape[1]).to(outputs)
    elif outputs.numel() == labels.numel():
        targets = labels.to(outputs).view(outputs.shape)
        within = bool(((targets == 0) | (targets == 1)).all())
        neutral = torch.full_like(outputs, 0.5) if within else targets + targets.std().clamp_min(1e-3) * _signs(targets)
        away = neutral - targets
    else:
        return
    pulls = _gradient(criterion, neutral, labels)
    if pulls is None:
        return
    along = (pulls * away).reshape(len(outputs), -1).sum(1)
    moved = along[along != 0]
    if not len(moved) or bool((moved < 0).float().mean() <= 0.9):
        return
    # A negated loss is below zero wherever answers are wrong. A contrastive loss, for which a label of 1 asks for a small
    # distance, falls in the same direction and is not.
    with torch.no_grad():
        values = [float(criterion(place, labels).sum()) for place in (neutral, neutral + 3 * away)]
    if max(values) < 0:
        yield (
            "The sign of the criterion is wrong: its loss falls as outputs move away from their labels, so training makes the "
            "right answers ever less likely. Negate it."
        )


def criterion_rewards_right_answers(trial: Trial) -> Iterator[str]:
    """Whether the loss of right scores falls below that of equal ones, and close to zero as they become sure.

    Cross-entropy, focal and margin losses go to zero; label smoothing has its least loss at finite scores and rises beyond. A
    loss that stays at a level, however sure the scores, squashes them first. Losses below zero are left to the other rules.
    """
    criterion, labels, outputs = own_criterion(trial.objective), trial.labels, trial.outputs
    if criterion is None or labels is None or labels.is_floating_point() or labels.dim() != 1 or outputs.dim() != 2:
        return
    classes = outputs.shape[1]
    if classes < 2 or bool(((labels < 0) | (labels >= classes)).any()):
        return
    right = F.one_hot(labels.long(), classes).to(outputs)
    with torch.no_grad():
        # Cross-entropies do not change when all scores shift. A contrastive loss, which takes outputs for a place, does.
        here, shifted = (float(criterion(outputs + shift, labels).mean()) for shift in (0.0, 3.0))
        if not abs(here - shifted) <= _SAME * max(abs(here), abs(shifted)):
            return
        equal, *losses = (float(criterion(scale * right, labels).mean()) for scale in (0.0, *_SCALES))
    if not all(0 <= loss < float("inf") for loss in (equal, *losses)) or not equal > 0:
        return
    if min(losses) >= (1 - _SAME) * equal:
        yield (
            f"The criterion does not reward right answers: its loss is {equal:.4g} for equal scores and at least "
            f"{min(losses):.4g} for right ones, so nothing can be learned from it. Look at label smoothing (0.1 is usual) and "
            "at how the criterion uses the labels."
        )
    elif losses[-1] > _FLOOR * equal and abs(losses[-1] - losses[-2]) <= _SAME * losses[-1]:
        yield (
            f"The criterion cannot fall below {losses[-1]:.4g}, however sure and right the scores are: it applies softmax or "
            "sigmoid to them before a cross-entropy that does so itself. Give it the scores as the model returns them (logits)."
        )


def class_weights_are_not_reversed(trial: Trial) -> Iterator[str]:
    """Weights of classes that are larger for frequent classes than for rare ones, where they are to even them out."""
    criterion, labels = own_criterion(trial.objective), trial.labels
    weight = getattr(criterion, "weight", None)
    if labels is None or labels.is_floating_point() or labels.dim() != 1 or not isinstance(weight, Tensor):
        return
    if weight.dim() != 1 or len(weight) < 2 or len(labels) < _ROWS_FOR_SHARES:
        return
    counts = torch.bincount(labels[(labels >= 0) & (labels < len(weight))].long(), minlength=len(weight))
    frequent, rare = int(counts.argmax()), int(counts.argmin())
    most, least = int(counts[frequent]), int(counts[rare])
    # Weights that differ so much are right for classes that do, the other way round: then a difference beyond one standard
    # deviation is hardly ever chance.
    if most - least > (most + least) ** 0.5 and weight[frequent] >= _TWICE * weight[rare]:
        yield (
            f"The criterion's class weights look reversed: class {frequent}, the most frequent with {most} of {len(labels)} "
            f"samples, weighs {float(weight[frequent]):.3g}, and class {rare} with {least} weighs "
            f"{float(weight[rare]):.3g}. Weights that even out classes are inverse to how often they occur."
        )


def criterion_pairs_outputs_with_targets(trial: Trial) -> Iterator[str]:
    """Whether outputs (B, 1) meet targets (B,): subtracted, they make (B, B), every output beside every target."""
    criterion, labels, outputs = own_criterion(trial.objective), trial.labels, trial.outputs
    if criterion is None or labels is None or not labels.is_floating_point() or outputs.shape == labels.shape:
        return
    if outputs.numel() != labels.numel() or len(outputs) < 2:
        return
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own warning, which is given again in every step
        as_it_is, paired = (float(criterion(outputs, one).mean()) for one in (labels, labels.view(outputs.shape)))
        # A batch of one sample has nothing to mix: the mean of these, or their sum, is what the criterion means.
        alone = sum(float(criterion(outputs[i : i + 1], labels[i : i + 1]).mean()) for i in range(len(outputs)))
    meant = (alone, alone / len(outputs))
    if _among(paired, meant) and not _among(as_it_is, meant):
        yield (
            f"The criterion compares every output with every target: outputs of shape {tuple(outputs.shape)} and targets of "
            f"shape {tuple(labels.shape)} are broadcast against each other. Bring them to one shape: outputs.squeeze(-1), or "
            "targets.unsqueeze(-1)."
        )


def _among(value: float, others: Iterable[float]) -> bool:
    return any(abs(value - other) <= _SAME * max(abs(value), abs(other)) for other in others)


def smoothing_leaves_targets(trial: Trial) -> Iterator[str]:
    """Whether label smoothing leaves the right class more than half of the target."""
    smoothing = getattr(trial.objective, "label_smoothing", 0.0)
    if smoothing >= _MOST_SMOOTHING:
        yield (
            f"label_smoothing={smoothing:g} spreads most of every target over the other classes, so that right answers are "
            "hardly better than wrong ones. It is the share that is taken from the right class: 0.1 is usual."
        )


def criterion_takes_sure_answers(trial: Trial) -> Iterator[str]:
    """Whether the criterion stays finite once probabilities reach 0 and 1, for models whose outputs are probabilities."""
    criterion, labels, outputs = own_criterion(trial.objective), trial.labels, trial.outputs
    if criterion is None or labels is None or bool((outputs < 0).any() or (outputs > 1).any()):
        return
    if outputs.numel() == labels.numel() and bool(((labels == 0) | (labels == 1)).all()):
        sure = labels.to(outputs).view(outputs.shape)
        sides = (sure, 1 - sure)
    elif outputs.dim() == 2 and labels.dim() == 1 and bool(((outputs.sum(1) - 1).abs() < 1e-3).all()):
        sure = F.one_hot(labels.long().clamp(0, outputs.shape[1] - 1), outputs.shape[1]).to(outputs)
        sides = (sure, sure.roll(1, 1))
    else:
        return
    with torch.no_grad():
        losses = [_scalar(criterion, side, labels) for side in sides]
    if any(loss is not None and not abs(loss) < float("inf") for loss in losses):
        yield (
            "The loss becomes infinite or NaN once an output is exactly 0 or 1, which sure answers are in fp32: the criterion "
            "takes the logarithm of zero. Return scores from the model and use cross_entropy or "
            "binary_cross_entropy_with_logits, or clamp the probabilities."
        )


def _scalar(criterion: Criterion, outputs: Tensor, labels: Tensor) -> float | None:
    """The loss as a number; None where it is one for each sample."""
    value = criterion(outputs, labels)
    return float(value) if value.dim() == 0 else None


def _gradient(criterion: Criterion, outputs: Tensor, labels: Tensor) -> Tensor | None:
    """The gradient of the loss with regard to the outputs; None where it is not finite, or there is none."""
    given = outputs.detach().clone().requires_grad_()
    with torch.enable_grad():
        value = criterion(given, labels).sum()
    if not value.requires_grad:
        return None
    (gradient,) = torch.autograd.grad(value, given)
    return gradient if bool(gradient.isfinite().all()) else None


def _signs(labels: Tensor) -> Tensor:
    """+1 and -1 in turn, of the labels' shape."""
    return (1 - 2 * (torch.arange(labels.numel(), device=labels.device) % 2)).view(labels.shape).to(labels)
