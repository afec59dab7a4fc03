"""Runs that are killed at random moments until they come to their end, compared with runs that were never killed.

A moment is a number of file operations and forward passes, drawn from a seed, so a storm repeats. `CONFIGURATIONS` covers what
decides when a run saves, validates and ends.
"""

from __future__ import annotations

import functools
import itertools
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tests.kit.crash import Ended, Fuse, in_child, watch_files
from tests.kit.toys import PlainLM, golden_config, plain_lm, tiny_gpt, train_set, validation_set, without_times
from utils.storage import read_json_lines
from utils.training import Callback, Trainer, TrainingResults
from utils.training.engine.checkpointing import saver as saving
from utils.training.engine.checkpointing.store import read_checkpoint

# Saves after every step, whatever the clock says.
_BY_CLOCK = {"save_every_minutes": 1e-9}
# The first validation is the best: no later one improves by so much.
_NO_IMPROVEMENT = {"min_delta": 100.0, "epochs": 6}
_BY_STEPS = {**_NO_IMPROVEMENT, "eval_every": 2, "early_stopping_patience": 2}


def _gpt(seed: int) -> nn.Module:
    return tiny_gpt(seed=seed)


class BrittleLM(PlainLM):
    """Its logits are NaN for rows of one kind, so one step of an epoch is skipped."""

    def forward(self, tokens: Tensor) -> Tensor:
        logits = super().forward(tokens)
        return torch.where((tokens[:, :2] == tokens.new_tensor([9, 12])).all(1)[:, None, None], torch.nan, logits)


class Counts(Callback):
    """Adds `by` at each step, with a state of its own."""

    def __init__(self, by: int) -> None:
        self.by, self.count = by, 0

    def on_step_end(self, step: int, trainer: Trainer, logs: Any = None) -> None:
        self.count += self.by

    def state_dict(self) -> dict[str, int]:
        return {"count": self.count}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.count = state["count"]


