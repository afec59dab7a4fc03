"""Stop and keep the best: the model of the results gets the weights of the best checkpoint."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from utils.training.engine.checkpointing.store import read_checkpoint
from utils.training.engine.checkpointing.weights import load_model_weights, weights_to_use
from utils.training.engine.compute.buffers import load_run_states
from utils.training.engine.compute.master_weights import in_formats_of
from utils.training.engine.facade import Notice


def take_best_weights(model: nn.Module, best: Path, monitor: str, notice: Notice) -> bool:
    """Give `model` the weights of the best checkpoint `best` and say so; False, with a notice, where there is none."""
    if not best.is_file():
        notice(
            "The model has the weights of the last step: there is no best checkpoint, because nothing was validated yet."
        )
        return False
    checkpoint = read_checkpoint(best, mapped=True)
    load_model_weights(model, in_formats_of(model, weights_to_use(checkpoint)), str(best))
    load_run_states(model, checkpoint.get("run_state", {}))
    value = checkpoint["value"]
    measured = "" if value is None else f", {monitor} {value:.4g}"
    notice(
        f"The model has the weights of the best checkpoint (step {checkpoint['state']['step']:,}{measured}), {best.name}."
    )
    return True
