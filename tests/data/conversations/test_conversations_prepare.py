"""prepare_conversations: packing that keeps conversations apart, truncation that keeps ends, and a model that learns to answer."""

from __future__ import annotations

import itertools
import json
import logging
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from utils.adapters.forward import ModelCall
from utils.data import prepare_conversations, prepare_data, preview_batch
from utils.data.conversations import answer, answer_statistics, read_conversations
from utils.data.conversations.packing import keeps_segments_apart, pack_rows, rows_of, truncate
from utils.data.conversations.rendering import TokenizedConversation
from utils.errors import ConfigError, DataError
from utils.training import Trainer, TrainingConfig, open_playground
from utils.ui.setup_config import SetupConfig

SMALL = {"vocab_size": 400, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64,
         "max_position_embeddings": 128}  # fmt: skip
GROUPED = {**SMALL, "num_key_value_heads": 2}
MODELS = {
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=400, n_embd=32, n_layer=2, n_head=2, n_positions=128)),
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**GROUPED)),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**GROUPED)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**GROUPED)),
    "gemma2": lambda: Gemma2ForCausalLM(Gemma2Config(**GROUPED, head_dim=16)),
    "neox": lambda: GPTNeoXForCausalLM(GPTNeoXConfig(**SMALL)),
    "opt": lambda: OPTForCausalLM(
        OPTConfig(vocab_size=400, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, ffn_dim=64,
                  max_position_embeddings=128, word_embed_proj_dim=32)
    ),
    "bloom": lambda: BloomForCausalLM(BloomConfig(vocab_size=400, hidden_size=32, n_layer=2, n_head=2)),
}  # fmt: skip
# Attention that follows the positions alone.
APART = {"gpt2", "llama", "mistral", "qwen2", "gemma2", "neox"}


class Plain(nn.Module):
    """A model that takes ids and nothing else."""

    def __init__(self):
        super().__init__()
        self.embedding, self.head = nn.Embedding(400, 8), nn.Linear(8, 400)

    def forward(self, input_ids):
        return self.head(self.embedding(input_ids))


def records(count=40):
    return [
        {"messages": [
            {"role": "user", "content": f"What is {a} plus 1?"}, {"role": "assistant", "content": f"{a + 1}."},
            {"role": "user", "content": "Sure?"}, {"role": "assistant", "content": "Yes."},
        ][: 2 + 2 * (a % 2)]}
        for a in range(count)
    ]  # fmt: skip


def sample(length, answers, row=0):
    """A conversation of `length` tokens whose answers are the spans `answers`."""
    targets = np.zeros(length, bool)
    for start, end in answers:
        targets[start:end] = True
    return TokenizedConversation(
        np.arange(1, length + 1, dtype=np.int32), targets, tuple(end for _, end in answers), row
    )


# ---- packing ----


@pytest.mark.parametrize("name", MODELS)
def test_which_models_keep_conversations_of_a_row_apart(name):
    torch.manual_seed(0)
    assert keeps_segments_apart(MODELS[name]()) == (name in APART)


@pytest.mark.parametrize("name", sorted(APART))
def test_a_packed_conversation_gets_the_logits_it_gets_alone(name):
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    prepared = prepare_conversations(records(), model=model, max_length=128, val_split=0)
    data, start_id = prepared.train, prepared.tokenizer.convert_tokens_to_ids("<|im_start|>")
    everything = data.take(range(len(data)))
    begins = (everything["position_ids"] == 0) & (everything["input_ids"] == start_id)
    assert begins.sum() == len(records())
    call = ModelCall(model)
    batch = data.take([0, 1])
    assert "attention_mask" not in batch
    with torch.no_grad():
        packed = call(batch)
        for row in range(2):
            starts = [*np.flatnonzero(batch["position_ids"][row] == 0), 128]
            assert len(starts) > 2
            for start, end in itertools.pairwise(starts):
                alone = call({"input_ids": batch["input_ids"][row : row + 1, start:end]})
                torch.testing.assert_close(packed[row : row + 1, start:end], alone, rtol=1e-4, atol=1e-4)


def test_models_that_would_mix_conversations_get_one_a_row():
    data = prepare_conversations(records(), model=Plain(), max_length=64, val_split=0)
    assert not data.report.packed
    assert "Plain would let them see each other" in "\n".join(data.report.notes)
    assert len(data.train) == 40
    assert "position_ids" not in data.train.take([0])
    with pytest.raises(ConfigError, match="lets the conversations of a block see each other"):
        prepare_conversations(records(), model=Plain(), max_length=64, val_split=0, pack=True)


def test_every_token_and_target_is_in_exactly_one_row():
    conversations = [sample(length, [(length - 2, length)]) for length in (3, 9, 4, 10, 6, 5, 3)]
    rows = pack_rows(conversations, 10, pad_id=0)
    assert (rows["input_ids"] != 0).sum() == 40
    assert (rows["labels"] != -100).sum() == 14
    assert len(rows["input_ids"]) == 5
    # No target is the first token of a conversation: it would be predicted from another one.
    assert (rows["labels"][rows["position_ids"] == 0] == -100).all()


def test_best_fit_fills_rows_and_keeps_within_them():
    lengths = list(np.random.default_rng(0).integers(1, 60, 500))
    groups = rows_of(lengths, 64)
    assert sorted(number for group in groups for number in group) == list(range(500))
    filled = [sum(lengths[number] for number in group) for group in groups]
    assert max(filled) <= 64
    assert sum(lengths) / (64 * len(groups)) > 0.95


