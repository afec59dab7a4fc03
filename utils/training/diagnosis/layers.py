"""Rules about single layers: those without gradient, those that explode, and those whose updates are lost."""

from __future__ import annotations

from typing import Any

import numpy as np

from utils.training.diagnosis.rates import learned
from utils.training.diagnosis.record import RunRecord
from utils.training.diagnosis.rules import Outcome, found, passed, rule, unknown

_HALF = ("bfloat16", "float16")


def _by_tensor(run: RunRecord) -> dict[str, list[dict[str, Any]]]:
    """The rows of each tensor over all looks."""
    tensors: dict[str, list[dict[str, Any]]] = {}
    for look in run.looks:
        for row in look["tensors"]:
            tensors.setdefault(row["name"], []).append(row)
    return tensors


def _listed(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


@rule(
    "gradients reach the layers",
    sees="A large part of the trainable parameters never gets a gradient: detached, or not used.",
    threshold="tensors without any gradient in every look hold 30 % or more of the trainable parameters",
    source="backpropagation: what has no gradient does not affect the loss; small unused parts are common",
)
def gradients_reach(run: RunRecord) -> Outcome:
    if len(run.looks) < 2:
        return unknown("parameters were looked at less than twice")
    tensors = _by_tensor(run)
    without = [name for name, rows in tensors.items() if all(row["grad"] is None for row in rows)]
    total = sum(rows[0]["size"] for rows in tensors.values())
    share = sum(tensors[name][0]["size"] for name in without) / total if total else 0.0
    measured = {"share_without_gradient": share, "tensors": without[:20]}
    if share < 0.3:
        return passed(f"{1 - share:.0%} of the trainable parameters get gradients.", **measured)
    return found(
        f"No gradient reaches {_listed(without)}: {share:.0%} of the trainable parameters.",
        "Look for detach(), torch.no_grad(), .data or a conversion to NumPy between these layers and the "
        "loss; freeze what is not "
        "meant to learn (requires_grad=False).",
        measured, {"share": 0.3}, verdict="fail",
    )  # fmt: skip


@rule(
    "dead layers",
    sees="Layers whose units get no gradient although the layer is used: ReLUs that never fire, scores that are cut off.",
    threshold="95 % of a layer's units without any gradient in every look after the first two, or a whole tensor with "
    "gradients of "
    "exactly zero in each of them",
    source="a ReLU with only negative inputs has gradient 0 and cannot recover; a batch that misses some units is normal",
)
def dead_layers(run: RunRecord) -> Outcome:
    tensors = {name: rows[1:] for name, rows in _by_tensor(run).items() if len(rows) >= 3}
    if not tensors:
        return unknown("parameters were looked at less than three times")
    silent = [
        name
        for name, rows in tensors.items()
        if rows[0]["matrix"]
        and all(row["grad"] is not None for row in rows)
        and all(row.get("silent", 1.0 if row["grad"] == 0 else 0.0) >= 0.95 for row in rows)
    ]
    measured = {"dead": silent[:20], "looks": len(next(iter(tensors.values())))}
    if not silent:
        return passed("Units of every layer get gradients.", **measured)
    if len(silent) == len([name for name, rows in tensors.items() if rows[0]["matrix"]]) and learned(run):
        return passed("All gradients vanish: the model has converged.", **measured)
    return found(
        f"{_listed(silent)}: at least 95 % of the units get no gradient in any look at the run.",
        "Units are dead (ReLU with only negative inputs) or cut off behind them. Lower learning_rate, start "
        "biases at 0, use "
        "LeakyReLU or GELU, and put no activation after the last layer.",
        measured, {"silent_share": 0.95},
    )  # fmt: skip


@rule(
    "exploding layers",
    sees="Weights of a layer grow without bound.",
    threshold="a matrix grows thirtyfold, and the training loss is not below half of its beginning",
    source="relative to the weights at the start; those that start near zero (LoRA, zero-initialised branches) do "
    "not count",
)
def exploding_layers(run: RunRecord) -> Outcome:
    if len(run.looks) < 3 or len(run.losses) < 10:
        return unknown("parameters were looked at less than three times")
    grown = {}
    for name, rows in _by_tensor(run).items():
        first, last = rows[0]["weight"], rows[-1]["weight"]
        if rows[0]["matrix"] and first and last and first > 1e-3 and last > 30 * first:
            grown[name] = last / first
    measured = {"grown": grown}
    if not grown or run.end < 0.5 * run.start:
        return passed("No layer's weights grow out of proportion.", **measured)
    worst = max(grown, key=lambda name: grown[name])
    return found(
        f"The weights of {worst} grew to {grown[worst]:.3g} times their size, and the loss did not fall.",
        "Lower learning_rate, and keep max_grad_norm at 1.", measured, {"growth": 30}, verdict="fail",
    )  # fmt: skip


@rule(
    "updates and number format",
    sees="Updates are too small for the number format of the weights and are lost in rounding.",
    threshold="half of the values (by parameters) that have a gradient do not change in the median step, for weights "
    "in half "
    "precision, or when nothing is learned",
    source="spacing of the format: 2^-8 of a value in bfloat16, 2^-11 in float16, 2^-24 in float32",
)
def lost_updates(run: RunRecord) -> Outcome:
    shares, half = [], False
    for look in run.looks:
        rows = [row for row in look["tensors"] if row["matrix"] and row["grad"] and row["lost"] is not None]
        if rows:
            sizes = np.array([row["size"] for row in rows], dtype=np.float64)
            shares.append(float((np.array([row["lost"] for row in rows]) * sizes).sum() / sizes.sum()))
            half = half or any(row["format"] in _HALF for row in rows)
    if len(shares) < 2:
        return unknown("parameters were looked at less than twice")
    lost = float(np.median(shares))
    measured = {"lost_share": lost, "half_precision": half}
    if lost < 0.5 or not (half or learned(run) is False):
        return passed(f"{lost:.0%} of the updates are lost in rounding.", **measured)
    return found(
        f"In the median step {lost:.0%} of the weights with a gradient do not change: updates are smaller "
        "than the spacing of "
        f"{'half precision' if half else 'fp32'} numbers.",
        "Keep the weights in fp32 (precision='bf16' computes in half precision and keeps them so), or raise learning_rate.",
        measured, {"lost_share": 0.5},
    )  # fmt: skip


@rule(
    "optimizer holds the model",
    sees="Parameters that get gradients are not in the optimizer: they stay as they are.",
    threshold="any that got a gradient in a step that was looked at",
    source="an optimizer changes only what it was given",
)
def optimizer_holds(run: RunRecord) -> Outcome:
    looks = [look for look in run.looks if "left_out" in look]
    if not looks:
        return unknown("no step was looked at")
    tensors: dict[str, int] = {}
    for look in looks:
        tensors |= look["left_out"]
    left_out, trained = sum(tensors.values()), run.facts.get("trained") or 1
    if not left_out:
        return passed("Every trainable parameter is in the optimizer.", left_out=0)
    return found(
        f"{left_out:,} of {trained:,} trainable parameters are not in the optimizer: "
        f"{_listed(list(tensors))}.",
        "Make the optimizer from model.parameters(), or freeze these parameters (requires_grad=False).",
        {"left_out": left_out, "trained": trained},
    )  # fmt: skip
