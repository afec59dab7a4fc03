"""An exported folder is the trained model, verified; a failed export leaves everything as it was."""

from __future__ import annotations

import copy
import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2LMHeadModel, PreTrainedTokenizerFast

from tests.kit.crash import in_child
from tests.kit.toys import (
    LENGTH,
    VOCAB_SIZE,
    Bigram,
    golden_config,
    plain_lm,
    tiny_gpt,
    tiny_llama,
    token_rows,
    train_set,
)
from utils.errors import CheckpointError, ExportError
from utils.tokenization.character import build_character_tokenizer
from utils.training import Trainer, export_model
from utils.training.engine.checkpointing.store import read_checkpoint
from utils.training.export.folders import MARKER
from utils.training.export.hf import export_hf

ROOT = Path(__file__).resolve().parents[2]


def tokenizer():
    return build_character_tokenizer(["abcdefgh ijklmnop\n"], vocab_size=VOCAB_SIZE)


def trained(folder, model=None, **changes):
    """Results of 3 epochs. The validation rows are noise, so the first epoch is the best and the last one is not."""
    noise = torch.randint(VOCAB_SIZE, (9, LENGTH), generator=torch.Generator().manual_seed(3))
    config = golden_config(
        output_dir=str(folder), epochs=3, early_stopping_patience=None, learning_rate=0.03, **changes
    )
    trainer = Trainer(model or tiny_gpt(), training_config=config, tokenizer=tokenizer())
    return trainer.train(train_set(), torch.utils.data.TensorDataset(noise))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("runs"))


@pytest.fixture
def results(finished, tmp_path):
    """The finished run with a folder and a model of its own, so that a test may spoil both."""
    own = copy.copy(finished)
    own.run_dir = tmp_path / "run"
    shutil.copytree(finished.run_dir, own.run_dir)
    own.model = copy.deepcopy(finished.model)
    own.best_model_path = str(own.run_dir / "checkpoints" / Path(finished.best_model_path).name)
    own.checkpoint_path = str(own.run_dir / "checkpoints" / Path(finished.checkpoint_path).name)
    return own


def weights(folder):
    """The exported weights; transformers leaves the tied output layer out of the file and ties it again."""
    return AutoModelForCausalLM.from_pretrained(folder, local_files_only=True).state_dict()


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def weights_of(checkpoint):
    return read_checkpoint(checkpoint)["model"]


