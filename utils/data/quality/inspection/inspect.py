"""Inspect a dataset by samples of its parts."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from torch import nn

from utils.data.batch import Batch
from utils.data.quality.inspection.class_labels import MAJORITY, class_findings, flag_findings
from utils.data.quality.inspection.features import ids_as_floats, input_findings
from utils.data.quality.inspection.finding import DataFinding
from utils.data.quality.inspection.label_probe import shuffled_labels
from utils.data.quality.inspection.model_probe import normalises_inputs, outputs_of, takes_only_integers
from utils.data.quality.inspection.number_targets import target_findings
from utils.data.quality.inspection.overlap import label_leaks, overlap_findings
from utils.data.quality.inspection.sampling import Sample
from utils.data.quality.inspection.shift import shift_findings
from utils.data.quality.inspection.token_rows import (
    moved_labels,
    token_findings,
    visible_decoder_targets,
    visible_targets,
)
from utils.training.task_kinds import kind_of_task


@dataclass(frozen=True)
class Expectations:
    """Properties of the data that model, task and tokenizer require; None: not known.

    Attributes:
        num_classes: classes that the model scores, for labels of one class a row.
        end_expected: each row is a text that ends with `eos_id`.
        model: asked for a few rows whether it normalises inputs and how large its outputs are.
        judges_squares: targets are compared with the outputs as they are, so that their scale matters.
        majority: share of the most frequent class that is reported.
    """

    task_type: str | None = None
    num_classes: int | None = None
    vocab_size: int | None = None
    pad_id: int | None = None
    eos_id: int | None = None
    end_expected: bool = False
    model: nn.Module | None = None
    judges_squares: bool = True
    majority: float = MAJORITY


def inspect_samples(train: Sample, validation: Sample | None, expected: Expectations) -> list[DataFinding]:
    """The findings about a training part, alone and against its validation part; failures first."""
    found = list(_findings(train, validation, expected))
    return sorted(found, key=lambda finding: finding.verdict != "fail")


def _findings(train: Sample, validation: Sample | None, expected: Expectations) -> Iterator[DataFinding]:
    model = expected.model
    if train.holds_tokens:
        causal = expected.task_type in (None, "causal_lm") and _labels_are_ids(train)
        yield from token_findings(
            train, causal=causal, vocab_size=expected.vocab_size, pad_id=expected.pad_id, eos_id=expected.eos_id,
            end_expected=expected.end_expected,
        )  # fmt: skip
        if expected.task_type in (None, "causal_lm") and not causal:
            yield from moved_labels(train)
        if expected.task_type == "masked_lm":
            yield from visible_targets(train)
        yield from visible_decoder_targets(train)
    else:
        floats = ids_as_floats(train)
        takes_ids = kind_of_task(expected.task_type).per_token
        if floats is not None and (takes_ids or (model is not None and takes_only_integers(model, train.batch))):
            yield floats
            return
        yield from input_findings(train, lambda: model is not None and normalises_inputs(model, train.batch))
        yield from _few_rows(train)
    yield from _label_findings(train, validation, expected)
    yield from overlap_findings(train, validation)
    if validation is not None:
        yield from shift_findings(train, validation)


def _label_findings(train: Sample, validation: Sample | None, expected: Expectations) -> Iterator[DataFinding]:
    kind = train.label_kind(expected.task_type)
    labels = train.labels
    held_out = None if validation is None else validation.labels
    if labels is None or (held_out is not None and held_out.ndim != labels.ndim):
        return
    if kind == "classes":
        yield from class_findings(
            labels, num_classes=expected.num_classes, validation_M=held_out, majority=expected.majority
        )
        yield from shuffled_labels(train)
    elif kind == "flags":
        yield from flag_findings(labels, validation_MK=held_out)
    elif kind == "numbers":
        outputs = None
        if expected.model is not None:
            outputs = outputs_of(expected.model, _without_labels(train.batch), driven=bool((labels < 0).any()))
        findings = target_findings(labels, validation=held_out, outputs=outputs)
        yield from (one for one in findings if expected.judges_squares or one.cause != "scale")
    if kind in ("classes", "numbers"):
        yield from label_leaks(train)


def _labels_are_ids(sample: Sample) -> bool:
    """Whether labels are the ids themselves where they are not -100, as for predicting the next token."""
    labels = sample.labels
    if labels is None or labels.shape != sample.inputs.shape or labels.dtype.kind != "i":
        return False
    return bool(((labels == sample.inputs) | (labels < 0)).all())


def _few_rows(sample: Sample) -> Iterator[DataFinding]:
    """Fewer rows than twice the independent features: least squares then at least doubles the error that noise makes.

    The expected test error of least squares is n / (n - p - 1) times the noise (e.g. Hastie et al., "Surprises in
    high-dimensional ridgeless least squares interpolation", 2022), which is 2 at n = 2 (p + 1). p counts independent
    directions: the participation ratio of the correlations' eigenvalues, corrected for the sample's size.
    """
    if sample.inputs.ndim != 2 or not sample.is_complete or sample.labels is None or len(sample) < 3:
        return
    table, num_rows = sample.inputs.astype(np.float64), len(sample)
    if num_rows >= 2 * (table.shape[1] + 1) or not np.isfinite(table).all():
        return
    spread = table.std(axis=0)
    table = (table[:, spread > 0] - table[:, spread > 0].mean(axis=0)) / spread[spread > 0]
    if table.shape[1] < 2:
        return
    # The smaller of both Gram matrices: their eigenvalues other than zero are the same.
    gram = table @ table.T if num_rows < table.shape[1] else table.T @ table
    ratio = float(np.trace(gram) ** 2 / np.square(gram).sum())
    directions = min(table.shape[1], ratio / max(1 - ratio / num_rows, 1e-9))
    needed = math.ceil(2 * (directions + 1))
    if num_rows >= needed:
        return
    yield DataFinding(
        "inputs", "few rows", "warn",
        f"{num_rows} examples are too few for {table.shape[1]} features (about {directions:.0f} of them independent): a model "
        "memorises them.",
        f"Collect at least {needed} examples, use fewer features, or regularise strongly (weight decay, early stopping on "
        "validation data).",
        {"rows": num_rows, "independent_features": directions},
        {"rows": needed, "source": "n = 2 (p + 1): least squares doubles the error of noise (Hastie et al. 2022)"},
    )  # fmt: skip


def _without_labels(batch: Batch) -> Batch:
    return {name: value for name, value in batch.items() if name != "labels"}
