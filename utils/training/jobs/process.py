"""Identity of a process: host, process id and start time, so that a reused id is not taken for the process that had it."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

from utils.storage import host_name, process_is_alive

_PROC = Path("/proc")


@cache
def host() -> str:
    """This host, as far as process ids mean the same: name, boot and process-id namespace (containers may share a name)."""
    boot = _read(_PROC / "sys/kernel/random/boot_id").strip()[:8]
    try:
        namespace = os.readlink(_PROC / "self/ns/pid")
    except OSError:
        namespace = ""
    return "/".join(filter(None, (host_name(), boot, namespace.strip("pid:[]"))))


def identity(pid: int | None = None) -> str:
    """This process, or another one of this host: "host|pid|start time"."""
    pid = os.getpid() if pid is None else pid
    _, started = _status(pid)
    return f"{host()}|{pid}|{started}"


def is_gone(owner: str) -> bool:
    """Whether the process with this identity has certainly ended. False for other hosts, where it cannot be known."""
    where, _, rest = owner.rpartition("|")[0].rpartition("|")
    started = owner.rpartition("|")[2]
    if where != host() or not rest.isdecimal():
        return False
    pid = int(rest)
    if not process_is_alive(pid):
        return True
    state, starts = _status(pid)
    if not state:  # a system without /proc
        return False
    return state in "ZX" or starts != started  # a zombie has ended, and waits for its parent to notice


def children(pid: int) -> list[int]:
    """The processes that this one started, and those that they started; empty where the system has no /proc."""
    started: dict[int, list[int]] = {}
    for folder in _PROC.glob("[0-9]*"):
        fields = _read(folder / "stat").rpartition(")")[2].split()
        if len(fields) > 1:
            started.setdefault(int(fields[1]), []).append(int(folder.name))
    found, left = [], [pid]
    while left:
        below = started.get(left.pop(), [])
        found += below
        left += below
    return found


def shown(owner: str | None) -> str:
    """An identity as messages name it."""
    if not owner:
        return "no worker"
    where, pid = owner.split("|")[:2] if owner.count("|") == 2 else (owner, "")
    return f"process {pid} on {where.split('/')[0]}" if pid else owner


def _status(pid: int) -> tuple[str, str]:
    """State and start time (clock ticks since boot) of a process; empty where the system has no /proc."""
    # The program's name stands in parentheses and may hold any character.
    fields = _read(_PROC / str(pid) / "stat").rpartition(")")[2].split()
    return (fields[0], fields[19]) if len(fields) > 19 else ("", "")


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
