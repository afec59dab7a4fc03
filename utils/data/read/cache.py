"""Tables on disk that were made from files before: looked up by what they were made from, and complete or absent."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import IO, Any

from utils.data.read.load_report import LoadReport
from utils.errors import DataError
from utils.storage import absolute_path, atomic_write, free_bytes, remove_stale_temporaries, write_json

# Part of every key: a change of what the readers give makes older tables unknown.
_FORMAT = 2


def default_cache_dir() -> Path:
    """Default folder of cached tables: below $XDG_CACHE_HOME, else ~/.cache. It may be deleted whenever nothing is
    being trained."""
    base = os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()
    return Path(base) / "trainbook" / "datasets"


class TableCache:
    """A folder of tables, two files each: `<key>.arrow` and `<key>.json`, its report. The second one is written last.

    Not covered: tables of sources that have changed since stay there until the folder is deleted.
    """

    def __init__(self, folder: str | os.PathLike[str] | None = None) -> None:
        self.folder = absolute_path(default_cache_dir() if folder is None else folder)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            remove_stale_temporaries(self.folder)
        except OSError as error:
            raise DataError(
                f"{self.folder}: tables cannot be kept there ({error.strerror or error}). Give a folder that can be "
                "written to: cache_dir=..."
            ) from error

    def find(self, key: str) -> tuple[Path, LoadReport] | None:
        """The table that `put` left under `key`, if it is complete."""
        table, record = self._paths(key)
        try:
            kept = json.loads(record.read_text(encoding="utf-8"))
            complete = kept["size_bytes"] == table.stat().st_size
            return (table, LoadReport(**kept["report"])) if complete else None
        except (OSError, ValueError, KeyError, TypeError):  # none there, or no record of ours: it is made anew
            return None

    def put(self, key: str, write: Callable[[IO[bytes]], object], report: LoadReport) -> Path:
        """Commit a table of `report.num_kept` rows. Raises DataError when it cannot be written or read back."""
        table, record = self._paths(key)

        def check(written: Path) -> None:
            count = _num_rows(written)
            if count != report.num_kept:
                raise DataError(f"{written}: {count:,} rows were read back of {report.num_kept:,}; is the disk sound?")

        try:
            record.unlink(missing_ok=True)
            atomic_write(table, write, check)
            write_json(record, {"size_bytes": table.stat().st_size, "report": report.to_dict()})
        except OSError as error:
            raise DataError(
                f"{self.folder}: the table cannot be written ({error.strerror or error}; "
                f"{free_bytes(self.folder) / 1e9:.1f} GB are free). Free some space, or give another folder: cache_dir=..."
            ) from error
        return table

    def _paths(self, key: str) -> tuple[Path, Path]:
        return self.folder / f"{key}.arrow", self.folder / f"{key}.json"


def key_of(files: Iterable[Path], settings: Mapping[str, Any]) -> str:
    """Cache key of a table: paths, sizes and modification times of its files, and the reader's settings."""
    stamps = [(str(file.resolve()), (about := file.stat()).st_size, about.st_mtime_ns) for file in files]
    text = json.dumps([_FORMAT, stamps, settings], sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _num_rows(table: Path) -> int:
    import pyarrow as pa

    with pa.memory_map(str(table)) as source:
        return sum(batch.num_rows for batch in pa.ipc.open_stream(source))
