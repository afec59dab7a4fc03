"""create_export_bundle: a folder with the model in several formats and everything that is needed to run and serve it."""

from __future__ import annotations

import errno
import hashlib
import importlib
import importlib.util
import json
import logging
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import nn

import utils
from utils.errors import ExportError, TrainbookError
from utils.schema import shown
from utils.scrubbing import scrub
from utils.storage import absolute_path, write_json, write_text
from utils.training.export import bundle_facts, bundle_texts, exporting, image_processing
from utils.training.export.bundle_privacy import names_this_machine, portable, without_debug_records
from utils.training.export.folders import remove_stale_staging, staged_folder
from utils.training.export.manifest import MARKER
from utils.training.export.other_process import kept_processes
from utils.training.export_formats import FORMATS
from utils.training.task_spec import TaskSpec
from utils.training.training_config import TrainingConfig

log = logging.getLogger("trainbook.export")

#: Formats that inference.py can run without the model's code, quantised ones last.
RUNNABLE = tuple(
    sorted(
        (name for name, one in FORMATS.items() if one.bundle_packages), key=lambda name: bool(FORMATS[name].made_from)
    )
)

# Not among the checksums: the file that holds them, and what a later check of the export writes anew.
_UNRECORDED = ("metadata.json", MARKER, "health_report.json", "health_report.md")
_PROGRAMS = Path(__file__).with_name("bundle_files")
# Loading torch and transformers on a busy machine, once for all formats.
_VERIFY_TIMEOUT_S = 900
# A disk that takes nothing more: as Python reports it, and as safetensors, torch's writer and the check before writing do.
_FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)
_FULL_DISK_WORDS = re.compile(
    rf"\(os error (?:{'|'.join(map(str, _FULL_DISK))})\)|PytorchStreamWriter failed|not enough disk space"
)


def create_export_bundle(
    model: nn.Module,
    config: Any = None,
    task_spec: TaskSpec | Mapping[str, Any] | None = None,
    training_config: TrainingConfig | Mapping[str, Any] | None = None,
    export_base_dir: str | Path = "exports",
    *,
    tokenizer: Any = None,
    source: str = "the model in memory",
    run: Mapping[str, Any] | None = None,
) -> Path:
    """Write `export_base_dir`/model_<time>: the model, configs, inference.py, serve.py, README, Dockerfile, metadata.

    The formats are `training_config.export_formats` and a state_dict. Each is verified by its exporter, and run by inference.py
    in another process where it can be. A format that cannot be written does not affect the others: it is logged, and its reason
    is in metadata.json ("not_written") and in the README. If none of the requested formats runs without the model's code, one
    that does is added where possible. The folder appears complete or not at all. The model is not changed.

    Args:
        model: the trained model; a compiled one is unwrapped.
        config: the model's own configuration, for sizes that the model does not state.
        task_spec: what the model does; None: taken from the model's class.
        training_config: how it was trained, for the record and for `export_formats`.
        export_base_dir: the folder to write to; made when it is absent.
        tokenizer: saved with it; None: the bundle takes token ids.
        source: where the weights come from, in words.
        run: further entries for the metadata, by name.
    Returns:
        The bundle's path, absolute.
    Raises:
        ExportError: the folder cannot be written, or no format could be.
    """
    task_spec = TaskSpec.from_dict(task_spec) if isinstance(task_spec, Mapping) else task_spec or _task_of(model)
    if isinstance(training_config, Mapping):
        training_config = TrainingConfig.from_dict(training_config)
    training_config = training_config or TrainingConfig()
    if not isinstance(model, nn.Module):
        raise ExportError(f"create_export_bundle takes an nn.Module as model; got {shown(model)}")
    base = absolute_path(export_base_dir)
    return write_bundle(exporting._cpu_copy(model), config, task_spec, training_config, base, tokenizer, source, run)


def write_bundle(
    model: nn.Module, config: Any, task_spec: TaskSpec, training_config: TrainingConfig, base: Path, tokenizer: Any,
    source: str, run: Mapping[str, Any] | None = None, results: Any = None,
) -> Path:  # fmt: skip
    """The same for a model on the CPU that nobody else uses; with `results` of its training for the model card."""
    model = getattr(model, "_orig_mod", model)  # inside torch.compile's wrapper
    try:
        base.mkdir(parents=True, exist_ok=True)
        remove_stale_staging(base)
        target = _new_name(base)
        with kept_processes(), staged_folder(target) as staging:
            _Maker(model.eval(), config, task_spec, training_config, tokenizer, staging, results).write(
                source, run or {}
            )
    except OSError as error:
        raise ExportError(
            f"the bundle could not be written to {base}: {error.strerror or error}. Nothing is left of it. Free some space, or "
            "choose another export_dir."
        ) from error
    return target


