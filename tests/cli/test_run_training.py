"""The command line trains the notebook's job from a file, explains every mistake, and stops without losing anything."""

from __future__ import annotations

import hashlib
import os
import re
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from cli.run_training import JobConfig, main
from utils.errors import ConfigError
from utils.training.engine.checkpointing.store import read_checkpoint
from utils.ui import SetupConfig
from utils.ui.progress import progress_line

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "cli" / "run_training.py"

JOB = """
model: {{name: gpt-small, vocab_size: 120, max_seq_len: 16, n_layer: 1, n_embd: 16, n_head: 2}}
setup: {{dataset_path: {text}, max_length: 16, tokenizer_strategy: character}}
training: {{epochs: 2, batch_size: 8, learning_rate: 3e-3, run_name: small, output_dir: {runs}}}
"""


@pytest.fixture
def job(tmp_path):
    """A job file that trains in a second."""
    text = tmp_path / "my text.txt"
    text.write_text("\n\n".join(f"{n} bottles of beer on the wall, {n} bottles of beer." for n in range(200)))
    path = tmp_path / "job.yaml"
    path.write_text(JOB.format(text=text, runs=tmp_path / "runs"))
    return path


def start(*arguments, cwd, **options):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, *map(str, arguments)], cwd=cwd, text=True, env=environment,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options,
    )  # fmt: skip


def test_a_job_file_ends_with_model_curves_and_run_folder(job, tmp_path, capsys):
    assert main(["--config", str(job)]) == 0
    out = capsys.readouterr().out
    epochs = re.findall(r"epoch (\d)/2  train loss [\d.]+  val loss [\d.]+  [\d,]+ tokens/s", out)
    assert epochs == ["1", "2"]
    for title in ("run folder", "curves", "checkpoint", "model"):
        path = re.search(rf"^{title} +(/.+)$", out, re.MULTILINE)
        assert path, f"{title} is not named"
        assert Path(path[1]).exists()
        assert Path(path[1]).is_relative_to(tmp_path / "runs" / "small")


def test_the_same_command_with_resume_trains_nothing_twice(job, tmp_path, capsys):
    arguments = ["--config", str(job), "--resume", "auto"]
    assert main(arguments) == 0
    last = (tmp_path / "runs" / "small" / "checkpoints" / "epoch_2.pt").read_bytes()
    capsys.readouterr()
    assert main(arguments) == 0
    assert "epoch 1/2" not in capsys.readouterr().out
    assert (tmp_path / "runs" / "small" / "checkpoints" / "epoch_2.pt").read_bytes() == last
    assert [entry.name for entry in (tmp_path / "runs").iterdir()] == ["small"]


