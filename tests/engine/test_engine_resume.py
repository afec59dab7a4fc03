"""Exact resume: a run that is stopped at any step boundary and continued is the run that was never stopped."""

from __future__ import annotations

import pytest
import torch

from tests.kit.toys import assert_same_run, golden_config, plain_lm, same_weights, tiny_gpt, train_set, validation_set
from utils.errors import CheckpointError, CheckpointNotFoundError
from utils.training import Callback, Trainer
from utils.training.checkpoint_manager import CheckpointManager

STEPS = 12


class StopAt(Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, step, trainer, logs=None):
        if step == self.step:
            trainer.request_stop("test")


def run(model, *, stop_at: int | None = None, resume_from=None, **changes):
    callbacks = [] if stop_at is None else [StopAt(stop_at)]
    trainer = Trainer(model, None, golden_config(**changes), callbacks=callbacks)
    return trainer.train(train_set(), validation_set(), resume_from=resume_from)


@pytest.mark.parametrize("precision", ["32", "bf16"])
@pytest.mark.parametrize("step", range(1, STEPS + 1))
def test_f03_stopped_at_a_step_boundary_and_continued(step, precision):
    unbroken = run(tiny_gpt(), run_name="unbroken", precision=precision)
    assert unbroken.steps == STEPS
    first = run(tiny_gpt(), stop_at=step, precision=precision)
    assert first.steps == step
    continued = run(
        tiny_gpt(seed=9), resume_from="auto", precision=precision
    )  # other initial weights: all must come from the file
    assert_same_run(unbroken, continued)


@pytest.mark.parametrize("changes", [
    {"lr_schedule": "plateau", "epochs": 8}, {"eval_every": 2}, {"optimizer": "sgd", "learning_rate": 0.05},
    {"num_workers": 1}, {"lr_schedule": "linear", "max_steps": 10}, {"label_smoothing": 0.1, "gradient_accumulation_steps": 1},
], ids=lambda changes: next(iter(changes)))  # fmt: skip
def test_resume_is_exact_with_other_settings(changes):
    unbroken = run(plain_lm(), run_name="unbroken", **changes)
    for step in (2, 5, 7):
        run(plain_lm(), stop_at=step, run_name=f"stopped-{step}", **changes)
        assert_same_run(unbroken, run(plain_lm(seed=9), resume_from="auto", run_name=f"stopped-{step}", **changes))


def test_stopped_and_continued_many_times():
    unbroken = run(tiny_gpt(), run_name="unbroken")
    results = run(tiny_gpt(), stop_at=1)
    for step in (2, 5, 6, 11):
        results = run(tiny_gpt(seed=step), stop_at=step, resume_from="auto")
        assert results.stop_reason == "test"
    assert_same_run(unbroken, run(tiny_gpt(seed=9), resume_from="auto"))


@pytest.mark.parametrize("changes", [{"max_steps": 7}, {"max_steps": 6}, {"epochs": 2}], ids=str)
def test_a_stop_at_the_last_step_still_gets_its_validation_and_its_row(changes):
    unbroken = run(tiny_gpt(), run_name="unbroken", **changes)
    assert run(tiny_gpt(), stop_at=unbroken.steps, **changes).stop_reason == "test"
    assert_same_run(unbroken, run(tiny_gpt(seed=9), resume_from="auto", **changes))


def test_early_stopping_counts_over_a_resume():
    changes = {"early_stopping_patience": 2, "min_delta": 100.0, "epochs": 8}  # no validation improves by so much
    unbroken = run(tiny_gpt(), run_name="unbroken", **changes)
    assert unbroken.stop_reason == "early_stopping"
    stop = unbroken.steps - 2  # within the epoch before the last validation, when one wait is already counted
    run(tiny_gpt(), stop_at=stop, **changes)
    assert_same_run(unbroken, run(tiny_gpt(seed=9), resume_from="auto", **changes))


def test_a_finished_run_is_not_trained_again():
    first = run(tiny_gpt())
    again = run(tiny_gpt(seed=9), resume_from="auto")
    assert_same_run(first, again)
    assert again.checkpoint_path == first.checkpoint_path


def test_changed_settings_are_refused_with_the_difference_and_both_ways_on():
    run(tiny_gpt(), stop_at=4)
    with pytest.raises(CheckpointError) as caught:
        run(tiny_gpt(), resume_from="auto", learning_rate=1e-4, random_seed=7)
    message = str(caught.value)
    assert "learning_rate: 0.003 there, 0.0001 here" in message
    assert "random_seed: 42 there, 7 here" in message
    assert "run_name" in message
    assert "on_config_change" in message
    continued = run(tiny_gpt(), resume_from="auto", learning_rate=1e-4, on_config_change="continue")
    assert continued.steps == STEPS
    assert any("learning_rate" in notice for notice in continued.notices)


def test_changed_optimizer_settings_hold_after_a_resume():
    seen = {}

    class Look(Callback):
        def on_train_begin(self, trainer, logs=None):
            seen.update(trainer.optimizer.param_groups[0])

    run(tiny_gpt(), stop_at=4)
    config = golden_config(weight_decay=0.5, betas=(0.8, 0.9), on_config_change="continue", max_steps=5)
    Trainer(tiny_gpt(), None, config, callbacks=[Look()]).train(train_set(), validation_set(), resume_from="auto")
    assert (seen["weight_decay"], seen["betas"]) == (0.5, (0.8, 0.9))


