"""One session of a search: which trial is next, how trials ended, and the results so far.

Several sessions, in processes of one machine, may run the same search at the same time: they share its record and Optuna's
study. A session that has nothing left to start waits for the trials of the others, and takes over those whose process dies.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from utils.errors import TrainingInterrupted
from utils.training.engine.hardware.memory import free_memory
from utils.training.search.job import Deadline, Ending, SearchJob
from utils.training.search.record import SearchRecord
from utils.training.search.results import SearchResults
from utils.training.search.space import MODEL, SearchSpace
from utils.training.search.strategies import Strategy
from utils.training.search.trial import Trial

log = logging.getLogger("trainbook.search")

#: Seconds between two looks at the trials of other processes.
POLL_S = 0.2


@dataclass
class SearchSession:
    """The search as this process sees it.

    Attributes:
        limit: how many trials there are to be, those of other sessions included; infinity: all that the strategy has.
        deadline: of time.monotonic(); no trial begins after it.
    """

    job: SearchJob
    space: SearchSpace
    strategy: Strategy
    record: SearchRecord
    limit: float
    deadline: float
    on_trial_end: Callable[[Trial], None]
    notices: list[str] = field(default_factory=list)
    first_refusal: Exception | None = None

    def run(self) -> None:
        """Train trials in this process until there are `limit`, the strategy has no more, the time is over or somebody asks
        to stop."""
        self.note_surprises()
        waiting = False
        while not self.is_late:
            trial, others = self.next_trial()
            if trial is not None:
                self._train(trial)
                if trial.status == "stopped":
                    break
            elif others:
                if not waiting:
                    log.info("Waiting for the trials that other processes run: %s", ", ".join(map(str, others)))
                waiting = True
                self._wait()
            else:
                break
        self.end()

    @property
    def is_late(self) -> bool:
        """Whether the search's time is over."""
        return time.monotonic() >= self.deadline

    def note_surprises(self) -> None:
        """Notices of what differs from what was asked for."""
        if self.job.monitor != self.job.config.monitor:
            self.notices.append(
                f"No validation data: trials are judged by {self.job.monitor} instead of {self.job.config.monitor}."
            )
        size = self.space.size
        if size is not None and size < self.limit < math.inf:
            counted = f"{size} combination{'' if size == 1 else 's'}"
            self.notices.append(
                f"The search space has {counted}: there are no more trials, although {self.limit} were asked for."
            )

    def next_trial(self) -> tuple[Trial | None, list[int]]:
        """The trial to run now, which this process has claimed: one that an earlier session or a killed process left, or a new
        one. None without such a trial; beside it the numbers of the trials that other processes run."""
        with self.record.shared():
            trials = self.record.trials = self.strategy.known(self.record.trials)
            others: list[int] = []
            trial = None
            for left in trials[: None if self.limit == math.inf else int(self.limit)]:
                if not left.is_over:
                    if self.record.claim(left):
                        trial = left
                        break
                    others.append(left.number)
            if trial is None and len(trials) < self.limit:
                params = self.strategy.ask(len(trials))
                if params is not None:
                    trial = Trial(len(trials), params)
                    self.record.claim(trial)
                    trials.append(trial)
            if trial is not None:
                trial.status, trial.reason = "running", ""
                self._save_or_release(trial)
        return trial, others

    def _save_or_release(self, trial: Trial) -> None:
        try:
            self.record.save()
        except BaseException:
            self.record.release(trial.number)
            raise

    def run_name(self, trial: Trial) -> str:
        """The name of the trial's run."""
        return f"{self.record.name}-trial{trial.number}"

    @property
    def models_differ(self) -> bool:
        """Whether arguments of the model are searched."""
        return any(name.startswith(MODEL) for name in self.space.names)

    def _train(self, trial: Trial) -> None:
        """Train the trial and record how it ended; its memory is free afterwards."""
        try:
            ending = self.copy_of_twin(trial)
            if ending is None:
                watching = [Deadline(self.deadline), *self.strategy.callbacks(trial.number, self.job.monitor)]
                ending = self.job.train(trial, self.run_name(trial), watching, models_differ=self.models_differ)
        except TrainingInterrupted:
            self.keep(trial)
            raise self.interrupted(f"in trial {trial.number}") from None
        finally:
            if trial.status == "running":  # what raised ends the search; the trial can be continued
                self.record.release(trial.number)
        free_memory()
        self.take(ending)

    def interrupted(self, when: str) -> TrainingInterrupted:
        """Exception for Ctrl-C: with the results so far, and how to resume."""
        sentence = f"The search was interrupted {when} and is saved in {self.record.folder}; {self.how_to_go_on}"
        return TrainingInterrupted(sentence, self.results())

    @property
    def how_to_go_on(self) -> str:
        """Instructions for resuming the search."""
        return f"to continue, call it again with name={self.record.name!r}."

    def copy_of_twin(self, trial: Trial) -> Ending | None:
        """The ending of a finished trial with the same values, as this trial's: the same seed gives the same run."""
        twin = next((t for t in self.record.trials if t.status == "finished" and t.params == trial.params), None)
        if twin is None:
            return None
        trial.status, trial.value, trial.reason = "finished", twin.value, f"the same values as trial {twin.number}"
        trial.run_dir, trial.best_model_path = twin.run_dir, twin.best_model_path
        return Ending(trial)

    def keep(self, trial: Trial) -> None:
        """Record where a trial stands that this process ran, and let others continue it."""
        try:
            with self.record.shared():
                self._put(trial)
                self.record.save()
        finally:
            self.record.release(trial.number)

    def take(self, ending: Ending) -> None:
        """Record how a trial ended, and tell the strategy.

        Raises:
            Exception: the refusal of a trial that concerns all of them.
        """
        trial = ending.trial
        if ending.refusal is not None:
            self.first_refusal = self.first_refusal or ending.refusal
        try:
            with self.record.shared():
                self._put(trial)
                if ending.concerns_all and ending.refusal is not None:
                    self._discard_if_nothing_was_trained()
                    raise ending.refusal
                if trial.is_over:
                    self.strategy.tell(trial)
                self.record.save()
                self.record.release(trial.number)
        finally:
            self.record.release(trial.number)
        if trial.status == "stopped":
            self.notices.append(f"Stopped in trial {trial.number} ({trial.reason}); {self.how_to_go_on}")
        level = logging.WARNING if trial.status == "failed" else logging.INFO
        log.log(level, "Trial %d %s: %s %s", trial.number, trial.status, trial.value, trial.reason)
        self.on_trial_end(trial)

    def _put(self, trial: Trial) -> None:
        trials = self.record.trials
        if trial.number < len(trials):
            trials[trial.number] = trial
        else:
            trials.append(trial)

    def _wait(self) -> None:
        try:
            time.sleep(max(0.0, min(POLL_S, self.deadline - time.monotonic())))
        except KeyboardInterrupt:
            raise self.interrupted("while it waited for other processes") from None

    def end(self) -> None:
        """Read the trials of other processes for the last time.

        Raises:
            Exception: what kept every trial from starting, which is an error of the search, not a result.
        """
        with self.record.shared():
            trials = self.record.trials
            if self.first_refusal is not None and all(t.status == "failed" and t.run_dir is None for t in trials):
                self._discard_if_nothing_was_trained()
                raise self.first_refusal

    def forget_if_nothing_was_trained(self) -> None:
        """Delete the record of a search whose every trial was refused, after an error."""
        if self.first_refusal is not None:
            with self.record.shared():
                self._discard_if_nothing_was_trained()

    def _discard_if_nothing_was_trained(self) -> None:
        """Leave no record of a search in which nothing was trained, here or in another process."""
        if all(trial.run_dir is None and trial.status != "running" for trial in self.record.trials):
            self.record.discard()
        else:
            self.record.save()

    def results(self) -> SearchResults:
        """Results so far."""
        return SearchResults(
            name=self.record.name, folder=self.record.folder, strategy=self.record.strategy,
            monitor=self.job.monitor, mode=self.job.config.mode, space=self.space.describe(),
            trials=self.record.trials, training_config=self.job.config, notices=self.notices,
        )  # fmt: skip
