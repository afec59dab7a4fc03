"""The wizard's rows for a mixture: several datasets, each with its place, columns, weight and name, and its share."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any

import ipywidgets

from utils.data.mixture_settings import mixture_sources
from utils.data.source_kinds import SOURCE_KINDS
from utils.errors import ConfigError
from utils.ui.choice_names import CHOICE_NAMES, choice_name
from utils.ui.setting_values import typed_number
from utils.ui.wizard_state import WizardState
from utils.views.html import text
from widgets.background_task import Outcome, TaskRow
from widgets.focus import move_focus
from widgets.forms import (
    Drawing,
    Report,
    button,
    heading,
    markup_box,
    named_options,
    paragraph,
    problem_line,
    row,
    set_markup,
    small,
)
from widgets.guarded import error_sentence, guarded

# The built-in text, which has no place, comes last: a mixture is made for data of one's own.
_OFFERED = (name for name, kind in SOURCE_KINDS.items() if kind.in_mixtures)
_SOURCES = tuple(sorted(_OFFERED, key=lambda name: SOURCE_KINDS[name].place is None))
# Settings that describe the rows of one dataset: another one has other rows.
_OF_ROWS = ("text_column", "conversation_layout", "config_name", "data_kind")


class MixtureRows:
    """Datasets under edit. They become the setup's mixture as soon as there are two of them that are usable.

    Attributes:
        box: what is shown.
    """

    def __init__(self, state: WizardState, parts: MutableMapping[str, Any], report: Report) -> None:
        self._state, self._parts, self._report = state, parts, report
        self._rows: list[_Row] = []
        self._written: Any = ()
        self._title = markup_box()
        self._list = ipywidgets.VBox()
        self._message = parts["error:mixture"] = markup_box("tb-error-mixture")
        self._add = parts["add-dataset"] = button("Add another dataset", "tb-add-dataset", self._added, report)
        self.box = ipywidgets.VBox([self._title, self._list, self._message, row(self._add)])

    def refresh(self) -> None:
        """Show the setup's mixture, unless it is the one that was entered here."""
        setup = self._state.setup
        if setup.mixture != self._written:
            self._written = setup.mixture
            self._show([source.to_dict() for source in setup.mixture])
        self.box.layout.display = None if setup.task == "causal_lm" else "none"
        set_markup(self._title, heading("Mixture") if self._rows else text(""))

    def _show(self, entries: list[dict[str, Any]]) -> None:
        self._rows = [_Row(self, entry, self._report) for entry in entries]
        self._draw()

    def _draw(self) -> None:
        self._list.children = tuple(one.box for one in self._rows)
        for number, one in enumerate(self._rows):
            for name, control in one.controls.items():
                self._parts[f"mixture:{number}:{name}"] = control
            one.draw()
        weights = [one.weight for one in self._rows]
        total = sum(weight for weight in weights if weight is not None)
        for one, weight in zip(self._rows, weights, strict=True):
            share = f"Share: {weight / total:.1%}" if weight and total else "Share: by size"
            set_markup(one.share, paragraph(share))

    def _added(self, _: Any) -> None:
        if not self._rows:
            setup = self._state.setup
            names = (
                "dataset_source",
                "dataset_path",
                "dataset_name",
                "config_name",
                "text_column",
                "conversation_layout",
            )
            first = {name: getattr(setup, name) for name in names} | {"data_kind": setup.data_kind}
            self._rows.append(_Row(self, first, self._report))
        self._rows.append(_Row(self, {"dataset_source": "local"}, self._report))
        self.changed()
        self.refresh()

    @property
    def state(self) -> WizardState:
        """The wizard whose mixture this is."""
        return self._state

    def remove(self, one: _Row) -> None:
        """Take a dataset out; the last one that is left is the setup's only one."""
        self._rows = [other for other in self._rows if other is not one]
        if len(self._rows) < 2:
            entry, self._rows = (self._rows[0].entry() if self._rows else {}), []
            set_markup(self._message, text(""))
            self._draw()
            self._written = ()
            if self._state.setup.mixture:
                kept = {name: value for name, value in entry.items() if name not in ("name", "weight")}
                self._state.set_mixture((), kept if self._is_usable(entry) else {"dataset_source": "builtin"})
        else:
            self.changed()
        self.refresh()
        move_focus(self._add)  # the button is gone

    def changed(self) -> None:
        """Apply the rows where they are usable, or say what is missing."""
        self._draw()
        entries = [one.entry() for one in self._rows]
        unfinished = [number for number, entry in enumerate(entries, start=1) if not self._is_usable(entry)]
        if unfinished:
            listed = ", ".join(map(str, unfinished))
            set_markup(
                self._message, small(f"Enter a path or a dataset's id for dataset {listed}. Until then it is not used.")
            )
            return
        try:
            self._written = mixture_sources(entries)  # before the form is refreshed, so that these controls stay
            self._state.set_mixture(entries)
        except ConfigError as error:
            self._written = self._state.setup.mixture
            set_markup(self._message, problem_line(str(error)))
        else:
            set_markup(self._message, text(""))

    @staticmethod
    def _is_usable(entry: Mapping[str, Any]) -> bool:
        place = _place_of(entry.get("dataset_source", "builtin"))
        return place is None or bool(entry.get(place))


