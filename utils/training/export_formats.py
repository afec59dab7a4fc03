"""Export formats: one record each, read by export, panel, command line, checks, bundles, benchmarks and documentation.

Functions are named as "module:function" and imported when they are called, because the record is read where torch is not.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.schema import nearest, shown

if TYPE_CHECKING:
    from utils.training.export.result import ExportResult

#: A function, or "module:function".
Reference = Callable[..., Any] | str


@dataclass(frozen=True)
class ExportFormat:
    """What there is to know of an export format.

    Attributes:
        name: in `export_model`'s `formats`, of the format's folder and in the record that lies in it.
        title, purpose: for people; `purpose` continues "For: ".
        writer: (model, tokenizer, folder, source of the weights, notes) -> ExportResult. It compares what it wrote with the
            model. It also gets `task_spec` and `traced`, the folder of `made_from`, where it has such parameters.
        files: glob patterns of the main file in the format's folder, the first that fits.
        refuser: (model) raises `ExportError` for models that the format cannot hold, `MissingPackageError` where a package is
            missing; None: `refuse_unsupported` of the writer's module, and no model for a writer that is not named in text.
        loader: (main file, model) -> a function from a batch to logits on the CPU, or None where only other programs run the
            format. None: it is not loaded by the health check.
        usage: (folder, model) -> `Usage`, the code in the model card; None: the card has none.
        options: further keyword arguments of the writer.
        tolerance: largest difference of logits, relative to the largest logit (at least 1): from the first on the health
            check warns, from the second on it fails. None: outputs are not compared there.
        process: the kind of process that the writer verifies its files in, started ahead (`other_process`); None: none.
        aliases: other spellings of the name.
        made_from: a format whose graphs this one is made from, where both are written.
        files_like: a format with the same file names: what is found belongs to that one, unless a folder says otherwise.
        excluded_files: glob patterns of files that `files` would match and that another format wrote.
        bundle_packages: packages that the bundle's inference.py runs it with; (): it does not.
        bundle_name: the main file directly in the bundle's `artifacts`; None: the format keeps its folder.
        benchmarked: whether `benchmarks.exports` has a table of it.
        no_speed: why that table states no speed.
    """

    name: str
    title: str
    purpose: str
    writer: Reference
    files: tuple[str, ...]
    refuser: Reference | None = None
    loader: Reference | None = None
    usage: Reference | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    tolerance: tuple[float, float] | None = None
    process: str | None = None
    aliases: tuple[str, ...] = ()
    made_from: str | None = None
    files_like: str | None = None
    excluded_files: tuple[str, ...] = ()
    bundle_packages: tuple[str, ...] = ()
    bundle_name: str | None = None
    benchmarked: bool = True
    no_speed: str = "–"

    def refuse(self, model: Any) -> None:
        """Raise `ExportError` or `MissingPackageError`, with the reason, where `model` cannot be exported so."""
        refuser = self.refuser
        if refuser is None and isinstance(self.writer, str):
            refuser = f"{self.writer.partition(':')[0]}:refuse_unsupported"
        if refuser is not None:
            _function(refuser)(model)

    def write(
        self, model: Any, tokenizer: Any, folder: Path, source: str, notes: tuple[str, ...], **further: Any
    ) -> ExportResult:
        """Write `model`, verified, to `folder`; of `further` the writer gets what it has parameters for."""
        writer = _function(self.writer)
        accepted = inspect.signature(writer).parameters
        known = {name: value for name, value in further.items() if name in accepted}
        result: ExportResult = writer(model, tokenizer, folder, source, notes, **self.options, **known)
        return result

    def main_file(self, folder: Path) -> Path | None:
        """The format's main file in `folder`, or None."""
        for pattern in self.files:
            for file in sorted(folder.glob(pattern)):
                if file.is_file() and not any(file.match(other) for other in self.excluded_files):
                    return file
        return None

    def load(self, file: Path, model: Any) -> Any:
        """The exported model as a function from a batch to logits; None where only other programs run it."""
        return None if self.loader is None else _function(self.loader)(file, model)

    def usage_in(self, folder: Path, model: Any) -> Any:
        """`Usage` of the files in `folder`; None: there is no code for them."""
        return None if self.usage is None else _function(self.usage)(folder, model)


def _function(reference: Reference) -> Callable[..., Any]:
    if not isinstance(reference, str):
        return reference
    module, _, name = reference.partition(":")
    found: Callable[..., Any] = getattr(import_module(module), name)
    return found


_EXPORT = "utils.training.export"
# Formats that hold the same weights and run the same kernels only round; ONNX Runtime and compiled code sum in another order;
# int8 weights have steps of about 1 % of the largest weight.
_ROUNDING, _REORDERED, _QUANTISED = (1e-5, 1e-3), (1e-4, 1e-2), (0.1, 0.5)
_ONNX: Mapping[str, Any] = {
    "loader": f"{_EXPORT}.loading:onnx", "usage": f"{_EXPORT}.usage_code:onnx", "process": "torch",
    "bundle_packages": ("onnxruntime",),
}  # fmt: skip
_GGUF: Mapping[str, Any] = {
    "writer": f"{_EXPORT}.gguf:export_gguf", "files": ("model.gguf", "*.gguf"), "loader": f"{_EXPORT}.loading:gguf",
    "usage": f"{_EXPORT}.usage_code:gguf", "process": "transformers", "no_speed": "not measured",
}  # fmt: skip

