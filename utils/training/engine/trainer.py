"""Trainer: config -> parts -> loop -> results. It knows every neighbour and does no arithmetic."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import signal
import weakref
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from utils.adapters.facts import model_facts
from utils.errors import CheckpointError, ConfigError, DataError, ModelError, Problem, TrainingInterrupted
from utils.training.engine import rng
from utils.training.engine.callbacks import Callback, CallbackList, EarlyStopping
from utils.training.engine.checkpoint import BEST, CheckpointStore, Payload, load_model_weights
from utils.training.engine.data import UniversalDataModule
from utils.training.engine.hooks import HooksCallback, TrainingHooks
from utils.training.engine.interrupts import Control, Interrupts
from utils.training.engine.loop import TrainingLoop
from utils.training.engine.objective import make_objective
from utils.training.engine.parts import Parts, assemble, switch_activation_checkpointing
from utils.training.engine.results import TrainingResults
from utils.training.engine.saving import RunSaver, environment_facts
from utils.training.engine.state import TrainState
from utils.training.engine.step import modes_kept
from utils.training.run_folder import RunFolder, Start, decide_start
from utils.training.task_spec import TaskSpec
from utils.training.tracking import make_tracker
from utils.training.training_config import TrainingConfig

log = logging.getLogger("trainbook.engine")

__all__ = ["Trainer", "TrainingHooks"]

# Model -> the run that trained it last in this process.
_TRAINED: weakref.WeakKeyDictionary[nn.Module, Path] = weakref.WeakKeyDictionary()


class Trainer:
    """Trains a model.

    Args:
        model: any nn.Module that maps token ids (B, T) to logits (B, T, V): a tensor, or transformers' outputs.
        config: the model's own configuration, if it has one beside it; its pad_token_id, vocab_size and max_seq_len are read
            where neither tokenizer nor task_spec has them.
        training_config: how to train; None: the defaults.
        task_spec: what to learn; None: inferred from model and data, and said in the results' notices.
        tokenizer: turns texts into ids when the data are texts; kept with the results.
        data_collator: makes a batch from samples; None: ids are padded, padding is not scored.
        hooks: a `TrainingHooks`; callbacks: `Callback`s, in order.

    Attributes:
        state: where the run stands (TrainState); notices: sentences the user should know.
        control: `Control`, to stop, pause or save from another thread.
    """

    def __init__(
        self, model: nn.Module, config: Any = None, training_config: TrainingConfig | Mapping[str, Any] | None = None,
        task_spec: TaskSpec | None = None, *, tokenizer: Any = None, data_collator: Any = None, hooks: Any = None,
        callbacks: Sequence[Callback] = (),
    ) -> None:  # fmt: skip
        if not isinstance(model, nn.Module):
            raise ModelError(f"Trainer takes an nn.Module as model; got a {type(model).__name__}.")
        if isinstance(config, TrainingConfig) and training_config is None:
            config, training_config = None, config
        if isinstance(training_config, Mapping):
            training_config = TrainingConfig.from_dict(training_config)
        self.model, self.config = model, config
        self.training_config = training_config or TrainingConfig()
        self.task_spec, self.tokenizer, self.data_collator = task_spec, tokenizer, data_collator
        self.hooks, self.callbacks = hooks, list(callbacks)
        self.state, self.control = TrainState(), Control()
        self.notices: list[str] = []
        self.parts: Parts | None = None
        self.run_dir: Path | None = None
        _refuse_what_is_not_there(self.training_config)

    @property
    def optimizer(self) -> torch.optim.Optimizer | None:
        """The optimizer while training and after; None before."""
        return None if self.parts is None else self.parts.optimizer

    def request_stop(self, reason: str = "requested") -> None:
        """Finish the step, save, return the results. From a callback, a button, another thread: the one way for everyone."""
        self.control.request_stop(reason)

    def notice(self, sentence: str) -> None:
        """Keep a sentence for the results and log it, once."""
        if sentence not in self.notices:
            self.notices.append(sentence)
            log.info(sentence)

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
        self.control.clear()
        self.notices = []
        config = self.training_config
        data = self._data(train_data, val_data)
        task_spec = self._task(data)
        objective = make_objective(task_spec, config.label_smoothing)
        total_steps = _planned_steps(config, data)
        monitor, mode = self._monitor(data)
        with contextlib.ExitStack() as stack:
            stack.enter_context(rng.preserved())
            stack.enter_context(rng.deterministic_algorithms(config.deterministic))
            stack.enter_context(_training_mode(self.model, config))
            start = decide_start(config, resume_from, stack)
            self.run_dir = start.folder.path
            for sentence in start.notices:
                self.notice(sentence)
            rng.seed_all(config.random_seed)
            parts = self.parts = assemble(self.model, objective, config, total_steps)
            if parts.precision.notice:
                self.notice(parts.precision.notice)
            fingerprint = {"data": data.digest(), "tokenizer": _tokenizer_digest(self.tokenizer)}
            self.state = self._restore(start, parts, fingerprint, data)
            store = CheckpointStore(
                start.folder.checkpoints, start.folder.run_id, config.keep_last_n, config.keep_best_k, mode
            )
            if start.in_place:
                store.adopt()
            if self.state.ended:
                return self._results(start.folder, store, task_spec)
            self._note_weights(start)
            start.folder.stop_file.unlink(missing_ok=True)
            self._describe(start, task_spec)
            events = CallbackList(
                self._all_callbacks(train_data, val_data, start.folder), self, config.isolate_callbacks
            )
            saver = RunSaver(
                store, parts, self.state, config, task_spec, events, start.folder.name, fingerprint, data.batch_size,
                lambda _, payload: _note_commit(start.folder, payload),
            )  # fmt: skip
            interrupts = Interrupts(self.control)
            loop = TrainingLoop(
                parts, data, self.state, config, events, self.control, saver, start.folder.record, total_steps, monitor, mode,
                start.folder.stop_requested,
            )  # fmt: skip
            saver.before_save = loop.tick
            with interrupts.deferred():
                self._run(loop, saver, events, start)
            loop.tick()
            self._note_state(start.folder, "ended" if self.state.ended else "stopped")
            start.folder.stop_file.unlink(missing_ok=True)
            results = self._results(start.folder, store, task_spec)
        if interrupts.received == signal.SIGTERM:
            raise SystemExit(143)  # 128 + SIGTERM, what a preempted process is expected to leave
        if interrupts.received == signal.SIGINT:
            raise TrainingInterrupted(
                f"Interrupted after step {self.state.step}; saved as {results.checkpoint_path}. "
                "Run the same again with resume_from='auto' to continue.", results,
            )  # fmt: skip
        return results

    def _run(self, loop: TrainingLoop, saver: RunSaver, events: CallbackList, start: Start) -> None:
        """The loop, with a checkpoint of the last good step kept when anything raises."""
        if start.checkpoint is not None:
            events.load_state_dict(start.checkpoint.get("callbacks", {}))
        try:
            if start.checkpoint is not None and not start.in_place:
                saver.save(start.checkpoint["value"])
            events.fire("on_train_begin", logs={"total_steps": loop.total_steps, "run_dir": str(start.folder.path)})
            loop.run()
            saver.finish()
            events.fire("on_train_end", logs={"stop_reason": self.state.stop_reason, "step": self.state.step})
        except Exception as error:
            kept = self._rescue(loop, saver)
            self._note_state(start.folder, "failed", error=f"{type(error).__name__}: {error}")
            with contextlib.suppress(Exception):  # the first error is the one to report
                events.fire("on_error", error)
            if kept is not None:
                error.add_note(f"The run is saved up to step {self.state.step}: {kept}")
            raise
        finally:
            saver.abandon()  # only a second interrupt comes here with a save under way

    def _rescue(self, loop: TrainingLoop, saver: RunSaver) -> Path | None:
        """A checkpoint of the last completed step, unless the error came while parameters were being changed."""
        try:
            saver.finish()
        except Exception as error:  # noqa: BLE001 - as below
            log.warning("The checkpoint that was under way at the failure: %s", error)
        if loop.parts.updating or self.state.step == 0 or self.state.ended:
            return None
        if loop.before_step is not None:
            rng.rewind(loop.before_step)
        try:
            return saver.save(wait=True)
        except Exception as error:  # noqa: BLE001 - the failure that brought us here is the one to report
            log.warning("The state at the failure could not be saved: %s", error)
            return None

    def _data(self, train_data: Any, val_data: Any) -> UniversalDataModule:
        config = self.training_config
        data = UniversalDataModule(
            train_data, val_data, self.task_spec, self.tokenizer, self.data_collator, config.batch_size, config.num_workers,
            config.random_seed, max_train_samples=config.max_train_samples, max_val_samples=config.max_val_samples,
            pad_token_id=getattr(self.config, "pad_token_id", None),
            block_size=model_facts(self.model).max_length or getattr(self.config, "max_seq_len", None),
        )  # fmt: skip
        for sentence in data.notices:
            self.notice(sentence)
        return data

    def _task(self, data: UniversalDataModule) -> TaskSpec:
        """The task, with what was left open taken from model and data; checks that ids, vocabulary and lengths fit."""
        spec = self.task_spec or TaskSpec("training")
        sample = data.train.take([0]) if data.resumable else {}  # type: ignore[union-attr]
        if spec.task_type is None:
            ids = sample.get("input_ids")
            labels = sample.get("labels", ids)
            if sample and (ids is None or labels is None or labels.shape != ids.shape):
                shapes = {name: tuple(tensor.shape) for name, tensor in sample.items()}
                raise ConfigError(
                    f"the task cannot be inferred from samples with {shapes}; give task_spec=TaskSpec...."
                )
            spec = spec.replace(task_type="causal_lm")
            self.notice("Task: predicting the next token (inferred: inputs are token ids, labels are the same ids).")
        facts = model_facts(self.model)
        known = facts.vocab_size
        if spec.vocab_size is not None and known is not None and spec.vocab_size > known:
            raise ModelError(
                f"the vocabulary has {spec.vocab_size} tokens, but {type(self.model).__name__} has {known} embeddings. "
                f"Make the model with vocab_size={spec.vocab_size} or more, or use a tokenizer with at most {known} tokens."
            )
        for source, name in ((data.train, "train_data"), (data.validation, "val_data")):
            max_id = getattr(source, "max_id", None)
            largest = max_id() if max_id is not None else None
            limit = known or spec.vocab_size
            if largest is not None and limit is not None and largest >= limit:
                raise DataError(
                    f"{name} holds token id {largest}, but the model knows ids 0 to {limit - 1}. Use the model's tokenizer."
                )
        length, longest = sample["input_ids"].shape[1] if "input_ids" in sample else 0, facts.max_length
        if longest is not None and length > longest:
            raise DataError(
                f"samples have {length} tokens, but {type(self.model).__name__} takes at most {longest}. Cut them shorter."
            )
        return spec

    def _monitor(self, data: UniversalDataModule) -> tuple[str, str]:
        config = self.training_config
        if data.validation is None and config.monitor.startswith("val/"):
            monitor = config.monitor.replace("val/", "train/")
            self.notice(f"No validation data: {monitor} is monitored instead of {config.monitor}.")
            return monitor, config.mode
        return config.monitor, config.mode

    def _restore(
        self, start: Start, parts: Parts, fingerprint: dict[str, str], data: UniversalDataModule
    ) -> TrainState:
        """The state to go on from; model, optimizer, schedule and random state are set to it."""
        checkpoint = start.checkpoint
        if checkpoint is None:
            start.folder.keep_history(0, ())
            return TrainState()
        self._check_same(start, checkpoint, parts, fingerprint)
        load_model_weights(self.model, checkpoint["model"], str(start.source))
        self._restore_optimizer(checkpoint, parts)
        parts.schedule.load_state_dict(checkpoint["schedule"])
        if parts.scaler is not None and checkpoint["scaler"]:
            parts.scaler.load_state_dict(checkpoint["scaler"])
        rng.restore(checkpoint["rng"])
        state = TrainState.from_dict(checkpoint["state"])
        config = self.training_config
        more_to_do = state.epoch < config.epochs and (config.max_steps is None or state.step < config.max_steps)
        stopped_for_good = state.stop_reason == "early_stopping" and start.in_place and not self._changes(checkpoint)
        if not state.ended or (more_to_do and not stopped_for_good):
            state.stop_reason = None
        if state.ended and start.in_place:
            return state
        count = state.rows_written if start.in_place else 0
        state.rows_written = start.folder.keep_history(count, state.history)
        if not data.resumable and state.samples_done:
            self.notice("The data come in their own order: what was consumed is read again and passed over; not exact.")
        return state

    def _restore_optimizer(self, checkpoint: Payload, parts: Parts) -> None:
        """The optimizer's averages from the checkpoint, its settings from the config: on a change, the config's hold."""
        if checkpoint["config"]["optimizer"] != self.training_config.optimizer:
            self.notice(
                f"The optimizer starts afresh: {checkpoint['config']['optimizer']}'s averages do not fit another one."
            )
            return
        groups = parts.optimizer.param_groups
        # The learning rate stays the checkpoint's: the schedule sets it before each step, and a row may come before one.
        settings = [{name: value for name, value in group.items() if name not in ("params", "lr")} for group in groups]
        parts.optimizer.load_state_dict(checkpoint["optimizer"])
        for group, own in zip(parts.optimizer.param_groups, settings, strict=True):
            group.update(own)

    def _changes(self, checkpoint: Payload) -> dict[str, tuple[Any, Any]]:
        """Settings that change what is learnt and differ from the checkpoint's: {name: (there, here)}."""
        here, there = self.training_config.to_dict(), checkpoint["config"]
        names = [name for name in here if name not in TrainingConfig.NOT_LEARNT]
        return {name: (there.get(name), here[name]) for name in names if there.get(name) != here[name]}

    def _check_same(self, start: Start, checkpoint: Payload, parts: Parts, fingerprint: dict[str, str]) -> None:
        """Refuse or name every difference that would make the continued run another one."""
        changes = [
            f"{name}: {there!r} there, {here!r} here" for name, (there, here) in self._changes(checkpoint).items()
        ]
        changes += [
            f"{name}: not the same as when it was saved"
            for name, digest in fingerprint.items()
            if checkpoint["fingerprint"].get(name) != digest
        ]
        if changes and start.in_place and self.training_config.on_config_change == "error":
            listed = "\n  ".join(changes)
            raise CheckpointError(
                f"{start.source} was trained with other settings:\n  {listed}\nTo train anew, choose another run_name; to go "
                'on with the new settings, set on_config_change="continue".'
            )
        if changes:
            self.notice(f"Continued with other settings, so not exactly the run that was saved: {'; '.join(changes)}.")
        facts = environment_facts(parts)
        moved = [
            f"{name} {checkpoint['environment'].get(name)} there, {facts[name]} here"
            for name in ("torch", "device", "device_name", "threads", "precision")
            if checkpoint["environment"].get(name) != facts[name]
        ]
        if moved:
            self.notice(f"Continued elsewhere, so the last bits may differ: {'; '.join(moved)}.")

    def _describe(self, start: Start, task_spec: TaskSpec) -> None:
        start.folder.write_description(self.training_config.to_dict(), task_spec.to_dict())
        self._note_state(start.folder, "running")

    def _note_state(self, folder: RunFolder, status: str, **facts: Any) -> None:
        state = self.state
        folder.write_state(status, step=state.step, epoch=state.epoch, stop_reason=state.stop_reason, **facts)

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
        if config.early_stopping_patience is not None:
            found.append(EarlyStopping(config.early_stopping_patience))
        tracker = make_tracker(config, folder.name, self.notices)
        return [*found, tracker] if tracker is not None else found

    def _results(self, folder: RunFolder, store: CheckpointStore, task_spec: TaskSpec) -> TrainingResults:
        assert self.parts is not None
        best = store.folder / BEST
        return TrainingResults(
            state=self.state, model=self.model, tokenizer=self.tokenizer, task_spec=task_spec,
            training_config=self.training_config, run_dir=folder.path, precision=self.parts.precision.compute,
            checkpoints=[entry.path for entry in sorted(store.entries, key=lambda entry: entry.step)],
            best_model_path=best if store.best is not None and best.exists() else None, notices=self.notices,
        )  # fmt: skip


