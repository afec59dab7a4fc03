"""RunClock: how long a run has trained, and what energy it took."""

from __future__ import annotations

import time

from utils.training.engine.hardware.energy import EnergyMeter
from utils.training.engine.state import TrainState

# Shorter than the time in which a processor's energy counter wraps: see EnergyMeter.
_ENERGY_EVERY_S = 60.0


class RunClock:
    """Training time and energy since the run was started or resumed, added to the state's. Pauses do not count.

    Args:
        state: its `elapsed_s` and `energy` grow.
        meter: counts the energy; None: nothing is counted.
    """

    def __init__(self, state: TrainState, meter: EnergyMeter | None = None) -> None:
        self._state, self._meter = state, meter
        self._started = self._settled = self._energy_read = time.monotonic()

    def running_s(self) -> float:
        """Seconds of training since the run was started or resumed."""
        return time.monotonic() - self._started

    def settle(self) -> None:
        """Bring the state's time and energy up to date."""
        now = time.monotonic()
        self._state.elapsed_s += now - self._settled
        self._settled = now
        self._count_energy(now)

    def tick(self) -> None:
        """Call at least once a minute: reads the energy counters before they wrap."""
        now = time.monotonic()
        if now - self._energy_read >= _ENERGY_EVERY_S:
            self._count_energy(now)

    def leave_out(self, seconds: float) -> None:
        """The last `seconds` were a pause, before which the state was brought up to date."""
        self._started += seconds
        self._settled += seconds
        self._energy_read += seconds
        if self._meter is not None:
            self._meter.taken()

    def _count_energy(self, now: float) -> None:
        if self._meter is not None:
            self._state.energy.add(self._meter.taken(), now - self._energy_read)
        self._energy_read = now
