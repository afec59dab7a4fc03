"""Conversations: records with roles -> a chat template's tokens, of which the assistant's are the targets.

In: records in one of five layouts (`layouts`). Out: `PreparedData` for causal language modelling, whose labels are -100
outside of the answers. Reading order: prepare (the whole path), layouts (what was given), rendering (tokens and targets),
packing (rows), report; answers (after training).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from utils.lazy import lazy_exports

if TYPE_CHECKING:
    from utils.data.conversations.answers import Answer, AnswerStatistics, answer, answer_statistics
    from utils.data.conversations.layouts import LAYOUTS, Conversation, find_layout, read_conversations
    from utils.data.conversations.prepare import prepare_conversations
    from utils.data.conversations.rendering import Renderer, TokenizedConversation
    from utils.data.conversations.report import ConversationsReport
    from utils.data.conversations.templates import CHAT_TEMPLATES, set_chat_template

_EXPORTS = {
    "Answer": "utils.data.conversations.answers",
    "AnswerStatistics": "utils.data.conversations.answers",
    "answer": "utils.data.conversations.answers",
    "answer_statistics": "utils.data.conversations.answers",
    "LAYOUTS": "utils.data.conversations.layouts",
    "Conversation": "utils.data.conversations.layouts",
    "find_layout": "utils.data.conversations.layouts",
    "read_conversations": "utils.data.conversations.layouts",
    "prepare_conversations": "utils.data.conversations.prepare",
    "Renderer": "utils.data.conversations.rendering",
    "TokenizedConversation": "utils.data.conversations.rendering",
    "ConversationsReport": "utils.data.conversations.report",
    "CHAT_TEMPLATES": "utils.data.conversations.templates",
    "set_chat_template": "utils.data.conversations.templates",
}

__all__ = [
    "CHAT_TEMPLATES", "LAYOUTS", "Answer", "AnswerStatistics", "Conversation", "ConversationsReport", "Renderer",
    "TokenizedConversation", "answer", "answer_statistics", "find_layout", "prepare_conversations", "read_conversations",
    "set_chat_template",
]  # fmt: skip

__getattr__, __dir__ = lazy_exports(__name__, _EXPORTS)
