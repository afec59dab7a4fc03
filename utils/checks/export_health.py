"""ExportHealthChecker: whether an export is complete, unaltered, and still computes what the model computes."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from utils.adapters.facts import model_facts
from utils.check_result import CheckReport, CheckResult, Verdict
from utils.checks.probe import CannotProbeError, Probe, counted, left_as_it_was, probe
from utils.environment import free_memory_bytes
from utils.errors import ConfigError, ExportError, TrainbookError, first_line
from utils.storage import atomic_write, write_text
from utils.training.export.loading import Run
from utils.training.export.manifest import Differences, differences, recorded_files
from utils.training.export_formats import FORMATS, canonical_format, unknown_format

_LARGE_BYTES = 1000 * 2**20
_RUNS, _TIME_LIMIT_S = 5, 5.0
_SLOWER = 5.0


class HealthReport(CheckReport):
    """The checks of an export, with a score.

    Attributes:
        export_dir: what was checked.
    """

    def __init__(self, export_dir: Path, results: Sequence[CheckResult], seconds: float) -> None:
        super().__init__("Export health", results, seconds)
        self.export_dir = export_dir

    @property
    def health_score(self) -> float:
        """(passed + half of the warnings) / checks that ran, 0 to 1; 0 when none ran."""
        weights = {"pass": 1.0, "warn": 0.5, "fail": 0.0}
        scores = [weights[one.verdict] for one in self.results if one.verdict != "not run"]
        return sum(scores) / len(scores) if scores else 0.0

    @property
    def all_passed(self) -> bool:
        """Whether at least one check ran and none failed."""
        ran = [one for one in self.results if one.verdict != "not run"]
        return bool(ran) and all(one.passed for one in ran)

    @property
    def conclusion(self) -> str:
        """Number of checks by verdict, and the score."""
        return f"{super().conclusion}; health score {self.health_score:.2f}"

    def to_json(self) -> str:
        """The report with score, as strict JSON."""
        import json

        content = json.loads(super().to_json())
        content |= {"health_score": round(self.health_score, 4), "all_passed": self.all_passed}
        return json.dumps(content, indent=2, allow_nan=False)

    def to_markdown(self) -> str:
        """The report as a table in Markdown."""
        from utils.training.export.markdown import inline

        lines = [
            f"# {self.title}",
            "",
            f"{self.conclusion}.",
            "",
            "| Check | Verdict | Summary | Remedy |",
            "|---|---|---|---|",
        ]
        lines += [
            f"| {inline(one.name)} | {one.verdict} | {inline(one.summary)} | {inline(one.remedy)} |"
            for one in self.results
        ]
        return "\n".join(lines) + "\n"

    def write(self) -> None:
        """Write health_report.json and health_report.md into the folder.

        Raises:
            ExportError: they cannot be written.
        """
        try:
            atomic_write(self.export_dir / "health_report.json", lambda file: file.write(self.to_json().encode()))
            write_text(self.export_dir / "health_report.md", self.to_markdown())
        except OSError as error:
            raise ExportError(
                f"{self.export_dir}: the report could not be written: {error.strerror or error}."
            ) from error


class ExportHealthChecker:
    """Check exports of one model against it.

    Args:
        model: the model that was exported; it is left as it was.
        config, task_spec: as for `run_all_tier1_tests`.
    """

    def __init__(self, model: nn.Module, config: Any = None, task_spec: Any = None) -> None:
        self.model = getattr(model, "_orig_mod", model)
        self._config, self._task_spec = config, task_spec

    def run_all_checks(
        self, export_dir: str | Path, formats: Sequence[str] | None = None, *, write: bool = True
    ) -> HealthReport:
        """Check files and hashes, the model itself, and for each format that it loads, its outputs and its speed.

        Args:
            export_dir: one exported format, a folder of several, or a bundle.
            formats: those that should be there; None: those that are.
            write: leave health_report.json and health_report.md in the folder.
        Returns:
            The report. A file that is missing or was altered is a failure, and lowers `health_score`.
        Raises:
            ConfigError: an unknown format. ExportError: the report cannot be written.
        """
        began = time.monotonic()
        folder = Path(export_dir).expanduser().absolute()
        names = self._formats(folder, formats)
        recorded = _against_records(folder)
        results = [_files(folder, names, recorded), _hashes(folder, recorded), *self._of_model()]
        found = self._probe()
        for name in names:
            results += self._of_format(folder, name, found)
        report = HealthReport(folder, results, time.monotonic() - began)
        if write and folder.is_dir():
            report.write()
        return report

    def _formats(self, folder: Path, formats: Sequence[str] | None) -> list[str]:
        if formats is None:
            return [name for name in FORMATS if find_artifact(folder, name) is not None and _is_own(folder, name)]
        names = list(
            dict.fromkeys(canonical_format(name) for name in ([formats] if isinstance(formats, str) else formats))
        )
        for name in names:
            if name not in FORMATS:
                raise ConfigError(unknown_format(name))
        return names

    def _probe(self) -> Probe | CheckResult:
        try:
            return probe(self.model, self._config, self._task_spec)
        except CannotProbeError as error:
            return CheckResult("forward", "not run", str(error))

    # ---- the model ----

    def _of_model(self) -> list[CheckResult]:
        return [self._architecture(), self._parameters(), self._memory()]

    def _architecture(self) -> CheckResult:
        facts = model_facts(self.model)
        measured = {"class": facts.name, "parameters": facts.parameters, "vocab_size": facts.vocab_size}
        given = {name: _entry(self._config, name) or _entry(self._task_spec, name) for name in ("vocab_size",)}
        wanted = given["vocab_size"]
        if wanted is not None and facts.vocab_size is not None and wanted > facts.vocab_size:
            return CheckResult(
                "architecture", "fail", f"The config says vocab_size={wanted:,}; the model takes {facts.vocab_size:,} ids.",
                measured, {"vocab_size": wanted}, "Give the config of this model.",
            )  # fmt: skip
        size = "unknown" if facts.parameters is None else f"{facts.parameters:,}"
        return CheckResult("architecture", "pass", f"{facts.name} with {size} parameters.", measured)

    def _parameters(self) -> CheckResult:
        tensors = [*self.model.named_parameters(), *self.model.named_buffers()]
        # Infinity is a fault in a parameter only: masks are buffers of -inf by design.
        infinite = {name for name, value in self.model.named_parameters() if _any(value, torch.isinf)}
        broken = [name for name, value in tensors if name in infinite or _any(value, torch.isnan)]
        if broken:
            return CheckResult(
                "parameters", "fail", f"NaN or infinity in {counted(len(broken), 'tensor')}: {', '.join(broken[:4])}.",
                {"not_finite": len(broken)}, remedy="Export an earlier checkpoint, and train with a lower learning rate.",
            )  # fmt: skip
        return CheckResult("parameters", "pass", f"All {len(tensors)} parameters and buffers hold numbers.")

    def _memory(self) -> CheckResult:
        size = sum(one.numel() * one.element_size() for one in (*self.model.parameters(), *self.model.buffers()))
        free = free_memory_bytes("cpu")
        measured = {"weights_mib": size / 2**20, "free_mib": None if free is None else free / 2**20}
        limit = _LARGE_BYTES if free is None else min(_LARGE_BYTES, free)
        summary = f"{size / 2**20:,.1f} MiB of weights."
        if size > limit:
            return CheckResult(
                "memory", "warn", summary, measured, {"weights_mib": limit / 2**20},
                "Serve it on a machine with more memory, or in half precision or int8.",
            )  # fmt: skip
        return CheckResult("memory", "pass", summary, measured, {"weights_mib": limit / 2**20})

    # ---- one format ----

    def _of_format(self, folder: Path, name: str, found: Probe | CheckResult) -> list[CheckResult]:
        checks = (f"load: {name}", f"shapes: {name}", f"parity: {name}", f"performance: {name}")
        artifact = find_artifact(folder, name)
        if artifact is None:
            remedy = f"Export the model again with formats=[{name!r}]."
            return [
                CheckResult(check, "fail", f"There is no file of the format {name}.", remedy=remedy) for check in checks
            ]
        try:
            began = time.monotonic()
            run: Run | None = FORMATS[name].load(artifact, self.model)
        except Exception as error:  # noqa: BLE001 - a damaged file raises whatever its library does
            summary = f"{artifact.name} cannot be loaded: {_told(error)}"
            return [CheckResult(check, "fail", summary, remedy="Export the model again.") for check in checks]
        loaded = CheckResult(
            checks[0], "pass", f"{artifact.name} loads in {time.monotonic() - began:.2f} s.",
            {"load_s": time.monotonic() - began},
        )  # fmt: skip
        if run is None or FORMATS[name].tolerance is None:
            reason = f"Outputs of the format {name} are not compared here."
            return [loaded, *(CheckResult(check, "not run", reason) for check in checks[1:])]
        if isinstance(found, CheckResult):
            return [loaded, *(CheckResult(check, "not run", found.summary) for check in checks[1:])]
        return [loaded, *self._compared(name, run, found)]

    def _compared(self, name: str, run: Run, found: Probe) -> list[CheckResult]:
        batches = [_on_cpu(found.batch(size, min(found.length, found.max_length))) for size in (1, 4)]
        try:
            with left_as_it_was(self.model), torch.no_grad():
                self.model.eval()
                original = [found.call(_on(batch, found.device)).float().cpu() for batch in batches]
                exported = [run(batch).float().cpu() for batch in batches]
                timing = self._timed(run, found, batches[0])
        except Exception as error:  # noqa: BLE001 - exported code raises whatever its runtime does
            summary = f"A forward pass failed: {_told(error)}"
            checks = (f"shapes: {name}", f"parity: {name}", f"performance: {name}")
            return [CheckResult(check, "fail", summary, remedy="Export the model again.") for check in checks]
        shapes = [(tuple(a.shape), tuple(b.shape)) for a, b in zip(original, exported, strict=True)]
        if any(first != second for first, second in shapes):
            listed = ", ".join(f"{second} instead of {first}" for first, second in shapes if first != second)
            failed = CheckResult(
                f"shapes: {name}", "fail", f"Logits of shape {listed}.", remedy="Export the model again."
            )
            return [failed, CheckResult(f"parity: {name}", "fail", "The shapes differ."), _speed(name, timing)]
        fine = CheckResult(f"shapes: {name}", "pass", f"Logits of shape {' and '.join(str(one) for one, _ in shapes)}.")
        return [fine, _parity(name, original, exported), _speed(name, timing)]

    def _timed(self, run: Run, found: Probe, batch: Mapping[str, Tensor]) -> tuple[float, float]:
        """Median milliseconds of a forward pass: of the model, and of the exported one on the CPU."""
        times: tuple[list[float], list[float]] = ([], [])
        there, began = _on(batch, found.device), time.monotonic()
        while len(times[0]) < _RUNS and (not times[0] or time.monotonic() - began < _TIME_LIMIT_S):
            for one, given, taken in ((found.call, there, times[0]), (run, batch, times[1])):
                before = time.perf_counter()
                one(given).cpu()
                taken.append(1000 * (time.perf_counter() - before))
        return statistics.median(times[0]), statistics.median(times[1])


def _any(value: Tensor, kind: Callable[[Tensor], Tensor]) -> bool:
    return value.is_floating_point() and bool(kind(value.detach()).any())


def _parity(name: str, original: Sequence[Tensor], exported: Sequence[Tensor]) -> CheckResult:
    warn_from, fail_from = FORMATS[name].tolerance or (0.0, 0.0)
    scale = max(1.0, *(float(one.abs().max()) for one in original))
    difference = max(float((a - b).abs().max()) for a, b in zip(original, exported, strict=True)) / scale
    measured, thresholds = {"relative_difference": difference}, {"warn": warn_from, "fail": fail_from}
    # `not <`: NaN is no agreement.
    verdict: Verdict = "fail" if not difference < fail_from else "warn" if not difference < warn_from else "pass"
    remedy = "" if verdict == "pass" else "Export the model again, and check that it is the model that was exported."
    summary = f"Logits differ from the model's by {difference:.2g} of the largest logit."
    return CheckResult(f"parity: {name}", verdict, summary, measured, thresholds, remedy)


def _speed(name: str, timing: tuple[float, float]) -> CheckResult:
    model_ms, exported_ms = timing
    measured = {"model_ms": model_ms, "exported_ms": exported_ms, "threads": torch.get_num_threads()}
    summary = f"{exported_ms:.2f} ms for a batch of 1 (PyTorch: {model_ms:.2f} ms, {torch.get_num_threads()} threads)."
    if exported_ms > _SLOWER * model_ms and exported_ms > 50:
        remedy = "Use another format where speed matters."
        return CheckResult(f"performance: {name}", "warn", summary, measured, {"times_slower": _SLOWER}, remedy)
    return CheckResult(f"performance: {name}", "pass", summary, measured, {"times_slower": _SLOWER})


@dataclass(frozen=True)
class _Recorded:
    """A folder with a record of its files, and how they differ from it. `count` is the number of recorded files."""

    place: Path
    count: int
    differences: Differences


def _against_records(folder: Path) -> list[_Recorded] | str:
    """Each record in the folder and in those in it, compared with the files, which are read once; or why that failed."""
    below = sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    compared = []
    try:
        for place in (folder, *below):
            files = recorded_files(place)
            if files is not None:
                compared.append(_Recorded(place, len(files), differences(place, files)))
    except (ExportError, OSError) as error:
        return _told(error)
    return compared


def _files(folder: Path, names: Sequence[str], recorded: list[_Recorded] | str) -> CheckResult:
    remedy = "Export the model again; copy the folder as a whole."
    if not folder.is_dir():
        return CheckResult("files", "fail", f"{folder.name} is not a folder.", remedy=remedy)
    if not names:
        return CheckResult("files", "fail", "There is no exported model in the folder.", remedy=remedy)
    if isinstance(recorded, str):
        return CheckResult("files", "fail", recorded, remedy=remedy)
    missing = [f"a file of the format {name}" for name in names if find_artifact(folder, name) is None]
    missing += [str((one.place / name).relative_to(folder)) for one in recorded for name in one.differences.missing]
    if missing:
        return CheckResult("files", "fail", f"Missing: {', '.join(missing)}.", {"missing": missing}, remedy=remedy)
    return CheckResult("files", "pass", f"The files of {', '.join(names)} are there.")


def _hashes(folder: Path, recorded: list[_Recorded] | str) -> CheckResult:
    remedy = "Export the model again; do not change its files by hand."
    if isinstance(recorded, str):
        return CheckResult("hashes", "fail", recorded, remedy=remedy)
    if not recorded:
        reason = "No hashes are recorded, so changes of files cannot be seen."
        return CheckResult("hashes", "warn", reason, remedy="Export the model with export_model or as a bundle.")
    altered = [
        str((one.place / name).relative_to(folder))
        for one in recorded
        for name in (*one.differences.altered, *one.differences.missing)
    ]
    count = sum(one.count for one in recorded)
    if altered:
        summary = f"Altered or missing since the export: {', '.join(altered)}."
        return CheckResult("hashes", "fail", summary, {"altered": altered}, remedy=remedy)
    return CheckResult("hashes", "pass", f"SHA-256 of all {count} recorded files agree.", {"files": count})


def _is_own(folder: Path, name: str) -> bool:
    """Whether the file found for a format is of this format where several share an ending."""
    own = (folder / name).is_dir() or (folder / "artifacts" / name).exists()
    other = FORMATS[name].files_like
    return own or other is None or find_artifact(folder, other) is None


def find_artifact(export_dir: Path, name: str) -> Path | None:
    """The main file of a format: in a folder of the format's name, in `artifacts`, or in `export_dir` itself."""
    places = (export_dir / name, export_dir / "artifacts" / name, export_dir / "artifacts", export_dir)
    return next((file for place in places if (file := FORMATS[name].main_file(place)) is not None), None)


def _entry(source: Any, name: str) -> Any:
    value = source.get(name) if isinstance(source, Mapping) else getattr(source, name, None)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _on(batch: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    return {name: tensor.to(device) for name, tensor in batch.items()}


def _on_cpu(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return _on(batch, torch.device("cpu"))


def _told(error: BaseException) -> str:
    return str(error) if isinstance(error, TrainbookError) else first_line(error, with_class=True)
