"""Who competes in `benchmarks.time_to_loss`: whole training recipes, with their learning-rate schedules."""

from __future__ import annotations

import importlib.util
import math
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.turns import Turn

REFERENCE, MUON, AHEAD = "hand-written", "muon", "ahead"
_WARMUP, _DECAY, _CLIP, _BETAS = 100, 0.1, 1.0, (0.9, 0.99)


@dataclass(frozen=True)
class Race:
    """What everyone is given.

    Attributes:
        blocks, validation: ids, shapes (N, T) and (M, T); num_bytes: UTF-8 bytes of the validation's targets.
        folder: for temporary files.
    """

    sizes: Any
    blocks: np.ndarray
    validation: np.ndarray
    num_bytes: int
    folder: str = ""

    def validation_loss(self, model: Any, batch: int = 50) -> float:
        """Mean loss a target, nats, in fp32 and evaluation mode; the model's mode is kept."""
        import torch
        from torch.nn import functional as F

        blocks: Any = torch.from_numpy(self.validation.astype(np.int64))
        training, total = model.training, 0.0
        model.eval()
        with torch.no_grad():
            for ids_BT in blocks.split(batch):
                logits_NV = model(input_ids=ids_BT).logits[:, :-1].flatten(0, 1).float()
                total += float(F.cross_entropy(logits_NV, ids_BT[:, 1:].flatten(), reduction="sum"))
        model.train(training)
        return total / (blocks.shape[0] * (blocks.shape[1] - 1))

    def bits_per_byte(self, loss: float) -> float:
        """The validation loss in bits per byte of its text."""
        return loss / math.log(2) * self.validation[:, 1:].size / self.num_bytes


Recipe = Callable[[Race, Any, float, int, int, Turn], None]


@dataclass(frozen=True)
class Contender:
    """A recipe.

    Attributes:
        run: trains (race, model, peak rate, seed, steps, turn) until `turn.done` says stop.
        tuned_like: contender whose grid search chooses the rate; by default `given_rate`, else the rate in its settings.
        needs: packages.
    """

    label: str
    run: Recipe
    tuned_like: str | None = REFERENCE
    given_rate: float | None = None
    needs: tuple[str, ...] = ()

    def rate(self, grids: dict[str, dict[float, float]]) -> float:
        """Its peak learning rate, once the grids are measured."""
        if self.tuned_like is None:
            return float(_of_starter()["learning_rate"]) if self.given_rate is None else self.given_rate
        losses = grids[self.tuned_like]
        return min(losses, key=lambda rate: losses[rate])

    def starter(self, race: Race, model: Any, rate: float, seed: int, steps: int) -> Callable[[Turn], None]:
        """The recipe as a function of its turn alone."""
        return lambda turn: self.run(race, model, rate, seed, steps, turn)

    def missing(self) -> str | None:
        """Why it cannot take part here; None when it can."""
        absent = [name for name in self.needs if importlib.util.find_spec(name) is None]
        return f"{', '.join(absent)} not installed" if absent else None


def _cosine(step: int, peak: float, steps: int, floor: float) -> float:
    """Learning rate of step number `step` (0-based): linear warm-up, then a cosine down to `floor`."""
    warmup = min(_WARMUP, steps // 4)
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    return floor + 0.5 * (peak - floor) * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def _by_hand(model: Any, turn: Turn, batches: Iterator[tuple[Any, Any]], rate: Callable[[int], float]) -> None:
    """AdamW as nanoGPT sets it up: matrices decay, vectors do not. Each batch: inputs, and the targets of the logits."""
    import torch
    from torch.nn import functional as F

    model.train()
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": _DECAY}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=rate(0), betas=_BETAS, fused=True)
    for step, (inputs_BT, targets_BT) in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = rate(step)
        optimizer.zero_grad()
        logits_BTV = model(input_ids=inputs_BT).logits[:, : targets_BT.shape[1]]
        loss: Any = F.cross_entropy(logits_BTV.flatten(0, 1), targets_BT.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), _CLIP)
        optimizer.step()
        if not turn.done(targets_BT.numel(), loss.detach()):
            return


def packed(race: Race, model: Any, peak: float, seed: int, steps: int, turn: Turn) -> None:
    """The loop that one writes by hand: packed blocks shuffled each epoch, AdamW, cosine to zero."""
    import torch

    blocks_NT = torch.from_numpy(race.blocks.astype(np.int64))
    _by_hand_on(race, model, peak, seed, steps, turn, (blocks_NT, blocks_NT[:, 1:]))


def ahead(race: Race, model: Any, peak: float, seed: int, steps: int, turn: Turn) -> None:
    """The same loop on the same blocks with T targets from T inputs: the last target is the next block's first token."""
    import torch

    ids_N = torch.from_numpy(race.blocks.reshape(-1).astype(np.int64))
    rows, length = (len(ids_N) - 1) // race.sizes.length, race.sizes.length
    inputs_NT = ids_N[: rows * length].view(rows, length)
    _by_hand_on(race, model, peak, seed, steps, turn, (inputs_NT, ids_N[1 : rows * length + 1].view(rows, length)))