def _brittle(seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return BrittleLM()


@dataclass(frozen=True)
class Configuration:
    """One kind of run.

    Attributes:
        changes: to the golden config.
        model: makes the model from a seed.
        overlapping: checkpoints are written by another thread, however small.
    """

    changes: dict[str, Any] = field(default_factory=dict)
    model: Callable[[int], nn.Module] = lambda seed: plain_lm(seed=seed)
    overlapping: bool = False


CONFIGURATIONS = {
    "early stopping by steps": Configuration(_BY_STEPS),
    "early stopping by steps, saved by the clock": Configuration({**_BY_STEPS, **_BY_CLOCK}),
    "early stopping by steps, three best kept": Configuration({**_BY_STEPS, "keep_best_k": 3}),
    "early stopping by steps, overlapping saves": Configuration({**_BY_STEPS, **_BY_CLOCK}, overlapping=True),
    "early stopping within an epoch": Configuration(
        {**_NO_IMPROVEMENT, **_BY_CLOCK, "eval_every": 1, "early_stopping_patience": 3}
    ),
    "early stopping by epochs": Configuration({**_NO_IMPROVEMENT, **_BY_CLOCK, "early_stopping_patience": 1}),
    "early stopping by the training loss": Configuration(
        {**_NO_IMPROVEMENT, **_BY_CLOCK, "monitor": "train/loss", "early_stopping_patience": 1, "eval_every": 2}
    ),
    "dropout and accumulation in a GPT": Configuration(_BY_CLOCK, _gpt),
    "bf16": Configuration({**_BY_CLOCK, "precision": "bf16", "epochs": 3}, _gpt),
    "plateau": Configuration({**_BY_CLOCK, "lr_schedule": "plateau", "eval_every": 2}),
    "SGD, saved every two epochs": Configuration({"optimizer": "sgd", "learning_rate": 0.05, "save_every_n_epochs": 2}),
    "step limit within an epoch": Configuration({**_BY_CLOCK, "max_steps": 7, "eval_every": 2, "lr_schedule": "linear"}),
    "LoRA with dropout": Configuration(
        {**_BY_CLOCK, "epochs": 2, "finetune": "lora", "lora_rank": 2, "lora_dropout": 0.2},
        lambda seed: tiny_gpt(),  # a checkpoint of adapters does not hold the base model's weights
    ),
    "skipped steps": Configuration({**_BY_CLOCK, "on_nonfinite": "skip", "epochs": 3, "eval_every": 2}, _brittle),
}  # fmt: skip


@dataclass
class Outcome:
    """What two runs are compared by.

    Attributes:
        weights, optimizer: tensors by name, of the newest checkpoint.
        values: state, history rows and results, without times.
    """

    weights: dict[str, Tensor]
    optimizer: dict[str, Any]
    values: dict[str, Any]

    def differences(self, other: Outcome) -> list[str]:
        """Names of what differs in any bit."""
        found = [name for name in self.values if repr(self.values[name]) != repr(other.values[name])]
        found += [] if _same(self.weights, other.weights) else ["weights"]
        return found + ([] if _same(self.optimizer, other.optimizer) else ["optimizer"])


def _same(mine: Any, theirs: Any) -> bool:
    if isinstance(mine, Tensor):
        return torch.equal(mine, theirs)
    if isinstance(mine, dict):
        return mine.keys() == theirs.keys() and all(_same(mine[name], theirs[name]) for name in mine)
    if isinstance(mine, (list, tuple)):
        return len(mine) == len(theirs) and all(map(_same, mine, theirs))
    return bool(mine == theirs)


def outcome_of(results: TrainingResults) -> Outcome:
    """The outcome of a finished run."""
    assert results.checkpoint_path is not None
    newest = read_checkpoint(results.checkpoint_path)
    state = results.state.to_dict()
    del state["elapsed_s"], state["energy"]  # of the machine
    values = {name: value for name, value in state.items() if name != "history"}
    values["history"] = without_times(state["history"])
    values["history file"] = without_times(read_json_lines(results.run_dir / "history.jsonl"))
    values["metrics"] = results.final_metrics
    best = results.best_model_path and read_checkpoint(results.best_model_path)["state"]["step"]
    values["step of best.pt"] = best
    values["callbacks"] = newest["callbacks"]
    return Outcome(newest["model"], newest["optimizer"], values)


def run(configuration: Configuration, name: str, fuse: Fuse | None = None) -> Outcome:
    """Train under this name until the end, from wherever it stands. For a child process: with a fuse it may die."""
    folder = Path("runs") / name
    if configuration.overlapping:
        saving.SMALLEST_IN_BACKGROUND_BYTES = 0
    fresh = not list(folder.glob("checkpoints/*_*.pt"))
    model = configuration.model(0 if fresh else 9)  # all that a resumed run has must come from the file
    if fuse is not None:
        watch_files(Path("runs"), fuse.burn)
        model.register_forward_pre_hook(fuse.burn)
    config = golden_config(run_name=name, **configuration.changes)
    trainer = Trainer(model, None, config, callbacks=[Counts(1), Counts(100)])
    return outcome_of(trainer.train(train_set(), validation_set(), resume_from="auto"))


@functools.cache
def warm_up() -> None:
    """Import and set up, once in this process, all that a run needs: children are copies of it, and then start at once."""
    run(CONFIGURATIONS["bf16"], "warm")


def kill_until_the_end(configuration: Configuration, name: str, draw: random.Random, longest: int) -> Iterator[Ended]:
    """Run it in children that are killed at random moments, until one comes to its end; yields how each ended.

    Args:
        longest: most file operations and forward passes before the first kill; one more before each later one, so that a run
            whose start and next save take as many comes to its end.
    """
    for kills in itertools.count():
        moment = draw.randint(1, longest + kills)
        ended = in_child(lambda moment=moment: run(configuration, name, Fuse(moment)))
        yield ended
        if not ended.killed:
            return
