"""The training benchmark: contenders do the same work, useful tokens are counted rightly, and reports say what was not there."""

from __future__ import annotations

import dataclasses
import json
import threading
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import contenders, machine
from benchmarks.children import ChildError, call
from benchmarks.contenders import CONTENDERS, Contender, split
from benchmarks.growth import Point, growth_table, points, write_blocks
from benchmarks.handwritten import packed
from benchmarks.jobs import Counted, Job, count_targets, padded
from benchmarks.learning import EVERY, learning_table, reached, validation_loss
from benchmarks.memory import memory_table
from benchmarks.options import Options, on_gpu, quick
from benchmarks.overhead import overhead_table
from benchmarks.report import Spread, Table, ratios, write_section
from benchmarks.throughput import Entry, check_same, measure, stage_of, throughput_table
from benchmarks.training import arguments, body_of
from benchmarks.turns import ContenderError, Lap, Stage, Turn
from benchmarks.workload import Sizes, Workload, build, read_lines, wikitext_like

# The frameworks' advice to their users, and deprecations among themselves.
pytestmark = pytest.mark.filterwarnings("ignore")

TOY = Sizes(layers=1, width=16, heads=2, length=16, batch=4, vocab=300)
PRESENT, _ = split(CONTENDERS)


@pytest.fixture(scope="module")
def workload() -> Workload:
    return build(read_lines(None)[:60], TOY)


# ---- the same work ----


def test_every_contender_has_the_losses_of_its_kind(workload, tmp_path):
    entries = [Entry(name, "32") for name in PRESENT if not CONTENDERS[name].compiles]
    losses = check_same(entries, TOY, workload, "cpu", str(tmp_path))
    assert {"trainbook 32", "same-work 32", "hand-packed 32", "hand-dynamic 32", "lightning 32"} <= set(losses)
    for own in losses.values():
        assert own[0] > own[1] > own[2], "three steps on one batch: it is being learned"


def test_half_precision_contenders_are_near_each_other_and_not_fp32(workload, tmp_path):
    entries = [Entry(name, precision) for precision in ("32", "bf16") for name in ("hand-packed", "trainbook")]
    losses = check_same(entries, TOY, workload, "cpu", str(tmp_path))
    assert losses["trainbook bf16"][0] != losses["trainbook 32"][0]


def _easier(job: Job, model: Any, turn: Turn) -> None:
    """A cheat: its text is one token, over and over."""
    job.workload.blocks = np.ones_like(job.workload.blocks)
    packed(job, model, turn)


def _twice_the_rate(job: Job, model: Any, turn: Turn) -> None:
    """Another cheat: its first loss is right, then it takes larger steps."""
    packed(dataclasses.replace(job, learning_rate=2 * job.learning_rate), model, turn)


@pytest.mark.parametrize("cheat", [_easier, _twice_the_rate])
def test_who_computes_something_else_is_refused(cheat, workload, tmp_path, monkeypatch):
    monkeypatch.setitem(contenders.CONTENDERS, "cheat", Contender("a cheat", True, cheat))
    with pytest.raises(ContenderError, match="cheat 32 has loss .* cannot be compared"):
        check_same([Entry("hand-packed", "32"), Entry("cheat", "32")], TOY, workload, "cpu", str(tmp_path))


# ---- useful tokens ----


def test_padding_and_first_tokens_are_not_useful():
    batch = padded([np.array([5, 6, 7], dtype=np.int32), np.array([8, 9], dtype=np.int32)], pad_id=0, length=6)
    assert batch["input_ids"].shape == (2, 6)
    assert batch["attention_mask"].sum() == 5
    assert count_targets(batch["labels"]) == 2 + 1


def test_each_batch_keeps_its_count_when_a_loader_fetches_ahead():
    collate = Counted(lambda lines: padded(lines, 0))
    for length in (3, 5, 2):
        collate([np.arange(length, dtype=np.int32)])
    assert [collate.next_count() for _ in range(3)] == [2, 4, 1]


