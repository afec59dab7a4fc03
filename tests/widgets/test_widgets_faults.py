"""What a hasty or unlucky user does to the widgets, and what they bear."""

from __future__ import annotations

from utils.training.engine.interrupts import Control
from utils.ui.live_picture import live_picture
from utils.ui.live_run import LiveRun, RunEvent
from utils.ui.setup_config import SetupConfig
from utils.ui.wizard_state import WizardState
from widgets.dashboard import Dashboard
from widgets.guarded import watching
from widgets.live_views import REDRAW_S, Redraws
from widgets.wizard_view import WizardView


def test_f46_failing_handlers_double_clicks_and_ten_thousand_updates_are_borne():
    view = WizardView(WizardState(SetupConfig(vocab_size=64)))
    old_next = view["next"]
    old_next.click()
    old_next.click()  # the second click of a double click meets a page that is gone
    assert view.state.current.name == "tokenizer"
    view["back"].click()
    view["back"].click()
    assert view.state.current.name == "dataset"

    control, live, redraws, drawn = Control(), LiveRun(), Redraws(), 0
    dashboard = Dashboard(control)
    for number in range(10_000):  # a thousand steps a second for ten seconds
        live.apply(RunEvent("on_step_end", number / 1000, number + 1, {"train/loss": 1.0, "epoch": 0}))
        if redraws.due(number / 1000, live.step):
            dashboard.draw(live_picture(live), live.phase, "Training")
            drawn += 1
    assert 2 <= drawn <= 10 / REDRAW_S + 1
    assert drawn / 10 <= 4

    def fail(_):
        raise RuntimeError("broken on purpose")

    control.request_stop = fail
    with watching() as failures:
        dashboard.controls.stop.click()
    assert [str(error) for error in failures] == ["broken on purpose"]
    assert "broken on purpose" in "".join(getattr(child, "value", "") for child in dashboard.box.children)
