"""Samples of numbers, images or rows of features, with their labels -> batches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from utils.data.batch import Batch
from utils.errors import DataError, DataTypeError

# Names under which samples hold images and labels.
_IMAGES = ("pixel_values", "image", "images", "img")
_LABELS = ("labels", "label", "target")
# The range of pixels that are whole numbers.
_LARGEST_PIXEL = {torch.uint8: 255, torch.uint16: 65_535}


class ImageCollator:
    """Images and their classes: `pixel_values` (B, C, H, W) float32, `labels` (B,) int64 where there are any.

    A sample is an image, a pair (image, label) or a dict with `pixel_values` or `image`. An image is a tensor or array
    (C, H, W), or (H, W), which gets one channel. uint8 (0 to 255) and uint16 (0 to 65,535) become 0 to 1; other types stay as
    they are.

    Args:
        whole_labels: labels are classes. False: labels of any dtype and shape, (B, ...), for a criterion of one's own.
    """

    draws, packs = False, False

    def __init__(self, whole_labels: bool = True) -> None:
        self._whole_labels = whole_labels

    def __call__(self, samples: list[Any]) -> Batch:
        rows = [as_row(sample) for sample in samples]
        images = [pixels_of(image_of(row), channels=True) for row in rows]
        shapes = sorted({tuple(image.shape) for image in images})
        if len(shapes) > 1:
            raise DataError(
                f"the images of a batch have different shapes: {', '.join(map(str, shapes[:4]))}. Bring them to one size first."
            )
        batch = {"pixel_values": torch.stack(images)}
        labels = [row["labels"] for row in rows if "labels" in row]
        if labels and len(labels) != len(rows):
            raise DataError(f"{len(rows) - len(labels)} of {len(rows)} samples of a batch have no label.")
        if labels:
            stacked = stacked_labels(labels)
            whole = self._whole_labels or not stacked.is_floating_point()
            batch["labels"] = whole_labels_of(stacked) if whole else stacked
        return batch

    def of_columns(self, inputs_B: Tensor, labels_B: Tensor | None) -> Batch | None:
        """As `utils.data.batch.ColumnCollate`."""
        if type(self) is not ImageCollator or inputs_B.dim() not in (2, 3, 4) or holds_tokens(inputs_B):
            return None
        pixels = pixels_of(inputs_B)
        batch = {"pixel_values": pixels[:, None] if pixels.dim() == 3 else pixels}
        if labels_B is not None:
            stacked = squeezed(labels_B)
            whole = self._whole_labels or not stacked.is_floating_point()
            batch["labels"] = whole_labels_of(stacked) if whole else stacked
        return batch


def as_row(sample: Any) -> dict[str, Any]:
    """A sample as a dict; labels are called `labels`."""
    if isinstance(sample, Mapping):
        row = dict(sample)
        named = [name for name in _LABELS if name in row]
        if named and ("input_ids" in row or is_image(row)):
            row["labels"] = row[named[0]]
        return row
    if isinstance(sample, (tuple, list)) and len(sample) == 2 and isinstance(sample[0], (Tensor, np.ndarray)):
        return {_kind(sample[0]): sample[0], "labels": sample[1]}
    if isinstance(sample, (tuple, list)) and len(sample) == 1:
        return as_row(sample[0])
    if isinstance(sample, (Tensor, np.ndarray)):
        return {_kind(sample): sample}
    raise DataTypeError(
        "Expected a sample to be a dict, a pair (inputs, labels) of tensors, or a record with texts; got a "
        f"{type(sample).__name__}. Other kinds of samples need data_collator=."
    )


def holds_tokens(inputs_B: Tensor) -> bool:
    """Whether each row of a column is taken for token ids."""
    return inputs_B.dim() == 2 and not inputs_B.is_floating_point()


def _kind(values: Any) -> str:
    values = torch.as_tensor(values)
    return "input_ids" if values.dim() == 1 and not values.is_floating_point() else "pixel_values"


def is_image(sample: Any) -> bool:
    """Whether a sample holds pixels or features, not tokens."""
    if isinstance(sample, Mapping):
        return "input_ids" not in sample and any(name in sample for name in _IMAGES)
    if isinstance(sample, (tuple, list)) and 1 <= len(sample) <= 2:
        sample = sample[0]
    return isinstance(sample, (Tensor, np.ndarray)) and _kind(sample) == "pixel_values"


def image_of(row: Mapping[str, Any]) -> Any:
    """The pixels or features of a row. Raises `DataTypeError` when it has none."""
    name = next((name for name in _IMAGES if name in row), None)
    if name is None:
        raise DataTypeError(f"Expected a sample with {' or '.join(_IMAGES[:2])}; got {sorted(map(str, row))[:8]}.")
    return row[name]


def pixels_of(image: Any, channels: bool = False) -> Tensor:
    """An image, or a row of features, as float32; uint8 and uint16 as 0 to 1."""
    if not isinstance(image, Tensor):
        image = np.asarray(image)
        if image.dtype.kind not in "buif":
            raise DataTypeError(f"Expected an image of numbers; got an array of {image.dtype}.")
        image = torch.as_tensor(image)
    pixels: Tensor = image.float()
    if image.dtype in _LARGEST_PIXEL:
        pixels = pixels / _LARGEST_PIXEL[image.dtype]
    if channels and pixels.dim() == 2:
        pixels = pixels[None]
    if channels and pixels.dim() not in (1, 3):  # 1: features that are no image
        raise DataTypeError(f"Expected an image of shape (channels, height, width); got {tuple(pixels.shape)}.")
    return pixels


def stacked_labels(labels: list[Any]) -> Tensor:
    """Labels (B,) or (B, ...). Raises `DataError` when they have different shapes."""
    values = [torch.as_tensor(label) for label in labels]
    shapes = {tuple(value.shape) for value in values}
    if len(shapes) > 1:
        raise DataError(
            f"the labels of a batch have different shapes: {', '.join(map(str, sorted(shapes)[:4]))}. Where a sample may have "
            "several classes, its label is a vector with one number, 0 or 1, for each class there is."
        )
    return squeezed(torch.stack(values))


def squeezed(labels_B: Tensor) -> Tensor:
    """Classes (B, 1) as (B,); other labels as they are."""
    one = labels_B.dim() == 2 and labels_B.shape[1] == 1 and not labels_B.is_floating_point()
    return labels_B[:, 0] if one else labels_B


def whole_labels_of(labels: Tensor) -> Tensor:
    """Classes as int64. Raises `DataTypeError` for numbers that are not whole."""
    if labels.is_floating_point():
        raise DataTypeError(
            f"classes are whole numbers from 0 on; got labels of {labels.dtype}, such as {float(labels.flatten()[0])}. "
            "Convert them, or use task_type='regression'."
        )
    return labels.long()
