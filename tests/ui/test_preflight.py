"""The checks before training: each with a verdict that can go wrong, and a way out that one click takes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.kit.hub_server import MAIN, serving
from tests.kit.toys import plain_lm, tiny_gpt, tiny_llama
from tests.kit.tree import ROOT
from utils.data import prepare_data
from utils.errors import ConfigError
from utils.storage import FolderLock
from utils.training import Trainer
from utils.ui import SetupWizard
from utils.ui.background import Cancelled, Progress
from utils.ui.preflight import Check
from utils.ui.preset_fitting import prepared
from utils.ui.rehearsal import FirstSteps, Rehearsal
from utils.ui.run_plan import run_plan
from utils.ui.wizard_state import WizardState

TEXT = "to be or not to be, that is the question\n" * 60


@pytest.fixture
def text_file():
    path = Path("my.txt")
    path.write_text(TEXT)
    return path


def state_of(model=None, **values):
    values = {"vocab_size": 32, "max_length": 16, "tokenizer_strategy": "character", "epochs": 1, "batch_size": 4, **values}
    return WizardState(prepared(None, None, values), tiny_gpt() if model is None else model)


def verdicts(state):
    return {check.name: check.verdict for check in state.preflight.checks}


def check_of(state, name):
    return next(check for check in state.preflight.checks if check.name == name)


def train(state):
    data = prepare_data(state.setup, state.model)
    config = state.setup.training_config
    trainer = Trainer(tiny_gpt(), training_config=config, task_spec=data.task_spec, tokenizer=data.tokenizer)
    return trainer.train(data.train, data.validation, resume_from="auto")


# How long


@pytest.mark.parametrize(("first_s", "step_s"), [(1.0, 0.5), (5.0, None)])
def test_more_steps_are_tried_unless_the_first_took_long(first_s, step_s, text_file):
    setup = state_of(dataset_path="my.txt").setup
    times_s = iter([0.0, first_s, first_s + 0.75, first_s + 1.25, first_s + 2.0])
    seen = Rehearsal(setup, tiny_gpt(), prepare_data(setup, tiny_gpt()), lambda: next(times_s)).first_steps()
    assert (seen.first_s, seen.step_s) == (first_s, step_s)
    assert 3.0 < seen.loss < 4.0


@pytest.mark.parametrize(
    ("step_s", "words"),
    [(0.5, "35 steps take about 18 s, without validations."), (None, "35 steps take at most about 35 s.")],
)
def test_it_is_said_how_long_the_steps_take(step_s, words, text_file, monkeypatch):
    monkeypatch.setattr(Rehearsal, "first_steps", lambda self: FirstSteps(3.5, 1.0, step_s, {}, {}))
    state = state_of(dataset_path="my.txt")
    state.preflight.run()
    assert check_of(state, "batch").message.endswith(words)


# Ready


@pytest.mark.parametrize("make", [tiny_gpt, tiny_llama, plain_lm])
def test_ready_only_after_every_check_has_passed(make, text_file, rng_untouched):
    model = make()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = state_of(model, dataset_path="my.txt", run_name="mine")
    assert state.complete
    assert not state.ready
    assert state.verdict == "4 checks pending."
    seen = []
    state.preflight.run(Progress(seen.append))
    assert verdicts(state) == dict.fromkeys(("data", "batch", "causality", "run"), "passed"), state.preflight.checks
    assert seen == ["Reading the data", "One batch forward and backward", "Checking causality", "Looking for the run"]
    assert state.ready
    assert state.verdict == "Ready to train."
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert [path.name for path in Path().iterdir()] == ["my.txt"]


def test_a_problem_of_the_settings_comes_before_the_checks(text_file):
    state = state_of(dataset_path="my.txt", max_length=99)
    assert state.verdict == "1 problem to solve before training."


def test_without_a_model_nobody_is_told_that_training_can_start(text_file):
    state = WizardState(state_of(dataset_path="my.txt").setup)
    state.preflight.run()
    assert verdicts(state) == {"data": "passed", "batch": "not run", "causality": "not run", "run": "passed"}
    assert not state.ready
    assert state.verdict == "2 checks could not be made."


@pytest.mark.parametrize(
    ("change", "pending"),
    [
        ({"dataset_source": "builtin"}, {"data", "batch", "causality", "run"}),
        ({"val_split": 0.2}, {"data", "batch", "causality", "run"}),
        ({"batch_size": 2}, {"batch", "causality", "run"}),
        ({"run_name": "other"}, {"run"}),
        ({"notes": "a note"}, {"run"}),
    ],
)
def test_a_change_makes_the_checks_concerned_pending_again(change, pending, text_file):
    state = state_of(dataset_path="my.txt", run_name="mine")
    state.preflight.run()
    state.setup.update(**change)
    assert {name for name, verdict in verdicts(state).items() if verdict == "pending"} == pending
    assert not state.ready


def test_going_back_to_checked_settings_needs_no_new_check(text_file):
    state = state_of(dataset_path="my.txt")
    state.preflight.run()
    state.set("batch_size", 2)
    state.set("batch_size", 4)
    assert state.ready


def test_a_cancelled_run_of_the_checks_keeps_those_that_were_made(text_file):
    state = state_of(dataset_path="my.txt")
    progress = Progress(lambda sentence: progress.cancel() if sentence == "Reading the data" else None)
    with pytest.raises(Cancelled):
        state.preflight.run(progress)
    assert Counter(verdicts(state).values()) == {"passed": 1, "pending": 3}
    state.preflight.run()
    assert state.ready


# Data, Hub


def test_data_that_cannot_be_opened_are_a_cross_with_the_reason():
    Path("short.txt").write_text("short")
    state = state_of(dataset_path="short.txt")
    state.preflight.run()
    assert verdicts(state) == {"data": "failed", "batch": "not run", "causality": "passed", "run": "passed"}
    assert "too little text" in check_of(state, "data").message
    assert state.verdict == "Not ready to train: 1 check failed."


def test_a_file_that_was_mended_is_read_again_when_asked():
    Path("my.txt").write_text("short")
    state = state_of(dataset_path="my.txt")
    state.preflight.run()
    Path("my.txt").write_text(TEXT)
    state.preflight.run()
    assert state.ready


def hub_checks(endpoint, cache):
    """The checks of two datasets, in a process whose Hub is `endpoint`, and what is left after the way out was taken."""
    code = """
        import json
        from tests.kit.toys import tiny_gpt
        from utils.data.text import hub
        from utils.ui.setup_config import SetupConfig
        from utils.ui.wizard_state import WizardState
        hub.RETRY_WAITS_S = ()
        def state_of(name):
            values = dict(dataset_name=name, vocab_size=32, max_length=16, tokenizer_strategy="character", epochs=1)
            return WizardState(SetupConfig(**values), tiny_gpt())
        there, absent = state_of("me/verses"), state_of("me/nothing")
        first, second = there.preflight.run(), absent.preflight.run()
        labels = [way.label for way in second[0].ways_out]
        absent.take(second[0].ways_out[0])
        rows = [[(check.name, check.verdict, check.message) for check in checks] for checks in (first, second)]
        print(json.dumps([*rows, labels, absent.setup.dataset_source, there.verdict]))
    """
    environment = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(cache), "HF_HUB_OFFLINE": "0", "NO_PROXY": "*"}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_the_hub_is_asked_where_it_is_needed_and_a_refusal_has_a_way_out(tmp_path):
    with serving({"me/verses": {MAIN: {"train.txt": TEXT.encode()}}}) as hub:
        there, absent, labels, source, verdict = hub_checks(hub.address, tmp_path / "cache")
    assert {name: result for name, result, _ in there} == dict.fromkeys(
        ("hub", "data", "batch", "causality", "run"), "passed"
    ), there
    assert "60 rows were read" in there[1][2]
    assert verdict == "Ready to train."
    assert [row[:2] for row in absent[:3]] == [["hub", "failed"], ["data", "not run"], ["batch", "not run"]]
    assert "no dataset 'me/nothing'" in absent[0][2]
    assert (labels, source) == (["Use the built-in text"], "builtin")


# Model


class Raising(nn.Module):
    """A language model whose forward pass breaks."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(32, 32)

    def forward(self, input_ids):
        return self.table(input_ids) @ torch.zeros(5, 5)


