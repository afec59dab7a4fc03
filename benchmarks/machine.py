"""What was measured on: processor or GPU, versions, peak speeds; and how much memory a process takes."""

from __future__ import annotations

import importlib.metadata
import platform
import re
import resource
import sys
from pathlib import Path
from typing import Any

MIB = 1 << 20

_PACKAGES = ("torch", "transformers", "pytorch-lightning", "accelerate", "datasets", "tokenizers")

#: Dense peak in TFLOP/s by product name and format, from NVIDIA's data sheets (without sparsity; fp32 without TF32, as
#: torch multiplies by default). Where a card is not listed no MFU is stated, unless its peak is given by hand.
PEAK_TFLOPS: dict[str, dict[str, float]] = {
    r"A100": {"bf16": 312, "32": 19.5},
    r"H100 PCIe": {"bf16": 756, "32": 51},
    r"H100 80GB HBM3|H100 SXM|H200": {"bf16": 989, "32": 67},
    r"L40S": {"bf16": 362, "32": 91.6},
    r"\bL4\b": {"bf16": 121, "32": 30.3},
    r"T4": {"32": 8.1},
    r"V100": {"32": 15.7},
}


def peak_tflops(name: str, precision: str) -> float | None:
    """The listed peak of the card called `name`, or None."""
    for pattern, peaks in PEAK_TFLOPS.items():
        if re.search(pattern, name):
            return peaks.get(precision)
    return None


def device_name(device: str) -> str:
    """The GPU's or processor's product name."""
    if device == "cuda":
        import torch

        return torch.cuda.get_device_name()
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
    except OSError:  # not Linux
        found = None
    return found[1].strip() if found else platform.processor() or platform.machine()


def facts(device: str) -> dict[str, str] | None:
    """What a run needs to know and to tell: `about`, one line of device, threads and versions; `default_precision`, what
    this engine's precision="auto" means there. None when the device is not there."""
    import torch

    from utils.environment import detect_device
    from utils.training.engine.hardware.precision import resolve_precision

    if device == "cuda" and not torch.cuda.is_available():
        return None
    versions = []
    for package in _PACKAGES:
        try:
            versions.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            versions.append(f"{package} not installed")
    threads = f"{torch.get_num_threads()} CPU threads"
    about = f"{device_name(device)}, {threads}, Python {platform.python_version()}, {', '.join(versions)}"
    return {"about": about, "default_precision": resolve_precision("auto", detect_device()).compute}


def synchronize(device: str) -> None:
    """Wait until the device has done what it was given."""
    if device == "cuda":
        import torch

        torch.cuda.synchronize()


def flops_per_token(model: Any, layers: int, width: int, length: int) -> float:
    """Floating-point operations of forward and backward for one token: 6 N + 12 L H Q T.

    Chowdhery et al. (PaLM), arXiv 2204.02311, appendix B: L layers of H heads of dimension Q (H Q = width), T positions;
    causal attention is counted in full, recomputation is not. N: parameters that are multiplied, so without the tables of
    token and position embeddings; a table that also is the output layer is multiplied once and counts once.
    """
    from torch import nn

    looked_up = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    multiplied = {id(m.weight) for m in model.modules() if isinstance(m, nn.Linear)}
    count = sum(p.numel() for p in model.parameters() if id(p) not in looked_up - multiplied)
    return 6.0 * count + 12.0 * layers * width * length


class MemoryMeter:
    """Peak memory of this process above what it holds when the meter is made, in MiB.

    CPU: resident memory. GPU: what torch allocated there. Files that are mapped can be dropped by the system at any time
    and are not counted.
    """

    def __init__(self, device: str) -> None:
        self._device = device
        if device == "cuda":
            import torch

            torch.cuda.reset_peak_memory_stats()
            self._start = torch.cuda.memory_allocated() / MIB
            return
        _reset_peak()
        self._start = _status_mib("VmRSS") - _status_mib("RssFile") if _LINUX else _peak_rusage_mib()

    def peak_mib(self) -> float:
        """Peak since the start."""
        if self._device == "cuda":
            import torch

            return torch.cuda.max_memory_allocated() / MIB - self._start
        peak = _status_mib("VmHWM") - _status_mib("RssFile") if _LINUX else _peak_rusage_mib()
        return peak - self._start


_LINUX = sys.platform == "linux"


def _reset_peak() -> None:
    """Forget the peak of imports, where the system lets us (proc(5), clear_refs); else it counts if training stays below it."""
    if _LINUX:
        try:
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        except OSError:
            return


def _status_mib(field: str) -> float:
    # Not getrusage: on Linux a child's ru_maxrss begins with the memory of the process that started it.
    found = re.search(rf"^{field}:\s*(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"), re.MULTILINE)
    return int(found[1]) / 1024 if found else 0.0


def _peak_rusage_mib() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / MIB if sys.platform == "darwin" else peak / 1024
