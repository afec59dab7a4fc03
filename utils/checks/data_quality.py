"""Is this data worth training on? Findings about texts, tables, images and token ids, each with its numbers and a remedy."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from pydantic import Field

from utils.check_result import CheckReport, CheckResult, Finding, Verdict
from utils.checks.sample_quality import check_samples
from utils.data.labelled.table import is_missing
from utils.data.prepared import PreparedData
from utils.data.quality.inspection.class_labels import class_findings
from utils.data.quality.inspection.sampling import own_generators_kept
from utils.data.quality.texts import MOST_COMPARED, NEAR, TextProfile, profile_texts, shared_rows
from utils.errors import ConfigError, DataError, DataTypeError
from utils.schema import Schema, shown

_KEPT_EXAMPLES = 5


class QualityThresholds(Schema):
    """Thresholds above which a finding is a warning or a failure. Shares are of all rows of the dataset, 0 to 1."""

    short_characters: int = Field(10, ge=0, description="A row with fewer characters than this is short.")
    empty_warn: float = Field(0.01, ge=0, le=1, description="Share of empty rows.")
    empty_fail: float = Field(0.5, ge=0, le=1, description="Share of empty rows.")
    short_warn: float = Field(0.2, ge=0, le=1, description="Share of short rows.")
    damaged_warn: float = Field(0.001, ge=0, le=1, description="Share of rows whose characters are damaged.")
    damaged_fail: float = Field(0.05, ge=0, le=1, description="Share of rows whose characters are damaged.")
    duplicate_warn: float = Field(0.01, ge=0, le=1, description="Share of rows that repeat an earlier one exactly.")
    duplicate_fail: float = Field(0.5, ge=0, le=1, description="Share of rows that repeat an earlier one exactly.")
    near_duplicate_warn: float = Field(0.05, ge=0, le=1, description="Share of rows that nearly repeat an earlier one.")
    not_language_warn: float = Field(
        0.3, ge=0, le=1, description="Share of digits, punctuation and symbols in the text."
    )
    truncated_warn: float = Field(0.05, ge=0, le=1, description="Share of all tokens that max_length cuts off.")
    truncated_fail: float = Field(0.5, ge=0, le=1, description="Share of all tokens that max_length cuts off.")
    majority_warn: float = Field(0.8, ge=0, le=1, description="Share of the most frequent label.")
    least_per_label: int = Field(10, ge=1, description="A label with fewer rows than this is rare.")
    leakage_warn: float = Field(0.0, ge=0, le=1, description="Share of validation rows that are in training too.")
    leakage_fail: float = Field(0.01, ge=0, le=1, description="Share of validation rows that are in training too.")


def check_data_quality(
    data: Any,
    *,
    validation: Any = None,
    text_column: str = "text",
    label_column: str | None = None,
    tokenizer: Any = None,
    max_length: int | None = None,
    thresholds: QualityThresholds | None = None,
    model: Any = None,
    task_spec: Any = None,
) -> CheckReport:
    """Findings about a dataset, and about its validation split against it.

    All rows of texts are read, once. Of tables, images and token ids at most 4,096 rows are read, evenly spaced, or 256 of a
    Dataset class of the user's own; no random state is changed.

    Args:
        data: texts: a list or any iterable of str, records with `text_column`, a Hugging Face Dataset or DataFrame with
            `text_column`; or what `prepare_data` or `prepare_examples` returned, with its validation. Or anything that
            `Trainer.train` takes: token ids, a TensorDataset (features, targets), images, a Dataset, a DataLoader; also a
            tensor, an array, a pair (inputs, labels) of arrays, and a DataFrame of numbers.
        validation: the same for the validation split: then leakage is looked for.
        label_column: of a Dataset or DataFrame with labels: then their balance is looked at.
        tokenizer: a fast tokenizer: then lengths are in tokens.
        max_length: tokens at which rows will be cut, for tasks on rows: then what is lost is looked at.
        thresholds: None: the defaults.
        model: then ids and labels are compared with what it scores, and a model that normalises its inputs is recognised.
        task_spec: the task, as `Trainer` takes it; None: by the kind of labels.
    Returns:
        A report whose verdict is "fail" only where training on the data as it is would be pointless or misleading.
        `report["lengths"].figure` and `report["labels"].figure` are pictures.
    Raises:
        DataError, DataTypeError: no rows; a column that is not there (lists those that are); values that are not texts.
        ConfigError: a max_length without a tokenizer to measure it with.
    """
    limits = QualityThresholds() if thresholds is None else thresholds
    if not isinstance(limits, QualityThresholds):
        raise ConfigError(
            f"got thresholds={shown(thresholds)}; give QualityThresholds(majority_warn=0.9), for example."
        )
    if isinstance(data, PreparedData):
        if data.texts is None:
            tokenizer = data.tokenizer if tokenizer is None else tokenizer
            task_spec = data.task_spec if task_spec is None else task_spec
        data, validation = _parts_of(data, validation)
    data, validation = _records(data), _records(validation)
    if not _holds_texts(data, text_column):
        return check_samples(
            data, validation, model=model, task_spec=task_spec, tokenizer=tokenizer, majority=limits.majority_warn
        )
    label_column = _usual_label_column(data, validation) if label_column is None else label_column
    if max_length is not None and (isinstance(max_length, bool) or not isinstance(max_length, int) or max_length < 1):
        raise ConfigError(f"got max_length={max_length!r}; must be a whole number of tokens of at least 1, or None.")
    if max_length is not None and tokenizer is None:
        raise ConfigError(f"got max_length={max_length:,} (tokens) and no tokenizer to count them; give tokenizer=….")
    labels = labels_in(data, label_column)
    train = profile_texts(texts_in(data, text_column), labels=labels, tokenizer=tokenizer, unit=unit_of(data))
    if train.num_rows == 0:
        raise DataError("the dataset has no rows; there is nothing to check. Give at least one text.")
    held_out = None
    if validation is not None:
        held_out = profile_texts(texts_in(validation, text_column), labels=labels_in(validation, label_column))
    report = judge(train, held_out, max_length, limits)
    if labels is None:
        return report
    return _with_order_of_labels(report, labels, None if validation is None else labels_in(validation, label_column))


def _with_order_of_labels(report: CheckReport, labels: Iterable[Any], held_out: Iterable[Any] | None) -> CheckReport:
    """The report with findings about blocks of one label, and labels that validation lacks."""
    names = [
        np.array([shown(one) for one in part if not is_missing(one)]) for part in (labels, held_out) if part is not None
    ]
    if not all(map(len, names)):
        return report
    found = class_findings(names[0], num_classes=None, validation_M=names[1] if len(names) > 1 else None)
    results = []
    for result in report.results:
        more = [
            Finding(one.cause, one.verdict, one.summary, one.remedy)
            for one in (found if result.name == "labels" else ())
            if one.cause == "sorted" or (one.cause == "validation classes" and one.verdict == "warn")
        ]
        results.append(result.with_findings(more, {}) if more else result)
    return CheckReport(report.title, results)


def judge(
    train: TextProfile, validation: TextProfile | None, max_length: int | None, limits: QualityThresholds
) -> CheckReport:
    """The findings of `check_data_quality` from measurements."""
    results = [
        _rows(train, limits), _encoding(train, limits), _lengths(train, limits, max_length), _duplicates(train, limits),
        _near_duplicates(train, limits), _characters(train, limits),
    ]  # fmt: skip
    if max_length is not None and train.token_lengths is not None:
        results.append(_truncation(train, train.token_lengths, limits, max_length))
    if train.labels is not None:
        results.append(_balance(train, train.labels, validation, limits))
    if validation is not None:
        results.append(_leakage(train, validation, limits))
    size = f" ({train.num_characters:,} characters)" if train.unit == "text" else ""
    plural = "" if train.num_rows == 1 else "s"
    return CheckReport(f"Data quality of {train.num_rows:,} {train.unit}{plural}{size}", results)


def _rows(found: TextProfile, limits: QualityThresholds) -> CheckResult:
    share = found.num_empty / found.num_rows
    measured = {"rows": found.num_rows, "empty_rows": found.num_empty, "rows_that_are_no_text": found.num_not_text}
    said = f"{found.num_empty:,} of {found.num_rows:,} {found.unit}s have no content ({share:.1%})"
    if found.num_not_text:
        said += f", {found.num_not_text:,} of them because they hold something else than text"
    verdict = above(share, limits.empty_warn, limits.empty_fail)
    column = ", and whether it is the right column" if found.unit == "row" else ""
    if found.num_not_text and verdict == "pass":
        verdict = "warn"
    return CheckResult(
        "rows", verdict, f"{said}.", measured, {"warn": limits.empty_warn, "fail": limits.empty_fail},
        "" if verdict == "pass" else f"Look at {found.unit}s {_listed(found.empty_examples)}{column}: drop what is empty.",
    )  # fmt: skip


def _encoding(found: TextProfile, limits: QualityThresholds) -> CheckResult:
    rows = sorted({row for rows in found.damaged.values() for row in rows})
    share = len(rows) / found.num_rows
    measured = {f"rows_with_{kind.replace(' ', '_')}": len(rows) for kind, rows in sorted(found.damaged.items())}
    thresholds = {"warn": limits.damaged_warn, "fail": limits.damaged_fail}
    if not rows:
        return CheckResult("encoding", "pass", "No character shows damage.", measured, thresholds)
    kinds = ", ".join(f"{kind}: {len(rows):,} {found.unit}s" for kind, rows in sorted(found.damaged.items()))
    verdict = above(share, limits.damaged_warn, limits.damaged_fail)
    return CheckResult(
        "encoding", verdict, f"{len(rows):,} {found.unit}s ({share:.2%}) hold damaged characters ({kinds}).", measured,
        thresholds,
        f"Read the file in its own encoding again (misread UTF-8: encoding='utf-8'); see {found.unit}s {_listed(rows)}.",
    )  # fmt: skip


def _lengths(found: TextProfile, limits: QualityThresholds, max_length: int | None) -> CheckResult:
    from utils.views.quality import length_histogram

    in_tokens = found.token_lengths is not None
    lengths_N = found.token_lengths if found.token_lengths is not None else found.lengths
    unit = "tokens" if in_tokens else "characters"
    quartiles = [int(value) for value in np.percentile(lengths_N, (0, 25, 50, 75, 100), method="nearest")]
    short = int(((found.lengths < limits.short_characters) & (found.lengths > 0)).sum())
    share = short / found.num_rows
    verdict: Verdict = "warn" if share > limits.short_warn else "pass"
    measured = {
        f"{name}_{unit}": value
        for name, value in zip(("least", "lower_quartile", "median", "upper_quartile", "most"), quartiles, strict=True)
    }
    return CheckResult(
        "lengths", verdict,
        _spread(quartiles, unit, found)
        + f"; {short:,} ({share:.1%}) have text of fewer than {limits.short_characters} characters.",
        {**measured, "short_rows": short}, {"short_warn": limits.short_warn},
        "" if verdict == "pass" else f"Join lines into documents, or drop short {found.unit}s (DatasetLoader(min_length=…)).",
        length_histogram(lengths_N, unit, max_length if in_tokens else None, noun=found.unit),
    )  # fmt: skip


def _spread(quartiles: Sequence[int], unit: str, found: TextProfile) -> str:
    least, lower, _, upper, most = quartiles
    if least == most:
        return f"{'The one' if found.num_rows == 1 else 'Every'} {found.unit} has {most:,} {unit}"
    return f"{found.unit.capitalize()}s have {least:,} to {most:,} {unit}, half of them {lower:,} to {upper:,}"


def _duplicates(found: TextProfile, limits: QualityThresholds) -> CheckResult:
    rows = found.duplicates()
    share = len(rows) / found.num_rows
    verdict = above(share, limits.duplicate_warn, limits.duplicate_fail)
    return CheckResult(
        "exact duplicates", verdict, f"{len(rows):,} {found.unit}s ({share:.1%}) repeat an earlier one exactly.",
        {"duplicate_rows": len(rows)}, {"warn": limits.duplicate_warn, "fail": limits.duplicate_fail},
        "" if verdict == "pass" else
        f"Remove them (DatasetLoader(remove_duplicates=True)): the model would memorise them. See {found.unit}s "
        f"{_listed(rows)}.",
    )  # fmt: skip


def _near_duplicates(found: TextProfile, limits: QualityThresholds) -> CheckResult:
    pairs = found.near_duplicates()
    compared = min(found.num_rows, MOST_COMPARED)
    share = len(pairs) / compared
    among = "" if compared == found.num_rows else f" of the first {compared:,}"
    verdict: Verdict = "warn" if share > limits.near_duplicate_warn else "pass"
    pairs_text = "; ".join(f"{row:,} and {earlier:,}" for row, earlier in pairs[:_KEPT_EXAMPLES])
    return CheckResult(
        "near duplicates", verdict,
        f"{len(pairs):,} {found.unit}s{among} ({share:.1%}) are nearly the same as an earlier one (at least {NEAR:.0%} of "
        "their runs of five words, estimated).",
        {"near_duplicate_rows": len(pairs), "rows_compared": compared}, {"warn": limits.near_duplicate_warn},
        "" if verdict == "pass" else f"Look for templates, quotations and boilerplate: {found.unit}s {pairs_text}.",
    )  # fmt: skip


def _characters(found: TextProfile, limits: QualityThresholds) -> CheckResult:
    kinds, scripts = found.kinds(), found.scripts()
    visible = sum(share for kind, share in kinds.items() if kind != "white space")
    other = sum(kinds.get(kind, 0.0) for kind in ("digits", "punctuation", "symbols", "others"))
    share = other / visible if visible else 0.0
    verdict: Verdict = "warn" if share > limits.not_language_warn else "pass"
    listed = ", ".join(f"{script} {part:.1%}" for script, part in list(scripts.items())[:4]) or "none"
    return CheckResult(
        "characters", verdict,
        f"Letters by script: {listed}. {len(found.characters):,} different characters; {share:.1%} of the visible ones are "
        "digits, punctuation or symbols.",
        {**{f"share_of_{kind.replace(' ', '_')}": part for kind, part in kinds.items()}, "scripts": scripts},
        {"warn": limits.not_language_warn},
        "" if verdict == "pass" else "Is it markup, a table or code? Then take the text out of it, or keep it on purpose.",
    )  # fmt: skip


def _truncation(found: TextProfile, tokens_N: np.ndarray, limits: QualityThresholds, max_length: int) -> CheckResult:
    name, thresholds = "truncation", {"warn": limits.truncated_warn, "fail": limits.truncated_fail}
    lengths_N = tokens_N.astype(np.int64)
    cut_rows, all_tokens = int((lengths_N > max_length).sum()), max(1, int(lengths_N.sum()))
    lost = int(np.maximum(lengths_N - max_length, 0).sum())
    verdict = above(lost / all_tokens, limits.truncated_warn, limits.truncated_fail)
    enough = int(np.percentile(lengths_N, 99, method="higher"))
    return CheckResult(
        name, verdict,
        f"At {max_length:,} tokens {cut_rows:,} {found.unit}s ({cut_rows / found.num_rows:.1%}) are cut and {lost:,} tokens "
        f"({lost / all_tokens:.1%}) are lost.",
        {"cut_rows": cut_rows, "lost_tokens": lost, "tokens": all_tokens}, thresholds,
        "" if verdict == "pass" else f"max_length={enough:,} keeps 99 % of the {found.unit}s whole; or cut long "
        f"{found.unit}s into several.",
    )  # fmt: skip


def _balance(
    found: TextProfile, labels: Counter[Any], validation: TextProfile | None, limits: QualityThresholds
) -> CheckResult:
    name, thresholds = "labels", {"majority_warn": limits.majority_warn, "least_per_label": limits.least_per_label}
    if not labels:
        return CheckResult(
            name, "fail", f"None of the {found.num_rows:,} {found.unit}s has a label.",
            {"unlabelled_rows": found.num_unlabelled}, thresholds, "Name the column with the labels (label_column=…).",
        )  # fmt: skip
    from utils.views.quality import label_bars

    (majority, most), *_ = labels.most_common(1)
    share = most / labels.total()
    rare = [label for label, count in labels.items() if count < limits.least_per_label]
    unseen = sorted(map(str, set(validation.labels or ()) - set(labels))) if validation is not None else []
    useless, doubtful = [], []
    if unseen:
        useless.append(f"Validation has labels that training never shows ({_listed(unseen)}): split by label.")
    if len(labels) < 2:
        useless.append(f"Every {found.unit} has the same label, so nothing can be learned: look at the column.")
    elif share > limits.majority_warn:
        doubtful.append(f"Judge by f1_macro, not by accuracy: always answering {shown(majority)} is right {share:.0%}.")
    if rare:
        doubtful.append(f"Add {found.unit}s for rare labels ({_listed(rare)}), or join them.")
    if found.num_unlabelled:
        doubtful.append(f"Label the {found.unit}s that have none, or drop them.")
    counts = {str(label): count for label, count in labels.most_common()}
    return CheckResult(
        name, "fail" if useless else "warn" if doubtful else "pass",
        f"{len(labels):,} labels; the most frequent, {shown(majority)}, has {share:.1%} of them, the rarest "
        f"{min(labels.values()):,} {found.unit}s; {found.num_unlabelled:,} {found.unit}s have none.",
        {"labels": counts, "majority_share": share, "unlabelled_rows": found.num_unlabelled},
        thresholds, " ".join(useless + doubtful), label_bars(counts, noun=found.unit),
    )  # fmt: skip


def _leakage(train: TextProfile, validation: TextProfile, limits: QualityThresholds) -> CheckResult:
    name, thresholds = "leakage", {"warn": limits.leakage_warn, "fail": limits.leakage_fail}
    if validation.num_rows == 0:
        return CheckResult(
            name, "not run", f"The validation dataset has no {train.unit}s to compare with.", {}, thresholds
        )
    exact, near = shared_rows(train, validation)
    share = (len(exact) + len(near)) / validation.num_rows
    verdict = above(share, limits.leakage_warn, limits.leakage_fail)
    return CheckResult(
        name, verdict,
        f"{len(exact):,} of {validation.num_rows:,} validation {train.unit}s are in training too, {len(near):,} nearly "
        f"({share:.1%}).",
        {"exact_rows": len(exact), "near_rows": len(near), "validation_rows": validation.num_rows}, thresholds,
        "" if verdict == "pass" else
        "The validation loss flatters the model. Remove duplicates before splitting; see validation "
        f"{train.unit}s {_listed([*exact, *near])}.",
    )  # fmt: skip


def above(share: float, warn: float, fail: float) -> Verdict:
    return "fail" if share > fail else "warn" if share > warn else "pass"


def _listed(rows: Sequence[Any] | np.ndarray) -> str:
    """The first few of them, in words."""
    first = ", ".join(shown(row if isinstance(row, str) else int(row) if isinstance(row, np.integer) else row)
                      for row in rows[:_KEPT_EXAMPLES])  # fmt: skip
    return first + (", …" if len(rows) > _KEPT_EXAMPLES else "")


def _parts_of(data: PreparedData, validation: Any) -> tuple[Any, Any]:
    """Both parts as texts, or as examples where the texts are not kept."""
    if data.texts is None:
        return data.train, data.validation if validation is None else validation
    own = data.texts.validation if data.validation is not None else None
    return data.texts.train, own if validation is None else validation


def _records(data: Any) -> Any:
    """A list of dicts as a DataFrame; anything else as it is."""
    if not isinstance(data, (list, tuple)) or not data or not all(isinstance(row, Mapping) for row in data):
        return data
    if any(name in data[0] for name in ("input_ids", "pixel_values", "image")):
        return data
    import pandas as pd

    return pd.DataFrame(list(data))


def _holds_texts(data: Any, text_column: str) -> bool:
    """Whether data are texts rather than numbers: by their column of texts, or by their first rows."""
    columns = _columns(data)
    if columns is not None:
        if text_column in columns or text_column != "text":
            return True
        numbers = hasattr(data, "select_dtypes") and data.select_dtypes(("number", "bool")).shape[1] > 0
        return not numbers and not {"input_ids", "pixel_values", "image", "images", "img"} & set(columns)
    if isinstance(data, (list, tuple)):
        return all(row is None or isinstance(row, (str, bytes, float)) for row in data[:8])
    if isinstance(data, (str, bytes, Mapping)) or not (hasattr(data, "__getitem__") and hasattr(data, "__len__")):
        return not _is_loader(data)
    with own_generators_kept(data):
        return len(data) > 0 and isinstance(data[0], str)


def _is_loader(data: Any) -> bool:
    from torch.utils.data import DataLoader, IterableDataset

    return isinstance(data, (DataLoader, IterableDataset))


def _usual_label_column(*parts: Any) -> str | None:
    """A column with a usual name for labels that all parts have."""
    columns = [set(_columns(part) or ()) for part in parts if part is not None]
    return next((name for name in ("label", "labels") if columns and all(name in one for one in columns)), None)


def unit_of(data: Any) -> str:
    """What reports call one of the texts in `data`: a row of a table, or a text."""
    return "text" if _columns(data) is None else "row"


def texts_in(data: Any, name: str) -> Iterable[Any]:
    """The texts in `data`. Raises when it is something that holds none."""
    if isinstance(data, (str, bytes, Mapping)):
        raise DataTypeError(
            f"Expected texts, a Dataset or a DataFrame; got a {type(data).__name__}. Give a list: [text]."
        )
    columns = _columns(data)
    if columns is None:
        if not isinstance(data, Iterable):
            raise DataTypeError(f"Expected texts, a Dataset or a DataFrame; got a {type(data).__name__}.")
        return data
    _check_column(name, columns, "text_column")
    values: Iterable[Any] = data[name]
    return values


def labels_in(data: Any, name: str | None) -> Iterable[Any] | None:
    if name is None:
        return None
    columns = _columns(data)
    if columns is None:
        raise DataTypeError(f"label_column={name!r} needs a Dataset or DataFrame; got a {type(data).__name__}.")
    _check_column(name, columns, "label_column")
    values: Iterable[Any] = data[name]
    return values


_ColumnNames: tuple[Callable[[Any], Any], ...] = (
    lambda data: getattr(data, "column_names", None),
    lambda data: getattr(data, "columns", None),
)


def _columns(data: Any) -> list[str] | None:
    """Names of the columns of a Dataset or DataFrame; None for anything else."""
    for names in _ColumnNames:
        found = names(data)
        if found is not None and not callable(found):
            return [str(name) for name in found]
    return None


def _check_column(name: str, columns: list[str], argument: str) -> None:
    if name not in columns:
        raise DataError(f"there is no column {name!r}; the dataset has {', '.join(columns)}. Give {argument}=….")
