"""Encode texts, pairs of texts, and words with tags as rows of token ids, special tokens included."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from utils.data.batch import IGNORED
from utils.errors import ConfigError, DataError, DataTypeError

#: Column -> one list of ids for each example.
Rows = dict[str, list[list[int]]]


@dataclass(frozen=True)
class Encoded:
    """Rows of ids.

    Attributes:
        rows: `input_ids`, `token_type_ids` where the tokenizer gives them, and `labels` where there is one for each token or
            a target text: each a list with one list of ids for each example.
        lost_tokens: for each example, the tokens that were cut off.
    """

    rows: Rows
    lost_tokens: list[int]


def encode_texts(
    tokenizer: Any, texts: Sequence[str], pairs: Sequence[str] | None = None, max_length: int | None = None
) -> Encoded:
    """One row for each text, or for each text and its pair.

    A text is taken as text: "[SEP]" in it is five characters. What is too long is cut as the tokenizer cuts (of a pair, the
    longer one first), so its closing special token stays.

    Args:
        max_length: most tokens of a row, special ones included; None: no limit.
    Raises:
        ConfigError: `max_length` leaves no room for the text.
    """
    _check_room(tokenizer, max_length, pair=pairs is not None)

    def encode(chosen: Sequence[int], **options: Any) -> Any:
        first = [texts[i] for i in chosen]
        second = None if pairs is None else [pairs[i] for i in chosen]
        return tokenizer(first, second, **options)

    rows, lost = _cut(encode, len(texts), max_length)
    return Encoded(_inputs(rows), lost)


def encode_pairs_of_sequences(
    tokenizer: Any, texts: Sequence[str], targets: Sequence[str], max_length: int | None, max_target_length: int | None
) -> Encoded:
    """Inputs and, as `labels`, targets of a sequence-to-sequence model; each is cut to its own length.

    Every target ends with the tokenizer's end-of-text token, which is added where the tokenizer does not: without it a model
    never learns where a text ends.
    """
    inputs = encode_texts(tokenizer, texts, None, max_length)
    _check_room(tokenizer, max_target_length, pair=False)

    def encode(chosen: Sequence[int], **options: Any) -> Any:
        return tokenizer(text_target=[targets[i] for i in chosen], **options)

    rows, lost = _cut(encode, len(targets), max_target_length)
    labels, cut = with_ends(rows["input_ids"], tokenizer.eos_token_id, max_target_length)
    both = [sum(counts) for counts in zip(inputs.lost_tokens, lost, cut, strict=True)]
    return Encoded({**inputs.rows, "labels": labels}, both)


def with_ends(
    rows: Sequence[list[int]], eos_id: int | None, max_length: int | None = None
) -> tuple[list[list[int]], list[int]]:
    """Rows that end with `eos_id`, and how many tokens each lost to make room for it.

    A row that has it already stays as it is; after it there may be one more special token, such as mBART's language code.

    Args:
        eos_id: None: the tokenizer has no such token, and nothing is added.
        max_length: most tokens of a row, its end included.
    """
    closed: list[list[int]] = []
    lost: list[int] = []
    for row in rows:
        # Not the first token: GPT-2 has one id for the beginning and the end.
        has_end = eos_id is None or eos_id in row[max(1, len(row) - 2) :]
        too_long = 0 if has_end or max_length is None else max(0, len(row) + 1 - max_length)
        closed.append(row if has_end or eos_id is None else [*row[: len(row) - too_long], eos_id])
        lost.append(too_long)
    return closed, lost


def with_end_of_text(encoded: Encoded, eos_id: int | None, max_length: int | None) -> Encoded:
    """The same inputs, each ended by `eos_id`; other columns of a row are lengthened by their last value."""
    rows, lost = with_ends(encoded.rows["input_ids"], eos_id, max_length)
    others = {
        name: [[*value, *value[-1:]][: len(row)] for value, row in zip(values, rows, strict=True)]
        for name, values in encoded.rows.items()
        if name != "input_ids"
    }
    both = [first + second for first, second in zip(encoded.lost_tokens, lost, strict=True)]
    return Encoded({"input_ids": rows, **others}, both)


def adds_end(tokenizer: Any, *, target: bool = False) -> bool:
    """Whether a tokenizer ends texts with its end-of-text token, or with its separator where it has no such token."""
    given = {"text_target": "a"} if target else {"text": "a"}
    row = list(tokenizer(**given)["input_ids"])
    end = tokenizer.eos_token_id
    end = getattr(tokenizer, "sep_token_id", None) if end is None else end
    return end is not None and end in row[max(1, len(row) - 2) :]


def encode_words(
    tokenizer: Any,
    words: Sequence[Sequence[str]],
    labels: Sequence[Sequence[int]] | None,
    max_length: int | None = None,
) -> Encoded:
    """Rows for texts that are words already; `labels` has the label of a word at its first token, and -100 elsewhere.

    Raises:
        DataTypeError: the tokenizer cannot say which word a token is from.
        DataError: a row has another number of labels than of words.
        ConfigError: `max_length` leaves no room for the words.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise DataTypeError(
            f"labels of words need a tokenizer that knows which word a token is from; {type(tokenizer).__name__} is not one of "
            "these. AutoTokenizer.from_pretrained(...) loads one where there is one."
        )
    for row, tags in zip(words, labels or (), strict=False):
        if len(row) != len(tags):
            raise DataError(f"a text has {len(row)} words and {len(tags)} labels; give one label for each word.")
    _check_room(tokenizer, max_length, pair=False)
    spaced = _spaces_belong_to_words(tokenizer)
    texts = [[f" {word}" if spaced and i else word for i, word in enumerate(row)] for row in words]

    def encode(chosen: Sequence[int], **options: Any) -> Any:
        found = tokenizer([texts[i] for i in chosen], is_split_into_words=True, **options)
        if labels is not None:
            found["labels"] = [first_pieces(found.word_ids(k), labels[i]) for k, i in enumerate(chosen)]
        return found

    rows, lost = _cut(encode, len(texts), max_length)
    return Encoded({**_inputs(rows), **({"labels": rows["labels"]} if labels is not None else {})}, lost)


