"""Controls of the wizard: a setting's control with its help and message, buttons, and text.

Core widgets of ipywidgets 7.7 and 8 only. Labels are the widgets' own, so that they belong to their controls.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ipywidgets

from utils.data.read.files import files_to_choose
from utils.data.source_kinds import SOURCE_KINDS
from utils.errors import ConfigError, Problem
from utils.ui.choice_names import choice_name, explained_choices, with_choice_names
from utils.ui.preflight import Check, check_text
from utils.ui.setting_values import help_text, typed_text
from utils.ui.wizard_fields import WizardField
from utils.ui.wizard_state import WizardState
from utils.views.design import sheet
from utils.views.html import Html, element, pill, text
from widgets.guarded import guarded

Report = Callable[[BaseException], None]

# Wide enough for every label; a control and its label fit into a narrow notebook.
LABEL_WIDTH = "180px"
CONTROL_WIDTH = "560px"


class Drawing:
    """True within `with`: controls change then because a form draws them, and their handlers do nothing."""

    def __init__(self) -> None:
        self._is_on = False

    def __bool__(self) -> bool:
        return self._is_on

    def __enter__(self) -> None:
        self._is_on = True

    def __exit__(self, *_: object) -> None:
        self._is_on = False


def look(title: str) -> dict[str, Any]:
    """Arguments of a control with a label in front of it."""
    layout = ipywidgets.Layout(width="auto", max_width=CONTROL_WIDTH)
    return {"description": title, "style": {"description_width": LABEL_WIDTH}, "layout": layout}


# How a form shows None, which ipywidgets' selections take for nothing being selected.
_NONE = ""


class FieldForm:
    """One setting: its control, its help, and what is wrong with it. What was refused stays in the control.

    Attributes:
        box: what is shown; control: the widget with the value; message: the widget with what is wrong.
    """

    def __init__(self, field: WizardField, state: WizardState, report: Report) -> None:
        self.field, self._state, self._report = field, state, report
        self._drawing = Drawing()
        self.control = self._observed(self._make_control())
        self.message = markup_box(f"tb-error-{field.name}")
        self.box = ipywidgets.VBox([self.control, *self._make_help(), self.message])

    def _make_control(self) -> Any:
        """The control, without its value."""
        return _control(self.field)

    def _make_help(self) -> list[ipywidgets.Widget]:
        """What stands below the control."""
        return [markup_box(markup=small(help_text(self.field)))]

    def _observed(self, control: Any) -> Any:
        """The control with the field's class; its changes go to the state."""
        control.add_class(f"tb-field-{self.field.name}")
        control.observe(guarded(self._changed, self._report), "value")
        return control

    def refresh(self, problems: Mapping[str, list[Problem]]) -> None:
        """Show the state's value and message."""
        with self._drawing:
            self._prepare()
            self.control.value = self._shown()
        message, hint = self._state.message(self.field.name, problems), self._state.hint(self.field.name)
        set_markup(self.message, problem_line(message) if message else small(hint))

    def _prepare(self) -> None:
        """Bring the control up to date before its value is set."""

    def _changed(self, change: Mapping[str, Any]) -> None:
        if self._drawing:
            return
        # What is refused is shown beside the control, by `refresh`.
        with contextlib.suppress(ConfigError):
            if isinstance(self.control, ipywidgets.Text):
                self._state.parse(self.field.name, change["new"])
            else:
                self._state.set(self.field.name, None if change["new"] == _NONE else change["new"])

    def _shown(self) -> Any:
        value = getattr(self._state.setup, self.field.name)
        entry = self._state.entry(self.field.name)
        if isinstance(self.control, ipywidgets.Text):
            refused = None if entry is None else entry.text if entry.text is not None else typed_text(entry.value)
            return typed_text(value) if refused is None else refused
        if entry is not None and isinstance(entry.value, str) and entry.value in self.field.choices:
            return entry.value
        return _NONE if value is None else value


