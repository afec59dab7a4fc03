"""torch.export: a `.pt2` file with the graph, for any batch and any length; optionally compiled by AOTInductor.

`torch.export.load("model.pt2").module()` is the model again, in a process that has torch and nothing of the model's code.
"""

from __future__ import annotations

import io
import os
import shutil
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from utils.adapters.facts import model_facts
from utils.adapters.forward import ModelCall
from utils.errors import ExportError, first_line
from utils.storage import write_json
from utils.training.export.folders import check_space, size_of, staged_folder
from utils.training.export.graph_inputs import LogitsOnly, graph_batches, measured, traced_batch
from utils.training.export.greedy import greedy_parity
from utils.training.export.hf import save_tokenizer
from utils.training.export.manifest import MARKER
from utils.training.export.other_process import OtherProcess
from utils.training.export.parity import compare_logits, example_batches
from utils.training.export.result import ExportResult
from utils.training.export.stages import stage

#: The files' names in the export's folder: the graph, and the program that AOTInductor compiles from it.
FILE_NAME, COMPILED_NAME = "model.pt2", "model_aot.pt2"

# As for other graphs: rounding stays below 1e-6 of the largest logit, a wrong graph far above a hundred times that.
_TOLERANCE = 1e-4

Batches = Sequence[dict[str, Tensor]]


def refuse_unsupported(model: Any) -> None:
    """Raise `ExportError` for what is no module. Whether a module can be exported is known only once it is tried."""
    if not isinstance(model, nn.Module):
        raise ExportError(f"{type(model).__name__} is not an nn.Module")


def refuse_uncompilable(model: Any) -> None:
    """The same for an AOTInductor package, which needs a C++ compiler."""
    refuse_unsupported(model)
    if not any(shutil.which(name) for name in (os.environ.get("CXX", ""), "g++", "clang++", "c++") if name):
        raise ExportError(
            "AOTInductor compiles C++, and there is no compiler (g++ or clang++). Install one, or use 'torch_export'."
        )


def export_torch_export(
    model: nn.Module, tokenizer: Any, target: Path, source: str, notes: tuple[str, ...] = (), aot_inductor: bool = False,
    *, task_spec: Any = None,
) -> ExportResult:  # fmt: skip
    """Write `model` to `target`/model.pt2, compare it in another process, and only then give the folder its name.

    Batch size and sequence length are dynamic, up to the positions that the model has.

    Args:
        model: a module on the CPU, in evaluation mode.
        tokenizer: saved with it; None: none.
        target: the folder; an export that is there is replaced.
        source: the checkpoint that the weights come from, for the record.
        notes: further sentences for the result.
        task_spec: fills what the model does not state of its inputs.
        aot_inductor: also write model_aot.pt2, machine code for this kind of processor that
            `torch._inductor.aoti_load_package` loads, in Python or in C++; verified as the graph is.
    Raises:
        ExportError: not written, or what was written is not the same model. `target` is then what it was.
    """
    names, batches = graph_batches(example_batches(model, task_spec))
    format_name = "aot_inductor" if aot_inductor else "torch_export"
    try:
        with staged_folder(target) as staging:
            check_space(staging, target, model)
            program = _program(model, names, batches)
            buffer = io.BytesIO()  # torch's own writer does not say whether the disk is full
            torch.export.save(program, buffer)
            file = staging / FILE_NAME
            file.write_bytes(buffer.getbuffer())
            original = ModelCall(model)
            with OtherProcess("torch_export", file, names) as run:
                parity = _compared(model, run, batches)
            run_here: Callable[..., Any] = program.module()
            if aot_inductor:
                compiled = staging / COMPILED_NAME
                _compile(program, compiled)
                with OtherProcess("aot_inductor", compiled, names) as run:
                    parity = _compared(model, run, batches)
                run_here = torch._inductor.aoti_load_package(str(compiled))
            benchmark = measured(original, lambda batch: run_here(*batch.values()), batches[-1], format_name)
            if tokenizer is not None:
                notes += save_tokenizer(tokenizer, staging)
            record = {
                "format": format_name, "source": source, "class": type(model).__name__, "parity": parity, "inputs": names
            }  # fmt: skip
            write_json(staging / MARKER, record)
    except OSError as error:
        raise ExportError(
            f"{target} could not be written: {error.strerror or error}. What was there before is unchanged."
        ) from error
    notes += (
        f"Load it with torch.export.load('{FILE_NAME}').module(); it takes {', '.join(names)} by position and returns logits.",
    )
    if aot_inductor:
        notes += (f"{COMPILED_NAME} runs on processors like this machine's, with the same version of torch.",)
    return ExportResult(format_name, target, size_of(target), parity, benchmark, notes, other_process=parity)


