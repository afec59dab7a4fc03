"""Truncation of prompts, so that prompt and answer fit into one row."""

from __future__ import annotations

from utils.data.conversations.layouts import Conversation
from utils.data.conversations.rendering import Renderer

# Cutting changes how the text is divided into tokens, by a token or two.
_TRIES = 4


def with_shorter_prompt(renderer: Renderer, conversation: Conversation, max_length: int) -> Conversation | None:
    """Truncate the prompt of a conversation at its end, so that the conversation has at most `max_length` tokens.

    Returns:
        the shorter conversation; None if it fits already, has turns other than one prompt and its answer, or would fit only
        without its prompt.

    Args:
        renderer: its notes count every try.
    Raises:
        DataError: the template refuses the conversation.
    """
    messages = list(conversation.messages)
    prompts = [place for place, message in enumerate(messages) if message["role"] == "user"]
    if len(prompts) != 1 or conversation.num_answers != 1 or not isinstance(messages[prompts[0]]["content"], str):
        return None
    place, shorter = prompts[0], conversation
    for tried in range(_TRIES):
        excess = max(map(len, renderer(shorter))) - max_length
        if excess <= 0:
            return shorter if tried else None
        text = shorter.messages[place]["content"]
        encoded = renderer.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        kept = len(encoded["input_ids"]) - excess
        if kept < 1:
            return None
        messages[place] = {**messages[place], "content": text[: encoded["offset_mapping"][kept - 1][1]].rstrip()}
        shorter = Conversation(tuple(messages), conversation.row)
    return None
