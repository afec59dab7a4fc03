"""What is written to a config file is read back as the same values."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.kit import random_configs
from utils.errors import ConfigError
from utils.training import TaskSpec, TrainingConfig, TrainingConfigBuilder
from utils.training.config_files import parse_value, read_config_file, write_config_file
from utils.ui import ConfigPresets, SetupConfig


@pytest.mark.parametrize("name", ["config.yaml", "config.json"])
@pytest.mark.parametrize(
    "value",
    ["1e-3", "5e5", "1.", ".5", "12", "true", "null", "0x10", "1:30", "a: b", "é ⏎", 1e-3, 5, None, [0.9, "1e3"]],
)
def test_text_that_looks_like_a_number_stays_text(value, name, tmp_path):
    path = write_config_file(tmp_path / name, {"run_name": value})
    assert read_config_file(path) == {"run_name": value}
    assert type(read_config_file(path)["run_name"]) is type(value)


def test_a_place_that_cannot_be_is_said():
    Path("file").write_text("no folder")
    with pytest.raises(ConfigError, match=r"file/job\.yaml cannot be read: Not a directory"):
        read_config_file("file/job.yaml")


@settings(max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(chance=st.randoms(use_true_random=False))
def test_every_configuration_is_valid_and_round_trips_or_is_a_config_error(chance, tmp_path):
    """In every way there is; `python -m tests.kit.random_configs 10000` is the long form."""
    random_configs.check(chance, tmp_path)


@pytest.mark.parametrize(("value", "says"), [
    ("012", "octal"), ("-017", "octal"), ("1:30", "base-60"), ("-1:30:00", "base-60"), ("1:30.5", "base-60"),
    ("!!int abc", "cannot be read as a number"), ("!!int ''", "cannot be read as a number"), ("!!bool maybe", "neither true nor false"),
    ("!!timestamp 2024-01-01", "'!!timestamp' is not supported"), ("!!binary AAAA", "'!!binary' is not supported"),
    ("!!set {a}", "'!!set' is not supported"), ("!!omap [a: 1]", "'!!omap' is not supported"), ("!mine 1", "'!mine' is not supported"),
    ("!!map [1]", "!!map must hold"), ("{? [a] : 1}", "a key must be a name"), ("{? {a: 1} : 1}", "a key must be a name"),
    ("[" * 25 + "]" * 25, "nested more than 20 levels"), ("[" * 5000, "nested more than 20 levels"),
    ("[" + "1," * 20_000 + "]", "more than 10,000 values"), ("9" * 5000, "cannot be read as a number"), ("&a [*a]", "recursive"),
    ("[&a [1,1,1,1,1,1,1,1,1,1], &b [*a,*a,*a,*a,*a,*a,*a,*a,*a,*a], &c [*b,*b,*b,*b,*b,*b,*b,*b,*b,*b], "
     "&d [*c,*c,*c,*c,*c,*c,*c,*c,*c,*c], [*d,*d]]", "more than 10,000 values"),
    ("x" * 600_000, "more than 512 KiB"),
], ids=lambda text: text[:20])  # fmt: skip
def test_yaml_that_no_config_needs_is_refused_with_its_place(value, says):
    Path("job.yaml").write_text(f"first: 1\nsecond: {value}\n")
    with pytest.raises(ConfigError, match=r"^job\.yaml") as caught:
        read_config_file("job.yaml")
    assert says in str(caught.value)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(("text", "says"), [
    ('{"a": ' + "[" * 25 + "]" * 25 + "}", "nested more than 20 levels"), ('{"a": ' + "[" * 100_000, "nested more than 20 levels"),
    ('{"a": ' + "9" * 5000 + "}", "5,000 digits"), ('{"a": [' + "1," * 20_000 + "1]}", "more than 10,000 values"),
], ids=lambda text: text[:20])  # fmt: skip
def test_json_over_the_limits_is_refused(text, says):
    Path("job.json").write_text(text)
    with pytest.raises(ConfigError, match=r"^job\.json") as caught:
        read_config_file("job.json")
    assert says in str(caught.value)


@pytest.mark.parametrize(("text", "value"), [
    ("2024-01-01", "2024-01-01"), ("2024-13-45", "2024-13-45"), ("=", "="), ("'012'", "012"), ("'1:30'", "1:30"), ("0", 0), ("-7", -7),
    ("089", "089"), ("10:00 o'clock", "10:00 o'clock"), ("1_000", 1000), ("0x1F", 31), ("5e-5", 5e-5), ("[&a 1, *a]", [1, 1]),
])  # fmt: skip
def test_plain_yaml_is_read_as_written(text, value):
    Path("job.yaml").write_text(f"key: {text}\n")
    assert read_config_file("job.yaml") == {"key": value}


@pytest.mark.parametrize("text", ["012", "1:30", "!!int abc", "[" * 3000, "{? [a] : 1}", "2024-01-01"])
def test_a_value_of_the_command_line_that_yaml_refuses_is_text(text):
    assert parse_value(text) == text


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no FIFOs")
def test_a_pipe_is_not_waited_for():
    os.mkfifo("job.yaml")
    with pytest.raises(ConfigError, match="not a regular file"):
        read_config_file("job.yaml")


@pytest.mark.parametrize("make", [
    lambda value: TrainingConfig(notes=value), lambda value: TaskSpec(value), lambda value: TaskSpec(metrics=[value]),
    lambda value: TaskSpec(preprocessing_config={"a": [value]}), lambda value: SetupConfig(dataset_path=value),
    lambda value: TrainingConfigBuilder().with_logging(notes=value), lambda value: ConfigPresets().customize("tiny", notes=value),
    lambda value: TrainingConfig(**{value: 1}), lambda value: ConfigPresets().get(value),
], ids=["notes", "task name", "metric", "preprocessing", "path", "builder", "preset", "field name", "preset name"])  # fmt: skip
@pytest.mark.parametrize("value", ["\ud800", "x" * 20_000], ids=["half a surrogate pair", "20,000 characters"])
def test_text_that_no_file_holds_is_refused_in_a_message_that_can_be_printed(make, value):
    with pytest.raises(ConfigError) as caught:
        make(value)
    assert len(str(caught.value).encode()) < 1000


@pytest.mark.parametrize(
    "value", [object(), {1: 2}, b"a", float("nan"), 2**63, {"a": {1, 2}}, [[[[[[[[[[[[1]]]]]]]]]]]]],
    ids=["object", "number as key", "bytes", "nan", "65 bits", "set", "nested"],
)  # fmt: skip
def test_preprocessing_that_cannot_be_written_is_refused(value):
    with pytest.raises(ConfigError, match="preprocessing_config"):
        TaskSpec(preprocessing_config={"key": value})


def test_preprocessing_is_kept_as_a_file_gives_it_back():
    given_values = {"size": (32, 32), "mean": [0.5], "nested": {"on": True}}
    spec = TaskSpec(preprocessing_config=given_values)
    given_values["size"] = None
    assert spec.preprocessing_config == {"size": [32, 32], "mean": [0.5], "nested": {"on": True}}


@pytest.mark.parametrize("make", [
    TaskSpec, TrainingConfig, SetupConfig, TrainingConfigBuilder, SetupConfig().update, TaskSpec.language_modeling,
    TaskSpec.regression, TrainingConfigBuilder().with_training, TrainingConfigBuilder().with_model,
    lambda **values: ConfigPresets().customize("tiny", **values),
], ids=lambda make: getattr(make, "__qualname__", type(make).__name__))  # fmt: skip
@pytest.mark.parametrize("name", ["self", "cls"])
def test_no_name_collides_with_pythons_own_arguments(make, name):
    with pytest.raises(ConfigError, match=name):
        make(**{name: 1})


@pytest.mark.parametrize(
    "values", [{"task_type": "regression"}, {"modality": "vision"}, {"task_type": ["a"]}, {"name": ["a"]}], ids=str
)
def test_a_named_task_refuses_to_be_another(values):
    with pytest.raises(ConfigError, match=next(iter(values))):
        TaskSpec.language_modeling(**values)