def _task_of(model: nn.Module) -> TaskSpec:
    from utils.training.engine.loss.tasks.inference import task_type_of

    task_type = task_type_of(model)
    images = task_type == "image_classification" or getattr(model, "main_input_name", "") == "pixel_values"
    return TaskSpec("model", "vision" if images else "text", task_type=task_type)


def _new_name(base: Path) -> Path:
    """A name that no bundle in `base` has."""
    name = f"model_{datetime.now(UTC):%Y%m%d_%H%M%S}"
    candidates = (base / (name if number == 1 else f"{name}_{number}") for number in range(1, 10_000))
    return next(path for path in candidates if not path.exists())


class _Maker:
    """One bundle while it is being made."""

    def __init__(
        self, model: nn.Module, config: Any, task_spec: TaskSpec, training_config: TrainingConfig, tokenizer: Any, folder: Path,
        results: Any,
    ) -> None:  # fmt: skip
        self.model, self.config, self.task_spec = model, config, task_spec
        self.training_config, self.tokenizer, self.folder, self.results = training_config, tokenizer, folder, results
        self.vision = task_spec.modality == "vision"
        self.has_engine = task_spec.modality in ("text", "vision")
        self.artifacts: dict[str, str] = {}
        self.parity: dict[str, Any] = {}
        self.not_written: dict[str, str] = {}
        self.notes: list[str] = []

    def write(self, source: str, run: Mapping[str, Any]) -> None:
        """Everything, into `folder`."""
        (self.folder / "artifacts").mkdir()
        (self.folder / "configs").mkdir()
        for name in dict.fromkeys((*self.training_config.export_formats, "pytorch")):
            self._export(name, source)
        described, notes = bundle_facts.write_tokenizer(self.tokenizer, self.folder / "tokenizer")
        self.notes += notes
        sizes = bundle_facts.sizes_of(self.model, self.config, self.task_spec)
        special = bundle_facts.special_ids_of(self.model, self.tokenizer)
        preprocessing = self._make_runnable(source, sizes, special, described)
        if not self.artifacts:
            raise ExportError("no format could be written:\n  " + "\n  ".join(map(": ".join, self.not_written.items())))
        metadata: dict[str, Any] = {
            "task_name": self.task_spec.name, "modality": self.task_spec.modality, "task_type": self.task_spec.task_type,
            "multi_label": bool(self.task_spec.multi_label), "formats": list(self.artifacts),
            "export_timestamp": datetime.now(UTC).isoformat(timespec="seconds"),
            "framework_version": torch.__version__, "trainbook_version": utils.__version__, "source": source,
            "artifacts": self.artifacts, "runnable": self._runnable(), "not_written": self.not_written, "model": sizes,
            "special_ids": special, "labels": bundle_facts.labels_of(self.model, self.task_spec), "tokenizer": described,
            "preprocessing": preprocessing, "parity": self.parity, "verification": {}, **run,
        }  # fmt: skip
        self._write_programs(metadata)
        self._write_card(metadata)
        self._attach_report()
        self._describe(metadata)
        self._verify(metadata)
        self._describe(metadata)

    # ---- Artifacts ----

    def _export(self, name: str, source: str) -> None:
        """One format, moved to its place. What goes wrong concerns this format only, unless the disk is full."""
        if name not in FORMATS:
            self._leave_out(name, f"this version exports: {', '.join(FORMATS)}")
            return
        target = self.folder / "artifacts" / name
        try:
            FORMATS[name].refuse(self.model)
            traced = target.parent if FORMATS[name].made_from in self.artifacts else None
            tokenizer = self.tokenizer if name == "hf" else None
            result = FORMATS[name].write(
                self.model, tokenizer, target, source, (), task_spec=self.task_spec, traced=traced
            )
            self.artifacts[name] = self._placed(name, target)
        # Exporters run the model's own code and other libraries': whatever these raise concerns one format only.
        except Exception as error:
            if _is_full_disk(error):
                raise
            shutil.rmtree(target, ignore_errors=True)
            self._leave_out(name, _sentence(error))
            return
        self.parity[name] = {
            key: value for key, value in result.parity.items() if isinstance(value, (int, float, bool))
        }

    def _placed(self, name: str, made: Path) -> str:
        """Move an exporter's files to their place in the bundle. Returns the path of the artifact in the bundle."""
        (made / MARKER).unlink(missing_ok=True)
        artifacts = made.parent
        without_debug_records(made)
        for path in sorted(made.rglob("*")):
            if path.is_file() and (where := names_this_machine(path)):
                raise ExportError(f"{path.name} would hold a path of this machine ({where}), so it is left out")
        if (single := FORMATS[name].bundle_name) is not None:
            # Several files keep their names: a graph names the weights beside it.
            files = sorted(made.glob(f"*{Path(single).suffix}*"))
            names = [file.name for file in files] if len(files) > 1 else [single]
            for file, new in zip(files, names, strict=True):
                file.rename(artifacts / new)
            shutil.rmtree(made)
            return f"artifacts/{single if single in names else names[0]}"
        main = next((file for ending in ("*.pt2", "*.onnx", "*.gguf") for file in sorted(made.glob(ending))), made)
        return main.relative_to(self.folder).as_posix()

    def _leave_out(self, name: str, reason: str) -> None:
        self.not_written[name] = portable(reason)
        log.warning("%s is not in the bundle: %s", name, self.not_written[name])

    def _runnable(self) -> list[str]:
        only = ("hf",) if self.task_spec.task_type == "seq2seq" else RUNNABLE
        return [name for name in only if name in self.artifacts and self.has_engine]

    def _make_runnable(
        self, source: str, sizes: Mapping[str, Any], special: Mapping[str, Any], tokenizer: Mapping[str, Any] | None
    ) -> dict[str, Any] | None:
        """Record an example, and a format that runs without the model's code if the bundle lacks one. Returns how
        images are prepared."""
        preprocessing: dict[str, Any] | None = None
        try:
            if not self.has_engine:
                raise ExportError(f"inference.py runs models over text and images, not over {self.task_spec.modality}")
            if self.vision:
                preprocessing = image_processing.preprocessing_of(self.model, self.config, self.task_spec)
            example = bundle_facts.example_of(
                self.model, self.task_spec, sizes, special, preprocessing, tokenizer["size"] if tokenizer else None
            )
        # The model's own code on an input that was made up: without one the formats stay, with their exporters' checks.
        except Exception as error:  # noqa: BLE001 - see above
            self.notes.append(f"inference.py cannot run this model: {portable(_sentence(error))}")
            self.has_engine = False
            return preprocessing
        for name in RUNNABLE:
            if self._runnable():
                break
            if name in FORMATS and name not in self.not_written:
                self._export(name, source)
                if name in self.artifacts:
                    self.notes.append(f"{name} was added: none of the requested formats runs without the model's code.")
        write_json(self.folder / "artifacts" / "example.json", example)
        return preprocessing

    # ---- Everything else ----

    def _write_programs(self, metadata: Mapping[str, Any]) -> None:
        for name in ("inference.py", "runners.py", "verify.py", "serve.py", "torchserve_handler.py"):
            shutil.copyfile(_PROGRAMS / name, self.folder / name)
        name = bundle_texts.slug(self.task_spec.name)
        configs = self.folder / "configs"
        write_json(configs / "task_spec.json", portable(self.task_spec.to_dict()))
        write_json(configs / "training_config.json", _for_others(self.training_config))
        write_json(configs / "torchserve_config.json", bundle_texts.torchserve_config(name))
        write_text(configs / "kserve.yaml", bundle_texts.kserve_config(name))
        write_text(self.folder / "Dockerfile", bundle_texts.dockerfile())
        write_text(self.folder / ".dockerignore", ".venv\n__pycache__\n*.mar\n")

    def _write_card(self, metadata: Mapping[str, Any]) -> None:
        """MODEL_CARD.md, with the bundle's own way of using the model. One that cannot be made is a note in the README."""
        name = "utils.training.export.model_card"
        if importlib.util.find_spec(name) is None:
            return
        try:
            generator = importlib.import_module(name).ModelCardGenerator()
            card: str = generator.generate(self.task_spec.name, self.model, self.results, exports=[])
        # It reads whatever the run's folder and the model's config hold; the bundle does not depend on it.
        except Exception as error:  # noqa: BLE001 - see above
            self.notes.append(f"There is no model card: {portable(_sentence(error))}")
            return
        write_text(self.folder / "MODEL_CARD.md", portable(bundle_texts.with_usage(card, metadata)))

    def _attach_report(self) -> None:
        """The run's report, where one was written, without paths of this machine."""
        report = Path(self.results.run_dir) / "report.html" if self.results is not None else None
        if report is not None and report.is_file():
            write_text(self.folder / "REPORT.html", portable(report.read_text(encoding="utf-8")))

    def _describe(self, metadata: dict[str, Any]) -> None:
        """Write what depends on which formats there are: requirements, README, metadata with the checksums of all files."""
        text = bundle_texts.requirements(metadata["runnable"], metadata["tokenizer"], self.vision)
        write_text(self.folder / "requirements.txt", text)
        report = bundle_texts.health(metadata, bundle_facts.not_finite(self.model))
        write_json(self.folder / "health_report.json", report)
        write_text(self.folder / "health_report.md", bundle_texts.health_markdown(report))
        write_json(
            self.folder / MARKER,
            {"format": "bundle", "source": metadata["source"], "class": metadata["model"]["class"]},
        )
        listed = sorted({*self._files(), "README.md", *_UNRECORDED})
        write_text(self.folder / "README.md", scrub(bundle_texts.readme(metadata, listed, self.notes)))
        checksums = {name: _checksum(self.folder / name) for name in self._files()}
        write_json(self.folder / "metadata.json", portable({**metadata, "files": checksums}))

    def _files(self) -> list[str]:
        """Paths in the bundle of the files whose checksums are recorded."""
        found = (path.relative_to(self.folder).as_posix() for path in self.folder.rglob("*") if path.is_file())
        return sorted(name for name in found if name not in _UNRECORDED)

    def _verify(self, metadata: dict[str, Any]) -> None:
        """Run verify.py as the bundle's user would. A format that does not pass is removed, with its reason."""
        if not metadata["runnable"]:
            return
        for name, found in _verified(self.folder).items():
            if found["ok"]:
                metadata["verification"][name] = {"max_abs_diff": found["max_abs_diff"]}
                continue
            path = self.folder / self.artifacts.pop(name)
            for file in [path] if path.is_dir() else path.parent.glob(f"{path.name}*"):
                shutil.rmtree(file) if file.is_dir() else file.unlink()
            metadata["formats"].remove(name)
            metadata["runnable"].remove(name)
            self.parity.pop(name, None)
            self._leave_out(name, f"its file does not run as inference.py runs it: {found['reason']}")


