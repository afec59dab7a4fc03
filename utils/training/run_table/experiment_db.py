"""ExperimentDB: runs of any program, logged by hand, beside those that the Trainer made."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.errors import ConfigError
from utils.schema import shown
from utils.scrubbing import scrubbed
from utils.storage import absolute_path, append_line, json_line, write_json
from utils.training.config_rules import run_name_problem
from utils.training.run_folder import RunFolder
from utils.training.run_state import read_state
from utils.training.run_table.database import FILE_NAME
from utils.training.run_table.table import Mode, RunTable

if TYPE_CHECKING:
    import pandas as pd

# Other words for a run's ending -> those of state.json.
_STATUSES: Mapping[str, str] = {
    "running": "running", "completed": "ended", "finished": "ended", "ended": "ended", "stopped": "stopped", "failed": "failed",
}  # fmt: skip


class ExperimentDB:
    """Log runs and compare them. Every run has a folder, like those of the Trainer, and is known by its name.

    Args:
        path: the folder of all runs, or a database file in it.
    """

    def __init__(self, path: str | Path = "runs") -> None:
        given = absolute_path(path)
        is_file = given.suffix in (".db", ".sqlite", ".sqlite3")
        self.table = RunTable(given.parent if is_file else given, given if is_file else given / FILE_NAME)

    def log_run(self, name: str, config: Mapping[str, Any] | Any = None, notes: str = "") -> str:
        """Begin a run. Returns its name, which has a number behind it when there is one of that name already.

        Args:
            config: plain values, or an object with `to_dict`.
        """
        problem = run_name_problem(name)
        if problem is not None:
            raise ConfigError(f"name: got {shown(name)}; {problem}")
        folder = RunFolder.reserve(self.table.folder, name)
        values = config.to_dict() if hasattr(config, "to_dict") else dict(config or {})
        folder.write_description(scrubbed({**values, **({"notes": notes} if notes else {})}), {})
        folder.write_state("running", external=True)
        return folder.name

    def log_metric(self, run: str, name: str, value: float, step: int | None = None, epoch: int | None = None) -> None:
        """Add a value of a metric; NaN and infinity are kept as they are."""
        self.log_metrics(run, {name: value}, step, epoch)

    def log_metrics(
        self, run: str, metrics: Mapping[str, float], step: int | None = None, epoch: int | None = None
    ) -> None:
        """Add values of several metrics at one step."""
        row = {"event": "metric", "step": step, "epoch": epoch, **{name: float(v) for name, v in metrics.items()}}
        append_line(self._folder(run) / "history.jsonl", json_line(scrubbed(row)))

    def log_artifact(self, run: str, kind: str, path: str | Path) -> None:
        """Note a file that belongs to a run; it stays where it is."""
        file = absolute_path(path)
        size = file.stat().st_size if file.is_file() else None
        row = scrubbed({"kind": kind, "path": str(file), "size_bytes": size})
        append_line(self._folder(run) / "artifacts.jsonl", json_line(row))

    def update_run_status(self, run: str, status: str) -> None:
        """Say how a run stands: "running", "completed", "stopped" or "failed"."""
        if status not in _STATUSES:
            raise ConfigError(f"status: got {shown(status)}; must be one of {', '.join(_STATUSES)}.")
        path = self._folder(run)
        state = read_state(path) or {}
        write_json(path / "state.json", {**state, "status": _STATUSES[status], "ended_at": time.time()})

    def get_run(self, run: str) -> dict[str, Any]:
        """Get a run: name, status, settings, the last value of each metric, tags."""
        return vars(self.table.get(run)) | {}

    def list_runs(self, limit: int | None = None, **filters: Any) -> pd.DataFrame:
        """A row a run, the newest first: name, status, step, epoch, created_at, notes, tags, and the last metrics.

        Args:
            filters: those of `RunTable.list_runs`.
        """
        import pandas as pd

        columns = ("name", "status", "step", "epoch", "created_at", "notes", "tags")
        records = self.table.list_runs(limit=limit, **filters)
        rows = [{name: getattr(run, name) for name in columns} | dict(run.metrics) for run in records]
        return pd.DataFrame(rows) if rows else pd.DataFrame(columns=list(columns))

    def compare_runs(self, runs: Sequence[str]) -> pd.DataFrame:
        """Runs side by side, a column each: see `RunTable.compare`."""
        return self.table.compare(runs)

    def get_best_run(self, metric: str = "val/loss", mode: Mode | None = None) -> dict[str, Any] | None:
        """The run with the best value of a metric, as `get_run`, and `value`; None when no run has it."""
        found = self.table.best(metric, mode)
        return None if found is None else {**vars(found[0]), "value": found[1]}

    def get_metrics(self, run: str, name: str | None = None) -> pd.DataFrame:
        """The values of a run's metrics, or of one: name, step, epoch, value."""
        import pandas as pd

        return pd.DataFrame(self.table.metrics(run, name), columns=["name", "step", "epoch", "value"])

    def get_artifacts(self, run: str) -> pd.DataFrame:
        """The files of a run: kind, path, size_bytes."""
        import pandas as pd

        return pd.DataFrame(self.table.artifacts(run), columns=["kind", "path", "size_bytes"])

    def _folder(self, run: str) -> Path:
        path = self.table.folder / run
        # Without a look at the tables, which costs more than the line that is written.
        return path if run == path.name and read_state(path) is not None else self.table.get(run).path
