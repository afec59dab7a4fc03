"""The queue's database: SQLite for the processes of one host, PostgreSQL for several hosts, through SQLAlchemy core."""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event, exc
from sqlalchemy.engine import URL, Connection, Engine

from utils.errors import ConfigError, MissingPackageError, QueueBusyError, QueueError, RunLockedError
from utils.schema import shown
from utils.storage import FolderLock, absolute_path

log = logging.getLogger("trainbook.queue")

#: Version of the tables. A database of another version is refused by name, never changed.
SCHEMA = 1

_EXAMPLES = "sqlite:///training_jobs.db, postgresql://user@host/database for several hosts, or ray://host:10001"
# Endings of files that may be moved aside when they hold no database; another file was probably named by mistake.
_SUFFIXES = (".db", ".sqlite", ".sqlite3")
_HEADER = b"SQLite format 3\0"
# SQLite's locks do not work between machines, and its write-ahead log needs shared memory.
_NETWORK = {
    "nfs", "nfs4", "cifs", "smb3", "smbfs", "afs", "fuse.sshfs", "fuse.rclone", "fuse.s3fs", "fuse.gcsfuse", "fuse.drive",
}  # fmt: skip
_DRIVE = Path("/content/drive")
_LOCK_ID = 7_241_868  # of PostgreSQL's advisory lock around the creation of the tables
_RETRY_S = 0.02

# Engines of the parent process. A forked child must neither use nor close them: SQLite's locks belong to a process.
_OF_THE_PARENT: list[Engine] = []