def _note_commit(folder: RunFolder, payload: Payload) -> None:
    """Say in state.json what the newest checkpoint holds; called by the thread that wrote it."""
    state = payload["state"]
    folder.write_state("running", step=state["step"], epoch=state["epoch"], stop_reason=state["stop_reason"])


@contextlib.contextmanager
def _training_mode(model: nn.Module, config: TrainingConfig) -> Iterator[None]:
    """The model in training mode; afterwards every submodule is in the mode it was in, and nothing is left switched on."""
    with modes_kept(model):
        model.train()
        try:
            yield
        finally:
            if config.gradient_checkpointing:
                switch_activation_checkpointing(model, on=False)


def _planned_steps(config: TrainingConfig, data: UniversalDataModule) -> int | None:
    """Optimizer steps of the whole run, where the data's length is known or max_steps is set."""
    per_epoch = data.num_steps(config.gradient_accumulation_steps)
    limits = [
        limit
        for limit in (None if per_epoch is None else per_epoch * config.epochs, config.max_steps)
        if limit is not None
    ]
    return min(limits, default=None)


def _tokenizer_digest(tokenizer: Any) -> str:
    """Changes when the tokenizer's vocabulary does; empty without a tokenizer."""
    if tokenizer is None or not hasattr(tokenizer, "get_vocab"):
        return ""
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    return hashlib.blake2b(repr(vocabulary).encode(), digest_size=16).hexdigest()


