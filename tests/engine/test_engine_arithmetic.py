"""Losses, gradients and updates against a naive loop in double precision that is written out here."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch.utils.data import TensorDataset

from tests.kit.toys import (
    LENGTH,
    VOCAB_SIZE,
    golden_config,
    recurrent_lm,
    tiny_gpt,
    tiny_llama,
    token_rows,
    train_set,
    validation_set,
)
from utils.data.module import UniversalDataModule
from utils.data.packing import TokenBlocks, pack
from utils.training import Callback, Trainer
from utils.training.engine.compute.assembly import assemble
from utils.training.engine.compute.optim import Schedule, parameter_groups
from utils.training.engine.loss.tasks import CausalLM
from utils.training.engine.step import UPDATED, train_step

GOLDEN = [
    3.473247, 3.434201, 3.376454, 3.216708, 3.170549, 3.099134, 2.996836, 2.978371, 2.91813, 2.844708,
    2.812721, 2.77588, 2.741185, 2.691249, 2.699932, 2.68056, 2.638521, 2.633143, 2.628934, 2.609694,
]  # fmt: skip

MODELS = {"gpt2": lambda: tiny_gpt(dropout=0.0), "llama": tiny_llama, "plain": lambda: recurrent_lm(dropout=0.0)}


def naive_logits(model, ids):
    outputs = model(ids)
    return outputs if isinstance(outputs, torch.Tensor) else outputs.logits


def naive_loss(model, rows, smoothing=0.0):
    """Mean over every scored position of all rows, one row at a time, from the definition."""
    total, count = 0.0, 0
    for ids, labels in rows:
        log_probabilities = naive_logits(model, ids[None])[0].log_softmax(-1)
        scored = [position for position in range(len(ids) - 1) if labels[position + 1] != -100]
        if scored:
            rows_of_scores = log_probabilities[scored]
            right = rows_of_scores[range(len(scored)), labels[[position + 1 for position in scored]]]
            total = total - (1 - smoothing) * right.sum() - smoothing * rows_of_scores.mean(-1).sum()
            count += len(scored)
    return total / count


def ragged_rows():
    rows = token_rows(10)
    labels = rows.clone()
    for number, row in enumerate(labels):
        row[LENGTH - number :] = -100  # each row has another number of targets
    return [(row, label) for row, label in zip(rows, labels, strict=True)]


@pytest.mark.parametrize("fused", ["on", "off"])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("kind", MODELS)
def test_loss_and_gradients_of_accumulated_ragged_micro_batches(kind, smoothing, fused):
    rows = ragged_rows()
    reference = MODELS[kind]().double().eval()
    loss = naive_loss(reference, rows, smoothing)
    loss.backward()

    model = MODELS[kind]()
    config = golden_config(precision="32", learning_rate=1e-9)
    parts = assemble(
        model, CausalLM(label_smoothing=smoothing, fused=fused), config, total_steps=10
    )
    batches = [
        {"input_ids": torch.stack([r[0] for r in chunk]), "labels": torch.stack([r[1] for r in chunk])}
        for chunk in (rows[:4], rows[4:8], rows[8:])
    ]
    result = train_step(parts, batches, max_grad_norm=0.0)
    assert result.num_targets == sum(int((label[1:] != -100).sum()) for _, label in rows)
    loss_sum, _, measured_norm, outcome = result.numbers
    assert outcome == UPDATED
    assert loss_sum / result.num_targets == pytest.approx(loss.item(), rel=1e-6)
    norm = math.sqrt(sum(float(p.grad.square().sum()) for p in reference.parameters()))
    assert measured_norm == pytest.approx(norm, rel=1e-4)
    for (name, mine), theirs in zip(model.named_parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(
            mine.grad.double(), theirs.grad, rtol=2e-4, atol=2e-6, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize("fused", ["on", "off"])
@pytest.mark.parametrize("kind", MODELS)
def test_a_step_on_packed_sequences(kind, fused):
    """Sequences of any lengths, ended by 0, put together and cut by hand; every position but a block's first is scored."""
    sequences = [token_rows(1, length, seed=length)[0].tolist() for length in (3, 30, 1, 17, 9, 12)]
    stream = [token for sequence in sequences for token in [*sequence, 0]]
    by_hand = [stream[start : start + LENGTH] for start in range(0, len(stream) - LENGTH + 1, LENGTH)]
    reference = MODELS[kind]().double().eval()
    rows = [(torch.tensor(block), torch.tensor(block)) for block in by_hand]
    loss = naive_loss(reference, rows)
    loss.backward()

    model = MODELS[kind]()
    blocks = TokenBlocks(pack(sequences, LENGTH, eos_id=0))
    parts = assemble(model, CausalLM(fused=fused), golden_config(precision="32", learning_rate=1e-9), total_steps=10)
    result = train_step(parts, [blocks.take([0, 1, 2]), blocks.take([3])], max_grad_norm=0.0)
    assert len(blocks) == len(by_hand) == 4
    assert result.num_targets == 4 * (LENGTH - 1)
    assert result.numbers.loss_sum / result.num_targets == pytest.approx(loss.item(), rel=1e-6)
    for mine, theirs in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(mine.grad.double(), theirs.grad, rtol=2e-4, atol=2e-6)


OPTIMIZERS = {
    "adamw": lambda groups: torch.optim.AdamW(groups, eps=1e-8),
    "adafactor": lambda groups: torch.optim.Adafactor(groups, eps=(torch.finfo(torch.float32).eps, 1e-3)),
}


