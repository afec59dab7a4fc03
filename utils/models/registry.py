"""ModelRegistry: models by name, the reference models and the user's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

from utils.registry import Registry

if TYPE_CHECKING:
    from torch import nn


class ModelRegistry(Registry):
    """Names -> model classes, or functions that return a model. One registry for the whole process.

    Names are lower-cased. Use `register("mynet", MyNet)`, or as a decorator `@ModelRegistry.register("mynet")`.
    """

    KIND = "model"
    BUILT_IN = "utils.models.built_in"
    _factories: ClassVar[dict[str, Callable[..., Any]]] = {}

    @classmethod
    def create(cls, name: str, **arguments: Any) -> nn.Module:
        """A new model: see `Registry.create`."""
        from utils.models.origins import note_origin

        model: nn.Module = super().create(name, **arguments)
        if name.strip().lower() != "pretrained":  # which notes the folder that the weights came from
            note_origin(model, name.strip().lower(), arguments)
        return model

    @classmethod
    def num_parameters(cls, name: str, **arguments: Any) -> int:
        """Parameters of the model that `create` would return; a shared tensor counts once."""
        return sum(parameter.numel() for parameter in cls.outline(name, **arguments).parameters())

    @classmethod
    def outline(cls, name: str, **arguments: Any) -> nn.Module:
        """The model that `create` would return, on the meta device, where it has no weights and takes no memory."""
        import torch

        with torch.device("meta"):
            return cls.create(name, **arguments)
