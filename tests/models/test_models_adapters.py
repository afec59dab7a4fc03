"""Adapters of peft as sources of models."""

from __future__ import annotations

import json

import pytest
import torch

from tests.kit.healthy_makes import with_peft
from tests.kit.toys import tiny_llama, token_rows
from utils.errors import ModelError
from utils.models import load_model

pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # peft's own, about names in transformers


@pytest.fixture
def adapter(tmp_path):
    """(folder, logits of the adapted model, the base's folder)."""
    model, base = with_peft(trained=True), tmp_path / "base"
    ids = token_rows(2, 8, 60)
    with torch.no_grad():
        logits = model(input_ids=ids).logits
    model.save_pretrained(tmp_path / "adapter")
    model.unload().save_pretrained(base)
    return tmp_path / "adapter", ids, logits, base


def test_an_adapter_is_loaded_on_the_base_that_it_names(adapter):
    folder, ids, logits, base = adapter
    described = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**described, "base_model_name_or_path": str(base)}))
    with torch.no_grad():
        torch.testing.assert_close(load_model(folder).eval()(input_ids=ids).logits, logits)


def test_the_base_can_be_given(adapter):
    folder, ids, logits, base = adapter
    with torch.no_grad():
        for given in (base, load_model(base)):
            torch.testing.assert_close(load_model(folder, base=given).eval()(input_ids=ids).logits, logits)


def test_an_adapter_of_another_model_is_refused(adapter):
    folder, *_ = adapter
    with pytest.raises(ModelError, match="does not fit its base model"):
        load_model(folder, base=tiny_llama())


def test_an_adapter_without_a_base_says_what_to_give(adapter):
    folder, *_ = adapter
    described = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**described, "base_model_name_or_path": None}))
    with pytest.raises(ModelError, match="base="):
        load_model(folder)
