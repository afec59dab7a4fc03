"""The documented examples of the legacy functions, each beside the call that replaces it.

torch.compile (`compile_mode="default"`) and the export bundle are used together in test_documented_engine.py; alone they are
tested by tests/engine/test_engine_fast_paths.py and tests/export/test_bundle.py.
"""

from __future__ import annotations

import math
import warnings
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch.utils.data import TensorDataset

from tests.kit.toys import plain_lm, same_weights
from utils import environment
from utils.tier3_training_utilities import test_fine_tuning as fine_tuning
from utils.tier3_training_utilities import test_hyperparameter_search as hyperparameter_search
from utils.training.engine import Trainer
from utils.training.engine.trainer import TrainingHooks
from utils.training.job_queue import JobConfig, JobQueue
from utils.training.task_spec import TaskSpec
from utils.training.training_config import TrainingConfig

pytestmark = pytest.mark.filterwarnings("ignore:(?s).*DEPRECATION WARNING:DeprecationWarning")

RESULT_TYPES = {
    "loss_history": list, "final_loss": float, "final_perplexity": float, "training_time": float,
    "metrics_summary": pd.DataFrame, "best_epoch": int, "grad_norm_history": list, "amp_enabled": bool,
    "checkpoint_path": str,
}  # fmt: skip


def test_fine_tuning_and_the_trainer_give_the_same(given, wandb):
    old_model, new_model = plain_lm(), plain_lm()
    old = fine_tuning(
        model=old_model, config=given.config, train_data=given.train_data, val_data=given.val_data, n_epochs=2,
        learning_rate=5e-3, batch_size=4, use_wandb=True, use_amp=False, gradient_clip_norm=1.0,
    )  # fmt: skip
    training_config = TrainingConfig(
        learning_rate=5e-3, batch_size=4, epochs=2, max_grad_norm=1.0, precision="32",
        wandb_project="transformer-builder-training",
    )  # fmt: skip
    trainer = Trainer(model=new_model, config=given.config, training_config=training_config, task_spec=given.task_spec)
    new = trainer.train(train_data=given.train_data, val_data=given.val_data)
    assert old["loss_history"] == new["loss_history"]
    assert same_weights(old_model, new_model)
    assert [run["project"] for run in wandb.runs] == ["transformer-training", "transformer-builder-training"]
    assert f"Final loss: {new['final_loss']:.4f}, {new['training_time']:.1f}s".startswith("Final loss: ")


def test_the_old_call_says_what_replaces_it(given):
    with pytest.warns(DeprecationWarning, match=r"test_fine_tuning\(\) is deprecated") as caught:
        fine_tuning(given.model, given.config, train_data=given.train_data, max_steps=1)
    text = str(caught[0].message)
    assert "from utils.training.engine import Trainer" in text
    assert "docs/MIGRATION_GUIDE.md" in text


def test_a_list_of_tensors_a_tensor_data_set_and_a_hugging_face_data_set_train_alike(given):
    from datasets import Dataset

    rows = torch.stack(given.train_data)
    training_config = TrainingConfig(learning_rate=5e-3, batch_size=4, epochs=1, use_amp=False)
    task_spec = TaskSpec(name="language_modeling", modality="text")
    table = Dataset.from_dict({"input_ids": rows.tolist(), "labels": rows.tolist()})
    histories = [
        Trainer(plain_lm(), given.config, training_config, task_spec).train(data)["loss_history"]
        for data in (given.train_data, TensorDataset(rows), table)
    ]
    assert histories[0] == histories[1] == histories[2]


