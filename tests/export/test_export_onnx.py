"""An exported ONNX file computes what the model computes, for every batch and length, and says how it was checked."""

from __future__ import annotations

import copy
import importlib.util
import json
import logging
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers.utils import logging as transformers_logging

from tests.kit.toys import LENGTH, VOCAB_SIZE, Bigram, plain_lm
from utils.errors import ExportError
from utils.tokenization.character import build_character_tokenizer
from utils.training import export_model
from utils.training.engine.checkpointing import store as checkpoint
from utils.training.export import onnx as exporter
from utils.training.export.folders import MARKER


def tiny_gpt():
    """Of one layer: tracing takes seconds for each."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    sizes = {"vocab_size": VOCAB_SIZE, "n_positions": LENGTH, "n_embd": 32, "n_layer": 1, "n_head": 2}
    return GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=0))


def tiny_llama():
    """Of two layers, so that a graph with one is not all that is compared."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCAB_SIZE, max_position_embeddings=LENGTH, hidden_size=16, intermediate_size=32,
            num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, bos_token_id=0, eos_token_id=0,
        )
    )  # fmt: skip


GOLDEN = Path(__file__).parents[1] / "reliability" / "golden" / "schema_1.pt"


def half_llama():
    """Its weights in half precision, which the file holds in float32; the frequencies of its positions not, as transformers loads
    it."""
    model = tiny_llama()
    for parameter in model.parameters():
        parameter.data = parameter.data.bfloat16()
    return model


MODELS = {"gpt2": tiny_gpt, "llama": half_llama, "plain": plain_lm}


def results_of(model, folder):
    """What `export_model` reads of a run, with a checkpoint of `model` as it is."""
    payload = {**checkpoint.read_checkpoint(GOLDEN), "model": model.state_dict()}
    torch.save(payload, folder / "epoch_1.pt")
    tokenizer = build_character_tokenizer(["abcdefgh ijklmnop\n"], vocab_size=VOCAB_SIZE)
    path = str(folder / "epoch_1.pt")
    return SimpleNamespace(model=model, tokenizer=tokenizer, best_model_path=path, checkpoint_path=path, run_dir=folder)


@pytest.fixture(scope="module")
def exports():
    """Models and their exports by name, each made by the first test that needs it: a graph takes seconds."""
    return {}


def made(name, exports, tmp_path_factory):
    if name not in exports:
        model = MODELS[name]()
        formats = ["hf", "onnx"] if name == "llama" else ["onnx"]
        every = export_model(results_of(model, tmp_path_factory.mktemp(name)), formats=formats)
        exports[name] = SimpleNamespace(model=copy.deepcopy(model).float().eval(), result=every["onnx"], every=every)
    return exports[name]


@pytest.fixture(params=list(MODELS))
def exported(request, exports, tmp_path_factory):
    """A model, in float32, and its export."""
    return made(request.param, exports, tmp_path_factory)


@pytest.fixture
def results(tmp_path_factory):
    return results_of(tiny_gpt(), tmp_path_factory.mktemp("results"))


@pytest.fixture
def bigram(tmp_path):
    return results_of(Bigram(), tmp_path)


def session_of(result):
    return onnxruntime.InferenceSession(result.path / "model.onnx", providers=["CPUExecutionProvider"])


def logits_of(session, ids, mask=None):
    mask = torch.ones_like(ids) if mask is None else mask
    offered = {"input_ids": ids.numpy(), "attention_mask": mask.numpy()}
    (logits,) = session.run(["logits"], {one.name: offered[one.name] for one in session.get_inputs()})
    return torch.from_numpy(logits)


# What is written


