"""A GGUF file holds the model and its tokenizer, as another reader understands them; what it cannot hold is refused by name."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess

import pytest
import torch
from tokenizers import pre_tokenizers
from transformers import (
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from tests.kit.toys import plain_lm
from utils.errors import ExportError
from utils.tokenization import build_character_tokenizer, train_bpe
from utils.training import export_model

gguf = pytest.importorskip("gguf")

SPARE = 4  # embeddings that no token has
TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"


@pytest.fixture(scope="module")
def tokenizer():
    learned = train_bpe(["the quick brown fox jumps over the lazy dog 123 hello's world\n"] * 5, 280)
    learned.chat_template = TEMPLATE
    return learned


def rotary(vocab_size, **changes):
    return {
        "vocab_size": vocab_size, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": 16, **changes,
    }  # fmt: skip


BUILDERS = {
    "gpt2": lambda rows: GPT2LMHeadModel(GPT2Config(vocab_size=rows, n_positions=16, n_embd=32, n_layer=2, n_head=2)),
    "llama": lambda rows: LlamaForCausalLM(LlamaConfig(**rotary(rows, tie_word_embeddings=False))),
    "tied llama": lambda rows: LlamaForCausalLM(LlamaConfig(**rotary(rows, tie_word_embeddings=True))),
    "mistral": lambda rows: MistralForCausalLM(MistralConfig(**rotary(rows), sliding_window=None)),
    "qwen2": lambda rows: Qwen2ForCausalLM(Qwen2Config(**rotary(rows))),
}


def built(name, tokenizer):
    """Weights and biases that matter: those of new models are nearly or exactly zero."""
    torch.manual_seed(0)
    model = BUILDERS[name](len(tokenizer) + SPARE).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(5).add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize(
    ("name", "dtype"), [*((name, "gguf") for name in BUILDERS), ("llama", "gguf-f32"), ("gpt2", "gguf-q8_0")]
)
def test_another_reader_gets_the_model(name, dtype, tokenizer, tmp_path):
    result = export_model(built(name, tokenizer), [dtype], output_dir=tmp_path, tokenizer=tokenizer)[dtype]
    assert result.format == dtype
    assert result.parity["greedy_tokens_equal"] == 64
    bound = {"gguf-f32": 1e-5, "gguf": 1e-2, "gguf-q8_0": 0.2}[dtype]
    assert result.parity["max_abs_diff"] <= bound * max(1.0, result.parity["max_abs_logit"])
    reader = gguf.GGUFReader(result.path / "model.gguf")
    assert len(reader.tensors) == result.parity["tensors"]
    kinds = {tensor.tensor_type.name for tensor in reader.tensors if tensor.name.endswith("ffn_down.weight")}
    assert kinds == {{"gguf-f32": "F32", "gguf": "F16", "gguf-q8_0": "Q8_0"}[dtype]}
    assert ("output.weight" in {tensor.name for tensor in reader.tensors}) == (name not in ("gpt2", "tied llama"))


@pytest.fixture(scope="module")
def exported(tokenizer, tmp_path_factory):
    """Qwen2, whose tokenizer transformers reads from GGUF as it is."""
    model = built("qwen2", tokenizer)
    return export_model(model, ["gguf"], output_dir=tmp_path_factory.mktemp("qwen"), tokenizer=tokenizer)["gguf"]


def test_the_tokenizer_is_in_the_file(exported, tokenizer):
    fields = gguf.GGUFReader(exported.path / "model.gguf").fields
    tokens = fields["tokenizer.ggml.tokens"].contents()
    assert tokens[: len(tokenizer)] == tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    assert len(tokens) == len(tokenizer) + SPARE
    kinds = fields["tokenizer.ggml.token_type"].contents()
    assert kinds[tokenizer.eos_token_id] == gguf.TokenType.CONTROL
    assert kinds[-SPARE:] == [gguf.TokenType.UNUSED] * SPARE
    assert fields["tokenizer.ggml.eos_token_id"].contents() == tokenizer.eos_token_id
    assert fields["tokenizer.ggml.pre"].contents() == "gpt-2"
    assert fields["tokenizer.chat_template"].contents() == TEMPLATE
    read = AutoTokenizer.from_pretrained(exported.path, gguf_file="model.gguf")
    for text in ("hello world's fox 1234  x\n\ny", "ünï çode"):
        assert read(text)["input_ids"] == tokenizer(text)["input_ids"]


def test_the_modelfile_names_the_file_and_where_text_stops(exported, tokenizer):
    lines = (exported.path / "Modelfile").read_text().splitlines()
    assert lines == ["FROM ./model.gguf", "PARAMETER num_ctx 16", f'PARAMETER stop "{tokenizer.eos_token}"']


def test_without_a_tokenizer_the_file_says_so(tokenizer, tmp_path):
    result = export_model(built("gpt2", tokenizer), ["gguf"], output_dir=tmp_path)["gguf"]
    assert "no tokenizer" in result.notes[0]
    fields = gguf.GGUFReader(result.path / "model.gguf").fields
    assert fields["tokenizer.ggml.model"].contents() == "none"


def character_level(_):
    return build_character_tokenizer(["abcdefgh ijklmnop\n"], vocab_size=40)


def spaced(_):
    changed = train_bpe(["a b c"] * 3, 262)
    changed.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    return changed


def split_on_spaces(_):
    changed = train_bpe(["a b c"] * 3, 262)
    changed.backend_tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return changed


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (character_level, r"GGUF cannot hold the tokenizer \w+: its BPE is not byte-level"),
        (spaced, "add_prefix_space"),
        (split_on_spaces, r"its pre-tokenizer \(Whitespace\) has no name in GGUF"),
    ],
)
def test_a_tokenizer_that_gguf_cannot_hold_is_refused_by_name(change, message, tokenizer, tmp_path):
    with pytest.raises(ExportError, match=message):
        export_model(built("gpt2", tokenizer), ["gguf"], output_dir=tmp_path, tokenizer=change(tokenizer))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: plain_lm(), "PlainLM has no layout in GGUF"),
        (
            lambda: LlamaForCausalLM(
                LlamaConfig(**rotary(40), rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0})
            ),
            r"scales its rotary positions \(RoPE scaling 'linear'\)",
        ),
        (lambda: MistralForCausalLM(MistralConfig(**rotary(40), sliding_window=4)), r"uses sliding-window attention \(sliding_window=4\)"),
        (lambda: LlamaForCausalLM(LlamaConfig(**rotary(40), hidden_act="gelu")), "activation is gelu"),
        (
            lambda: GPT2LMHeadModel(
                GPT2Config(vocab_size=40, n_embd=8, n_layer=1, n_head=1, scale_attn_by_inverse_layer_idx=True)
            ),
            "scales attention",
        ),
    ],
)
def test_what_readers_would_compute_otherwise_is_refused(model, message, tmp_path):
    with pytest.raises(ExportError, match=message):
        export_model(model(), ["gguf"], output_dir=tmp_path)


def test_weights_beyond_float16_are_refused(tokenizer, tmp_path):
    model = built("gpt2", tokenizer)
    with torch.no_grad():
        model.transformer.wte.weight[0, 0] = 1e6
    with pytest.raises(ExportError, match="wte.weight differs"):
        export_model(model, ["gguf"], output_dir=tmp_path)


@pytest.mark.slow
def test_llama_cpp_writes_the_models_greedy_text(tokenizer, tmp_path):
    """With llama-cpp-python, or the llama-cli program."""
    if importlib.util.find_spec("llama_cpp") is None and shutil.which("llama-cli") is None:
        pytest.skip("neither the package llama-cpp-python nor the program llama-cli is installed")
    from utils.adapters import generate_text

    model = built("llama", tokenizer)
    file = export_model(model, ["gguf-f32"], output_dir=tmp_path, tokenizer=tokenizer)["gguf-f32"].path / "model.gguf"
    expected = generate_text(model, tokenizer, "the", max_new_tokens=8, temperature=0)
    if importlib.util.find_spec("llama_cpp") is not None:
        from llama_cpp import Llama

        answer = Llama(model_path=str(file), verbose=False)("the", max_tokens=8, temperature=0.0, echo=True)
        assert answer["choices"][0]["text"] == expected
    else:
        command = ["llama-cli", "-m", str(file), "-p", "the", "-n", "8", "--temp", "0", "-no-cnv", "--no-warmup"]
        assert expected.strip() in subprocess.run(command, capture_output=True, text=True, timeout=120).stdout
