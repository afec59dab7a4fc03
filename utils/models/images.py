"""Small models over images: two convolutional ones, and two that put a transformer on top of convolutions.

Shapes: B batch, C channels, H height, W width, N tokens, D width of a token.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from utils.errors import ConfigError, ModelError, Problem
from utils.models.registry import ModelRegistry

__all__ = ["BaseModel", "BottleneckViT", "FPNViT", "LeNet", "MyNet"]


class BaseModel(nn.Module, ABC):
    """Base class: images (B, C, H, W) -> logits (B, num_classes). Weights are drawn from torch's global generator.

    Args:
        num_classes: classes that are scored.
        input_channels: C; 1 for grey, 3 for colour.
        input_size: (H, W) in pixels, or one number for both; None: the model takes any size, or says nothing of it.
        **settings: further arguments of a class of yours; kept as `settings`.
    Raises:
        ConfigError: lists every size that cannot be.
    """

    main_input_name = "pixel_values"  # transformers' name for a batch's images

    def __init__(
        self,
        num_classes: int = 10,
        input_channels: int = 1,
        input_size: int | tuple[int, int] | None = None,
        **settings: Any,
    ) -> None:
        super().__init__()
        check_counts(type(self).__name__, {"num_classes": num_classes, "input_channels": input_channels})
        self.num_classes, self.input_channels = num_classes, input_channels
        self.input_size = None if input_size is None else as_size(type(self).__name__, input_size)
        self.settings = settings

    @abstractmethod
    def forward(self, pixel_values: Tensor) -> Tensor:
        """Images (B, C, H, W), floating-point, to logits (B, num_classes)."""

    def get_model_info(self) -> dict[str, Any]:
        """Name, sizes, and how many numbers it holds and trains."""
        return {
            "name": type(self).__name__,
            "num_classes": self.num_classes,
            "input_channels": self.input_channels,
            "total_parameters": sum(p.numel() for p in self.parameters()),
            "trainable_parameters": sum(p.numel() for p in self.parameters() if p.requires_grad),
        }

    def check_images(self, pixel_values: Tensor) -> None:
        """Raises `ModelError` when these are not images of the shape that the model was made for."""
        assert self.input_size is not None
        wanted = (self.input_channels, *self.input_size)
        if pixel_values.dim() != 4 or tuple(pixel_values.shape[1:]) != wanted:
            raise ModelError(
                f"{type(self).__name__} takes images of shape (B, {', '.join(map(str, wanted))}); got "
                f"{tuple(pixel_values.shape)}. Make it with the input_channels and input_size of the images."
            )


def as_size(model: str, value: Any) -> tuple[int, int]:
    """`value`, one number or (height, width), as (height, width). Raises `ConfigError`."""
    size = tuple(value) if isinstance(value, (tuple, list)) else (value, value)
    if len(size) != 2:
        raise ConfigError(f"{model}: input_size: got {value!r}; must be one number or (height, width).")
    check_counts(model, {"input_size": size[0], "input_size (width)": size[1]})
    return size


def check_counts(model: str, counts: Mapping[str, Any]) -> None:
    """Raises `ConfigError` that lists those of `counts` that are not whole numbers of at least 1."""
    problems = [
        Problem(name, f"got {value!r}; must be a whole number of at least 1")
        for name, value in counts.items()
        if not isinstance(value, int) or isinstance(value, bool) or value < 1
    ]
    if problems:
        raise ConfigError.from_problems(model, problems)


def _require_size(model: BaseModel, least: int) -> tuple[int, int]:
    """The model's input size. Raises `ConfigError` when a side is below `least`."""
    assert model.input_size is not None
    if min(model.input_size) < least:
        height, width = model.input_size
        raise ConfigError(
            f"{type(model).__name__}: input_size: got {height} x {width}; its layers leave nothing of a side below {least} "
            "pixels. Give larger images."
        )
    return model.input_size


