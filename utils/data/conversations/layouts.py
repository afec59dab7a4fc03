"""Records of chat datasets -> conversations: lists of messages with roles, whatever the columns are called.

Layouts: "messages" (`messages`: role and content), "sharegpt" (`conversations`: from and value), "instruction" (`instruction`,
`input`, `output`), "prompt_completion" (`prompt`, `completion`), "question_answer" (`question`, `answer`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from utils.data.labelled.table import Table, as_table, is_missing
from utils.data.read.rows import excerpt, listed
from utils.errors import ConfigError, DataError
from utils.schema import nearest, shown

Message = dict[str, Any]

# Names of a message's author in datasets -> the role that chat templates know.
_ROLES = {
    "system": "system", "developer": "system",
    "user": "user", "human": "user", "prompter": "user",
    "assistant": "assistant", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant", "model": "assistant",
    "tool": "tool", "function": "tool", "observation": "tool",
}  # fmt: skip

_MESSAGE_COLUMNS = ("messages", "conversations", "conversation", "dialogue", "dialog", "chat")
_ROLE_KEYS, _CONTENT_KEYS = ("role", "from", "author", "speaker"), ("content", "value", "text")
_ANSWERS = {
    "instruction": (("instruction",), ("output", "response")),
    "prompt_completion": (("prompt",), ("completion", "response")),
    "question_answer": (("question",), ("answer", "answers", "response")),
}
_CONTEXTS = ("input", "context")
# Rows that are tried, and rows that an error message names.
_LISTED_ROWS = 3


@dataclass(frozen=True)
class Conversation:
    """One conversation.

    Attributes:
        messages: {"role", "content"} each, with "system", "user", "assistant" or "tool" as the role, ending with an
            assistant's turn; other keys of the data (tool calls, say) are kept for the chat template.
        row: number of the record, from 0.
    """

    messages: tuple[Message, ...]
    row: int = 0

    @property
    def num_answers(self) -> int:
        """Turns of the assistant."""
        return sum(message["role"] == "assistant" for message in self.messages)


@dataclass(frozen=True)
class Layout:
    """Layout of a conversation in the records of a table.

    Attributes:
        name: one of `LAYOUTS`.
        columns: the columns that are read, in order: that of the messages, or prompt and answer (and context, if any).
    """

    name: str
    columns: tuple[str, ...]

    def __str__(self) -> str:
        return self.name if self.columns == (self.name,) else f"{self.name} ({', '.join(self.columns)})"


@dataclass
class ReadConversations:
    """The conversations of a table.

    Attributes:
        conversations: in the order of the rows.
        layout: how they were read.
        num_rows: rows of the table.
        skipped: reason -> rows that were left out for it.
        trimmed: conversations that ended with unanswered turns, which were removed: nothing in them is predicted.
    """

    conversations: list[Conversation]
    layout: Layout
    num_rows: int
    skipped: dict[str, int] = field(default_factory=dict)
    trimmed: int = 0


def find_layout(records: Any, layout: str | None = None) -> Layout | None:
    """The layout of `records`; None where they hold no conversations.

    Args:
        records: a Table, or what `prepare_conversations` takes.
        layout: the wanted one, one of `LAYOUTS`; None: the only one that fits.
    Raises:
        ConfigError: no such layout.
        DataError: several layouts fit, or the wanted one does not; names them.
    """
    if layout is not None and layout not in LAYOUTS:
        guess = nearest(str(layout), LAYOUTS)
        hint = f" Did you mean {guess!r}?" if guess else ""
        raise ConfigError(f"got layout={shown(layout)}; must be one of {', '.join(LAYOUTS)}.{hint}")
    table = records if isinstance(records, Table) else as_table(records, "causal_lm")
    fitting = fitting_layouts(table)
    if layout is not None:
        wanted = next((found for found in fitting if found.name == layout), None)
        if wanted is None:
            raise DataError(
                f"the records are not in the layout {layout!r}; their columns are {listed(table.names)}. "
                f"{_expected(layout)}"
            )
        return wanted
    if len(fitting) > 1:
        raise DataError(
            f"the records can be read as {' or '.join(map(str, fitting))}; say which: "
            f"{' or '.join(f'layout={found.name!r}' for found in fitting)}."
        )
    return fitting[0] if fitting else None


def fitting_layouts(records: Any) -> list[Layout]:
    """Every layout in which `records`, as for `find_layout`, can be read; empty where they hold no conversations."""
    table = records if isinstance(records, Table) else as_table(records, "causal_lm")
    example = table.example()
    return [found for name in LAYOUTS if (found := _FINDERS[name](example)) is not None]


def read_conversations(
    records: Any, layout: str | None = None, on_bad_row: Literal["error", "skip"] = "error"
) -> ReadConversations:
    """The conversations of `records`.

    Args:
        records: a Hugging Face Dataset, a DataFrame, a list of dicts, or a dict of columns.
        layout: one of `LAYOUTS`; None: found by the columns.
        on_bad_row: what to do with rows without an answer, with an unknown role, or with content that is no text: "error"
            names the first of them, "skip" counts them.
    Raises:
        DataError: the layout is not clear, rows cannot be used, or no conversation is left.
    """
    if on_bad_row not in ("error", "skip"):
        raise ConfigError(f'got on_bad_row={shown(on_bad_row)}; must be "error" or "skip".')
    table = as_table(records, "causal_lm")
    found = find_layout(table, layout)
    if found is None:
        expected = " ".join(map(_expected, LAYOUTS))
        raise DataError(f"the records hold no conversations; their columns are {listed(table.names)}. {expected}")
    read = ReadConversations([], found, table.num_rows)
    problems: list[str] = []
    for row, values in enumerate(_rows(table, found)):
        try:
            messages, trimmed = _answered(_READERS[found.name](values))
        except _RowError as error:
            reason = str(error)
            read.skipped[reason] = read.skipped.get(reason, 0) + 1
            if len(problems) < _LISTED_ROWS:
                problems.append(f"row {row}: {reason}")
        else:
            read.trimmed += trimmed
            read.conversations.append(Conversation(messages, row))
    count = sum(read.skipped.values())
    if problems and on_bad_row == "error":
        more = f" (and {count - len(problems):,} more)" if count > len(problems) else ""
        raise DataError(
            f"{count:,} of {table.num_rows:,} rows cannot be used: {'; '.join(problems)}{more}. Repair them, or leave "
            'them out with on_bad_row="skip" (of read_conversations and prepare_conversations).'
        )
    if not read.conversations:
        raise DataError(f"none of the {table.num_rows:,} rows can be used: {'; '.join(problems)}.")
    return read


class _RowError(Exception):
    """Reason why a row is not a conversation."""


def _rows(table: Table, layout: Layout, at_once: int = 1000) -> Iterator[tuple[Any, ...]]:
    for start in range(0, table.num_rows, at_once):
        numbers = range(start, min(start + at_once, table.num_rows))
        yield from zip(*(table.read(name, numbers) for name in layout.columns), strict=True)


def _expected(layout: str) -> str:
    columns = {
        "messages": "`messages`, a list of {role, content}",
        "sharegpt": "`conversations`, a list of {from, value}",
        "instruction": "`instruction`, `output` and perhaps `input`",
        "prompt_completion": "`prompt` and `completion`",
        "question_answer": "`question` and `answer`",
    }
    return f"{layout} is {columns[layout]}."


# ---- which layout ----


def _is_message(value: Any) -> bool:
    return isinstance(value, Mapping) and _key(value, _ROLE_KEYS) is not None and _key(value, _CONTENT_KEYS) is not None


def _key(message: Mapping[str, Any], names: Sequence[str]) -> str | None:
    return next((name for name in names if name in message), None)


def _parsed(value: Any) -> Any:
    """A cell of a table of texts (CSV) that holds a JSON list, as that list."""
    if not isinstance(value, str) or not value.lstrip().startswith("["):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value


def _is_messages(value: Any) -> bool:
    value = _parsed(value)
    entries = [] if isinstance(value, (str, Mapping)) or not hasattr(value, "__len__") else list(value)
    return bool(entries) and all(map(_is_message, entries))


def _of_messages(example: Mapping[str, Any], from_value: bool) -> Layout | None:
    for name in _MESSAGE_COLUMNS:
        value = example.get(name)
        if _is_messages(value) and ("from" in next(iter(_parsed(value)))) == from_value:
            return Layout("sharegpt" if from_value else "messages", (name,))
    return None


def _of_answers(name: str, example: Mapping[str, Any]) -> Layout | None:
    prompts, answers = _ANSWERS[name]
    prompt, answer = _key(example, prompts), _key(example, answers)
    if prompt is None or answer is None:
        return None
    context = _key(example, _CONTEXTS) if name == "instruction" else None
    return Layout(name, (prompt, answer, *([context] if context else [])))


_FINDERS: dict[str, Callable[[Mapping[str, Any]], Layout | None]] = {
    "messages": lambda example: _of_messages(example, from_value=False),
    "sharegpt": lambda example: _of_messages(example, from_value=True),
    "instruction": lambda example: _of_answers("instruction", example),
    "prompt_completion": lambda example: _of_answers("prompt_completion", example),
    "question_answer": lambda example: _of_answers("question_answer", example),
}

#: Names of the layouts that are recognised.
LAYOUTS = tuple(_FINDERS)


# ---- reading a row ----


def _messages_of(values: tuple[Any, ...]) -> list[Message]:
    return _message_list(values[0])


def _message_list(value: Any) -> list[Message]:
    value = _parsed(value)
    if is_missing(value) or isinstance(value, (str, Mapping)) or not hasattr(value, "__iter__"):
        raise _RowError("no list of messages")
    return [_message(entry) for entry in value]


def _message(entry: Any) -> Message:
    if not _is_message(entry):
        raise _RowError("a message without role and content")
    role_key, content_key = _key(entry, _ROLE_KEYS), _key(entry, _CONTENT_KEYS)
    assert role_key is not None
    assert content_key is not None
    role = _ROLES.get(str(entry[role_key]).strip().lower())
    if role is None:
        raise _RowError(f"the unknown role {excerpt(str(entry[role_key]))}")
    # Tables have every key in every message, with null where a message has none.
    more = {
        key: value for key, value in entry.items() if key not in (role_key, content_key, "role") and value is not None
    }
    return {"role": role, "content": _content(entry[content_key], bool(more)), **more}


def _content(value: Any, may_be_missing: bool = False) -> str:
    """The text of a message, of a list of parts the text of all of them."""
    if isinstance(value, str):
        return value
    if is_missing(value) and may_be_missing:  # a tool call, say
        return ""
    if not isinstance(value, Mapping) and not is_missing(value) and hasattr(value, "__iter__"):
        parts = [part.get("text") if isinstance(part, Mapping) else part for part in value]
        texts = [part for part in parts if isinstance(part, str)]
        if texts and len(texts) == len(parts):
            return "".join(texts)
    raise _RowError("content that is no text")


def _one_exchange(values: tuple[Any, ...]) -> list[Message]:
    prompt, answer, *context = values
    if _is_messages(prompt):  # a prompt of messages goes with a completion of messages
        answers = (
            _message_list(answer) if _is_messages(answer) else [{"role": "assistant", "content": _content(answer)}]
        )
        return [*_message_list(prompt), *answers]
    question = _content(prompt)
    if context and isinstance(context[0], str) and context[0].strip():
        question = f"{question}\n\n{context[0]}"
    if not question.strip():
        raise _RowError("an empty prompt")
    return [{"role": "user", "content": question}, {"role": "assistant", "content": _answer(answer)}]


def _answer(value: Any) -> str:
    """The answer; of SQuAD's {"text": [...]} and of a list the first."""
    if isinstance(value, Mapping):
        value = value.get("text")
    if not isinstance(value, str) and not is_missing(value) and hasattr(value, "__getitem__") and len(value):
        value = value[0]
    return _content(value)


_READERS: dict[str, Callable[[tuple[Any, ...]], list[Message]]] = {
    "messages": _messages_of, "sharegpt": _messages_of, "instruction": _one_exchange,
    "prompt_completion": _one_exchange, "question_answer": _one_exchange,
}  # fmt: skip


def _answered(messages: list[Message]) -> tuple[tuple[Message, ...], bool]:
    """The messages up to the last answer, and whether there were more."""
    for message in messages:
        more = message.keys() - {"role", "content"}
        if message["role"] == "assistant" and not message["content"].strip() and not more:
            raise _RowError("an empty answer")
    last = max((place for place, message in enumerate(messages) if message["role"] == "assistant"), default=None)
    if last is None:
        raise _RowError("no turn of the assistant")
    return tuple(messages[: last + 1]), last + 1 < len(messages)
