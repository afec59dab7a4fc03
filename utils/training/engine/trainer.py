"""Trainer: config -> parts -> loop -> results. It connects the other parts and does no arithmetic."""

from __future__ import annotations

import contextlib
import logging
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from utils.adapters.left_as_found import modes_kept
from utils.data.module import UniversalDataModule
from utils.errors import ModelError, TrainingInterrupted
from utils.scrubbing import scrub, scrubbed
from utils.training.diagnosis.watch import DoctorCallback
from utils.training.engine import rng
from utils.training.engine.callbacks import Callback, CallbackList
from utils.training.engine.checkpointing.best_weights import take_best_weights
from utils.training.engine.checkpointing.resume import fingerprint_of, restore_run
from utils.training.engine.checkpointing.saver import RunSaver
from utils.training.engine.checkpointing.store import BEST, CheckpointStore, FollowersStore
from utils.training.engine.compute.assembly import Parts, assemble, switch_activation_checkpointing
from utils.training.engine.compute.averaging import WeightAverage
from utils.training.engine.compute.master_weights import fp32_weights
from utils.training.engine.compute.precision_probe import TimePass, time_pass
from utils.training.engine.compute.user_supplied import OwnParts
from utils.training.engine.distributed.sharding import give_weights
from utils.training.engine.distributed.world import World, check_settings
from utils.training.engine.facade import RunFacade
from utils.training.engine.hardware.fast_paths import fast_paths
from utils.training.engine.hooks import HooksCallback, TrainingHooks
from utils.training.engine.interrupts import KEEP_BEST, Control, Interrupts
from utils.training.engine.loop import TrainingLoop
from utils.training.engine.loss.tasks import Task
from utils.training.engine.movement import MovementCallback
from utils.training.engine.plan import RunPlan, TrainerArguments
from utils.training.engine.planning import plan_run
from utils.training.engine.results import TrainingResults, Weights
from utils.training.engine.run_notes import note_commit, note_state, note_weights, nothing_left, write_description
from utils.training.engine.sanity.arguments import check_arguments, check_finetune
from utils.training.engine.sanity.compatibility import check_last_batch
from utils.training.engine.sanity.model_loss import own_loss_notice
from utils.training.engine.sanity.rules import RULES
from utils.training.engine.sanity.trial import first_samples_notices
from utils.training.engine.session import Session, failures_reported
from utils.training.engine.state import TrainState
from utils.training.engine.step import switch_to_training
from utils.training.engine.warm_up import choose_precision, compile_model, find_batch_size
from utils.training.evaluation.answer_ends import answer_ends, store_answer_ends
from utils.training.finetuning import FineTuned, fine_tuned
from utils.training.run_folder import RunFolder
from utils.training.run_start import Start, absolute_source, decide_start
from utils.training.task_spec import TaskSpec
from utils.training.tracking import RunFacts, Tracker, Trackers, check_trackers, make_trackers
from utils.training.training_config import TrainingConfig

log = logging.getLogger("trainbook.engine")

__all__ = ["Trainer", "TrainingHooks"]


