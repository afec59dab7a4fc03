"""In which order values are tried: all of them, at random, or where Optuna expects the best."""

from __future__ import annotations

import contextlib
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from utils.errors import ConfigError, MissingPackageError
from utils.schema import nearest, shown
from utils.training.engine.callbacks import Callback, Logs
from utils.training.search.space import Choices, Dimension, SearchSpace
from utils.training.search.trial import Trial, TrialStatus

if TYPE_CHECKING:
    import optuna

    from utils.training.engine.trainer import Trainer

StrategyName = Literal["grid", "random", "optuna"]
# Words of other systems.
_NAMES: dict[str, StrategyName] = {
    "grid": "grid", "random": "random", "optuna": "optuna", "tpe": "optuna", "bayes": "optuna", "bayesian": "optuna",
}  # fmt: skip
#: Trials of a search that was given no number and whose strategy has no number of its own.
DEFAULT_TRIALS = 20
#: Why a run was ended because others were better.
PRUNED = "pruned"
# Up to so many combinations are put in a random order as a whole; of larger spaces single ones are drawn.
_ORDERED = 10_000


class Strategy(Protocol):
    """Says what the next trial is, knowing those before."""

    def known(self, trials: list[Trial]) -> list[Trial]:
        """Take up the trials of earlier sessions and other processes; returns them, with what the strategy's own storage knows
        better. Called again before every `ask`."""

    def ask(self, number: int) -> dict[str, Any] | None:
        """The values of trial `number`; None when there are no more."""

    def tell(self, trial: Trial) -> None:
        """Take up how a trial ended."""

    def callbacks(self, number: int, monitor: str) -> list[Callback]:
        """Callbacks for the run of trial `number` in this process."""

    def is_hopeless(self, number: int, value: float, epoch: int) -> bool:
        """Whether that trial is to end, with this value after this epoch. Asked of trials that have callbacks."""

    def close(self) -> None:
        """Let go of files and connections."""


def strategy_name(strategy: str) -> StrategyName:
    """The strategy that is meant. Raises `ConfigError` that names the ones there are."""
    if strategy not in _NAMES:
        guess = nearest(str(strategy), _NAMES)
        hint = f"; did you mean {guess!r}?" if guess else ""
        raise ConfigError(f"strategy is 'grid', 'random' or 'optuna'; got {shown(strategy)}{hint}")
    return _NAMES[strategy]


class Planned:
    """Trials whose values do not depend on each other: a grid, or a random order that a seed fixes."""

    def __init__(self, combinations: Iterator[dict[str, Any]]) -> None:
        self._combinations = combinations
        self._drawn: list[dict[str, Any]] = []

    def known(self, trials: list[Trial]) -> list[Trial]:
        return trials

    def ask(self, number: int) -> dict[str, Any] | None:
        while len(self._drawn) <= number:
            combination = next(self._combinations, None)
            if combination is None:
                return None
            self._drawn.append(combination)
        return dict(self._drawn[number])

    def tell(self, trial: Trial) -> None:
        """Nothing to learn from it."""

    def callbacks(self, number: int, monitor: str) -> list[Callback]:
        return []

    def is_hopeless(self, number: int, value: float, epoch: int) -> bool:
        return False

    def close(self) -> None:
        """Nothing is held."""


def random_order(space: SearchSpace, seed: int) -> Iterator[dict[str, Any]]:
    """Combinations at random, none twice. A longer search with the same seed begins with those of a shorter one."""
    generator = np.random.default_rng(seed)
    size = space.size
    if size is not None and size <= _ORDERED:
        yield from _shuffled(space, generator)
        return
    seen: set[str] = set()
    while size is None or len(seen) < size:
        combination = space.draw(generator)
        if repr(combination) not in seen:
            seen.add(repr(combination))
            yield combination


def _shuffled(space: SearchSpace, generator: np.random.Generator) -> Iterator[dict[str, Any]]:
    """Every combination once, the likelier ones earlier: the Gumbel trick (Vieira 2014, "Gumbel-max trick and weighted
    reservoir sampling"), which orders as drawing without replacement does."""
    listed = {name: _listed(dimension) for name, dimension in space.dimensions.items()}
    combinations: list[tuple[float, dict[str, Any]]] = [(0.0, {})]
    for name, values in listed.items():
        combinations = [
            (weight + own, {**before, name: value}) for weight, before in combinations for value, own in values
        ]
    keys = generator.gumbel(size=len(combinations)) + np.array([weight for weight, _ in combinations])
    for index in np.argsort(-keys):
        yield combinations[int(index)][1]


def _listed(dimension: Dimension) -> list[tuple[Any, float]]:
    """(value, logarithm of its weight) of every value of a dimension that can be counted."""
    if isinstance(dimension, Choices):
        return [(value, 0.0) for value in dimension.values]
    values = range(int(dimension.low), int(dimension.high) + 1)
    if not dimension.log:
        return [(value, 0.0) for value in values]
    return [(value, math.log(math.log((value + 0.5) / (value - 0.5)))) for value in values]


