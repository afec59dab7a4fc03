"""Tier 1: healthy models raise no alarm, each fault raises its own, and the model is left exactly as it was."""

from __future__ import annotations

import itertools
import json
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from tests.kit.toys import recurrent_lm, tiny_gpt
from utils.checks import (
    CheckReport,
    CheckResult,
    run_all_tier1_tests,
    run_all_tier2_tests,
    test_gradient_flow,
    test_inference_speed,
    test_memory_footprint,
    test_output_stability,
    test_parameter_initialization,
    test_shape_robustness,
)
from utils.errors import ConfigError
from utils.models import ModelRegistry
from utils.training import TaskSpec

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}


def bert(head="BertForMaskedLM"):
    import transformers

    return getattr(transformers, head)(transformers.BertConfig(vocab_size=60, max_position_embeddings=64, **SIZES))


def llama():
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"vocab_size": 60, "max_position_embeddings": 64, "bos_token_id": 0, "eos_token_id": 0}
    return LlamaForCausalLM(LlamaConfig(**sizes, **SIZES))


def vit():
    from transformers import ViTConfig, ViTForImageClassification

    return ViTForImageClassification(ViTConfig(image_size=32, patch_size=8, num_labels=5, **SIZES))


HEALTHY = {
    "GPT-2": tiny_gpt,
    "gpt-small": lambda: ModelRegistry.create("gpt-small", vocab_size=512, max_seq_len=64, n_layer=2, n_embd=64),
    "BERT, masked": bert,
    "BERT, classes": lambda: bert("BertForSequenceClassification"),
    "Llama": llama,
    "ViT": vit,
    "a plain GRU": recurrent_lm,
}


@pytest.mark.parametrize("name", HEALTHY)
def test_a_healthy_stock_model_raises_no_alarm(name):
    torch.manual_seed(0)
    report = run_all_tier1_tests(HEALTHY[name]())
    assert [(r.name, r.verdict, r.summary) for r in report.results if r.verdict != "pass"] == []
    assert len(report) == 6
    assert report.passed


def state_of(model):
    return {
        "modes": [module.training for module in model.modules()],
        "numbers": {name: tensor.clone() for name, tensor in model.state_dict().items()},
        "gradients": [
            (parameter.grad, None if parameter.grad is None else parameter.grad.clone())
            for parameter in model.parameters()
        ],
        "frozen": [parameter.requires_grad for parameter in model.parameters()],
        "hooks": [len(m._forward_hooks) + len(m._backward_hooks) + len(m._forward_pre_hooks) for m in model.modules()],
    }


class WithBatchNorm(nn.Module):
    """Its running statistics change in every forward pass of training mode."""

    def __init__(self):
        super().__init__()
        self.embedding, self.norm, self.head = nn.Embedding(32, 8), nn.BatchNorm1d(8), nn.Linear(8, 32)
        self.max_seq_len = 16

    def forward(self, ids):
        return self.head(self.norm(self.embedding(ids).transpose(1, 2)).transpose(1, 2))


@pytest.mark.parametrize("make", [tiny_gpt, WithBatchNorm])
def test_the_model_is_left_exactly_as_it_was(make, rng_untouched):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = make()
    model.eval()
    next(model.children()).train()
    parameters = list(model.parameters())
    parameters[0].grad = torch.full_like(parameters[0], 3.0)
    parameters[1].requires_grad = False
    before = state_of(model)
    run_all_tier1_tests(model)
    after = state_of(model)
    for part in ("modes", "frozen", "hooks"):
        assert after[part] == before[part]
    assert all(torch.equal(before["numbers"][name], after["numbers"][name]) for name in before["numbers"])
    for (was, value), (now, _) in zip(before["gradients"], after["gradients"], strict=True):
        assert now is was
        assert now is None or torch.equal(now, value)


# ---- each fault is found by the check that is there for it ----


