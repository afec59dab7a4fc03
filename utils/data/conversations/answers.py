"""A model's answers: one for a conversation, and for many the shares that end by themselves and that are right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from utils.adapters.generation import generate
from utils.data.conversations.layouts import Conversation, Message
from utils.data.conversations.rendering import Renderer
from utils.errors import ConfigError


@dataclass(frozen=True)
class Answer:
    """A generated answer.

    Attributes:
        text: without the end-of-turn token.
        ended: whether the model ended its turn by itself.
    """

    text: str
    ended: bool


@dataclass(frozen=True)
class AnswerStatistics:
    """Answers to the last question of several conversations, compared with the data's.

    Attributes:
        count: how many.
        ended_share: share that ended by themselves.
        exact_share: share that equals the data's answer, white space at the two ends aside.
        answers: each of them, in order.
    """

    count: int
    ended_share: float
    exact_share: float
    answers: tuple[Answer, ...]

    def __str__(self) -> str:
        ended = f"{self.ended_share:.1%} end by themselves"
        return f"{self.count:,} answers: {ended}, {self.exact_share:.1%} equal the expected answer"


def end_of_turn_id(tokenizer: Any) -> int | None:
    """The token with which the chat template ends an answer, else the end-of-text token, or None."""
    probe = Conversation(({"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}))
    renderer = Renderer(tokenizer)
    renderer(probe)
    return next(iter(renderer.notes.end_ids), tokenizer.eos_token_id)


def answer(
    model: nn.Module,
    tokenizer: Any,
    messages: Sequence[Message],
    max_new_tokens: int = 256,
    temperature: float = 0.0,
    seed: int | None = None,
) -> Answer:
    """The model's next turn in a conversation.

    Args:
        model: a causal language model that was trained with `tokenizer` and its chat template.
        messages: {"role", "content"} each, ending with the turn to be answered.
        max_new_tokens, temperature, seed: as for `generate`; temperature 0 always takes the likeliest token.
    Raises:
        ConfigError: no messages, or the tokenizer has no chat template.
        DataError: the chat template refuses the messages.
    """
    return _answer(model, tokenizer, messages, max_new_tokens, temperature, seed, end_of_turn_id(tokenizer))


def answer_statistics(
    model: nn.Module, tokenizer: Any, conversations: Sequence[Conversation], max_new_tokens: int = 256
) -> AnswerStatistics:
    """Have the model give the last answer of each conversation again, greedily, and compare.

    Args:
        conversations: as `read_conversations` gives them; each ends with the expected answer.
        max_new_tokens: an answer that is longer has not ended by itself.
    """
    if not conversations:
        raise ConfigError("answer_statistics: got no conversations; give at least one.")
    end_id = end_of_turn_id(tokenizer)
    answers = [_answer(model, tokenizer, one.messages[:-1], max_new_tokens, 0.0, None, end_id) for one in conversations]
    equal = [
        given.text.strip() == one.messages[-1]["content"].strip()
        for given, one in zip(answers, conversations, strict=True)
    ]
    count = len(answers)
    return AnswerStatistics(count, sum(one.ended for one in answers) / count, sum(equal) / count, tuple(answers))


def _answer(
    model: nn.Module, tokenizer: Any, messages: Sequence[Message], max_new_tokens: int, temperature: float,
    seed: int | None, end_id: int | None,
) -> Answer:  # fmt: skip
    if not messages:
        raise ConfigError("answer: got no messages; give at least one turn of the user.")
    text = Renderer(tokenizer).prompt(messages)
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    output = generate(
        model,
        torch.tensor([ids]),
        max_new_tokens,
        temperature,
        eos_token_id=end_id,
        seed=seed,
        vocab_size=len(tokenizer),
    )
    new_ids = output[0, len(ids) :].tolist()
    ended = end_id in new_ids
    new_ids = new_ids[: new_ids.index(end_id)] if ended else new_ids
    return Answer(str(tokenizer.decode(new_ids, skip_special_tokens=True)).strip(), ended)
