"""The image datasets that come with the library: their files as torchvision lays them out, and digits; all of them registered.

Reading order: `files` (what is in the files), `transforms`, `samples` (samples, BaseDataset), this; `folder` and `table` are
the user's own images.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from utils.data.images.files import read_cifar_batch, read_idx
from utils.data.images.folder import ImageFolderDataset
from utils.data.images.registry import DatasetRegistry
from utils.data.images.samples import BaseDataset, ImageSamples
from utils.data.images.table import ImageTableDataset
from utils.data.images.transforms import Transform, image_transform, torchvision_transforms
from utils.errors import DataError, DataNotFoundError, MissingPackageError, first_line

__all__ = [
    "BaseDataset", "CIFARDataset", "DigitsDataset", "FashionMNISTDataset", "ImageFolderDataset", "ImageTableDataset",
    "MNISTDataset",
]  # fmt: skip

DatasetRegistry.register("image_folder", ImageFolderDataset)
DatasetRegistry.register("image_table", ImageTableDataset)


class _FilesDataset(BaseDataset):
    """A dataset with known files in its own folder, which torchvision can download.

    Attributes:
        FOLDER: where its files lie, under the root; FETCHED_BY: torchvision's class that puts them there.
    """

    FOLDER: ClassVar[str]
    FETCHED_BY: ClassVar[str]

    @property
    def folder(self) -> Path:
        """Folder of its files."""
        return self.root / self.FOLDER

    @property
    def num_classes(self) -> int:
        return 10

    def _require(self, names: Sequence[str], *, or_gzipped: bool = False) -> list[Path]:
        """The files of these names. Raises `DataNotFoundError` that lists those that are missing."""
        found = self._look_for(names, or_gzipped)
        if None in found and self.download and torchvision_transforms() is not None:
            self._fetch()
            found = self._look_for(names, or_gzipped)
        missing = [name for name, path in zip(names, found, strict=True) if path is None]
        if missing:
            raise DataNotFoundError(
                f"{self.name}: {', '.join(missing)} {'are' if len(missing) > 1 else 'is'} not in {self.folder.resolve()}. "
                f"Put {'them' if len(missing) > 1 else 'it'} there{', plain or as .gz' if or_gzipped else ''}; "
                f"{self._why_not_fetched()}."
            )
        return [path for path in found if path is not None]

    def _look_for(self, names: Sequence[str], or_gzipped: bool) -> list[Path | None]:
        endings = ("", ".gz") if or_gzipped else ("",)
        candidates = [[self.folder / (name + ending) for ending in endings] for name in names]
        return [next((path for path in paths if path.is_file()), None) for paths in candidates]

    def _why_not_fetched(self) -> str:
        if not self.download:
            return "download=True fetches what is missing, with torchvision"
        if torchvision_transforms() is None:
            return "to have them fetched, install torchvision"
        return "torchvision did not bring them"

    def _fetch(self) -> None:
        datasets: Any = importlib.import_module("torchvision.datasets")
        try:
            getattr(datasets, self.FETCHED_BY)(str(self.root), train=True, download=True)
        except Exception as error:  # whatever it is, it comes from the network or another library
            raise DataError(
                f"{self.name}: torchvision could not fetch it to {self.root.resolve()}: {type(error).__name__}: "
                f"{first_line(error)}. "
                f"Put its files into {self.folder.resolve()} yourself, with download=False."
            ) from error


@DatasetRegistry.register("mnist")
class MNISTDataset(_FilesDataset):
    """Handwritten digits, 28 x 28 and grey: 60,000 for training and 10,000 for testing (LeCun, Cortes, Burges).

    Files: <root>/MNIST/raw/{train,t10k}-{images-idx3,labels-idx1}-ubyte, plain or .gz. For training turned by up to 10 degrees
    and shifted by up to a tenth.
    """

    FOLDER, FETCHED_BY = "MNIST/raw", "MNIST"
    #: Mean and standard deviation of all pixels of the training set, where 1 is white.
    MEAN: ClassVar[float] = 0.1307
    STD: ClassVar[float] = 0.3081

    def get_train_transform(self) -> Transform:
        return image_transform([self.MEAN], [self.STD], affine=True)

    def get_test_transform(self) -> Transform:
        return image_transform([self.MEAN], [self.STD])

    @property
    def input_channels(self) -> int:
        return 1

    @property
    def input_size(self) -> tuple[int, int]:
        return 28, 28

    def load_data(self) -> tuple[ImageSamples, ImageSamples]:
        files = self._require(
            [f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")],
            or_gzipped=True,
        )
        return self._part(files[0], files[1], training=True), self._part(files[2], files[3], training=False)

    def _part(self, images_file: Path, labels_file: Path, *, training: bool) -> ImageSamples:
        images, labels = read_idx(images_file, 3), read_idx(labels_file, 1)
        if images.shape[1:] != self.input_size:
            height, width = images.shape[1:]
            raise DataError(f"{images_file}: holds images of {height} x {width} pixels; {self.name} has 28 x 28.")
        # A copy: torch tensors may be written to, and what was read from a file may not.
        return self.samples(torch.from_numpy(images[:, None].copy()), labels.astype(np.int64), training=training)


@DatasetRegistry.register("fashion-mnist")
class FashionMNISTDataset(MNISTDataset):
    """Pieces of clothing, in MNIST's sizes and format (Xiao, Rasul, Vollgraf 2017). For training mirrored at random.

    Files: as MNIST's, under <root>/FashionMNIST/raw.
    """

    FOLDER, FETCHED_BY = "FashionMNIST/raw", "FashionMNIST"
    MEAN, STD = 0.2860, 0.3530

    def get_train_transform(self) -> Transform:
        return image_transform([self.MEAN], [self.STD], affine=True, flip=True)


@DatasetRegistry.register("cifar10")
class CIFARDataset(_FilesDataset):
    """Photographs of ten kinds of things, 32 x 32 in colour: 50,000 for training, 10,000 for testing (Krizhevsky 2009).

    Files: <root>/cifar-10-batches-py/data_batch_1 … 5 and test_batch, the "python version". They are pickles, and are read
    without running anything in them. For training cropped out of 4 pixels of padding and mirrored at random.
    """

    FOLDER, FETCHED_BY = "cifar-10-batches-py", "CIFAR10"
    #: Mean and standard deviation of each channel over the training set, where 1 is full colour.
    MEAN: ClassVar[tuple[float, ...]] = (0.4914, 0.4822, 0.4465)
    STD: ClassVar[tuple[float, ...]] = (0.2470, 0.2435, 0.2616)

    def get_train_transform(self) -> Transform:
        return image_transform(self.MEAN, self.STD, crop=self.input_size, flip=True)

    def get_test_transform(self) -> Transform:
        return image_transform(self.MEAN, self.STD)

    @property
    def input_channels(self) -> int:
        return 3

    @property
    def input_size(self) -> tuple[int, int]:
        return 32, 32

    def load_data(self) -> tuple[ImageSamples, ImageSamples]:
        files = self._require([*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"])
        return self._part(files[:5], training=True), self._part(files[5:], training=False)

    def _part(self, files: Sequence[Path], *, training: bool) -> ImageSamples:
        batches = [read_cifar_batch(file) for file in files]
        images = torch.from_numpy(np.concatenate([images for images, _ in batches]))
        return self.samples(images, np.concatenate([labels for _, labels in batches]), training=training)


@DatasetRegistry.register("digits")
class DigitsDataset(BaseDataset):
    """Handwritten digits, 8 x 8 and grey, that come with scikit-learn: nothing is fetched, `root` is not used.

    1,797 images (Alpaydin, Kaynak 1998); their 17 shades become 0 … 255. Every fifth of them, in an order that is always the
    same, is for testing. For training shifted and turned as MNIST.
    """

    #: Mean and standard deviation of all pixels, where 1 is white.
    MEAN, STD = 0.3053, 0.3760
    _TEST_SHARE = 5

    def get_train_transform(self) -> Transform:
        return image_transform([self.MEAN], [self.STD], affine=True)

    def get_test_transform(self) -> Transform:
        return image_transform([self.MEAN], [self.STD])

    @property
    def num_classes(self) -> int:
        return 10

    @property
    def input_channels(self) -> int:
        return 1

    @property
    def input_size(self) -> tuple[int, int]:
        return 8, 8

    def load_data(self) -> tuple[ImageSamples, ImageSamples]:
        try:
            digits: Any = importlib.import_module("sklearn.datasets").load_digits()
        except ModuleNotFoundError as error:
            raise MissingPackageError("scikit-learn", "for the dataset digits") from error
        images = torch.from_numpy(np.round(digits.images * 255 / 16).astype(np.uint8))[:, None]
        labels = np.asarray(digits.target, dtype=np.int64)
        order = np.random.default_rng(0).permutation(len(labels))
        tested = np.arange(len(labels)) % self._TEST_SHARE == 0
        train, test = order[~tested], order[tested]
        return (
            self.samples(images[train], labels[train], training=True),
            self.samples(images[test], labels[test], training=False),
        )
