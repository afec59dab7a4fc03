"""Calling a model whose author we do not know: which of a batch's tensors it takes, and where its logits are."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from utils.adapters.facts import model_facts
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
            self._run = torch.compile(model, mode=compile_mode)
        self._rows = 0  # of the largest batch so far
        parameters = inspect.signature(model.forward).parameters
        kinds = inspect.Parameter
        self._names = {
            name
            for name, parameter in parameters.items()
            if parameter.kind in (kinds.POSITIONAL_OR_KEYWORD, kinds.KEYWORD_ONLY)
        }
        self._first = next(iter(parameters), None)
        self._required = [
            name
            for name, parameter in parameters.items()
            if name in self._names and parameter.default is inspect.Parameter.empty
        ]
        self._takes_any_name = any(parameter.kind is kinds.VAR_KEYWORD for parameter in parameters.values())
        self._takes_position = any(
            parameter.kind in (kinds.POSITIONAL_ONLY, kinds.POSITIONAL_OR_KEYWORD, kinds.VAR_POSITIONAL)
            for parameter in parameters.values()
        )
        self._looked = False
        self._switches = {name: value for name, value in _SWITCHES.items() if name in self._names}

    def inputs(self, batch: Mapping[str, Tensor]) -> tuple[tuple[Tensor, ...], dict[str, Any]]:
        """Positional and keyword arguments for the model's forward. Raises `ModelError` when it needs others."""
        offered = {name: value for name, value in batch.items() if name not in _NOT_INPUTS}
        taken: dict[str, Any] = {name: value for name, value in offered.items() if name in self._names}
        main = next(iter(offered), None)
        if main is None:
            raise ModelError(f"a batch holds no input tensor; it has {sorted(batch) or 'nothing'}")
        if main in taken or (self._takes_any_name and not self._takes_position):
            self._check_required({main, *taken}, batch)
            return (), {**taken, **({} if main in taken else {main: offered[main]}), **self._switches}
        if not self._takes_position:
            raise ModelError(
                f"{type(self.model).__name__}.forward takes {sorted(self._names) or 'no arguments'}, "
                f"none of which is {main!r}; name one of them {main!r}"
            )
        # The first parameter takes the main input, so it must not be given by name as well.
        self._check_required({str(self._first), *taken}, batch)
        taken.pop(str(self._first), None)
        return (offered[main],), {**taken, **self._switches}

    def _check_required(self, given: set[str], batch: Mapping[str, Tensor]) -> None:
        missing = [name for name in self._required if name not in given]
        if missing:
            labels = " Labels are not given to it: the loss is computed outside." if "labels" in missing else ""
            if any(name.endswith("_output") for name in missing):
                labels += " Outputs of its own nodes are computed by utils.adapters.ComputationalGraphExecutor(model)."
            raise ModelError(
                f"{type(self.model).__name__}.forward needs {missing}, which it is not given: a batch has {sorted(batch)}."
                f"{labels} Give these parameters a default, or a data_collator that adds them to the batch."
            )

    def __call__(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Logits for a batch: (B, T, V) for models over token sequences, (B, C) for classifiers.

        Raises:
            ModelError: the model does not take what a batch has, gives no logits, has too few rows in an embedding, scores
                too few tokens, or in training gives logits without a gradient.
            Whatever the model raises itself: with a note of its inputs.
        """
        logits = self.uncounted(batch)
        self.check_labels(logits.shape[-1], logits.shape[:-1], batch)
        return logits

    def uncounted(self, batch: Mapping[str, Tensor]) -> Tensor:
        """The same, whatever number of scores there are: for a model whose output layer is left out."""
        return self._logits(self._run if self.compiles(batch) else self.model, batch)

    def eager(self, batch: Mapping[str, Tensor]) -> Tensor:
        """The same, never compiled."""
        return self._logits(self.model, batch)

    def compiles(self, batch: Mapping[str, Tensor]) -> bool:
        """Whether this call runs a compiled program: a training batch of full size; a program for each rest takes longer."""
        if self._run is self.model or not self.model.training:
            return False
        rows = len(next(iter(batch.values())))
        self._rows = max(self._rows, rows)
        return rows == self._rows

    def _logits(self, run: Callable[..., Any], batch: Mapping[str, Tensor]) -> Tensor:
        arguments, named = self.inputs(batch)
        try:
            outputs = run(*arguments, **named)
        except IndexError as error:
            raise ModelError(self._out_of_range(batch, error)) from error
        except Exception as error:
            error.add_note(f"{type(self.model).__name__}.forward was called with {_shapes(batch)}.")
            raise
        logits = logits_of(outputs, self.model)
        cut_off = torch.is_grad_enabled() and self.model.training and not logits.requires_grad
        if cut_off and any(parameter.requires_grad for parameter in self.model.parameters()):
            raise ModelError(
                f"{type(self.model).__name__}.forward returned logits without a gradient, so nothing can be learnt. "
                "Remove detach(), no_grad(), .data or numpy from the way to the logits."
            )
        return logits

    def check_labels(self, scored: int, shape: Sequence[int], batch: Mapping[str, Tensor]) -> None:
        """Refuse labels of `shape` for which there is no score among `scored`. On a GPU only the first batch is looked at:
        looking waits for it."""
        labels = batch.get("labels")
        if labels is None or labels.is_floating_point() or labels.shape != tuple(shape) or not labels.numel():
            return
        if self._looked and labels.device.type != "cpu":
            return
        self._looked = True
        largest = int(labels.max())
        if largest >= scored:
            raise ModelError(
                f"{type(self.model).__name__}.forward scores {scored} tokens or classes: it returned logits of shape "
                f"{(*shape, scored)}, and a label is {largest}. Expected at least {largest + 1} scores: enlarge the output "
                "layer; of several outputs, return the logits first."
            )

    def _out_of_range(self, batch: Mapping[str, Tensor], error: IndexError) -> str:
        facts, main = model_facts(self.model), next(value for name, value in batch.items() if name not in _NOT_INPUTS)
        ids = f", ids {int(main.min())} to {int(main.max())}" if not main.is_floating_point() and main.numel() else ""
        stated = [
            f"{count} {noun}"
            for count, noun in ((facts.vocab_size, "token ids"), (facts.max_length, "positions"))
            if count is not None
        ]
        says = f" It states {' and '.join(stated)}." if stated else ""
        return (
            f"{type(self.model).__name__}.forward looked up what it does not have ({error}), called with {_shapes(batch)}{ids}."
            f"{says} Give samples as short, and ids as small, as its embeddings are, or enlarge them."
        )


def _shapes(batch: Mapping[str, Tensor]) -> str:
    given = [f"{name} {tuple(value.shape)} {value.dtype}" for name, value in batch.items() if name not in _NOT_INPUTS]
    return ", ".join(given).replace("torch.", "")


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
