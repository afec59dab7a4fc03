"""weight_averaging: the average is what its formula says, survives every interruption, and is kept when it is better."""

from __future__ import annotations

import os
import signal

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset

from tests.kit.crash import in_child
from tests.kit.golden import golden_parts
from tests.kit.together import together
from tests.kit.toys import (
    assert_same_run,
    golden_config,
    normed_lm,
    plain_lm,
    same_weights,
    tiny_gpt,
    tiny_llama,
    token_rows,
    train_set,
    validation_set,
)
from utils.errors import CheckpointError, ConfigError
from utils.training import Callback, Trainer, TrainingConfig
from utils.training.engine.checkpointing.store import read_checkpoint
from utils.training.engine.checkpointing.weights import weights_to_use
from utils.training.export import export_model

# Both kinds with an average that is better and worse: a learning rate that jumps about, and one that only begins to learn.
JUMPING = {"learning_rate": 0.05, "use_lr_schedule": False, "epochs": 6}
KINDS = {
    "ema": {"weight_averaging": "ema", "ema_decay": 0.9},
    "last": {"weight_averaging": "last", "averaging_ratio": 0.7},
}


class EachStep(Callback):
    """The trained weights after every step; stops, or does something else, in one of them."""

    def __init__(self, at=None, action=lambda trainer: trainer.request_stop("test")):
        self.at, self.action, self.weights = at, action, []

    def on_step_end(self, step, trainer, logs=None):
        trained = [p.detach().clone() for p in trainer.model.parameters()]
        self.weights.append(trained)
        if step == self.at:
            self.action(trainer)


def run(model, *callbacks, resume_from=None, data=None, **changes):
    settings = {"early_stopping_patience": None, "precision": "32", **changes}
    trainer = Trainer(model, None, golden_config(**settings), callbacks=list(callbacks))
    return trainer.train(train_set() if data is None else data, validation_set(), resume_from=resume_from)


def averaged(results):
    return read_checkpoint(results.checkpoint_path)["averaged"]


def expected(kind, start, after, total):
    """The average by its formula, from the weights before the first step and after each."""
    decay, first = 0.9, total - -(-7 * total // 10) if kind == "last" else 0
    average, count = [weight.clone() for weight in start], 0
    for weights in after[first:]:
        share = 1 / (count + 1) if kind == "last" else 1 - min(decay, (1 + count) / (10 + count))
        average = [old + share * (new - old) for old, new in zip(average, weights, strict=True)]
        count += 1
    return average, count


@pytest.mark.parametrize(
    ("kind", "make"), [("ema", tiny_gpt), ("ema", normed_lm), ("ema", tiny_llama), ("last", plain_lm)]
)
def test_the_average_is_that_of_its_formula_and_is_validated_beside_the_weights(kind, make):
    model, watch = make(), EachStep()
    start = [p.detach().clone() for p in model.parameters()]
    results = run(model, watch, **KINDS[kind])
    wanted, count = expected(kind, start, watch.weights, 12)
    saved = averaged(results)
    assert saved["count"] == count
    for name, weight in zip(dict(model.named_parameters()), wanted, strict=True):
        torch.testing.assert_close(saved["weights"][name], weight)
    assert saved["weights"].keys() == dict(model.named_parameters(remove_duplicate=False)).keys()
    # What the last validation says of both is what anyone computes with these weights.
    checkpoint = read_checkpoint(results.checkpoint_path)
    row = results.evaluate_rows[-1]
    for weights, metric in ((checkpoint["model"], "val/loss"), (saved["weights"], "val/loss_averaged")):
        model.load_state_dict({**checkpoint["model"], **weights})
        assert loss_of(model) == pytest.approx(row[metric], rel=1e-5)
    assert "val/perplexity_averaged" in results.epoch_rows[-1]


@torch.no_grad()
def loss_of(model):
    ids = token_rows(9, seed=2)
    made = model.eval()(ids)
    logits = getattr(made, "logits", made)
    return float(torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()))


def test_training_itself_is_not_changed():
    plain, watched = EachStep(), EachStep()
    run(tiny_gpt(), plain, run_name="plain")
    run(tiny_gpt(), watched, **KINDS["ema"])
    for mine, theirs in zip(plain.weights, watched.weights, strict=True):
        assert all(map(torch.equal, mine, theirs))


# ---- resume ----


class AskedInTheAveragedValidation(EachStep):
    """Requests something, once, while the model is validated with its averaged weights; keeps what is saved."""

    def __init__(self, request):
        super().__init__()
        self.request, self.asked_at, self.saved = request, None, []

    def on_train_begin(self, trainer, logs=None):
        def ask(model, arguments, outputs):
            is_averaged = self.weights and not torch.equal(next(model.parameters()), self.weights[-1][0])
            if not model.training and is_averaged and self.asked_at is None:
                self.asked_at = trainer.state.step
                getattr(trainer.control, self.request).set()

        trainer.model.register_forward_hook(ask)

    def on_checkpoint_saved(self, path, trainer, logs=None):
        before = [step for step, _ in self.saved]
        self.saved.append((trainer.state.step, read_checkpoint(path)["model"]))
        if trainer.state.step in before or path.name != "step_1.pt" or not trainer.model.training:
            trainer.control.pause.clear()  # the first of this step is the best one so far


