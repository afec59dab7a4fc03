"""Images and labels as samples for training, and the frame of a dataset of images."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from utils.data.images.transforms import Transform
from utils.data.sources import epoch_seed
from utils.errors import ConfigError, DataError
from utils.storage import absolute_path

#: Batch of (images, labels) -> what a loop over loaders gets: fp32 (B, C, H, W) and int64 (B,).
Pair = tuple[Tensor, Tensor]


class Images(Protocol):
    """Images by number: uint8 (C, H, W). A tensor (N, C, H, W) is that."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Tensor: ...


class ImageSamples(Dataset[dict[str, Tensor]]):
    """Images and their labels, transformed whenever one is asked for.

    A sample is `pixel_values` fp32 (C, H, W) and `labels` int64 (): what `Trainer` takes for image classification.

    Args:
        images: uint8 (C, H, W) by number; they are kept as they are.
        labels: int64 (N,), from 0.
        transform: uint8 image -> fp32 image; what it draws at random comes from torch's global generator.
        keep: whether what a transform made of an image is kept, and given again, until `draw_again`. Then every image is
            drawn once, and how is a function of (seed, draws so far, its number): not of the process that asks, or when.
        seed: of those draws.
    """

    def __init__(
        self, images: Images, labels: Tensor, transform: Transform, *, keep: bool = False, seed: int = 0
    ) -> None:
        self.images, self.labels, self.transform = images, labels, transform
        self.keep, self.seed = keep, seed
        self._draws = 0
        self._kept: dict[int, Tensor] = {}

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        return {"pixel_values": self._transformed(index), "labels": self.labels[index]}

    def _transformed(self, index: int) -> Tensor:
        if not self.keep:
            return self.transform(self.images[index])
        if index not in self._kept:
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(epoch_seed(self.seed, self._draws, index) & 0x7FFFFFFFFFFFFFFF)
                self._kept[index] = self.transform(self.images[index])
        return self._kept[index]

    def draw_again(self, transform: Transform) -> None:
        """Transform every image anew, by `transform`, when it is next asked for."""
        self.transform = transform
        self._draws += 1
        self._kept = {}


def pairs(samples: Sequence[Any]) -> Pair:
    """Collate samples of `ImageSamples`, or pairs (image, label): images (B, C, H, W) and labels (B,)."""
    if not isinstance(samples[0], Mapping):
        images, labels = torch.utils.data.default_collate(list(samples))
        return images, labels
    return (
        torch.stack([sample["pixel_values"] for sample in samples]),
        torch.stack([sample["labels"] for sample in samples]),
    )