def test_nothing_of_the_process_is_changed_or_printed(results, exports, rng_untouched, capfd, caplog, monkeypatch):
    model = results.model.train()
    monkeypatch.setattr(model.config, "pad_token_id", 0)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    loggers = {name: logging.getLogger(name).level for name in logging.root.manager.loggerDict}
    state = (torch.is_grad_enabled(), torch.get_num_threads(), torch.get_default_dtype(), list(warnings.filters))
    transformers_logging.warning_once.cache_clear()  # what it said once in this process it would say to a user
    every = export_model(results, formats="onnx")
    assert capfd.readouterr() == ("", "")
    assert [record for record in caplog.records if record.levelno > logging.DEBUG] == []
    assert state == (
        torch.is_grad_enabled(), torch.get_num_threads(), torch.get_default_dtype(), list(warnings.filters)
    )  # fmt: skip
    assert {name: logging.getLogger(name).level for name in loggers} == loggers
    assert model.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    exports["gpt2"] = SimpleNamespace(model=copy.deepcopy(model).eval(), result=every["onnx"], every=every)


@pytest.mark.parametrize("shape", [(1, 1), (1, LENGTH), (5, 1), (2, 3), (4, 7)])
def test_every_batch_and_length_gives_the_models_logits(exported, shape):
    ids = torch.randint(VOCAB_SIZE, shape, generator=torch.Generator().manual_seed(9))
    with torch.no_grad():
        outputs = exported.model(ids)
    expected = outputs if isinstance(outputs, torch.Tensor) else outputs.logits
    torch.testing.assert_close(logits_of(session_of(exported.result), ids), expected, rtol=1e-4, atol=1e-5)


def test_the_inputs_and_the_output_are_those_that_are_said(exported):
    session = session_of(exported.result)
    plain = type(exported.model).__name__ == "PlainLM"
    assert [one.name for one in session.get_inputs()] == ["input_ids"] + ([] if plain else ["attention_mask"])
    assert all(one.shape == ["batch", "sequence"] for one in session.get_inputs())
    assert [(one.name, one.shape) for one in session.get_outputs()] == [("logits", ["batch", "sequence", VOCAB_SIZE])]
    assert any("input_ids" in note and "logits" in note for note in exported.result.notes)


def test_what_is_padded_does_not_change_the_rest(exported):
    session = session_of(exported.result)
    if len(session.get_inputs()) == 1:
        pytest.skip("takes no mask")
    ids, mask = torch.arange(8).repeat(2, 1), torch.ones(2, 8, dtype=torch.int64)
    mask[1, :3] = 0
    other = ids.clone()
    other[1, :3] = 20
    first, second = logits_of(session, ids, mask), logits_of(session, other, mask)
    torch.testing.assert_close(first[1, 3:], second[1, 3:])
    assert not torch.allclose(logits_of(session, ids)[1, 3:], logits_of(session, other)[1, 3:])


