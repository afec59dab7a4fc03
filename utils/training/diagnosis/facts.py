"""Measurements on a few batches at the start of a run: labels, padding, nearest neighbours, parameters, optimizer.

Shapes: N samples, D features, K numbers of a regression target, C classes, V vocabulary.
"""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from utils.data.batch import IGNORED, Batch
from utils.data.sources import DatasetSource, Source, StreamSource
from utils.errors import TrainbookError
from utils.training.engine import rng
from utils.training.engine.loss.criterion import CriterionObjective
from utils.training.engine.loss.tasks.tokens import TokenTask

if TYPE_CHECKING:
    from utils.training.engine.compute.assembly import Parts
    from utils.training.engine.metrics import Sums
    from utils.training.engine.trainer import Trainer

#: Samples that are read: of data that lie in memory, and of others, which may have to be loaded from disk.
_SAMPLES_IN_MEMORY, _SAMPLES = 512, 64
#: Reading stops after so long.
_SECONDS = 1.0
#: Features of a sample up to which samples are compared with each other.
_MOST_FEATURES = 4096
#: Fewest samples that say something about their neighbours.
_FEWEST_NEIGHBOURS = 50
_NEIGHBOURS = 5
#: Occurrences of a token, on average, from which the frequencies of a sample say something about the text's.
_OCCURRENCES = 5
#: Samples that are read twice to see whether they are augmented.
_READ_AGAIN = 4


def start_facts(trainer: Trainer, total_steps: int | None) -> dict[str, Any]:
    """Plain values about the data, the model and the optimizer of a run that is about to start."""
    parts, data = trainer.parts, trainer.data
    assert parts is not None
    assert data is not None
    config = trainer.training_config
    accumulation = 1 if config.auto_batch_size and data.resumable else config.gradient_accumulation_steps
    facts: dict[str, Any] = {
        "total_steps": total_steps, "steps_per_epoch": data.num_steps(accumulation), "accumulation": accumulation,
        "num_train": data.samples_per_epoch, "batch_size": data.batch_size, "num_validation": data.num_validation,
        "has_validation": data.validation is not None, "device": parts.device.kind, "precision": parts.precision.compute,
        "criterion": _criterion_name(parts), "own_schedule": trainer.own_parts is not None, **_model_facts(parts),
    }  # fmt: skip
    if data.unigram_loss is not None:
        facts["validation_unigram_loss"] = data.unigram_loss
    order = data.order(0).tolist() if data.resumable else []
    batches = _batches(data.train, order, data.batch_size) if data.resumable else []
    if batches:
        facts["samples_vary"] = _vary(data.train, order[:_READ_AGAIN])
        facts |= _padding(batches, getattr(trainer.tokenizer, "pad_token_id", None))
        facts |= _label_facts(parts, batches)
    return facts


def _criterion_name(parts: Parts) -> str | None:
    """The class or function that the caller gave as loss; None where the task has its own."""
    if not isinstance(parts.objective, CriterionObjective):
        return None
    criterion = parts.objective.criterion
    if getattr(criterion, "weight", None) is not None or bool(getattr(criterion, "label_smoothing", None)):
        return f"weighted {type(criterion).__name__}"
    return type(criterion).__name__ if isinstance(criterion, nn.Module) else getattr(criterion, "__name__", "criterion")


def _batches(source: Source | StreamSource, order: list[int], batch_size: int) -> list[Batch]:
    """The first batches of an epoch, up to a number of samples and a time; [] where they cannot be read."""
    assert not isinstance(source, StreamSource)
    in_memory = not isinstance(source, DatasetSource) or type(source.dataset) in (TensorDataset, list, tuple)
    most = min(_SAMPLES_IN_MEMORY if in_memory else _SAMPLES, len(order))
    began, found = time.monotonic(), []
    try:
        with rng.preserved():
            for start in range(0, most, batch_size):
                found.append(source.take(order[start : min(start + batch_size, most)]))
                if time.monotonic() - began > _SECONDS:
                    break
    except TrainbookError:
        return []  # training will come to this sample, and say what is wrong with it
    return found


