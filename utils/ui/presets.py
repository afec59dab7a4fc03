"""Presets: named starting points, each a complete setup for a model of a stated size."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

from utils.errors import PresetNotFoundError, Problem
from utils.schema import nearest
from utils.ui.setup_config import SetupConfig
from utils.views.display import show_text
from utils.views.tables import columns_text


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
    """

    name: str
    description: str
    estimated_time_hours: float
    reference: str
    model_name: str
    model_arguments: Mapping[str, Any] = field(default_factory=dict)
    values: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # Read-only, so that a preset that was handed out cannot change the one in PRESETS.
        object.__setattr__(self, "model_arguments", MappingProxyType(dict(self.model_arguments)))
        object.__setattr__(self, "values", MappingProxyType(dict(self.values)))

    def __reduce__(self) -> tuple[Any, ...]:
        # Read-only mappings cannot be copied or pickled themselves.
        fields = self.name, self.description, self.estimated_time_hours, self.reference, self.model_name
        return type(self), (*fields, dict(self.model_arguments), dict(self.values))

    def setup(self) -> SetupConfig:
        """A new SetupConfig with this preset's values."""
        return SetupConfig(**self.values)

    def to_dict(self) -> dict[str, Any]:
        """The keyword arguments of `TrainingCoordinator.train`."""
        return self.setup().to_dict()

    def __getattr__(self, name: str) -> Any:
        # `preset.batch_size` reads the setup's value. Private names are never values: copy and pickle ask for them.
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self.setup(), name)


PRESETS: dict[str, Preset] = {
    "starter": Preset(
        name="starter",
        description="A small GPT on the built-in corpus: learns visibly within minutes on a CPU, needs no network.",
        estimated_time_hours=0.03,
        reference="2 CPU cores",
        model_name="gpt-small",
        model_arguments={"vocab_size": 4096, "max_seq_len": 128},
        values={
            "dataset_source": "builtin", "vocab_size": 4096, "max_length": 128, "run_name": "starter",
            "epochs": 8, "batch_size": 8, "learning_rate": 1e-3, "weight_decay": 0.1, "betas": (0.9, 0.99),
            "lr_schedule": "cosine",
        },
    ),
}  # fmt: skip


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
        if str(name) not in PRESETS:
            guess = nearest(str(name), PRESETS)
            hint = f" Did you mean {guess!r}?" if guess else ""
            message = f"There is no preset {name!r}; there are: {', '.join(PRESETS)}.{hint}"
            raise PresetNotFoundError(message, [Problem("preset", message, guess)])
        return replace(PRESETS[str(name)])

    def customize(self, name: str, **overrides: Any) -> Preset:
        """A copy of the preset with other setup values. Raises `ConfigError` that lists every problem of them."""
        preset = self.get(name)
        setup = preset.setup()
        setup.update(**overrides)
        return replace(preset, values=setup.differences())

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