class CardsForm(FieldForm):
    """A setting with few choices that matter: a card for each, with what its description says of it."""

    def __init__(self, field: WizardField, state: WizardState, report: Report) -> None:
        super().__init__(field, state, report)
        self.control.add_class("tb-cards")
        self.box.add_class("tb-across")

    def _make_control(self) -> Any:
        words = explained_choices(self.field.name, self.field.description)
        names = {choice: choice_name(self.field.name, choice) for choice in self.field.choices}
        return ipywidgets.ToggleButtons(
            options=[(f"{name}\n{words.get(choice, '')}".rstrip(), choice) for choice, name in names.items()],
            description=self.field.title, style={"description_width": LABEL_WIDTH, "button_width": "auto"},
        )  # fmt: skip

    def _make_help(self) -> list[ipywidgets.Widget]:
        return []  # each card has its own

    def _prepare(self) -> None:
        # The chosen card differs by its colours only: the label says it to screen readers.
        chosen = choice_name(self.field.name, self._shown())
        self.control.description = f"{self.field.title}: {chosen}"


class ColumnForm(FieldForm):
    """A setting that names a column: a menu of the columns where they are known, else a text."""

    def __init__(self, field: WizardField, state: WizardState, report: Report) -> None:
        super().__init__(field, state, report)
        self._text, self._menu = self.control, self._observed(ipywidgets.Dropdown(**look(field.title)))
        set_help(self._menu, field.description)

    def _prepare(self) -> None:
        columns = self._state.recognised.columns
        wanted = self._menu if columns else self._text
        if wanted is self._menu:
            value = getattr(self._state.setup, self.field.name)
            options = named_options(columns, value)
            if self._menu.options != options:
                self._menu.options = options
        if wanted is not self.control:
            self.control = wanted
            self.box.children = (wanted, *self.box.children[1:])


class FilesForm(FieldForm):
    """A setting that names a file: a text with the data files in the notebook's folder as suggestions."""

    _looked = ("", 0.0)  # for which source of data, and when

    def _make_control(self) -> Any:
        control = ipywidgets.Combobox(continuous_update=False, **look(self.field.title))
        set_help(control, self.field.description)
        return control

    def _prepare(self) -> None:
        source, now = self._state.source, time.monotonic()
        if source == self._looked[0] and now - self._looked[1] < _LOOK_AGAIN_S:
            return
        self._looked = (source, now)
        options = () if SOURCE_KINDS[source].on_drive else tuple(_nearby(self._state.setup.home))
        if self.control.options != options:
            self.control.options = options
            self.control.placeholder = (
                f"choose one of {len(options)} files, or type a path" if options else "type a path"
            )


# Seconds for which a list of files is kept: on a network drive each look takes a while.
_LOOK_AGAIN_S = 2.0

# Where a platform puts input data, besides the notebook's folder.
_INPUT_FOLDERS = (Path("/kaggle/input"),)


def _nearby(home: Path) -> list[str]:
    elsewhere = [folder for folder in _INPUT_FOLDERS if not folder.is_relative_to(home)]
    return [*files_to_choose(home), *(str(folder / file) for folder in elsewhere for file in files_to_choose(folder))]


def named_options(names: Sequence[str], value: str | None, setting: str = "") -> tuple[tuple[str, str], ...]:
    """Options of a menu of columns or layouts found in the data, with the chosen value if it is not one of them."""
    missing = (
        [(f"{choice_name(setting, value)} (not in the data)", value)]
        if value is not None and value not in names
        else []
    )
    return ("detect automatically", _NONE), *((choice_name(setting, name), name) for name in names), *missing


def _control(field: WizardField) -> ipywidgets.Widget:
    """The control that fits a field, without its value."""
    options = look(field.title)
    if field.kind == "choice":
        none = [("not set", _NONE)] if field.optional else []
        named = [(choice_name(field.name, choice), choice) for choice in field.choices]
        control = ipywidgets.Dropdown(options=[*none, *named], **options)
    elif field.kind == "switch":
        control = ipywidgets.Checkbox(indent=True, **options)
    else:
        # Text for numbers too: a number's control would replace what was typed before anybody could say what is wrong.
        placeholder = "not set" if field.optional else ""
        control = ipywidgets.Text(continuous_update=False, placeholder=placeholder, **options)
    set_help(control, with_choice_names(field.name, field.description))
    return control


def button(label: str, css_class: str, handler: Callable[[Any], object], report: Report, help_text: str = "") -> Any:
    """A button as wide as its label, with a guarded handler."""
    made = ipywidgets.Button(description=label, layout=ipywidgets.Layout(width="auto"))
    made.add_class(css_class)
    set_help(made, help_text)
    made.on_click(guarded(handler, report))
    return made


