"""Trainer: config -> parts -> loop -> results. It knows every neighbour and does no arithmetic."""

from __future__ import annotations

import contextlib
import logging
import signal
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from utils.adapters.facts import model_facts
from utils.adapters.special_ids import model_pad_token_id, set_special_ids
from utils.data.examples import Batch, StreamSource
from utils.data.inspection.training import data_notices, refuse_float_ids
from utils.environment import detect_device
from utils.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    ModelError,
    TrainbookError,
    TrainingInterrupted,
)
from utils.models.origins import origin_of
from utils.scrubbing import describe_error, scrub, scrubbed
from utils.training.diagnosis.watch import DoctorCallback
from utils.training.engine import rng
from utils.training.engine.arguments import check_arguments, whole_number
from utils.training.engine.averaging import WeightAverage
from utils.training.engine.buffers import load_run_states
from utils.training.engine.callbacks import Callback, CallbackList, EarlyStopping
from utils.training.engine.checkpoint import BEST, CheckpointStore, FollowersStore, Payload, load_model_weights
from utils.training.engine.compiling import check_compiler, compile_now
from utils.training.engine.continuing import (
    best_to_continue,
    check_restorable,
    check_same,
    fingerprint_of,
    optimizer_starts_afresh,
    restore_optimizer,
    settings_changed,
)
from utils.training.engine.criterion import CriterionObjective
from utils.training.engine.data import UniversalDataModule
from utils.training.engine.fast_paths import fast_paths
from utils.training.engine.fit import (
    check_fit,
    check_gradients_are_dense,
    check_last_batch,
    first_samples,
    initialise_lazy_layers,
    normalises_over_batch,
)
from utils.training.engine.hooks import HooksCallback, TrainingHooks
from utils.training.engine.interrupts import Control, Interrupts, stop_at_once
from utils.training.engine.loop import TrainingLoop
from utils.training.engine.master_weights import fp32_weights
from utils.training.engine.memory import Pieces, largest_that_fits, rows_of, split
from utils.training.engine.movement import MovementCallback
from utils.training.engine.objective import Objective, check_monitor
from utils.training.engine.own_loss import own_loss_notice
from utils.training.engine.own_parts import OwnParts
from utils.training.engine.parts import Parts, assemble, switch_activation_checkpointing
from utils.training.engine.results import TrainingResults, Weights
from utils.training.engine.saving import RunSaver, environment_facts
from utils.training.engine.sharding import give_weights, parted_weights
from utils.training.engine.state import TrainState
from utils.training.engine.step import modes_kept, switch_to_training
from utils.training.engine.tasks import Task, infer_task_spec, make_task
from utils.training.engine.tasks.inference import task_type_of
from utils.training.engine.trial import first_samples_notices
from utils.training.engine.trial_rules import RULES
from utils.training.engine.world import World, check_launch, check_settings, join
from utils.training.finetuning import FineTuned, check_base, fine_tuned
from utils.training.run_folder import RunFolder, Start, absolute_source, decide_start
from utils.training.task_spec import TaskSpec
from utils.training.tracking import RunFacts, Tracker, Trackers, check_trackers, make_trackers
from utils.training.training_config import TrainingConfig

log = logging.getLogger("trainbook.engine")

__all__ = ["Trainer", "TrainingHooks"]