class Database:
    """A connection pool that survives forks, with transactions that raise this library's errors.

    Attributes:
        url: the URL with an absolute path and without the password.
        path: SQLite's file; None for PostgreSQL and for SQLite in memory.
        notices: what was done at the opening that a user should know.
    """

    def __init__(self, url: str, metadata: sa.MetaData, timeout_s: float, clock: Callable[[], float] | None) -> None:
        self._url = _checked(url)
        self._clock, self._timeout_s, self._metadata = clock, timeout_s, metadata
        self.path = Path(self._url.database) if self.is_sqlite and not self._in_memory else None  # type: ignore[arg-type]
        self.url = self._url.render_as_string(hide_password=True)
        self.notices: list[str] = []
        self._engine: Engine | None = None
        self._pid = 0
        # One connection is the whole database in memory, so threads take turns.
        self._turn: contextlib.AbstractContextManager[Any] = (
            threading.RLock() if self._in_memory else contextlib.nullcontext()
        )
        if self.path is not None:
            self._check_file(self.path)
        self._create()

    @property
    def is_sqlite(self) -> bool:
        """Whether it is SQLite, as opposed to PostgreSQL."""
        return self._url.get_backend_name() == "sqlite"

    @property
    def _in_memory(self) -> bool:
        return self.is_sqlite and self._url.database in (None, "", ":memory:")

    def now(self) -> sa.ColumnElement[float]:
        """The database's clock, in seconds since 1970: the one clock that all workers share. Read when a statement runs."""
        if self._clock is not None:
            return sa.bindparam("now", type_=sa.Float, unique=True, callable_=self._clock)
        if self.is_sqlite:  # unixepoch('subsec') is newer than the SQLite of many Pythons
            return sa.literal_column("((julianday('now') - 2440587.5) * 86400.0)", sa.Float)
        return sa.cast(sa.func.extract("epoch", sa.func.clock_timestamp()), sa.Double)

    @contextlib.contextmanager
    def writing(self) -> Iterator[Connection]:
        """A transaction that has the right to write from its first statement on; committed at the end of the block.

        SQLite would refuse, without waiting, a transaction that reads first and finds another writer when it writes.
        """
        with self._turn, self._translated(), self._connections().execution_options(writes=True).begin() as connection:
            yield connection

    @contextlib.contextmanager
    def reading(self) -> Iterator[Connection]:
        """A transaction that sees one state of the database and delays no writer."""
        with self._turn, self._translated(), self._connections().begin() as connection:
            yield connection

    def close(self) -> None:
        """Close all connections; the next transaction opens new ones."""
        if self._engine is not None and self._pid == os.getpid():
            self._engine.dispose()

    def _connections(self) -> Engine:
        if self._engine is not None and self._pid != os.getpid():
            _OF_THE_PARENT.append(self._engine)
            self._engine = None
        if self._engine is None:
            self._engine, self._pid = self._make_engine(), os.getpid()
            weakref.finalize(self, _dispose, self._engine, self._pid)
        return self._engine

    def _make_engine(self) -> Engine:
        if not self.is_sqlite:
            wait_ms = round(self._timeout_s * 1000)
            return sa.create_engine(
                self._url,
                pool_pre_ping=True,
                connect_args={"options": f"-c lock_timeout={wait_ms}", "connect_timeout": 10},
            )
        pool = sa.StaticPool if self._in_memory else sa.QueuePool
        options: dict[str, Any] = {} if self._in_memory else {"max_overflow": -1}
        engine = sa.create_engine(
            self._url,
            poolclass=pool,
            connect_args={"check_same_thread": False, "timeout": self._timeout_s},
            **options,
        )

        @event.listens_for(engine, "connect")
        def connected(connection: Any, _: Any) -> None:
            connection.isolation_level = None  # transactions begin where `begun` says
            connection.execute("PRAGMA synchronous=FULL")  # an acknowledged job survives; the rows are few and precious

        @event.listens_for(engine, "begin")
        def begun(connection: Connection) -> None:
            writes = connection.get_execution_options().get("writes")
            connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

        return engine

    # ---- opening ----

    def _check_file(self, path: Path) -> None:
        """Refuse a place where SQLite does not work; move a damaged file aside."""
        kind = filesystem_of(path.parent)
        if path.parent.is_relative_to(_DRIVE) or kind in _NETWORK:
            raise QueueError(
                f"{path} is on a network drive ({kind or 'Google Drive'}), where SQLite's locks do not hold. Put the queue on "
                "a local disk, or use postgresql:// for several hosts."
            )
        if path.is_dir():
            raise QueueError(f"{path} is a folder; name a file in it: sqlite:///{path}/training_jobs.db")
        if not path.parent.is_dir():
            raise QueueError(f"{path.parent} does not exist; make the folder of the queue's database first.")
        if (reason := self._damage(path)) is not None:
            self._move_aside(path, reason)

    def _damage(self, path: Path) -> str | None:
        """Explain why the file is not a usable database; None for one that is, that is empty or that does not exist."""
        try:
            with open(path, "rb") as file:
                header = file.read(len(_HEADER))
        except FileNotFoundError:
            return None
        except OSError as error:
            raise QueueError(f"{path} cannot be read: {error.strerror}.") from None
        if header and header != _HEADER:
            return "it is not an SQLite database"
        try:
            with self.reading() as connection:
                answer = connection.exec_driver_sql("PRAGMA quick_check(1)").scalar() if header else "ok"
        except _DamagedError as error:
            return str(error)
        finally:
            self.close()
        return None if answer == "ok" else f"its check found: {answer}"

    def _move_aside(self, path: Path, reason: str) -> None:
        if path.suffix.lower() not in _SUFFIXES:
            raise QueueError(f"{path} cannot be used as a queue: {reason}. Name another file, such as {path.stem}.db.")
        try:
            with FolderLock(path.with_name(f"{path.name}.lock")).held():
                if (reason_now := self._damage(path)) is None:
                    return  # another process did it meanwhile
                number, target = 1, path.with_name(f"{path.name}.corrupt")
                while target.exists():
                    number += 1
                    target = path.with_name(f"{path.name}.corrupt-{number}")
                for ending in ("-wal", "-shm", ""):
                    with contextlib.suppress(FileNotFoundError):
                        os.replace(f"{path}{ending}", f"{target}{ending}")
        except RunLockedError:
            raise QueueBusyError(f"{path} is damaged, and another process is moving it aside; try again.") from None
        except OSError as error:
            raise QueueError(f"{path} is damaged ({reason}) and cannot be moved: {error.strerror}.") from None
        sentence = (
            f"{path} could not be used: {reason_now}. It was moved to {target.name}, and the queue begins empty; jobs that "
            "were in it have to be submitted again (`sqlite3 FILE .recover` may read them)."
        )
        self.notices.append(sentence)
        log.warning(sentence)

    def _create(self) -> None:
        """Create missing tables, whoever else does the same at this moment."""
        deadline = time.monotonic() + self._timeout_s
        while True:
            try:
                if self.path is not None:
                    self._use_write_ahead_log()
                with self.writing() as connection:
                    if not self.is_sqlite:
                        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK_ID)))
                    self._check_schema(connection)
                return
            except QueueBusyError:
                # Changing the journal's mode does not wait for a lock, unlike everything else.
                if time.monotonic() >= deadline:
                    raise
                time.sleep(_RETRY_S)

    def _use_write_ahead_log(self) -> None:
        """Readers do not delay writers then. Some filesystems accept the mode and fail at the first write."""
        with self._translated(), self._connections().connect() as connection:
            raw = connection.connection.driver_connection
            assert raw is not None
            if raw.execute("PRAGMA journal_mode=WAL").fetchone()[0] != "wal":
                return
            try:
                raw.execute("BEGIN IMMEDIATE")
                raw.execute("CREATE TABLE trainbook_probe (x)")
                raw.execute("ROLLBACK")
            except Exception as error:
                if "locked" in str(error) or "readonly" in str(error):
                    raise
                raw.execute("PRAGMA journal_mode=DELETE")

    def _check_schema(self, connection: Connection) -> None:
        version = sa.table("trainbook_queue", sa.column("version"))
        if sa.inspect(connection).has_table("trainbook_queue"):
            found = connection.execute(sa.select(version.c.version)).scalar()
            if found != SCHEMA:
                newer = isinstance(found, int) and found > SCHEMA
                raise QueueError(
                    f"{self.url} holds a queue of schema {found}; this version of Trainbook reads schema {SCHEMA}. "
                    f"{'Update Trainbook' if newer else 'Finish its jobs with the older version'}, or use another database."
                )
            return
        self._metadata.create_all(connection)
        connection.execute(sa.insert(version).values(version=SCHEMA))

    # ---- errors ----

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except exc.DBAPIError as error:
            raise self._error(error.orig or error) from error
        except exc.NoSuchModuleError as error:
            raise ConfigError(f"the queue's URL: {error}") from None
        except OSError as error:
            if isinstance(error, QueueError):
                raise
            raise QueueError(f"{self.url} cannot be used: {error}") from error
        except Exception as error:
            if type(error).__module__.partition(".")[0] not in ("sqlite3", "psycopg"):
                raise
            raise self._error(error) from error

    def _error(self, error: BaseException) -> QueueError:
        text = str(error).strip()
        low = text.lower()
        where = str(self.path or self.url)
        if "locked" in low or "lock timeout" in low or "is busy" in low:
            return QueueBusyError(
                f"{where} stayed locked for {self._timeout_s:g} s{_holders(self.path)}. Try again, or end the process that "
                "holds it; nothing was written."
            )
        if "malformed" in low or "not a database" in low or "disk i/o" in low:
            return _DamagedError(
                f"{where} is damaged or its disk fails ({text}); restore a copy, or open another file."
            )
        if "readonly" in low or "read-only" in low or "unable to open" in low:
            return QueueError(f"{where} cannot be written ({text}); choose a folder that this user may write to.")
        if "is full" in low:
            return QueueError(
                f"{where} could not be written: the disk is full. Free some space; earlier jobs are intact."
            )
        return QueueError(f"{where}: {text}")