class Faulty(nn.Module):
    """A small causal model with one thing wrong."""

    def __init__(self, fault=""):
        super().__init__()
        torch.manual_seed(0)
        self.fault, self.max_seq_len = fault, 16
        self.embedding = nn.Embedding(32, 16)
        self.mixer = nn.GRU(16, 16, batch_first=True)
        self.branch = nn.Linear(16, 16)
        self.head = nn.Linear(16, 32)

    def forward(self, ids):
        hidden = self.mixer(self.embedding(ids))[0]
        more = self.branch(hidden)
        hidden = hidden + {"dead": more.detach(), "weak": more * 1e-9}.get(self.fault, more)
        if self.fault == "future":
            hidden = hidden + hidden.mean(1, keepdim=True)
        if self.fault == "rows":
            hidden = hidden + hidden.mean(0, keepdim=True)
        if self.fault == "deaf":
            hidden = torch.zeros_like(hidden) * hidden
        if self.fault == "random":
            hidden = nn.functional.dropout(hidden, 0.5)
        logits = self.head(hidden)
        if self.fault == "shape":
            return logits[:, -1]
        if self.fault == "narrow":
            return logits[..., :20]
        if self.fault == "huge":
            return logits * 1e4
        if self.fault == "raises":
            raise RuntimeError("broken on purpose\nsecond line")
        return logits

    def with_weight(self, change):
        with torch.no_grad():
            change(self.branch.weight)
        return self


def test_without_a_fault_it_passes():
    assert run_all_tier1_tests(Faulty()).passed


FAULTS = [
    (test_shape_robustness, "shape", "fail", "Wrong shapes of logits"),
    (test_shape_robustness, "narrow", "fail", "(1, 1) gave (1, 1, 20), not (1, 1, 32)"),
    (test_shape_robustness, "future", "fail", "A later token changes earlier logits"),
    (test_shape_robustness, "rows", "fail", "A row's logits change"),
    (test_shape_robustness, "raises", "fail", "The model raised RuntimeError: broken on purpose"),
    (test_gradient_flow, "dead", "fail", "branch.weight"),
    (test_gradient_flow, "weak", "warn", "branch.weight"),
    (test_output_stability, "deaf", "fail", "the input hardly matters"),
    (test_output_stability, "random", "fail", "The same input gives logits that differ"),
    (test_output_stability, "huge", "fail", "standard deviation of"),
]


@pytest.mark.parametrize(("run", "fault", "verdict", "said"), FAULTS, ids=[fault for _, fault, _, _ in FAULTS])
def test_a_fault_is_found_and_named(run, fault, verdict, said):
    result = run(Faulty(fault))
    assert result.verdict == verdict
    assert said in result.summary
    assert result.remedy
    assert run(Faulty()).verdict == "pass"


WEIGHTS = [
    ("NaN", lambda w: w[0, 0].fill_(float("nan")), "fail", "NaN"),
    ("a hundred times too large", lambda w: w.mul_(100), "fail", "too large"),
    ("a thousandth", lambda w: w.mul_(1e-3), "fail", "below 0.001"),
    ("equal rows", lambda w: w.copy_(w[0].expand_as(w)), "fail", "all the same"),
    ("zeros", lambda w: w.zero_().requires_grad_(False), "warn", "all zeros"),
    ("not centred", lambda w: w.add_(1.0), "warn", "mean"),
]


@pytest.mark.parametrize(("change", "verdict", "said"), [row[1:] for row in WEIGHTS], ids=[row[0] for row in WEIGHTS])
def test_a_wrong_scale_of_weights_is_named(change, verdict, said):
    result = test_parameter_initialization(Faulty().with_weight(change))
    assert result.verdict == verdict
    assert "branch.weight" in result.summary
    assert said in result.summary


def test_a_nan_weight_is_seen_by_gradients_and_outputs_too():
    model = Faulty().with_weight(lambda w: w[0, 0].fill_(float("nan")))
    assert test_gradient_flow(model).verdict == "fail"
    result = test_output_stability(model)
    assert (result.verdict, "NaN or infinite" in result.summary) == ("fail", True)


def test_gradients_that_explode_are_told():
    result = test_gradient_flow(Faulty("huge"))
    assert result.verdict == "fail"
    assert "total norm" in result.summary


def test_frozen_parameters_are_no_alarm_but_nothing_trainable_is():
    model = Faulty()
    model.branch.requires_grad_(False)
    result = test_gradient_flow(model)
    assert (result.verdict, result.measured["frozen"]) == ("pass", 2)
    model.requires_grad_(False)
    assert test_gradient_flow(model).verdict == "fail"


def test_a_model_that_sees_both_sides_is_not_asked_for_causality():
    assert test_shape_robustness(Faulty("future"), task_spec=TaskSpec.masked_lm()).verdict == "pass"
    assert "causality not asked" in test_shape_robustness(bert()).summary


# ---- memory ----