@pytest.mark.parametrize("name", PRESENT)
def test_contenders_report_the_tokens_that_count(name, workload, tmp_path):
    if CONTENDERS[name].compiles:
        pytest.skip("compiling changes no count")
    one_batch = workload.first(TOY.batch)
    with stage_of([Entry(name, "32")], TOY, one_batch, "cpu", str(tmp_path), steps=2) as stage:
        first, second = stage.turn(f"{name} 32"), stage.turn(f"{name} 32")
    expected = sum(len(line) - 1 for line in one_batch.lines)
    if CONTENDERS[name].packed:
        expected = TOY.batch * (TOY.length - 1)
    assert (first.useful, second.useful) == (expected, 2 * expected)


def test_both_forms_of_the_text_hold_the_same_tokens():
    sizes = dataclasses.replace(TOY, length=100, batch=1)
    workload = build([f"{number} rows of {number**2} and {number**3}" for number in range(200)], sizes)
    in_lines = np.concatenate(workload.lines)
    assert max(map(len, workload.lines)) < sizes.length, "nothing is cut here"
    np.testing.assert_array_equal(in_lines[: workload.blocks.size], workload.blocks.ravel())
    assert all(line[-1] == workload.eos_id for line in workload.lines)


def test_lines_are_the_text_in_lengths_like_wikitexts():
    text = " ".join(f"w{number}" for number in range(50_000))
    lines = wikitext_like(text)
    assert " ".join(lines) == text
    lengths = [len(line.split()) for line in lines]
    assert 80 < np.mean(lengths) < 115
    assert 60 < np.median(lengths) < 90


def test_a_workload_comes_back_from_its_file(workload, tmp_path):
    workload.save(tmp_path / "text.npz")
    loaded = Workload.load(tmp_path / "text.npz")
    np.testing.assert_array_equal(loaded.blocks, workload.blocks)
    assert [line.tolist() for line in loaded.lines] == [line.tolist() for line in workload.lines]
    assert (loaded.pad_id, loaded.eos_id) == (workload.pad_id, workload.eos_id)


def test_only_whole_batches_and_as_many_as_asked_for(workload):
    for rows in (0, 1, 1000):
        longer = workload.repeated(rows)
        for data in (longer.lines, longer.blocks):
            assert len(data) >= rows
            assert len(data) % TOY.batch == 0
            assert len(data) > 0


# ---- turns ----


def test_exactly_one_contender_works_at_any_moment():
    working: list[str] = []
    order: list[str] = []

    def contender(name: str):
        def run(turn: Turn) -> None:
            while True:
                working.append(name)
                order.append(name)
                assert working == [name]
                working.remove(name)
                if not turn.done(1):
                    return

        return run

    with Stage({name: contender(name) for name in "abc"}) as stage:
        laps = stage.rounds(3, warmup=1)
    # The last of each: told to stop, it finished its step.
    assert sorted(order[:3]) == ["a", "b", "c"]
    assert order[3:12] == ["a", "b", "c", "b", "c", "a", "c", "a", "b"], "who begins changes from round to round"
    assert {name: [lap.useful for lap in own] for name, own in laps.items()} == {name: [1, 1, 1] for name in "abc"}
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("contender")]


def test_the_first_turn_is_one_step_and_the_others_are_whole_laps():
    def run(turn: Turn) -> None:
        while turn.done(10, loss=2.5):
            pass

    with Stage({"one": run}, steps=4, wants_loss=True) as stage:
        assert [stage.turn("one").useful for _ in range(3)] == [10, 40, 40]


def test_a_failing_contender_is_named_and_nothing_is_left():
    def fails(turn: Turn) -> None:
        turn.done(1)
        raise ValueError("out of paint")

    with Stage({"painter": fails}) as stage:
        stage.turn("painter")
        with pytest.raises(ContenderError, match="painter failed: ValueError: out of paint"):
            stage.turn("painter")


def test_a_contender_that_ends_early_is_named():
    with Stage({"short": lambda turn: None}) as stage:
        for _ in range(2):
            with pytest.raises(ContenderError, match="short ended by itself"):
                stage.turn("short")


# ---- who is missing ----


