"""Presets: named starting points, each a complete setup for a model of a stated size."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from utils.errors import ConfigError, PresetNotFoundError, Problem
from utils.schema import nearest, shown
from utils.ui.setup_config import SetupConfig, field_of
from utils.views.display import show_text
from utils.views.tables import columns_text, summary_text

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Preset:
    """One starting point. Immutable: `ConfigPresets.customize` makes a changed copy.

    Attributes:
        name: its key in `PRESETS`.
        description: what it is for, one sentence.
        estimated_time_hours: reference figure for the machine that `reference` names; no measurement of this machine.
        reference: where `estimated_time_hours` was taken.
        model_name: the model in ModelRegistry that the values were chosen for.
        model_arguments: that model's arguments.
        values: SetupConfig's values that differ from the defaults.
        otherwise: those that it has instead for what is no new causal language model: another task, or a pretrained model.
    """

    name: str
    description: str
    estimated_time_hours: float
    reference: str
    model_name: str
    model_arguments: Mapping[str, Any] = field(default_factory=dict)
    values: Mapping[str, Any] = field(default_factory=dict)
    otherwise: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # Read-only, so that a preset that was handed out cannot change the one in PRESETS.
        object.__setattr__(self, "model_arguments", MappingProxyType(dict(self.model_arguments)))
        object.__setattr__(self, "values", MappingProxyType(dict(self.values)))
        object.__setattr__(self, "otherwise", MappingProxyType(dict(self.otherwise)))

    def __reduce__(self) -> tuple[Any, ...]:
        # Read-only mappings cannot be copied or pickled themselves.
        fields = self.name, self.description, self.estimated_time_hours, self.reference, self.model_name
        return type(self), (*fields, dict(self.model_arguments), dict(self.values), dict(self.otherwise))

    def setup(self, otherwise: bool = False) -> SetupConfig:
        """A new SetupConfig with this preset's values, and those of `otherwise` over them if asked."""
        return SetupConfig(**{**self.values, **(self.otherwise if otherwise else {})})

    def create_model(self, **changes: Any) -> nn.Module:
        """The model that the preset starts from, with fresh weights; `changes` replace its arguments."""
        from utils.models import ModelRegistry

        return ModelRegistry.create(self.model_name, **{**self.model_arguments, **changes})

    def to_dict(self) -> dict[str, Any]:
        """The keyword arguments of `TrainingCoordinator.train`."""
        return self.setup().to_dict()

    def __getattr__(self, name: str) -> Any:
        # `preset.batch_size` reads the setup's value. Private names are never values: copy and pickle ask for them.
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self.setup(), name)


# The hours that the toolkit's documentation gives for its presets.
_DOCUMENTED = "documented figure, hardware not named; not this machine"


def _documented(
    name: str,
    description: str,
    hours: float,
    sizes: tuple[int, int, int],
    values: Mapping[str, Any],
    vocab_size: int = 50257,
) -> Preset:
    """One of the documented presets: a GPT-2 of (layers, width, heads), warm-up in steps, half precision."""
    n_layer, n_embd, n_head = sizes
    arguments = {
        "vocab_size": vocab_size, "max_seq_len": values["max_length"], "n_layer": n_layer, "n_embd": n_embd,
        "n_head": n_head, "dropout": 0.1,
    }  # fmt: skip
    values = {"vocab_size": vocab_size, "run_name": name, "precision": "16", **values}
    return Preset(name, description, hours, _DOCUMENTED, "gpt-small", arguments, values)


# Layers, width and heads of GPT-2, GPT-2 medium and GPT-2 large (Radford et al. 2019, table 2).
_GPT2, _GPT2_MEDIUM, _GPT2_LARGE = (12, 768, 12), (24, 1024, 16), (36, 1280, 20)

# Where Muon learns worse than AdamW or is not known to learn better (benchmarks/RESULTS.md, "The default optimizer").
_ADAMW = {"epochs": 8, "optimizer": "adamw", "learning_rate": 1e-3}

PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in (
        Preset(
            name="starter",
            description="A small GPT on the built-in corpus: learns visibly within minutes on a CPU, needs no network.",
            estimated_time_hours=0.02,
            reference="2 CPU cores",
            model_name="gpt-small",
            model_arguments={"vocab_size": 4096, "max_seq_len": 128},
            values={
                "dataset_source": "builtin", "vocab_size": 4096, "max_length": 128, "run_name": "starter",
                "epochs": 4, "batch_size": 8, "optimizer": "muon", "learning_rate": 3e-3, "weight_decay": 0.1,
                "betas": (0.9, 0.99), "lr_schedule": "cosine",
            },
            otherwise=_ADAMW,
        ),
        _documented(
            "tiny", "A first try on a GPU: 10 M parameters on WikiText-2.", 1, (9, 256, 4),
            {
                "dataset_name": "Salesforce/wikitext", "config_name": "wikitext-2-raw-v1", "max_length": 256,
                "batch_size": 32, "learning_rate": 5e-4, "epochs": 3, "warmup_steps": 100,
            },
            vocab_size=10_000,
        ),
        _documented(
            "small", "To learn with: 125 M parameters, as GPT-2, on WikiText-103.", 4, _GPT2,
            {
                "dataset_name": "Salesforce/wikitext", "config_name": "wikitext-103-raw-v1", "max_length": 512,
                "batch_size": 16, "gradient_accumulation_steps": 2, "learning_rate": 1e-4, "epochs": 5,
                "warmup_steps": 500,
            },
        ),
        _documented(
            "medium", "For production: 350 M parameters, as GPT-2 medium, on OpenWebText.", 12, _GPT2_MEDIUM,
            {
                "dataset_name": "Skylion007/openwebtext", "max_length": 1024, "batch_size": 8,
                "gradient_accumulation_steps": 4, "learning_rate": 5e-5, "epochs": 10, "warmup_steps": 1000,
            },
        ),
        _documented(
            "large", "For research: 774 M parameters, as GPT-2 large, on OpenWebText.", 48, _GPT2_LARGE,
            {
                "dataset_name": "Skylion007/openwebtext", "max_length": 1024, "batch_size": 4,
                "gradient_accumulation_steps": 8, "learning_rate": 2e-5, "epochs": 20, "warmup_steps": 2000,
            },
        ),
        _documented(
            "code_generation", "Python functions from CodeSearchNet: 125 M parameters, long inputs.", 8, _GPT2,
            {
                "dataset_name": "code-search-net/code_search_net", "config_name": "python",
                "text_column": "whole_func_string", "max_length": 2048, "batch_size": 8,
                "gradient_accumulation_steps": 2, "learning_rate": 1e-4, "epochs": 5, "warmup_steps": 500,
            },
        ),
        _documented(
            "chat", "Everyday dialogues from DailyDialog, of which the answers are learned: 125 M parameters.", 6, _GPT2,
            {
                "dataset_name": "OpenRL/daily_dialog", "text_column": "dialog", "data_kind": "conversations",
                "max_length": 512, "batch_size": 16,
                "gradient_accumulation_steps": 2, "learning_rate": 1e-4, "epochs": 10, "warmup_steps": 1000,
            },
        ),
        _documented(
            "summarization", "News articles and their summaries from CNN/DailyMail: 125 M parameters.", 10, _GPT2,
            {
                "dataset_name": "abisee/cnn_dailymail", "config_name": "3.0.0", "text_column": "article",
                "data_kind": "pairs", "max_length": 1024, "batch_size": 8, "gradient_accumulation_steps": 4,
                "learning_rate": 5e-5, "epochs": 5, "warmup_steps": 500,
            },
        ),
    )
}  # fmt: skip