def tree(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("which", ["best", "last"])
def test_anybody_can_load_the_folder_and_gets_the_checkpoints_model(results, which):
    checkpoint = results.best_model_path if which == "best" else results.checkpoint_path
    exported = export_model(results, formats=["hf"], which=which)["hf"]
    assert exported.path == Path(results.run_dir).absolute() / "exports" / "hf"
    assert same(weights(exported.path), weights_of(checkpoint))
    assert {"model.safetensors", "config.json", "generation_config.json", "tokenizer.json"} <= set(tree(exported.path))


def test_best_and_last_are_different_models(results):
    assert not same(weights_of(results.best_model_path), weights_of(results.checkpoint_path))


def test_the_tokenizer_comes_along_with_its_special_ids(results):
    exported = export_model(results)["hf"]
    loaded = AutoTokenizer.from_pretrained(exported.path, local_files_only=True)
    assert loaded("abc hij")["input_ids"] == results.tokenizer("abc hij")["input_ids"]
    config = AutoModelForCausalLM.from_pretrained(exported.path, local_files_only=True).generation_config
    assert config.eos_token_id == results.tokenizer.eos_token_id
    assert config.pad_token_id == results.tokenizer.pad_token_id


def test_the_live_model_and_the_random_state_are_not_touched(results):
    model = results.model
    with torch.no_grad():
        model.transformer.wte.weight += 1.0
    model.train()
    model(input_ids=token_rows(2), labels=token_rows(2)).loss.backward()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    gradients = [parameter.grad.clone() for parameter in model.parameters()]
    eos, random_state = model.config.eos_token_id, torch.get_rng_state()
    exported = export_model(results)["hf"]
    assert same(model.state_dict(), before)
    assert all(torch.equal(p.grad, gradient) for p, gradient in zip(model.parameters(), gradients, strict=True))
    assert model.training
    assert model.config.eos_token_id == eos
    assert torch.equal(torch.get_rng_state(), random_state)
    assert same(weights(exported.path), weights_of(results.best_model_path))


def test_the_result_states_size_and_agreement(results):
    exported = export_model(results)["hf"]
    assert exported.size_bytes == sum(path.stat().st_size for path in exported.path.iterdir())
    assert exported.parity["max_abs_diff"] < 1e-5
    assert exported.parity["max_abs_logit"] > 0
    assert exported.parity["shapes"] == [(1, 1), (3, LENGTH // 2), (1, LENGTH)]
    assert exported["output_path"] == str(exported.path)
    assert exported["file_size_mb"] == exported.size_bytes / 1e6
    assert set(exported) >= {"format", "path", "size_bytes", "parity", "benchmark", "notes"}
    assert "largest difference" in str(exported)


def test_a_second_export_replaces_the_first(results, tmp_path):
    first = export_model(results, output_dir=tmp_path / "out")["hf"]
    before = tree(first.path)
    second = export_model(results, which="last", output_dir=tmp_path / "out")["hf"]
    assert second.path == first.path == (tmp_path / "out" / "hf")
    assert tree(second.path)["model.safetensors"] != before["model.safetensors"]
    assert [entry.name for entry in (tmp_path / "out").iterdir()] == ["hf"]


def test_without_a_best_checkpoint_the_last_one_is_taken_and_it_is_said(results):
    results.best_model_path = None
    exported = export_model(results)["hf"]
    assert "last" in exported.notes[0]
    assert same(weights(exported.path), weights_of(results.checkpoint_path))


def test_a_run_without_a_tokenizer_says_so(results):
    results.tokenizer = None
    assert "no tokenizer" in export_model(results)["hf"].notes[0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_models_are_exported_in_their_format(dtype, tmp_path):
    """Their checkpoints hold fp32 weights."""
    results = trained(tmp_path / "runs", tiny_gpt().to(dtype), precision="32")
    exported = export_model(results, formats=["hf", "safetensors"])
    config = json.loads((exported["hf"].path / "config.json").read_text())
    assert config["dtype"] == str(dtype).removeprefix("torch.")
    kept = weights_of(results.best_model_path)
    for result in exported.values():
        saved = load_file(result.path / "model.safetensors")
        assert {tensor.dtype for tensor in saved.values()} == {dtype}
        assert all(torch.equal(tensor, kept[name].to(dtype)) for name, tensor in saved.items())


def test_exports_hold_no_paths_of_this_machine(tmp_path):
    """Neither of the run nor of the folder that model and tokenizer were loaded from."""
    results = trained(tmp_path / "runs", tiny_gpt(layers=1))
    source = tmp_path / "source"
    results.model.save_pretrained(source)
    results.tokenizer.save_pretrained(source)
    results.model = AutoModelForCausalLM.from_pretrained(source)
    results.tokenizer = AutoTokenizer.from_pretrained(source)
    exported = export_model(results, formats=["hf", "onnx", "safetensors"])
    for result in exported.values():
        for name, content in tree(result.path).items():
            assert str(tmp_path).encode() not in content, (result.format, name)
            assert str(ROOT).encode() not in content, (result.format, name)
        record = json.loads((result.path / MARKER).read_text())
        assert record["source"] == f"golden/checkpoints/{Path(results.best_model_path).name}"


# What is refused


class Shifted(GPT2LMHeadModel):
    """Computes with a number that no file of it holds."""

    shift = 0.0

    def forward(self, *arguments, **named):
        outputs = super().forward(*arguments, **named)
        outputs.logits = outputs.logits + self.shift * outputs.logits
        return outputs


def test_f49_a_folder_that_would_compute_something_else_is_not_written(tmp_path):
    model = Shifted(tiny_gpt().config)
    model.shift = 0.01
    results = trained(tmp_path / "runs", model)
    with pytest.raises(ExportError, match=r"computes something else: logits differ by"):
        export_model(results)
    assert not (Path(results.run_dir) / "exports").exists()


@pytest.mark.parametrize("convert", [nn.Module.bfloat16, nn.Module.half], ids=["bf16", "fp16"])
def test_positions_that_were_rounded_to_half_precision_are_named_as_the_cause(convert, tmp_path):
    with pytest.raises(ExportError, match=r"Likely cause: buffers .*inv_freq, .*were rounded to half precision"):
        export_hf(convert(tiny_llama()).eval(), None, tmp_path / "hf", "a test")


class Doubling(PreTrainedTokenizerFast):
    """Gives other ids than the files it is saved as."""

    def __call__(self, text, **named):
        return super().__call__(text + text, **named)


def test_a_tokenizer_that_loads_as_another_one_is_not_written(results):
    results.tokenizer = Doubling(tokenizer_object=tokenizer().backend_tokenizer, unk_token="<unk>")
    with pytest.raises(ExportError, match="gives other ids"):
        export_model(results)
    assert not (Path(results.run_dir) / "exports").exists()


def test_weights_that_are_not_finite_are_not_exported(results, tmp_path):
    payload = read_checkpoint(results.best_model_path)
    payload["model"]["transformer.ln_f.weight"][0] = torch.nan
    torch.save(payload, tmp_path / "epoch_9.pt")
    results.best_model_path = str(tmp_path / "epoch_9.pt")
    with pytest.raises(ExportError, match="NaN or infinite"):
        export_model(results)


def test_a_plain_module_is_refused_with_the_way_to_its_weights(tmp_path):
    results = trained(tmp_path / "runs", plain_lm())
    with pytest.raises(ExportError, match=r"PlainLM is not a transformers model.*formats=\['safetensors'\]"):
        export_model(results)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"formats": ["hff"]}, "this version exports: hf, onnx, .*Did you mean 'hf'"),
        ({"formats": ["hf", "tflite"]}, "got the format 'tflite'"),
        ({"formats": []}, "formats is empty"),
        ({"which": "newest"}, "must be 'best' or 'last'"),
    ],
)
def test_unknown_words_are_refused_before_anything_is_written(results, arguments, message):
    with pytest.raises(ExportError, match=message):
        export_model(results, **arguments)
    assert not (Path(results.run_dir) / "exports").exists()


