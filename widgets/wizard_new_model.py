"""The wizard's fields of a new model: architecture, a size by name, and layers, width and heads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ipywidgets

from utils.errors import Problem
from utils.ui.new_model import SIZE_NAMES, SIZES, architectures, size_name, with_size
from utils.ui.setting_values import typed_number, typed_text
from utils.ui.wizard_fields import WizardField
from utils.ui.wizard_state import WizardState
from widgets.forms import Drawing, Report, look, markup_box, problem_line, set_markup, small
from widgets.guarded import guarded

_LABELS = {"n_layer": "Layers", "n_embd": "Width", "n_head": "Attention heads"}
_HELP = {
    "n_layer": "Transformer blocks; of an encoder-decoder, blocks of the encoder and of the decoder.",
    "n_embd": "Hidden size; a multiple of the attention heads.",
    "n_head": "Attention heads of each block.",
}
_FROM_ELSEWHERE = (
    "Vocabulary size and block length are those of the Tokenizer step, the number of classes is that of the data."
)
_OTHER = ""


class NewModelForm:
    """Controls of the setting `new_model`. The description in the setup changes with each of them.

    Attributes:
        field: the setting; box: what is shown; control: the menu of architectures; message: the widget with what is wrong.
        controls: the controls by argument, and the sizes by name under "size".
    """

    def __init__(self, field: WizardField, state: WizardState, report: Report) -> None:
        self.field, self._state, self._drawing = field, state, Drawing()
        self.control = ipywidgets.Dropdown(**look("Architecture"))
        size = ipywidgets.Dropdown(**look("Size"))
        size.options = [*((_size_text(name), name) for name in SIZES), ("layers, width and heads as below", _OTHER)]
        self.controls: dict[str, Any] = {"name": self.control, "size": size}
        self.controls |= {name: ipywidgets.Text(continuous_update=False, **look(_LABELS[name])) for name in SIZE_NAMES}
        self.message = markup_box("tb-error-new_model")
        helps = {"name": _FROM_ELSEWHERE, **_HELP}
        boxes = [
            ipywidgets.VBox([control, markup_box(markup=small(helps.get(name, "")))])
            for name, control in self.controls.items()
        ]
        for box in boxes[:2]:
            box.add_class("tb-across")  # the options of both menus are longer than a column
        fields = ipywidgets.VBox(boxes)
        fields.add_class("tb-fields")
        self.box = ipywidgets.VBox([fields, self.message])
        for name, control in self.controls.items():
            control.add_class(f"tb-new-model-{name}")
            control.observe(guarded(self._changed, report), "value")

    def refresh(self, problems: Mapping[str, list[Problem]]) -> None:
        """Show the setup's new model and what is wrong with it."""
        description = self._state.setup.new_model
        if description is None:
            return
        with self._drawing:
            options = architectures(self._state.setup.task)
            if description["name"] not in {name for _, name in options}:
                options.append((f"{description['name']} (of another task)", description["name"]))
            if self.control.options != tuple(options):
                self.control.options = options
            self.control.value = description["name"]
            self.controls["size"].value = size_name(description) or _OTHER
            for name in SIZE_NAMES:
                self.controls[name].value = typed_text(description.get(name))
        set_markup(self.message, problem_line(self._state.message("new_model", problems)))

    def _changed(self, change: Mapping[str, Any]) -> None:
        if self._drawing or self._state.setup.new_model is None:
            return
        description = dict(self._state.setup.new_model)
        if change["owner"] is self.controls["size"]:
            if change["new"] == _OTHER:
                return
            description = with_size(description, change["new"])
        elif change["owner"] is self.control:
            sizes = {name: value for name, value in description.items() if name in SIZE_NAMES}
            description = {"name": change["new"], **sizes}
        else:
            name = next(name for name in SIZE_NAMES if self.controls[name] is change["owner"])
            typed = change["new"].strip()
            number = typed_number(typed, whole=True)
            description[name] = typed if number is None else number
            if not typed:
                del description[name]  # the architecture's own
        self._state.set("new_model", description)


def _size_text(name: str) -> str:
    layers, width, heads = SIZES[name]
    return f"{name}: {layers} layers, width {width}, {heads} heads"
