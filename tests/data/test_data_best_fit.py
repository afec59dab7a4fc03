"""Best-fit packing: only documents longer than a block are cut, padding is neither scored nor seen, epochs and resumes are exact."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from tests.data.test_data_documents import EOS, TEXTS, StopAt, T, documents, flat, train
from tests.kit.toys import assert_same_run, plain_lm, tiny_gpt
from utils.data import UniversalDataModule, prepare_data, prepare_text, preview_batch
from utils.data.best_fit import best_fit
from utils.data.documents import DocumentBlocks, PackingSettings, make_blocks
from utils.data.mixed_examples import MixedExamples
from utils.data.mixture import num_targets
from utils.errors import ConfigError
from utils.training.coordinator import TrainingCoordinator
from utils.ui import SetupConfig
from utils.ui.wizard_preview import preview_data

LENGTHS = st.lists(st.integers(1, 25), min_size=9, max_size=60)


def one_by_one(lengths, capacity):
    """Best-fit decreasing by its definition: each item to the fullest row that has room."""
    rooms, rows = [], {}
    for item in sorted(range(len(lengths)), key=lambda number: (-lengths[number], number)):
        fitting = [row for row, room in enumerate(rooms) if room >= lengths[item]]
        if not fitting:
            rooms.append(capacity)
            fitting = [len(rooms) - 1]
        rows[item] = row = min(fitting, key=lambda number: rooms[number])
        rooms[row] -= lengths[item]
    return rows, rooms


@given(st.lists(st.integers(1, 12), max_size=50))
def test_items_are_placed_as_one_by_one(lengths):
    order, rows = best_fit(lengths, 12)
    _, rooms = one_by_one(lengths, 12)
    assert order.tolist() == sorted(range(len(lengths)), key=lambda number: (-lengths[number], number))
    filled = np.bincount(rows, weights=np.array(lengths, dtype=float)[order], minlength=len(rooms))
    assert sorted(filled.tolist()) == sorted(12 - room for room in rooms)


def pieces_of(lengths):
    """Documents as (number of the document, first token of the piece, tokens)."""
    return [(number, at, min(T, length - at)) for number, length in enumerate(lengths) for at in range(0, length, T)]


def numbered(lengths):
    """Documents in which each token says which one it is: no two ids are equal but the ends."""
    ids, parts = 1000, []
    for length in lengths:
        parts.append(np.append(np.arange(ids, ids + length - 1), EOS).astype(np.int32))
        ids += length
    return parts


@settings(deadline=None)
@given(LENGTHS, st.booleans(), st.booleans(), st.integers(0, 5))
def test_every_token_is_once_in_a_row_and_no_document_that_fits_is_cut(lengths, shuffle, masks, seed):
    parts = numbered(lengths)
    blocks = DocumentBlocks(flat(parts), T, EOS, shuffle=shuffle, masks=masks, packing="best_fit")
    num_rows = len(blocks)
    blocks.begin_epoch(seed)
    batch, real = blocks.take(range(num_rows)), blocks.attention_mask(range(num_rows)).bool()
    assert len(blocks) == num_rows == len(one_by_one([piece[2] for piece in pieces_of(lengths)], T)[1])
    assert sorted(batch["input_ids"][real].tolist()) == sorted(flat(parts).tolist())
    assert blocks.num_tokens == int(real.sum())
    assert blocks.num_padding == int((~real).sum())
    expected = {tuple(parts[number][at : at + size].tolist()) for number, at, size in pieces_of(lengths)}
    for row, mask, labels, positions in zip(
        batch["input_ids"].tolist(), real.tolist(), batch["labels"].tolist(),
        batch.get("position_ids", torch.arange(T).expand(num_rows, T)).tolist(), strict=True,
    ):  # fmt: skip
        used = sum(mask)
        assert mask == [True] * used + [False] * (T - used)
        at = 0
        while at < used:
            # The longest piece that stands here: one that ends with the block, or with the end of its document.
            size = next(n for n in range(used - at, 0, -1) if tuple(row[at : at + n]) in expected)
            first = masks or at == 0
            wanted = row[at : at + size]
            assert labels[at : at + size] == ([-100, *wanted[1:]] if masks else wanted)
            if masks:
                assert positions[at : at + size] == list(range(size))
            assert first or labels[at] == row[at]
            at += size
        assert labels[used:] == [-100] * (T - used)
        assert set(row[used:]) <= {EOS}
        if masks:
            assert positions[used:] == list(range(T - used))


def test_epochs_have_other_companions_and_a_seed_gives_the_same_again():
    blocks = DocumentBlocks(flat(documents(60)), T, EOS, shuffle=True, packing="best_fit")
    seen = []
    for seed in (1, 2, 1):
        blocks.begin_epoch(seed)
        seen.append(sorted(blocks.take(range(len(blocks)))["input_ids"].tolist()))
    assert seen[0] == seen[2] != seen[1]
    fixed = DocumentBlocks(flat(documents(60)), T, EOS, packing="best_fit")
    fixed.begin_epoch(1)
    np.testing.assert_array_equal(fixed.take(range(len(fixed)))["input_ids"], fixed.blocks)


@pytest.mark.parametrize("masks", [False, True])
def test_the_loss_is_that_of_the_rows_without_padding(masks):
    blocks = DocumentBlocks(flat(documents()), T, EOS, masks=masks, packing="best_fit")
    assert blocks.num_padding > 0
    model, total, count = tiny_gpt(dropout=0.0), 0.0, 0
    for row, mask in zip(blocks.blocks.astype(np.int64), blocks.attention_mask(range(len(blocks))).numpy(), strict=True):
        used = row[mask == 1]
        for piece in np.split(used, np.flatnonzero(used == EOS) + 1) if masks else [used]:
            if len(piece) > 1:
                ids = torch.from_numpy(piece)[None]
                with torch.no_grad():
                    total += float(F.cross_entropy(model(input_ids=ids).logits[0, :-1], ids[0, 1:], reduction="sum"))
                count += len(piece) - 1
    options = {"epochs": 1, "warmup_steps": 0, "batch_size": len(blocks), "gradient_accumulation_steps": 1}
    results = train(model, blocks, learning_rate=1e-9, **options)
    assert results.state.targets_done == count
    assert results.loss_history[0] == pytest.approx(total / count, rel=1e-5)


def test_resume_within_an_epoch_is_exact():
    def data():
        return DocumentBlocks(flat(documents(60)), T, EOS, shuffle=True, packing="best_fit")

    whole = train(plain_lm(), data(), epochs=2, run_name="whole")
    stop = whole.steps // 2 + whole.steps // 4
    train(plain_lm(), data(), epochs=2, run_name="stopped", callbacks=[StopAt(stop)])
    assert_same_run(whole, train(plain_lm(seed=9), data(), epochs=2, run_name="stopped", resume_from="auto"))


def test_each_process_trains_on_its_rows_and_a_limit_takes_the_first():
    blocks = DocumentBlocks(flat(documents(60)), T, EOS, packing="best_fit")
    parts = []
    for rank in (0, 1):
        module = UniversalDataModule(blocks, batch_size=4, seed=3)
        module.share = (rank, 2)
        parts.append([batch for step in module.steps(0, 0, 1) for batch in step.micro_batches])
    rows = torch.cat([batch["input_ids"] for part in parts for batch in part])
    assert sorted(rows.tolist()) == sorted(blocks.blocks.tolist())
    few = UniversalDataModule(blocks, batch_size=4, max_train_samples=5)
    assert few.num_steps(1) == 2
    with pytest.raises(ConfigError, match="max_train_samples=4 .* shuffle_documents=False"):
        UniversalDataModule(
            DocumentBlocks(flat(documents(60)), T, EOS, shuffle=True, packing="best_fit"), max_train_samples=4
        )


def test_a_mask_is_there_for_objectives_that_attend_in_both_directions():
    blocks = DocumentBlocks(flat(documents()), T, EOS, packing="best_fit")
    number = int((blocks.attention_mask(range(len(blocks))).sum(1) < T).nonzero()[0])
    assert torch.equal(blocks[number]["attention_mask"], blocks.attention_mask([number])[0])
    assert "attention_mask" not in blocks.take([number])
    seen = []

    def collate(samples):
        seen.extend(samples)
        return {name: torch.stack([sample[name] for sample in samples]) for name in samples[0]}

    shuffled = DocumentBlocks(flat(documents(60)), T, EOS, shuffle=True, packing="best_fit")
    module = UniversalDataModule(shuffled, batch_size=4, data_collator=collate, seed=3)
    first, second = ([step.micro_batches[0]["input_ids"].tolist() for step in module.steps(epoch, 0, 1)] for epoch in (0, 1))
    assert sorted(map(str, first)) != sorted(map(str, second))
    assert all("attention_mask" in sample for sample in seen)


def test_the_digest_tells_packings_apart():
    ids = flat(documents())
    digests = {DocumentBlocks(ids, T, EOS, packing=packing).digest() for packing in ("concatenate", "best_fit")}
    assert len(digests) == 2
    moved = DocumentBlocks(ids, T, EOS, shuffle=True, packing="best_fit")
    before = moved.digest()
    moved.begin_epoch(3)
    assert moved.digest() == before


def test_mixtures_count_and_collate_padded_blocks_without_a_mask():
    padded, full = (DocumentBlocks(flat(documents()), T, EOS, packing=packing) for packing in ("best_fit", "concatenate"))
    mixed = MixedExamples({"padded": padded, "full": full})
    batch = mixed.take([0, len(padded), len(padded) - 1])
    assert sorted(batch) == ["input_ids", "labels"]
    assert num_targets(padded) == int((padded.take(range(len(padded)))["labels"][:, 1:] != -100).sum())


@pytest.fixture(scope="module")
def prepared():
    return prepare_text(TEXTS, vocab_size=300, block_size=32, packing="best_fit")


def test_the_report_and_the_previews_show_padding(prepared):
    report, plain = prepared.report, prepare_text(TEXTS, vocab_size=300, block_size=32).report
    assert report.padding_tokens == prepared.train.num_padding > 0
    assert report.num_train_tokens + report.padding_tokens == report.num_train_blocks * 32
    assert report.rows()["Padding"].endswith("of the positions of the training blocks")
    assert "Padding" not in plain.rows()
    assert any(f"filled up on the right with {prepared.tokenizer.eos_token}" in note for note in report.notes)
    assert report.num_validation_blocks == plain.num_validation_blocks
    assert prepared.validation.num_padding == 0
    numbers = range(len(prepared.train))
    for sample, mask in zip(preview_batch(prepared, 8), prepared.train.attention_mask(numbers), strict=False):
        assert [token.attended for token in sample.tokens] == mask.bool().tolist()
    setup = SetupConfig(packing="best_fit", vocab_size=300, max_length=64)
    shown = [tokens for _, tokens in preview_data(setup).blocks]
    assert len(shown) == 3
    masks = prepare_data(setup).train.attention_mask(range(3))
    for tokens, mask in zip(shown, masks, strict=True):
        padding = int((mask == 0).sum())
        assert tokens.endswith(f"| … {padding} positions of padding") if padding else "padding" not in tokens


def test_the_setting_reaches_the_blocks_and_is_recorded(tmp_path):
    setup = SetupConfig(packing="best_fit", vocab_size=300, max_length=16)
    assert setup.to_dict()["packing"] == "best_fit"
    assert "packing" not in SetupConfig().to_dict()
    results = TrainingCoordinator(output_dir=str(tmp_path)).train(
        tiny_gpt(vocab_size=300), TEXTS, max_length=16, max_epochs=1, max_steps=1, packing="best_fit"
    )
    assert results.trainer.data.train.packing == "best_fit"
    assert json.loads((results.trainer.run_dir / "data.json").read_text())["arguments"]["packing"] == "best_fit"


def test_what_cannot_be_done_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="packing: the tokenizer has no end-of-text token"):
        make_blocks(flat(documents()), T, None, PackingSettings("best_fit"))
    with pytest.raises(ConfigError, match="got 'bestfit'; must be one of concatenate, best_fit; did you mean 'best_fit'"):
        prepare_text(TEXTS, vocab_size=300, block_size=16, packing="bestfit")
    with pytest.raises(ConfigError, match="packing .*must be one of concatenate, best_fit"):
        TrainingCoordinator().train(tiny_gpt(vocab_size=300), TEXTS, packing="tight")
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(f'{{"prompt": "after {number}", "completion": "{number + 1}"}}\n' for number in range(40)))
    setup = SetupConfig(dataset_path=str(rows), packing="best_fit", vocab_size=300, max_length=64)
    with pytest.raises(ConfigError, match="packing: got 'best_fit', but the data are rows with answers"):
        prepare_data(setup)
    with pytest.raises(ConfigError, match="packing: got 'best_fit' with a mixture"):
        prepare_data(SetupConfig(mixture=[{"path": str(rows)}, {"path": str(rows), "name": "b"}], packing="best_fit"))
