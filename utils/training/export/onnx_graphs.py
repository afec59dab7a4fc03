"""Choose the ONNX graphs for a model, trace and write them.

Most models are one graph. A causal language model with a key/value cache gets a second one, whose inputs and outputs include
the cache; an encoder-decoder of transformers is an encoder and a decoder, because the decoder runs once for each token.

Shapes: B samples, T positions, P cached positions, H heads, D width, V vocabulary.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from utils.errors import ExportError, TrainbookError, first_line, root_cause
from utils.training.export.graph_inputs import LogitsOnly
from utils.training.export.stages import stage

if TYPE_CHECKING:
    import onnx_ir

_log = logging.getLogger("trainbook.export")

#: Files' names, which are those of Optimum: tools that read its folders find them.
FILE_NAME, CACHE_FILE = "model.onnx", "decoder_with_past_model.onnx"
ENCODER_FILE, DECODER_FILE = "encoder_model.onnx", "decoder_model.onnx"

# They report their progress and their own deprecations.
_TALKATIVE = ("torch.onnx", "torch.export", "torch.fx", "torch._dynamo", "onnxscript", "onnx_ir", "onnxruntime")

# Sizes of the traced example: none is 0 or 1, which the exporter takes for constants.
_BATCH, _LENGTH, _DECODER_LENGTH, _PAST, _NEW = 2, 5, 4, 4, 3


@dataclass(frozen=True)
class Graph:
    """One ONNX file to write.

    Attributes:
        module: takes the inputs by position; returns the outputs, a tensor or a tuple.
        inputs: the example that is traced, by input name.
        outputs: names of the outputs.
        axes: for an input or output the names of its leading axes; None: that axis has a fixed size.
    """

    module: nn.Module
    inputs: Mapping[str, Tensor]
    outputs: Sequence[str]
    axes: Mapping[str, Sequence[str | None]] = field(default_factory=dict)


class _WithCache(nn.Module):
    """A causal transformers model: ids (B, T), mask (B, P + T), then keys and values (B, H, P, D) of each layer."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor, *past: Tensor) -> tuple[Tensor, ...]:
        from transformers import DynamicCache

        cache = DynamicCache()
        for layer, (keys, values) in enumerate(zip(past[::2], past[1::2], strict=True)):
            cache.update(keys, values, layer)
        outputs = self.model(
            input_ids=input_ids, attention_mask=attention_mask, past_key_values=cache, use_cache=True, return_dict=True
        )
        return (outputs.logits, *_flat(outputs.past_key_values))


class _Encoder(nn.Module):
    """The encoder of a transformers model: its last hidden state."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.encoder = model.get_encoder()

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        state: Tensor = self.encoder(input_ids=input_ids, attention_mask=attention_mask, return_dict=True)[0]
        return state


class _Decoder(nn.Module):
    """The decoder and output layer of a transformers model, given the encoder's last hidden state."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, encoder_hidden_states: Tensor, encoder_attention_mask: Tensor) -> Tensor:
        from transformers.modeling_outputs import BaseModelOutput

        logits: Tensor = self.model(
            encoder_outputs=BaseModelOutput(last_hidden_state=encoder_hidden_states),
            attention_mask=encoder_attention_mask, decoder_input_ids=input_ids, use_cache=False, return_dict=True,
        ).logits  # fmt: skip
        return logits


def forward_graph(
    model: nn.Module, batch: Mapping[str, Tensor], sizes: tuple[int, int] | None, max_length: int | None
) -> Graph:
    """The graph of the whole forward pass: the batch's inputs to `logits`.

    Args:
        batch: an example of what the model takes; its names become the inputs' names.
        sizes: (batch, sequence) of a graph of fixed sizes; None: both may vary. Images vary in their number only.
        max_length: the longest sequence that the model takes.
    """
    inputs, axes = {}, {}
    for name, tensor in batch.items():
        over_positions = tensor.dim() == 2 and not tensor.is_floating_point()
        length = _DECODER_LENGTH if name.startswith("decoder") else _LENGTH
        rows, columns = sizes or (_BATCH, min(length, max_length or length))
        shape = (rows, columns, *tensor.shape[2:]) if over_positions else (rows, *tensor.shape[1:])
        fill = torch.ones if "mask" in name else torch.zeros
        inputs[name] = fill(shape, dtype=tensor.dtype)
        sequence = "decoder_sequence" if name.startswith("decoder") else "sequence"
        axes[name] = () if sizes else ("batch", sequence) if over_positions else ("batch",)
    positions = next((axes[name] for name in ("decoder_input_ids", "input_ids") if name in axes), ("batch",))
    if not any(axes.values()):
        positions = ()
    return Graph(LogitsOnly(model, list(inputs)), inputs, ["logits"], {**axes, "logits": positions})


