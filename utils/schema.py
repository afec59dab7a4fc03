"""Closed, validated settings: the base class of every configuration in Trainbook.

A `Schema` is a frozen pydantic model with three promises on top:

- closed: an unknown key is an error that names the nearest known one;
- strict: "5e-5" is not a number, True is not 1, NaN and infinity are no settings;
- total: all problems are reported together, as one `ConfigError`, before anything is done.

What is accepted can be written to a JSON or YAML file and read back equal, so text that is not Unicode, whole numbers of more
than 64 bits and values without end are refused as well.
"""

from __future__ import annotations

import difflib
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails, PydanticUndefined

from utils.errors import ConfigError, Problem
from utils.scrubbing import scrub, scrubbed

# Limits of one setting.
_MOST_CHARACTERS = 10_000
_MOST_VALUES = 10_000
_MOST_NESTED = 10
_LONGEST_NAME = 100
_WHOLE_NUMBERS = range(-(2**63), 2**63)


def setting(default: Any, title: str, description: str, *, unit: str | None = None, **rules: Any) -> Any:
    """A field of a schema as forms and help texts show it. `rules` are pydantic's, such as its bounds."""
    return Field(
        default, title=title, description=description, json_schema_extra={"unit": unit} if unit else None, **rules
    )


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The one of `known` that `word` was probably meant to be, or None."""
    if len(word) > _LONGEST_NAME:
        return None
    by_lower = {name.lower(): name for name in known}
    matches = difflib.get_close_matches(word.lower(), list(by_lower), n=1, cutoff=0.6)
    return by_lower[matches[0]] if matches else None


def shown(value: Any, limit: int = 60) -> str:
    """`value` as it is quoted in a message: its repr, without secrets, cut to `limit` characters."""
    try:
        text = scrub(repr(value))
    except Exception:  # noqa: BLE001 - an object of the caller's, which may raise anything; a message is due all the same
        text = f"<a {type(value).__name__}>"
    return text if len(text) <= limit else text[: limit - 1] + "…"


def plain(value: Any) -> Any:
    """`value` as a JSON or YAML file gives it back: tuples as lists, subclasses of text and numbers as these.

    Raises:
        ValueError: no such file can hold it; the message completes "got …; ".
    """
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float) and math.isfinite(value):
        return float(value)
    if isinstance(value, (list, tuple)):
        return [plain(entry) for entry in value]
    if isinstance(value, Mapping) and all(isinstance(name, str) for name in value):
        return {str.__str__(name): plain(entry) for name, entry in value.items()}
    names = "; names must be text" if isinstance(value, Mapping) else ""
    raise ValueError(
        f"must hold only text, finite numbers, True, False, None, lists and mappings of them, not {shown(value)}{names}"
    )


def size_problem(value: Any, most_nested: int, most_values: int, most_characters: int) -> str | None:
    """Explain why nested lists and mappings are too large for settings ("holds more than …"); None: they are not."""
    values = characters = 0
    waiting: list[tuple[Any, int]] = [(value, 1)]
    while waiting:
        item, level = waiting.pop()
        values += 1
        if isinstance(item, str):
            characters += len(item)
        elif isinstance(item, (list, tuple, set, frozenset, Mapping)):
            if level > most_nested:
                return f"is nested more than {most_nested} levels deep"
            # Before they are listed: a range or a mapping of the caller's can be of any length.
            if values + len(item) > most_values:
                return f"holds more than {most_values:,} values"
            children = [*item, *item.values()] if isinstance(item, Mapping) else item
            waiting += [(child, level + 1) for child in children]
        if values > most_values:
            return f"holds more than {most_values:,} values"
        if characters > most_characters:
            return f"holds more than {most_characters:,} characters"
    return None


def _unwritable(value: Any) -> str | None:
    """Explain why no config file can hold `value`, by its text, integers and size; None for what can, and for other
    objects."""
    if (problem := size_problem(value, _MOST_NESTED, _MOST_VALUES, _MOST_CHARACTERS)) is not None:
        return f"it {problem}"
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, str) and not _is_unicode(item):
            return "must be valid Unicode text (it holds half of a surrogate pair)"
        if isinstance(item, int) and not isinstance(item, bool) and int(item) not in _WHOLE_NUMBERS:
            return "must be a whole number of at most 64 bits"
        if isinstance(item, Mapping):
            waiting += [*item, *item.values()]
        elif isinstance(item, (list, tuple, set, frozenset)):
            waiting += item
    return None


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def equal(first: Any, second: Any) -> bool:
    """Whether two values are the same; those that cannot be compared are not."""
    try:
        return bool(first == second)
    except Exception:  # noqa: BLE001 - arrays, and objects of the caller's, which may raise anything
        return False


class Schema(BaseModel):
    """Base class of closed, strict, immutable settings. Raises `ConfigError`, never pydantic's own error."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        frozen=True,
        allow_inf_nan=False,
        protected_namespaces=(),
        ser_json_inf_nan="constants",
    )

    #: Other names under which a field is accepted: alias -> field.
    aliases: ClassVar[Mapping[str, str]] = {}

    #: Fields that earlier versions had: name -> the value with which they did what this version always does.
    removed: ClassVar[Mapping[str, Any]] = {}

    def __init__(self, /, **values: Any) -> None:
        known, problems = self._rename(values)
        problems += [
            Problem(name, f"got {shown(value)}; {reason}")
            for name, value in known.items()
            if (reason := _unwritable(value)) is not None
        ]
        unwritable = {problem.field for problem in problems}
        known, translation_problems = self.translate({n: v for n, v in known.items() if n not in unwritable})
        problems += translation_problems
        failed = {problem.field for problem in problems}
        try:
            super().__init__(**known)
        except ValidationError as error:
            found = _problems(type(self), error.errors())
            problems += [problem for problem in found if problem.field not in failed]
        bad = {problem.field for problem in problems}
        valid = {name: value for name, value in known.items() if name not in bad}
        problems += [p for p in self.contradictions({**self.defaults(), **valid}, valid) if p.field not in bad]
        if problems:
            raise ConfigError.from_problems(type(self).__name__, problems)

    @classmethod
    def _rename(cls, values: Mapping[str, Any]) -> tuple[dict[str, Any], list[Problem]]:
        """Aliases replaced by field names; what is unknown or given twice with different values becomes a problem."""
        known: dict[str, Any] = {}
        problems: list[Problem] = []
        given_as: dict[str, str] = {}
        for name, value in values.items():
            field = cls.aliases.get(name, name)
            if field not in cls.model_fields and field not in cls.extra_inputs():
                guess = nearest(name, [*cls.model_fields, *cls.aliases, *cls.extra_inputs()])
                hint = f"; did you mean {guess}?" if guess else ""
                problems.append(Problem(name, f"unknown field{hint}", guess))
            elif field in known and not equal(known[field], value):
                problems.append(
                    Problem(
                        field,
                        f"given twice: {given_as[field]}={shown(known[field])} and {name}={shown(value)}; keep one",
                    )
                )
            else:
                known[field] = value
                given_as[field] = name
        return known, problems

    @classmethod
    def extra_inputs(cls) -> tuple[str, ...]:
        """Names that `translate` turns into fields; they are no fields themselves."""
        return ()

    @classmethod
    def translate(cls, values: dict[str, Any]) -> tuple[dict[str, Any], list[Problem]]:
        """Hook: other spellings of values become the canonical ones before validation."""
        return values, []

    @classmethod
    def contradictions(cls, values: Mapping[str, Any], given: Mapping[str, Any]) -> list[Problem]:
        """Hook: problems between fields. `values` holds every valid field, `given` only those that the caller set."""
        return []

    @classmethod
    def defaults(cls) -> dict[str, Any]:
        """Every field's default; fields without one are absent."""
        found = {name: field.get_default(call_default_factory=False) for name, field in cls.model_fields.items()}
        return {name: value for name, value in found.items() if value is not PydanticUndefined}

    def __setattr__(self, name: str, value: Any) -> None:
        if type(self).model_config.get("frozen") and name in type(self).model_fields:
            raise ConfigError(
                f"{type(self).__name__} does not change: use .replace({name}={shown(value)}), which returns a new one"
            )
        super().__setattr__(name, value)

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        for name, value in super().__repr_args__():
            yield name, scrubbed(value)

    def to_dict(self) -> dict[str, Any]:
        """Every field as plain values (numbers, strings, lists, None): what a YAML or JSON file holds."""
        return self.model_dump(mode="json")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of `to_dict`. Raises `ConfigError` that lists every problem."""
        if not isinstance(values, Mapping):
            raise ConfigError(f"{cls.__name__} is made from a mapping of field names to values; got {shown(values)}")
        strange = [name for name in values if not isinstance(name, str)]
        if strange:
            problems = [Problem(shown(name), "is not text, as a field's name is") for name in strange]
            raise ConfigError.from_problems(cls.__name__, problems)
        return cls(**values)

    def differences(self) -> dict[str, Any]:
        """The fields that have to be given to make an equal object, as plain values: those that differ from their defaults,
        and those whose default depends on these."""
        mine, defaults = self.to_dict(), type(self)().to_dict()
        given = {name: value for name, value in mine.items() if value != defaults[name]}
        made = type(self).from_dict(given).to_dict()
        return {name: value for name, value in mine.items() if name in given or value != made[name]}

    @classmethod
    def from_saved(cls, values: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Translate the output of another version's `to_dict` to this version's fields. Values are not validated.

        Returns:
            the fields, renamed ones under their present names, missing ones with their defaults; and the entries that mean
            nothing here: unknown ones, and removed ones with a value that this version cannot reproduce.
        """
        known: dict[str, Any] = {}
        unknown: dict[str, Any] = {}
        for name, value in values.items():
            field = cls.aliases.get(name, name)
            if field in cls.model_fields or field in cls.extra_inputs():
                known[field] = value
            elif name not in cls.removed or not equal(cls.removed[name], value):
                unknown[name] = value
        known, _ = cls.translate(known)
        defaults = {name: value for name, value in cls._plain_defaults().items() if name not in known}
        return {**defaults, **known}, unknown

    @classmethod
    def _plain_defaults(cls) -> dict[str, Any]:
        return cls.model_construct(**cls.defaults()).model_dump(mode="json")

    @classmethod
    def wrong_types(cls, values: Mapping[str, Any]) -> list[Problem]:
        """Problems of `values` whatever the ranges of this version are: values that no version could have written."""
        try:
            BaseModel.__init__(cls.__new__(cls), **values)
        except ValidationError as error:
            ranges = ("greater_than", "less_than", "too_", "string_too", "string_pattern", "value_error")
            found = [detail for detail in error.errors() if not detail["type"].startswith(ranges)]
            return _problems(cls, found)
        return []

    def replace(self, /, **changes: Any) -> Self:
        """A copy with `changes`, validated as a whole."""
        renamed, problems = self._rename(changes)
        if problems:
            raise ConfigError.from_problems(type(self).__name__, problems)
        kept = {name: value for name, value in self._inputs().items() if name not in self.retired_by(renamed)}
        return type(self)(**{**kept, **renamed})

    @classmethod
    def retired_by(cls, changes: Mapping[str, Any]) -> frozenset[str]:
        """Hook: fields whose present value no longer holds once `changes` are made, such as the other of two spellings."""
        return frozenset()

    def _inputs(self) -> dict[str, Any]:
        """The keyword arguments that make an equal object."""
        return {name: getattr(self, name) for name in type(self).model_fields}


