"""An ONNX file: the model's graph and weights for ONNX Runtime and other engines, with any batch and any length."""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from utils.adapters.facts import model_facts
from utils.adapters.forward import ModelCall
from utils.errors import ExportError, MissingPackageError, TrainbookError
from utils.storage import write_json
from utils.training.export.folders import MARKER, check_space, size_of, staged_folder
from utils.training.export.hf import save_tokenizer
from utils.training.export.parity import compare_logits, parity_batches
from utils.training.export.result import ExportResult

if TYPE_CHECKING:
    import onnx_ir

_log = logging.getLogger("trainbook.export")

#: The file's name in the export's folder.
FILE_NAME = "model.onnx"

# Both sides compute in float32 but sum in another order: below 1e-6 of the largest logit on models of 2 to 12 layers.
# A hundred times that is still far below what changes a prediction, and far above what a wrong graph stays under.
_TOLERANCE = 1e-4
# Weights from here on go into a file beside the graph: a protobuf file ends at 2 GiB.
_LARGEST_SINGLE_FILE = 1_000_000_000
# Positions of the example that is traced; sizes 0 and 1 would be taken for constants.
_EXAMPLE_LENGTH = 5
_BENCHMARK_LENGTH = 128
_BENCHMARK_RUNS, _BENCHMARK_LEAST_RUNS, _BENCHMARK_S = 15, 3, 3.0
_PACKAGES = {"onnx": "to write ONNX files", "onnxscript": "to write ONNX files", "onnxruntime": "to verify ONNX files"}
# They report their progress and their own deprecations.
_TALKATIVE = ("torch.onnx", "torch.export", "torch.fx", "torch._dynamo", "onnxscript", "onnx_ir")

Run = Callable[[Mapping[str, Tensor]], Tensor]


def refuse_unsupported(model: Any) -> None:
    """Raise `ExportError` for a model that this format cannot hold, `MissingPackageError` where a package is missing."""
    import importlib.util

    name = type(model).__name__
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        raise ExportError(
            f"{name} is an encoder-decoder: its decoder runs many times for one run of the encoder, so it would take two "
            "ONNX files, which this version does not write. Use formats=['hf'] or ['safetensors']."
        )
    if getattr(model, "main_input_name", "input_ids") != "input_ids":
        raise ExportError(
            f"{name} takes {model.main_input_name}; only models over token ids can be exported as ONNX. Use "
            "formats=['safetensors']."
        )
    for package, purpose in _PACKAGES.items():
        if importlib.util.find_spec(package) is None:
            raise MissingPackageError(package, purpose)


def export_onnx(
    model: nn.Module, tokenizer: Any, target: Path, source: str, notes: tuple[str, ...] = ()
) -> ExportResult:
    """Write `model` to `target`/model.onnx, compare ONNX Runtime's logits with the model's, and only then name it.

    The file's inputs are `input_ids` and, where the model takes one, `attention_mask`, both int64 of shape (batch,
    sequence); its output is `logits`, float32. No key/value cache: each call computes the whole sequence.

    Args:
        model: a module over token ids, on the CPU, in evaluation mode.
        tokenizer: saved with it; None: none.
        target: the folder; an export that is there is replaced.
        source: the checkpoint that the weights come from, for the record.
        notes: what the result should say besides.
    Raises:
        ExportError: not written, or what was written is not the same model. `target` is then what it was.
    """
    facts = model_facts(model)
    model, more_notes = _in_float32(model)
    try:
        with staged_folder(target) as staging:
            check_space(staging, target, model)
            file = staging / FILE_NAME
            batches = [
                _with_mask(batch, model) for batch in parity_batches(facts.vocab_size or 1, facts.max_length, False)
            ]
            _write(model, file, facts.max_length)
            opset = _checked_opset(file)
            run = _onnxruntime(file)
            original = ModelCall(model)
            parity = compare_logits(_at_real_positions(original), _at_real_positions(run), batches, _TOLERANCE)
            benchmark = _benchmark(original, run, batches[-1])
            notes += (
                *more_notes,
                *_described(opset, batches[-1], facts.max_length),
                *save_tokenizer(tokenizer, staging),
            )
            record = {"format": "onnx", "source": source, "class": facts.name, "parity": parity, "opset": opset}
            write_json(staging / MARKER, record)
    except OSError as error:
        raise ExportError(
            f"{target} could not be written: {error.strerror or error}. What was there before is unchanged."
        ) from error
    return ExportResult("onnx", target, size_of(target), parity, benchmark, notes, opset)


