"""The command line checks whatever a model is stored as, and its exit status says how it went."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from cli.checks import main, status_of
from cli.run_training import main as train
from tests.kit.toys import tiny_gpt
from utils.checks import CheckReport, CheckResult

SCRIPT = Path(__file__).resolve().parents[2] / "cli" / "checks.py"
ONLY = ["--only", "shapes", "--only", "output stability"]
MODELS = """
from tests.kit.planted import PLANTED, Causal

def sound(wide=False):
    return Causal()

def leaking():
    return PLANTED["mask off by one"].make()

made = Causal()
nothing = None
"""


@pytest.fixture
def modules(tmp_path, monkeypatch):
    """The current folder, with a module of models in it."""
    (tmp_path / "check_models.py").write_text(MODELS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    sys.modules.pop("check_models", None)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A trained run, its job's file, and its folder."""
    folder = tmp_path_factory.mktemp("job")
    (folder / "text.txt").write_text("\n\n".join(f"{n} bottles of beer on the wall." for n in range(200)))
    job = folder / "job.yaml"
    job.write_text(
        "model: {name: gpt-small, vocab_size: 120, max_seq_len: 16, n_layer: 1, n_embd: 16, n_head: 2}\n"
        f"setup: {{dataset_path: {folder / 'text.txt'}, max_length: 16, tokenizer_strategy: character}}\n"
        f"training: {{max_steps: 2, batch_size: 8, run_name: small, output_dir: {folder / 'runs'}}}\n"
    )
    assert train(["--config", str(job)]) == 0
    return job, folder / "runs" / "small"


def test_a_model_of_a_module_is_checked_and_the_text_is_printed(modules, capsys):
    assert main(["check_models:sound", *ONLY]) == 0
    output = capsys.readouterr()
    assert "Tier 1. Passed: 2 pass" in output.out
    assert "shapes (1 of 2)" in output.err
    assert main(["check_models:made", *ONLY]) == 0


def test_a_failing_check_is_status_1(modules, capsys):
    assert main(["check_models:leaking", "--only", "shapes"]) == 1
    assert "What to do" in capsys.readouterr().out


def test_a_model_in_a_file_of_its_own_is_checked(modules, capsys):
    (modules / "net.py").write_text("from tests.kit.planted import Causal\n\n\nclass Net(Causal):\n    pass\n")
    assert main(["net.py:Net", "--only", "shapes"]) == 0
    assert "Passed" in capsys.readouterr().out


def test_arguments_of_the_model_reach_its_factory(modules, capsys):
    assert main(["check_models:sound", "--set", "model.wide=true", "--only", "shapes"]) == 0
    assert main(["check_models:sound", "--set", "model.deep=true", "--only", "shapes"]) == 2
    assert "deep" in capsys.readouterr().err


@pytest.mark.parametrize("given", ["", "checkpoints/best.pt", "exports/hf"])
def test_a_run_a_checkpoint_and_an_export_are_checked(run, given, capsys):
    job, folder = run
    source = folder / given
    if not source.exists():
        source = next((folder / "checkpoints").glob("*.pt"))
    assert main([str(source), "--config", str(job), *ONLY]) == 0
    assert "2 pass" in capsys.readouterr().out


def test_an_exported_run_needs_no_config(run, capsys):
    assert main([str(run[1]), *ONLY]) == 0
    assert "export" in capsys.readouterr().err


def test_a_checkpoint_of_a_registered_model_needs_no_file(run, capsys):
    checkpoint = next((run[1] / "checkpoints").glob("*.pt"))
    assert main([str(checkpoint), *ONLY]) == 0
    assert "gpt-small with the weights of" in capsys.readouterr().err


def test_weights_of_another_model_are_refused_with_what_to_give(run, tmp_path, capsys):
    """A run whose record does not say how its model was made."""
    folder = shutil.copytree(run[1], tmp_path / "copy")
    settings = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    del settings["model"]
    (folder / "config.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    checkpoint = next((folder / "checkpoints").glob("*.pt"))
    assert main([str(checkpoint), *ONLY]) == 2
    message = capsys.readouterr().err
    assert "is of another model" in message
    assert "--config" in message


def test_json_on_standard_output_is_nothing_but_json(modules, capsys):
    assert main(["check_models:sound", "--only", "shapes", "--json", "-"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["passed"] is True
    assert content["results"][0]["name"] == "shapes"


def test_reports_are_written_as_files(modules, capsys):
    arguments = ["--json", "out/report.json", "--html", "out/report.html"]
    assert main(["check_models:leaking", "--only", "shapes", *arguments]) == 1
    assert json.loads((modules / "out" / "report.json").read_text())["passed"] is False
    assert (modules / "out" / "report.html").read_text().startswith("<!DOCTYPE html>")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "no run's folder"),
        (["check_models:missing"], "has no 'missing'"),
        (["check_models:nothing"], "must be an nn.Module"),
        (["check_models:sound", "--only", "shapess"], "shapess"),
        (["check_models:sound", "--tier", "all", "--only", "shapes"], "one tier"),
        (["check_models:sound", "--html", "report.txt"], "ends in .html"),
        (["check_models:sound", "--config", "missing.yaml"], "missing.yaml"),
        (["empty"], "checkpoint"),
    ],
)
def test_what_cannot_be_checked_is_status_2_and_one_message(modules, arguments, message, capsys):
    (modules / "empty").mkdir()
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_a_folder_whose_class_transformers_does_not_have_is_refused(modules, capsys):
    tiny_gpt().save_pretrained(modules / "gpt")
    config = modules / "gpt" / "config.json"
    config.write_text(config.read_text().replace("GPT2LMHeadModel", "GhostModel"))
    assert main(["gpt"]) == 2
    assert "GhostModel" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("verdicts", "status"),
    [(["pass", "warn"], 0), (["pass", "fail", "not run"], 1), (["pass", "not run"], 2), ([], 2)],
)
def test_the_status_of_a_report(verdicts, status):
    assert status_of(CheckReport("T", [CheckResult("c", verdict, "s") for verdict in verdicts])) == status


@pytest.mark.slow
def test_the_script_starts_as_a_file(modules):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(SCRIPT.parents[1])}
    command = [sys.executable, str(SCRIPT), "check_models:leaking", "--only", "shapes"]
    done = subprocess.run(command, cwd=modules, env=environment, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert "fail: " in done.stdout
