"""TorchScript and torch.export files give the model's logits in a process without the model's code."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTForImageClassification,
)

from tests.kit.toys import tiny_gpt
from utils.errors import ExportError
from utils.training import TorchScriptExporter, export_model
from utils.training.export.folders import MARKER

VOCABULARY = 24


def bert():
    return BertForSequenceClassification(
        BertConfig(
            vocab_size=VOCABULARY, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
            max_position_embeddings=12,
        )
    )  # fmt: skip


def t5():
    return T5ForConditionalGeneration(
        T5Config(
            vocab_size=VOCABULARY, d_model=16, d_ff=16, d_kv=8, num_layers=1, num_heads=2, decoder_start_token_id=0, n_positions=12
        )
    )  # fmt: skip


def vit():
    return ViTForImageClassification(
        ViTConfig(
            image_size=8, patch_size=4, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
        )
    )


def table():
    return nn.Sequential(nn.Flatten(), nn.Linear(8, 4))


class Recurrent(nn.Module):
    """A loop over the positions: a trace would keep the length of its example. Returns a dict."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, 8)
        self.head = nn.Linear(8, VOCABULARY)

    def forward(self, input_ids: torch.Tensor):
        embedded = self.embedding(input_ids)
        states = [embedded[:, 0]]
        for position in range(1, input_ids.shape[1]):
            states.append(states[-1] * 0.5 + embedded[:, position])
        return {"logits": self.head(torch.stack(states, 1))}


class Unscriptable(Recurrent):
    """Neither traced nor scripted: besides the loop, its code is not TorchScript."""

    def forward(self, input_ids: torch.Tensor):
        outputs = super().forward(input_ids)
        return dict(sorted(outputs.items(), key=lambda item: item[0]))


@pytest.fixture(scope="module")
def causal(tmp_path_factory):
    """A causal model as both formats."""
    model = tiny_gpt(length=8, layers=1)
    folder = tmp_path_factory.mktemp("causal")
    return model, export_model(model, ["torchscript", "torch_export"], output_dir=folder)


@pytest.mark.filterwarnings("ignore:`torch.jit")
@pytest.mark.parametrize("name", ["torchscript", "torch_export"])
def test_a_causal_model_is_verified_on_shapes_padding_and_64_tokens(causal, name):
    model, exported = causal
    result = exported[name]
    assert result.parity["greedy_tokens_equal"] == 64
    assert result.parity["shapes"] == [(1, 1), (3, 4), (1, 8)]
    assert result.parity["max_abs_diff"] < 1e-5
    assert result.benchmark["speedup"] > 0
    record = json.loads((result.path / MARKER).read_text())
    assert record["inputs"] == ["input_ids", "attention_mask"]
    if name == "torchscript":
        run = torch.jit.load(str(result.path / "model.pt"))
    else:
        run = torch.export.load(result.path / "model.pt2").module()
    ids = torch.randint(32, (2, 7))
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    got = run(ids, mask)
    expected = model.eval()(input_ids=ids, attention_mask=mask).logits
    assert torch.allclose(got[1], expected[1], atol=1e-5)
    assert torch.allclose(got[0, 3:], expected[0, 3:], atol=1e-5)


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_the_mask_of_a_torchscript_file_may_be_left_out(causal):
    model, exported = causal
    ids = torch.randint(32, (2, 5))
    got = torch.jit.load(str(exported["torchscript"].path / "model.pt"))(ids)
    assert torch.allclose(got, model.eval()(ids).logits, atol=1e-5)


@pytest.mark.parametrize("name", ["torchscript", "torch_export"])
def test_files_hold_no_paths_of_this_machine(causal, name):
    here = str(Path(__file__).resolve().parents[2]).encode()
    for path in causal[1][name].path.iterdir():
        assert here not in path.read_bytes(), path.name


@pytest.mark.parametrize(
    "build",
    [*(pytest.param(build, marks=pytest.mark.slow) for build in (bert, t5, vit)), table],
    ids=["bert", "t5", "vit", "table"],
)
@pytest.mark.parametrize("name", ["torchscript", "torch_export"])
def test_other_kinds_of_models(build, name, tmp_path):
    torch.manual_seed(0)
    result = export_model(build(), [name], output_dir=tmp_path)[name]
    assert result.parity["batches"] >= 3
    assert ("greedy_tokens_equal" in result.parity) == (build is t5)


def test_auto_scripts_what_a_trace_gets_wrong_and_says_why(tmp_path):
    result = TorchScriptExporter(benchmark=False).export(
        Recurrent(), tmp_path / "model.pt", vocab_size=VOCABULARY, max_seq_len=8
    )
    assert result["mode"] == "script"
    assert "trace fails" in result["mode_reason"]
    assert result["validation"]["greedy_tokens_equal"] == 64
    assert result["benchmark"] is None
    assert Path(result["output_path"]).is_file()
    assert result["file_size_mb"] == Path(result["output_path"]).stat().st_size / 1e6


def test_the_exporter_leaves_the_model_as_it_was(tmp_path):
    model = table().train()
    result = TorchScriptExporter().export(model, tmp_path / "model.pt", mode="trace")
    assert (result["mode"], result["mode_reason"]) == ("trace", "as asked.")
    assert result["benchmark"]["speedup"] > 0
    assert model.training
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize(("mode", "message"), [("trace", "trace fails"), ("auto", "trace fails .*; script fails")])
def test_a_file_that_computes_something_else_never_replaces_one_that_is_there(mode, message, tmp_path):
    path = tmp_path / "model.pt"
    path.write_bytes(b"mine")
    with pytest.raises(ExportError, match=message):
        TorchScriptExporter(benchmark=False).export(Unscriptable(), path, VOCABULARY, 8, mode)
    assert [(entry.name, entry.read_bytes()) for entry in tmp_path.iterdir()] == [("model.pt", b"mine")]


def test_an_unknown_mode_is_refused(tmp_path):
    with pytest.raises(ExportError, match="must be 'auto', 'trace' or 'script'"):
        TorchScriptExporter().export(table(), tmp_path / "model.pt", mode="jit")


def test_data_dependent_control_flow_is_refused_by_torch_export(tmp_path):
    class Branching(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(8, 4)

        def forward(self, inputs):
            return self.head(inputs) if float(inputs.sum()) > 0 else self.head(-inputs)

    with pytest.raises(ExportError, match=r"Branching cannot be captured by torch.export"):
        export_model(Branching(), ["torch_export"], output_dir=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_module_needs_a_folder():
    with pytest.raises(ExportError, match="give output_dir"):
        export_model(table(), ["torchscript"])


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="AOTInductor needs a C++ compiler")
def test_a_compiled_package_gives_the_models_logits(tmp_path):
    result = export_model(table(), ["aot_inductor"], output_dir=tmp_path)["aot_inductor"]
    assert result.parity["max_abs_diff"] < 1e-5
    run = torch._inductor.aoti_load_package(str(result.path / "model_aot.pt2"))
    assert run(torch.randn(5, 8)).shape == (5, 4)
