"""GLUE: fine-tune a copy of a model on each task and evaluate it with the task's official metrics (arXiv 1804.07461)."""

from __future__ import annotations

import logging
import math
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from utils.adapters.maturity import is_untrained
from utils.check_result import CheckReport, CheckResult, Limit
from utils.checks.copies import Budget, Watch
from utils.checks.glue_data import GlueData, GlueTask, chosen_tasks, load_task
from utils.checks.glue_head import glue_model
from utils.checks.real_data import DATA_ERRORS, CheckData, scored
from utils.data.labelled.prepare import prepare_examples
from utils.errors import ModelError
from utils.models.inspect import max_seq_len_of
from utils.training.engine import rng
from utils.training.engine.trainer import Trainer
from utils.training.task_spec import TaskSpec
from utils.training.training_config import TrainingConfig

log = logging.getLogger("trainbook.checks")

# Devlin et al. 2018 (arXiv 1810.04805) fine-tune BERT on GLUE for 3 epochs of batches of 32 at 2e-5 to 5e-5; small models that
# start from scratch need more.
TRAINED_RATE, FRESH_RATE = 3e-5, 5e-4
_EPOCHS, _BATCH_SIZE, _LENGTH = 3, 32, 128
# WNLI's evaluation pairs share their sentences with training pairs of the opposite label, so a model that learns does worse
# than the majority class (GLUE's FAQ, question 12).
_ADVERSARIAL = ("WNLI",)


def evaluate_glue(
    model: nn.Module | Callable[[int], nn.Module], tokenizer: Any, tasks: str | Sequence[str] | None = None,
    data_dir: str | os.PathLike[str] | None = None, *, epochs: int = _EPOCHS, batch_size: int = _BATCH_SIZE,
    learning_rate: float | None = None, max_length: int | None = None, max_steps: int | None = None,
    max_train_samples: int | None = None, max_evaluation_samples: int | None = None, random_seed: int = 42,
    budget: Budget | None = None, progress: Callable[[str, int, int], None] | None = None,
) -> CheckReport:  # fmt: skip
    """Fine-tune a copy of `model` on each GLUE task with the engine, and evaluate it on the development set.

    Args:
        model: a model over token ids, which is not changed; each task's copy gets an output layer of the task's size (see
            `glue_model`). Or a factory, called with the number of outputs.
        tokenizer: the model's own.
        tasks: names such as "CoLA" or "sst2"; None: all nine.
        data_dir: a folder in the official layout (CoLA/train.tsv, …); None: nyu-mll/glue on the Hub.
        epochs, batch_size, learning_rate, max_length, max_steps: of the fine-tuning. None: 3e-5 for trained weights and
            5e-4 for untrained ones; at most 128 tokens; no step limit.
        max_train_samples, max_evaluation_samples: use only the first so many rows.
        budget: when to stop; progress: called as (task, tasks done, tasks in all) before each task.
    Returns:
        one result a task, such as `report["GLUE CoLA"]`: `measured` has the metrics (for MNLI "accuracy_matched" and
        "accuracy_mismatched"), "baseline" (the best scores of always predicting one class, as the majority; 0 for STS-B's
        correlations), and the training's size. It warns where the deciding metric is not above the baseline.
    Raises:
        ConfigError: an unknown task.
    """
    chosen, budget = chosen_tasks(tasks), budget or Budget()
    rate = learning_rate or (TRAINED_RATE if isinstance(model, nn.Module) and not is_untrained(model) else FRESH_RATE)
    settings = {
        "epochs": epochs, "batch_size": batch_size, "learning_rate": rate, "max_steps": max_steps, "random_seed": random_seed,
    }  # fmt: skip
    results = []
    for number, task in enumerate(chosen):
        if progress is not None:
            progress(task.name, number, len(chosen))
        name = f"GLUE {task.name}"
        if budget.over:
            results.append(CheckResult(name, "not run", f"{budget.reason.capitalize()}.", remedy="Give more time."))
            continue
        try:
            data = load_task(task, data_dir)
            data = GlueData(
                data.train[:max_train_samples],
                {part: rows[:max_evaluation_samples] for part, rows in data.evaluation.items()}, data.notes,
            )  # fmt: skip
            with rng.preserved():
                rng.seed_all(random_seed)
                own = glue_model(model, task.num_outputs, tokenizer)
            results.append(_evaluate(task, data, own, tokenizer, settings, max_length, budget))
        except (*DATA_ERRORS, ModelError) as error:
            results.append(CheckResult(name, "not run", f"Nothing was trained: {error}", remedy=str(error)))
    return CheckReport("GLUE", results)


