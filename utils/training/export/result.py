"""ExportResult: what an exporter made, and how well it agrees with the model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class ExportResult(Mapping[str, Any]):
    """One exported model. Also a mapping, with `output_path` and `file_size_mb` beside the attributes' names.

    Attributes:
        format: "hf" or "onnx".
        path: the file or folder.
        size_bytes: everything in it.
        parity: {"max_abs_diff": largest difference of logits between the model and the exported one, "max_abs_logit",
            "shapes": the (B, T) that were compared}.
        benchmark: {"pytorch_ms", "onnxruntime_ms": median milliseconds of one forward pass, "speedup": the first over
            the second, "shape": the (B, T), "threads", "runs"}; None when nothing was measured.
        notes: what the user should know, one sentence each.
        opset: the version of the ONNX operators in the file; None for other formats.
    """

    format: str
    path: Path
    size_bytes: int
    parity: Mapping[str, Any]
    benchmark: Mapping[str, Any] | None = None
    notes: tuple[str, ...] = field(default_factory=tuple)
    opset: int | None = None

    def _items(self) -> dict[str, Any]:
        return {
            "format": self.format,
            "path": self.path,
            "output_path": str(self.path),
            "size_bytes": self.size_bytes,
            "file_size_mb": self.size_bytes / 1e6,
            "parity": self.parity,
            "benchmark": self.benchmark,
            "notes": self.notes,
            "opset_version": self.opset,
        }

    def __getitem__(self, key: str) -> Any:
        return self._items()[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._items())

    def __len__(self) -> int:
        return len(self._items())

    def __str__(self) -> str:
        agreement = f"largest difference of logits {self.parity['max_abs_diff']:.3g}"
        return f"{self.format}: {self.path} ({self.size_bytes / 1e6:.1f} MB, {agreement})"
