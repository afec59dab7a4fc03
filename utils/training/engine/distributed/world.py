"""Several processes that train together: who they are, and the few words that they exchange.

torchrun starts the processes and tells each its place in the environment; `join` makes them a group. One process alone gets a
`World` that answers at once and costs nothing, so that nobody else asks how many there are.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from utils.environment import front_end
from utils.errors import ConfigError, OutOfMemoryError, PeerProcessError, Problem, first_line
from utils.training.engine.hardware.memory import is_out_of_memory
from utils.training.training_config import TrainingConfig

log = logging.getLogger("trainbook.engine")

T = TypeVar("T")

ALLOW_IN_NOTEBOOK = "TRAINBOOK_ALLOW_DISTRIBUTED_NOTEBOOK"

# A process that ends closes its sockets, which the others notice at once. This is for one that lives and does not answer:
# longer than writing a large checkpoint takes, shorter than a night.
_TIMEOUT = timedelta(minutes=10)
# How long a process that failed waits to hear that all others failed as well, in the same step.
_PATIENCE = timedelta(seconds=3)
# Gradients travel in pieces of this size, as those of torch's DistributedDataParallel do: one piece is copied while another
# one is on its way.
_BUCKET_BYTES = 25 * 1024 * 1024


@dataclass(frozen=True)
class Launch:
    """This process's place among those that were started together.

    Attributes:
        rank: number of this process, from 0; size: of how many.
        local_rank, local_size: the same among those of this host.
    """

    rank: int
    size: int
    local_rank: int
    local_size: int

    @property
    def num_nodes(self) -> int:
        """Hosts that train together."""
        return self.size // self.local_size

    @classmethod
    def from_environment(cls) -> Launch | None:
        """Read RANK, WORLD_SIZE, LOCAL_RANK and LOCAL_WORLD_SIZE as torchrun (or `fabric run`) sets them; None for one
        process.

        Raises:
            ConfigError: one of them is no number.
        """
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
        said = {name: os.environ[name] for name in names if name in os.environ}
        if "RANK" not in said or "WORLD_SIZE" not in said:
            return None
        if strange := [f"{name}={value!r}" for name, value in said.items() if not value.isdecimal()]:
            raise ConfigError(
                f"the environment holds {', '.join(strange)}, which must be whole numbers. torchrun sets them; to train with "
                "one process, unset RANK and WORLD_SIZE."
            )
        rank, size = int(said["RANK"]), int(said["WORLD_SIZE"])
        launch = cls(rank, size, int(said.get("LOCAL_RANK", rank)), int(said.get("LOCAL_WORLD_SIZE", size)))
        return launch if size > 1 else None


def check_settings(config: TrainingConfig) -> None:
    """`check_launch` for a Trainer that is being made: in a notebook, `train_live` may still start processes of this host."""
    allowed = os.environ.get(ALLOW_IN_NOTEBOOK) == "1"
    if front_end() == "plain" or allowed or config.num_nodes > 1 or Launch.from_environment() is not None:
        check_launch(config)


def check_launch(config: TrainingConfig) -> list[str]:
    """Whether this process can train as `strategy`, `devices` and `num_nodes` say. Starts nothing.

    Returns:
        sentences that the user should know.
    Raises:
        ConfigError: several devices are asked for and this is a notebook, or was not started by torchrun, or by it with other
            numbers; says the command to use.
    """
    launch = Launch.from_environment()
    allowed = os.environ.get(ALLOW_IN_NOTEBOOK) == "1"
    wanted = _wanted(config)
    if front_end() != "plain" and not allowed and (wanted or launch is not None):
        asked = ", ".join(wanted) or f"WORLD_SIZE={os.environ['WORLD_SIZE']} in the environment"
        raise ConfigError(
            f"{asked}: a notebook's kernel is one process. On this host, `results = await widgets.train_live(trainer, data)` "
            f"starts the others. Or write the job to a file and start it from a terminal:\n  {_command(config)}\nTo train "
            "here on one device, leave strategy, devices and num_nodes as they are by default. "
            f"{ALLOW_IN_NOTEBOOK}=1 in the environment lifts this check."
        )
    if launch is not None:
        return _check_numbers(config, launch)
    if config.devices in ("auto", 1) and config.num_nodes == 1:
        alone = f"strategy={config.strategy!r}: there is one process, so nothing is shared. Several: {_command(config)}"
        return [alone] if wanted else []
    if front_end() != "plain":  # it was allowed above
        return [f"{', '.join(wanted)}: this notebook has one process, so it trains on one device."]
    raise ConfigError(
        f"{', '.join(wanted)}: one process for each device is needed, and this one was started alone. Start it with:\n"
        f"  {_command(config)}\nor set devices='auto' and num_nodes=1 to train on one device."
    )


def _wanted(config: TrainingConfig) -> list[str]:
    """The settings that ask for several processes, as text."""
    asked = {
        "strategy": config.strategy != "auto", "devices": config.devices not in ("auto", 1), "num_nodes": config.num_nodes > 1,
    }  # fmt: skip
    return [f"{name}={getattr(config, name)!r}" for name, is_so in asked.items() if is_so]


def _command(config: TrainingConfig) -> str:
    devices = config.devices if config.devices != "auto" else max(2, torch.cuda.device_count())
    hosts = (
        f"--nnodes={config.num_nodes} --rdzv_backend=c10d --rdzv_endpoint=HOST:29500 " if config.num_nodes > 1 else ""
    )
    return f"torchrun {hosts}--nproc_per_node={devices} cli/run_training.py --config job.yaml"


def _check_numbers(config: TrainingConfig, launch: Launch) -> list[str]:
    problems = []
    if config.devices not in ("auto", launch.local_size):
        problems.append(
            Problem(
                "devices", f"got {config.devices}, but {launch.local_size} processes were started on this host", "auto"
            )
        )
    if config.num_nodes not in (1, launch.num_nodes):
        problems.append(
            Problem("num_nodes", f"got {config.num_nodes}, but processes were started on {launch.num_nodes}", 1)
        )
    if problems:
        raise ConfigError.from_problems(f"TrainingConfig; for this one, start {_command(config)}", problems)
    hosts = f" on {launch.num_nodes} hosts" if launch.num_nodes > 1 else ""
    name = "ddp" if config.strategy == "auto" else config.strategy
    return [f"Trained by {launch.size} processes{hosts} together (strategy {name}), as the environment says."]


class World:
    """All processes of a training, as seen by one of them. This class: a single process.

    What is said here is collective: every process must come to the same calls in the same order.

    Attributes:
        rank: this process's number, 0 for the one that writes; size: how many there are.
    """

    rank = 0
    size = 1

    @property
    def is_main(self) -> bool:
        """Whether this process keeps the run's folder, and talks to people and services."""
        return self.rank == 0

    def seed(self, seed: int) -> int:
        """The seed of this process's own randomness (dropout): the main process has `seed` itself, the others their own."""
        return seed if self.is_main else int(np.random.SeedSequence([seed, 0, self.rank]).generate_state(1)[0])

    def collective(self) -> contextlib.AbstractContextManager[None]:
        """Around a collective operation: a lost peer becomes an error that says why it is gone."""
        return contextlib.nullcontext()

    def sum_(self, tensor: Tensor) -> Tensor:
        """Add up a tensor over the processes, in place."""
        return tensor

    def totals(self, *numbers: float) -> list[float]:
        """Sums of numbers of the host over the processes: one small message, for which no accelerator is waited for."""
        return list(numbers)

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any process."""
        return self.totals(flag)[0] > 0

    def broadcast(self, value: T) -> T:
        """The main process's value, on all of them."""
        return value

    def gather(self, value: T) -> list[T]:
        """Everybody's value, by rank, on every process."""
        return [value]

    def barrier(self) -> None:
        """Wait until every process is here."""

    def from_main(self, make: Callable[[], T]) -> T:
        """Call `make` on the main process only and broadcast its result; an exception in it ends all processes."""
        return make()

    def check_same(self, **values: Any) -> None:
        """Raises `ConfigError` that names what differs between the processes."""

    def share(self, tensors: Sequence[Tensor]) -> None:
        """Give every process the main one's values of `tensors`, in place."""

    def sum_gradients(self, parameters: Sequence[Tensor]) -> None:
        """Add up the gradients over the processes; a parameter without one anywhere stays so."""

    def report_failure(self, error: BaseException, step: int) -> bool:
        """Tell the others that this process failed, and how.

        Returns:
            whether all failed in the same step each by itself (as when a callback raises), so that they can still talk.
        """
        return True

    def leave(self) -> None:
        """Let the others go on without this process, which they cannot: they end, with a message."""


