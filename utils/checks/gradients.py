"""Whether every part of the model learns: gradients of one backward pass."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

from utils.checks.probe import Probe, check, few
from utils.checks.result import CheckResult

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAME = "gradient flow"

# A matrix whose gradient is this much smaller than the median one stands still beside the others: in fp16, whose range
# spans about 1e-8 to 6e4, it is lost. The project's own choice.
VANISHING_SHARE = 1e-6
# Largest L2 norm of all gradients of a mean loss; healthy models at any stage stay below about 100. The project's own.
EXPLODING_NORM = 1000.0


@check(NAME)
def test_gradient_flow(found: Probe) -> CheckResult:
    """One backward pass on random inputs, in training mode.

    Called as (model, config=None, *, task_spec=None). Fails on NaN or infinite gradients, on trainable parameters that get
    none or, for matrices, exactly zero, and on a total norm above 1000; warns when a matrix gets a millionth of the median.
    Vectors are not judged by size: an attention key's bias has a gradient of zero by construction (softmax does not change
    when all its inputs shift). Frozen parameters are named apart. Tied tensors count once.
    """
    model = found.model
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not trainable:
        return CheckResult(
            NAME, "fail", "No parameter is trainable.", remedy="Set requires_grad=True on the parameters to train."
        )
    model.train()
    with torch.enable_grad():
        loss = found.loss(found.batch(2, min(32, found.max_length)))
        loss.backward()  # type: ignore[no-untyped-call]
    sizes = {
        name: None if p.grad is None else float(p.grad.float().square().mean().sqrt()) for name, p in trainable.items()
    }
    return _judged(found, float(loss.detach()), sizes)


def _judged(found: Probe, loss: float, sizes: Mapping[str, float | None]) -> CheckResult:
    parameters = dict(found.model.named_parameters())
    matrices = {name: size for name, size in sizes.items() if size is not None and parameters[name].dim() > 1}
    bad = [name for name, size in sizes.items() if size is not None and not size < float("inf")]
    dead = [name for name, size in sizes.items() if size is None or (name in matrices and size == 0)]
    middle = statistics.median(matrices.values()) if matrices else 0.0
    weak = [name for name, size in matrices.items() if 0 < size < VANISHING_SHARE * middle]
    norm = sum((size or 0.0) ** 2 * parameters[name].numel() for name, size in sizes.items()) ** 0.5
    measured = {
        "loss_nats": loss, "total_norm": norm, "median_rms": middle, "trainable": len(sizes),
        "frozen": len(parameters) - len(sizes), "without_gradient": dead, "vanishing": weak, "not_finite": bad,
    }  # fmt: skip
    thresholds = {"vanishing_share_of_median": VANISHING_SHARE, "exploding_norm": EXPLODING_NORM}
    figure = None if bad else _figure(sizes)

    def result(verdict: str, summary: str, remedy: str = "") -> CheckResult:
        return CheckResult(NAME, verdict, summary, measured, thresholds, remedy, figure)  # type: ignore[arg-type]

    if bad or not loss < float("inf"):
        return result(
            "fail", f"NaN or infinite: {few(bad) or 'the loss'}.",
            "Look for a division by zero, a log of zero or an overflow in this layer; check the weights for NaN.",
        )  # fmt: skip
    if dead:
        return result(
            "fail", f"{len(dead)} of {len(sizes)} trainable parameters get no gradient: {few(dead)}.",
            "Use them in forward, remove a detach() or no_grad() before them, or freeze them with requires_grad=False.",
        )  # fmt: skip
    if norm > EXPLODING_NORM:
        return result(
            "fail", f"The gradients' total norm is {norm:,.0f}, above {EXPLODING_NORM:,.0f}.",
            "Make initial weights smaller, normalise activations, or scale attention scores by 1/sqrt(head width).",
        )  # fmt: skip
    if weak:
        return result(
            "warn", f"{len(weak)} matrices get less than a millionth of the median gradient: {few(weak)}.",
            "Add residual connections or normalisation, or look for saturated activations before them.",
        )  # fmt: skip
    frozen = f", {measured['frozen']} are frozen" if measured["frozen"] else ""
    return result("pass", f"All {len(sizes)} trainable parameters get gradients{frozen}; total norm {norm:.3g}.")


def _figure(sizes: Mapping[str, float | None]) -> Figure:
    """Bars of the gradients' size (root mean square), one a parameter, in the model's order."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3), dpi=110, layout="constrained")
    axes = figure.subplots()
    values = [size or 0.0 for size in sizes.values()]
    axes.bar(range(len(values)), values, color="#1f4e9c", width=0.9)
    if any(values):
        axes.set_yscale("log")
    axes.set_xlabel("parameters, from input to output")
    axes.set_ylabel("gradient (RMS)")
    axes.set_title("Gradient flow")
    return figure
