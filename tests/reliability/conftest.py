"""What several fault tests compare with."""

from __future__ import annotations

import pytest
import torch

from tests.kit.slow_disk import save_in_background
from tests.kit.toys import golden_config, gpt_of_one_layer, train_set, validation_set
from utils.training import Trainer, TrainingResults


@pytest.fixture(scope="session")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> TrainingResults:
    """The golden run that nothing happened to."""
    torch.set_num_threads(1)  # as around each test, where this fixture is not: the last bits depend on it
    config = golden_config(run_name="unbroken", output_dir=str(tmp_path_factory.mktemp("unbroken")))
    return Trainer(gpt_of_one_layer(), None, config).train(train_set(), validation_set())


@pytest.fixture(params=["waiting", "overlapping"])
def saves(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Training waits for its checkpoints, or goes on while they are written. Forked children inherit it."""
    save_in_background(monkeypatch, request.param == "overlapping")
    return request.param
