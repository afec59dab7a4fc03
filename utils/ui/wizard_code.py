"""A setup as something to copy: Python, a job file, a command line. Each, executed, gives an equal setup."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping
from typing import Any, Literal, get_args

import yaml

from utils.adapters.facts import ModelFacts
from utils.errors import TrainbookError
from utils.scrubbing import scrubbed
from utils.training.config_files import parse_value
from utils.training.task_kinds import kind_of_task
from utils.ui.new_model import ARCHITECTURES
from utils.ui.presets import PRESETS
from utils.ui.setup_config import SetupConfig

CodeForm = Literal["Python", "YAML", "Command line"]
CODE_FORMS: tuple[CodeForm, ...] = get_args(CodeForm)

# What cli/run_training.py starts from when a job names no preset.
_CLI_PRESET = "starter"


def setup_code(form: CodeForm, setup: SetupConfig, facts: ModelFacts | None = None) -> str:
    """The setup in one of `CODE_FORMS`; see the functions below."""
    if form == "Python":
        return python_code(setup)
    return yaml_code(setup, facts) if form == "YAML" else command_line(setup, facts)


def python_code(setup: SetupConfig) -> str:
    """Lines that make `setup`: an equal SetupConfig, and the new model that it names."""
    arguments = "".join(f"    {name}={value!r},\n" for name, value in scrubbed(setup.differences()).items())
    model = "model = setup.load_model()\n" if setup.new_model is not None else ""
    return f"from utils.ui import SetupConfig\n\nsetup = SetupConfig({f'{chr(10)}{arguments}' if arguments else ''})\n{model}"


def yaml_code(setup: SetupConfig, facts: ModelFacts | None = None) -> str:
    """A job file: an equal setup for `SetupConfig.load`, where values left out are defaults, and for
    `cli/run_training.py --config`, where they come from the preset "starter".

    A comment says how the command line's model gets the sizes of this one, where they differ.
    """
    default, dependent = SetupConfig().sections(), _dependent(setup)
    lines = []
    for section, values in scrubbed(setup.sections()).items():
        starts = (default[section], _cli_setup().sections()[section])
        rows = [
            f"  {name}: {scalar(value)}"
            for name, value in values.items()
            if name in dependent or any(value != start[name] for start in starts)
        ]
        lines += [f"{section}:", *rows] if rows else []
    if sizes := _model_sizes(setup, facts):
        listed = ", ".join(f"{name}: {scalar(value)}" for name, value in sizes.items())
        lines = [f"# For cli/run_training.py, whose model is another one, add: model: {{{listed}}}", *lines]
    return "\n".join(lines) + "\n"


def command_line(setup: SetupConfig, facts: ModelFacts | None = None) -> str:
    """The command that trains a model of the registry with this setup and, where they are known, this model's sizes."""
    start = {name: value for values in _cli_setup().sections().values() for name, value in values.items()}
    settings = {f"model.{name}": value for name, value in _model_sizes(setup, facts).items()}
    dependent = _dependent(setup)
    for values in scrubbed(setup.sections()).values():
        settings |= {name: value for name, value in values.items() if name in dependent or value != start[name]}
    if any(name.startswith("model.") for name in settings):
        # Else they would be that model's.
        settings |= {"vocab_size": setup.vocab_size, "max_length": setup.max_length}
    words = [shlex.quote(f"{name}={scalar(value)}") for name, value in settings.items()]
    return " \\\n    ".join(["python cli/run_training.py", *(f"--set {word}" for word in words)]) + "\n"


def scalar(value: Any) -> str:
    """`value` as one line that `parse_value` reads back as an equal value of the same type."""
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{name}: {scalar(part)}' for name, part in value.items())}}}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(scalar(part) for part in value)}]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, (int, float)):
        return repr(value)
    text = str(value)
    # YAML's own choice of quotes follows YAML 1.1, where 1e-3 is text; what is not plain to our reader is quoted.
    # In a list, since `parse_value` takes a whole text that YAML refuses, such as 010, for text.
    plain = text.isascii() and text.replace("-", "").replace("_", "").isalnum() and parse_value(f"[{text}]") == [text]
    return text if plain else yaml.safe_dump(text, default_style='"', width=math.inf).strip()


def _dependent(setup: SetupConfig) -> set[str]:
    """Fields that have their usual default, and would get another one through the fields that differ."""
    default = {name: value for values in SetupConfig().sections().values() for name, value in values.items()}
    return {name for name, value in setup.differences().items() if value == default[name]}


def _cli_setup() -> SetupConfig:
    return PRESETS[_CLI_PRESET].setup()


def _model_sizes(setup: SetupConfig, facts: ModelFacts | None) -> Mapping[str, Any]:
    """Arguments of the command line's model in which it would differ from the model of `facts`, or not take the setup."""
    if setup.names_model:
        return {}  # the setup says which
    named = None if setup.task == "causal_lm" else ARCHITECTURES[setup.task][0]
    usual = PRESETS[_CLI_PRESET].model_arguments if named is None else {}
    vocab_size = (facts and facts.vocab_size) or setup.vocab_size
    positions = (facts and facts.max_length) or max(setup.max_length, usual.get("max_seq_len", 0))
    sizes = {"name": named, "vocab_size": vocab_size, "max_seq_len": positions, "num_classes": _outputs(setup)}
    if named == "t5-mini":
        del sizes["max_seq_len"]  # its positions are relative
    return {name: size for name, size in sizes.items() if size is not None and size != usual.get(name)}


def _outputs(setup: SetupConfig) -> int | None:
    """Outputs of a classifier, tagger or regression for the data of a setup; None for other tasks, and unreadable data."""
    if not kind_of_task(setup.task).has_own_outputs:
        return None
    from utils.ui.model_source import data_labels

    try:
        return len(data_labels(setup)) or None
    except TrainbookError:
        return None
