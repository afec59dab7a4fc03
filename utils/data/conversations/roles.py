"""Assign a role to each token of a rendered conversation, for the preview."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np

from utils.data.conversations.layouts import Conversation, Message
from utils.data.conversations.rendering import Renderer, TokenizedConversation
from utils.errors import DataError


def token_roles(renderer: Renderer, conversation: Conversation, sample: TokenizedConversation) -> tuple[str, ...]:
    """The role of each token's turn: "system", "user", "assistant" or "tool".

    A turn is what the rendering up to it has more than the rendering up to the turn before, so the markers that a template
    writes around a message belong to its turn.

    Args:
        sample: of `conversation`, as `renderer` made it; perhaps cut at its end.
    """
    messages = list(conversation.messages)
    for count in range(len(messages), 0, -1):
        text = _rendered(renderer, messages[:count])
        if text is None:
            continue
        encoded = renderer.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        ids = np.array(encoded["input_ids"], np.int32)
        shared = min(len(ids), len(sample))
        # What follows the shared part is an end-of-text token that the template does not write.
        if shared >= len(sample) - 1 and np.array_equal(ids[:shared], sample.ids[:shared]):
            starts = _starts(renderer, messages[:count], text)
            roles = [_role_at(int(start), starts) for start, _ in encoded["offset_mapping"][:shared]]
            return (*roles, *([messages[count - 1]["role"]] * (len(sample) - shared)))
    # A template that rewrites what it was given in yet another way: the answers are known all the same.
    return tuple("assistant" if target else "user" for target in sample.targets)


def _starts(renderer: Renderer, messages: Sequence[Message], text: str) -> list[tuple[int, str]]:
    """(first character, role) of each turn in `text`; a turn that cannot be told from the next one is joined to it."""
    starts: list[tuple[int, str]] = []
    place = 0
    for number, message in enumerate(messages):
        starts.append((place, str(message["role"])))
        until = _rendered(renderer, messages[: number + 1])
        if until is not None:
            place = len(os.path.commonprefix([until, text]))  # noqa: RUF071 - characters are meant
    return starts


def _role_at(character: int, starts: Sequence[tuple[int, str]]) -> str:
    return next((role for start, role in reversed(starts) if start <= character), starts[0][1])


def _rendered(renderer: Renderer, messages: Sequence[Message]) -> str | None:
    """The text of messages; None where the template refuses to end there."""
    try:
        return renderer.text(messages)
    except DataError:
        return None
