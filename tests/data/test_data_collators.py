"""Samples of every task become batches as transformers' models take them, and padding never counts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

from tests.kit.labelled import CLS, MASK, PAD, SEP, SPECIAL, bert_like_tokenizer, ids_of
from utils.data.collators import collator_for, register_collator
from utils.data.masking import MaskedLMCollator
from utils.data.module import UniversalDataModule
from utils.data.packing import TokenBlocks
from utils.data.sources import DatasetSource
from utils.data.text_collator import TextCollator
from utils.errors import ConfigError, DataError, DataTypeError
from utils.training.task_spec import TaskSpec

VOCABULARY = 200


def masking(**changes) -> MaskedLMCollator:
    settings = {"mask_id": 4, "special_ids": range(5), "random_ids": range(5, VOCABULARY), "pad_id": 0, **changes}
    return MaskedLMCollator(**settings)


def blocks(count=64, length=100) -> TokenBlocks:
    ids = np.random.default_rng(0).integers(5, VOCABULARY, (count, length)).astype(np.int32)
    ids[:, 0] = CLS
    return TokenBlocks(ids)


def a_module(dataset=None, task="masked_lm", tokenizer=None, **options) -> UniversalDataModule:
    spec = TaskSpec(task, task_type=task, **options.pop("spec", {}))
    return UniversalDataModule(dataset, options.pop("val", None), spec, tokenizer or bert_like_tokenizer(), **options)


# ---- masked LM ----


def test_fifteen_per_cent_are_predicted_and_of_those_80_10_10():
    torch.manual_seed(0)
    data = blocks(400)
    batch = DatasetSource(data, masking()).take(range(400))
    labels, inputs, original = batch["labels"], batch["input_ids"], data.take(range(400))["input_ids"]
    chosen = labels != -100
    assert chosen.sum(1).tolist() == [15] * 400  # 15 % of the 99 that are no special token
    assert torch.equal(labels[chosen], original[chosen])
    assert torch.equal(inputs[~chosen], original[~chosen])
    masked = (inputs[chosen] == MASK).float().mean()
    kept = (inputs[chosen] == original[chosen]).float().mean()
    assert masked == pytest.approx(0.8, abs=0.02)
    assert kept == pytest.approx(0.1 + 0.1 / (VOCABULARY - 5), abs=0.02)


def test_special_tokens_and_padding_are_neither_predicted_nor_drawn():
    tokenizer = bert_like_tokenizer()
    collate = collator_for(TaskSpec("masked_lm", preprocessing_config={"mlm_probability": 1.0}), tokenizer)
    rows = [torch.tensor([CLS, *ids_of("the", "cat", "sat"), SEP]), torch.tensor([CLS, SEP])]
    for _ in range(60):
        batch = collate(rows)
        assert batch["labels"].tolist() == [[-100, *ids_of("the", "cat", "sat"), -100], [-100] * 5]
        assert batch["attention_mask"].tolist() == [[1] * 5, [1, 1, 0, 0, 0]]
        assert batch["input_ids"][:, 0].tolist() == [CLS, CLS]
        others = batch["input_ids"][0, 1:4]
        assert all(int(i) == MASK or int(i) >= len(SPECIAL) for i in others)


@pytest.mark.parametrize("padding", [{"attention_mask": [1, 1, 1, 0, 0]}, {}])
def test_padding_within_a_sample_is_not_predicted(padding):
    sample = {"input_ids": [7, 8, 9, 0, 0], **padding}
    assert masking(share=1.0, special_ids=[4])([sample])["labels"].tolist() == [[7, 8, 9, -100, -100]]


def test_a_short_text_has_one_token_to_predict():
    assert (masking()([torch.tensor([2, 9, 3])])["labels"] != -100).sum() == 1


def test_what_is_masked_already_stays_as_it_is():
    sample = {"input_ids": [7, 4, 9], "labels": [-100, 8, -100]}
    for collate in (masking(), MaskedLMCollator(None)):
        batch = collate([sample])
        assert (batch["input_ids"].tolist(), batch["labels"].tolist()) == ([[7, 4, 9]], [[-100, 8, -100]])


def test_masking_without_a_mask_token_says_what_to_do():
    with pytest.raises(DataTypeError, match="no mask token is known"):
        MaskedLMCollator(None)([torch.tensor([7, 8, 9])])
    tokenizer = bert_like_tokenizer()
    tokenizer.mask_token = None
    with pytest.raises(ConfigError, match="has no mask token"):
        collator_for(TaskSpec("masked_lm"), tokenizer)
    with pytest.raises(ConfigError, match="mlm_probability=1.5"):
        collator_for(TaskSpec("masked_lm", preprocessing_config={"mlm_probability": 1.5}), bert_like_tokenizer())


def masked_by_sample(module: UniversalDataModule, epoch: int, skip: int = 0) -> dict[int, tuple]:
    """Sample number -> its inputs and labels, from `skip` on."""
    found = {}
    for step in module.steps(epoch, skip, 1):
        rows = [
            (batch["input_ids"][i], batch["labels"][i])
            for batch in step.micro_batches
            for i in range(len(batch["labels"]))
        ]
        for number, (ids, labels) in zip(step.sample_ids, rows, strict=True):
            found[number] = (tuple(ids.tolist()), tuple(labels.tolist()))
    return found


def test_masks_are_a_function_of_seed_epoch_and_sample(rng_untouched):
    data = blocks(24)
    first = masked_by_sample(a_module(data, batch_size=4, seed=3), epoch=1)
    assert len(first) == 24
    assert masked_by_sample(a_module(data, batch_size=5, seed=3), epoch=1) == first  # not of the place in the batch
    resumed = masked_by_sample(a_module(data, batch_size=4, seed=3), epoch=1, skip=12)
    assert resumed == {number: first[number] for number in resumed}
    assert masked_by_sample(a_module(data, batch_size=4, seed=3), epoch=2) != first
    assert masked_by_sample(a_module(data, batch_size=4, seed=4), epoch=1) != first
    assert len({labels for _, labels in first.values()}) == 24


def test_loader_processes_mask_the_same():
    data = blocks(12)
    alone, helped = (a_module(data, batch_size=4, num_workers=count) for count in (0, 2))
    assert masked_by_sample(helped, 1) == masked_by_sample(alone, 1)


def test_validation_masks_are_the_same_in_every_epoch():
    module = a_module(blocks(8), val=blocks(8), batch_size=4)
    list(module.steps(0, 0, 1))
    first = [batch["labels"] for batch in module.validation_batches()]
    list(module.steps(5, 0, 1))
    second = [batch["labels"] for batch in module.validation_batches()]
    assert (torch.cat(first) != -100).any()
    assert torch.equal(torch.cat(first), torch.cat(second))


def test_masks_do_not_change_what_the_data_are():
    data = blocks(8)
    module = a_module(data, batch_size=4)
    before = module.digest()
    list(module.steps(3, 0, 1))
    assert module.digest() == before
    assert data.digest() in before


def test_texts_are_packed_and_masked():
    module = a_module(["the cat sat on the mat. " * 4] * 3, spec={"max_seq_len": 16}, batch_size=4)
    batch = next(module.steps(0, 0, 1)).micro_batches[0]
    assert batch["input_ids"].shape == (4, 16)
    assert (batch["labels"] != -100).sum(1).tolist() == [2] * 4


def test_a_given_collate_function_sees_packed_rows_too():
    module = UniversalDataModule(blocks(4, 8), data_collator=lambda rows: {"input_ids": rows[0]["input_ids"][None, :3]})
    assert module.train.take([1, 2])["input_ids"].shape == (1, 3)


# ---- labels of a text ----


def test_texts_and_classes_become_a_batch():
    spec = TaskSpec("classification", preprocessing_config={"class_names": ["no", "yes"]})
    batch = collator_for(spec, bert_like_tokenizer())(
        [{"text": "the cat ran", "label": "yes"}, {"text": "good", "label": 0}]
    )
    assert batch["input_ids"].tolist() == [
        [CLS, *ids_of("the", "cat", "ran"), SEP],
        [CLS, *ids_of("good"), SEP, PAD, PAD],
    ]
    assert batch["attention_mask"].tolist() == [[1] * 5, [1, 1, 1, 0, 0]]
    assert batch["token_type_ids"].tolist() == [[0] * 5] * 2
    assert (batch["labels"].tolist(), batch["labels"].dtype) == ([1, 0], torch.int64)


def test_pairs_have_token_types():
    batch = collator_for(TaskSpec("classification"), bert_like_tokenizer())(
        [
            {"premise": "the cat", "hypothesis": "a dog ran", "label": 2},
            {"premise": "a", "hypothesis": "cat", "label": 0},
        ]
    )
    assert batch["input_ids"][0].tolist() == [CLS, *ids_of("the", "cat"), SEP, *ids_of("a", "dog", "ran"), SEP]
    assert batch["token_type_ids"].tolist() == [[0, 0, 0, 0, 1, 1, 1, 1], [0, 0, 0, 1, 1, 0, 0, 0]]
    assert batch["attention_mask"][1].tolist() == [1] * 5 + [0] * 3


def test_samples_of_ids_are_padded_with_the_tasks_padding_id():
    collate = collator_for(TaskSpec("classification", pad_token_id=9))
    batch = collate([{"input_ids": [1, 2, 3], "label": 1}, (torch.tensor([4]), torch.tensor(0))])
    assert batch["input_ids"].tolist() == [[1, 2, 3], [4, 9, 9]]
    assert (batch["attention_mask"].tolist(), batch["labels"].tolist()) == ([[1, 1, 1], [1, 0, 0]], [1, 0])
    padded = TensorDataset(torch.tensor([[1, 2, 9, 9], [3, 9, 4, 4]]), torch.tensor([0, 1]))
    assert collate(list(padded))["attention_mask"].tolist() == [[1, 1, 0, 0], [1, 1, 1, 1]]


def test_several_classes_of_a_text_become_floats():
    collate = collator_for(TaskSpec("classification"))
    batch = collate([{"input_ids": [1, 2, 3], "labels": [1, 0, 1]}, {"input_ids": [1], "labels": [0, 0, 0]}])
    assert (batch["labels"].tolist(), batch["labels"].dtype) == ([[1, 0, 1], [0, 0, 0]], torch.float32)
    with pytest.raises(DataError, match="different shapes"):
        collate([{"input_ids": [1], "labels": [0]}, {"input_ids": [1], "labels": [0, 2]}])


def test_without_labels_there_are_only_inputs():
    assert set(collator_for(TaskSpec("classification"))([{"input_ids": [1, 2]}])) == {"input_ids", "attention_mask"}


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        ([{"input_ids": [1], "label": 0.5}], "classes are whole numbers"),
        ([{"text": "a", "label": 0}], "need a tokenizer"),
        ([{"input_ids": [1], "label": 0}, {"input_ids": [1]}], "1 of 2 samples of a batch have no labels"),
        ([{"input_ids": [1], "label": 0}, {"text": "a"}], "some do not"),
        (["a text"], "Expected a sample to be a dict"),
    ],
)
def test_what_cannot_be_classified_is_said(samples, message):
    with pytest.raises(DataError, match=message):
        collator_for(TaskSpec("classification"))(samples)


def test_a_class_name_nobody_knows_is_said():
    spec = TaskSpec("classification", preprocessing_config={"class_names": ["no", "yes"]})
    with pytest.raises(DataError, match="'maybe' is a name, and the classes are \\['no', 'yes'\\]"):
        collator_for(spec, bert_like_tokenizer())([{"text": "the cat", "label": "maybe"}])


@pytest.mark.parametrize(("label", "shape"), [(0.5, (2,)), (3, (2,)), ([0.5, 2.0], (2, 2))])
def test_numbers_are_learned_as_floats(label, shape):
    batch = collator_for(TaskSpec("regression"))([{"input_ids": [1, 2], "label": label}] * 2)
    assert (tuple(batch["labels"].shape), batch["labels"].dtype) == (shape, torch.float32)


def test_features_may_take_the_place_of_a_text():
    pairs = TensorDataset(torch.rand(3, 5), torch.rand(3))
    batch = collator_for(TaskSpec("regression"))(list(pairs))
    assert torch.equal(batch["pixel_values"], pairs.tensors[0])
    assert torch.equal(batch["labels"], pairs.tensors[1])


# ---- labels of words, and target texts ----


def test_the_label_of_a_word_stands_at_its_first_piece():
    spec = TaskSpec("ner", preprocessing_config={"class_names": ["O", "VERB"]})
    records = [
        {"tokens": ["the", "cat", "playing", "fast"], "ner_tags": ["O", "O", "VERB", "O"]},
        {"tokens": ["dogs"], "ner_tags": [1]},
    ]
    batch = collator_for(spec, bert_like_tokenizer())(records)
    assert batch["input_ids"][0].tolist() == [CLS, *ids_of("the", "cat", "play", "##ing", "fast"), SEP]
    assert batch["labels"].tolist() == [[-100, 0, 0, 1, -100, 0, -100], [-100, 1, -100, -100, -100, -100, -100]]


def test_the_same_word_twice_has_two_labels():
    batch = collator_for(TaskSpec("ner"), bert_like_tokenizer())([{"words": ["cats", "cats"], "tags": [1, 0]}])
    assert batch["labels"].tolist() == [[-100, 1, -100, 0, -100, -100]]


def test_labels_that_are_aligned_already_are_padded_only():
    samples = [{"input_ids": [5, 6, 7], "labels": [-100, 1, 2]}, {"input_ids": [5, 0], "labels": [1, 3]}]
    assert collator_for(TaskSpec("ner", pad_token_id=0))(samples)["labels"].tolist() == [[-100, 1, 2], [1, -100, -100]]
    with pytest.raises(DataError, match="3 tokens and 1 labels"):
        collator_for(TaskSpec("ner"))([{"input_ids": [5, 6, 7], "labels": [1]}])


def test_inputs_and_targets_are_cut_and_padded_each_on_its_own():
    spec = TaskSpec.seq2seq(max_seq_len=5, preprocessing_config={"max_target_length": 3})
    records = [{"source": "the cat sat on the mat", "target": "cat sat on"}, {"source": "dog", "target": "a"}]
    batch = collator_for(spec, bert_like_tokenizer())(records)
    assert batch["input_ids"].tolist() == [
        [CLS, *ids_of("the", "cat", "sat"), SEP],
        [CLS, *ids_of("dog"), SEP, PAD, PAD],
    ]
    assert batch["attention_mask"].tolist() == [[1] * 5, [1, 1, 1, 0, 0]]
    assert batch["labels"].tolist() == [[CLS, *ids_of("cat"), SEP], [CLS, *ids_of("a"), SEP]]
    assert "decoder_input_ids" not in batch


def test_padding_of_targets_is_not_scored():
    collate = collator_for(TaskSpec("seq2seq", pad_token_id=0))
    samples = [
        {"input_ids": [5, 6], "labels": [7, 8, 9], "decoder_input_ids": [0, 7, 8]},
        {"input_ids": [5, 0], "labels": [7, 0, 0]},
    ]
    batch = collate(samples)
    assert batch["labels"].tolist() == [[7, 8, 9], [7, -100, -100]]
    assert set(batch) == {"input_ids", "attention_mask", "labels"}
    shorter = collate([{"input_ids": [5, 6, 7, 8], "labels": [7]}, {"input_ids": [5], "labels": [7, 8]}])
    assert (shorter["input_ids"].shape, shorter["labels"].tolist()) == ((2, 4), [[7, -100], [7, 8]])


# ---- images ----


def test_images_of_bytes_become_floats_between_0_and_1():
    collate = collator_for(TaskSpec("image_classification", "vision"))
    batch = collate(
        [(torch.full((1, 2, 2), 255, dtype=torch.uint8), 3), {"image": np.zeros((2, 2), np.uint8), "label": 1}]
    )
    assert batch["pixel_values"].shape == (2, 1, 2, 2)
    assert (batch["pixel_values"].amax((1, 2, 3)).tolist(), batch["labels"].tolist()) == ([1.0, 0.0], [3, 1])
    assert collate([{"pixel_values": torch.full((3, 2, 2), -2.0)}])["pixel_values"].amin() == -2


def test_images_of_16_bits_become_floats_between_0_and_1():
    images = np.array([[[0, 257]], [[65_535, 32_768]]], np.uint16)
    batch = collator_for(TaskSpec("image_classification", "vision"))([{"image": image, "label": 0} for image in images])
    assert torch.allclose(batch["pixel_values"][:, 0, 0], torch.tensor([[0, 1 / 255], [1, 0.5]]), atol=1e-4)


def test_images_of_two_sizes_are_refused():
    with pytest.raises(DataError, match=r"\(1, 2, 2\), \(1, 3, 3\)"):
        collator_for(TaskSpec("image_classification"))([torch.zeros(1, 2, 2), torch.zeros(1, 3, 3)])


# ---- the data module ----


def test_plain_pairs_of_tensors_need_no_task():
    pixels, classes = torch.rand(6, 1, 2, 2), torch.arange(6)
    batch = UniversalDataModule(TensorDataset(pixels, classes)).train.take([4, 1])
    assert torch.equal(batch["pixel_values"], pixels[[4, 1]])
    assert batch["labels"].tolist() == [4, 1]
    ids = TensorDataset(torch.ones(6, 3, dtype=torch.long), classes)
    assert UniversalDataModule(ids).train.take([4, 1])["labels"].tolist() == [4, 1]


@pytest.mark.parametrize("task", ["classification", "image_classification"])
def test_plain_pairs_of_tensors_go_through_the_tasks_collator(task):
    inputs = torch.rand(6, 1, 2, 2) if task == "image_classification" else torch.ones(6, 3, dtype=torch.long)
    module = a_module(TensorDataset(inputs, torch.arange(6)), task, batch_size=2)
    batch = next(module.steps(0, 0, 1)).micro_batches[0]
    assert set(batch) == (
        {"pixel_values", "labels"} if task == "image_classification" else {"input_ids", "attention_mask", "labels"}
    )


class Foreign(TensorDataset):
    """May do anything in `__getitem__`, so its samples are read one by one."""

    draws = False


INPUTS = {
    "features": torch.rand(6, 5),
    "numbers": torch.rand(6),
    "grey images": torch.rand(6, 4, 4),
    "images": torch.rand(6, 4, 4, 3).permute(0, 3, 1, 2),
    "bytes": torch.arange(6 * 16, dtype=torch.uint8).view(6, 1, 4, 4),
    "16 bits": torch.arange(6 * 16).mul(600).to(torch.uint16).view(6, 4, 4),
    "doubles": torch.rand(6, 5, dtype=torch.float64),
    "volumes": torch.rand(6, 1, 2, 2, 2),
    "ids": torch.ones(6, 5, dtype=torch.long),
}
LABELS = {
    "none": None,
    "classes": torch.arange(6),
    "column": torch.arange(6)[:, None],
    "int32": torch.arange(6, dtype=torch.int32),
    "number": torch.rand(6),
    "numbers": torch.rand(6, 2),
    "flags": torch.ones(6, 2, dtype=torch.long),
}
TASKS = {
    "none": None,
    "images": TaskSpec("image_classification"),
    "classes": TaskSpec("text_classification"),
    "several": TaskSpec("text_classification", multi_label=True),
    "regression": TaskSpec("regression"),
}


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("inputs", INPUTS)
def test_rows_of_tensors_are_batches_to_the_last_bit_as_their_samples_are(task, inputs):
    collate = collator_for(TASKS[task])
    for labels in LABELS.values():
        columns = [column for column in (INPUTS[inputs], labels) if column is not None]
        outcomes = []
        for kind in (TensorDataset, Foreign):
            try:
                outcomes.append(DatasetSource(kind(*columns), collate).take([4, 1, 1]))
            except DataError as error:
                outcomes.append(str(error).replace("Foreign", "TensorDataset"))
        together, single = outcomes
        if isinstance(single, str):
            assert together == single
            continue
        assert list(together) == list(single)
        for name, tensor in single.items():
            assert together[name].dtype == tensor.dtype
            assert together[name].is_contiguous()
            assert torch.equal(together[name], tensor)
        sources = [DatasetSource(kind(*columns), collate) for kind in (TensorDataset, Foreign)]
        assert sources[0].digest() == sources[1].digest()


def test_a_collator_of_ones_own_sees_the_samples_of_tensors():
    class Own(type(collator_for(TaskSpec("regression")))):
        def batch(self, rows):
            return super().batch([{**row, "pixel_values": row["pixel_values"] + 1} for row in rows])

    inputs = torch.rand(4, 3)
    source = DatasetSource(TensorDataset(inputs, torch.rand(4)), Own(TaskSpec("regression")))
    assert torch.equal(source.take([2])["pixel_values"], inputs[[2]] + 1)


def test_the_number_of_a_sample_that_is_not_there_is_said():
    with pytest.raises(DataError, match="sample 9 of TensorDataset cannot be read"):
        DatasetSource(TensorDataset(torch.rand(4, 3)), collator_for(None)).take([0, 9])


def test_a_data_set_of_texts_and_labels_needs_no_preparation():
    from datasets import Dataset

    data = Dataset.from_dict({"text": ["the cat", "a dog ran", "good"], "label": [0, 1, 0]})
    module = a_module(data, "classification", batch_size=3)
    batch = module.train.take([0, 1])
    assert batch["input_ids"].shape == (2, 5)
    assert batch["labels"].tolist() == [0, 1]


def test_ids_are_padded_with_the_configs_padding_id_where_nothing_else_has_one():
    module = UniversalDataModule(
        [{"input_ids": [5, 6], "label": 1}, {"input_ids": [5], "label": 1}],
        task_spec=TaskSpec("classification"),
        pad_token_id=7,
    )
    assert module.train.take([0, 1])["input_ids"].tolist() == [[5, 6], [5, 7]]


def test_a_task_of_ones_own_brings_its_collator(monkeypatch):
    from utils.data import collators

    monkeypatch.setattr(collators, "_MAKERS", dict(collators._MAKERS))
    register_collator("regression", lambda task_spec, tokenizer: lambda rows: {"labels": torch.tensor([len(rows)])})
    module = a_module([{"input_ids": [1]}] * 3, "regression")
    assert module.train.take([0, 2])["labels"].tolist() == [2]
    with pytest.raises(ConfigError, match="register_collator takes the name"):
        register_collator("", TextCollator())


def test_an_unknown_task_has_the_usual_collator():
    assert isinstance(collator_for(None), TextCollator)
    assert isinstance(collator_for(TaskSpec("mine", pad_token_id=3)), TextCollator)
    assert collator_for(TaskSpec("mine", pad_token_id=3)).pad_id == 3


def test_numbers_of_records_may_be_written_as_text():
    records = [{"text": "the cat", "label": "3.5"}, {"text": "the dog", "label": float("nan")}]
    labels = a_module(records, "regression").train.take([0, 1])["labels"]
    assert (labels[0].item(), labels[1].isnan().item()) == (3.5, True)
    with pytest.raises(DataError, match="no number: 'many'"):
        a_module([{"text": "the cat", "label": "many"}], "regression").train.take([0])


@pytest.mark.parametrize("tags", [[0], [0, 1, 0]])
def test_words_of_records_have_a_tag_each(tags):
    records = [{"tokens": ["the", "cat"], "tags": tags}]
    with pytest.raises(DataError, match=f"2 words and {len(tags)} labels"):
        a_module(records, "token_classification").train.take([0])
