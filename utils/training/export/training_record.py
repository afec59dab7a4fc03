"""Facts about a finished training, from its results and the files in its folder."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from utils import __version__
from utils.data.mixture_settings import mixture_sources
from utils.training.config_files import read_config_file
from utils.training.export.markdown import code, counted, inline, is_number, shown, table

_UNKNOWN = "Not recorded."

# Settings that describe the procedure; the rest of the config is in the run's config.yaml.
_PROCEDURE = (
    "epochs", "max_steps", "batch_size", "gradient_accumulation_steps", "learning_rate", "optimizer", "betas", "eps",
    "weight_decay", "max_grad_norm", "lr_schedule", "warmup_ratio", "warmup_steps", "label_smoothing", "precision",
    "random_seed", "deterministic",
)  # fmt: skip

_TRAINING_METRICS = ("train/loss", "train/accuracy", "train/perplexity")


class TrainingRecord:
    """Facts about a training from its results and its folder; empty where nothing is recorded."""

    def __init__(self, results: Any, exports: Any) -> None:
        self.results = results
        self.config = getattr(results, "training_config", None)
        folder = getattr(results, "run_dir", None)
        self.folder = None if folder is None else Path(folder)
        self.recorded = self._read("config.yaml")
        self.exports = self._exports(exports)
        self.step = self._exported_step(exports)

    def _read(self, name: str) -> Mapping[str, Any]:
        file = None if self.folder is None else self.folder / name
        if file is None or not file.is_file():
            return {}
        with contextlib.suppress(ValueError):  # damaged: nothing is known from it
            return read_config_file(file)
        return {}

    def _exports(self, exports: Any) -> list[Path]:
        if exports is None:
            place = None if self.folder is None else self.folder / "exports"
            return sorted(path for path in place.iterdir() if path.is_dir()) if place and place.is_dir() else []
        if hasattr(exports, "size_bytes"):
            exports = [exports]
        elif isinstance(exports, Mapping):
            exports = list(exports.values())
        elif isinstance(exports, (str, Path)):
            exports = [exports]
        return [Path(getattr(one, "path", one)) for one in exports]

    def _exported_step(self, exports: Any) -> int | None:
        given = exports.values() if isinstance(exports, Mapping) and not hasattr(exports, "step") else [exports]
        return next((one.step for one in given if getattr(one, "step", None) is not None), None)

    @property
    def task(self) -> str | None:
        """The task type."""
        spec = getattr(self.results, "task_spec", None)
        found = getattr(spec, "task_type", None) or (self.recorded.get("task") or {}).get("task_type")
        return None if found is None else str(found)

    @property
    def dataset(self) -> str | None:
        """The name of the data, as the run recorded it."""
        setup = self.recorded.get("setup") or {}
        if setup.get("mixture"):
            return " and ".join(source.label for source in mixture_sources(setup["mixture"]))
        if setup.get("dataset_source") == "builtin":
            return "the Python language reference (built-in corpus)"
        name = setup.get("dataset_name") or setup.get("dataset_path")
        if name is None:
            report = getattr(self.results, "report", None)
            return None if report is None else str(report.source)
        part = setup.get("config_name")
        return f"{name} ({part})" if part else str(name)

    def samples(self, name: str) -> int | None:
        """A number of samples that the run recorded."""
        value = (self.recorded.get("data") or {}).get(name)
        return value if isinstance(value, int) and value else None

    @property
    def preparation(self) -> Mapping[str, str]:
        """Preprocessing of the data."""
        setup = self.recorded.get("setup") or {}
        names = {"max_length": "Block length (tokens)", "val_split": "Validation split", "text_column": "Text column"}
        return {title: shown(setup[name]) for name, title in names.items() if setup.get(name) is not None}

    @property
    def procedure(self) -> str:
        """Settings and course of the training."""
        if self.config is None:
            return _UNKNOWN
        state = {
            "Optimizer steps": counted(getattr(self.results, "steps", None), "not recorded"),
            "Completed epochs": shown(getattr(self.results, "epochs_trained", None)),
            "Ended because": shown(getattr(self.results, "stop_reason", None)),
        }
        settings = {f"`{name}`": shown(getattr(self.config, name)) for name in _PROCEDURE if hasattr(self.config, name)}
        return table({**state, **settings}, escape_names=False)

    @property
    def measured(self) -> list[tuple[str, float, str]]:
        """(name, value, how it was measured); only finite numbers."""
        results = self.results
        rows: list[tuple[str, Any, str]] = []
        if hasattr(results, "evaluate_rows") and hasattr(results, "epoch_rows"):
            evaluations = list(results.evaluate_rows)
            of_step = [row for row in evaluations if row.get("step") == self.step]
            for row in (of_step or evaluations)[-1:]:
                where = f"validation data after step {row.get('step', 'unknown')}"
                rows += [(name, value, where) for name, value in row.items() if name.startswith("val/")]
            if (answers := getattr(results, "answer_ends", None)) is not None:
                where = f"{answers.count} validation prompts, greedy, at most {answers.max_new_tokens} new tokens"
                rows.append(("answers/ended_share", answers.share, where))
            for row in results.epoch_rows[-1:]:
                where = f"training data, mean over epoch {row['epoch'] + 1}"
                rows += [(name, value, where) for name, value in row.items() if name in _TRAINING_METRICS]
            if results.best_value is not None:
                step = results.state.best.step
                where = "best validation" if step is None else f"validation data after step {step} (best)"
                rows.append((f"best {results.training_config.monitor}", results.best_value, where))
        elif isinstance(results, Mapping):
            given = results.get("final_metrics")
            given = given if isinstance(given, Mapping) else results
            rows = [(str(name), value, "as given by the author") for name, value in given.items()]
        return [(name, float(value), where) for name, value, where in rows if is_number(value)]

    @property
    def metrics_table(self) -> str:
        """The measured metrics as Markdown."""
        measured = self.measured
        if not measured:
            return "Nothing was measured, or it was not recorded."
        lines = ["| Metric | Value | Measured on |", "|---|---|---|"]
        lines += [f"| {inline(name)} | {value:.6g} | {inline(where)} |" for name, value, where in measured]
        name = getattr(self.results, "run_name", None)
        source = f"Source: the history of run `{code(name)}`." if name else "Source: the results that were given."
        return "\n".join([*lines, "", source])

    def environment(self, energy_kwh: float | None) -> str:
        """Machine, packages, duration and energy: what the author gives, else what the run counted."""
        recorded = self._read("environment.json")
        device = recorded.get("device") or {}
        packages = recorded.get("packages") or {}
        seconds = getattr(self.results, "training_time", None)
        if seconds is None and isinstance(self.results, Mapping):
            seconds = self.results.get("training_time")
        rows = {
            "Device": f"{device['kind']} ({device['name']})" if device else "not recorded",
            "Python": recorded.get("python", "not recorded"),
            "Packages": ", ".join(f"{name} {version}" for name, version in packages.items()) or "not recorded",
            "Trainbook": __version__,
            "Training time": f"{seconds:.1f} s" if is_number(seconds) else "not recorded",
            "Energy": self._counted_energy(seconds) if energy_kwh is None else f"{energy_kwh:.4g} kWh",
            "Carbon emissions": "not measured",
        }
        return table(rows)

    def _counted_energy(self, seconds: float | None) -> str:
        energy = getattr(self.results, "energy", None)
        if energy is None or energy.kwh is None:
            return "not measured"
        part = (
            f" of {seconds:.1f} s"
            if seconds is not None and is_number(seconds) and energy.seconds < 0.99 * seconds
            else ""
        )
        return f"{energy.kwh:.4g} kWh, counted by {', '.join(energy.joules)} over {energy.seconds:.1f} s{part}"
