"""Detect front end, device and packages. Nothing here changes anything."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import sys
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, get_args

from utils.errors import ConfigError

UiMode = Literal["widget", "html", "text", "none"]

# Decides whether cuBLAS repeats its results to the last bit.
CUBLAS_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"

_PACKAGES = ("torch", "transformers", "tokenizers", "pytorch-lightning", "datasets", "numpy", "safetensors", "pydantic")


def front_end() -> str:
    """ "colab", "notebook" (any Jupyter kernel) or "plain"."""
    if "google.colab" in sys.modules:
        return "colab"
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return "notebook" if shell is not None and hasattr(shell, "kernel") else "plain"


def ui_mode(ui: str | None = None) -> UiMode:
    """Resolve how to display: live widgets, static HTML, text, or nothing.

    Args:
        ui: "auto", "widget", "html", "text" or "none"; None: what the environment variable TRAINBOOK_UI says, else "auto".
            auto: text outside a notebook's kernel, html where an automatic test runs (CI, pytest), else widgets, which
            cost nothing where nobody looks.
    Returns:
        Outside a kernel "widget" and "html" become "text": nothing there could show them.
    Raises:
        ConfigError: another word; says which there are.
    """
    asked = ui if ui is not None else os.environ.get("TRAINBOOK_UI") or "auto"
    if asked not in ("auto", *get_args(UiMode)):
        source = "ui" if ui is not None else "TRAINBOOK_UI"
        raise ConfigError(f"{source} is one of auto, {', '.join(get_args(UiMode))}; got {asked!r}.")
    if asked == "none":
        return "none"
    if front_end() == "plain" or asked == "text":
        return "text"
    if asked == "auto":
        return "html" if os.environ.get("CI") or os.environ.get("PYTEST_CURRENT_TEST") else "widget"
    return "html" if asked == "html" else "widget"


@dataclass(frozen=True)
class Device:
    """The device that training uses.

    Attributes:
        kind: "cuda", "mps" or "cpu", as torch names it.
        name: the product's name.
        has_bf16: whether bf16 arithmetic is faster than fp32 there, by the hardware's own word.
        notice: a sentence when a better device is there and cannot be used, else None.
    """

    kind: str
    name: str
    has_bf16: bool
    notice: str | None = None


_NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")  # there while the kernel has a driver loaded
DEVICE_KINDS = ("auto", "cuda", "mps", "cpu")
_CHOSEN_DEVICE: ContextVar[str | None] = ContextVar("chosen_device", default=None)


def detect_device(wanted: str | None = None) -> Device:
    """The device to train on.

    Args:
        wanted: "cuda", "mps" or "cpu": that one; "auto": the first of them that is there. None: what `device_chosen` says
            around the call, else the environment variable TRAINBOOK_DEVICE, else "auto".
    Raises:
        ConfigError: another word, or a device that is not there; says what is.
    """
    wanted = _CHOSEN_DEVICE.get() if wanted is None else wanted
    asked = wanted if wanted is not None else os.environ.get("TRAINBOOK_DEVICE") or "auto"
    source = "device" if wanted is not None else "TRAINBOOK_DEVICE"
    if asked not in DEVICE_KINDS:
        raise ConfigError(f"{source} is one of {', '.join(DEVICE_KINDS)}; got {asked!r}.")
    present = _present_devices()
    if asked != "auto" and asked not in present:
        why = _why_no_cuda() if asked == "cuda" else None
        raise ConfigError(
            f"{source}={asked!r}: there is no such device here{f' ({why})' if why else ''}; present: {', '.join(present)}. "
            f"Use one of these, or 'auto'."
        )
    return _device(present[0] if asked == "auto" else asked, fallen_back=asked == "auto")


@contextlib.contextmanager
def device_chosen(kind: str | None) -> Iterator[None]:
    """Override `detect_device` in this thread inside the block: "cuda", "mps", "cpu" or "auto"; None: no override."""
    token = _CHOSEN_DEVICE.set(kind if kind is not None else _CHOSEN_DEVICE.get())
    try:
        yield
    finally:
        _CHOSEN_DEVICE.reset(token)


def _present_devices() -> list[str]:
    """Kinds of devices that torch can use here, the fastest first."""
    import torch

    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    return [kind for kind, usable in there.items() if usable]


def _device(kind: str, fallen_back: bool) -> Device:
    import torch

    if kind == "cuda":
        return Device("cuda", torch.cuda.get_device_name(), has_bf16("cuda"))
    if kind == "mps":
        return Device("mps", platform.processor() or "Apple GPU", False)
    why = _why_no_cuda() if fallen_back else None
    notice = f"Training uses the CPU, though {why}." if why else None
    return Device("cpu", platform.processor() or platform.machine(), has_bf16("cpu"), notice)


def _why_no_cuda() -> str | None:
    """Explain why torch cannot use this machine's NVIDIA GPU; None without such a GPU, or if it is hidden on purpose."""
    import torch

    if not _NVIDIA_DRIVER.exists() or os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return None
    if torch.version.cuda is None:
        return f"an NVIDIA driver is here: torch {torch.__version__} is a build without CUDA"
    return f"an NVIDIA driver is here: torch {torch.__version__} finds no GPU that it can use; see what nvidia-smi says"


