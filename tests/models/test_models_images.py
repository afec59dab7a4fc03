"""Models over images: any size they can take, none that they cannot, and real learning; the small text models beside them."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers import (
    BertForMaskedLM,
    BertForSequenceClassification,
    BertForTokenClassification,
    T5ForConditionalGeneration,
    ViTForImageClassification,
)

from tests.kit.image_files import bars
from utils.adapters.forward import ModelCall
from utils.errors import ConfigError, ModelError
from utils.models import BaseModel, ModelRegistry, max_seq_len_of, vocab_size_of

IMAGE_MODELS = ["lenet", "mynet", "bottleneck_vit", "fpn_vit"]
LEAST = {"lenet": 12, "mynet": 4, "bottleneck_vit": 4, "fpn_vit": 8}


@pytest.mark.parametrize("name", IMAGE_MODELS)
@pytest.mark.parametrize(("channels", "size"), [(1, 28), (3, 32), (3, (17, 30)), (2, (12, 41))])
def test_images_of_any_size_and_depth_give_a_score_for_each_class(name, channels, size):
    model = ModelRegistry.create(name, num_classes=7, input_channels=channels, input_size=size)
    height, width = size if isinstance(size, tuple) else (size, size)
    assert model(torch.randn(2, channels, height, width)).shape == (2, 7)
    info = model.get_model_info()
    assert info["name"] == type(model).__name__
    assert (info["num_classes"], info["input_channels"]) == (7, channels)
    assert info["total_parameters"] == info["trainable_parameters"] == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("name", IMAGE_MODELS)
def test_the_smallest_image_works_and_a_smaller_one_is_refused_with_numbers(name):
    least = LEAST[name]
    model = ModelRegistry.create(name, input_size=least).eval()
    assert model(torch.zeros(1, 1, least, least)).shape == (1, 10)
    with pytest.raises(ConfigError, match=f"got {least - 1} x 40; .* below {least} pixels"):
        ModelRegistry.create(name, input_size=(least - 1, 40))


@pytest.mark.parametrize("name", [*IMAGE_MODELS, "vit-small"])
@pytest.mark.parametrize(
    "setting", [{"num_classes": 0}, {"input_channels": -1}, {"input_size": 0}, {"input_size": (3, 4, 5)}]
)
def test_sizes_that_cannot_be_are_refused(name, setting):
    with pytest.raises(ConfigError, match=next(iter(setting))):
        ModelRegistry.create(name, **setting)


@pytest.mark.parametrize("name", ["bottleneck_vit", "fpn_vit"])
def test_a_width_that_heads_do_not_divide_is_refused(name):
    with pytest.raises(ConfigError, match="got 30 for heads=4; the width must be a multiple"):
        ModelRegistry.create(name, width=30)
    with pytest.raises(ConfigError, match="dropout"):
        ModelRegistry.create(name, dropout=1)


@pytest.mark.parametrize("name", IMAGE_MODELS)
@pytest.mark.parametrize("shape", [(2, 3, 28, 28), (2, 1, 28, 27), (1, 28, 28)])
def test_other_images_than_it_was_made_for_are_refused_with_both_shapes(name, shape):
    with pytest.raises(ModelError, match=r"takes images of shape \(B, 1, 28, 28\); got \(.*input_size"):
        ModelRegistry.create(name)(torch.zeros(shape))


def test_lenet_has_the_published_number_of_parameters():
    assert ModelRegistry.create("lenet").get_model_info()["total_parameters"] == 61_706


def test_mynet_is_as_described():
    model = ModelRegistry.create("mynet")
    shapes = [tuple(layer.kernel_size) for layer in model.features if isinstance(layer, nn.Conv2d)]
    assert shapes == [(5, 5), (5, 1), (1, 5)]
    assert model.features[0].out_channels == 16
    assert [layer.out_features for layer in model.classifier if isinstance(layer, nn.Linear)] == [128, 64, 10]
    assert [layer.p for layer in model.classifier if isinstance(layer, nn.Dropout)] == [0.2, 0.3]


@pytest.mark.parametrize("name", IMAGE_MODELS)
def test_every_parameter_has_a_part_in_the_loss(name):
    torch.manual_seed(0)
    model = ModelRegistry.create(name)
    F.cross_entropy(model(torch.randn(4, 1, 28, 28)), torch.arange(4)).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


@pytest.mark.parametrize("name", IMAGE_MODELS)
def test_an_image_is_scored_the_same_alone_and_among_others(name):
    torch.manual_seed(0)
    model = ModelRegistry.create(name).eval()
    images = torch.randn(3, 1, 28, 28)
    assert torch.allclose(model(images)[1:2], model(images[1:2]), atol=1e-5)


def test_the_coarse_level_goes_into_the_fine_one_and_not_the_reverse():
    torch.manual_seed(0)
    model = ModelRegistry.create("fpn_vit").eval()
    images = torch.randn(1, 1, 28, 28)
    tokens = []
    model.classifier.register_forward_pre_hook(lambda _, inputs: tokens.append(inputs[0]))

    def levels(without=None):
        """The tokens of 4 x 4 pixels (7 x 7 of them) and of 8 x 8 (4 x 4), with one level's own part taken out."""
        changed = copy.deepcopy(model)
        if without is not None:
            nn.init.zeros_(getattr(changed, without).weight)
        changed(images)
        return tokens[-1].split([49, 16], dim=1)

    fine, coarse = levels()
    fine_without_fine, coarse_without_fine = levels("lateral_fine")
    fine_without_coarse, coarse_without_coarse = levels("lateral_coarse")
    assert not torch.allclose(fine, fine_without_coarse, atol=1e-3)
    assert not torch.allclose(fine, fine_without_fine, atol=1e-3)
    assert not torch.allclose(coarse, coarse_without_coarse, atol=1e-3)
    assert torch.equal(coarse, coarse_without_fine)


