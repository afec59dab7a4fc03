"""Several processes that train together, forked from the warmed interpreter: no launcher, so milliseconds to start."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

from tests.kit.crash import Child, Ended
from tests.kit.ports import held_port

# A deadlock becomes a failed test instead of a hung suite: the kernel ends the child. Longer than any loaded machine takes.
_DEADLINE_S = 600


def environment_of(rank: int, size: int, port: int) -> dict[str, str]:
    """What torchrun tells a process; gloo is kept to the loopback interface."""
    return {
        "RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1",
    }  # fmt: skip


def together(function: Callable[[int], Any], processes: int = 2) -> list[Ended]:
    """Run `function(rank)` in processes that can find each other; how each ended, by rank.

    Raises:
        AssertionError: one of them raised, with its traceback.
    """

    def run(rank: int, port: int) -> Callable[[], Any]:
        def child() -> Any:
            signal.alarm(_DEADLINE_S)
            os.environ.update(environment_of(rank, processes, port))
            return function(rank)

        return child

    with held_port() as port:
        children = [Child(run(rank, port)) for rank in range(processes)]
        return [child.join() for child in children]
