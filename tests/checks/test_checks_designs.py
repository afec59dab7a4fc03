"""Tier 1 on designs that look like faults but are not, and on faults that look like nothing."""

from __future__ import annotations

import time

import pytest
import torch
from torch import nn
from transformers import Dinov2Config, Dinov2ForImageClassification

from tests.kit.checked_models import (
    Block,
    Meddling,
    PairsPositions,
    PairsRows,
    RowByRow,
    TakesFewerPositions,
    Undecided,
    resnet,
    scaled,
    zero_projections,
)
from tests.kit.healthy_starts import Slopes
from tests.kit.planted_designs import Residual, Text
from tests.kit.planted_starts import STARTS
from utils.checks import (
    run_all_tier1_tests,
    test_gradient_flow,
    test_inference_speed,
    test_output_stability,
    test_parameter_initialization,
    test_shape_robustness,
)
from utils.training import TaskSpec


def steady_clock():
    """Every measured call takes 10 ms: only counted work is judged."""
    now = iter(range(10_000))
    return lambda: next(now) * 0.01


def speed_of(model):
    return test_inference_speed(model, {"batch_size": 2}, n_trials=1, clock=steady_clock())


def alarms(model, config=None):
    return [(r.name, r.summary) for r in run_all_tier1_tests(model, config).results if r.verdict != "pass"]


@pytest.mark.parametrize("config", [None, {"image_size": 32}], ids=["a usual size", "the size of the config"])
def test_an_image_model_without_a_size_runs(config):
    torch.manual_seed(0)
    assert alarms(resnet(), config) == []


def test_a_model_whose_vocabulary_only_the_tokenizer_knows():
    class OneHot(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.layer = nn.Linear(32, 32)

        def forward(self, ids):
            return self.layer(nn.functional.one_hot(ids, 32).float())

    assert run_all_tier1_tests(OneHot()).results[0].verdict == "not run"
    assert run_all_tier1_tests(OneHot(), tokenizer=range(32)).passed
    assert run_all_tier1_tests(OneHot(), task_spec=TaskSpec.language_modeling(vocab_size=32)).passed


# ---- gradients ----


def test_attention_biases_in_fp32_beside_an_fp64_copy():
    torch.manual_seed(0)
    model = Text(Residual(Slopes()))
    result = test_gradient_flow(model, task_spec=TaskSpec("hidden tokens", task_type="masked_lm"))
    assert (result.verdict, "slope_disagreement" in result.measured) == ("pass", True), result.summary


def test_tokens_of_masked_patches_are_for_pretraining():
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 16, "patch_size": 4}
    model = Dinov2ForImageClassification(Dinov2Config(**sizes, num_labels=3))
    result = test_gradient_flow(model, {"image_size": 16, "num_channels": 3})
    assert result.verdict == "pass", result.summary
    assert result.measured["passed_over"] == ["dinov2.embeddings.mask_token"]
    model.dinov2.embeddings.cls_token.requires_grad_(True).register_hook(torch.zeros_like)
    assert test_gradient_flow(model, {"image_size": 16, "num_channels": 3}).verdict == "fail"


def test_recurrent_weights_of_series_of_one_step_are_a_warning_with_its_cause():
    torch.manual_seed(0)
    result = test_gradient_flow(STARTS["series of one step"][0]())
    assert result.verdict == "warn"
    assert "each sample has one step" in result.summary
    assert result.measured["recurrent_of_one_step"] == ["cell.weight_hh_l0"]


@pytest.mark.parametrize("head", [False, True])
def test_what_is_hidden_behind_zeros_is_not_dead(head):
    model = zero_projections(head)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    result = test_gradient_flow(model)
    assert result.verdict == "pass"
    assert "transformer.h.0.mlp.c_fc.weight" in result.measured["behind_zeros"]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_zeros_are_zeros_again_in_a_model_too_large_to_copy(monkeypatch):
    monkeypatch.setattr("utils.checks.probe._COPIED_BYTES", 0)
    model = zero_projections()
    assert test_gradient_flow(model).verdict == "pass"
    assert not any(bool(block.mlp.c_proj.weight.any()) for block in model.transformer.h)


def test_two_layers_of_zeros_in_a_row_never_wake_and_are_dead():
    model = zero_projections()
    with torch.no_grad():
        model.transformer.h[0].mlp.c_fc.weight.zero_()
    result = test_gradient_flow(model)
    assert result.verdict == "fail"
    assert result.measured["without_gradient"] == [
        "transformer.h.0.mlp.c_fc.weight",
        "transformer.h.0.mlp.c_proj.weight",
    ]


def test_frozen_parameters_are_named():
    model = Block()
    model.head.requires_grad_(False)
    assert test_gradient_flow(model).measured["frozen_names"] == ["head.weight", "head.bias"]


# ---- outputs ----


def test_equal_scores_for_all_classes_are_a_failure():
    result = test_output_stability(Undecided())
    assert (result.verdict, "All 32 classes get the same score" in result.summary) == ("fail", True)


def test_a_head_of_zeros_passes_and_is_named():
    result = test_output_stability(zero_projections(head=True))
    assert (result.verdict, "lm_head.weight" in result.summary) == ("pass", True)


