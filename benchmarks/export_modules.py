"""Models of `benchmarks.exports` that belong to no library, in a file that another process can import."""

from __future__ import annotations

import torch
from torch import nn


class LeNet(nn.Module):
    """LeNet-5 (LeCun et al. 1998) for 28 x 28 images."""

    input_size = 28

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 6, 5, padding=2),
            nn.Tanh(),
            nn.AvgPool2d(2),
            nn.Conv2d(6, 16, 5),
            nn.Tanh(),
            nn.AvgPool2d(2),
        )
        self.classifier = nn.Sequential(nn.Flatten(), nn.Linear(400, 120), nn.Tanh(), nn.Linear(120, 10))

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.features(pixel_values))


class PlainLM(nn.Module):
    """A recurrent language model with a name of its own for its input."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.embedding, self.mixer = nn.Embedding(rows, 32), nn.GRU(32, 32, batch_first=True)
        self.head = nn.Linear(32, rows)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.mixer(self.embedding(tokens))[0])


class Built(nn.Module):
    """As a visual builder exports it: forward takes the outputs of its own nodes."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.embedding, self.mhsa_0 = nn.Embedding(rows, 32), nn.MultiheadAttention(32, 2, batch_first=True)
        self.head = nn.Linear(32, rows)

    def forward(
        self, input_0_tokens: torch.Tensor, mhsa_0_output: torch.Tensor, residual_0_output: torch.Tensor
    ) -> torch.Tensor:
        return self.head(residual_0_output)
