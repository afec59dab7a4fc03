"""Compare losses and gradients under autocast with fp32, and find activations outside fp16's range."""

from __future__ import annotations

import contextlib
import copy
import math
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from utils.adapters.forward import ModelCall
from utils.check_result import CheckResult, Finding, Limit
from utils.checks.checking import check
from utils.checks.limits import OWN_CHOICE
from utils.checks.probe import Probe, few
from utils.errors import first_line

NAME = "half precision"

# fp16's largest number, its smallest normal and its smallest subnormal (IEEE 754 binary16).
_FP16_MAX, _FP16_TINY = 65504.0, 2.0**-24
# torch.amp.GradScaler's initial scale.
_LOSS_SCALE = 2.0**16
# bf16 rounds to 2^-8 of a value, so a gradient of many terms keeps its direction to about 1 %. Below this cosine, half of
# the update is noise. The project's own choice.
LEAST_COSINE = 0.9
# Share of the fp32 loss by which the loss in bf16 may differ: rounding moves it by about 1 %. The project's own choice.
LARGEST_LOSS_CHANGE = 0.1
# Share of the gradients that are not zero in fp32 and are in fp16 although the loss is scaled; Micikevicius et al. 2018 (arXiv
# 1710.03740) lose 5 % without scaling and train.
LARGEST_UNDERFLOW = 0.5
_ROWS, _LENGTH, _REPETITIONS = 8, 64, 5


@dataclass
class _Range:
    """Values of layers with a matrix of weights, as fp16 would see them."""

    values: int = 0
    overflowing: int = 0
    largest: float = 0.0
    layers: list[str] = field(default_factory=list)


#: Limits of the measured values, and where each is from.
_LIMITS = (
    Limit("bf16_loss_change", at_most=LARGEST_LOSS_CHANGE,
          source=f"rounding to 8 bits moves the loss by about 1 %; {OWN_CHOICE}"),
    Limit("bf16_gradient_cosine", at_least=LEAST_COSINE,
          source=f"below it half of the update is rounding noise; {OWN_CHOICE}"),
    Limit("largest_layer_output", at_most=_FP16_MAX, source="largest number in fp16 (IEEE 754)"),
    Limit("gradient_underflow_share", at_most=LARGEST_UNDERFLOW,
          source="training works with 5 % lost (Micikevicius et al. 2018)"),
)  # fmt: skip


@check(NAME, limits=_LIMITS)
def test_half_precision(found: Probe, repetitions: int = _REPETITIONS) -> CheckResult:
    """Loss and gradient of a batch under bf16 autocast against fp32, and the share of values outside fp16's range.

    Called as (model, config=None, *, task_spec=None, tokenizer=None, repetitions=5). In evaluation mode, on a copy with
    fp32 weights. Warns when the model raises under autocast, when the bf16 loss differs by more than 10 % or the gradient's
    direction by a cosine below 0.9, when outputs of linear and convolutional layers exceed 65,504, and when half of the
    gradient is lost to underflow at the usual loss scale. Times are medians of alternating repetitions, measured and not
    judged.
    """
    model = copy.deepcopy(found.model).float()
    twin = replace(found, model=model, call=ModelCall(model))
    model.eval()
    if not any(parameter.requires_grad for parameter in model.parameters()):
        return CheckResult(NAME, "not run", "Every parameter is frozen: there is no gradient.", remedy="Nothing to do.")
    batch = twin.batch(_ROWS, min(_LENGTH, found.max_length), seed=21)
    values = _Range()
    with _watched(model, values):
        loss, gradient = _step(twin, batch, None)
    magnitudes = gradient.abs()
    nonzero = magnitudes > 0
    lost = float((nonzero & (magnitudes * _LOSS_SCALE < _FP16_TINY)).sum() / nonzero.sum().clamp_min(1))
    measured: dict[str, Any] = {
        "fp32_loss": loss, "largest_layer_output": values.largest,
        "fp16_overflow_share": values.overflowing / max(1, values.values),
        "gradient_underflow_share_unscaled": float((nonzero & (magnitudes < _FP16_TINY)).sum() / nonzero.sum().clamp_min(1)),
        "gradient_underflow_share": lost, "largest_gradient": float(magnitudes.max()), "device": str(found.device),
    }  # fmt: skip
    thresholds = {
        "bf16_loss_change": LARGEST_LOSS_CHANGE, "bf16_gradient_cosine": LEAST_COSINE, "largest_layer_output": _FP16_MAX,
        "gradient_underflow_share": LARGEST_UNDERFLOW,
    }  # fmt: skip
    findings = list(_autocast(twin, batch, loss, gradient, measured, repetitions))
    findings += list(_range(values, measured))
    summary = (
        f"bf16 changes the loss by {measured.get('bf16_loss_change', math.nan):.2%} (cosine of the gradients "
        f"{measured.get('bf16_gradient_cosine', math.nan):.3f}); largest layer output {values.largest:.3g} of fp16's 65,504; "
        f"{lost:.1%} of the gradient is lost in fp16 at a loss scale of 65,536."
    )
    return CheckResult(NAME, "pass", summary, measured, thresholds).with_findings(findings, {})