# A goal's presets, the one that is meant for it first, then what fits into less time.
_GOALS: Mapping[str, tuple[str, ...]] = {
    "quick_test": ("tiny",),
    "learning": ("small", "tiny"),
    "production": ("medium", "small", "tiny"),
    "research": ("large", "medium", "small", "tiny"),
    "code": ("code_generation",),
    "chat": ("chat",),
    "summarization": ("summarization",),
}
_SMALLEST = "starter"


class ConfigPresets:
    """The presets, to list, to take and to change."""

    def list_presets(self) -> list[str]:
        """Their names."""
        return list(PRESETS)

    def get(self, name: str) -> Preset:
        """The preset of that name, as an object of its own.

        Raises:
            PresetNotFoundError: a ConfigError and a KeyError; lists the names.
        """
        if not isinstance(name, str) or name not in PRESETS:
            guess = nearest(name, PRESETS) if isinstance(name, str) else None
            hint = f" Did you mean {guess!r}?" if guess else ""
            message = f"There is no preset {shown(name)}; there are: {', '.join(PRESETS)}.{hint}"
            raise PresetNotFoundError(message, [Problem("preset", message, guess)])
        return replace(PRESETS[name])

    def customize(self, /, name: str, **overrides: Any) -> Preset:
        """A copy of the preset with other setup values. Raises `ConfigError` that lists every problem of them."""
        preset = self.get(name)
        setup = preset.setup()
        setup.update(**overrides)
        chosen = {field_of(name) for name in overrides}
        otherwise = {name: value for name, value in preset.otherwise.items() if name not in chosen}
        return replace(preset, values=setup.differences(), otherwise=otherwise)

    def get_recommendation(self, goal: str = "learning", time_budget_hours: float | None = None) -> str:
        """The preset for a goal that fits into a time, by the presets' reference times (of no particular machine).

        Args:
            goal: "quick_test", "learning", "production", "research", "code", "chat" or "summarization".
            time_budget_hours: None: any time. When none of the goal's presets fits, it is "starter".
        Returns:
            A name in PRESETS.
        Raises:
            ConfigError: an unknown goal, or a budget that is no positive number.
        """
        problems = []
        if not isinstance(goal, str) or goal not in _GOALS:
            guess = nearest(str(goal), _GOALS)
            hint = f"; did you mean {guess!r}?" if guess else ""
            problems.append(Problem("goal", f"got {shown(goal)}; must be one of {', '.join(_GOALS)}{hint}", guess))
        if time_budget_hours is not None and not _is_positive(time_budget_hours):
            message = f"got {shown(time_budget_hours)}; must be a positive number of hours, or None"
            problems.append(Problem("time_budget_hours", message))
        if problems:
            raise ConfigError.from_problems("get_recommendation", problems)
        budget = math.inf if time_budget_hours is None else time_budget_hours
        fitting = (name for name in _GOALS[goal] if PRESETS[name].estimated_time_hours <= budget)
        return next(fitting, _SMALLEST)

    def print_preset(self, name: str) -> None:
        """Print what a preset is for and every value that it sets. Raises `PresetNotFoundError`."""
        preset = self.get(name)
        arguments = ", ".join(f"{argument}={value!r}" for argument, value in preset.model_arguments.items())
        rows = {
            "for": preset.description,
            "reference time": _duration(preset),
            "starts from": f"{preset.model_name} with fresh weights ({arguments})",
            **{name: str(value) for name, value in preset.values.items()},
        }
        show_text(summary_text(preset.name, rows))

    def print_all_presets(self) -> None:
        """Print each preset's name, reference time, model, block length and purpose."""
        rows = [
            (name, _duration(preset), preset.model_name, str(preset.max_length), preset.description)
            for name, preset in PRESETS.items()
        ]
        show_text(columns_text(("preset", "reference time", "model", "block", "for"), rows))


def _duration(preset: Preset) -> str:
    hours = preset.estimated_time_hours
    amount = f"{hours * 60:.0f} min" if hours < 1 else f"{hours:.0f} h"
    return f"{amount} ({preset.reference})"


def _is_positive(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < math.inf
