"""Resolve which tensors of a batch a model's forward accepts, also behind a wrapper's `forward(*args, **kwargs)`."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import dataclass, replace

from torch import nn

# Parameters whose convention torch itself documents: True at padding, the inverse of attention_mask.
INVERTED_MASKS = ("src_key_padding_mask", "key_padding_mask")

# Names that a padding mask usually has. Whether 1 means "token" or "padding" is not known, so they are never filled in.
_UNCERTAIN_MASKS = frozenset(
    {
        "mask",
        "masks",
        "padding_mask",
        "pad_mask",
        "attn_mask",
        "input_mask",
        "token_mask",
        "src_mask",
        "attention_masks",
    }
)


@dataclass(frozen=True)
class ForwardParameters:
    """The parameters of a model's forward, with those that it passes on to a module beneath it.

    Attributes:
        declared: parameters of the model's own forward that can be given by name.
        passed_on: further names, accepted through `**kwargs` by the module beneath.
        transparent: those of them that are reached through wrappers which add no arguments of their own (torch.compile's,
            DataParallel's, PEFT's).
        any_name: whether every name is accepted: `**kwargs` that no module beneath is known to receive.
        required: declared parameters without a default.
        first: the first declared parameter; first_beneath: of the module beneath, where there is one.
        takes_position: whether an argument can be given by position.
        takes_keywords: whether the model's own forward has `**kwargs`.
    """

    declared: frozenset[str]
    passed_on: frozenset[str]
    transparent: frozenset[str]
    any_name: bool
    required: tuple[str, ...]
    first: str | None
    first_beneath: str | None
    takes_position: bool
    takes_keywords: bool

    def accepts(self, name: str) -> bool:
        """Whether an argument of that name reaches a module that uses it."""
        return self.any_name or name in self.declared or name in self.passed_on

    def by_name(self, main: str) -> bool:
        """Whether the main input is given by name; otherwise it is the first positional argument."""
        only_by_name = self.takes_keywords and not self.takes_position
        misplaced = main in self.passed_on and self.first_beneath != main
        return main in self.declared or main in self.transparent or only_by_name or misplaced

    def uncertain_mask(self) -> str | None:
        """A parameter that looks like a padding mask, but whose meaning is not known."""
        return min((self.declared | self.passed_on) & _UNCERTAIN_MASKS, default=None)


def forward_parameters(model: nn.Module, main: str) -> ForwardParameters:
    """The parameters of `model.forward`.

    Args:
        main: name of the batch's main input; of several modules beneath a wrapper, the one that has a parameter of that name
            is taken to receive the arguments.
    """
    own = _declared(model)
    if not own.takes_keywords:
        return own
    inner, transparent = _beneath(model, main)
    if inner is None:
        # transformers models declare everything that they use; their **kwargs are options of attention kernels.
        return replace(own, any_name=not hasattr(model, "main_input_name"))
    found = forward_parameters(inner, main)
    return replace(
        own,
        passed_on=(found.declared | found.passed_on) - own.declared,
        transparent=found.declared | found.transparent if transparent else frozenset(),
        any_name=found.any_name,
        first_beneath=found.first_beneath or found.first,
    )


def unwrapped(model: nn.Module) -> Iterator[nn.Module]:
    """`model`, then the modules beneath its transparent wrappers, from the outside in."""
    seen: set[int] = set()
    current: nn.Module | None = model
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = _wrapped(current)


def _declared(model: nn.Module) -> ForwardParameters:
    parameters, kinds = inspect.signature(model.forward).parameters, inspect.Parameter
    named = {
        name: parameter
        for name, parameter in parameters.items()
        if parameter.kind in (kinds.POSITIONAL_OR_KEYWORD, kinds.KEYWORD_ONLY)
    }
    positional = (kinds.POSITIONAL_ONLY, kinds.POSITIONAL_OR_KEYWORD, kinds.VAR_POSITIONAL)
    return ForwardParameters(
        declared=frozenset(named),
        passed_on=frozenset(),
        transparent=frozenset(),
        any_name=False,
        required=tuple(name for name, parameter in named.items() if parameter.default is kinds.empty),
        first=next(iter(parameters), None),
        first_beneath=None,
        takes_position=any(parameter.kind in positional for parameter in parameters.values()),
        takes_keywords=any(parameter.kind is kinds.VAR_KEYWORD for parameter in parameters.values()),
    )


def _beneath(model: nn.Module, main: str) -> tuple[nn.Module | None, bool]:
    """The module that receives the arguments of `model`'s forward, and whether the wrapper is a transparent one."""
    wrapped = _wrapped(model)
    if wrapped is not None:
        return wrapped, True
    children = list(model.children())
    known = [(child, _declared(child)) for child in children if callable(getattr(child, "forward", None))]
    takers = [child for child, parameters in known if main in parameters.declared]
    if len(takers) == 1:
        return takers[0], False
    if len(children) == 1 and known and known[0][1].takes_keywords:
        return children[0], False
    return None, False


def _wrapped(model: nn.Module) -> nn.Module | None:
    """The module inside a transparent wrapper: torch.compile's, PEFT's, DataParallel's."""
    base_model = getattr(model, "get_base_model", None)  # PEFT
    candidates = [
        getattr(model, "_orig_mod", None),
        base_model() if callable(base_model) else None,
        getattr(model, "module", None),
    ]
    return next((found for found in candidates if isinstance(found, nn.Module) and found is not model), None)