# Model -> the run that trained it last in this process.
_TRAINED: weakref.WeakKeyDictionary[nn.Module, Path] = weakref.WeakKeyDictionary()


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
        own_parts: an optimizer, scheduler and criterion of the caller's, instead of the config's and the task's.
        trackers: where metrics go besides the run's folder: "tensorboard", "mlflow", "trackio", "wandb", or objects with the
            methods of `utils.training.tracking.Tracker`; None: what the environment variable TRAINBOOK_TRACKERS names.

    Attributes:
        state: where the run stands (TrainState); notices: sentences the user should know.
        control: `Control`, to stop, pause or save from another thread.
        task: what is learnt (a `Task`); data: the data as batches (UniversalDataModule); None before training.
        description: further sections for the run's config.yaml, by name; plain values.
    """

    def __init__(
        self, model: nn.Module, config: Any = None, training_config: TrainingConfig | Mapping[str, Any] | None = None,
        task_spec: TaskSpec | Mapping[str, Any] | None = None, *, tokenizer: Any = None, data_collator: Any = None,
        hooks: Any = None, callbacks: Sequence[Callback] = (), own_parts: OwnParts | None = None,
        trackers: str | Sequence[str | Tracker] | None = None,
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
        self.trackers = check_trackers(trackers)
        self.state, self.control = TrainState(), Control()
        self.notices: list[str] = []
        self.description: dict[str, Any] = {}
        self.parts: Parts | None = None
        self.task: Task | None = None
        self.data: UniversalDataModule | None = None
        self.run_dir: Path | None = None
        self._tuned: FineTuned | None = None
        self._facts: dict[str, Any] = {}
        check_settings(self.training_config)

    @property
    def optimizer(self) -> torch.optim.Optimizer | None:
        """The optimizer while training and after; None before."""
        return None if self.parts is None else self.parts.optimizer

    def request_stop(self, reason: str = "requested") -> None:
        """Finish the step, save, return the results. From a callback, a button, another thread: the one way for everyone."""
        self.control.request_stop(reason)

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
        if self.own_parts is not None and self.training_config.finetune != "full":
            raise ConfigError(
                f"finetune: got {self.training_config.finetune!r} with an optimizer of yours, which holds its own "
                "parameters; set 'full' and freeze by requires_grad_(False)."
            )
        try:
            with fine_tuned(self.model, self.training_config) as tuned:
                self.model, self._tuned, self._facts = tuned.model, tuned, tuned.facts
                return self._train(train_data, val_data, resume_from)
        finally:
            # Not at the start, where a request may have been made already.
            self.control.clear()

    def _train(self, train_data: Any, val_data: Any, resume_from: Any) -> TrainingResults:
        self.notices = []
        for sentence in [] if self._tuned is None else self._tuned.notices:
            self.notice(sentence)
        config = self.training_config
        resume_from = absolute_source(resume_from)
        for sentence in check_launch(config):
            self.notice(sentence)
        world = join(config, detect_device().kind)
        self._set_special_ids()
        data = self._data(train_data, val_data, world)
        if (unmasked := data.padding_notice(explicit=self._given_pad_id() is not None)) is not None:
            self.notice(unmasked)
        check_gradients_are_dense(self.model)
        if (initialised := initialise_lazy_layers(self.model, data)) is not None:
            self.notice(initialised)
        refuse_float_ids(data, self.model, getattr(self.task_spec, "task_type", None) or task_type_of(self.model))
        task_spec = self._task(data)
        sharded = config.strategy == "fsdp" and world.size > 1
        # Sharded, the output layer is whole only inside the model's own pass.
        objective = self._objective(task_spec, config.replace(fused_loss="off") if sharded else config, data)
        check_compiler(config.compile_mode, detect_device())
        accumulation = self._accumulation(data)
        total_steps = _planned_steps(config, data, accumulation)
        monitor = self._monitor(data, objective)
        if world.is_main:
            criterion = None if self.own_parts is None else self.own_parts.criterion
            for sentence in data_notices(data, self.model, task_spec, tokenizer=self.tokenizer, criterion=criterion):
                self.notice(sentence)
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._failures_told(world))
            world.check_same(
                settings=config.to_dict(), data=data.digest(), model=[tuple(p.shape) for p in self.model.parameters()]
            )
            stack.enter_context(rng.preserved())
            stack.enter_context(rng.deterministic_algorithms(config.deterministic))
            own_optimizer = None if self.own_parts is None else self.own_parts.optimizer
            stack.enter_context(fp32_weights(self.model, own_optimizer, self.notice))
            stack.enter_context(_training_mode(self.model, config, self.notice))
            start = decide_start(config.with_absolute_paths(), resume_from, stack, world, self.model)
            self.run_dir = start.folder.path
            start.folder.clear_stop()  # it meant an earlier training; one that is made from here on counts
            for sentence in start.notices:
                self.notice(sentence)
            rng.seed_all(world.seed(config.random_seed))
            parts = self.parts = assemble(
                self.model, objective, config, total_steps, world=world, own_parts=self.own_parts, notice=self.notice
            )
            for sentence in filter(None, (parts.device.notice, parts.precision.notice)):
                self.notice(sentence)
            stack.enter_context(fast_paths(parts.model))
            fingerprint = fingerprint_of(data, self.tokenizer, self.model)
            self.state = self._restore(start, parts, fingerprint, data)
            store = self._store(start.folder, config.mode, world)
            if start.in_place:
                store.adopt(start.entry)
            if self.state.ended:
                if not start.in_place:
                    self.notice(_nothing_left(start, self.state))
                self._note_state(start.folder, "ended")  # unless it was killed between its last checkpoint and this note
                stack.close()
                return self._bundled(self._results(start.folder, store, task_spec), start.folder, world)
            interrupts = Interrupts(self.control)
            with interrupts.deferred():  # an interrupt ends the run after its first step, with a checkpoint
                check_last_batch(parts, data)
                if not self.state.step and (difference := own_loss_notice(parts, data)) is not None:
                    self.notice(difference)
                if not self.state.step:
                    for sentence in first_samples_notices(parts, data, RULES, config.max_grad_norm, total_steps):
                        self.notice(sentence)
            self._find_batch_size(parts, data)
            self._compile(parts, data)
            self._describe(start, task_spec, data, getattr(train_data, "origin", None))
            self._note_weights(start)
            events = CallbackList(
                self._all_callbacks(train_data, val_data, start.folder), self, config.isolate_callbacks
            )
            saver = RunSaver(
                store, parts, self.state, config, task_spec, events, start.folder.name, fingerprint, data.batch_size,
                lambda _, payload: _note_commit(start.folder, payload), self._checkpoint_extras,
            )  # fmt: skip
            loop = TrainingLoop(
                parts, data, self.state, config, events, self.control, saver, start.folder.record, total_steps, monitor,
                config.mode, start.folder.stop_requested, accumulation, self._patience(),
            )  # fmt: skip

            def settle() -> None:
                loop.settle()
                start.folder.flush()

            saver.before_save = settle
            with interrupts.deferred():
                self._run(loop, saver, events, start, interrupts)
            settle()
            self._note_state(start.folder, "ended" if self.state.ended else "stopped")
            start.folder.clear_stop()
            results = self._results(start.folder, store, task_spec)
            received = max(world.gather(interrupts.received or 0))  # by one process, and all of them stopped
        if received == signal.SIGTERM:
            raise SystemExit(143)  # 128 + SIGTERM, what a preempted process is expected to leave
        if received == signal.SIGINT:
            raise TrainingInterrupted(
                f"Interrupted after step {self.state.step}; saved as {results.checkpoint_path}. "
                "Run the same again with resume_from='auto' to continue.", results,
            )  # fmt: skip
        return self._bundled(results, start.folder, world)

    def _objective(self, task_spec: TaskSpec, config: TrainingConfig, data: UniversalDataModule) -> Objective:
        """What is minimised: the caller's criterion, or the task, which is checked against model and data."""
        if self.own_parts is not None and self.own_parts.criterion is not None:
            return CriterionObjective(self.own_parts.criterion)
        task = self.task = make_task(task_spec, config)
        check_fit(self.model, data, task, task_spec)
        return task

    def _checkpoint_extras(self, payload: Payload) -> Payload:
        """Entries of other systems that checkpoints are to hold besides; none."""
        return {}

    def _find_batch_size(self, parts: Parts, data: UniversalDataModule) -> None:
        """With `auto_batch_size`: as many samples at once as fit; a step has as many in all as the config says."""
        if not self.training_config.auto_batch_size or self.state.step or isinstance(data.train, StreamSource):
            return
        batch = _first_batch(data)
        # Gradients, and Adam's two averages (Kingma & Ba 2014).
        fixed = sum(3 * p.numel() * p.element_size() for p in parts.parameters)
        found = largest_that_fits(
            batch, parts.rehearse, on_cpu=parts.device.kind == "cpu", fixed_bytes=fixed,
            fewest=2 if normalises_over_batch(parts.model) else 1,
        )  # fmt: skip
        rows = rows_of(batch)
        self.state.pieces.most = found if found < rows else None
        self.notice(f"auto_batch_size: {found} samples go through the model at once, of {rows} a step.")

    def _compile(self, parts: Parts, data: UniversalDataModule) -> None:
        """Compile before the run's clock starts; a stream's first batch cannot be had twice, so there it happens later."""
        if self.training_config.compile_mode is None:
            return
        if isinstance(data.train, StreamSource):
            self.notice("The model is compiled in the first step, which takes the longer.")
            return
        seconds = compile_now(parts, split([_first_batch(data)], self.state.pieces.most)[0])
        self.notice(f"Compiled in {seconds:.1f} s, which the training time does not hold.")

    def _run(
        self, loop: TrainingLoop, saver: RunSaver, events: CallbackList, start: Start, interrupts: Interrupts
    ) -> None:
        """The loop, with a checkpoint of the last good step kept when anything raises."""
        if start.checkpoint is not None:
            events.load_state_dict(start.checkpoint.get("callbacks", {}))
        try:
            if start.checkpoint is not None and not start.in_place:
                saver.save(self.state.best.value if self.state.is_best else None)
            events.fire("on_train_begin", logs={"total_steps": loop.total_steps, "run_dir": str(start.folder.path)})
            loop.run()
            saver.finish()
            if loop.parts.objective.notice:
                self.notice(loop.parts.objective.notice)
            events.fire("on_train_end", logs={"stop_reason": self.state.stop_reason, "step": self.state.step})
        except Exception as error:
            if interrupts.again:
                # Where the handler raised within a call from C++, as torch.save makes them, C++ made another error of it.
                stop_at_once()
            # Saving takes all processes: it is possible when each of them came here by itself.
            together = loop.parts.world.report_failure(error, self.state.step)
            kept = self._rescue(loop, saver, together)
            with contextlib.suppress(CheckpointError):  # the first error is the one to report
                start.folder.flush()
            self._note_state(start.folder, "failed", error=describe_error(error))
            with contextlib.suppress(Exception):  # the first error is the one to report
                events.fire("on_error", error)
            if kept is not None:
                error.add_note(f"The run is saved up to step {self.state.step}: {kept}")
            raise
        finally:
            saver.abandon()  # only a second interrupt comes here with a save under way

    def _rescue(self, loop: TrainingLoop, saver: RunSaver, together: bool) -> Path | None:
        """A checkpoint of the last completed step, unless the error came while parameters were being changed.

        Args:
            together: False when other processes are needed for it that do not know of the error; what is being written is
                finished then.
        """
        try:
            saver.finish()
        except Exception as error:  # noqa: BLE001 - as below
            log.warning("The checkpoint that was under way at the failure: %s", error)
        with contextlib.suppress(Exception):  # an earlier step may have been a fault; the state is the one before it then
            loop.read_numbers()
        if not together or loop.parts.updating or self.state.step == 0:
            return None
        if loop.before_step is not None:
            rng.rewind(loop.before_step)
            loop.parts.buffers.restore()
        try:
            return saver.save(wait=True)
        except Exception as error:  # noqa: BLE001 - the failure that brought us here is the one to report
            log.warning("The state at the failure could not be saved: %s", error)
            return None

    @contextlib.contextmanager
    def _failures_told(self, world: World) -> Iterator[None]:
        """An error on this process ends the others too, with its message: they would wait for it otherwise."""
        try:
            yield
        except BaseException as error:
            if not world.report_failure(error, self.state.step):
                world.leave()
            elif isinstance(error, TrainbookError):
                error.told_by_main = not world.is_main
            raise

    def _store(self, folder: RunFolder, mode: str, world: World) -> CheckpointStore:
        if not world.is_main:
            return FollowersStore(folder.checkpoints, folder.run_id)
        config = self.training_config
        all_due = config.save_every_n_epochs if config.keep_last_n is None else None
        return CheckpointStore(
            folder.checkpoints, folder.run_id, config.keep_last_n or 2, config.keep_best_k, mode, all_due
        )  # fmt: skip

    def _data(self, train_data: Any, val_data: Any, world: World | None = None) -> UniversalDataModule:
        config = self.training_config
        spec = self.task_spec
        if (spec is None or spec.task_type is None) and (named := task_type_of(self.model)) is not None:
            # Which task it is decides how samples become a batch.
            spec = (spec or TaskSpec("training")).replace(task_type=named)
        data = self.data = UniversalDataModule(
            train_data, val_data, spec, self.tokenizer, self.data_collator, config.batch_size, config.num_workers,
            config.random_seed, max_train_samples=config.max_train_samples, max_val_samples=config.max_val_samples,
            pad_token_id=whole_number(self.config, "pad_token_id")
            if self._given_pad_id() is not None else model_pad_token_id(self.model),
            block_size=model_facts(self.model).max_length or whole_number(self.config, "max_seq_len"),
        )  # fmt: skip
        for sentence in data.notices:
            self.notice(sentence)
        if world is not None and world.size > 1:
            _refuse_streams(data)
            data.share, data.lockstep = (world.rank, world.size), config.strategy == "fsdp"
        if config.auto_batch_size and data.resumable:
            # A step's samples come in one batch, which is taken apart as memory demands.
            data.batch_size *= config.gradient_accumulation_steps
        elif config.auto_batch_size:
            self.notice("auto_batch_size does nothing here: the data come in batches of their own.")
        return data

    def _given_pad_id(self) -> int | None:
        """The padding id of the tokenizer, else of the task, else of the config beside the model."""
        given = (getattr(self.tokenizer, "pad_token_id", None), getattr(self.task_spec, "pad_token_id", None))
        return next((pad for pad in (*given, whole_number(self.config, "pad_token_id")) if pad is not None), None)

    def _set_special_ids(self) -> None:
        """Give the model's config the ids that tokenizer and batches have."""
        sentence = set_special_ids(self.model, self.tokenizer, self._given_pad_id())
        if sentence is not None:
            self.notice(sentence)

    def _accumulation(self, data: UniversalDataModule) -> int:
        """Batches of `data` in a step."""
        config = self.training_config
        return 1 if config.auto_batch_size and data.resumable else config.gradient_accumulation_steps

    def _task(self, data: UniversalDataModule) -> TaskSpec:
        """The task, with what was left open taken from model and data, which is said."""
        given = self.task_spec
        if self.own_parts is not None and self.own_parts.criterion is not None:
            return given or TaskSpec("training")  # which task it is, only the criterion knows
        spec, sentence = infer_task_spec(self.model, first_samples(data), self.tokenizer, given)
        if given is None or given.task_type is None:
            self.notice(sentence)
        return spec

    def _monitor(self, data: UniversalDataModule, objective: Objective) -> str:
        """The metric that decides what is best. Raises `ConfigError` when the run cannot produce it."""
        monitor = self.training_config.monitor
        check_monitor(monitor, objective)
        if data.validation is None and monitor.startswith("val/"):
            there = monitor.replace("val/", "train/")
            self.notice(f"No validation data: {there} is monitored instead of {monitor}.")
            return there
        return monitor

    def _patience(self) -> int | None:
        """The smallest patience of config and `EarlyStopping` callbacks; None: no early stopping."""
        given = [callback.patience for callback in self.callbacks if isinstance(callback, EarlyStopping)]
        configured = self.training_config.early_stopping_patience
        return min([*given, *([] if configured is None else [configured])], default=None)

    def _restore(
        self, start: Start, parts: Parts, fingerprint: dict[str, str], data: UniversalDataModule
    ) -> TrainState:
        """The state to go on from; model, optimizer, schedule and random state are set to it."""
        checkpoint = start.checkpoint
        if checkpoint is None:
            start.folder.keep_history(0, ())
            return TrainState()
        check_base(checkpoint, parts.model, str(start.source))
        for sentence in check_same(start, self.training_config, environment_facts(parts), fingerprint):
            self.notice(sentence)
        state = self._state_to_continue(start, checkpoint, parts.world)
        own = self.own_parts is not None
        afresh = optimizer_starts_afresh(checkpoint, parts, self.training_config, fingerprint, own=own)
        check_restorable(checkpoint, parts, self.training_config, str(start.source), afresh=afresh is not None, own=own)
        load_model_weights(parts.model, parted_weights(parts.model, checkpoint["model"]), str(start.source))
        load_run_states(parts.model, checkpoint.get("run_state", {}))
        if afresh is None:
            restore_optimizer(checkpoint, parts)
        else:
            self.notice(afresh)
        if parts.average is not None:
            self._restore_average(checkpoint.get("averaged"), parts.average)
        parts.schedule.load_state_dict(checkpoint["schedule"])
        if parts.scaler is not None and checkpoint.get("scaler"):
            parts.scaler.load_state_dict(checkpoint["scaler"])
        start.release()
        if state.ended and start.in_place:
            return state
        if parts.world.is_main:
            rng.restore(checkpoint["rng"])
        else:
            process = checkpoint["other_processes"][parts.world.rank - 1]
            rng.restore(process["rng"])
            state.pieces, state.validation_pieces = Pieces(process["pieces"]), Pieces(process["validation_pieces"])
        count = state.rows_written if start.in_place else 0
        state.rows_written = start.folder.keep_history(count, state.history)
        if not data.resumable and state.samples_done:
            self.notice("The data come in their own order: what was consumed is read again and passed over; not exact.")
        return state

    def _restore_average(self, saved: Mapping[str, Any] | None, average: WeightAverage) -> None:
        if (reason := average.misfit(saved)) is None:
            assert saved is not None
            average.load_state_dict(saved)
        else:
            average.restart()
            self.notice(f"The average of the weights starts afresh: {reason}.")

    def _state_to_continue(self, start: Start, checkpoint: Payload, world: World) -> TrainState:
        """The checkpoint's state, with `stop_reason` None when there is more to do.

        Raises:
            CheckpointError: it is to be continued by another number of processes than wrote it.
        """
        state = TrainState.from_dict(checkpoint["state"])
        config = self.training_config
        more_to_do = state.epoch < config.epochs and (config.max_steps is None or state.step < config.max_steps)
        stopped_early = state.stop_reason == "early_stopping"
        stopped_for_good = stopped_early and start.in_place and not settings_changed(checkpoint, config)
        if not state.ended or (more_to_do and not stopped_for_good):
            state.stop_reason = None
            if stopped_early:
                state.best.waits = 0  # or it would stop again at its first validation
        if not (state.ended and start.in_place):
            state.best = best_to_continue(state, checkpoint, config, start.in_place)
        saved_by = 1 + len(checkpoint.get("other_processes", ()))
        if saved_by != world.size and not (state.ended and start.in_place):
            start_with = f"torchrun --nproc_per_node={saved_by}" if saved_by > 1 else "no torchrun"
            raise CheckpointError(
                f"{start.source} was saved by {saved_by} process{'es' if saved_by > 1 else ''}, and this training has "
                f"{world.size}: a step would hold other samples, and dropout would be another. Continue it with {start_with}; "
                "to go on from its weights in a new run, load them into the model first."
            )
        return state

    def _describe(
        self, start: Start, task_spec: TaskSpec, data: UniversalDataModule, setup: Mapping[str, Any] | None
    ) -> None:
        """Write the run's config.yaml: with where the data and the initial weights come from, as far as it is known."""
        samples = {"train_samples": data.num_train, "validation_samples": data.num_validation}
        sections: dict[str, Any] = {"data": samples, "setup": None if setup is None else dict(setup)}
        as_made = (start.checkpoint is None or start.in_place) and _TRAINED.get(self.model) in (None, start.folder.path)
        sections["model"] = origin_of(self.model if self._tuned is None else self._tuned.base) if as_made else None
        known = {name: section for name, section in sections.items() if section is not None}
        start.folder.write_description(
            self.training_config.to_dict(), task_spec.to_dict(), **{**known, **self.description}
        )
        if start.checkpoint is not None and not start.in_place:
            run, step = start.checkpoint["run"], start.checkpoint["state"]["step"]
            start.folder.write_lineage(
                "checkpoint", run["name"], parent_id=run["id"], checkpoint=str(start.source), step=step
            )
        self._note_state(start.folder, "running")

    def _note_state(self, folder: RunFolder, status: str, **facts: Any) -> None:
        state = self.state
        best = {"value": state.best.value, "step": state.best.step}
        folder.write_state(status, step=state.step, epoch=state.epoch, best=best, stop_reason=state.stop_reason, **facts)

    def _note_weights(self, start: Start) -> None:
        """Say when a new run starts from weights that another run of this process left in the model."""
        before = _TRAINED.get(self.model)
        if start.checkpoint is None and before is not None and before != start.folder.path:
            self.notice(
                f"The model was trained by run {before.name} before: run {start.folder.name} starts from those weights. "
                "Make the model anew to start from fresh ones."
            )
        _TRAINED[self.model] = start.folder.path

    def _all_callbacks(self, train_data: Any, val_data: Any, folder: RunFolder) -> list[Callback]:
        config = self.training_config
        found = list(self.callbacks)
        if self.hooks is not None:
            found.append(HooksCallback(self.hooks, train_data, val_data))
        if not any(isinstance(callback, DoctorCallback) for callback in found):
            found.append(DoctorCallback())
        if self._tuned is not None and self._tuned.mode != "full":
            found.append(MovementCallback(self._facts))
        if self.parts is not None and not self.parts.world.is_main:
            return [callback for callback in found if not callback.main_only]
        trackers = make_trackers(config, self.trackers, self.notices)
        if not trackers:
            return found
        run = RunFacts(folder.name, folder.path, folder.run_id, scrubbed(config.to_dict()), self.state.step)
        return [*found, Trackers(trackers, run, self.notices)]

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
            with self._failures_told(world), rng.preserved():
                found = world.from_main(lambda: bundle_of(results, folder.run_id, self.config))
        except KeyboardInterrupt:
            results.export_error = "interrupted"
            raise TrainingInterrupted(
                "Interrupted while the export bundle was written; none is left behind. The training itself is finished: run "
                "the same again with resume_from='auto' to make the bundle.", results,
            ) from None  # fmt: skip
        results.export_dir, results.export_error, notices = found
        for sentence in notices:
            self.notice(sentence)
        return results

    def _results(self, folder: RunFolder, store: CheckpointStore, task_spec: TaskSpec) -> TrainingResults:
        assert self.parts is not None
        weights = self._choose_weights(self.parts.average)
        if self.parts.model is not self.model:
            give_weights(self.parts.model, self.model)
        best = store.folder / BEST
        kept, has_best = self.parts.world.broadcast(
            (sorted(store.entries, key=lambda entry: entry.step), store.best is not None and best.exists())
        )
        return TrainingResults(
            state=self.state, model=self.model, tokenizer=self.tokenizer, task_spec=task_spec,
            training_config=self.training_config, run_dir=folder.path, precision=self.parts.precision.compute,
            checkpoints=[entry.path for entry in kept], best_model_path=best if has_best else None, notices=self.notices,
            fine_tuning=None if self.training_config.finetune == "full" else dict(self._facts), weights=weights,
        )  # fmt: skip

    def _choose_weights(self, average: WeightAverage | None) -> Weights:
        """Give the model the averaged weights, if they were better at the latest validation, and say which it has."""
        if average is None:
            return "trained"
        if average.better:
            average.take()
            self.notice("The model has the averaged weights, which were better than the trained ones at the latest validation.")
            return "averaged"
        why = "were not better at the latest validation" if average.count else "do not exist yet"
        if average.count and not any(row["event"] == "evaluate" for row in self.state.history):
            why = "were not compared, because nothing was validated"
        self.notice(f"The model has the trained weights: the averaged ones {why}.")
        return "trained"


