"""The builder changes what it is asked to, says where other names belong, and never changes itself."""

from __future__ import annotations

import pytest

from utils.errors import ConfigError
from utils.training.training_config import TrainingConfig, TrainingConfigBuilder

PRESETS = ["baseline", "quick_prototype", "production", "distributed", "low_memory", "fast", "quality"]

# preset -> width, layers, heads, feed-forward, block; learning rate, batch, epochs, warm-up, patience, accumulation
TABLE = {
    "quick_prototype": ((512, 6, 8, 2048, 128), (5e-4, 8, 3, 0.05, 2, 1)),
    "baseline": ((768, 12, 12, 3072, 128), (5e-5, 4, 10, 0.1, 5, 1)),
    "production": ((768, 12, 12, 3072, 256), (3e-5, 8, 20, 0.1, 10, 4)),
    "distributed": ((1024, 24, 16, 4096, 256), (1e-4, 8, 15, 0.1, 8, 2)),
    "low_memory": ((384, 6, 6, 1536, 128), (5e-5, 2, 10, 0.1, 5, 8)),
}


@pytest.mark.parametrize("preset", TABLE)
def test_presets_have_their_documented_values(preset):
    builder = getattr(TrainingConfigBuilder, preset)()
    config, setup = builder.build(), builder.setup
    sizes = tuple(setup[name] for name in ("d_model", "num_layers", "num_heads", "d_ff", "max_seq_len"))
    values = (
        config.learning_rate, config.batch_size, config.epochs, config.warmup_ratio, config.early_stopping_patience,
        config.gradient_accumulation_steps,
    )  # fmt: skip
    assert (sizes, values) == TABLE[preset]
    assert config.wandb_project is None
    assert not config.wandb_enabled


def test_fast_and_quality_are_the_other_two_by_another_name():
    assert TrainingConfigBuilder.fast().build() == TrainingConfigBuilder.quick_prototype().build()
    assert TrainingConfigBuilder.quality().build() == TrainingConfigBuilder.production().build()


def test_the_documented_chain_works():
    config = (
        TrainingConfigBuilder.baseline()
        .with_training(epochs=10, learning_rate=5e-5)
        .with_logging(wandb_project="my-project", run_name="exp-1")
        .with_checkpointing(checkpoint_dir="./checkpoints", frequency=2)
        .with_optimization(compile_mode="default", gradient_accumulation_steps=4)
        .build()
    )
    assert (config.epochs, config.wandb_project, config.run_name, config.checkpoint_dir) == (
        10,
        "my-project",
        "exp-1",
        "./checkpoints",
    )
    assert (config.save_every_n_epochs, config.compile_mode, config.gradient_accumulation_steps) == (2, "default", 4)


def test_every_field_can_be_set_by_a_method():
    from utils.training.config_builder import _GROUPS

    assert {name for names in _GROUPS.values() for name in names} - {"use_amp"} == set(TrainingConfig.model_fields)
    assert all(hasattr(TrainingConfigBuilder, method) for method in _GROUPS)


def test_every_step_leaves_the_builder_before_it_as_it_was():
    first = TrainingConfigBuilder(epochs=3)
    second = first.with_training(epochs=5).with_dataset(dataset_name="builtin")
    assert (first.build().epochs, dict(first.setup)) == (3, {})
    assert (second.build().epochs, dict(second.setup)) == (5, {"dataset_name": "builtin"})
    with pytest.raises(TypeError):
        second.setup["dataset_name"] = "other"


def test_none_unsets():
    builder = (
        TrainingConfigBuilder.baseline().with_training(early_stopping_patience=None).with_hardware(compile_mode=None)
    )
    assert builder.build().early_stopping_patience is None
    assert builder.build().compile_mode is None


def test_from_config_keeps_everything_else():
    base = TrainingConfig(epochs=7, weight_decay=0.2, run_name="base")
    trial = TrainingConfigBuilder.from_config(base).with_training(learning_rate=1e-3).build()
    assert trial.diff(base) == {"learning_rate": (1e-3, base.learning_rate)}
    assert TrainingConfigBuilder.from_config({"epochs": 7}).build().epochs == 7
    with pytest.raises(ConfigError, match="TrainingConfig or a mapping"):
        TrainingConfigBuilder.from_config(3)


@pytest.mark.parametrize(
    ("method", "values", "message"),
    [
        ("with_training", {"epocs": 3}, "did you mean epochs"),
        ("with_training", {"run_name": "x"}, "belongs to with_logging"),
        ("with_training", {"max_epochs": 3, "wieght_decay": 1}, "did you mean weight_decay"),
        ("with_hardware", {"batch_size": 3}, "belongs to with_training"),
        ("with_logging", {"d_model": 3}, "belongs to with_model"),
        ("with_model", {"epochs": 3}, "belongs to with_training"),
        ("with_dataset", {"datset_name": "x"}, "did you mean dataset_name"),
        ("with_checkpointing", {"resume_from_checkpoint": "x"}, "resume_from"),
        ("with_training", {"epochs": 0, "batch_size": -1}, "2 problems"),
    ],
)
def test_what_a_method_does_not_set_is_explained(method, values, message):
    with pytest.raises(ConfigError, match=message):
        getattr(TrainingConfigBuilder(), method)(**values)


def test_all_foreign_names_are_reported_together():
    with pytest.raises(ConfigError) as error:
        TrainingConfigBuilder().with_export(epochs=3, run_name="x", exprt_dir="y")
    assert {problem.field for problem in error.value.problems} == {"epochs", "run_name", "exprt_dir"}


def test_validation_split_is_a_value_of_the_setup():
    builder = TrainingConfigBuilder().with_training(epochs=2, validation_split=0.2)
    assert (builder.build().epochs, builder.setup["val_split"]) == (2, 0.2)


def test_one_spelling_of_a_setting_replaces_the_other():
    steps = TrainingConfigBuilder.baseline().with_scheduler(warmup_steps=100).build()
    assert (steps.warmup_steps, steps.warmup_ratio) == (100, None)
    ratio = TrainingConfigBuilder.from_config(steps).with_optimizer(warmup_ratio=0.2).build()
    assert (ratio.warmup_steps, ratio.warmup_ratio) == (None, 0.2)
    assert TrainingConfigBuilder.low_memory().with_hardware(use_amp=False).build().precision == "32"


def test_contradictions_in_one_call_are_still_refused():
    with pytest.raises(ConfigError, match="set one of the two"):
        TrainingConfig().replace(warmup_steps=10, warmup_ratio=0.1)


def test_its_repr_shows_what_differs():
    assert repr(TrainingConfigBuilder(epochs=3)) == "TrainingConfigBuilder(epochs=3)"