def _vary(source: Source | StreamSource, rows: list[int]) -> bool:
    """Whether samples differ from epoch to epoch: they are augmented, or noise is added."""
    if not isinstance(source, DatasetSource):
        return False
    epoch = source.epoch
    try:
        with rng.preserved():
            first = source.take(rows)
            source.epoch = epoch + 1
            second = source.take(rows)
    except TrainbookError:
        return False
    finally:
        source.epoch = epoch
    return any(not torch.equal(value, second[name]) for name, value in first.items() if name in second)


def _model_facts(parts: Parts) -> dict[str, Any]:
    """Sizes of what is trained, and the settings of the optimizer as it is."""
    named = dict(parts.model.named_parameters())
    group = parts.optimizer.param_groups[0]
    momentum = group.get("momentum")
    settings = {"weight_decay": max(float(g.get("weight_decay", 0.0)) for g in parts.optimizer.param_groups)}
    settings |= {name: float(group[name]) for name in ("lr", "eps") if isinstance(group.get(name), (int, float))}
    return {
        "optimizer": type(parts.optimizer).__name__, "momentum": None if momentum is None else float(momentum), **settings,
        "parameters": sum(p.numel() for p in named.values()),
        "trained": sum(p.numel() for p in named.values() if p.requires_grad),
    }  # fmt: skip


def _padding(batches: list[Batch], pad_id: int | None) -> dict[str, Any]:
    """The share of the positions that are padding, by the attention masks; without these, of the padding ids that are no
    targets. {} where neither says."""
    padded = positions = 0
    for batch in batches:
        ids, mask, labels = (batch.get(name) for name in ("input_ids", "attention_mask", "labels"))
        if ids is None or ids.dim() != 2:
            return {}
        if mask is not None and mask.dim() == 2:
            padded += int((mask == 0).sum())
        elif pad_id is not None and labels is not None and labels.shape == ids.shape:
            padded += int(((ids == pad_id) & (labels == IGNORED)).sum())
        elif labels is not None and labels.shape == ids.shape:
            return {}
        positions += ids.numel()
    return {"padding": padded / positions} if positions else {}


def _label_facts(parts: Parts, batches: list[Batch]) -> dict[str, Any]:
    """The baseline that ignores the inputs, and how well neighbours of a sample predict its label."""
    labels = [batch["labels"].cpu() for batch in batches if "labels" in batch]
    if len(labels) != len(batches):
        return {}
    if isinstance(parts.objective, TokenTask):
        return unigram(torch.cat([label.flatten() for label in labels]))
    if any(label.dim() > 2 or label.shape[1:] != labels[0].shape[1:] for label in labels):
        return {}
    labels_N = torch.cat(labels)
    found: dict[str, Any] = {}
    if labels_N.is_floating_point() or labels_N.dim() == 1:
        found["labels"] = label_baseline(labels_N)
    inputs = _features(batches)
    if inputs is not None and labels_N.dim() == 1 + int(labels_N.is_floating_point() and labels_N.dim() == 2):
        found |= neighbour_score(inputs, labels_N)
    return found


def label_baseline(labels: Tensor) -> dict[str, Any]:
    """Loss, and for classes accuracy, of a prediction that does not depend on the input.

    Args:
        labels: classes (N,), or regression targets (N,) or (N, K).
    """
    if labels.is_floating_point():
        values = labels.double().reshape(len(labels), -1)
        known = values[~values.isnan().any(1)]
        if len(known) < 2:
            return {}
        found: dict[str, Any] = {"guess_loss": float(known.var(0, correction=0).mean()), "targets": len(known)}
        if bool(((known == 0) | (known == 1)).all()):
            shares = known.mean(0)
            found["binary_entropy"] = float(-(torch.xlogy(shares, shares) + torch.xlogy(1 - shares, 1 - shares)).mean())
        return found
    scored = labels[labels != IGNORED]
    if not len(scored):
        return {}
    return class_baseline(torch.unique(scored, return_counts=True)[1].tolist())


def class_baseline(counts: list[float]) -> dict[str, Any]:
    """The same from how often each class occurs."""
    total = sum(counts)
    shares = [count / total for count in counts if count > 0] if total else []
    if not shares:
        return {}
    return {
        "guess_loss": -sum(share * math.log(share) for share in shares), "majority": max(shares), "targets": int(total),
        "classes": len(shares),
    }  # fmt: skip


