"""A model from a class or a function: which one of a module it is, and which arguments it takes."""

from __future__ import annotations

import copy
import inspect
import logging
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

from torch import nn

from utils.errors import ConfigError, ModelError, Problem
from utils.models.code_files import reported, unused_classes
from utils.schema import nearest, shown

logger = logging.getLogger("trainbook.models")

# What a function is called that makes the model, where a file has no class for it.
_FACTORY_NAMES = ("create_model", "build_model", "make_model", "get_model")
_CONFIG_NAMES = ("config", "cfg")


class Settings(dict[str, Any]):
    """A config of a model whose code names no class for it: entries are read as `config["n"]` and as `config.n`."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"the config has no entry {name!r}; it has {', '.join(self) or 'none'}") from None


@dataclass(frozen=True)
class Arguments:
    """Constructor arguments of a model.

    Attributes:
        config: a config object that the model takes as it is, or None.
        given: values that the caller named; one that the model does not take is an error.
        described: values of a config file, which may describe more than the model takes; what it does not take is logged.
    """

    config: Any = None
    given: Mapping[str, Any] = field(default_factory=dict)
    described: Mapping[str, Any] = field(default_factory=dict)

    @property
    def values(self) -> dict[str, Any]:
        """Both, the caller's over the file's."""
        return {**self.described, **self.given}

    def __bool__(self) -> bool:
        return self.config is not None or bool(self.values)


def choose(module: ModuleType, wanted: str | None, where: str, source: bytes, hint: str | None = None) -> Any:
    """The class or function of a module that makes the model.

    Args:
        wanted: its name; None: the one nn.Module class that no other class of the file uses as a part, else a function
            named create_model, build_model, make_model or get_model.
        where: the file, as messages name it.
        source: the file's content.
        hint: a class name from a config file; used if the file has that class.
    Raises:
        ModelError: no such class, or several; lists them.
    """
    classes = [
        name
        for name, value in vars(module).items()
        if isinstance(value, type) and issubclass(value, nn.Module) and value.__module__ == module.__name__
    ]
    listed = ", ".join(classes) or "none"
    if wanted is not None:
        target: Any = module
        for part in wanted.split("."):
            target = getattr(target, part, None)
        if target is None:
            guess = nearest(wanted, [name for name in vars(module) if not name.startswith("_")])
            raise ModelError(
                f"{where} has no {wanted!r}. Its nn.Module classes: {listed}."
                + (f" Did you mean {guess!r}?" if guess else "")
            )
        return target
    if hint in classes:
        return getattr(module, hint)
    candidates = unused_classes(source, classes)
    if len(candidates) == 1:
        if len(classes) > 1:
            logger.info("%s: the model is %s; the other classes are its parts.", where, candidates[0])
        return getattr(module, candidates[0])
    functions = [name for name in _FACTORY_NAMES if inspect.isfunction(getattr(module, name, None))]
    if len(functions) == 1:
        return getattr(module, functions[0])
    if not classes:
        raise ModelError(
            f"{where} defines no nn.Module class and no function named {', '.join(_FACTORY_NAMES)}. Name the function that "
            "returns the model after a colon, such as 'model.py:my_function'."
        )
    raise ModelError(
        f"{where} defines several models: {', '.join(candidates or classes)}. Name one after a colon, such as "
        f"'model.py:{(candidates or classes)[-1]}'."
    )


def construct(factory: Callable[..., Any], arguments: Arguments, where: str, files: Sequence[str] = ()) -> nn.Module:
    """Call `factory` with those arguments that it takes.

    Args:
        where: the source, as messages name it.
        files: the files of the model's code, for the line of an error.
    Raises:
        ConfigError: an argument that it does not take, or one that is missing.
        ModelError: it raises, or returns something other than an nn.Module.
    """
    if isinstance(factory, nn.Module):
        if arguments:
            raise ConfigError(
                f"{where} is a model already, so config and further arguments have no effect. Leave them out."
            )
        return factory
    name = getattr(factory, "__name__", type(factory).__name__)
    if not callable(factory):
        raise ModelError(f"{where}: {name} is a {type(factory).__name__}; must be an nn.Module class or a function.")
    if isinstance(factory, type) and not issubclass(factory, nn.Module):
        raise ModelError(f"{where}: {name} is a class, but no nn.Module. Give the model's class.")
    if inspect.isabstract(factory):
        missing = ", ".join(sorted(getattr(factory, "__abstractmethods__", ())))
        raise ModelError(f"{where}: {name} is abstract ({missing} not implemented). Give a class that implements it.")
    keywords = _keywords(factory, name, arguments, where)
    with reported(f"{where}: {name} could not be created", files):
        model = factory(**keywords)
    if not isinstance(model, nn.Module):
        raise ModelError(f"{where}: {name} returned a {type(model).__name__}; must be an nn.Module.")
    return model


def _keywords(factory: Callable[..., Any], name: str, arguments: Arguments, where: str) -> dict[str, Any]:
    """The call's keyword arguments."""
    try:
        parameters = dict(inspect.signature(factory).parameters)
    except (TypeError, ValueError):  # a callable of C code
        return arguments.values
    as_config = next((known for known in _CONFIG_NAMES if known in parameters and known not in arguments.given), None)
    if as_config is not None:
        return _with_config(factory, name, parameters, as_config, arguments, where)
    if arguments.config is not None:
        raise ConfigError(
            f"{where}: {name} has no parameter 'config', so it cannot take a {type(arguments.config).__name__}. Its "
            f"parameters: {', '.join(parameters) or 'none'}."
        )
    kept = _accepted(parameters, name, arguments, where)
    _require(parameters, kept, name, where)
    return kept


