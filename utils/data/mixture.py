"""mix: several prepared datasets -> one, with a share of each and a validation loss of each."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from utils.data.batch import IGNORED
from utils.data.encoded import EncodedExamples, Ragged
from utils.data.mixed_examples import MixedExamples, Part
from utils.data.packing import TokenBlocks
from utils.data.prepared import PreparedData
from utils.data.text.report import PreparationReport
from utils.errors import ConfigError, DataError
from utils.schema import nearest, shown

#: What weights count.
UNITS = ("examples", "tokens")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


@dataclass(frozen=True)
class MixedSource:
    """One dataset of a mixture.

    Attributes:
        name: as in `val/loss/<name>`; source: what was read.
        share_of_examples, share_of_tokens, share_of_targets: of what an epoch trains on. The loss weighs every target the same,
            so the share of the targets is the dataset's share of the gradient.
        num_examples, num_tokens: in its training part, padding left out.
        examples_per_epoch: of an epoch; repetitions: how often it is iterated in an epoch.
        num_validation: examples in its validation part.
    """

    name: str
    source: str
    share_of_examples: float
    share_of_tokens: float
    share_of_targets: float
    num_examples: int
    num_tokens: int
    examples_per_epoch: int
    repetitions: float
    num_validation: int


@dataclass(frozen=True)
class MixtureReport(PreparationReport):
    """What became of the datasets of a mixture.

    Attributes:
        sources: the datasets, in order; reports: the report of each, by name.
        by: what the weights count, "examples" or "tokens"; temperature: see `mix`.
        num_train, num_validation: examples of an epoch, and of the validation.
        num_train_tokens, num_validation_tokens: tokens of the training and validation parts, each counted once.
        tokenizer, vocab_size: what all datasets have in common.
        unigram_loss: mean of the datasets' unigram losses, weighted by their validation targets; None: not known of each.
        notes: what the user should know.
    """

    sources: tuple[MixedSource, ...]
    reports: Mapping[str, Any]
    by: str
    temperature: float
    num_train: int
    num_validation: int
    num_train_tokens: int
    num_validation_tokens: int
    tokenizer: str
    vocab_size: int
    unigram_loss: float | None = None
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Every field as plain values."""
        own = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in ("reports", "sources")}
        reports = {name: report.to_dict() for name, report in self.reports.items()}
        return {**own, "sources": [dataclasses.asdict(one) for one in self.sources], "reports": reports}

    def rows(self) -> Mapping[str, str]:
        """The report as a table: what, and how much in words."""
        spread = "" if self.temperature == 1 else f", temperature {self.temperature:g}"
        rows = {
            "Mixture": f"{len(self.sources)} datasets, weights by {self.by}{spread}",
            "Tokenizer": self.tokenizer,
            "Training": f"{self.num_train:,} examples per epoch; {self.num_train_tokens:,} tokens in all datasets",
            "Validation": f"{self.num_validation:,} examples, {self.num_validation_tokens:,} tokens"
            if self.num_validation else "none",
        }  # fmt: skip
        for one in self.sources:
            seen = (
                f"repeated {one.repetitions:.2f} times" if one.repetitions > 1 else f"{one.repetitions:.0%} of it seen"
            )
            rows[one.name] = (
                f"{one.source}: {one.share_of_examples:.1%} of the examples, {one.share_of_tokens:.1%} of the tokens, "
                f"{one.share_of_targets:.1%} of the targets; {one.num_examples:,} examples, {seen} per epoch"
            )
        return {**rows, "Notes": "\n".join(self.notes)} if self.notes else rows