def _verified(folder: Path) -> dict[str, Any]:
    """Run verify.py, in a process without this library on its path, and return its verdict on each format."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    environment |= {"PYTHONDONTWRITEBYTECODE": "1", "HF_HUB_OFFLINE": "1"}
    try:
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "verify.py"], cwd=folder, env=environment, capture_output=True, text=True,
            timeout=_VERIFY_TIMEOUT_S, check=False,
        )  # fmt: skip
        answer: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
        return dict(answer["formats"])
    except (subprocess.TimeoutExpired, IndexError, ValueError, KeyError) as error:
        said = getattr(error, "stderr", None) or (done.stderr if "done" in locals() else "")
        raise ExportError(f"the bundle's verify.py failed: {portable(str(said)[-500:]) or error}") from error


def _is_full_disk(error: BaseException) -> bool:
    """Whether the error, or one that it came from, is of a disk that takes nothing more."""
    seen: BaseException | None = error
    while seen is not None:
        if (isinstance(seen, OSError) and seen.errno in _FULL_DISK) or _FULL_DISK_WORDS.search(str(seen)):
            return True
        seen = seen.__cause__
    return False


def _sentence(error: BaseException) -> str:
    text = str(error) if isinstance(error, TrainbookError) else f"{type(error).__name__}: {str(error)[:300]}"
    return text.strip() or type(error).__name__


def _for_others(config: TrainingConfig) -> dict[str, Any]:
    """The config without what belongs to this machine and its user: folders keep their last name only."""
    values = config.to_dict()
    for name in ("output_dir", "checkpoint_dir", "export_dir"):
        if values.get(name) is not None:
            values[name] = Path(values[name]).name or "runs"
    values["wandb_entity"] = None
    return dict(portable(values))


def _checksum(path: Path) -> dict[str, Any]:
    with open(path, "rb") as file:
        return {"sha256": hashlib.file_digest(file, "sha256").hexdigest(), "bytes": path.stat().st_size}
