"""What settings mean together: spellings of other systems, and values that contradict each other."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

from utils.errors import Problem
from utils.schema import path_text, shown
from utils.training.optimizer_kinds import OPTIMIZERS

Precision = Literal["auto", "16", "bf16", "fp16", "32"]

# Spellings of other systems. "16" is half precision as the device has it; "bf16", "fp16" and "32" are literal.
_PRECISIONS: Mapping[Any, Precision] = {
    16: "16", "16-mixed": "16", "bf16-mixed": "bf16", "bfloat16": "bf16", "fp16-mixed": "fp16", "float16": "fp16",
    32: "32", "32-true": "32", "fp32": "32", "float32": "32",
}  # fmt: skip

# Metrics that grow as the model improves; every other one shrinks.
_GROWING = ("accuracy", "f1", "f1_macro", "f1_micro", "r2")
_FALLING = ("loss", "perplexity", "mse", "rmse", "mae")

_WINDOWS_NAMES = {"con", "prn", "aux", "nul", *(f"com{i}" for i in range(1, 10)), *(f"lpt{i}" for i in range(1, 10))}


def run_name_problem(name: str) -> str | None:
    """Explain why `name` is not a valid folder name for a run on every system; None when it is."""
    slug = re.sub(r"[^\w.-]+", "-", name).strip("-.")[:100] or "run"
    if not re.fullmatch(r"[^\W_][\w .+=-]*", name) or name.endswith((".", " ")) or ".." in name:
        return f"must start with a letter or digit and hold only letters, digits, space and . _ - + =; try {slug!r}"
    if len(name.encode()) > 100:
        return f"must have at most 100 bytes; try {slug[:40]!r}"
    if name.split(".")[0].lower() in _WINDOWS_NAMES:
        return f"is reserved on Windows; try {'run-' + slug!r}"
    return None


def translated(values: Mapping[str, Any]) -> tuple[dict[str, Any], list[Problem]]:
    """Values in this project's spelling, with what follows from them: input of `TrainingConfig`, before its checks.

    Returns:
        The values, and what is wrong with them that no check of a single field would find.
    """
    values = dict(values)
    problems: list[Problem] = []
    for name in ("checkpoint_dir", "output_dir", "export_dir"):
        if name in values:
            values[name] = path_text(values[name])
            if isinstance(values[name], str) and "\0" in values[name]:
                problems.append(Problem(name, f"got {shown(values[name])}; a path cannot hold a NUL character"))
    for name in ("betas", "export_formats"):
        if isinstance(values.get(name), str):
            problems.append(Problem(name, f"got {shown(values[name])}; must be a list"))
    targets = values.get("lora_targets")
    if isinstance(targets, str) and targets != "auto":
        values["lora_targets"] = tuple(name.strip() for name in targets.split(",") if name.strip())
    elif isinstance(targets, list):
        values["lora_targets"] = tuple(targets)
    precision = values.get("precision")
    if isinstance(precision, (str, int)) and not isinstance(precision, bool) and precision in _PRECISIONS:
        values["precision"] = _PRECISIONS[precision]
    if "use_amp" in values:
        problems += _translate_amp(values)
    if isinstance(values.get("monitor"), str):
        values["monitor"] = re.sub(r"^(train|val)_", r"\1/", values["monitor"])
        if re.fullmatch(r"[A-Za-z0-9_.]+", values["monitor"]):
            meant = f"val/{values['monitor']}"
            expected = f"expected val/ or train/ before the metric's name; did you mean {meant}?"
            problems.append(Problem("monitor", f"got {shown(values['monitor'])}; {expected}", meant))
    if values.get("warmup_steps") is not None and "warmup_ratio" not in values:
        values["warmup_ratio"] = None
    elif values.get("warmup_ratio") is None and values.get("warmup_steps") is None and "warmup_ratio" in values:
        values["warmup_ratio"] = 0.0
    if "save_every_n_epochs" in values:
        values.setdefault("keep_last_n", None)  # checkpoints that were asked for are not removed unasked
    run_name = values.get("run_name")
    if isinstance(run_name, str) and (reason := run_name_problem(run_name)):
        problems.append(Problem("run_name", f"got {shown(run_name)}; {reason}"))
    return values, problems


def contradictions(values: Mapping[str, Any]) -> list[Problem]:
    """Problems of values that are valid one by one.

    Args:
        values: of every field of `TrainingConfig`.
    """
    problems = []
    if values["warmup_steps"] is not None and values["warmup_ratio"] is not None:
        both = f"{values['warmup_steps']} given together with warmup_ratio={values['warmup_ratio']}"
        problems.append(Problem("warmup_steps", f"{both}; set one of the two"))
    max_steps = values["max_steps"]
    if max_steps is not None and values["warmup_steps"] is not None and values["warmup_steps"] > max_steps:
        both = f"got {values['warmup_steps']}, more than max_steps={max_steps}"
        problems.append(Problem("warmup_steps", f"{both}: the learning rate would never arrive"))
    unsharded_because = OPTIMIZERS[values["optimizer"]].unsharded_because
    if unsharded_because is not None and values["strategy"] == "fsdp":
        problems.append(
            Problem("optimizer", f"got {values['optimizer']!r} with strategy='fsdp', which {unsharded_because}; set "
                    "optimizer='adamw', or strategy='ddp'", "adamw")
        )  # fmt: skip
    if values["weight_averaging"] != "none" and values["strategy"] == "fsdp":
        problems.append(
            Problem("weight_averaging", f"got {values['weight_averaging']!r} with strategy='fsdp', which splits "
                    "the weights; set weight_averaging='none', or strategy='ddp'", "none")
        )  # fmt: skip
    if values["finetune"] == "lora" and values["strategy"] == "fsdp":
        problems.append(Problem("strategy", "got 'fsdp' with finetune='lora'; adapters are small: set 'ddp'", "ddp"))
    if values["lora_targets"] == ():
        problems.append(Problem("lora_targets", "got no name; set 'auto' or names of linear layers", "auto"))
    metric = [*str(values["monitor"]).split("/"), ""][1]  # of val/loss/<dataset> the loss
    wanted = "max" if metric in _GROWING else "min" if metric in _FALLING else None
    if wanted and values["mode"] != wanted:
        problems.append(
            Problem("mode", f"got {values['mode']!r} for {values['monitor']}; a better model has a "
                    f"{'higher' if wanted == 'max' else 'lower'} value: set mode={wanted!r}", wanted)
        )  # fmt: skip
    return problems


def _translate_amp(values: dict[str, Any]) -> list[Problem]:
    """`use_amp` (in `values`, removed from it) becomes `precision`."""
    use_amp = values.pop("use_amp")
    if use_amp is None:
        return []
    if not isinstance(use_amp, bool):
        return [Problem("use_amp", f"got {shown(use_amp)}; must be True or False")]
    precision = values.get("precision")
    if precision is not None and not isinstance(precision, str):
        return []  # reported as a problem of precision
    half = precision in ("16", "bf16", "fp16")
    if precision not in (None, "auto") and half != use_amp:
        return [Problem("use_amp", f"got {use_amp} together with precision={precision!r}; keep one of the two")]
    if not half:
        values["precision"] = "16" if use_amp else "32"
    return []


def better_direction(metric: str) -> Literal["min", "max"]:
    """Whether larger or smaller values of a metric are better: "max" for accuracy, F1 and R², "min" for everything else."""
    return "max" if metric.rpartition("/")[2] in _GROWING else "min"
