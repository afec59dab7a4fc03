"""Lightning and this package's trainer train on it: every token once, padding never scored, validation apart."""

from __future__ import annotations

import pickle
import sys

import pytest
import pytorch_lightning as pl
import torch
from datasets import Dataset
from torch import nn

from tests.kit.fresh import before_its_import
from utils.errors import ConfigError, DataError, DataTypeError
from utils.tokenization import AdaptiveTokenizerDataModule, encode_documents, train_bpe
from utils.tokenization.data_module import EpochSampler

TEXTS = [f"Line {number} of a text about the number {number * number}." for number in range(120)]


@pytest.fixture(scope="module")
def tokenizer():
    return train_bpe(TEXTS, 300)


def module(tokenizer, texts=TEXTS, **options):
    return AdaptiveTokenizerDataModule(
        texts, tokenizer, **{"batch_size": 4, "max_length": 32, "num_workers": 0, **options}
    )


class Bigram(pl.LightningModule):
    """Predicts the next token from the last."""

    def __init__(self, vocab_size):
        super().__init__()
        self.table = nn.Embedding(vocab_size, vocab_size)
        self.losses = []

    def loss(self, batch):
        logits, labels = self.table(batch["input_ids"])[:, :-1], batch["labels"][:, 1:]
        return nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100)

    def training_step(self, batch, index):
        return self.loss(batch)

    def validation_step(self, batch, index):
        self.losses.append(float(self.loss(batch)))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.1)


@pytest.mark.filterwarnings("ignore:.*does not have many workers.*")
@pytest.mark.filterwarnings("ignore:The number of training batches")
@pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")
@pytest.mark.filterwarnings("ignore:.*isinstance\\(treespec.*")
@pytest.mark.parametrize("packing", [True, False])
def test_lightning_learns_from_it(tokenizer, packing):
    model = Bigram(len(tokenizer))
    trainer = pl.Trainer(
        max_epochs=3, logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        accelerator="cpu", num_sanity_val_steps=0,
    )  # fmt: skip
    data = module(tokenizer, packing=packing)
    trainer.fit(model, datamodule=data)
    per_epoch = len(model.losses) // 3
    assert sum(model.losses[-per_epoch:]) < 0.75 * sum(model.losses[:per_epoch])


def test_packed_rows_are_full_and_hold_the_text_in_order(tokenizer):
    data = module(tokenizer, val_split=0)
    rows = [data.train_dataset[index] for index in range(len(data.train_dataset))]
    ids = torch.cat([row["input_ids"] for row in rows]).tolist()
    expected = [
        i for document in encode_documents(tokenizer, TEXTS) for i in [*document.tolist(), tokenizer.eos_token_id]
    ]
    assert {len(row["input_ids"]) for row in rows} == {32}
    assert ids == expected[: len(ids)]
    assert len(expected) - len(ids) < 32
    assert data.val_dataset is None
    assert data.val_dataloader() == []
    assert data.report.num_train_blocks == len(rows)


def test_it_is_a_lightning_data_module_by_its_own_name(tokenizer):
    data = module(tokenizer)
    assert isinstance(data, pl.LightningDataModule)
    assert type(data) is AdaptiveTokenizerDataModule
    assert pickle.loads(pickle.dumps(AdaptiveTokenizerDataModule)) is AdaptiveTokenizerDataModule


@pytest.mark.parametrize("pad", ["<pad>", "</s>"])
def test_padding_is_never_scored_and_the_end_always_is(tokenizer, pad):
    tokenizer.pad_token = pad
    texts = ["Line 1", "Line 2 of a text about", "a text " * 60]
    data = module(tokenizer, texts, packing=False, val_split=0, batch_size=20)
    (batch,) = list(data.train_dataloader())
    scored = batch["labels"] != -100
    assert torch.equal(scored, batch["attention_mask"].bool())
    assert torch.equal(batch["labels"][scored], batch["input_ids"][scored])
    assert (~scored).any()
    tokens = sum(len(ids) + 1 for ids in encode_documents(tokenizer, texts))
    assert int(scored.sum()) in (tokens, tokens - 1)  # a last row of one token has nothing to predict
    assert int((batch["labels"] == tokenizer.eos_token_id).sum()) in (2, 3)
    assert batch["input_ids"].shape[1] == 32
    tokenizer.pad_token = "<pad>"


@pytest.mark.parametrize("packing", [True, False])
def test_validation_is_apart_and_drawn_by_the_seed(tokenizer, packing):
    def held_out(seed):
        rows = module(tokenizer, packing=packing, seed=seed).val_dataset
        return "".join(tokenizer.decode(rows[index]["input_ids"]) for index in range(len(rows)))

    assert held_out(1) == held_out(1) != held_out(2)
    data = module(
        tokenizer, packing=packing, val_dataset=Dataset.from_dict({"text": ["Another text, of its own. " * 9]})
    )
    assert "Another text" in tokenizer.decode(data.val_dataset[0]["input_ids"])


def test_the_order_is_a_function_of_seed_and_epoch():
    def orders(seed, epochs):
        sampler = EpochSampler(50, seed)
        found = []
        for epoch in epochs:
            sampler.set_epoch(epoch)
            found.append(list(sampler))
        return found

    first, second = orders(1, [0, 1])
    assert sorted(first) == sorted(second) == list(range(50))
    assert first != second
    assert orders(1, [1]) == [second]
    assert orders(2, [0]) != [first]
    by_itself = EpochSampler(50, 1)
    assert [list(by_itself), list(by_itself)] == [first, second]


def test_our_own_trainer_takes_its_data_sets(tokenizer):
    from tests.kit.toys import tiny_gpt
    from utils.training import Trainer, TrainingConfig

    for packing in (True, False):
        data = module(tokenizer, packing=packing)
        config = TrainingConfig(epochs=1, batch_size=8, output_dir=f"runs-{packing}", precision="32")
        model = tiny_gpt(vocab_size=300, length=32)
        results = Trainer(model, training_config=config, tokenizer=tokenizer).train(
            data.train_dataset, data.val_dataset
        )
        assert results.final_loss > 0


def test_a_data_set_and_an_iterator_are_read_alike(tokenizer):
    table = Dataset.from_dict({"title": [""] * len(TEXTS), "text": TEXTS})
    assert module(tokenizer, table).train_dataset.digest() == module(tokenizer, iter(TEXTS)).train_dataset.digest()


@pytest.mark.parametrize(
    ("options", "error", "told"),
    [
        ({"batch_size": 0}, ConfigError, "batch_size=0"),
        ({"max_length": 1}, ConfigError, "max_length=1"),
        ({"num_workers": -1}, ConfigError, "num_workers=-1"),
        ({"texts": 3}, DataTypeError, "got a int"),
        ({"tokenizer": object()}, DataTypeError, "got a object as the tokenizer"),
    ],
)
def test_a_bad_argument_is_refused_at_once(tokenizer, options, error, told):
    with pytest.raises(error, match=told):
        module(**{"tokenizer": tokenizer, **options})


def test_too_little_text_is_told_with_what_works(tokenizer):
    with pytest.raises(DataError, match="too little text.*max_length="):
        module(tokenizer, ["Line 1"], val_split=0).setup()
    with pytest.raises(DataError, match="none of the 1 documents has two tokens|holds any text"):
        module(tokenizer, [" "], packing=False, val_split=0).setup()


def test_the_package_is_imported_without_lightning():
    def imported():
        from utils.tokenization.data_module import TextBatches

        return TextBatches.__name__, "pytorch_lightning" in sys.modules

    assert before_its_import(imported, "pytorch_lightning") == ("TextBatches", False)
