"""Time until a model has learned so much: seconds of training steps to a given validation loss."""

from __future__ import annotations

import tempfile
from typing import Any

from benchmarks.children import call
from benchmarks.contenders import CONTENDERS, ENGINE, REFERENCE, USUAL, split
from benchmarks.options import Options
from benchmarks.report import Table
from benchmarks.throughput import Entry, stage_of
from benchmarks.workload import Sizes, Workload

#: Steps between two looks at the validation loss (not timed).
EVERY = 5

#: Who needs this many times the reference's time has not made it.
PATIENCE = 5.0

Curve = list[tuple[float, float]]


def measure(entries: list[list[str]], sizes: dict[str, int], text: str, device: str, steps: int) -> dict[str, Any]:
    """In a child: the reference (the first entry) trains `steps` steps; the others until they have its validation loss.

    Whoever has trained for the shortest time so far takes the next turn, so all see the machine in the same state.
    Returns each entry's curve of (seconds of training, validation loss), and the target.
    """
    chosen, model_sizes, workload = [Entry(*entry) for entry in entries], Sizes(**sizes), Workload.load(text)
    models: dict[str, Any] = {}
    curves: dict[str, Curve] = {entry.key: [] for entry in chosen}
    reference = chosen[0].key
    target, limit = -1.0, float("inf")
    with (
        tempfile.TemporaryDirectory() as folder,
        stage_of(chosen, model_sizes, workload, device, folder, EVERY, models=models) as stage,
    ):
        for entry in chosen:
            stage.turn(entry.key)  # the first step, with all that is built in it, is timed nowhere
        running = set(curves)
        while running:
            key = min(sorted(running), key=lambda name: curves[name][-1][0] if curves[name] else 0.0)
            seconds = (curves[key][-1][0] if curves[key] else 0.0) + stage.turn(key).seconds
            curves[key].append((seconds, validation_loss(models[key], workload, device)))
            if key == reference and len(curves[key]) * EVERY >= steps:
                target, limit = min(loss for _, loss in curves[key]), PATIENCE * seconds
            for name in [name for name in running if curves[name]]:
                if min(loss for _, loss in curves[name]) <= target or curves[name][-1][0] >= limit:
                    running.discard(name)
    return {"target": target, "curves": curves}


def validation_loss(model: Any, workload: Workload, device: str, batch: int = 8) -> float:
    """Mean loss a target on the packed validation text, in fp32, whatever the model is trained in; its mode is kept."""
    import torch
    from torch.nn import functional as F

    blocks = torch.from_numpy(workload.validation).long()
    training, total = model.training, 0.0
    model.eval()
    with torch.no_grad():
        for ids_BT in blocks.split(batch):
            ids_BT = ids_BT.to(device)
            logits_NV = model(input_ids=ids_BT).logits[:, :-1].flatten(0, 1).float()
            total += float(F.cross_entropy(logits_NV, ids_BT[:, 1:].flatten(), reduction="sum"))
    model.train(training)
    return total / (blocks.shape[0] * (blocks.shape[1] - 1))


def reached(curve: Curve, target: float) -> tuple[float, int] | None:
    """Seconds and steps to where the curve first came down to `target`, linearly between two looks; None: never."""
    before: tuple[float, float] | None = None
    for number, (seconds, loss) in enumerate(curve):
        if loss <= target:
            share = 1.0 if before is None or before[1] == loss else (before[1] - target) / (before[1] - loss)
            start_s = seconds if before is None else before[0]
            return start_s + (seconds - start_s) * share, 1 + round(EVERY * (number + share))
        before = seconds, loss
    return None


def run(options: Options) -> list[Table]:
    """One table: the reference, this engine in fp32 and at its default, HF Trainer as people run it."""
    default = options.default_precision
    present, missing = split((REFERENCE, ENGINE, USUAL))
    entries = [Entry(name, "32") for name in present]
    if default != "32":
        entries.append(Entry(ENGINE, "auto"))
    found = call(
        "benchmarks.learning:measure", options.threads, entries=[[e.name, e.precision] for e in entries],
        sizes=vars(options.sizes), text=options.workload(options.sizes), device=options.device,
        steps=options.learning_steps,
    )  # fmt: skip
    labels = {e.key: CONTENDERS[e.name].label + (f", {default}" if e.precision == "auto" else "") for e in entries}
    title = f"Time to a validation loss of {found['target']:.3f}: {options.sizes}, fp32 unless said"
    return [learning_table(title, found["curves"], found["target"], labels, missing)]


def learning_table(
    title: str, curves: dict[str, Curve], target: float, labels: dict[str, str], missing: dict[str, str]
) -> Table:
    """Rows of the time that each needed against the first one's."""
    columns = ["contender", "time to the loss, to hand-written packed", "steps", "seconds"]
    table = Table(title, columns, passing=frozenset(columns[3:]))
    first = reached(next(iter(curves.values())), target)
    assert first is not None, "the reference defines the target"
    for key, curve in curves.items():
        needed = reached(curve, target)
        if needed is None:
            cells = [f"not within {curve[-1][0] / first[0]:.1f} (loss {curve[-1][1]:.3f})", "—", "—"]
        else:
            cells = [f"{needed[0] / first[0]:.2f}", f"{needed[1]}", f"{needed[0]:.1f}"]
        table.rows.append([labels[key], *cells])
    table.rows += [[f"{label}: not measured ({reason})", "—", "—", "—"] for label, reason in missing.items()]
    table.notes.append(
        "Seconds of training steps only, after the first step; all with the same initial weights and AdamW at the same "
        f"constant learning rate. The target is the lowest that the first one reached; looked at every {EVERY} steps, on the "
        "same packed text. A contender that pads has fewer targets a step, so more steps for the same loss."
    )
    return table
