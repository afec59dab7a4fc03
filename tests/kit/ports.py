"""Ports of this machine that no other process takes before the server that they are meant for."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def held_port() -> Iterator[int]:
    """A port of 127.0.0.1 that is kept free for a server started inside the block.

    The port stays bound, so the system gives it to nobody else. With SO_REUSEADDR on both sockets a server (libuv, tornado and
    asyncio set it) may still bind and listen: only a second *listening* socket would be refused.
    """
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("127.0.0.1", 0))
        yield int(holder.getsockname()[1])
