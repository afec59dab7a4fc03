"""`val/bits_per_byte`: the validation loss in a unit that does not depend on the tokenizer."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn
from transformers import T5Config, T5ForConditionalGeneration

from tests.kit.toys import golden_config, tiny_gpt
from utils.data import prepare_conversations, prepare_examples
from utils.data.text_bytes import TextBytes
from utils.tokenization import build_character_tokenizer, train_bpe
from utils.training import Callback, TaskSpec, Trainer

TEXTS = ["the quick brown fox jumps over the lazy dog. " * 3, "größe und naïve cafés – 東京! " * 3]
NATS_PER_BYTE = math.log(1000)
TOKENIZERS = {
    "characters": lambda: build_character_tokenizer(TEXTS, vocab_size=60),
    "bytes": lambda: train_bpe(TEXTS, 260),
    "byte-level BPE": lambda: train_bpe(TEXTS, 300),
}


class EvenBytes(nn.Module):
    """Gives every byte the same probability, 1/1000, whichever tokens it is divided into; the first token has the rest."""

    def __init__(self, sizes: list[int]) -> None:
        super().__init__()
        logits = torch.tensor([-size * NATS_PER_BYTE if size else -torch.inf for size in sizes], dtype=torch.float64)
        logits[0] = math.log1p(-float(logits.exp().sum()))
        self.register_buffer("logits", logits)
        self.unused = nn.Parameter(torch.zeros((), dtype=torch.float64))

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.logits.expand(*input_ids.shape, -1) + 0 * self.unused


def train(model, data, val, tokenizer, spec=None, **changes):
    config = golden_config(epochs=1, precision="32", early_stopping_patience=None, **changes)
    return Trainer(model, None, config, spec, tokenizer=tokenizer).train(data, val)


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_a_model_that_rates_bytes_alike_has_the_same_bits_with_every_tokenizer(kind):
    tokenizer = TOKENIZERS[kind]()
    rows = [torch.tensor([tokenizer.eos_token_id, *tokenizer.encode(text, add_special_tokens=False)]) for text in TEXTS]
    table = TextBytes(tokenizer)
    sizes = [
        table.count(np.array([[token]]), np.array([[True]])) if token > 3 else 0 for token in range(len(tokenizer))
    ]
    results = train(EvenBytes(sizes), rows, rows, tokenizer)
    assert results.bits_per_byte == pytest.approx(math.log2(1000), rel=1e-6)
    assert results.final_metrics["val/bits_per_byte"] == results.bits_per_byte
    assert results.history[-1]["val/bits_per_byte"] == results.bits_per_byte
    assert f"{results.bits_per_byte:.3f} bits per byte" in results.summary()["validation loss"]


def in_answers(data, tokenizer):
    """Targets and their bytes, answer by answer."""
    targets = [[int(token) for token in row["labels"][1:] if token != -100] for row in data]
    return sum(map(len, targets)), sum(len(tokenizer.decode(ids, skip_special_tokens=True).encode()) for ids in targets)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_of_conversations_only_the_answers_count(smoothing):
    records = [{"question": f"What comes after {n}?", "answer": f"Größe {n + 1}."} for n in range(20)]
    model = tiny_gpt(vocab_size=300, length=64)
    data = prepare_conversations(records, model=model, max_length=64)
    results = train(model, data.train, data.validation, data.tokenizer, data.task_spec, label_smoothing=smoothing)
    targets, num_bytes = in_answers(data.validation, data.tokenizer)
    nats = math.log(results.final_perplexity) * targets
    assert results.bits_per_byte == pytest.approx(nats / math.log(2) / num_bytes, rel=1e-6)


def test_of_pairs_of_texts_the_targets_count():
    records = [{"source": f"say {n}", "target": f"é{n} {n + 1}"} for n in range(20)]
    spec = TaskSpec.seq2seq(vocab_size=120, max_seq_len=16)
    data = prepare_examples(records, spec)
    config = T5Config(
        vocab_size=120, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, decoder_start_token_id=0, pad_token_id=0
    )
    results = train(T5ForConditionalGeneration(config), data.train, data.validation, data.tokenizer, data.task_spec)
    targets = [[int(token) for token in row["labels"] if token != -100] for row in data.validation]
    num_bytes = sum(len(data.tokenizer.decode(ids, skip_special_tokens=True).encode()) for ids in targets)
    nats = results.val_loss_history[-1] * sum(map(len, targets))
    assert results.bits_per_byte == pytest.approx(nats / math.log(2) / num_bytes, rel=1e-6)


def test_unknown_characters_have_no_bytes_and_the_notices_say_so():
    tokenizer = build_character_tokenizer(["abc"], vocab_size=7)
    rows = [torch.tensor(tokenizer.encode(text, add_special_tokens=False)) for text in ("abcabc", "abΩcba")]
    results = train(tiny_gpt(vocab_size=7), rows, rows, tokenizer)
    assert results.bits_per_byte is None
    assert "val/bits_per_byte" not in results.history[-1]
    assert len([notice for notice in results.notices if "<unk>" in notice and "bits_per_byte" in notice]) == 1


def test_without_a_tokenizer_there_are_no_bytes_to_speak_of():
    rows = [torch.arange(8) for _ in range(4)]
    results = train(tiny_gpt(), rows, rows, None)
    assert results.bits_per_byte is None
    assert not any("bits_per_byte" in notice for notice in results.notices)


class StopAfter(Callback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, step, trainer, logs=None):
        if step == self.step:
            trainer.request_stop()


def test_a_run_that_is_continued_reports_the_same():
    tokenizer = TOKENIZERS["byte-level BPE"]()
    rows = [torch.tensor(tokenizer.encode(text, add_special_tokens=False)[:16]) for text in TEXTS]

    def run(name, *callbacks):
        config = golden_config(epochs=3, run_name=name)
        trainer = Trainer(tiny_gpt(vocab_size=300), None, config, tokenizer=tokenizer, callbacks=callbacks)
        return trainer.train(rows, rows, resume_from="auto")

    whole = run("whole")
    run("parts", StopAfter(1))
    found = run("parts")
    values = [[row["val/bits_per_byte"] for row in one.evaluate_rows] for one in (whole, found)]
    assert values[0] == values[1]
    assert len(values[0]) == 3
