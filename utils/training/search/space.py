"""The search space: which hyper-parameters are tried, and between which values."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, get_args

import numpy as np

from utils.errors import ConfigError, Problem
from utils.schema import nearest, shown
from utils.training.training_config import TrainingConfig

#: What precedes the name of an argument of the model factory.
MODEL = "model."

# Short names of other systems and papers, beside TrainingConfig's own aliases.
_ALIASES: Mapping[str, str] = {
    **TrainingConfig.aliases,
    "lr": "learning_rate", "wd": "weight_decay", "bs": "batch_size", "clip": "max_grad_norm", "grad_clip": "max_grad_norm",
    "accumulation_steps": "gradient_accumulation_steps", "scheduler": "lr_schedule", "dropout": "model.dropout",
}  # fmt: skip
# A plain (low, high) of these is searched by its logarithm: what matters is their order of magnitude.
_BY_MAGNITUDE = ("learning_rate", "weight_decay", "eps")
_NOT_SEARCHED = TrainingConfig.NOT_LEARNED | {"monitor", "mode", "on_nonfinite"}


@dataclass(frozen=True)
class Choices:
    """One of these values."""

    values: tuple[Any, ...]

    @property
    def count(self) -> int | None:
        """Number of values; None when they cannot be counted."""
        return len(self.values)

    def grid(self) -> list[Any] | None:
        """The values that a grid visits; None when a number of points is missing."""
        return list(self.values)

    def draw(self, generator: np.random.Generator) -> Any:
        """One value at random."""
        return self.values[int(generator.integers(len(self.values)))]

    def describe(self) -> dict[str, Any]:
        """Description for the search file."""
        return {"values": list(self.values)}


@dataclass(frozen=True)
class Range:
    """A number from low to high, both included.

    Attributes:
        points: how many values a grid takes of it; the other strategies do not need it.
        whole: whether only whole numbers are taken; set by `SearchSpace` from the hyper-parameter's type.
    """

    low: float
    high: float
    points: int | None = None
    whole: bool = False

    log = False

    @property
    def count(self) -> int | None:
        return int(self.high) - int(self.low) + 1 if self.whole else None

    def grid(self) -> list[Any] | None:
        if self.points is None:
            return None
        values = self._back(np.linspace(self._there(self.low), self._there(self.high), self.points)).tolist()
        ends = [self.low, *values[1:-1], self.high] if self.points > 1 else [self.low]  # exact, whatever was rounded
        return list(dict.fromkeys(round(value) for value in ends)) if self.whole else ends

    def draw(self, generator: np.random.Generator) -> Any:
        # Half a step more on each side, so that the outermost whole numbers are as likely as the others.
        margin = 0.5 if self.whole else 0.0
        drawn = generator.uniform(self._there(self.low - margin), self._there(self.high + margin))
        value = min(max(float(self._back(drawn)), self.low), self.high)
        return round(value) if self.whole else value

    def describe(self) -> dict[str, Any]:
        """Description for the search file."""
        points = {} if self.points is None else {"points": self.points}
        return {"min": self.low, "max": self.high, "log": self.log, **points}

    def _there(self, value: Any) -> Any:
        return value

    def _back(self, value: Any) -> Any:
        return value


@dataclass(frozen=True)
class LogRange(Range):
    """A number from low to high, each order of magnitude alike."""

    log = True

    def _there(self, value: Any) -> Any:
        return np.log(value)

    def _back(self, value: Any) -> Any:
        return np.exp(value)


Dimension = Choices | Range


class SearchSpace:
    """Hyper-parameters to search over, under the config's own names.

    Args:
        space: name -> a list of choices, `(low, high)`, `Range`, `LogRange`, or a mapping as in a search file: {"min", "max",
            "log", "points"} or {"values": [...]}, also with W&B's `distribution`. Names are TrainingConfig's fields, their
            aliases and the customary short ones (lr, wd, warmup, clip); "model.width" is the argument `width` of the model
            factory, and "dropout" is short for "model.dropout". A plain `(low, high)` of learning_rate, weight_decay or eps
            is searched by its logarithm, any other one evenly.
        base: every trial's other settings; each value is checked against it.
    Raises:
        ConfigError: lists every unknown name, empty or reversed range, and value that the config refuses.

    Attributes:
        dimensions: the config's name -> `Choices` or `Range`.
    """

    def __init__(self, space: Mapping[str, Any], base: TrainingConfig | None = None) -> None:
        if not isinstance(space, Mapping) or not space:
            raise ConfigError(
                f"a search space maps names to values, such as {{'learning_rate': (1e-5, 1e-3)}}; got {shown(space)}"
            )
        self.base = base or TrainingConfig()
        self.dimensions: dict[str, Dimension] = {}
        problems: list[Problem] = []
        for given, value in space.items():
            try:
                name, dimension = _named(str(given), _dimension(value))
            except ValueError as error:
                problems.append(Problem(str(given), str(error)))
                continue
            if name in self.dimensions:
                problems.append(Problem(str(given), f"is {name}, which is there already; keep one"))
            problems += self._refused(str(given), name, dimension)
            self.dimensions[name] = dimension
        if problems:
            raise ConfigError.from_problems("the search space", problems)

    def _refused(self, given: str, name: str, dimension: Dimension) -> list[Problem]:
        """Validate a dimension's values with the config: of a range its two ends."""
        if name.startswith(MODEL):
            return []
        values = dimension.values if isinstance(dimension, Choices) else (dimension.low, dimension.high)
        problems: dict[str, Problem] = {}
        for value in values:
            try:
                self.base.replace(**{name: value})
            except ConfigError as error:
                # Together with another hyper-parameter a value may be right, so only its own faults count here.
                for problem in error.problems:
                    if problem.field == name:
                        problems[problem.message] = Problem(given, problem.message, problem.fix)
        return list(problems.values())

    @property
    def names(self) -> list[str]:
        """The config's names, in the space's order."""
        return list(self.dimensions)

    @property
    def size(self) -> int | None:
        """Number of combinations; None when they cannot be counted."""
        counts = [dimension.count for dimension in self.dimensions.values()]
        return None if None in counts else math.prod(count for count in counts if count is not None)

    def grid(self) -> list[dict[str, Any]]:
        """Every combination, the last name changing fastest.

        Raises:
            ConfigError: a range without a number of points; names all of them.
        """
        columns = {name: dimension.grid() for name, dimension in self.dimensions.items()}
        problems = [
            Problem(name, f"is a range; a grid needs choices or a number of points: {_with_points(self.dimensions[name])}")
            for name, values in columns.items()
            if values is None
        ]  # fmt: skip
        if problems:
            raise ConfigError.from_problems("the search space of a grid", problems)
        combinations = itertools.product(*(values for values in columns.values() if values is not None))
        return [dict(zip(columns, values, strict=True)) for values in combinations]

    def draw(self, generator: np.random.Generator) -> dict[str, Any]:
        """One combination at random."""
        return {name: dimension.draw(generator) for name, dimension in self.dimensions.items()}

    def describe(self) -> dict[str, Any]:
        """The space as plain values."""
        return {name: dimension.describe() for name, dimension in self.dimensions.items()}