class Trainer:
    """Trains a model.

    Args:
        model: any nn.Module that maps what a batch holds to what its task needs, such as token ids (B, T) to logits (B, T, V):
            a tensor, or transformers' outputs.
        config: the model's own configuration, if it has one beside it, an object or a mapping; its pad_token_id, vocab_size and
            max_seq_len are read where neither tokenizer nor task_spec has them.
        training_config: how to train, as an object or a mapping; None: the defaults.
        task_spec: what to learn, as an object or a mapping; None: inferred from model and data, with a notice in the results.
        tokenizer: turns texts into ids when the data are texts; kept with the results. `train` sets the special ids of the
            model's config to those of the tokenizer, and reports each change in a notice.
        data_collator: makes a batch from samples; None: as the task needs it (`utils.data.collators`); padding is not scored.
        hooks: a `TrainingHooks`; callbacks: `Callback`s, in order.
        own_parts: user-supplied optimizer, scheduler and criterion that replace the config's and the task's.
        trackers: where metrics go besides the run's folder: "tensorboard", "mlflow", "trackio", "wandb", or objects with the
            methods of `utils.training.tracking.Tracker`; None: what the environment variable TRAINBOOK_TRACKERS names.
        facade: what the API of another system changes about the run (`RunFacade`).

    Attributes:
        state: where the run stands (TrainState); notices: sentences the user should know.
        control: `Control`, to stop, pause or save from another thread.
        task: what is learned (a `Task`); planned_task: its TaskSpec, complete; data: the data as batches
            (UniversalDataModule). None before training.
        description: further sections for the run's config.yaml, by name; plain values.
        time_pass: times a forward and backward pass where precision="auto" is measured: (parts, batch) -> seconds.
    """

    time_pass: TimePass = staticmethod(time_pass)

    def __init__(
        self, model: nn.Module, config: Any = None, training_config: TrainingConfig | Mapping[str, Any] | None = None,
        task_spec: TaskSpec | Mapping[str, Any] | None = None, *, tokenizer: Any = None, data_collator: Any = None,
        hooks: Any = None, callbacks: Sequence[Callback] = (), own_parts: OwnParts | None = None,
        trackers: str | Sequence[str | Tracker] | None = None, facade: RunFacade | None = None,
    ) -> None:  # fmt: skip
        if not isinstance(model, nn.Module):
            raise ModelError(f"Trainer takes an nn.Module as model; got a {type(model).__name__}.")
        if isinstance(config, TrainingConfig) and training_config is None:
            config, training_config = None, config
        if isinstance(training_config, Mapping):
            training_config = TrainingConfig.from_dict(training_config)
        if isinstance(task_spec, Mapping):
            task_spec = TaskSpec.from_dict(task_spec)
        self.model, self.config = model, config
        training_config = TrainingConfig() if training_config is None else training_config
        check_arguments(config, training_config, task_spec, callbacks, hooks)
        self.training_config = training_config.at(Path.cwd())
        self.task_spec, self.tokenizer, self.data_collator = task_spec, tokenizer, data_collator
        self.hooks, self.callbacks, self.own_parts = hooks, list(callbacks), own_parts
        self.trackers, self.facade = check_trackers(trackers), facade or RunFacade()
        self.state, self.control = TrainState(), Control()
        self.notices: list[str] = []
        self.description: dict[str, Any] = {}
        self.parts: Parts | None = None
        self.task: Task | None = None
        self.planned_task: TaskSpec | None = None
        self.data: UniversalDataModule | None = None
        self.run_dir: Path | None = None
        check_settings(self.training_config)

    @property
    def optimizer(self) -> torch.optim.Optimizer | None:
        """The optimizer while training and after; None before."""
        return None if self.parts is None else self.parts.optimizer

    def request_stop(self, reason: str = "requested") -> None:
        """Finish the step, save, return the results. From a callback, a button, another thread: the one way for everyone.

        Args:
            reason: becomes the results' `stop_reason`; "keep_best" gives their model the best checkpoint's weights.
        """
        self.control.request_stop(reason)

    def request_finish(self) -> None:
        """Begin the decay of lr_schedule="wsd" with the next step and finish after it; with other schedules only a notice."""
        self.control.request_finish()

    def notice(self, sentence: str) -> None:
        """Keep a sentence for the results and log it, once."""
        sentence = scrub(sentence)
        if sentence not in self.notices:
            self.notices.append(sentence)
            log.info(sentence)

    def withdraw(self, sentence: str, reason: str) -> None:
        """Take a notice back that no longer holds, and log why."""
        sentence = scrub(sentence)
        if sentence in self.notices:
            self.notices.remove(sentence)
            log.info(scrub(reason))

    def train(self, train_data: Any, val_data: Any = None, *, resume_from: Any = None) -> TrainingResults:
        """Train until the plan is done or somebody asks to stop. Synchronous; needs no front end.

        Args:
            train_data, val_data: Dataset, DataLoader, Hugging Face Dataset, list of id tensors, list of texts (with a
                tokenizer) or TensorDataset of ids. Without val_data nothing is validated.
            resume_from: None: a new run. "auto": continue this run_name or checkpoint_dir; start it when there is no
                checkpoint; return the stored results when it is finished. "latest", "best", a checkpoint's path, a run's
                folder or a results object: continue from there.
        Raises:
            ConfigError, DataError, ModelError: before the first step; nothing was changed.
            CheckpointError: nothing to resume from, or it does not fit.
            NonFiniteError, CallbackError: training stopped; a checkpoint of the last good step is kept.
            TrainingInterrupted: Ctrl-C; saved; carries the results.
        """
        resume_from = absolute_source(resume_from)
        check_finetune(self.training_config, self.own_parts)
        self.notices = []
        try:
            with fine_tuned(self.model, self.training_config) as tuned:
                self.model = tuned.model
                for sentence in tuned.notices:
                    self.notice(sentence)
                plan = self._plan(train_data, val_data)
                with failures_reported(plan.world, lambda: self.state.step), contextlib.ExitStack() as stack:
                    run = self._open(plan, tuned, resume_from, stack)
                    outcome = None if self.state.ended else self._run(run, plan, train_data, val_data)
                received, results = outcome or (None, self._results(run, plan))
                if received is not None:
                    raise _interruption(received, results)
                if outcome is not None:
                    self._measure_answers(val_data, results, plan.world)
                return self._bundled(results, run.start.folder, plan.world)
        finally:
            # Not at the start, where a request may have been made already.
            self.control.clear()

    def trainer_arguments(self) -> TrainerArguments:
        """This trainer's arguments, as the stages of `utils.training.engine.planning` take them."""
        return TrainerArguments(
            self.model, self.training_config, self.config, self.task_spec, self.tokenizer, self.data_collator, self.own_parts
        )  # fmt: skip

    def _plan(self, train_data: Any, val_data: Any) -> RunPlan:
        plan = plan_run(
            self.trainer_arguments(), train_data, val_data, callbacks=self.callbacks, facade=self.facade, notice=self.notice
        )  # fmt: skip
        self.data = plan.data
        self.task, self.planned_task = plan.objective if isinstance(plan.objective, Task) else None, plan.task_spec
        return plan

    def _open(self, plan: RunPlan, tuned: FineTuned, resume_from: Any, stack: contextlib.ExitStack) -> _OpenRun:
        """Lock the run's folder, assemble the parts and set them to where the run resumes.

        What `stack` undoes when it closes: random state, matmul precision, training mode, faster kernels, the lock.
        """
        config, world, model = plan.config, plan.world, self.model
        world.check_same(
            settings=config.to_dict(), data=plan.data.digest(), model=[tuple(p.shape) for p in model.parameters()]
        )
        stack.enter_context(rng.preserved())
        stack.enter_context(rng.deterministic_algorithms(config.deterministic))
        stack.enter_context(fp32_weights(model, self.trainer_arguments().optimizer, self.notice))
        stack.enter_context(_training_mode(model, config, self.notice))
        start = decide_start(config.with_absolute_paths(), resume_from, stack, world, model)
        self.run_dir = start.folder.path
        start.folder.clear_requests()  # they meant an earlier training; one that is made from here on counts
        for sentence in start.notices:
            self.notice(sentence)
        rng.seed_all(world.seed(config.random_seed))
        parts = self.parts = assemble(
            model,
            plan.objective,
            config,
            plan.total_steps,
            world=world,
            own_parts=self.own_parts,
            notice=self.notice,
            resumed_precision=start.precision,
        )
        for sentence in filter(None, (parts.device.notice, parts.precision.notice)):
            self.notice(sentence)
        stack.enter_context(fast_paths(parts.model))
        fingerprint = fingerprint_of(plan.data, self.tokenizer, model)
        own = self.own_parts is not None
        self.state = restore_run(start, plan, parts, fingerprint, own=own, facade=self.facade, notice=self.notice)
        store = _store(start.folder, config, world)
        self.facade.store_ready(store)
        if start.in_place:
            store.adopt(start.entry)
        if self.state.ended:
            if not start.in_place:
                self.notice(nothing_left(start, self.state))
            # Unless it was killed between its last checkpoint and this note.
            note_state(start.folder, self.state, "ended")
        return _OpenRun(start, parts, store, fingerprint, tuned, tuned.facts)

    def _run(self, run: _OpenRun, plan: RunPlan, train_data: Any, val_data: Any) -> tuple[int | None, TrainingResults]:
        """Train, from the first samples' checks to the last checkpoint.

        Returns:
            the signal that ended the run, None where none did; and the results.
        """
        start, parts, state, folder = run.start, run.parts, self.state, run.start.folder
        interrupts = Interrupts(self.control)
        with interrupts.deferred():  # an interrupt ends the run after its first step, with a checkpoint
            check_last_batch(parts, plan.data)
            if start.checkpoint is None:
                choose_precision(plan, parts, self.notice, self.time_pass)
            if not state.step:
                self._judge_first_samples(plan, parts)
        find_batch_size(plan, parts, state, self.notice)
        compile_model(plan, parts, state, self.notice)
        setup = getattr(train_data, "origin", None)
        write_description(start, plan, self.model, run.tuned.base, setup, self.description)
        note_state(folder, state, "running")
        note_weights(self.model, start, self.notice)
        events = CallbackList(self._all_callbacks(run, train_data, val_data), self, plan.config.isolate_callbacks)
        saver = RunSaver(
            plan, parts, state, run.store, events, run_name=folder.name, fingerprint=run.fingerprint,
            after_commit=lambda _, payload: note_commit(folder, payload), extras=self.facade.checkpoint_entries,
        )  # fmt: skip
        session = Session(start, TrainingLoop(plan, parts, state, events, self.control, saver, folder), saver, events)
        saver.before_save = session.settle
        self.facade.before_loop(saver)
        with interrupts.deferred():
            session.run(interrupts, self.notice)
        session.settle()
        note_state(folder, state, "ended" if state.ended else "stopped")
        folder.clear_requests()
        results = self._results(run, plan)
        received = max(plan.world.gather(interrupts.received or 0))  # by one process, and all of them stopped
        return received or None, results

    def _judge_first_samples(self, plan: RunPlan, parts: Parts) -> None:
        """Notices on what the first samples show of model, loss and settings."""
        if (difference := own_loss_notice(parts, plan.data)) is not None:
            self.notice(difference)
        limit = plan.config.max_grad_norm
        for sentence in first_samples_notices(parts, plan.data, RULES, limit, plan.total_steps):
            self.notice(sentence)

    def _all_callbacks(self, run: _OpenRun, train_data: Any, val_data: Any) -> list[Callback]:
        config, folder = self.training_config, run.start.folder
        found = list(self.callbacks)
        if self.hooks is not None:
            found.append(HooksCallback(self.hooks, train_data, val_data))
        if not any(isinstance(callback, DoctorCallback) for callback in found):
            found.append(DoctorCallback())
        if run.tuned.mode != "full":
            found.append(MovementCallback(run.tuning))
        if not run.parts.world.is_main:
            return [callback for callback in found if not callback.main_only]
        trackers = make_trackers(config, self.trackers, self.notices)
        if not trackers:
            return found
        facts = RunFacts(folder.name, folder.path, folder.run_id, scrubbed(config.to_dict()), self.state.step)
        return [*found, Trackers(trackers, facts, self.notices)]

    def _measure_answers(self, val_data: Any, results: TrainingResults, world: World) -> None:
        """After a training on conversations: the share of answers that end by themselves, kept with the run."""
        if not self.state.ended or self.tokenizer is None or self.training_config.strategy == "fsdp":
            return

        def measure() -> str | None:
            with rng.preserved():
                found = answer_ends(
                    self.model, val_data, self.tokenizer, seed=self.training_config.random_seed, step=self.state.step
                )
                if found is not None:
                    store_answer_ends(found, results.run_dir)
            return None if found is None else f"{found}."

        try:
            sentence = world.from_main(measure)
        except KeyboardInterrupt:
            raise TrainingInterrupted(
                "Interrupted while answers were sampled. The training itself is finished.", results
            ) from None
        except Exception as error:  # noqa: BLE001 - whatever the model raises, the training itself is finished
            sentence = f"The share of answers that end by themselves was not measured: {type(error).__name__}: {error}"
        if sentence is not None:
            self.notice(sentence)

    def _bundled(self, results: TrainingResults, folder: RunFolder, world: World) -> TrainingResults:
        """`results` with the export bundle, where the config asks for one. One that fails is reported and fails no run."""
        if not self.training_config.export_bundle:
            return results
        if not self.state.ended:
            results.export_error = f"the run stopped ({self.state.stop_reason}) and can be continued"
            self.notice(f"No export bundle was made: {results.export_error}.")
            return results
        from utils.training.export.bundle_results import bundle_of

        try:
            with failures_reported(world, lambda: self.state.step), rng.preserved():
                found = world.from_main(lambda: bundle_of(results, folder.run_id, self.config))
        except KeyboardInterrupt:
            results.export_error = "interrupted"
            raise TrainingInterrupted(
                "Interrupted while the export bundle was written; none is left behind. The training itself is finished.",
                results, to_continue="Run the same again with resume_from='auto' to make the bundle.",
            ) from None  # fmt: skip
        results.export_dir, results.export_error, notices = found
        for sentence in notices:
            self.notice(sentence)
        return results

    def _results(self, run: _OpenRun, plan: RunPlan) -> TrainingResults:
        weights = self._choose_weights(run.parts.average)
        if run.parts.model is not self.model:
            give_weights(run.parts.model, self.model)
        best = run.store.folder / BEST
        if self.state.stop_reason == KEEP_BEST and take_best_weights(self.model, best, plan.monitor, self.notice):
            weights = "best"
        kept, has_best = plan.world.broadcast(
            (sorted(run.store.entries, key=lambda entry: entry.step), run.store.best is not None and best.exists())
        )
        return TrainingResults(
            state=self.state, model=self.model, tokenizer=self.tokenizer, task_spec=plan.task_spec,
            training_config=self.training_config, run_dir=run.start.folder.path, precision=run.parts.precision.compute,
            precision_reason=run.parts.precision.reason,
            checkpoints=[entry.path for entry in kept], best_model_path=best if has_best else None, notices=self.notices,
            fine_tuning=None if plan.config.finetune == "full" else run.tuning, weights=weights,
        )  # fmt: skip

    def _choose_weights(self, average: WeightAverage | None) -> Weights:
        """Give the model the averaged weights, if they were better at the latest validation, and say which it has."""
        if average is None:
            return "trained"
        if average.better:
            average.take()
            self.notice(
                "The model has the averaged weights, which were better than the trained ones at the latest validation."
            )
            return "averaged"
        why = "were not better at the latest validation" if average.count else "do not exist yet"
        if average.count and not any(row["event"] == "evaluate" for row in self.state.history):
            why = "were not compared, because nothing was validated"
        self.notice(f"The model has the trained weights: the averaged ones {why}.")
        return "trained"


