"""Databases for the tests of queues and searches: SQLite in the test's folder, and a PostgreSQL server of the tests' own.

The server comes from the system's package (Debian: `postgresql`), listens on a Unix socket in a temporary folder only, and
lives as long as the test session. Tests that need it are skipped where the package is missing.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from secrets import token_hex
from typing import Any

import pytest

# PostgreSQL refuses to run as root. The first of these users that exists owns the server then.
_USERS = ("postgres", "nobody")
_ROLE = "trainbook"
# No fsync: nothing has to survive the machine, only the processes.
_SETTINGS = "-c listen_addresses='' -c fsync=off -c max_connections=150 -c shared_buffers=16MB -c dynamic_shared_memory_type=mmap"


class NoPostgresError(RuntimeError):
    """PostgreSQL is not installed."""


def postgres_programs() -> Path:
    """The folder that holds initdb and pg_ctl. Raises `NoPostgresError`."""
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda p: _version(p.parent.name), reverse=True)
    on_path = shutil.which("initdb")
    for folder in [*folders, *([Path(on_path).resolve().parent] if on_path else [])]:
        if all((folder / name).exists() for name in ("initdb", "pg_ctl", "postgres")):
            return folder
    raise NoPostgresError("PostgreSQL is not installed (initdb, pg_ctl); on Debian: apt-get install postgresql")


def _version(name: str) -> float:
    try:
        return float(name)
    except ValueError:
        return 0.0


@contextmanager
def postgres_server() -> Iterator[Callable[[], str]]:
    """A running server; call what this yields for the URL of a new, empty database."""
    programs = postgres_programs()
    # Sockets have short paths only, so not the test's own folder.
    folder = Path(tempfile.mkdtemp(prefix="tb-pg-"))
    as_owner = _as_owner(folder)

    def call(name: str, *arguments: str) -> None:
        command = [*as_owner, str(programs / name), *arguments]
        # In files: a server that stays would hold a pipe open.
        with open(folder / "output.txt", "ab") as output:
            done = subprocess.run(
                command, cwd=folder, stdout=output, stderr=subprocess.STDOUT, check=False, timeout=120
            )
        if done.returncode:
            raise RuntimeError(f"{name} failed:\n{(folder / 'output.txt').read_text()[-3000:]}")

    data = str(folder / "data")
    try:
        call("initdb", "-D", data, "-U", _ROLE, "--auth=trust", "--no-sync", "--no-locale", "--encoding=UTF8")
        call(
            "pg_ctl", "-D", data, "-w", "-t", "60", "-o", f"{_SETTINGS} -k {folder}", "-l", f"{folder}/log.txt", "start"
        )
        try:
            yield lambda: _new_database(folder)
        finally:
            call("pg_ctl", "-D", data, "-w", "-m", "immediate", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _as_owner(folder: Path) -> list[str]:
    """What to put before a command so that the server's user runs it; that user gets the folder."""
    if os.geteuid() != 0:
        return []
    import pwd

    for name in _USERS:
        try:
            user = pwd.getpwnam(name)
        except KeyError:
            continue
        os.chown(folder, user.pw_uid, user.pw_gid)
        (folder / "output.txt").touch()
        return ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]
    raise NoPostgresError(f"PostgreSQL does not run as root, and there is no user {' or '.join(_USERS)}")


def _new_database(folder: Path) -> str:
    import psycopg

    name = f"t{token_hex(6)}"
    with psycopg.connect(host=str(folder), user=_ROLE, dbname="postgres", autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}"')
    return f"postgresql://{_ROLE}@/{name}?host={folder}"


@pytest.fixture(scope="session")
def new_postgres() -> Iterator[Callable[[], str]]:
    """Function that makes an empty database in a running server; its URL."""
    pytest.importorskip("psycopg")
    try:
        postgres_programs()
    except NoPostgresError as error:
        pytest.skip(str(error))
    with postgres_server() as make:
        yield make


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest) -> str:
    """An empty database of each kind."""
    if request.param == "sqlite":
        return "sqlite:///jobs.db"
    make: Callable[[], str] = request.getfixturevalue("new_postgres")
    return make()


def stored_trials(url: str, study: str) -> list[Any]:
    """The trials of an Optuna study in a database."""
    import optuna

    storage = optuna.storages.RDBStorage(url.replace("postgresql://", "postgresql+psycopg://"))
    try:
        return list(optuna.load_study(study_name=study, storage=storage).trials)
    finally:
        storage.remove_session()
        storage.engine.dispose()
