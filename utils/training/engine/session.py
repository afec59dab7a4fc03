"""A run from its first step to its last checkpoint, also when something fails or somebody interrupts it."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from utils.data.module import UniversalDataModule
from utils.errors import CheckpointError, TrainbookError
from utils.scrubbing import describe_error
from utils.training.engine import rng
from utils.training.engine.callbacks import CallbackList
from utils.training.engine.checkpointing.saver import RunSaver
from utils.training.engine.compute.assembly import Parts
from utils.training.engine.distributed.world import World
from utils.training.engine.facade import Notice
from utils.training.engine.interrupts import Control, Interrupts, stop_at_once
from utils.training.engine.loop import TrainingLoop
from utils.training.engine.outlets import KeptRows, NoSaver
from utils.training.engine.plan import RunPlan
from utils.training.engine.run_notes import note_state
from utils.training.engine.state import Row, TrainState
from utils.training.run_start import Start
from utils.training.task_spec import TaskSpec
from utils.training.training_config import TrainingConfig

log = logging.getLogger("trainbook.engine")


@dataclass(frozen=True)
class Session:
    """Participants of a run.

    Attributes:
        start: the run's folder, and the checkpoint that it resumes from.
        loop, saver, events: the training loop, the checkpoint saver and the callbacks.
    """

    start: Start
    loop: TrainingLoop
    saver: RunSaver
    events: CallbackList

    @property
    def state(self) -> TrainState:
        """State of the run."""
        return self.loop.state

    def settle(self) -> None:
        """Bring state and history up to date: what is still on the device is read, rows are on disk."""
        self.loop.settle()
        self.start.folder.flush()

    def run(self, interrupts: Interrupts, notice: Notice) -> None:
        """Train. When anything raises, a checkpoint of the last good step is kept, and the error says which."""
        start, loop, saver, events, state = self.start, self.loop, self.saver, self.events, self.state
        if start.checkpoint is not None:
            events.load_state_dict(start.checkpoint.get("callbacks", {}))
        try:
            if start.checkpoint is not None and not start.in_place:
                saver.save(state.best.value if state.is_best else None)
            events.fire("on_train_begin", logs={"total_steps": loop.total_steps, "run_dir": str(start.folder.path)})
            loop.run()
            saver.wait()
            if loop.parts.objective.notice:
                notice(loop.parts.objective.notice)
            loop.settle()  # callbacks see the time that the results have
            events.fire("on_train_end", logs={"stop_reason": state.stop_reason, "step": state.step})
        except Exception as error:
            if interrupts.again:
                # Where the handler raised within a call from C++, as torch.save makes them, C++ made another error of it.
                stop_at_once()
            # Saving takes all processes: it is possible when each of them came here by itself.
            together = loop.parts.world.report_failure(error, state.step)
            kept = self._rescue(together)
            with contextlib.suppress(CheckpointError):  # the first error is the one to report
                start.folder.flush()
            note_state(start.folder, state, "failed", error=describe_error(error))
            with contextlib.suppress(Exception):  # the first error is the one to report
                events.fire("on_error", error)
            if kept is not None:
                error.add_note(f"The run is saved up to step {state.step}: {kept}")
            raise
        finally:
            saver.abandon()  # only a second interrupt comes here with a save under way

    def _rescue(self, together: bool) -> Path | None:
        """A checkpoint of the last completed step, unless the error came while parameters were being changed.

        Args:
            together: False when other processes are needed for it that do not know of the error; what is being written is
                finished then.
        """
        loop, saver = self.loop, self.saver
        try:
            saver.wait()
        except Exception as error:  # noqa: BLE001 - as below
            log.warning("The checkpoint that was under way at the failure: %s", error)
        with contextlib.suppress(
            Exception
        ):  # an earlier step may have been a fault; the state is the one before it then
            loop.pending.read()
        if not together or loop.parts.updating or self.state.step == 0:
            return None
        if loop.pending.random_state_before is not None:
            rng.rewind(loop.pending.random_state_before)
            loop.parts.buffers.restore()
        try:
            return saver.save(wait=True)
        except Exception as error:  # noqa: BLE001 - the failure that brought us here is the one to report
            log.warning("The state at the failure could not be saved: %s", error)
            return None


@contextlib.contextmanager
def failures_reported(world: World, step: Callable[[], int]) -> Iterator[None]:
    """An error on this process ends the others too, with its message: they would wait for it otherwise.

    Args:
        step: the steps that are done, when it is called.
    """
    try:
        yield
    except BaseException as error:
        if not world.report_failure(error, step()):
            world.leave()
        elif isinstance(error, TrainbookError):
            error.told_by_main = not world.is_main
        raise


def train_one_epoch(
    parts: Parts, data: UniversalDataModule, state: TrainState, config: TrainingConfig, events: CallbackList
) -> Row:
    """The epoch `state.epoch`, outside of any run: nothing is saved or validated. Returns its row of metrics."""
    plan = RunPlan(
        config, data, TaskSpec("training"), parts.objective, parts.world, config.gradient_accumulation_steps, None,
        "train/loss", "min",
    )  # fmt: skip
    kept = KeptRows()
    TrainingLoop(plan, parts, state, events, Control(), NoSaver(), kept).run()
    return kept.rows[-1]
