"""The frame of the widgets: one style sheet and one primary button on each screen, steps with icon, word and colour."""

from __future__ import annotations

import ipywidgets
import pytest

from utils.training.engine.interrupts import Control
from utils.ui.preset_fitting import find_preset, prepared
from utils.ui.wizard_state import WizardState
from utils.ui.wizard_steps import STEPS
from widgets.dashboard import Dashboard
from widgets.wizard_view import WizardView


@pytest.fixture
def view():
    return WizardView(WizardState(prepared(find_preset("starter"), None, {}), None, "starter", {}))


def inside(widget):
    if widget.layout.display != "none":
        yield widget
        for child in getattr(widget, "children", ()):
            yield from inside(child)


def states(made):
    return {name for name in made._dom_classes if name.startswith("tb-state-")}


@pytest.mark.parametrize("step", STEPS[:-1], ids=[step.name for step in STEPS[:-1]])
def test_every_step_has_one_primary_button_and_it_leads_on(view, step):
    view[f"step:{step.name}"].click()
    found = [w for w in inside(view) if isinstance(w, ipywidgets.Button) and w.button_style == "primary"]
    assert found == [view["next"]]


def test_a_step_shows_its_state_by_icon_class_and_word(view):
    view["next"].click()
    done, current, ahead = (view[f"step:{name}"] for name in ("dataset", "tokenizer", "training"))
    assert (states(done), done.icon, done.description) == ({"tb-state-done"}, "check", "1 Data, done")
    assert (states(current), current.icon) == ({"tb-state-current"}, "circle")
    assert current.description == "2 Tokenizer, current"
    assert (states(ahead), ahead.icon, ahead.description) == ({"tb-state-open"}, "circle-o", "4 Training")


def test_a_step_with_a_problem_says_so(view):
    with pytest.raises(ValueError, match="output_dir"):
        view.state.set("output_dir", "")
    made = view["step:training"]
    assert "tb-state-problem" in states(made)
    assert made.icon == "exclamation-circle"
    assert "1 problem" in made.description


@pytest.mark.parametrize(
    "make", [lambda view: view, lambda view: Dashboard(Control()).box], ids=["wizard", "dashboard"]
)
def test_a_panel_brings_one_style_sheet(view, make):
    sheets = [w for w in inside(make(view)) if isinstance(w, ipywidgets.HTML) and "<style>" in w.value]
    assert len(sheets) == 1
    assert ".jupyter-button" in sheets[0].value