def test_another_optimizer_starts_afresh_and_says_so():
    run(tiny_gpt(), stop_at=4)
    results = run(tiny_gpt(), resume_from="auto", optimizer="sgd", on_config_change="continue")
    assert results.steps == STEPS
    assert any("optimizer starts afresh" in notice for notice in results.notices)


def test_other_data_is_refused():
    run(tiny_gpt(), stop_at=4)
    other = Trainer(tiny_gpt(), None, golden_config())
    with pytest.raises(CheckpointError, match="data: not the same"):
        other.train(validation_set(), train_set(), resume_from="auto")


def test_what_does_not_change_learning_may_change():
    unbroken = run(tiny_gpt(), run_name="unbroken")
    run(tiny_gpt(), stop_at=4)
    assert_same_run(
        unbroken, run(tiny_gpt(seed=9), resume_from="auto", keep_last_n=5, notes="now with notes", num_workers=1)
    )


def test_an_explicit_checkpoint_starts_a_new_run_and_leaves_the_old_one_alone():
    first = run(tiny_gpt())
    before = sorted(path.name for path in first.run_dir.rglob("*"))
    older = first.checkpoint_paths[0]
    branched = run(tiny_gpt(seed=9), resume_from=older, run_name="branch")
    assert branched.run_dir != first.run_dir
    assert sorted(path.name for path in first.run_dir.rglob("*")) == before
    assert_same_weights_only(first, branched)
    with pytest.raises(CheckpointError, match="not the newest"):
        run(tiny_gpt(), resume_from=older)


def assert_same_weights_only(first, second):
    for (name, mine), theirs in zip(first.model.state_dict().items(), second.model.state_dict().values(), strict=True):
        assert torch.equal(mine, theirs), name


def test_nothing_to_continue():
    assert run(tiny_gpt(), resume_from="auto").steps == STEPS  # auto starts when there is nothing
    for resume_from in ("latest", "best", "nowhere/epoch_3.pt"):
        with pytest.raises(CheckpointNotFoundError):
            run(tiny_gpt(), resume_from=resume_from, run_name="absent")


def test_more_epochs_continue_a_finished_run():
    run(tiny_gpt(), epochs=2)
    longer = run(tiny_gpt(seed=9), resume_from="auto", epochs=4, on_config_change="continue")
    assert longer.epochs_trained == 4
    assert [row["epoch"] for row in longer.history] == [0, 1, 2, 3]


def test_the_callers_random_state_and_the_models_mode_are_left_alone():
    model = tiny_gpt()
    model.eval()
    model.transformer.h[0].train()
    modes = [module.training for module in model.modules()]
    torch.manual_seed(5)
    before = torch.get_rng_state()
    run(model)
    assert torch.equal(torch.get_rng_state(), before)
    assert [module.training for module in model.modules()] == modes


def compiled(model, way: str):
    """The model as torch.compile wraps it: as a whole, or a layer of it, which has another place in the names."""
    if way == "whole":
        return torch.compile(model, backend="eager")
    model.norm = torch.compile(model.norm, backend="eager")
    return model


@pytest.mark.parametrize("way", ["whole", "layer"])
@pytest.mark.parametrize("first", ["compiled", "plain"])
def test_a_compiled_model_and_the_plain_one_continue_each_other(first, way):
    def model(seed: int, compile_it: bool):
        made = plain_lm(seed=seed)
        for parameter in made.embedding.parameters():
            parameter.requires_grad_(False)  # frozen parameters are compared by their names
        return compiled(made, way) if compile_it else made

    with torch.compiler.set_stance("force_eager"):  # only the names are compiled
        run(model(0, first == "compiled"), stop_at=7)
        continued = run(model(9, first == "plain"), resume_from="auto")
    unbroken = run(model(0, False), run_name="unbroken")
    assert continued.steps == unbroken.steps == STEPS
    assert continued.loss_history == pytest.approx(unbroken.loss_history, rel=1e-5)
    for name, tensor in continued.model.state_dict().items():
        assert torch.allclose(tensor, unbroken.model.state_dict()[name.replace("_orig_mod.", "")], atol=1e-5)


@pytest.mark.parametrize("kept", ["compiled", "plain"])
@pytest.mark.parametrize("strict", [True, False])
def test_a_checkpoint_by_hand_fits_the_model_compiled_or_not(kept, strict, tmp_path):
    manager = CheckpointManager(tmp_path)
    saved, loaded = plain_lm(seed=1), plain_lm(seed=2)
    manager.save_latest_checkpoint(compiled(saved, "whole") if kept == "compiled" else saved, None, 3, 0.5, 50.0)
    target = loaded if kept == "compiled" else compiled(loaded, "whole")
    info = manager.load_checkpoint(model=target, strict=strict, filepath=tmp_path / "latest_checkpoint.pt")
    assert (info["epoch"], info["fully_restored"]) == (3, True)
    assert same_weights(loaded, saved)


@pytest.mark.parametrize("content", [
    {"epoch": 3, "model_state_dict": {}, "optimizer_state_dict": {}, "metrics_history": []},
    {"epoch": 3, "model_state_dict": {}, "optimizer_state_dict": {}, "loss": 0.5, "accuracy": 50.0, "model_config": {}},
], ids=["loop", "experiment"])  # fmt: skip
def test_a_checkpoint_of_another_loop_names_the_function_that_loads_it(content, tmp_path):
    torch.save(content, tmp_path / "epoch_3.pt")
    for source in (tmp_path, tmp_path / "epoch_3.pt"):
        with pytest.raises(CheckpointError, match=r"CheckpointManager\(folder\)\.load_checkpoint\(path, model, optimizer\)"):
            run(plain_lm(), resume_from=source)