def _accepted(parameters: Mapping[str, Any], name: str, arguments: Arguments, where: str) -> dict[str, Any]:
    """Select the arguments that a signature takes."""
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return arguments.values
    known = [n for n, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    if problems := [_unknown(entry, known) for entry in arguments.given if entry not in known]:
        raise ConfigError.from_problems(f"{where}: {name}", problems)
    if ignored := [entry for entry in arguments.described if entry not in known]:
        logger.warning(
            "%s: %s does not take these entries of the config: %s.", where, name, ", ".join(map(str, ignored[:20]))
        )
    return {entry: value for entry, value in arguments.values.items() if entry in known}


def _unknown(entry: str, known: Sequence[str]) -> Problem:
    guess = nearest(entry, known)
    hint = f"; did you mean {guess}?" if guess else f"; it takes {', '.join(known) or 'no arguments'}"
    return Problem(entry, f"unknown argument{hint}")


def _require(parameters: Mapping[str, Any], kept: Mapping[str, Any], name: str, where: str) -> None:
    missing = [
        n
        for n, p in parameters.items()
        if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD) and n not in kept
    ]
    if missing:
        raise ConfigError.from_problems(
            f"{where}: {name}",
            [Problem(entry, "has no default and was not given; pass it by name") for entry in missing],
        )


def _with_config(
    factory: Callable[..., Any], name: str, parameters: Mapping[str, inspect.Parameter], as_config: str,
    arguments: Arguments, where: str,
) -> dict[str, Any]:  # fmt: skip
    """The call's arguments for a model that takes one config object, and perhaps more beside it."""
    beside = {n: v for n, v in arguments.given.items() if n in parameters and n != as_config}
    given = {n: v for n, v in arguments.given.items() if n not in beside}
    config = arguments.config
    if config is not None:
        config = changed(config, given, where) if given else config
    elif given or arguments.described:
        config = _config_of(factory, Arguments(None, given, arguments.described), where)
    elif parameters[as_config].default is inspect.Parameter.empty:
        made = config_class(factory)
        if made is None:
            raise ConfigError(f"{where}: {name} takes a config. Pass config={{...}}, or its entries by name.")
        config = _config_of(factory, Arguments(), where)
    kept = beside if config is None else {as_config: config, **beside}
    _require(parameters, kept, name, where)
    return kept


def _config_of(factory: Callable[..., Any], arguments: Arguments, where: str) -> Any:
    """The config object with these values."""
    made = config_class(factory)
    if made is None:
        return Settings(arguments.values)
    parameters = dict(inspect.signature(made).parameters)
    kept = _accepted(parameters, made.__name__, arguments, where)
    _require(parameters, kept, made.__name__, where)
    with reported(f"{where}: {made.__name__} could not be created"):
        return made(**kept)


def config_class(factory: Callable[..., Any]) -> type | None:
    """The class of the config that `factory` takes: by its annotation, as `config_class`, or the file's only class whose
    name is the model's, or "Model", with Config behind it."""
    function = factory.__init__ if isinstance(factory, type) else factory  # type: ignore[misc]
    try:
        hints = typing.get_type_hints(function)
    except (NameError, TypeError, AttributeError):  # an annotation of something that exists for type checkers only
        hints = {}
    candidates = [hints.get(known) for known in _CONFIG_NAMES] + [getattr(factory, "config_class", None)]
    for candidate in candidates:
        for option in (candidate, *typing.get_args(candidate)):
            if isinstance(option, type) and option not in (dict, type(None), object) and option.__module__ != "typing":
                return None if issubclass(option, Mapping) else option
    scope = getattr(function, "__globals__", {})
    named = {
        id(value): value
        for name, value in scope.items()
        if isinstance(value, type) and value.__module__ == scope.get("__name__") and _is_config_name(name, factory)
    }
    return next(iter(named.values())) if len(named) == 1 else None


def _is_config_name(name: str, factory: Callable[..., Any]) -> bool:
    """Whether a class of this name is the config of `factory`: GPTConfig of GPT and GPTLMHeadModel, ModelConfig of any."""
    stem, ending = name.removesuffix("Config"), name.endswith("Config")
    return ending and (stem in ("", "Model") or stem in getattr(factory, "__name__", ""))


def changed(config: Any, values: Mapping[str, Any], where: str) -> Any:
    """A copy of a config object with other values. Raises `ConfigError` for a name that it does not have."""
    known = [name for name in dir(config) if not name.startswith("_") and not callable(getattr(config, name, None))]
    problems = [_unknown(name, known) for name in values if not hasattr(config, name)]
    if problems:
        raise ConfigError.from_problems(f"{where}: {type(config).__name__}", problems)
    new = copy.deepcopy(config)
    for name, value in values.items():
        try:
            setattr(new, name, value)
        except (
            AttributeError,
            TypeError,
            ValueError,
        ) as error:  # a frozen dataclass, or a value that the config refuses
            raise ConfigError(f"{where}: {type(config).__name__}.{name} cannot be {shown(value)}: {error}") from None
    return new
