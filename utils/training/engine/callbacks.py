"""Callbacks: what watches a run. They subscribe to events, may ask it to stop, and change nothing else.

Order of events in one epoch:

    on_epoch_begin
      per micro-batch: on_batch_begin > forward > backward > on_backward_end > on_batch_end
      per optimizer step: on_step_end
      when due: on_evaluate_begin > on_evaluate_end
    on_evaluate_begin > on_evaluate_end
    on_epoch_end
    on_checkpoint_saved: here, or at a later step boundary when the checkpoint is written while training continues
"""

from __future__ import annotations

import inspect
import logging
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.errors import CallbackError, ConfigError, Problem
from utils.schema import nearest
from utils.scrubbing import describe_error

if TYPE_CHECKING:
    from utils.training.engine.trainer import Trainer

log = logging.getLogger("trainbook.engine")

Logs = dict[str, Any]

EVENTS = (
    "on_train_begin", "on_train_end", "on_epoch_begin", "on_epoch_end", "on_batch_begin", "on_backward_end", "on_batch_end",
    "on_step_end", "on_evaluate_begin", "on_evaluate_end", "on_checkpoint_saved", "on_error",
)  # fmt: skip


class Callback:
    """Base class; override what you need. `logs` is a fresh dict each call. Epochs and batches count from 0.

    `trainer` gives `.state` (TrainState), `.model`, `.optimizer`, `.training_config`, and `.request_stop(reason)`.
    An exception stops the run, with a checkpoint kept, unless the config has `isolate_callbacks=True`.

    `may_be_late = True` on a class says that its `on_step_end` may come up to 16 steps late on a GPU, with the numbers of its
    own step but a `trainer.state` that is ahead. Otherwise every step ends in a device synchronisation, which costs a few per
    cent.

    With several processes each of them calls its callbacks, with the same values. Callbacks with `main_only = True` (which
    print, draw or send) run on the main process only; `on_checkpoint_saved` is called there only, too.

    A callback that keeps something over a restart has `state_dict()` and `load_state_dict(state)` of plain values. Several
    callbacks of one class get their states back in the order in which they were given to the Trainer.
    """

    main_only = False
    may_be_late = False

    def on_train_begin(self, trainer: Trainer, logs: Logs | None = None) -> None:
        """Before the first step, and again when a run is continued."""

    def on_train_end(self, trainer: Trainer, logs: Logs | None = None) -> None:
        """After the last step, whatever ended the run; not after an error."""

    def on_epoch_begin(self, epoch: int, trainer: Trainer, logs: Logs | None = None) -> None:
        """Before an epoch's first step, and again when a run is continued within it."""

    def on_epoch_end(self, epoch: int, trainer: Trainer, logs: Logs | None = None) -> None:
        """After an epoch and its validation. logs: the epoch's row (train/loss, val/loss, …)."""

    def on_batch_begin(self, batch_idx: int, trainer: Trainer, logs: Logs | None = None) -> None:
        """Before a micro-batch. logs: batch_size (samples)."""

    def on_backward_end(self, batch_idx: int, trainer: Trainer, logs: Logs | None = None) -> None:
        """After a micro-batch's backward pass; gradients are those of the mean over the step's targets so far, and scaled
        under fp16."""

    def on_batch_end(self, batch_idx: int, trainer: Trainer, logs: Logs | None = None) -> None:
        """After a micro-batch. logs: batch_size, loss (mean over its targets)."""

    def on_step_end(self, step: int, trainer: Trainer, logs: Logs | None = None) -> None:
        """After an optimizer step; `step` counts from 1. logs: train/loss, train/learning_rate, train/grad_norm,
        epoch, targets_done (over the whole run)."""

    def on_evaluate_begin(self, trainer: Trainer, logs: Logs | None = None) -> None:
        """Before a validation."""

    def on_evaluate_end(self, trainer: Trainer, logs: Logs | None = None) -> None:
        """After a validation. logs: val/loss and the task's other metrics (val/perplexity, val/accuracy, val/f1_macro, …)."""

    def on_checkpoint_saved(self, path: Path, trainer: Trainer, logs: Logs | None = None) -> None:
        """After a checkpoint is committed, between two steps; `trainer.state` may be some steps further than the file. Random
        numbers that are drawn here do not change the run."""

    def on_error(self, error: BaseException, trainer: Trainer, logs: Logs | None = None) -> None:
        """When the run fails; `error` is raised afterwards."""


