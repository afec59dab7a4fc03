"""The wizard's settings in words: values, help, what somebody typed."""

from __future__ import annotations

import contextlib
from typing import Any

from utils.adapters.facts import ModelFacts
from utils.schema import shown
from utils.training.config_files import parse_value
from utils.ui.presets import Preset
from utils.ui.setup_config import SetupConfig
from utils.ui.wizard_steps import PLACES, WizardField, wizard_field


def typed_value(field: WizardField, text: str) -> Any:
    """What somebody means who types `text` for a setting. Text that means nothing comes back as it is, to be refused."""
    stripped = text.strip()
    if not stripped and (field.optional or field.kind not in ("text", "path")):
        return None
    if field.kind in ("text", "path", "choice"):
        return stripped
    if field.kind in ("whole number", "number"):
        # Not as a config file reads it: there 010 is eight and 1:30 is ninety.
        for kind in (int, float):
            with contextlib.suppress(ValueError):
                return kind(stripped)
        return stripped
    return parse_value(stripped)


def typed_text(value: Any) -> str:
    """The text of a setting's value that `typed_value` reads back as that value."""
    if value is None:
        return ""
    return f"[{', '.join(map(str, value))}]" if isinstance(value, (list, tuple)) else str(value)


def titled(name: str) -> str:
    """The title of a setting; other names unchanged."""
    return wizard_field(name).title if name in SetupConfig.field_names() else name


def counted(number: int, noun: str) -> str:
    """ "1 problem", "2 problems"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def shown_value(name: str, value: Any) -> str:
    """A setting's value in a sentence, cut when it is long."""
    return shown(value) if isinstance(value, str) else value_text(wizard_field(name), value)


def model_rows(facts: ModelFacts | None) -> dict[str, str]:
    """What the model says about itself, as a table."""
    if facts is None:
        return {"Class": "none given: sizes are not compared"}
    counts = {
        "Parameters": facts.parameters,
        "Trainable": facts.trainable,
        "Vocabulary": facts.vocab_size,
        "Positions": facts.max_length,
    }
    units = {"Vocabulary": " token ids", "Positions": " tokens at once"}
    return {
        "Class": facts.name,
        **{n: "not stated" if count is None else f"{count:,}{units.get(n, '')}" for n, count in counts.items()},
    }


def value_text(field: WizardField, value: Any) -> str:
    """A setting's value as a table shows it, with its unit."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "on" if value else "off"
    text = f"{value:,}" if isinstance(value, int) and field.name != "random_seed" else f"{value}"
    return f"{text} {field.unit}" if field.unit else text


def help_text(field: WizardField) -> str:
    """A setting's help: what it does, its range and its unit."""
    sentences = [field.description, _range(field)]
    if field.optional and field.name not in PLACES:
        sentences.append("May be left empty.")
    return " ".join(filter(None, sentences))


def _range(field: WizardField) -> str:
    """A number's bounds and unit, as a sentence."""
    low = None if field.minimum is None else _number(field.minimum)
    high = None if field.maximum is None else _number(field.maximum)
    above = f"{'more than' if field.minimum_excluded else 'at least'} {low}"
    below = f"{'less than' if field.maximum_excluded else 'at most'} {high}"
    parts = [f"in {field.unit}"] if field.unit else []
    if low is not None and high is not None and not field.minimum_excluded and not field.maximum_excluded:
        parts.append(f"{low} to {high}")
    else:
        parts += ([above] if low is not None else []) + ([below] if high is not None else [])
    sentence = ", ".join(parts)
    return f"{sentence[0].upper()}{sentence[1:]}." if sentence else ""


def _number(value: float) -> str:
    return f"{value:,}" if value == int(value) else f"{value}"


def preset_help(preset: Preset | None) -> str:
    """What a preset is for, what model it was made for, and its reference time, marked as such."""
    if preset is None:
        return "The defaults of every setting."
    hours = preset.estimated_time_hours
    amount = f"{hours * 60:.0f} min" if hours < 1 else f"{hours:g} h"
    elsewhere = "" if "not this machine" in preset.reference else "; not this machine"
    sizes = ", ".join(f"{name} {value}" for name, value in preset.model_arguments.items())
    return (
        f"{preset.description} Reference time: {amount} ({preset.reference}{elsewhere}). "
        f"Made for the model {preset.model_name} ({sizes}); your model stays as it is."
    )
