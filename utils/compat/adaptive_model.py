"""`AdaptiveModel`: nodes with energy, activity and phases, between an input and an output projection."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from utils.compat.adaptive_config import AdaptiveConfig
from utils.compat.adaptive_metrics import node_metrics
from utils.compat.adaptive_nodes import (
    INPUT_GAIN,
    AdaptiveDynamics,
    NodeState,
    anxiety_of,
    buffers_of,
    identity_units,
    load_buffers,
)
from utils.compat.adaptive_phases import PhaseScheduler
from utils.errors import CheckpointError, ModelError

_PHASE_STATE = ("phases", "anxiety", "restorative_need", "sleep_quality")
_FULL = "run_state"
# Of the draws of phases: nodes follow the rules but for the scheduler's exploration. A node that falls asleep at random keeps
# the activity of an earlier sample, which is noise to the output layer.
_TEMPERATURE = 0.1


class AdaptiveModel(nn.Module):
    """N nodes that share their weights and differ in their state; logits are a linear map of the nodes' activities.

    A forward pass computes u = W_in x + b, lets `phase_scheduler` choose each node's phase from the state before, applies
    `AdaptiveDynamics`, and returns W_out a + b. Inputs of more than two dimensions, such as images (B, C, H, W), are flattened.

    The state of nodes and phases lasts from batch to batch, in training and in evaluation mode; gradients do not flow from one
    pass into another. It is not in `state_dict`, whose entries are parameters only: checkpoints of the engine, of `Trainer` and
    of `TrainingLoop` hold it through `run_state_dict`. A validation by the engine leaves it as it was.

    With fewer than 16 hidden units all nodes start alike and the model tells few classes apart; see `AdaptiveDynamics`. On
    scikit-learn's digits, divided by 16, `AdaptiveConfig(num_nodes=128, hidden_dim=32, input_dim=64, output_dim=10,
    learning_rate=0.01, batch_size=32, num_epochs=15)` classifies more than 90 % of a held-out fifth.

    Args:
        config: sizes, seed, device and number format; None: the defaults. The initial weights are a function of `config.seed`;
            torch's global generator is left alone.
    """

    def __init__(self, config: AdaptiveConfig | None = None) -> None:
        super().__init__()
        self.config = config = AdaptiveConfig() if config is None else config
        nodes = config.to_node_config()
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(config.seed)
            self.input_projection = nn.Linear(config.input_dim, config.hidden_dim)
            self.output_projection = nn.Linear(config.num_nodes, config.output_dim)
            self.dynamics = AdaptiveDynamics(nodes)
            self.node_state = NodeState(nodes)
            self.phase_scheduler = PhaseScheduler(
                config.num_nodes, config.phase_weights, _TEMPERATURE, circadian_period=config.circadian_period
            )
        if identity_units(config.hidden_dim):
            with torch.no_grad():
                self.input_projection.weight.mul_(INPUT_GAIN)
        self.to(device=torch.device(config.device), dtype=getattr(torch, config.dtype))

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, output_dim) of inputs (B, input_dim) or (B, ...) with input_dim features each."""
        x = x.flatten(1) if x.dim() > 2 else x
        if x.dim() != 2 or x.shape[1] != self.config.input_dim:
            raise ModelError(
                f"AdaptiveModel takes inputs of {self.config.input_dim} features each (config.input_dim); got a batch of shape "
                f"{tuple(x.shape)}."
            )
        state = self.node_state
        state.resize(len(x))
        drive_BH = self.input_projection(x.to(self.input_projection.weight.dtype))
        anxiety = anxiety_of(state)
        phases_N = self.phase_scheduler.step(state.energy, state.activity, anxiety)
        hidden, energy, activity = self.dynamics(state.hidden_state, state.energy, anxiety, drive_BH, phases_N)
        state.keep(hidden, energy, activity, phases_N)
        logits: Tensor = self.output_projection(activity.squeeze(-1))
        return logits

    def compute_loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Mean cross-entropy of logits (B, C) and classes (B,)."""
        return nn.functional.cross_entropy(output, target)

    def get_metrics(self) -> dict[str, float]:
        """22 figures about the nodes as they are now; see `adaptive_metrics`."""
        return node_metrics(self.node_state, self.phase_scheduler, self.config.activity_threshold)

    def reset_state(self) -> None:
        """Nodes and phases as at the start; positions are drawn from torch's generator."""
        self.node_state.reset()
        self.phase_scheduler.reset()

    def set_training_mode(self, training: bool = True) -> None:
        """`train()` or `eval()`."""
        self.train(training)

    def run_state_dict(self) -> dict[str, Any]:
        """Copies of what the nodes carry from batch to batch, for checkpoints."""
        return {
            "nodes": buffers_of(self.node_state, NodeState.NAMES), "phases": buffers_of(self.phase_scheduler, _PHASE_STATE)
        }  # fmt: skip

    def load_run_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of `run_state_dict`. Raises `CheckpointError`, and changes nothing, where it does not fit."""
        before = self.run_state_dict()
        reasons = _load(self, state)
        if reasons:
            _load(self, before)
            raise CheckpointError(f"the state of nodes does not fit this AdaptiveModel: {'; '.join(reasons)}.")

    def get_state_dict_full(self) -> dict[str, Any]:
        """`state_dict` and, under "run_state", the state of nodes and phases."""
        return {**self.state_dict(), _FULL: self.run_state_dict()}

    def load_state_dict_full(self, state: Mapping[str, Any]) -> None:
        """The inverse of `get_state_dict_full`; without "run_state" the nodes keep theirs.

        Raises:
            CheckpointError: the state of nodes does not fit. RuntimeError: the parameters do not, as `load_state_dict`.
        """
        self.load_state_dict({name: value for name, value in state.items() if name != _FULL})
        if _FULL in state:
            self.load_run_state_dict(state[_FULL])


def _load(model: AdaptiveModel, state: Mapping[str, Any]) -> list[str]:
    nodes, phases = state.get("nodes"), state.get("phases")
    if not isinstance(nodes, Mapping) or not isinstance(phases, Mapping):
        return ["it has no entries nodes and phases"]
    reasons = load_buffers(model.node_state, nodes, NodeState.NAMES, rows=True)
    return reasons or load_buffers(model.phase_scheduler, phases, _PHASE_STATE, rows=False)