def cached_graph(model: nn.Module) -> Graph:
    """The graph of a causal transformers model with its key/value cache as inputs and outputs; P may be 0.

    Raises:
        ExportError: the model's cache is not one of keys and values of all positions; says what it is.
    """
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer

    name = type(model).__name__
    with torch.no_grad():
        ids_BT = torch.zeros(_BATCH, _PAST, dtype=torch.int64)
        mask_BT = torch.ones_like(
            ids_BT
        )  # 0 may be the id of padding, of which transformers warns where no mask is given
        outputs = model(input_ids=ids_BT, attention_mask=mask_BT, use_cache=True, return_dict=True)
    cache = getattr(outputs, "past_key_values", None)
    layers = getattr(cache, "layers", [])
    if not isinstance(cache, DynamicCache) or not layers or any(type(layer) is not DynamicLayer for layer in layers):
        kinds = sorted({type(layer).__name__ for layer in layers}) or [type(cache).__name__]
        raise ExportError(
            f"{name} keeps a cache of the kind {', '.join(kinds)}, which has no ONNX form here; only keys and values of all "
            "positions have"
        )
    past = dict(zip(_cache_names("past_key_values", len(layers)), _flat(cache), strict=True))
    present = _cache_names("present", len(layers))
    inputs = {
        "input_ids": torch.zeros(_BATCH, _NEW, dtype=torch.int64),
        "attention_mask": torch.ones(_BATCH, _PAST + _NEW, dtype=torch.int64),
        **past,
    }
    axes: dict[str, Sequence[str | None]] = {
        "input_ids": ("batch", "sequence"),
        "attention_mask": ("batch", "total_sequence"),
        "logits": ("batch", "sequence"),
        **dict.fromkeys(past, ("batch", None, "past_sequence")),
        **dict.fromkeys(present, ("batch", None, "total_sequence")),
    }
    return Graph(_WithCache(model), inputs, ["logits", *present], axes)


def encoder_decoder_graphs(model: Any, sizes: tuple[int, int] | None = None) -> dict[str, Graph]:
    """The graphs of a transformers encoder-decoder by file name."""
    rows, length = sizes or (_BATCH, _LENGTH)
    decoder_length = length if sizes else _DECODER_LENGTH
    ids_BT, mask_BT = torch.zeros(rows, length, dtype=torch.int64), torch.ones(rows, length, dtype=torch.int64)
    encoder = _Encoder(model).eval()
    with torch.no_grad():
        state_BTD = encoder(ids_BT, mask_BT)
    source, target = (() if sizes else ("batch", name) for name in ("sequence", "decoder_sequence"))
    return {
        ENCODER_FILE: Graph(
            encoder,
            {"input_ids": ids_BT, "attention_mask": mask_BT},
            ["last_hidden_state"],
            {"input_ids": source, "attention_mask": source, "last_hidden_state": source},
        ),
        DECODER_FILE: Graph(
            _Decoder(model),
            {
                "input_ids": torch.zeros(rows, decoder_length, dtype=torch.int64),
                "encoder_hidden_states": state_BTD,
                "encoder_attention_mask": mask_BT,
            },
            ["logits"],
            {
                "input_ids": target, "logits": target, "encoder_hidden_states": source, "encoder_attention_mask": source,
            },
        ),
    }  # fmt: skip


