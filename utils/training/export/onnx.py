"""ONNX files: the model's graphs and weights for ONNX Runtime and other engines, verified by running them."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from utils.adapters.facts import model_facts
from utils.adapters.forward import ModelCall
from utils.adapters.graph import runnable
from utils.adapters.input_shapes import takes_decoder_ids
from utils.errors import ExportError, MissingPackageError
from utils.storage import write_json
from utils.training.export import onnx_graphs as graphs
from utils.training.export.folders import check_space, size_of, staged_folder
from utils.training.export.hf import save_tokenizer
from utils.training.export.manifest import MARKER
from utils.training.export.onnx_graphs import CACHE_FILE, FILE_NAME, Graph
from utils.training.export.onnx_measures import BATCH_SIZES, TIMED_LENGTH, benchmark
from utils.training.export.onnx_tools import checked_opset, optimise, quantise
from utils.training.export.onnx_verification import OnnxVerification
from utils.training.export.parity import example_batches
from utils.training.export.result import ExportResult

# Weights from here on go into a file beside the graph: a protobuf file ends at 2 GiB.
_LARGEST_SINGLE_FILE = 1_000_000_000
_PACKAGES = {"onnx": "to write ONNX files", "onnxscript": "to write ONNX files", "onnxruntime": "to verify ONNX files"}


@dataclass(frozen=True)
class OnnxOptions:
    """Options of an ONNX export and its verification.

    Attributes:
        sizes: (batch, sequence) of graphs of fixed sizes; None: both may vary.
        optimise: whether operators are fused for ONNX Runtime; the graphs then hold operators of its own.
        int8: whether weights are stored in 8 bits.
        validate, benchmark: whether the files are compared with the model, and timed.
        cache: whether a causal language model gets a second file with a key/value cache.
        benchmark_batch: the batch of the benchmark's main figures.
        inputs: names of the inputs, in the order of the model's; fewer leave the last ones out. outputs: likewise.
        task_spec: fills what the model does not state of its inputs.
        traced: a folder with verified graphs of the same model, which are copied; None: the model is traced.
    """

    sizes: tuple[int, int] | None = None
    optimise: bool = False
    int8: bool = False
    validate: bool = True
    benchmark: bool = True
    cache: bool = True
    benchmark_batch: int = 1
    inputs: Sequence[str] | None = None
    outputs: Sequence[str] | None = None
    task_spec: Any = None
    traced: Path | None = None


@dataclass(frozen=True)
class OnnxFiles:
    """Files that `write_onnx` wrote.

    Attributes:
        names: files of graphs, without those of external data.
        parity, benchmark: as of an ExportResult; empty and None where nothing was measured.
        opset: version of the ONNX operators in the files.
    """

    names: tuple[str, ...]
    parity: Mapping[str, Any]
    benchmark: Mapping[str, Any] | None
    opset: int
    notes: tuple[str, ...] = field(default_factory=tuple)


def refuse_unsupported(model: Any) -> None:
    """Raise `ExportError` for a model that this format cannot hold, `MissingPackageError` where a package is missing."""
    import importlib.util

    if not isinstance(model, nn.Module):
        raise ExportError(f"{type(model).__name__} is not an nn.Module, so it has no forward pass to export")
    for package, purpose in _PACKAGES.items():
        if importlib.util.find_spec(package) is None:
            raise MissingPackageError(package, purpose)


def export_onnx(
    model: nn.Module, tokenizer: Any, target: Path, source: str, notes: tuple[str, ...] = (), *, task_spec: Any = None
) -> ExportResult:
    """Write `model` to the folder `target`, compare ONNX Runtime's results with the model's, and only then name it.

    `model.onnx` holds the forward pass in standard operators, for any batch and length. Its inputs are those of the model:
    `input_ids` and, where the model takes one, `attention_mask` (int64, (batch, sequence)); `pixel_values`; or `inputs`.
    Its output is `logits`, float32. A causal language model of transformers also gets `decoder_with_past_model.onnx`, which
    takes and returns the key/value cache; an encoder-decoder of transformers is `encoder_model.onnx` and `decoder_model.onnx`.

    Args:
        model: any module that `ModelCall` can call, on the CPU, in evaluation mode.
        tokenizer: saved with it; None: none.
        target: the folder; an export that is there is replaced.
        source: the checkpoint that the weights come from, for the record.
        notes: what the result should say besides.
        task_spec: fills what the model does not state of its inputs.
    Raises:
        ExportError: not written, or what was written is not the same model. `target` is then what it was.
    """
    return _export("onnx", model, tokenizer, target, source, notes, OnnxOptions(task_spec=task_spec))


def export_onnx_int8(
    model: nn.Module, tokenizer: Any, target: Path, source: str, notes: tuple[str, ...] = (), *, task_spec: Any = None,
    traced: Path | None = None,
) -> ExportResult:  # fmt: skip
    """Write `model` as `export_onnx` does, with the weights of matrices in int8 (dynamic quantisation).

    What is compared is not each logit but what they are for: the perplexity of a language model on a sample text, the
    predictions of a classifier. `parity` holds the measured value beside its limit.

    Args:
        traced: a folder that `export_onnx` wrote from the same model, whose graphs are quantised; None: the model is traced.
    """
    options = OnnxOptions(int8=True, task_spec=task_spec, traced=traced)
    return _export("onnx-int8", model, tokenizer, target, source, notes, options)


def _export(
    kind: str, model: nn.Module, tokenizer: Any, target: Path, source: str, notes: tuple[str, ...], options: OnnxOptions
) -> ExportResult:
    try:
        with staged_folder(target) as staging:
            check_space(staging, target, model)
            files = write_onnx(model, staging, options, tokenizer)
            notes += (*files.notes, *save_tokenizer(tokenizer, staging))
            record = {"format": kind, "source": source, "class": type(model).__name__, "parity": files.parity}
            write_json(staging / MARKER, {**record, "opset": files.opset})
    except OSError as error:
        raise ExportError(
            f"{target} could not be written: {error.strerror or error}. What was there before is unchanged."
        ) from error
    return ExportResult(
        kind,
        target,
        size_of(target),
        files.parity,
        files.benchmark,
        notes,
        files.opset,
        other_process=files.parity or None,
    )


def write_onnx(model: nn.Module, folder: Path, options: OnnxOptions, tokenizer: Any = None) -> OnnxFiles:
    """Write the graphs of `model` into `folder` and verify them there.

    Args:
        model: on the CPU, in evaluation mode.
        tokenizer: gives the sample text on which int8 weights are measured; None: random ids.
    Raises:
        ExportError: the model has no ONNX form, or the files are not the same model.
    """
    model, notes = _prepared(model)
    facts = model_facts(model)
    batches = _batches(model, options)
    names = _input_names(batches, options)
    large = sum(p.numel() * p.element_size() for p in model.parameters()) >= _LARGEST_SINGLE_FILE
    planned, more_notes = _planned(model, batches, names, options)
    if options.traced is None:
        for name, graph in planned.items():
            graphs.write_graph(graph, folder / name, type(model).__name__, large)
    else:
        planned = _copied(planned, options.traced, folder)
    opset = max(checked_opset(folder / name) for name in planned)
    check = OnnxVerification(model, batches, names, facts.max_length, tokenizer)
    parity = check.parity(folder, planned) if options.validate and options.traced is None else {}
    notes += (*more_notes, *_described(opset, planned, facts.max_length, options))
    if options.optimise:
        notes += (_optimised(model, folder, planned, check, large, options.validate),)
    if options.int8:
        parity = _quantised(folder, planned, check, large)
        notes += ("Weights of matrices are int8; activations are quantised as the model runs.",)
    run = check.run(folder, planned)
    times = benchmark(check.original, run, check.batches[-1], *_timed_sizes(options)) if options.benchmark else None
    return OnnxFiles(tuple(planned), parity, times, opset, notes)


def _copied(planned: Mapping[str, Graph], source: Path, folder: Path) -> dict[str, Graph]:
    """Copy the graphs of `planned` that are in `source`, with their external data. Returns those."""
    for name in planned:
        for file in source.glob(f"{name}*"):
            shutil.copyfile(file, folder / file.name)
    return {name: graph for name, graph in planned.items() if (folder / name).is_file()}


def _timed_sizes(options: OnnxOptions) -> tuple[tuple[int, ...], int | None]:
    """Batch sizes that are timed, and the number of tokens that rows are cut to."""
    if options.sizes:
        return (options.sizes[0],), None
    return tuple(dict.fromkeys((options.benchmark_batch, *BATCH_SIZES))), TIMED_LENGTH


def _prepared(model: nn.Module) -> tuple[nn.Module, tuple[str, ...]]:
    """`model` in the form that is traced: adapters merged, nodes of a visual builder connected, in float32."""
    notes: tuple[str, ...] = ()
    if callable(getattr(model, "merge_and_unload", None)):
        model = copy.deepcopy(model).merge_and_unload().eval()  # type: ignore[operator]
        notes += ("The adapter's weights were merged into the model's.",)
    model = runnable(model).eval()
    # ONNX Runtime's CPU kernels have float32 for everything.
    if any(p.dtype != torch.float32 for p in model.parameters() if p.is_floating_point()):
        model = copy.deepcopy(model).float()
        notes += ("The weights were converted to float32.",)
    return model, notes


def _batches(model: nn.Module, options: OnnxOptions) -> list[dict[str, Tensor]]:
    """Example batches for comparing model and files."""
    batches = example_batches(model, options.task_spec)
    if options.sizes is None:
        return batches
    rows, length = options.sizes
    return [{name: _resized(tensor, rows, length) for name, tensor in batch.items()} for batch in batches]


def _resized(tensor: Tensor, rows: int, length: int) -> Tensor:
    """`tensor` with its rows, and the positions of ids and masks, repeated or cut to a fixed size."""
    tensor = tensor.repeat(-(-rows // len(tensor)), *[1] * (tensor.dim() - 1))[:rows]
    if tensor.dim() == 2 and not tensor.is_floating_point():
        return tensor.repeat(1, -(-length // tensor.shape[1]))[:, :length]
    return tensor


def _input_names(batches: Sequence[Mapping[str, Tensor]], options: OnnxOptions) -> dict[str, str]:
    """The names of the file's inputs by the model's."""
    longest: Mapping[str, Tensor] = max(batches, key=lambda batch: len(list(batch)))
    taken = list(longest)
    if options.inputs is None:
        return {name: name for name in taken}
    given = list(options.inputs)
    if not 1 <= len(given) <= len(taken) or len(set(given)) < len(given):
        raise ExportError(f"got input_names={given}; the model takes {taken}: give 1 to {len(taken)} different names")
    return dict(zip(taken, given, strict=False))


def _planned(
    model: nn.Module, batches: Sequence[Mapping[str, Tensor]], names: Mapping[str, str], options: OnnxOptions
) -> tuple[dict[str, Graph], tuple[str, ...]]:
    """The graphs by file name, and what is left out, in sentences."""
    facts, main = model_facts(model), max(batches, key=len)
    is_transformers = hasattr(model, "get_encoder") and callable(getattr(model, "can_generate", None))
    if is_transformers and takes_decoder_ids(model) and model.can_generate():  # type: ignore[operator]
        if options.inputs is not None or options.outputs is not None:
            raise ExportError(
                "input_names and output_names are not used: an encoder-decoder is two files of fixed names"
            )
        return graphs.encoder_decoder_graphs(model, options.sizes), ()
    example = {name: tensor for name, tensor in main.items() if name in names}
    graph = graphs.forward_graph(model, example, options.sizes, facts.max_length)
    planned = {FILE_NAME: _renamed(graph, names, options.outputs)}
    if not options.cache or options.sizes or not _has_cache(model):
        return planned, ()
    try:
        planned[CACHE_FILE] = graphs.cached_graph(model)
    except ExportError as error:
        return planned, (f"There is no file with a key/value cache: {error}.",)
    return planned, ()


def _has_cache(model: nn.Module) -> bool:
    """Whether `model` is a causal language model of transformers, which takes a key/value cache."""
    generates = getattr(model, "can_generate", None)
    takes_cache = ModelCall(model).has_parameter("past_key_values", {"input_ids": torch.zeros(1, 1)})
    return callable(generates) and bool(generates()) and takes_cache and not takes_decoder_ids(model)


def _renamed(graph: Graph, names: Mapping[str, str], outputs: Sequence[str] | None) -> Graph:
    if outputs is not None and len(outputs) != 1:
        raise ExportError(f"got output_names={list(outputs)}; the graph has one output, the logits: give one name")
    output = outputs[0] if outputs else "logits"
    inputs = {names[name]: tensor for name, tensor in graph.inputs.items()}
    axes = {names.get(name, output): sizes for name, sizes in graph.axes.items()}
    return replace(graph, inputs=inputs, outputs=[output], axes=axes)


def _optimised(
    model: nn.Module, folder: Path, planned: Mapping[str, Graph], check: OnnxVerification, large: bool, validate: bool
) -> str:
    """Replace the files by optimised ones that pass the same verification. Returns what was done, or why not."""
    made = folder / "optimised"
    made.mkdir()
    try:
        done = [optimise(folder / name, made / name, model, large) for name in planned]
        for name in planned:
            checked_opset(made / name, standard=False)
        if validate:
            check.parity(made, planned)
        _replace_by(folder, made, planned)
    except ExportError as error:
        return f"The graph is not optimised: {str(error).rstrip('.')}."
    finally:
        shutil.rmtree(made)
    return f"Optimised by {'; '.join(dict.fromkeys(done))}. The file holds operators that only ONNX Runtime has."


def _quantised(folder: Path, planned: Mapping[str, Graph], check: OnnxVerification, large: bool) -> dict[str, Any]:
    """Replace the files by int8 ones that keep the model's predictions. Returns the measured quality."""
    made = folder / "int8"
    made.mkdir()
    try:
        for name in planned:
            quantise(folder / name, made / name, large)
        quality = check.quality(made, planned)
        _replace_by(folder, made, planned)
    finally:
        shutil.rmtree(made)
    return quality


