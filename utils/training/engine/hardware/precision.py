"""Choose the compute dtype of a device by its hardware. Where "auto" leaves a choice, a run may measure it once
(`utils.training.engine.compute.precision_probe`); a resumed run computes in the format that its checkpoint states."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

import torch

from utils.environment import Device
from utils.errors import ConfigError

Compute = Literal["bf16", "fp16", "32"]
FULL: Final = "32"


@dataclass(frozen=True)
class ResolvedPrecision:
    """The chosen precision, and a notice for the user.

    Attributes:
        compute: format of matrix products; weights, losses and norms are always fp32.
        notice: a sentence when this is not literally what was asked for, else None.
        reason: for "auto", what decided: a few words; else None.
    """

    compute: Compute
    notice: str | None = None
    reason: str | None = None

    def autocast(self, kind: str) -> contextlib.AbstractContextManager[Any]:
        """A context in which operations on the device `kind` compute in this format."""
        if self.compute == "32":
            return contextlib.nullcontext()
        return torch.autocast(kind, dtype=torch.bfloat16 if self.compute == "bf16" else torch.float16)


def resolve_precision(wanted: str, device: Device, resumed: object = None) -> ResolvedPrecision:
    """Turn the config's `precision` into what `device` does.

    "auto" is bf16 where the hardware has it, else fp16 on CUDA, else fp32. "16" is the same, said aloud when it ends at
    fp32. "bf16", "fp16" and "32" are literal.

    Args:
        resumed: the format in which the run that is resumed was computed; "auto" keeps it, where this device has it.
    Raises:
        ConfigError: fp16 on a CPU, which has no scaled fp16 training.
    """
    if wanted == "auto":
        for compute in _formats_of(device):
            if compute == resumed:
                return ResolvedPrecision(compute, reason="as in the checkpoint")
        return replace(_by_hardware(wanted, device), reason="by hardware")
    if wanted == "32":
        return ResolvedPrecision("32")
    if wanted == "bf16":
        notice = (
            None
            if device.has_bf16
            else f"precision='bf16' is emulated on this {device.kind}: slower than '32', and rounded."
        )
        return ResolvedPrecision("bf16", notice)
    if wanted == "fp16":
        if device.kind == "cpu":
            raise ConfigError(
                "precision='fp16' needs a GPU; this machine trains on its CPU. Use 'auto', 'bf16' or '32'."
            )
        return ResolvedPrecision("fp16")
    return _by_hardware(wanted, device)


def _formats_of(device: Device) -> tuple[Compute, ...]:
    half: tuple[Compute, ...] = ("bf16",) if device.has_bf16 else ()
    return (*half, "fp16", FULL) if device.kind == "cuda" else (*half, FULL)


def _by_hardware(wanted: str, device: Device) -> ResolvedPrecision:
    if device.has_bf16:
        return ResolvedPrecision("bf16")
    if device.kind == "cuda":
        return ResolvedPrecision("fp16")
    notice = (
        f"half precision was asked for; this {device.kind} has none in hardware, so fp32 is used."
        if wanted == "16"
        else None
    )
    return ResolvedPrecision("32", notice)


def check_attention(model: Any, device: Device, precision: ResolvedPrecision) -> None:
    """Refuse a transformers model whose attention this device cannot compute, before its kernel does.

    Raises:
        ConfigError: flash attention, the package's, without CUDA or in fp32. torch's own (sdpa) works everywhere.
    """
    if not needs_half_precision(model) or (device.kind == "cuda" and precision.compute != FULL):
        return
    raise ConfigError(
        f"attn_implementation={model.config._attn_implementation!r} of {type(model).__name__} needs a CUDA GPU and half "
        f"precision; this is a {device.kind} computing in {precision.compute}. Use model.set_attn_implementation('sdpa')."
    )


def needs_half_precision(model: Any) -> bool:
    """Whether the attention of a transformers model is a kernel that has no fp32."""
    wanted = getattr(getattr(model, "config", None), "_attn_implementation", None)
    return isinstance(wanted, str) and wanted.startswith("flash_attention")