def test_memory_counts_what_shapes_and_types_say():
    model = tiny_gpt()
    result = test_memory_footprint(model, {"batch_size": 4})
    size = sum(p.numel() for p in model.parameters()) * 4 / 2**20
    assert result.measured["parameters_mib"] == pytest.approx(size)
    assert result.measured["gradients_mib"] == pytest.approx(size)
    assert result.measured["optimizer_mib"] == pytest.approx(2 * size)


def test_activations_grow_with_the_batch():
    small, large = (test_memory_footprint(tiny_gpt(), {"batch_size": b}).measured["activations_mib"] for b in (2, 8))
    assert 3 < large / small < 5


def test_training_that_does_not_fit_fails_and_names_a_batch_that_does():
    model = tiny_gpt()
    needed = test_memory_footprint(model, {"batch_size": 64}).measured["total_mib"]
    result = test_memory_footprint(model, {"batch_size": 64}, free_bytes=int(needed / 2 * 2**20))
    assert result.verdict == "fail"
    fits = int(result.remedy.split("Set batch_size to ")[1].split()[0])
    assert 1 <= fits < 64
    free = int(needed / 2 * 2**20)
    assert test_memory_footprint(model, {"batch_size": fits}, free_bytes=free).verdict == "pass"
    assert test_memory_footprint(model, {"batch_size": fits + 2}, free_bytes=free).verdict == "fail"


def test_a_model_that_fits_in_no_size_says_so():
    assert "Even one row does not fit" in test_memory_footprint(tiny_gpt(), free_bytes=1000).remedy


class PairsRows(Faulty):
    def forward(self, ids):
        logits = super().forward(ids)
        rows = logits.flatten(1)
        pairs = (rows[:, None] * rows[None]).tanh().tanh()
        return logits + 0 * pairs.sum()


def test_memory_that_grows_with_the_square_of_the_batch_is_told():
    assert test_memory_footprint(PairsRows()).verdict == "warn"


# ---- speed, with a clock of our own ----


def clock_of(*seconds):
    """Each measured call takes the next of `seconds`, the last one for ever."""
    durations = itertools.chain(seconds, itertools.repeat(seconds[-1]))
    now = 0.0

    def clock():
        nonlocal now, inside
        if inside:
            now += next(durations)
        inside = not inside
        return now

    inside = False
    return clock


def speed(single, together, half):
    calls = [single] * 3 + [together] * 3 + [half] * 3
    return test_inference_speed(tiny_gpt(), {"batch_size": 4}, n_trials=1, clock=clock_of(*calls))


def test_speed_is_judged_by_how_it_grows():
    assert speed(single=0.01, together=0.02, half=0.006).verdict == "pass"
    assert speed(single=0.01, together=0.09, half=0.006).verdict == "fail"
    assert speed(single=0.01, together=0.02, half=0.001).verdict == "warn"


def test_speed_reports_what_it_measured():
    measured = speed(single=0.01, together=0.02, half=0.006).measured
    assert measured["batch_1_median_ms"] == pytest.approx(10)
    assert measured["samples_per_s"] == pytest.approx(200)


# ---- what cannot be checked is not run, and not run is no pass ----


def test_a_model_of_unknown_inputs_is_not_run_and_does_not_pass():
    report = run_all_tier1_tests(nn.Bilinear(3, 3, 2))
    assert {result.verdict for result in report.results} == {"not run"}
    assert not report.passed
    assert "give config with vocab_size" in report.results[0].remedy


def test_sizes_may_come_from_a_config():
    class Sums(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(32, 32))

        def forward(self, ids):
            return nn.functional.one_hot(ids, 32).float() @ self.weight

    for config in (SimpleNamespace(vocab_size=32, max_seq_len=8), {"vocab_size": 32}):
        assert test_shape_robustness(Sums(), config).verdict == "pass"


def test_what_is_no_module_is_not_run():
    assert run_all_tier1_tests("gpt2").results[0].verdict == "not run"


# ---- the report ----


def test_a_report_passes_only_when_everything_ran_and_nothing_failed():
    def verdict_of(*verdicts):
        return CheckReport("Tier 1", [CheckResult(f"c{i}", v, "s") for i, v in enumerate(verdicts)]).passed

    assert verdict_of("pass", "warn")
    assert not verdict_of("pass", "not run")
    assert not verdict_of("pass", "fail")
    assert not verdict_of()


HOSTILE = "<script>alert(1)</script>"


