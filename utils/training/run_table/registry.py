"""ExportRegistry: exported models under names and versions, with stages, tags and where they come from."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from utils.errors import ConfigError, RunNotFoundError, RunTableError
from utils.schema import nearest, shown
from utils.scrubbing import scrub, scrubbed
from utils.storage import absolute_path
from utils.training.export.result import ExportResult
from utils.training.run_state import read_state
from utils.training.run_table.database import MODELS, VERSION_TAGS, VERSIONS, RunDatabase
from utils.training.run_table.table import RunTable

#: Where a version stands. At most one version of a model is in production.
STAGES = ("registered", "production", "retired")


@dataclass(frozen=True)
class RegisteredModel:
    """One version of a registered model.

    Attributes:
        name, version: which; stage: one of STAGES; tags: free words.
        format, path, size_bytes, sha256: the exported file or folder when it was registered.
        run, run_id, step: the run that trained it; None for a model from elsewhere.
        metrics: values that were given or that the run ended with; notes: free text; created_at: seconds since 1970.
    """

    name: str
    version: int
    stage: str
    tags: tuple[str, ...]
    format: str | None
    path: Path
    size_bytes: int
    sha256: str
    run: str | None
    run_id: str | None
    step: int | None
    metrics: Mapping[str, float]
    notes: str
    created_at: float


class ExportRegistry:
    """Exported models in the database of a runs' folder. Every change is one transaction: it happens whole or not at all.

    Args:
        folder: the folder of all runs, or a `RunTable`.
    Raises:
        RunTableError: the database cannot be written; what is registered would be lost.
    """

    def __init__(self, folder: str | Path | RunTable = "runs") -> None:
        self.runs = folder if isinstance(folder, RunTable) else RunTable(folder)
        self._database: RunDatabase = self.runs.database
        if self._database.path is None:
            reason = self.runs.notices[-1] if self.runs.notices else f"{self.runs.folder} does not exist"
            raise RunTableError(f"no model can be registered: {reason}")

    def register(
        self, name: str, export: ExportResult | str | Path, *, format: str | None = None, run: str | None = None,
        metrics: Mapping[str, float] | None = None, tags: Iterable[str] = (), notes: str = "",
    ) -> RegisteredModel:  # fmt: skip
        """Register an exported model as the next version of `name`.

        Args:
            name: the model's name.
            export: an `ExportResult`, or the path of a file or folder.
            format, run: of a path; those of an ExportResult are known.
            metrics: None: the last values of the run's metrics.
        Raises:
            ConfigError: an empty name. RunNotFoundError: no such file, or no such run.
        """
        if not isinstance(name, str) or not name.strip():
            raise ConfigError(f"got {shown(name)} as a model's name; give a non-empty text.")
        result, given = (export, export.path) if isinstance(export, ExportResult) else (None, export)
        path = absolute_path(given)
        if not path.exists():
            raise RunNotFoundError(f"{path} does not exist; register what an export has written.")
        folder = result.run_dir if result else _run_of(path)
        record = None
        if run is not None:
            record = self.runs.get(run)
        elif folder is not None and folder.parent == self.runs.folder:
            record = self.runs.get(folder.name)
        size, digest = _measured(path)
        values = {
            "stage": "registered", "format": result.format if result else format, "path": str(path), "size_bytes": size,
            "sha256": digest, "run": record.name if record else None, "run_id": record.run_id if record else None,
            "step": result.step if result else record.step if record else None,
            "metrics": _plain(record.metrics if metrics is None and record else metrics or {}), "notes": scrub(notes),
            "created_at": time.time(),
        }  # fmt: skip
        with self._database.writing() as connection:
            if connection.execute(sa.select(MODELS).where(MODELS.c.name == name)).first() is None:
                connection.execute(sa.insert(MODELS).values(name=name))
            newest = connection.execute(
                sa.select(sa.func.max(VERSIONS.c.version)).where(VERSIONS.c.model == name)
            ).scalar()
            number = (newest or 0) + 1
            made = connection.execute(sa.insert(VERSIONS).values(model=name, version=number, **values))
            assert made.inserted_primary_key is not None  # a single row was inserted
            for tag in dict.fromkeys(map(scrub, tags)):
                connection.execute(sa.insert(VERSION_TAGS).values(version_id=made.inserted_primary_key[0], tag=tag))
            return _model(connection, name, number)

    def list_models(self, *, stage: str | None = None, tag: str | None = None) -> list[RegisteredModel]:
        """Every version of every model, by name and number."""
        if stage is not None and stage not in STAGES:
            raise ConfigError(f"stage: got {shown(stage)}; must be one of {', '.join(STAGES)}.")
        with self._database.reading() as connection:
            query = sa.select(VERSIONS.c.model, VERSIONS.c.version).order_by(VERSIONS.c.model, VERSIONS.c.version)
            found = [_model(connection, row.model, row.version) for row in connection.execute(query).all()]
        return [model for model in found if stage in (None, model.stage) and (tag is None or tag in model.tags)]

    def get(self, name: str, version: int | None = None) -> RegisteredModel:
        """A version; None: the one in production, else the newest that is not retired.

        Raises:
            RunNotFoundError: unknown; lists those there are.
        """
        with self._database.reading() as connection:
            return _model(connection, name, self._chosen(connection, name) if version is None else version)

    def promote(self, name: str, version: int) -> RegisteredModel:
        """Put a version into production; the one that was there is "registered" again. An unknown one changes nothing."""
        with self._database.writing() as connection:
            _model(connection, name, version)
            production = (VERSIONS.c.model == name) & (VERSIONS.c.stage == "production")
            connection.execute(sa.update(VERSIONS).where(production).values(stage="registered"))
            return self._staged(connection, name, version, "production")

    def retire(self, name: str, version: int) -> RegisteredModel:
        """Take a version out of use; it stays registered under its number."""
        with self._database.writing() as connection:
            _model(connection, name, version)
            return self._staged(connection, name, version, "retired")

    def delete(self, name: str, version: int) -> None:
        """Forget a version, with its tags; its files stay, and its number is not given again while a newer one is there.

        Raises:
            RunTableError: it is in production; promote another one, or retire it, first.
        """
        with self._database.writing() as connection:
            if _model(connection, name, version).stage == "production":
                raise RunTableError(
                    f"{name} version {version} is in production; promote another one, or retire it, first."
                )
            connection.execute(sa.delete(VERSIONS).where(_is(name, version)))
            left = connection.execute(sa.select(VERSIONS.c.id).where(VERSIONS.c.model == name)).first()
            if left is None:
                connection.execute(sa.delete(MODELS).where(MODELS.c.name == name))

    def tag(self, name: str, version: int, *tags: str) -> RegisteredModel:
        """Add tags to a version."""
        with self._database.writing() as connection:
            there = _model(connection, name, version).tags
            version_id = connection.execute(sa.select(VERSIONS.c.id).where(_is(name, version))).scalar_one()
            for tag in dict.fromkeys(map(scrub, tags)):
                if tag not in there:
                    connection.execute(sa.insert(VERSION_TAGS).values(version_id=version_id, tag=tag))
            return _model(connection, name, version)

    def untag(self, name: str, version: int, *tags: str) -> RegisteredModel:
        """Remove tags from a version."""
        with self._database.writing() as connection:
            _model(connection, name, version)
            version_id = sa.select(VERSIONS.c.id).where(_is(name, version)).scalar_subquery()
            own = (VERSION_TAGS.c.version_id == version_id) & VERSION_TAGS.c.tag.in_(tags)
            connection.execute(sa.delete(VERSION_TAGS).where(own))
            return _model(connection, name, version)

    def is_unchanged(self, name: str, version: int) -> bool:
        """Whether the version's files are there, and the same as when it was registered."""
        model = self.get(name, version)
        return model.path.exists() and _measured(model.path)[1] == model.sha256

    def lineage(self, name: str, version: int) -> list[dict[str, Any]]:
        """Lineage of a version: its run, then the runs that this one was forked from."""
        model = self.get(name, version)
        if model.run is None:
            return []
        own = {"run": model.run, "kind": "export", "parent_id": model.run_id, "checkpoint": None, "step": model.step}
        try:
            return [own, *self.runs.lineage(model.run)]
        except RunNotFoundError:  # its folder was removed; what the registry knows stays
            return [own]

    def _chosen(self, connection: Connection, name: str) -> int:
        # In production before registered, the newest first; retired ones only by number.
        query = sa.select(VERSIONS.c.version).where(VERSIONS.c.model == name, VERSIONS.c.stage != "retired")
        order = (sa.case((VERSIONS.c.stage == "production", 0), else_=1), VERSIONS.c.version.desc())
        found = connection.execute(query.order_by(*order)).scalar()
        if found is None:
            raise _missing(connection, name, None)
        return int(found)

    def _staged(self, connection: Connection, name: str, version: int, stage: str) -> RegisteredModel:
        connection.execute(sa.update(VERSIONS).where(_is(name, version)).values(stage=stage))
        return _model(connection, name, version)


