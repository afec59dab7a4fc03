"""create_repro_bundle: everything that trains a run again elsewhere, and the comparison of its losses row by row."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import tempfile
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from utils import __version__
from utils.environment import package_versions
from utils.errors import CheckpointError, DataNotFoundError, ExportError
from utils.storage import absolute_path, atomic_write, read_json_lines, write_json, write_text
from utils.training.config_files import read_config_file, write_config_file
from utils.training.engine.checkpointing.store import newest, read_header

#: Names of the files in a bundle.
RECORD, JOB, EXPECTED, ENVIRONMENT, PROGRAM = (
    "repro.json",
    "job.yaml",
    "history.jsonl",
    "environment.json",
    "reproduce.py",
)

# Settings of this machine and of services, which have no part in what is learned.
_NOT_REPEATED = (
    "output_dir",
    "checkpoint_dir",
    "export_dir",
    "run_name",
    "use_wandb",
    "wandb_project",
    "wandb_entity",
    "notes",
)

_ROOT = Path(__file__).resolve().parents[2]


def create_repro_bundle(results: Any, output_path: str | Path) -> Path:
    """Write what trains a run again: settings, source of data and model, code version, environment, seeds, and its losses.

    `python reproduce.py` in the bundle, or `python -m cli reproduce BUNDLE`, trains again and compares every recorded loss.
    Where the run did not record enough, the bundle is written all the same, and says what is missing. Data are not
    in it: only where they came from, as it was given, and their fingerprint.

    Args:
        results: a TrainingResults, or the path of a run's folder.
        output_path: a new folder, or a file that ends in .zip and may replace an older one.
    Returns:
        The absolute path.
    Raises:
        DataNotFoundError: there is no run in the folder.
        ExportError: the bundle cannot be written, or the folder exists.
    Not covered: callbacks, collate functions, optimizers and criteria of the caller's.
    """
    run_dir = absolute_path(getattr(results, "run_dir", results))
    if not (run_dir / "config.yaml").is_file() or not (run_dir / "history.jsonl").is_file():
        raise DataNotFoundError(f"{run_dir} holds no run: it has no config.yaml or no history.jsonl.")
    target = absolute_path(output_path)
    zipped = target.suffix == ".zip"
    try:
        if not zipped and target.exists():
            raise ExportError(f"{target} exists; choose a new folder, or a name that ends in .zip.")
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{target.stem}.", dir=target.parent) as staging:
            folder = Path(staging) / "bundle"
            folder.mkdir()
            _write(run_dir, folder)
            if zipped:
                atomic_write(target, lambda file: _pack(file, folder))
            else:
                os.rename(folder, target)
    except OSError as error:
        raise ExportError(f"{target} could not be written: {error.strerror or error}.") from error
    return target


def _write(run_dir: Path, folder: Path) -> None:
    recorded = read_config_file(run_dir / "config.yaml")
    training = {name: value for name, value in (recorded.get("training") or {}).items() if name not in _NOT_REPEATED}
    setup = {name: value for name, value in (recorded.get("setup") or {}).items() if name not in training}
    job = {"preset": "starter", "model": recorded.get("model") or {}, "setup": setup, "training": training}
    write_config_file(folder / JOB, job)
    shutil.copyfile(run_dir / "history.jsonl", folder / EXPECTED)
    if (run_dir / ENVIRONMENT).is_file():
        shutil.copyfile(run_dir / ENVIRONMENT, folder / ENVIRONMENT)
    fingerprint, checkpoint_environment, step = _of_checkpoint(run_dir)
    code = code_version()
    write_json(
        folder / RECORD,
        {
            "run": run_dir.name, "trainbook": __version__, "code": code, "missing": _missing(recorded),
            "fingerprint": fingerprint, "environment": checkpoint_environment, "steps": step, "stop_reason": _ending(run_dir),
            "seeds": {name: training.get(name) for name in ("random_seed", "deterministic")},
        },
    )  # fmt: skip
    versions = _versions(folder)
    write_text(folder / "requirements.txt", "".join(f"{name}=={version}\n" for name, version in versions.items()))
    write_text(folder / PROGRAM, _PROGRAM)
    write_text(folder / "README.md", _readme(run_dir.name, code, _missing(recorded)))


def _missing(recorded: Mapping[str, Any]) -> dict[str, str]:
    """Parts that the run did not record -> why they matter and what to give."""
    reasons = {}
    if not recorded.get("model"):
        reasons["model"] = (
            "The run does not know how its initial model was made: it was created in a notebook or script, or had been "
            "trained before. Give its source with --model (a file.py:Class, a name of ModelRegistry, a Hub id)."
        )
    if not recorded.get("setup"):
        reasons["data"] = (
            "The run was given its data as objects, not by prepare_data, so their source is not known. Give a file with "
            "--data that prepares to the same blocks."
        )
    return reasons


def _of_checkpoint(run_dir: Path) -> tuple[Mapping[str, str], Mapping[str, Any], int | None]:
    """Fingerprint, environment and step of the newest checkpoint; empty without a checkpoint."""
    try:
        header = read_header(newest(run_dir / "checkpoints", mapped=True)[0])
    except CheckpointError:
        return {}, {}, None
    return dict(header["fingerprint"]), dict(header["environment"]), header["state"]["step"]


def _ending(run_dir: Path) -> str | None:
    """Reason why the run ended; None where it did not, or it is not known."""
    file = run_dir / "state.json"
    found = read_config_file(file).get("stop_reason") if file.is_file() else None
    return None if found is None else str(found)


def _versions(folder: Path) -> Mapping[str, str]:
    file = folder / ENVIRONMENT
    recorded = json.loads(file.read_text(encoding="utf-8")).get("packages") if file.is_file() else None
    return recorded or package_versions()


def code_version() -> dict[str, Any] | None:
    """{"commit", "dirty"} of this library's source; None where it is not a git checkout or there is no git."""
    if not (_ROOT / ".git").exists():
        return None
    try:
        commit, changes = (
            subprocess.run(
                ["git", *arguments], cwd=_ROOT, capture_output=True, text=True, timeout=30, check=True
            ).stdout
            for arguments in (("rev-parse", "HEAD"), ("status", "--porcelain", "--untracked-files=no"))
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return {"commit": commit.strip(), "dirty": bool(changes.strip())}


@dataclass(frozen=True)
class Comparison:
    """Losses of two histories, compared at the same event and step.

    Attributes:
        compared: number of losses; identical: those that are equal to the last bit.
        largest: largest relative difference; largest_at: where, in words.
        first: where the first difference is, in words; None without any.
        absent: rows of the first history that the second does not have.
    """

    compared: int
    identical: int
    largest: float
    largest_at: str
    first: str | None
    absent: int

    def agrees(self, rtol: float) -> bool:
        """Whether every loss was found again within a relative difference of `rtol`."""
        return self.compared > 0 and self.absent == 0 and self.largest <= rtol

    def __str__(self) -> str:
        if not self.compared:
            return "no loss could be compared"
        absent = f"; {self.absent} recorded losses are absent" if self.absent else ""
        if self.identical == self.compared:
            return f"all {self.compared} losses are identical to the last bit{absent}"
        return (
            f"{self.identical} of {self.compared} losses are identical; the largest relative difference is {self.largest:.3g} "
            f"at {self.largest_at}, the first is at {self.first}{absent}"
        )


def compare_histories(
    expected: Sequence[Mapping[str, Any]], found: Sequence[Mapping[str, Any]], until_step: int | None = None
) -> Comparison:
    """Compare the training and validation losses of two histories.

    Args:
        expected, found: rows of history.jsonl.
        until_step: rows of later steps are left out, and the validation after this one.
    """
    first, second = (dict(_losses(rows, until_step)) for rows in (expected, found))
    largest, largest_at, first_difference, identical, compared = 0.0, "", None, 0, 0
    for place, value in first.items():
        if place not in second:
            continue
        compared += 1
        other = second[place]
        if value == other or (math.isnan(value) and math.isnan(other)):
            identical += 1
            continue
        difference = abs(value - other) / max(abs(value), 1e-12)
        first_difference = first_difference or place
        if not difference <= largest:  # NaN is the largest
            largest, largest_at = (math.inf if math.isnan(difference) else difference), place
    absent = sum(place not in second for place in first)
    return Comparison(compared, identical, largest, largest_at, first_difference, absent)


def _losses(rows: Iterable[Mapping[str, Any]], until_step: int | None) -> Iterable[tuple[str, float]]:
    for row in rows:
        step = row.get("step", 0)
        # A training that is stopped after a step does not validate there.
        if until_step is not None and (step > until_step or (step == until_step and row["event"] != "step")):
            continue
        for name in ("train/loss", "val/loss"):
            if isinstance(row.get(name), (int, float)) and (row["event"], name) != ("epoch", "val/loss"):
                yield f"{row['event']} {row.get('step')}, {name}", float(row[name])


@dataclass(frozen=True)
class ReproBundle:
    """An opened bundle.

    Attributes:
        job: sections of a job file; record: what repro.json holds; expected: rows of the run's history.
    """

    job: Mapping[str, Any]
    record: Mapping[str, Any]
    expected: Sequence[Mapping[str, Any]]


def read_repro_bundle(path: str | Path) -> ReproBundle:
    """Open a folder or zip file of `create_repro_bundle`. Raises `DataNotFoundError` when it is not a bundle."""
    given = absolute_path(path)
    with tempfile.TemporaryDirectory() as temporary:
        folder = given
        if given.is_file() and zipfile.is_zipfile(given):
            folder = Path(temporary)
            with zipfile.ZipFile(given) as archive:
                for name in (RECORD, JOB, EXPECTED):  # by name: nothing else is taken out
                    if name in archive.namelist():
                        (folder / name).write_bytes(archive.read(name))
        if absent := [name for name in (RECORD, JOB, EXPECTED) if not (folder / name).is_file()]:
            raise DataNotFoundError(f"{given} is not a bundle of create_repro_bundle: it has no {', '.join(absent)}.")
        return ReproBundle(
            read_config_file(folder / JOB), read_config_file(folder / RECORD), read_json_lines(folder / EXPECTED)
        )


def _pack(file: IO[bytes], folder: Path) -> None:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(folder.iterdir()):
            archive.write(path, path.name)


def _readme(name: str, code: Mapping[str, Any] | None, missing: Mapping[str, str]) -> str:
    version = f"Trainbook {__version__}"
    if code is not None:
        changed = ", with changes that were not committed" if code["dirty"] else ""
        version += f", commit {code['commit']}{changed}"
    gaps = "".join(f"- {reason}\n" for reason in missing.values()) or "- Nothing that is known.\n"
    return (
        f"# Reproduction of run {name}\n\nTrained with {version}.\n\n"
        f"```\npip install -r requirements.txt\npython {PROGRAM}\n```\n\n"
        "trains again with the stored settings and seeds and compares every recorded loss. It exits with 0 when they agree, 1 "
        "when they do not, and 2 when it cannot train here, with the reason.\n\n"
        f"## What is not recorded\n\n{gaps}- Callbacks, collate functions, optimizers and criteria of your own.\n\n"
        f"## Files\n\n- {JOB}: settings, and sources of data and model\n- {EXPECTED}: the losses to compare with\n"
        f"- {RECORD}: code version, data fingerprint, seeds\n- {ENVIRONMENT}: machine and packages\n"
    )


_PROGRAM = '''"""Train this run again and compare its losses: python reproduce.py [--help]."""

import sys
from pathlib import Path

try:
    from cli.reproduce import main
except ImportError as error:
    sys.exit(
        f"Trainbook cannot be imported ({error}). Start this program from the folder of Trainbook's source with "
        "PYTHONPATH=. set; README.md names the version."
    )

sys.exit(main([str(Path(__file__).resolve().parent), *sys.argv[1:]]))
'''
