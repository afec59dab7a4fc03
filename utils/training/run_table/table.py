"""RunTable: the runs of a folder, listed, filtered and compared."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from utils.errors import ConfigError, RunNotFoundError
from utils.schema import nearest, shown
from utils.storage import absolute_path
from utils.training.config_rules import better_direction
from utils.training.run_table.database import (
    ARTIFACTS,
    FILE_NAME,
    LINEAGE,
    METRICS,
    RUNS,
    SETTINGS,
    TAGS,
    VERSIONS,
    RunDatabase,
)
from utils.training.run_table.reading import is_better, read_environment, read_run, signature
from utils.training.run_table.upkeep import (
    DeletedRun,
    delete_run,
    read_tags,
    run_folder_to_delete,
    set_archived,
    size_bytes,
    write_notes,
    write_tags,
)

if TYPE_CHECKING:
    import pandas as pd

Mode = Literal["min", "max"]


@dataclass(frozen=True)
class RunRecord:
    """One run.

    Attributes:
        name, path, run_id: which run; status: "running", "finished", "stopped", "broken off" or "failed".
        stop_reason, error: why it ended; step, epoch: how far it came.
        created_at, updated_at: seconds since 1970. notes, tags: what somebody wrote about it.
        archived: whether it was put away.
        settings: its TrainingConfig; metrics: the last value of each metric of epochs and validations.
    """

    name: str
    path: Path
    run_id: str | None
    status: str
    stop_reason: str | None
    error: str | None
    step: int | None
    epoch: int | None
    created_at: float
    updated_at: float
    notes: str
    archived: bool
    tags: tuple[str, ...]
    settings: Mapping[str, Any]
    metrics: Mapping[str, float]


class RunTable:
    """The runs in `folder`, and their tables in `folder/runs.sqlite`.

    Each call first takes in what changed in the folders: a few file stamps per run, and the files of those that changed.

    Args:
        folder: the folder of all runs.
        database: another place for the tables.
    Attributes:
        notices: what was done at the opening that a user should know, such as a damaged file that was moved aside.
    """

    def __init__(self, folder: str | Path = "runs", database: str | Path | None = None) -> None:
        self.folder = absolute_path(folder)
        # Looking into a folder that does not exist makes none.
        self.database = RunDatabase(database or (self.folder / FILE_NAME if self.folder.is_dir() else None))
        self.notices = self.database.notices

    # ---- keeping up with the folders ----

    def sync(self) -> int:
        """Take in what changed. Returns how many runs were read, or forgotten because their folder is gone."""
        folders = {path.name: path for path in self._folders()}
        with self.database.reading() as connection:
            known = {row.name: row.signature for row in connection.execute(sa.select(RUNS.c.name, RUNS.c.signature))}
        stamps = {name: signature(path) for name, path in folders.items()}
        changed = [name for name, stamp in stamps.items() if known.get(name) != stamp]
        gone = [name for name in known if name not in folders]
        count = len(gone)
        if gone:
            with self.database.writing() as connection:
                connection.execute(sa.delete(RUNS).where(RUNS.c.name.in_(gone)))
        for name in changed:
            # The stamp was taken before the files are read, so what is written meanwhile is taken in next time.
            tables = read_run(folders[name])
            if tables is not None:
                with self.database.writing() as connection:
                    _replace(connection, tables, stamps[name])
                count += 1
        return count

    def reindex(self) -> int:
        """Make the tables of runs anew from the folders. Returns how many runs there are. The registry is kept."""
        self.database.forget_runs()
        return self.sync()

    def _folders(self) -> Iterable[Path]:
        try:
            return [path for path in self.folder.iterdir() if path.is_dir() and not path.name.startswith(".")]
        except OSError:
            return []

    # ---- reading ----

    def list_runs(
        self, *, status: str | None = None, tag: str | None = None, name: str | None = None,
        settings: Mapping[str, Any] | None = None, archived: bool | None = False, limit: int | None = None,
    ) -> list[RunRecord]:  # fmt: skip
        """Runs, the newest first.

        Args:
            status, tag: only those with it; name: only those whose name contains it.
            settings: only those whose settings have these values, such as {"batch_size": 8}.
            archived: False: those that are not archived; True: those that are; None: both.
            limit: at most so many.
        """
        self.sync()
        query = sa.select(RUNS.c.name).order_by(RUNS.c.created_at.desc(), RUNS.c.name.desc())
        if status is not None:
            query = query.where(RUNS.c.status == status)
        if name is not None:
            query = query.where(RUNS.c.name.contains(name, autoescape=True))
        if archived is not None:
            query = query.where(RUNS.c.archived.is_(archived))
        if tag is not None:
            query = query.where(RUNS.c.name.in_(sa.select(TAGS.c.run).where(TAGS.c.tag == tag)))
        with self.database.reading() as connection:
            names = [row.name for row in connection.execute(query)]
            records = [_record(connection, found) for found in names]
        wanted = dict(settings or {})
        kept = [run for run in records if all(run.settings.get(key) == value for key, value in wanted.items())]
        return kept[:limit]

    def get(self, run: str | Path) -> RunRecord:
        """One run, by its name, its id or its folder. Raises `RunNotFoundError` that names the nearest one."""
        self.sync()
        with self.database.reading() as connection:
            return _record(connection, self._name_of(connection, run))

    def metrics(self, run: str | Path, name: str | None = None) -> list[dict[str, Any]]:
        """Rows of epochs and validations: name, step, epoch, value. One metric's, or all."""
        self.sync()
        with self.database.reading() as connection:
            columns = (METRICS.c.name, METRICS.c.step, METRICS.c.epoch, METRICS.c.value)
            query = sa.select(*columns).where(METRICS.c.run == self._name_of(connection, run))
            if name is not None:
                query = query.where(METRICS.c.name == name)
            return [dict(row) for row in connection.execute(query.order_by(sa.text("metrics.rowid"))).mappings()]

    def artifacts(self, run: str | Path) -> list[dict[str, Any]]:
        """Checkpoints, exports, plots and other files: kind, path relative to the run, size_bytes."""
        return self._rows(ARTIFACTS, run)

    def lineage(self, run: str | Path) -> list[dict[str, Any]]:
        """The runs that this one comes from, the nearest first: run, kind ("checkpoint", "fork"), checkpoint, step."""
        self.sync()
        found: list[dict[str, Any]] = []
        with self.database.reading() as connection:
            name: str | None = self._name_of(connection, run)
            seen = {name}
            while name is not None:
                row = connection.execute(sa.select(LINEAGE).where(LINEAGE.c.run == name)).mappings().first()
                name = None if row is None else row["parent"]
                if row is not None and name not in seen:
                    entry = {key: row[key] for key in ("kind", "parent_id", "checkpoint", "step")}
                    found.append({"run": name, **entry})
                elif row is not None:
                    name = None  # a run cannot be its own ancestor: a folder was renamed to a parent's name
                seen.add(name)
        return found

    def best(self, metric: str = "val/loss", mode: Mode | None = None) -> tuple[RunRecord, float] | None:
        """The run with the best value that the metric ever had, and that value; None when no run has the metric.

        Args:
            mode: "min" or "max"; None: by the metric's name. NaN is never the best.
        """
        chosen = better_direction(metric) if mode is None else mode
        if chosen not in ("min", "max"):
            raise ConfigError(f"mode: got {shown(mode)}; must be 'min' or 'max'.")
        self.sync()
        order = METRICS.c.value.desc() if chosen == "max" else METRICS.c.value.asc()
        query = sa.select(METRICS.c.run, METRICS.c.value).where(METRICS.c.name == metric, METRICS.c.value.is_not(None))
        with self.database.reading() as connection:
            row = connection.execute(query.order_by(order, METRICS.c.run).limit(1)).first()
            return None if row is None else (_record(connection, row.run), row.value)

    def compare(self, runs: Sequence[str | Path], *, only_differences: bool = True) -> pd.DataFrame:
        """Runs side by side, a column each: status, steps, settings, environment, last and best values of metrics.

        Args:
            only_differences: leave out the settings and facts of the environment that all of them share.
        """
        import pandas as pd

        records = [self.get(run) for run in runs]
        columns: dict[str, dict[str, Any]] = {}
        for record in records:
            column: dict[str, Any] = {"status": record.status, "step": record.step, "epoch": record.epoch}
            column |= {f"setting {name}": value for name, value in record.settings.items() if name != "run_name"}
            column |= {f"environment {name}": value for name, value in read_environment(record.path).items()}
            best: dict[str, float] = {}
            for row in self.metrics(record.name):
                name, value = row["name"], row["value"]
                if name not in best or is_better(value, best[name], better_direction(name)):
                    best[name] = value
            for name, value in record.metrics.items():
                if not name.startswith("time/"):
                    column[name] = value
                    column[f"{name} (best)"] = best[name]
            columns[record.name] = column
        names = list(dict.fromkeys(name for column in columns.values() for name in column))
        if only_differences:
            shared = [name for name in names if not _differ(column.get(name) for column in columns.values())]
            names = [name for name in names if name not in shared or not name.startswith(("setting ", "environment "))]
        return pd.DataFrame({run: [column.get(name) for name in names] for run, column in columns.items()}, index=names)

    # ---- writing, into the folders ----

    def tag(self, run: str | Path, *tags: str) -> None:
        """Add tags to a run, in its folder."""
        path = self._folder_of(run)
        write_tags(path, {*read_tags(path), *tags})

    def untag(self, run: str | Path, *tags: str) -> None:
        """Remove tags from a run."""
        path = self._folder_of(run)
        write_tags(path, {*read_tags(path)} - {*tags})

    def note(self, run: str | Path, notes: str) -> None:
        """Replace the notes of a run, in its folder; they win over the setting `notes`. Raises `FileWriteError`."""
        write_notes(self._folder_of(run), notes)

    def archive(self, run: str | Path) -> None:
        """Put a run away: its folder stays where it is, and lists leave it out. Raises `RunLockedError` while it trains."""
        set_archived(self._folder_of(run), True)

    def restore(self, run: str | Path) -> None:
        """Take a run out of the archive."""
        set_archived(self._folder_of(run), False)

    def to_delete(self, run: str | Path) -> tuple[str, int]:
        """Name and size in bytes of a run that `delete` would delete now.

        Raises:
            RunNotFoundError: no such run. RunLockedError: it is under way.
            ConfigError: it is a symbolic link, or a registered model is in its folder; says which.
        """
        path = run_folder_to_delete(self.folder, self._folder_of(run).name)
        query = sa.select(VERSIONS.c.model, VERSIONS.c.version, VERSIONS.c.path)
        with self.database.reading() as connection:
            models = [row for row in connection.execute(query) if path in Path(row.path).parents]
        if models:
            listed = ", ".join(f"{row.model} {row.version}" for row in models)
            raise ConfigError(
                f"run {path.name!r} holds files of registered models ({listed}) and cannot be deleted; delete these versions "
                "first, or archive the run."
            )
        return path.name, size_bytes(path)

    def delete(self, run: str | Path) -> DeletedRun:
        """Delete a run's folder for good. Raises what `to_delete` raises, and `FileWriteError`."""
        return delete_run(self.folder, self.to_delete(run)[0])

    # ---- details ----

    def _folder_of(self, run: str | Path) -> Path:
        """The run's folder as it is now: the table's path may be from before the folder of all runs was moved."""
        return self.folder / self.get(run).name

    def _rows(self, table: sa.Table, run: str | Path) -> list[dict[str, Any]]:
        self.sync()
        with self.database.reading() as connection:
            query = sa.select(table).where(table.c.run == self._name_of(connection, run))
            return [{k: v for k, v in row.items() if k != "run"} for row in connection.execute(query).mappings()]

    def _name_of(self, connection: Connection, run: str | Path) -> str:
        given = str(run)
        names = [row.name for row in connection.execute(sa.select(RUNS.c.name).where(RUNS.c.run_id == given))]
        there = [row.name for row in connection.execute(sa.select(RUNS.c.name))]
        name = given if given in there else names[0] if names else absolute_path(given).name
        if name in there and (name == given or names or absolute_path(given).parent == self.folder):
            return name
        guess = nearest(given, there)
        hint = f" Did you mean {guess!r}?" if guess else ""
        listed = ", ".join(sorted(there)[:20]) or "none"
        raise RunNotFoundError(f"there is no run {given!r} in {self.folder}.{hint} Runs: {listed}.")