class BaseDataset(ABC):
    """A dataset of images: how it is read, what is done to its images, and its loaders.

    The transforms are made when it is, the files are read when something of them is asked for. Derive from it, say what is
    abstract here, and register the class with `DatasetRegistry`.

    Args:
        root: folder under which its files lie.
        download: whether missing files may be fetched; that takes torchvision.
        reapply_transforms: whether `reset_train_transforms` does anything: see there.
        keep_transformed: transform each training image once and keep it (fp32: four times the bytes of the image), instead of
            whenever it is asked for. Faster, and training sees fewer variations of it.
    """

    def __init__(
        self,
        root: str | Path = "./data",
        download: bool = True,
        reapply_transforms: bool = False,
        *,
        keep_transformed: bool = False,
    ) -> None:
        self.root, self.download, self.reapply_transforms = absolute_path(root), download, reapply_transforms
        self.keep_transformed = keep_transformed
        self.train_transform: Transform = self.get_train_transform()
        self.test_transform: Transform = self.get_test_transform()
        self._train_dataset: Any = None
        self._test_dataset: Any = None

    @abstractmethod
    def get_train_transform(self) -> Transform:
        """uint8 image (C, H, W) -> fp32 (C, H, W), for training; may draw from torch's global generator."""

    @abstractmethod
    def get_test_transform(self) -> Transform:
        """The same for testing; draws nothing."""

    @abstractmethod
    def load_data(self) -> tuple[Any, Any]:
        """Read the files: the training and the test set, as datasets by number; see `samples`."""

    @property
    @abstractmethod
    def num_classes(self) -> int:
        """Number of classes."""

    @property
    @abstractmethod
    def input_channels(self) -> int:
        """1 for grey, 3 for colour."""

    @property
    @abstractmethod
    def input_size(self) -> tuple[int, int]:
        """Height and width, in pixels."""

    @property
    def train_set(self) -> Any:
        """The training samples: `trainer.train(dataset.train_set, dataset.test_set)`."""
        self._load()
        return self._train_dataset

    @property
    def test_set(self) -> Any:
        """The samples that are not trained on."""
        self._load()
        return self._test_dataset

    def _load(self) -> None:
        if self._train_dataset is None:
            loaded = self.load_data()
            if not isinstance(loaded, tuple) or len(loaded) != 2:
                raise DataError(
                    f"{self.name}.load_data returned a {type(loaded).__name__}; it must return a pair (training set, test set)."
                )
            self._train_dataset, self._test_dataset = loaded

    def samples(self, images: Images, labels: np.ndarray, *, training: bool) -> ImageSamples:
        """`images` with their `labels` (whole numbers, shape (N,)) under the transform of their kind.

        Raises:
            DataError: no images, another number of labels, or a label that is no class; says which.
        """
        if len(images) == 0 or len(images) != len(labels):
            kind = "training" if training else "test"
            raise DataError(f"{self.name}: {len(images):,} {kind} images and {len(labels):,} labels; give one each.")
        wrong = np.flatnonzero((labels < 0) | (labels >= self.num_classes))
        if len(wrong):
            raise DataError(
                f"{self.name}: the label of image {wrong[0]} is {labels[wrong[0]]}; there are classes 0 to "
                f"{self.num_classes - 1}."
            )
        transform = self.train_transform if training else self.test_transform
        held = torch.from_numpy(labels.astype(np.int64))
        return ImageSamples(images, held, transform, keep=training and self.keep_transformed)

    @property
    def name(self) -> str:
        """Name for messages."""
        return type(self).__name__

    def get_dataloaders(
        self, batch_size: int = 64, num_workers: int = 0, shuffle_train: bool = True
    ) -> tuple[DataLoader[Pair], DataLoader[Pair]]:
        """Loaders of training and of validation batches, each a pair: images (B, C, H, W) and labels (B,).

        Args:
            num_workers: processes that prepare batches. Images in memory are transformed faster than a process is started.
            shuffle_train: whether training batches come in a new order each time.
        Raises:
            DataNotFoundError: files are missing; says which belong where. DataError: they cannot be used.
            ConfigError: no batch size or number of processes.
        """
        for setting, value, least in (("batch_size", batch_size, 1), ("num_workers", num_workers, 0)):
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ConfigError(f"{setting}: got {value!r}; must be a whole number of at least {least}.")
        train: DataLoader[Pair] = DataLoader(
            self.train_set, batch_size, shuffle=shuffle_train, num_workers=num_workers, collate_fn=pairs
        )
        validation: DataLoader[Pair] = DataLoader(self.test_set, batch_size, num_workers=num_workers, collate_fn=pairs)
        return train, validation

    def get_info(self) -> dict[str, Any]:
        """Name, sizes, and how many samples there are: None until the files have been read."""
        return {
            "name": self.name,
            "root": str(self.root),
            "num_classes": self.num_classes,
            "input_channels": self.input_channels,
            "input_size": self.input_size,
            "train_samples": None if self._train_dataset is None else len(self._train_dataset),
            "test_samples": None if self._test_dataset is None else len(self._test_dataset),
        }

    def reset_train_transforms(self) -> None:
        """With `reapply_transforms`: make the training transform again, and what was kept of it is thrown away.

        Call it after an epoch. With `keep_transformed` every image is drawn anew, once, until the next call. Without it the
        random transforms draw anew whenever an image is asked for, so nothing changes. Loaders need not be made again;
        loader processes that outlive an epoch (`persistent_workers`) have a copy of the dataset and learn nothing of it.
        """
        if not self.reapply_transforms:
            return
        self.train_transform = self.get_train_transform()
        if self._train_dataset is not None:
            self._reload_train_data()

    def _reload_train_data(self) -> None:
        """Give the new training transform to the training set: reads it again, if it is of another class than ours."""
        if isinstance(self._train_dataset, ImageSamples):
            self._train_dataset.draw_again(self.train_transform)
        else:
            self._train_dataset, _ = self.load_data()