def test_the_result_states_agreement_speed_size_and_the_real_opset(exported):
    result = exported.result
    file = onnx.load(result.path / "model.onnx")
    assert result.opset == next(one.version for one in file.opset_import if one.domain == "")
    assert f"opset {result.opset}" in " ".join(result.notes)
    assert result.parity["shapes"] == [(1, 1), (3, LENGTH // 2), (1, LENGTH)] or "plain" in str(result.path)
    assert len(result.parity["shapes"]) == 3
    assert 0 < result.parity["max_abs_diff"] < 1e-4
    assert result.parity["greedy_tokens_equal"] == 64
    assert result.size_bytes == sum(path.stat().st_size for path in result.path.iterdir())
    benchmark = result.benchmark
    assert min(benchmark["pytorch_ms"], benchmark["onnxruntime_ms"]) > 0
    assert benchmark["speedup"] == pytest.approx(benchmark["pytorch_ms"] / benchmark["onnxruntime_ms"])
    assert benchmark["runs"] >= 3
    assert benchmark["shape"][0] == 1
    assert json.loads((result.path / MARKER).read_text())["opset"] == result.opset
    assert set(result) >= {"output_path", "file_size_mb", "opset_version", "parity", "benchmark"}


def test_the_files_name_nothing_of_this_machine(exported):
    for file in exported.result.path.glob("*.onnx"):
        raw = file.read_bytes()
        assert b".py" not in raw
        assert str(Path.home()).encode() not in raw


def test_a_causal_model_of_transformers_also_has_a_file_with_its_cache(exported):
    has_cache = type(exported.model).__name__ != "PlainLM"
    assert (exported.result.path / "decoder_with_past_model.onnx").is_file() == has_cache
    assert any("past_key_values" in note for note in exported.result.notes) == has_cache


def test_the_tokenizer_stands_beside_it(exported):
    assert (exported.result.path / "tokenizer.json").is_file()


def test_large_weights_go_into_a_file_of_their_own_and_count(bigram, monkeypatch):
    monkeypatch.setattr(exporter, "_LARGEST_SINGLE_FILE", 1000)
    result = export_model(bigram, formats="onnx")["onnx"]
    data = result.path / "model.onnx.data"
    assert data.stat().st_size >= VOCAB_SIZE * VOCAB_SIZE * 4
    assert result.size_bytes == sum(path.stat().st_size for path in result.path.iterdir())
    ids = torch.tensor([[3, 4]])
    assert torch.equal(logits_of(session_of(result), ids), bigram.model(ids))


def test_weights_in_half_precision_are_written_in_float32_and_other_formats_keep_theirs(exports, tmp_path_factory):
    both = made("llama", exports, tmp_path_factory).every
    assert list(both) == ["hf", "onnx"]
    assert logits_of(session_of(both["onnx"]), torch.tensor([[3, 4]])).dtype == torch.float32
    assert "converted to float32" in " ".join(both["onnx"].notes)
    saved = load_file(both["hf"].path / "model.safetensors")
    assert {tensor.dtype for tensor in saved.values()} == {torch.bfloat16}


def test_the_cache_file_writes_the_models_own_tokens_for_several_rows(exports, tmp_path_factory):
    llama = made("llama", exports, tmp_path_factory)
    session = onnxruntime.InferenceSession(
        llama.result.path / "decoder_with_past_model.onnx", providers=["CPUExecutionProvider"]
    )
    names = [one.name for one in session.get_inputs() if one.name.startswith("past_key_values")]
    assert names == [f"past_key_values.{layer}.{part}" for layer in (0, 1) for part in ("key", "value")]
    past = {name: np.zeros((2, 1, 0, 8), dtype=np.float32) for name in names}
    prompt = torch.randint(2, VOCAB_SIZE, (2, 5), generator=torch.Generator().manual_seed(5))
    written, new = prompt.numpy(), prompt.numpy()
    for _ in range(LENGTH - 5):
        logits, *present = session.run(None, {"input_ids": new, "attention_mask": np.ones_like(written), **past})
        past, new = dict(zip(names, present, strict=True)), logits[:, -1:].argmax(-1)
        written = np.concatenate([written, new], axis=1)
    own = llama.model.generate(prompt, max_new_tokens=LENGTH - 5, do_sample=False, eos_token_id=None, pad_token_id=0)
    assert written.tolist() == own.tolist()


# What is refused


class Shifting(Bigram):
    """Computes with a number that changes from call to call: the file has the one of the export."""

    calls = 0

    def forward(self, input_ids):
        self.calls += 1
        return super().forward(input_ids) * (1 + 0.01 * self.calls)


class OnlyOneLength(Bigram):
    """Works for the lengths that its table has, so that the exporter takes the length for a constant."""

    def __init__(self):
        super().__init__()
        self.positions = nn.Parameter(torch.ones(5, VOCAB_SIZE))

    def forward(self, input_ids):
        return super().forward(input_ids) + self.positions


class Branching(Bigram):
    """What it computes depends on the ids themselves: no graph holds that."""

    def forward(self, input_ids):
        return super().forward(input_ids) * (2.0 if input_ids.sum() > 50 else 1.0)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (Shifting, "computes something else: logits differ by"),
        (OnlyOneLength, "OnlyOneLength cannot be written as ONNX"),
        (Branching, "Branching cannot be written as ONNX"),
    ],
)
def test_a_model_that_no_file_can_hold_is_one_sentence_and_no_folder(tmp_path, kind, message, capfd):
    results = results_of(kind(), tmp_path)
    with pytest.raises(ExportError, match=message) as error:
        export_model(results, formats="onnx")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "exports").exists()
    assert capfd.readouterr() == ("", "")