# ---- truncation ----


def test_a_conversation_is_cut_after_the_last_answer_that_fits():
    found = truncate([sample(20, [(3, 6), (10, 14), (18, 20)])], 15)
    (kept,) = found.kept
    assert len(kept) == 14
    assert kept.targets[-1]
    assert (found.shortened, found.dropped, found.lost_tokens) == (1, 0, 6)


def test_an_answer_that_does_not_fit_is_left_out_whole():
    found = truncate([sample(20, [(3, 20)]), sample(5, [(3, 5)])], 15)
    assert [len(one) for one in found.kept] == [5]
    assert (found.shortened, found.dropped, found.lost_tokens) == (0, 1, 20)


def test_nothing_that_fits_is_an_error_that_says_how_long_it_is():
    with pytest.raises(DataError, match="no answer of the training conversations fits max_length=8"):
        prepare_conversations(records(), model=Plain(), max_length=8, val_split=0)


def test_a_template_without_targets_is_refused():
    data = prepare_conversations(records(), model=Plain(), max_length=64)
    data.tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role == 'bot' %}{% generation %}{{ m.content }}{% endgeneration %}"
        "{% else %}{{ m.content }}{% endif %}{% endfor %}"
    )
    with pytest.raises(DataError, match="0 % supervised"):
        prepare_conversations(records(), data.tokenizer, max_length=64)


# ---- the whole path ----


def test_equal_conversations_are_on_one_side_of_the_split():
    data = prepare_conversations(records(10) * 4, model=Plain(), max_length=64, val_split=0.3)
    rows = [{tuple(part[n]["input_ids"].tolist()) for n in range(len(part))} for part in (data.train, data.validation)]
    assert not rows[0] & rows[1]


def test_the_preview_shows_which_tokens_count():
    data = prepare_conversations(records(), model=Plain(), max_length=64, val_split=0)
    (view,) = preview_batch(data, 1)
    assert [token.label for token in view.tokens if token.label is not None] == ["1", ".", "<|im_end|>"]


@pytest.mark.parametrize("suffix", ["jsonl", "json"])
def test_the_notebooks_data_step_takes_a_file_of_conversations(tmp_path, suffix):
    path = tmp_path / f"chat.{suffix}"
    lines = [json.dumps(record) for record in records()]
    path.write_text("\n".join(lines) if suffix == "jsonl" else f"[{','.join(lines)}]")
    setup = SetupConfig(dataset_source="local", dataset_path=str(path), max_length=64, val_split=0.2)
    data = prepare_data(setup, MODELS["llama"]())
    assert data.report.layout == "messages"
    assert data.report.num_train + data.report.num_validation == 40
    assert data.report.ended_share == 1.0
    assert "conversations" in str(data.report)


def test_generation_stops_at_the_templates_end_of_turn():
    model = MODELS["llama"]()
    data = prepare_conversations(records(), model=model, max_length=64)
    end_id = data.tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert data.tokenizer.eos_token_id == end_id
    known = model.generation_config.eos_token_id
    assert end_id in (known if isinstance(known, list) else [known])


@pytest.mark.slow
def test_a_small_llama_learns_to_answer_and_to_stop_and_its_export_answers_the_same(tmp_path, caplog):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from utils.training.export import export_model

    torch.manual_seed(0)
    capitals = {
        "France": "Paris",
        "Italy": "Rome",
        "Spain": "Madrid",
        "Japan": "Tokyo",
        "Peru": "Lima",
        "Cuba": "Havana",
    }
    rows = [{"question": f"Capital of {country}?", "answer": city} for country, city in capitals.items()]
    model = LlamaForCausalLM(LlamaConfig(**{**GROUPED, "hidden_size": 64, "intermediate_size": 128}))
    data = prepare_conversations(rows * 4, model=model, max_length=128, val_split=0)
    config = TrainingConfig(epochs=60, batch_size=4, learning_rate=1e-2, output_dir=str(tmp_path), precision="32")
    with caplog.at_level(logging.WARNING):
        results = Trainer(model, training_config=config, task_spec=data.task_spec, tokenizer=data.tokenizer).train(
            data.train
        )
    found = answer_statistics(model, data.tokenizer, read_conversations(rows).conversations, max_new_tokens=16)
    assert found.ended_share == 1.0
    assert found.exact_share == 1.0, found.answers
    assert results.final_loss < 0.1

    folder = export_model(results, formats=["hf"])["hf"].path
    loaded, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    question = [{"role": "user", "content": "Capital of Peru?"}]
    prompt = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    written = loaded.generate(**prompt, max_new_tokens=16, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert tokenizer.decode(written, skip_special_tokens=True).strip() == "Lima"
    assert answer(model, data.tokenizer, question).text == "Lima"


@pytest.mark.parametrize("answers", [1, 2])
def test_the_playground_knows_how_many_answers_the_training_conversations_have(answers):
    turns = [{"role": role, "content": f"{role} speaks"} for role in ("user", "assistant")]
    records = [{"messages": turns}, *[{"messages": turns * answers}] * 9]
    model = MODELS["gpt2"]()
    data = prepare_conversations(records, model=model, val_split=0)
    source = SimpleNamespace(model=model, tokenizer=data.tokenizer, task_spec=data.task_spec, best_model_path=None)
    assert open_playground(source).most_answers == answers
    assert any("has one answer" in note for note in data.report.notes) == (answers == 1)
