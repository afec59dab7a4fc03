"""A run is trained again from its bundle and its losses compared; what cannot be reproduced says why."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from cli.__main__ import main
from tests.kit.toys import golden_config, plain_lm, train_set
from utils.data import prepare_data
from utils.errors import DataNotFoundError, ExportError
from utils.models import ModelRegistry
from utils.training import Trainer, create_repro_bundle
from utils.training.reproduction import EXPECTED, JOB, RECORD, compare_histories, read_repro_bundle
from utils.ui import SetupConfig

ROOT = Path(__file__).resolve().parents[2]
TEXT = "".join(f"Line {number} of the text, and {number * 7} more.\n" for number in range(120))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of 6 steps on a file."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "text.txt").write_text(TEXT)
    model = ModelRegistry.create("gpt-small", vocab_size=100, max_seq_len=16, n_layer=1, n_embd=16, n_head=2)
    setup = SetupConfig(
        dataset_source="local", dataset_path=str(folder / "text.txt"), max_length=16, epochs=2, max_train_samples=24,
        max_val_samples=8, batch_size=8, output_dir=str(folder / "runs"), run_name="original", tokenizer_strategy="character",
    )  # fmt: skip
    data = prepare_data(setup, model)
    trainer = Trainer(model, training_config=setup.training_config, task_spec=data.task_spec, tokenizer=data.tokenizer)
    return trainer.train(data.train, data.validation)


@pytest.fixture
def bundle(run, tmp_path):
    return create_repro_bundle(run, tmp_path / "bundle.zip")


def reproduce(*arguments):
    return main(["reproduce", *map(str, arguments)])


def test_the_same_run_is_reproduced_to_the_last_bit(bundle, capsys):
    assert reproduce(bundle) == 0
    assert "reproduced: all 10 losses are identical to the last bit" in capsys.readouterr().out
    assert (Path("reproduction") / "original" / "history.jsonl").is_file()


@pytest.mark.parametrize("steps", [2, 3])
def test_the_first_steps_are_compared_with_the_schedule_of_the_whole_run(steps, bundle, capsys):
    assert reproduce(bundle, "--steps", steps, "--output-dir", "short") == 0
    assert f"all {steps} losses are identical" in capsys.readouterr().out


def test_a_run_that_was_stopped_is_reproduced_as_far_as_it_came(run, tmp_path, capsys):
    folder = create_repro_bundle(run, tmp_path / "bundle")
    edited(folder, RECORD, lambda text: text.replace('"stop_reason": "finished"', '"stop_reason": "stop_button"'))
    edited(folder, RECORD, lambda text: text.replace('"steps": 6', '"steps": 5'))
    edited(folder, EXPECTED, lambda text: "".join(line for line in text.splitlines(True) if '"step": 6' not in line))
    assert reproduce(folder) == 0
    assert "reproduced: all 7 losses" in capsys.readouterr().out


@pytest.mark.slow
def test_the_program_in_the_bundle_does_it_in_one_command(run, tmp_path):
    folder = create_repro_bundle(run.run_dir, tmp_path / "bundle")
    done = subprocess.run(
        [sys.executable, "reproduce.py", "--steps", "1"], cwd=folder, env={"PYTHONPATH": str(ROOT), "PATH": "", "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "reproduced: " in done.stdout


def test_the_bundle_states_code_fingerprint_seeds_and_environment(bundle):
    record = read_repro_bundle(bundle).record
    assert record["fingerprint"]["data"]
    assert record["seeds"] == {"random_seed": 42, "deterministic": False}
    assert record["environment"]["torch"]
    assert set(record["code"]) == {"commit", "dirty"}
    assert record["missing"] == {}
    with zipfile.ZipFile(bundle) as archive:
        names = set(archive.namelist())
        assert "torch==" in archive.read("requirements.txt").decode()
    assert names == {
        "README.md", "environment.json", "history.jsonl", "job.yaml", "repro.json", "reproduce.py", "requirements.txt"
    }  # fmt: skip


def edited(folder, name, change):
    file = folder / name
    file.write_text(change(file.read_text()))
    return folder


@pytest.mark.parametrize(
    "change", [("weight_decay: ", "weight_decay: 0.9 #"), ("learning_rate: ", "learning_rate: 0.02 #")]
)
def test_other_settings_are_not_reproduced(change, run, tmp_path, capsys):
    folder = edited(create_repro_bundle(run, tmp_path / "bundle"), JOB, lambda text: text.replace(*change))
    assert reproduce(folder, "--rtol", 0) == 1
    assert "NOT reproduced" in capsys.readouterr().out


def test_other_data_are_named_before_anything_is_trained(bundle, tmp_path, capsys):
    (tmp_path / "other.txt").write_text(TEXT.replace("Line 3 ", "Linie 3 "))
    assert reproduce(bundle, "--data", tmp_path / "other.txt") == 2
    assert "are not those of the run: fingerprint" in capsys.readouterr().err
    assert not Path("reproduction").exists()


def test_data_that_are_not_here(run, tmp_path, capsys):
    folder = create_repro_bundle(run, tmp_path / "bundle")
    edited(folder, JOB, lambda text: text.replace("text.txt", "gone.txt"))
    assert reproduce(folder) == 2
    assert "gone.txt" in capsys.readouterr().err
    copied = tmp_path / "copy.txt"
    copied.write_text(TEXT)
    assert reproduce(folder, "--data", copied, "--steps", 1) == 0


def test_a_run_that_recorded_neither_model_nor_data_says_so(tmp_path, capsys):
    results = Trainer(plain_lm(), training_config=golden_config(epochs=1, output_dir=str(tmp_path))).train(train_set())
    bundle = create_repro_bundle(results, tmp_path / "bundle.zip")
    assert reproduce(bundle) == 2
    shown = capsys.readouterr().err
    assert "--model" in shown
    assert "--data" in shown


def test_a_model_that_was_trained_before_is_not_taken_for_a_new_one(run, tmp_path):
    config = golden_config(epochs=1, output_dir=str(tmp_path), run_name="second")
    rows = train_set()
    second = Trainer(run.model, training_config=config).train(rows)
    record = read_repro_bundle(create_repro_bundle(second, tmp_path / "bundle.zip")).record
    assert set(record["missing"]) == {"model", "data"}


def test_what_is_no_run_and_no_bundle(run, tmp_path):
    with pytest.raises(DataNotFoundError, match="holds no run"):
        create_repro_bundle(tmp_path, tmp_path / "b.zip")
    (tmp_path / "there").mkdir()
    with pytest.raises(ExportError, match="exists; choose a new folder"):
        create_repro_bundle(run, tmp_path / "there")
    assert reproduce(tmp_path) == 2


def row(step, loss, event="step", name="train/loss"):
    return {"event": event, "step": step, name: loss}


@pytest.mark.parametrize(
    ("found", "says", "agrees"),
    [
        ([row(1, 2.0), row(2, 1.0)], "all 2 losses are identical", True),
        ([row(1, 2.0), row(2, 1.001)], "1 of 2 losses are identical; the largest relative difference is 0.001 at step 2", True),
        ([row(1, 2.2), row(2, 1.0)], "0.1 at step 1, train/loss", False),
        ([row(1, 2.0)], "1 recorded losses are absent", False),
        ([row(1, float("nan")), row(2, 1.0)], "inf at step 1", False),
        ([], "no loss could be compared", False),
    ],
)  # fmt: skip
def test_histories_are_compared_row_by_row(found, says, agrees):
    comparison = compare_histories([row(1, 2.0), row(2, 1.0)], found)
    assert says in str(comparison)
    assert comparison.agrees(2e-3) == agrees


def test_the_record_is_json(bundle):
    with zipfile.ZipFile(bundle) as archive:
        assert json.loads(archive.read(RECORD))["run"] == "original"