class _Logits(nn.Module):
    """A model with fixed argument names and one output, as the exporter needs it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self._call = ModelCall(model)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Logits of ids (B, T), with the mask where there is one."""
        masked = {} if attention_mask is None else {"attention_mask": attention_mask}
        return self._call({"input_ids": input_ids, **masked})


def _in_float32(model: nn.Module) -> tuple[nn.Module, tuple[str, ...]]:
    """`model`, or a float32 copy of one in half precision: ONNX Runtime's CPU kernels have float32 for everything."""
    if all(p.dtype == torch.float32 for p in model.parameters() if p.is_floating_point()):
        return model, ()
    return copy.deepcopy(model).float(), ("The weights were converted to float32.",)


def _with_mask(batch: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """`batch` with a mask, if the model takes one. Where there is room, the beginning of the last row is padding."""
    ids_BT = batch["input_ids"]
    mask_BT = torch.ones_like(ids_BT)
    masked = {"input_ids": ids_BT, "attention_mask": mask_BT}
    if "attention_mask" not in ModelCall(model).inputs(masked)[1]:
        return batch
    if len(ids_BT) > 1:
        mask_BT[-1, : ids_BT.shape[1] // 3] = 0
    return masked


def _write(model: nn.Module, file: Path, max_length: int | None) -> None:
    """Trace the model and write the file. Raises ExportError with the exporter's reason."""
    example = _with_mask(
        {"input_ids": torch.zeros(2, min(_EXAMPLE_LENGTH, max_length or _EXAMPLE_LENGTH)).long()}, model
    )
    sizes = {0: "batch", 1: "sequence"}
    large = sum(p.numel() * p.element_size() for p in model.parameters()) >= _LARGEST_SINGLE_FILE
    try:
        with _silent(), torch.no_grad():
            program = torch.onnx.export(
                _Logits(model).eval(),
                tuple(example.values()),
                dynamo=True,
                input_names=list(example),
                output_names=["logits"],
                dynamic_shapes=tuple(sizes for _ in example),
                verbose=False,
            )
            assert program is not None  # None is what the exporter of before dynamo returns
            _tidy(program.model)
            program.save(file, external_data=large)
    except (OSError, TrainbookError):
        raise
    # The exporter passes on whatever the model's own code, torch.export or its passes raise.
    except Exception as error:
        raise ExportError(
            f"{type(model).__name__} cannot be written as ONNX: {_reason(error)} Other formats are not affected."
        ) from error


def _tidy(graph_of: onnx_ir.Model) -> None:
    """Take out the exporter's stack traces, which name files of this machine, and name the sizes that may vary.

    Shapes inside the graph go too: engines derive them, and the exporter's can hold the example's length as a constant.
    """
    graph = graph_of.graph
    for node in graph.all_nodes():
        node.metadata_props.clear()
        for value in node.outputs:
            if not value.is_graph_output():
                value.shape = None
    for value in (*graph.inputs, *graph.outputs):
        if value.shape is not None:
            rank = len(value.shape)
            varying = ("batch", "sequence")[: rank if value in graph.inputs else rank - 1]
            value.shape = type(value.shape)([*varying, *list(value.shape)[len(varying) :]])


def _checked_opset(file: Path) -> int:
    """The version of the ONNX operators that the file uses. Raises ExportError when it is no valid model."""
    import onnx

    try:
        onnx.checker.check_model(file, full_check=True)
    except onnx.checker.ValidationError as error:
        raise ExportError(f"the exporter wrote a file that is no valid ONNX model: {_reason(error)}") from error
    imports = onnx.load(file, load_external_data=False).opset_import
    return int(next(one.version for one in imports if one.domain in ("", "ai.onnx")))


def _onnxruntime(file: Path) -> Run:
    """A function from a batch to the logits of the file, on the CPU with as many threads as torch has."""
    import onnxruntime  # type: ignore[import-untyped]

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors; they are also raised
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    except RuntimeError as error:  # every error of onnxruntime is one
        raise ExportError(f"ONNX Runtime cannot load the exported file: {_reason(error)}") from error
    names = [one.name for one in session.get_inputs()]

    def run(batch: Mapping[str, Tensor]) -> Tensor:
        try:
            (logits,) = session.run(["logits"], {name: batch[name].numpy() for name in names})
        except (RuntimeError, ValueError) as error:  # ValueError: an input of another shape
            shape = tuple(batch["input_ids"].shape)
            raise ExportError(f"the exported file cannot compute ids of shape {shape}: {_reason(error)}") from error
        return torch.from_numpy(logits)

    return run


def _at_real_positions(run: Run) -> Run:
    """`run` with zeros where the batch is padding: nobody reads those logits, and engines differ in them."""

    def masked(batch: Mapping[str, Tensor]) -> Tensor:
        logits = run(batch)
        mask_BT = batch.get("attention_mask")
        if mask_BT is None or logits.shape[:-1] != mask_BT.shape:
            return logits
        return logits.masked_fill(mask_BT[..., None] == 0, 0.0)

    return masked


def _benchmark(original: Run, exported: Run, longest: Mapping[str, Tensor]) -> dict[str, Any]:
    """Median times of both for one sequence, measured in turns, so that a busy machine slows both alike.

    Returns:
        {"pytorch_ms", "onnxruntime_ms", "speedup" (the first over the second), "shape" (B, T), "threads", "runs"}.
    """
    batch = {name: tensor[:, :_BENCHMARK_LENGTH] for name, tensor in longest.items()}
    times: tuple[list[float], list[float]] = ([], [])
    started = time.perf_counter()
    with torch.no_grad():
        original(batch), exported(batch)  # the first calls allocate
        while len(times[0]) < _BENCHMARK_RUNS:
            if len(times[0]) >= _BENCHMARK_LEAST_RUNS and time.perf_counter() - started > _BENCHMARK_S:
                break
            for run, taken in zip((original, exported), times, strict=True):
                before = time.perf_counter()
                run(batch)
                taken.append(time.perf_counter() - before)
    pytorch_ms, onnxruntime_ms = (1000 * statistics.median(taken) for taken in times)
    return {
        "pytorch_ms": pytorch_ms,
        "onnxruntime_ms": onnxruntime_ms,
        "speedup": pytorch_ms / onnxruntime_ms,
        "shape": tuple(batch["input_ids"].shape),
        "threads": torch.get_num_threads(),
        "runs": len(times[0]),
    }


def _described(opset: int, batch: Mapping[str, Tensor], max_length: int | None) -> tuple[str, ...]:
    longest = f"1 to {max_length:,}" if max_length else "any number of"
    inputs = f"Inputs {' and '.join(batch)}: int64, any batch, {longest} tokens; output logits."
    return (f"The file uses ONNX opset {opset}.", inputs)


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Without the exporter's log lines, warnings and prints, which are about its own insides.

    Prints of other threads go to the debug log as well for as long as it lasts: there is no narrower way.
    """
    names = [
        name for name in logging.root.manager.loggerDict if name.startswith(tuple(f"{one}." for one in _TALKATIVE))
    ]
    levels = {name: logging.getLogger(name).level for name in {*_TALKATIVE, *names}}
    printed = io.StringIO()
    try:
        for name in levels:
            logging.getLogger(name).setLevel(logging.CRITICAL)
        with warnings.catch_warnings(), contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            warnings.simplefilter("ignore")
            yield
    finally:
        _log.debug("the exporter printed: %s", printed.getvalue())
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


def _reason(error: BaseException) -> str:
    """The first line of the first cause, as a sentence."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return f"{lines[0][:300].rstrip('. ')}."
