"""Faults of data, each beside the same program put right."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

from tests.kit.fault_tools import REGRESSION, SIDE, Program, Setup, for_signs, kinds, line, mlp, numbers, signs, split
from tests.kit.labelled import bert_like_tokenizer
from utils.training import TaskSpec

_SECTION = "Data"
_IMAGES = {"image_size": SIDE, "num_channels": 1}
_SGD = {"optimizer": "sgd", "learning_rate": 0.05}


def _images(
    images: Tensor, labels: Tensor, validation_scale: float = 1.0, model: nn.Module | None = None, **config: Any
) -> Setup:
    train, validation = split(images, labels)
    held_out = TensorDataset(validation_scale * validation.tensors[0], validation.tensors[1])
    return Setup(model or for_signs(), train, held_out, config, sizes=_IMAGES)


def _pixels(factor: float) -> Setup:
    images, labels = signs()
    return _images(factor * images, labels, **_SGD)


def _prices(standardised: bool) -> Setup:
    inputs, targets = line(4)
    return Setup(
        mlp(4, 16, 1),
        *split(inputs, targets if standardised else 3e5 + 8e4 * targets),
        {"learning_rate": 0.01},
        task=REGRESSION,
    )


def _scales(faulty: bool) -> Setup:
    inputs, labels = kinds(8, 2)
    useless = numbers(len(inputs), 1, seed=20)
    inputs = torch.cat([inputs[:, :7], 2e5 + 5e4 * useless if faulty else useless], 1)
    return Setup(mlp(8, 16, 2), *split(inputs, labels), {"learning_rate": 0.01})


def _somebody_elses(faulty: bool) -> Setup:
    images, labels = signs()
    if faulty:
        labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(3))]
    return _images(images, labels, epochs=12)


def _counted(first: int) -> Setup:
    images, labels = signs()
    return _images(images, labels + first)


_NEUTRAL = (
    "the",
    "a",
    "cat",
    "dog",
    "sat",
    "ran",
    "on",
    "mat",
    "fast",
    "slow",
    "red",
    "blue",
    "one",
    "two",
    "three",
    "play",
)


def _review(good: bool, number: int) -> str:
    """A review of fourteen words, of which one decides; another number gives other words."""
    generator = torch.Generator().manual_seed(number)
    words = [_NEUTRAL[index] for index in torch.randint(len(_NEUTRAL), (14,), generator=generator).tolist()]
    words[int(torch.randint(14, (), generator=generator))] = "good" if good else "bad"
    return " ".join(words)


class _Reader(nn.Module):
    """Token ids (B, T) -> scores (B, 2): a mean of embeddings."""

    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(vocab_size, 16), mlp(16, 16, 2)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        embedded = self.embedding(input_ids) * mask[..., None]
        return self.head(embedded.sum(1) / mask.sum(1, keepdim=True).clamp_min(1))


def _reviews(train: list[tuple[bool, int]], validation: list[tuple[bool, int]], **config: Any) -> Setup:
    from datasets import Dataset as Records

    tokenizer = bert_like_tokenizer()
    parts = [
        Records.from_list([{"text": _review(good, number), "label": int(good)} for good, number in part])
        for part in (train, validation)
    ]
    return Setup(
        _Reader(len(tokenizer)), *parts, {"learning_rate": 0.01, **config}, task=TaskSpec.classification(num_classes=2),
        tokenizer=tokenizer,
    )  # fmt: skip


def _mixed(count: int, every: int = 2, first: int = 0) -> list[tuple[bool, int]]:
    order = torch.randperm(count, generator=torch.Generator().manual_seed(5)).tolist()
    return [(index % every != 0, first + index) for index in order]


def _unbalanced(every: int) -> Setup:
    return _reviews(_mixed(320, every), _mixed(80, every, 320))


def _sorted(faulty: bool) -> Setup:
    rows = _mixed(400)
    if faulty:
        rows = sorted(rows, key=lambda row: not row[0])
    return _reviews(rows[:320], rows[320:])


def _repeated(faulty: bool) -> Setup:
    train = [(number % 2 == 0, number) for number in range(8)] * 50 if faulty else _mixed(320)
    return _reviews(train, _mixed(80, first=320))


def _square(high: float) -> Setup:
    generator = torch.Generator().manual_seed(8)
    low = 12.0 if high > 10 else 0.0
    train, held_out = (
        10 * torch.rand(300, 1, generator=generator),
        low + (high - low) * torch.rand(80, 1, generator=generator),
    )
    parts = [TensorDataset((inputs - 5) / 2.9, (inputs.square() - 33) / 30) for inputs in (train, held_out)]
    return Setup(mlp(1, 32, 1), *parts, {"learning_rate": 0.01, "epochs": 15}, task=REGRESSION)


def _unscaled(faulty: bool) -> Setup:
    return _images(*signs(), validation_scale=255.0 if faulty else 1.0)


class _Augmented(Dataset[tuple[Tensor, Tensor]]):
    """Images moved a little, or turned, mirrored and drowned in noise."""

    def __init__(self, images: Tensor, labels: Tensor, strong: bool) -> None:
        self.images, self.labels, self.strong = images, labels, strong

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image = self.images[index]
        if not self.strong:
            return (image + 0.02 * torch.randn(image.shape)).clamp(0, 1), self.labels[index]
        image = image.rot90(int(torch.randint(4, ())), (1, 2))
        image = image.flip(2) if int(torch.randint(2, ())) else image
        return (image + 1.5 * torch.randn(image.shape)).clamp(0, 1), self.labels[index]


def _augmented(strong: bool) -> Setup:
    train, validation = split(*signs())
    return Setup(for_signs(), _Augmented(*train.tensors, strong), validation, {"epochs": 8}, sizes=_IMAGES)


def _unvalidated(faulty: bool) -> Setup:
    inputs, labels = kinds(10, 2, spread=3.0)
    train, validation = split(inputs, labels)
    return Setup(mlp(10, 16, 2), train, None if faulty else validation)


def _few(rows: int) -> Setup:
    inputs, targets = line(10, rows + 100, noise=0.3)
    parts = TensorDataset(inputs[:rows], targets[:rows]), TensorDataset(inputs[rows:], targets[rows:])
    return Setup(
        mlp(10, 32, 1),
        *parts,
        {"learning_rate": 0.01, "epochs": 60 if rows < 20 else 6, "batch_size": 14},
        task=REGRESSION,
    )


class _Writer(nn.Module):
    """Token ids (B, T) -> logits (B, T, V), position by position and causal."""

    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.vocab_size, self.max_seq_len = vocab_size, 32
        self.embedding = nn.Embedding(vocab_size, 24)
        self.layer, self.head = nn.GRU(24, 24, batch_first=True), nn.Linear(24, vocab_size)

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.head(self.layer(self.embedding(input_ids))[0])


_VOCAB, _END, _MARK = 24, 1, 2


def _counting(length: int, rows: int = 240) -> Tensor:
    """Rows that count up in steps from 3 on, int64 (rows, length)."""
    generator = torch.Generator().manual_seed(2)
    start = torch.randint(0, _VOCAB - 3, (rows, 1), generator=generator)
    stride = torch.randint(1, 4, (rows, 1), generator=generator)
    return 3 + (start + stride * torch.arange(length)) % (_VOCAB - 3)


def _language(ids: Tensor, labels: Tensor | None = None, tokenizer: Any = None, pad: int | None = None) -> Setup:
    cut = int(0.8 * len(ids))
    tensors = [ids] if labels is None else [ids, labels]
    parts = [TensorDataset(*(tensor[part] for tensor in tensors)) for part in (slice(cut), slice(cut, None))]
    task = TaskSpec.language_modeling(vocab_size=_VOCAB, pad_token_id=pad)
    return Setup(_Writer(_VOCAB), *parts, {"learning_rate": 0.01, "epochs": 8}, task=task, tokenizer=tokenizer)


def _floats(faulty: bool) -> Setup:
    ids = _counting(12)
    return _language(ids.float() if faulty else ids)


def _padded(faulty: bool) -> Setup:
    ids = _counting(20)
    lengths = torch.randint(4, 8, (len(ids), 1), generator=torch.Generator().manual_seed(6))
    ids = ids.masked_fill(torch.arange(20) >= lengths, 0)
    return _language(ids, pad=None if faulty else 0)


def _instructed(share: float) -> Setup:
    """Rows whose answer, after the mark, is scored; without the mark nothing is."""
    ids = _counting(16)
    ids[:, 7] = _MARK
    labels = ids.masked_fill(torch.arange(16) <= 7, -100)
    without = torch.rand(len(ids), 1, generator=torch.Generator().manual_seed(4)) < share
    return _language(ids, labels.masked_fill(without, -100))


def _ended(faulty: bool) -> Setup:
    ids = _counting(16)
    lengths = torch.randint(8, 14, (len(ids), 1), generator=torch.Generator().manual_seed(6))
    positions = torch.arange(16)
    pad = _END if faulty else 0
    ids = ids.masked_fill(positions > lengths, pad).masked_fill(positions == lengths, _END)
    labels = ids.masked_fill((ids == _END) if faulty else (positions > lengths), -100)
    made = _language(ids, labels, _Ids(pad))
    made.task = TaskSpec.language_modeling(vocab_size=_VOCAB, pad_token_id=pad)
    return made


class _Ids:
    """The special ids of a tokenizer for texts that are ids already."""

    def __init__(self, pad: int) -> None:
        self.pad_token_id, self.eos_token_id, self.vocab_size = pad, _END, _VOCAB

    def __len__(self) -> int:
        return _VOCAB


PROGRAMS = (
    Program("pixels_255", _SECTION, lambda: _pixels(255.0), lambda: _pixels(1.0), r"255|not normalised|scale.*inputs|inputs.*(reach|scale|large)"),
    Program("target_scale", _SECTION, lambda: _prices(False), lambda: _prices(True), r"target.*(scale|standardi[sz]e)|standardi[sz]e.*target"),
    Program("feature_scales", _SECTION, lambda: _scales(True), lambda: _scales(False), r"(feature|column).*(scale|magnitude|standardi[sz]e)"),
    Program(
        "labels_shuffled_apart", _SECTION, lambda: _somebody_elses(True), lambda: _somebody_elses(False),
        r"guess|chance|nothing to do with|shuffled",
    ),
    Program("labels_from_one", _SECTION, lambda: _counted(1), lambda: _counted(0), r"label.*10"),
    Program("imbalance_texts", _SECTION, lambda: _unbalanced(34), lambda: _unbalanced(2), r"f1|[iu]n?m?balanced"),
    Program("sorted_split_texts", _SECTION, lambda: _sorted(True), lambda: _sorted(False), r"other classes|shuffle|sorted|never shows"),
    Program("duplicates", _SECTION, lambda: _repeated(True), lambda: _repeated(False), r"repeat|duplicate"),
    Program("other_range", _SECTION, lambda: _square(16.0), lambda: _square(10.0), r"distribution|outside|range"),
    Program(
        "validation_not_scaled", _SECTION, lambda: _unscaled(True), lambda: _unscaled(False),
        r"validation.*(scale|distribution|range|larger|spread)",
    ),
    Program("augmentation_too_strong", _SECTION, lambda: _augmented(True), lambda: _augmented(False), r"augment"),
    Program("no_validation", _SECTION, lambda: _unvalidated(True), lambda: _unvalidated(False), r"no validation"),
    Program("too_few_rows", _SECTION, lambda: _few(14), lambda: _few(300), r"(few|small).*(rows|samples)|memoris|over-?fit"),
    Program("ids_as_floats", _SECTION, lambda: _floats(True), lambda: _floats(False), r"whole numbers|float"),
    Program("padding_scored", _SECTION, lambda: _padded(True), lambda: _padded(False), r"pad_token_id|padding"),
    Program(
        "mostly_not_scored", _SECTION, lambda: _instructed(0.9), lambda: _instructed(0.0),
        r"no target|-100|nothing.*scored|not scored",
    ),
    Program("end_never_learnt", _SECTION, lambda: _ended(True), lambda: _ended(False), r"end.of.text|\beos|never a target|never stop"),
)  # fmt: skip
