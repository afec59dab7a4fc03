"""Choose the input and label columns of a table for a task, by the names that are common for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from utils.data.read.rows import excerpt, listed
from utils.errors import ConfigError, DataError
from utils.schema import nearest

_TEXTS = ("text", "sentence", "document", "content", "review", "comment", "message", "body", "question", "tweet")
_PAIRS = (
    ("sentence1", "sentence2"), ("premise", "hypothesis"), ("question1", "question2"), ("text1", "text2"),
    ("text", "text_pair"), ("question", "sentence"), ("query", "passage"), ("query", "document"),
)  # fmt: skip
_TARGETS = (
    ("source", "target"), ("question", "answer"), ("input", "output"), ("document", "summary"), ("article", "highlights"),
    ("article", "summary"), ("text", "summary"), ("dialogue", "summary"), ("prompt", "completion"), ("src", "tgt"),
    ("text", "target"),
)  # fmt: skip
#: Names, in lower case, that columns of texts and of target texts commonly have.
TEXT_NAMES = frozenset({*_TEXTS, *(name for pair in (*_PAIRS, *_TARGETS) for name in pair)})
_LABELS = ("label", "labels", "target", "class", "category", "sentiment", "intent")
_NUMBERS = (*_LABELS, "score", "rating", "value", "y")
_WORDS = ("tokens", "words")
_TAGS = ("tags", "ner_tags", "pos_tags", "chunk_tags", "upos", "labels", "label")
# Columns that only number the rows.
_NUMBERING = ("id", "idx", "index", "guid", "unnamed: 0")

# Task type -> what its texts and its labels are called in messages and as arguments.
_ARGUMENTS = {
    "seq2seq": ("text_column", "target_column"), "token_classification": ("text_column", "label_column"),
}  # fmt: skip


@dataclass(frozen=True)
class Columns:
    """The columns that a task uses.

    Attributes:
        text: the text, or the words.
        pair: the second text of a pair.
        label: the label, the tags, or the target text, or None.
        unused: all others.
    """

    text: str
    pair: str | None = None
    label: str | None = None
    unused: tuple[str, ...] = ()

    def __str__(self) -> str:
        texts = f'text from "{self.text}"' + (f' and "{self.pair}"' if self.pair else "")
        label = f', label from "{self.label}"' if self.label else ""
        return f"{texts}{label}" + (f"; not used: {listed(self.unused)}" if self.unused else "")


def find_columns(
    task_type: str, example: Mapping[str, Any], *, text: str | None = None, pair: str | None = None,
    label: str | None = None, labelled: bool | None = True,
) -> Columns:  # fmt: skip
    """The columns of a task.

    Args:
        example: a value of each column.
        text, pair, label: columns that are given by name. `label` is the target's for seq2seq.
        labelled: whether a label is needed; None: it is taken where there is one.
    Raises:
        ConfigError: there is no column of a given name.
        DataError: it is not clear which columns are meant; lists them and says which argument decides.
    """
    for name in (text, pair, label):
        if name is not None and name not in example:
            guess = nearest(name, example)
            hint = f"; did you mean {excerpt(guess)}?" if guess else "."
            raise ConfigError(f"there is no column {excerpt(name)}; the columns are {_listed(example)}{hint}")
    if task_type == "seq2seq" and text is None and label is None:
        text, label = _both(_TARGETS, example, task_type) or (None, None)
    elif task_type in ("text_classification", "regression") and text is None and pair is None:
        text, pair = _both(_PAIRS, example, task_type, but=label) or (None, None)
    if text is None:
        text = _text(task_type, example, [name for name in (pair, label) if name])
    if label is None and labelled is not False:
        label = _label(task_type, example, [name for name in (text, pair) if name], labelled)
    return Columns(text, pair, label, tuple(name for name in example if name not in (text, pair, label)))


def _both(
    known: Sequence[tuple[str, str]], example: Mapping[str, Any], task_type: str, but: str | None = None
) -> tuple[str, str] | None:
    """The columns of the one pair of `known` names that is there."""
    names = {name.casefold(): name for name in example if name != but}
    found = [(names[first], names[second]) for first, second in known if first in names and second in names]
    if len(found) > 1:
        _unclear(task_type, example, 0, f"{' or '.join(' with '.join(pair) for pair in found)}")
    return found[0] if found else None


def _text(task_type: str, example: Mapping[str, Any], taken: list[str]) -> str:
    words = task_type == "token_classification"
    known = [name for name in _named(_WORDS if words else _TEXTS, example) if name not in taken]
    kind: tuple[type, ...] = (list, tuple) if words else (str,)
    labels = [] if words else _named(_LABELS, example)
    others = [name for name in example if name not in (*taken, *labels) and isinstance(example[name], kind)]
    found = known or others
    if len(found) != 1:
        _unclear(task_type, example, 0, listed(found, joiner=" or ") or "none of them")
    return found[0]


def _label(task_type: str, example: Mapping[str, Any], taken: list[str], labelled: bool | None) -> str | None:
    by_task = {"token_classification": _TAGS, "regression": _NUMBERS, "seq2seq": tuple(name for _, name in _TARGETS)}
    known = [name for name in _named(by_task.get(task_type, _LABELS), example) if name not in taken]
    others = [name for name in example if name not in taken and name.casefold() not in _NUMBERING]
    found = known or (others if labelled else [])
    if len(found) > 1 or (labelled and not found):
        _unclear(task_type, example, 1, listed(found, joiner=" or ") or "none of them")
    return found[0] if found else None


def _named(known: Sequence[str], example: Mapping[str, Any]) -> list[str]:
    return [name for name in example if name.casefold() in known]


def _unclear(task_type: str, example: Mapping[str, Any], which: int, candidates: str) -> NoReturn:
    argument = _ARGUMENTS.get(task_type, ("text_column", "label_column"))[which]
    what = (
        "the words" if task_type == "token_classification" else "the text",
        "the target" if task_type == "seq2seq" else "the labels",
    )
    raise DataError(
        f"which column holds {what[which]}? The columns are {_listed(example)}; it could be {candidates}. "
        f'Say it: {argument}="...".'
    )


def _listed(example: Mapping[str, Any]) -> str:
    return listed(example)