@ModelRegistry.register("lenet")
class LeNet(BaseModel):
    """LeNet-5 (LeCun, Bottou, Bengio, Haffner 1998, figure 2) with ReLU and max-pooling instead of tanh and average pooling.

    Its 61,706 parameters (10 classes, 28 x 28, grey) are those of the original with full connections.
    """

    def __init__(self, num_classes: int = 10, input_channels: int = 1, input_size: int | tuple[int, int] = 28) -> None:
        super().__init__(num_classes, input_channels, input_size)
        height, width = _require_size(self, 12)
        self.features = nn.Sequential(
            nn.Conv2d(input_channels, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2),
        )  # fmt: skip
        left = ((height // 2 - 4) // 2) * ((width // 2 - 4) // 2)
        self.classifier = nn.Sequential(
            nn.Flatten(),
            nn.Linear(16 * left, 120),
            nn.ReLU(),
            nn.Linear(120, 84),
            nn.ReLU(),
            nn.Linear(84, num_classes),
        )

    def forward(self, pixel_values: Tensor) -> Tensor:
        self.check_images(pixel_values)
        logits_BC: Tensor = self.classifier(self.features(pixel_values))
        return logits_BC


@ModelRegistry.register("mynet")
class MyNet(BaseModel):
    """A small convolutional model: 5 x 5, then 5 x 1 and 1 x 5, which see as far as 5 x 5 with fewer weights.

    The factored pair is Inception's (Szegedy, Vanhoucke, Ioffe, Shlens, Wojna 2016, section 3.2).
    """

    def __init__(self, num_classes: int = 10, input_channels: int = 1, input_size: int | tuple[int, int] = 28) -> None:
        super().__init__(num_classes, input_channels, input_size)
        height, width = _require_size(self, 4)
        self.features = nn.Sequential(
            nn.Conv2d(input_channels, 16, 5, padding=2), nn.BatchNorm2d(16), nn.SiLU(), nn.MaxPool2d(2),
            nn.Conv2d(16, 32, (5, 1), padding=(2, 0)), nn.Conv2d(32, 32, (1, 5), padding=(0, 2)),
            nn.BatchNorm2d(32), nn.SiLU(), nn.MaxPool2d(2),
        )  # fmt: skip
        self.classifier = nn.Sequential(
            nn.Flatten(), nn.Linear(32 * (height // 4) * (width // 4), 128), nn.SiLU(), nn.Dropout(0.2),
            nn.Linear(128, 64), nn.SiLU(), nn.Dropout(0.3), nn.Linear(64, num_classes),
        )  # fmt: skip

    def forward(self, pixel_values: Tensor) -> Tensor:
        self.check_images(pixel_values)
        logits_BC: Tensor = self.classifier(self.features(pixel_values))
        return logits_BC


class _Attention(nn.Module):
    """Bidirectional self-attention (Vaswani et al. 2017)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query_key_value = nn.Linear(width, 3 * width)
        self.output = nn.Linear(width, width)

    def forward(self, tokens_BND: Tensor) -> Tensor:
        rows, count, width = tokens_BND.shape
        split = self.query_key_value(tokens_BND).view(rows, count, 3, self.heads, width // self.heads)
        query, key, value = split.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value)
        projected: Tensor = self.output(mixed.transpose(1, 2).reshape(rows, count, width))
        return projected


class _Block(nn.Module):
    """A transformer layer with its normalisations first, as in ViT (Dosovitskiy et al. 2021, equations 2 and 3)."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = _Attention(width, heads)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens_BND: Tensor) -> Tensor:
        tokens_BND = tokens_BND + self.dropout(self.attention(self.norm1(tokens_BND)))
        mixed_BND: Tensor = tokens_BND + self.dropout(self.mlp(self.norm2(tokens_BND)))
        return mixed_BND


class _TokenClassifier(nn.Module):
    """Tokens (B, N, D) -> logits (B, num_classes): learned positions, transformer layers, the mean over all tokens, a layer."""

    def __init__(self, num_tokens: int, width: int, layers: int, heads: int, num_classes: int, dropout: float) -> None:
        super().__init__()
        # Spread 0.02, cut at two spreads, as ViT's.
        self.positions = nn.Parameter(nn.init.trunc_normal_(torch.empty(num_tokens, width), std=0.02))
        self.blocks = nn.Sequential(*(_Block(width, heads, dropout) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, num_classes)

    def forward(self, tokens_BND: Tensor) -> Tensor:
        logits_BC: Tensor = self.head(self.norm(self.blocks(tokens_BND + self.positions)).mean(1))
        return logits_BC


def _check_transformer(model: str, width: int, layers: int, heads: int, dropout: float) -> None:
    check_counts(model, {"width": width, "layers": layers, "heads": heads})
    problems = []
    if width % heads:
        problems.append(Problem("width", f"got {width} for heads={heads}; the width must be a multiple of the heads"))
    if not isinstance(dropout, (int, float)) or isinstance(dropout, bool) or not 0 <= dropout < 1:
        problems.append(Problem("dropout", f"got {dropout!r}; must be at least 0 and below 1"))
    if problems:
        raise ConfigError.from_problems(model, problems)


def _half(channels: int, width: int) -> nn.Sequential:
    """A 3 x 3 convolution to `width` channels that takes every second pixel, normalised and rectified."""
    return nn.Sequential(nn.Conv2d(channels, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())


class _Bottleneck(nn.Module):
    """Narrow, 3 x 3 in the narrow, wide again, around a way past it (He, Zhang, Ren, Sun 2016, figure 5)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        narrow = max(width // 4, 1)
        self.layers = nn.Sequential(
            nn.Conv2d(width, narrow, 1, bias=False), nn.BatchNorm2d(narrow), nn.ReLU(),
            nn.Conv2d(narrow, narrow, 3, padding=1, bias=False), nn.BatchNorm2d(narrow), nn.ReLU(),
            nn.Conv2d(narrow, width, 1, bias=False), nn.BatchNorm2d(width),
        )  # fmt: skip

    def forward(self, image_BDHW: Tensor) -> Tensor:
        return F.relu(image_BDHW + self.layers(image_BDHW))


@ModelRegistry.register("bottleneck_vit")
class BottleneckViT(BaseModel):
    """A vision transformer whose tokens come out of convolutions: two bottleneck blocks, each after a halving.

    A few convolutions instead of ViT's cut into patches make it learn sooner and with less care for the settings (Xiao et al.
    2021, "Early Convolutions Help Transformers See Better"). One token for 4 x 4 pixels.

    Args:
        width: D; layers, heads: of the transformer; the width is a multiple of the heads.
        dropout: on the outputs of attention and of the inner layers.
    """

    def __init__(
        self,
        num_classes: int = 10,
        input_channels: int = 1,
        input_size: int | tuple[int, int] = 28,
        width: int = 64,
        layers: int = 2,
        heads: int = 4,
        dropout: float = 0.1,
    ) -> None:
        super().__init__(num_classes, input_channels, input_size)
        _check_transformer(type(self).__name__, width, layers, heads, dropout)
        height, across = _require_size(self, 4)
        self.features = nn.Sequential(
            _half(input_channels, width), _Bottleneck(width), _half(width, width), _Bottleneck(width)
        )
        num_tokens = _halved(height, 2) * _halved(across, 2)
        self.classifier = _TokenClassifier(num_tokens, width, layers, heads, num_classes, dropout)

    def forward(self, pixel_values: Tensor) -> Tensor:
        self.check_images(pixel_values)
        logits_BC: Tensor = self.classifier(self.features(pixel_values).flatten(2).transpose(1, 2))
        return logits_BC


@ModelRegistry.register("fpn_vit")
class FPNViT(BaseModel):
    """A vision transformer over two levels of a feature pyramid: it attends to fine and coarse features together.

    Convolutions halve the image three times; from the coarsest level down, each is enlarged and added to the next finer one
    (Lin et al. 2017, "Feature Pyramid Networks for Object Detection", figure 3). A token for 4 x 4 pixels and one for 8 x 8
    go into the transformer together, each with its position and level, which it learns.

    Args:
        width: D; layers, heads: of the transformer; the width is a multiple of the heads.
        dropout: on the outputs of attention and of the inner layers.
    """

    def __init__(
        self,
        num_classes: int = 10,
        input_channels: int = 1,
        input_size: int | tuple[int, int] = 28,
        width: int = 64,
        layers: int = 2,
        heads: int = 4,
        dropout: float = 0.1,
    ) -> None:
        super().__init__(num_classes, input_channels, input_size)
        _check_transformer(type(self).__name__, width, layers, heads, dropout)
        height, across = _require_size(self, 8)
        self.stem = _half(input_channels, width // 2)
        self.fine, self.coarse = _half(width // 2, width), _half(width, 2 * width)
        self.lateral_fine, self.lateral_coarse = nn.Conv2d(width, width, 1), nn.Conv2d(2 * width, width, 1)
        self.smooth = nn.Conv2d(width, width, 3, padding=1)  # against the steps of the enlargement
        num_tokens = sum(_halved(height, times) * _halved(across, times) for times in (2, 3))
        self.classifier = _TokenClassifier(num_tokens, width, layers, heads, num_classes, dropout)

    def forward(self, pixel_values: Tensor) -> Tensor:
        self.check_images(pixel_values)
        fine_BDHW = self.fine(self.stem(pixel_values))
        coarse_BDHW = self.coarse(fine_BDHW)
        top_BDHW = self.lateral_coarse(coarse_BDHW)
        enlarged_BDHW = F.interpolate(top_BDHW, size=fine_BDHW.shape[2:], mode="nearest")
        below_BDHW = self.smooth(self.lateral_fine(fine_BDHW) + enlarged_BDHW)
        tokens_BND = torch.cat([below_BDHW.flatten(2), top_BDHW.flatten(2)], dim=2).transpose(1, 2)
        logits_BC: Tensor = self.classifier(tokens_BND)
        return logits_BC


def _halved(side: int, times: int) -> int:
    """Size of `side` pixels after `times` convolutions of stride 2, rounded up each time."""
    for _ in range(times):
        side = (side + 1) // 2
    return side