def _replace(connection: Connection, tables: Mapping[str, Any], stamp: str) -> None:
    run = tables["runs"]
    connection.execute(sa.delete(RUNS).where(RUNS.c.name == run["name"]))
    connection.execute(sa.insert(RUNS).values(**run, signature=stamp))
    for table in (SETTINGS, METRICS, TAGS, ARTIFACTS, LINEAGE):
        rows = [{**row, "run": run["name"]} for row in tables[table.name]]
        if rows:
            connection.execute(sa.insert(table), rows)


def _record(connection: Connection, name: str) -> RunRecord:
    run = connection.execute(sa.select(RUNS).where(RUNS.c.name == name)).mappings().one()
    settings = connection.execute(sa.select(SETTINGS.c.name, SETTINGS.c.value).where(SETTINGS.c.run == name))
    rows = connection.execute(
        sa.select(METRICS.c.name, METRICS.c.value).where(METRICS.c.run == name).order_by(sa.text("metrics.rowid"))
    )
    tags = connection.execute(sa.select(TAGS.c.tag).where(TAGS.c.run == name))
    values = {key: run[key] for key in run if key not in ("signature", "path")}
    return RunRecord(
        **values, path=Path(run["path"]), tags=tuple(row.tag for row in tags),
        settings={row.name: row.value for row in settings}, metrics={row.name: row.value for row in rows},
    )  # fmt: skip


def _differ(values: Iterable[Any]) -> bool:
    first, *others = [None if isinstance(value, float) and math.isnan(value) else value for value in values]
    return any(value != first for value in others)
