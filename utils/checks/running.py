"""Run several checks one after another: with progress, with a stop, and with what is known when it ends early."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

from utils.check_result import CheckReport, CheckResult
from utils.checks.expected import expected_seconds
from utils.errors import ConfigError
from utils.views.report import duration

logger = logging.getLogger("trainbook.checks")

_AGAIN = "Run the checks again."


@dataclass(frozen=True)
class CheckProgress:
    """Progress of a tier of checks.

    Attributes:
        title: of the report.
        name: of the check that runs now; "" when all have run.
        done, total: checks that have run, and all.
        elapsed_s: since the first check began.
        expected_s: estimated duration of all checks together; None: not known.
    """

    title: str
    name: str
    done: int
    total: int
    elapsed_s: float
    expected_s: float | None = None

    @property
    def fraction(self) -> float:
        """Share of the work that is done, by time where the total is known."""
        if not self.name:
            return 1.0
        by_count = self.done / self.total if self.total else 1.0
        return max(by_count, min(0.99, self.elapsed_s / self.expected_s)) if self.expected_s else by_count

    @property
    def sentence(self) -> str:
        """Such as "Tier 1: shapes (1 of 6), 3 s of about 20 s", without a full stop."""
        if not self.name:
            return f"{self.title}: {self.total} checks in {duration(self.elapsed_s)}"
        expected = f" of about {_clock(max(self.expected_s, self.elapsed_s))}" if self.expected_s else ""
        return f"{self.title}: {self.name} ({self.done + 1} of {self.total}), {_clock(self.elapsed_s)}{expected}"


def _clock(seconds: float) -> str:
    """Whole seconds: a running clock that shows tenths flickers."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


Report = Callable[[CheckProgress], None]
Stop = Callable[[], bool]


class _StoppedError(BaseException):
    """Ends a check at the next call of a module. No `Exception`: checks report those as the model's."""


def run_checks(
    title: str,
    checks: Mapping[str, Callable[..., CheckResult]],
    model: Any,
    config: Any = None,
    *,
    progress: Report | None = None,
    should_stop: Stop | None = None,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    expected_s: float | None = None,
    **arguments: Any,
) -> CheckReport:
    """Run checks in order. An interrupt or a stop ends the run, not the report.

    Args:
        title: of the report.
        checks: by the name that their results have.
        model, config, arguments: given to every check.
        progress: called in this thread before each check and after the last one.
        should_stop: asked before each check and before each call of a module in this thread; True ends the run. None: only
            the interrupt of the kernel, or Ctrl-C, does.
        options: further arguments of single checks, by name.
        expected_s: estimated duration; None: estimated from one forward pass, when progress is shown.
    Returns:
        The results in order. After a stop or an interrupt the check that ran and those after it are "not run"; the model is
        as it was, because a check that is stopped restores it like one that ends.
    """
    results: list[CheckResult] = []
    tell = _Telling(title, list(checks), progress)
    with contextlib.suppress(KeyboardInterrupt, _StoppedError), _stopped_by(should_stop), _random_ids_are_no_padding():
        if progress is not None:
            tell.expected_s = expected_s or expected_seconds(checks, model, config, **arguments)
        for name, run in checks.items():
            if should_stop is not None and should_stop():
                break
            tell(len(results))
            results.append(run(model, config, **arguments, **(options or {}).get(name, {})))
        else:
            tell(len(results))
    remaining = list(checks)[len(results) :]
    results += [
        CheckResult(name, "not run", "Stopped before this check had ended.", remedy=_AGAIN)
        if index == 0
        else CheckResult(name, "not run", "Stopped.")
        for index, name in enumerate(remaining)
    ]
    return CheckReport(title, results, tell.elapsed_s, stopped=bool(remaining))


@contextlib.contextmanager
def _random_ids_are_no_padding() -> Iterator[None]:
    """Drop the advice of transformers to pass a mask where the checks' random ids happen to hold the id of padding."""

    def is_other(record: logging.LogRecord) -> bool:
        return "strongly recommend passing in an `attention_mask`" not in record.getMessage()

    source = logging.getLogger("transformers.modeling_utils")
    source.addFilter(is_other)
    try:
        yield
    finally:
        source.removeFilter(is_other)


class _Telling:
    """Reports progress, in the log too."""

    def __init__(self, title: str, names: Sequence[str], progress: Report | None) -> None:
        self._title, self._names, self._progress = title, names, progress
        self.expected_s: float | None = None
        self._began = time.monotonic()

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self._began

    def __call__(self, done: int) -> None:
        name = self._names[done] if done < len(self._names) else ""
        now = CheckProgress(self._title, name, done, len(self._names), self.elapsed_s, self.expected_s)
        logger.info("%s", now.sentence)
        if self._progress is not None:
            self._progress(now)


@contextlib.contextmanager
def _stopped_by(should_stop: Stop | None) -> Iterator[None]:
    """Ask `should_stop` before each call of a module in this thread: single checks can take a minute."""
    if should_stop is None:
        yield
        return
    thread = threading.get_ident()

    def look(module: nn.Module, inputs: Any) -> None:
        if threading.get_ident() == thread and should_stop():
            raise _StoppedError

    hook = register_module_forward_pre_hook(look)
    try:
        yield
    finally:
        hook.remove()


def chosen(
    checks: Mapping[str, Callable[..., CheckResult]], only: Sequence[str] | None
) -> dict[str, Callable[..., CheckResult]]:
    """Select `checks` by name, all of them by default. Raises `ConfigError` for an unknown name."""
    unknown = [name for name in only or () if name not in checks]
    if unknown:
        raise ConfigError(f"only: {unknown} are no checks of this tier; it has {list(checks)}.")
    return {name: run for name, run in checks.items() if only is None or name in only}


def joined(
    title: str, tiers: Sequence[Callable[..., CheckReport]], *, should_stop: Stop | None, **arguments: Any
) -> CheckReport:
    """Run several tiers as one report. A stop or an interrupt ends all of them: what did not run is "not run"."""
    stopped = threading.Event()

    def stop() -> bool:
        return stopped.is_set() or (should_stop is not None and should_stop())

    reports = []
    for tier in tiers:
        reports.append(tier(**arguments, should_stop=stop))
        if reports[-1].stopped:
            stopped.set()
    results = [result for report in reports for result in report.results]
    return CheckReport(title, results, sum(report.seconds or 0.0 for report in reports), stopped=stopped.is_set())
