"""Adapters on one base model are listed: by run, with what they change, and only those of that base."""

from __future__ import annotations

import os

import pytest

from tests.kit.pretrained import save_llama
from utils.training import list_adapters
from utils.ui import SetupConfig, WizardState

peft = pytest.importorskip("peft")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_llama(tmp_path_factory.mktemp("pretrained") / "llama")


def write_adapter(run, base, **settings):
    folder = run / "exports" / "peft"
    folder.mkdir(parents=True)
    peft.LoraConfig(base_model_name_or_path=str(base), **settings).save_pretrained(folder)
    (folder / "adapter_model.safetensors").write_bytes(b"0" * 2048)


def test_several_adapters_on_one_base_are_listed(base, tmp_path):
    runs = tmp_path / "runs"
    write_adapter(
        runs / "b", base, r=8, target_modules=["model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.q_proj"]
    )
    write_adapter(runs / "a", base, r=4, lora_alpha=32, target_modules=["q_proj", "v_proj"])
    write_adapter(runs / "c", "owner/other", r=2)
    (runs / "d" / "exports" / "peft").mkdir(parents=True)
    (runs / "d" / "exports" / "peft" / "adapter_config.json").write_text("[]")
    first, second = list_adapters(runs, os.path.relpath(base))
    assert (first.run, first.rank, first.alpha, first.targets) == ("a", 4, 32, ("q_proj", "v_proj"))
    assert (second.run, second.rank, second.targets) == ("b", 8, ("q_proj",))
    assert second.bytes_on_disk == 2048
    assert [adapter.run for adapter in list_adapters(runs)] == ["a", "b", "c"]
    assert [adapter.run for adapter in list_adapters(runs, "owner/other")] == ["c"]
    assert list_adapters(tmp_path / "nowhere") == []


def test_the_wizard_names_them_beside_the_model(base, tmp_path):
    from widgets.wizard_view import WizardView

    write_adapter(tmp_path / "runs" / "mine", base, r=4)
    view = WizardView(WizardState(SetupConfig(pretrained_model=str(base), output_dir=str(tmp_path / "runs"))))
    view["step:model"].click()
    assert "mine: rank 4" in view["model-files"].value