def _with_points(dimension: Dimension) -> str:
    assert isinstance(dimension, Range)
    return f"{type(dimension).__name__}({dimension.low:g}, {dimension.high:g}, points=5)"


def _dimension(value: Any) -> Any:
    """A dimension, from any of its spellings; a plain tuple stays one until the name is known. Raises ValueError."""
    if isinstance(value, Mapping):
        return _from_mapping(value)
    if isinstance(value, tuple) and len(value) == 2 and all(_is_number(end) for end in value):
        return value
    if isinstance(value, (list, tuple, set, frozenset, range)):
        values = tuple(sorted(value, key=repr) if isinstance(value, (set, frozenset)) else value)
        if not values:
            raise ValueError("has no choices; list at least one")
        return Choices(values)
    if isinstance(value, (Choices, Range)):
        return value
    raise ValueError(f"got {shown(value)}; must be a list of choices, (low, high), Range, LogRange or a mapping")


# W&B's distributions that mean the same here.
_LINEAR = ("uniform", "int_uniform")
_LOGARITHMIC = ("log_uniform_values",)
_LISTED = ("categorical", "constant")


def _from_mapping(value: Mapping[str, Any]) -> Any:
    rest = dict(value)
    kind = rest.pop("distribution", None)
    if kind is not None and kind not in (*_LINEAR, *_LOGARITHMIC, *_LISTED):
        raise ValueError(f"distribution {kind!r} is not known; use {', '.join((*_LINEAR, *_LOGARITHMIC, *_LISTED))}")
    if "values" in rest or "value" in rest:
        values = rest.pop("values", None)
        found = [rest.pop("value")] if values is None else values
        if rest or not isinstance(found, (list, tuple)):
            raise ValueError(f"got {shown(value)}; a list of choices is {{values: [...]}} alone")
        return _dimension(list(found))
    low, high = rest.pop("min", rest.pop("low", None)), rest.pop("max", rest.pop("high", None))
    log, points = rest.pop("log", None), rest.pop("points", None)
    if rest or not _is_number(low) or not _is_number(high):
        raise ValueError(f"got {shown(value)}; must have min and max (and log, points), or values")
    if points is not None and (isinstance(points, bool) or not isinstance(points, int)):
        raise ValueError(f"points={shown(points)}; must be a whole number of at least 1")
    if log is None and kind is None and points is None:
        return low, high
    logarithmic = kind in _LOGARITHMIC if log is None else bool(log)
    return (LogRange if logarithmic else Range)(low, high, points)