def test_mixed_precision_with_accumulation(given, monkeypatch):
    monkeypatch.setattr(environment, "has_bf16", lambda kind: True)  # whatever this machine is
    old = fine_tuning(
        model=plain_lm(), config=given.config, train_data=given.train_data, n_epochs=1, learning_rate=2e-3,
        batch_size=2, use_amp=True, gradient_accumulation_steps=4, gradient_clip_norm=1.0,
    )  # fmt: skip
    training_config = TrainingConfig(
        learning_rate=2e-3, batch_size=2, epochs=1, use_amp=True, gradient_accumulation_steps=4, max_grad_norm=1.0
    )
    new = Trainer(plain_lm(), given.config, training_config, given.task_spec).train(given.train_data)
    assert old["amp_enabled"] is new["amp_enabled"] is True
    assert old["steps"] == new["steps"] == 2
    assert old["loss_history"] == new["loss_history"]


def test_a_run_of_wandb_that_the_script_has_opened_is_used(given, wandb):
    wandb.run = opened = wandb.init(project="my-project", name="my-experiment")
    training_config = TrainingConfig(learning_rate=5e-3, epochs=1, wandb_project="my-project")
    results = Trainer(given.model, given.config, training_config, given.task_spec).train(given.train_data)
    assert wandb.run is opened
    assert any(row.get("train/loss") == results["final_loss"] for row in wandb.rows)


def test_the_search_takes_the_old_space_and_the_new_names_come_back(given):
    space = {"lr": (1e-5, 1e-2), "batch_size": [4, 8, 16], "wd": (1e-6, 1e-2), "warmup": (0, 3)}
    results = hyperparameter_search(
        model_factory=given.model_factory, config=given.config, train_data=given.train_data, n_trials=2, n_epochs=1,
        search_space=space,
    )  # fmt: skip
    best = results["best_params"]
    assert set(best) == {"learning_rate", "batch_size", "weight_decay", "warmup_steps"}
    assert 1e-5 <= best["learning_rate"] <= 1e-2
    assert results["best_value"] == min(trial.value for trial in results["trials"])


def test_the_search_takes_a_model_and_a_timeout(given):
    results = hyperparameter_search(
        model=given.model, config=given.config, train_data=given.train_data, val_data=given.val_data, n_trials=2,
        n_epochs=1, timeout=3600,
    )  # fmt: skip
    assert 0 < results["best_params"]["learning_rate"] < 1
    assert same_weights(given.model, plain_lm()), "a search leaves the model that it is given as it was"


def test_optuna_calls_the_trainer_from_an_objective(given):
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)

    def objective(trial):
        training_config = TrainingConfig(
            learning_rate=trial.suggest_float("learning_rate", 1e-5, 1e-2, log=True),
            batch_size=trial.suggest_categorical("batch_size", [4, 8]),
            weight_decay=trial.suggest_float("weight_decay", 1e-6, 1e-2, log=True),
            warmup_steps=int(trial.suggest_float("warmup_pct", 0.0, 0.2) * 10),
            epochs=1,
        )
        trainer = Trainer(given.model_factory(), given.config, training_config, given.task_spec)
        return trainer.train(given.train_data, given.val_data)["final_loss"]

    study = optuna.create_study(direction="minimize", sampler=optuna.samplers.RandomSampler(seed=0))
    study.optimize(objective, n_trials=2, show_progress_bar=False)
    assert 0 < study.best_value < 2 * math.log(32)
    assert 1e-5 <= study.best_params["learning_rate"] <= 1e-2


def test_results_have_the_documented_keys_and_types(given):
    results = Trainer(given.model, given.config, TrainingConfig(epochs=2, batch_size=8), given.task_spec).train(
        given.train_data, given.val_data
    )
    assert {name: type(results[name]) for name in RESULT_TYPES} == RESULT_TYPES
    assert set(RESULT_TYPES) <= set(results.keys())
    assert results["final_perplexity"] == pytest.approx(math.exp(results["val_loss_history"][-1]), rel=1e-5)
    frame = results["metrics_summary"][["epoch", "train/loss", "val/loss"]]
    assert len(frame) == 2
    columns = {"train/accuracy", "val/accuracy", "train/perplexity", "val/perplexity", "train/learning_rate"}
    assert columns <= set(results["metrics_summary"].columns)