def test_a_single_format_may_be_a_word(results):
    assert list(export_model(results, formats="hf")) == ["hf"]


def test_a_run_without_checkpoints_is_refused(results):
    results.best_model_path = results.checkpoint_path = None
    with pytest.raises(ExportError, match="no checkpoint"):
        export_model(results)


def test_a_damaged_checkpoint_leaves_the_export_that_is_there(results):
    exported = export_model(results)["hf"]
    before = tree(exported.path)
    checkpoint = Path(results.best_model_path)
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    with pytest.raises(CheckpointError):
        export_model(results)
    assert tree(exported.path) == before


@pytest.mark.parametrize("kind", ["folder", "file", "link"])
def test_what_no_export_made_is_not_replaced(results, tmp_path, kind):
    target = tmp_path / "out" / "hf"
    target.parent.mkdir()
    if kind == "folder":
        target.mkdir()
        (target / "thesis.txt").write_text("mine")
    elif kind == "file":
        target.write_text("mine")
    else:
        target.symlink_to(tmp_path)
    with pytest.raises(ExportError, match="another output_dir"):
        export_model(results, output_dir=target.parent)
    assert [entry.name for entry in target.parent.iterdir()] == ["hf"]
    assert kind == "link" or (target / "thesis.txt" if kind == "folder" else target).read_text() == "mine"


def test_an_output_folder_under_a_file_is_one_clear_error(results, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ExportError, match="could not be written"):
        export_model(results, output_dir=tmp_path / "file" / "out")


# What a crash leaves


def test_a_crash_between_the_two_renames_loses_nothing(results, tmp_path):
    target = export_model(results, output_dir=tmp_path)["hf"].path
    os.rename(target, tmp_path / ".hf.previous")
    results.best_model_path = str(tmp_path / "absent.pt")
    with pytest.raises(CheckpointError):
        export_model(results, output_dir=tmp_path)
    results.best_model_path = None
    export_model(results, output_dir=tmp_path)
    assert (target / MARKER).is_file()
    assert not (tmp_path / ".hf.previous").exists()


def test_an_old_export_comes_back_when_the_next_one_fails(results, tmp_path):
    target = export_model(results, output_dir=tmp_path)["hf"].path
    before = tree(target)
    os.rename(target, tmp_path / ".hf.previous")
    results.tokenizer = Doubling(tokenizer_object=tokenizer().backend_tokenizer, unk_token="<unk>")
    with pytest.raises(ExportError):
        export_model(results, output_dir=tmp_path)
    assert tree(target) == before


def test_staging_folders_of_dead_processes_are_removed(results, tmp_path):
    from utils.storage import host_name

    finished = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    stale = tmp_path / f".hf.{host_name()}.{int(finished.stdout)}.staging"
    foreign = tmp_path / f".hf.elsewhere.{int(finished.stdout)}.staging"
    for folder in (stale, foreign):
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(b"half")
    export_model(results, output_dir=tmp_path)
    assert not stale.exists()
    assert foreign.exists()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="limits of file sizes are POSIX")
@pytest.mark.parametrize("format_name", ["hf", "onnx", "safetensors"])
def test_f05_a_full_disk_is_one_error_and_leaves_no_half_folder(format_name, results, tmp_path):
    if format_name == "onnx":  # tracing a GPT takes seconds, here and in the child
        results.model, results.tokenizer = Bigram(100), None
        state = results.model.state_dict()
        torch.save({**read_checkpoint(results.best_model_path), "model": state}, results.best_model_path)
    target = export_model(results, formats=[format_name], output_dir=tmp_path)[format_name].path
    target = target if target.is_dir() else target.parent
    before = tree(target)

    def on_a_full_disk():
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
        try:
            export_model(results, formats=[format_name], output_dir=tmp_path)
        except ExportError as error:
            return str(error)

    assert "could not be written" in in_child(on_a_full_disk).value
    assert tree(target) == before
    assert [entry.name for entry in tmp_path.iterdir() if format_name in entry.name] == [format_name]
