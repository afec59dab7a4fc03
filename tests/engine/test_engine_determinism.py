"""deterministic=True: switched on for the training only, recorded, and an operation that cannot is named with the switch."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.kit.checked_models import Block
from tests.kit.toys import golden_config, same_weights, tiny_gpt, train_set
from utils.errors import ConfigError
from utils.training import Callback, Trainer
from utils.training.engine import rng

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"


class Look(Callback):
    """What is switched on while a run trains."""

    def on_step_end(self, step, trainer, logs=None):
        self.seen = (
            torch.are_deterministic_algorithms_enabled(),
            os.environ.get(WORKSPACE),
            torch.backends.cudnn.benchmark,
        )


def train(model=None, **changes):
    look = Look()
    results = Trainer(model or tiny_gpt(), None, golden_config(epochs=1, **changes), callbacks=[look]).train(
        train_set()
    )
    recorded = json.loads(Path(results.run_dir, "environment.json").read_text())["determinism"]
    return results, look.seen, recorded


def switches():
    return (
        torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.backends.cudnn.benchmark, os.environ.get(WORKSPACE),
    )  # fmt: skip


@pytest.fixture
def put_back():
    algorithms, warn_only, benchmark, _ = switches()
    yield
    torch.use_deterministic_algorithms(algorithms, warn_only=warn_only)
    torch.backends.cudnn.benchmark = benchmark


@pytest.mark.usefixtures("put_back")
@pytest.mark.parametrize("workspace", [None, ":0:0", ":16:8"])
def test_everything_is_switched_on_recorded_and_put_back(workspace, monkeypatch):
    if workspace is not None:
        monkeypatch.setenv(WORKSPACE, workspace)
    torch.use_deterministic_algorithms(True, warn_only=True)  # somebody's own choice
    torch.backends.cudnn.benchmark = True
    before = switches()
    _, seen, recorded = train(deterministic=True)
    used = ":16:8" if workspace == ":16:8" else ":4096:8"
    assert seen == (True, used, False)
    assert recorded == {"deterministic_algorithms": True, "cudnn_benchmark": False, WORKSPACE: used}
    assert switches() == before


def test_off_it_touches_nothing():
    _, seen, recorded = train()
    assert seen == (False, None, torch.backends.cudnn.benchmark)
    assert recorded == {
        "deterministic_algorithms": False,
        "cudnn_benchmark": torch.backends.cudnn.benchmark,
        WORKSPACE: None,
    }


class Unrepeatable(Block):
    """Uses an operation that has no deterministic kernel, on no device."""

    def forward(self, ids_BT):
        logits = super().forward(ids_BT)
        if not self.training:
            return logits
        with torch.no_grad():
            torch.zeros(4).put_(torch.tensor([1, 1]), torch.ones(2))
        return logits


def test_an_operation_that_cannot_repeat_is_named_with_the_switch():
    before = switches()
    with pytest.raises(
        ConfigError,
        match=r"^deterministic=True: put_ does not have a deterministic implementation\. Set deterministic=False",
    ) as caught:
        train(Unrepeatable(), deterministic=True)
    assert "Unrepeatable.forward was called with" in "".join(caught.value.__notes__)
    assert switches() == before
    assert train(Unrepeatable(), run_name="without")[0].stop_reason == "finished"


def test_other_errors_are_left_alone():
    class Breaks(Block):
        def forward(self, ids_BT):
            raise RuntimeError("something else")

    with pytest.raises(RuntimeError, match="^something else"):
        train(Breaks(), deterministic=True)


def test_loader_processes_draw_the_same_under_the_switch():
    runs = [train(run_name=f"workers-{n}", num_workers=n, deterministic=True)[0] for n in (0, 2)]
    assert same_weights(runs[0].model, runs[1].model)


def test_one_seed_seeds_all_generators_as_torchs_own_function_does():
    def drawn():
        return random.random(), float(np.random.rand()), torch.rand(3).tolist()  # noqa: NPY002 - the global one is meant

    random.seed(5)
    np.random.seed(5)  # noqa: NPY002
    torch.manual_seed(5)
    expected = drawn()
    for _ in range(2):
        rng.seed_all(5)
        assert drawn() == expected
