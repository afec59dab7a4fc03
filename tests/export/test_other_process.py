"""What was exported is loaded in another process, which is the one that is compared; what cannot be loaded there says why."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.kit.toys import PlainLM, plain_lm, tiny_gpt, tiny_llama
from utils.errors import ExportError
from utils.training import export_model
from utils.training.export.other_process import kept_processes, loaded_elsewhere
from utils.training.export.safetensors import FILE_NAME


def with_adapter():
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(target_modules=["c_attn"], fan_in_fan_out=True, init_lora_weights=False)
    torch.manual_seed(0)
    return peft.get_peft_model(tiny_gpt(), config)


MADE = {
    "hf": tiny_llama,
    "peft": with_adapter,
    "safetensors": plain_lm,
    "gguf": with_adapter,
    "torchscript": plain_lm,
    "onnx": plain_lm,
}


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`")  # which peft reads
@pytest.mark.parametrize("name", MADE)
def test_another_process_gives_the_models_logits_and_tokens(name, tmp_path):
    if name == "gguf":
        pytest.importorskip("gguf")
    result = export_model(MADE[name]().eval(), [name], output_dir=tmp_path)[name]
    assert result.other_process["greedy_tokens_equal"] == 64
    bound = 1e-2 if name == "gguf" else 1e-5
    assert result["other_process"]["max_abs_diff"] <= bound
    assert not any("this process only" in note for note in result.notes)
    assert [entry.name for entry in result.path.iterdir() if entry.is_dir()] == []  # no base model is left behind


def test_a_class_of_the_notebook_is_compared_here_and_the_result_says_so(tmp_path):
    class Local(nn.Linear):
        pass

    result = export_model(Local(2, 3), ["safetensors"], output_dir=tmp_path)["safetensors"]
    assert result.other_process is None
    assert "in this process only: the class" in result.notes[0]
    assert "Local is defined inside a function" in result.notes[0]
    assert "bit for bit" in result.agreement


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (nn.Sequential(nn.Linear(3, 4)), "state_dict for Sequential"),  # a new one has no layers
        (nn.Linear(2, 3), "what Linear was created with is not known (in_features, out_features)"),
        (PlainLM(width=16), "state_dict for PlainLM"),  # a new one has another width
    ],
    ids=["empty", "arguments", "another width"],
)
def test_a_module_that_cannot_be_made_again_is_compared_here_and_the_result_says_why(model, reason, tmp_path):
    result = export_model(model, ["safetensors"], output_dir=tmp_path)["safetensors"]
    assert result.other_process is None
    assert "in this process only" in result.notes[0]
    assert reason in result.notes[0]
    assert "bit for bit" in result.agreement


def test_answers_that_depend_on_more_than_the_weights_are_compared_here_and_the_result_says_so(tmp_path):
    model = plain_lm()
    model.norm.eps = 1.0  # no file of it holds this
    result = export_model(model, ["safetensors"], output_dir=tmp_path)["safetensors"]
    assert result.other_process is None
    assert "a new PlainLM gives other answers" in result.notes[0]


def test_weights_that_another_process_reads_differently_are_not_exported(tmp_path, monkeypatch):
    from utils.training.export import safetensors as exporter

    real = exporter.loaded_elsewhere

    def altered(request, room, **arguments):
        path = next(tmp_path.rglob(FILE_NAME))
        path.write_bytes(path.read_bytes()[:-4] + b"\x00\x00\xe0\x40")  # the last weight is 7
        return real(request, room, **arguments)

    monkeypatch.setattr(exporter, "loaded_elsewhere", altered)
    with pytest.raises(ExportError, match=r"does not load as the same model: .* differs; nothing was exported"):
        export_model(plain_lm(), ["safetensors"], output_dir=tmp_path / "out")
    assert not (tmp_path / "out" / "safetensors").exists()


def test_a_graph_that_another_process_reads_differently_is_not_exported(tmp_path, monkeypatch):
    import onnx

    from utils.training.export import onnx_verification

    real = onnx_verification.loaded_elsewhere

    def altered(request, room):
        path = next(tmp_path.rglob("model.onnx"))
        graph = onnx.load(path)
        weights = next(tensor for tensor in graph.graph.initializer if tensor.raw_data and len(tensor.dims) == 2)
        weights.raw_data = bytes(len(weights.raw_data))
        onnx.save(graph, path)
        return real(request, room)

    monkeypatch.setattr(onnx_verification, "loaded_elsewhere", altered)
    with pytest.raises(ExportError, match="differ"):
        export_model(plain_lm(), ["onnx"], output_dir=tmp_path / "out")
    assert not (tmp_path / "out" / "onnx").exists()


def test_a_file_that_does_not_load_there_says_why(tmp_path):
    broken = tmp_path / "model.pt"
    broken.write_bytes(b"no archive")
    with (
        pytest.raises(ExportError, match="does not run in another process: RuntimeError"),
        loaded_elsewhere("torchscript", "torch", file=str(broken)),
    ):
        pass


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_processes_are_used_again_and_one_that_ended_is_replaced(tmp_path, monkeypatch):
    started = []
    real = subprocess.Popen

    def counted(*arguments, **options):
        started.append(real(*arguments, **options))
        return started[-1]

    monkeypatch.setattr(subprocess, "Popen", counted)
    layer = nn.Linear(2, 2)
    room = "a room of this test"  # no process of another test is in it
    with kept_processes():
        for file in ("one.pt", "two.pt"):
            torch.jit.save(torch.jit.trace(layer, torch.ones(1, 2)), str(tmp_path / file))
            with loaded_elsewhere("torchscript", room, file=str(tmp_path / file)) as loaded:
                assert torch.equal(loaded.run((torch.ones(1, 2),), {}), layer(torch.ones(1, 2)))
        assert len(started) == 1
        with loaded_elsewhere("torchscript", room, file=str(tmp_path / "one.pt")) as loaded:
            started[0].kill()
            with pytest.raises(ExportError, match="it ended with exit code"):
                loaded.run((torch.ones(1, 2),), {})
        with loaded_elsewhere("torchscript", room, file=str(tmp_path / "two.pt")) as loaded:
            assert len(started) == 2
            assert torch.equal(loaded.run((torch.ones(1, 2),), {}), layer(torch.ones(1, 2)))


def test_int8_weights_are_made_from_the_traced_graphs(tmp_path, monkeypatch):
    from utils.training.export import onnx_graphs

    traced = []
    real = onnx_graphs.write_graph
    monkeypatch.setattr(
        onnx_graphs,
        "write_graph",
        lambda graph, file, *rest: (traced.append(Path(file).name), real(graph, file, *rest)),
    )
    exported = export_model(nn.Sequential(nn.Linear(8, 4)), ["onnx-int8", "onnx"], output_dir=tmp_path)
    assert list(exported) == ["onnx-int8", "onnx"]
    assert traced == ["model.onnx"]
    assert 0.9 <= exported["onnx-int8"].parity["argmax_agreement"] <= 1
    assert "of the most likely tokens or classes equal" in exported["onnx-int8"].agreement