class _Row:
    """One dataset: its controls and the rest of its settings."""

    def __init__(self, owner: MixtureRows, entry: Mapping[str, Any], report: Report) -> None:
        self._owner, self._rest, self._drawing = owner, dict(entry), Drawing()
        source = self._rest.pop("dataset_source", "builtin")
        place = self._rest.pop("dataset_path", None) or self._rest.pop("dataset_name", None) or ""
        self._rest.pop("dataset_name", None)
        offered = _SOURCES if source in _SOURCES else (*_SOURCES, source)
        options = [(choice_name("dataset_source", name), name) for name in offered]
        weight, name = self._rest.pop("weight", None), self._rest.pop("name", None)
        number = "" if weight is None else f"{weight:g}"
        self.controls: dict[str, Any] = {
            "source": ipywidgets.Dropdown(options=options, value=source, **_look("Data", "260px")),
            "place": ipywidgets.Text(value=place, continuous_update=False, **_look("Path or id", "320px")),
            "config": ipywidgets.Text(continuous_update=False, **_look("Configuration", "220px")),
            "column": ipywidgets.Dropdown(**_look("Text column", "260px")),
            "layout": ipywidgets.Dropdown(**_look("Conversation layout", "300px")),
            "kind": ipywidgets.Dropdown(
                options=[(name, kind) for kind, name in CHOICE_NAMES["data_kind"].items()], **_look("Kind of data", "260px")
            ),
            "weight": ipywidgets.Text(value=number, continuous_update=False, **_look("Weight", "130px")),
            "name": ipywidgets.Text(value=name or "", continuous_update=False, **_look("Name", "200px")),
        }  # fmt: skip
        self._draw_rest()
        for key, control in self.controls.items():
            control.add_class(f"tb-mixture-{key}")
            control.observe(guarded(self._changed, report), "value")
        self.share = markup_box("tb-mixture-share")
        self._found = markup_box("tb-mixture-found")
        self._read = TaskRow(
            "Read the first rows",
            "tb-mixture-rows",
            lambda _: owner.state.read_entry(self.entry()),
            self._show_read,
            report,
        )
        remove = button("Remove", "tb-mixture-remove", lambda _: owner.remove(self), report, "Take this dataset out")
        self.box = ipywidgets.VBox([row(*self.controls.values(), self.share, remove), self._read.box, self._found])
        self.box.add_class("tb-mixture-dataset")
        self.controls |= {"remove": remove, "share": self.share, "found": self._found, "first-rows": self._read.start}
        self.draw()

    def draw(self) -> None:
        """Show what the first rows hold, and the controls that have a meaning for it."""
        source = self.controls["source"].value
        found = self._owner.state.recognised_entry(self.entry())
        self._draw_rest(found.columns, found.layouts)
        layout = self._rest.get("conversation_layout")
        kind = SOURCE_KINDS.get(source)
        is_on_hub = kind is not None and kind.reader == "hub"
        shown = {
            "place": _place_of(source) is not None,
            "config": is_on_hub,
            "column": bool(found.columns) or self._rest.get("text_column") is not None,
            "layout": len(found.layouts) > 1 or layout is not None,
            "kind": bool(found.columns) or self._rest.get("data_kind", "auto") != "auto",
        }
        for key, is_shown in shown.items():
            self.controls[key].layout.display = None if is_shown else "none"
        unread = is_on_hub and not found.columns and bool(self.controls["place"].value.strip())
        self._read.box.layout.display = None if unread else "none"
        set_markup(self._found, small(found.sentence if found.columns else ""))

    def _draw_rest(self, columns: Sequence[str] = (), layouts: Sequence[str] = ()) -> None:
        with self._drawing:
            for key, setting, names in (("column", "text_column", columns), ("layout", "conversation_layout", layouts)):
                value, menu = self._rest.get(setting), self.controls[key]
                options = named_options(names, value, setting)
                if menu.options != options:
                    menu.options = options
                menu.value = value or ""
            self.controls["config"].value = self._rest.get("config_name") or ""
            self.controls["kind"].value = self._rest.get("data_kind", "auto")

    def _show_read(self, outcome: Outcome) -> None:
        self.draw()
        if outcome.error is not None:
            set_markup(self._found, problem_line(error_sentence(outcome.error)))

    @property
    def weight(self) -> float | None:
        """The weight that was typed; None for other text."""
        number = typed_number(self.controls["weight"].value.strip())
        return float(number) if number is not None and number > 0 else None

    def entry(self) -> dict[str, Any]:
        """The dataset as a mixture has it; a weight that is no number as it was typed, to be refused."""
        source, typed = self.controls["source"].value, self.controls["weight"].value.strip()
        values: dict[str, Any] = {**self._rest, "dataset_source": source}
        if (place := _place_of(source)) is not None and self.controls["place"].value.strip():
            values[place] = self.controls["place"].value.strip()
        if typed:
            number = typed_number(typed)
            values["weight"] = typed if number is None else number
        if name := self.controls["name"].value.strip():
            values["name"] = name
        return values

    def _changed(self, change: Mapping[str, Any]) -> None:
        if self._drawing:
            return
        if change["owner"] in (self.controls["source"], self.controls["place"]):
            for setting in _OF_ROWS:
                self._rest.pop(setting, None)
        else:
            settings = {
                "column": "text_column",
                "layout": "conversation_layout",
                "config": "config_name",
                "kind": "data_kind",
            }
            for key, setting in settings.items():
                if change["owner"] is self.controls[key]:
                    self._rest.pop(setting, None)
                    if change["new"].strip():
                        self._rest[setting] = change["new"].strip()
        self._owner.changed()


def _look(title: str, width: str) -> dict[str, Any]:
    layout = ipywidgets.Layout(width=width, max_width="100%")
    return {"description": title, "style": {"description_width": "initial"}, "layout": layout}


def _place_of(source: Any) -> str | None:
    """The setting that says where the data of a source are; None where they need none, or there is no such source."""
    kind = SOURCE_KINDS.get(source)
    return None if kind is None else kind.place