def test_a_model_whose_inputs_nobody_knows_is_refused_and_does_not_stop_other_formats(tmp_path):
    class Scale(nn.Module):
        def __init__(self):
            super().__init__()
            self.factor = nn.Parameter(torch.ones(3))

        def forward(self, signal):
            return signal * self.factor

    exported = export_model(results_of(Scale(), tmp_path), formats=["onnx", "safetensors"])
    assert list(exported) == ["safetensors"]
    assert "Scale does not state what its inputs are" in exported.not_written["onnx"]


def test_weights_that_are_not_finite_are_not_exported(bigram, tmp_path):
    spoilt = copy.deepcopy(bigram.model)
    with torch.no_grad():
        spoilt.table.weight[:] = np.nan
    with pytest.raises(ExportError, match="NaN or infinite"):
        export_model(results_of(spoilt, tmp_path), formats="onnx")
    assert not (tmp_path / "exports").exists()


@pytest.mark.parametrize("formats", [["hf", "onnx", "safetensors"], ["onnx", "safetensors", "hf"]])
def test_a_failing_format_leaves_the_others_and_is_named(results, formats, caplog):
    target = Path(results.run_dir) / "exports" / "onnx"
    target.mkdir(parents=True)
    (target / "thesis.txt").write_text("mine")
    exported = export_model(results, formats=formats)
    assert list(exported) == [name for name in formats if name != "onnx"]
    assert list(exported.not_written) == ["onnx"]
    assert "another output_dir" in exported.not_written["onnx"]
    assert (target.parent / "hf" / "model.safetensors").is_file()
    assert [entry.name for entry in target.iterdir()] == ["thesis.txt"]
    assert "onnx was not exported" in caplog.text
    with pytest.raises(KeyError, match="onnx: not written: .*another output_dir"):
        exported["onnx"]


class Cyclic(nn.Module):
    """An error of the model's own that no exporter expects."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(VOCAB_SIZE, VOCAB_SIZE)

    def forward(self, input_ids):
        raise ZeroDivisionError("mine")


@pytest.mark.parametrize("missing", [True, False])
def test_what_others_raise_and_missing_packages_concern_one_format(tmp_path, missing, monkeypatch):
    if missing:
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    exported = export_model(results_of(Cyclic(), tmp_path), formats=["hf", "onnx", "safetensors"])
    assert list(exported) == ["safetensors"]
    assert ("pip install" if missing else "mine") in exported.not_written["onnx"]


def test_where_no_format_fits_each_is_named_with_its_reason_and_the_one_that_would(tmp_path):
    with pytest.raises(ExportError) as error:
        export_model(results_of(Cyclic(), tmp_path), formats=["hf", "onnx"])
    for part in (
        "nothing was exported",
        "hf: Cyclic is not a transformers model",
        "onnx: Cyclic",
        "mine",
        "['safetensors']",
    ):
        assert part in str(error.value)
    assert not (tmp_path / "exports").exists()


def test_a_second_export_replaces_the_first_and_a_failed_one_does_not(bigram):
    first = export_model(bigram, formats="onnx")["onnx"]
    before = (first.path / "model.onnx").read_bytes()
    spoilt = copy.copy(bigram)
    spoilt.model = Shifting()
    with pytest.raises(ExportError):
        export_model(spoilt, formats="onnx")
    assert (first.path / "model.onnx").read_bytes() == before
    assert [entry.name for entry in first.path.parent.iterdir()] == ["onnx"]
