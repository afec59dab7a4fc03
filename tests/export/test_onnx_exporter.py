"""ONNXExporter writes one verified file of a chosen name, and replaces a verified file only by another."""

from __future__ import annotations

import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from utils.errors import ExportError
from utils.models.images import LeNet
from utils.training import ONNXExporter

VOCAB = 32


class Bigram(nn.Module):
    """The least that is a language model."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(VOCAB, VOCAB)

    def forward(self, input_ids):
        return self.table(input_ids)


class Masked(Bigram):
    """A classifier that takes a padding mask."""

    def forward(self, input_ids, attention_mask=None):
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        return (super().forward(input_ids) * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)


class Shifting(Bigram):
    """Computes something else at each call: the file has what it was at the export."""

    calls = 0

    def forward(self, input_ids):
        self.calls += 1
        return super().forward(input_ids) * (1 + 0.01 * self.calls)


def inputs_of(path):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return {one.name: one.shape for one in session.get_inputs()}


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    path = tmp_path_factory.mktemp("exporter") / "model.onnx"
    model = LeNet().train()
    return path, model, ONNXExporter().export(model, path)


def test_the_result_has_the_documented_keys(exported):
    path, model, result = exported
    assert set(result) >= {
        "output_path", "file_size_mb", "opset_version", "dynamic_axes", "validation", "benchmark", "notes"
    }  # fmt: skip
    assert result["output_path"] == str(path)
    assert result["file_size_mb"] == pytest.approx(path.stat().st_size / 1e6)
    assert result["dynamic_axes"] is True
    assert result["validation"]["validated"] is True
    assert 0 <= result["validation"]["mean_error"] <= result["validation"]["max_error"] <= 1e-4
    benchmark = result["benchmark"]
    assert benchmark["speedup"] == pytest.approx(benchmark["pytorch_time"] / benchmark["onnx_time"])
    assert model.training
    assert [entry.name for entry in path.parent.iterdir()] == ["model.onnx"]


def test_the_files_real_opset_is_stated_and_an_older_one_is_explained(exported):
    path, _, result = exported
    stated = next(one.version for one in onnx.load(path).opset_import if one.domain == "")
    assert result["opset_version"] == stated > 14
    assert any("opset_version=14" in note and f"opset {stated}" in note for note in result["notes"])


def test_operators_are_fused_and_the_file_still_computes_the_same(exported):
    path, model, result = exported
    assert any(note.startswith("Optimised by ONNX Runtime's graph optimiser") for note in result["notes"])
    assert "FusedConv" in {node.op_type for node in onnx.load(path).graph.node}
    images = torch.randn(6, 1, 28, 28)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"pixel_values": images.numpy()})
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(logits), model.eval()(images), rtol=1e-4, atol=1e-5)
    model.train()


def test_sizes_can_be_fixed_and_names_chosen(tmp_path):
    exporter = ONNXExporter(optimize=False, benchmark=False)
    result = exporter.export(
        Masked(), tmp_path / "fixed.onnx", vocab_size=VOCAB, max_seq_len=6, batch_size=2, dynamic_axes=False,
        input_names=["tokens", "padding"], output_names=["scores"],
    )  # fmt: skip
    assert inputs_of(tmp_path / "fixed.onnx") == {"tokens": [2, 6], "padding": [2, 6]}
    assert result["benchmark"] is None
    assert result["validation"]["shapes"] == [(2, 6)]
    assert [one.name for one in onnx.load(tmp_path / "fixed.onnx").graph.output] == ["scores"]


def test_fewer_names_leave_the_mask_out(tmp_path):
    exporter = ONNXExporter(optimize=False, benchmark=False)
    exporter.export(Masked(), tmp_path / "ids.onnx", input_names=["input_ids"])
    assert inputs_of(tmp_path / "ids.onnx") == {"input_ids": ["batch", "sequence"]}
    with pytest.raises(
        ExportError, match=r"got input_names=\['a', 'b', 'c'\]; the model takes \['input_ids', 'attention_mask'\]"
    ):
        exporter.export(Masked(), tmp_path / "ids.onnx", input_names=["a", "b", "c"])


def test_a_verified_file_is_replaced_by_verified_ones_only(tmp_path):
    path = tmp_path / "model.onnx"
    exporter = ONNXExporter(optimize=False, benchmark=False)
    exporter.export(Bigram(), path)
    before = path.read_bytes()
    with pytest.raises(ExportError, match="computes something else"):
        exporter.export(Shifting(), path)
    with pytest.raises(ExportError, match="is a verified export, which one made with validate=False does not replace"):
        ONNXExporter(validate=False, benchmark=False).export(Bigram(), path)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.onnx"]
    exporter.export(Bigram(), path)
    assert path.read_bytes() != before


def test_without_validation_the_result_says_so(tmp_path):
    exporter = ONNXExporter(optimize=False, validate=False, benchmark=False)
    for _ in range(2):
        result = exporter.export(Bigram(), tmp_path / "model.onnx")
    assert result["validation"] == {"validated": False}


def test_a_folder_is_no_output_path(tmp_path):
    with pytest.raises(ExportError, match="is a folder; give the name of a file"):
        ONNXExporter().export(Bigram(), tmp_path)


def test_large_weights_go_beside_the_file_under_its_name(tmp_path, monkeypatch):
    from utils.training.export import onnx as module

    monkeypatch.setattr(module, "_LARGEST_SINGLE_FILE", 1000)
    result = ONNXExporter(optimize=False, benchmark=False).export(Bigram(), tmp_path / "big.onnx")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["big.onnx", "big.onnx.data"]
    assert result["file_size_mb"] > 4 * VOCAB * VOCAB / 1e6
    assert inputs_of(tmp_path / "big.onnx") == {"input_ids": ["batch", "sequence"]}