def _refuse_what_is_not_there(config: TrainingConfig) -> None:
    """Settings that this version knows by name and cannot do are refused together, never passed over."""
    problems = []
    if config.compile_mode is not None:
        problems.append(
            Problem("compile_mode", f"got {config.compile_mode!r}; compiling is not in this version: set None", None)
        )
    if config.strategy != "auto":
        problems.append(
            Problem("strategy", f"got {config.strategy!r}; this version trains on one device: set 'auto'", "auto")
        )
    if config.devices not in ("auto", 1):
        problems.append(
            Problem("devices", f"got {config.devices}; this version trains on one device: set 1 or 'auto'", "auto")
        )
    if config.num_nodes != 1:
        problems.append(Problem("num_nodes", f"got {config.num_nodes}; this version trains on one host: set 1", 1))
    if config.auto_batch_size:
        problems.append(
            Problem("auto_batch_size", "got True; finding a batch size is not in this version: set batch_size", False)
        )
    if config.fused_loss == "on":
        problems.append(
            Problem("fused_loss", "got 'on'; the fused loss is not in this version: set 'auto' or 'off'", "auto")
        )
    if config.export_bundle:
        problems.append(
            Problem(
                "export_bundle",
                "got True; bundles are not in this version: set False and call export_model(results)",
                False,
            )
        )
    if problems:
        raise ConfigError.from_problems("TrainingConfig, on this version", problems)
