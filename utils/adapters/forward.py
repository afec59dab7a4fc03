"""Calling a model whose author we do not know: which of a batch's tensors it takes, and where its logits are."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from utils.adapters.auxiliary import auxiliary_loss_of
from utils.adapters.facts import model_facts
from utils.adapters.inputs import INVERTED_MASKS, ForwardParameters, forward_parameters
from utils.errors import ModelError

# Never inputs of a forward pass here: the loss is computed outside, by the objective.
_NOT_INPUTS = frozenset({"labels"})

# Set where a model knows them: no key/value cache is built in training, and the output has names.
_SWITCHES = {"use_cache": False, "return_dict": True}

# Python's words for a keyword argument that a function does not take, or gets twice.
_REFUSED = re.compile(r"(?:unexpected keyword argument|multiple values for (?:keyword )?argument) '(\w+)'")

# torch's words for an embedding that is given fractions.
_FLOAT_IDS = "Expected tensor for argument #1 'indices' to have one of the following scalar types"

# torch's words for a batch norm that is given a single value per channel.
_TOO_FEW_FOR_NORM = "Expected more than 1 value per channel when training"


class ModelCall:
    """`ModelCall(model)(batch) -> logits` for transformers models and plain modules.

    Tensors of the batch are passed by name where the model has a parameter of that name; a model with other names
    (`forward(x)`, `forward(tokens)`) gets the batch's main input as its first argument. Behind `**kwargs` the parameters of
    the module beneath count: that of torch.compile, DataParallel and PEFT wrappers, and a single child that takes the main
    input. `attention_mask` is also passed, inverted, as torch's `src_key_padding_mask` or `key_padding_mask`.

    Args:
        compile_mode: torch.compile's mode for calls in training; None: as the model is. Compiling happens in the first of them.
    """

    def __init__(self, model: nn.Module, compile_mode: str | None = None) -> None:
        self.model = model
        self._run: Callable[..., Any] = model
        if compile_mode is not None:
            with warnings.catch_warnings():  # torch's compiler uses, on its first import, what torch has deprecated
                warnings.simplefilter("ignore", DeprecationWarning)
                self._run = torch.compile(model, mode=compile_mode)
        self._rows = 0  # of the largest batch so far
        self._parameters: dict[str, ForwardParameters] = {}  # by the batch's main input
        self._refused: set[str] = set()  # names that a wrapper turned out not to pass on
        self._auxiliary: Tensor | None = None
        self._looked = False

    def inputs(self, batch: Mapping[str, Tensor]) -> tuple[tuple[Tensor, ...], dict[str, Any]]:
        """Positional and keyword arguments for the model's forward. Raises `ModelError` when it needs others."""
        offered = {name: value for name, value in batch.items() if name not in _NOT_INPUTS}
        main = next(iter(offered), None)
        if main is None:
            raise ModelError(f"a batch holds no input tensor; it has {sorted(batch) or 'nothing'}")
        parameters = self._parameters_for(main)
        taken: dict[str, Any] = {name: value for name, value in offered.items() if self._passes(name, parameters)}
        if "attention_mask" in offered and "attention_mask" not in taken:
            inverted = self._inverted_mask(parameters)
            if inverted is not None and inverted not in taken:
                taken[inverted] = offered["attention_mask"] == 0
        reachable = parameters.declared | parameters.transparent
        switches = {name: value for name, value in _SWITCHES.items() if name in reachable}
        if parameters.by_name(main):
            self._check_required({main, *taken}, batch, parameters)
            return (), {**taken, main: offered[main], **switches}
        if not parameters.takes_position:
            raise ModelError(
                f"{type(self.model).__name__}.forward takes {sorted(parameters.declared) or 'no arguments'}, "
                f"none of which is {main!r}; name one of them {main!r}"
            )
        # The first parameter takes the main input, so it must not be given by name as well.
        self._check_required({str(parameters.first), *taken}, batch, parameters)
        for name in (main, str(parameters.first)):
            taken.pop(name, None)
        return (offered[main],), {**taken, **switches}

    def has_parameter(self, name: str, batch: Mapping[str, Tensor]) -> bool:
        """Whether the model's forward, or the one beneath its wrapper, has a parameter of that name."""
        parameters = self._parameters_for(_main_input(batch))
        return name in parameters.declared or name in parameters.passed_on

    def lost_mask(self, batch: Mapping[str, Tensor]) -> str | None:
        """Explain why the batch's `attention_mask` does not reach the model; None if it does, or the batch has no mask. Goes
        by names only."""
        if "attention_mask" not in batch:
            return None
        parameters = self._parameters_for(_main_input(batch))
        if self._passes("attention_mask", parameters) or self._inverted_mask(parameters) is not None:
            return None
        name, other = type(self.model).__name__, parameters.uncertain_mask()
        if other is not None:
            return (
                f"{name}.forward has a parameter {other!r}, which is not filled in because its meaning is not known. Rename it "
                "to attention_mask (1 for tokens, 0 for padding)."
            )
        return f"{name}.forward takes no attention_mask. Add that parameter (1 for tokens, 0 for padding)."

    def take_auxiliary_loss(self) -> Tensor | None:
        """The sum of the auxiliary losses that the model returned in training since the last call, or None; see
        `auxiliary_loss_of`. Forgets them."""
        found, self._auxiliary = self._auxiliary, None
        return found

    def _parameters_for(self, main: str) -> ForwardParameters:
        if main not in self._parameters:
            self._parameters[main] = forward_parameters(self.model, main)
        return self._parameters[main]

    def _passes(self, name: str, parameters: ForwardParameters) -> bool:
        return name not in self._refused and parameters.accepts(name)

    def _inverted_mask(self, parameters: ForwardParameters) -> str | None:
        known = (parameters.declared | parameters.passed_on) - self._refused
        return next((name for name in INVERTED_MASKS if name in known), None)

    def _check_required(self, given: set[str], batch: Mapping[str, Tensor], parameters: ForwardParameters) -> None:
        missing = [name for name in parameters.required if name not in given]
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

    def outputs(self, batch: Mapping[str, Tensor], options: Mapping[str, Any] | None = None) -> Any:
        """Call the model's forward on a batch, never compiled, and return its outputs.

        Args:
            options: further keyword arguments, in place of the call's own: `past_key_values`, `encoder_outputs`.
        """
        return self._outputs(self.model, batch, options or {})

    def _outputs(self, run: Callable[..., Any], batch: Mapping[str, Tensor], options: Mapping[str, Any]) -> Any:
        arguments, named = self.inputs(batch)
        try:
            return run(*arguments, **{**named, **options})
        except IndexError as error:
            raise ModelError(self._out_of_range(batch, error)) from error
        except Exception as error:
            if self._is_refused(error, batch, named):
                return self._outputs(run, batch, options)
            if isinstance(error, ValueError) and _TOO_FEW_FOR_NORM in str(error):
                raise ModelError(self._too_few_for_norm(batch)) from error
            if _FLOAT_IDS in str(error):
                error.add_note("Token ids must be whole numbers (int64): convert them with .long().")
            error.add_note(f"{type(self.model).__name__}.forward was called with {_shapes(batch)}.")
            raise

    def _logits(self, run: Callable[..., Any], batch: Mapping[str, Tensor]) -> Tensor:
        outputs = self._outputs(run, batch, {})
        logits = logits_of(outputs, self.model)
        if self.model.training and torch.is_grad_enabled() and not isinstance(outputs, Tensor):
            self._add_auxiliary(auxiliary_loss_of(outputs, self.model))
        cut_off = torch.is_grad_enabled() and self.model.training and not logits.requires_grad
        if cut_off and any(parameter.requires_grad for parameter in self.model.parameters()):
            raise ModelError(
                f"{type(self.model).__name__}.forward returned logits without a gradient, so nothing can be learned. "
                "Remove detach(), no_grad(), .data or numpy from the way to the logits."
            )
        return logits

    def _is_refused(self, error: Exception, batch: Mapping[str, Tensor], named: Mapping[str, Any]) -> bool:
        """Whether the call failed because a wrapper does not pass on a name that it accepts. It is not given again."""
        match = _REFUSED.search(str(error)) if isinstance(error, TypeError) else None
        if match is None or match[1] not in named:
            return False
        parameters = self._parameters_for(_main_input(batch))
        if match[1] in parameters.declared or match[1] in parameters.required:
            return False
        self._refused.add(match[1])
        return True

    def _add_auxiliary(self, found: Tensor | None) -> None:
        if found is not None:
            self._auxiliary = found if self._auxiliary is None else self._auxiliary + found

    def _too_few_for_norm(self, batch: Mapping[str, Tensor]) -> str:
        return (
            f"{type(self.model).__name__} normalises over the batch (BatchNorm), which needs more than one value per channel "
            f"in training; got {_shapes(batch)}. Choose a batch_size that leaves no last batch of one sample, or use LayerNorm "
            "or GroupNorm."
        )

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


