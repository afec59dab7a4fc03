"""The share of a model's answers that end by themselves, measured on validation conversations after a training."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from utils.adapters.batched_generation import write_after
from utils.data.batch import IGNORED
from utils.data.encoded import EncodedExamples
from utils.data.mixed_examples import MixedExamples
from utils.storage import write_json

#: The file in a run's folder that holds what was measured.
ANSWERS_FILE = "answers.json"

#: Most answers that are written, and most tokens of each: the cost is at most their product.
MOST_ANSWERS, MOST_TOKENS = 16, 128


@dataclass(frozen=True)
class AnswerEnds:
    """Answers that a model wrote, greedily, to validation conversations.

    Attributes:
        count: answers; ended: those that the model ended by itself within `max_new_tokens`.
        max_new_tokens: most tokens of an answer: twice the longest of the expected ones, at most `MOST_TOKENS`.
        num_tokens: tokens that were written in all; seconds: what that took.
        step: optimizer steps of the run when it was measured.
    """

    count: int
    ended: int
    max_new_tokens: int
    num_tokens: int
    seconds: float
    step: int

    @property
    def share(self) -> float:
        """Share of the answers (0-1) that ended by themselves."""
        return self.ended / self.count

    def __str__(self) -> str:
        return (
            f"{self.share:.1%} of {self.count} sampled validation answers end by themselves (greedy, at most "
            f"{self.max_new_tokens} tokens each; {self.num_tokens:,} tokens in {self.seconds:.1f} s)"
        )


def answer_ends(model: nn.Module, validation: Any, tokenizer: Any, *, seed: int, step: int = 0) -> AnswerEnds | None:
    """Let a model answer some validation conversations, and count the answers that it ends by itself.

    At most `MOST_ANSWERS` rows, drawn with `seed`; of each the last answer whose end is a target, after the same tokens as in
    training. Model, mode and random state are left as they were.

    Args:
        validation: what `prepare_conversations` or `mix` returned as validation.
    Returns:
        None: the data are no conversations, or their answers have no end token.
    """
    drawn = _drawn_rows(validation, seed)
    if drawn is None:
        return None
    rows, end_ids = drawn
    questions = [found for row in rows if (found := _question(row, end_ids)) is not None]
    if not questions:
        return None
    most = min(MOST_TOKENS, 2 * max(length for _, length, _ in questions))
    began = time.monotonic()
    ended = written = 0
    for end_id in sorted({end for _, _, end in questions}):
        prompts = [ids for ids, _, end in questions if end == end_id]
        answers = write_after(
            model, prompts, most, end_id=end_id, vocab_size=len(tokenizer), batch_size=MOST_ANSWERS,
            pad_id=tokenizer.pad_token_id,
        )  # fmt: skip
        ended += sum(one.ended for one in answers)
        written += sum(len(one.ids) + one.ended for one in answers)
    return AnswerEnds(len(questions), ended, most, written, time.monotonic() - began, step)


def stored_answer_ends(run_dir: Path) -> AnswerEnds | None:
    """What was measured after the training of a run; None where nothing was, or the file is damaged."""
    try:
        return AnswerEnds(**json.loads((run_dir / ANSWERS_FILE).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def store_answer_ends(found: AnswerEnds, run_dir: Path) -> None:
    """Keep it with the run."""
    write_json(run_dir / ANSWERS_FILE, asdict(found))


def _drawn_rows(validation: Any, seed: int) -> tuple[list[dict[str, Any]], frozenset[int]] | None:
    known: list[Any] = list(validation.parts.values()) if isinstance(validation, MixedExamples) else [validation]
    parts = [part for part in known if isinstance(part, EncodedExamples) and part.end_ids]
    if not parts:
        return None
    places = [(part, index) for part in parts for index in range(len(part))]
    count = min(MOST_ANSWERS, len(places))
    chosen = sorted(np.random.default_rng(seed).choice(len(places), size=count, replace=False).tolist())
    return [places[number][0][places[number][1]] for number in chosen], frozenset().union(
        *(part.end_ids for part in parts)
    )


def _question(row: dict[str, Any], end_ids: frozenset[int]) -> tuple[list[int], int, int] | None:
    """The tokens before the row's last answer that ends, the answer's length, and its end token, or None."""
    ids, labels = row["input_ids"].numpy(), row["labels"].numpy()
    ends = [int(place) for place in np.flatnonzero(np.isin(labels, list(end_ids))) if place > 0]
    if not ends:
        return None
    end = ends[-1]
    begin = end
    while begin > 0 and labels[begin - 1] != IGNORED and int(labels[begin - 1]) not in end_ids:
        begin -= 1
    first = 0
    if "position_ids" in row:  # of a packed row, only the conversation of the answer
        starts = np.flatnonzero(row["position_ids"].numpy()[: end + 1] == 0)
        first = int(starts[-1])
        begin = max(begin, first)
    return None if begin <= first else (ids[first:begin].tolist(), end + 1 - begin, int(labels[end]))
