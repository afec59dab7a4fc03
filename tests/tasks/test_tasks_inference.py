"""Which task it is, where none is given: found from model and samples, and said."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from tests.kit.checked_models import HEALTHY_DESIGNS
from tests.kit.task_toys import (
    CLASSES,
    VOCAB,
    PlainEncoderDecoder,
    PlainHead,
    PlainImages,
    amount_of,
    class_of,
    classes_in,
    collate,
    id_rows,
    masked,
    padded,
    reversed_ids,
    samples_of,
    seeded,
    tags_of,
    tiny_bert,
    tiny_t5,
)
from tests.kit.toys import golden_config, plain_lm, same_weights, tiny_gpt, tiny_llama
from utils.errors import ConfigError, ModelError
from utils.training import TaskSpec, Trainer, infer_task_spec

ROWS = id_rows(6)
IMAGES = {"pixel_values": torch.rand(6, 1, 6, 6)}


def batch_of(label):
    return padded(ROWS, [label(row) for row in ROWS])


def masked_batch():
    rows = [masked(row) for row in ROWS]
    return padded([row["input_ids"] for row in rows], [row["labels"] for row in rows])


def head(outputs, **settings):
    return seeded(lambda: PlainHead(outputs, **settings))


def sequence_classifier(**settings):
    return tiny_bert("ForSequenceClassification", **settings)


def two_amounts(row):
    return torch.stack([amount_of(row), row.float().std() / 8])


CASES = {
    "GPT-2": (tiny_gpt, batch_of(lambda row: row), "causal_lm", {}),
    "Llama": (tiny_llama, None, "causal_lm", {}),
    "BERT for masked tokens": (lambda: tiny_bert("ForMaskedLM"), masked_batch(), "masked_lm", {}),
    "BERT for tags": (
        lambda: tiny_bert("ForTokenClassification", num_labels=CLASSES), batch_of(tags_of), "token_classification",
        {"num_classes": CLASSES},
    ),
    "T5": (tiny_t5, batch_of(reversed_ids), "seq2seq", {}),
    "classes": (
        lambda: sequence_classifier(num_labels=CLASSES), batch_of(class_of), "text_classification",
        {"num_classes": CLASSES, "multi_label": False},
    ),
    "several classes, by the labels": (
        lambda: sequence_classifier(num_labels=CLASSES), batch_of(classes_in), "text_classification",
        {"num_classes": CLASSES, "multi_label": True},
    ),
    "several classes, by the config": (
        lambda: sequence_classifier(num_labels=CLASSES, problem_type="multi_label_classification"),
        batch_of(lambda row: classes_in(row).long()), "text_classification", {"multi_label": True},
    ),
    "an amount, by the config": (
        lambda: sequence_classifier(num_labels=1, problem_type="regression"), batch_of(amount_of), "regression",
        {"num_classes": 1},
    ),
    "an amount, by the labels": (lambda: sequence_classifier(num_labels=1), batch_of(amount_of), "regression", {}),
    "DeiT": (lambda: seeded(HEALTHY_DESIGNS["DeiT"]), None, "image_classification", {"num_classes": 4, "modality": "vision"}),
    "plain language model": (plain_lm, batch_of(lambda row: row), "causal_lm", {}),
    "plain, ids alone": (plain_lm, padded(ROWS), "causal_lm", {}),
    "plain classes": (lambda: head(CLASSES), batch_of(class_of), "text_classification", {"num_classes": CLASSES}),
    "plain, several classes": (lambda: head(CLASSES), batch_of(classes_in), "text_classification", {"multi_label": True}),
    "plain tags": (
        lambda: head(CLASSES, each=True), batch_of(tags_of), "token_classification", {"num_classes": CLASSES},
    ),
    "plain amount": (lambda: head(1), batch_of(amount_of), "regression", {"num_classes": 1}),
    "plain amounts": (lambda: head(2), batch_of(two_amounts), "regression", {"num_classes": 2}),
    "plain encoder-decoder": (lambda: seeded(PlainEncoderDecoder), batch_of(reversed_ids), "seq2seq", {}),
    "plain images": (
        lambda: seeded(PlainImages), {**IMAGES, "labels": torch.arange(6) % CLASSES}, "image_classification",
        {"num_classes": CLASSES, "modality": "vision"},
    ),
    "plain images, amounts": (
        lambda: seeded(lambda: PlainImages(1)), {**IMAGES, "labels": torch.randn(6)}, "regression", {"num_classes": 1},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_the_task_of_a_model_and_its_samples(case, rng_untouched):
    make, batch, task_type, details = CASES[case]
    model = make()
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    spec, sentence = infer_task_spec(model, batch)
    assert spec.task_type == task_type
    assert {name: getattr(spec, name) for name in details} == details
    assert sentence.startswith("Task: ")
    assert "inferred: " in sentence
    assert model.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_a_subclass_of_a_known_model_is_known():
    from transformers import BertForTokenClassification

    class Mine(BertForTokenClassification):
        pass

    config = tiny_bert("ForTokenClassification", num_labels=3).config
    spec, sentence = infer_task_spec(seeded(lambda: Mine(config)), batch_of(tags_of))
    assert (spec.task_type, spec.num_classes) == ("token_classification", 3)
    assert "BertForTokenClassification" in sentence


def test_where_both_are_possible_the_sentence_says_what_was_taken_and_how_to_say_the_other():
    spec, sentence = infer_task_spec(head(VOCAB, each=True), masked_batch())
    assert spec.task_type == "causal_lm"
    assert "TaskSpec.masked_lm()" in sentence


def test_what_is_given_is_kept_and_the_rest_is_filled_in():
    given = TaskSpec("mine", task_type="text_classification", num_classes=7)
    spec, _ = infer_task_spec(head(CLASSES), batch_of(class_of), spec=given)
    assert (spec.name, spec.num_classes) == ("mine", 7)
    spec, sentence = infer_task_spec(head(CLASSES), batch_of(class_of), spec=TaskSpec.classification())
    assert spec.num_classes == CLASSES
    assert "as given" in sentence

    class Padding:
        pad_token_id = 5

    spec, _ = infer_task_spec(seeded(PlainEncoderDecoder), batch_of(reversed_ids), Padding())
    assert spec.pad_token_id == 5


def test_samples_that_say_nothing_are_refused_with_their_shapes():
    odd = {"input_ids": torch.zeros(2, 3).long(), "labels": torch.zeros(2, 5).long()}
    with pytest.raises(ConfigError, match=r"cannot be inferred from samples with .*\(2, 5\)"):
        infer_task_spec(head(CLASSES), odd)


@pytest.mark.parametrize(
    "task", [None, TaskSpec.language_modeling(), TaskSpec.classification()], ids=["none", "text", "class"]
)
def test_token_ids_as_floats_are_named(task, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = torch.randint(4, 20, (8, 6)).float()
    labels = (torch.arange(8) % 2,) if task is not None and task.task_type == "text_classification" else ()
    model = head(CLASSES) if labels else plain_lm()
    with pytest.raises((ConfigError, ModelError, RuntimeError)) as caught:
        Trainer(model, training_config=golden_config(), task_spec=task).train(TensorDataset(rows, *labels))
    assert "whole numbers" in " ".join([str(caught.value), *getattr(caught.value, "__notes__", ())])


def test_training_without_a_task_says_which_one_it_took():
    model = head(CLASSES)
    trainer = Trainer(model, None, golden_config(epochs=1), data_collator=collate)
    results = trainer.train(samples_of(ROWS, class_of))
    assert results.task_spec.task_type == "text_classification"
    assert (
        "Task: a class for each sample, 4 of them (inferred: there is one whole number a sample as label)."
        in results.notices
    )
    same = head(CLASSES)
    given = Trainer(
        same,
        None,
        golden_config(epochs=1, run_name="given"),
        TaskSpec.classification(num_classes=CLASSES),
        data_collator=collate,
    )
    assert not any(notice.startswith("Task:") for notice in given.train(samples_of(ROWS, class_of)).notices)
    assert same_weights(model, same)


class Normalised(nn.Module):
    """A model with running statistics and random numbers of its own, in training."""

    def __init__(self):
        super().__init__()
        self.norm, self.head = nn.BatchNorm1d(5), nn.Linear(5, 3)

    def forward(self, features):
        return self.head(self.norm(features))


def test_looking_leaves_running_statistics_alone():
    model = seeded(Normalised)
    batch = {"pixel_values": torch.randn(6, 5), "labels": torch.arange(6) % 3}
    spec, _ = infer_task_spec(model, batch)
    assert spec.num_classes == 3
    assert int(model.norm.num_batches_tracked) == 0
