"""TorchScript: one file that `torch.jit.load` runs in Python and in C++ (libtorch), without the model's code.

torch has deprecated TorchScript in favour of `torch.export`; files are written for servers that still read them.
"""

from __future__ import annotations

import contextlib
import io
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.jit._trace import TracerWarning

from utils.adapters.forward import ModelCall, logits_of
from utils.adapters.left_as_found import modes_kept
from utils.errors import ExportError, first_line
from utils.schema import shown
from utils.storage import sync_folder, write_json
from utils.training.export.folders import check_space, size_of, staged_folder
from utils.training.export.graph_inputs import LogitsOnly, graph_batches, measured, traced_batch
from utils.training.export.greedy import greedy_parity
from utils.training.export.hf import save_tokenizer
from utils.training.export.manifest import MARKER
from utils.training.export.other_process import OtherProcess
from utils.training.export.parity import compare_logits, example_batches
from utils.training.export.result import ExportResult
from utils.training.export.stages import stage

#: The file's name in the export's folder.
FILE_NAME = "model.pt"

# As for other graphs: rounding stays below 1e-6 of the largest logit, a wrong graph far above a hundred times that.
_TOLERANCE = 1e-4

Mode = Literal["trace", "script"]
Batches = Sequence[dict[str, Tensor]]

_NOTE = "TorchScript is deprecated in torch; for new deployments use torch_export."


@dataclass(frozen=True)
class Written:
    """One TorchScript file, with how it was made and verified."""

    mode: Mode
    reason: str
    names: tuple[str, ...]
    parity: dict[str, Any] | None
    benchmark: dict[str, Any] | None


class TorchScriptExporter:
    """Write a model as a TorchScript file.

    Args:
        validate: load the file in another process and compare logits and, of language models, 64 greedy tokens. A file that
            differs is not written.
        benchmark: measure a forward pass beside the model's own.
    """

    def __init__(self, validate: bool = True, benchmark: bool = True) -> None:
        self.validate, self.benchmark = validate, benchmark

    def export(
        self,
        model: nn.Module,
        output_path: str | Path,
        vocab_size: int | None = None,
        max_seq_len: int | None = None,
        mode: str = "auto",
        task_spec: Any = None,
        sample: Mapping[str, Tensor] | None = None,
    ) -> ExportResult:
        """Write `model` to `output_path`; a file that is there is replaced once the new one is verified.

        Args:
            model: any module; its mode and its gradients are left as they are.
            vocab_size, max_seq_len: for a model that does not state them: ids are below the first, sequences as long as the
                second.
            mode: "trace" records one forward pass, "script" compiles the code of forward, "auto" traces and falls back to
                scripting where the trace fails or computes something else on other shapes.
            task_spec, sample: as for `example_batches`: what else is known about the inputs.
        Returns:
            An ExportResult, which is also a mapping: output_path, file_size_mb, mode, mode_reason, validation, benchmark.
        Raises:
            ExportError: the model cannot be traced or scripted, or the file computes something else; says why.
        """
        if mode not in ("auto", "trace", "script"):
            raise ExportError(f"got mode={shown(mode)}; must be 'auto', 'trace' or 'script'")
        path = Path(output_path).expanduser().absolute()
        known = task_spec or {"vocab_size": vocab_size, "max_seq_len": max_seq_len}
        batches = example_batches(model, known, sample=sample)
        staging = path.with_name(f".{path.name}.{os.getpid()}.staging")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with modes_kept(model):
                model.eval()
                written = write_torchscript(model, staging, batches, mode, self.validate, self.benchmark)
            os.replace(staging, path)
            sync_folder(path.parent)
        except OSError as error:
            raise ExportError(
                f"{path} could not be written: {error.strerror or error}. What was there before is unchanged."
            ) from error
        finally:
            staging.unlink(missing_ok=True)
        notes = (f"The model was made by {written.mode}: {written.reason}", _NOTE)
        return ExportResult(
            "torchscript", path, path.stat().st_size, written.parity or {}, written.benchmark, notes,
            mode=written.mode, mode_reason=written.reason, other_process=written.parity,
        )  # fmt: skip


def refuse_unsupported(model: Any) -> None:
    """Raise `ExportError` for what is no module. Whether a module can be written is known only once it is tried."""
    if not isinstance(model, nn.Module):
        raise ExportError(f"{type(model).__name__} is not an nn.Module")


def export_torchscript(
    model: nn.Module, tokenizer: Any, target: Path, source: str, notes: tuple[str, ...] = (), *, task_spec: Any = None
) -> ExportResult:
    """Write `model` to `target`/model.pt, compare it in another process, and only then give the folder its name.

    Args:
        model: a module on the CPU, in evaluation mode.
        tokenizer: saved with it; None: none.
        target: the folder; an export that is there is replaced.
        source: the checkpoint that the weights come from, for the record.
        notes: further sentences for the result.
        task_spec: fills what the model does not state of its inputs.
    Raises:
        ExportError: not written, or what was written is not the same model. `target` is then what it was.
    """
    batches = example_batches(model, task_spec)
    try:
        with staged_folder(target) as staging:
            check_space(staging, target, model)
            written = write_torchscript(model, staging / FILE_NAME, batches, "auto", validate=True, benchmark=True)
            if tokenizer is not None:
                notes += save_tokenizer(tokenizer, staging)
            record = {
                "format": "torchscript", "source": source, "class": type(model).__name__, "parity": written.parity,
                "mode": written.mode, "inputs": written.names,
            }  # fmt: skip
            write_json(staging / MARKER, record)
    except OSError as error:
        raise ExportError(
            f"{target} could not be written: {error.strerror or error}. What was there before is unchanged."
        ) from error
    notes += (
        f"Load it with torch.jit.load('{FILE_NAME}'); it takes {', '.join(written.names)} and returns logits.",
        f"Made by {written.mode}: {written.reason}",
        _NOTE,
    )
    return ExportResult(
        "torchscript", target, size_of(target), written.parity or {}, written.benchmark, notes,
        mode=written.mode, mode_reason=written.reason, other_process=written.parity,
    )  # fmt: skip