def test_what_is_not_installed_is_named_in_every_table(monkeypatch):
    monkeypatch.setattr(contenders, "installed", lambda module: module != "accelerate")
    present, missing = split(("hand-packed", "hf", "trainbook"))
    assert present == ["hand-packed", "trainbook"]
    assert missing == {CONTENDERS["hf"].label: "accelerate not installed"}
    laps = {"hand-packed 32": [Lap(2.0, 100)], "trainbook 32": [Lap(1.0, 100)]}
    labels = {key: key for key in laps}
    tables = [
        throughput_table("t", laps, labels, missing, 1),
        overhead_table("t", {"hand-packed 32": [1.0], "trainbook 32": [2.0]}, missing),
        memory_table("t", {Entry("hand-packed", "32"): 10.0}, {Entry("hand-packed", "32"): 5.0}, missing),
        learning_table("t", {"hand-packed 32": [(1.0, 3.0)]}, 3.0, labels, missing),
    ]
    for table in tables:
        text = table.markdown(everything=True)
        assert "HF Trainer, its LM collator (what users run): not measured (accelerate not installed)" in text
        assert len({len(row) for row in [table.columns, *table.rows]}) == 1
    assert "2.00 (2.00 to 2.00)" in tables[0].markdown(everything=False)


# ---- figures ----


def test_ratios_are_taken_round_by_round():
    # Both are twice as slow in the second round; the ratio is not.
    assert ratios([2.0, 4.0, 2.0], [1.0, 2.0, 1.0]) == Spread(2.0, 2.0, 2.0)
    assert Spread.of([1, 2, 3, 4, 100]) == Spread(3.0, 2.0, 4.0)


def test_measure_returns_a_lap_for_each_round(workload, tmp_path):
    workload.save(tmp_path / "text.npz")
    entries = [["hand-packed", "32"], ["trainbook", "32"]]
    found = measure(entries, vars(TOY), str(tmp_path / "text.npz"), "cpu", steps=2, rounds=3, warmup=1)
    assert {key: len(laps) for key, laps in found["laps"].items()} == {"hand-packed 32": 3, "trainbook 32": 3}
    for laps in found["laps"].values():
        assert all(seconds > 0 and useful == 2 * TOY.batch * (TOY.length - 1) for seconds, useful in laps)
    json.dumps(found)


def test_flops_a_token_count_what_is_multiplied():
    model = TOY.model()
    width, vocab = TOY.width, TOY.vocab
    blocks = 12 * width**2 + 13 * width  # GPT-2's layer: weights, biases and two norms
    multiplied = TOY.layers * blocks + 2 * width + vocab * width  # the final norm, and the tied output layer once
    found = machine.flops_per_token(model, TOY.layers, width, TOY.length)
    assert found == 6 * multiplied + 12 * TOY.layers * width * TOY.length


def test_no_peak_is_guessed():
    assert machine.peak_tflops("NVIDIA H200", "bf16") == 989
    assert machine.peak_tflops("NVIDIA GeForce GTX 1080", "bf16") is None
    assert machine.peak_tflops("Tesla T4", "bf16") is None


def test_memory_is_what_was_taken_since_the_start():
    meter = machine.MemoryMeter("cpu")
    before = meter.peak_mib()
    taken = torch.ones(64 << 18)  # 64 MiB, written to
    assert meter.peak_mib() - before > 56
    del taken
    assert meter.peak_mib() - before > 56, "the peak stays"


def test_time_to_a_loss_lies_between_two_looks():
    curve = [(1.0, 6.0), (2.0, 5.0), (3.0, 4.0)]
    assert reached(curve, 4.5) == (2.5, 1 + round(2.5 * EVERY))
    assert reached(curve, 6.5) == (1.0, 1 + EVERY)
    assert reached(curve, 3.0) is None


def test_the_validation_loss_is_the_mean_over_targets_and_keeps_the_mode(workload):
    model = TOY.model().train()
    ids = torch.from_numpy(workload.validation).long()
    with torch.no_grad():
        expected = float(model(input_ids=ids, labels=ids).loss)
    assert validation_loss(model, workload, "cpu", batch=3) == pytest.approx(expected, rel=1e-5)
    assert model.training