def _by_hand_on(
    race: Race, model: Any, peak: float, seed: int, steps: int, turn: Turn, rows: tuple[Any, Any]
) -> None:
    """`_by_hand` on rows of inputs and their targets, shuffled each epoch, with a cosine to zero."""
    import torch

    inputs_NT, targets_NT = rows
    generator = torch.Generator().manual_seed(seed)

    def batches() -> Iterator[tuple[Any, Any]]:
        while True:
            order: Any = torch.randperm(len(inputs_NT), generator=generator)
            for chosen in order[: len(order) // race.sizes.batch * race.sizes.batch].split(race.sizes.batch):
                yield inputs_NT[chosen], targets_NT[chosen]

    _by_hand(model, turn, batches(), lambda step: _cosine(step, peak, steps, 0.0))


def nanogpt(race: Race, model: Any, peak: float, seed: int, steps: int, turn: Turn) -> None:
    """nanoGPT's train.py: windows at random places of the text, T targets from T inputs, 1e-3 down to 1e-4."""
    import torch

    ids_N = torch.from_numpy(race.blocks.reshape(-1).astype(np.int64))
    length, generator = race.sizes.length, torch.Generator().manual_seed(seed)

    def batches() -> Iterator[tuple[Any, Any]]:
        while True:
            starts = torch.randint(len(ids_N) - length, (race.sizes.batch,), generator=generator)
            windows = torch.stack([ids_N[start : start + length + 1] for start in starts.tolist()])
            yield windows[:, :-1], windows[:, 1:]

    _by_hand(model, turn, batches(), lambda step: _cosine(step, peak, steps, peak / 10))


def hf_trainer(race: Race, model: Any, peak: float, seed: int, steps: int, turn: Turn) -> None:
    """transformers' Trainer on the same packed blocks, AdamW, its cosine schedule."""
    from datasets import Dataset
    from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments, default_data_collator

    targets = race.sizes.batch * (race.sizes.length - 1)

    class Steps(TrainerCallback):  # type: ignore[misc, unused-ignore]
        """Ends a span after each step."""

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            control.should_training_stop = not turn.done(targets)

    blocks = race.blocks.astype(np.int64)
    arguments = TrainingArguments(
        output_dir=tempfile.mkdtemp(dir=race.folder), per_device_train_batch_size=race.sizes.batch, max_steps=steps,
        learning_rate=peak, lr_scheduler_type="cosine", warmup_steps=min(_WARMUP, steps // 4), weight_decay=_DECAY,
        adam_beta1=_BETAS[0], adam_beta2=_BETAS[1], max_grad_norm=_CLIP, use_cpu=True, seed=seed, report_to="none",
        save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    data = Dataset.from_dict({"input_ids": blocks, "labels": blocks})
    trainer = Trainer(model, arguments, train_dataset=data, data_collator=default_data_collator, callbacks=[Steps()])
    trainer.remove_callback(PrinterCallback)
    trainer.train()


def _engine(settings: Callable[[], dict[str, Any]]) -> Recipe:
    """This engine with these settings, asked for when it starts; everything else is its default."""

    def run(race: Race, model: Any, peak: float, seed: int, steps: int, turn: Turn) -> None:
        from utils.data import TokenBlocks
        from utils.training import Callback, Trainer, TrainingConfig

        class Steps(Callback):
            """Ends a span after each update; on the optimizer, so that nobody waits for numbers that are not asked for."""

            def on_train_begin(self, trainer: Any, logs: dict[str, Any] | None = None) -> None:
                def updated(*_: Any) -> None:
                    if not turn.done(race.sizes.batch * (race.sizes.length - 1)):
                        trainer.request_stop("measured")

                trainer.optimizer.register_step_post_hook(updated)

        config = TrainingConfig(**{
            "epochs": 100_000, "max_steps": steps, "batch_size": race.sizes.batch, "learning_rate": peak, "random_seed": seed,
            "output_dir": tempfile.mkdtemp(dir=race.folder), **settings(),
        })  # fmt: skip
        blocks = TokenBlocks(np.ascontiguousarray(race.blocks))
        Trainer(model, training_config=config, callbacks=[Steps()]).train(blocks)

    return run


def _same_schedule(optimizer: str) -> Recipe:
    """This engine, set as the hand-written loop is."""

    def run(race: Race, model: Any, peak: float, seed: int, steps: int, turn: Turn) -> None:
        settings = {
            "optimizer": optimizer, "warmup_steps": min(_WARMUP, steps // 4), "weight_decay": _DECAY, "betas": _BETAS,
            "max_grad_norm": _CLIP, "min_lr_ratio": 0.0,
        }  # fmt: skip
        _engine(lambda: settings)(race, model, peak, seed, steps, turn)

    return run


def _of_starter() -> dict[str, Any]:
    """How the starter preset trains, batch and length apart."""
    from utils.ui.presets import PRESETS

    config = PRESETS["starter"].setup().training_config
    return {name: getattr(config, name) for name in ("learning_rate", "weight_decay", "betas", "lr_schedule", "optimizer")}


CONTENDERS: dict[str, Contender] = {
    REFERENCE: Contender("hand-written packed loop, AdamW, cosine", packed),
    AHEAD: Contender("the same loop, T targets from T inputs", ahead),
    "nanogpt": Contender("nanoGPT-like loop, its settings", nanogpt, None, 1e-3),
    "hf": Contender("HF Trainer, packed, AdamW, cosine", hf_trainer, needs=("accelerate", "datasets")),
    "default": Contender("this engine, as the starter preset trains", _engine(_of_starter), None),
    "adamw": Contender("this engine, AdamW, cosine", _same_schedule("adamw")),
    MUON: Contender("this engine, Muon, cosine", _same_schedule("muon"), MUON),
}
