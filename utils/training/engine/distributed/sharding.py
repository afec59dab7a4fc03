"""strategy="fsdp": every process holds a part of each parameter, of its gradient and of the optimizer's averages.

torch's `fully_shard` (FSDP2, Zhao et al. 2023, "PyTorch FSDP") gathers a layer's parameters when they are needed and sums its
gradients into parts when they are there. Parameters are DTensors then; checkpoints hold them whole, as without sharding.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from utils.training.engine.loss.objective import Loss

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


def shardable_copy(model: nn.Module) -> nn.Module:
    """A copy that can be sharded: sharding cannot be undone, and the user's own model is to be used afterwards."""
    return copy.deepcopy(model)


def shard(module: nn.Module, mesh: DeviceMesh) -> nn.Module:
    """Shard `module` over all processes of `mesh`, in place: each layer of a stack by itself, and the rest together.

    A layer is gathered when it is its turn, so that no more than about two are whole at a time. Gradients are summed over the
    processes, not averaged: losses are divided by the targets of all of them.
    """
    from torch.distributed.fsdp import FSDPModule, fully_shard

    _let_hooks_see_the_loss()
    flat = mesh["data_parallel"] if mesh.mesh_dim_names and "data_parallel" in mesh.mesh_dim_names else mesh
    stacks = [entry for entry in module.modules() if isinstance(entry, nn.ModuleList)]
    for layer in [layer for stack in stacks for layer in stack]:
        if any(True for _ in layer.parameters()):
            fully_shard(layer, mesh=flat)
    fully_shard(module, mesh=flat)
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.set_gradient_divide_factor(1.0)
            part.set_force_sum_reduction_for_comms(True)
    return module


def _let_hooks_see_the_loss() -> None:
    """fully_shard finds the tensors that a module returns only in containers that torch knows."""
    from torch.utils import _pytree

    if Loss not in _pytree.SUPPORTED_NODES:
        torch.export.register_dataclass(Loss)


def whole(value: Any, keep: bool) -> Any:
    """`value` (dicts, lists, tensors, plain values) with sharded tensors gathered onto the CPU. All processes must call it.

    Args:
        keep: False on processes that only help to gather: they get None for each.
    """
    if isinstance(value, Mapping):
        return {name: whole(entry, keep) for name, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [whole(entry, keep) for entry in value]
    if not is_sharded(value):
        return value
    gathered = value.full_tensor()
    return gathered.cpu() if keep else None


def is_sharded(value: Any) -> bool:
    """Whether `value` is a tensor of which this process holds a part."""
    return isinstance(value, Tensor) and hasattr(value, "full_tensor")


def parted(value: Tensor, like: Tensor) -> Tensor:
    """This process's part of a whole tensor, sharded as `like` is; `value` itself when `like` is not, or has another shape."""
    if not is_sharded(like) or value.shape != like.shape:
        return value
    from torch.distributed.tensor import distribute_tensor

    sharding: Any = like
    # Every process has read the whole tensor, so nothing needs to be sent.
    return distribute_tensor(value.to(like.device), sharding.device_mesh, sharding.placements, src_data_rank=None)


def parted_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Whole weights, sharded as those of `model` are."""
    own = model.state_dict()
    return {name: parted(tensor, own[name]) if name in own else tensor for name, tensor in weights.items()}


def parted_optimizer_state(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """A whole optimizer's state_dict, sharded as the optimizer's parameters are."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    sharded = {
        number: {
            name: parted(entry, parameters[number]) if isinstance(entry, Tensor) else entry
            for name, entry in entries.items()
        }
        for number, entries in state["state"].items()
    }
    return {**state, "state": sharded}


def give_weights(sharded: nn.Module, model: nn.Module) -> None:
    """Copy the weights of the sharded copy into the user's own model, on every process, one tensor at a time."""
    own = model.state_dict()
    with torch.no_grad():
        for name, tensor in sharded.state_dict().items():
            own[name].copy_(tensor.full_tensor() if is_sharded(tensor) else tensor)
