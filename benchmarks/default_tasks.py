"""Architectures and what each learns in `benchmarks.default_optimizer`: models of width 32, data of one length.

Texts are characters of Python's language reference, which every CPython holds; images are scikit-learn's digits; the table is
drawn from a seed. Rows are cut in the order of the text, and the last fifth of them is for validation.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.kit.healthy_models import HEALTHY
from tests.kit.toys import tiny_gpt
from utils.training import TaskSpec

Sample = dict[str, Any]

VOCAB, LENGTH, VOWELS = 60, 32, "eaiou"
#: Ids 0 and 1 are the models' start and padding; 2 stands for what is hidden, 3 for rare characters.
_HIDDEN, _RARE, _FIRST = 2, 3, 4
_VALIDATION_SHARE, _MOST_VALIDATION = 5, 512


@dataclass(frozen=True)
class Cell:
    """One architecture on one task.

    Attributes:
        name, task: for the table.
        make: creates the model; its initial weights follow torch's seed.
        samples: creates all samples.
        spec: the task.
    """

    name: str
    task: str
    make: Callable[[], nn.Module]
    samples: Callable[[], list[Sample]]
    spec: TaskSpec

    def split(self) -> tuple[list[Sample], list[Sample]]:
        """Samples for training and for validation."""
        samples = self.samples()
        first = len(samples) - len(samples) // _VALIDATION_SHARE
        return samples[:first], samples[first : first + _MOST_VALIDATION]


@cache
def characters() -> tuple[Tensor, Mapping[str, int]]:
    """The text as ids, and the id of each of its most frequent characters."""
    from utils.data import builtin_corpus

    text = " ".join("\n".join(builtin_corpus()).lower().split())
    usual = [character for character, _ in Counter(text).most_common(VOCAB - _FIRST)]
    ids = {character: number for number, character in enumerate(usual, _FIRST)}
    return torch.tensor([ids.get(character, _RARE) for character in text]), ids


def _rows(length: int) -> Tensor:
    ids, _ = characters()
    return ids[: len(ids) // length * length].view(-1, length)


def _vowel_ids() -> Tensor:
    _, ids = characters()
    return torch.tensor([ids[vowel] for vowel in VOWELS])


def text() -> list[Sample]:
    """Causal language modelling: rows of 32 characters."""
    return [{"input_ids": row} for row in _rows(LENGTH)]


def masked() -> list[Sample]:
    """Masked language modelling: 15 % of the characters are hidden, the same in each epoch."""
    rows = _rows(LENGTH)
    hidden = torch.rand(rows.shape, generator=torch.Generator().manual_seed(0)) < 0.15
    inputs, labels = rows.masked_fill(hidden, _HIDDEN), rows.masked_fill(~hidden, -100)
    return [{"input_ids": row, "labels": label} for row, label in zip(inputs, labels, strict=True)]


def word_counts(classes: int) -> list[Sample]:
    """Text classification: are there few or many words in 32 characters? The bounds are quantiles of the number of spaces."""
    rows, (_, ids) = _rows(LENGTH), characters()
    spaces = (rows == ids[" "]).sum(-1).float()
    bounds = spaces.quantile(torch.arange(1, classes) / classes)
    labels = torch.bucketize(spaces, bounds).tolist()
    return [{"input_ids": row, "labels": label} for row, label in zip(rows, labels, strict=True)]


def restored() -> list[Sample]:
    """Sequence to sequence: 16 characters with hidden vowels -> the same with them."""
    rows = _rows(LENGTH // 2)
    inputs = rows.masked_fill(torch.isin(rows, _vowel_ids()), _HIDDEN)
    return [{"input_ids": row, "labels": label} for row, label in zip(inputs, rows, strict=True)]


def digits(classes: int, size: int, channels: int) -> list[Sample]:
    """Image classification: the first `classes` of scikit-learn's digits, enlarged to `size`."""
    from sklearn.datasets import load_digits  # type: ignore[import-untyped, unused-ignore]

    found = load_digits()
    chosen = np.flatnonzero(found.target < classes)
    pixels = torch.from_numpy(found.images[chosen] / 8 - 1).float()[:, None]
    images = F.interpolate(pixels, size=(size, size), mode="bilinear").expand(-1, channels, -1, -1)
    labels = found.target[chosen].tolist()
    return [{"pixel_values": image, "labels": label} for image, label in zip(images, labels, strict=True)]


def table(columns: int, classes: int, rows: int = 4096) -> list[Sample]:
    """Classification of rows of numbers: the class to which a fixed random network, with noise, gives the highest score."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, columns, generator=generator)
    hidden, output = torch.randn(columns, 32, generator=generator), torch.randn(32, classes, generator=generator)
    scores = (x @ hidden / columns**0.5 * 2).tanh() @ output
    labels = (scores + 0.5 * torch.randn(scores.shape, generator=generator)).argmax(-1).tolist()
    return [{"x": row, "labels": label} for row, label in zip(x, labels, strict=True)]


def _seeded_gpt() -> nn.Module:
    return tiny_gpt(vocab_size=VOCAB, length=LENGTH, seed=torch.initial_seed())


_CAUSAL = TaskSpec.language_modeling(vocab_size=VOCAB)


def _causal(family: str, name: str, make: Callable[[], nn.Module] | None = None) -> Cell:
    return Cell(f"{family}: {name}", "causal LM", make or HEALTHY[name], text, _CAUSAL)


def _classes(family: str, name: str, classes: int) -> Cell:
    spec = TaskSpec.classification(num_classes=classes)
    return Cell(f"{family}: {name}", "text classification", HEALTHY[name], lambda: word_counts(classes), spec)


def _images(family: str, name: str, classes: int, size: int, channels: int) -> Cell:
    spec = TaskSpec.image_classification(num_classes=classes)
    return Cell(f"{family}: {name}", "images", HEALTHY[name], lambda: digits(classes, size, channels), spec)


def _table(family: str, name: str, columns: int, classes: int) -> Cell:
    spec = TaskSpec.classification(num_classes=classes)
    return Cell(f"{family}: {name}", "table", HEALTHY[name], lambda: table(columns, classes), spec)


def _seq2seq(family: str, name: str) -> Cell:
    spec = TaskSpec.seq2seq(vocab_size=VOCAB, pad_token_id=1)
    return Cell(f"{family}: {name}", "sequence to sequence", HEALTHY[name], restored, spec)


_MASKED, _TAGS = TaskSpec.masked_lm(vocab_size=VOCAB), TaskSpec.token_classification(num_classes=len(VOWELS))

CELLS: tuple[Cell, ...] = (
    _causal("GPT-2", "GPT-2", _seeded_gpt),
    _classes("GPT-2", "GPT-2 classifier", 2),
    _causal("Llama", "Llama"),
    _causal("ALiBi", "BLOOM (ALiBi)"),
    _causal("experts", "Mixtral"),
    _causal("recurrent", "GRU"),
    _causal("convolutional", "causal convolutions"),
    _images("convolutional", "convolutions with batch normalisation", 10, 12, 1),
    Cell("BERT: BERT", "masked LM", HEALTHY["BERT"], masked, TaskSpec.masked_lm(vocab_size=VOCAB)),
    _classes("BERT", "BERT classifier", 3),
    _seq2seq("encoder-decoder", "T5"),
    _images("vision transformer", "ViT", 4, 32, 3),
    _table("MLP", "SELU", 8, 4),
)