#: The documented name of the same check.
test_amp_speedup_benchmark = test_half_precision


def _autocast(
    twin: Probe, batch: dict[str, Tensor], loss: float, gradient: Tensor, measured: dict[str, Any], repetitions: int
) -> Iterator[Finding]:
    try:
        other, other_gradient = _step(twin, batch, torch.bfloat16)
    except Exception as error:  # noqa: BLE001 - any error of the model is what is reported
        yield Finding(
            "autocast error", "warn", f"Under bf16 autocast the model raises {first_line(error, with_class=True)}",
            "Create tensors in the format of the activations (x.new_zeros, .to(x.dtype)), or train with precision='32'.",
        )  # fmt: skip
        return
    norms = float(gradient.norm() * other_gradient.norm())
    cosine = float(gradient @ other_gradient) / norms if norms else 1.0
    change = abs(other - loss) / max(abs(loss), 1e-6)
    times = _times(twin, batch, repetitions)
    measured |= {
        "bf16_loss": other, "bf16_loss_change": change, "bf16_gradient_cosine": cosine,
        "fp32_ms": 1000 * times[0], "bf16_ms": 1000 * times[1], "bf16_speed_up": times[0] / times[1],
    }  # fmt: skip
    # The least that a loss is judged against, so that a loss of nearly zero does not make rounding a fault.
    if not abs(other - loss) <= LARGEST_LOSS_CHANGE * max(abs(loss), 1.0):
        yield Finding(
            "bf16 loss", "warn", f"In bf16 the loss is {other:.4g} instead of {loss:.4g}.",
            "Keep sums, exponentials and normalisations in fp32 (torch.autocast(enabled=False) around them).",
        )  # fmt: skip
    if not cosine >= LEAST_COSINE:
        yield Finding(
            "bf16 gradient", "warn", f"In bf16 the gradient has a cosine of {cosine:.2f} with that in fp32.",
            "Scale activations down before the layers that cancel large values, or train with precision='32'.",
        )  # fmt: skip


def _range(values: _Range, measured: dict[str, Any]) -> Iterator[Finding]:
    if values.overflowing:
        yield Finding(
            "fp16 overflow", "warn",
            f"{measured['fp16_overflow_share']:.2g} of the outputs of {few(values.layers)} exceed fp16's 65,504 (largest "
            f"{values.largest:.3g}).",
            "Train in bf16 or fp32, or normalise what goes into these layers.",
        )  # fmt: skip
    if measured["gradient_underflow_share"] > LARGEST_UNDERFLOW:
        yield Finding(
            "fp16 underflow", "warn",
            f"{measured['gradient_underflow_share']:.0%} of the gradient is below fp16's smallest "
            "number even at a loss scale of "
            "65,536.",
            "Train in bf16 or fp32.",
        )  # fmt: skip


def _step(twin: Probe, batch: dict[str, Tensor], dtype: torch.dtype | None) -> tuple[float, Tensor]:
    """Loss and the gradient of all parameters as one vector."""
    for parameter in twin.model.parameters():
        parameter.grad = None
    kind = twin.device.type
    context = contextlib.nullcontext() if dtype is None else torch.autocast(kind, dtype=dtype)
    with torch.enable_grad(), context:
        loss = twin.loss(batch)
        loss.backward()  # type: ignore[no-untyped-call]
    parts = [p.grad.float().flatten() for p in twin.model.parameters() if p.grad is not None]
    return float(loss.detach()), torch.cat(parts) if parts else torch.zeros(1)


def _times(twin: Probe, batch: dict[str, Tensor], repetitions: int) -> tuple[float, float]:
    """Median seconds of a step in fp32 and in bf16, measured alternately so that both see the same load."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(max(1, repetitions)):
        for known, dtype in zip(times, (None, torch.bfloat16), strict=True):
            began = time.perf_counter()
            _step(twin, batch, dtype)
            if twin.device.type == "cuda":
                torch.cuda.synchronize(twin.device)
            known.append(max(time.perf_counter() - began, 1e-9))
    return statistics.median(times[0]), statistics.median(times[1])


@contextlib.contextmanager
def _watched(model: nn.Module, values: _Range) -> Iterator[None]:
    """Count what layers with a matrix of weights return: what autocast computes in half precision."""

    def look(name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor) and output.is_floating_point() and output.numel():
                sizes = output.detach().abs()
                sizes = sizes[sizes.isfinite()]
                values.values += sizes.numel()
                values.largest = max(values.largest, float(sizes.max()) if sizes.numel() else 0.0)
                if count := int((sizes > _FP16_MAX).sum()):
                    values.overflowing += count
                    values.layers.append(name)

        return hook

    hooks = [
        module.register_forward_hook(look(name or type(module).__name__))
        for name, module in model.named_modules()
        if isinstance(getattr(module, "weight", None), Tensor) and module.weight.dim() >= 2
        and not isinstance(module, nn.Embedding)
    ]  # fmt: skip
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