def set_help(widget: ipywidgets.Widget, help_text: str) -> None:
    """A tooltip, where this ipywidgets' widget has one."""
    if help_text and widget.has_trait("tooltip"):
        widget.tooltip = help_text


def uploaded_files(value: Any) -> list[tuple[str, bytes]]:
    """Name and content of each file in a FileUpload's value: a dict by name in ipywidgets 7, a tuple of dicts in 8."""
    if isinstance(value, Mapping):
        return [(str(name), bytes(file["content"])) for name, file in value.items()]
    return [(str(file["name"]), bytes(file["content"])) for file in value]


def markup_box(css_class: str = "", markup: Html | None = None) -> ipywidgets.HTML:
    """A widget for markup of `utils.views.html`; without any it takes no room."""
    box = ipywidgets.HTML(layout=ipywidgets.Layout(max_width="100%"))
    if css_class:
        box.add_class(css_class)
    set_markup(box, markup if markup is not None else text(""))
    return box


def set_markup(box: ipywidgets.HTML, markup: Html) -> None:
    """Show markup; the empty one hides the widget."""
    box.value = markup
    box.layout.display = None if markup else "none"


def row(*children: ipywidgets.Widget) -> ipywidgets.HBox:
    """Widgets beside each other, wrapped where there is no room."""
    return ipywidgets.HBox(list(children), layout=ipywidgets.Layout(flex_flow="row wrap", align_items="center"))


_ENDED = "The kernel of this panel has ended, and its buttons with it: run its cell again."


def panel(*children: ipywidgets.Widget, ended: str = _ENDED) -> ipywidgets.VBox:
    """Widgets below each other in the design's style. `ended`: what a page says of them once their kernel is gone."""
    box = ipywidgets.VBox([])
    fill_panel(box, *children, ended=ended)
    return box


def fill_panel(box: ipywidgets.VBox, *children: ipywidgets.Widget, ended: str = _ENDED) -> None:
    """Put widgets into `box` in the design's style, whose style sheet comes last. As `panel`."""
    style, gone = ipywidgets.HTML(sheet(controls=True)), ipywidgets.HTML(paragraph(ended))
    style.add_class("tb-style")
    gone.add_class(
        "tb-gone"
    )  # shown by the style sheet, as nothing else can change what the widgets of a dead kernel show
    box.children = (*children, gone, style)
    for name in ("tb", "tb-panel"):
        box.add_class(name)


def primary(made: ipywidgets.Button) -> ipywidgets.Button:
    """The button as the one that most people click next. There is one on each screen."""
    made.button_style = "primary"
    return made


def paragraph(sentence: str) -> Html:
    """A line of text; no markup for an empty one."""
    return element("div", text(sentence)) if sentence else text("")


def heading(title: str) -> Html:
    """A page's title."""
    return element("div", text(title), role="heading", aria_level=3, class_="tb-title")


def problem_line(sentence: str) -> Html:
    """A problem with a coloured bar, announced by screen readers; no markup for an empty one."""
    if not sentence:
        return text("")
    return element("div", element("strong", text("Problem: ")), text(sentence), aria_live="polite", class_="tb-problem")


# A check's verdict as a sign and in words, which screen readers need and which colour-blind readers can tell apart.
_SIGNS = {
    "passed": ("✓", "tb-pass"), "failed": ("✕", "tb-fail"), "pending": ("…", "tb-none"), "not run": ("–", "tb-none"),
}  # fmt: skip


def check_line(check: Check) -> Html:
    """A check before training: its sign and name, then what was measured or what is wrong."""
    icon, css_class = _SIGNS[check.verdict]
    return element("div", pill(icon, check.title, css_class), text(" "), text(check_text(check)), style="margin:2px 0")


def code(line: str) -> Html:
    """A line of code to copy."""
    return element("pre", text(line))


def small(sentence: str, indent: str = "0") -> Html:
    """Help and details, still readable; no markup for an empty one."""
    style = None if indent == "0" else f"margin-left:{indent}"
    return element("div", text(sentence), class_="tb-help", style=style) if sentence else text("")