def mix(
    parts: Mapping[str, PreparedData], weights: Mapping[str, float] | None = None, *, by: str = "examples",
    temperature: float = 1.0, tokenizer: str | None = None,
) -> PreparedData:  # fmt: skip
    """Several prepared datasets as one to train on: text, conversations or both, with one tokenizer.

    An epoch has as many examples as the training parts together, of which each dataset supplies its share; see `MixedExamples`
    for the order, and the report for shares and repetitions. Validation goes through every validation example once: `val/loss`
    is the mean over all targets, `val/loss/<name>` that of each dataset.

    Args:
        parts: name -> what `prepare_data` or `prepare_conversations` returned; at least two.
        weights: name -> weight, positive, of any sum; None: the sizes of the datasets.
        by: what a weight counts: "examples" (rows: blocks of text, rows of conversations) or "tokens" (padding left out).
        temperature: weights become weight ** (1 / temperature) (Xue et al. 2021, mT5); above 1 small datasets are seen more
            often than their weight says, 1 leaves the weights as they are.
        tokenizer: what the report says of the tokenizer.
    Raises:
        ConfigError: names, weights or `temperature` are not usable; lists what there is.
        DataError: a dataset is for another task, or was prepared with another tokenizer; names it.
    """
    _check(parts, weights, by, temperature)
    first = next(iter(parts.values()))
    reports = {name: data.report for name, data in parts.items()}
    tokens = {name: reports[name].num_train_tokens for name in parts}
    sizes = {name: len(data.train) for name, data in parts.items()}
    given = weights or (tokens if by == "tokens" else sizes)
    wanted = {name: float(given[name]) ** (1 / temperature) for name in parts}
    per_row = {name: tokens[name] / sizes[name] if by == "tokens" else 1.0 for name in parts}
    shares = [wanted[name] / per_row[name] for name in parts]
    pad_id = first.tokenizer.pad_token_id
    train = MixedExamples({name: _part(data.train) for name, data in parts.items()}, shares, pad_id)
    held_out = {name: _part(data.validation) for name, data in parts.items() if data.validation is not None}
    validation = MixedExamples(held_out, None, pad_id) if held_out else None
    quotas = train.quotas(len(train))
    totals = np.array([
        [quota, quota * tokens[name] / sizes[name], quota * num_targets(part) / sizes[name]]
        for (name, part), quota in zip(train.parts.items(), quotas, strict=True)
    ])  # fmt: skip
    shared = (totals / totals.sum(0)).tolist()
    sources = tuple(
        MixedSource(
            name, getattr(reports[name], "source", ""), shared[number][0], shared[number][1], shared[number][2],
            sizes[name], tokens[name], quotas[number], quotas[number] / sizes[name],
            len(held_out[name]) if name in held_out else 0,
        )
        for number, name in enumerate(parts)
    )  # fmt: skip
    notes = [f"{name}: {note}" for name, report in reports.items() for note in report.notes]
    if missing := [name for name in parts if held_out and name not in held_out]:
        notes.insert(0, f"No validation examples, so no validation loss of its own: {', '.join(missing)}.")
    report = MixtureReport(
        sources, reports, by, temperature, len(train), 0 if validation is None else len(validation),
        sum(tokens.values()), sum(report.num_validation_tokens for report in reports.values()),
        tokenizer or str(getattr(reports[next(iter(parts))], "tokenizer", "")), len(first.tokenizer),
        _unigram_loss(held_out, reports), notes,
    )  # fmt: skip
    longest = max(data.task_spec.max_seq_len or 0 for data in parts.values())
    spec = first.task_spec.replace(name="mixture", max_seq_len=longest or None, pad_token_id=pad_id)
    return PreparedData(train, validation, first.tokenizer, spec, report, roles=first.roles)


def num_targets(part: Part) -> int:
    """Targets of causal language modelling in all rows: the first token of a row is predicted by nothing."""
    if isinstance(part, TokenBlocks):
        return len(part) * (part.block_size - 1) - part.num_padding
    labels = part.columns["labels"]
    if isinstance(labels, Ragged):
        counted = labels.values != IGNORED
        starts = labels.offsets[:-1][labels.lengths() > 0]
        return int(counted.sum() - counted[starts].sum())
    return int((labels[:, 1:] != IGNORED).sum())


def _part(data: Any) -> Part:
    if not isinstance(data, TokenBlocks | EncodedExamples):
        raise DataError(f"mixture: got a {type(data).__name__} as a dataset; mix blocks of text and conversations.")
    return data


def _unigram_loss(held_out: Mapping[str, Part], reports: Mapping[str, Any]) -> float | None:
    total, targets = 0.0, 0
    for name, part in held_out.items():
        loss = getattr(reports[name], "unigram_loss", None)
        if loss is None:
            return None
        total, targets = total + loss * num_targets(part), targets + num_targets(part)
    return total / targets if targets else None


def check_names(names: Sequence[str]) -> None:
    """Refuse names that no metric can have. Raises `ConfigError`."""
    for name in names:
        if not NAME.fullmatch(name) or name.endswith("_averaged"):
            raise ConfigError(
                f"mixture: got the name {shown(name)}; it stands in val/loss/<name>, so use letters, digits, '_', '.' and '-'."
            )
    if twice := sorted({name for name in names if list(names).count(name) > 1}):
        raise ConfigError(
            f"mixture: {', '.join(map(repr, twice))} names several datasets. Give each a name of its own."
        )


def _check(parts: Mapping[str, PreparedData], weights: Mapping[str, float] | None, by: str, temperature: float) -> None:
    if len(parts) < 2:
        raise ConfigError(f"mixture: got {len(parts)} dataset{'' if len(parts) == 1 else 's'}; give at least two.")
    check_names(list(parts))
    if by not in UNITS:
        guess = nearest(str(by), UNITS)
        raise ConfigError(f"mixture_by: got {shown(by)}; must be one of {', '.join(UNITS)}{_hint(guess)}")
    if not 0 < temperature < float("inf"):
        raise ConfigError(f"mixture_temperature: got {shown(temperature)}; must be a positive number.")
    if weights is not None and set(weights) != set(parts):
        raise ConfigError(f"mixture: weights are for {', '.join(weights)}; the datasets are {', '.join(parts)}.")
    for name, weight in (weights or {}).items():
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < float("inf"):
            raise ConfigError(f"mixture: got the weight {shown(weight)} for {name!r}; must be a positive number.")
    first_name, first = next(iter(parts.items()))
    for name, data in parts.items():
        if (kind := data.task_spec.task_type) != "causal_lm":
            raise DataError(
                f"mixture: {name!r} is for {kind}, which cannot be mixed: only text and conversations for causal language "
                "modelling can. Train on it alone."
            )
        if data.tokenizer is not first.tokenizer and data.tokenizer.get_vocab() != first.tokenizer.get_vocab():
            raise DataError(
                f"mixture: {name!r} and {first_name!r} were prepared with different tokenizers. Give both the same, or let "
                "prepare_data(setup with mixture) prepare them together."
            )


def _hint(guess: str | None) -> str:
    return f"; did you mean {guess!r}?" if guess else ""