def test_a_second_trainer_continues_from_a_checkpoint(given):
    results = Trainer(given.model, given.config, TrainingConfig(epochs=1, batch_size=8), given.task_spec).train(
        given.train_dataset, given.val_dataset
    )
    assert Path(results["checkpoint_path"]).is_file()
    again = Trainer(plain_lm(seed=5), given.config, TrainingConfig(epochs=2, batch_size=8), given.task_spec)
    continued = again.train(given.train_dataset, given.val_dataset, resume_from=results["checkpoint_path"])
    assert continued["steps"] == 2 * results["steps"]
    assert continued["loss_history"][0] == results["loss_history"][0]


def test_hooks_are_called_with_the_trainer_and_the_batch(given):
    seen = []

    class CustomHooks(TrainingHooks):
        def on_train_begin(self, trainer, train_dataset, val_dataset):
            seen.append(("begin", len(train_dataset), len(val_dataset)))

        def on_epoch_begin(self, trainer, epoch):
            seen.append(("epoch", epoch))

        def on_batch_end(self, trainer, batch, outputs):
            seen.append(("batch", tuple(outputs.shape)))

    trainer = Trainer(
        given.model, given.config, TrainingConfig(epochs=2, batch_size=8), given.task_spec, hooks=CustomHooks()
    )
    trainer.train(given.train_data, given.val_data)
    batch = ("batch", (8, 16, 32))
    assert seen == [("begin", 16, 8), ("epoch", 0), batch, batch, ("epoch", 1), batch, batch]


def test_a_job_of_this_process_is_queued_run_and_read(given):
    job_config = JobConfig(
        model_factory=lambda: plain_lm(), config=given.config, train_data=given.train_dataset, val_data=given.val_dataset,
        training_config=TrainingConfig(learning_rate=5e-3, epochs=1, batch_size=8), task_spec=given.task_spec,
    )  # fmt: skip
    queue = JobQueue("sqlite:///training_jobs.db")
    job_id = queue.submit_job(job_config)
    assert queue.get_job_status(job_id) in ("pending", "running", "completed")
    queue.work()
    assert queue.get_job_status(job_id) == "completed"
    direct = Trainer(plain_lm(), given.config, job_config.training_config, given.task_spec)
    assert (
        queue.get_job_results(job_id)["final_loss"]
        == direct.train(given.train_dataset, given.val_dataset)["final_loss"]
    )
    queue.close()


def test_padding_may_be_named_by_the_config_or_the_task(given):
    rows = torch.stack(given.train_data)
    rows[:, 8:] = 0
    task_spec = TaskSpec(name="language_modeling", modality="text", preprocessing_config={"pad_token_id": 0})
    assert task_spec.preprocessing_config["pad_token_id"] == 0
    settings = TrainingConfig(learning_rate=5e-3, batch_size=4, epochs=1)
    by_task = Trainer(plain_lm(), given.config, settings, task_spec).train(TensorDataset(rows))
    given.config.pad_token_id = 0
    by_config = Trainer(plain_lm(), given.config, settings, TaskSpec("language_modeling", "text")).train(
        TensorDataset(rows)
    )
    assert by_task["loss_history"] == by_config["loss_history"]


def test_every_setting_has_a_default_and_the_project_may_be_named_alone():
    assert TrainingConfig(learning_rate=5e-5, batch_size=4, epochs=10).batch_size == 4
    assert TrainingConfig(wandb_project="my-project").wandb_project == "my-project"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert TrainingConfig().wandb_project is None


def test_data_may_be_stacked_by_hand(given):
    before = {name: value.clone() for name, value in given.model.state_dict().items()}
    trainer = Trainer(given.model, given.config, TrainingConfig(epochs=1), given.task_spec)
    trainer.train(TensorDataset(torch.stack(given.train_data)), given.val_dataset)
    assert any(not torch.equal(value, before[name]) for name, value in given.model.state_dict().items())
