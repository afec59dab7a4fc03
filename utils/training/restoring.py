"""Putting what a file holds into a model and an optimizer: all of it, or the part that fits with a report of the rest."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from utils.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.optim import Optimizer


@dataclass
class Restored:
    """Parts of a checkpoint that were restored.

    Attributes:
        loaded: entries of the file's state_dict that are in the model now; total: entries it has.
        skipped: entry -> why it is not loaded; entries that only the model has are named too.
        optimizer: whether the optimizer's state was loaded; optimizer_reason: why not.
    """

    loaded: int = 0
    total: int = 0
    skipped: dict[str, str] = field(default_factory=dict)
    optimizer: bool = False
    optimizer_reason: str | None = None

    @property
    def complete(self) -> bool:
        """Whether the model is the one that was saved: nothing of the file was left out, and nothing is missing in it."""
        return not self.skipped


def load_fitting_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> Restored:
    """Copy those entries of `weights` into `model` whose name and shape fit; the others stay as they are in the model.

    Names are compared without what torch.compile adds to them.
    """
    from utils.training.engine.checkpointing.weights import under_names_of

    own = model.state_dict()
    weights = under_names_of(own, weights)
    fitting: dict[str, Tensor] = {}
    found = Restored(total=len(weights))
    for name, tensor in weights.items():
        if name not in own:
            found.skipped[name] = "not in the model"
        elif tuple(own[name].shape) != tuple(tensor.shape):
            found.skipped[name] = f"{tuple(tensor.shape)} in the file, {tuple(own[name].shape)} in the model"
        else:
            fitting[name] = tensor
    found.skipped |= dict.fromkeys((name for name in own if name not in weights), "not in the file")
    model.load_state_dict(fitting, strict=False)
    found.loaded = len(fitting)
    return found


def optimizer_kind(optimizer: Optimizer) -> str:
    """The name under which a file keeps what kind of optimizer its state is of."""
    return type(optimizer).__name__


def optimizer_misfit(optimizer: Optimizer, state: Mapping[str, Any], kind: str | None) -> str | None:
    """Explain why `state` does not belong to `optimizer`; None when it does.

    torch itself compares only the number of parameters: Adam's averages in SGD would be found at the next step.

    Args:
        kind: class of the optimizer that the state was taken from, where the file names it.
    """
    own = optimizer.param_groups
    if kind is not None and kind != optimizer_kind(optimizer):
        return f"it is of {kind}, and this is {optimizer_kind(optimizer)}"
    groups = state.get("param_groups") if isinstance(state, Mapping) else None
    whole = isinstance(groups, list) and all(isinstance(one, Mapping) and "params" in one for one in groups)
    if not isinstance(groups, list) or not whole or not isinstance(state.get("state"), Mapping):
        return "it is no optimizer's state_dict"
    if reason := _groups_misfit(optimizer, groups):
        return reason
    if missing := sorted(_settings(own) - _settings(groups)):
        return f"it has no {', '.join(missing)}: it is of another kind than {optimizer_kind(optimizer)}"
    return averages_misfit(optimizer, state)


def averages_misfit(optimizer: Optimizer, state: Mapping[str, Any], needed: Iterable[str] = ()) -> str | None:
    """Explain why the moments in `state`, an optimizer's state_dict, do not fit `optimizer`'s parameters; None when
    they do.

    Args:
        needed: names of the averages that each parameter must have.
    """
    groups = state["param_groups"]
    if reason := _groups_misfit(optimizer, groups):
        return reason
    numbers = [number for group in groups for number in group["params"]]
    for number in numbers:
        entries = state["state"].get(number)
        if entries and (missing := sorted(set(needed) - set(entries))):
            return f"its entry of parameter {number} has no {', '.join(missing)}"
        if entries and not _is_number(entries.get("step", 0)):
            return f"its step of parameter {number} is not a number"
    return _shapes_misfit(optimizer, groups, state["state"])


def _groups_misfit(optimizer: Optimizer, groups: list[dict[str, Any]]) -> str | None:
    there, here = ([len(group["params"]) for group in found] for found in (groups, optimizer.param_groups))
    return f"its groups have {there} parameters, and these have {here}" if there != here else None


def _is_number(value: Any) -> bool:
    if getattr(value, "ndim", None) == 0:
        return not value.is_complex()
    return isinstance(value, (int, float))


def _settings(groups: list[dict[str, Any]]) -> set[str]:
    """Names of what a group is set to, without what versions of torch have added since or a schedule leaves there."""
    return {name for group in groups for name in group} - _YOUNG


def _shapes_misfit(optimizer: Optimizer, groups: list[dict[str, Any]], state: Mapping[Any, Any]) -> str | None:
    numbers = [number for group in groups for number in group["params"]]
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for number, parameter in zip(numbers, parameters, strict=True):
        shapes = _shapes(parameter)
        for name in shapes.keys() & set(state.get(number, {})):
            average = state[number][name]
            if average is None:  # SGD's momentum before the first step
                continue
            shape = tuple(getattr(average, "shape", ()))
            if shape != shapes[name]:
                return f"its {name} of parameter {number} is {shape}, and the parameter {tuple(parameter.shape)}"
            if parameter.is_floating_point() != average.is_floating_point():
                return f"its {name} of parameter {number} is {average.dtype}, and the parameter {parameter.dtype}"
    return None


def _shapes(parameter: Tensor) -> dict[str, tuple[int, ...]]:
    """Shapes of the averages that torch's optimizers keep for `parameter`."""
    own = tuple(parameter.shape)
    shapes = dict.fromkeys(_FULL_SIZE, own)
    if len(own) >= 2:  # Adafactor's means over the columns, and over the rows
        shapes |= {"row_var": (*own[:-1], 1), "col_var": (*own[:-2], 1, own[-1])}
    return shapes


_YOUNG = frozenset(
    ("params", "initial_lr", "foreach", "capturable", "differentiable", "fused", "maximize", "decoupled_weight_decay")
)

# Averages that torch's optimizers keep with the shape of their parameter.
_FULL_SIZE = frozenset((
    "exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer", "square_avg", "sum", "exp_inf", "acc_delta", "variance",
))  # fmt: skip


def load_optimizer(optimizer: Optimizer, state: Mapping[str, Any]) -> None:
    """Take up a state that fits. Raises `CheckpointError` with torch's reason when it refuses; nothing is changed then."""
    try:
        optimizer.load_state_dict(dict(state))
    except (ValueError, KeyError) as error:
        raise CheckpointError(f"the optimizer's state cannot be loaded: {error}") from error
