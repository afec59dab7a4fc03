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
        format: its name in `FORMATS`.
        path: the file or folder.
        size_bytes: everything in it.
        parity: {"max_abs_diff": largest difference of logits between the model and the exported one, "max_abs_logit",
            "shapes": the (B, T) that were compared}; of safetensors {"max_abs_diff": largest difference of weights, 0,
            "tensors": how many were compared}.
        benchmark: {"pytorch_ms", "onnxruntime_ms": median milliseconds of one forward pass, "speedup": the first over
            the second, "shape": the (B, T), "threads", "runs"}; None when nothing was measured.
        notes: what the user should know, one sentence each.
        opset: the version of the ONNX operators in the file; None for other formats.
        run_dir: the folder of the run that was exported (absolute); step: optimizer steps behind the weights.
        other_process: what was compared after another process had loaded it, with the entries of `parity`; None: it was
            compared in this process, or not at all.
        mode: "trace" or "script" for TorchScript, with mode_reason: why; None for other formats.
    """

    format: str
    path: Path
    size_bytes: int
    parity: Mapping[str, Any]
    benchmark: Mapping[str, Any] | None = None
    notes: tuple[str, ...] = field(default_factory=tuple)
    opset: int | None = None
    run_dir: Path | None = None
    step: int | None = None
    mode: str | None = None
    mode_reason: str | None = None
    other_process: Mapping[str, Any] | None = None

    @property
    def agreement(self) -> str:
        """Agreement of the exported model with the original, in words."""
        if not self.parity:
            return "not compared with the model"
        if "shapes" not in self.parity:
            return f"all {self.parity['tensors']} tensors equal the model's, bit for bit"
        logits = f"largest difference of logits from the model: {self.parity['max_abs_diff']:.2g}"
        share, tokens = self.parity.get("argmax_agreement"), self.parity.get("greedy_tokens_equal")
        if share is not None:
            return f"{logits}; {share:.1%} of the most likely tokens or classes equal"
        return logits if tokens is None else f"{logits}; {tokens} greedy tokens equal"

    def _items(self) -> dict[str, Any]:
        return {
            "format": self.format,
            "path": self.path,
            "output_path": str(self.path),
            "size_bytes": self.size_bytes,
            "file_size_mb": self.size_bytes / 1e6,
            "parity": self.parity,
            "validation": self.parity,
            "benchmark": self.benchmark,
            "notes": self.notes,
            "opset_version": self.opset,
            "run_dir": self.run_dir,
            "step": self.step,
            "mode": self.mode,
            "mode_reason": self.mode_reason,
            "other_process": self.other_process,
        }

    def __getitem__(self, key: str) -> Any:
        return self._items()[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._items())

    def __len__(self) -> int:
        return len(self._items())

    def __str__(self) -> str:
        return f"{self.format}: {self.path} ({self.size_bytes / 1e6:.1f} MB, {self.agreement})"


class Exports(dict[str, ExportResult]):
    """Results of `export_model`: {format: ExportResult}.

    Attributes:
        not_written: {format: reason} of the requested formats that could not be written. Looking one of them up raises a
            KeyError with its reason.
    """

    def __init__(self, written: Mapping[str, ExportResult], not_written: Mapping[str, str]) -> None:
        super().__init__(written)
        self.not_written = dict(not_written)

    def __missing__(self, name: str) -> ExportResult:
        raise KeyError(f"{name}: not written: {self.not_written[name]}" if name in self.not_written else name)