def _nothing_left(start: Start, state: TrainState) -> str:
    return (
        f"Nothing was trained: {start.source} is at the end of this plan already ({state.stop_reason}; {state.epoch} epochs, "
        f"{state.step} steps). To train further, set a larger {'max_steps' if state.stop_reason == 'max_steps' else 'epochs'}."
    )


def _note_commit(folder: RunFolder, payload: Payload) -> None:
    """Say in state.json what the newest checkpoint holds; called by the thread that wrote it."""
    state = payload["state"]
    best = {name: state["best"][name] for name in ("value", "step")}
    folder.write_state("running", step=state["step"], epoch=state["epoch"], best=best, stop_reason=state["stop_reason"])


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


def _refuse_streams(data: UniversalDataModule) -> None:
    """What comes in its own order cannot be shared out: nobody knows whether two processes see the same."""
    for name, source in (("train_data", data.train), ("val_data", data.validation)):
        if isinstance(source, StreamSource):
            raise DataError(
                f"{name} is a DataLoader with an order of its own, which several processes cannot share out exactly. Give its "
                "dataset instead, with samples by number."
            )


def _first_batch(data: UniversalDataModule) -> Batch:
    """The first samples, as many as a batch has."""
    assert not isinstance(data.train, StreamSource)
    return data.train.take(list(range(min(data.batch_size, len(data.train)))))


def _planned_steps(config: TrainingConfig, data: UniversalDataModule, accumulation: int) -> int | None:
    """Optimizer steps of the whole run, where the data's length is known or max_steps is set."""
    per_epoch = data.num_steps(accumulation)
    limits = [
        limit
        for limit in (None if per_epoch is None else per_epoch * config.epochs, config.max_steps)
        if limit is not None
    ]
    return min(limits, default=None)
