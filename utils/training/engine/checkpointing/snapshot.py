"""A copy of a checkpoint's content in main memory, so that training can continue while the copy is written."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from utils.environment import free_memory_bytes
from utils.errors import first_line

# Where memory is copied storage by storage; elsewhere tensor by tensor.
_STORAGES_ON = ("cpu", "cuda")

# Values that hold no tensors: the random state alone has some 600 numbers.
_ATOMS = frozenset({type(None), bool, int, float, str, bytes})

Key = tuple[str, int, int]


class NoRoomError(Exception):
    """There is no room for a copy; says what is needed and free."""


class SnapshotMemory:
    """Main memory for one snapshot at a time; the next one takes the same memory again.

    Memory that is new costs several times what the copy itself does (benchmarks/RESULTS.md, "Checkpoints"), so it is kept.
    """

    def __init__(self) -> None:
        self._kept: list[Tensor] = []

    def take(self, payload: dict[str, Any]) -> dict[str, Any]:
        """`payload` as it is now, on the CPU. What an earlier call returned is overwritten.

        Tensors that share memory are copied once and share it in the copy too. Dicts (with their attributes: torch keeps
        `_metadata` on a state_dict), lists, tuples, sets and bytearrays are copied; other objects are passed on as they are.
        Raises:
            NoRoomError: nothing was copied.
        """
        sources = {_key(tensor): tensor for tensor in _tensors(payload) if _by_storage(tensor)}
        targets = self._allocated([key[2] for key in sources])
        self._kept = targets
        copies = dict(zip(sources, targets, strict=True))
        with torch.no_grad():
            for key, tensor in sources.items():
                copies[key].copy_(_bytes(tensor))
            made: dict[str, Any] = _copied(payload, copies, {})
            return made

    def _allocated(self, sizes: list[int]) -> list[Tensor]:
        """A buffer for each size in bytes. Raises `NoRoomError`."""
        kept: dict[int, list[Tensor]] = {}
        for buffer in self._kept:
            kept.setdefault(buffer.numel(), []).append(buffer)
        found = [kept[size].pop(0) if kept.get(size) else None for size in sizes]
        needed = sum(size for size, buffer in zip(sizes, found, strict=True) if buffer is None)
        free = free_memory_bytes("cpu")
        # Twice: the first checkpoint of a run is read back as a whole.
        if needed and free is not None and free < 2 * needed:
            raise NoRoomError(f"a copy needs {2 * needed:,} bytes of memory and {free:,} are free")
        try:
            pairs = zip(sizes, found, strict=True)
            return [torch.empty(size, dtype=torch.uint8) if buffer is None else buffer for size, buffer in pairs]
        except RuntimeError as error:  # what torch makes of a refused allocation
            raise NoRoomError(f"a copy needs {needed:,} bytes of memory: {first_line(error)}") from None


def storage_bytes(payload: dict[str, Any]) -> int:
    """Bytes that the tensors in `payload` occupy; shared memory counts once."""
    return sum(size for _, _, size in {_key(tensor) for tensor in _tensors(payload) if _by_storage(tensor)})


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for entry in value.values():
            if type(entry) not in _ATOMS:
                yield from _tensors(entry)
    elif isinstance(value, (list, tuple)):
        for entry in value:
            if type(entry) not in _ATOMS:
                yield from _tensors(entry)


def _by_storage(tensor: Tensor) -> bool:
    """Whether a copy of the memory and the geometry is the tensor: not so for subclasses, sparse and conjugated ones."""
    plain = type(tensor) in (Tensor, nn.Parameter) and tensor.layout is torch.strided and not tensor.is_quantized
    return plain and not tensor.is_conj() and not tensor.is_neg() and tensor.device.type in _STORAGES_ON


def _key(tensor: Tensor) -> Key:
    storage = tensor.untyped_storage()
    return str(storage.device), storage.data_ptr(), storage.nbytes()


def _bytes(tensor: Tensor) -> Tensor:
    """The tensor's whole memory, uint8, one dimension."""
    return torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(tensor.untyped_storage())


def _copied(value: Any, copies: dict[Key, Tensor], memo: dict[int, Any]) -> Any:
    """`value` with its tensors replaced. `memo` holds what is copied already, by the original's id: one object stays one."""
    if type(value) in _ATOMS:
        return value
    if id(value) in memo:
        return memo[id(value)]
    made: Any = value
    if isinstance(value, Tensor):
        made = _copied_tensor(value, copies)
    elif type(value) in (dict, OrderedDict):
        made = copy.copy(value)
        for name, entry in value.items():
            made[name] = _copied(entry, copies, memo)
    elif type(value) in (list, tuple):
        made = type(value)(_copied(entry, copies, memo) for entry in value)
    elif type(value) in (set, bytearray):
        made = copy.copy(value)
    else:
        return value
    memo[id(value)] = made
    return made


def _copied_tensor(tensor: Tensor, copies: dict[Key, Tensor]) -> Tensor:
    if not _by_storage(tensor):
        return tensor.detach().to("cpu", copy=True)
    memory = copies[_key(tensor)].untyped_storage()
    made = torch.empty(0, dtype=tensor.dtype).set_(memory, tensor.storage_offset(), tensor.shape, tensor.stride())
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(made, tensor.requires_grad)
    return made.requires_grad_(tensor.requires_grad)
