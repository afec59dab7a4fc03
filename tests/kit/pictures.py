"""Toy images: 8 x 8 pixels whose bright quadrant is their class, and a small convolutional net."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

CLASSES = 4


def pictures(count: int = 40, seed: int = 3) -> TensorDataset:
    """(count, 1, 8, 8) noise with one bright quadrant, and its number."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, CLASSES, (count,), generator=generator)
    images = 0.5 * torch.randn(count, 1, 8, 8, generator=generator)
    for image, label in zip(images, labels.tolist(), strict=True):
        top, left = 4 * (label // 2), 4 * (label % 2)
        image[:, top : top + 4, left : left + 4] += 1.0
    return TensorDataset(images, labels)


def loaders(batch_size: int = 8, count: int = 40, shuffle: bool = True) -> tuple[DataLoader, DataLoader]:
    """Training and validation batches; the last of each is smaller."""
    train, validation = pictures(count), pictures(22, seed=4)
    return DataLoader(train, batch_size, shuffle=shuffle), DataLoader(validation, batch_size)


class SmallNet(nn.Module):
    """Convolution, batch norm, dropout, two linear layers."""

    def __init__(self, num_classes: int = CLASSES) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.AvgPool2d(4))
        self.classifier = nn.Sequential(nn.Flatten(), nn.Dropout(0.1), nn.Linear(16, num_classes))

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.features(images))


def small_net(num_classes: int = CLASSES, seed: int = 0) -> SmallNet:
    """With fixed initial weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return SmallNet(num_classes)
