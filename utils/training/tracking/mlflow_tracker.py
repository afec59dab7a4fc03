"""MLflow: the server of MLFLOW_TRACKING_URI, or a database beside the runs (`mlflow ui --backend-store-uri sqlite:///…`)."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from utils.training.tracking.tracker import RunEnding, RunFacts

_EXPERIMENT = "trainbook"
_RUN_ID = "trainbook.run_id"
# MLflow's own limits on a request.
_MOST_METRICS, _LONGEST_PARAM = 1000, 6000
# A request a second, rather than one per step.
_FLUSH_EVERY_S = 1.0
_STATUSES: Mapping[RunEnding, str] = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}


class MlflowTracker:
    """Metrics, settings and small files of a run to MLflow, in the experiment MLFLOW_EXPERIMENT_NAME, else "trainbook".

    Without MLFLOW_TRACKING_URI they go to `mlflow.db` in the folder of all runs. A resumed run continues its MLflow run.
    """

    name = "MLflow"
    patience_s = 5.0

    def __init__(self) -> None:
        self._client: Any = None
        self._run_id = ""
        self._waiting: list[Any] = []
        self._flushed_at = 0.0

    def start(self, run: RunFacts) -> str | None:
        """Create the MLflow run, or continue the one of this run."""
        from mlflow.entities import Param
        from mlflow.tracking import MlflowClient

        home = run.folder.parent
        # Given to the client and not set for the process: a user's own use of mlflow keeps its settings.
        own = os.environ.get("MLFLOW_TRACKING_URI")
        self._client = MlflowClient(own or f"sqlite:///{home / 'mlflow.db'}")
        experiment = self._experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME") or _EXPERIMENT, None if own else home)
        there = self._client.search_runs([experiment], f"tags.`{_RUN_ID}` = '{run.run_id}'", max_results=1)
        if there:
            self._run_id = there[0].info.run_id
            self._client.update_run(self._run_id, status="RUNNING")
            return None
        tags = {_RUN_ID: run.run_id, "trainbook.run_dir": str(run.folder)}
        self._run_id = self._client.create_run(experiment, tags=tags, run_name=run.name).info.run_id
        settings = [Param(name, str(value)[:_LONGEST_PARAM]) for name, value in run.config.items()]
        self._client.log_batch(self._run_id, params=settings[:100])
        return None

    def log(self, row: Mapping[str, Any]) -> None:
        """Keep a row's metrics for the next request."""
        from mlflow.entities import Metric

        at = time.time_ns() // 1_000_000
        self._waiting += [Metric(k, float(v), at, int(row["step"])) for k, v in row.items() if k != "step"]
        if time.monotonic() - self._flushed_at >= _FLUSH_EVERY_S or len(self._waiting) >= _MOST_METRICS:
            self._flush()

    def artifact(self, path: Path) -> None:
        """Upload a file."""
        self._client.log_artifact(self._run_id, str(path))

    def finish(self, status: RunEnding) -> None:
        """Send what waits, and close the run."""
        self._flush()
        self._client.set_terminated(self._run_id, _STATUSES[status])

    def _flush(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting[:_MOST_METRICS], self._waiting[_MOST_METRICS:]
            self._client.log_batch(self._run_id, metrics=batch)
        self._flushed_at = time.monotonic()

    def _experiment(self, name: str, home: Path | None) -> str:
        found = self._client.get_experiment_by_name(name)
        if found is not None:
            return str(found.experiment_id)
        # MLflow's default for a database is a folder in the current directory, which may be another one next time.
        place = None if home is None else (home / "mlflow-artifacts").as_uri()
        return str(self._client.create_experiment(name, artifact_location=place))
