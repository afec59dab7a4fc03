"""Tiers 2 and 3: what a model uses, how steady it is, and whether it can memorise one batch."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.kit.healthy_models import HEALTHY, Attention
from tests.kit.limits import assert_limits
from tests.kit.planted import Causal
from tests.kit.toys import tiny_gpt
from utils.checks import (
    run_all_tier2_tests,
    run_all_tier3_tests,
    test_attention_patterns,
    test_attribution_analysis,
    test_overfit_one_batch,
    test_robustness,
)
from utils.checks.attention import captured_attention


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", HEALTHY)
def test_a_healthy_model_raises_no_alarm_in_tier_2(name):
    torch.manual_seed(0)
    report = run_all_tier2_tests(HEALTHY[name]())
    assert [(r.name, r.summary) for r in report.results if r.verdict in ("warn", "fail")] == []


# ---- attention ----


def manual_weights(q, k, causal):
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    if causal:
        scores = scores.masked_fill(~torch.ones(scores.shape[-2:], dtype=torch.bool).tril(), float("-inf"))
    return scores.softmax(-1)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("way", ["fused", "fused with a mask", "softmax", "fewer key heads"])
def test_weights_are_those_of_the_formula_whatever_computes_them(way, causal):
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 4, 9, 8).unbind(0)
    batch = {"input_ids": torch.zeros(2, 9, dtype=torch.long)}
    expected = manual_weights(q, k, causal)
    if way == "fewer key heads":
        k, v = k[:, :2], v[:, :2]
        expected = manual_weights(q, k.repeat_interleave(2, 1), causal)
    mask = torch.zeros(9, 9).masked_fill(~torch.ones(9, 9, dtype=torch.bool).tril(), float("-inf")) if causal else None
    with torch.no_grad(), captured_attention(batch) as captured:
        if way == "softmax":
            manual_weights(q, k, causal)
        elif way == "fused with a mask":
            F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        else:
            F.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=way == "fewer key heads")
    assert len(captured.layers) == 1
    assert torch.allclose(captured.layers[0], expected, atol=1e-5)


@pytest.mark.parametrize("kind", ["eager", "sdpa"])
def test_every_layer_of_a_transformers_model_is_seen(kind):
    model = tiny_gpt()
    model.config._attn_implementation = kind
    measured = test_attention_patterns(model).measured
    assert (measured["num_layers"], measured["heads"]) == (model.config.n_layer, model.config.n_layer * model.config.n_head)


def test_attention_that_torch_computes_in_one_operation_is_seen():
    assert test_attention_patterns(Attention().eval()).measured["num_layers"] == 3


class Fault(Causal):
    """The planted transformer with something wrong in how it uses its input."""

    def __init__(self, fault):
        super().__init__()
        self.kind = fault
        with torch.no_grad():
            if fault == "scores too large":
                for mixer in self.mixers:
                    mixer.qkv.weight.mul_(30)
            if fault == "identical heads":
                for mixer in self.mixers:
                    for part in (0, 32):
                        mixer.qkv.weight[part + 16 : part + 32] = mixer.qkv.weight[part : part + 16]
                        mixer.qkv.bias[part + 16 : part + 32] = mixer.qkv.bias[part : part + 16]

    def forward(self, input_ids, attention_mask=None):
        if self.kind == "context ignored":
            return self.head(self.norm(self.embedding(input_ids)))
        if self.kind == "order ignored":
            hidden = self.embedding(input_ids)
            return self.head(self.norm(hidden + hidden.cumsum(1) / 4))
        return super().forward(input_ids, attention_mask)


@pytest.mark.parametrize("cause", ["scores too large", "identical heads"])
def test_a_fault_of_attention_is_named(cause):
    result = test_attention_patterns(Fault(cause))
    assert cause in [finding.cause for finding in result.findings]
    assert result.figure is not None


@pytest.mark.parametrize("cause", ["context ignored", "order ignored"])
def test_what_a_model_does_not_use_is_measured(cause):
    from utils.checks.probe import probe
    from utils.checks.usage import context_is_used, order_matters

    found, measured = probe(Fault(cause)), {}
    findings = [*context_is_used(found, measured), *order_matters(found, measured)]
    assert [finding.cause for finding in findings] == [cause]


def test_a_model_without_attention_is_not_run_with_the_reason():
    result = test_attention_patterns(HEALTHY["GRU"]())
    assert (result.verdict, "No attention weights" in result.summary) == ("not run", True)


# ---- attribution ----


def test_attributions_of_a_linear_model_are_its_weights_times_the_inputs():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3))
    result = test_attribution_analysis(model)
    from utils.checks.probe import probe

    inputs = probe(model).batch(1, 0, seed=10)["inputs"]
    target = int(model(inputs).argmax())
    expected = (model[0].weight[target] * inputs[0]).tolist()
    assert result.measured["scores"] == pytest.approx(expected, abs=1e-4)
    assert result.measured["completeness_error"] < 1e-3


def test_attributions_name_the_tokens_of_a_text():
    class Words:
        def encode(self, text):
            return [len(word) for word in text.split()]

        def decode(self, ids):
            return f"word of {ids[0]}"

    result = test_attribution_analysis(tiny_gpt(), tokenizer=Words(), input_text="a bb ccc dddd")
    assert result.measured["tokens"] == ["word of 1", "word of 2", "word of 3", "word of 4"]


def test_without_captum_attribution_is_not_run_and_says_what_to_install(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    result = test_attribution_analysis(tiny_gpt())
    assert (result.verdict, "pip install captum" in result.remedy) == ("not run", True)


# ---- robustness ----


def test_a_model_that_reacts_to_rounding_is_named():
    result = test_robustness(Fault("scores too large"))
    assert result.verdict == "pass"

    class Amplified(Causal):
        def forward(self, input_ids, attention_mask=None):
            return torch.sin(super().forward(input_ids, attention_mask) * 5000) * 20

    result = test_robustness(Amplified())
    assert [finding.cause for finding in result.findings] == ["oversensitive"]


def test_positions_that_become_alike_are_named():
    result = test_robustness(Collapsing())
    assert "representation collapse" in [finding.cause for finding in result.findings]


class Collapsing(nn.Module):
    """Each block moves all positions closer to a common vector."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.max_seq_len = 32
        self.embedding = nn.Embedding(60, 32)
        self.blocks = nn.ModuleList(nn.Linear(32, 32) for _ in range(4))
        for block in self.blocks:
            nn.init.normal_(block.weight, std=0.02)
            nn.init.constant_(block.bias, 1.0)
        self.head = nn.Linear(32, 60)

    def forward(self, ids):
        hidden = self.embedding(ids)
        for block in self.blocks:
            hidden = block(hidden)
        return self.head(hidden)


# ---- tier 3 and the whole ----


def test_a_model_whose_logits_are_clipped_cannot_learn_one_batch():
    clipped = test_overfit_one_batch(Causal("clamp"), steps=60)
    assert clipped.verdict == "fail"
    assert clipped.remedy


@pytest.mark.parametrize("name", ["GPT-2", "BERT", "BERT tagger", "ViT", "classifier of a table"])
def test_a_healthy_model_learns_one_batch_and_is_not_changed(name):
    torch.manual_seed(0)
    model = HEALTHY[name]()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    result = test_overfit_one_batch(model, steps=120)
    assert result.verdict == "pass", result.summary
    assert_limits(result)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_one_check_of_tier_3_runs_alone():
    assert list(run_all_tier3_tests(Causal(), only=["overfit one batch"])) == ["overfit one batch"]
