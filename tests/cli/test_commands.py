"""One command for everything: its help is short and quick, mistakes are named, and every sub-command works in-process."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from types import SimpleNamespace

import pytest

from cli import completion
from cli.commands import COMMANDS, main
from cli.run_training import TRACKER_NAMES, JobConfig, setup_of
from cli.run_training import main as run_training
from tests.training.test_run_table import make_run
from utils.errors import ConfigError
from utils.storage import FolderLock
from utils.training.run_folder import RunFolder
from utils.training.tracking import TRACKERS
from utils.ui.progress import PrintProgress, ProgressBar, progress_callback

HEAVY = ("torch", "transformers", "pandas", "sqlalchemy", "pydantic", "utils.training")


def test_the_help_is_one_screen_and_imports_nothing_heavy():
    program = (
        "import sys; from cli.commands import main; status = main(['--help']); "
        f"print(*[name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr); sys.exit(status)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    assert done.stderr.split() == []
    lines = done.stdout.splitlines()
    assert len(lines) <= 30
    assert max(map(len, lines)) <= 128
    assert all(any(line.split()[:1] == [name] for line in lines) for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(name, capsys):
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])
    assert ended.value.code == 0
    assert f"usage: trainbook {name}" in capsys.readouterr().out


@pytest.mark.parametrize(("arguments", "says"), [
    (["trian"], "did you mean train?"),
    (["xyzzy"], "commands are train, image"),
    (["runs", "lst"], "did you mean list?"),
    (["runs", "list", "--statsu", "failed"], "did you mean --status?"),
    (["runs", "list", "--status", "faild"], "did you mean failed?"),
    (["train", "--dryrun"], "did you mean --dry-run?"),
    (["train", "--tracker", "tensorbord"], "did you mean tensorboard?"),
    (["image", "--dataset", "mnist", "--bach-size", "4"], "did you mean --batch-size?"),
    (["doctor", "x", "--jsn"], "did you mean --json?"),
    (["train", "--set", "epohcs=2"], "did you mean epochs?"),
    (["queue", "list"], "Give --queue"),
    ([], "usage: trainbook"),
])  # fmt: skip
def test_a_mistake_is_status_2_and_names_what_was_probably_meant(arguments, says, capsys, monkeypatch):
    monkeypatch.delenv("TRAINBOOK_QUEUE", raising=False)
    try:
        status = main(arguments)
    except SystemExit as ended:  # argparse's way
        status = ended.code
    assert status == 2
    assert says in capsys.readouterr().err


@pytest.mark.parametrize("start", [main, run_training])
def test_a_training_needs_no_word_and_takes_one(start, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for arguments in (["--config", "missing.yaml"], ["train", "--config", "missing.yaml"]):
        assert start(arguments) == 2
        assert "missing.yaml" in capsys.readouterr().err
    assert start(["runs", "list"]) == 0
    assert not (tmp_path / "runs").exists(), "looking changes nothing"


def test_typed_values_win_over_the_file_and_the_file_over_the_preset(tmp_path):
    job = tmp_path / "job.yaml"
    job.write_text("preset: starter\ntraining: {epochs: 7, batch_size: 3}\n")
    preset = setup_of(JobConfig.from_file(None)).training_config
    config = setup_of(JobConfig.from_file(str(job), ["epochs=9"])).training_config
    assert (config.epochs, config.batch_size) == (9, 3)
    assert config.learning_rate == preset.learning_rate
    assert preset.batch_size != 3
    with pytest.raises(ConfigError, match="did you mean"):
        setup_of(JobConfig.from_file(str(job), ["learning_rat=1"]))


def test_the_trackers_of_the_command_line_are_those_of_the_library():
    assert set(TRACKER_NAMES) == set(TRACKERS)


# ---- runs and models ----


@pytest.fixture
def runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "runs", "first", losses=(2.0, 1.0))
    make_run(tmp_path / "runs", "second", losses=(2.0, float("nan")), status="failed", batch_size=8)
    return tmp_path / "runs"


@pytest.mark.parametrize(("arguments", "there", "not_there"), [
    (["list"], ["first", "second", "val/loss"], []),
    (["list", "--status", "failed"], ["second"], ["first"]),
    (["list", "--set", "batch_size=8"], ["second"], ["first"]),
    (["show", "first"], ["batch_size", "best.pt", "val/loss", "finished"], ["train/loss"]),
    (["compare", "first", "second"], ["setting batch_size", "nan"], ["setting notes"]),
    (["best"], ["first  val/loss 1"], ["second"]),
    (["tag", "first", "good"], ["first: good"], []),
    (["reindex"], ["2 runs"], []),
])  # fmt: skip
def test_runs_are_shown(runs, arguments, there, not_there, capsys):
    assert main(["runs", *arguments]) == 0
    out = capsys.readouterr().out
    assert all(text in out for text in there)
    assert not any(text in out for text in not_there)


@pytest.mark.parametrize("arguments", [["list"], ["show", "second"], ["compare", "first", "second"], ["best"]])
def test_runs_are_printed_as_json(runs, arguments, capsys):
    assert main(["runs", *arguments, "--json"]) == 0
    text = capsys.readouterr().out
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


@pytest.mark.parametrize(("arguments", "status", "says"), [
    (["runs", "best", "val/f1"], 1, "no run"), (["runs", "show", "frist"], 2, "Did you mean 'first'"),
    (["models", "promote", "chat", "1"], 2, "no model 'chat'"), (["export", "frist"], 2, "Did you mean 'first'"),
    (["doctor", "frist"], 2, "frist"),
])  # fmt: skip
def test_what_is_not_there_is_told_apart_by_the_status(runs, arguments, status, says, capsys):
    assert main(arguments) == status
    error = capsys.readouterr().err
    assert says in error
    assert "Traceback" not in error


def test_runs_are_annotated_archived_and_deleted(runs, capsys):
    assert main(["runs", "note", "first", "a good one"]) == 0
    assert main(["runs", "archive", "second"]) == 0
    capsys.readouterr()
    main(["runs", "list"])
    assert "second" not in capsys.readouterr().out
    main(["runs", "list", "--archived"])
    assert "second" in capsys.readouterr().out
    main(["runs", "show", "first"])
    assert "a good one" in capsys.readouterr().out
    assert main(["runs", "delete", "first", "second"]) == 2
    assert "Add --yes" in capsys.readouterr().err
    assert main(["runs", "delete", "second", "frist", "--yes"]) == 2
    assert (runs / "second").is_dir(), "one name that is wrong deletes nothing"
    assert main(["runs", "restore", "second"]) == 0
    assert main(["runs", "delete", "second", "--yes"]) == 0
    assert "second: deleted" in capsys.readouterr().out
    assert not (runs / "second").exists()


def test_a_run_under_way_is_asked_to_stop_or_to_finish(runs, capsys):
    make_run(runs, "wsd", lr_schedule="wsd")
    assert main(["runs", "finish", "wsd"]) == 2
    assert "not under way" in capsys.readouterr().err
    with FolderLock(runs / "wsd" / "lock").held(), FolderLock(runs / "first" / "lock").held():
        assert main(["runs", "finish", "first"]) == 2
        assert "only lr_schedule=wsd" in capsys.readouterr().err
        assert main(["runs", "finish", "wsd"]) == 0
        assert main(["runs", "stop", "wsd", "--keep-best"]) == 0
        assert main(["runs", "stop", "first"]) == 0
    assert (runs / "wsd" / "FINISH").is_file()
    assert RunFolder(runs / "wsd").stop_requested() == "keep_best"
    assert RunFolder(runs / "first").stop_requested() == "stop_file"


def test_models_are_registered_and_promoted(runs, capsys):
    export = runs / "first" / "exports" / "hf"
    export.mkdir(parents=True)
    (export / "model").write_text("weights")
    assert main(["models", "register", "chat", str(export), "--tag", "small"]) == 0
    assert main(["models", "promote", "chat", "1"]) == 0
    capsys.readouterr()
    assert main(["models", "list", "--json"]) == 0
    (model,) = json.loads(capsys.readouterr().out)
    assert (model["stage"], model["run"], model["tags"]) == ("production", "first", ["small"])
    assert main(["models", "show", "chat"]) == 0
    (export / "model").write_text("others")
    assert main(["models", "show", "chat"]) == 1
    assert main(["models", "delete", "chat", "1"]) == 2
    assert main(["models", "retire", "chat", "1"]) == 0
    assert main(["models", "delete", "chat", "1"]) == 0


# ---- export ----


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A trained run's folder, and its job's file."""
    folder = tmp_path_factory.mktemp("export")
    (folder / "text.txt").write_text("\n\n".join(f"{n} bottles of beer on the wall." for n in range(200)))
    job = folder / "job.yaml"
    job.write_text(
        "model: {name: gpt-small, vocab_size: 120, max_seq_len: 16, n_layer: 1, n_embd: 16, n_head: 2}\n"
        f"setup: {{dataset_path: {folder / 'text.txt'}, max_length: 16, tokenizer_strategy: character}}\n"
        f"training: {{max_steps: 2, batch_size: 8, run_name: small, output_dir: {folder / 'runs'}}}\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRAINBOOK_TRACKERS", "")
        assert main(["train", "--config", str(job), "--tracker", "tensorboard"]) == 0
    return folder / "runs" / "small", job


