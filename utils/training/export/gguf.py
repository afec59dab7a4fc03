"""A GGUF file for llama.cpp, Ollama and LM Studio: weights, tokenizer and chat template in one file.

Layout of the tensors: the converter of llama.cpp is the reference. Names come from the `gguf` package.
"""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from utils.adapters.facts import model_facts
from utils.adapters.forward import ModelCall
from utils.errors import ExportError, MissingPackageError
from utils.storage import write_json
from utils.training.export.folders import check_space, size_of, staged_folder
from utils.training.export.gguf_tokenizer import GGUFVocabulary, gguf_vocabulary
from utils.training.export.greedy import greedy_parity
from utils.training.export.hf import base_model, merged_model, scores_elsewhere, scores_of
from utils.training.export.manifest import MARKER
from utils.training.export.other_process import loaded_elsewhere
from utils.training.export.parity import compare_logits, example_batches
from utils.training.export.result import ExportResult

if TYPE_CHECKING:
    from gguf import GGUFWriter

#: The files' names in the export's folder.
FILE_NAME, MODELFILE_NAME = "model.gguf", "Modelfile"

# The same numbers multiplied in the same order on both sides; the reader's code may differ in a kernel.
_TOLERANCE = 1e-4

DType = Literal["f32", "f16", "q8_0"]
Array = NDArray[np.float32]


@dataclass(frozen=True)
class Architecture:
    """GGUF layout of one model family.

    Attributes:
        name: GGUF's name of the family.
        activations: values of the config's activation that readers compute.
        rotary: rotary positions, RMS norms and gated layers; otherwise GPT-2's.
        permuted: whether the rows of q and k are reordered, from halves to pairs that are rotated together.
    """

    name: str
    activations: tuple[str, ...]
    rotary: bool
    permuted: bool


_ARCHITECTURES = {
    "LlamaForCausalLM": Architecture("llama", ("silu", "swish"), rotary=True, permuted=True),
    "MistralForCausalLM": Architecture("llama", ("silu", "swish"), rotary=True, permuted=True),
    "Qwen2ForCausalLM": Architecture("qwen2", ("silu", "swish"), rotary=True, permuted=False),
    "GPT2LMHeadModel": Architecture("gpt2", ("gelu_new", "gelu_pytorch_tanh"), rotary=False, permuted=False),
}
# GPT-2's linear layers hold their weights as (in, out).
_TRANSPOSED = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")


def refuse_unsupported(model: Any) -> None:
    """Raise `ExportError` for a model that this format cannot hold, `MissingPackageError` where `gguf` is missing."""
    _architecture_of(base_model(model))  # adapters are merged
    if importlib.util.find_spec("gguf") is None:
        raise MissingPackageError("gguf", "to write GGUF files")


def _architecture_of(model: Any) -> Architecture:
    """The architecture of a model. Raises `ExportError` for one that the format cannot hold."""
    name, config = type(model).__name__, getattr(model, "config", None)
    architecture = _ARCHITECTURES.get(name)
    if architecture is None:
        raise ExportError(
            f"{name} has no layout in GGUF that this version writes: it writes {', '.join(_ARCHITECTURES)}. Use "
            "formats=['hf'] for other transformers models, ['safetensors'] for any module."
        )
    reason = _misfit(architecture, config)
    if reason is not None:
        raise ExportError(f"{name} cannot be written as GGUF: {reason}, which its readers do not compute. Use 'hf'.")
    return architecture


def _misfit(architecture: Architecture, config: Any) -> str | None:
    """Name a config value that readers of this architecture would ignore, or None."""
    activation = getattr(config, "hidden_act", None) or getattr(config, "activation_function", None)
    if activation not in architecture.activations:
        return f"its activation is {activation}"
    if not architecture.rotary:
        if not config.scale_attn_weights or config.scale_attn_by_inverse_layer_idx:
            return "it scales attention in its own way (scale_attn_weights, scale_attn_by_inverse_layer_idx)"
        return "it has cross-attention" if config.add_cross_attention else None
    rope_type = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    if rope_type != "default":
        return f"it scales its rotary positions (RoPE scaling {rope_type!r})"
    window = getattr(config, "sliding_window", None)
    if window is not None and window < config.max_position_embeddings and getattr(config, "use_sliding_window", True):
        return f"it uses sliding-window attention (sliding_window={window})"
    return None


