"""Text that the tokenizer does not know is reported, whatever the data are; text that it knows is not."""

from __future__ import annotations

import pytest
from transformers import BertTokenizerFast

from utils.data import prepare_conversations, prepare_examples, prepare_text
from utils.data.unknown_tokens import REPORTED, unknown_share
from utils.tokenization import train_bpe

WORDS = ["the", "film", "was", "good", "bad", "very"]


def word_piece(words):
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    return BertTokenizerFast(vocab={word: number for number, word in enumerate([*special, *words])})


def texts(tokenizer):
    return prepare_text(
        ["the film was good " * 8, "the film was bad " * 8] * 8,
        vocab_size=len(tokenizer), block_size=16, tokenizer=tokenizer,
    )  # fmt: skip


def labelled(tokenizer):
    rows = [{"text": f"the film was {word}", "label": word} for word in ("good", "bad") * 8]
    return prepare_examples(rows, "text_classification", tokenizer=tokenizer, max_length=16)


def conversations(tokenizer):
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }} {% endfor %}"
    tokenizer.add_special_tokens({"eos_token": "</s>"})
    rows = [{"prompt": "the film", "completion": f"was {word}"} for word in ("good", "bad") * 8]
    return prepare_conversations(rows, tokenizer=tokenizer, max_length=16)


@pytest.mark.parametrize("prepare", [texts, labelled, conversations])
@pytest.mark.parametrize("known", [True, False])
def test_a_tokenizer_that_does_not_know_the_text_is_reported(prepare, known):
    data = prepare(word_piece(WORDS if known else ["the"]))
    reported = [note for note in data.report.notes if "are [UNK]: the tokenizer does not know this text" in note]
    assert len(reported) == (not known)


def test_the_share_leaves_out_special_tokens_and_padding():
    data = labelled(word_piece(["the", "film", "good", "bad"]))
    assert unknown_share(data.train, data.tokenizer) == pytest.approx(1 / 4)
    assert REPORTED < 1 / 4


def test_a_tokenizer_that_knows_every_text_has_no_share():
    tokenizer = train_bpe(["the film was good"] * 5, 300)
    assert unknown_share(labelled(tokenizer).train, tokenizer) in (None, 0.0)