class NoGradient(Raising):
    """One of which no gradient comes back."""

    def forward(self, input_ids):
        return self.table(input_ids).detach()


class Exploding(Raising):
    """One whose loss is not a number."""

    def forward(self, input_ids):
        return self.table(input_ids) * float("nan")


class Uncopyable(Raising):
    """One that works and cannot be copied."""

    def forward(self, input_ids):
        return self.table(input_ids)

    def __deepcopy__(self, memo):
        raise TypeError("cannot be copied")


class Peeking(Raising):
    """One that sees the token after the next."""

    def forward(self, input_ids):
        return self.table(input_ids) + self.table(input_ids.roll(-1, 1))


@pytest.mark.parametrize(
    ("model", "name", "because"),
    [
        (Raising, "batch", "mat1 and mat2"),
        (NoGradient, "batch", "grad"),
        (Exploding, "batch", "nan"),
        (Uncopyable, "batch", "cannot be copied"),
        (Peeking, "causality", "A later token changes earlier logits"),
    ],
)
def test_a_model_that_cannot_be_trained_is_a_cross_with_the_reason(model, name, because, text_file):
    state = state_of(model(), dataset_path="my.txt")
    state.preflight.run()
    assert not state.ready
    check = check_of(state, name)
    assert check.verdict == "failed"
    assert because in check.message


