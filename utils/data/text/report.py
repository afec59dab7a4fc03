"""DataReport and ExamplesReport: what became of the text, or of labelled records, in numbers."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

_COUNTED_AT_ONCE = 1_000_000  # ids


@dataclass(frozen=True)
class PreparationReport(ABC):
    """A summary of prepared data."""

    def to_dict(self) -> dict[str, Any]:
        """Every field as plain values."""
        return dataclasses.asdict(self)

    @abstractmethod
    def rows(self) -> Mapping[str, str]:
        """The report as a table of two columns: name and value in words."""

    def __str__(self) -> str:
        from utils.views.tables import summary_text

        return summary_text("Data", self.rows())

    def show(self) -> None:
        """Show it: a table in a notebook, text elsewhere."""
        from utils.views.display import show_table

        show_table("Data", self.rows())


@dataclass(frozen=True)
class DataReport(PreparationReport):
    """Report on prepared text. Sizes of blocks in tokens.

    Attributes:
        source: where the text came from.
        num_documents, num_characters: what was read, before the split.
        split: how training and validation were divided.
        num_train_tokens, num_validation_tokens: tokens in the blocks.
        block_size: T.
        num_train_blocks, num_validation_blocks: N.
        dropped_tokens: in the last partial blocks, fewer than T in each part.
        tokenizer: what it is and why.
        vocab_size: tokens that the tokenizer has.
        unigram_loss: cross-entropy of a unigram model of the training data on the validation blocks, in nats per target: the
            baseline to beat. None without validation.
        notes: notices for the user, one sentence each.
        packing: how training documents were packed, "concatenate" or "best_fit".
        padding_tokens: positions of the training blocks that are padding.
    """

    source: str
    num_documents: int
    num_characters: int
    split: str
    num_train_tokens: int
    num_validation_tokens: int
    block_size: int
    num_train_blocks: int
    num_validation_blocks: int
    dropped_tokens: int
    tokenizer: str
    vocab_size: int
    unigram_loss: float | None
    notes: list[str] = field(default_factory=list)
    packing: str = "concatenate"
    padding_tokens: int = 0

    def rows(self) -> Mapping[str, str]:
        """The report as a table: what, and how much in words."""
        validation = (
            f"{self.num_validation_blocks:,} blocks, {self.num_validation_tokens:,} tokens"
            if self.num_validation_blocks
            else "none"
        )
        baseline = (
            "not measured without validation"
            if self.unigram_loss is None
            else f"{self.unigram_loss:.3f} nats per token"
        )
        documents = f"{self.num_documents:,} document{'' if self.num_documents == 1 else 's'}"
        rows = {
            "Source": self.source,
            "Text": f"{documents}, {self.num_characters:,} characters",
            "Split": self.split,
            "Tokenizer": self.tokenizer,
            "Training": f"{self.num_train_blocks:,} blocks of {self.block_size:,}, {self.num_train_tokens:,} tokens",
            "Validation": validation,
            "Dropped": f"{self.dropped_tokens:,} tokens that fill no block",
            "Unigram loss": baseline,
        }
        if self.packing != "concatenate":
            positions = self.num_train_blocks * self.block_size
            rows["Padding"] = f"{self.padding_tokens / positions:.2%} of the positions of the training blocks"
        return {**rows, "Notes": "\n".join(self.notes)} if self.notes else rows


@dataclass(frozen=True)
class ExamplesReport(PreparationReport):
    """Report on prepared labelled records. Lengths in tokens, special ones included.

    Attributes:
        source: what was given.
        num_rows, skipped_rows: rows that were given, and those of them that were skipped.
        columns: which columns were taken for what.
        split: how training and validation were divided.
        num_train, num_validation: examples.
        num_train_tokens, num_validation_tokens: tokens of the inputs.
        max_length: most tokens of an input.
        median_length, longest: of the inputs as they are, after truncation.
        truncated_examples, lost_tokens: what truncation to `max_length` cost.
        tokenizer, vocab_size: what it is and why, and how many tokens it has.
        labels: class -> examples of it (for words: words) in training and in validation; empty without classes.
        targets: of numbers range, mean and outliers, of target texts lengths; None for classes.
        baseline: what somebody reaches on the validation part who never reads the inputs, in words; None: not known.
        notes: notices for the user, one sentence each.
    """

    source: str
    num_rows: int
    skipped_rows: int
    columns: str
    split: str
    num_train: int
    num_validation: int
    num_train_tokens: int
    num_validation_tokens: int
    max_length: int
    median_length: int
    longest: int
    truncated_examples: int
    lost_tokens: int
    tokenizer: str
    vocab_size: int
    labels: dict[str, tuple[int, int]] = field(default_factory=dict)
    baseline: str | None = None
    notes: list[str] = field(default_factory=list)
    targets: str | None = None

    #: Only language modelling has such a baseline; see `DataReport`.
    unigram_loss: ClassVar[float | None] = None

    def rows(self) -> Mapping[str, str]:
        """The report as a table: what, and how much in words."""
        skipped = f", {self.skipped_rows:,} of them skipped" if self.skipped_rows else ""
        validation = f"{self.num_validation:,} examples, {self.num_validation_tokens:,} tokens"
        examples = self.num_train + self.num_validation
        cut = f"{self.truncated_examples:,} of {examples:,} examples were cut: {self.lost_tokens:,} tokens lost"
        rows = {
            "Source": f"{self.source}: {self.num_rows:,} rows{skipped}",
            "Columns": self.columns,
            "Split": self.split,
            "Tokenizer": self.tokenizer,
            "Training": f"{self.num_train:,} examples, {self.num_train_tokens:,} tokens",
            "Validation": validation if self.num_validation else "none",
            "Length": f"median {self.median_length:,} tokens, longest {self.longest:,}, limit {self.max_length:,}",
            "Truncation": cut if self.truncated_examples else "nothing was cut",
        }
        if self.labels:
            rows["Labels"] = self._balance()
        if self.targets:
            rows["Targets"] = self.targets
        if self.baseline:
            rows["Baseline"] = self.baseline
        return {**rows, "Notes": "\n".join(self.notes)} if self.notes else rows

    def _balance(self, most: int = 12) -> str:
        """The share of each class in training, the most frequent first."""
        total = max(1, sum(train for train, _ in self.labels.values()))
        counts = sorted(((train, name) for name, (train, _) in self.labels.items()), key=lambda pair: -pair[0])
        shown = [f"{name} {train / total:.1%} ({train:,})" for train, name in counts[:most]]
        return ", ".join(shown) + (f", and {len(counts) - most:,} more" if len(counts) > most else "")


def unigram_loss(train: np.ndarray, validation_blocks: np.ndarray, vocab_size: int) -> float:
    """Cross-entropy of the validation targets under the frequencies of training tokens, nats per target.

    Each of the `vocab_size` ids is counted once more than it occurs (add-one smoothing), so none is impossible. Targets
    are the positions that a language model predicts: all but the first of each block.

    Args:
        train: token ids, shape (N, T) or flat.
        validation_blocks: token ids, shape (M, T).
        vocab_size: ids run from 0 to vocab_size - 1.
    """
    # A tokenizer whose ids have gaps has larger ids than tokens.
    num_ids = max(vocab_size, int(validation_blocks.max()) + 1)
    counts_V = _counts(train, num_ids) + 1.0
    loss_V = np.log(counts_V.sum()) - np.log(counts_V)
    targets_V = _counts(validation_blocks[:, 1:], num_ids)
    return float(targets_V @ loss_V / targets_V.sum())


def _counts(ids: np.ndarray, num_ids: int) -> np.ndarray:
    """Count each id, int64 (num_ids,). Some rows at a time: a count needs 8 bytes for each id that it reads."""
    rows = max(1, _COUNTED_AT_ONCE // (ids.shape[1] if ids.ndim > 1 else 1))
    counts_V = np.zeros(num_ids, dtype=np.int64)
    for start in range(0, len(ids), rows):
        counts_V += np.bincount(ids[start : start + rows].reshape(-1), minlength=num_ids)
    return counts_V