@pytest.mark.parametrize("request_name", ["save_now", "pause", "finish"])
def test_a_request_during_the_averaged_validation_waits_for_the_trained_weights(request_name):
    watch, model = AskedInTheAveragedValidation(request_name), plain_lm()
    schedule = {"lr_schedule": "wsd"} if request_name == "finish" else {}
    results = run(model, watch, eval_every=1, **schedule, **KINDS["ema"])
    assert watch.asked_at == 1
    assert request_name == "finish" or [step for step, _ in watch.saved].count(1) == 2  # as the best, and as requested
    assert request_name != "finish" or results.stop_reason == "finish_now"
    for step, saved in watch.saved:
        for name, trained in zip(dict(model.named_parameters()), watch.weights[step - 1], strict=True):
            assert torch.equal(saved[name], trained), f"step {step}: {name}"


SETTINGS = {
    "bf16": (tiny_gpt, {"precision": "bf16"}), "muon": (tiny_gpt, {"optimizer": "muon"}), "sgd": (plain_lm, {"optimizer": "sgd"}),
    "batch norm": (normed_lm, {}), "validation within epochs": (plain_lm, {"eval_every": 2}),
    "last layers": (tiny_gpt, {"finetune": "last_layers", "finetune_layers": 1}), "head": (tiny_llama, {"finetune": "head"}),
    "better": (plain_lm, JUMPING),
}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "settings", "steps"),
    [("last", "better", (2, 8)), ("last", "muon", (8,)), *(("ema", settings, (5,)) for settings in SETTINGS)],
)
def test_resume_is_exact(kind, settings, steps):
    make, changes = SETTINGS[settings]
    changes = {**KINDS[kind], **changes}
    unbroken = run(make(), run_name="unbroken", **changes)
    for step in steps:
        name = f"stopped-{step}"
        run(make(), EachStep(step), run_name=name, **changes)
        # Other initial weights where all come from the file; frozen ones are in it too.
        continued = run(make(seed=9), resume_from="auto", run_name=name, **changes)
        assert_same_run(unbroken, continued)
        assert_same_average(averaged(unbroken), averaged(continued))
        assert continued.weights == unbroken.weights


def assert_same_average(first, second):
    assert (first["kind"], first["count"], first["better"]) == (second["kind"], second["count"], second["better"])
    assert first["weights"].keys() == second["weights"].keys()
    assert all(torch.equal(first["weights"][name], second["weights"][name]) for name in first["weights"])


def test_a_killed_run_is_continued_exactly():
    unbroken = run(plain_lm(), run_name="unbroken", **KINDS["ema"])
    kill = EachStep(8, lambda trainer: os.kill(os.getpid(), signal.SIGKILL))
    assert in_child(lambda: run(plain_lm(), kill, **KINDS["ema"])).killed
    continued = run(plain_lm(seed=9), resume_from="auto", **KINDS["ema"])
    assert_same_run(unbroken, continued)
    assert_same_average(averaged(unbroken), averaged(continued))


def test_lora_averages_the_adapters_only_and_resumes_exactly():
    pytest.importorskip("peft")
    changes = {"finetune": "lora", "lora_rank": 2, **KINDS["ema"]}
    unbroken = run(tiny_gpt(), run_name="unbroken", **changes)
    assert averaged(unbroken)["weights"]
    assert all("lora_" in name for name in averaged(unbroken)["weights"])
    run(tiny_gpt(), EachStep(5), **changes)
    continued = run(tiny_gpt(), resume_from="auto", **changes)
    assert_same_run(unbroken, continued)
    assert_same_average(averaged(unbroken), averaged(continued))


@pytest.mark.slow
def test_two_processes_have_one_average():
    def child(rank):
        results = run(plain_lm(), gradient_accumulation_steps=1, run_name="both", **JUMPING, **KINDS["ema"])
        return results.weights, {name: tensor.numpy() for name, tensor in results.model.state_dict().items()}

    (kept, first), (kept_too, second) = (ended.value for ended in together(child))
    assert kept == kept_too == "averaged"
    assert all((first[name] == second[name]).all() for name in first)


def test_another_kind_of_average_starts_afresh_and_says_so():
    run(plain_lm(), EachStep(5), **KINDS["ema"])
    changes = {**KINDS["last"], "on_config_change": "continue"}
    continued = run(plain_lm(), resume_from="auto", **changes)
    assert any("starts afresh" in notice for notice in continued.notices)
    assert averaged(continued)["count"] == 7


def test_a_longer_plan_moves_the_window_of_the_last_steps():
    first = run(plain_lm(), epochs=2, weight_averaging="last", averaging_ratio=0.5)
    assert averaged(first)["count"] == 3
    longer = run(
        plain_lm(),
        epochs=4,
        weight_averaging="last",
        averaging_ratio=0.25,
        on_config_change="continue",
        resume_from="auto",
    )
    assert averaged(longer)["count"] == 3


# ---- which weights are kept ----


