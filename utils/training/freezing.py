"""Freezing: parts of a model that training leaves as they are, chosen by number, by range or by name."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from utils.errors import ConfigError, Problem
from utils.schema import nearest, shown

if TYPE_CHECKING:
    from torch import nn

_ID = re.compile(r"(\d+)-(\d+)")


@dataclass(frozen=True)
class Layer:
    """A module of a model, as `layer_table` lists it.

    Attributes:
        id: "depth-number": its depth below the model (1: a direct part of it), and which one of that depth it is, from 1.
            Counted as torchinfo does for a model without inputs: a module comes before its own parts, in the order in which
            they were registered, and one that stands in several places counts where it stands first.
        name: its full name; kind: its class.
        parameters: numbers that it and its parts hold; trainable: those of them that training changes. A shared one counts
            wherever it is.
    """

    id: str
    name: str
    kind: str
    parameters: int
    trainable: int


def layer_table(model: nn.Module) -> list[Layer]:
    """Every module of `model` below the model itself, in order: what can be given to `freeze_layers`."""
    return [
        Layer(
            layer_id,
            name,
            type(module).__name__,
            sum(p.numel() for p in module.parameters()),
            sum(p.numel() for p in module.parameters() if p.requires_grad),
        )
        for layer_id, name, module in _walk(model)
    ]


def _walk(model: nn.Module) -> Iterator[tuple[str, str, nn.Module]]:
    """(id, name, module) of every module below `model`, each once."""
    counts: dict[int, int] = {}
    # named_modules goes down before it goes on, and gives a shared module once.
    for name, module in model.named_modules():
        if name:
            depth = name.count(".") + 1
            counts[depth] = counts.get(depth, 0) + 1
            yield f"{depth}-{counts[depth]}", name, module


@dataclass(frozen=True)
class FreezeReport:
    """Result of `freeze_layers` or `unfreeze_layers`.

    Attributes:
        tensors: parameter tensors that were chosen; parameters: numbers in them. Each once, however often it was chosen.
        modules: full names of the modules that were chosen, each with its parts, in the model's order; parameters that were
            chosen by their own name are in `names`.
        statistics: full names of the normalisations whose running statistics stand still (or move again).
        trainable: numbers in the whole model that training changes now.
    """

    tensors: int
    parameters: int
    modules: tuple[str, ...]
    names: tuple[str, ...]
    statistics: tuple[str, ...]
    trainable: int

    def __str__(self) -> str:
        still = f"; running statistics of {', '.join(self.statistics)}" if self.statistics else ""
        return (
            f"{', '.join([*self.modules, *self.names]) or 'nothing'}: {self.tensors} tensors with {self.parameters:,} "
            f"parameters{still}. {self.trainable:,} parameters of the model are trained."
        )


def freeze_layers(model: nn.Module, layers: str | Iterable[str]) -> FreezeReport:
    """Make training leave `layers` as they are: their parameters get no gradient, and their statistics stand still.

    Call it before the optimizer is made; `Trainer` gives its optimizer the parameters that are trained, and no others. A
    normalisation with running statistics (batch norm) inside a frozen module stays in evaluation mode from its next forward
    pass on: it normalises by what it holds and does not change that, whatever `model.train()` says.

    Args:
        layers: one or more of: an id, "1-2" (see `layer_table`); a range of ids of one depth, both ends included, "1-2:1-5";
            the full name of a module, "features" or "features.0", or of a parameter, "features.0.weight". Names are exact:
            "features" is that module with its parts, and not "features2".
    Raises:
        ConfigError: lists every one that the model does not have, with the nearest that it has. Nothing was changed.
    """
    return _switch(model, layers, frozen=True)


def unfreeze_layers(model: nn.Module, layers: str | Iterable[str] | None = None) -> FreezeReport:
    """The reverse of `freeze_layers`; None: of the whole model."""
    if layers is None:
        layers = [name for name, _ in (*model.named_children(), *model.named_parameters(recurse=False))]
    return _switch(model, layers, frozen=False)


def _switch(model: nn.Module, layers: str | Iterable[str], *, frozen: bool) -> FreezeReport:
    specs = list(layers) if isinstance(layers, Iterable) and not isinstance(layers, str) else [layers]
    chosen = _chosen(model, specs)
    named_modules = [(name, module) for _, name, module in _walk(model) if name in chosen]
    named_parameters = [(name, parameter) for name, parameter in model.named_parameters() if name in chosen]
    inside = {id(p): p for _, module in named_modules for p in module.parameters()}
    parameters = {**inside, **{id(p): p for _, p in named_parameters}}
    for parameter in parameters.values():
        parameter.requires_grad_(not frozen)
        if frozen:
            parameter.grad = None  # one that is left over would still be clipped and counted
    statistics = _statistics_in(model, [module for _, module in named_modules])
    for _, module in statistics:
        _hold(module) if frozen else _let_go(module)
    return FreezeReport(
        tensors=len(parameters),
        parameters=sum(p.numel() for p in parameters.values()),
        modules=tuple(name for name, _ in named_modules),
        names=tuple(name for name, _ in named_parameters),
        statistics=tuple(name for name, _ in statistics),
        trainable=sum(p.numel() for p in model.parameters() if p.requires_grad),
    )


def _chosen(model: nn.Module, specs: Sequence[Any]) -> set[str]:
    """Full names of the modules and parameters that `specs` mean. Raises `ConfigError` with every spec that means nothing."""
    names = {layer_id: name for layer_id, name, _ in _walk(model)}
    # Every name under which something stands, also a second one of the same module.
    known = {name for name, _ in model.named_modules(remove_duplicate=False) if name}
    known |= {name for name, _ in model.named_parameters(remove_duplicate=False)}
    found: set[str] = set()
    problems = []
    for spec in specs:
        try:
            found |= _meant(spec, names, known)
        except ValueError as error:
            problems.append(Problem(shown(spec), str(error)))
    if problems:
        raise ConfigError.from_problems(f"the layers to freeze of {type(model).__name__}", problems)
    return _first_names(model, found)


def _meant(spec: Any, ids: dict[str, str], known: set[str]) -> set[str]:
    """Names that one spec means. Raises ValueError that says what is wrong with it."""
    if not isinstance(spec, str) or not spec.strip():
        raise ValueError("must be an id (1-2), a range of ids (1-2:1-5) or a name (features.0)")
    spec = spec.strip()
    if spec in known:
        return {spec}
    if _ID.fullmatch(spec):
        return {_of_id(spec, ids)}
    if ":" in spec:
        return _of_range(spec, ids)
    guess = nearest(spec, known)
    at_the_top = [name for layer_id, name in ids.items() if layer_id.startswith("1-")]
    hint = f"did you mean {guess!r}?" if guess else f"at its top are {_listed(at_the_top)}"
    raise ValueError(f"is no module or parameter of the model; {hint}")


def _of_id(layer_id: str, ids: dict[str, str]) -> str:
    if layer_id not in ids:
        raise ValueError(f"the model has no {layer_id}; {_near(layer_id, ids)}")
    return ids[layer_id]


def _near(layer_id: str, ids: dict[str, str]) -> str:
    """Valid ids of the same depth, or at all."""
    depth = layer_id.split("-")[0]
    there = [known for known in ids if known.split("-")[0] == depth]
    if there:
        return f"ids of depth {depth} are {there[0]} to {there[-1]}"
    depths = [int(known.split("-")[0]) for known in ids]
    return f"depths are 1 to {max(depths)}" if depths else "it has no parts"


def _of_range(spec: str, ids: dict[str, str]) -> set[str]:
    ends = [_ID.fullmatch(end.strip()) for end in spec.split(":")]
    if len(ends) != 2 or ends[0] is None or ends[1] is None:
        raise ValueError("a range is of two ids, such as 1-2:1-5; give names one by one")
    (depth, first), (other, last) = (map(int, end.groups()) for end in ends if end is not None)
    if depth != other:
        raise ValueError(f"goes from depth {depth} to depth {other}; a range is of one depth")
    if first > last:
        raise ValueError(f"ends before it begins; write {depth}-{last}:{depth}-{first}")
    for number in (first, last):
        _of_id(f"{depth}-{number}", ids)
    return {ids[f"{depth}-{number}"] for number in range(first, last + 1)}


def _listed(names: list[str], most: int = 8) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _first_names(model: nn.Module, names: set[str]) -> set[str]:
    """`names`, with the first name of a module or parameter in place of a later one."""
    first = {id(module): name for _, name, module in _walk(model)}
    first |= {id(parameter): name for name, parameter in model.named_parameters()}
    everything = [*model.named_modules(remove_duplicate=False), *model.named_parameters(remove_duplicate=False)]
    return {first[id(value)] for name, value in everything if name in names}


def _statistics_in(model: nn.Module, chosen: list[nn.Module]) -> list[tuple[str, nn.Module]]:
    inside = {id(part) for module in chosen for part in module.modules()}
    return [
        (name, module)
        for name, module in model.named_modules()
        if id(module) in inside and getattr(module, "track_running_stats", False)
    ]


def _in_evaluation(module: nn.Module, _inputs: Any) -> None:
    """Switch a frozen normalisation to evaluation mode before each forward pass: `model.train()` has switched it back."""
    if module.training:
        module.eval()


def _hold(module: nn.Module) -> None:
    if _in_evaluation not in module._forward_pre_hooks.values():
        module.register_forward_pre_hook(_in_evaluation)
    module.eval()


def _let_go(module: nn.Module) -> None:
    for key, hook in list(module._forward_pre_hooks.items()):
        if hook is _in_evaluation:
            del module._forward_pre_hooks[key]