_BUILT_IN = (
    ExportFormat(
        "hf", "Hugging Face folder", "fine-tune, generate and share with transformers", f"{_EXPORT}.hf:export_hf",
        ("config.json",), loader=f"{_EXPORT}.loading:hf", usage=f"{_EXPORT}.usage_code:hf", tolerance=_ROUNDING,
        process="transformers", aliases=("huggingface",), bundle_packages=("torch", "transformers", "safetensors"),
        no_speed="PyTorch's own",
    ),
    ExportFormat(
        "onnx", "ONNX", "run without PyTorch: servers, browsers, phones, other languages", f"{_EXPORT}.onnx:export_onnx",
        ("model.onnx", "*.onnx"), tolerance=_REORDERED, bundle_name="model.onnx", **_ONNX,
    ),
    ExportFormat(
        "pytorch", "PyTorch checkpoint", "load the weights with torch.load, without this library",
        f"{_EXPORT}.pytorch:export_pytorch", ("*.pytorch.pt", "model.pt", "*.pth", "*.bin", "*.pt"),
        loader=f"{_EXPORT}.loading:pytorch", tolerance=_ROUNDING, files_like="torchscript",
        bundle_name="model.pytorch.pt", benchmarked=False,
    ),
    ExportFormat(
        "onnx-int8", "ONNX, 8-bit weights", "about a quarter of the size and faster on many CPUs, less exact",
        f"{_EXPORT}.onnx:export_onnx_int8", ("*int8*.onnx", "model.onnx", "*.onnx"), tolerance=_QUANTISED,
        aliases=("onnx_int8",), made_from="onnx", files_like="onnx", **_ONNX,
    ),
    ExportFormat(
        "safetensors", "safetensors", "weights of any module, loaded by its own Python code",
        f"{_EXPORT}.safetensors:export_safetensors", ("model.safetensors", "*.safetensors"),
        loader=f"{_EXPORT}.loading:safetensors", usage=f"{_EXPORT}.usage_code:safetensors", tolerance=_ROUNDING,
        files_like="hf", excluded_files=("adapter_model.safetensors",), no_speed="PyTorch's own",
    ),
    ExportFormat(
        "torchscript", "TorchScript", "run in C++ and TorchServe without the model's code",
        f"{_EXPORT}.torchscript:export_torchscript", ("*.torchscript.pt", "model.pt", "*.ts", "*.pt"),
        loader=f"{_EXPORT}.loading:torchscript", usage=f"{_EXPORT}.usage_code:torchscript", tolerance=_ROUNDING,
        process="torch", excluded_files=("*.pytorch.*",), bundle_packages=("torch",), bundle_name="model.torchscript.pt",
    ),
    ExportFormat(
        "torch_export", "torch.export", "graph for AOTInductor and ExecuTorch, without the model's code",
        f"{_EXPORT}.torch_export:export_torch_export", ("model.pt2", "*.pt2"), loader=f"{_EXPORT}.loading:torch_export",
        usage=f"{_EXPORT}.usage_code:torch_export", tolerance=_ROUNDING, process="torch", aliases=("torch-export",),
        bundle_packages=("torch",),
    ),
    ExportFormat(
        "aot_inductor", "AOTInductor", "compiled for this kind of processor, run from Python or C++",
        f"{_EXPORT}.torch_export:export_aot_inductor", ("model_aot.pt2", "*_aot.pt2"),
        refuser=f"{_EXPORT}.torch_export:refuse_uncompilable", loader=f"{_EXPORT}.loading:aot_inductor",
        usage=f"{_EXPORT}.usage_code:aot_inductor", tolerance=_REORDERED, process="torch",
        files_like="torch_export", benchmarked=False,
    ),
    ExportFormat("gguf", "GGUF", "chat on a laptop with llama.cpp, Ollama or LM Studio", **_GGUF),
    ExportFormat(
        "gguf-f32", "GGUF, 32 bits", "as GGUF, unrounded", options={"dtype": "f32"}, files_like="gguf", benchmarked=False,
        **_GGUF,
    ),
    ExportFormat(
        "gguf-q8_0", "GGUF, 8 bits", "as GGUF, half the size", options={"dtype": "q8_0"}, files_like="gguf",
        benchmarked=False, **_GGUF,
    ),
    ExportFormat(
        "peft", "PEFT adapter", "share only the adapter; the base model is loaded beside it", f"{_EXPORT}.peft:export_peft",
        ("adapter_model.safetensors",), loader=f"{_EXPORT}.loading:peft", usage=f"{_EXPORT}.usage_code:peft",
        process="transformers", benchmarked=False,
    ),
)  # fmt: skip

#: Every export format by name, in the order in which they are shown. A format of your own is one more entry.
FORMATS: dict[str, ExportFormat] = {one.name: one for one in _BUILT_IN}


def canonical_format(name: str) -> str:
    """The format's name for one of its spellings; other words as they are."""
    return next((one.name for one in FORMATS.values() if name in one.aliases), name)


def unknown_format(name: Any) -> str:
    """Message for an unknown format."""
    guess = nearest(str(name), FORMATS)
    hint = f" Did you mean {guess!r}?" if guess else ""
    return f"got the format {shown(name)}; this version exports: {', '.join(FORMATS)}.{hint}"