class ProcessGroup(World):
    """The World of several processes, over torch.distributed's default group."""

    def __init__(self) -> None:
        import torch.distributed as dist

        self._dist = dist
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self._reported: tuple[BaseException, bool] | None = None
        self._failures = dist.PrefixStore("trainbook", _store())  # type: ignore[attr-defined]

    @contextlib.contextmanager
    def collective(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise OutOfMemoryError(
                    f"there is no room to exchange numbers with the other processes: {first_line(error)}. Set a "
                    "smaller batch_size, or gradient_checkpointing=True."
                ) from error
            if not _is_of_connection(error):
                raise
            raise PeerProcessError(
                f"process {self.rank} of {self.size} stopped, because another one of this training did not answer: "
                f"{self._known_failure() or 'it ended without a word (killed, or out of memory?)'}"
            ) from error

    def _known_failure(self) -> str | None:
        try:
            if not self._failures.check(["first"]):
                return None
            return self._failures.get("first").decode()
        except RuntimeError:  # the store went with the process that held it
            return None

    def sum_(self, tensor: Tensor) -> Tensor:
        with self.collective():
            self._dist.all_reduce(tensor)
        return tensor

    def totals(self, *numbers: float) -> list[float]:
        return self.sum_(torch.tensor(numbers, dtype=torch.float64)).tolist()

    def broadcast(self, value: T) -> T:
        box: list[Any] = [value]
        with self.collective():
            self._dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
        return box[0]  # type: ignore[no-any-return]

    def gather(self, value: T) -> list[T]:
        boxes: list[Any] = [None] * self.size
        # Not all_gather_object: over NCCL it would send from the accelerator.
        for rank in range(self.size):
            box: list[Any] = [value if rank == self.rank else None]
            with self.collective():
                self._dist.broadcast_object_list(box, src=rank, device=torch.device("cpu"))
            boxes[rank] = box[0]
        return boxes

    def barrier(self) -> None:
        self.totals(0.0)

    def from_main(self, make: Callable[[], T]) -> T:
        value: T | None = None
        error: Exception | None = None
        if self.is_main:
            try:
                value = make()
            except Exception as raised:  # noqa: BLE001 - handed to the other processes, and raised below
                error = raised
        value, reason = self.broadcast((value, None if error is None else f"{type(error).__name__}: {error}"))
        if error is not None:
            raise error
        if reason is not None:
            raise PeerProcessError(f"process {self.rank} of {self.size} stopped with the first one: {reason}")
        return value  # type: ignore[return-value]

    def check_same(self, **values: Any) -> None:
        everybodys = self.gather(values)
        different = [name for name in values if any(other.get(name) != everybodys[0][name] for other in everybodys)]
        if different:
            raise ConfigError(
                f"the processes of this training were given different things: {', '.join(different)}. Each must run the same "
                "script with the same settings and data."
            )

    def share(self, tensors: Sequence[Tensor]) -> None:
        with torch.no_grad(), self.collective():
            for tensor in tensors:
                self._dist.broadcast(tensor.data, src=0)

    def sum_gradients(self, parameters: Sequence[Tensor]) -> None:
        marks = torch.tensor([parameter.grad is not None for parameter in parameters], dtype=torch.float32)
        all_here = bool(marks.all())
        marks = marks.to(parameters[0].device)
        sent = []
        with self.collective():
            for bucket in _buckets(parameters):
                flat = torch.cat([_gradient(parameter).reshape(-1) for parameter in bucket])
                sent.append((bucket, flat, self._dist.all_reduce(flat, async_op=True)))
            marked = self._dist.all_reduce(marks, async_op=True)
            for _, _, work in sent:
                work.wait()
            marked.wait()
        for bucket, flat, _ in sent:
            pieces = torch.split(flat, [parameter.numel() for parameter in bucket])
            for parameter, piece in zip(bucket, pieces, strict=True):
                parameter.grad = piece.view_as(parameter)
        if not all_here:  # an unused parameter, or no micro-batch for this process; else nothing needs to be looked at
            for parameter, count in zip(parameters, marks.tolist(), strict=True):
                if count == 0:
                    parameter.grad = None

    def report_failure(self, error: BaseException, step: int) -> bool:
        if self._reported is None or self._reported[0] is not error:
            self._reported = error, not isinstance(error, PeerProcessError) and self._all_failed(error, step)
        return self._reported[1]

    def _all_failed(self, error: BaseException, step: int) -> bool:
        try:
            self._failures.compare_set("first", "", f"process {self.rank}: {type(error).__name__}: {error}")
            self._failures.set(f"failed/{step}/{self.rank}", "")
            self._failures.wait([f"failed/{step}/{rank}" for rank in range(self.size)], _PATIENCE)
        except RuntimeError:  # not everybody failed, or the store is gone
            return False
        return True

    def leave(self) -> None:
        _leave_group()


def _is_of_connection(error: RuntimeError) -> bool:
    """Whether an error comes from the exchange with other processes: gloo's is a plain RuntimeError."""
    from torch.distributed import DistError

    return isinstance(error, DistError) or any(name in str(error).lower() for name in ("gloo", "nccl", "process group"))


def _buckets(parameters: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """The parameters in order, in lists of one dtype and about `_BUCKET_BYTES`."""
    bucket: list[Tensor] = []
    size = 0
    for parameter in parameters:
        if bucket and (size >= _BUCKET_BYTES or parameter.dtype != bucket[0].dtype):
            yield bucket
            bucket, size = [], 0
        bucket.append(parameter)
        size += parameter.numel() * parameter.element_size()
    if bucket:
        yield bucket


def _gradient(parameter: Tensor) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


def _store() -> Any:
    """A connection of our own to the store in which the processes found each other: torch's is not public."""
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    return TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False, timeout=_TIMEOUT)


def _leave_group() -> None:
    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()


def _leave_at_exit() -> None:
    """End the group and its threads while Python is still there: one that asks for it later ends the process with an abort.

    Sharded layers hold the group too, in cycles that only the collector finds.
    """
    gc.collect()
    _leave_group()
    gc.collect()


def join(config: TrainingConfig, device_kind: str) -> World:
    """The processes that were started together as one group; a process alone gets its `World` at once.

    Args:
        device_kind: "cuda", "mps" or "cpu".
    Raises:
        ConfigError: this device cannot train in several processes, or there are fewer of them than processes.
        PeerProcessError: the others did not come.
    """
    launch = Launch.from_environment()
    if launch is None:
        return World()
    import torch.distributed as dist

    if dist.is_initialized():
        return ProcessGroup()
    if device_kind == "mps":
        raise ConfigError(
            "several processes cannot share an Apple GPU. Set TRAINBOOK_DEVICE=cpu, or start one process."
        )
    backend = "gloo"
    if device_kind == "cuda":
        if launch.local_size > torch.cuda.device_count():
            raise ConfigError(
                f"{launch.local_size} processes were started on this host, which has {torch.cuda.device_count()} GPUs. Start "
                "at most one for each, or set TRAINBOOK_DEVICE=cpu."
            )
        torch.cuda.set_device(launch.local_rank)
        backend = "cpu:gloo,cuda:nccl"  # host numbers are exchanged without waiting for the GPU
    atexit.register(_leave_at_exit)
    try:
        dist.init_process_group(backend, rank=launch.rank, world_size=launch.size, timeout=_TIMEOUT)
    except (RuntimeError, ValueError) as error:
        raise PeerProcessError(
            f"process {launch.rank} of {launch.size} could not find the others: {error}. torchrun starts them together."
        ) from error
    return ProcessGroup()
