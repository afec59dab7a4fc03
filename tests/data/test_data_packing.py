"""Packing loses nothing but the tail, and blocks come out as the batches a language model is trained on."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from utils.data import UniversalDataModule
from utils.data.packing import TokenBlocks, pack
from utils.errors import ConfigError, DataError, DataTypeError

IDS = st.lists(st.lists(st.integers(0, 2**31 - 1), max_size=20), min_size=1, max_size=20)


@given(IDS, st.integers(2, 9), st.none() | st.integers(0, 5))
def test_blocks_are_the_sequences_in_order_with_their_ends(sequences, block_size, eos_id):
    stream = [i for ids in sequences if ids for i in [*ids, *([] if eos_id is None else [eos_id])]]
    if len(stream) < block_size:
        with pytest.raises(DataError):
            pack(sequences, block_size, eos_id)
        return
    blocks = pack(sequences, block_size, eos_id)
    assert blocks.dtype == np.int32
    assert blocks.shape == (len(stream) // block_size, block_size)
    assert blocks.reshape(-1).tolist() == stream[: blocks.size]


def test_too_few_tokens_says_how_many():
    with pytest.raises(DataError, match=r"^6 tokens are too few for one block of 8"):
        pack([[1, 2], [], [3, 4]], 8, eos_id=0)


@pytest.mark.parametrize("block_size", [1, 0, -3])
def test_a_block_without_a_target_is_refused(block_size):
    with pytest.raises(ConfigError, match="at least 2"):
        pack([[1, 2, 3]], block_size, None)


@pytest.mark.parametrize("sequence", [[1.5, 2.0], ["a", "b"], [[1, 2], [3, 4]], "text"])
def test_what_is_no_row_of_ids_is_refused(sequence):
    with pytest.raises(DataTypeError, match="sequence 1 .*one row of whole numbers"):
        pack([[1, 2, 3], sequence], 2, None)


@pytest.mark.parametrize("bad", [-1, 2**31, 2**40])
def test_an_id_out_of_range_is_named(bad):
    with pytest.raises(DataError, match=f"token id {bad};"):
        pack([[1, 2, bad]], 2, None)


@pytest.mark.parametrize("dtype", [np.int32, np.uint16])
def test_batches_are_the_chosen_blocks(dtype):
    ids = np.arange(40, dtype=dtype).reshape(10, 4)
    blocks = TokenBlocks(ids)
    assert (len(blocks), blocks.block_size, blocks.num_tokens, blocks.max_id()) == (10, 4, 40, 39)
    for chosen in ([7, 0, 7], np.array([7, 0, 7])):
        batch = blocks.take(chosen)
        assert batch["input_ids"].tolist() == batch["labels"].tolist() == ids[[7, 0, 7]].tolist()
        assert batch["input_ids"].dtype == batch["labels"].dtype == torch.int64
    one = blocks[3]
    assert one["input_ids"].shape == one["labels"].shape == (4,)
    assert one["input_ids"].tolist() == one["labels"].tolist() == ids[3].tolist()
    with pytest.raises(IndexError):
        blocks[10]


def test_masking_labels_in_place_changes_neither_inputs_nor_data():
    blocks = TokenBlocks(np.arange(8, dtype=np.int32).reshape(2, 4))
    batch = blocks.take([0, 1])
    batch["labels"][:] = -100
    batch["input_ids"][0] = 7
    assert blocks.take([0])["input_ids"].tolist() == [[0, 1, 2, 3]]
    assert batch["input_ids"][1].tolist() == [4, 5, 6, 7]


def test_blocks_may_stay_on_disk(tmp_path):
    np.arange(30, dtype=np.uint16).tofile(tmp_path / "ids.bin")
    on_disk = TokenBlocks(np.memmap(tmp_path / "ids.bin", dtype=np.uint16, mode="r", shape=(5, 6)))
    in_memory = TokenBlocks(np.arange(30, dtype=np.int32).reshape(5, 6))
    assert torch.equal(on_disk.take([4, 1])["input_ids"], in_memory.take([4, 1])["input_ids"])
    assert on_disk.digest() == in_memory.digest()


def test_the_digest_follows_content_and_shape():
    ids = np.arange(2_400_000, dtype=np.int32).reshape(-1, 8) % 50_000  # more than one chunk of the digest
    digest = TokenBlocks(ids).digest()
    assert TokenBlocks(ids.copy()).digest() == digest
    changed = ids.copy()
    changed[-1, -1] += 1
    assert TokenBlocks(changed).digest() != digest
    assert TokenBlocks(ids.reshape(-1, 16)).digest() != digest


@pytest.mark.parametrize(
    "blocks",
    [
        np.zeros((2, 3)),
        np.zeros((2, 3), np.int64),
        np.zeros(6, np.int32),
        [[1, 2]],
        torch.zeros(2, 3, dtype=torch.int32),
    ],
)
def test_other_arrays_are_refused(blocks):
    with pytest.raises(DataTypeError, match="int32 or uint16 array of shape"):
        TokenBlocks(blocks)


@pytest.mark.parametrize("shape", [(0, 4), (3, 1)])
def test_no_blocks_and_blocks_without_targets_are_refused(shape):
    with pytest.raises(DataError, match="at least 1 block of 2 tokens"):
        TokenBlocks(np.zeros(shape, np.int32))


def test_the_data_module_takes_blocks_as_they_are():
    blocks = TokenBlocks(pack([range(100)], 10, None))
    module = UniversalDataModule(blocks, batch_size=4)
    assert module.train is blocks
    seen = [
        row for step in module.steps(0, 0, 1) for batch in step.micro_batches for row in batch["input_ids"].tolist()
    ]
    assert sorted(seen) == [list(range(start, start + 10)) for start in range(0, 100, 10)]
