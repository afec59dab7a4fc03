"""What every contender trains on: one model's sizes, one real text, as lines (for padding) and as full blocks."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from utils.errors import DataError

#: Words a line in WikiText-2's validation part (Merity et al., arXiv 1609.07843), blank lines left out: its deciles,
#: counted in `wiki.valid.tokens`. A third are headings of a few words, the rest paragraphs of about a hundred.
WIKITEXT_WORDS = (1, 5, 8, 12, 42, 75, 102, 127, 156, 199, 429)

#: Tokens that the tokenizer learns at most. A model may have a larger vocabulary: a step's time does not depend on which
#: of its ids occur, and so the same tokens are trained on at every vocabulary size.
MOST_TOKENS = 8192

#: One line in so many is for validation.
VALIDATION_SHARE = 10


@dataclass(frozen=True)
class Sizes:
    """A GPT-2 and its batch. Defaults: the model that the goals are stated for.

    Attributes:
        layers, width, heads: of the model; length: positions, T; vocab: token ids, V; batch: rows a step, B.
    """

    layers: int = 4
    width: int = 256
    heads: int = 4
    length: int = 256
    batch: int = 8
    vocab: int = 8192

    def with_(self, **changes: int) -> Sizes:
        """A copy with changes."""
        return dataclasses.replace(self, **changes)

    def __str__(self) -> str:
        return (
            f"GPT-2 of {self.layers} layer{'s' * (self.layers > 1)}, width {self.width}, {self.heads} heads, "
            f"V = {self.vocab:,}, T = {self.length}, batch {self.batch}"
        )

    def model(self, seed: int = 0) -> Any:
        """The model: the same weights for the same seed; no dropout, so that losses can be compared."""
        from utils.models import ModelRegistry

        return ModelRegistry.create(
            "gpt-small", vocab_size=self.vocab, max_seq_len=self.length, n_layer=self.layers, n_embd=self.width,
            n_head=self.heads, dropout=0.0, seed=seed,
        )  # fmt: skip


@dataclass
class Workload:
    """One text in both forms. Each line ends with the end-of-text token in both, so both have the same targets.

    Attributes:
        lines: int32 arrays of 2 to T ids: what a contender that pads gets (longer ones are cut, as tokenizers do).
        blocks: int32 (N, T): the same lines, packed; validation: int32 (M, T), packed from lines that no contender sees.
        pad_id, eos_id: special ids.
    """

    lines: list[np.ndarray]
    blocks: np.ndarray
    validation: np.ndarray
    pad_id: int
    eos_id: int

    def repeated(self, rows: int) -> Workload:
        """The text as often as needed for `rows` lines and blocks, so that no epoch ends within a measurement."""
        lines = self.lines * max(1, math.ceil(rows / len(self.lines)))
        blocks = np.tile(self.blocks, (max(1, math.ceil(rows / len(self.blocks))), 1))
        return dataclasses.replace(self, lines=lines, blocks=blocks)

    def first(self, rows: int) -> Workload:
        """Only the first `rows` lines and blocks: with one batch of data, every contender's order is the same."""
        return dataclasses.replace(self, lines=self.lines[:rows], blocks=self.blocks[:rows])

    def save(self, path: Path) -> None:
        """Write everything to `path` (.npz)."""
        ends = np.cumsum([len(line) for line in self.lines])
        special = np.array([self.pad_id, self.eos_id])
        np.savez(
            path, ids=np.concatenate(self.lines), ends=ends, blocks=self.blocks, validation=self.validation, special=special
        )  # fmt: skip

    @classmethod
    def load(cls, path: str | Path) -> Workload:
        """What `save` wrote."""
        with np.load(path) as file:
            lines = np.split(file["ids"], file["ends"][:-1])
            return cls(lines, file["blocks"], file["validation"], *map(int, file["special"]))


def read_lines(text_file: str | None) -> list[str]:
    """The text's lines that are not blank.

    Args:
        text_file: UTF-8 text, taken line by line. None: the built-in corpus, cut into lines of WikiText-like lengths.
    """
    from utils.data import builtin_corpus

    if text_file is not None:
        return [line.strip() for line in Path(text_file).read_text(encoding="utf-8").splitlines() if line.strip()]
    return [line for document in builtin_corpus() for line in wikitext_like(document)]


def wikitext_like(document: str, seed: int = 0) -> list[str]:
    """A document's words in their order, cut into lines whose lengths are drawn from WikiText's distribution."""
    words = document.split()
    generator = np.random.default_rng([seed, len(words)])
    lines, start = [], 0
    while start < len(words):
        decile = generator.uniform(0, len(WIKITEXT_WORDS) - 1)
        count = max(1, round(float(np.interp(decile, range(len(WIKITEXT_WORDS)), WIKITEXT_WORDS))))
        lines.append(" ".join(words[start : start + count]))
        start += count
    return lines


def build(lines: list[str], sizes: Sizes, seed: int = 0) -> Workload:
    """Tokenize `lines` (byte-level BPE, learned from them) for a model of these sizes; a tenth is kept for validation."""
    from utils.data import pack
    from utils.tokenization import encode_documents, train_bpe

    tokenizer = train_bpe(lines, min(sizes.vocab, MOST_TOKENS))
    eos = np.array([tokenizer.eos_token_id], dtype=np.int32)
    ids = [np.concatenate([line, eos]) for line in encode_documents(tokenizer, lines)]
    order = np.random.default_rng(seed).permutation(len(ids))
    kept = len(ids) // VALIDATION_SHARE
    validation, train = [ids[i] for i in order[:kept]], [ids[i] for i in order[kept:]]
    return Workload(
        lines=_whole([line[: sizes.length] for line in train if len(line) > 1], sizes.batch),
        # The end-of-text token is in the lines already.
        blocks=_whole(pack(train, sizes.length, None), sizes.batch),
        validation=pack(validation, sizes.length, None),
        pad_id=int(tokenizer.pad_token_id),
        eos_id=int(tokenizer.eos_token_id),
    )


def _whole(rows: Any, batch: int) -> Any:
    """Rows for whole batches only: the contenders differ in what they do with a last, smaller one."""
    if len(rows) < batch:
        raise DataError(f"the text gives {len(rows)} rows, fewer than one batch of {batch}; give a longer text.")
    return rows[: len(rows) // batch * batch]