def _main_input(batch: Mapping[str, Tensor]) -> str:
    return next(name for name in batch if name not in _NOT_INPUTS)


def _shapes(batch: Mapping[str, Tensor]) -> str:
    given = [f"{name} {tuple(value.shape)} {value.dtype}" for name, value in batch.items() if name not in _NOT_INPUTS]
    return ", ".join(given).replace("torch.", "")


def logits_of(outputs: Any, model: nn.Module) -> Tensor:
    """The logits in what a model returned: a tensor, `.logits`, ["logits"], or the first tensor of a tuple that is no scalar:
    a scalar in front of it is a loss."""
    found: Any = outputs
    if isinstance(outputs, Mapping):
        found = outputs.get("logits")
    elif not isinstance(outputs, Tensor):
        found = getattr(outputs, "logits", None)
        if found is None and isinstance(outputs, (tuple, list)):
            found = next((value for value in outputs if isinstance(value, Tensor) and value.dim()), None)
    if isinstance(found, Tensor) and found.dim():
        return found
    kind = type(outputs).__name__
    if isinstance(found, Tensor):
        kind = "scalar" if found is outputs else f"{kind} with a scalar as logits"
    keys = f" with keys {sorted(map(str, outputs))}" if isinstance(outputs, Mapping) else ""
    raise ModelError(
        f"{type(model).__name__}.forward returned a {kind}{keys}; expected logits: a tensor, an object "
        'with .logits, a dict with "logits", or a tuple in which the logits are the first tensor that is not a scalar'
    )
