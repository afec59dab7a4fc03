"""Whether torch.compile keeps a model's results, what it gains, and how often it has to leave the compiled program."""

from __future__ import annotations

import copy
import statistics
import time
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from utils.adapters.forward import ModelCall
from utils.check_result import CheckResult, Limit
from utils.checks.checking import check
from utils.checks.limits import OWN_CHOICE
from utils.checks.probe import Probe, relative
from utils.environment import detect_device
from utils.errors import ConfigError, first_line

NAME = "compile"

# Relative difference of logits and gradients that fused kernels may cause: other orders of summation in fp32, with the
# exponentials of attention between them. torch.compile's own accuracy test takes 1e-3 (torch._dynamo.utils.same).
LARGEST_DIFFERENCE = 1e-2
_ROWS, _LENGTH, _REPETITIONS = 4, 32, 5

#: Limits of the measured values, and where each is from.
_LIMITS = tuple(
    Limit(name, at_most=LARGEST_DIFFERENCE,
          source=f"torch.compile's own accuracy test takes 0.001 for single operations; {OWN_CHOICE}")
    for name in ("logits_difference", "gradient_difference")
)  # fmt: skip


@check(NAME, limits=_LIMITS)
def test_compile(found: Probe, mode: str = "default", repetitions: int = _REPETITIONS) -> CheckResult:
    """Compile a copy as training does, and compare logits, gradients and times with those of the model as it is.

    Called as (model, config=None, *, task_spec=None, tokenizer=None, mode="default", repetitions=5). In training mode without
    dropout, in fp32. Fails when results differ by more than 1 %; warns when the model cannot be compiled. "Not run" without a
    compiler. Takes up to a minute. Times are medians of alternating repetitions, measured and not judged.
    """
    from utils.training.engine.compute.compiling import check_compiler  # heavy, and the other tiers do without it

    try:
        check_compiler(mode, detect_device())
    except ConfigError as error:
        return CheckResult(NAME, "not run", f"Nothing was compiled: {error}", remedy=str(error))
    model = _without_dropout(copy.deepcopy(found.model).float())
    eager = replace(found, model=model, call=ModelCall(model))
    compiled = replace(found, model=model, call=ModelCall(model, compile_mode=mode))
    batch = found.batch(_ROWS, min(_LENGTH, found.max_length), seed=22)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    expected = _step(eager, batch)
    model.load_state_dict(state)  # running statistics
    torch._dynamo.utils.counters.clear()
    began = time.perf_counter()
    try:
        got = _step(compiled, batch)
    except Exception as error:
        if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            raise
        return CheckResult(
            NAME, "warn", f"The model cannot be compiled: {first_line(error, with_class=True)}",
            remedy="Train with compile_mode=None, or take what cannot be compiled out of forward.",
        )  # fmt: skip
    seconds = time.perf_counter() - began
    breaks = sum(torch._dynamo.utils.counters["graph_break"].values())
    times = _times(eager, compiled, batch, repetitions)
    measured: dict[str, Any] = {
        "logits_difference": relative(expected[0], got[0]), "gradient_difference": relative(expected[1], got[1]),
        "graph_breaks": breaks, "compile_seconds": seconds, "eager_ms": 1000 * times[0], "compiled_ms": 1000 * times[1],
        "speed_up": times[0] / times[1], "device": str(found.device),
    }  # fmt: skip
    thresholds = {"logits_difference": LARGEST_DIFFERENCE, "gradient_difference": LARGEST_DIFFERENCE}
    summary = (
        f"Compiled in {seconds:.0f} s with {breaks} graph breaks; {measured['speed_up']:.2f} times as fast; results differ by "
        f"{max(measured['logits_difference'], measured['gradient_difference']):.1g}."
    )
    if not (
        measured["logits_difference"] <= LARGEST_DIFFERENCE and measured["gradient_difference"] <= LARGEST_DIFFERENCE
    ):
        return CheckResult(
            NAME, "fail", f"The compiled model gives other results. {summary}", measured, thresholds,
            "Train with compile_mode=None. Look for state that forward changes, and for randomness in it.",
        )  # fmt: skip
    return CheckResult(NAME, "pass", summary, measured, thresholds)


def _without_dropout(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)):
            module.p = 0.0
        if isinstance(module, (nn.MultiheadAttention, nn.RNNBase)):
            module.dropout = 0.0
    return model.train()


def _step(twin: Probe, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Logits and the gradient of all parameters as one vector."""
    for parameter in twin.model.parameters():
        parameter.grad = None
    with torch.enable_grad():
        logits = twin.call(batch)
        # Any smooth function of the logits will do; it weighs each of them differently.
        weights = torch.linspace(0.5, 1.5, logits.numel(), device=logits.device).view_as(logits)
        (logits.float().tanh() * weights).mean().backward()  # type: ignore[no-untyped-call]
    parts = [p.grad.flatten() for p in twin.model.parameters() if p.grad is not None]
    return logits.detach(), torch.cat(parts) if parts else torch.zeros(1)


def _times(eager: Probe, compiled: Probe, batch: dict[str, Tensor], repetitions: int) -> tuple[float, float]:
    """Median seconds of both, measured alternately so that they see the same load."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(max(1, repetitions)):
        for known, twin in zip(times, (eager, compiled), strict=True):
            began = time.perf_counter()
            _step(twin, batch)
            if twin.device.type == "cuda":
                torch.cuda.synchronize(twin.device)
            known.append(max(time.perf_counter() - began, 1e-9))
    return statistics.median(times[0]), statistics.median(times[1])