def path_text(value: Any) -> Any:
    """A path object as text; everything else unchanged, so that validation can speak about it."""
    return os.fspath(value) if isinstance(value, os.PathLike) else value


_SENTENCES = {
    "greater_than": "must be greater than {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be less than {lt}",
    "less_than_equal": "must be at most {le}",
    "finite_number": "must be a finite number",
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "bool_type": "must be True or False",
    "string_type": "must be text",
    "string_too_short": "must not be empty",
    "string_too_long": "must have at most {max_length} characters",
    "none_required": "must be None",
    "dict_type": "must be a mapping",
    "tuple_type": "must be a list",
    "list_type": "must be a list",
    "too_short": "must have at least {min_length} entries",
    "too_long": "must have at most {max_length} entries",
    "missing": "is required",
}


def _problems(schema: type[Schema], details: list[ErrorDetails]) -> list[Problem]:
    """pydantic's errors as problems: one a field, with what was got and what is allowed."""
    rules: dict[str, list[str]] = {}
    got: dict[str, Any] = {}
    for detail in details:
        field = str(detail["loc"][0]) if detail["loc"] else schema.__name__
        rule = _rule(detail)
        if rule not in rules.setdefault(field, []):
            rules[field].append(rule)
        # The innermost value is the one that is wrong: 0.9 in betas, not the whole list.
        got[field] = detail["input"]
    problems = []
    for field, sentences in rules.items():
        value = got[field]
        allowed = " or ".join([sentences[0], *(s.removeprefix("must be ") for s in sentences[1:])])
        if allowed == "is required":
            problems.append(Problem(field, "is required"))
            continue
        message = f"got {shown(value)}; {allowed}"
        if isinstance(value, str) and _is_number(value) and "number" in allowed:
            message += f" (text was given: write {value.strip()} without quotes)"
        problems.append(Problem(field, message))
    return problems


def _rule(detail: ErrorDetails) -> str:
    context = detail.get("ctx", {})
    kind = detail["type"]
    if kind == "literal_error":
        expected = context["expected"]
        words = [word.strip("'") for word in expected.replace(" or ", ", ").split(", ")]
        guess = nearest(detail["input"], words) if isinstance(detail["input"], str) else None
        return f"must be {expected}" + (f"; did you mean {guess!r}?" if guess else "")
    if kind in _SENTENCES:
        return _SENTENCES[kind].format(**context)
    if kind == "value_error":
        return str(context["error"])
    return detail["msg"][:1].lower() + detail["msg"][1:]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return not re.match(r"\s*[-+]?0\d", text)  # 012 without quotes is refused as well


def choices_of(schema: type[Schema], field: str) -> tuple[Any, ...]:
    """The allowed values of a field that is a choice (a `Literal`, perhaps with None); empty for other fields."""
    annotation = schema.model_fields[field].annotation
    arguments = get_args(annotation)
    found: list[Any] = []
    for argument in arguments:
        inner = get_args(argument)
        if inner:
            found.extend(inner)
        elif not isinstance(argument, type):
            found.append(argument)
    return tuple(found)