def write_torchscript(
    model: nn.Module, file: Path, batches: Batches, mode: str, validate: bool, benchmark: bool
) -> Written:
    """Write a file by `mode`, or by the first that works; see `TorchScriptExporter`."""
    names, filled = graph_batches(batches)
    ways: dict[Mode, Callable[[], torch.jit.ScriptModule]] = {
        "trace": lambda: _traced(model, names, filled),
        "script": lambda: torch.jit.script(model),
    }
    tried: list[str] = []

    def failed(way: Mode, error: Exception) -> None:
        """Note why; raise when there is no other way."""
        tried.append(f"{way} fails ({first_line(error, with_class=True)})")
        if mode != "auto" or way == "script":
            file.unlink(missing_ok=True)
            raise ExportError(
                f"{type(model).__name__} cannot be written as TorchScript: {'; '.join(tried)}."
            ) from error

    for way, make in ways.items():
        if mode not in ("auto", way):
            continue
        try:
            buffer = io.BytesIO()  # torch's own writer does not say whether the disk is full
            with _deprecation_ignored(), torch.no_grad():
                torch.jit.save(make(), buffer)
        # torch.jit runs the model's code and raises whatever that raises, or its own errors of several classes.
        except Exception as error:  # noqa: BLE001 - see above
            failed(way, error)
            continue
        file.write_bytes(buffer.getbuffer())
        try:
            # A comparison always decides between the two; without `validate` a file asked for by name is not compared.
            parity = _verify(model, file, names, filled) if validate or mode == "auto" else None
        except ExportError as error:
            failed(way, error)
            continue
        timing = (
            measured(ModelCall(model), _runner(file, names, model), filled[-1], "torchscript") if benchmark else None
        )
        return Written(way, _reason(way, mode, tried, parity), names, parity, timing)
    raise AssertionError("the last way either returned or raised")


def _reason(way: Mode, mode: str, tried: Sequence[str], parity: Mapping[str, Any] | None) -> str:
    if mode != "auto":
        return "as asked."
    if way == "script":
        return f"{tried[0]}; the scripted code gives the model's logits."
    assert parity is not None
    return f"the trace gives the model's logits on all {parity['batches']} batches of {len(parity['shapes'])} shapes."


class _MaskOptional(nn.Module):
    """A traced model over ids, whose mask may be left out."""

    def __init__(self, model: torch.jit.ScriptModule) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        return self.model(input_ids, attention_mask)  # type: ignore[no-any-return]


class _MaskOptionalSeq2Seq(nn.Module):
    """The same for an encoder-decoder."""

    def __init__(self, model: torch.jit.ScriptModule) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, decoder_input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        return self.model(input_ids, decoder_input_ids, attention_mask)  # type: ignore[no-any-return]


def _traced(model: nn.Module, names: tuple[str, ...], batches: Batches) -> torch.jit.ScriptModule:
    stage("tracing the model")
    example = tuple(traced_batch(batches).values())
    # A trace that depends on its example is found by comparing other shapes, not by tracing twice.
    traced = torch.jit.trace(  # type: ignore[no-untyped-call]
        LogitsOnly(model, names).eval(), example, check_trace=False, strict=False
    )
    if names == ("input_ids", "attention_mask"):
        traced = torch.jit.script(_MaskOptional(traced).eval())
    elif names == ("input_ids", "decoder_input_ids", "attention_mask"):
        traced = torch.jit.script(_MaskOptionalSeq2Seq(traced).eval())
    return torch.jit.freeze(traced.eval())  # type: ignore[no-any-return]


def _verify(model: nn.Module, file: Path, names: tuple[str, ...], batches: Batches) -> dict[str, Any]:
    original = ModelCall(model)
    with OtherProcess("torchscript", file, names) as run:
        parity = compare_logits(original, run, batches, _TOLERANCE)
        return {**parity, **greedy_parity(model, original, run, batches, _TOLERANCE)}


def _runner(file: Path, names: tuple[str, ...], model: nn.Module) -> Callable[[Mapping[str, Tensor]], Tensor]:
    with _deprecation_ignored():
        loaded = torch.jit.load(str(file))  # type: ignore[no-untyped-call]
    return lambda batch: logits_of(loaded(*(batch[name] for name in names if name in batch)), model)


@contextlib.contextmanager
def _deprecation_ignored() -> Iterator[None]:
    """torch.jit warns of its deprecation, reads deprecated attributes of the model, and reports Python numbers that a trace
    keeps as constants: the comparison shows whether they matter."""
    with warnings.catch_warnings():
        for category in (DeprecationWarning, FutureWarning, TracerWarning):
            warnings.filterwarnings("ignore", category=category)
        yield