def test_growth_is_told_against_the_first_of_each_size(tmp_path):
    wide = [Point("width", factor, "", TOY) for factor in (1, 4)]
    figures = [{"step_s": 1.0, "peak_mib": 10.0, "first_s": 1.0}, {"step_s": 16.0, "peak_mib": 20.0, "first_s": 3.0}]
    table = growth_table("t", [(point, "", own) for point, own in zip(wide, figures, strict=True)])
    assert table.rows[1] == ["width", "", "4", "16.00", "2.00", "20", "2.00", "3.00"]
    blocks = np.arange(12, dtype=np.int32).reshape(3, 4)
    assert write_blocks(tmp_path / "blocks.npy", blocks, 2) == 24
    assert np.load(tmp_path / "blocks.npy").tolist() == blocks.tolist() * 2


def test_sizes_grow_one_at_a_time(tmp_path):
    options = Options(["text"], tmp_path, sizes=TOY)
    for point in points(options):
        changed = {name for name, value in vars(point.sizes).items() if value != vars(TOY)[name]}
        allowed = {"width": {"width"}, "vocabulary": {"vocab"}, "corpus, tokens": set()}.get(
            point.name, {"length", "batch"}
        )
        assert changed <= allowed
        assert point.sizes.width % point.sizes.heads == 0


def test_a_quick_look_says_so_and_is_small(tmp_path):
    options = quick(on_gpu(Options(["text"], tmp_path, rounds=30)))
    assert options.rounds < 30
    assert options.sizes.layers < Sizes().layers
    assert "not to be quoted" in options.size_note


# ---- reports ----

OLD = "# Results\n\nPreface.\n\n## Live view\n\nold | table\n\n## Training: growth\n\nstale\n\n### Part\n\nstale too\n\n## Last\n\nkept\n"


def test_the_writer_replaces_its_section_and_keeps_the_others(tmp_path):
    path = tmp_path / "RESULTS.md"
    path.write_text(OLD, encoding="utf-8")
    write_section(path, "Training: growth", "new\n\n### Other\n\nrows \\1 | \\g<0>")
    text = path.read_text(encoding="utf-8")
    assert "stale" not in text
    assert text.startswith(OLD[: OLD.index("stale")])
    assert text.endswith("new\n\n### Other\n\nrows \\1 | \\g<0>\n\n## Last\n\nkept\n")
    write_section(path, "Training: growth", "new\n\n### Other\n\nrows \\1 | \\g<0>")
    assert path.read_text(encoding="utf-8") == text, "writing twice changes nothing"


def test_the_writer_appends_a_new_section(tmp_path):
    path = tmp_path / "RESULTS.md"
    path.write_text(OLD, encoding="utf-8")
    write_section(path, "Training", "new")
    assert path.read_text(encoding="utf-8") == OLD + "\n## Training\n\nnew\n"


def test_absolute_figures_of_a_processor_are_printed_but_not_kept():
    table = Table("T", ["who", "ratio", "tokens/s"], [["a", "1.00", "123"]], ["A note."], frozenset({"tokens/s"}))
    kept, printed = body_of([table], "a machine", "a command", False), body_of([table], "a machine", "a command", True)
    assert "123" not in kept
    assert "tokens/s" not in kept
    assert "123" in printed
    assert kept.startswith("`a command`, 20")
    assert "on a machine" in kept
    assert "A note." in kept
    widths = {len(line) for line in kept.splitlines() if line.startswith("|")}
    assert len(widths) == 1


# ---- the command ----


def test_a_measurement_runs_in_a_process_of_its_own():
    assert call("benchmarks.machine:device_name", device="cpu") == machine.device_name("cpu")
    with pytest.raises(ChildError, match=r"benchmarks\.machine:device_name failed:(.|\n)*unexpected keyword"):
        call("benchmarks.machine:device_name", colour="red")


@pytest.mark.parametrize("wrong", [["--rounds", "0"], ["--sections", "speed"], ["--device", "tpu"]])
def test_bad_arguments_are_refused(wrong, capsys):
    with pytest.raises(SystemExit):
        arguments().parse_args(wrong)
    assert wrong[0] in capsys.readouterr().err