def _replace_by(folder: Path, made: Path, planned: Mapping[str, Graph]) -> None:
    """Move the files in `made` to `folder`, in place of the graphs that are there and their external data."""
    for name in planned:
        for old in folder.glob(f"{name}*"):
            old.unlink()
    for file in made.iterdir():
        file.rename(folder / file.name)


def _described(
    opset: int, planned: Mapping[str, Graph], max_length: int | None, options: OnnxOptions
) -> tuple[str, ...]:
    """Describe inputs and outputs of the files, a sentence for each."""
    described = []
    for name, graph in planned.items():
        if name == CACHE_FILE:
            described.append(
                f"{name}: the same with the key/value cache as inputs past_key_values.* and outputs present.*."
            )
            continue
        kinds = {str(tensor.dtype).removeprefix("torch.") for tensor in graph.inputs.values()}
        sizes = "any batch" if options.sizes is None else f"batch {options.sizes[0]}"
        if any(tensor.dim() == 2 and not tensor.is_floating_point() for tensor in graph.inputs.values()):
            longest = f"1 to {max_length:,}" if max_length else "any number of"
            sizes += f", {longest} tokens" if options.sizes is None else f", {options.sizes[1]} tokens"
        images = next((tensor for tensor in graph.inputs.values() if tensor.dim() == 4), None)
        sizes += "" if images is None else f" of {' x '.join(map(str, images.shape[1:]))} images"
        prefix = "" if name == FILE_NAME else f"{name}: "
        described.append(
            f"{prefix}Inputs {', '.join(graph.inputs)}: {' and '.join(sorted(kinds))}, {sizes}; "
            f"output {graph.outputs[0]}."
        )
    return (f"The file uses ONNX opset {opset}.", *described)
