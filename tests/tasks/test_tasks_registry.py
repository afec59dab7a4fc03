"""Adding a task: one class, one registration, and its name is one like any other."""

from __future__ import annotations

from typing import ClassVar

import pytest
import torch
from transformers.models.auto import modeling_auto

from tests.kit.labelled import bert_like_tokenizer
from tests.kit.task_toys import PlainHead, amount_of, collate, id_rows, samples_of, seeded
from tests.kit.toys import golden_config
from utils.errors import ConfigError, ModelError
from utils.models import ModelRegistry
from utils.training import Task, TaskSpec, Trainer, register_task
from utils.training.engine import Loss
from utils.training.engine.loss.tasks import Wording, find_task
from utils.training.task_kinds import TASK_KINDS, TASKS, TaskKind, kind_of_task
from utils.ui.wizard_fields import wizard_field

SAMPLES = samples_of(id_rows(16), amount_of)


class Distance(Task):
    """The absolute error."""

    name = "test_distance"
    words = ("test_l1",)
    loss_unit = "distance"

    def count_targets(self, batch):
        return len(batch["labels"])

    def __call__(self, model, batch, keep_outputs=False, num_targets=None):
        errors = (model(batch)[:, 0] - batch["labels"]).abs()
        return Loss(errors.sum(), len(errors), None, self.counts(errors))

    def counts(self, errors):
        return {}


def trained(task_type):
    spec = TaskSpec("mine", task_type=task_type)
    trainer = Trainer(seeded(lambda: PlainHead(1)), None, golden_config(epochs=3), spec, data_collator=collate)
    return trainer.train(SAMPLES, SAMPLES, resume_from="auto")


def test_a_task_of_ones_own_is_trained_evaluated_and_continued_under_its_name():
    register_task(Distance)
    assert TaskSpec("mine", task_type="test_l1").task_type == "test_distance"
    results = trained("test_distance")
    found = {name for name in results.final_metrics if name.startswith("val/")}
    assert found == {"val/loss"}  # nothing was counted, so there is no accuracy to be had
    assert results.final_perplexity is None
    assert "distance" in results.summary()["validation loss"]
    assert trained("test_distance").final_metrics == results.final_metrics  # finished: read back


def test_a_count_that_is_not_declared_is_named():
    class Counting(Distance):
        name = "test_counting"

        def counts(self, errors):
            return {"near": (errors < 1).sum()}

    register_task(Counting)
    with pytest.raises(ModelError, match=r"counted \{'near': 1\}, which its count_sizes"):
        trained("test_counting")


def test_what_is_counted_becomes_metrics():
    @register_task
    class Near(Distance):
        name = "test_near"
        count_sizes: ClassVar = {"near": 2}

        def counts(self, errors):
            return {"near": torch.stack([(errors < 1).sum(), (errors < 100).sum()])}

        def metrics(self, sums):
            return {**super().metrics(sums), "near": sums.counts["near"][0] / sums.counts["near"][1]}

    results = trained("test_near")
    with torch.no_grad():
        batch = collate(SAMPLES)
        outputs = results.model.eval()(batch["input_ids"], batch["attention_mask"])[:, 0]
    near = float(((outputs - batch["labels"]).abs() < 1).double().mean())
    assert results.final_metrics["val/near"] == pytest.approx(near)


def test_a_task_needs_a_name_and_a_name_needs_a_task():
    class Nameless(Distance):
        name = "not a name"

    with pytest.raises(ConfigError, match="'not a name'"):
        register_task(Nameless)
    with pytest.raises(ConfigError, match="subclass of Task"):
        register_task(dict)
    with pytest.raises(ConfigError, match="available: causal_lm, .*@register_task"):
        find_task("nobody")
    with pytest.raises(ConfigError, match="did you mean 'regression'"):
        TaskSpec("x", task_type="regresion")


@pytest.mark.parametrize(
    "spec",
    [
        TaskSpec.language_modeling(), TaskSpec.masked_lm(), TaskSpec.seq2seq(), TaskSpec.classification(num_classes=3),
        TaskSpec.token_classification(num_classes=3), TaskSpec.image_classification(num_classes=3), TaskSpec.regression(),
    ],
    ids=lambda spec: spec.task_type,
)  # fmt: skip
def test_every_factory_names_a_task_that_can_be_trained(spec):
    task = find_task(spec.task_type).from_spec(spec, golden_config())
    assert task.name == spec.task_type
    assert TaskSpec.from_dict(spec.to_dict()) == spec


