"""Report on prepared conversations: share of supervised tokens, rows with an end-of-turn token, truncation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from utils.data.text.report import PreparationReport


@dataclass(frozen=True)
class ConversationsReport(PreparationReport):
    """Report on prepared conversations.

    Attributes:
        source, layout, num_rows, skipped_rows: what was given, how it was read, and rows that were left out.
        split: how training and validation were divided.
        num_train, num_validation: conversations; num_train_tokens, num_validation_tokens: their tokens.
        num_answers: turns of the assistant in both parts.
        supervised_share: share of the tokens that are targets.
        ended_share: share of the conversations whose last target is the end of a turn.
        truncated, dropped, lost_tokens: conversations that lost turns, those of which nothing fits, and the tokens of both.
        max_length, longest: tokens of a row, and of the longest conversation before it was cut.
        num_rows_packed: rows of both parts; fill: share of their positions that is no padding. `packed` says whether several
            conversations share a row.
        chat_template, tokenizer, vocab_size: what they are.
        unigram_loss: cross-entropy of the validation targets by their frequency in training, nats per target; None: no
            validation.
        notes: what the user should know.
    """

    source: str
    layout: str
    num_rows: int
    skipped_rows: int
    split: str
    num_train: int
    num_validation: int
    num_train_tokens: int
    num_validation_tokens: int
    num_answers: int
    supervised_share: float
    ended_share: float
    truncated: int
    dropped: int
    lost_tokens: int
    max_length: int
    longest: int
    packed: bool
    num_rows_packed: int
    fill: float
    chat_template: str
    tokenizer: str
    vocab_size: int
    unigram_loss: float | None = None
    notes: list[str] = field(default_factory=list)

    def rows(self) -> Mapping[str, str]:
        """The report as a table: what, and how much in words."""
        skipped = f", {self.skipped_rows:,} of them left out" if self.skipped_rows else ""
        count = self.num_train + self.num_validation
        cut = (
            f"{self.truncated:,} conversations lost their last turns, {self.dropped:,} do not fit and were left out "
            f"({self.lost_tokens:,} tokens)"
        )
        how = "packed with several conversations where they fit" if self.packed else "one conversation each"
        rows = {
            "Source": f"{self.source}: {self.num_rows:,} rows{skipped}",
            "Layout": self.layout,
            "Split": self.split,
            "Chat template": self.chat_template,
            "Tokenizer": self.tokenizer,
            "Training": f"{self.num_train:,} conversations, {self.num_train_tokens:,} tokens",
            "Validation": (
                f"{self.num_validation:,} conversations, {self.num_validation_tokens:,} tokens"
                if self.num_validation
                else "none"
            ),
            "Answers": f"{self.num_answers:,} in {count:,} conversations",
            "Trained on": f"{self.supervised_share:.1%} of the tokens",
            "Ends": f"{self.ended_share:.1%} of the conversations train the end of the last answer",
            "Truncation": cut if self.truncated or self.dropped else "nothing was cut",
            "Blocks": f"{self.num_rows_packed:,} blocks of {self.max_length:,} positions, {how}; {self.fill:.1%} filled",
        }
        return {**rows, "Notes": "\n".join(self.notes)} if self.notes else rows
