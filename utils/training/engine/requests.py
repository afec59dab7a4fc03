"""Requests to a running loop: what somebody asks for, through the control or by files, agreed on by all processes."""

from __future__ import annotations

import time
from typing import NamedTuple

from utils.training.engine.distributed.world import World
from utils.training.engine.interrupts import Control
from utils.training.engine.outlets import Records

# Seconds between two looks for STOP and FINISH files, each of which may be a request over a network.
_LOOK_S = 1.0


class Requested(NamedTuple):
    """What is requested now, on any process: to stop, to save, to pause, to begin the last decay of the learning rate."""

    stop: bool
    save: bool
    pause: bool
    decay: bool


class Requests:
    """Collects the requests; the loop obeys them.

    Args:
        control: what buttons, callbacks and signals set; records: where STOP and FINISH files are looked for.
        world: the processes, which collect together, equally often.
    """

    def __init__(self, control: Control, records: Records, world: World) -> None:
        self._control, self._records, self._world = control, records, world
        self._looked = time.monotonic()

    def collect(self) -> Requested:
        """What is requested on any process. The reason to stop becomes everybody's; nothing is withdrawn."""
        self._look_for_files()
        control, world = self._control, self._world
        requests = (control.stop, control.save_now, control.pause, control.finish)
        requested = Requested(*(count > 0 for count in world.totals(*(request.is_set() for request in requests))))
        if requested.stop and world.size > 1:
            reasons = world.gather(control.reason if control.stop.is_set() else None)
            control.agree(next(reason for reason in reasons if reason is not None))
        return requested

    def _look_for_files(self) -> None:
        now = time.monotonic()
        if now - self._looked < _LOOK_S:
            return
        self._looked = now
        if (reason := self._records.stop_requested()) is not None:
            self._control.request_stop(reason)
        if self._records.take_finish_request():
            self._control.request_finish()
