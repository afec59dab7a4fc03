"""Loaders of the callback trainer's examples; each returns (train, test), the first one shuffled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Subset, TensorDataset, random_split

from utils.data.images.builtin import MNISTDataset
from utils.data.images.samples import pairs
from utils.data.images.transforms import Transform

Loaders = tuple[DataLoader[Any], DataLoader[Any]]


class _PlainMNIST(MNISTDataset):
    """MNIST without augmentation."""

    def get_train_transform(self) -> Transform:
        return self.get_test_transform()


def load_mnist(
    batch_size: int = 64, root: str | Path = "./data", download: bool = True, num_workers: int = 0
) -> Loaders:
    """MNIST, normalised, from the idx files under `root`/MNIST/raw. Raises `DataNotFoundError` that names missing files."""
    train, test = _PlainMNIST(root, download).load_data()
    return _loaders(train, test, batch_size, num_workers)


def load_mnist_subset(
    batch_size: int = 64,
    subset_size: int = 1000,
    root: str | Path = "./data",
    download: bool = True,
    num_workers: int = 0,
) -> Loaders:
    """The first `subset_size` training images, and a fifth as many test images."""
    train, test = _PlainMNIST(root, download).load_data()
    fewer = max(1, min(len(test), subset_size // 5))
    return _loaders(
        Subset(train, range(min(len(train), subset_size))), Subset(test, range(fewer)), batch_size, num_workers
    )


def create_synthetic_loaders(
    num_samples: int = 1000, batch_size: int = 64, input_dim: int = 784, num_classes: int = 10, test_split: float = 0.2
) -> Loaders:
    """Gaussian clusters, one a class, drawn from torch's generator."""
    labels = torch.randint(num_classes, (num_samples,))
    data = TensorDataset(torch.randn(num_classes, input_dim)[labels] + torch.randn(num_samples, input_dim), labels)
    count = int(num_samples * test_split)
    train, test = random_split(data, [num_samples - count, count])
    return DataLoader(train, batch_size, shuffle=True), DataLoader(test, batch_size)


def _loaders(train: Any, test: Any, batch_size: int, num_workers: int) -> Loaders:
    options: dict[str, Any] = {"collate_fn": pairs, "num_workers": num_workers}
    return DataLoader(train, batch_size, shuffle=True, **options), DataLoader(test, batch_size, **options)
