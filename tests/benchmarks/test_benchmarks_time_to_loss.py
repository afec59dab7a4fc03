"""The comparison of whole recipes: same start, right counts of steps, a paired test, and ratios only where the target was reached."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from benchmarks.rivals import CONTENDERS, REFERENCE
from benchmarks.time_to_loss import TOY, Curve, comparison, main, paired_p, prepare, train


@pytest.fixture(scope="module")
def race(tmp_path_factory):
    text = tmp_path_factory.mktemp("text") / "text.txt"
    text.write_text("".join(f"{number} and {number * number}. " for number in range(400)))
    return prepare(str(text), TOY, most_blocks=8)


def test_this_engine_learns_what_the_hand_written_loop_does(race):
    names = [REFERENCE, "adamw", "muon", "nanogpt"]
    assert all(CONTENDERS[name].missing() is None for name in names)
    curves = train(race, dict.fromkeys(names, 3e-3), 0, dict.fromkeys(names, 9), every=4)
    assert all(curve.steps == [5, 9] and len(curve.seconds) == 2 for curve in curves.values())
    start = race.validation_loss(race.sizes.model(0))
    assert all(curve.losses[-1] < start for curve in curves.values())
    # The same recipe in another order of the samples.
    assert curves["adamw"].losses[-1] == pytest.approx(curves[REFERENCE].losses[-1], rel=0.05)


def test_the_score_is_the_mean_over_the_targets_and_leaves_the_model_alone(race):
    model = race.sizes.model(0).train()
    with torch.no_grad():
        rows = torch.from_numpy(race.validation.astype(np.int64))
        expected = float(model(input_ids=rows, labels=rows).loss)
    assert race.validation_loss(model) == pytest.approx(expected, rel=1e-5)
    assert model.training
    assert race.bits_per_byte(np.log(2)) == pytest.approx(1, rel=0.1)  # characters of one byte


def test_the_table_compares_seed_by_seed():
    def runs(*at):
        # Loss 1 from step `at` on; a step takes a second.
        return [Curve([10, 20, 30, 40], [1.0 if step >= n else 2.0 for step in (10, 20, 30, 40)], [10, 20, 30, 40]) for n in at]

    curves = {REFERENCE: runs(20, 40, 40), "muon": runs(10, 20, 99), "hf": runs(99, 99, 99)}
    rows = comparison("t", curves, dict.fromkeys(curves, 1e-3), target=1.5).rows
    assert rows[0][2] == "20, 40, 40"
    assert rows[1][2:4] == ["10, 20, not reached", "0.50"]  # no p-value of equal differences
    assert rows[2][2:4] == ["not reached, not reached, not reached", "—"]
    assert rows[1][-1] == "0.50"


def test_the_paired_test_sees_what_is_the_same_in_every_pair():
    first = [1.0, 5.0, 9.0, 2.0, 7.0]
    assert paired_p([value - d for value, d in zip(first, (0.1, 0.12, 0.09, 0.11, 0.1), strict=True)], first) < 0.001
    assert paired_p([value + d for value, d in zip(first, (0.1, -0.1, 0.2, -0.2, 0.05), strict=True)], first) > 0.5
    assert paired_p([1.0], [2.0]) is None


def test_a_quick_run_makes_both_tables_and_goes_on_with_what_was_kept(tmp_path, capsys, monkeypatch):
    command = ["--quick", "--only", REFERENCE, "--keep", str(tmp_path / "kept.jsonl")]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "steps: " in printed
    assert "### To " in printed
    assert "Learning rates tried" in printed
    lines = (tmp_path / "kept.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "kept.jsonl").write_text("".join(lines[:-1]))
    again = []
    monkeypatch.setattr(
        "benchmarks.time_to_loss.train", lambda race, entries, seed, *rest: again.append(seed) or train(race, entries, seed, *rest)
    )
    assert main(command) == 0
    assert again == [1]  # the seed that was missing
    losses = [line for line in printed.splitlines() if line.startswith(("hand-written, ", "seed "))]
    assert [line for line in capsys.readouterr().out.splitlines() if line.startswith(("hand-written, ", "seed "))] == losses
