"""The tables, and the SQLite file that holds them."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event, exc
from sqlalchemy.engine import Connection, Engine

from utils.errors import RunTableError
from utils.storage import absolute_path

log = logging.getLogger("trainbook.runs")

#: Name of the database in the folder of all runs.
FILE_NAME = "runs.sqlite"
#: Version of the tables of runs. They are made anew when a database has another one; the registry's are kept.
SCHEMA = 2
# How long a process waits for another one's transaction.
_TIMEOUT_S = 30.0


class Number(sa.types.TypeDecorator[float]):
    """A float that may be NaN. SQLite turns NaN into NULL, so NULL is read as NaN; infinities it stores itself."""

    impl = sa.Float
    cache_ok = True

    def process_bind_param(self, value: float | None, dialect: Any) -> float | None:
        """NaN as NULL."""
        return None if value is None or math.isnan(value) else float(value)

    def process_result_value(self, value: Any, dialect: Any) -> float:
        """NULL as NaN."""
        return math.nan if value is None else float(value)


METADATA = sa.MetaData()


def _run_column() -> sa.Column[str]:
    return sa.Column("run", sa.ForeignKey("runs.name", ondelete="CASCADE"), nullable=False, index=True)


RUNS = sa.Table(
    "runs", METADATA, sa.Column("name", sa.String, primary_key=True), sa.Column("run_id", sa.String),
    sa.Column("path", sa.String), sa.Column("status", sa.String), sa.Column("stop_reason", sa.String),
    sa.Column("error", sa.String), sa.Column("step", sa.Integer), sa.Column("epoch", sa.Integer),
    sa.Column("created_at", sa.Float), sa.Column("updated_at", sa.Float), sa.Column("notes", sa.String),
    sa.Column("archived", sa.Boolean), sa.Column("signature", sa.String),
)  # fmt: skip
SETTINGS = sa.Table("settings", METADATA, _run_column(), sa.Column("name", sa.String), sa.Column("value", sa.JSON))
METRICS = sa.Table(
    "metrics", METADATA, _run_column(), sa.Column("name", sa.String, index=True), sa.Column("step", sa.Integer),
    sa.Column("epoch", sa.Integer), sa.Column("value", Number),
)  # fmt: skip
TAGS = sa.Table("tags", METADATA, _run_column(), sa.Column("tag", sa.String, index=True))
ARTIFACTS = sa.Table(
    "artifacts", METADATA, _run_column(), sa.Column("kind", sa.String), sa.Column("path", sa.String),
    sa.Column("size_bytes", sa.Integer),
)  # fmt: skip
LINEAGE = sa.Table(
    "lineage", METADATA, _run_column(), sa.Column("kind", sa.String), sa.Column("parent", sa.String),
    sa.Column("parent_id", sa.String), sa.Column("checkpoint", sa.String), sa.Column("step", sa.Integer),
)  # fmt: skip
_OF_RUNS = (SETTINGS, METRICS, TAGS, ARTIFACTS, LINEAGE, RUNS)

MODELS = sa.Table("models", METADATA, sa.Column("name", sa.String, primary_key=True))
VERSIONS = sa.Table(
    "versions", METADATA, sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("model", sa.ForeignKey("models.name", ondelete="RESTRICT"), nullable=False),
    sa.Column("version", sa.Integer, nullable=False), sa.Column("stage", sa.String, nullable=False),
    sa.Column("format", sa.String), sa.Column("path", sa.String), sa.Column("size_bytes", sa.Integer),
    sa.Column("sha256", sa.String), sa.Column("run", sa.String), sa.Column("run_id", sa.String),
    sa.Column("step", sa.Integer), sa.Column("metrics", sa.JSON), sa.Column("notes", sa.String),
    sa.Column("created_at", sa.Float), sa.UniqueConstraint("model", "version"),
)  # fmt: skip
VERSION_TAGS = sa.Table(
    "version_tags", METADATA,
    sa.Column("version_id", sa.ForeignKey("versions.id", ondelete="CASCADE"), nullable=False),
    sa.Column("tag", sa.String, nullable=False), sa.UniqueConstraint("version_id", "tag"),
)  # fmt: skip


class RunDatabase:
    """The SQLite file with the tables, made when absent. Several processes may use it at once.

    A file that is no database is moved aside. Where no file can be written (a read-only folder, a full disk) the tables are
    kept in memory: everything about runs is in their folders, and only the registry needs the file.

    Args:
        path: the file; None: tables in memory.
    Attributes:
        path: the file, None for tables in memory.
        notices: what was done at the opening that a user should know.
    """

    def __init__(self, path: str | Path | None) -> None:
        self.path: Path | None = None if path is None else absolute_path(path)
        self.notices: list[str] = []
        self._turn = threading.RLock()
        self._engine = _in_memory() if self.path is None else self._opened(self.path)
        weakref.finalize(self, self._engine.dispose)

    @contextlib.contextmanager
    def writing(self) -> Iterator[Connection]:
        """A transaction that may write; committed at the end of the block. Raises `RunTableError`, with nothing written."""
        with self._turn, self._translated(), self._engine.execution_options(writes=True).begin() as connection:
            yield connection

    @contextlib.contextmanager
    def reading(self) -> Iterator[Connection]:
        """A transaction that sees one state of the tables. Raises `RunTableError`."""
        with self._turn, self._translated(), self._engine.begin() as connection:
            yield connection

    def forget_runs(self) -> None:
        """Empty the tables of runs; the registry is kept."""
        with self.writing() as connection:
            for table in _OF_RUNS:
                connection.execute(sa.delete(table))

    def close(self) -> None:
        """Close the file."""
        self._engine.dispose()

    def _opened(self, path: Path) -> Engine:
        for attempt in ("as it is", "moved aside"):
            engine = _engine(path)
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                _create(engine)
            except exc.DatabaseError as error:
                engine.dispose()
                if "locked" in str(error.orig):
                    raise RunTableError(f"{path} is locked by another process; try again.") from error
                damaged = not isinstance(error, exc.OperationalError)
                if damaged and attempt == "as it is" and self._move_aside(path, str(error.orig)):
                    continue
                reason = str(error.orig)
            except OSError as error:
                reason = str(error.strerror or error)
            else:
                return engine
            break
        self.notices.append(f"{path} cannot be used ({reason}): runs are read from their folders each time.")
        log.warning(self.notices[-1])
        self.path = None
        return _in_memory()

    def _move_aside(self, path: Path, reason: str) -> bool:
        number, target = 1, path.with_name(f"{path.name}.corrupt")
        while target.exists():
            number += 1
            target = path.with_name(f"{path.name}.corrupt-{number}")
        try:
            os.replace(path, target)
        except OSError:
            return False
        self.notices.append(
            f"{path} is damaged ({reason}) and was moved to {target.name}. Runs are read from their folders again; models have "
            "to be registered again."
        )
        log.warning(self.notices[-1])
        return True

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except exc.DBAPIError as error:
            raise RunTableError(f"{self.path}: {error.orig}. Nothing was written.") from error


def _engine(path: Path | None) -> Engine:
    url = "sqlite://" if path is None else f"sqlite:///{path}"
    # In memory the one connection is the database. Else none is kept: an open file would be shared with forked children.
    pool = sa.StaticPool if path is None else sa.NullPool
    engine = sa.create_engine(url, poolclass=pool, connect_args={"check_same_thread": False, "timeout": _TIMEOUT_S})

    @event.listens_for(engine, "connect")
    def connected(connection: Any, _: Any) -> None:
        connection.isolation_level = None  # transactions begin where `begun` says
        connection.execute("PRAGMA foreign_keys=ON")

    @event.listens_for(engine, "begin")
    def begun(connection: Connection) -> None:
        writes = connection.get_execution_options().get("writes")
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine


def _in_memory() -> Engine:
    engine = _engine(None)
    _create(engine)
    return engine


def _create(engine: Engine) -> None:
    with engine.execution_options(writes=True).begin() as connection:
        if connection.exec_driver_sql("PRAGMA user_version").scalar() == SCHEMA:
            return
        for table in _OF_RUNS:
            table.drop(connection, checkfirst=True)
        METADATA.create_all(connection)
        connection.exec_driver_sql(f"PRAGMA user_version={SCHEMA}")
