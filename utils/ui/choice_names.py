"""Names that people read for the values of settings with a fixed set of values. Files, code and commands have the values."""

from __future__ import annotations

import re
from collections.abc import Mapping

from utils.data.source_kinds import SOURCE_KINDS
from utils.training.task_kinds import TASK_KINDS, TASKS, kind_of_task

CHOICE_NAMES: Mapping[str, Mapping[str, str]] = {
    "dataset_source": {name: kind.title for name, kind in SOURCE_KINDS.items()},
    "task": {name: TASK_KINDS[name].title for name in TASKS},
    "conversation_layout": {
        "messages": "Messages with role and content", "sharegpt": "ShareGPT (from, value)",
        "instruction": "Instruction, input, output", "prompt_completion": "Prompt and completion",
        "question_answer": "Question and answer",
    },
    "data_kind": {
        "auto": "Detect automatically", "text": "Plain text", "conversations": "Conversations", "pairs": "Text and target text",
    },
    "mixture_by": {"examples": "Examples", "tokens": "Tokens"},
    "tokenizer_strategy": {"auto": "Automatic", "bpe": "Subwords (BPE)", "character": "Characters"},
    "packing": {"concatenate": "Concatenate", "best_fit": "Best fit"},
    "optimizer": {"adamw": "AdamW", "adam": "Adam", "sgd": "SGD", "muon": "Muon", "adafactor": "Adafactor"},
    "lr_schedule": {
        "cosine": "Cosine", "linear": "Linear", "constant": "Constant", "step": "Step", "plateau": "Reduce on plateau",
        "wsd": "Warmup-stable-decay",
    },
    "weight_averaging": {"none": "None", "ema": "Exponential moving average", "last": "Mean of the last steps"},
    "finetune": {"full": "All parameters", "lora": "LoRA adapters", "head": "Head only", "last_layers": "Last layers and head"},
    "precision": {"auto": "Automatic", "16": "16-bit", "bf16": "bf16", "fp16": "fp16", "32": "fp32"},
    "compile_mode": {"default": "Default", "reduce-overhead": "Reduce overhead", "max-autotune": "Max autotune"},
    "fused_loss": {"auto": "Automatic", "on": "On", "off": "Off"},
    "strategy": {"auto": "Automatic", "ddp": "Data parallel (DDP)", "fsdp": "Sharded (FSDP)"},
    "mode": {"min": "Lower is better", "max": "Higher is better"},
    "on_save_error": {"stop": "Stop", "warn": "Warn and continue"},
    "on_nonfinite": {"stop": "Stop", "skip": "Skip the step"},
    "on_config_change": {"error": "Refuse to resume", "continue": "Continue with the new ones"},
}  # fmt: skip


def choice_name(setting: str, value: object) -> str:
    """The name of a setting's value; the value as text where it has none."""
    known = CHOICE_NAMES.get(setting, {}).get(str(value))
    if known is None and setting == "task":  # of a model, which may be for a task that the wizard does not offer
        known = kind_of_task(str(value)).title
    return known or str(value)


def explained_choices(setting: str, description: str) -> dict[str, str]:
    """Value -> what the setting's description says of it, where it has the form `value: words.` for each."""
    values = "|".join(CHOICE_NAMES.get(setting, {}))
    return dict(re.findall(rf"\b({values}): ([^.]*(?:\.(?! )[^.]*)*)\.", description))


def with_choice_names(setting: str, description: str) -> str:
    """A setting's description with names where it explains values, as in `bpe: subwords`."""
    names = CHOICE_NAMES.get(setting, {})
    return re.sub(r"(?<![\w.])([\w-]+)(?=:)", lambda found: names.get(found[1], found[1]), description)
