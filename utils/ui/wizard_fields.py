"""A setting as a form shows it, from the schema that validates it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from utils.schema import Schema
from utils.training.training_config import TrainingConfig
from utils.ui.data_settings import DataSettings

Kind = Literal["whole number", "number", "switch", "choice", "text", "path", "value"]
Control = Literal["plain", "cards", "column", "files", "new model"]

# Settings whose control does not follow from their kind.
_CONTROLS: Mapping[str, Control] = {
    "dataset_source": "cards", "dataset_path": "files", "text_column": "column", "label_column": "column",
    "new_model": "new model",
}  # fmt: skip


@dataclass(frozen=True)
class WizardField:
    """One setting as a form shows it. Everything comes from the schema that validates it.

    Attributes:
        name: SetupConfig's name for it.
        title, description: its label and its one-sentence help.
        unit: of numbers, where they have one.
        kind: what its values are; "value" is written as in a config file, such as `[0.9, 0.99]`.
        control: "plain": that of its kind; "cards": a card for each choice; "column": a menu of the data's columns;
            "files": a text with the files nearby as suggestions; "new model": controls for each part of a model's description.
        choices: the allowed values of a "choice".
        minimum, maximum: bounds of a number; a bound that is `..._excluded` is no allowed value itself.
        optional: whether it may be None.
        default: its value when nobody sets it.
        has_numbers: whether a number is among its values.
    """

    name: str
    title: str
    description: str
    unit: str | None
    kind: Kind
    choices: tuple[str, ...]
    minimum: float | None
    minimum_excluded: bool
    maximum: float | None
    maximum_excluded: bool
    optional: bool
    default: Any
    has_numbers: bool = False
    control: Control = "plain"


@cache
def wizard_field(name: str) -> WizardField:
    """The form field of a setting, from its schema. Raises KeyError for a name that SetupConfig does not have."""
    owner: type[Schema] = DataSettings if name in DataSettings.model_fields else TrainingConfig
    field = owner.model_fields[name]
    described = _described(owner)[name]
    options = [option for option in described.get("anyOf", [described]) if option.get("type") != "null"]
    numbers: dict[str, Any] = next((option for option in options if option.get("type") in ("integer", "number")), {})
    low, high = ("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")
    return WizardField(
        name=name,
        title=field.title or name,
        description=field.description or "",
        unit=described.get("unit"),
        kind=_kind(name, options),
        choices=tuple(choice for option in options for choice in option.get("enum", [])),
        minimum=next((numbers[key] for key in low if key in numbers), None),
        minimum_excluded="exclusiveMinimum" in numbers,
        maximum=next((numbers[key] for key in high if key in numbers), None),
        maximum_excluded="exclusiveMaximum" in numbers,
        optional=any(option.get("type") == "null" for option in described.get("anyOf", [])),
        default=field.default,
        has_numbers=bool(numbers),
        control=_CONTROLS.get(name, "plain"),
    )


@cache
def _described(owner: type[Schema]) -> dict[str, Any]:
    """The JSON schema of each setting by its name: made once, because it is made for all settings together."""
    found: dict[str, Any] = owner.model_json_schema()["properties"]
    return found


def _kind(name: str, options: list[dict[str, Any]]) -> Kind:
    if all("enum" in option for option in options):
        return "choice"
    if name.endswith(("_path", "_dir")):
        return "path"
    kinds: dict[str, Kind] = {
        "integer": "whole number", "number": "number", "boolean": "switch", "string": "text",
    }  # fmt: skip
    return kinds.get(options[0].get("type", ""), "value") if len(options) == 1 else "value"