def export_gguf(
    model: nn.Module, tokenizer: Any, target: Path, source: str, notes: tuple[str, ...] = (), dtype: DType = "f16",
    *, task_spec: Any = None,
) -> ExportResult:  # fmt: skip
    """Write `model` to `target`/model.gguf with a Modelfile for Ollama, and read it back before it gets its name.

    Every tensor is read with the `gguf` package and compared with the model's, within the rounding of `dtype`. Then
    transformers' own GGUF reader loads the file in another process, and its logits and greedy tokens are compared with those
    of the model with weights rounded to `dtype`: they must agree, so all that separates the file from the model is that
    rounding. Adapters of PEFT are merged into the weights first.

    Args:
        model: of one of the families that the format knows, on the CPU, in evaluation mode.
        tokenizer: written into the file; None: the file holds ids only.
        target: the folder; an export that is there is replaced.
        source: the checkpoint that the weights come from, for the record.
        notes: further sentences for the result.
        task_spec: not used: the model's config states what its inputs are.
        dtype: of the matrices; vectors and tables of positions stay float32. q8_0: 8 bits in blocks of 32 with one scale.
    Raises:
        ExportError: not written, or what was written is not the same. `target` is then what it was.
    """
    refuse_unsupported(model)
    model, merging_notes = merged_model(model, example_batches(model))
    architecture = _architecture_of(model)
    rows = model.get_input_embeddings().num_embeddings  # type: ignore[operator]
    vocabulary = None if tokenizer is None else gguf_vocabulary(tokenizer, rows)
    if vocabulary is None:
        notes += ("There is no tokenizer in the file: readers take and return token ids only.",)
    try:
        with staged_folder(target) as staging:
            check_space(staging, target, model)
            file = staging / FILE_NAME
            rounded = _write(model, architecture, vocabulary, file, dtype)
            parity = {**_verify(model, architecture, rounded, file), "dtype": dtype}
            (staging / MODELFILE_NAME).write_text(_modelfile(model, vocabulary), encoding="utf-8")
            record = {"format": "gguf", "source": source, "class": type(model).__name__, "parity": parity}
            write_json(staging / MARKER, record)
    except OSError as error:
        reason = error.strerror or error
        raise ExportError(f"{target} could not be written: {reason}. What was there before is unchanged.") from error
    how = f"Run it with `llama-cli -m {FILE_NAME}`, or `ollama create NAME -f {MODELFILE_NAME}` in its folder."
    name = "gguf" if dtype == "f16" else f"gguf-{dtype}"
    return ExportResult(
        name, target, size_of(target), parity, None, (*notes, *merging_notes, how), other_process=parity
    )


def _write(
    model: nn.Module, architecture: Architecture, vocabulary: GGUFVocabulary | None, file: Path, dtype: DType
) -> dict[str, Array]:
    """Write the file. Returns the model's parameters as rounded by `dtype`, by name."""
    import gguf

    writer = gguf.GGUFWriter(file, architecture.name)
    try:
        _write_config(writer, architecture, model)
        writer.add_file_type(
            {"f32": gguf.LlamaFileType.ALL_F32, "f16": gguf.LlamaFileType.MOSTLY_F16}.get(
                dtype, gguf.LlamaFileType.MOSTLY_Q8_0
            )
        )
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        if vocabulary is None:
            writer.add_tokenizer_model("none")
        else:
            vocabulary.write(writer)
        rounded = {}
        for name, stored_name, array, restore in _tensors(model, architecture):
            kind = _kind(array, stored_name, dtype)
            with np.errstate(over="ignore"):  # what float16 cannot hold is reported by name when it is read back
                data = gguf.quants.quantize(array, kind)
            writer.add_tensor(stored_name, data, raw_dtype=kind)
            rounded[name] = restore(gguf.quants.dequantize(data, kind).reshape(array.shape))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()
    return rounded


def _write_config(writer: GGUFWriter, architecture: Architecture, model: nn.Module) -> None:
    config: Any = model.config
    writer.add_name(type(model).__name__)
    writer.add_vocab_size(model_facts(model).vocab_size or 0)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(config.num_attention_heads)
    if not architecture.rotary:
        writer.add_feed_forward_length(config.n_inner or 4 * config.hidden_size)
        writer.add_layer_norm_eps(config.layer_norm_epsilon)
        return
    head_size = _head_size(config)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(head_size)
    writer.add_key_length(head_size)
    writer.add_value_length(head_size)


def _head_size(config: Any) -> int:
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def _tensors(
    model: nn.Module, architecture: Architecture
) -> Iterator[tuple[str, str, Array, Callable[[Array], Array]]]:
    """(parameter, GGUF's name for it, its values in GGUF's layout, the way back) for each; tied ones once."""
    import gguf

    config: Any = model.config
    names = gguf.get_tensor_name_map(
        {"llama": gguf.MODEL_ARCH.LLAMA, "qwen2": gguf.MODEL_ARCH.QWEN2, "gpt2": gguf.MODEL_ARCH.GPT2}[
            architecture.name
        ],
        config.num_hidden_layers,
    )
    for name, parameter in model.named_parameters():  # a tied output layer is left out: readers take the embeddings
        stored_name = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if stored_name is None:
            raise ExportError(f"{type(model).__name__}.{name} has no place in GGUF's architecture {architecture.name}")
        array = parameter.detach().float().numpy()
        if not architecture.rotary and name.endswith(_TRANSPOSED):
            yield name, stored_name, np.ascontiguousarray(array.T), np.transpose
        elif architecture.permuted and ".q_proj." in name:
            yield name, stored_name, _paired(array, config.num_attention_heads), _halved(config.num_attention_heads)
        elif architecture.permuted and ".k_proj." in name:
            yield name, stored_name, _paired(array, config.num_key_value_heads), _halved(config.num_key_value_heads)
        else:
            yield name, stored_name, array, lambda values: values


