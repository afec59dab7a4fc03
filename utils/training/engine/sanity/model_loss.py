"""Whether a model that can compute a loss itself computes the one that is minimised here."""

from __future__ import annotations

import contextlib
import copy
import logging
import math
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from utils.adapters.auxiliary import auxiliary_loss_of
from utils.adapters.forward import ModelCall, logits_of
from utils.adapters.inputs import unwrapped
from utils.adapters.left_as_found import state_kept
from utils.data.module import UniversalDataModule
from utils.data.sources import StreamSource
from utils.training.engine.compute.assembly import Parts
from utils.training.engine.loss.tasks import Task
from utils.training.engine.loss.tasks.tokens import TokenTask

log = logging.getLogger("trainbook.engine")

# Samples that are compared: more than one, so that weights of samples or classes show.
_NUM_SAMPLES = 4

# Relative difference from which two losses are not the same; half precision rounds each to about 0.4 %.
_TOLERANCE = 0.02


def own_loss_notice(parts: Parts, data: UniversalDataModule) -> str | None:
    """A sentence when the model's own loss of the first samples differs from the one that is minimised; None where it does not,
    or cannot be compared.

    Only models whose forward has a parameter `labels` are asked: one forward pass in evaluation mode, from whose logits the
    objective's loss is computed as well. Weights, modes, buffers, config and random state are as before afterwards. Label
    smoothing is left out of the comparison, and what the model returns as auxiliary loss is part of both. Streams and sharded
    models are not looked at.
    """
    if isinstance(data.train, StreamSource) or parts.sharded:
        return None
    model, objective = parts.model, parts.objective
    batch = data.train.take(list(range(min(_NUM_SAMPLES, data.batch_size, len(data.train)))))
    call = ModelCall(model)
    if not isinstance(objective, Task) or "labels" not in batch or not call.has_parameter("labels", batch):
        return None
    batch = {name: value.to(parts.fabric.device) for name, value in batch.items()}
    plain = copy.copy(objective)
    if getattr(plain, "label_smoothing", 0.0):
        vars(plain)["label_smoothing"] = 0.0
    inputs = plain.inputs(model, batch) if isinstance(plain, TokenTask) else batch
    try:
        with state_kept(model), _configs_kept(model), parts.precision.autocast(parts.device.kind):
            arguments, named = call.inputs(inputs)
            outputs = model(*arguments, **{**named, "labels": batch["labels"]})
            own = _loss_in(outputs)
            if own is None:
                return None
            found = plain(_Returned(model, logits_of(outputs, model)), batch, keep_outputs=True)
            auxiliary = auxiliary_loss_of(outputs, model)
    except Exception as error:  # noqa: BLE001 - code of the caller's that training never runs; it may need other labels
        log.debug("%s could not be asked for its own loss: %s", type(model).__name__, error)
        return None
    if not found.num_targets:
        return None
    ours = float(found.loss_sum) / found.num_targets + (0.0 if auxiliary is None else float(auxiliary))
    if not math.isfinite(own) or not math.isfinite(ours) or math.isclose(own, ours, rel_tol=_TOLERANCE, abs_tol=1e-3):
        return None
    return (
        f"{type(model).__name__} computes another loss from labels than the one that is minimised: {own:.4g} instead of "
        f"{ours:.4g} on the first samples. Its own loss is not used. To add a term, return it as aux_loss in the outputs."
    )


class _Returned(ModelCall):
    """A call of which the result is known."""

    def __init__(self, model: nn.Module, logits: Tensor) -> None:
        super().__init__(model)
        self._known = logits

    def _logits(self, run: Any, batch: Mapping[str, Tensor]) -> Tensor:
        return self._known


def _loss_in(outputs: Any) -> float | None:
    """The loss among a model's outputs: `.loss`, ["loss"], or a scalar at the front of a tuple."""
    found = outputs.get("loss") if isinstance(outputs, Mapping) else getattr(outputs, "loss", None)
    if (
        found is None
        and isinstance(outputs, tuple)
        and outputs
        and isinstance(outputs[0], Tensor)
        and not outputs[0].dim()
    ):
        found = outputs[0]
    return float(found) if isinstance(found, Tensor) and found.numel() == 1 else None


@contextlib.contextmanager
def _configs_kept(model: nn.Module) -> Iterator[None]:
    """transformers' classifiers write `problem_type` into their config when they are given labels."""
    found: list[Any] = [getattr(module, "config", None) for module in unwrapped(model)]
    configs = [config for config in found if hasattr(config, "problem_type")]
    before = [config.problem_type for config in configs]
    try:
        yield
    finally:
        for config, value in zip(configs, before, strict=True):
            config.problem_type = value
