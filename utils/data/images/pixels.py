"""Pixels of every format as 8 bits a channel, scaled by the range of the format."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from utils.errors import DataError

if TYPE_CHECKING:
    from PIL import Image

_LARGEST_16_BIT = 65_535
_BACKGROUND = (255, 255, 255, 255)


def in_8_bits(image: Image.Image) -> Image.Image:
    """A Pillow image of any mode as one of 8 bits a channel without transparency.

    Whole numbers of 16 bits are scaled from 0 ... 65,535, floats from 0 ... 1. Transparent images are laid on white, as viewers
    show them: what is stored under transparent pixels is arbitrary.

    Raises:
        DataError: pixels outside of the range of their format, which Pillow would clip to white or black.
    """
    from PIL import Image

    if image.mode.startswith("I"):  # 16-bit PNG files are I;16, and I in older versions of Pillow
        return Image.fromarray(_scaled(np.asarray(image), _LARGEST_16_BIT))
    if image.mode == "F":
        return Image.fromarray(_scaled(np.asarray(image), 1))
    if image.has_transparency_data:
        above = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, _BACKGROUND), above).convert("RGB")
    return image


def _scaled(pixels: Any, largest: int) -> np.ndarray:
    """Pixels from 0 to `largest` as uint8."""
    lowest, highest = float(pixels.min()), float(pixels.max())
    if not (lowest >= 0 and highest <= largest):  # NaN too
        raise DataError(
            f"pixels of type {pixels.dtype} from {lowest:g} to {highest:g}; expected 0 to {largest:,}. Scale the image to this "
            "range, or save it with 8 bits a channel."
        )
    scaled: np.ndarray = np.round(pixels.astype(np.float64) * (255 / largest)).astype(np.uint8)
    return scaled
