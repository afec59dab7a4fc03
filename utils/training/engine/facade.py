"""RunFacade: what the documented API of another system changes about a run. The engine asks it at named places."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from utils.data.module import UniversalDataModule
    from utils.training.engine.checkpointing.saver import RunSaver
    from utils.training.engine.checkpointing.store import CheckpointStore, Payload
    from utils.training.engine.compute.assembly import Parts
    from utils.training.engine.loss.objective import Objective
    from utils.training.engine.state import TrainState
    from utils.training.run_start import Start


class RunFacade:
    """Changes nothing. A subclass overrides the places at which its API differs from the engine's."""

    def objective(self) -> Objective | None:
        """Objective in place of the task's loss or the caller's criterion; None: these."""
        return None

    def data_ready(self, data: UniversalDataModule, train_data: Any) -> None:
        """The data were taken apart; their order may be changed."""

    def store_ready(self, store: CheckpointStore) -> None:
        """The checkpoint folder is open; what is kept may be changed."""

    def before_restore(self, start: Start, parts: Parts) -> None:
        """A checkpoint, where there is one, is about to be loaded; `start.checkpoint` may be replaced."""

    def resumed(self, state: TrainState, checkpoint: Payload) -> None:
        """The state of a checkpoint was read and judged; whether there is more to do may be changed."""

    def restored(self, start: Start, state: TrainState, notices: list[str]) -> None:
        """The run stands where it resumes. `notices`: the sentences on what differs from the checkpoint."""

    def before_loop(self, saver: RunSaver) -> None:
        """Everything is assembled; the first step is next."""

    def checkpoint_entries(self, payload: Payload) -> Payload:
        """Further entries of a checkpoint, beside the engine's own."""
        return {}


#: Takes a sentence that the user should know.
Notice = Callable[[str], None]