class OptunaStudy:
    """An Optuna study, asked and told: Bayesian search (by default the tree-structured Parzen estimator of Bergstra et al.
    2011) that resumes where its trials stand."""

    def __init__(
        self, space: SearchSpace, mode: str, name: str, seed: int, *, storage: Any = None, prune: bool = False,
        sampler: Any = None,
    ) -> None:  # fmt: skip
        self._optuna = optuna = _import_optuna()
        self._distributions = {key: _distribution(dimension) for key, dimension in space.dimensions.items()}
        self._space, self._prune, self._seed, self._own_sampler = space, prune, seed, sampler
        self._asked: dict[int, Any] = {}
        self._known = 0  # trials that were asked for here or taken up
        # Where the combinations can be counted, those that were not tried yet, in a random order that the seed fixes.
        self._left: list[dict[str, Any]] | None = None
        self._verbosity = optuna.logging.get_verbosity()
        optuna.logging.set_verbosity(optuna.logging.WARNING)  # its reports of every trial are ours to give
        try:
            self._storage = _opened(storage)
            self.study = optuna.create_study(
                storage=self._storage, study_name=name, load_if_exists=True,
                direction="minimize" if mode == "min" else "maximize", sampler=sampler or optuna.samplers.TPESampler(seed=seed),
                pruner=optuna.pruners.MedianPruner(n_startup_trials=3) if prune else optuna.pruners.NopPruner(),
            )  # fmt: skip
        except BaseException:
            optuna.logging.set_verbosity(self._verbosity)
            raise

    def known(self, trials: list[Trial]) -> list[Trial]:
        merged = list(trials)
        waiting = self._optuna.trial.TrialState.WAITING
        there = [frozen for frozen in self.study.get_trials(deepcopy=False) if frozen.state != waiting]
        for frozen in there:
            if frozen.number >= len(merged):
                merged.append(Trial(frozen.number, self._values(frozen.params)))
            if frozen.state.is_finished() and not merged[frozen.number].is_over:
                _take_over(merged[frozen.number], frozen)
            elif merged[frozen.number].is_over and not frozen.state.is_finished():
                self.tell(merged[frozen.number])  # another process ran it, and this study is in memory
        for trial in merged[len(there) :]:
            self.study.add_trial(self._frozen(trial))
        new = [self._params(trial.params) for trial in merged[self._known :]]
        if new and self._own_sampler is None:
            # From the seed alone, the next draws would be those of another session once more.
            self.study.sampler = self._optuna.samplers.TPESampler(seed=(self._seed + len(merged)) % 2**32)
        if self._left is None and self._space.size is not None and self._space.size <= _ORDERED:
            self._left = [self._params(values) for values in _shuffled(self._space, np.random.default_rng(self._seed))]
        if self._left is not None and new:
            self._left = [values for values in self._left if values not in new]
        self._known = len(merged)
        return merged

    def ask(self, number: int) -> dict[str, Any] | None:
        """The sampler's proposal; where combinations can be counted, one that is new, and None when all were tried."""
        if self._left is not None:
            if not self._left:
                return None
            # One that waits already is from a session that was killed between these two calls.
            if not self.study.get_trials(deepcopy=False, states=(self._optuna.trial.TrialState.WAITING,)):
                proposal = self._proposal()
                self.study.enqueue_trial(proposal if proposal in self._left else self._left[0])
        try:
            trial = self.study.ask(self._distributions)
        except ValueError as error:  # the stored study has other choices or kinds of values
            raise ConfigError(f"the study {self.study.study_name!r} has another search space: {error}") from error
        if trial.number != number:
            raise ConfigError(
                f"another process searches in the study {self.study.study_name!r} too; give this search a name of its own."
            )
        self._asked[number] = trial
        self._known = number + 1
        if self._left is not None:
            self._left = [values for values in self._left if values != trial.params]
        return self._values(trial.params)

    def _proposal(self) -> dict[str, Any]:
        """Next suggestion of the sampler. Asked in a separate study, since a trial that was created cannot be withdrawn."""
        apart = self._optuna.create_study(direction=self.study.direction, sampler=self.study.sampler)
        apart.add_trials(self.study.get_trials(deepcopy=False))
        return dict(apart.ask(self._distributions).params)

    def tell(self, trial: Trial) -> None:
        states = self._optuna.trial.TrialState
        known = self._asked.pop(trial.number, trial.number)
        if trial.status == "failed":
            self.study.tell(known, state=states.FAIL)
        elif trial.status == "pruned" and not isinstance(known, int):
            self.study.tell(known, state=states.PRUNED)
        else:
            self.study.tell(known, trial.value)

    def callbacks(self, number: int, monitor: str) -> list[Callback]:
        if not self._prune or number not in self._asked:
            return []
        return [Pruning(lambda value, epoch: self.is_hopeless(number, value, epoch), monitor)]

    def is_hopeless(self, number: int, value: float, epoch: int) -> bool:
        trial = self._asked.get(number)
        if trial is None:  # it has ended meanwhile: its worker died after it had asked
            return False
        # A run that continues after a crash may repeat an epoch.
        if epoch not in self.study.get_trials(deepcopy=False)[number].intermediate_values:
            trial.report(value, epoch)
        return bool(trial.should_prune())

    def close(self) -> None:
        self._optuna.logging.set_verbosity(self._verbosity)
        if isinstance(self._storage, self._optuna.storages.RDBStorage):
            self._storage.remove_session()
            self._storage.engine.dispose()

    def _values(self, params: dict[str, Any]) -> dict[str, Any]:
        """Optuna's values as the config's: a choice that Optuna cannot store stands there by its text."""
        found = {}
        for name, dimension in self._space.dimensions.items():
            value = params[name]
            if isinstance(dimension, Choices):
                value = next(choice for choice in dimension.values if _stored(choice) == value)
            found[name] = value
        return found

    def _params(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The inverse of `_values`."""
        return {
            name: _stored(value) if isinstance(self._space.dimensions[name], Choices) else value
            for name, value in values.items()
        }

    def _frozen(self, trial: Trial) -> optuna.trial.FrozenTrial:
        states = self._optuna.trial.TrialState
        state = {"finished": states.COMPLETE, "pruned": states.PRUNED, "failed": states.FAIL}.get(
            trial.status, states.RUNNING
        )
        params = self._params(trial.params)
        frozen: optuna.trial.FrozenTrial = self._optuna.trial.create_trial(
            state=state, params=params, distributions=self._distributions,
            value=trial.value if trial.status in ("finished", "pruned") else None,
        )  # fmt: skip
        return frozen


class Pruning(Callback):
    """Asks after each epoch, with its value and number, whether the run is hopeless, and ends one that is."""

    def __init__(self, is_hopeless: Callable[[float, int], bool], monitor: str) -> None:
        self._is_hopeless, self._monitor = is_hopeless, monitor

    def on_epoch_end(self, epoch: int, trainer: Trainer, logs: Logs | None = None) -> None:
        value = (logs or {}).get(self._monitor)
        if value is None or not math.isfinite(value):
            return
        if self._is_hopeless(value, epoch):
            trainer.request_stop(PRUNED)


def _take_over(trial: Trial, frozen: optuna.trial.FrozenTrial) -> None:
    """Take over a trial's outcome from the study's storage."""
    statuses: dict[str, TrialStatus] = {"COMPLETE": "finished", "PRUNED": "pruned", "FAIL": "failed"}
    trial.status = statuses[frozen.state.name]
    trial.value = frozen.value
    if trial.status == "failed" and not trial.reason:
        trial.reason = "failed in an earlier session"


def _import_optuna() -> Any:
    try:
        import optuna
    except ImportError as error:
        raise MissingPackageError("optuna", "for the search strategy 'optuna'") from error
    return optuna


def _distribution(dimension: Dimension) -> optuna.distributions.BaseDistribution:
    from optuna import distributions

    if isinstance(dimension, Choices):
        return distributions.CategoricalDistribution([_stored(value) for value in dimension.values])
    if dimension.whole:
        return distributions.IntDistribution(int(dimension.low), int(dimension.high), log=dimension.log)
    return distributions.FloatDistribution(dimension.low, dimension.high, log=dimension.log)


def _stored(value: Any) -> Any:
    """A choice as Optuna can store it: a plain value, or its text."""
    return value if value is None or isinstance(value, (bool, int, float, str)) else json.dumps(value, default=str)


def _opened(storage: Any) -> Any:
    """Optuna's storage for a URL such as sqlite:///runs/study.db, whose folder is made; other objects as they are."""
    if not isinstance(storage, (str, Path)):
        return storage
    import optuna
    from sqlalchemy.exc import SQLAlchemyError

    url = f"sqlite:///{storage}" if isinstance(storage, Path) else storage
    if url.startswith("sqlite:///"):
        with contextlib.suppress(OSError):  # the database's own error names the path
            Path(url.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
    # The driver of the extra `postgres`; SQLAlchemy's default is an older one.
    url = re.sub(r"^postgres(ql)?://", "postgresql+psycopg://", url)
    try:
        return optuna.storages.RDBStorage(url)
    except (SQLAlchemyError, ImportError, ValueError) as error:
        raise ConfigError(
            f"storage={shown(url)} cannot be opened: {error}. A file's is written sqlite:///runs/study.db"
        ) from error


def make_strategy(
    name: StrategyName, space: SearchSpace, mode: str, study_name: str, seed: int, *, storage: Any, prune: bool, sampler: Any
) -> Strategy:  # fmt: skip
    """The strategy of that name. Raises `ConfigError` for settings that it does not have."""
    if name == "optuna":
        return OptunaStudy(space, mode, study_name, seed, storage=storage, prune=prune, sampler=sampler)
    given = [word for word, value in (("storage", storage), ("prune", prune), ("sampler", sampler)) if value]
    if given:
        raise ConfigError(f"{', '.join(given)}: only for strategy='optuna'; got strategy={name!r}")
    return Planned(iter(space.grid()) if name == "grid" else random_order(space, seed))
