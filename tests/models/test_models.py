"""Models by name; the reference model is small, repeatable and quiet; a model's sizes are found whoever wrote it."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from utils.errors import ConfigError
from utils.models import ModelRegistry, max_seq_len_of, vocab_size_of
from utils.tokenization import build_character_tokenizer

TINY = {"vocab_size": 50, "max_seq_len": 16, "n_layer": 1, "n_embd": 16, "n_head": 2}


@pytest.fixture(autouse=True)
def registry_as_before(monkeypatch):
    ModelRegistry.list_available()
    monkeypatch.setattr(ModelRegistry, "_factories", dict(ModelRegistry._factories))


class Plain(nn.Module):
    """Ids to logits, with nothing but an embedding to say its size."""

    def __init__(self, vocab=30, width=8):
        super().__init__()
        self.head = nn.Linear(width, vocab)
        self.tokens = nn.Embedding(vocab, width)

    def forward(self, ids):
        return self.head(self.tokens(ids))


# The registry


def test_a_registered_class_is_found_in_any_case():
    assert ModelRegistry.register("MyNet", Plain) is Plain
    assert ModelRegistry.get("mynet") is Plain
    assert "mynet" in ModelRegistry.list_available()
    assert ModelRegistry.create("MYNET", vocab=12).tokens.num_embeddings == 12


def test_as_a_decorator_it_leaves_the_class_as_it_is():
    @ModelRegistry.register("tiny")
    class Tiny(Plain):
        pass

    assert isinstance(Tiny(), Plain)
    assert type(ModelRegistry.create("tiny")) is Tiny


def test_a_cell_that_registers_can_be_run_twice():
    ModelRegistry.register("mynet", Plain)
    ModelRegistry.register("mynet", nn.Identity)
    assert ModelRegistry.get("mynet") is nn.Identity


def test_an_unknown_name_lists_what_there_is():
    with pytest.raises(
        ConfigError, match=r"Model 'gpt-smal' not found\. Available: \[.*'gpt-small'.*\]\. Did you mean 'gpt-small'"
    ) as error:
        ModelRegistry.create("gpt-smal")
    assert isinstance(error.value, ValueError)


def test_a_wrong_argument_names_the_nearest():
    with pytest.raises(ConfigError, match="'vocabsize'.*It takes vocab_size, .*Did you mean vocab_size"):
        ModelRegistry.create("gpt-small", vocabsize=3)


def test_an_error_inside_a_users_model_is_the_users_to_see():
    def broken():
        raise TypeError("inside")

    ModelRegistry.register("broken", broken)
    with pytest.raises(TypeError, match="^inside$"):
        ModelRegistry.create("broken")


@pytest.mark.parametrize(("name", "factory"), [("", Plain), (3, Plain), ("net", 3)])
def test_what_is_no_name_or_no_model_is_refused(name, factory):
    with pytest.raises(ConfigError):
        ModelRegistry.register(name, factory)


# gpt-small


def test_gpt_small_is_a_gpt2_of_the_asked_size():
    model = ModelRegistry.create("gpt-small", **TINY)
    assert isinstance(model, GPT2LMHeadModel)
    assert model(torch.zeros(2, 16, dtype=torch.long)).logits.shape == (2, 16, 50)
    default = ModelRegistry.create("gpt-small")
    assert (vocab_size_of(default), max_seq_len_of(default)) == (4096, 128)
    assert 2e6 < sum(p.numel() for p in default.parameters()) < 8e6


def test_the_same_call_gives_the_same_weights_and_leaves_the_callers_random_state_alone():
    torch.manual_seed(1)
    first = ModelRegistry.create("gpt-small", **TINY)
    drawn = torch.rand(3)
    second = ModelRegistry.create("gpt-small", **TINY)
    torch.manual_seed(1)
    assert torch.equal(drawn, torch.rand(3))
    other = ModelRegistry.create("gpt-small", **TINY, seed=7)
    states = [model.state_dict() for model in (first, second, other)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not torch.equal(states[0]["transformer.wte.weight"], states[2]["transformer.wte.weight"])


def test_its_special_ids_are_those_of_our_tokenizers():
    tokenizer = build_character_tokenizer(["abc"])
    config = ModelRegistry.create("gpt-small", **TINY).config
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (
        tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id,
    )  # fmt: skip
    unknown = ModelRegistry.create("gpt-small", **{**TINY, "vocab_size": 3}, pad_token_id=None).config
    assert (unknown.bos_token_id, unknown.eos_token_id, unknown.pad_token_id) == (2, None, None)


def test_dropout_is_on_activations_and_not_on_attention_weights():
    config = ModelRegistry.create("gpt-small", **TINY, dropout=0.3).config
    assert (config.embd_pdrop, config.resid_pdrop, config.attn_pdrop) == (0.3, 0.3, 0.0)


def test_its_loss_and_its_saving_say_nothing(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    model = ModelRegistry.create("gpt-small", **TINY)
    ids = torch.arange(4, 20)[None]  # none of the special ids: a padding id without a mask is warned of, once a process
    assert model(ids, labels=ids).loss.item() == pytest.approx(torch.log(torch.tensor(50.0)).item(), abs=0.3)
    model.eval().save_pretrained(tmp_path)
    assert not caplog.records
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(loaded.eval()(ids).logits, model(ids).logits)
    assert AutoConfig.from_pretrained(tmp_path).eos_token_id == 3


def test_every_impossible_size_is_named():
    with pytest.raises(ConfigError) as error:
        ModelRegistry.create("gpt-small", vocab_size=0, n_layer=1.5, dropout=1)
    assert {problem.field for problem in error.value.problems} == {"vocab_size", "n_layer", "dropout"}
    with pytest.raises(ConfigError, match="n_embd .*n_head=3; the width must be a multiple"):
        ModelRegistry.create("gpt-small", n_embd=16, n_head=3)


# What a model says about its sizes


def test_sizes_of_a_transformers_model_come_from_its_config():
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=40,
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=64,
        )
    )
    assert (vocab_size_of(model), max_seq_len_of(model)) == (40, 64)


def test_sizes_of_a_plain_module_come_from_its_embedding():
    assert vocab_size_of(Plain(vocab=33)) == 33
    assert max_seq_len_of(Plain()) is None
    assert vocab_size_of(nn.Sequential(nn.Embedding(21, 4), nn.Linear(4, 9))) == 21


def test_an_input_embedding_that_the_model_names_comes_first():
    class Named(Plain):
        def __init__(self):
            super().__init__(vocab=2)
            self.words = nn.Embedding(77, 8)

        def get_input_embeddings(self):
            return self.words

    class Refusing(Plain):
        def get_input_embeddings(self):
            raise NotImplementedError

    assert vocab_size_of(Named()) == 77
    assert vocab_size_of(Refusing(vocab=5)) == 5


def test_unknown_sizes_are_none():
    for model in (nn.Linear(3, 3), None, "model"):
        assert (vocab_size_of(model), max_seq_len_of(model)) == (None, None)
