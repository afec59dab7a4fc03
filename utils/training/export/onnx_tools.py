"""Post-process an ONNX file: check it, fuse its operators, quantise its weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from utils.errors import ExportError, first_line, root_cause
from utils.training.export.onnx_graphs import silent

# transformers' model types -> the family of fusions of onnxruntime.transformers. Its fusions for "gpt2" and "t5" read graphs of
# the exporter of before dynamo; those for "bert" (attention, normalisation with its residual sum, GELU) fit any transformer.
_FUSIONS = {"bart": "bart", "clip": "clip", "phi": "phi", "qwen3": "qwen3", "vit": "vit", "swin": "swin"}
_ANY_TRANSFORMER = "bert"

# Weights of these are stored in 8 bits. Convolutions are not: ONNX Runtime's integer kernel for them is slower than float32.
_QUANTISED = ["MatMul", "Gemm", "Attention", "LSTM", "Gather"]


def checked_opset(file: Path, standard: bool = True) -> int:
    """Check the file and return the version of its ONNX operators.

    Args:
        standard: whether it holds only operators of the ONNX standard, which can be checked fully.
    Raises:
        ExportError: it is no valid model.
    """
    import onnx

    try:
        onnx.checker.check_model(file, full_check=standard)
    except onnx.checker.ValidationError as error:
        raise ExportError(
            f"the exporter wrote a file that is no valid ONNX model: {first_line(root_cause(error))}."
        ) from error
    imports = onnx.load(file, load_external_data=False).opset_import
    return int(next(one.version for one in imports if one.domain in ("", "ai.onnx")))


def add_metadata(file: Path, values: dict[str, str]) -> None:
    """Write `values` into the file's metadata."""
    import onnx

    program = onnx.load(file, load_external_data=False)
    onnx.helper.set_model_props(program, {**metadata_of(file), **values})
    onnx.save(program, file)


def metadata_of(file: Path) -> dict[str, str]:
    """The file's metadata; empty when it is no ONNX model that can be read."""
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    try:
        program = onnx.load(file, load_external_data=False)
    except (DecodeError, OSError):
        return {}
    return {entry.key: entry.value for entry in program.metadata_props}


def optimise(file: Path, target: Path, model: nn.Module, external_data: bool) -> str:
    """Write a copy of `file` with fused operators to `target`.

    Models of transformers are given to onnxruntime.transformers with the fusions of their family, others to ONNX Runtime's own
    graph optimiser. The copy holds operators that only ONNX Runtime has.

    Returns:
        Which tool did it and how many operators are left.
    Raises:
        ExportError: the tool does not take this graph, or finds nothing to fuse.
    """
    config: Any = getattr(model, "config", None)
    heads = getattr(config, "num_attention_heads", None)
    try:
        with silent():
            before = _operators(file)
            if isinstance(heads, int) and hasattr(config, "model_type"):
                family = _FUSIONS.get(config.model_type, _ANY_TRANSFORMER)
                _fuse(file, target, family, heads, int(getattr(config, "hidden_size", 0) or 0), external_data)
                tool = f"onnxruntime.transformers ({family})"
            else:
                _fuse_by_runtime(file, target)
                tool = "ONNX Runtime's graph optimiser"
            after = _operators(target)
    # The tools read graphs of many exporters and raise whatever their pattern matching runs into.
    except Exception as error:
        raise ExportError(f"the graph could not be optimised: {first_line(root_cause(error))}.") from error
    if after >= before:
        raise ExportError(f"{tool} found nothing to fuse")
    return f"{tool}: {before} operators became {after}"


def _fuse(file: Path, target: Path, family: str, heads: int, width: int, external_data: bool) -> None:
    from onnxruntime.transformers.optimizer import optimize_model  # type: ignore[import-untyped]

    fused = optimize_model(str(file), model_type=family, num_heads=heads, hidden_size=width, opt_level=0)
    fused.save_model_to_file(str(target), use_external_data_format=external_data)


def _fuse_by_runtime(file: Path, target: Path) -> None:
    import onnxruntime  # type: ignore[import-untyped]

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(target)
    onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])


def quantise(file: Path, target: Path, external_data: bool) -> None:
    """Write a copy of `file` to `target` whose matrix weights are int8 and whose activations are quantised as it runs.

    Raises:
        ExportError: the graph cannot be quantised, or nothing in it can.
    """
    from onnx import TensorProto
    from onnxruntime.quantization import QuantType, quantize_dynamic  # type: ignore[import-untyped]

    try:
        with silent():
            quantize_dynamic(
                file, target, op_types_to_quantize=_QUANTISED, per_channel=True, weight_type=QuantType.QInt8,
                use_external_data_format=external_data,
                extra_options={"MatMulConstBOnly": True, "DefaultTensorType": TensorProto.FLOAT},
            )  # fmt: skip
    # Shape inference and pattern matching raise their own errors, which have no common class.
    except Exception as error:
        raise ExportError(f"the graph could not be quantised to int8: {first_line(root_cause(error))}.") from error


def _operators(file: Path) -> int:
    import onnx

    return len(onnx.load(file, load_external_data=False).graph.node)
