"""Making import names of other systems work: real modules in sys.modules, whose content comes on first use."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator, Mapping
from importlib import import_module
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from utils.compat.old_names import OLD_MODULES
from utils.errors import ConfigError


class OldModule(ModuleType):
    """A module of another system's name. Its attributes are imported when they are first asked for.

    Args:
        name: its full name; exports: attribute -> "module:attribute" of this library.
    """

    def __init__(self, name: str, exports: Mapping[str, str]) -> None:
        super().__init__(name, f"Names of {name}, as Trainbook has them.")
        self.__path__: list[str] = []  # a package: modules below it may be imported
        self.__spec__ = ModuleSpec(name, None, is_package=True)
        self.__package__ = name
        self.__all__ = sorted(exports)
        self._exports = dict(exports)

    def __getattr__(self, name: str) -> Any:
        target = self.__dict__.get("_exports", {}).get(name)
        if target is None:
            known = ", ".join(self.__dict__.get("_exports", {})) or "nothing"
            raise AttributeError(f"module {self.__name__!r} has no {name!r} here; it has {known}")
        module, _, attribute = target.partition(":")
        value = getattr(import_module(module), attribute)
        setattr(self, name, value)
        return value

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *self._exports})


def install(*packages: str, modules: Mapping[str, Mapping[str, str]] = OLD_MODULES) -> list[str]:
    """Register the import names of other systems (`src.training`, …), so that old scripts run unchanged.

    A package of the user's own with such a name is never shadowed: one that is imported already, or that would be found on
    sys.path, is left as it is, and asking for it by name is an error.

    Args:
        packages: names of top-level packages; without any, all those there are, each where its name is free.
        modules: the table of names.
    Returns:
        the top-level packages that are registered now.
    Raises:
        ConfigError: an unknown package, or one that exists and was asked for; says where it is.
    """
    known = sorted({name.partition(".")[0] for name in modules})
    unknown = [name for name in packages if name not in known]
    if unknown:
        raise ConfigError(f"install: there is no {unknown[0]!r}; there are {', '.join(known)}.")
    done = []
    for package in packages or known:
        place = _users_own(package)
        if place is None:
            _register(package, modules)
            done.append(package)
        elif packages:
            raise ConfigError(
                f"a package {package!r} of yours is at {place}, and is not replaced. Import from utils.training, utils.models "
                "and utils.data instead, or run the script in a folder without it."
            )
    return done


def _users_own(package: str) -> str | None:
    """Location of a user's package with this name; None when the name is free or ours."""
    loaded = sys.modules.get(package)
    if isinstance(loaded, OldModule):
        return None
    if loaded is not None:
        return str(getattr(loaded, "__file__", None) or list(getattr(loaded, "__path__", [])))
    found = importlib.util.find_spec(package)
    if found is None:
        return None
    return str(found.origin or list(found.submodule_search_locations or []))


def _register(package: str, modules: Mapping[str, Mapping[str, str]]) -> None:
    inside = [name for name in modules if name.partition(".")[0] == package]
    for name in sorted({parent for full in inside for parent in _with_parents(full)}):
        if isinstance(sys.modules.get(name), OldModule):
            continue
        module = sys.modules[name] = OldModule(name, modules.get(name, {}))
        parent, _, last = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], last, module)


def _with_parents(name: str) -> Iterator[str]:
    parts = name.split(".")
    for length in range(1, len(parts) + 1):
        yield ".".join(parts[:length])
