"""Phases of nodes, and the rules by which nodes change them: vectorised, with draws from torch's generator.

N nodes, B rows of a batch. All rows of a batch share one phase for each node.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum

import torch
from torch import Tensor, nn

from utils.errors import ConfigError


class Phase(IntEnum):
    """Phase of a node. Asleep, it neither takes up input nor spends energy on it."""

    ACTIVE = 0
    SLEEP = 1
    INTERACTIVE = 2
    INSPIRED = 3


NUM_PHASES = len(Phase)
_ANXIETY_ALPHA = 0.3
# Change of the restorative need in each step, by phase.
_NEED = {Phase.ACTIVE: 0.05, Phase.SLEEP: -0.1, Phase.INTERACTIVE: 0.03, Phase.INSPIRED: 0.0}
_ANXIOUS = 5.0
_ANXIOUS_NEED = 0.7  # anxious nodes recover, and tire, by this factor
_TIRED = 0.6
_EXHAUSTED, _RESTED = 2.0, 20.0  # energy
_IDLE, _BUSY = 0.3, 0.7  # activity


class PhaseScheduler(nn.Module):
    """Moves N nodes between the four phases, once a forward pass.

    For each node the first rule that applies decides; its phase is drawn from softmax(p / temperature) of the rule's p:

    | rule | p |
    |---|---|
    | with probability `exploration` | the same for all phases |
    | anxiety above 5 | 1 for SLEEP |
    | restorative need above 0.6, not asleep | 1 for SLEEP |
    | energy below 2 | 1 for SLEEP |
    | energy above 20 and activity below 0.3 | 1 for INSPIRED |
    | activity above 0.7 | 1 for INTERACTIVE |
    | otherwise | the transition matrix: 0.8 to stay, the rest spread over the others by `phase_weights` |

    Energy, activity and anxiety of a node are those of the batch's last row. Anxiety is an exponential average (alpha 0.3);
    the restorative need, from 0 to 1, grows by 0.05 in ACTIVE and 0.03 in INTERACTIVE, falls by 0.1 in SLEEP, and moves by
    0.7 of that while the node is anxious. Sleep quality is 1 - anxiety / 10 at a node's latest sleep, 1 before the first.

    Nothing is read back from the device. Draws come from torch's global generator, so a seed repeats them and checkpoints
    hold their position. The state is in buffers outside `state_dict`; `run_state_dict` has it for checkpoints.

    Args:
        num_nodes: N. phase_weights: by phase name, not negative; None: the same for all.
        temperature: of the softmax; smaller values follow the rules more strictly.
    """

    phases: Tensor
    anxiety: Tensor
    restorative_need: Tensor
    sleep_quality: Tensor
    transitions: Tensor

    def __init__(
        self, num_nodes: int, phase_weights: Mapping[str, float] | None = None, temperature: float = 1.0,
        exploration: float = 0.1, circadian_period: int = 100,
    ) -> None:  # fmt: skip
        super().__init__()
        if not temperature > 0 or not 0 <= exploration <= 1:
            raise ConfigError(
                f"temperature must be above 0 and exploration from 0 to 1; got {temperature!r} and {exploration!r}."
            )
        self.num_nodes, self.temperature, self.exploration = num_nodes, temperature, exploration
        self.circadian_period = circadian_period
        self.register_buffer("transitions", transition_matrix(phase_weights), persistent=False)
        self.register_buffer("phases", torch.empty(num_nodes, dtype=torch.long), persistent=False)
        for name in ("anxiety", "restorative_need", "sleep_quality"):
            self.register_buffer(name, torch.empty(num_nodes), persistent=False)
        self.reset()

    def reset(self) -> None:
        """Reset all nodes to ACTIVE, calm and rested."""
        self.phases = torch.full_like(self.phases, Phase.ACTIVE)
        self.anxiety = torch.zeros_like(self.anxiety)
        self.restorative_need = torch.zeros_like(self.restorative_need)
        self.sleep_quality = torch.ones_like(self.sleep_quality)

    @torch.no_grad()
    def step(self, energy: Tensor, activity: Tensor, anxiety: Tensor) -> Tensor:
        """Draw every node's next phase.

        Args:
            energy, activity, anxiety: (B, N, 1) or (N,); of batches the last row counts.
        Returns:
            int64 (N,): the phases, also kept as `phases`.
        """
        energy_N, activity_N, anxiety_N = (_last_row(value, self.anxiety) for value in (energy, activity, anxiety))
        self.anxiety = self.anxiety + _ANXIETY_ALPHA * (anxiety_N - self.anxiety)
        target_N4 = self._rules(energy_N, activity_N)
        probabilities_N4 = torch.softmax(target_N4 / self.temperature, dim=1)
        self.phases = torch.multinomial(probabilities_N4, 1).squeeze(1)
        self._recover()
        return self.phases

    def _rules(self, energy_N: Tensor, activity_N: Tensor) -> Tensor:
        """p of the first rule that applies, (N, 4)."""
        explores = torch.rand_like(self.anxiety) < self.exploration
        tired = (self.restorative_need > _TIRED) & (self.phases != Phase.SLEEP)
        sleeps = (self.anxiety > _ANXIOUS) | tired | (energy_N < _EXHAUSTED)
        inspired = (energy_N > _RESTED) & (activity_N < _IDLE)
        target_N4 = self.transitions[self.phases]
        # The last one that is set wins, so the rules come from the last to the first.
        for applies, phase in (
            (activity_N > _BUSY, Phase.INTERACTIVE), (inspired, Phase.INSPIRED), (sleeps, Phase.SLEEP),
        ):  # fmt: skip
            only = torch.zeros_like(target_N4)
            only[:, phase] = 1.0
            target_N4 = torch.where(applies[:, None], only, target_N4)
        return torch.where(explores[:, None], torch.full_like(target_N4, 1.0 / NUM_PHASES), target_N4)

    def _recover(self) -> None:
        change = self.anxiety.new_tensor([_NEED[phase] for phase in Phase])[self.phases]
        change = torch.where(self.anxiety > _ANXIOUS, change * _ANXIOUS_NEED, change)
        self.restorative_need = (self.restorative_need + change).clamp(0.0, 1.0)
        asleep = self.phases == Phase.SLEEP
        self.sleep_quality = torch.where(asleep, 1.0 - (self.anxiety / 10.0).clamp(0.0, 1.0), self.sleep_quality)

    def get_active_mask(self) -> Tensor:
        """bool (N,): which nodes are awake."""
        return self.phases != Phase.SLEEP


def transition_matrix(weights: Mapping[str, float] | None = None) -> Tensor:
    """fp32 (4, 4), row: phase now, column: next phase. 0.8 to stay; the rest goes to the others in proportion to `weights`,
    equally where all of theirs are 0."""
    row = torch.tensor([float((weights or {}).get(phase.name.lower(), 0.0 if weights else 1.0)) for phase in Phase])
    matrix = row.repeat(NUM_PHASES, 1).fill_diagonal_(0.0)
    empty = matrix.sum(1, keepdim=True) == 0
    matrix = torch.where(empty, torch.ones_like(matrix).fill_diagonal_(0.0), matrix)
    return 0.2 * matrix / matrix.sum(1, keepdim=True) + 0.8 * torch.eye(NUM_PHASES)


def _last_row(value: Tensor, like: Tensor) -> Tensor:
    return value.detach().reshape(-1, like.numel())[-1].to(like.dtype)