class _DamagedError(QueueError):
    """The file is no database, or a damaged one."""


def _dispose(engine: Engine, pid: int) -> None:
    """Close the connections of a database that nobody holds any more, in the process that opened them."""
    if pid == os.getpid():
        engine.dispose()


def _checked(url: str) -> URL:
    """The URL with a driver and an absolute path. Raises `ConfigError` with an example."""
    try:
        parsed = sa.make_url(url)
    except (exc.ArgumentError, TypeError, AttributeError):
        raise ConfigError(f"a queue's URL is like {_EXAMPLES}; got {shown(url)}") from None
    backend = parsed.drivername.partition("+")[0]
    if backend == "sqlite":
        if parsed.database not in (None, "", ":memory:"):
            parsed = parsed.set(database=str(absolute_path(str(parsed.database))))
        return parsed.set(drivername="sqlite")
    if backend in ("postgresql", "postgres"):
        try:
            importlib.import_module("psycopg")
        except ImportError:
            raise MissingPackageError("psycopg", "for a queue in PostgreSQL", "postgres") from None
        return parsed.set(drivername="postgresql+psycopg")
    raise ConfigError(f"a queue's URL is like {_EXAMPLES}; {parsed.drivername}:// is not supported")


def filesystem_of(folder: Path) -> str:
    """The type of the filesystem that holds `folder`, such as ext4 or nfs4; "" where it cannot be known."""
    try:
        lines = Path("/proc/self/mounts").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    best = ("", "")
    for line in lines:
        _, place, kind = line.split(" ")[:3]
        place = place.replace("\\040", " ")
        # Of two mounts on one place the later one is seen.
        if folder.resolve().is_relative_to(place) and len(place) >= len(best[0]):
            best = (place, kind)
    return best[1]


def _holders(path: Path | None) -> str:
    """Other processes of this user that have the database open: one of them has the lock."""
    found = set()
    if path is not None:
        for link in Path("/proc").glob("[0-9]*/fd/*"):
            with contextlib.suppress(OSError):
                if os.readlink(link) == str(path.resolve()):
                    found.add(int(link.parts[2]))
    others = sorted(found - {os.getpid()})
    if others:
        listed = ", ".join(map(str, others[:5]))
        return f" (it is open in process{'es' if len(others) > 1 else ''} {listed})"
    return ""