def _evaluate(
    task: GlueTask, data: GlueData, model: nn.Module, tokenizer: Any, settings: dict[str, Any], max_length: int | None,
    budget: Budget,
) -> CheckResult:  # fmt: skip
    length = min(filter(None, (max_length or _LENGTH, max_seq_len_of(model))))
    spec = TaskSpec("text_classification", num_classes=len(task.classes)) if task.classes else TaskSpec("regression")
    train, spec = _prepared(task, data.train, spec, tokenizer, length, model)
    steps = settings["epochs"] * math.ceil(len(data.train) / settings["batch_size"])
    steps = min(steps, settings["max_steps"] or steps)
    log.info("GLUE %s: %d training examples, %d steps.", task.name, len(data.train), steps)
    watch, began = Watch(budget), time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        config = TrainingConfig(
            **settings, output_dir=folder, precision="32", save_every_n_epochs=100_000, keep_last_n=2
        )
        Trainer(model, training_config=config, task_spec=spec, tokenizer=tokenizer, callbacks=[watch]).train(train)
    measured: dict[str, Any] = {
        "train_examples": len(data.train), "steps": len(watch.losses), "planned_steps": steps,
        "seconds": time.monotonic() - began, "last_loss": watch.losses[-1] if watch.losses else None,
        "learning_rate": settings["learning_rate"], "notes": data.notes,
    }  # fmt: skip
    baseline: dict[str, float] = {}
    for part, rows in data.evaluation.items():
        evaluation, _ = _prepared(task, rows, spec, tokenizer, length, model)
        predicted = _predictions(model, evaluation, spec, tokenizer)
        true = [row["label"] for row in rows]
        suffix = part.removeprefix("dev")
        measured[f"examples{suffix}"] = len(rows)
        for metric, compute in task.metrics.items():
            measured[f"{metric}{suffix}"] = compute(predicted, true)
            baseline[f"{metric}{suffix}"] = _baseline(task, metric, true)
    measured["baseline"] = baseline
    return _result(task, measured, baseline, watch.ended_early, budget)


def _prepared(
    task: GlueTask, rows: list[dict[str, Any]], spec: TaskSpec, tokenizer: Any, length: int, model: nn.Module
) -> tuple[Any, TaskSpec]:
    prepared = prepare_examples(
        rows, spec, tokenizer, text_column="text", pair_column="pair" if len(task.texts) == 2 else None, label_column="label",
        max_length=length, val_split=0.0, class_names=list(range(len(task.classes))) if task.classes else None, model=model,
        source=f"GLUE {task.name}",
    )  # fmt: skip
    return prepared.train, prepared.task_spec


def _predictions(model: nn.Module, data: Any, spec: TaskSpec, tokenizer: Any) -> list[float]:
    """The predicted class, or number, of every example in order."""
    source = CheckData(None, data, spec, tokenizer, "GLUE", given=True, packed=False, given_spec=spec)
    parts = list(scored(model, source, most_targets=len(data) + 1, most_rows=len(data)))
    outputs: Tensor = torch.cat([one.outputs for one in parts])
    predicted: list[float] = (outputs[:, 0] if spec.task_type == "regression" else outputs.argmax(1)).tolist()
    return predicted


def _baseline(task: GlueTask, metric: str, true: list[float]) -> float:
    """The best score without looking at the text: of always predicting one class; 0 for correlations."""
    if not task.classes:
        return 0.0
    return max(task.metrics[metric]([constant] * len(true), true) for constant in range(len(task.classes)))


def _result(
    task: GlueTask, measured: dict[str, Any], baseline: dict[str, float], ended_early: bool, budget: Budget
) -> CheckResult:
    name = f"GLUE {task.name}"
    shown = ", ".join(f"{metric} {measured[metric]:.3f} (baseline {value:.3f})" for metric, value in baseline.items())
    summary = f"{shown} after {measured['steps']} steps on {measured['train_examples']:,} examples."
    if measured["notes"]:
        summary += " " + " ".join(measured["notes"])
    decides = next(iter(task.metrics))
    beaten = all(measured[metric] > value for metric, value in baseline.items() if metric.startswith(decides))
    judged = task.name not in _ADVERSARIAL
    thresholds = {metric: value for metric, value in baseline.items() if judged and metric.startswith(decides)}
    limits = tuple(
        Limit(metric, at_least=value, source="the best score without looking at the text")
        for metric, value in thresholds.items()
    )
    if beaten or not judged:
        return CheckResult(name, "pass", summary, measured, thresholds, limits=limits)
    if ended_early:
        return CheckResult(
            name, "not run", f"{budget.reason.capitalize()} ({measured['planned_steps']} steps were planned). {summary}",
            measured, thresholds, "Give more time, or fewer training examples (max_train_samples).", limits=limits,
        )  # fmt: skip
    return CheckResult(
        name, "warn", f"No better than predicting without the text: {summary}", measured, thresholds,
        "Train longer or with another learning rate, or start from pretrained weights.", limits=limits,
    )  # fmt: skip