def _is(name: str, version: int) -> sa.ColumnElement[bool]:
    return (VERSIONS.c.model == name) & (VERSIONS.c.version == version)


def _model(connection: Connection, name: str, version: int) -> RegisteredModel:
    row = connection.execute(sa.select(VERSIONS).where(_is(name, version))).mappings().first()
    if row is None:
        raise _missing(connection, name, version)
    tags = connection.execute(sa.select(VERSION_TAGS.c.tag).where(VERSION_TAGS.c.version_id == row["id"]))
    values = {key: row[key] for key in row if key not in ("id", "model", "path", "metrics")}
    metrics = {key: float(value) for key, value in row["metrics"].items()}
    tagged = tuple(sorted(tag.tag for tag in tags))
    return RegisteredModel(name=row["model"], path=Path(row["path"]), tags=tagged, metrics=metrics, **values)


def _missing(connection: Connection, name: str, version: int | None) -> RunNotFoundError:
    query = sa.select(VERSIONS.c.version).where(VERSIONS.c.model == name).order_by(VERSIONS.c.version)
    versions = [row.version for row in connection.execute(query)]
    if versions:
        listed = ", ".join(map(str, versions))
        which = f"no version {version}" if version is not None else "no version that is not retired"
        return RunNotFoundError(f"{name} has {which}; there are: {listed}.")
    names = [row.name for row in connection.execute(sa.select(MODELS.c.name))]
    guess = nearest(name, names)
    hint = f" Did you mean {guess!r}?" if guess else ""
    return RunNotFoundError(f"no model {name!r} is registered.{hint} Models: {', '.join(sorted(names)) or 'none'}.")


def _run_of(path: Path) -> Path | None:
    """The run's folder above an export."""
    return next((parent for parent in path.parents if read_state(parent) is not None), None)


def _plain(metrics: Mapping[str, float]) -> dict[str, Any]:
    # JSON has no NaN; `float` reads these texts.
    return scrubbed({name: value if abs(value) < float("inf") else str(value) for name, value in metrics.items()})  # type: ignore[no-any-return]


def _measured(path: Path) -> tuple[int, str]:
    """Size, and one digest over the names and contents of all files."""
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    size, whole = 0, hashlib.sha256()
    for file in files:
        with open(file, "rb") as opened:
            digest = hashlib.file_digest(opened, "sha256").hexdigest()
        name = file.name if file == path else file.relative_to(path).as_posix()
        whole.update(f"{name}\0{digest}\n".encode())
        size += file.stat().st_size
    return size, whole.hexdigest()
