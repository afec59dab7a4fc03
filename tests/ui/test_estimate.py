"""The estimate is measured by the engine itself, covers the whole plan, and leaves no trace."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from utils.errors import DataError
from utils.models import ModelRegistry
from utils.ui import SetupWizard
from utils.ui.estimate import Estimate, estimate_training


def small():
    model = ModelRegistry.create("gpt-small", vocab_size=512, max_seq_len=64, n_layer=1, n_embd=32, n_head=2)
    return model, SetupWizard().run(model=model, interactive=False, preset="starter", epochs=5, batch_size=16)


def test_it_counts_the_plan_and_leaves_model_and_folder_alone(rng_untouched):
    model, setup = small()
    before = torch.cat([p.detach().clone().reshape(-1) for p in model.parameters()])
    estimate = estimate_training(setup, model)
    assert torch.equal(before, torch.cat([p.detach().reshape(-1) for p in model.parameters()]))
    assert list(Path().iterdir()) == []
    blocks = -(-estimate.steps // 5)
    assert estimate.steps == 5 * blocks
    assert (estimate.validations, estimate.savings) == (5, 5)
    assert estimate.step_s > 0
    assert estimate.validation_s > 0
    assert estimate.saving_s > 0
    assert estimate.fits is True
    assert "MiB" in estimate.rows()["Memory"]


def test_a_step_limit_and_validation_by_steps_are_taken_into_account():
    model, setup = small()
    setup.update(max_steps=40, eval_every=10, save_every_n_epochs=3)
    estimate = estimate_training(setup, model)
    assert (estimate.steps, estimate.validations) == (40, 4)


def test_the_total_is_the_sum_of_its_parts():
    estimate = Estimate(0.5, 100, 2.0, 5, 1.0, 3, "m", True)
    assert estimate.total_s == pytest.approx(50 + 10 + 3)
    assert estimate.rows()["Time"].startswith("about 1 min 03 s on this machine")


def test_what_training_would_refuse_is_refused_here_too():
    model, setup = small()
    Path("short.txt").write_text("too short")
    setup.dataset_path = "short.txt"
    with pytest.raises(DataError, match="too little text"):
        estimate_training(setup, model)
