"""What the wizard gives to copy makes, when it is executed, an equal setup."""

from __future__ import annotations

import subprocess

import pytest

from cli.run_training import JobConfig, model_of
from tests.kit.toys import tiny_gpt
from utils.adapters.facts import ModelFacts
from utils.training.config_files import parse_value
from utils.ui import PRESETS, SetupConfig
from utils.ui.preset_fitting import prepared
from utils.ui.setup_config import values_of_sections
from utils.ui.wizard_code import command_line, python_code, scalar, setup_code, yaml_code
from utils.ui.wizard_steps import facts_of

NASTY = [
    "1e-3", "null", "true", "010", "a: b", "# no comment", "'quoted'", 'say "x"', "two\nlines", "tab\there", " spaces ",
    "ümlaut 😀", "back\\slash", "$(rm -rf x)", "-", "~", "[1]", "{a}", "*a", "\x7f\x85\u2028", "%", "=", "yes", "0x10", "",
]  # fmt: skip

SETUPS = {
    "defaults": SetupConfig(),
    "a frequency, all kept": SetupConfig(save_every_n_epochs=2),
    "a frequency, pruned": SetupConfig(save_every_n_epochs=2, keep_last_n=2),
    **{name: preset.setup() for name, preset in PRESETS.items()},
    "many": SetupConfig(
        vocab_size=77, max_length=9, random_seed=7, betas=(0.8, 0.9), warmup_steps=3, max_time_hours=1e-5,
        learning_rate=1e-7, gradient_checkpointing=True, early_stopping_patience=2, notes='he said "a: b"\n$HOME',
        dataset_path="my dir/o'clock.txt", run_name="1e-3", export_formats=["hf"],
    ),
}  # fmt: skip


def job_setup(job: JobConfig) -> SetupConfig:
    """The setup that cli/run_training.py makes of a job, for the model that it would train."""
    preset = PRESETS[job.preset]
    _, arguments = model_of(job.model, preset.model_name, preset.model_arguments)
    facts = ModelFacts("registry model", 1, 1, arguments["vocab_size"], arguments["max_seq_len"])
    return prepared(preset, facts, values_of_sections({"setup": job.setup, "training": job.training}))


def settings_of(command: str) -> list[str]:
    """What the program gets from a shell."""
    script = 'python() { printf "%s\\0" "$@"; }\n' + command
    words = subprocess.run(["sh", "-c", script], check=True, capture_output=True, text=True).stdout.split("\0")[:-1]
    assert words[0] == "cli/run_training.py"
    assert set(words[1::2]) <= {"--set"}
    return words[2::2]


@pytest.fixture(params=SETUPS)
def setup(request):
    return SETUPS[request.param].copy()


def test_the_python_code_makes_the_setup(setup):
    names: dict = {}
    exec(python_code(setup), names)  # noqa: S102 - that it can be executed is what is shown
    assert names["setup"] == setup


def test_the_yaml_makes_the_setup_and_the_job(setup, tmp_path):
    path = tmp_path / "job.yaml"
    path.write_text(yaml_code(setup))
    assert SetupConfig.load(path) == setup
    assert job_setup(JobConfig.from_file(str(path))) == setup


def test_the_command_line_makes_the_setup(setup):
    assert job_setup(JobConfig.from_file(None, settings_of(command_line(setup)))) == setup


def test_the_command_line_trains_amodel_of_these_sizes():
    model = tiny_gpt(vocab_size=64, length=24)
    setup = prepared(PRESETS["starter"], facts_of(model), {"max_length": 20})
    job = JobConfig.from_file(None, settings_of(command_line(setup, facts_of(model))))
    assert job.model == {"vocab_size": 64, "max_seq_len": 24}
    assert job_setup(job) == setup
    assert "model: {vocab_size: 64, max_seq_len: 24}" in yaml_code(setup, facts_of(model))


def test_the_starter_is_the_bare_command():
    assert command_line(PRESETS["starter"].setup()) == "python cli/run_training.py\n"


@pytest.mark.parametrize("text", NASTY)
def test_any_text_is_read_back_from_every_form(text, tmp_path):
    assert parse_value(scalar(text)) == text
    setup = SetupConfig(notes=text, vocab_size=4096)
    path = tmp_path / "job.yaml"
    path.write_text(setup_code("YAML", setup), encoding="utf-8")
    names: dict = {}
    exec(setup_code("Python", setup), names)  # noqa: S102
    job = JobConfig.from_file(None, settings_of(setup_code("Command line", setup)))
    assert SetupConfig.load(path) == names["setup"] == job_setup(job) == setup


@pytest.mark.parametrize("value", [1, -3, 0.1, 1e-05, 1e22, 3.0, True, False, None, [0.9, 0.99], ["hf", "onnx"], "x"])
def test_values_keep_their_type(value):
    read = parse_value(scalar(value))
    assert (read, type(read)) == (value, type(value))
