"""ONNXExporter: a model in memory as an ONNX file of a chosen name."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from utils.adapters.facts import model_facts
from utils.errors import ExportError
from utils.storage import host_name
from utils.training.export.folders import check_space
from utils.training.export.onnx import OnnxFiles, OnnxOptions, refuse_unsupported, write_onnx
from utils.training.export.onnx_graphs import FILE_NAME
from utils.training.export.onnx_tools import add_metadata, metadata_of
from utils.training.task_spec import TaskSpec

# In the metadata of files that were compared with their model.
_VERIFIED = "trainbook.verified"


class ONNXExporter:
    """Export a model as ONNX, verified by ONNX Runtime.

    The mechanism is that of `export_model(results, formats=["onnx"])`; this class takes a model in memory and a file name.

    Args:
        opset_version: accepted for compatibility. The exporter writes opset 18 or newer, whatever older one is asked for; the
            result states the file's version and says when it is another one.
        optimize: whether operators are fused for ONNX Runtime: by onnxruntime.transformers for models of transformers, by
            ONNX Runtime's graph optimiser for others. The fused file replaces the plain one only if it passes the same
            verification; where it does not, a note says why.
        validate: whether the file is compared with the model on several shapes, and by generated tokens for language models.
            A file that differs is not kept.
        benchmark: whether both are timed.
    """

    def __init__(
        self, opset_version: int = 14, optimize: bool = True, validate: bool = True, benchmark: bool = True
    ) -> None:
        self.opset_version = opset_version
        self.optimize, self.validate, self.benchmark = optimize, validate, benchmark

    def export(
        self,
        model: nn.Module,
        output_path: str | Path,
        vocab_size: int | None = None,
        max_seq_len: int = 512,
        batch_size: int = 1,
        dynamic_axes: bool = True,
        input_names: Sequence[str] | None = None,
        output_names: Sequence[str] | None = None,
    ) -> dict[str, Any]:
        """Write `model` to `output_path`. The model itself, its mode and its device are left as they are.

        A causal language model of transformers is written a second time beside it, as `<name>_with_past.onnx`, with its
        key/value cache as inputs and outputs. An encoder-decoder of transformers is two files: `<name>_encoder.onnx`
        and `<name>_decoder.onnx`. Weights of 1 GB or more go into `<file>.data`.

        Args:
            model: any module over token ids, images or rows of numbers.
            output_path: the file to write; a file that is there is replaced when the new one is verified.
            vocab_size: ids are below it; taken from the model where it states one.
            max_seq_len: the sequence length of fixed sizes, and of what is compared at most; never above the model's own.
            batch_size: the batch of fixed sizes, and of the benchmark's main figures.
            dynamic_axes: whether batch and sequence may vary; False: they are `batch_size` and `max_seq_len`.
            input_names: names of the inputs, in the order of the model's (ids, then mask); fewer leave the last ones out.
            output_names: the name of the logits, as a list of one.
        Returns:
            output_path: str; files: every file written; file_size_mb: all of them together; opset_version: the file's;
            dynamic_axes: bool; validation: {"validated", "max_error", "mean_error", "tolerance", "shapes", and for language
            models "greedy_tokens_equal"}; benchmark: {"pytorch_time", "onnx_time": milliseconds, "speedup", "shape",
            "threads", "by_batch_size"}, None where not measured; notes: sentences.
        Raises:
            ExportError: no ONNX form, other results than the model's, or nothing that may be replaced. What was at
                `output_path` is then unchanged.
            MissingPackageError: a package is not installed.
        """
        from utils.training.export.exporting import _cpu_copy

        refuse_unsupported(model)
        target = Path(output_path).expanduser().absolute()
        self._check_target(target)
        copied = _cpu_copy(model).eval()
        spec = TaskSpec("export", vocab_size=model_facts(model).vocab_size or vocab_size, max_seq_len=max_seq_len)
        longest = min(max_seq_len, model_facts(model).max_length or max_seq_len)
        options = OnnxOptions(
            sizes=None if dynamic_axes else (batch_size, longest), optimise=self.optimize, validate=self.validate,
            benchmark=self.benchmark, inputs=input_names, outputs=output_names, task_spec=spec,
            benchmark_batch=batch_size,
        )  # fmt: skip
        staging = target.with_name(f".{target.name}.{host_name()}.{os.getpid()}.staging")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(staging, ignore_errors=True)
        try:
            staging.mkdir()
            check_space(staging, target, copied)
            files = write_onnx(copied, staging, options)
            written = self._moved(files, staging, target)
        except OSError as error:
            raise ExportError(f"{target} could not be written: {error.strerror or error}") from error
        finally:
            shutil.rmtree(staging, ignore_errors=True)
        return self._result(files, target, written, dynamic_axes)

    def _check_target(self, target: Path) -> None:
        if target.is_dir():
            raise ExportError(f"{target} is a folder; give the name of a file, such as {target / FILE_NAME}")
        if not self.validate and target.is_file() and _VERIFIED in metadata_of(target):
            raise ExportError(
                f"{target} is a verified export, which one made with validate=False does not replace. Use validate=True, "
                "another output_path, or remove the file."
            )

    def _moved(self, files: OnnxFiles, staging: Path, target: Path) -> list[Path]:
        """Give the staged files their names beside `target`. Graphs come last: without one, its data is never read."""
        if self.validate:
            for name in files.names:
                add_metadata(staging / name, {_VERIFIED: "true"})
        suffix = target.suffix or ".onnx"
        endings = {FILE_NAME: "", "decoder_with_past_model.onnx": "_with_past", "encoder_model.onnx": "_encoder"}
        endings["decoder_model.onnx"] = "_decoder"
        moved = []
        for name in files.names:
            final = target.with_name(f"{target.stem}{endings[name]}{suffix}")
            data = staging / f"{name}.data"
            if data.is_file():
                final.unlink(missing_ok=True)
                moved.append(_with_data(staging / name, data, final))
            os.replace(staging / name, final)
            moved.insert(0, final) if name == FILE_NAME else moved.append(final)
        return moved

    def _result(self, files: OnnxFiles, target: Path, written: list[Path], dynamic_axes: bool) -> dict[str, Any]:
        notes = files.notes
        if files.opset != self.opset_version:
            notes += (
                f"opset_version={self.opset_version} was asked for; torch's exporter writes opset {files.opset}, which is the "
                "file's version. ONNX Runtime reads every version up to its own.",
            )
        parity, times = files.parity, files.benchmark
        validation: dict[str, Any] = {"validated": bool(parity)}
        if parity:
            rest = {name: value for name, value in parity.items() if name not in ("max_abs_diff", "mean_abs_diff")}
            validation |= {"max_error": parity["max_abs_diff"], "mean_error": parity["mean_abs_diff"], **rest}
        return {
            "output_path": str(target if target in written else written[0]),
            "files": [str(path) for path in written],
            "file_size_mb": sum(path.stat().st_size for path in written) / 1e6,
            "opset_version": files.opset,
            "dynamic_axes": dynamic_axes,
            "validation": validation,
            "benchmark": times and {"pytorch_time": times["pytorch_ms"], "onnx_time": times["onnxruntime_ms"], **times},
            "notes": list(notes),
        }


def _with_data(graph: Path, data: Path, final: Path) -> Path:
    """Move external data beside `final`, and have the graph name it there."""
    import onnx

    program = onnx.load(graph, load_external_data=False)
    moved = final.with_name(f"{final.name}.data")
    for tensor in program.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = moved.name
    onnx.save(program, graph)
    os.replace(data, moved)
    return moved
