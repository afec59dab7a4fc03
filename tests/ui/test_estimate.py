"""The estimate is measured by the engine itself, covers the whole plan, and leaves no trace."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from utils.checks import memory
from utils.data import prepare_data
from utils.errors import DataError, OutOfMemoryError
from utils.models import ModelRegistry
from utils.training.engine.callbacks import Callback
from utils.training.trial_training import TrialTraining
from utils.ui import SetupWizard
from utils.ui.background import Cancelled, Progress
from utils.ui.estimate import Estimate, estimate_training
from utils.ui.rehearsal import Rehearsal, Rehearsed


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


@pytest.fixture
def short_text():
    """A setup over a small file: 40 training blocks of 16 tokens and 5 for validation."""
    Path("my.txt").write_text("to be or not to be, that is the question.\n" * 19)
    model = ModelRegistry.create("gpt-small", vocab_size=64, max_seq_len=16, n_layer=1, n_embd=32, n_head=2)
    values = {"dataset_path": "my.txt", "tokenizer_strategy": "character", "epochs": 3, "batch_size": 4}
    setup = SetupWizard().run(model=model, interactive=False, preset="starter", **values)
    data = prepare_data(setup, model)
    return model, setup, len(data.train), len(data.validation)


def counts(estimate):
    return estimate.steps, estimate.validations


@pytest.mark.parametrize(
    ("changes", "steps", "validations"),
    [
        ({"max_train_samples": 12}, 3 * 3, 3),
        ({"max_train_samples": 10, "gradient_accumulation_steps": 2}, 3 * 2, 3),
        ({"max_train_samples": 12, "max_steps": 4}, 4, 2),
        ({"max_train_samples": 12, "eval_every": 4}, 9, 3),
        ({"max_train_samples": 12, "val_split": 0.0}, 9, 0),
    ],
)
def test_limits_of_samples_and_steps_are_part_of_the_plan(changes, steps, validations, short_text):
    model, setup, *_ = short_text
    setup.update(**changes)
    assert counts(estimate_training(setup, model)) == (steps, validations)


def test_a_limit_of_validation_samples_shortens_each_validation(short_text, monkeypatch):
    model, setup, _, validation = short_text
    assert validation > 2
    seen = Rehearsed(0.0, 1.0, 0.0, 0.5, 0.0, 0.0, 0, None)
    monkeypatch.setattr(Rehearsal, "some_epochs", lambda self, progress: seen)
    whole = estimate_training(setup, model)
    setup.max_val_samples = 2
    limited = estimate_training(setup, model)
    assert (whole.validation_s, limited.validation_s) == (0.5 * validation, 1.0)


def test_a_time_limit_ends_the_estimate_too():
    estimate = Estimate(0.5, 100, 0.0, 0, 0.0, 0, "m", True, limit_s=10.0)
    assert estimate.total_s == 10.0
    assert "the time limit" in estimate.rows()["Time"]


class Paced(Callback):
    """A clock that only the training moves: a step takes 2 s, a validation 3 s for each row, a checkpoint 5 s."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now

    def on_batch_begin(self, batch_idx, trainer, logs=None):
        self.now += 2.0

    def on_evaluate_end(self, trainer, logs=None):
        self.now += 3.0 * trainer.data.num_validation

    def on_checkpoint_saved(self, path, trainer, logs=None):
        self.now += 5.0


def test_the_total_is_what_steps_validations_and_checkpoints_take(short_text, monkeypatch):
    model, setup, train, validation = short_text
    clock, original = Paced(), TrialTraining.train
    # Before the estimate's own callback, which then sees the later time.
    monkeypatch.setattr(TrialTraining, "train", lambda self, watch, **changes: original(self, clock, watch, **changes))
    estimate = estimate_training(setup, model, clock=clock)
    assert (estimate.step_s, estimate.validation_s, estimate.saving_s) == (2.0, 3.0 * validation, 5.0)
    assert estimate.total_s == pytest.approx(2.0 * 3 * -(-train // 4) + 3 * (3.0 * validation + 5.0))


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


def test_it_says_what_it_does_and_can_be_cancelled_between_steps(short_text, rng_untouched):
    model, setup, *_ = short_text
    sentences = []
    estimate_training(setup, model, Progress(sentences.append))
    assert sentences[:3] == ["Reading the data", "Looking at the free memory", "Copying the model"]
    assert {"Training step 1 of 15", "Training step 15 of 15", "Validating", "Saving a checkpoint"} <= set(sentences)
    progress = Progress(lambda sentence: progress.cancel() if sentence == "Training step 2 of 15" else heard.append(sentence))
    heard = []
    with pytest.raises(Cancelled):
        estimate_training(setup, model, progress)
    assert heard[-1] == "Training step 1 of 15"
    assert [path.name for path in Path().iterdir()] == ["my.txt"]


def test_a_cancelled_estimate_does_not_begin(short_text):
    model, setup, *_ = short_text
    progress = Progress()
    progress.cancel()
    with pytest.raises(Cancelled):
        estimate_training(setup, model, progress)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="resident memory is measured on Linux")
def test_memory_is_what_training_really_takes():
    """A model whose forward pass holds 64 MiB that no parameter and no saved tensor accounts for."""
    Path("my.txt").write_text("to be or not to be, that is the question.\n" * 60)
    sizes = {}
    for mib in (0, 64):
        model = Hoarding(mib)
        setup = SetupWizard().run(
            model=model, interactive=False, preset=None, dataset_path="my.txt", vocab_size=64, max_length=16,
            tokenizer_strategy="character",
        )  # fmt: skip
        sizes[mib] = estimate_training(setup, model).memory_bytes
    assert sizes[64] - sizes[0] > 0.9 * 64 * 2**20


class Hoarding(nn.Module):
    """Logits of the next token, and a workspace as large as is asked for."""

    def __init__(self, mib):
        super().__init__()
        self.mib = mib
        self.table = nn.Embedding(64, 64)

    def forward(self, input_ids):
        workspace = torch.ones(self.mib * 2**18)
        return self.table(input_ids) + workspace.sum() * 0


def test_what_cannot_fit_into_a_cpus_memory_is_not_tried(short_text, monkeypatch):
    model, setup, *_ = short_text
    monkeypatch.setattr(memory, "free_memory_bytes", lambda kind, index=None: 10_000)
    monkeypatch.setattr(Rehearsal, "some_epochs", lambda self, progress: pytest.fail("it was tried"))
    with pytest.raises(OutOfMemoryError, match="Not measured"):
        estimate_training(setup, model)


def test_the_table_has_the_numbers_with_their_nouns():
    estimate = Estimate(2.07, 151, 1.0, 1, 0.5, 2, "343 MiB", True)
    assert estimate.rows()["Steps"] == "151 steps × 2.07 s"
    assert estimate.rows()["Validations"] == "1 validation × 1 s"
