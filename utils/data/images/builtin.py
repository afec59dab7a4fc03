"""The image datasets that come with the library: their files as torchvision lays them out, the classes of a folder, digits.

Reading order: image_files (what is in the files), transforms, image_sets (samples, BaseDataset), this.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from utils.data.images.files import read_cifar_batch, read_idx
from utils.data.images.pixels import in_8_bits
from utils.data.images.registry import DatasetRegistry
from utils.data.images.samples import BaseDataset, ImageSamples
from utils.data.images.transforms import Transform, image_transform, torchvision_transforms
from utils.errors import ConfigError, DataError, DataNotFoundError, MissingPackageError, first_line

__all__ = ["BaseDataset", "CIFARDataset", "DigitsDataset", "FashionMNISTDataset", "ImageFolderDataset", "MNISTDataset"]

log = logging.getLogger("trainbook.data")


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


_ENDINGS = (".png", ".jpg", ".jpeg")
_VALIDATION_FOLDERS = ("val", "valid", "validation", "test")


@DatasetRegistry.register("image_folder")
class ImageFolderDataset(BaseDataset):
    """Your own images: a folder for each class, named as the class, with PNG and JPEG files in it.

    With <root>/train and one of <root>/val, valid, validation, test these are the two sets. Otherwise the classes lie in
    <root> itself, or in a <root>/train that is alone there, and of each class `validation_share` is held back, in an order
    that is always the same. Images are read when
    they are asked for, made `input_channels` deep, and scaled to `input_size`. For training they are mirrored at random.
    Images of 16 bits are scaled to 8 by their whole range, and transparent ones are laid on white (`utils.data.images.pixels`).

    Args:
        root: the folder. download: there is nothing to fetch; taken so that every dataset is made the same way.
        input_size: (height, width) in pixels, or one number for both.
        input_channels: 3 for colour, 1 for grey.
        validation_share: of each class, above 0 and below 1; at least one image.
    Raises:
        ConfigError: a size that cannot be. DataNotFoundError, DataError: once something is asked for, names folder or file.
    """

    def __init__(
        self,
        root: str | Path = "./data",
        download: bool = True,
        reapply_transforms: bool = False,
        *,
        keep_transformed: bool = False,
        input_size: int | tuple[int, int] = 64,
        input_channels: int = 3,
        validation_share: float = 0.1,
    ) -> None:
        self._size = (input_size, input_size) if isinstance(input_size, int) else tuple(input_size)
        if len(self._size) != 2 or any(type(side) is not int or side < 1 for side in self._size):
            raise ConfigError(f"input_size: got {input_size!r}; must be one or two whole numbers of at least 1.")
        if input_channels not in (1, 3):
            raise ConfigError(f"input_channels: got {input_channels!r}; must be 3 (colour) or 1 (grey).")
        if not isinstance(validation_share, (int, float)) or not 0 < validation_share < 1:
            raise ConfigError(f"validation_share: got {validation_share!r}; must be above 0 and below 1.")
        self._channels, self.validation_share = input_channels, validation_share
        self._classes: list[str] | None = None
        super().__init__(root, download, reapply_transforms, keep_transformed=keep_transformed)

    def get_train_transform(self) -> Transform:
        # Of images that nobody knows, half is a fair guess of mean and spread: they come to be between -1 and 1.
        return image_transform([0.5] * self._channels, [0.5] * self._channels, flip=True)

    def get_test_transform(self) -> Transform:
        return image_transform([0.5] * self._channels, [0.5] * self._channels)

    @property
    def classes(self) -> list[str]:
        """Names of the classes, sorted; a label is a place in it."""
        if self._classes is None:
            self._classes = _subfolders(self._parts()[0])
        return self._classes

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    @property
    def input_channels(self) -> int:
        return self._channels

    @property
    def input_size(self) -> tuple[int, int]:
        return self._size[0], self._size[1]

    def load_data(self) -> tuple[ImageSamples, ImageSamples]:
        train_folder, validation_folder = self._parts()
        train = self._files(train_folder)
        if validation_folder is None:
            train, validation = self._split(train)
        else:
            validation = self._files(validation_folder)
        return self._part(train, training=True), self._part(validation, training=False)

    def _parts(self) -> tuple[Path, Path | None]:
        """The folder of the training set and that of the validation set, where it has one of its own."""
        if not self.root.is_dir():
            raise DataNotFoundError(
                f"{self.root.resolve()}: no such folder. Give the folder that holds one for each class."
            )
        train = self.root / "train"
        others = [self.root / name for name in _VALIDATION_FOLDERS if (self.root / name).is_dir()]
        if train.is_dir() and others:
            return train, others[0]
        # A class may be called "train"; a folder of folders is not a class.
        alone = (
            train.is_dir() and _subfolders(self.root) == ["train"] and any(path.is_dir() for path in train.iterdir())
        )
        return (train if alone else self.root), None

    def _files(self, folder: Path) -> list[list[Path]]:
        """The image files of each class. Raises `DataError` for a class without one, or one that training does not have."""
        strange = sorted(set(_subfolders(folder)) - set(self.classes))
        if strange:
            raise DataError(f"{folder}: has the class {strange[0]!r}, and training has only {', '.join(self.classes)}.")
        found = []
        for name in self.classes:
            inside = sorted((folder / name).iterdir()) if (folder / name).is_dir() else []
            files = [path for path in inside if path.suffix.lower() in _ENDINGS]
            others = [path.name for path in inside if path not in files and not path.name.startswith(".")]
            if files and others:
                log.warning(
                    "%s: %d files are skipped, which do not end in %s; the first is %s. Convert them if they are images.",
                    folder / name, len(others), ", ".join(_ENDINGS), others[0],
                )  # fmt: skip
            if not files and folder == self._parts()[0]:
                raise DataError(
                    f"{folder / name}: has no image ({', '.join(_ENDINGS)}). Put some there, or remove the folder."
                )
            found.append(files)
        return found

    def _split(self, files: list[list[Path]]) -> tuple[list[list[Path]], list[list[Path]]]:
        """Of each class, the files for training and those held back."""
        train, held_back = [], []
        for number, of_class in enumerate(files):
            if len(of_class) < 2:
                raise DataError(
                    f"{of_class[0]}: is the only image of its class; training and validation need one each."
                )
            order = np.random.default_rng([0, number]).permutation(len(of_class))
            count = max(1, round(self.validation_share * len(of_class)))
            count = min(count, len(of_class) - 1)
            held_back.append([of_class[i] for i in sorted(order[:count])])
            train.append([of_class[i] for i in sorted(order[count:])])
        return train, held_back

    def _part(self, files: list[list[Path]], *, training: bool) -> ImageSamples:
        labels = np.repeat(np.arange(len(files)), [len(of_class) for of_class in files])
        paths = [path for of_class in files for path in of_class]
        return self.samples(_Decoded(paths, self._channels, self.input_size), labels, training=training)


def _subfolders(folder: Path) -> list[str]:
    names = sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not names:
        raise DataError(
            f"{folder.resolve()}: has no folders; put the images of each class into one named as the class."
        )
    return names


class _Decoded:
    """Image files, read when asked for: uint8 (C, H, W)."""

    def __init__(self, paths: Sequence[Path], channels: int, size: tuple[int, int]) -> None:
        self.paths, self.channels, self.size = paths, channels, size

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        path = self.paths[index]
        pixels = _decode(path, "RGB" if self.channels == 3 else "L", self.size)
        pixels = pixels[:, :, None] if pixels.ndim == 2 else pixels
        return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def _decode(path: Path, mode: str, size: tuple[int, int]) -> np.ndarray:
    """uint8, shape (H, W) or (H, W, 3). Raises `DataError` with the path: an image that cannot be read is no sample."""
    try:
        from PIL import Image, ImageOps
    except ModuleNotFoundError as error:
        raise MissingPackageError("pillow", "to read image files") from error
    try:
        with Image.open(path) as image:
            upright = ImageOps.exif_transpose(image)  # as cameras say it is to be shown
            converted = in_8_bits(upright).convert(mode)
            height, width = size
            scaled = converted if converted.size == (width, height) else converted.resize((width, height))
            return np.array(scaled, dtype=np.uint8)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    except Exception as error:  # Pillow's decoders raise whatever a damaged file makes them
        raise DataError(
            f"{path}: cannot be read as an image ({first_line(error, with_class=True)}). Replace or remove it."
        ) from error