def test_a_report_can_be_read_as_table_json_html_and_text(capsys):
    result = CheckResult("c", "fail", HOSTILE, {"loss": float("nan")}, remedy="do")
    report = CheckReport("Tier 1", [result, CheckResult("d", "pass", "fine")])
    assert list(report.to_frame()["verdict"]) == ["fail", "pass"]
    assert json.loads(report.to_json())["results"][0]["measured"]["loss"] == "nan"
    for markup in (report.to_html(), report.to_page()):
        assert HOSTILE not in markup
        assert "&lt;script&gt;" in markup
    assert report["d"].summary == "fine"
    assert list(report) == ["c", "d"]
    report.show()
    shown = capsys.readouterr().out
    assert "Not passed: 1 pass, 1 fail" in shown
    assert "fail" in shown


def test_a_report_has_stable_keys_in_json_and_as_a_table():
    report = CheckReport("Tier 1", [test_gradient_flow(tiny_gpt()), CheckResult("d", "not run", "No data.")], 1.5)
    content = json.loads(report.to_json())
    assert set(content) == {"title", "passed", "conclusion", "seconds", "results"}
    for result in content["results"]:
        assert set(result) == {
            "name", "verdict", "summary", "measured", "thresholds", "remedy", "findings", "limits",
        }  # fmt: skip
        assert all(set(limit) == {"measured", "at_least", "at_most", "source"} for limit in result["limits"])
    assert list(report.to_frame().columns) == ["check", "verdict", "summary", "remedy", "measured", "thresholds"]


def test_json_takes_whatever_a_check_measured():
    measured = {"shape": torch.Size([2, 3]), "tensor": torch.ones(2), "dtype": torch.float16, "none": None, "yes": True}
    content = json.loads(CheckReport("T", [CheckResult("c", "pass", "s", measured)]).to_json())
    assert content["results"][0]["measured"]["shape"] == [2, 3]
    assert content["results"][0]["measured"]["dtype"] == "torch.float16"


@pytest.mark.parametrize("suffix", [".html", ".json"])
def test_a_report_is_saved_as_one_file(suffix, tmp_path):
    report = CheckReport("Tier 1", [CheckResult("c", "fail", HOSTILE, remedy="do")])
    path = report.save(tmp_path / "new" / f"report{suffix}")
    assert path.read_text() == (report.to_page() if suffix == ".html" else report.to_json())
    assert path.is_absolute()
    with pytest.raises(ConfigError, match=r"report\.txt"):
        report.save(tmp_path / "report.txt")


def test_not_run_needs_a_reason():
    with pytest.raises(ValueError, match="reason"):
        CheckResult("c", "not run", " ")


@pytest.mark.filterwarnings("ignore")
def test_every_check_states_its_limits_with_their_sources():
    report = CheckReport("T", [*run_all_tier1_tests(tiny_gpt()).results, *run_all_tier2_tests(tiny_gpt()).results])
    for result in report.results:
        assert result.limits, result.name
        assert all(limit.source for limit in result.limits)
        known = [limit for limit in result.limits if limit.measured.split(" / ")[0] in result.measured]
        assert known or result.name == "parameter initialisation", "limits name what was measured"


def test_the_gradient_check_has_a_figure():
    figure = test_gradient_flow(tiny_gpt()).figure
    assert len(figure.axes[0].patches) == len(list(tiny_gpt().parameters()))


def test_the_documented_names_are_the_same_functions():
    import utils.checks
    import utils.test_functions

    for name in utils.test_functions.__all__:
        assert getattr(utils.test_functions, name) is getattr(utils.checks, name)


def test_what_a_forward_keeps_in_attributes_is_put_back():
    class Keeps(Faulty):
        def __init__(self):
            super().__init__()
            self.kept, self.count, self.mean = [], 0, torch.zeros(16)

        def forward(self, ids):
            self.kept.append(ids)
            self.count += 1
            self.mean.add_(1.0)
            self.last = ids
            return super().forward(ids)

    model = Keeps()
    kept = model.kept
    run_all_tier1_tests(model)
    assert (model.kept is kept, model.kept, model.count) == (True, [], 0)
    assert not model.mean.any()
    assert not hasattr(model, "last")


def test_a_probe_that_raises_ends_no_check_and_is_named_once():
    class Brittle(Faulty):
        def __deepcopy__(self, memo):
            raise TypeError("cannot be copied")

    result = test_gradient_flow(Brittle())
    assert result.verdict == "pass"
    assert result.measured["not run"] == {"slope": "cannot be copied"}
