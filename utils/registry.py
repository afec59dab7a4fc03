"""Names -> classes or functions: what ModelRegistry and DatasetRegistry share."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from importlib import import_module
from typing import Any, ClassVar, TypeVar, overload

from utils.errors import ConfigError
from utils.schema import nearest, shown

F = TypeVar("F", bound=Callable[..., Any])


class Registry:
    """Base class: names -> classes, or functions that return an object. One registry for the whole process.

    Names are lower-cased. Subclasses have a `_factories` of their own and say what they hold.

    Attributes:
        KIND: what it holds, as messages call it.
        BUILT_IN: module whose import registers what comes with the library: on first use, because it is slow to import.
    """

    KIND: ClassVar[str]
    BUILT_IN: ClassVar[str]
    _factories: ClassVar[dict[str, Callable[..., Any]]]

    @overload
    @classmethod
    def register(cls, name: str) -> Callable[[F], F]: ...

    @overload
    @classmethod
    def register(cls, name: str, factory: F) -> F: ...

    @classmethod
    def register(cls, name: str, factory: F | None = None) -> F | Callable[[F], F]:
        """Make something available under `name`. It replaces an earlier one of that name, so a cell can be run twice.

        Args:
            name: not empty; upper and lower case are the same.
            factory: a class or function that makes it; without it, a decorator is returned.
        Raises:
            ConfigError: an empty name, or something that cannot be called.
        """
        if not isinstance(name, str) or not name.strip():
            raise ConfigError(f"got {shown(name)} as the name of a {cls.KIND}; give a non-empty text.")
        cls._load_built_in()  # first, or they would replace something of the user's with the same name
        if factory is None:
            return lambda decorated: cls.register(name, decorated)
        if not callable(factory):
            raise ConfigError(
                f"got a {type(factory).__name__} for the {cls.KIND} {name!r}; give a class or a function that makes a "
                f"{cls.KIND}."
            )
        cls._factories[name.strip().lower()] = factory
        return factory

    @classmethod
    def get(cls, name: str) -> Callable[..., Any]:
        """The class or function under `name`. Raises ConfigError that lists the names there are."""
        cls._load_built_in()
        key = str(name).strip().lower()
        if key not in cls._factories:
            guess = nearest(key, cls._factories)
            hint = f" Did you mean {guess!r}?" if guess else ""
            raise ConfigError(f"{_capital(cls.KIND)} {name!r} not found. Available: {cls.list_available()}.{hint}")
        return cls._factories[key]

    @classmethod
    def list_available(cls) -> list[str]:
        """All registered names, sorted."""
        cls._load_built_in()
        return sorted(cls._factories)

    @classmethod
    def create(cls, name: str, *values: Any, **arguments: Any) -> Any:
        """A new one.

        Args:
            name: one of `list_available()`.
            *values, **arguments: passed to the class or function.
        Raises:
            ConfigError: an unknown name, or arguments that it does not take; says which it takes.
        """
        factory = cls.get(name)
        signature = inspect.signature(factory)
        try:
            signature.bind(*values, **arguments)
        except TypeError as error:
            known = [p.name for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
            wrong = next((argument for argument in arguments if argument not in known), None)
            guess = nearest(wrong, known) if wrong else None
            hint = f" Did you mean {guess}?" if guess else ""
            raise ConfigError(
                f"{_capital(cls.KIND)} {name!r}: {error}. It takes {', '.join(known) or 'no arguments'}.{hint}"
            ) from error
        return factory(*values, **arguments)

    @classmethod
    def _load_built_in(cls) -> None:
        import_module(cls.BUILT_IN)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