@pytest.mark.parametrize("name", IMAGE_MODELS)
def test_they_learn_what_can_be_seen_in_an_image(name):
    torch.manual_seed(0)
    images, labels = (torch.from_numpy(values) for values in bars(100))
    pixels = images[:, None].float() / 255 - 0.3
    model = ModelRegistry.create(name)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(pixels), labels)
        loss.backward()
        optimizer.step()
        if loss < 0.1:
            break
    assert loss < 0.2  # chance is 2.3


def test_a_model_of_ones_own_takes_its_own_settings():
    class Own(BaseModel):
        def __init__(self, num_classes=10, input_channels=1, **settings):
            super().__init__(num_classes, input_channels, **settings)
            self.layer = nn.Linear(4, num_classes)

        def forward(self, pixel_values):
            return self.layer(pixel_values.flatten(1))

    model = Own(num_classes=3, growth=2)
    assert model.settings == {"growth": 2}
    assert model.get_model_info()["total_parameters"] == 15
    assert model(torch.zeros(2, 1, 2, 2)).shape == (2, 3)
    with pytest.raises(TypeError, match="abstract"):
        BaseModel()


def test_the_engine_finds_their_input_by_its_name():
    model = ModelRegistry.create("lenet")
    batch = {"pixel_values": torch.randn(2, 1, 28, 28), "labels": torch.tensor([1, 2])}
    assert ModelCall(model)(batch).shape == (2, 10)


# The transformers beside them

SMALL = {"n_layer": 1, "n_embd": 16, "n_head": 2}
IDS = torch.randint(4, 50, (2, 12), generator=torch.Generator().manual_seed(0))
TRANSFORMERS = {
    "bert-small": (BertForMaskedLM, {"vocab_size": 50, "max_seq_len": 16, **SMALL}, {"input_ids": IDS, "labels": IDS}),
    "bert-small-classifier": (
        BertForSequenceClassification,
        {"vocab_size": 50, "max_seq_len": 16, "num_classes": 3, **SMALL},
        {"input_ids": IDS, "labels": torch.tensor([0, 2])},
    ),
    "bert-small-token-classifier": (
        BertForTokenClassification,
        {"vocab_size": 50, "max_seq_len": 16, "num_classes": 3, **SMALL},
        {"input_ids": IDS, "labels": IDS % 3},
    ),
    "t5-mini": (T5ForConditionalGeneration, {"vocab_size": 50, **SMALL}, {"input_ids": IDS, "labels": IDS}),
    "vit-small": (
        ViTForImageClassification,
        {"num_classes": 3, "input_size": (8, 12), "input_channels": 3, **SMALL},
        {"pixel_values": torch.randn(2, 3, 8, 12), "labels": torch.tensor([0, 2])},
    ),
}
OUTPUTS = {"bert-small": (2, 12, 50), "bert-small-classifier": (2, 3), "bert-small-token-classifier": (2, 12, 3), "t5-mini": (2, 12, 50), "vit-small": (2, 3)}


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_small_transformers_are_of_the_asked_size_and_begin_with_a_guess(name):
    kind, sizes, batch = TRANSFORMERS[name]
    model = ModelRegistry.create(name, **sizes)
    assert type(model) is kind
    output = model(**batch)
    assert output.logits.shape == OUTPUTS[name]
    classes = OUTPUTS[name][-1]
    assert output.loss.item() == pytest.approx(torch.log(torch.tensor(float(classes))).item(), abs=1.0)
    states = [ModelRegistry.create(name, **sizes, seed=seed).state_dict() for seed in (42, 7)]
    assert all(torch.equal(value, states[0][key]) for key, value in model.state_dict().items())
    assert any(not torch.equal(value, states[1][key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_small_transformers_leave_the_callers_random_state_alone(name, rng_untouched):
    ModelRegistry.create(name, **TRANSFORMERS[name][1])


def test_small_transformers_state_their_sizes():
    bert = ModelRegistry.create("bert-small", vocab_size=60, max_seq_len=24, **SMALL)
    assert (vocab_size_of(bert), max_seq_len_of(bert)) == (60, 24)
    assert bert.config.attention_probs_dropout_prob == 0
    assert vocab_size_of(ModelRegistry.create("t5-mini", vocab_size=60, **SMALL)) == 60


def test_a_seq2seq_model_begins_its_answer_with_the_padding_id():
    model = ModelRegistry.create("t5-mini", vocab_size=50, pad_token_id=3, **SMALL)
    assert (model.config.decoder_start_token_id, model.config.eos_token_id) == (3, model.generation_config.eos_token_id)
    assert model.eval().generate(IDS, max_new_tokens=2)[:, 0].tolist() == [3, 3]


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_small_transformers_name_every_size_that_cannot_be(name):
    with pytest.raises(ConfigError) as error:
        ModelRegistry.create(name, n_layer=0, n_embd=2.5, dropout=1)
    assert {problem.field for problem in error.value.problems} == {"n_layer", "n_embd", "dropout"}
    with pytest.raises(ConfigError, match="n_embd .*n_head=3"):
        ModelRegistry.create(name, n_embd=16, n_head=3)


def test_patches_must_fill_the_image():
    with pytest.raises(ConfigError, match="patch_size .*got 5 for images of 28 x 28 pixels"):
        ModelRegistry.create("vit-small", patch_size=5)
