"""Exact resume: a run that is stopped at any step boundary and continued is the run that was never stopped."""

from __future__ import annotations

import shutil

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset

from tests.kit.toys import (
    assert_same_run,
    golden_config,
    plain_lm,
    same_weights,
    tiny_gpt,
    token_rows,
    train_set,
    validation_set,
    without_times,
)
from utils.errors import CheckpointError, CheckpointNotFoundError
from utils.storage import read_json_lines
from utils.training import Callback, Trainer
from utils.training.checkpoint_manager import CheckpointManager
from utils.training.engine import EarlyStopping
from utils.training.engine.checkpointing import reading, store
from utils.training.engine.checkpointing.store import read_checkpoint

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


@pytest.fixture(scope="module")
def unbroken_runs(tmp_path_factory):
    """Runs that are never stopped: function of the model's maker and the settings. Each is trained once."""
    known = {}

    def unbroken(make, **changes):
        key = (make, repr(sorted(changes.items())))
        if key not in known:
            folder = str(tmp_path_factory.mktemp("unbroken"))
            known[key] = run(make(), run_name="unbroken", output_dir=folder, **changes)
        return known[key]

    return unbroken


# Epochs end after 3, 6, 9 and 12 steps: the first and second step, both sides of an epoch's end, the last two steps.
@pytest.mark.parametrize(("step", "precision"), [
    (1, "32"), (2, "32"), (3, "32"), (4, "32"), (8, "32"), (9, "32"), (11, "32"), (12, "32"),
    (2, "bf16"), (6, "bf16"), (11, "bf16"),
])  # fmt: skip
def test_f03_stopped_at_a_step_boundary_and_continued(step, precision, unbroken_runs):
    unbroken = unbroken_runs(tiny_gpt, precision=precision)
    assert unbroken.steps == STEPS
    first = run(tiny_gpt(), stop_at=step, precision=precision)
    assert first.steps == step
    continued = run(
        tiny_gpt(seed=9), resume_from="auto", precision=precision
    )  # other initial weights: all must come from the file
    assert_same_run(unbroken, continued)


@pytest.mark.parametrize("changes", [
    {"lr_schedule": "plateau", "epochs": 8}, {"eval_every": 2}, {"optimizer": "sgd", "learning_rate": 0.05},
    {"optimizer": "adafactor", "learning_rate": 0.02},
    {"num_workers": 1, "epochs": 3}, {"lr_schedule": "wsd"}, {"lr_schedule": "linear", "max_steps": 10}, {"label_smoothing": 0.1, "gradient_accumulation_steps": 1},
], ids=lambda changes: next(iter(changes)))  # fmt: skip
def test_resume_is_exact_with_other_settings(changes):
    unbroken = run(plain_lm(), run_name="unbroken", **changes)
    for step in (2, 5, 7):
        run(plain_lm(), stop_at=step, run_name=f"stopped-{step}", **changes)
        assert_same_run(unbroken, run(plain_lm(seed=9), resume_from="auto", run_name=f"stopped-{step}", **changes))


@pytest.mark.parametrize("precision", ["32", "bf16"])
def test_resume_with_muon_is_exact(precision):
    changes = {"optimizer": "muon", "precision": precision}
    unbroken = run(tiny_gpt(), run_name="unbroken", **changes)
    for step in (1, 5):
        run(tiny_gpt(), stop_at=step, run_name=f"stopped-{step}", **changes)
        assert_same_run(unbroken, run(tiny_gpt(seed=9), resume_from="auto", run_name=f"stopped-{step}", **changes))


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


# No validation improves by so much on the first, so early stopping ends each of these runs: at an epoch's end, within an
# epoch, after a validation of every step, and by epochs.
NO_IMPROVEMENT = {"min_delta": 100.0, "epochs": 6}
EARLY = {
    "at an epoch's end": ({"eval_every": 2, "early_stopping_patience": 2}, 6),
    "within an epoch": ({"eval_every": 2, "early_stopping_patience": 1}, 4),
    "every step": ({"eval_every": 1, "early_stopping_patience": 2}, 3),
    "by epochs": ({"early_stopping_patience": 1}, 6),
    "by the training loss": ({"monitor": "train/loss", "eval_every": 2, "early_stopping_patience": 1}, 6),
}
SAVES = {"at epochs' ends": {}, "by the clock": {"save_every_minutes": 1e-9}, "three best": {"keep_best_k": 3}}


