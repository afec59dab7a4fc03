"""Modules that have moved, importable under their former names, with a DeprecationWarning that names the new one.

Importing a former name gives the very same module object, so that a class is one class under both names.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

# Package -> former name of a module in it -> its name now, relative to the package or, after a colon, in full.
_MOVED: Mapping[str, Mapping[str, str]] = {
    "utils.data.": {
        "columns": "read.columns", "corpus": "text.corpus", "csv_rows": "read.csv", "decoding": "read.decoding",
        "drift": "quality.drift", "examples": "sources", "file_tables": "read.file_tables", "files": "read.files",
        "hub": "text.hub", "ids": "id_limits", "image_files": "images.files", "image_sets": "images.samples",
        "inspection": "quality.inspection", "json_rows": "read.json", "labelled_tables": "labelled.table",
        "labels": "labelled.labels", "learnt_tokenizer": "labelled.learned_tokenizer",
        "load_report": "read.load_report", "loader": "text.loader", "local_texts": "text.local",
        "parts": "labelled.usable_rows", "pixels": "images.pixels", "preview": "text.preview",
        "readers": "read.text_file", "records": "read.records", "registry": "images.registry",
        "report": "text.report", "rows": "read.rows", "splitting": "text.splitting",
        "stored_texts": "read.stored_texts", "table_cache": "read.cache", "tables": "read.arrow",
        "targets": "labelled.targets", "task_columns": "read.task_columns", "text_encoding": "encoding",
        "text_rows": "read.txt", "text_rules": "read.text_rules", "text_statistics": "text.statistics",
        "transforms": "images.transforms", "uploads": "read.uploads",
    },
    "utils.data.labelled.": {"learnt_tokenizer": "learned_tokenizer"},
    "utils.training.engine.": {
        "arguments": "sanity.arguments", "background": "checkpointing.background", "buffers": "compute.buffers",
        "checkpoint": "checkpointing.store", "checkpoint_content": "checkpointing.content",
        "checkpoint_reading": "checkpointing.reading", "checkpoint_writing": "checkpointing.writing",
        "compiling": "compute.compiling", "continuing": "checkpointing.resume", "criterion": "loss.criterion",
        "fabric": "distributed.fabric", "fast_paths": "hardware.fast_paths", "fit": "sanity.compatibility",
        "fused_loss": "loss.fused", "master_weights": "compute.master_weights", "memory": "hardware.memory",
        "muon": "compute.muon", "objective": "loss.objective", "optim": "compute.optim",
        "own_loss": "sanity.model_loss", "own_parts": "compute.user_supplied", "parts": "compute.assembly",
        "precision": "hardware.precision", "saving": "checkpointing.saver", "sharding": "distributed.sharding",
        "snapshot": "checkpointing.snapshot", "tasks": "loss.tasks", "trial": "sanity.trial",
        "trial_criterion": "sanity.criterion", "trial_gradients": "sanity.gradients",
        "trial_outputs": "sanity.outputs", "trial_rules": "sanity.rules", "world": "distributed.world",
    },
    "utils.ui.": {"wizard_texts": "setting_values"},
    "widgets.": {"jobs": "background_task"},
    "utils.checks.": {"exported_files": ":utils.training.export.loading", "result": ":utils.check_result"},
}  # fmt: skip


def new_name_of(name: str) -> str | None:
    """The full name that the module `name` has now; None: it has not moved."""
    for package, moved in _MOVED.items():
        if name.startswith(package):
            first, dot, rest = name[len(package) :].partition(".")
            if first not in moved:
                continue
            now = moved[first]
            return f"{now[1:] if now.startswith(':') else package + now}{dot}{rest}"
    return None


class _FormerNames(MetaPathFinder, Loader):
    """Finds a module under its former name by importing it under its new one."""

    def __init__(self) -> None:
        self._specs: dict[str, ModuleSpec | None] = {}

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return None if new_name_of(fullname) is None else ModuleSpec(fullname, self)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        name = new_name_of(spec.name)
        assert name is not None
        warnings.warn(f"{spec.name} is {name} now; import it from there.", DeprecationWarning, stacklevel=2)
        module = import_module(name)
        self._specs[spec.name] = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        """The module has run already; the import system has given it the spec of its former name, which is taken back."""
        assert module.__spec__ is not None
        module.__spec__ = self._specs.pop(module.__spec__.name)


def install() -> None:
    """Make former names importable in this process; nothing happens the second time."""
    if not any(isinstance(finder, _FormerNames) for finder in sys.meta_path):
        # Before the finder of files, which would load a second copy of a module below a package that has moved.
        sys.meta_path.insert(0, _FormerNames())
