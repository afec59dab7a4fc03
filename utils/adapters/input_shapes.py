"""Infer which inputs a model takes, and of what shape: token ids, images, or rows of numbers.

Shapes: B samples, T positions, F features.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from utils.adapters.facts import first_count, model_facts
from utils.adapters.forward import ModelCall
from utils.adapters.inputs import forward_parameters
from utils.errors import ModelError

# Positions of a time series that is made up: any length would do.
SERIES_LENGTH = 8

# Side lengths that are tried for a convolutional model which does not state one: common image sizes, then all small ones.
_SIDES = (28, 32, 224, 64, 96, 128, 256, 48, 160, 192, 299, 384, 512, *range(1, 65))

_RECURRENT = (nn.LSTM, nn.GRU, nn.RNN)


@dataclass(frozen=True)
class InputShapes:
    """The inputs of one model.

    Attributes:
        kind: "tokens" (ids (B, T)), "images" (B, channels, height, width) or "numbers" (B, *feature_shape).
        vocab_size: ids are below it; None for other kinds.
        max_length: the longest T; None: the model states none, or takes no ids.
        image_shape: (channels, height, width) of an image.
        feature_shape: (F,) of one row of a table, (T, F) of one series.
        encoder_decoder: whether a decoder takes ids of its own.
    """

    kind: Literal["tokens", "images", "numbers"]
    vocab_size: int | None = None
    max_length: int | None = None
    image_shape: tuple[int, int, int] | None = None
    feature_shape: tuple[int, ...] | None = None
    encoder_decoder: bool = False


def infer_input_shapes(model: nn.Module, *sources: Any) -> InputShapes:
    """Infer the inputs of `model` from its config, its first layer, and `sources`.

    Args:
        model: any module.
        *sources: task specs, configs or mappings that may hold vocab_size, max_seq_len, image_size or input_size, and
            num_channels or input_channels. The model's own config comes first. None is skipped.
    Raises:
        ModelError: neither the model nor `sources` say enough; says what to give.
    """
    images = stated_image_shape(model, *sources)
    if images is not None:
        channels, size = images
        size = size or first_fitting_size(model, channels)
        if size is None:
            raise ModelError(
                f"{type(model).__name__} takes images and does not state their size, and its forward pass accepts none of the "
                "usual ones. Give the model an attribute input_size (pixels), or give a sample batch."
            )
        return InputShapes("images", image_shape=(channels, *size))
    facts = model_facts(model)
    vocab_size = facts.vocab_size or first_count(sources, "vocab_size")
    if vocab_size is not None:
        stated = (facts.max_length, first_count(sources, "max_seq_len"))
        return InputShapes(
            "tokens",
            vocab_size=vocab_size,
            max_length=min((length for length in stated if length), default=None),
            encoder_decoder=takes_decoder_ids(model),
        )
    shape = infer_feature_shape(model)
    if shape is None:
        raise ModelError(
            f"{type(model).__name__} does not state what its inputs are: it has no token embedding, no convolution over images "
            "and no layer over numbers in front. Give a sample batch."
        )
    return InputShapes("numbers", feature_shape=shape)


def longest_accepted(model: nn.Module, vocab_size: int, lengths: Sequence[int]) -> int | None:
    """The first of `lengths` for which a forward pass takes one sequence of ids; None: it takes none of them.

    For models that do not state how many positions they have.
    """
    tried = copy.deepcopy(model).eval()
    for length in lengths:
        ids_BT = torch.zeros(1, length, dtype=torch.int64)
        batch = {"input_ids": ids_BT, "attention_mask": torch.ones_like(ids_BT)}
        if takes_decoder_ids(model):
            batch["decoder_input_ids"] = ids_BT
        if _accepts(tried, batch):
            return length
    return None


def takes_decoder_ids(model: nn.Module) -> bool:
    """Whether `model` is an encoder-decoder, whose decoder takes ids of its own."""
    if bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False)):
        return True
    return ModelCall(model).has_parameter("decoder_input_ids", {"input_ids": torch.zeros(1, 1)})


def stated_image_shape(model: nn.Module, *sources: Any) -> tuple[int, tuple[int, int] | None] | None:
    """(channels, (height, width)) of the images that `model` takes; None for the size where nothing states it.

    Returns None for a model that takes no images: neither its main input's name, nor the parameters of its forward pass, nor a
    source's modality, nor its first layer says so.
    """
    named = forward_parameters(model, "pixel_values").declared
    over_images = getattr(model, "main_input_name", None) == "pixel_values"
    over_images = over_images or ("pixel_values" in named and "input_ids" not in named)
    over_images = over_images or any(getattr(source, "modality", "text") == "vision" for source in sources)
    first = first_layer(model)
    if not over_images and not isinstance(first, nn.Conv2d):
        return None
    known = [source for source in (getattr(model, "config", None), model, *sources) if source is not None]
    channels = next(filter(None, (first_count([source], "num_channels", "input_channels") for source in known)), None)
    size = next(filter(None, (_sides(source, "image_size", "input_size") for source in known)), None)
    convolution = next((module for module in model.modules() if isinstance(module, nn.Conv2d)), None)
    return channels or (convolution.in_channels if convolution is not None else 3), size


def infer_feature_shape(model: nn.Module) -> tuple[int, ...] | None:
    """(F,) of the table's row or (T, F) of the series that `model` takes, from its first layer; None for other models.

    A trial call tells whether the first layer is where the model's input goes.
    """
    shape = shape_for_layer(first_layer(model))
    if shape is None:
        return None
    return shape if _accepts(copy.deepcopy(model).eval(), {"inputs": torch.zeros(2, *shape)}) else None


def shape_for_layer(layer: nn.Module | None) -> tuple[int, ...] | None:
    """The shape (F,) or (T, F) of one sample of numbers that `layer` takes; None for layers over something else."""
    if isinstance(layer, _RECURRENT):
        return SERIES_LENGTH, layer.input_size
    if isinstance(layer, nn.Linear):
        return (layer.in_features,)
    if isinstance(layer, nn.BatchNorm1d):
        return (layer.num_features,)
    return (layer.normalized_shape[-1],) if isinstance(layer, nn.LayerNorm) else None


def first_layer(model: nn.Module) -> nn.Module | None:
    """The first module that has parameters of its own: what a plain model's input goes into, as a rule."""
    return next(
        (module for module in model.modules() if next(module.parameters(recurse=False), None) is not None), None
    )


