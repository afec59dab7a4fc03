"""Python code that loads an exported model and calls it: what a model card shows under "Usage".

The code is for the folder of the export: relative names only, so that it also works where the folder is moved or downloaded.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.training.export.manifest import MARKER
from utils.training.export_formats import FORMATS

#: Auto classes of transformers and what calls of them return; the first whose class for the config is the model's.
_AUTO_CLASSES = {
    "AutoModelForCausalLM": "generate",
    "AutoModelForSeq2SeqLM": "generate",
    "AutoModelForSequenceClassification": "class",
    "AutoModelForTokenClassification": "class per token",
    "AutoModelForMaskedLM": "token per position",
    "AutoModelForImageClassification": "class",
}
_PROMPT = "The quick brown fox"
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "spiece.model")


@dataclass(frozen=True)
class Usage:
    """Usage code of one exported format.

    Attributes:
        title: what is loaded with what.
        code: to be run in the folder.
        language: "python" or "sh".
        packages: what has to be installed.
    """

    title: str
    code: str
    language: str = "python"
    packages: tuple[str, ...] = ()


def usage_of(folder: Path, model: Any) -> Usage | None:
    """Code for the export in `folder`, written for the files that are there; None where no known kind of file is.

    Args:
        folder: of one exported format.
        model: the model that was exported, for its class.
    """
    kind = FORMATS.get(_format_of(folder))
    return None if kind is None else kind.usage_in(folder, model)


def auto_class_of(kind: type, config: Any) -> tuple[str, str]:
    """The class that loads a transformers model and what a call of it is for: an Auto class where one stands for it."""
    import transformers

    for name, purpose in _AUTO_CLASSES.items():
        registered = getattr(transformers, name)._model_mapping.get(type(config), None)
        if kind in (registered if isinstance(registered, tuple) else (registered,)):
            return name, purpose
    return kind.__name__, "outputs"


def _class_in(folder: Path, model: Any) -> type:
    """The class that the folder's config names: an adapter's model is written as the model that it is merged into."""
    import transformers

    names = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("architectures") or [""]
    return getattr(transformers, names[0], type(model))


def _format_of(folder: Path) -> str:
    marker = folder / MARKER
    if marker.is_file():
        return str(json.loads(marker.read_text(encoding="utf-8")).get("format", ""))
    return next((one.name for one in FORMATS.values() if one.usage and one.main_file(folder)), "")


def _has_tokenizer(folder: Path) -> bool:
    return any((folder / name).is_file() for name in _TOKENIZER_FILES)


def hf(folder: Path, model: Any) -> Usage:
    kind = _class_in(folder, model)
    name, purpose = auto_class_of(kind, model.config)
    image = getattr(model, "main_input_name", "input_ids") == "pixel_values"
    tokenizer = _has_tokenizer(folder) and not image
    module = "transformers" if hasattr(_module("transformers"), name) else kind.__module__
    imports = f"import torch\nfrom {module} import {name}"
    if tokenizer:
        imports = f"import torch\nfrom transformers import AutoTokenizer\nfrom {module} import {name}"
        if module == "transformers":
            imports = f"import torch\nfrom transformers import {name}, AutoTokenizer"
    lines = [imports, "", 'folder = "."  # this folder, or the name of the repository on the Hub']
    lines.append(f"model = {name}.from_pretrained(folder).eval()")
    lines += _inputs(model, tokenizer, image)
    lines += ["with torch.no_grad():", *(f"    {line}" for line in _call(model, purpose))]
    lines += _shown(model, purpose, tokenizer)
    return Usage("transformers", _joined(lines), packages=("transformers", "torch"))


def _inputs(model: Any, tokenizer: bool, image: bool) -> list[str]:
    if image:
        return [f"inputs = {{'pixel_values': torch.rand({_image_shape(model)})}}  # prepared as in training"]
    if tokenizer:
        return [
            "tokenizer = AutoTokenizer.from_pretrained(folder)",
            f'ids = tokenizer("{_PROMPT}", return_tensors="pt")["input_ids"]{_cut(model)}',
            "inputs = {'input_ids': ids, 'attention_mask': torch.ones_like(ids)}",
        ]
    return [
        "ids = torch.tensor([[1, 2, 3]])  # token ids: this folder holds no tokenizer",
        "inputs = {'input_ids': ids, 'attention_mask': torch.ones_like(ids)}",
    ]


def _image_shape(model: Any) -> str:
    config = getattr(model, "config", None)
    size = getattr(config, "image_size", 224)
    height, width = size if isinstance(size, (list, tuple)) else (size, size)
    return f"1, {getattr(config, 'num_channels', 3)}, {height}, {width}"


def _cut(model: Any) -> str:
    """A slice that leaves room for new tokens in a model that takes few positions."""
    from utils.adapters.facts import model_facts

    longest = model_facts(model).max_length
    return f"[:, :{max(1, longest // 2)}]" if longest is not None and longest < 64 else ""


def _call(model: Any, purpose: str) -> list[str]:
    from utils.adapters.facts import model_facts

    if purpose == "generate":
        longest = model_facts(model).max_length
        new = 20 if longest is None else max(1, min(20, longest // 2))
        return [f"output = model.generate(**inputs, max_new_tokens={new}, do_sample=False)"]
    if purpose == "outputs" and getattr(model.config, "is_encoder_decoder", False):
        return ["output = model(**inputs, decoder_input_ids=inputs['input_ids'])"]
    return ["output = model(**inputs)"]


def _shown(model: Any, purpose: str, tokenizer: bool) -> list[str]:
    if purpose == "generate":
        if tokenizer:
            return ["print(tokenizer.decode(output[0], skip_special_tokens=True))"]
        return ["print(output)"]
    if purpose == "class":
        return ["print(model.config.id2label[int(output.logits[0].argmax())])"]
    if purpose == "class per token":
        return ["print([model.config.id2label[int(one)] for one in output.logits[0].argmax(-1)])"]
    if purpose == "token per position":
        if tokenizer:
            return ["print(tokenizer.decode(output.logits[0].argmax(-1)))"]
        return ["print(output.logits[0].argmax(-1))  # the most probable id at each position"]
    return ["print({name: tuple(value.shape) for name, value in output.items() if hasattr(value, 'shape')})"]


def peft(folder: Path, model: Any) -> Usage:
    lines = [
        "from peft import AutoPeftModel",
        "",
        'model = AutoPeftModel.from_pretrained(".").eval()  # also loads the base model, from the Hub or from its folder',
    ]
    return Usage("PEFT adapter", _joined(lines), packages=("peft", "transformers"))


def onnx(folder: Path, model: Any) -> Usage:
    lines = ["import numpy as np", "import onnxruntime"]
    for file in sorted(folder.rglob("*.onnx")):
        if "with_past" in file.name:
            continue  # its inputs are outputs of an earlier call
        name = file.relative_to(folder).as_posix()
        lines += ["", f'session = onnxruntime.InferenceSession("{name}")', "inputs = {"]
        lines += [f'    "{key}": {value},' for key, value in _onnx_inputs(file).items()]
        lines += ["}", "outputs = session.run(None, inputs)"]
        lines += ["print(dict(zip([one.name for one in session.get_outputs()], [one.shape for one in outputs])))"]
    return Usage("ONNX Runtime", _joined(lines), packages=("onnxruntime", "numpy"))


def _onnx_inputs(file: Path) -> Mapping[str, str]:
    """Name of each input of the graph -> a numpy expression of its type, with 1 for a free batch size and 3 for others."""
    import onnx

    graph = onnx.load(file, load_external_data=False).graph
    weights = {one.name for one in graph.initializer}
    found = {}
    for one in graph.input:
        if one.name in weights:
            continue
        tensor = one.type.tensor_type
        dims = [dim.dim_value or (1 if axis == 0 else 3) for axis, dim in enumerate(tensor.shape.dim)]
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
        whole = dtype.kind in "iub"
        found[one.name] = f"np.{'ones' if whole else 'zeros'}({tuple(dims)}, dtype=np.{dtype.name})"
    return found


def safetensors(folder: Path, model: Any) -> Usage:
    file = next(iter(sorted(folder.glob("*.safetensors"))))
    lines = [
        "from safetensors.torch import load_file",
        "",
        f'weights = load_file("{file.name}")  # name -> tensor',
        f"# model = {type(model).__name__}(...)  with the arguments that it was created with",
        "# model.load_state_dict(weights)",
        "print(len(weights), 'tensors')",
    ]
    return Usage("safetensors", _joined(lines), packages=("safetensors", "torch"))


def torchscript(folder: Path, model: Any) -> Usage | None:
    file = _first(folder, ("*.pt", "*.ts", "*.pth"))
    if file is None:
        return None
    lines = ["import torch", "", f'model = torch.jit.load("{file}").eval()', *_called(folder, model)]
    return Usage("TorchScript", _joined(lines), packages=("torch",))


def torch_export(folder: Path, model: Any) -> Usage | None:
    file = _first(folder, ("model.pt2", "*.pt2"))
    if file is None:
        return None
    lines = ["import torch", "", f'model = torch.export.load("{file}").module()', *_called(folder, model)]
    return Usage("torch.export", _joined(lines), packages=("torch",))


def aot_inductor(folder: Path, model: Any) -> Usage | None:
    file = _first(folder, ("*_aot.pt2",))
    if file is None:
        return None
    lines = ["import torch", "", f'model = torch._inductor.aoti_load_package("{file}")', *_called(folder, model)]
    return Usage("AOTInductor", _joined(lines), packages=("torch",))


def _called(folder: Path, model: Any) -> Sequence[str]:
    """Lines that call a graph with the inputs that its record names, by position; none where they are not known."""
    marker = folder / MARKER
    names = json.loads(marker.read_text(encoding="utf-8")).get("inputs") if marker.is_file() else None
    shapes = {
        "input_ids": "torch.tensor([[1, 2, 3]])", "decoder_input_ids": "torch.tensor([[1, 2]])",
        "attention_mask": "torch.ones(1, 3, dtype=torch.int64)", "token_type_ids": "torch.zeros(1, 3, dtype=torch.int64)",
        "pixel_values": f"torch.rand({_image_shape(model)})",
    }  # fmt: skip
    if not names or any(name not in shapes for name in names):
        return ["print(model)"]
    return [
        "with torch.no_grad():",
        f"    output = model({', '.join(shapes[name] for name in names)})",
        "print(output.shape)",
    ]


def gguf(folder: Path, model: Any) -> Usage | None:
    file = _first(folder, ("*.gguf",))
    if file is None:
        return None
    return Usage("llama.cpp", f'llama-cli -m {file} -p "{_PROMPT}" -n 64\n', "sh", ("llama.cpp",))


def _first(folder: Path, patterns: Sequence[str]) -> str | None:
    files = sorted(file for pattern in patterns for file in folder.glob(pattern))
    return files[0].name if files else None


def _module(name: str) -> Any:
    import importlib

    return importlib.import_module(name)


def _joined(lines: Sequence[str]) -> str:
    return "\n".join(lines) + "\n"
