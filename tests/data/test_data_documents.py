"""Documents in blocks: another order in each epoch before packing, exactly resumed; kept apart by positions where that is asked."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from tests.kit.toys import assert_same_run, golden_config, plain_lm, tiny_gpt
from utils.data import TokenBlocks, prepare_data, prepare_text
from utils.data.documents import DocumentBlocks, PackingSettings, make_blocks
from utils.errors import ConfigError
from utils.training import Callback, TaskSpec, Trainer
from utils.training.coordinator import TrainingCoordinator
from utils.ui import SetupConfig

EOS, T = 31, 8


def documents(count: int = 23, seed: int = 0) -> list[np.ndarray]:
    """Documents of 1 to 21 tokens, their ends included; ids below `EOS` elsewhere."""
    generator = np.random.default_rng(seed)
    return [
        np.append(generator.integers(0, EOS, generator.integers(0, 21)), EOS).astype(np.int32) for _ in range(count)
    ]


def flat(parts) -> np.ndarray:
    return np.concatenate(list(parts))


def test_an_epoch_is_the_documents_in_another_order_packed():
    parts = documents()
    blocks = DocumentBlocks(flat(parts), T, EOS, shuffle=True)
    assert len(blocks) == len(flat(parts)) // T
    np.testing.assert_array_equal(blocks.take(range(len(blocks)))["input_ids"], blocks.blocks)  # before the first epoch
    epochs = []
    for seed in (5, 6, 5):
        blocks.begin_epoch(seed)
        order = np.random.default_rng(seed).permutation(len(parts))
        expected = TokenBlocks(flat(parts[number] for number in order)[: len(blocks) * T].reshape(-1, T))
        batch = blocks.take(range(len(blocks)))
        for name, values in expected.take(range(len(blocks))).items():
            assert torch.equal(batch[name], values)
        assert torch.equal(blocks[3]["input_ids"], batch["input_ids"][3])
        epochs.append(batch["input_ids"])
    assert torch.equal(epochs[0], epochs[2])
    assert not torch.equal(epochs[0], epochs[1])


@pytest.mark.parametrize(("shuffle", "ended"), [(False, True), (True, True), (False, False)])
def test_positions_begin_again_with_each_document_and_no_first_token_is_predicted(shuffle, ended):
    ids = flat(documents())
    ids = ids if ended else ids[:-1]
    blocks = DocumentBlocks(ids, T, EOS, shuffle=shuffle, masks=True)
    blocks.begin_epoch(3)
    batch = blocks.take(range(len(blocks)))
    for row, labels, positions in zip(*(batch[name].tolist() for name in ("input_ids", "labels", "position_ids")), strict=True):
        position = 0
        for place, token in enumerate(row):
            assert positions[place] == position
            assert labels[place] == (token if position else -100)
            position = 0 if token == EOS else position + 1


class StopAt(Callback):
    def __init__(self, step):
        self.stop_at = step

    def on_step_end(self, step, trainer, logs=None):
        if step == self.stop_at:
            trainer.request_stop("test")


def train(model, data, *, callbacks=(), resume_from=None, **changes):
    changes = {"epochs": 3, "precision": "32", "early_stopping_patience": None, **changes}
    spec = TaskSpec.language_modeling(vocab_size=32)
    return Trainer(model, None, golden_config(**changes), spec, callbacks=callbacks).train(data, resume_from=resume_from)


def test_resume_within_an_epoch_of_its_own_order_is_exact():
    def data():
        return DocumentBlocks(flat(documents(60)), T, EOS, shuffle=True)

    whole = train(plain_lm(), data(), run_name="whole")
    per_epoch = whole.steps // 3
    assert per_epoch >= 3
    stop = per_epoch + per_epoch // 2
    train(plain_lm(), data(), run_name="stopped", callbacks=[StopAt(stop)])
    assert_same_run(whole, train(plain_lm(seed=9), data(), run_name="stopped", resume_from="auto"))
    plain = train(plain_lm(), DocumentBlocks(flat(documents(60)), T, EOS), run_name="plain")
    assert plain.final_loss != whole.final_loss


def test_with_masks_the_loss_is_that_of_the_documents_alone():
    blocks = DocumentBlocks(flat(documents()), T, EOS, masks=True)
    model = tiny_gpt(dropout=0.0)
    total, count = 0.0, 0
    with torch.no_grad():
        for row in blocks.blocks[:4].astype(np.int64):
            for piece in np.split(row, np.flatnonzero(row == EOS) + 1):
                if len(piece) > 1:
                    ids = torch.from_numpy(piece)[None]
                    logits = model(input_ids=ids).logits[0, :-1]
                    total += float(F.cross_entropy(logits, ids[0, 1:], reduction="sum"))
                    count += len(piece) - 1
    data = DocumentBlocks(flat(documents())[: 4 * T], T, EOS, masks=True)
    results = train(model, data, epochs=1, warmup_steps=0, batch_size=4, gradient_accumulation_steps=1, learning_rate=1e-9)
    assert results.state.targets_done == count
    assert results.loss_history[0] == pytest.approx(total / count, rel=1e-5)


def test_a_model_that_would_look_across_documents_is_refused():
    data = DocumentBlocks(flat(documents()), T, EOS, masks=True)
    with pytest.raises(ConfigError, match=r"document_masks: PlainLM lets the documents .* Set document_masks=False"):
        train(plain_lm(), data)


def test_a_limit_on_samples_contradicts_an_order_of_their_own():
    with pytest.raises(ConfigError, match="max_train_samples=4 .* shuffle_documents=False"):
        train(plain_lm(), DocumentBlocks(flat(documents()), T, EOS, shuffle=True), max_train_samples=4)


def test_the_digest_knows_ids_ends_and_settings():
    ids = flat(documents())
    others = [
        DocumentBlocks(ids, T, EOS), DocumentBlocks(ids, T, EOS, shuffle=True), DocumentBlocks(ids, T, EOS, masks=True),
        DocumentBlocks(ids, T, 3, shuffle=True), DocumentBlocks(ids[: len(ids) // T * T], T, EOS, shuffle=True),
        TokenBlocks(ids[: len(ids) // T * T].reshape(-1, T)),
    ]  # fmt: skip
    assert len({one.digest() for one in others}) == len(others)
    assert DocumentBlocks(ids.astype(np.uint16), T, EOS).digest() == others[0].digest()


TEXTS = [f"{number} comes before {number + 1}, and {number + 1} before {number + 2}." for number in range(60)]


def test_settings_reach_the_blocks_from_texts_setups_and_the_coordinator():
    plain = prepare_text(TEXTS, vocab_size=300, block_size=16)
    assert type(plain.train) is TokenBlocks
    data = prepare_text(TEXTS, vocab_size=300, block_size=16, shuffle_documents=True, document_masks=True)
    assert (data.train.shuffle, data.train.masks) == (True, True)
    assert (data.validation.shuffle, data.validation.masks) == (False, True)
    np.testing.assert_array_equal(data.train.blocks, plain.train.blocks)
    assert data.train.num_documents == 54  # a tenth of them is for validation
    setup = SetupConfig(shuffle_documents=True, vocab_size=300, max_length=16)
    assert setup.to_dict()["shuffle_documents"] is True
    prepared = prepare_data(setup)
    assert prepared.train.shuffle
    assert any("another order in each epoch" in note for note in prepared.report.notes)
    results = TrainingCoordinator().train(
        tiny_gpt(vocab_size=300), TEXTS, max_length=16, max_epochs=1, max_steps=1, shuffle_documents=True, document_masks=True
    )
    assert (results.trainer.data.train.shuffle, results.trainer.data.train.masks) == (True, True)


def test_what_cannot_be_done_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="shuffle_documents: the tokenizer has no end-of-text token"):
        make_blocks(flat(documents()), T, None, PackingSettings(shuffle_documents=True))
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(f'{{"prompt": "after {number}", "completion": "{number + 1}"}}\n' for number in range(40)))
    setup = SetupConfig(dataset_path=str(rows), document_masks=True, vocab_size=300, max_length=64)
    with pytest.raises(ConfigError, match="document_masks: got True, but the data are rows with answers"):
        prepare_data(setup)
