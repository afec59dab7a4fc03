"""The comparison of optimizers over architectures: the same start for all, rates chosen alike, and tables of differences."""

from __future__ import annotations

import pytest
import torch

from benchmarks import default_optimizer, starter
from benchmarks.default_optimizer import Measured, Outcome, against, main, row
from benchmarks.default_tasks import CELLS, VOCAB
from benchmarks.kept import Kept

GPT = next(cell for cell in CELLS if cell.task == "causal LM")


def test_each_architecture_learns_a_task_and_has_other_weights_with_another_seed():
    assert len({cell.name.partition(":")[0] for cell in CELLS}) >= 10
    assert len({cell.task for cell in CELLS}) >= 3
    for cell in CELLS:
        weights = []
        for seed in (0, 1, 1):
            torch.manual_seed(seed)
            weights.append(torch.cat([parameter.detach().flatten() for parameter in cell.make().parameters()]))
        assert not torch.equal(weights[0], weights[1]), cell.name
        assert torch.equal(weights[1], weights[2]), cell.name


@pytest.mark.parametrize("cell", {cell.task: cell for cell in CELLS}.values(), ids=lambda cell: cell.task)
def test_what_is_held_out_is_not_trained_on(cell):
    training, validation = cell.split()
    name = next(name for name in training[0] if name != "labels")
    seen = {tuple(sample[name].flatten().tolist()) for sample in training}
    repeated = sum(tuple(sample[name].flatten().tolist()) in seen for sample in validation)
    assert repeated <= len(validation) / 20  # the text repeats itself here and there
    if name == "input_ids":
        assert 0 <= int(training[0][name].min()) <= int(training[0][name].max()) < VOCAB
    if cell.spec.num_classes:
        counts = torch.bincount(
            torch.tensor([sample["labels"] for sample in training]), minlength=cell.spec.num_classes
        )
        assert counts.min() > 0
        assert counts.max() < 0.8 * counts.sum()


def pretended(losses, monkeypatch, matrices=100):
    """What `row` makes of `losses`: (optimizer, rate) -> loss, to which the seed is added; Muon's steps take three times as long."""
    asked = []

    def train(cell, optimizer, rate, seed, steps):
        asked.append((optimizer, rate, seed))
        return Outcome(losses[optimizer, rate] + seed, 3.0 if optimizer == "muon" else 1.0, matrices)

    monkeypatch.setattr(default_optimizer, "train", train)
    found = row(Measured(GPT, 10, Kept(None)), default_optimizer.RATES, 3)
    assert len(asked) == len(set(asked)), "each training is done once"
    return found, asked


def test_the_row_compares_at_the_presets_rate_and_at_the_best_of_each(monkeypatch):
    losses = {("adamw", 1e-3): 3.0, ("adamw", 3e-3): 2.5, ("adamw", 1e-2): 2.7}
    losses |= {("muon", 1e-3): 2.9, ("muon", 3e-3): 3.25, ("muon", 1e-2): 2.0}
    found, asked = pretended(losses, monkeypatch)
    assert found[2:] == ["4.000 ± 1.000", "-0.100", "+0.250", "0.003: 3.500 ± 1.000", "0.01: -0.500", "3.00"]
    assert ("adamw", 1e-2, 1) not in asked  # the first seed alone chooses


def test_a_model_without_matrices_for_muon_is_compared_at_other_rates_of_adamw(monkeypatch):
    losses = {("adamw", 1e-3): 3.0, ("adamw", 3e-3): 2.5, ("adamw", 1e-2): 2.7}
    found, asked = pretended(losses, monkeypatch, matrices=0)
    assert found[3:] == ["+0.000", "-0.500", "0.003: 3.500 ± 1.000", "", "no matrices"]
    assert {optimizer for optimizer, _, _ in asked} == {"adamw"}


def test_differences_are_tested_seed_by_seed():
    assert against([1.0, 5.0, 9.0], [1.1, 5.12, 9.09]).startswith("-0.103, p = 0.00")


def test_a_quick_run_trains_and_continues_from_what_was_kept(tmp_path, capsys, monkeypatch):
    command = ["--quick", "--keep", str(tmp_path / "kept.jsonl")]
    assert main(command) == 0
    table = capsys.readouterr().out.rpartition("### ")[2]
    assert "| MLP: SELU" in table
    monkeypatch.setattr(default_optimizer, "train", lambda *_: pytest.fail("trained again"))
    assert main(command) == 0
    assert capsys.readouterr().out.rpartition("### ")[2] == table


def test_the_starters_contenders_differ_from_the_reference_as_the_table_says():
    def runs(*losses):
        return [
            {"loss": x, "averaged": {"last 10%": x - 0.1 - x / 100}, "step_s": x, "run_s": 2.0, "steps": 4}
            for x in losses
        ]

    compared, averages = starter.tables({"a": runs(5.0, 6.0), "b": runs(2.5, 3.0)})
    assert compared.rows[1][2:4] == ["2.500, 3.000", "-2.750"]
    assert compared.rows[1][5:] == ["0.50", "1.00"]
    assert averages.rows[0][:3] == ["a", "last 10%", "-0.1500, -0.1600"]
