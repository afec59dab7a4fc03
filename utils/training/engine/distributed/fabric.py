"""Lightning Fabric for this process's device: alone, or as one of several that train together."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed_version
from typing import TYPE_CHECKING, Any

from packaging.version import Version
from torch import nn

from utils.environment import Device
from utils.training.engine.distributed.sharding import shard
from utils.training.engine.distributed.world import Launch, World

if TYPE_CHECKING:
    from lightning_fabric import Fabric
    from lightning_fabric.strategies.ddp import DDPStrategy
    from lightning_fabric.strategies.model_parallel import ModelParallelStrategy


def make_fabric(device: Device, world: World, sharded: bool) -> Fabric:
    """Fabric for this process's device; with several processes, as one of them.

    Args:
        sharded: whether each process holds a part of every parameter.
    """
    fabric_class = _fabric_class()
    # Fabric announces its precision on stderr; ours is in the results, where it can be found again.
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    launch = Launch.from_environment() if world.size > 1 else None
    if launch is None:
        return fabric_class(accelerator=device.kind, devices=1, precision="32-true")
    from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment

    fabric = fabric_class(
        accelerator=device.kind, devices=launch.local_size, num_nodes=launch.num_nodes, precision="32-true",
        strategy=_shards(world) if sharded else _replicas(), plugins=TorchElasticEnvironment(),
    )  # fmt: skip
    fabric.launch()
    return fabric


@cache
def _fabric_class() -> type[Fabric]:
    with _version_of_torchmetrics_from_its_metadata():
        from lightning_fabric import Fabric

    class WithoutExternalCallbacks(Fabric):
        """Fabric that does not search the entry points of every installed package for callbacks: nothing here calls them, and
        the search takes 30 ms or more at each start of a run."""

        @staticmethod
        def _configure_callbacks(callbacks: list[Any] | Any | None) -> list[Any]:
            return []

    return WithoutExternalCallbacks


@contextmanager
def _version_of_torchmetrics_from_its_metadata() -> Iterator[None]:
    """Compare the version of torchmetrics, as Fabric does when it is imported, without importing it.

    It would bring transformers, SciPy and Matplotlib, two thirds of the time to the first step; nothing here uses it.
    """
    imports: Any = importlib.import_module("lightning_utilities.core.imports")
    compare = imports.compare_version

    def compare_version(package: str, op: Any, version: str, use_base_version: bool = False) -> bool:
        if package != "torchmetrics":
            return bool(compare(package, op, version, use_base_version))
        try:
            found = Version(installed_version(package))
        except PackageNotFoundError:
            return False
        return bool(op(Version(found.base_version) if use_base_version else found, Version(version)))

    imports.compare_version = compare_version
    try:
        yield
    finally:
        imports.compare_version = compare


def _replicas() -> DDPStrategy:
    """Fabric's data-parallel strategy without torch's DistributedDataParallel around the module.

    That one sends gradients from within the last backward pass, which every process must then have: one whose share of a
    ragged last step is empty would keep the others waiting for ever, and so would one that repeats a pass in which it ran
    out of memory. `World.sum_gradients` sends them after it.
    """
    from lightning_fabric.strategies.ddp import DDPStrategy

    class Replicas(DDPStrategy):
        def setup_module(self, module: nn.Module) -> nn.Module:  # type: ignore[override]
            return module

    return Replicas()


def _shards(world: World) -> ModelParallelStrategy:
    """Fabric's strategy for `fully_shard`, over all processes."""
    from lightning_fabric.strategies.model_parallel import ModelParallelStrategy

    return ModelParallelStrategy(shard, data_parallel_size=world.size, tensor_parallel_size=1)