class KeepEachSave(Callback):
    """Copies the run's folder after each commit: what a process that is killed right then leaves behind."""

    def __init__(self) -> None:
        self.copies = []

    def on_checkpoint_saved(self, path, trainer, logs=None):
        copy = trainer.run_dir.with_name(f"killed-{len(self.copies)}")
        shutil.copytree(trainer.run_dir, copy)
        self.copies.append(copy.name)


def assert_same_files(first, second):
    rows = [without_times(read_json_lines(results.run_dir / "history.jsonl")) for results in (first, second)]
    assert rows[0] == rows[1]
    best = [read_checkpoint(results.best_model_path)["state"]["step"] for results in (first, second)]
    assert best == [first.state.best.step] * 2


@pytest.mark.parametrize("saves", SAVES)
@pytest.mark.parametrize("ending", EARLY)
def test_an_early_stop_is_exact_after_a_kill_behind_any_save(ending, saves):
    settings, steps = EARLY[ending]
    changes = {**NO_IMPROVEMENT, **settings, **SAVES[saves]}
    keep = KeepEachSave()
    trainer = Trainer(plain_lm(), None, golden_config(**changes), callbacks=[keep])
    unbroken = trainer.train(train_set(), validation_set())
    assert (unbroken.stop_reason, unbroken.steps) == ("early_stopping", steps)
    assert keep.copies
    for name in keep.copies:
        continued = run(plain_lm(seed=9), resume_from="auto", run_name=name, **changes)
        assert_same_run(unbroken, continued)
        assert_same_files(unbroken, continued)


class StopIn(Callback):
    """Asks for a stop in the n-th call of an event."""

    def __init__(self, event: str, n: int) -> None:
        self._left = n
        setattr(self, event, self._stop)

    def _stop(self, *arguments, logs=None):
        self._left -= 1
        if self._left == 0:
            arguments[-1].request_stop("test")


BOUNDARIES = ("on_step_end", "on_evaluate_begin", "on_evaluate_end", "on_epoch_begin", "on_epoch_end", "on_checkpoint_saved")