# Run


def test_a_finished_run_with_the_same_settings_is_ready_and_offers_another_name(text_file):
    state = state_of(dataset_path="my.txt", run_name="mine")
    train(state)
    state.preflight.run()
    assert state.ready
    assert "Run mine is finished" in check_of(state, "run").message
    assert [way.label for way in check_of(state, "run").ways_out] == ["Use run name mine-2"]


@pytest.mark.parametrize(
    ("change", "way_out"), [({"learning_rate": 1e-3}, 0), ({"epochs": 3, "weight_decay": 0.5}, 1), ({"val_split": 0.3}, 1)]
)
def test_a_taken_name_with_other_settings_is_a_cross_with_two_ways_out(change, way_out, text_file):
    state = state_of(dataset_path="my.txt", run_name="mine")
    train(state)
    Path("runs/mine-2").mkdir()
    state.setup.update(**change)
    state.preflight.run()
    check = check_of(state, "run")
    assert check.verdict == "failed"
    assert check.message.startswith("Run mine exists with other settings: ")
    assert [way.label for way in check.ways_out] == ["Use run name mine-3", "Continue with the new settings"]
    state.take(check.ways_out[way_out])
    assert verdicts(state) == {"data": "passed", "batch": "passed", "causality": "passed", "run": "pending"}
    state.preflight.run()
    assert state.ready
    train(state)  # it says so, and it is so


@pytest.mark.parametrize(
    ("change", "model", "why"),
    [
        ({}, lambda: tiny_gpt(layers=1), "Run mine is of another model: "),
        ({"dataset_path": "other.txt"}, tiny_gpt, "Run mine exists with other settings: "),
        ({"finetune": "lora"}, tiny_gpt, "Run mine is of another model: "),
    ],
    ids=["layers", "tokenizer", "lora"],
)
def test_weights_that_do_not_fit_or_mean_something_else_are_not_continued(change, model, why, text_file):
    state = state_of(dataset_path="my.txt", run_name="mine")
    train(state)
    Path("other.txt").write_text("all the world's a stage\n" * 60)
    other = state_of(model(), **{"dataset_path": "my.txt", "run_name": "mine", **change})
    other.preflight.run()
    check = check_of(other, "run")
    assert check.verdict == "failed", check.message
    assert check.message.startswith(why)
    assert [way.label for way in check.ways_out] == ["Use run name mine-2"]
    other.take(check.ways_out[0])
    other.preflight.run()
    assert other.ready


