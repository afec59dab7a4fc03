"""TrainingConfig, TaskSpec and config files: closed, total, round-tripping."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from utils.errors import ConfigError, DataNotFoundError
from utils.training import TaskSpec, TrainingConfig, compare_configs

BAD = [
    ("learning_rat", 1e-4, "did you mean learning_rate?"), ("lerning_rate", 1, "did you mean learning_rate?"),
    ("learning_rate", "5e-5", "write 5e-5 without quotes"), ("learning_rate", 0, "greater than 0"),
    ("learning_rate", 3.0, "less than 1"), ("learning_rate", float("nan"), "finite"), ("learning_rate", float("inf"), "finite"),
    ("learning_rate", None, "must be a number"), ("learning_rate", True, "must be a number"), ("learning_rate", -1e-4, "greater than 0"),
    ("epochs", 0, "at least 1"), ("epochs", -1, "at least 1"), ("epochs", True, "whole number"), ("epochs", 2.5, "whole number"),
    ("epochs", "3", "whole number"), ("epochs", None, "whole number"), ("epochs", 10**9, "at most"),
    ("max_steps", 0, "at least 1"), ("max_steps", False, "whole number"), ("max_time_hours", 0, "greater than 0"),
    ("max_time_hours", "2h", "must be a number"), ("batch_size", -4, "at least 1"), ("batch_size", 4.0, "whole number"),
    ("batch_size", [4], "whole number"), ("gradient_accumulation_steps", 0, "at least 1"),
    ("optimizer", "adamW", "'adamw'"), ("optimizer", None, "'adamw'"), ("weight_decay", -0.1, "at least 0"),
    ("weight_decay", 1.5, "less than 1"), ("betas", [0.9], "betas"), ("betas", [0.9, "x"], "must be a number"),
    ("betas", [0.9, 1.0], "less than 1"), ("betas", 0.9, "must be a list"), ("eps", 0, "greater than 0"),
    ("max_grad_norm", -1, "at least 0"), ("use_lr_schedule", 1, "True or False"), ("use_lr_schedule", "yes", "True or False"),
    ("lr_schedule", "cosin", "did you mean 'cosine'?"), ("warmup_ratio", 1.5, "at most 1"), ("warmup_steps", -1, "at least 0"),
    ("min_lr_ratio", 2, "at most 1"), ("label_smoothing", 1.0, "less than 1"), ("precision", "banana", "'bf16'"),
    ("precision", True, "'bf16'"), ("compile_mode", "zzz", "'max-autotune'"), ("strategy", "dp", "'ddp'"),
    ("devices", 0, "at least 1"), ("devices", "all", "'auto'"), ("num_workers", -1, "at least 0"),
    ("eval_every", "step", "'epoch'"), ("eval_every", 0, "at least 1"), ("early_stopping_patience", 0, "at least 1"),
    ("monitor", "loss", "did you mean val/loss?"), ("monitor", "a b/c", "monitor"),
    ("mode", "up", "'min'"), ("min_delta", -1, "at least 0"),
    ("checkpoint_dir", "", "must not be empty"), ("checkpoint_dir", "a\0b", "NUL"), ("save_every_n_epochs", 0, "at least 1"),
    ("save_every_minutes", 0, "greater than 0"), ("keep_best_k", 0, "at least 1"), ("keep_last_n", 1, "at least 2"),
    ("on_save_error", "ignore", "'warn'"), ("on_nonfinite", "ignore", "'skip'"), ("random_seed", -1, "at least 0"),
    ("random_seed", 2**40, "less than"), ("deterministic", "no", "True or False"), ("export_formats", "onnx", "must be a list"),
    ("export_formats", ["tflite"], "'onnx'"), ("notes", 5, "must be text"), ("use_amp", "yes", "True or False"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value", "says"), BAD, ids=lambda value: repr(value)[:24])
def test_f28_a_bad_setting_is_named_with_what_is_allowed(name, value, says):
    with pytest.raises(ConfigError) as caught:
        TrainingConfig(**{name: value})
    assert name in str(caught.value)
    assert says in str(caught.value)
    assert len(caught.value.problems) == 1


def test_all_problems_are_reported_at_once():
    with pytest.raises(ConfigError, match="^5 problems in TrainingConfig") as caught:
        TrainingConfig(learning_rat=1, batch_size=-4, eps="x", warmup_steps=3, warmup_ratio=0.1, mode="max")
    assert [p.field for p in caught.value.problems] == ["learning_rat", "batch_size", "eps", "warmup_steps", "mode"]


@pytest.mark.parametrize("values", [
    {"max_epochs": 3, "epochs": 4}, {"use_amp": True, "precision": "32"}, {"use_amp": False, "precision": "bf16"},
    {"max_steps": 5, "warmup_steps": 10}, {"monitor": "val/accuracy"}, {"monitor": "val/loss", "mode": "max"},
], ids=str)  # fmt: skip
def test_contradictions_are_refused(values):
    with pytest.raises(ConfigError):
        TrainingConfig(**values)


class Contrary:
    """Raises whatever is done with it."""

    __hash__ = None

    def _refuse(self, *_):
        raise RuntimeError("no")

    __repr__ = __str__ = __eq__ = __bool__ = __len__ = __iter__ = __float__ = __index__ = _refuse


def nested(depth):
    value = []
    for _ in range(depth):
        value = [value]
    return value


_PLAUSIBLE = sorted(
    {value for _, value, _ in BAD if isinstance(value, str)}
    | {"auto", "cosine", "bf16", "val/loss", "epoch", "a", "5e-5"}
)
_VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.integers(0, 5), st.floats(), st.floats(0, 1), st.text(max_size=8),
    st.sampled_from(_PLAUSIBLE), st.lists(st.floats(), max_size=3), st.lists(st.sampled_from(["onnx", "hf", "x"]), max_size=3),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2), st.binary(max_size=4), st.decimals(), st.fractions(),
    st.sampled_from([
        object(), Contrary(), 10**400, nested(2000), np.array([1, 2]), np.float32(0.1), np.int64(3), torch.tensor([1.0, 2.0]),
        Path("a"), Path("a\0b"), "\ud800", "x" * 10_000, int, {1}, range(3), 1j,
    ]),
)  # fmt: skip
_NAMES = st.one_of(
    st.sampled_from(
        [*sorted(TrainingConfig.model_fields), *TrainingConfig.aliases, "use_amp", "self", "values", "\ud800"]
    ),
    st.text(max_size=12),
)


@settings(max_examples=600, deadline=None)
@example({"epochs": np.array([1, 2]), "max_epochs": np.array([1, 2])})
@given(st.dictionaries(_NAMES, _VALUES, max_size=6))
def test_any_input_gives_a_valid_config_or_a_config_error(values):
    for make in (lambda: TrainingConfig(**values), lambda: TrainingConfig().replace(**values)):
        try:
            config = make()
        except ConfigError:
            continue
        assert TrainingConfig.from_dict(json.loads(json.dumps(config.to_dict(), allow_nan=False))) == config


@given(_VALUES)
def test_whatever_stands_in_place_of_settings_is_a_config_error(values):
    with pytest.raises(ConfigError):
        TrainingConfig.from_dict([] if isinstance(values, dict) and not values else values)


HOSTILE = [
    "../../x", "..", ".", "~", "~root", "/etc/x", "a/b", "a\\b", "a\0b", "a\nb", "", " ", "x" * 300, "CON", "nul.txt", "com1",
    "dot.", "end ", "-rf", ".hidden", "a:b", "a*b", "a|b", "$(x)", "é" * 90,
]  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE, ids=lambda name: repr(name)[:20])
def test_f33_a_run_name_that_leaves_its_folder_is_refused(name):
    with pytest.raises(ConfigError, match="run_name"):
        TrainingConfig(run_name=name)


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=130))
def test_whatever_run_name_is_accepted_stays_one_folder_below_the_output_folder(name):
    try:
        config = TrainingConfig(run_name=name)
    except ConfigError:
        return
    path = Path("/runs") / str(config.run_name)
    assert path.resolve().parent == Path("/runs")
    assert len(path.name.encode()) <= 100


def test_aliases_of_other_systems_mean_the_same():
    config = TrainingConfig(
        n_epochs=3,
        accumulate_grad_batches=2,
        gradient_clip_val=0.5,
        checkpoint_frequency=2,
        seed=1,
        use_amp=True,
        monitor="val_loss",
    )
    assert config == TrainingConfig(
        epochs=3, gradient_accumulation_steps=2, max_grad_norm=0.5, save_every_n_epochs=2, random_seed=1, precision="16"
    )
    assert TrainingConfig(precision="16-mixed").precision == "16"
    assert TrainingConfig(precision=32).precision == "32"


def test_one_spelling_of_a_setting_retires_the_other():
    config = TrainingConfig(precision="32").replace(warmup_steps=5, use_amp=True)
    assert (config.warmup_steps, config.warmup_ratio, config.precision) == (5, None, "16")
    assert config.replace(warmup_ratio=0.2).warmup_steps is None
    with pytest.raises(ConfigError, match="set one of the two"):
        config.replace(warmup_ratio=0.2, warmup_steps=3)


def test_a_config_does_not_change():
    config = TrainingConfig()
    with pytest.raises(ConfigError, match=r"use \.replace\(epochs=3\)"):
        config.epochs = 3
    assert config.replace(epochs=3).epochs == 3
    with pytest.raises(ConfigError, match="at least 1"):
        config.replace(epochs=0)


@pytest.mark.parametrize("suffix", [".json", ".yaml", ".yml"])
def test_files_round_trip(tmp_path, suffix):
    config = TrainingConfig(
        learning_rate=5e-5, betas=(0.9, 0.95), warmup_steps=7, notes="ümlaut: yes", max_time_hours=0.5
    )
    path = config.save(tmp_path / f"config{suffix}")
    assert TrainingConfig.load(path) == config


def test_yaml_numbers_are_what_everybody_means(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(
        "learning_rate: 5e-5\nweight_decay: 1E-2\nmin_lr_ratio: .5\nepochs: 3\nmax_grad_norm: 1\nrun_name: '5e-5'\n"
    )
    config = TrainingConfig.load(path)
    assert (config.learning_rate, config.weight_decay, config.min_lr_ratio, config.run_name) == (
        5e-5,
        1e-2,
        0.5,
        "5e-5",
    )


@pytest.mark.parametrize(("name", "text", "says"), [
    ("c.yaml", "epochs: 3\nepochs: 4\n", "c.yaml:2: 'epochs' stands twice"), ("c.json", '{"epochs": 3, "epochs": 4}', "stands twice"),
    ("c.yaml", "a: [1\n", "not YAML"), ("c.json", '{"epochs": }', "c.json:1:12: not JSON"), ("c.yaml", "- 1\n", "holds a list"),
    ("c.txt", "epochs: 3", "ends in .json"), ("c.yaml", "x: !!python/object/apply:os.system ['true']\n", "not YAML"),
], ids=str)  # fmt: skip
def test_a_broken_config_file_is_one_message_with_its_place(tmp_path, name, text, says):
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        TrainingConfig.load(path)
    assert says in str(caught.value)


def test_a_missing_config_file(tmp_path):
    with pytest.raises(DataNotFoundError, match="does not exist"):
        TrainingConfig.load(tmp_path / "none.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"notes: \xff\n")
    with pytest.raises(ConfigError, match="not UTF-8"):
        TrainingConfig.load(tmp_path / "latin.yaml")


def test_compare_and_diff():
    first, second = TrainingConfig(epochs=3, run_name="a"), TrainingConfig(epochs=4, max_steps=9, run_name="b")
    assert first.diff(second) == {"epochs": (3, 4), "max_steps": (None, 9), "run_name": ("a", "b")}
    assert compare_configs(first, second) == {"changed": {"epochs": (3, 4)}, "added": {"max_steps": 9}, "removed": {}}


def test_every_field_has_a_title_a_description_and_a_default():
    for name, field in TrainingConfig.model_fields.items():
        assert field.title, name
        assert field.description, name
        assert not field.is_required(), name
    assert TrainingConfig().validate() is True


def test_wandb_is_on_exactly_when_asked_for():
    assert not TrainingConfig().wandb_enabled
    assert TrainingConfig(wandb_project="p").wandb_enabled
    assert TrainingConfig(use_wandb=True).wandb_enabled
    assert not TrainingConfig(use_wandb=False, wandb_project="p").wandb_enabled


def test_a_task_spec_needs_little_and_round_trips():
    spec = TaskSpec(name="language_modeling", modality="text", preprocessing_config={"pad_token_id": 3})
    assert (spec.task_type, spec.pad_token_id) == ("causal_lm", 3)
    assert TaskSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec
    assert TaskSpec("x").task_type is None
    with pytest.raises(ConfigError, match="did you mean"):
        TaskSpec("x", task_type="masked_ml")


@pytest.mark.parametrize(("given", "kept"), [
    ({}, 2), ({"checkpoint_frequency": 2}, None), ({"save_every_n_epochs": 1}, None), ({"keep_last_n": 5}, 5),
    ({"save_every_n_epochs": 2, "keep_last_n": 2}, 2), ({"save_every_n_epochs": 3, "keep_last_n": 4}, 4),
], ids=str)  # fmt: skip
def test_a_given_checkpoint_frequency_prunes_only_what_is_asked_for(given, kept):
    config = TrainingConfig(**given)
    assert config.keep_last_n == kept
    assert TrainingConfig().replace(**given) == config
    assert config.replace(epochs=3).keep_last_n == kept
    assert TrainingConfig.from_dict(config.to_dict()) == config
    assert TrainingConfig(**config.differences()) == config