def check_handlers(handler: Any, base: type, argument: str) -> None:
    """Check that every `on_...` method of a callback or of hooks is known and can be called as it will be.

    Args:
        base: the class that defines the events and how they are called.
        argument: what the handler was given as, for the message.
    Raises:
        ConfigError: lists every problem; an unknown name with the nearest known one.
    """
    if isinstance(handler, type):
        raise ConfigError(f"{argument}: got the class {handler.__name__}; expected an instance: {handler.__name__}().")
    events = {name: method for name, method in vars(base).items() if name.startswith("on_")}
    own = [name for name in dir(type(handler)) if name.startswith("on_") and callable(getattr(handler, name))]
    problems = []
    for name in own:
        if name not in events:
            guess = _probable(name, events)
            hint = f"; did you mean {guess}?" if guess else ""
            problems.append(Problem(name, f"no such event{hint}; events are {', '.join(events)}", guess))
    for name in own:
        if name in events and (reason := _misfit(getattr(handler, name), events[name])) is not None:
            problems.append(Problem(name, reason))
    if problems:
        raise ConfigError.from_problems(f"{argument}: {type(handler).__name__}", problems)


# Words that other frameworks use in the names of their events.
_OTHER_WORDS = (("start", "begin"), ("validation", "evaluate"), ("evaluate", "validation"), ("train_epoch", "epoch"))


def _probable(name: str, events: Collection[str]) -> str | None:
    """The event that was probably meant."""
    for theirs, ours in _OTHER_WORDS:
        if (renamed := name.replace(theirs, ours)) in events:
            return renamed
    return nearest(name, events)


def _misfit(method: Any, event: Any) -> str | None:
    """Explain why `method` cannot be called like `event`, a function of the base class; None where it can, or is not known."""
    try:
        signature = inspect.signature(method)
    except (TypeError, ValueError):  # callables written in C
        return None
    _, *parameters = inspect.signature(event).parameters.values()
    positions = [parameter.name for parameter in parameters if parameter.default is parameter.empty]
    keywords = [parameter.name for parameter in parameters if parameter.default is not parameter.empty]
    try:
        signature.bind(*positions, **dict.fromkeys(keywords))
    except TypeError as error:
        called = ", ".join([*positions, *(f"{name}=..." for name in keywords)])
        return f"has the signature {signature}, but is called with ({called}): {error}"
    return None


class CallbackList:
    """Callbacks in order; each event reaches only those that override it, so what nobody watches costs nothing."""

    def __init__(self, callbacks: Sequence[Callback], trainer: Trainer, isolate: bool) -> None:
        self.callbacks = list(callbacks)
        for callback in self.callbacks:
            check_handlers(callback, Callback, "callbacks")
        self._trainer, self._isolate = trainer, isolate
        self._listeners = {event: [c for c in self.callbacks if _overrides(c, event)] for event in EVENTS}

    def heard(self, event: str) -> bool:
        """Whether anybody overrides `event`."""
        return bool(self._listeners[event])

    def heard_promptly(self, event: str) -> bool:
        """Whether somebody overrides `event` who has not said that it may come late."""
        return any(not getattr(callback, "may_be_late", False) for callback in self._listeners[event])

    def notice(self, sentence: str) -> None:
        """Keep a sentence for the results."""
        self._trainer.notice(sentence)

    def fire(self, event: str, *arguments: Any, logs: Logs | None = None) -> None:
        """Call `event` on everyone who overrides it.

        Raises:
            CallbackError: one raised; names callback, event and step. Isolated ones are switched off and reported instead.
        """
        for callback in tuple(self._listeners[event]):
            try:
                getattr(callback, event)(*arguments, self._trainer, logs=dict(logs or {}))
            except Exception as error:
                where = f"{type(callback).__name__}.{event} failed at step {self._trainer.state.step}"
                message = f"{where}: {describe_error(error)}"
                if not self._isolate:
                    raise CallbackError(message) from error
                self._trainer.notice(f"{message}. It is switched off for the rest of the run.")
                for listeners in self._listeners.values():
                    if callback in listeners:
                        listeners.remove(callback)

    def state_dict(self) -> dict[str, Any]:
        """States of the callbacks that have one, by class name; "Name-2" and so on for further ones of a class."""
        return {key: c.state_dict() for key, c in self._by_key() if hasattr(c, "state_dict")}

    def load_state_dict(self, states: dict[str, Any]) -> None:
        """Load the states into the callbacks that have the same keys."""
        for key, callback in self._by_key():
            if key in states and hasattr(callback, "load_state_dict"):
                callback.load_state_dict(states[key])

    def _by_key(self) -> Iterator[tuple[str, Callback]]:
        counted: Counter[str] = Counter()
        for callback in self.callbacks:
            name = type(callback).__name__
            counted[name] += 1
            yield (name if counted[name] == 1 else f"{name}-{counted[name]}"), callback


def _overrides(callback: Callback, event: str) -> bool:
    own = getattr(callback, event, None)
    return own is not None and getattr(own, "__func__", own) is not getattr(Callback, event)


class EarlyStopping(Callback):
    """Stop after `patience` values in a row of the monitored metric without improvement.

    The same as `early_stopping_patience` in the config; the smaller patience holds. It listens to no event: the training loop
    reads `patience` and decides, because the decision is part of the state that checkpoints hold (`TrainState.update_best`).
    """

    def __init__(self, patience: int) -> None:
        if patience < 1:
            raise ConfigError(f"EarlyStopping needs a patience of at least 1 validation; got {patience}.")
        self.patience = patience
