"""AdaptiveTokenizerDataModule: texts and a tokenizer -> what pytorch-lightning trains on.

All of it is in `TextBatches`, which needs no Lightning. The class with Lightning's base is made when somebody asks for it.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from utils.data.sources import epoch_seed
from utils.data.text.prepare import prepare_text
from utils.data.text.splitting import split_documents
from utils.data.text_collator import TextCollator
from utils.errors import ConfigError, DataError, DataTypeError
from utils.tokenization.encoding import encode_documents
from utils.tokenization.texts import as_sequence, count_texts, texts_of

if TYPE_CHECKING:
    from pytorch_lightning import LightningDataModule
    from transformers import PreTrainedTokenizerFast

    from utils.data.prepared import Report

log = logging.getLogger("trainbook.tokenization")


@dataclass(frozen=True)
class _Parts:
    """Prepared data of either way of making rows."""

    train: Dataset[Any]
    validation: Dataset[Any] | None
    report: Report | None


class TextBatches:
    """Texts, tokenized once, as batches for a causal language model: `trainer.fit(model, datamodule)`.

    A batch is `input_ids` and `labels`, (B, T) int64, and `attention_mask` where there is padding. The model shifts; labels on
    padding are -100. `train_dataset` and `val_dataset` can be given to any other trainer, this package's among them.

    Args:
        dataset: a dataset of the `datasets` library, a list of texts or an iterator.
        tokenizer: a fast transformers tokenizer.
        batch_size: rows in a batch.
        max_length: tokens in a row, at most; T.
        val_split: share of the text for validation, 0 to 0.5; 0: none.
        num_workers: processes that load batches.
        seed: draws the validation documents; the order of epoch e is a function of (seed, e).
        packing: documents, each with an end token, follow each other in full rows and nothing is padded. False: each document
            has rows of its own, padded to the longest of the batch; a longer one continues in the next row.
        val_dataset: texts for validation, instead of a share of `dataset`.
        text_column: the column of texts; None: "text", or else the only one.
    Raises:
        ConfigError, DataTypeError: an invalid argument. Problems of the texts are raised by `setup`.
    """

    def __init__(
        self, dataset: Any, tokenizer: PreTrainedTokenizerFast, batch_size: int = 16, max_length: int = 512,
        val_split: float = 0.1, num_workers: int = 2, seed: int = 42, *, packing: bool = True, val_dataset: Any = None,
        text_column: str | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        if getattr(tokenizer, "backend_tokenizer", None) is None:
            raise DataTypeError(f"got a {type(tokenizer).__name__} as the tokenizer; give a fast transformers one.")
        numbers = (("batch_size", batch_size, 1), ("max_length", max_length, 2), ("num_workers", num_workers, 0))
        for name, value, least in numbers:
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ConfigError(f"got {name}={value!r}; must be a whole number of at least {least}.")
        self.tokenizer = tokenizer
        self.batch_size, self.max_length, self.num_workers, self.seed = batch_size, max_length, num_workers, seed
        self.val_split, self.packing = val_split, packing
        self._texts = texts_of(dataset, text_column)
        self._validation_texts = None if val_dataset is None else texts_of(val_dataset, text_column)
        self._parts: _Parts | None = None

    def setup(self, stage: str | None = None) -> None:
        """Tokenize, once. Raises DataError when there is too little text; says what would work."""
        if self._parts is None:
            texts = as_sequence(self._texts)
            validation = None if self._validation_texts is None else as_sequence(self._validation_texts)
            self._parts = self._packed(texts, validation) if self.packing else self._padded(texts, validation)

    @property
    def train_dataset(self) -> Dataset[Any]:
        """Rows to train on, with a length and an index; tokenized when first asked for."""
        return self._made.train

    @property
    def val_dataset(self) -> Dataset[Any] | None:
        """Rows that training never sees; None with `val_split=0`."""
        return self._made.validation

    @property
    def report(self) -> Report | None:
        """Report on the prepared data; None without packing."""
        return self._made.report

    def train_dataloader(self) -> DataLoader[Any]:
        """Loader of all training rows, in an order that is a function of seed and epoch."""
        return self._loader(self.train_dataset, EpochSampler(len(self.train_dataset), self.seed))  # type: ignore[arg-type]

    def val_dataloader(self) -> Any:
        """The rows for validation in their order; [] without validation, as Lightning expects."""
        return [] if self.val_dataset is None else self._loader(self.val_dataset, None)

    @property
    def _made(self) -> _Parts:
        self.setup()
        assert self._parts is not None
        return self._parts

    def _loader(self, rows: Dataset[Any], sampler: EpochSampler | None) -> DataLoader[Any]:
        return DataLoader(
            rows, batch_size=self.batch_size, sampler=sampler, num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            collate_fn=TextCollator(self.tokenizer.pad_token_id, self.tokenizer.eos_token_id),
        )  # fmt: skip

    def _packed(self, texts: Any, validation: Any) -> _Parts:
        data = prepare_text(
            texts, vocab_size=len(self.tokenizer), block_size=self.max_length, tokenizer=self.tokenizer,
            val_split=self.val_split, random_seed=self.seed, validation_documents=validation,
        )  # fmt: skip
        return _Parts(data.train, data.validation, data.report)

    def _padded(self, texts: Any, validation: Any) -> _Parts:
        if validation is None:
            split = split_documents(_with_text(texts), self.val_split, self.seed)
            train, held_out = split.train, split.validation
        else:
            train, held_out = _with_text(texts), _with_text(validation)
        rows = TokenRows.of(self.tokenizer, train, self.max_length)
        return _Parts(rows, TokenRows.of(self.tokenizer, held_out, self.max_length) if held_out else None, None)


if TYPE_CHECKING:

    class AdaptiveTokenizerDataModule(TextBatches, LightningDataModule):
        """`TextBatches` as a LightningDataModule."""


@functools.cache
def _lightning_class() -> type[Any]:
    from pytorch_lightning import LightningDataModule

    about = {"__doc__": TextBatches.__doc__, "__module__": __name__}
    return type("AdaptiveTokenizerDataModule", (TextBatches, LightningDataModule), about)


def __getattr__(name: str) -> Any:
    if name == "AdaptiveTokenizerDataModule":
        return _lightning_class()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


class TokenRows(Dataset[dict[str, Tensor]]):
    """Documents as rows of different lengths: `input_ids` and `labels`, (T,) int64 each.

    Args:
        ids: of all rows, one after the other.
        ends: where each row ends in `ids`.
    """

    def __init__(self, ids: np.ndarray, ends: np.ndarray) -> None:
        self._ids, self._ends = ids, ends

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerFast, documents: Any, max_length: int) -> TokenRows:
        """The rows of `documents`: each ends with the end token, one longer than `max_length` continues in the next row.

        Raises:
            DataError: no document has two tokens. A row of one token, which has nothing to predict, is left out.
        """
        end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
        if not end:
            log.warning("The tokenizer has no end-of-text token: the model cannot learn where a document ends.")
        rows: list[np.ndarray] = []
        for ids in encode_documents(tokenizer, documents):
            whole = np.concatenate([ids, np.array(end, dtype=np.int32)])
            rows += [whole[start : start + max_length] for start in range(0, len(whole), max_length)]
        rows = [row for row in rows if len(row) >= 2]
        if not rows:
            raise DataError(f"none of the {len(documents):,} documents has two tokens: there is nothing to predict.")
        return cls(np.concatenate(rows), np.cumsum([len(row) for row in rows]))

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        index = range(len(self))[index]  # an IndexError past the end, which ends a plain `for`
        start = int(self._ends[index - 1]) if index else 0
        ids = torch.from_numpy(self._ids[start : int(self._ends[index])].astype(np.int64))
        return {"input_ids": ids, "labels": ids.clone()}


class EpochSampler(Sampler[int]):
    """Every row once, in an order that is a function of seed and epoch.

    Lightning says which epoch it is (`set_epoch`), so a run that is continued has the order that it would have had. Where
    nobody does, each pass is the next epoch.
    """

    def __init__(self, num_rows: int, seed: int) -> None:
        self._num_rows, self._seed, self._epoch = num_rows, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """The epoch of the next pass."""
        self._epoch = epoch

    def __len__(self) -> int:
        return self._num_rows

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(epoch_seed(self._seed, self._epoch) & 0x7FFFFFFFFFFFFFFF)
        self._epoch += 1
        yield from torch.randperm(self._num_rows, generator=generator).tolist()


def _with_text(texts: Any) -> list[str]:
    count_texts(texts)
    return [text for text in texts if text and not text.isspace()]