def test_a_dry_run_checks_everything_and_writes_nothing(job, tmp_path, capsys):
    assert main(["--config", str(job), "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "Unigram loss" in out
    assert "nothing was trained" in out
    assert not (tmp_path / "runs").exists()


def test_finish_now_needs_a_schedule_that_allows_it(job, capsys):
    assert main(["--config", str(job), "--finish-now"]) == 2
    assert "--finish-now needs lr_schedule=wsd" in capsys.readouterr().err


def test_settings_win_over_the_file_whatever_they_are_called(job, capsys):
    settings = ["--set", "max_epochs=1", "--set", "model.n_embd=32", "--set", "warmup_steps=1", "--set", "seed=7"]
    assert main(["--config", str(job), *settings, "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"Epochs +1\n", out)
    assert re.search(r"Seed +7\n", out)
    merged = JobConfig.from_file(str(job), ["max_epochs=1", "model.n_embd=32", "learning_rate=1e-4", "max_length=8"])
    assert merged.training["max_epochs"] == 1
    assert "epochs" not in merged.training
    assert "max_length" not in merged.setup
    assert (merged.model["n_embd"], merged.training["learning_rate"]) == (32, 1e-4)


def test_without_a_file_it_is_the_starter_job():
    job = JobConfig.from_file(None)
    assert (job.preset, job.model, job.setup, job.training) == ("starter", {}, {}, {})


def test_a_saved_setup_is_a_job_file(tmp_path):
    setup = SetupConfig(epochs=3, max_length=32, run_name="mine")
    job = JobConfig.from_file(setup.save(tmp_path / "setup.json"))
    assert SetupConfig.from_sections({"setup": job.setup, "training": job.training}) == setup


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("traning: {epochs: 2}", "did you mean training"),
        ("training: {epocs: 2}", "did you mean epochs"),
        ("training: {learning_rate: '5e-5'}", "without quotes"),
        ("epochs: 2", "put it under training"),
        ("dataset_path: my.txt", "put it under setup"),
        ("preset: startr", "Did you mean 'starter'"),
        ("model: {name: gtp-small}", "Did you mean 'gpt-small'"),
        ("model: {vocab_sise: 100}", "vocab_size"),
        ("training: {epochs: 2", r"job\.yaml:1"),
        ("setup: {dataset_path: nowhere.txt}", "no such file"),
        ("setup: {vocab_size: 5000}", "4096 token ids"),
        ("training: {epochs: 2}\ntraining: {epochs: 3}", "stands twice"),
    ],
)
def test_a_mistake_is_one_message_without_a_traceback(tmp_path, capsys, monkeypatch, text, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "job.yaml").write_text(text)
    assert main(["--config", "job.yaml"]) == 2
    captured = capsys.readouterr()
    assert re.search(message, captured.err)
    assert "Traceback" not in captured.err
    assert [entry.name for entry in tmp_path.iterdir()] == ["job.yaml"]


def test_a_missing_job_file_is_named(capsys):
    assert main(["--config", "nowhere.yaml"]) == 2
    assert "nowhere.yaml does not exist" in capsys.readouterr().err


@pytest.mark.parametrize("setting", ["epochs", "=3"])
def test_a_setting_without_a_value_is_explained(setting):
    with pytest.raises(ConfigError, match="name=value"):
        JobConfig.from_file(None, [setting])


def test_all_mistakes_of_a_file_are_reported_together(tmp_path, capsys):
    path = tmp_path / "job.yaml"
    path.write_text("setup: {max_lenght: 8}\ntraining: {epocs: 2, batch_size: 0}")
    assert main(["--config", str(path)]) == 2
    err = capsys.readouterr().err
    assert all(name in err for name in ("max_lenght", "epocs", "batch_size"))


def test_what_is_not_known_of_an_epoch_is_left_out():
    assert progress_line(0, 3, {"train/loss": 2.0}) == "epoch 1/3  train loss 2.0000"
    row = {"train/loss": float("nan"), "val/loss": 3.0, "time/tokens_per_s": 1234.6, "time/epoch_s": 2.04}
    assert progress_line(2, 3, row) == "epoch 3/3  train loss nan  val loss 3.0000  1,235 tokens/s  2.0 s"
    assert progress_line(2, 3, row | {"val/accuracy": 0.5}).endswith("1,235 targets/s  2.0 s")


@pytest.mark.slow
def test_help_names_every_option(tmp_path):
    out, _ = start(SCRIPT, "--help", cwd=tmp_path).communicate(timeout=300)
    assert all(option in out for option in ("--config", "--set", "--resume", "--dry-run", "130", "143"))


@pytest.mark.slow
def test_each_signal_saves_and_the_same_command_continues(job, tmp_path):
    """Started as a script from any folder, and as a module."""

    def last_step():
        checkpoints = (tmp_path / "runs" / "small" / "checkpoints").glob("*_*.pt")
        return max(read_checkpoint(path)["state"]["step"] for path in checkpoints)

    job.write_text(job.read_text().replace("epochs: 2", "epochs: 5000"))
    process = start(SCRIPT, "--config", job, cwd=tmp_path)
    for line in process.stdout:
        if line.startswith("epoch 2/"):
            break
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 130, out + err
    assert "Traceback" not in err
    step = last_step()
    assert err.count("continue") == 1
    assert "--resume auto" in err
    named = Path(re.search(r"saved as (.+)\.$", err, re.MULTILINE)[1])
    assert read_checkpoint(named)["state"]["step"] == step

    resumed = start("-m", "cli.run_training", "--config", job, "--resume", "auto", cwd=ROOT)
    first = next(line for line in resumed.stdout if line.startswith("epoch"))
    resumed.send_signal(signal.SIGTERM)
    out, err = resumed.communicate(timeout=300)
    assert resumed.returncode == 143, out + err
    assert "Traceback" not in err
    assert "--resume auto" in err
    assert int(re.match(r"epoch (\d+)/", first)[1]) >= 3
    assert last_step() > step


def test_a_jobs_model_may_be_a_file_or_somebody_elses_code(job, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = (
        "from transformers import GPT2Config, GPT2LMHeadModel\n"
        "def create_model(vocab_size=120, width=16):\n"
        "    return GPT2LMHeadModel(GPT2Config(vocab_size=vocab_size, n_positions=16, n_embd=width, n_layer=1, n_head=2))\n"
    )
    Path("mine.py").write_text(source)
    Path("job.yaml").write_text(
        job.read_text()
        .replace("gpt-small", "mine.py")
        .replace(", max_seq_len: 16, n_layer: 1, n_embd: 16, n_head: 2", ", width: 32")
    )
    assert main(["--config", "job.yaml", "--set", "epochs=1"]) == 0
    assert "epoch 1/1" in capsys.readouterr().out
    with zipfile.ZipFile("theirs.zip", "w") as archive:
        archive.writestr("model.py", source)
    theirs = ["--config", "job.yaml", "--set", "model.name=theirs.zip", "--dry-run"]
    assert main(theirs) == 2
    error = capsys.readouterr().err
    assert "UntrustedCodeError" in error
    digest = hashlib.sha256(source.encode()).hexdigest()
    assert digest in error
    assert main([*theirs, "--set", f"model.trust={digest}"]) == 0
    assert main([*theirs, "--set", "model.wdith=3", "--set", f"model.trust={digest}"]) == 2
    assert "wdith" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["tiny", "code_generation", "chat", "summarization"])  # the other ones are as tiny is
def test_every_kind_of_preset_runs_offline_on_its_stand_in(preset, tmp_path, capsys):
    settings = {
        "preset": preset, "dataset_source": "builtin", "model.vocab_size": 600, "model.max_seq_len": 160,
        "model.n_layer": 1, "model.n_embd": 16, "model.n_head": 2, "vocab_size": 600, "max_length": 160,
        "batch_size": 4, "gradient_accumulation_steps": 1, "max_steps": 1, "warmup_steps": 0, "max_val_samples": 8,
        "output_dir": tmp_path,
    }  # fmt: skip
    assert main([word for name, value in settings.items() for word in ("--set", f"{name}={value}")]) == 0
    out = capsys.readouterr().out
    has_answers = preset in ("chat", "summarization")
    assert ("Chat template" in out) == has_answers
    assert "built-in: Python language reference" in out
    assert list((tmp_path / preset).glob("checkpoints/*.pt"))
