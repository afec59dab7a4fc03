"""Generation with a key/value cache gives the tokens that it gives without one, and says no to a cache it cannot trust."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from utils.adapters import generate, generate_text
from utils.errors import ConfigError, ModelError
from utils.tokenization.character import build_character_tokenizer

VOCABULARY, POSITIONS = 40, 48
ROTARY = {
    "vocab_size": VOCABULARY, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": POSITIONS, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0,
}  # fmt: skip


def gpt2():
    return GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, n_positions=POSITIONS, n_embd=16, n_layer=2, n_head=2))


def llama():
    return LlamaForCausalLM(LlamaConfig(**ROTARY))


def mistral():
    return MistralForCausalLM(MistralConfig(**ROTARY, sliding_window=6))


def opt():
    return OPTForCausalLM(
        OPTConfig(
            vocab_size=VOCABULARY, hidden_size=16, ffn_dim=32, num_hidden_layers=2, num_attention_heads=2,
            max_position_embeddings=POSITIONS, word_embed_proj_dim=16,
        )
    )  # fmt: skip


def t5():
    return T5ForConditionalGeneration(
        T5Config(
            vocab_size=VOCABULARY, d_model=16, d_ff=32, d_kv=8, num_layers=2, num_heads=2, decoder_start_token_id=0,
            pad_token_id=0, eos_token_id=1,
        )
    )  # fmt: skip


def bart():
    return BartForConditionalGeneration(
        BartConfig(
            vocab_size=VOCABULARY, d_model=16, encoder_layers=2, decoder_layers=2, encoder_attention_heads=2,
            decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32, max_position_embeddings=POSITIONS,
        )
    )  # fmt: skip


DECODERS = [gpt2, llama, mistral, opt]
ENCODER_DECODERS = [t5, bart]


def peaked(build):
    """A model with logits far from ties: those of a tiny model with its usual random weights are all near zero."""
    torch.manual_seed(0)
    model = build().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(12 if build is t5 else 8)
    return model


class Recorder:
    """How many positions each forward pass of a module computed."""

    def __init__(self, module, name="input_ids"):
        self.lengths = []
        module.register_forward_pre_hook(lambda _, args, named: self._record(args, named, name), with_kwargs=True)

    def _record(self, args, named, name):
        given = named.get(name)
        self.lengths.append((args[0] if given is None else given).shape[1])


@pytest.fixture(params=DECODERS, ids=lambda build: build.__name__)
def decoder(request):
    return peaked(request.param)


@pytest.fixture(params=ENCODER_DECODERS, ids=lambda build: build.__name__)
def encoder_decoder(request):
    return peaked(request.param)


@pytest.mark.parametrize(
    "how",
    [{"temperature": 0}, {"temperature": 1.5, "seed": 3}, {"top_p": 0.9, "seed": 4}],
    ids=["greedy", "seed", "top_p"],
)
def test_the_tokens_are_those_without_a_cache(decoder, how):
    """Beyond the number of positions as well, where the window slides."""
    prompt = torch.tensor([[1, 2, 3], [4, 5, 6]])
    cached, uncached = (generate(decoder, prompt, POSITIONS + 8, **how, use_cache=use) for use in (None, False))
    assert cached.shape == (2, 3 + POSITIONS + 8)
    assert torch.equal(cached, uncached)
    assert len(set(cached.flatten().tolist())) > 3, "the model repeats itself, which shows nothing"


def test_each_token_costs_one_position(decoder):
    recorder = Recorder(decoder)
    generate(decoder, torch.tensor([[1, 2, 3]]), 8, temperature=0)
    # The prompt; the first cached step and the full pass that it is compared with; then one position each.
    assert recorder.lengths == [3, 1, 4, 1, 1, 1, 1, 1, 1]


def test_a_full_context_slides_without_a_cache():
    model = peaked(gpt2)
    recorder = Recorder(model)
    generate(model, torch.tensor([[1, 2, 3]]), 6, temperature=0, max_context=5)
    assert recorder.lengths == [3, 1, 4, 1, 5, 5, 5]


@pytest.mark.parametrize("use_cache", [None, False], ids=["cached", "uncached"])
def test_padding_on_the_left_changes_nothing(decoder, use_cache):
    short, long = torch.tensor([[7, 8]]), torch.tensor([[1, 2, 3, 4, 5]])
    batch = torch.cat([torch.cat([torch.zeros(1, 3, dtype=torch.long), short], dim=1), long])
    mask = torch.tensor([[0, 0, 0, 1, 1], [1, 1, 1, 1, 1]])
    got = generate(decoder, batch, 12, temperature=0, attention_mask=mask, use_cache=use_cache)
    assert got[0, 3:].tolist() == generate(decoder, short, 12, temperature=0)[0].tolist()
    assert got[1].tolist() == generate(decoder, long, 12, temperature=0)[0].tolist()


def test_an_encoder_decoder_agrees_with_transformers_and_runs_its_encoder_once(encoder_decoder):
    source = torch.tensor([[5, 6, 7, 8, 1], [9, 10, 1, 0, 0]])
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    expected = encoder_decoder.generate(
        source, attention_mask=mask, max_new_tokens=10, do_sample=False, num_beams=1, eos_token_id=None,
        forced_eos_token_id=None, min_new_tokens=10,
    )  # fmt: skip
    recorder = Recorder(encoder_decoder.get_encoder())
    for use_cache in (None, False):
        recorder.lengths.clear()
        got = generate(encoder_decoder, source, 10, temperature=0, attention_mask=mask, use_cache=use_cache)
        assert got.tolist() == expected[:, :11].tolist()
        assert recorder.lengths == [5]


def test_an_encoder_decoder_computes_one_position_a_token(encoder_decoder):
    recorder = Recorder(encoder_decoder.get_decoder())
    generate(encoder_decoder, torch.tensor([[5, 6, 7]]), 6, temperature=0)
    assert recorder.lengths == [1, 1, 2, 1, 1, 1, 1]


def test_text_of_an_encoder_decoder_is_what_it_writes():
    tokenizer = build_character_tokenizer(["abcdefgh ijklmnopq\n"], vocab_size=VOCABULARY)
    text = generate_text(peaked(t5), tokenizer, "abc", max_new_tokens=8, temperature=0)
    assert text
    assert not text.startswith("abc")


class Cached(nn.Module):
    """A plain causal model: each position's logits depend on the sum of all embeddings so far, which it keeps as a cache.

    `fault`: what its cached path does wrong.
    """

    def __init__(self, fault=None, as_tuple=True):
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(VOCABULARY, 16)
        self.head = nn.Linear(16, VOCABULARY)
        self.fault, self.as_tuple = fault, as_tuple

    def forward(self, tokens, past_key_values=None, use_cache=False):
        if use_cache and self.fault == "raises":
            raise NotImplementedError("not yet")
        hidden = self.embedding(tokens).cumsum(1)
        if past_key_values is not None and self.fault != "forgets":
            hidden = hidden + past_key_values[0]
        logits = self.head(hidden)
        if not use_cache or self.fault == "none":
            return (logits,) if self.as_tuple else {"logits": logits}
        past = (hidden[:, -1:],)
        return (logits, past) if self.as_tuple else {"logits": logits, "past_key_values": past}


@pytest.mark.parametrize("as_tuple", [True, False], ids=["tuple", "dict"])
def test_a_plain_module_with_a_cache_is_run_with_it(as_tuple):
    model = Cached(as_tuple=as_tuple)
    recorder = Recorder(model)
    cached = generate(model, torch.tensor([[1, 2, 3]]), 6, temperature=0)
    assert recorder.lengths == [3, 1, 4, 1, 1, 1, 1]
    assert torch.equal(cached, generate(model, torch.tensor([[1, 2, 3]]), 6, temperature=0, use_cache=False))


@pytest.mark.parametrize("fault", ["raises", "forgets", "none"])
def test_a_cache_that_fails_is_not_used(fault):
    model = Cached(fault)
    expected = generate(Cached(), torch.tensor([[1, 2, 3]]), 12, temperature=0, use_cache=False)
    recorder = Recorder(model)
    assert torch.equal(generate(model, torch.tensor([[1, 2, 3]]), 12, temperature=0), expected)
    assert recorder.lengths[-8:] == [7, 8, 9, 10, 11, 12, 13, 14]


# peft asks transformers for it by its old name.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_a_wrapper_passes_the_cache_on():
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(peaked(gpt2), peft.LoraConfig(target_modules=["c_attn"], fan_in_fan_out=True))
    recorder = Recorder(model)
    prompt = torch.tensor([[1, 2, 3]])
    assert torch.equal(
        generate(model, prompt, 6, temperature=0), generate(model, prompt, 6, temperature=0, use_cache=False)
    )
    assert recorder.lengths[:7] == [3, 1, 4, 1, 1, 1, 1]


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (torch.ones(1, 2), "shape"),
        ([[1, 1, 1]], "got list"),
        (torch.zeros(1, 3), "padding only"),
        (torch.tensor([[1, 1, 0]]), "padded on the left"),
    ],
)
def test_a_mask_that_does_not_fit_is_named(mask, message):
    with pytest.raises(ConfigError, match=message):
        generate(gpt2(), torch.tensor([[1, 2, 3]]), 2, attention_mask=mask)


def test_padded_prompts_of_a_model_without_a_mask_are_refused():
    with pytest.raises(ModelError, match="takes no attention_mask"):
        generate(Cached(), torch.tensor([[0, 2, 3]]), 2, attention_mask=torch.tensor([[0, 1, 1]]))


def test_an_encoder_decoder_without_a_start_token_is_named():
    model = t5()
    for holder in (model.config, model.generation_config):
        holder.decoder_start_token_id = holder.bos_token_id = None
    with pytest.raises(ConfigError, match="decoder_start_token_id"):
        generate(model, torch.tensor([[5, 6]]), 2)