def test_adapters_fit_the_run_that_trained_them(text_file):
    state = state_of(dataset_path="my.txt", run_name="mine", finetune="lora")
    train(state)
    state.preflight.run()
    assert check_of(state, "run").message.startswith("Run mine is finished")


def test_a_stopped_run_continues(text_file):
    state = state_of(dataset_path="my.txt", run_name="mine", max_steps=3)
    train(state)
    state.setup.update(max_steps=5, on_config_change="continue")
    plan = run_plan(state.setup.training_config)
    assert plan.allowed
    assert plan.sentence == "Run mine continues at step 3 with the new settings (Step limit 3 steps there, 5 steps here)."
    state.preflight.run()
    assert check_of(state, "run").message == f"{plan.sentence} 2 of 5 steps are left."


def test_a_run_that_another_process_trains_is_a_cross(text_file):
    state = state_of(dataset_path="my.txt", run_name="mine")
    train(state)
    lock = FolderLock(Path("runs/mine/lock"))
    lock.acquire()
    try:
        plan = run_plan(state.setup.training_config)
    finally:
        lock.release()
    assert not plan.allowed
    assert "another process" in plan.sentence
    assert plan.free_name == "mine-2"


def test_checkpoints_of_another_run_in_checkpoint_dir_are_a_cross(text_file):
    state = state_of(dataset_path="my.txt", run_name="mine", checkpoint_dir="ck")
    train(state)
    state.setup.run_name = "other"
    state.preflight.run()
    check = check_of(state, "run")
    assert check.verdict == "failed"
    assert "of run mine, not of other" in check.message
    state.take(check.ways_out[0])
    state.preflight.run()
    assert state.ready
    train(state)


def test_a_damaged_run_is_a_cross_with_another_name(text_file):
    state = state_of(dataset_path="my.txt", run_name="mine")
    train(state)
    for path in Path("runs/mine/checkpoints").glob("*.pt"):
        path.write_bytes(b"damaged")
    plan = run_plan(state.setup.training_config)
    assert not plan.allowed
    assert "no intact checkpoint" in plan.sentence
    assert plan.free_name == "mine-2"


def test_a_new_run_needs_no_name():
    assert run_plan(state_of().setup.training_config).sentence.startswith("A new run will be created in runs")


def test_the_run_is_looked_for_again_when_the_summary_is_opened(text_file):
    state = state_of(dataset_path="my.txt", run_name="mine")
    state.preflight.run()
    train(state)
    state.goto("summary")
    assert verdicts(state)["run"] == "pending"


def test_a_run_name_is_not_free_any_more_once_the_run_exists(text_file):
    state = state_of(dataset_path="my.txt", run_name="mine")
    state.preflight.run()
    assert verdicts(state)["run"] == "passed"
    train(state)
    assert verdicts(state)["run"] == "pending"


# Without a form


def test_the_wizard_makes_and_shows_the_checks_without_a_form(text_file, capsys):
    wizard = SetupWizard()
    with pytest.raises(ConfigError, match="run the cell with wizard.run"):
        wizard.preflight()
    setup = wizard.run(tiny_gpt(vocab_size=600), interactive=False, dataset_path="my.txt", max_length=16, run_name="mine")
    wizard.print_config(setup)
    assert "4 checks pending. wizard.preflight() runs them" in capsys.readouterr().out
    checks = wizard.preflight()
    assert all(isinstance(check, Check) and check.verdict == "passed" for check in checks), checks
    assert "Ready to train." in capsys.readouterr().out
    wizard.print_config(setup)
    assert "yes" in next(line for line in capsys.readouterr().out.splitlines() if "Ready" in line)
