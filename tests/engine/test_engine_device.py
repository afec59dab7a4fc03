"""What a machine cannot do is refused with what it can, and "auto" means the best that is there."""

from __future__ import annotations

import pytest
import torch

from tests.kit.toys import golden_config, tiny_gpt, train_set
from utils import environment
from utils.environment import Device, detect_device
from utils.errors import ConfigError
from utils.training import Trainer
from utils.training.engine.hardware.precision import ResolvedPrecision, check_attention

CPU_ONLY = ("present: cpu", "Use one of these, or 'auto'")


@pytest.fixture(autouse=True)
def plain_cpu(monkeypatch):
    """Whatever this machine is: no GPU, no bf16 in hardware, no driver."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    for probe in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, probe, lambda: False, raising=False)
    monkeypatch.setattr(environment, "_NVIDIA_DRIVER", environment.Path("/nowhere"))


@pytest.fixture
def cuda(monkeypatch):
    """torch finds a GPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Toy GPU")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)


@pytest.fixture
def unusable_gpu(monkeypatch, tmp_path):
    """A driver is loaded, and torch finds nothing."""
    (tmp_path / "version").write_text("NVRM version: NVIDIA")
    monkeypatch.setattr(environment, "_NVIDIA_DRIVER", tmp_path / "version")


def flash_gpt():
    model = tiny_gpt()
    model.config._attn_implementation = "flash_attention_2"
    return model


ASKED = {
    "cuda": ({}, "cuda", tiny_gpt, ("TRAINBOOK_DEVICE='cuda': there is no such device here", *CPU_ONLY)),
    "a word that is no device": ({}, "gpu", tiny_gpt, ("TRAINBOOK_DEVICE is one of auto, cuda, mps, cpu; got 'gpu'",)),
    "fp16": ({"precision": "fp16"}, None, tiny_gpt, ("precision='fp16' needs a GPU", "Use 'auto', 'bf16' or '32'")),
    "flash attention": ({}, None, flash_gpt, ("attn_implementation='flash_attention_2'", "computing in 32", "'sdpa'")),
    "bf16": ({"precision": "bf16"}, None, tiny_gpt, ("bf16", ["precision='bf16' is emulated on this cpu: slower than '32', and rounded."])),
    "16": ({"precision": "16"}, None, tiny_gpt, ("32", ["half precision was asked for; this cpu has none in hardware, so fp32 is used."])),
    "auto": ({}, "auto", tiny_gpt, ("32", [])),
    "cpu": ({}, "cpu", tiny_gpt, ("32", [])),
}  # fmt: skip


@pytest.mark.parametrize("asked", ASKED)
def test_f43_what_a_cpu_is_asked_for_it_does_or_refuses_before_the_first_step(asked, monkeypatch):
    settings, device, make, expected = ASKED[asked]
    if device is not None:
        monkeypatch.setenv("TRAINBOOK_DEVICE", device)
    model = make()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    trainer = Trainer(model, None, golden_config(epochs=1, **settings))
    if isinstance(expected[-1], str):
        with pytest.raises(ConfigError) as caught:
            trainer.train(train_set())
        assert all(part in str(caught.value) for part in expected), str(caught.value)
        assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
        return
    results = trainer.train(train_set())
    compute, said = expected
    assert results.precision == compute
    assert [notice for notice in results.notices if "precision" in notice or "CPU" in notice] == said


@pytest.mark.usefixtures("unusable_gpu")
def test_auto_falls_back_with_one_notice_where_a_gpu_cannot_be_used(monkeypatch):
    results = Trainer(tiny_gpt(), None, golden_config(epochs=1)).train(train_set())
    said = [notice for notice in results.notices if "CPU" in notice]
    assert len(said) == 1
    assert said[0].startswith("Training uses the CPU, though an NVIDIA driver is here: torch ")
    with pytest.raises(ConfigError, match=r"no such device here \(an NVIDIA driver is here.*present: cpu"):
        detect_device("cuda")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # somebody hid it
    assert detect_device().notice is None
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert detect_device("cpu").notice is None


@pytest.mark.usefixtures("cuda")
def test_where_torch_finds_a_gpu_auto_and_cuda_mean_it_and_cpu_means_the_cpu(monkeypatch):
    assert detect_device() == detect_device("cuda") == detect_device("auto") == Device("cuda", "Toy GPU", True)
    assert detect_device("cpu").kind == "cpu"
    with pytest.raises(ConfigError, match=r"device='mps'.*present: cuda, cpu"):
        detect_device("mps")
    monkeypatch.setenv("TRAINBOOK_DEVICE", "cpu")
    assert detect_device().kind == "cpu"
    assert detect_device("cuda").kind == "cuda"


def test_flash_attention_is_let_through_where_it_works():
    gpu = Device("cuda", "Toy GPU", True)
    check_attention(flash_gpt(), gpu, ResolvedPrecision("bf16"))
    check_attention(tiny_gpt(), Device("cpu", "CPU", False), ResolvedPrecision("32"))
    with pytest.raises(ConfigError, match="this is a cuda computing in 32"):
        check_attention(flash_gpt(), gpu, ResolvedPrecision("32"))


def test_versions_are_those_that_are_installed_now(tmp_path, monkeypatch):
    before = environment.package_versions()
    assert before["torch"] == torch.__version__
    before.clear()
    monkeypatch.syspath_prepend(tmp_path)
    assert environment.package_versions()["torch"] == torch.__version__
    metadata = tmp_path / "numpy-99.1.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text("Metadata-Version: 2.1\nName: numpy\nVersion: 99.1\n")
    assert environment.package_versions()["numpy"] == "99.1"
