"""Image preprocessing of a model; in a Hugging Face folder as the processor that `AutoImageProcessor` and pipelines load."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from utils.errors import ExportError
from utils.training.task_spec import TaskSpec

_UNKNOWN = (
    "There is no image processor in the folder: nothing says how images are normalized. Set TaskSpec.preprocessing_config, for "
    "example {'mean': [0.5], 'std': [0.5]} (zeros and ones where pixels are only scaled to 0 … 1)."
)


def preprocessing_of(model: nn.Module, config: Any, task_spec: TaskSpec) -> dict[str, Any]:
    """Preprocessing of an image: {"channels", "height", "width", "mean", "std"}; pixels are scaled to 0 … 1 first.

    From task_spec.preprocessing_config, else from the model or its config.

    Raises:
        ExportError: nothing says how large the images are.
    """
    given = task_spec.preprocessing_config
    places = [given, config, model, getattr(model, "config", None)]
    size = _first(places, ("image_size", "input_size", "size"))
    if isinstance(size, Mapping):
        size = (size["height"], size["width"]) if "height" in size else next(iter(size.values()))
    if size is None and (height := _first([given], ("height",))) is not None:
        size = (height, given.get("width", height))
    if size is None:
        raise ExportError(
            "nothing says how large the model's images are; set TaskSpec.preprocessing_config={'image_size': (height, width)}"
        )
    height, width = (int(size), int(size)) if isinstance(size, int) else (int(side) for side in size)
    channels = (
        _first(places, ("num_channels", "channels", "input_channels", "in_channels")) or _first_channels(model) or 3
    )
    mean, std = (_first([given], (f"image_{name}", name)) for name in ("mean", "std"))
    return {
        "channels": int(channels), "height": height, "width": width,
        "mean": _for_channels(mean, 0.0, int(channels)), "std": _for_channels(std, 1.0, int(channels)),
    }  # fmt: skip


def save_image_processor(model: Any, task_spec: TaskSpec | None, folder: Path) -> tuple[str, ...]:
    """Write `preprocessor_config.json`: resized, scaled to 0 … 1, normalized as the task says. Returns notes.

    Args:
        model: a transformers model; one that takes no images gets no file and no note.
        task_spec: its `preprocessing_config` holds `mean` and `std`, a number for each channel or one for all, and the size
            where the model does not state it.
    Raises:
        ExportError: the processor that transformers loads from the folder gives other pixels.
    """
    if getattr(model, "main_input_name", "") != "pixel_values":
        return ()
    if task_spec is None:
        return (_UNKNOWN,)
    given = set(task_spec.preprocessing_config)
    if not {"mean", "image_mean"} & given or not {"std", "image_std"} & given:
        return (_UNKNOWN,)
    try:
        stated = preprocessing_of(model, model.config, task_spec)
    except ExportError as error:
        return (f"There is no image processor in the folder: {error}",)
    if stated["channels"] not in (1, 3):
        channels = stated["channels"]
        return (f"There is no image processor in the folder: transformers' take 1 or 3 channels, not {channels}.",)
    from transformers import ViTImageProcessor

    # The class for any fixed size: no cropping, no padding. Each model family's own differs from it in these only.
    made = ViTImageProcessor(
        size={"height": stated["height"], "width": stated["width"]}, image_mean=stated["mean"], image_std=stated["std"],
        do_convert_rgb=stated["channels"] == 3,
    )  # fmt: skip
    made.save_pretrained(folder)
    _compare(folder, stated)
    return ()


def _compare(folder: Path, stated: dict[str, Any]) -> None:
    """The processor that is loaded from `folder` must give the pixels that `stated` describes."""
    from PIL import Image
    from transformers import AutoImageProcessor

    height, width, channels = (int(stated[name]) for name in ("height", "width", "channels"))
    pixels = np.linspace(0, 255, height * width * channels).astype(np.uint8).reshape(height, width, channels)
    loaded: Any = AutoImageProcessor.from_pretrained(folder, local_files_only=True)  # type: ignore[no-untyped-call]
    image = Image.fromarray(pixels if channels == 3 else pixels[..., 0])
    got = loaded(image, return_tensors="pt")["pixel_values"][0]
    mean, std = (torch.tensor(stated[name], dtype=torch.float32)[:, None, None] for name in ("mean", "std"))
    expected = (torch.from_numpy(pixels).permute(2, 0, 1).float() / 255 - mean) / std
    if got.shape != expected.shape or not torch.allclose(got.float(), expected, atol=1e-5):
        raise ExportError("the saved image processor gives other pixels than the task states; not exported")


def _first(places: list[Any], names: tuple[str, ...]) -> Any:
    for place in places:
        for name in names:
            value = place.get(name) if isinstance(place, Mapping) else getattr(place, name, None)
            if isinstance(value, (int, float, list, tuple, Mapping)) and not isinstance(value, bool):
                return value
    return None


def _first_channels(model: nn.Module) -> int | None:
    return next((one.in_channels for one in model.modules() if isinstance(one, nn.Conv2d)), None)


def _for_channels(value: Any, default: float, channels: int) -> list[float]:
    values = [default] if value is None else list(value) if isinstance(value, (list, tuple)) else [value]
    return [float(one) for one in (values * channels if len(values) == 1 else values)]