def free_memory_bytes(kind: str, index: int | None = None) -> int | None:
    """Memory that a device of this kind has free; of a CPU what the system can give without swapping.

    Args:
        kind: "cuda", "cpu", … as torch names it; index: which of several.
    Returns:
        None where it is not known: other devices, and CPUs of systems other than Linux.
    """
    if kind == "cuda":
        import torch

        return int(torch.cuda.mem_get_info(index)[0])
    if kind != "cpu":
        return None
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    found = [line.split() for line in lines if line.startswith("MemAvailable:")]
    return int(found[0][1]) * 1024 if found else None


def used_memory_bytes(kind: str, index: int | None = None) -> int | None:
    """Memory that this process uses: of a GPU what torch has allocated for tensors, of a CPU the resident set.

    Args:
        kind: "cuda", "cpu", … as torch names it; index: which of several.
    Returns:
        None where it is not known: other devices, and CPUs of systems other than Linux.
    """
    if kind == "cuda":
        import torch

        return int(torch.cuda.memory_allocated(index))
    if kind != "cpu":
        return None
    try:
        pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
    except OSError:
        return None
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def has_bf16(kind: str) -> bool:
    """Whether a device of this kind multiplies bf16 matrices in hardware; emulated bf16 is slower than fp32.

    Args:
        kind: "cuda", "cpu", … as torch names it.
    """
    import torch

    if kind == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return kind == "cpu" and any(getattr(torch.cpu, probe, lambda: False)() for probe in probes)


def package_versions() -> dict[str, str]:
    """Versions of the packages that decide what a run computes; absent ones are left out."""
    return dict(_versions_in(tuple((entry, _modified(entry)) for entry in sys.path)))


def _modified(folder: str) -> int:
    """When something was last installed into `folder` or removed from it, in ns; 0 where there is no such folder."""
    try:
        return os.stat(folder).st_mtime_ns
    except OSError:
        return 0


@lru_cache(maxsize=4)
def _versions_in(folders: tuple[tuple[str, int], ...]) -> dict[str, str]:
    """The versions, read again only when a folder of `sys.path` has changed: reading takes 2 ms for each package."""
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def snapshot() -> dict[str, Any]:
    """Content of a run's `environment.json`: Python, system, packages, device, threads, determinism. No paths, and of
    the environment variables only cuBLAS's, which affects determinism."""
    import torch

    device = detect_device()
    return {
        "python": platform.python_version(),
        "system": platform.platform(),
        "machine": platform.machine(),
        "front_end": front_end(),
        "packages": package_versions(),
        "device": {"kind": device.kind, "name": device.name, "bf16": device.has_bf16},
        "threads": torch.get_num_threads(),
        "determinism": {
            "deterministic_algorithms": torch.are_deterministic_algorithms_enabled(),
            "cudnn_benchmark": torch.backends.cudnn.benchmark,
            CUBLAS_WORKSPACE: os.environ.get(CUBLAS_WORKSPACE),
        },
    }


def flat_environment(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The facts of a `snapshot` under dotted names, such as "packages.torch"."""
    found: dict[str, Any] = {}
    for name, value in facts.items():
        if isinstance(value, Mapping):
            found |= {f"{name}.{inner}": entry for inner, entry in flat_environment(value).items()}
        else:
            found[name] = value
    return found


def compare_environments(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Differences between two snapshots: dotted name -> (first's, second's); None where one does not have it."""
    one, other = flat_environment(first), flat_environment(second)
    return {name: (one.get(name), other.get(name)) for name in {**one, **other} if one.get(name) != other.get(name)}


def describe() -> str:
    """One line about this machine, for the first cell of a notebook."""
    facts = snapshot()
    packages = facts["packages"]
    versions = ", ".join(f"{name} {packages[name]}" for name in ("torch", "transformers") if name in packages)
    return f"Python {facts['python']}, {versions}; device: {facts['device']['kind']} ({facts['device']['name']})"