@pytest.mark.parametrize("with_job", [True, False], ids=["the job's model", "the run's export"])
def test_a_finished_run_is_exported_from_its_folder(trained, with_job, tmp_path, capsys):
    run, job = trained
    arguments = [str(run), "--formats", "hf", "safetensors", "--output-dir", str(tmp_path / "out")]
    assert main(["export", *arguments, *(["--config", str(job)] if with_job else [])]) == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"hf", "safetensors"}
    assert (tmp_path / "out" / "hf" / "tokenizer.json").is_file()
    out = capsys.readouterr().out
    assert "hf: " in out
    assert "bit for bit" in out


def test_what_cannot_be_exported_is_explained(trained, capsys):
    assert main(["export", str(trained[0]), "--set", "model.n_embd=32"]) == 2
    assert "--config" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        main(["export", str(trained[0]), "--formats", "onx"])
    assert ended.value.code == 2
    assert "did you mean onnx?" in capsys.readouterr().err


def test_a_tracker_of_the_command_line_is_used(trained):
    assert list((trained[0] / "tensorboard").iterdir())


# ---- completion and progress ----


@pytest.mark.parametrize(("typed", "offered"), [
    ("tr", {"train"}), ("runs co", {"compare"}), ("runs compare first --a", {"--all"}), ("search --dry", {"--dry-run"}),
    ("completion z", {"zsh"}), ("queue submit --pri", {"--priority"}),
])  # fmt: skip
def test_bash_completes_commands_and_options(script, typed, offered):
    words = ["trainbook", *typed.split()]
    program = (
        f'{script}\nCOMP_WORDS=({" ".join(words)}); COMP_CWORD={len(words) - 1}; _trainbook; echo "${{COMPREPLY[@]}}"'
    )
    done = subprocess.run(["bash", "-c", program], capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.split()) == offered


