"""Example batches are ones that the model takes, and a comparison on them tells equal models from different ones."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from tests.kit.task_toys import PlainEncoderDecoder, PlainHead, PlainImages, seeded, tiny_bert, tiny_t5
from tests.kit.toys import LENGTH, plain_lm, tiny_gpt
from utils.adapters import ModelCall
from utils.errors import ExportError
from utils.models.images import LeNet
from utils.training import TaskSpec, Trainer, TrainingConfig
from utils.training.export.parity import compare_greedy_tokens, compare_logits, example_batches


class Series(nn.Module):
    """Series (B, T, 3) -> 2 numbers, by an LSTM."""

    def __init__(self):
        super().__init__()
        self.cell, self.head = nn.LSTM(3, 8, batch_first=True), nn.Linear(8, 2)

    def forward(self, x):
        return self.head(self.cell(x)[0][:, -1])


def tiny_vit():
    from transformers import ViTConfig, ViTForImageClassification

    return seeded(
        lambda: ViTForImageClassification(
            ViTConfig(
                hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=16, patch_size=8
            )
        )
    )  # fmt: skip


MODELS = {
    "gpt2": tiny_gpt,
    "plain lm": plain_lm,
    "masked lm": lambda: tiny_bert("ForMaskedLM"),
    "classifier": lambda: tiny_bert("ForSequenceClassification"),
    "token classifier": lambda: tiny_bert("ForTokenClassification"),
    "plain classifier": lambda: PlainHead(4),
    "t5": tiny_t5,
    "plain encoder-decoder": PlainEncoderDecoder,
    "vit": tiny_vit,
    "lenet": LeNet,
    "images of unknown size": PlainImages,
    "table": lambda: nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 2)),
    "series": Series,
}
SHAPES = {
    "vit": (3, 16, 16),
    "lenet": (1, 28, 28),
    "images of unknown size": (1, 6, 6),
    "table": (5,),
    "series": (8, 3),
}


@pytest.fixture(params=list(MODELS))
def kind(request):
    return request.param


def spoilt(model):
    """A copy with one weight of the output layer changed."""
    other = copy.deepcopy(model)
    with torch.no_grad():
        list(other.parameters())[-1].flatten()[0] += 1.0
    return other


def test_the_model_takes_every_example_and_a_changed_weight_shows(kind):
    model = MODELS[kind]().eval()
    batches = example_batches(model)
    assert len({tuple(next(iter(batch.values())).shape) for batch in batches}) >= 3
    parity = compare_logits(ModelCall(model), ModelCall(copy.deepcopy(model)), batches, 1e-6)
    assert parity["max_abs_diff"] == 0
    assert parity["batches"] == len(batches)
    with pytest.raises(ExportError, match="computes something else"):
        compare_logits(ModelCall(model), ModelCall(spoilt(model)), batches, 1e-6)


def test_examples_have_the_shape_that_the_model_states_or_takes(kind):
    batches = example_batches(MODELS[kind]())
    if kind in SHAPES:
        assert {tuple(next(iter(batch.values())).shape[1:]) for batch in batches} == {SHAPES[kind]}
        assert {len(next(iter(batch.values()))) for batch in batches} == {1, 2, 3}
    else:
        assert all(batch["input_ids"].dtype == torch.int64 for batch in batches)


@pytest.mark.parametrize("kind", ["gpt2", "masked lm", "plain classifier"])
def test_where_a_mask_is_taken_both_sides_are_padded_and_one_batch_has_no_mask(kind):
    batches = example_batches(MODELS[kind]())
    masks = [batch["attention_mask"] for batch in batches if "attention_mask" in batch]
    assert any(bool((mask[:, 0] == 0).any()) for mask in masks)
    assert any(bool((mask[:, -1] == 0).any()) for mask in masks)
    assert any("attention_mask" not in batch for batch in batches)
    if kind == "gpt2":
        assert max(batch["input_ids"].shape[1] for batch in batches) == LENGTH


def test_models_without_a_mask_get_none():
    assert all(set(batch) == {"input_ids"} for batch in example_batches(plain_lm()))


@pytest.mark.parametrize("kind", ["t5", "plain encoder-decoder"])
def test_a_decoder_gets_ids_of_another_length(kind):
    batches = example_batches(MODELS[kind]())
    assert any(batch["decoder_input_ids"].shape != batch["input_ids"].shape for batch in batches)


def test_a_mask_that_the_model_needs_is_always_there():
    assert all("attention_mask" in batch for batch in example_batches(PlainEncoderDecoder()))


def test_a_sample_stands_for_what_cannot_be_inferred():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(3))

        def forward(self, signal):
            return signal * self.scale

    with pytest.raises(ExportError, match="Scaled does not state what its inputs are.*Give a sample batch"):
        example_batches(Scaled())
    first, whole = example_batches(Scaled(), sample={"signal": torch.randn(4, 3), "labels": torch.zeros(4)})
    assert set(first) == set(whole) == {"signal"}
    assert (len(first["signal"]), len(whole["signal"])) == (1, 4)


def test_a_task_spec_fills_what_the_model_does_not_state():
    batches = example_batches(plain_lm(), TaskSpec.language_modeling(max_seq_len=7))
    assert max(batch["input_ids"].shape[1] for batch in batches) == 7


def test_a_table_of_positions_that_nobody_states_is_not_exceeded():
    class Positions(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.where = nn.Embedding(9, 4), nn.Embedding(40, 4)

        def forward(self, ids):
            return self.words(ids) + self.where(torch.arange(ids.shape[1]))

    assert max(batch["input_ids"].shape[1] for batch in example_batches(Positions())) == 32


def test_the_model_and_the_random_state_are_left_alone(kind, rng_untouched):
    with torch.random.fork_rng():
        model = MODELS[kind]().train()
    example_batches(model)
    assert all(module.training for module in model.modules())


def test_greedy_tokens_are_compared_beyond_the_longest_context():
    model = plain_lm().eval()
    prompt = {"input_ids": torch.tensor([[3, 4, 5]])}
    found = compare_greedy_tokens(
        ModelCall(model), ModelCall(copy.deepcopy(model)), prompt, 1e-6, steps=64, max_length=LENGTH
    )
    assert found == {"greedy_tokens_equal": 64, "greedy_ties": 0}
    with pytest.raises(ExportError, match="generates other text: token .* at step"):
        compare_greedy_tokens(ModelCall(model), ModelCall(plain_lm(seed=1).eval()), prompt, 1e-6, max_length=LENGTH)


def test_a_tie_that_rounding_decides_is_counted_and_is_no_difference():
    def scores(values):
        return lambda batch: torch.tensor(values).expand(1, batch["input_ids"].shape[1], 3)

    prompt = {"input_ids": torch.zeros(1, 1, dtype=torch.int64)}
    found = compare_greedy_tokens(scores([1.0, 1.0 - 1e-7, 0.0]), scores([1.0 - 1e-7, 1.0, 0.0]), prompt, 1e-6, steps=3)
    assert found == {"greedy_tokens_equal": 3, "greedy_ties": 3}


def test_images_have_the_size_that_was_trained_on_where_the_model_states_none():
    model = nn.Sequential(nn.Conv2d(3, 2, 3), nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(2, 2))
    assert example_batches(model)[0]["pixel_values"].shape == (1, 3, 28, 28)  # a guess
    samples = [{"pixel_values": torch.rand(3, 12, 16), "labels": number % 2} for number in range(4)]
    config = TrainingConfig(max_steps=1, batch_size=4)
    results = Trainer(model, training_config=config, task_spec=TaskSpec.image_classification(num_classes=2)).train(samples)
    assert [tuple(batch["pixel_values"].shape) for batch in example_batches(model, results.task_spec)] == [
        (1, 3, 12, 16), (3, 3, 12, 16), (2, 3, 12, 16),
    ]  # fmt: skip