def _named(given: str, value: Any) -> tuple[str, Dimension]:
    """The config's name and the dimension, whole numbers where the field wants them. Raises ValueError."""
    name = _ALIASES.get(given, given)
    if name == "warmup":
        name = "warmup_ratio" if _largest(value) <= 1 else "warmup_steps"
    if name == "use_amp" and isinstance(value, Choices):
        name, value = "precision", Choices(tuple("16" if half else "32" for half in value.values))
    if not name.startswith(MODEL):
        _check_name(given, name)
    if isinstance(value, tuple):
        low, high = value
        value = LogRange(low, high) if name in _BY_MAGNITUDE and low > 0 else Range(low, high)
    if isinstance(value, Range):
        _check_ends(value)
        value = replace(value, whole=_takes_whole_numbers(name, value))
    assert isinstance(value, (Choices, Range))
    return name, value


def _check_name(given: str, name: str) -> None:
    if name not in TrainingConfig.model_fields:
        guess = nearest(given, [*TrainingConfig.model_fields, *_ALIASES])
        hint = f"; did you mean {guess}?" if guess else f"; an argument of the model is {MODEL}{given}"
        raise ValueError(f"unknown hyper-parameter{hint}")
    if name in _NOT_SEARCHED:
        raise ValueError("does not change what is learned, so it cannot be searched; set it in training_config")


def _check_ends(value: Range) -> None:
    if not (math.isfinite(value.low) and math.isfinite(value.high) and value.low < value.high):
        raise ValueError(f"got {value.low:g} to {value.high:g}; the first must be less than the second, both finite")
    if value.log and value.low <= 0:
        raise ValueError(f"got {value.low:g} to {value.high:g} by the logarithm; both must be greater than 0")
    if value.points is not None and value.points < 1:
        raise ValueError(f"got points={value.points}; must be at least 1")


def _takes_whole_numbers(name: str, value: Range) -> bool:
    ends_whole = isinstance(value.low, int) and isinstance(value.high, int)
    if name.startswith(MODEL):
        return ends_whole
    annotation = TrainingConfig.model_fields[name].annotation
    kinds = {annotation, *get_args(annotation)}
    if int in kinds and float not in kinds and not ends_whole:
        raise ValueError(f"got {value.low!r} to {value.high!r}; must be whole numbers")
    return int in kinds and float not in kinds


def _largest(value: Any) -> float:
    values: Sequence[Any] = value if isinstance(value, tuple) else getattr(value, "values", None) or (value.high,)
    return max((float(entry) for entry in values if _is_number(entry)), default=math.inf)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
