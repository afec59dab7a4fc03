"""Checkpoints of other versions: older ones resume, fields that came, went or were renamed are translated or named."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.kit.golden import GoldenLM, golden_parts
from utils.errors import CheckpointError
from utils.training import Trainer, TrainingConfig, TrainingResults
from utils.training.engine.checkpointing.store import SCHEMA, newest, read_checkpoint
from utils.training.engine.state import TrainState

GOLDEN = Path(__file__).parent / "golden"

# Losses of the run that the golden checkpoints were saved from (after step 7 of 12), which was not stopped.
TRAIN_LOSSES = [2.8407098623422478, 2.602316665649414, 2.4511933986957257]
VAL_LOSSES = [2.553234100341797, 2.3863845825195313, 2.3426435470581053]


def run_folder(name: str) -> Path:
    """A run's folder as that version left it, with nothing but the checkpoint. Returns the checkpoint."""
    folder = Path("runs/golden/checkpoints")
    folder.mkdir(parents=True)
    return Path(shutil.copy(GOLDEN / f"{name}.pt", folder / "step_7.pt"))


def rewritten(path: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """The checkpoint with something in it changed."""
    payload = torch.load(path, weights_only=True)
    change(payload)
    torch.save(payload, path)
    return path


def resumed(resume_from: Any = "auto", **changes: Any) -> TrainingResults:
    model, config, train_set, validation_set, callback = golden_parts()
    trainer = Trainer(model, None, config.replace(**changes), callbacks=[callback])
    results = trainer.train(train_set, validation_set, resume_from=resume_from)
    assert callback.steps == results.steps
    return results


def assert_is_the_whole_run(results: TrainingResults) -> None:
    assert results.steps == 12
    assert results.stop_reason == "finished"
    # Other processors and versions of torch round differently.
    assert results.loss_history == pytest.approx(TRAIN_LOSSES, rel=1e-3)
    assert results.val_loss_history == pytest.approx(VAL_LOSSES, rel=1e-3)
    assert not any("other settings" in notice for notice in results.notices)


@pytest.mark.parametrize("name", sorted(path.stem for path in GOLDEN.glob("*.pt")))
def test_a_golden_checkpoint_of_each_schema_resumes(name):
    run_folder(name)
    assert_is_the_whole_run(resumed())


@pytest.mark.parametrize("change", [
    lambda payload: payload["config"].pop("fused_loss"),
    lambda payload: [payload["config"].pop(name) for name in ("optimizer", "random_seed", "on_save_error")],
    lambda payload: payload["state"].pop("empty_steps"),
    lambda payload: payload["state"]["best"].pop("waits"),
    lambda payload: payload["state"]["window_sums"].clear(),
    lambda payload: payload["schedule"].clear(),
    lambda payload: [payload.pop(name) for name in ("scaler", "other_processes", "task_spec")],
], ids=["a setting", "settings", "state", "best", "sums", "schedule", "entries"])  # fmt: skip
def test_what_a_checkpoint_lacks_takes_its_default(change):
    rewritten(run_folder("schema_1"), change)
    assert_is_the_whole_run(resumed())


def test_renamed_and_removed_fields_are_translated(monkeypatch):
    def older(payload: dict[str, Any]) -> None:
        payload["config"]["lr"] = payload["config"].pop("learning_rate")
        payload["config"]["shiny"] = False
        payload["state"]["steps_done"] = payload["state"].pop("step")
        payload["state"]["mood"] = "good"

    rewritten(run_folder("schema_1"), older)
    monkeypatch.setattr(TrainingConfig, "aliases", {**TrainingConfig.aliases, "lr": "learning_rate"})
    monkeypatch.setattr(TrainingConfig, "removed", {"shiny": False})
    monkeypatch.setattr(TrainState, "EARLIER", {"steps_done": "step", "mood": None})
    assert_is_the_whole_run(resumed())


def test_a_removed_setting_that_cannot_be_had_any_more_is_a_difference(monkeypatch):
    rewritten(run_folder("schema_1"), lambda payload: payload["config"].update(shiny=True))
    monkeypatch.setattr(TrainingConfig, "removed", {"shiny": False})
    with pytest.raises(CheckpointError, match="shiny: True there"):
        resumed()


def test_an_unknown_setting_is_named_and_may_be_ignored():
    rewritten(run_folder("schema_1"), lambda payload: payload["config"].update(from_the_future=3))
    with pytest.raises(CheckpointError, match="from_the_future: 3 there, 'unknown to this version' here"):
        resumed()
    results = resumed(on_config_change="continue")
    assert results.steps == 12
    assert any("from_the_future" in notice for notice in results.notices)


def test_a_checkpoint_of_a_newer_schema_resumes_and_is_reported():
    rewritten(run_folder("schema_1"), lambda payload: payload.update(schema=SCHEMA + 1, from_the_future={"a": 1}))
    results = resumed()
    assert_is_the_whole_run(results)
    said = [notice for notice in results.notices if "was saved by a newer Trainbook" in notice]
    assert [f"schema {SCHEMA + 1}; this version knows schemas up to {SCHEMA}" in notice for notice in said] == [True]


def test_an_unknown_field_of_the_state_is_named_with_both_schemas():
    def newer(payload: dict[str, Any]) -> None:
        payload["schema"] = SCHEMA + 1
        payload["state"]["from_the_future"] = 3

    path = rewritten(run_folder("schema_1"), newer)
    with pytest.raises(CheckpointError, match=f"from_the_future.*schema {SCHEMA + 1}.*up to {SCHEMA}"):
        resumed(path)


def test_a_checkpoint_states_its_schema():
    assert "schema" not in torch.load(GOLDEN / "schema_1.pt", weights_only=True)
    run_folder("schema_1")
    assert read_checkpoint(resumed().checkpoint_path)["schema"] == SCHEMA


def test_an_older_checkpoint_starts_a_new_run_too():
    results = resumed(run_folder("schema_1"), run_name="forked", epochs=4, on_config_change="continue")
    assert results.steps == 16
    assert newest(results.run_dir / "checkpoints")[1]["run"]["name"] == "forked"


def test_weights_of_an_older_checkpoint_are_those_of_its_run():
    model = GoldenLM()
    weights = read_checkpoint(run_folder("schema_1"))["model"]
    assert weights.keys() == model.state_dict().keys()
    assert not torch.equal(weights["head.weight"], model.head.weight)
