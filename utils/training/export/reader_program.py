"""Loads exported files and runs them, as the other process of `other_process.py`. Imports nothing of Trainbook.

Each request on standard input, and each answer on standard output, is its length and what `torch.save` makes of it. A request
is the name of a function below and its arguments; an answer is ("ok", result) or ("error", the error's class and first line).
"""

from __future__ import annotations

import hashlib
import importlib
import io
import json
import os
import signal
import struct
import sys
from collections.abc import Callable, Mapping
from typing import Any

#: What is taken from a model's outputs. The logits alone where there are any.
NAMES = ("start_logits", "end_logits", "last_hidden_state")


def main() -> None:
    """Answer requests until there are no more. Arguments: folders that packages are in, then modules to import at once."""
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # an interrupt is the parent's affair: it ends this process if it wants to
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print must not mix with the answers
    folders, preloaded = (argument.split(os.pathsep) if argument else [] for argument in sys.argv[1:3])
    _extend_path(folders)
    for name in preloaded:
        importlib.import_module(name)
    import torch

    reader = Reader()
    while len(header := sys.stdin.buffer.read(8)) == 8:
        request = io.BytesIO(sys.stdin.buffer.read(struct.unpack("<q", header)[0]))
        name, arguments = torch.load(request, weights_only=True)
        try:
            answer = ("ok", getattr(reader, name)(**arguments))
        # Whatever loading and running other people's models raises is the answer.
        except Exception as error:  # noqa: BLE001 - see above
            answer = ("error", _line_of(error))
        buffer = io.BytesIO()
        torch.save(answer, buffer)
        answers.write(struct.pack("<q", buffer.tell()) + buffer.getvalue())
        answers.flush()


def _line_of(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [""]
    # TorchScript puts the reason behind its own traceback.
    line = lines[-1 if "TorchScript interpreter" in lines[0] else 0].strip()[:300]
    return f"{type(error).__name__}: {line}" if line else type(error).__name__


def _extend_path(folders: list[str]) -> None:
    sys.path.extend(folder for folder in folders if folder not in sys.path)


class Reader:
    """Holds one loaded model at a time."""

    def __init__(self) -> None:
        self._model: Any = None

    def settings(self, threads: int, precision: str) -> None:
        """Compute as the parent does, so that results in half precision round alike."""
        import torch

        torch.set_num_threads(threads)
        torch.set_float32_matmul_precision(precision)

    def close(self) -> None:
        """Forget the model."""
        self._model = None

    # ---- Loading ----

    def torchscript(self, file: str) -> None:
        import torch

        self._model = torch.jit.load(file)  # type: ignore[no-untyped-call]

    def torch_export(self, file: str) -> None:
        import torch

        self._model = torch.export.load(file).module()

    def aot_inductor(self, file: str) -> None:
        import torch

        self._model = torch._inductor.aoti_load_package(file)

    def onnx(self) -> None:
        """No file yet: `onnx_session` opens them."""
        self._model = {}

    def onnx_session(self, file: str) -> tuple[dict[str, list[Any]], list[str]]:
        """Open a file with ONNX Runtime. Returns the shapes of its inputs by name, and the names of its outputs."""
        import onnxruntime  # type: ignore[import-untyped]
        import torch

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors; they are also raised
        options.intra_op_num_threads = torch.get_num_threads()
        session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        self._model[file] = session
        inputs = {one.name: list(one.shape) for one in session.get_inputs()}
        return inputs, [one.name for one in session.get_outputs()]

    def hf(self, folder: str, loader: tuple[str, str], path: list[str]) -> None:
        """`loader`: the module and the name of the class whose `from_pretrained` is called."""
        self._model = _class(loader, path).from_pretrained(folder, local_files_only=True).eval()

    def peft(self, base: str, loader: tuple[str, str], adapter: str, path: list[str]) -> None:
        from peft import PeftModel

        loaded = _class(loader, path).from_pretrained(base, local_files_only=True)
        self._model = PeftModel.from_pretrained(loaded, adapter).eval()

    def gguf(self, folder: str, file: str, config: str | None) -> None:
        """`config`: in place of what the file says of itself, as JSON."""
        import torch
        from transformers import AutoModelForCausalLM

        known = {} if config is None else {"config": _config(config)}
        loaded = AutoModelForCausalLM.from_pretrained(
            folder, gguf_file=file, dtype=torch.float32, local_files_only=True, **known
        )
        self._model = loaded.train(False)

    def module(self, loader: tuple[str, str], config: str | None, path: list[str]) -> None:
        """A new module of a class: from a config of transformers, as JSON, or without arguments."""
        made = _class(loader, path)
        self._model = made() if config is None else made(_config(config))

    def weights(self, file: str) -> dict[str, str]:
        """Give the module the weights of a file. Returns a checksum of each tensor of its state."""
        import torch
        from safetensors.torch import load_file

        self._model.load_state_dict(load_file(file), assign=True)
        self._model.eval()
        return {
            name: digest(tensor)
            for name, tensor in self._model.state_dict().items()
            if isinstance(tensor, torch.Tensor)
        }

    # ---- Running ----

    def run(self, arguments: tuple[Any, ...], named: Mapping[str, Any]) -> Any:
        """Call the model. Returns its logits, or {name: tensor} of `NAMES`."""
        import torch

        with torch.no_grad():
            return _picked(self._model(*arguments, **named))

    def onnx_run(self, file: str, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Compute the outputs of an opened ONNX file, by name."""
        import torch

        session = self._model[file]
        names = [one.name for one in session.get_outputs()]
        found = session.run(names, {name: value.numpy() for name, value in inputs.items()})
        return {name: torch.from_numpy(value) for name, value in zip(names, found, strict=True)}

    def token_ids(self, folder: str, text: str) -> list[int]:
        """The ids of a text by the tokenizer in a folder."""
        from transformers import AutoTokenizer

        return [int(token) for token in AutoTokenizer.from_pretrained(folder, local_files_only=True)(text)["input_ids"]]


def digest(tensor: Any) -> str:
    """A checksum of a tensor's dtype, shape and bytes."""
    import torch

    content = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
    return f"{tensor.dtype} {tuple(tensor.shape)} {hashlib.sha256(content).hexdigest()}"


def _config(text: str) -> Any:
    from transformers import AutoConfig

    return AutoConfig.for_model(**json.loads(text))


def _class(loader: tuple[str, str], path: list[str]) -> Any:
    _extend_path(path)
    found: Any = importlib.import_module(loader[0])
    for name in loader[1].split("."):
        found = getattr(found, name)
    return found


def _picked(outputs: Any) -> Any:
    import torch

    if isinstance(outputs, torch.Tensor):
        return outputs.detach().clone()
    if isinstance(outputs, (tuple, list)):
        return _picked(next(part for part in outputs if isinstance(part, torch.Tensor) and part.dim()))
    items: Callable[[], Any] | None = getattr(outputs, "items", None)
    given = dict(items()) if callable(items) else vars(outputs)
    if isinstance(given.get("logits"), torch.Tensor):
        return given["logits"].detach().clone()
    found = {name: given[name].detach().clone() for name in NAMES if isinstance(given.get(name), torch.Tensor)}
    if not found:
        raise TypeError(f"the model returned a {type(outputs).__name__} without logits: {sorted(given)}")
    return found


if __name__ == "__main__":
    main()
