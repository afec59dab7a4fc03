"""Image preprocessing and augmentation with plain tensor operations.

Each takes and gives one image (C, H, W). What is random is drawn from torch's global generator, so whoever seeds that
decides it. With torchvision installed the same steps are torchvision's: see `image_transform`.
"""

from __future__ import annotations

import importlib
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

log = logging.getLogger("trainbook.data")

Transform = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Compose:
    """One step after the other."""

    steps: Sequence[Transform]

    def __call__(self, image: Tensor) -> Tensor:
        for step in self.steps:
            image = step(image)
        return image


@dataclass(frozen=True)
class ToFloat:
    """uint8 0 … 255 -> fp32 0 … 1."""

    def __call__(self, image: Tensor) -> Tensor:
        return image.float() / 255


class Normalize:
    """(image - mean) / std: a number for each channel, or one for all."""

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        self.mean, self.std = (torch.tensor(values)[:, None, None] for values in (mean, std))

    def __call__(self, image: Tensor) -> Tensor:
        return (image - self.mean) / self.std


@dataclass(frozen=True)
class RandomAffine:
    """A turn and a shift, each uniform; what comes from outside is 0.

    Attributes:
        degrees: the largest turn either way.
        shift: the largest shift either way, as a share of the image's side.
    """

    degrees: float = 10.0
    shift: float = 0.1

    def __call__(self, image: Tensor) -> Tensor:
        turn, right, down = (torch.rand(3) * 2 - 1).tolist()
        angle = math.radians(self.degrees * turn)
        _, height, width = image.shape
        cos, sin = math.cos(angle), math.sin(angle)
        # Coordinates run from -1 to 1 along each side, so a turn in pixels is skewed by the sides' ratio, and a shift of
        # one side is 2.
        matrix = torch.tensor(
            [
                [cos, -sin * height / width, 2 * self.shift * right],
                [sin * width / height, cos, 2 * self.shift * down],
            ]
        )
        grid = F.affine_grid(matrix[None], [1, *image.shape], align_corners=False)
        return F.grid_sample(image[None], grid, align_corners=False)[0]


@dataclass(frozen=True)
class RandomCrop:
    """An image of the same size out of one with `padding` pixels of 0 around it."""

    padding: int = 4

    def __call__(self, image: Tensor) -> Tensor:
        _, height, width = image.shape
        top, left = torch.randint(2 * self.padding + 1, (2,)).tolist()
        padded = F.pad(image, [self.padding] * 4)
        return padded[:, top : top + height, left : left + width]


@dataclass(frozen=True)
class RandomFlip:
    """Left and right exchanged, half of the time."""

    def __call__(self, image: Tensor) -> Tensor:
        return image.flip(-1) if torch.rand(()) < 0.5 else image


def image_transform(
    mean: Sequence[float],
    std: Sequence[float],
    *,
    affine: bool = False,
    crop: tuple[int, int] | None = None,
    flip: bool = False,
) -> Transform:
    """uint8 image (C, H, W) -> fp32 image of the same shape, normalised.

    Args:
        mean, std: of each channel, where 1 is white.
        affine: turned by up to 10 degrees and shifted by up to a tenth.
        crop: the image's (height, width), cut at random out of the image with 4 pixels of padding; flip: at random.
    Returns:
        torchvision's transforms where it can be imported, else those of this module.
    """
    vision = torchvision_transforms()
    if vision is None:
        steps: list[Transform] = [ToFloat()]
        wanted = ((affine, RandomAffine()), (crop is not None, RandomCrop()), (flip, RandomFlip()))
        steps += [step for chosen, step in wanted if chosen]
        return Compose([*steps, Normalize(mean, std)])
    made: list[Any] = [vision.ConvertImageDtype(torch.float32)]
    if affine:
        made.append(vision.RandomAffine(10, translate=(0.1, 0.1), interpolation=vision.InterpolationMode.BILINEAR))
    if crop is not None:
        made.append(vision.RandomCrop(crop, padding=4))
    if flip:
        made.append(vision.RandomHorizontalFlip())
    transform: Transform = vision.Compose([*made, vision.Normalize(tuple(mean), tuple(std))])
    return transform


@cache
def torchvision_transforms() -> Any:
    """The module torchvision.transforms; None where it is not installed, or does not fit the torch that is."""
    try:
        return importlib.import_module("torchvision.transforms")
    except ModuleNotFoundError:
        return None
    except (ImportError, RuntimeError, OSError) as error:  # a torchvision of another torch raises any of these
        log.warning("torchvision cannot be imported (%s): images are transformed without it.", error)
        return None
