"""The trials of a search on a Ray cluster: this process asks the strategy and keeps the record, Ray's workers train.

A worker whose process or node dies is replaced by Ray, and the trial continues from its checkpoint. The runs are written by the
workers, so on several machines output_dir is on a disk that all of them share.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from utils.errors import ConfigError, RunLockedError
from utils.scrubbing import scrub
from utils.training.engine.callbacks import Callback, Logs
from utils.training.jobs.ray_address import connect, import_ray
from utils.training.search.job import Deadline, Ending, SearchJob
from utils.training.search.mailbox import Mailbox
from utils.training.search.session import POLL_S, SearchSession
from utils.training.search.strategies import Pruning
from utils.training.search.trial import Trial

if TYPE_CHECKING:
    from utils.training.engine.trainer import Trainer

_INTERRUPTED = "interrupted"
# How often Ray replaces the worker of a trial, and how long the new one waits for the run's folder.
_REPLACED, _PATIENCE_S = 2, 60.0
# Seconds between two looks of a worker at whether it is to stop.
_LOOK_S = 1.0


def run_on_ray(session: SearchSession, address: str | None) -> None:
    """Train trials on a cluster, as many at once as it has devices, until the session has no more.

    Args:
        address: ray://host:port; None: the cluster that this process is connected to, else the one that RAY_ADDRESS names or
            that runs on this machine, else a new one for the length of the search.
    Raises:
        MissingPackageError: no Ray. ConfigError: no cluster at the address, or what the trials share cannot be sent to it.
        TrainingInterrupted: Ctrl-C; the running trials were saved.
    """
    ray = import_ray("for a search on a Ray cluster")
    session.note_surprises()
    with _connected(ray, address):
        _RayRun(ray, session).run()
    session.end()


@contextlib.contextmanager
def _connected(ray: Any, address: str | None) -> Iterator[None]:
    if ray.is_initialized():
        yield
        return
    try:
        connect(ray, address)
    except (OSError, RuntimeError, ValueError) as error:
        where = f"at {address}" if address else "on this machine"
        raise ConfigError(f"no Ray cluster can be used {where}: {error}") from error
    try:
        yield
    finally:
        ray.shutdown()


@dataclass
class _RayRun:
    ray: Any
    session: SearchSession
    running: dict[Any, Trial] = field(default_factory=dict)

    def run(self) -> None:
        ray, session = self.ray, self.session
        resources = ray.cluster_resources()
        gpus = int(resources.get("GPU", 0))
        slots = max(1, gpus or int(resources.get("CPU", 1)))
        self.mailbox = ray.remote(num_cpus=0)(Mailbox).remote()
        self.task = ray.remote(num_cpus=1, num_gpus=min(gpus, 1), max_retries=_REPLACED)(train_trial)
        try:
            self.job = ray.put(replace(session.job, config=session.job.config.with_absolute_paths()))
        except (
            Exception
        ) as error:  # whatever the parts of a stranger's model, data or callbacks raise when they are pickled
            raise ConfigError(
                f"model, data, tokenizer and callbacks are sent to the cluster, and cannot be pickled: {error}"
            ) from error
        try:
            self._train(slots)
        except KeyboardInterrupt:
            self._stop_all()
            raise session.interrupted("on the cluster") from None
        except BaseException:
            self._stop_all()
            session.forget_if_nothing_was_trained()
            raise
        finally:
            for trial in self.running.values():
                session.record.release(trial.number)

    def _train(self, slots: int) -> None:
        session, stopped = self.session, False
        while True:
            others: list[int] = []
            while len(self.running) < slots and not stopped and not session.is_late:
                trial, others = session.next_trial()
                if trial is None:
                    break
                if (ending := session.copy_of_twin(trial)) is not None:
                    session.take(ending)
                else:
                    self._start(trial)
            if not self.running and (stopped or session.is_late or not others):
                return
            if self.running:
                stopped = self._collect() or stopped
            else:
                time.sleep(POLL_S)

    def _start(self, trial: Trial) -> None:
        session = self.session
        left_s = session.deadline - time.monotonic()
        monitor = session.job.monitor if session.strategy.callbacks(trial.number, session.job.monitor) else None
        name = session.run_name(trial)
        self.running[self.task.remote(self.job, trial, name, self.mailbox, left_s, monitor, session.models_differ)] = (
            trial
        )

    def _collect(self) -> bool:
        """Answer the workers' questions and take the trials that have ended; whether one of them was asked to stop."""
        done, _ = self.ray.wait(list(self.running), num_returns=len(self.running), timeout=POLL_S)
        for number, epoch, value in self.ray.get(self.mailbox.questions.remote()):
            verdict = self.session.strategy.is_hopeless(number, value, epoch)
            self.ray.get(self.mailbox.answer.remote(number, epoch, verdict))
        stopped = False
        for task in done:
            ending = self._ending(task)
            self.session.take(ending)
            stopped = stopped or ending.trial.status == "stopped"
        return stopped

    def _ending(self, task: Any) -> Ending:
        """Outcome of the task's trial, which has ended or is about to."""
        from ray.exceptions import RayError, RayTaskError

        trial = self.running[task]
        try:
            ending: Ending = self.ray.get(task)
        except RayTaskError as error:  # what is no trial's fault
            self.session.record.release(trial.number)
            del self.running[task]
            raise error.cause from None
        except RayError as error:  # its processes died, more often than Ray replaces them
            trial.status, trial.reason = "failed", scrub(f"{type(error).__name__}: {error}")
            ending = Ending(trial)
        del self.running[task]
        return ending

    def _stop_all(self) -> None:
        """Let the running trials finish their step and save, and record where they stand."""
        from ray.exceptions import RayError

        with contextlib.suppress(RayError):  # the cluster is gone, and the trials with it
            self.ray.get(self.mailbox.stop.remote(_INTERRUPTED))
            for task in list(self.running):
                self.session.keep(self._ending(task).trial)