def _paired(array: Array, heads: int) -> Array:
    """Rows of each head from (first half, second half) to pairs that are rotated together."""
    halves = array.reshape(heads, 2, array.shape[0] // heads // 2, *array.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(array.shape))


def _halved(heads: int) -> Callable[[Array], Array]:
    """The inverse of `_paired`."""

    def restore(array: Array) -> Array:
        pairs = array.reshape(heads, array.shape[0] // heads // 2, 2, *array.shape[1:])
        return pairs.swapaxes(1, 2).reshape(array.shape)

    return restore


def _kind(array: Array, stored_name: str, dtype: DType) -> Any:
    """The dtype of one tensor: readers expect vectors and positions in float32; q8_0 takes whole blocks only."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    if dtype == "f32" or array.ndim < 2 or stored_name.startswith("position_embd"):
        return GGMLQuantizationType.F32
    block, _ = GGML_QUANT_SIZES[GGMLQuantizationType.Q8_0]
    return GGMLQuantizationType.Q8_0 if dtype == "q8_0" and array.shape[-1] % block == 0 else GGMLQuantizationType.F16


def _verify(model: nn.Module, architecture: Architecture, rounded: Mapping[str, Array], file: Path) -> dict[str, Any]:
    """Read the file back: tensor by tensor, then as a model. Raises ExportError if the file does not reproduce the model."""
    weight_difference = _compare_tensors(model, architecture, file)
    reference = copy.deepcopy(model).float()
    parameters = dict(reference.named_parameters())
    with torch.no_grad():
        for name, values in rounded.items():
            parameters[name].copy_(torch.from_numpy(np.ascontiguousarray(values)))
    # transformers reads the number of positions and of tokens from the file for every family but GPT-2.
    config: Any = model.config
    known = None if architecture.rotary else config.to_json_string(use_diff=False)
    batches = example_batches(model)
    call = ModelCall(reference)
    expected = scores_of(reference, call)
    with loaded_elsewhere("gguf", folder=str(file.parent), file=file.name, config=known) as elsewhere:
        got = scores_elsewhere(call, elsewhere)
        compare_logits(expected, got, batches, _TOLERANCE)
        # What the rounding costs is stated, not judged.
        parity = compare_logits(ModelCall(model), got, batches, float("inf"))
        tokens = greedy_parity(model, expected, got, batches, _TOLERANCE)
    return {**parity, **tokens, "tensors": len(rounded), "max_weight_diff": weight_difference}


def _compare_tensors(model: nn.Module, architecture: Architecture, file: Path) -> float:
    """The largest difference between a weight of the model and the file. Raises ExportError above the format's rounding."""
    import gguf

    stored = {tensor.name: tensor for tensor in gguf.GGUFReader(file).tensors}
    largest = 0.0
    for name, stored_name, array, _ in _tensors(model, architecture):
        tensor = stored.pop(stored_name, None)
        if tensor is None:
            raise ExportError(f"the exported file holds no {stored_name}; nothing was exported")
        got = gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(array.shape)
        difference = np.abs(got - array)
        if not bool((difference <= _rounding(array, tensor.tensor_type.name)).all()):
            raise ExportError(
                f"the exported file holds other weights: {name} differs by {float(np.nanmax(difference)):.3g}; nothing was "
                "exported. float16 ends at 65504; dtype='f32' holds any weight."
            )
        largest = max(largest, float(difference.max(initial=0.0)))
    if stored:
        raise ExportError(f"the exported file holds tensors that the model lacks: {', '.join(sorted(stored))}")
    return largest


def _rounding(array: Array, kind: str) -> NDArray[Any] | float:
    """The largest error that storing `array` in a dtype may cause."""
    if kind == "F32":
        return 0.0
    if kind == "F16":
        return np.abs(array) * 2.0**-11 + 2.0**-25
    # Half a step of the block's 254, and the step itself is rounded to float16.
    blocks = np.abs(array).reshape(*array.shape[:-1], -1, 32)
    largest = np.repeat(blocks.max(axis=-1), 32, axis=-1)
    return largest * (0.5 / 127 + 2.0**-11 + 1e-6) + 127 * 2.0**-25


def _modelfile(model: nn.Module, vocabulary: GGUFVocabulary | None) -> str:
    """Ollama's recipe for the file. A chat template is read from the file itself; without one text is continued as it is."""
    config: Any = model.config
    lines = [f"FROM ./{FILE_NAME}", f"PARAMETER num_ctx {config.max_position_embeddings}"]
    if vocabulary is not None and "eos" in vocabulary.special_ids:
        lines.append(f'PARAMETER stop "{vocabulary.tokens[vocabulary.special_ids["eos"]]}"')
    if vocabulary is None or vocabulary.chat_template is None:
        lines.append('TEMPLATE """{{ .Prompt }}"""')
    return "\n".join(lines) + "\n"