def write_graph(graph: Graph, file: Path, owner: str, external_data: bool) -> None:
    """Trace `graph` and write it to `file`.

    Args:
        owner: the model's class, for messages.
        external_data: whether the weights go into `file`.data: a protobuf file ends at 2 GiB.
    Raises:
        ExportError: it cannot be traced; with the exporter's reason.
    """
    stage(f"tracing {file.name}")
    dynamic = {
        name: {axis: size for axis, size in enumerate(graph.axes.get(name, ())) if size} for name in graph.inputs
    }
    parameters = [name for name in _positional(graph.module) if name in graph.inputs]
    named = tuple(dynamic[name] for name in parameters)
    rest = tuple(dynamic[name] for name in graph.inputs if name not in parameters)
    shapes = (*named, rest) if rest else named
    try:
        with silent(), torch.no_grad(), _fresh_recurrent_layers():
            program = torch.onnx.export(
                graph.module.eval(),
                tuple(graph.inputs.values()),
                dynamo=True,
                input_names=list(graph.inputs),
                output_names=list(graph.outputs),
                dynamic_shapes=shapes if any(dynamic.values()) else None,
                verbose=False,
            )
            assert program is not None  # None is what the exporter of before dynamo returns
            _tidy(program.model, graph.axes)
            program.save(file, external_data=external_data)
            _drop_inner_shapes(file)
    except (OSError, TrainbookError):
        raise
    # The exporter passes on whatever the model's own code, torch.export or its passes raise.
    except Exception as error:
        raise ExportError(
            f"{owner} cannot be written as ONNX: {first_line(root_cause(error))}. Other formats are not affected."
        ) from error


@contextlib.contextmanager
def _fresh_recurrent_layers() -> Iterator[None]:
    """Forget which decomposition GRU and LSTM had, before and after.

    The exporter registers one for any sequence length while it traces, but what an earlier export or compilation left in the
    operators' dispatch cache comes first: the second export of a GRU in a process would be traced for one length, and refused.
    """
    operators = (torch.ops.aten.gru.input, torch.ops.aten.lstm.input)

    def forget() -> None:
        for operator in operators:
            operator._dispatch_cache.clear()

    forget()
    try:
        yield
    finally:
        forget()


def _positional(module: nn.Module) -> list[str]:
    """Names of the positional parameters of forward that are not `*args`."""
    import inspect

    parameters = inspect.signature(module.forward).parameters.values()
    return [parameter.name for parameter in parameters if parameter.kind is parameter.POSITIONAL_OR_KEYWORD]


def _flat(cache: Any) -> list[Tensor]:
    return [tensor for layer in cache.layers for tensor in (layer.keys, layer.values)]


def _cache_names(prefix: str, layers: int) -> list[str]:
    return [f"{prefix}.{layer}.{part}" for layer in range(layers) for part in ("key", "value")]


def _tidy(program: onnx_ir.Model, axes: Mapping[str, Sequence[str | None]]) -> None:
    """Take out the exporter's stack traces, which name files of this machine, and name the sizes that may vary.

    Shapes inside the graph go too: engines derive them, and the exporter's can hold the example's length as a constant.
    """
    graph = program.graph
    for node in graph.all_nodes():
        node.metadata_props.clear()
        for value in node.outputs:
            if not value.is_graph_output():
                value.shape = None
    for value in (*graph.inputs, *graph.outputs):
        if value.shape is None:
            continue
        sizes: list[Any] = list(value.shape)
        # The last axis of an output holds its scores: a classifier of sequences has none for positions.
        last = len(sizes) if value in graph.inputs else len(sizes) - 1
        for axis, name in enumerate(list(axes.get(value.name or "", ()))[:last]):
            if name:
                sizes[axis] = name
        value.shape = type(value.shape)(sizes)


def _drop_inner_shapes(file: Path) -> None:
    """Take out the recorded shapes of values inside the graph: tools that transpose weights leave them behind, wrong."""
    import onnx

    program = onnx.load(file, load_external_data=False)
    del program.graph.value_info[:]
    onnx.save(program, file)


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """Without log lines, warnings and prints of the exporting packages, which are about their own insides.

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
