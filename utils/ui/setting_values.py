"""The wizard's settings in words: values, help, what somebody typed."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from utils.adapters.facts import ModelFacts
from utils.schema import shown
from utils.training.config_files import parse_value
from utils.ui.choice_names import choice_name, with_choice_names
from utils.ui.new_model import description_text
from utils.ui.presets import Preset
from utils.ui.setup_config import SetupConfig
from utils.ui.wizard_fields import WizardField, wizard_field
from utils.ui.wizard_steps import PLACES

# 1,000 as in English, 1 000 as in SI (any space), 1_000 as in Python. A leading zero is no group: 0,100 stays ambiguous.
_GROUPED = re.compile(r"[+-]?[1-9]\d{0,2}(?P<mark>[,_ \u00a0\u2009\u202f])\d{3}(?:(?P=mark)\d{3})*(?:\.\d+)?")
# What people type where an empty field means that there is no value.
_NO_VALUE = ("none", "not set")


def typed_value(field: WizardField, text: str) -> Any:
    """The value that `text`, typed for a setting, stands for. Text that stands for none is returned, to be refused.

    Numbers are read as people write them: `1,000`, `1e3`, `50%`. Where an empty field means None, `none` does too.
    """
    stripped = text.strip()
    if field.optional and stripped.lower() in ("", *_NO_VALUE):
        return None
    if not stripped and field.kind not in ("text", "path"):
        return None
    if field.kind in ("text", "path", "choice"):
        return stripped
    # Not as a config file reads numbers: YAML takes 010 for eight and 1:30 for ninety.
    number = typed_number(stripped, whole=field.kind != "number")
    if field.kind in ("whole number", "number"):
        return stripped if number is None else number
    if number is not None and field.has_numbers:
        return number
    is_bare_list = not field.has_numbers and "," in stripped and not stripped.startswith("[")
    return parse_value(f"[{stripped}]" if is_bare_list else stripped)


def typed_number(text: str, whole: bool = False) -> int | float | None:
    """The number in `text`, with separators between thousands, an exponent or a percent sign; None for other text.

    Args:
        whole: a whole number is wanted: 1e3 is 1000, and a percentage is no number.
    """
    if text.endswith("%"):
        share = None if whole else typed_number(text[:-1].rstrip())
        return None if share is None else share / 100
    if match := _GROUPED.fullmatch(text):
        text = text.replace(match["mark"], "")
    try:
        return int(text)
    except ValueError:
        pass
    try:
        number = float(text)
    except ValueError:
        return None
    return int(number) if whole and number.is_integer() else number


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


def parameters_text(count: int) -> str:
    """The size of a model, such as "4.2 M parameters"."""
    if count < 1_000_000:
        return counted(count, "parameter")
    return f"{count / 1e9:.1f} B parameters" if count >= 1e9 else f"{count / 1e6:.1f} M parameters"


def shown_value(name: str, value: Any) -> str:
    """A setting's value in a sentence, cut when it is long."""
    field = wizard_field(name)
    return shown(value) if isinstance(value, str) and not field.choices else value_text(field, value)


def model_rows(facts: ModelFacts | None) -> dict[str, str]:
    """Facts about the model as a table."""
    if facts is None:
        return {"Class": "none given: sizes are not compared"}
    counts = {
        "Parameters": facts.parameters,
        "Trainable": facts.trainable,
        "Vocabulary": facts.vocab_size,
        "Context length": facts.max_length,
    }
    units = {"Vocabulary": " token ids", "Context length": " tokens"}
    return {
        "Class": facts.name,
        **{n: "not stated" if count is None else f"{count:,}{units.get(n, '')}" for n, count in counts.items()},
    }


# Settings that are found in the data where they have no value.
_DETECTED = frozenset({"text_column", "label_column", "conversation_layout"})


def value_text(field: WizardField, value: Any) -> str:
    """A setting's value as a table shows it, with its unit."""
    if value is None:
        return "detected automatically" if field.name in _DETECTED else "not set"
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, Mapping):
        return description_text(value)
    if field.choices:
        return choice_name(field.name, value)
    text = f"{value:,}" if isinstance(value, int) and field.name != "random_seed" else f"{value}"
    if not field.unit:
        return text
    return f"{text} {_singular(field.unit) if value == 1 else field.unit}"


def help_text(field: WizardField) -> str:
    """A setting's help: what it does, its range and its unit."""
    sentences = [with_choice_names(field.name, field.description), _range(field)]
    if field.optional and field.name not in {*PLACES, *_DETECTED} and "empty" not in field.description:
        sentences.append("May be left empty.")
    return " ".join(filter(None, sentences))


def _range(field: WizardField) -> str:
    """A number's bounds and unit, as a sentence such as "1–65,536 samples."."""
    low = None if field.minimum is None else _number(field.minimum)
    high = None if field.maximum is None else _number(field.maximum)
    above = f"{'more than' if field.minimum_excluded else 'at least'} {low}"
    below = f"{'less than' if field.maximum_excluded else 'at most'} {high}"
    if low is not None and high is not None and not field.minimum_excluded and not field.maximum_excluded:
        sentence = f"{low}–{high}"
    else:
        sentence = ", ".join(([above] if low is not None else []) + ([below] if high is not None else []))
    if field.unit:
        unit = _singular(field.unit) if not high and low == "1" else field.unit
        sentence = f"{sentence} {unit}" if sentence else f"in {field.unit}"
    return f"{sentence[0].upper()}{sentence[1:]}." if sentence else ""


def _singular(unit: str) -> str:
    return unit.removesuffix("es") if unit.endswith("ches") else unit.removesuffix("s")


def _number(value: float) -> str:
    return f"{value:,}" if value == int(value) else f"{value}"


def folded_text(fields: Sequence[WizardField], setup: SetupConfig) -> str:
    """Settings that are not at their defaults, as a line beside the button that shows them all."""
    values = [(field, getattr(setup, field.name)) for field in fields]
    changed = [f"{field.title}: {value_text(field, value)}" for field, value in values if value != field.default]
    return "; ".join(changed) or "defaults"


def preset_help(preset: Preset | None) -> str:
    """Purpose of a preset."""
    return "The defaults of every setting." if preset is None else preset.description
