"""Toy models and data of every task but predicting the next token: tiny, real, with something to learn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from utils.data.batch import Batch

VOCAB, CLASSES, PAD, MASK = 24, 4, 0, 1
FIRST = 4  # ids before it are special


def seeded(make: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """A model with fixed initial weights; the random state is as before."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()


def tiny_bert(head: str, dropout: float = 0.0, layers: int = 2, **settings: Any) -> nn.Module:
    """transformers' Bert + `head`, such as "ForMaskedLM", of width 32."""
    import transformers

    config = transformers.BertConfig(
        vocab_size=VOCAB, hidden_size=32, num_hidden_layers=layers, num_attention_heads=2, intermediate_size=48,
        max_position_embeddings=32, pad_token_id=PAD, hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout,
        **settings,
    )  # fmt: skip
    return seeded(lambda: getattr(transformers, f"Bert{head}")(config))


def tiny_t5(dropout: float = 0.0, tied: bool = True, layers: int = 2) -> nn.Module:
    """A T5ForConditionalGeneration of width 16; tied: its output layer is its embedding, hidden states scaled."""
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(
        vocab_size=VOCAB, d_model=16, d_kv=8, d_ff=32, num_layers=layers, num_heads=2, dropout_rate=dropout, pad_token_id=PAD,
        decoder_start_token_id=PAD, eos_token_id=2, tie_word_embeddings=tied, scale_decoder_outputs=tied,
    )  # fmt: skip
    return seeded(lambda: T5ForConditionalGeneration(config))


class PlainEncoderDecoder(nn.Module):
    """Ids in, ids out, with nothing of transformers in it; padded input is told by its mask."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.read, self.write = nn.Embedding(VOCAB, width), nn.Embedding(VOCAB, width)
        self.decoder = nn.GRU(width, width, batch_first=True)
        self.head = nn.Linear(width, VOCAB)

    def forward(self, input_ids: Tensor, decoder_input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        mask_BT1 = attention_mask[..., None].to(self.read.weight.dtype)
        summary_BD = (self.read(input_ids) * mask_BT1).sum(1) / mask_BT1.sum(1)
        hidden, _ = self.decoder(self.write(decoder_input_ids), summary_BD[None].contiguous())
        return self.head(hidden)


class PlainHead(nn.Module):
    """Tokens -> `outputs` numbers a sample (or a token, with `each`), with a name of its own for its input."""

    def __init__(self, outputs: int, each: bool = False, squeeze: bool = False, dropout: float = 0.0) -> None:
        super().__init__()
        self.embedding, self.dropout = nn.Embedding(VOCAB, 16), nn.Dropout(dropout)
        self.mixer, self.head = nn.Linear(16, 16), nn.Linear(16, outputs)
        self.each, self.squeeze = each, squeeze

    def forward(self, tokens: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        hidden_BTD = torch.tanh(self.mixer(self.dropout(self.embedding(tokens))))
        if not self.each:
            mask_BT1 = (torch.ones_like(tokens) if attention_mask is None else attention_mask)[..., None]
            hidden_BTD = (hidden_BTD * mask_BT1).sum(1) / mask_BT1.sum(1)
        outputs = self.head(hidden_BTD)
        return outputs[..., 0] if self.squeeze else outputs


class PlainImages(nn.Module):
    """Images (B, 1, 6, 6) -> `outputs` numbers."""

    def __init__(self, outputs: int = CLASSES) -> None:
        super().__init__()
        self.convolution, self.head = nn.Conv2d(1, 4, 3), nn.Linear(64, outputs)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(torch.relu(self.convolution(images)).flatten(1))


def id_rows(count: int = 40, shortest: int = 4, longest: int = 9, seed: int = 3) -> list[Tensor]:
    """Rows of various lengths that count up from a random id, special ones left out."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(shortest, longest + 1, (count,), generator=generator)
    starts = torch.randint(0, VOCAB - FIRST, (count,), generator=generator)
    strides = torch.randint(1, 4, (count,), generator=generator)
    return [
        FIRST + (start + stride * torch.arange(int(length))) % (VOCAB - FIRST)
        for start, stride, length in zip(starts, strides, lengths, strict=True)
    ]


def padded(rows: list[Tensor], labels: list[Any] | None = None, filler: int = PAD) -> Batch:
    """Rows as one batch; labels that are rows themselves are padded with -100."""
    mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
    batch = {"input_ids": pad_sequence(rows, batch_first=True, padding_value=filler), "attention_mask": mask}
    if labels is not None:
        by_token = isinstance(labels[0], Tensor) and labels[0].dim() == 1 and not labels[0].is_floating_point()
        batch["labels"] = (
            pad_sequence(labels, batch_first=True, padding_value=-100)
            if by_token
            else torch.stack([torch.as_tensor(label) for label in labels])
        )
    return batch


def collate(samples: list[dict[str, Any]]) -> Batch:
    """Samples {"input_ids", "labels"} as `padded` makes them."""
    return padded([sample["input_ids"] for sample in samples], [sample["labels"] for sample in samples])


def samples_of(rows: list[Tensor], label: Callable[[Tensor], Any]) -> list[dict[str, Any]]:
    """Each row with the label that `label` makes from it."""
    return [{"input_ids": row, "labels": label(row)} for row in rows]


def class_of(row: Tensor) -> int:
    """Which quarter of the vocabulary the first id is from."""
    return int((row[0] - FIRST) * CLASSES // (VOCAB - FIRST))


def classes_in(row: Tensor) -> Tensor:
    """A 1 for each quarter of the vocabulary that occurs."""
    found = torch.zeros(CLASSES)
    found[(row - FIRST) * CLASSES // (VOCAB - FIRST)] = 1
    return found


def tags_of(row: Tensor) -> Tensor:
    """The quarter of each id; the first one is not scored."""
    return ((row - FIRST) * CLASSES // (VOCAB - FIRST)).index_fill(0, torch.tensor([0]), -100)


def amount_of(row: Tensor) -> Tensor:
    """The mean id, about 0."""
    return (row.float().mean() - VOCAB / 2) / 4


def masked(row: Tensor) -> dict[str, Tensor]:
    """Every third id masked."""
    chosen = torch.arange(len(row)) % 3 == 1
    return {"input_ids": row.masked_fill(chosen, MASK), "labels": row.masked_fill(~chosen, -100)}


def reversed_ids(row: Tensor) -> Tensor:
    """The row backwards, ended by 2: what a text-to-text model is to write."""
    return torch.cat([row.flip(0), torch.tensor([2])])
