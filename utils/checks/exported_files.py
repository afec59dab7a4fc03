"""The files of an export by format: where they are, and how to load one as a function from a batch to logits."""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from utils.adapters.forward import ModelCall, logits_of
from utils.errors import ExportError
from utils.training.export.manifest import MARKER

Run = Callable[[Mapping[str, Tensor]], Tensor]

# Format -> patterns of its main file, the first that fits.
_PATTERNS: Mapping[str, tuple[str, ...]] = {
    "hf": ("config.json",),
    "onnx": ("model.onnx", "*.onnx"),
    "onnx-int8": ("*int8*.onnx", "model.onnx", "*.onnx"),
    "torchscript": ("*.torchscript.pt", "model.pt", "*.ts", "*.pt"),
    "torch_export": ("model.pt2", "*.pt2"),
    "aot_inductor": ("*_aot.pt2",),
    "safetensors": ("model.safetensors", "*.safetensors"),
    "pytorch": ("*.pytorch.pt", "*.pth", "*.bin", "*.pt"),
    "gguf": ("*.gguf",),
    "gguf-f32": ("*.gguf",),
    "gguf-q8_0": ("*.gguf",),
    "peft": ("adapter_model.safetensors",),
}


def known_formats() -> tuple[str, ...]:
    """Formats that can be found and loaded."""
    return tuple(_PATTERNS)


def canonical(name: str) -> str:
    """The format's name as it is known here."""
    return {"onnx_int8": "onnx-int8", "torch-export": "torch_export", "huggingface": "hf"}.get(name, name)


def find_artifact(export_dir: Path, name: str) -> Path | None:
    """The main file of a format: in a folder of the format's name, in `artifacts`, or in `export_dir` itself."""
    places = [export_dir / name, export_dir / "artifacts" / name, export_dir / "artifacts", export_dir]
    for place in places:
        for pattern in _PATTERNS[name]:
            for file in sorted(place.glob(pattern)) if place.is_dir() else ():
                if file.is_file() and not (name == "torchscript" and ".pytorch." in file.name):
                    return file
    return None


def load_artifact(file: Path, name: str, model: nn.Module) -> Run | None:
    """The exported model as a function from a batch to logits on the CPU; None for formats that only other programs run.

    Args:
        file: of `find_artifact`.
        model: the model that was exported; weights are loaded into a copy of it.
    Raises:
        ExportError: its weights are other ones than the model has. Whatever the format's library raises.
    """
    loaders: Mapping[str, Callable[[Path, nn.Module], Run | None]] = {
        "hf": _hf, "onnx": _onnx, "onnx-int8": _onnx, "torchscript": _torchscript, "torch_export": _torch_export,
        "aot_inductor": _aot_inductor, "safetensors": _safetensors, "pytorch": _pytorch, "peft": _peft,
    }  # fmt: skip
    return loaders.get(name, _gguf)(file, model)


def _hf(file: Path, model: nn.Module) -> Run:
    import transformers

    names = json.loads(file.read_text(encoding="utf-8")).get("architectures") or [""]
    kind: Any = getattr(transformers, names[0], type(model))
    if not hasattr(kind, "from_pretrained"):
        raise ExportError(f"{kind.__name__} is not a transformers model, so {file.parent.name} cannot be loaded as one")
    return ModelCall(kind.from_pretrained(file.parent, local_files_only=True).eval())


def _safetensors(file: Path, model: nn.Module) -> Run:
    from safetensors.torch import load_file

    return _with_weights(model, load_file(file))


def _pytorch(file: Path, model: nn.Module) -> Run:
    found = torch.load(file, map_location="cpu", weights_only=True)
    inner = next((found[key] for key in ("model_state_dict", "state_dict", "model") if key in found), found)
    return _with_weights(model, inner)


def _with_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> Run:
    loaded = copy.deepcopy(model).cpu().eval()
    try:
        loaded.load_state_dict(weights)
    except RuntimeError as error:
        raise ExportError(
            f"the file holds other weights than {type(model).__name__} has: {str(error)[:300]}"
        ) from error
    return ModelCall(loaded)


def _onnx(file: Path, model: nn.Module) -> Run:
    encoder_file = file.with_name("encoder_model.onnx")
    if not encoder_file.is_file():
        return _session(file)
    encode, decode = _session(encoder_file), _session(file.with_name("decoder_model.onnx"))

    def run(batch: Mapping[str, Tensor]) -> Tensor:
        mask = batch.get("attention_mask", torch.ones_like(batch["input_ids"]))
        state = encode({"input_ids": batch["input_ids"], "attention_mask": mask})
        decoder_ids = batch["decoder_input_ids"]
        return decode({"input_ids": decoder_ids, "encoder_hidden_states": state, "encoder_attention_mask": mask})

    return run


def _session(file: Path) -> Run:
    import onnxruntime  # type: ignore[import-untyped]

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    wanted = [one.name for one in session.get_inputs()]

    def run(batch: Mapping[str, Tensor]) -> Tensor:
        given = _with_masks(batch, wanted)
        outputs = session.run(None, {name: given[name].cpu().numpy() for name in wanted})
        return torch.from_numpy(outputs[0])

    return run


def _with_masks(batch: Mapping[str, Tensor], wanted: list[str]) -> dict[str, Tensor]:
    """The batch under the names that a graph has, with masks of ones where it wants them."""
    given = dict(batch)
    for name in wanted:
        if name.endswith("attention_mask") and name not in given:
            ids = "decoder_input_ids" if name.startswith("decoder_") else "input_ids"
            given[name] = torch.ones_like(batch[ids])
    if len(wanted) == 1 and wanted[0] not in given:
        given[wanted[0]] = next(iter(batch.values()))
    return given


def _torchscript(file: Path, model: nn.Module) -> Run:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch deprecates the format, not this file
        loaded = torch.jit.load(str(file), map_location="cpu").eval()  # type: ignore[no-untyped-call]
    names = [argument.name for argument in loaded.forward.schema.arguments][1:]

    def run(batch: Mapping[str, Tensor]) -> Tensor:
        given = _with_masks(batch, names)
        arguments = [given[name] for name in names if name in given] or list(batch.values())
        return logits_of(loaded(*arguments), model)

    return run


def _torch_export(file: Path, model: nn.Module) -> Run:
    return _graph(torch.export.load(str(file)).module(), file, model)


def _aot_inductor(file: Path, model: nn.Module) -> Run:
    return _graph(torch._inductor.aoti_load_package(str(file)), file, model)


def _graph(loaded: Callable[..., Any], file: Path, model: nn.Module) -> Run:
    """A graph as a function: its inputs by position as its record names them, else as the batch has them."""
    marker = file.with_name(MARKER)
    names = json.loads(marker.read_text(encoding="utf-8")).get("inputs") if marker.is_file() else None

    def run(batch: Mapping[str, Tensor]) -> Tensor:
        given = _with_masks(batch, names or [])
        return logits_of(loaded(*(given[name] for name in names or given)), model)

    return run


def _peft(file: Path, model: nn.Module) -> None:
    from safetensors import safe_open

    with safe_open(file, "pt") as weights:
        if not list(weights.keys()):
            raise ExportError(f"{file.name} holds no tensors")


def _gguf(file: Path, model: nn.Module) -> None:
    from gguf import GGUFReader

    if not GGUFReader(file).tensors:
        raise ExportError(f"{file.name} holds no tensors")
