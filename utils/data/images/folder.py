"""Images in folders, one for each class, and the reader of image files."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from utils.data.images.pixels import in_8_bits
from utils.data.images.samples import BaseDataset, ImageSamples
from utils.data.images.transforms import Transform, image_transform
from utils.errors import ConfigError, DataError, DataNotFoundError, MissingPackageError, first_line

log = logging.getLogger("trainbook.data")

#: Endings of the files that are read as images.
ENDINGS = (".png", ".jpg", ".jpeg")
_VALIDATION_FOLDERS = ("val", "valid", "validation", "test")


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
            there = "is a file, no folder" if self.root.exists() else "no such folder"
            raise DataNotFoundError(
                f"{self.root.resolve()}: {there}. Give the folder that holds one for each class; a table of image paths and "
                "labels is read by the dataset image_table."
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
            files = [path for path in inside if path.suffix.lower() in ENDINGS]
            others = [path.name for path in inside if path not in files and not path.name.startswith(".")]
            if files and others:
                log.warning(
                    "%s: %d files are skipped, which do not end in %s; the first is %s. Convert them if they are images.",
                    folder / name, len(others), ", ".join(ENDINGS), others[0],
                )  # fmt: skip
            if not files and folder == self._parts()[0]:
                raise DataError(
                    f"{folder / name}: has no image ({', '.join(ENDINGS)}). Put some there, or remove the folder."
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
        return self.samples(ImageFiles(paths, self._channels, self.input_size), labels, training=training)


def _subfolders(folder: Path) -> list[str]:
    names = sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not names:
        raise DataError(
            f"{folder.resolve()}: has no folders; put the images of each class into one named as the class."
        )
    return names


class ImageFiles:
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