def export_aot_inductor(
    model: nn.Module, tokenizer: Any, target: Path, source: str, notes: tuple[str, ...] = (), *, task_spec: Any = None
) -> ExportResult:
    """`export_torch_export` with the compiled program beside the graph."""
    return export_torch_export(model, tokenizer, target, source, notes, aot_inductor=True, task_spec=task_spec)


def _compared(model: nn.Module, run: OtherProcess, batches: Batches) -> dict[str, Any]:
    original = ModelCall(model)
    parity = compare_logits(original, run, batches, _TOLERANCE)
    return {**parity, **greedy_parity(model, original, run, batches, _TOLERANCE)}


def _program(model: nn.Module, names: tuple[str, ...], batches: Batches) -> torch.export.ExportedProgram:
    """The graph, without the file names of this machine. Raises ExportError with torch's reason."""
    stage("tracing the model")
    example = tuple(traced_batch(batches).values())
    try:
        with warnings.catch_warnings(), torch.no_grad():
            # About deprecated attributes of the model, and about its own insides: the comparison shows whether they matter.
            warnings.simplefilter("ignore")
            program = torch.export.export(
                LogitsOnly(model, names).eval(),
                example,
                dynamic_shapes=(_dynamic(model, names, example),),
                strict=False,
            )
    # torch.export runs the model's code and raises whatever that raises, or its own errors of many classes.
    except Exception as error:
        raise ExportError(
            f"{type(model).__name__} cannot be captured by torch.export: {_reason(error)}. Data-dependent Python control "
            "flow is the usual cause; 'torchscript' may hold it, 'safetensors' holds the weights."
        ) from error
    for module in program.graph_module.modules():
        if isinstance(module, torch.fx.GraphModule):
            for node in module.graph.nodes:
                node.meta.pop("stack_trace", None)
    return program


def _reason(error: Exception) -> str:
    """torch's reason in a sentence."""
    if "specialized it to be a constant" in str(error):  # behind a first line that says nothing of it
        return "its code fixes the length of the sequence, as recurrent layers and loops over positions do"
    return first_line(error, with_class=True)


def _dynamic(model: nn.Module, names: tuple[str, ...], example: Sequence[Tensor]) -> tuple[dict[int, Any], ...]:
    """Dynamic dimensions of each input: the batch, and the positions of ids."""
    batch = torch.export.Dim("batch")
    if "input_ids" not in names:
        return tuple({0: batch} for _ in example)
    longest = model_facts(model).max_length
    length = torch.export.Dim("sequence", max=longest) if longest else torch.export.Dim("sequence")
    written = torch.export.Dim("decoder_sequence", max=longest) if longest else torch.export.Dim("decoder_sequence")
    return tuple({0: batch, 1: written if name.startswith("decoder") else length} for name in names)


def _compile(program: torch.export.ExportedProgram, file: Path) -> None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about its own insides
            torch._inductor.aoti_compile_and_package(program, package_path=str(file))
    # The compiler raises errors of many classes, its C++ compiler's among them.
    except Exception as error:
        reason = first_line(error, with_class=True)
        raise ExportError(f"AOTInductor cannot compile the model: {reason}. Use 'torch_export'.") from error
