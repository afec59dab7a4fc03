"""Nodes of an adaptive model: their state, and how one forward pass changes it.

B rows of a batch, N nodes, H hidden dimensions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from utils.compat.adaptive_phases import NUM_PHASES, Phase

_FIRST_ENERGY, _MOST_ENERGY = 10.0, 50.0

# Identity units: see `AdaptiveDynamics`.
_LEAST_WIDTH = 16  # hidden units below which none can be spared
_IDENTITY_SEED = 0  # fixed, so that weights can be loaded into any model of the same sizes
_LATCH = 7.0  # self-coupling: tanh((1 + 7) h) has stable fixed points at h = +-1 up to rounding, with a gradient of 0
_BIAS_STD = 2.0  # of a feature unit's bias over nodes: about half of the units are saturated in a node
_INCOME = 0.5  # energy that an awake node gains in a pass: rested (above 20) after about 25 passes
INPUT_GAIN = 20.0  # of the initial input weights: u enters a node with a factor of 0.1, and inputs may be from 0 to 1
_GAIN = 4.0  # of the activity: makes up for the mean over H units
_QUIET = -2.5  # bias of the activity: 0.08 without input. Rested, quiet nodes are inspired, which does not tire them


@dataclass
class NodeConfig:
    """Sizes and constants of the nodes; see `AdaptiveConfig`."""

    num_nodes: int = 100
    hidden_dim: int = 64
    spatial_dim: int = 2
    energy_decay: float = 0.01
    activity_threshold: float = 0.5
    connection_radius: float = 1.0
    adaptation_rate: float = 0.1
    device: str = "cpu"
    dtype: str = "float32"


class NodeState(nn.Module):
    """State of nodes that is carried from batch to batch, in buffers outside `state_dict`.

    Attributes:
        hidden_state: h (B, N, H), from 0 but for the identity units (see `AdaptiveDynamics`). energy: e (B, N, 1), from 10.
        activity: a (B, N, 1), from 0.
        position: (B, N, spatial_dim), drawn from N(0, 1). phase_mask: int64 (B, N), the latest phases.
    """

    hidden_state: Tensor
    energy: Tensor
    activity: Tensor
    position: Tensor
    phase_mask: Tensor
    _identity: Tensor
    NAMES = ("hidden_state", "energy", "activity", "position", "phase_mask")

    def __init__(self, config: NodeConfig) -> None:
        super().__init__()
        nodes = config.num_nodes
        for name, width in (
            ("hidden_state", config.hidden_dim), ("energy", 1), ("activity", 1), ("position", config.spatial_dim),
        ):  # fmt: skip
            self.register_buffer(name, torch.zeros(1, nodes, width), persistent=False)
        self.register_buffer("phase_mask", torch.zeros(1, nodes, dtype=torch.long), persistent=False)
        self.register_buffer("_identity", identities(nodes, identity_units(config.hidden_dim)), persistent=False)
        self.reset()

    @property
    def batch_size(self) -> int:
        """Rows that the state has now."""
        return self.hidden_state.shape[0]

    def reset(self) -> None:
        """One row, as at the start; positions are drawn anew."""
        self.hidden_state = torch.zeros_like(self.hidden_state[:1])
        self.hidden_state[0, :, : self._identity.shape[1]] = self._identity
        self.energy = torch.full_like(self.energy[:1], _FIRST_ENERGY)
        self.activity = torch.zeros_like(self.activity[:1])
        self.position = torch.randn_like(self.position[:1])
        self.phase_mask = torch.full_like(self.phase_mask[:1], Phase.ACTIVE)

    def resize(self, rows: int) -> None:
        """Have `rows` rows: copies of row 0 where there were fewer, else the first ones."""
        if rows == self.batch_size:
            return
        for name in self.NAMES:
            value = getattr(self, name)
            grown = value[:1].expand(rows, *value.shape[1:]) if rows > len(value) else value[:rows]
            setattr(self, name, grown.clone())

    def keep(self, hidden_state: Tensor, energy: Tensor, activity: Tensor, phases: Tensor) -> None:
        """Take up the outcome of a forward pass, without its graph."""
        self.hidden_state = hidden_state.detach().to(self.hidden_state.dtype)
        self.energy = energy.detach().to(self.energy.dtype)
        self.activity = activity.detach().to(self.activity.dtype)
        self.phase_mask = phases.detach().expand(self.batch_size, -1).clone()


def identity_units(hidden_dim: int) -> int:
    """Number of hidden units that hold a node's identity: a quarter; none below 16 hidden units."""
    return hidden_dim // 4 if hidden_dim >= _LEAST_WIDTH else 0


