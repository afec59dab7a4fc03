"""Measure the energy that a run takes, where the machine counts it.

Processors: the RAPL counters that Linux shows below /sys/class/powercap (Intel and AMD; often readable by root only). They
count the whole processor package, other programs included, and neither memory nor the power supply. NVIDIA GPUs: NVML's counter
of the whole board (Volta and later, through the package `nvidia-ml-py`). A machine without counters measures nothing.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

log = logging.getLogger("trainbook.engine")

#: Where Linux lists its RAPL counters: https://docs.kernel.org/power/powercap/powercap.html
POWERCAP = Path("/sys/class/powercap")

JOULES_PER_KWH = 3.6e6


@dataclass(frozen=True)
class Counter:
    """A counter of energy that only grows.

    Attributes:
        name: what it counts, such as "processor package-0".
        read: the count in joules. Raises OSError where it can no longer be read.
        wraps_at: the count in joules after which it begins again at 0; None: never.
    """

    name: str
    read: Callable[[], float]
    wraps_at: float | None = None


@dataclass
class EnergyUse:
    """Energy that was counted, and for how long.

    Attributes:
        joules: by counter.
        seconds: time in which they were counted; less than the run's time where a session ran on a machine without counters.
    """

    joules: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def kwh(self) -> float | None:
        """Sum of all counters in kilowatt-hours; None: nothing was counted."""
        return sum(self.joules.values()) / JOULES_PER_KWH if self.joules else None

    def add(self, joules: Mapping[str, float], seconds: float) -> None:
        """Add what was counted in the last `seconds`; nothing counted adds no time."""
        if joules:
            self.seconds += seconds
        for name, value in joules.items():
            self.joules[name] = self.joules.get(name, 0.0) + value

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain values, for a checkpoint."""
        return {"joules": dict(self.joules), "seconds": self.seconds}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> EnergyUse:
        """The inverse of `to_dict`."""
        return cls({str(name): float(joules) for name, joules in values["joules"].items()}, float(values["seconds"]))


class EnergyMeter:
    """Read the growth of energy counters between two calls.

    A counter that wraps must be read at least once each time round: about half an hour for a processor under full load.

    Args:
        counters: those that can be read now are used, the others left out.
    """

    def __init__(self, counters: Sequence[Counter]) -> None:
        self._last: dict[str, float] = {}
        self._counters: list[Counter] = []
        for counter in counters:
            try:
                self._last[counter.name] = counter.read()
            except OSError as error:
                log.debug("The energy of the %s is not measured: %s.", counter.name, error)
            else:
                self._counters.append(counter)

    def taken(self) -> dict[str, float]:
        """Joules by counter since the last call, or since the meter was made. A counter that fails counts no more."""
        found: dict[str, float] = {}
        for counter in list(self._counters):
            try:
                now = counter.read()
            except OSError as error:
                log.warning("The energy of the %s is not measured any more: %s.", counter.name, error)
                self._counters.remove(counter)
                continue
            grown = now - self._last[counter.name]
            if grown < 0:
                grown = (
                    grown + counter.wraps_at if counter.wraps_at is not None else now
                )  # begun again, or set back to 0
            found[counter.name] = grown
            self._last[counter.name] = now
        return found


def counters_of(device: torch.device, devices: int = 1) -> list[Counter]:
    """The counters of this machine that belong to a run on `device`.

    Args:
        devices: how many GPUs the run uses; more than one are the machine's first ones.
    """
    return [*processor_counters(), *(gpu_counters(device, devices) if device.type == "cuda" else ())]


def processor_counters(folder: Path | None = None) -> list[Counter]:
    """The counters of processor packages below `folder`, POWERCAP by default. Those of a package's parts are left out."""
    found = []
    for place in sorted((folder or POWERCAP).glob("intel-rapl:*")):  # AMD's have this name too
        if place.name.count(":") != 1:
            continue
        try:
            name = (place / "name").read_text().strip()
            largest = int((place / "max_energy_range_uj").read_text()) / 1e6
        except (OSError, ValueError) as error:
            log.debug("The energy counter %s cannot be used: %s.", place, error)
            continue
        if name.startswith("package"):
            found.append(Counter(f"processor {name}", _reader(place / "energy_uj"), largest))
    return found


def _reader(file: Path) -> Callable[[], float]:
    def read() -> float:
        try:
            return int(file.read_text()) / 1e6
        except ValueError as error:
            raise OSError(f"{file} holds no number") from error

    return read


def gpu_counters(device: torch.device, devices: int = 1) -> list[Counter]:
    """The counters of NVIDIA GPUs; none where the package pynvml is missing or the driver does not answer."""
    try:
        nvml: Any = importlib.import_module("pynvml")
        nvml.nvmlInit()
    except Exception as error:  # noqa: BLE001 - NVML's errors are of its own class; without it nothing is measured
        log.debug("The energy of the GPU is not measured: %s.", error)
        return []
    current = torch.cuda.current_device() if device.index is None else device.index
    found = []
    for index in [current] if devices == 1 else range(min(devices, torch.cuda.device_count())):
        facts = torch.cuda.get_device_properties(index)
        try:
            # By its id: NVML counts all GPUs of the machine, torch those in CUDA_VISIBLE_DEVICES.
            handle = nvml.nvmlDeviceGetHandleByUUID(f"GPU-{facts.uuid}")
        except Exception as error:  # noqa: BLE001 - see above
            log.debug("The energy of GPU %d is not measured: %s.", index, error)
            continue
        found.append(Counter(f"GPU {index} ({facts.name})", _gpu_reader(nvml, handle)))
    return found


def _gpu_reader(nvml: Any, handle: Any) -> Callable[[], float]:
    def read() -> float:
        try:
            return float(nvml.nvmlDeviceGetTotalEnergyConsumption(handle)) / 1000
        except Exception as error:  # NVMLError is no OSError
            raise OSError(f"NVML says {error}") from error

    return read
