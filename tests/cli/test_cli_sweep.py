"""A sweep file searches over a job, in this project's words or in W&B's, and explains every mistake."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from cli.run_training import SweepConfig, main
from utils.training import TrainingConfig

JOB = """
model: {name: gpt-small, vocab_size: 120, max_seq_len: 16, n_layer: 1, n_embd: 16, n_head: 2}
setup: {dataset_path: text.txt, max_length: 16, tokenizer_strategy: character}
training: {epochs: 1, batch_size: 8}
"""
SWEEP = """
method: grid
name: mine
parameters: {learning_rate: [1e-4, 3e-3], model.n_embd: [16, 32]}
"""


@pytest.fixture
def sweep(tmp_path, monkeypatch):
    """Runs a sweep file with these words; the job stands in it."""
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text("\n".join(f"{n} bottles of beer on the wall." for n in range(60)))

    def run(text, *options, job=JOB):
        Path("sweep.yaml").write_text(text + job)
        return main(["--sweep-config", "sweep.yaml", *options])

    return run


def test_a_sweep_ends_with_the_best_settings_and_is_not_run_twice(sweep, capsys):
    assert sweep(SWEEP) == 0
    out = capsys.readouterr().out
    assert re.findall(r"^trial (\d)  finished", out, re.MULTILINE) == list("0123")
    assert {path.name for path in Path("runs").iterdir()} == {"mine", *(f"mine-trial{n}" for n in range(4))}
    assert TrainingConfig.load("runs/mine/best.yaml").learning_rate == 3e-3
    assert sweep(SWEEP) == 0
    assert "trial 0  finished" not in capsys.readouterr().out


def test_the_job_may_be_a_file_of_its_own_and_wandbs_words_are_read(sweep, capsys):
    Path("job.yaml").write_text(JOB)
    text = """
program: train.py
method: bayes
run_cap: 2
metric: {name: val/accuracy, goal: maximize}
parameters:
  learning_rate: {distribution: log_uniform_values, min: 1e-4, max: 1e-2}
  batch_size: {values: [4, 8]}
"""
    assert sweep(text, "--config", "job.yaml", "--set", "output_dir=elsewhere", job="") == 0
    assert "optuna: 2 finished" in capsys.readouterr().out
    assert Path("elsewhere/search1/search.json").is_file()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("parameters: {learning_rat: [1e-3]}", "did you mean learning_rate"),
        ("method: grid\nparameters: {lr: {min: 1e-5, max: 1e-3}}", "points=5"),
        ("method: gird\nparameters: {lr: [1e-3]}", "did you mean 'grid'"),
        ("method: grid", "parameters +is required"),
        ("parametres: {lr: [1e-3]}", "did you mean parameters"),
        ("parameters: {lr: [1e-3]}\nmetric: {name: val/loss, goal: least}", "minimize or maximize"),
    ],
)
def test_a_mistake_is_one_message_before_anything_is_trained(sweep, capsys, text, message):
    assert sweep(text) == 2
    err = capsys.readouterr().err
    assert re.search(message, err), err
    assert "Traceback" not in err
    assert not Path("runs").exists()


def test_two_jobs_and_resume_are_refused(sweep, capsys):
    Path("job.yaml").write_text(JOB)
    assert sweep(SWEEP, "--config", "job.yaml") == 2
    assert "keep one" in capsys.readouterr().err
    assert sweep(SWEEP, "--resume", "auto") == 2
    assert "continues by itself" in capsys.readouterr().err


def test_the_documents_sweep_file_is_valid(tmp_path):
    from utils import HOME

    text = re.search(r"```yaml\n(.*?)```", (HOME / "docs" / "search.md").read_text(encoding="utf-8"), re.DOTALL)[1]
    (tmp_path / "sweep.yaml").write_text(text)
    sweep, job = SweepConfig.from_file(str(tmp_path / "sweep.yaml"))
    assert (sweep.n_trials, job["preset"]) == (10, "starter")
