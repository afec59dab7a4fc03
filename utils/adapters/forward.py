"""Calling a model whose author we do not know: which of a batch's tensors it takes, and where its logits are."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from utils.errors import ModelError

# Never inputs of a forward pass here: the loss is computed outside, by the objective.
_NOT_INPUTS = frozenset({"labels"})

# Set where a model knows them: no key/value cache is built in training, and the output has names.
_SWITCHES = {"use_cache": False, "return_dict": True}


class ModelCall:
    """`ModelCall(model)(batch) -> logits` for transformers models and plain modules.

    The forward signature is read once. Tensors of the batch are passed by name where the model has that name; a model with
    other names (`forward(x)`, `forward(tokens)`) gets the batch's main input as its first argument.

    Args:
        compile_mode: torch.compile's mode for calls in training; None: as the model is. Compiling happens in the first of them.
    """

    def __init__(self, model: nn.Module, compile_mode: str | None = None) -> None:
        self.model = model
        self._run: Callable[..., Any] = model
        if compile_mode is not None:
            import torch

            self._run = torch.compile(model, mode=compile_mode)
        self._rows = 0  # of the largest batch so far
        parameters = inspect.signature(model.forward).parameters
        kinds = inspect.Parameter
        self._names = {
            name
            for name, parameter in parameters.items()
            if parameter.kind in (kinds.POSITIONAL_OR_KEYWORD, kinds.KEYWORD_ONLY)
        }
        self._takes_any_name = any(parameter.kind is kinds.VAR_KEYWORD for parameter in parameters.values())
        self._takes_position = any(
            parameter.kind in (kinds.POSITIONAL_ONLY, kinds.POSITIONAL_OR_KEYWORD, kinds.VAR_POSITIONAL)
            for parameter in parameters.values()
        )
        self._switches = {name: value for name, value in _SWITCHES.items() if name in self._names}

    def inputs(self, batch: Mapping[str, Tensor]) -> tuple[tuple[Tensor, ...], dict[str, Any]]:
        """Positional and keyword arguments for the model's forward."""
        offered = {name: value for name, value in batch.items() if name not in _NOT_INPUTS}
        taken: dict[str, Any] = {name: value for name, value in offered.items() if name in self._names}
        main = next(iter(offered), None)
        if main is None:
            raise ModelError(f"a batch holds no input tensor; it has {sorted(batch) or 'nothing'}")
        if main in taken or (self._takes_any_name and not self._takes_position):
            return (), {**taken, **({} if main in taken else {main: offered[main]}), **self._switches}
        if not self._takes_position:
            raise ModelError(
                f"{type(self.model).__name__}.forward takes {sorted(self._names) or 'no arguments'}, "
                f"none of which is {main!r}; name one of them {main!r}"
            )
        # The first parameter takes the main input, so it must not be given by name as well.
        first = next(iter(inspect.signature(self.model.forward).parameters))
        taken.pop(first, None)
        return (offered[main],), {**taken, **self._switches}

    def __call__(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Logits for a batch: (B, T, V) for models over token sequences, (B, C) for classifiers."""
        return logits_of(self._outputs(self._run if self.compiles(batch) else self.model, batch), self.model)

    def compiles(self, batch: Mapping[str, Tensor]) -> bool:
        """Whether this call runs a compiled program: a training batch of full size; a program for each rest takes longer."""
        if self._run is self.model or not self.model.training:
            return False
        rows = len(next(iter(batch.values())))
        self._rows = max(self._rows, rows)
        return rows == self._rows

    def eager(self, batch: Mapping[str, Tensor]) -> Tensor:
        """The same, never compiled."""
        return logits_of(self._outputs(self.model, batch), self.model)

    def _outputs(self, run: Callable[..., Any], batch: Mapping[str, Tensor]) -> Any:
        arguments, named = self.inputs(batch)
        return run(*arguments, **named)


def logits_of(outputs: Any, model: nn.Module) -> Tensor:
    """The logits in what a model returned: a tensor, `.logits`, ["logits"], or the first tensor of a tuple."""
    if isinstance(outputs, Tensor):
        return outputs
    found = outputs.get("logits") if isinstance(outputs, Mapping) else getattr(outputs, "logits", None)
    if found is None and isinstance(outputs, (tuple, list)):
        found = next((value for value in outputs if isinstance(value, Tensor)), None)
    if isinstance(found, Tensor):
        return found
    keys = f" with keys {sorted(map(str, outputs))}" if isinstance(outputs, Mapping) else ""
    raise ModelError(
        f"{type(model).__name__}.forward returned a {type(outputs).__name__}{keys}; expected logits: a tensor, an object "
        'with .logits, a dict with "logits", or a tuple whose first tensor is the logits'
    )