@pytest.fixture(scope="module")
def script():
    with pytest.MonkeyPatch.context() as patch:
        out = io.StringIO()
        patch.setattr(sys, "stdout", out)
        assert completion.main(["bash"]) == 0
    return out.getvalue()


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_have_every_command_too(shell, capsys):
    assert completion.main([shell]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in COMMANDS)


class Terminal(io.StringIO):
    def isatty(self):
        return True


def trainer_at(step, samples_done, eval_every=2):
    config = SimpleNamespace(epochs=2, eval_every=eval_every)
    state = SimpleNamespace(step=step, samples_done=samples_done)
    return SimpleNamespace(training_config=config, state=state, data=SimpleNamespace(samples_per_epoch=16))


def test_a_terminal_gets_a_bar_and_a_log_one_line_an_evaluation(monkeypatch, capsys):
    assert type(progress_callback()) is PrintProgress
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    for progress in (PrintProgress(), progress_callback()):
        is_bar = isinstance(progress, ProgressBar)
        if is_bar:
            progress.on_train_begin(trainer_at(1, 0), {"total_steps": 4})
            progress.on_step_end(2, trainer_at(2, 8), {"train/loss": 1.5})
        progress.on_evaluate_end(trainer_at(2, 8), {"val/loss": 2.0})
        progress.on_evaluate_end(trainer_at(4, 16), {"val/loss": 1.0})
        progress.on_epoch_end(0, trainer_at(4, 16), {"train/loss": 1.5, "val/loss": 1.0})
        if is_bar:
            progress.on_train_end(trainer_at(4, 16))
        assert capsys.readouterr().out.splitlines() == [
            "step 2  val loss 2.0000", "epoch 1/2  train loss 1.5000  val loss 1.0000",
        ]  # fmt: skip
    assert "2/4" in terminal.getvalue()
    assert "loss 1.5000" in terminal.getvalue()