# ---- in the cluster ----


def train_trial(
    job: SearchJob, trial: Trial, name: str, mailbox: Any, left_s: float, monitor: str | None, models_differ: bool
) -> Ending:
    """A Ray task: train one trial.

    Args:
        left_s: of the search's time. monitor: the metric by which the trial may be found hopeless; None: it is not asked.
    """
    deadline = math.inf if math.isinf(left_s) else time.monotonic() + left_s
    watching: list[Callback] = [Deadline(deadline), _StopRequests(mailbox)]
    if monitor is not None:
        watching.append(Pruning(lambda value, epoch: _is_hopeless(mailbox, trial.number, value, epoch), monitor))
    locked_until = time.monotonic() + _PATIENCE_S
    while True:
        try:
            return job.train(trial, name, watching, models_differ=models_differ)
        except RunLockedError:  # of a worker that is being replaced
            if time.monotonic() >= locked_until:
                raise
        time.sleep(POLL_S)


def _is_hopeless(mailbox: Any, number: int, value: float, epoch: int) -> bool:
    ray = import_ray("within a Ray cluster")
    ray.get(mailbox.ask.remote(number, epoch, value))
    while True:
        answer: bool | None = ray.get(mailbox.take_answer.remote(number, epoch))
        if answer is not None:
            return answer
        if ray.get(mailbox.stop_reason.remote()) is not None:
            return False  # nobody answers any more
        time.sleep(POLL_S)


class _StopRequests(Callback):
    """Stops the run when the search is interrupted."""

    def __init__(self, mailbox: Any) -> None:
        self._mailbox, self._next_look = mailbox, 0.0

    def on_batch_begin(self, batch_idx: int, trainer: Trainer, logs: Logs | None = None) -> None:
        if time.monotonic() < self._next_look:
            return
        self._next_look = time.monotonic() + _LOOK_S
        reason = import_ray("within a Ray cluster").get(self._mailbox.stop_reason.remote())
        if reason is not None:
            trainer.request_stop(reason)
