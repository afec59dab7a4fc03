"""Any module can be exported as safetensors, and the snippet beside the file loads it again, bit for bit."""

from __future__ import annotations

import json
import runpy

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from tests.export.test_export_onnx import results_of
from tests.kit.toys import normed_lm, recurrent_lm, tiny_gpt, token_rows
from utils.errors import ExportError
from utils.training import export_model
from utils.training.export import safetensors as exporter
from utils.training.export.folders import MARKER


class Odd(nn.Module):
    """Tied weights, views, a scalar, complex, integer and half-precision tensors, an extra state, nothing over token ids."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        base = torch.randn(6, 4)
        self.first = nn.Linear(4, 4)
        self.second = nn.Linear(4, 4)
        self.second.weight = self.first.weight
        self.register_buffer("whole", base)
        self.register_buffer("part", base[1:3])
        self.register_buffer("turned", base.t())
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.spectrum = nn.Parameter(torch.randn(3, dtype=torch.complex64))
        self.register_buffer("count", torch.tensor(3))
        self.register_buffer("mask", torch.tensor([True, False]))
        self.register_buffer("unknown", torch.tensor([float("nan")]))
        self.register_buffer("small", torch.randn(2).bfloat16())
        self.version = torch.tensor([7])

    def get_extra_state(self):
        return self.version

    def set_extra_state(self, state):
        self.version = state


class Convolution(nn.Sequential):
    """A model over pictures."""

    def __init__(self):
        torch.manual_seed(0)
        super().__init__(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.LazyLinear(2))
        self(torch.randn(2, 3, 8, 8))


MODELS = {"gpt2, tied": tiny_gpt, "recurrent": recurrent_lm, "batch norm": normed_lm, "odd": Odd, "pictures": Convolution}


def raw(tensor):
    return tensor.detach().contiguous().flatten().view(torch.uint8)


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(raw(first[name]), raw(second[name])) for name in first)


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_any_module_is_written_and_loads_again_bit_for_bit(make, tmp_path):
    model = make()
    result = export_model(results_of(model, tmp_path), formats=["safetensors"])["safetensors"]
    loaded = make()
    with torch.no_grad():
        for parameter in loaded.parameters():
            parameter.zero_()
    loaded.load_state_dict(load_file(result.path / "model.safetensors"))
    assert same(loaded.state_dict(), model.state_dict())
    assert result.parity == {"max_abs_diff": 0.0, "tensors": len(model.state_dict())}
    assert f"all {len(model.state_dict())} tensors equal the model's" in str(result)
    assert json.loads((result.path / MARKER).read_text())["class"] == type(model).__name__


def test_the_snippet_loads_the_model(tmp_path):
    model = normed_lm()
    result = export_model(results_of(model, tmp_path), formats="safetensors")["safetensors"]
    moved = result.path.rename(tmp_path / "moved")
    code = (moved / "load.py").read_text()
    assert "from tests.kit.toys import NormedLM" in code
    (moved / "load.py").write_text(code.replace("NormedLM(...)", "NormedLM()"))
    names = runpy.run_path(str(moved / "load.py"))
    assert same(names["model"].state_dict(), model.state_dict())
    assert torch.equal(names["model"](token_rows(2)), model.eval()(token_rows(2)))
    assert not names["model"].training


def test_the_note_holds_the_lines_to_run_here(tmp_path):
    class Local(nn.Linear):
        pass

    result = export_model(results_of(Local(2, 2), tmp_path), formats="safetensors")["safetensors"]
    (note,) = [note for note in result.notes if "load_state_dict" in note]
    code = note.split("\n", 1)[1]
    assert "from tests" not in code
    (tmp_path / "note.py").write_text(code.replace("Local(...)", "Local(2, 2)"))
    names = runpy.run_path(str(tmp_path / "note.py"), {"Local": Local})
    assert isinstance(names["model"], Local)


class WithObject(nn.Linear):
    def get_extra_state(self):
        return {"anything": object()}

    def set_extra_state(self, state):
        pass


class Sparse(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("graph", torch.eye(3).to_sparse())


REFUSED = {
    "extra state": (
        lambda: WithObject(2, 2),
        r"WithObject\._extra_state is a dict; safetensors files hold tensors only",
    ),
    "sparse": (Sparse, r"Sparse\.graph is sparse_coo, which safetensors files cannot hold"),
    "complex128": (lambda: nn.Linear(2, 2, dtype=torch.complex128), r"Linear\.weight is complex128"),
    "nothing": (nn.Identity, "Identity has no parameters and no buffers"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_the_format_cannot_hold_is_refused_by_name(kind):
    make, message = REFUSED[kind]
    with pytest.raises(ExportError, match=message):
        exporter.refuse_unsupported(make())


def test_a_module_that_does_not_load_as_what_it_saved_is_not_written(tmp_path):
    class Forgetful(nn.Linear):
        def _load_from_state_dict(self, state, prefix, *arguments):
            super()._load_from_state_dict({**state, f"{prefix}bias": state[f"{prefix}bias"] + 1}, prefix, *arguments)

    results = results_of(Forgetful(2, 2), tmp_path)
    with pytest.raises(ExportError, match="does not load as the same model: bias differs"):
        export_model(results, formats="safetensors")
    assert not (tmp_path / "exports").exists()