@pytest.mark.parametrize("kind", KINDS)
def test_the_averaged_weights_are_returned_and_exported_when_they_are_better(kind):
    model = plain_lm()
    results = run(model, keep_best_k=1, **JUMPING, **KINDS[kind])
    row = results.evaluate_rows[-1]
    assert row["val/loss_averaged"] < row["val/loss"]
    checkpoint = read_checkpoint(results.checkpoint_path)
    assert results.weights == "averaged"
    assert any("averaged weights" in notice for notice in results.notices)
    assert results.summary()["weights"] == "averaged"
    for name, weight in checkpoint["averaged"]["weights"].items():
        assert torch.equal(model.state_dict()[name], weight)
        assert torch.equal(results.final_model_state[name], weight)
        assert not torch.equal(checkpoint["model"][name], weight)
    best = read_checkpoint(results.best_model_path)
    judged = [min(row["val/loss"], row.get("val/loss_averaged", 9.0)) for row in results.evaluate_rows]
    assert results.best_value == best["value"] == min(judged)
    exported = torch.load(export_model(results, ["pytorch"])["pytorch"].path / "model.pt", weights_only=True)
    assert all(torch.equal(exported[name], weight) for name, weight in weights_to_use(best).items())
    again = run(plain_lm(seed=9), resume_from="auto", keep_best_k=1, **JUMPING, **KINDS[kind])
    assert again.weights == "averaged"
    assert same_weights(again.model, model)


def test_the_trained_weights_are_kept_when_the_average_is_worse():
    model = plain_lm()
    results = run(model, weight_averaging="ema", ema_decay=0.999)
    row = results.evaluate_rows[-1]
    assert row["val/loss"] < row["val/loss_averaged"]
    assert results.weights == "trained"
    assert results.best_value == min(row["val/loss"] for row in results.evaluate_rows)
    weights = read_checkpoint(results.checkpoint_path)["model"]
    assert all(torch.equal(model.state_dict()[name], weight) for name, weight in weights.items())
    assert any("trained weights" in notice for notice in results.notices)


def test_without_validation_the_average_is_in_the_checkpoints_and_the_trained_weights_are_kept():
    trainer = Trainer(plain_lm(), None, golden_config(**KINDS["ema"], precision="32"))
    results = trainer.train(train_set())
    assert results.weights == "trained"
    assert averaged(results)["count"] == 12
    assert any("nothing was validated" in notice for notice in results.notices)


def test_half_precision_weights_have_an_fp32_average_and_their_format_afterwards():
    model = plain_lm().to(torch.bfloat16)
    results = run(model, **JUMPING, **KINDS["ema"])
    assert results.weights == "averaged"
    for name, weight in averaged(results)["weights"].items():
        assert weight.dtype == torch.float32
        assert torch.equal(model.state_dict()[name], weight.to(torch.bfloat16))


# ---- steps that are left out, and refusals ----


class NanOnce(torch.nn.Module):
    """A model whose logits are NaN in its fifth training pass."""

    def __init__(self):
        super().__init__()
        self.inner, self.passes = plain_lm(dropout=0.0), 0

    def forward(self, tokens):
        self.passes += self.training
        return self.inner(tokens) * (torch.nan if self.training and self.passes == 5 else 1.0)


def test_a_skipped_step_is_not_averaged():
    results = run(NanOnce(), gradient_accumulation_steps=1, on_nonfinite="skip", epochs=1, **KINDS["ema"])
    assert (results.steps, results.state.skipped_steps) == (9, 1)
    assert averaged(results)["count"] == 8


class Stream(IterableDataset):
    def __iter__(self):
        return iter(token_rows())


def test_what_cannot_be_averaged_is_refused_by_name():
    with pytest.raises(ConfigError, match=r"weight_averaging.*fsdp"):
        TrainingConfig(weight_averaging="ema", strategy="fsdp")
    with pytest.raises(ConfigError, match="max_steps"):
        run(
            plain_lm(),
            data=DataLoader(Stream(), batch_size=4),
            lr_schedule="constant",
            warmup_ratio=None,
            warmup_steps=0,
            **KINDS["last"],
        )
    with pytest.raises(ConfigError, match="ema_decay"):
        TrainingConfig(ema_decay=1.0)


@pytest.mark.parametrize(("change", "word"), [
    ({"count": "many"}, "averaged.count"), ({"count": -1}, "averaged.count"), ({"better": 1}, "averaged.better"),
    ({"weights": [1]}, "averaged.weights"), ({"weights": {"head.weight": 1.0}}, "averaged.weights.head.weight"),
    ({"kind": 3}, "averaged.kind"),
], ids=str)  # fmt: skip
def test_damaged_averages_are_named(change, word):
    model, config, rows, _, _ = golden_parts()
    results = Trainer(model, None, config.replace(weight_averaging="ema", epochs=1)).train(rows)
    payload = torch.load(results.checkpoint_path, weights_only=True)
    payload["averaged"].update(change)
    torch.save(payload, results.checkpoint_path)
    with pytest.raises(CheckpointError, match=word):
        read_checkpoint(results.checkpoint_path)
