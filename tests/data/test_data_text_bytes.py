"""The bytes of text that tokens stand for, against the text itself."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from utils.data.text_bytes import TextBytes
from utils.errors import DataError
from utils.tokenization import build_character_tokenizer, train_bpe

TEXTS = (
    "The quick brown fox jumps over the lazy dog. Then it rests, and it dreams!",
    "Größe, naïve café: 東京 and 🦊 – done. don't stop",
    "def add(a, b):\n    return a + b  # two  spaces\n",
    "a",
)


def _metaspace(fallback: bool) -> PreTrainedTokenizerFast:
    """Like Llama's and Mistral's: pieces with a space before the text, perhaps bytes for unknown characters."""
    backend = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=fallback, fuse_unk=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    backend.decoder = decoders.Sequence(parts)
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)] if fallback else []
    texts = TEXTS[:1] if fallback else TEXTS  # with bytes, most characters of the other texts are unknown
    trainer = trainers.BpeTrainer(vocab_size=420, special_tokens=["<unk>", "<s>", "</s>", *byte_tokens])
    backend.train_from_iterator(texts, trainer)
    saved = json.loads(backend.to_str())
    saved["added_tokens"] = saved["added_tokens"][:3]  # the trainer takes the bytes for special tokens, too
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(saved)), unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )


def _unigram() -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.Unigram())
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=150, special_tokens=["<unk>", "</s>"], unk_token="<unk>")
    backend.train_from_iterator(TEXTS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", eos_token="</s>")


def _word_piece() -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    backend.train_from_iterator(TEXTS, trainers.WordPieceTrainer(vocab_size=200, special_tokens=["[UNK]", "[SEP]"]))
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]", sep_token="[SEP]")


class _Letters:
    """No tokenizer of transformers: one with `decode` only."""

    def encode(self, text: str) -> list[int]:
        return [ord(character) for character in text]

    def decode(self, ids: list[int]) -> str:
        return "".join(map(chr, ids))


TOKENIZERS = {
    "byte-level BPE": lambda: train_bpe(TEXTS, 300),
    "characters": lambda: build_character_tokenizer(TEXTS),
    "characters as bytes": lambda: build_character_tokenizer(["a b"]),
    "SentencePiece": lambda: _metaspace(fallback=False),
    "SentencePiece with bytes": lambda: _metaspace(fallback=True),
    "Unigram": _unigram,
    "WordPiece": _word_piece,
    "own class": _Letters,
}


@pytest.fixture(params=TOKENIZERS)
def tokenizer(request: pytest.FixtureRequest) -> Any:
    return TOKENIZERS[request.param]()


def ids_of(tokenizer: Any, text: str) -> list[int]:
    special = {"add_special_tokens": False} if hasattr(tokenizer, "backend_tokenizer") else {}
    return list(tokenizer.encode(text, **special))


def count(tokenizer: Any, ids: list[int], counted: list[bool] | None = None) -> int:
    chosen = np.ones(len(ids), bool) if counted is None else np.array(counted)
    return TextBytes(tokenizer).count(np.array([ids]), chosen[None])


@pytest.mark.parametrize("text", TEXTS)
def test_a_whole_text_has_the_bytes_of_its_decoded_text(tokenizer: Any, text: str) -> None:
    ids = ids_of(tokenizer, text)
    decoded = tokenizer.decode(ids)
    lossy = getattr(tokenizer, "sep_token", None) is not None  # WordPiece: lower case, without accents
    assert decoded == text or lossy
    assert count(tokenizer, ids) == len(decoded.encode())


def test_the_parts_of_a_text_add_up_to_it(tokenizer: Any) -> None:
    """Wherever a block is cut, also within a character."""
    ids = ids_of(tokenizer, TEXTS[1])
    whole = count(tokenizer, ids)
    for cut in range(len(ids) + 1):
        try:
            parts = [count(tokenizer, ids, [(i < cut) is first for i in range(len(ids))]) for first in (True, False)]
        except DataError:
            pytest.fail(f"cut at {cut}")
        assert sum(parts) == whole, cut


def test_special_tokens_have_no_bytes_and_separate_texts(tokenizer: Any) -> None:
    if not hasattr(tokenizer, "backend_tokenizer"):
        pytest.skip("has no special tokens")
    end = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.sep_token_id
    first, second = (ids_of(tokenizer, text) for text in TEXTS[:2])
    sizes = [len(tokenizer.decode(ids).encode()) for ids in (first, second)]
    assert count(tokenizer, [*first, end, *second, end]) == sum(sizes)


def test_what_is_not_scored_is_not_counted() -> None:
    tokenizer = TOKENIZERS["byte-level BPE"]()
    ids = ids_of(tokenizer, "the quick fox")
    assert count(tokenizer, [-1, *ids, -1], [True, *[True] * len(ids), True]) == len("the quick fox")


def test_unknown_tokens_have_no_known_bytes() -> None:
    tokenizer = _word_piece()
    with pytest.raises(DataError, match="UNK"):
        count(tokenizer, ids_of(tokenizer, "Ω"))


def test_an_id_that_the_tokenizer_lacks_is_named() -> None:
    with pytest.raises(DataError, match="9999"):
        count(TOKENIZERS["byte-level BPE"](), [9999])


def test_without_decode_nothing_is_known() -> None:
    with pytest.raises(DataError, match="decode"):
        TextBytes(object())