def test_metrics_of_a_task_of_ones_own_can_be_monitored():
    class Halved(Distance):
        name = "test_halved"

        def metrics(self, sums):
            return {"loss": sums.loss / sums.targets, "half": sums.loss / sums.targets / 2}

    class Named(Halved):
        name = "test_named"
        metric_names = ("loss", "half")

    def train(task, monitor):
        register_task(task)
        spec = TaskSpec("mine", task_type=task.name)
        config = golden_config(epochs=2, monitor=monitor, run_name=None)
        trainer = Trainer(seeded(lambda: PlainHead(1)), None, config, spec, data_collator=collate)
        return trainer.train(SAMPLES, SAMPLES)

    results = train(Halved, "val/half")  # its names are not known beforehand
    assert results.best_value == min(row["val/half"] for row in results.evaluate_rows)
    (notice,) = [sentence for sentence in train(Halved, "val/third").notices if "val/third" in sentence]
    assert "could not be computed" in notice
    assert "val/loss, val/half" in notice
    assert train(Named, "val/half").best_value is not None
    with pytest.raises(ConfigError, match="did you mean val/half"):
        train(Named, "val/halff")


def test_the_loss_is_a_metric_of_every_task():
    @register_task
    class Halved(Distance):
        name = "test_only_half"
        metric_names = ("half",)

        def metrics(self, sums):
            return {"half": sums.loss / sums.targets / 2}

    results = trained("test_only_half")
    assert results.final_metrics["val/loss"] == 2 * results.final_metrics["val/half"]
    assert results.best_value == results.final_metrics["val/loss"]


@pytest.mark.parametrize(
    ("metric", "told"),
    [
        (lambda sums: sums.num_targets, r"failed with AttributeError.*count\(name\)"),
        (lambda sums: sums.counts["near"] / 2, "failed with TypeError"),
        (lambda sums: None, "failed with TypeError"),
        (lambda sums: 1 / (sums.targets - 1), None),  # of one sample there is none, and of an epoch there is
    ],
)
def test_metrics_that_cannot_be_computed_are_an_error_before_training(metric, told, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)

    @register_task
    class Broken(Distance):
        name = "test_broken"
        count_sizes: ClassVar = {"near": 1}

        def counts(self, errors):
            return {"near": (errors < 1).sum()}

        def metrics(self, sums):
            return {"mine": metric(sums)}

    if told is None:
        assert "val/mine" in trained("test_broken").final_metrics
        return
    with pytest.raises(ModelError, match=told):
        trained("test_broken")
    assert not (tmp_path / "runs").exists()


def test_an_input_is_shown_without_the_tokens_that_frame_it():
    tokenizer = bert_like_tokenizer()
    ids = torch.tensor([tokenizer.encode("the cat sat"), tokenizer.encode("the [MASK] ran")])
    batch = {
        "input_ids": torch.nn.functional.pad(ids, (0, 2)),
        "attention_mask": torch.nn.functional.pad(torch.ones_like(ids), (0, 2)),
    }
    assert [Wording(tokenizer).inputs(batch, row) for row in (0, 1)] == ["the cat sat", "the [MASK] ran"]
    assert Wording(None).inputs({"input_ids": torch.tensor([[7, 8]])}, 0) == "7 8"


@pytest.mark.parametrize("name", TASK_KINDS)
def test_what_is_known_of_a_task_agrees_with_its_loss_its_head_and_its_models(name):
    kind, task = TASK_KINDS[name], find_task(name)
    assert kind.over_tokens == task.over_tokens
    assert (kind.targets == "numbers") == (task.label_kind == "amount")
    assert all(TaskSpec("mine", task_type=word).task_type == name for word in (name, *kind.words))
    assert hasattr(modeling_auto, kind.head)
    assert set(kind.architectures) <= set(ModelRegistry.list_available())


def test_setups_name_the_tasks_that_files_can_be_read_for():
    assert wizard_field("task").choices == TASKS
    assert kind_of_task("test_distance") == kind_of_task(None) == TaskKind()