def identities(num_nodes: int, units: int) -> Tensor:
    """fp32 (N, units): +1 in one half of a node's units, -1 in the other, the same in every process."""
    generator = torch.Generator().manual_seed(_IDENTITY_SEED)
    order = torch.rand(num_nodes, units, generator=generator).argsort(dim=1)
    return torch.where(order < units // 2, 1.0, -1.0)


class AdaptiveDynamics(nn.Module):
    """The equations of one forward pass; all nodes share their parameters.

    Nodes that share their parameters, their input and their state compute the same activity, and the output layer then sees a
    single number of an input, which does not separate ten classes. So from 16 hidden units on, the first quarter of them are
    identity units: they start at +1 or -1, differently in every node, and their initial weights latch that value. The other
    units start with weights that forget the sample before, and with a random bias that depends on the node's identity, so
    that every node responds to other features of the input. Only initial values do this; the equations are those below.
    """

    def __init__(self, config: NodeConfig) -> None:
        super().__init__()
        self.energy_decay = config.energy_decay
        self.state_update = nn.Linear(config.hidden_dim, config.hidden_dim)
        self.energy_update = nn.Linear(config.hidden_dim, 1)
        self.activity_update = nn.Linear(2, 1)
        self.phase_scales = nn.Parameter(torch.zeros(NUM_PHASES))
        if units := identity_units(config.hidden_dim):
            self._tell_nodes_apart(units)

    @torch.no_grad()
    def _tell_nodes_apart(self, units: int) -> None:
        """Initial weights for `units` identity units, of a node that stays awake most of the time."""
        weight_HH, hidden_dim = self.state_update.weight, self.state_update.in_features
        weight_HH.zero_()
        self.state_update.bias.zero_()
        weight_HH.fill_diagonal_(-1.0)  # h + W_s h = 0: nothing of the sample before
        weight_HH[:units, :units].fill_diagonal_(_LATCH)
        weight_HH[units:, :units] = torch.randn(hidden_dim - units, units) * (_BIAS_STD / units**0.5)
        self.energy_update.weight.zero_()
        self.energy_update.bias.fill_(_INCOME)
        self.activity_update.weight.copy_(torch.tensor([[_GAIN * hidden_dim**0.5, 0.0]]))
        self.activity_update.bias.fill_(_QUIET)

    def forward(
        self, hidden: Tensor, energy: Tensor, anxiety: Tensor, drive: Tensor, phases: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One step of every node.

        Args:
            hidden: h (B, N, H). energy, anxiety: e and A (B, N, 1). drive: u (B, H). phases: int64 (N,).
        Returns:
            the new h, e and a:
            h <- tanh(h + m ((W_s h + b)(1 + s_phase) + 0.1 u)), with m = 0 for nodes asleep, else 1;
            e <- clamp(e (1 - energy_decay) + m (W_e h + b)(1 - 0.1 clamp(A / 10, 0, 1)), 0, 50), with the new h;
            a <- sigmoid(W_a [mean h, mean u] + b), with the new h.
        """
        awake_N1 = (phases != Phase.SLEEP).to(hidden.dtype)[:, None]
        scale_N1 = 1.0 + self.phase_scales[phases][:, None]
        drive_B1H = drive[:, None, :]
        hidden = torch.tanh(hidden + awake_N1 * (self.state_update(hidden) * scale_N1 + 0.1 * drive_B1H))
        damping = 1.0 - 0.1 * (anxiety / 10.0).clamp(0.0, 1.0)
        energy = energy * (1.0 - self.energy_decay) + awake_N1 * self.energy_update(hidden) * damping
        energy = energy.clamp(0.0, _MOST_ENERGY)
        mean_h_BN1 = hidden.mean(dim=-1, keepdim=True)
        mean_u_BN1 = drive_B1H.mean(dim=-1, keepdim=True).expand_as(mean_h_BN1)
        activity = torch.sigmoid(self.activity_update(torch.cat([mean_h_BN1, mean_u_BN1], dim=-1)))
        return hidden, energy, activity


def anxiety_of(state: NodeState) -> Tensor:
    """A = max(0, 5 - e) + 2 a + variance of h over H (unbiased; 0 for H = 1): (B, N, 1)."""
    hidden = state.hidden_state
    variance = hidden.var(dim=-1, keepdim=True) if hidden.shape[-1] > 1 else torch.zeros_like(state.energy)
    return (5.0 - state.energy).clamp(min=0.0) + 2.0 * state.activity + variance


def buffers_of(module: nn.Module, names: tuple[str, ...]) -> dict[str, Tensor]:
    """Copies of the named buffers."""
    return {name: getattr(module, name).detach().clone() for name in names}


def load_buffers(module: nn.Module, saved: Mapping[str, Any], names: tuple[str, ...], *, rows: bool) -> list[str]:
    """Set the named buffers from `saved` where all of them fit.

    Args:
        rows: whether the first dimension may differ, the same for all.
    Returns:
        the reasons why they do not fit; then nothing was changed.
    """
    reasons, counts = [], set()
    for name in names:
        own, value = getattr(module, name), saved.get(name)
        if not isinstance(value, Tensor) or value.dtype.is_floating_point != own.dtype.is_floating_point:
            reasons.append(f"{name}: got a {type(value).__name__}; must be a tensor like {own.dtype}")
        elif value.dim() != own.dim() or value.shape[rows:] != own.shape[rows:] or not value.numel():
            reasons.append(f"{name}: got shape {tuple(value.shape)}, the model has {tuple(own.shape)}")
        elif not own.dtype.is_floating_point and not bool(((value >= 0) & (value < NUM_PHASES)).all()):
            reasons.append(f"{name}: phases are from 0 to {NUM_PHASES - 1}")
        else:
            counts.add(value.shape[0] if rows else 0)
    if not reasons and len(counts) > 1:
        reasons.append(f"its entries have {sorted(counts)} rows; all must have the same")
    if not reasons:
        for name in names:
            own = getattr(module, name)
            setattr(module, name, saved[name].detach().to(device=own.device, dtype=own.dtype, copy=True))
    return reasons