@pytest.mark.parametrize("event", BOUNDARIES)
@pytest.mark.parametrize("ending", ["at an epoch's end", "within an epoch", "by epochs", "by the training loss"])
def test_an_early_stop_is_exact_after_a_stop_at_any_boundary(ending, event, unbroken_runs):
    settings, steps = EARLY[ending]
    changes = {**NO_IMPROVEMENT, **settings}
    unbroken = unbroken_runs(plain_lm, **changes)
    assert unbroken.steps == steps
    # The first call, and those around the end; the storm of kills hits those in between.
    for n in sorted({1, 2, steps // 2, steps}):
        name = f"stopped-{n}"
        trainer = Trainer(plain_lm(), None, golden_config(run_name=name, **changes), callbacks=[StopIn(event, n)])
        trainer.train(train_set(), validation_set())
        continued = run(plain_lm(seed=9), resume_from="auto", run_name=name, **changes)
        assert_same_run(unbroken, continued)
        assert_same_files(unbroken, continued)
        if trainer.state.stop_reason == "early_stopping":
            break  # later calls of the event do not come


def test_an_early_stopping_callback_is_exact_as_the_setting_is():
    changes = {**NO_IMPROVEMENT, "eval_every": 2, "early_stopping_patience": None}

    def train(*callbacks, seed=0, **more):
        config = golden_config(**changes, **more)
        trainer = Trainer(plain_lm(seed=seed), None, config, callbacks=[EarlyStopping(2), *callbacks])
        return trainer.train(train_set(), validation_set(), resume_from="auto")

    unbroken = train(run_name="unbroken")
    assert (unbroken.stop_reason, unbroken.steps) == ("early_stopping", 6)
    train(StopIn("on_evaluate_begin", 3))
    assert_same_run(unbroken, train(seed=9))


def test_an_early_stopped_run_that_is_forked_gets_all_its_patience_again():
    changes = {**NO_IMPROVEMENT, "early_stopping_patience": 2}
    stopped = run(plain_lm(), **changes)
    assert (stopped.stop_reason, stopped.steps) == ("early_stopping", 9)
    forked = run(plain_lm(), resume_from=stopped.checkpoint_path, run_name="fork", **changes)
    assert (forked.stop_reason, forked.steps) == ("early_stopping", 15)
    assert forked.best_epoch == 3  # of its own checkpoints, the one that it started from
    assert read_checkpoint(forked.best_model_path)["state"]["step"] == 9


def test_an_early_stopped_run_goes_further_with_other_settings():
    changes = {**NO_IMPROVEMENT, "early_stopping_patience": 1}
    assert run(plain_lm(), **changes).steps == 6
    further = run(plain_lm(), resume_from="auto", **{**changes, "min_delta": 0.0, "on_config_change": "continue"})
    assert further.steps > 9


@pytest.mark.parametrize(("limits", "ended"), [
    ({"epochs": 1}, "finished"), ({"max_steps": 2}, "max_steps"), ({"max_steps": 6}, "max_steps"),
], ids=str)  # fmt: skip
@pytest.mark.parametrize("stop_at", [6, 5])
def test_a_run_that_has_done_more_than_it_is_to_do_ends_with_a_reason(limits, ended, stop_at):
    run(tiny_gpt(), stop_at=stop_at)
    # Between epochs nothing is left to do; within one, an epoch limit of 1 lies behind, and a step limit of 6 ahead.
    ended_at = 6 if limits == {"max_steps": 6} else stop_at
    results = run(tiny_gpt(), resume_from="auto", on_config_change="continue", **limits)
    assert (results.stop_reason, results.steps) == (ended, ended_at)
    again = run(tiny_gpt(), resume_from="auto", on_config_change="continue", **limits)
    assert (again.stop_reason, again.steps) == (ended, ended_at)


class Stream(IterableDataset):
    def __iter__(self):
        yield from ({"input_ids": row} for row in token_rows())


@pytest.mark.parametrize("limits", [(3, 7), (3, None), (8, 9)], ids=str)
def test_a_stream_with_a_step_limit_goes_further(limits):
    """34 rows in batches of 4: nine steps."""

    def train(max_steps):
        config = golden_config(
            max_steps=max_steps, gradient_accumulation_steps=1, on_config_change="continue", use_lr_schedule=False, epochs=1
        )  # fmt: skip
        return Trainer(plain_lm(), None, config).train(DataLoader(Stream(), batch_size=4), resume_from="auto")

    first, further = limits
    assert (train(first).stop_reason, train(first).steps) == ("max_steps", first)
    results = train(further)
    assert results.steps == (further or 9)
    assert results.epochs_trained == (further is None)


def test_a_finished_run_is_not_trained_again():
    first = run(tiny_gpt())
    again = run(tiny_gpt(seed=9), resume_from="auto")
    assert_same_run(first, again)
    assert again.checkpoint_path == first.checkpoint_path


def test_a_start_reads_each_checkpoint_once_and_again_what_was_written_since(monkeypatch):
    first = run(plain_lm(), epochs=2)
    reads = []
    for module in (reading, store):
        real = module.load_verified
        monkeypatch.setattr(
            module, "load_verified", lambda path, mapped=False, real=real: reads.append(path.name) or real(path, mapped)
        )
    assert_same_run(first, run(plain_lm(seed=9), epochs=2, resume_from="auto"))
    assert reads == ["epoch_2.pt"]
    older = first.run_dir / "checkpoints" / "epoch_1.pt"
    older.write_bytes(older.read_bytes())  # the last one that was written, and not the one with the most steps
    reads.clear()
    assert_same_run(first, run(plain_lm(seed=9), epochs=2, resume_from="auto"))
    assert sorted(reads) == ["epoch_1.pt", "epoch_2.pt"]


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
    unbroken = run(tiny_gpt(), run_name="unbroken", epochs=2)
    run(tiny_gpt(), stop_at=4, epochs=2)
    other = {"keep_last_n": 5, "notes": "now with notes", "num_workers": 1}
    assert_same_run(unbroken, run(tiny_gpt(seed=9), resume_from="auto", epochs=2, **other))


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
    rates = [f"{row['train/learning_rate']:.3g}" for row in longer.step_rows if row["step"] in (6, 7)]
    (said,) = [notice for notice in longer.notices if "learning rate rises" in notice]
    assert f"rises from {rates[0]} in the last step to {rates[1]} in the next one: lr_schedule='cosine'" in said


@pytest.mark.parametrize(
    ("first", "stop_at", "then"),
    [({}, 5, {"weight_decay": 0.2}), ({"epochs": 2, "lr_schedule": "constant"}, None, {"epochs": 3})],
    ids=["same plan", "constant"],
)
def test_a_rate_that_does_not_rise_when_a_run_is_continued_is_no_notice(first, stop_at, then):
    run(plain_lm(), stop_at=stop_at, **first)
    longer = run(plain_lm(), resume_from="auto", **{**first, **then}, on_config_change="continue")
    assert any("other settings" in notice for notice in longer.notices)
    assert not any("learning rate rises" in notice for notice in longer.notices)


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