def _sides(source: Any, *names: str) -> tuple[int, int] | None:
    """(height, width) under one of `names`, which may hold one number for both."""
    for name in names:
        value = source.get(name) if isinstance(source, Mapping) else getattr(source, name, None)
        sides = tuple(value) if isinstance(value, (tuple, list)) else (value, value)
        if len(sides) == 2 and all(isinstance(side, int) and not isinstance(side, bool) and side > 0 for side in sides):
            return sides
    return None


def first_fitting_size(model: nn.Module, channels: int) -> tuple[int, int] | None:
    """The first of the usual sizes that a forward pass accepts."""
    tried = copy.deepcopy(model).eval()
    sizes = ((side, side) for side in _SIDES)
    return next((size for size in sizes if _accepts(tried, {"pixel_values": torch.zeros(2, channels, *size)})), None)


def _accepts(model: nn.Module, batch: dict[str, Tensor]) -> bool:
    """Whether the forward pass of `model`, in evaluation mode, takes `batch`."""
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    with torch.no_grad():
        try:
            ModelCall(model)(
                {
                    name: tensor.to(device, dtype if tensor.is_floating_point() else tensor.dtype)
                    for name, tensor in batch.items()
                }
            )
        except Exception:  # noqa: BLE001 - the model's own code: whatever it raises, it does not take this
            return False
    return True