@dataclass(frozen=True)
class _OpenRun:
    """A run whose folder is locked and whose parts are where it resumes.

    Attributes:
        fingerprint: what the run must have in common with its checkpoints besides the settings.
        tuned: the model as its way of fine-tuning trains it; tuning: what is known of that, filled while training.
    """

    start: Start
    parts: Parts
    store: CheckpointStore
    fingerprint: dict[str, str]
    tuned: FineTuned
    tuning: dict[str, Any]


def _store(folder: RunFolder, config: TrainingConfig, world: World) -> CheckpointStore:
    if not world.is_main:
        return FollowersStore(folder.checkpoints, folder.run_id)
    all_due = config.save_every_n_epochs if config.keep_last_n is None else None
    return CheckpointStore(
        folder.checkpoints, folder.run_id, config.keep_last_n or 2, config.keep_best_k, config.mode, all_due
    )  # fmt: skip


def _interruption(received: int, results: TrainingResults) -> BaseException:
    """Exception that a run raises after a signal has ended it and everything is saved."""
    if received == signal.SIGTERM:
        return SystemExit(143)  # 128 + SIGTERM, what a preempted process is expected to leave
    return TrainingInterrupted(
        f"Interrupted after step {results.state.step}; saved as {results.checkpoint_path}.", results,
        to_continue="Run the same again with resume_from='auto' to continue.",
    )  # fmt: skip


@contextlib.contextmanager
def _training_mode(model: nn.Module, config: TrainingConfig, notice: Callable[[str], None]) -> Iterator[None]:
    """The model in training mode, see `switch_to_training`; afterwards every submodule is in its former mode, and activation
    checkpointing is off."""
    with modes_kept(model):
        switch_to_training(model, notice)
        try:
            yield
        finally:
            if config.gradient_checkpointing:
                switch_activation_checkpointing(model, on=False)
