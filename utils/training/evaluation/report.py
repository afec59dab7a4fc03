"""GenerationReport: what a model wrote for held-out examples, and how it compares with what was expected."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.storage import write_json

if TYPE_CHECKING:
    import pandas as pd

_NAMES = {"exact_match": "Exact match", "rouge_l": "ROUGE-L", "chrf": "chrF", "bleu": "BLEU"}


@dataclass(frozen=True)
class GeneratedExample:
    """One held-out example.

    Attributes:
        prompt: what the model was given, as text.
        expected, written: the data's answer and the model's.
        ended: whether the model ended its text by itself.
        num_tokens: tokens that it wrote.
        scores: metric -> value for this example, where the metric has one.
    """

    prompt: str
    expected: str
    written: str
    ended: bool
    num_tokens: int
    scores: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class GenerationReport:
    """Comparison of generated texts with their references.

    Attributes:
        kind: "conversations", "completions" (a prompt that is continued as it is) or "seq2seq".
        scores: metric -> value over all examples: `exact_match` and `rouge_l` from 0 to 1, `chrf` and `bleu` from 0 to 100, as
            their libraries report them.
        signatures: metric -> how it was computed; for sacrebleu its own signature.
        ended_share: share of the texts (0-1) that the model ended by itself within `max_new_tokens`; None: tokenizer and
            template have no token that ends a text.
        max_new_tokens: most tokens of a text.
        examples: each example, in the data's order.
        notes: what the reader should know.
    """

    kind: str
    scores: Mapping[str, float]
    signatures: Mapping[str, str]
    ended_share: float | None
    max_new_tokens: int
    examples: tuple[GeneratedExample, ...] = field(repr=False)
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.examples)

    def to_frame(self) -> pd.DataFrame:
        """One row an example: prompt, expected, written, ended, num_tokens and the metrics that a single text has."""
        import pandas as pd

        rows = [{**vars(one), **one.scores} for one in self.examples]
        return pd.DataFrame(rows).drop(columns="scores")

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values."""
        return {"count": len(self), **dataclasses.asdict(self)}

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write `to_dict` as JSON."""
        target = Path(path)
        write_json(target, self.to_dict())
        return target

    def rows(self) -> Mapping[str, str]:
        """The report as a table: what, and how much in words."""
        ended = (
            "not known: no token ends a text" if self.ended_share is None else f"{self.ended_share:.1%} by themselves"
        )
        rows = {"Examples": f"{len(self):,} {self.kind}"}
        for name, value in self.scores.items():
            rows[_NAMES[name]] = f"{value:.3f}" if name in ("exact_match", "rouge_l") else f"{value:.2f} of 100"
        rows["Ended"] = f"{ended}, within {self.max_new_tokens:,} tokens"
        rows["Signatures"] = "\n".join(self.signatures.values())
        return {**rows, "Notes": "\n".join(self.notes)} if self.notes else rows

    def __str__(self) -> str:
        from utils.views.tables import summary_text

        return summary_text("Generated text", self.rows())

    def show(self) -> None:
        """Show it: a table in a notebook, text elsewhere."""
        from utils.views.display import show_table

        show_table("Generated text", self.rows())
