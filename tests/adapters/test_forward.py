"""Models of any make are called with what they take, and their logits are found."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from tests.kit.toys import tiny_gpt
from utils.adapters import ModelCall
from utils.adapters.facts import model_facts
from utils.errors import ModelError

IDS = torch.tensor([[1, 2, 3]])
LOGITS = torch.rand(1, 3, 5)


def model(forward):
    return type("Model", (nn.Module,), {"forward": forward})()


@pytest.mark.parametrize("forward", [
    lambda self, input_ids: LOGITS, lambda self, x: LOGITS, lambda self, *args: LOGITS, lambda self, **kw: LOGITS,
    lambda self, tokens, mask=None: (LOGITS, "cache"), lambda self, input_ids: {"logits": LOGITS, "loss": None},
    lambda self, input_ids: SimpleNamespace(logits=LOGITS), lambda self, input_ids, *, attention_mask=None: [LOGITS],
])  # fmt: skip
def test_logits_are_found(forward):
    batch = {"input_ids": IDS, "labels": IDS, "attention_mask": torch.ones_like(IDS)}
    assert ModelCall(model(forward))(batch) is LOGITS


def test_only_known_names_are_passed_and_labels_never():
    seen = {}

    def forward(self, input_ids, attention_mask=None, labels=None, use_cache=True):
        seen.update(attention_mask=attention_mask, labels=labels, use_cache=use_cache)
        return LOGITS

    mask = torch.ones_like(IDS)
    ModelCall(model(forward))({"input_ids": IDS, "labels": IDS, "attention_mask": mask, "token_type_ids": IDS})
    assert seen["attention_mask"] is mask
    assert seen["labels"] is None
    assert seen["use_cache"] is False


@pytest.mark.parametrize(("forward", "says"), [
    (lambda self: LOGITS, "takes no arguments"), (lambda self, *, image: LOGITS, "takes \\['image'\\]"),
    (lambda self, input_ids: "text", "returned a str"), (lambda self, input_ids: {"hidden": LOGITS}, "keys \\['hidden'\\]"),
])  # fmt: skip
def test_misfits_are_named(forward, says):
    with pytest.raises(ModelError, match=says):
        ModelCall(model(forward))({"input_ids": IDS})


def test_a_transformers_model_gives_its_logits():
    gpt = tiny_gpt().eval()
    assert torch.equal(ModelCall(gpt)({"input_ids": IDS, "labels": IDS}), gpt(input_ids=IDS).logits)


def test_facts_of_models_of_any_make():
    facts = model_facts(tiny_gpt())
    assert (facts.vocab_size, facts.max_length) == (32, 16)
    plain = nn.Module()
    plain.position_embedding, plain.tokens = nn.Embedding(64, 4), nn.Embedding(7, 4)
    assert model_facts(plain).vocab_size == 7
    assert model_facts(nn.Linear(2, 2)).vocab_size is None
