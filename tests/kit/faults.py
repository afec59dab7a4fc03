"""Faults: damaged files, hostile pickles, signals that arrive within a chosen phase of training."""

from __future__ import annotations

import os
import pickle
import signal
import struct
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from utils.training import Callback


def truncate(path: Path, share: float) -> None:
    """Cut a file to this share of its length."""
    os.truncate(path, int(path.stat().st_size * share))


def flip_bit(path: Path, offset: int, bit: int = 0) -> None:
    """Turn one bit over."""
    with open(path, "r+b") as file:
        file.seek(offset)
        (byte,) = file.read(1)
        file.seek(offset)
        file.write(bytes([byte ^ 1 << bit]))


def record_data(path: Path) -> dict[str, tuple[int, int]]:
    """Where a zip file's records have their data: {name: (offset, length)}."""
    spans = {}
    raw = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            name_length, extra_length = struct.unpack_from("<HH", raw, info.header_offset + 26)
            spans[info.filename] = (info.header_offset + 30 + name_length + extra_length, info.file_size)
    return spans


def swap_pickle(path: Path, content: bytes) -> None:
    """Make `content` the pickle of a file that torch.save wrote; everything else, checksums included, is in order."""
    with zipfile.ZipFile(path) as archive:
        records = [(info, archive.read(info)) for info in archive.infolist()]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for info, data in records:
            archive.writestr(info.filename, content if info.filename.endswith("/data.pkl") else data)


class _Reduced:
    """Pickles as a call of `function`."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self._call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self._call


def _text(value: str) -> bytes:
    """The opcode that pushes a str."""
    raw = value.encode()
    return pickle.BINUNICODE + struct.pack("<I", len(raw)) + raw


def hostile_pickles(canary: Path) -> dict[str, bytes]:
    """Pickles that make the folder `canary` when they are loaded without care, by the trick they use."""
    start, path = pickle.PROTO + b"\x04", _text(str(canary))
    call = path + pickle.TUPLE1 + pickle.REDUCE
    direct = _Reduced(os.mkdir, str(canary))
    partial = b"cfunctools\npartial\n" + b"cbuiltins\nlen\n" + pickle.TUPLE1 + pickle.REDUCE
    state = pickle.MARK + b"cposix\nmkdir\n" + path + pickle.TUPLE1 + pickle.EMPTY_DICT + pickle.NONE + pickle.TUPLE
    inner = pickle.dumps(direct, protocol=2)
    return {
        "reduce": pickle.dumps(direct, protocol=2),
        "nested": pickle.dumps({"format": 1, "model": {}, "rng": [({"words": [1, (2, direct)]},)]}, protocol=2),
        # functools.partial takes its function from the state that BUILD hands it.
        "build": start + partial + state + pickle.BUILD + pickle.EMPTY_TUPLE + pickle.REDUCE + b".",
        # The names lie in the memo, far from the opcode that uses them.
        "stack_global_memo": (
            start + _text("mkdir") + pickle.MEMOIZE + _text("posix") + pickle.MEMOIZE + pickle.POP + pickle.POP
            + pickle.BINGET + b"\x01" + pickle.BINGET + b"\x00" + pickle.STACK_GLOBAL + call + b"."
        ),
        # Reaches a module through one that is trusted.
        "dotted_name": start + _text("torch.serialization") + _text("os.mkdir") + pickle.STACK_GLOBAL + call + b".",
        "getattr": (
            start + b"cbuiltins\ngetattr\n" + b"cbuiltins\n__import__\n" + _text("posix") + pickle.TUPLE1 + pickle.REDUCE
            + _text("mkdir") + pickle.TUPLE2 + pickle.REDUCE + call + b"."
        ),
        "inst": b"(" + pickle.UNICODE + str(canary).encode() + b"\n" + pickle.INST + b"posix\nmkdir\n.",
        # A pickle within a pickle, opened by something that unpickles.
        "pickle_in_pickle": (
            start + b"c_pickle\nloads\n" + pickle.BINBYTES + struct.pack("<I", len(inner)) + inner + pickle.TUPLE1 + pickle.REDUCE + b"."
        ),
    }  # fmt: skip


def send_to_self(*numbers: int) -> None:
    """Real signals to this process; Python's handlers have run when it returns."""
    for number in numbers:
        os.kill(os.getpid(), number)


class SignalAt(Callback):
    """Sends signals at the n-th call of one event (from 1)."""

    def __init__(self, event: str, n: int = 1, numbers: tuple[int, ...] = (signal.SIGINT,)) -> None:
        self._left, self._numbers = n, numbers
        setattr(self, event, self._count)

    def _count(self, *_: Any, **__: Any) -> None:
        self._left -= 1
        if self._left == 0:
            send_to_self(*self._numbers)


@contextmanager
def signal_in_forward(model: nn.Module, n: int, *numbers: int, training: bool = True) -> Iterator[None]:
    """Signals within the n-th forward pass in training (or evaluation) mode, between two of the model's layers."""
    left = n
    module = list(model.children())[-1]  # reached in the middle of the model's own forward

    def count(owner: nn.Module, _: Any) -> None:
        nonlocal left
        left -= owner.training == training
        if left == 0:
            left = -1
            send_to_self(*numbers)

    handle = module.register_forward_pre_hook(count)
    try:
        yield
    finally:
        handle.remove()


class SignalInUpdate(TorchDispatchMode):
    """Signals right before the n-th call of the kernel that changes parameters: AdamW has one for each parameter group."""

    def __init__(self, n: int, *numbers: int) -> None:
        super().__init__()
        self._left, self._numbers = n, numbers

    def __torch_dispatch__(self, operation: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
        if "_fused_adamw_" in str(operation):
            self._left -= 1
            if self._left == 0:
                send_to_self(*self._numbers)
        return operation(*arguments, **(keywords or {}))


@contextmanager
def signal_in_save(n: int, *numbers: int, suffix: str = ".pt") -> Iterator[None]:
    """Signals while the n-th file with this suffix is being committed: it is written, and has not its name yet."""
    left, sync = n, os.fsync

    def count(descriptor: int) -> None:
        nonlocal left
        name = os.readlink(f"/proc/self/fd/{descriptor}")
        if f"{suffix}." in os.path.basename(name):
            left -= 1
            if left == 0:
                send_to_self(*numbers)
        sync(descriptor)

    os.fsync = count
    try:
        yield
    finally:
        os.fsync = sync
