"""Figures about the nodes of an adaptive model: 22 of them, all plain floats."""

from __future__ import annotations

import torch
from torch import Tensor

from utils.compat.adaptive_nodes import NodeState
from utils.compat.adaptive_phases import Phase, PhaseScheduler

_SPENT = 1e-3  # energy at or below which a node counts as without energy
_ANXIOUS = 5.0


@torch.no_grad()
def node_metrics(state: NodeState, scheduler: PhaseScheduler, activity_threshold: float) -> dict[str, float]:
    """Compute the metrics of all nodes over the rows of the latest batch.

    `active_node_ratio`: share of nodes that are awake. `*_ratio` of a phase and `active_phase_ratio`: share of nodes in it;
    the latter is that of ACTIVE. `*_sparsity`: share of entries at or below a threshold, 0.001 for energy and
    `activity_threshold` for activity; `*_l0_ratio`: the share above it; `combined_sparsity`: share with both at or below.
    `*_l1_norm`, `*_l2_norm`: over the nodes of a row, mean over rows. Anxiety, restorative need and sleep quality: over nodes.
    """
    phases, energy, activity = scheduler.phases, state.energy.squeeze(-1).float(), state.activity.squeeze(-1).float()
    in_phase = {phase: _mean(phases == phase) for phase in Phase}
    spent, quiet = energy <= _SPENT, activity <= activity_threshold
    figures = {
        "active_node_ratio": _mean(scheduler.get_active_mask()),
        "mean_energy": _mean(energy),
        "mean_activity": _mean(activity),
        "active_ratio": in_phase[Phase.ACTIVE],
        "sleep_ratio": in_phase[Phase.SLEEP],
        "interactive_ratio": in_phase[Phase.INTERACTIVE],
        "inspired_ratio": in_phase[Phase.INSPIRED],
        "mean_anxiety": _mean(scheduler.anxiety),
        "max_anxiety": scheduler.anxiety.float().max(),
        "anxious_nodes_ratio": _mean(scheduler.anxiety > _ANXIOUS),
        "mean_restorative_need": _mean(scheduler.restorative_need),
        "mean_sleep_quality": _mean(scheduler.sleep_quality),
    }
    for name, values, few in (("energy", energy, spent), ("activity", activity, quiet)):
        figures[f"{name}_sparsity"] = _mean(few)
        figures[f"{name}_l0_ratio"] = _mean(~few)
        figures[f"{name}_l1_norm"] = values.abs().sum(dim=1).mean()
        figures[f"{name}_l2_norm"] = values.norm(dim=1).mean()
    figures["combined_sparsity"] = _mean(spent & quiet)
    figures["active_phase_ratio"] = in_phase[Phase.ACTIVE]
    # Read in one go: each number that is read on its own waits for a GPU.
    return dict(zip(figures, torch.stack(list(figures.values())).tolist(), strict=True))


def _mean(values: Tensor) -> Tensor:
    return values.float().mean()
