"""Contenders take turns in one process: each runs in a thread of its own, and exactly one of them works at any moment.

A loop that somebody else owns (a framework's `fit`) cannot be called one step at a time. So every contender, a hand-written
loop too, is a function that runs until it is told to stop and calls `turn.done(...)` at the end of each optimizer step.
There it waits until it is its turn again.

What is timed is the span from one `done` to the next: one optimizer step, with the data for it, and with everything that
the loop does between two steps (logging, callbacks, bookkeeping). The clock is read inside the contender's own thread, so
handing over costs nobody anything. On a GPU a span ends when the device is done.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

#: Seconds between two turns. Worker threads of the contender before spin for some milliseconds before they sleep.
REST_S = 0.005


class ContenderError(RuntimeError):
    """A contender failed, so there is nothing to compare with."""


@dataclass
class Lap:
    """What one turn did.

    Attributes:
        seconds: by the contender's own clock; useful: targets that counted in the loss; losses: where asked for.
    """

    seconds: float = 0.0
    useful: int = 0
    losses: list[float] = field(default_factory=list)


class Turn:
    """A contender's side of the hand-over.

    Attributes:
        wants_loss: whether `done` should be given the step's loss; off while time is measured.
    """

    def __init__(self, steps: int, wants_loss: bool, synchronize: Callable[[], None]) -> None:
        self.wants_loss = wants_loss
        self._steps, self._synchronize = steps, synchronize
        self._go, self._back = threading.Semaphore(0), threading.Semaphore(0)
        self._stopping = self._started = False
        self._lap, self._left, self._began = Lap(), 1, 0.0

    def done(self, useful: int, loss: Any = None) -> bool:
        """An optimizer step is finished. Returns whether to go on; if not, the contender ends in its own way.

        Args:
            useful: targets that counted in the step's loss: not padding, not the first token of a row.
            loss: their mean, a number or a scalar tensor; needed where `wants_loss`.
        """
        if self._stopping:
            return False
        self._lap.useful += useful
        if self.wants_loss:
            self._lap.losses.append(float(loss))
        self._left -= 1
        if self._left:
            return True
        self._synchronize()
        self._lap.seconds = time.perf_counter() - self._began
        self._back.release()
        self.wait()
        return not self._stopping

    def wait(self) -> None:
        """In the contender's thread: sleep until it is its turn."""
        self._go.acquire()
        self._left = self._steps if self._started else 1
        self._started, self._lap, self._began = True, Lap(), time.perf_counter()

    def give(self) -> Lap:
        """From outside: let the contender take its turn and return what it did."""
        self._go.release()
        self._back.acquire()
        return self._lap

    def dismiss(self) -> None:
        """From outside: the next `done`, or the one that is waiting, says stop."""
        self._stopping = True
        self._go.release()

    def leave(self) -> None:
        """In the contender's thread: nothing more will come."""
        self._back.release()


class Stage:
    """Contenders in turn; a context manager that ends their threads.

    Args:
        runs: name -> function of its `Turn` that trains until `done` returns False. Nothing runs before its first turn.
        steps: optimizer steps a turn. More than one where a step is so short that cold caches would be what is measured.
            The first turn is one step: the one in which everything is imported, built and compiled.
    """

    def __init__(
        self, runs: Mapping[str, Callable[[Turn], None]], steps: int = 1, wants_loss: bool = False,
        synchronize: Callable[[], None] = lambda: None,
    ) -> None:  # fmt: skip
        self.turns = {name: Turn(steps, wants_loss, synchronize) for name in runs}
        self._errors: dict[str, BaseException] = {}
        self._ended: set[str] = set()
        self._threads = {
            name: threading.Thread(target=self._play, args=(name, run), name=f"contender {name}", daemon=True)
            for name, run in runs.items()
        }

    def _play(self, name: str, run: Callable[[Turn], None]) -> None:
        turn = self.turns[name]
        try:
            turn.wait()
            if not turn._stopping:
                run(turn)
        except BaseException as error:  # noqa: BLE001 - it is raised again where somebody looks at it
            self._errors[name] = error
        finally:
            self._ended.add(name)
            turn.leave()

    def __enter__(self) -> Stage:
        for thread in self._threads.values():
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        for name, thread in self._threads.items():
            self.turns[name].dismiss()
            thread.join()

    def turn(self, name: str) -> Lap:
        """One turn of `name`.

        Raises:
            ContenderError: it raised, or ended by itself; nothing is left out of a comparison in silence.
        """
        time.sleep(REST_S)
        lap = Lap() if name in self._ended else self.turns[name].give()
        if name in self._errors:
            error = self._errors[name]
            raise ContenderError(f"{name} failed: {type(error).__name__}: {error}") from error
        if name in self._ended:
            raise ContenderError(f"{name} ended by itself after too few steps; it was not told to stop.")
        return lap

    def rounds(self, count: int, warmup: int = 1) -> dict[str, list[Lap]]:
        """`count` laps of everyone, in turn, after `warmup` laps that are thrown away (building, compiling, caches).

        Who begins changes from round to round, so nobody always follows the same neighbour.
        """
        names = list(self.turns)
        laps: dict[str, list[Lap]] = {name: [] for name in names}
        for number in range(-warmup, count):
            first = number % len(names)
            for name in names[first:] + names[:first]:
                lap = self.turn(name)
                if number >= 0:
                    laps[name].append(lap)
        return laps


def alternating(rounds: int, ways: dict[str, Callable[[], Any]]) -> dict[str, list[float]]:
    """Seconds of each way, in turn, after one call that is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(-1, rounds):
        for name, way in ways.items():
            began = time.perf_counter()
            way()
            if number >= 0:
                seconds[name].append(time.perf_counter() - began)
    return seconds