def test_logits_of_zero_without_a_layer_of_zeros_are_a_failure():
    class Mute(Block):
        def forward(self, ids_BT):
            return 0 * super().forward(ids_BT)

    assert test_output_stability(Mute()).verdict == "fail"


# ---- initial weights ----


@pytest.mark.parametrize(
    ("name", "factor", "said"),
    [
        ("transformer.h.1.mlp.c_proj.weight", 100, "times the median layer's scale"),
        ("transformer.wte.weight", 100, "too large"),
        ("transformer.h.0.attn.c_attn.weight", 0.001, "below 0.001"),
        ("transformer.h.0.ln_1.weight", 100, "1 is usual: too large"),
    ],
)
def test_a_wrong_scale_is_named(name, factor, said):
    assert test_parameter_initialization(scaled(name, 1)).verdict == "pass"
    result = test_parameter_initialization(scaled(name, factor))
    assert result.verdict == "fail"
    assert f"1 parameter: {name} " in result.summary
    assert said in result.summary


@pytest.mark.parametrize("factor", [0, 1e-4])
def test_a_normalisation_that_is_switched_off_is_a_warning(factor):
    result = test_parameter_initialization(scaled("transformer.ln_f.weight", factor))
    assert (result.verdict, "transformer.ln_f.weight" in result.summary) == ("warn", True)


def test_columns_that_are_all_the_same_are_a_failure():
    model = Block()
    with torch.no_grad():
        model.layer.weight.copy_(model.layer.weight[:, :1].expand(16, 16))
    result = test_parameter_initialization(model)
    assert (result.verdict, "columns that are all the same" in result.summary) == ("fail", True)


# ---- shapes ----


def test_the_shape_that_the_model_cannot_take_is_named():
    result = test_shape_robustness(TakesFewerPositions())
    assert result.verdict == "fail"
    assert "The model raised IndexError" in result.summary
    assert "(1, 32)" in result.summary
    assert "1 other shape worked" in result.summary


def test_nan_logits_are_called_nan_and_not_a_difference_between_rows():
    model = Block()
    with torch.no_grad():
        model.head.bias.fill_(float("nan"))
    result = test_shape_robustness(model)
    assert (result.verdict, "logits are NaN" in result.summary) == ("fail", True)


def test_labels_of_tokens_need_not_be_as_many_as_the_vocabulary():
    class Tagger(Block):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(16, 3)

    tagging = TaskSpec("tags", task_type="token_classification")
    assert test_shape_robustness(Tagger(), task_spec=tagging).verdict == "pass"
    assert test_shape_robustness(Tagger()).verdict == "fail"


def test_an_output_without_logits_is_not_blamed_on_an_exception_of_the_model():
    class Wrong(Block):
        def forward(self, ids_BT):
            return {"scores": super().forward(ids_BT)}

    result = test_shape_robustness(Wrong())
    assert result.verdict == "fail"
    assert "raised" not in result.summary
    assert "['scores']" in result.summary


# ---- speed, by counted work ----


@pytest.mark.parametrize(
    ("make", "verdict", "said"),
    [
        (Block, "pass", "tokens/s"),
        (RowByRow, "warn", "there is a loop over rows"),
        (PairsRows, "fail", "Each row of a batch of 8 takes"),
        (PairsPositions, "warn", "Twice the length takes"),
    ],
)
def test_work_that_grows_too_fast_is_found_without_a_clock(make, verdict, said):
    result = speed_of(make())
    assert result.verdict == verdict
    assert said in result.summary


class Waiting(Block):
    """Its threads wait for each other, as on a busy machine: processor time goes, and only where there are several."""

    def forward(self, input_ids):
        ended = time.process_time() + (0.05 if torch.get_num_threads() > 1 and len(input_ids) > 1 else 0)
        while time.process_time() < ended:
            pass
        return super().forward(input_ids)


def test_threads_that_wait_for_each_other_are_no_work():
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        result = test_inference_speed(Waiting(), {"batch_size": 2}, n_trials=1)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert result.verdict == "pass", result.summary


def test_a_compiled_model_is_timed_but_not_counted():
    result = speed_of(torch.compile(Block(), backend="eager"))
    assert result.verdict == "pass"
    assert result.measured["operations_per_further_row"] is None


# ---- left as it was ----


def test_a_model_that_changes_itself_is_put_back():
    model = Meddling()
    weight, buffer = model.layer.weight.detach().clone(), model.calls
    run_all_tier1_tests(model)
    assert torch.equal(model.layer.weight, weight)
    assert model.calls is buffer
    assert float(buffer) == 0


def test_a_step_inside_backward_is_taken_back():
    model = Block()
    weight = model.layer.weight.detach().clone()
    optimizer = torch.optim.SGD([model.layer.weight], lr=1.0)
    model.layer.weight.register_post_accumulate_grad_hook(lambda parameter: optimizer.step())
    test_gradient_flow(model)
    assert torch.equal(model.layer.weight, weight)


def test_results_are_found_by_place_and_by_name():
    report = run_all_tier1_tests(Block())
    assert report[0] is report["shapes"]
    assert report[-1] is report["inference speed"]
