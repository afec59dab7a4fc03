"""The adapters that runs have exported, and the base model of each: several may belong to one."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

logger = logging.getLogger("trainbook.export")


@dataclass(frozen=True)
class StoredAdapter:
    """An adapter on disk.

    Attributes:
        run: name of the run that made it; path: its folder, for `peft.PeftModel.from_pretrained` and `load_adapter`.
        base: folder or Hub id of the base model, as the adapter names it; "" where it names none.
        rank, alpha: of LoRA; targets: names of the layers that it changes.
        bytes_on_disk: of its weights.
    """

    run: str
    path: Path
    base: str
    rank: int | None
    alpha: float | None
    targets: tuple[str, ...]
    bytes_on_disk: int

    def __str__(self) -> str:
        size = f"{self.bytes_on_disk / 2**20:,.2f} MiB"
        return f"{self.run}: rank {self.rank}, alpha {self.alpha}, {len(self.targets)} kinds of layers, {size}"


def list_adapters(
    runs: str | os.PathLike[str] = "runs", base: str | os.PathLike[str] | None = None
) -> list[StoredAdapter]:
    """The adapters in the exports of the format "peft", by the names of their runs.

    Args:
        runs: folder of the runs.
        base: only those of this base model: a folder, or an id on the Hub; None: all. A folder is the same however its path is
            written, and an adapter whose base was moved is not found.
    Not covered: adapters of runs that were not exported; their checkpoints hold them, and name the base by its digest.
    """
    found = []
    for file in sorted(Path(runs).expanduser().glob("*/exports/peft/adapter_config.json")):
        try:
            adapter = _read(file)
        except (OSError, ValueError, TypeError, AttributeError) as error:
            logger.warning("%s is no config of an adapter and is skipped: %s", file, error)
            continue
        if base is None or _is_same(adapter.base, os.fspath(base)):
            found.append(adapter)
    return found


def _read(file: Path) -> StoredAdapter:
    values: Mapping[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    targets = values.get("target_modules") or ()
    kinds = sorted({str(name).rpartition(".")[2] for name in ([targets] if isinstance(targets, str) else targets)})
    size = sum(path.stat().st_size for path in file.parent.glob("adapter_model.*"))
    return StoredAdapter(
        file.parents[2].name, file.parent, str(values.get("base_model_name_or_path") or ""), values.get("r"),
        values.get("lora_alpha"), tuple(kinds), size,
    )  # fmt: skip


def _is_same(first: str, second: str) -> bool:
    if first == second:
        return True
    one, other = Path(first).expanduser(), Path(second).expanduser()
    return one.exists() and other.exists() and one.samefile(other)