def unigram(labels_N: Tensor) -> dict[str, Any]:
    """The entropy of the tokens' frequencies in nats, with the correction of Miller (1955) for a sample; {} where the sample is
    too small for its vocabulary."""
    scored = labels_N[labels_N != IGNORED]
    counts = torch.unique(scored, return_counts=True)[1].double()
    total = float(counts.sum())
    if len(counts) < 2 or total < _OCCURRENCES * len(counts):
        return {"unigram_sample": int(total)}
    shares = counts / total
    entropy = float(-(shares * shares.log()).sum()) + (len(counts) - 1) / (2 * total)
    return {"unigram_loss": min(entropy, math.log(len(counts))), "unigram_sample": int(total)}


def _features(batches: list[Batch]) -> Tensor | None:
    """Samples as rows of numbers (N, D), where they are numbers of one shape."""
    name = next((n for n, v in batches[0].items() if n != "labels" and v.is_floating_point() and v.dim() > 1), None)
    if name is None:
        return None
    rows = [batch[name].cpu().float().flatten(1) for batch in batches if name in batch]
    alike = len({row.shape[1] for row in rows}) == 1 and len(rows) == len(batches)
    if not alike or rows[0].shape[1] > _MOST_FEATURES:
        return None
    inputs_ND = torch.cat(rows)
    return inputs_ND if bool(inputs_ND.isfinite().all()) else None


def neighbour_score(inputs_ND: Tensor, labels: Tensor) -> dict[str, Any]:
    """Accuracy of predicting a label by its nearest other samples: a floor for what the inputs tell (Cover & Hart 1967).

    Accuracy for classes, explained variance (r2) for numbers, each sample predicted by its `_NEIGHBOURS` nearest others in
    standardised features.
    """
    count = len(inputs_ND)
    spread = inputs_ND.std(0)
    inputs_ND = inputs_ND[:, spread > 0] / spread[spread > 0]
    if count < _FEWEST_NEIGHBOURS or not inputs_ND.shape[1]:
        return {}
    distances = torch.cdist(inputs_ND, inputs_ND)
    distances.fill_diagonal_(math.inf)
    nearest_NK = distances.topk(_NEIGHBOURS, largest=False).indices
    if not labels.is_floating_point():
        votes = torch.nn.functional.one_hot(torch.unique(labels, return_inverse=True)[1])[nearest_NK].sum(1)
        guesses = torch.unique(labels)[votes.argmax(1)]
        return {"neighbours": float((guesses == labels).double().mean()), "neighbour_samples": count}
    values = labels.double().reshape(count, -1)
    errors = (values[nearest_NK].mean(1) - values).square().mean()
    variance = values.var(0, correction=0).mean()
    if not math.isfinite(float(errors)) or float(variance) == 0:
        return {}
    return {"neighbours": 1 - float(errors / variance), "neighbour_samples": count}


def counted(sums: Sums, multi_label: bool) -> dict[str, Any]:
    """Statistics of targets and outputs from the running sums of an epoch or a validation."""
    found: dict[str, Any] = {"targets": sums.targets}
    counts = sums.counts
    if "actual" in counts and not multi_label:
        found |= class_baseline(counts["actual"])
        predicted = counts["predicted"]
        if sum(predicted):
            found["top_prediction"] = max(predicted) / sum(predicted)
            found["classes_predicted"] = sum(count > 0 for count in predicted)
        if len(counts["actual"]) <= _MOST_CLASSES_KEPT:
            found["actual"] = counts["actual"]
    if "label_squares" in counts:
        rows = zip(counts["targets"], counts["label_sum"], counts["label_squares"], strict=True)
        moments = [(total / n, max(squares / n - (total / n) ** 2, 0.0)) for n, total, squares in rows if n]
        if moments:
            found["guess_loss"] = sum(variance for _, variance in moments) / len(moments)
            found["label_means"] = [mean for mean, _ in moments][:_MOST_CLASSES_KEPT]
            found["label_variances"] = [variance for _, variance in moments][:_MOST_CLASSES_KEPT]
    if "output_spread" in counts and sums.targets:
        found["output_variance"] = sums.count("output_spread") / sums.targets
    return found


_MOST_CLASSES_KEPT = 100
