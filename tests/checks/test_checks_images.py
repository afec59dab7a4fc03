"""Checks of models over images: they are given images of the right shape, and find what is wrong."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from utils.checks import run_all_tier1_tests
from utils.checks.probe import CannotProbeError, probe
from utils.models import BaseModel, ModelRegistry
from utils.training import TaskSpec

IMAGE_TASK = TaskSpec.image_classification(num_classes=10)


def verdicts(report):
    return {result.name: result.verdict for result in report.results}


@pytest.mark.parametrize("name", ["lenet", "bottleneck_vit"])
@pytest.mark.parametrize("task_spec", [None, IMAGE_TASK])
def test_a_healthy_model_over_images_passes(name, task_spec):
    torch.manual_seed(0)
    found = verdicts(run_all_tier1_tests(ModelRegistry.create(name), task_spec=task_spec))
    assert len(found) == 6
    assert set(found.values()) == {"pass"}


def test_images_have_the_models_own_channels_and_size():
    found = probe(ModelRegistry.create("lenet", input_channels=3, input_size=(32, 40)), {"image_size": 28})
    assert (found.image_shape, found.output, found.vocab_size) == ((3, 32, 40), "classes", None)
    vit = ModelRegistry.create("vit-small", input_size=(8, 12), n_layer=1, n_embd=16, n_head=2)
    assert probe(vit).image_shape == (1, 8, 12)


def plain():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5))


@pytest.mark.parametrize("config", [{"image_size": 16}, {"input_size": (16, 16)}])
def test_a_plain_convolutional_model_is_known_by_its_first_layer(config):
    assert probe(plain(), config).image_shape == (3, 16, 16)
    assert probe(plain(), config).output == "classes"


def test_a_size_that_nobody_says_is_tried():
    assert probe(plain()).image_shape == (3, 28, 28)


def test_a_size_that_nobody_says_and_no_trial_finds_is_asked_for():
    with pytest.raises(CannotProbeError, match="takes images and does not say of what size.*give config with image_size"):
        probe(nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(2 * 998 * 998, 2, device="meta")))


def test_convolutions_after_an_embedding_make_no_image_model():
    class Pictured(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.conv = nn.Embedding(20, 4), nn.Conv2d(1, 1, 3, padding=1)

        def forward(self, ids):
            return self.conv(self.embedding(ids)[:, None])[:, 0]

    assert probe(Pictured()).vocab_size == 20


class MixesRows(BaseModel):
    """Subtracts the batch's mean, in evaluation too."""

    def __init__(self):
        super().__init__(input_size=8)
        torch.manual_seed(0)
        self.layer, self.unused = nn.Linear(64, 10), nn.Linear(2, 2)

    def forward(self, pixel_values):
        flat = pixel_values.flatten(1)
        return self.layer(flat - flat.mean(0))


def test_a_model_that_begins_otherwise_says_its_channels_itself():
    assert probe(MixesRows()).image_shape == (1, 8, 8)


def test_faults_of_a_model_over_images_are_found():
    found = verdicts(run_all_tier1_tests(MixesRows()))
    assert found["shapes"] == "fail"
    assert found["gradient flow"] == "fail"