@pytest.mark.parametrize(("kind", "name"), [*((kind, "adamw") for kind in MODELS), ("gpt2", "adafactor")])
def test_a_whole_run_agrees_with_a_naive_loop(kind, name):
    """Order, accumulation, warm-up, cosine, clipping, decayed groups: everything between data and weights, over 9 steps."""
    config = golden_config(epochs=3, precision="32", optimizer=name)
    model = MODELS[kind]()
    results = Trainer(model, None, config).train(train_set(), validation_set())

    reference = MODELS[kind]().double().train()
    rows = token_rows()
    decayed = [p for p in reference.parameters() if p.dim() >= 2]
    spared = [p for p in reference.parameters() if p.dim() < 2]
    optimizer = OPTIMIZERS[name](
        [{"params": decayed, "weight_decay": 0.1}, {"params": spared, "weight_decay": 0.0}]
    )
    data = UniversalDataModule(train_set(), batch_size=4, seed=config.random_seed)
    step, losses = 0, []
    for epoch in range(3):
        order = data.order(epoch)
        weighted = 0.0
        for start in range(0, 34, 12):
            chosen = rows[order[start : start + 12]]
            rate = (
                3e-3 * (step + 1) / 3
                if step < 2
                else 3e-3 * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * (step - 2) / 6)))
            )
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.zero_grad()
            loss = naive_loss(reference, [(row, row) for row in chosen])
            loss.backward()
            norm = math.sqrt(sum(float(p.grad.square().sum()) for p in reference.parameters()))
            if norm > 0.5:
                for parameter in reference.parameters():
                    parameter.grad *= 0.5 / (norm + 1e-6)
            optimizer.step()
            weighted += loss.item() * len(chosen)
            step += 1
        losses.append(weighted / 34)
    assert results.loss_history == pytest.approx(losses, rel=1e-5)
    for (name, mine), theirs in zip(model.named_parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(
            mine.double(), theirs, rtol=1e-3, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_the_golden_curve_of_20_steps():
    """A change that touches no arithmetic leaves this curve as it is; a change that does must say so here."""
    losses = []

    class Record(Callback):
        def on_step_end(self, step, trainer, logs=None):
            losses.append(logs["train/loss"])

    config = golden_config(epochs=7, max_steps=20, precision="32")
    Trainer(tiny_gpt(dropout=0.0), None, config, callbacks=[Record()]).train(train_set(), validation_set())
    # Another CPU may sum in another order: the last digits are its own.
    assert losses == pytest.approx(GOLDEN, abs=1e-4)


def test_validation_is_scored_by_target_not_by_batch():
    rows = token_rows(9, seed=2)
    labels = rows.clone()
    labels[:8, 2:] = -100  # eight rows with one target each, and one with fifteen, alone in the last batch
    validation = [{"input_ids": row, "labels": label} for row, label in zip(rows, labels, strict=True)]
    model = tiny_gpt(dropout=0.0)
    results = Trainer(model, None, golden_config(epochs=1, precision="32")).train(train_set(), validation)
    expected = naive_loss(model.double().eval(), list(zip(rows, labels, strict=True)))
    assert results.val_loss_history[-1] == pytest.approx(expected.item(), rel=1e-5)


def test_matrices_decay_and_vectors_do_not():
    groups = parameter_groups(tiny_gpt(), 0.1)
    assert all(parameter.dim() >= 2 for parameter in groups[0]["params"])
    assert all(parameter.dim() < 2 for parameter in groups[1]["params"])
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0]


@pytest.mark.parametrize(("shape", "last"), [("cosine", 0.1), ("linear", 0.1), ("constant", 1.0), ("step", 0.1)])
def test_schedules_rise_to_the_peak_and_end_where_they_should(shape, last):
    schedule = Schedule(
        golden_config(lr_schedule=shape, learning_rate=0.01, warmup_steps=10, epochs=1), total_steps=100
    )
    rates = [schedule.at(step) for step in range(100)]
    assert all(earlier < later for earlier, later in pairwise(rates[:11]))
    assert rates[10] == pytest.approx(0.01)
    assert all(earlier >= later for earlier, later in pairwise(rates[10:]))
    assert rates[-1] == pytest.approx(0.01 * last)


def test_plateau_halves_after_three_validations_without_improvement():
    schedule = Schedule(golden_config(lr_schedule="plateau", learning_rate=0.01, warmup_steps=0), total_steps=100)
    for improved in (True, False, False):
        schedule.after_evaluation(improved)
    assert schedule.at(50) == 0.01
    schedule.after_evaluation(False)
    assert schedule.at(50) == 0.005
    for _ in range(60):
        schedule.after_evaluation(False)
    assert schedule.at(50) == pytest.approx(0.001)


def test_order_is_a_function_of_seed_and_epoch():
    first, second = (UniversalDataModule(train_set(), batch_size=4, seed=3) for _ in range(2))
    assert (first.order(2) == second.order(2)).all()
    assert sorted(first.order(0)) == list(range(34))
    assert (first.order(0) != first.order(1)).any()
    assert (first.order(0) != UniversalDataModule(train_set(), batch_size=4, seed=4).order(0)).any()


def test_every_sample_is_seen_once_an_epoch_whatever_the_batches():
    rows = TensorDataset(token_rows(34))
    for batch_size, accumulation, workers in ((4, 3, 0), (5, 1, 0), (34, 2, 0), (100, 1, 0), (4, 3, 1)):
        data = UniversalDataModule(rows, batch_size=batch_size, num_workers=workers)
        seen = [number for step in data.steps(0, 0, accumulation) for number in step.sample_ids]
        assert sorted(seen) == list(range(34))
        assert seen == data.order(0).tolist()


def test_it_learns():
    model = tiny_gpt(dropout=0.0)
    config = golden_config(epochs=30, learning_rate=1e-2, early_stopping_patience=None)
    results = Trainer(model, None, config).train(train_set(), validation_set())
    assert results.val_loss_history[-1] < 0.6 * math.log(VOCAB_SIZE)
