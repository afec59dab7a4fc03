"""ModelRegistry: models by name, the reference models and the user's own."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, overload

from utils.errors import ConfigError
from utils.schema import nearest, shown

if TYPE_CHECKING:
    from torch import nn

    Factory = Callable[..., nn.Module]
else:
    Factory = Callable[..., Any]

F = TypeVar("F", bound=Callable[..., Any])


class ModelRegistry:
    """Names -> model classes, or functions that return a model. One registry for the whole process.

    Names are lower-cased. Use `register("mynet", MyNet)`, or as a decorator `@ModelRegistry.register("mynet")`.
    """

    _factories: ClassVar[dict[str, Factory]] = {}

    @overload
    @classmethod
    def register(cls, name: str) -> Callable[[F], F]: ...

    @overload
    @classmethod
    def register(cls, name: str, factory: F) -> F: ...

    @classmethod
    def register(cls, name: str, factory: F | None = None) -> F | Callable[[F], F]:
        """Make a model available under `name`. It replaces an earlier one of that name, so a cell can be run twice.

        Args:
            name: not empty; upper and lower case are the same.
            factory: a class or function that returns an `nn.Module`; without it, a decorator is returned.
        Raises:
            ConfigError: an empty name, or something that cannot be called.
        """
        if not isinstance(name, str) or not name.strip():
            raise ConfigError(f"got {shown(name)} as the name of a model; give a non-empty text.")
        _load_reference_models()  # first, or they would replace a model of the user's with the same name
        if factory is None:
            return lambda decorated: cls.register(name, decorated)
        if not callable(factory):
            raise ConfigError(
                f"got a {type(factory).__name__} for the model {name!r}; give a class or a function that makes a model."
            )
        cls._factories[name.strip().lower()] = factory
        return factory

    @classmethod
    def get(cls, name: str) -> Factory:
        """The class or function under `name`. Raises ConfigError that lists the names there are."""
        _load_reference_models()
        key = str(name).strip().lower()
        if key not in cls._factories:
            guess = nearest(key, cls._factories)
            hint = f" Did you mean {guess!r}?" if guess else ""
            raise ConfigError(f"Model {name!r} not found. Available: {cls.list_available()}.{hint}")
        return cls._factories[key]

    @classmethod
    def list_available(cls) -> list[str]:
        """All names, sorted."""
        _load_reference_models()
        return sorted(cls._factories)

    @classmethod
    def create(cls, name: str, **arguments: Any) -> nn.Module:
        """A new model.

        Args:
            name: one of `list_available()`.
            **arguments: passed to the class or function.
        Raises:
            ConfigError: an unknown name, or arguments that it does not take; says which it takes.
        """
        factory = cls.get(name)
        signature = inspect.signature(factory)
        try:
            signature.bind(**arguments)
        except TypeError as error:
            known = [p.name for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
            wrong = next((argument for argument in arguments if argument not in known), None)
            guess = nearest(wrong, known) if wrong else None
            hint = f" Did you mean {guess}?" if guess else ""
            raise ConfigError(
                f"Model {name!r}: {error}. It takes {', '.join(known) or 'no arguments'}.{hint}"
            ) from error
        model: nn.Module = factory(**arguments)
        return model


def _load_reference_models() -> None:
    """The reference models register themselves when their module is imported: on first use, because they need torch."""
    import_module("utils.models.reference")