def first_pieces(word_ids: Sequence[int | None], labels: Sequence[int]) -> list[int]:
    """The label of each word at its first token, -100 at its other tokens and at special ones.

    Raises:
        DataError: there is a word without a label.
    """
    if max((word for word in word_ids if word is not None), default=-1) >= len(labels):
        raise DataError(f"a text has more words than its {len(labels)} labels; give one label for each word.")
    return [
        IGNORED if word is None or (i > 0 and word_ids[i - 1] == word) else labels[word]
        for i, word in enumerate(word_ids)
    ]


def _cut(encode: Any, count: int, max_length: int | None) -> tuple[Rows, list[int]]:
    """Encode all examples with `encode`, and those that are too long once more within `max_length`."""
    options: dict[str, Any] = {
        "padding": False, "return_attention_mask": False, "split_special_tokens": True, "verbose": False,
    }  # fmt: skip
    if count == 0:
        return {"input_ids": [], "labels": []}, []
    rows: Rows = {name: list(values) for name, values in encode(range(count), truncation=False, **options).items()}
    lengths = [len(ids) for ids in rows["input_ids"]]
    long = [i for i, length in enumerate(lengths) if max_length is not None and length > max_length]
    if long:
        shorter = encode(long, truncation=True, max_length=max_length, **options)
        for name, values in shorter.items():
            for i, value in zip(long, values, strict=True):
                rows[name][i] = value
    return rows, [length - len(ids) for length, ids in zip(lengths, rows["input_ids"], strict=True)]


def _inputs(rows: Rows) -> Rows:
    return {name: rows[name] for name in ("input_ids", "token_type_ids") if name in rows}


def _check_room(tokenizer: Any, max_length: int | None, *, pair: bool) -> None:
    special = int(tokenizer.num_special_tokens_to_add(pair=pair))
    needed = special + (2 if pair else 1)
    if max_length is not None and max_length < needed:
        raise ConfigError(
            f"got max_length={max_length}; at least {needed} tokens are needed, of which {special} are special ones."
        )


def _spaces_belong_to_words(tokenizer: Any) -> bool:
    """Whether words within a text must be given with the space before them to be the tokens that they are in a text.

    So it is with byte-level BPE; WordPiece and SentencePiece deal with it themselves.
    """
    in_text = tokenizer.tokenize("is it")
    alone, spaced = (
        tokenizer(["is", second], is_split_into_words=True, add_special_tokens=False)["input_ids"]
        for second in ("it", " it")
    )
    ids = tokenizer.convert_tokens_to_ids(in_text)
    return bool(ids != alone and ids == spaced)
