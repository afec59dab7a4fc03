"""SearchResults: what a search found, as attributes and as a mapping with every documented key."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.errors import first_line
from utils.training.search.space import MODEL
from utils.training.search.trial import Trial, best_of

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from utils.training.training_config import TrainingConfig


class SearchResults(Mapping[str, Any]):
    """A search's outcome. `results["best_params"]` and `results.best_params` are the same; unknown is None.

    Attributes:
        name, folder: the search's name and its folder; strategy: "grid", "random" or "optuna".
        monitor, mode: what the trials were judged by, and whether less or more of it is better.
        space: what was searched, as plain values.
        trials: every trial in order (`Trial`), failed ones with their reason.
        training_config: what the trials shared.
        notices: sentences the user should know.
    """

    KEYS = (
        "best_params", "best_value", "best_trial", "best_model_path", "trials", "n_trials", "monitor", "mode", "strategy",
        "name", "folder", "space", "notices",
    )  # fmt: skip

    def __init__(
        self, *, name: str, folder: Path, strategy: str, monitor: str, mode: str, space: dict[str, Any], trials: list[Trial],
        training_config: TrainingConfig, notices: list[str],
    ) -> None:  # fmt: skip
        self.name, self.folder, self.strategy = name, folder, strategy
        self.monitor, self.mode, self.space = monitor, mode, space
        self.trials, self.training_config, self.notices = trials, training_config, notices

    @property
    def best_trial(self) -> Trial | None:
        """The finished trial with the best value; None when none has finished."""
        return best_of(self.trials, self.mode)

    @property
    def best_params(self) -> dict[str, Any] | None:
        """Values of the best trial, by the config's names."""
        return None if self.best_trial is None else dict(self.best_trial.params)

    @property
    def best_value(self) -> float | None:
        """The best trial's value of the monitored metric."""
        return None if self.best_trial is None else self.best_trial.value

    @property
    def best_model_path(self) -> str | None:
        """Best checkpoint of the best trial."""
        return None if self.best_trial is None else self.best_trial.best_model_path

    @property
    def best_config(self) -> TrainingConfig | None:
        """The trials' shared settings updated with the best values, ready for a longer training."""
        if self.best_params is None:
            return None
        values = {name: value for name, value in self.best_params.items() if not name.startswith(MODEL)}
        return self.training_config.replace(**values)

    @property
    def n_trials(self) -> int:
        """Number of trials."""
        return len(self.trials)

    def __getitem__(self, key: str) -> Any:
        if key not in self.KEYS:
            raise KeyError(key)
        value = getattr(self, key)
        return str(value) if key == "folder" else value

    def __iter__(self) -> Iterator[str]:
        return iter(self.KEYS)

    def __len__(self) -> int:
        return len(self.KEYS)

    def __repr__(self) -> str:
        return f"SearchResults({self.name}: {self.n_trials} trials, best {self.monitor} {self.best_value})"

    def to_frame(self) -> pd.DataFrame:
        """One row a trial, in order: number, status, value, the hyper-parameters, reason, steps, seconds, run_dir."""
        import pandas as pd

        rows = [
            {
                "number": trial.number, "status": trial.status, "value": trial.value, **trial.params, "reason": trial.reason,
                "steps": trial.steps, "seconds": trial.seconds, "run_dir": trial.run_dir,
            }
            for trial in self.trials
        ]  # fmt: skip
        columns = ["number", "status", "value", *self.space, "reason", "steps", "seconds", "run_dir"]
        return pd.DataFrame(rows, columns=columns)

    def summary(self) -> dict[str, str]:
        """The search in a few words: label -> text, in reading order."""
        counts = {status: sum(trial.status == status for trial in self.trials) for status in _STATUSES}
        told = ", ".join(f"{count} {status}" for status, count in counts.items() if count)
        rows = {"trials": f"{self.n_trials}, {self.strategy}: {told or 'none'}"}
        best = self.best_trial
        if best is None:
            rows["best"] = "none: no trial has finished; the table below says why"
        else:
            values = ", ".join(f"{name}={_short(value)}" for name, value in best.params.items())
            rows["best"] = f"trial {best.number}: {self.monitor} {best.value:.4f} with {values}"
            rows["its run"] = str(best.run_dir)
        for number, notice in enumerate(self.notices, 1):
            rows[f"note {number}"] = notice
        return rows

    @property
    def plot_path(self) -> Path:
        """File that `plot` and `show` write the figure to."""
        return self.folder / "plots" / "search.png"

    def plot(self) -> Figure:
        """Every trial's value, in order and over each hyper-parameter; also written to the search's plots/search.png."""
        from utils.views.curves import save_figure
        from utils.views.search import search_figure

        trials = [(trial.number, trial.status, trial.value, trial.params) for trial in self.trials]
        by_logarithm = [name for name, dimension in self.space.items() if dimension.get("log")]
        figure = search_figure(trials, list(self.space), by_logarithm, self.monitor, self.mode, f"Search {self.name}")
        self.plot_path.parent.mkdir(parents=True, exist_ok=True)
        save_figure(figure, self.plot_path)
        return figure

    def show(self) -> None:
        """Show the best values, the trials and the figure: in a notebook as an image, elsewhere as text with its path."""
        from utils.views.display import show_columns, show_figure, show_table

        figure = self.plot()
        show_table(f"Search {self.name}", {**self.summary(), "figure": str(self.plot_path)})
        header = ["trial", "status", self.monitor, *self.space, "reason"]
        rows = [
            [
                str(trial.number), trial.status, _short(trial.value), *(_short(trial.params[name]) for name in self.space),
                first_line(trial.reason),
            ]
            for trial in self.trials
        ]  # fmt: skip
        if rows:
            show_columns("Trials", header, rows)
        show_figure(figure, f"Trials of {self.name}; also at {self.plot_path}")


_STATUSES = ("finished", "pruned", "failed", "stopped", "running")


def _short(value: Any) -> str:
    """A value as a table shows it."""
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
