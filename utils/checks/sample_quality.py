"""Data quality of tables, images and token ids: findings on a sample of the rows, as a report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch.utils.data import DataLoader, IterableDataset

from utils.check_result import CheckReport, CheckResult, Finding
from utils.data.batch import IGNORED
from utils.data.module import UniversalDataModule
from utils.data.quality.inspection import DataFinding, Expectations, Sample, inspect_samples, read_sample
from utils.data.quality.inspection.sampling import NO_TOKEN, own_generators_kept
from utils.data.quality.inspection.training import expectations
from utils.data.sources import StreamSource
from utils.errors import DataError, DataTypeError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_EMPTY = "the dataset has no examples; there is nothing to check."


def check_samples(
    data: Any, validation: Any, *, model: Any, task_spec: Any, tokenizer: Any, majority: float
) -> CheckReport:
    """The report for data other than text: see `check_data_quality`."""
    if _is_stream(data) or _is_stream(validation):
        return _of_a_stream(data)
    data, validation = _as_rows(data), _as_rows(validation)
    if hasattr(data, "__len__") and len(data) == 0:
        raise DataError(_EMPTY)
    spec = _task_of(data) if task_spec is None else task_spec
    module = UniversalDataModule(data, validation, spec, tokenizer)
    if isinstance(module.train, StreamSource) or isinstance(module.validation, StreamSource):
        return _of_a_stream(data)
    train = read_sample(module.train)
    held_out = None if module.validation is None else read_sample(module.validation)
    if train is None:
        raise DataTypeError(
            f"Expected examples of numbers, images or token ids; one of this {type(data).__name__} holds none. Give pairs "
            "(inputs, labels) or dicts with input_ids or pixel_values."
        )
    expected = expectations(model, spec, tokenizer, module.pad_token_id, majority=majority)
    if expected.num_classes is None and model is not None:
        expected = _with_classes(expected, model, train)
    return _report(train, held_out, expected)


def _is_stream(data: Any) -> bool:
    dataset = data.dataset if isinstance(data, DataLoader) else data
    return isinstance(dataset, IterableDataset)


def _of_a_stream(data: Any) -> CheckReport:
    reason = f"Not run: a {type(data).__name__} that is read in its own order can be read only once."
    remedy = "Give the dataset beneath it with samples by number, or a list of some of its samples."
    return CheckReport("Data quality", [CheckResult("rows", "not run", reason, remedy=remedy)])


def _as_rows(data: Any) -> Any:
    """Arrays, or a pair (inputs, labels) of them, as a dataset; anything else as it is."""
    import torch
    from torch.utils.data import TensorDataset

    if hasattr(data, "iloc"):
        return _frame_rows(data)
    if isinstance(data, np.ndarray):
        return torch.from_numpy(np.ascontiguousarray(data))
    arrays = (
        isinstance(data, tuple)
        and len(data) == 2
        and all(isinstance(part, (np.ndarray, torch.Tensor)) for part in data)
    )
    if (
        arrays
        and data[0].ndim >= 1
        and data[1].ndim >= 1
        and len(data[0]) == len(data[1])
        and data[0].ndim + data[1].ndim > 2
    ):
        return TensorDataset(*(torch.as_tensor(part) for part in data))
    return data


def _frame_rows(frame: Any) -> Any:
    """The numeric columns of a DataFrame as features, its label column as labels."""
    import torch
    from torch.utils.data import TensorDataset

    name = next((name for name in ("label", "labels", "target") if name in frame.columns), None)
    features = frame.drop(columns=[] if name is None else [name]).select_dtypes(("number", "bool"))
    if not features.shape[1]:
        raise DataTypeError(
            f"the DataFrame has no column of numbers, and no column 'text'; it has {', '.join(map(str, frame.columns))}. "
            "Name the texts: text_column=…."
        )
    tensors = [torch.tensor(features.to_numpy(dtype=np.float32))]
    if name is not None:
        labels = frame[name]
        values = (
            labels.to_numpy() if labels.dtype.kind in "iufb" else labels.astype("category").cat.codes.to_numpy(np.int64)
        )
        tensors.append(torch.from_numpy(np.array(values)))
    return TensorDataset(*tensors)


def _task_of(data: Any) -> Any:
    """Regression for rows whose label is a fraction, or several; otherwise None."""
    from utils.training.task_spec import TaskSpec

    inner: Any = data.dataset if isinstance(data, DataLoader) else data
    with own_generators_kept(inner):
        first = inner[0] if hasattr(inner, "__getitem__") and len(inner) else None
    inputs: Any = None
    label: Any = None
    if isinstance(first, (tuple, list)) and len(first) == 2:
        inputs, label = first
    elif isinstance(first, Mapping):
        inputs = first.get("input_ids", first.get("pixel_values"))
        label = first.get("labels", first.get("label"))
    kind = np.asarray(label).dtype.kind if label is not None and inputs is not None else ""
    return TaskSpec.regression() if kind == "f" else None


def _with_classes(expected: Expectations, model: Any, train: Sample) -> Expectations:
    """With the number of scores that a model gives for one class a row."""
    import dataclasses

    from utils.data.quality.inspection.model_probe import answers

    if train.label_kind(expected.task_type) != "classes" or train.labels is None or train.labels.dtype.kind == "f":
        return expected
    outputs = answers(model, train.batch)
    if outputs is None or outputs.dim() != 2 or outputs.shape[1] < 2:
        return expected
    return dataclasses.replace(expected, num_classes=int(outputs.shape[1]))


def _report(train: Sample, validation: Sample | None, expected: Expectations) -> CheckReport:
    findings = inspect_samples(train, validation, expected)
    summaries = {"rows": _rows(train, validation), **_inputs(train)}
    figure: Figure | None = None
    kind = train.label_kind(expected.task_type)
    if kind in ("classes", "flags"):
        summaries["labels"], figure = _classes(train)
    elif kind == "numbers":
        summaries["targets"] = _targets(train)
    summaries["exact duplicates"] = "No more examples repeat than chance explains."
    if validation is not None:
        summaries["leakage"] = (
            "Validation examples stand in training no more often than training examples repeat, and no feature is the label."
        )
        summaries["validation"] = "Validation inputs and targets have the distribution of training."
    names = [*summaries, *(one.check for one in findings if one.check not in summaries)]
    results = [
        _result(name, summaries.get(name, ""), [one for one in findings if one.check == name],
                figure if name == "labels" else None)
        for name in dict.fromkeys(names)
    ]  # fmt: skip
    return CheckReport(f"Data quality of {train.num_rows:,} example{'' if train.num_rows == 1 else 's'}", results)


def _result(name: str, summary: str, findings: Sequence[DataFinding], figure: Figure | None) -> CheckResult:
    measured: dict[str, Any] = {}
    thresholds: dict[str, Any] = {}
    for finding in findings:
        measured.update(finding.measured)
        thresholds.update(finding.thresholds)
    reported = [Finding(one.cause, one.verdict, one.summary, one.remedy) for one in findings]
    result = CheckResult(name, "pass", summary, {}, thresholds, figure=figure)
    return result.with_findings(reported, measured)


def _rows(train: Sample, validation: Sample | None) -> str:
    read = "" if train.is_complete else f", of which {len(train):,} were read, evenly spaced"
    if validation is None:
        return f"{train.num_rows:,} examples{read}. No validation data was given to compare with."
    return f"{train.num_rows:,} examples{read}; {validation.num_rows:,} validation examples."


def _inputs(sample: Sample) -> dict[str, str]:
    if sample.holds_tokens:
        is_token = sample.inputs != NO_TOKEN if sample.mask is None else sample.mask  # padding is no token
        ids, lengths = sample.inputs[is_token], is_token.sum(axis=1)
        least, largest = (int(ids.min()), int(ids.max())) if ids.size else (0, 0)
        least_N, most_N = int(lengths.min()), int(lengths.max())
        how_long = f"Every example has {most_N:,}" if least_N == most_N else f"Examples have {least_N:,} to {most_N:,}"
        return {
            "tokens": f"{how_long} tokens with ids {least:,} to {largest:,}, {len(np.unique(ids)):,} of them different."
        }
    values = sample.inputs[np.isfinite(sample.inputs)]
    shape = " x ".join(map(str, sample.inputs.shape[1:])) or "1"
    if not values.size:
        return {"inputs": f"Examples of {shape} numbers, none of them finite."}
    constant = int((sample.columns() == sample.columns()[0]).all(axis=0).sum())
    return {
        "inputs": f"Examples of {shape} numbers from {values.min():.4g} to {values.max():.4g}, mean {values.mean():.4g}, "
        f"standard deviation {values.std():.4g}; {constant} constant columns."
    }


def _classes(sample: Sample) -> tuple[str, Figure]:
    from utils.views.quality import label_bars

    assert sample.labels is not None
    if sample.labels.ndim == 2:
        names, counts = np.arange(sample.labels.shape[1]), (sample.labels > 0).sum(axis=0)
    else:
        known = sample.labels[sample.labels != IGNORED]
        names, counts = np.unique(known, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    bars = {f"{names[index]:g}": int(counts[index]) for index in order}
    if not bars:
        return "No example has a label.", label_bars(bars, noun="example")
    most, least = int(counts.max()), int(counts.min())
    return f"{len(bars):,} classes, with {least:,} to {most:,} examples each.", label_bars(bars, noun="example")


def _targets(sample: Sample) -> str:
    assert sample.labels is not None
    known = sample.labels[np.isfinite(sample.labels)]
    if not known.size:
        return "No example has a finite target."
    spread = f"mean {known.mean():.4g}, standard deviation {known.std():.4g}"
    return f"Targets from {known.min():.4g} to {known.max():.4g}, {spread}."
