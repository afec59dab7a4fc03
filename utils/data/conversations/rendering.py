"""Conversation -> token ids and targets, by the tokenizer's chat template.

Targets are what the assistant writes, the end of its turn included. Where the template marks that (`{% generation %}`), the
marks decide; otherwise an answer is what the rendering of the conversation up to it has more than the rendering of what came
before with the generation prompt, which is exactly what the model gets and returns at inference.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from utils.data.conversations.layouts import Conversation, Message
from utils.errors import ConfigError, DataError

TrainOn = Literal["assistant", "last", "all"]
TRAIN_ON = ("assistant", "last", "all")

_MARKS = re.compile(r"\{%-?\s*generation\s*-?%\}")


@dataclass(frozen=True)
class TokenizedConversation:
    """One conversation as the model reads it.

    Attributes:
        ids: int32 (T,).
        targets: bool (T,): positions whose token is to be predicted.
        ends: for each answer the position after its last token, ascending.
        row: number of the record.
    """

    ids: np.ndarray
    targets: np.ndarray
    ends: tuple[int, ...]
    row: int = 0

    def __len__(self) -> int:
        return len(self.ids)


@dataclass
class RenderingNotes:
    """Counters of a `Renderer`.

    Attributes:
        rewritten: conversations whose template renders earlier turns differently once others follow; each of their answers
            became a sample.
        merged: answers whose first characters are in one token with the prompt; that token is not a target.
        appended_ends: answers that ended with no special token, to which the end-of-text token was added.
        unmarked_ends: answers without any end, because the tokenizer has no end-of-text token.
        extra_prompt: answers that begin otherwise than the generation prompt does.
        end_ids: tokens that ended answers.
    """

    rewritten: int = 0
    merged: int = 0
    appended_ends: int = 0
    unmarked_ends: int = 0
    extra_prompt: int = 0
    end_ids: set[int] = field(default_factory=set)


class Renderer:
    """Renders and tokenizes conversations.

    Args:
        tokenizer: a fast transformers tokenizer with a chat template.
        train_on: "assistant": every answer is a target; "last": the last one only; "all": every token.
    Attributes:
        notes: counts of everything unusual.
    Raises:
        ConfigError: no chat template, a slow tokenizer, or another `train_on`.
    """

    def __init__(self, tokenizer: Any, train_on: TrainOn = "assistant") -> None:
        if train_on not in TRAIN_ON:
            raise ConfigError(f"got train_on={train_on!r}; must be one of {', '.join(TRAIN_ON)}.")
        if not getattr(tokenizer, "is_fast", False):
            raise ConfigError(
                f"{type(tokenizer).__name__} does not say where its tokens are in the text, so answers cannot be told from "
                "questions. Use the fast tokenizer of the same name."
            )
        if not getattr(tokenizer, "chat_template", None):
            raise ConfigError(
                "the tokenizer has no chat template; utils.data.conversations.set_chat_template gives it one."
            )
        self.tokenizer, self.train_on = tokenizer, train_on
        self.notes = RenderingNotes()
        self.has_marks = bool(_MARKS.search(tokenizer.get_chat_template()))
        self._special = frozenset(tokenizer.added_tokens_decoder) | set(tokenizer.all_special_ids)

    def __call__(self, conversation: Conversation) -> list[TokenizedConversation]:
        """The samples of a conversation: one, or one for each answer where the template rewrites earlier turns.

        Raises:
            DataError: the template refuses the conversation; gives its reason.
        """
        samples = self._answers(list(conversation.messages), conversation.row)
        return samples if self.train_on != "all" else [_with_everything(sample) for sample in samples]

    def _answers(self, messages: list[Message], row: int) -> list[TokenizedConversation]:
        """The samples with the answers as targets."""
        if self.has_marks:
            return [self._by_marks(messages, row)]
        text = self._text(messages)
        answers = [place for place, message in enumerate(messages) if message["role"] == "assistant"]
        untils = {place: self._text(messages[: place + 1]) for place in answers}
        if all(text.startswith(until) for until in untils.values()):
            spans = [self._span(messages, place, untils[place]) for place in answers]
            return [self._tokenized(text, spans[-1:] if self.train_on == "last" else spans, row)]
        self.notes.rewritten += 1
        wanted = answers[-1:] if self.train_on == "last" else answers
        return [self._tokenized(untils[place], [self._span(messages, place, untils[place])], row) for place in wanted]

    def prompt(self, messages: Sequence[Message]) -> str:
        """Render `messages` with the generation prompt, as input for the model's next answer.

        Raises:
            DataError: the template refuses the messages; gives its reason.
        """
        return self._text(messages, prompt=True)

    def text(self, messages: Sequence[Message]) -> str:
        """The rendering of `messages`, without a generation prompt. Raises `DataError` as `prompt`."""
        return self._text(messages)

    def _text(self, messages: Sequence[Message], *, prompt: bool = False) -> str:
        from jinja2 import TemplateError

        try:
            return str(self.tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=prompt))
        except (TemplateError, TypeError, KeyError, ValueError) as error:
            raise DataError(f"the chat template refuses it: {str(error)[:200] or type(error).__name__}") from error

    def _span(self, messages: list[Message], place: int, until: str) -> tuple[int, int]:
        """Character span of answer number `place` in the rendering that ends with it."""
        before = self._text(messages[:place], prompt=True) if place else self._beginning()
        start = len(os.path.commonprefix([before, until]))  # noqa: RUF071 - characters are meant
        if start < len(before):
            self.notes.extra_prompt += 1
        return start, len(until)

    def _beginning(self) -> str:
        """The rendering of nothing but a generation prompt, "" where the template needs a message."""
        try:
            return self._text([], prompt=True)
        except DataError:
            return ""

    def _by_marks(self, messages: list[Message], row: int) -> TokenizedConversation:
        self._text(messages)  # raises where the template refuses it
        found = self.tokenizer.apply_chat_template(
            messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
        )
        ids, targets = np.array(found["input_ids"], np.int32), np.array(found["assistant_masks"], bool)
        ends = [int(place) + 1 for place in np.flatnonzero(targets & ~np.append(targets[1:], False))]
        for number, end in enumerate(ends):  # marks that leave the end of the turn out
            if end < len(ids) and int(ids[end]) in self._special and int(ids[end - 1]) not in self._special:
                targets[end] = True
                ends[number] = end + 1
        if self.train_on == "last" and len(ends) > 1:
            targets[: ends[-2]] = False
            ends = ends[-1:]
        return self._ended(ids, targets, ends, row)

    def _tokenized(self, text: str, spans: list[tuple[int, int]], row: int) -> TokenizedConversation:
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        ids = np.array(encoded["input_ids"], np.int32)
        offsets = np.array(encoded["offset_mapping"], np.int64).reshape(-1, 2)
        targets, ends = np.zeros(len(ids), bool), []
        for start, end in spans:
            inside = (offsets[:, 0] >= start) & (offsets[:, 0] < end) & (offsets[:, 1] > offsets[:, 0])
            self.notes.merged += bool(((offsets[:, 0] < start) & (offsets[:, 1] > start)).any())
            if inside.any():
                targets |= inside
                ends.append(int(np.flatnonzero(inside)[-1]) + 1)
        return self._ended(ids, targets, ends, row)

    def _ended(self, ids: np.ndarray, targets: np.ndarray, ends: list[int], row: int) -> TokenizedConversation:
        """With an end-of-text token where the last answer has no end, and a first token that nothing predicts."""
        if ends and not self._has_end(ids, targets) and ends[-1] == len(ids):
            eos_id = self.tokenizer.eos_token_id
            if eos_id is None:
                self.notes.unmarked_ends += 1
            else:
                self.notes.appended_ends += 1
                self.notes.end_ids.add(int(eos_id))
                ids, targets, ends[-1] = np.append(ids, np.int32(eos_id)), np.append(targets, True), ends[-1] + 1
        targets[:1] = False
        return TokenizedConversation(ids, targets, tuple(int(end) for end in ends), row)

    def _has_end(self, ids: np.ndarray, targets: np.ndarray, within: int = 3) -> bool:
        """Whether a special token is among the last targets: white space may follow it."""
        last = ids[np.flatnonzero(targets)[-within:]]
        found = [int(token) for token in last if int(token) in self._special]
        self.notes.end_ids.update(found[-1:])
        return bool(found)


def _with_everything(sample: TokenizedConversation) -> TokenizedConversation:
    """The sample with every token as a target; the first has nothing before it to be predicted from."""
    return replace(sample, targets=np.arange(len(sample)) > 0)
