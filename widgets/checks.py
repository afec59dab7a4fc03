"""Model checks in a notebook's cell: a line that says what runs and how long it takes, and a Stop that works meanwhile.

The checks run in a thread of their own and the cell awaits them, so that the kernel delivers clicks (`widgets.pump`). A stop
takes effect at the model's next forward pass; the report so far is returned.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import ipywidgets

from utils.environment import ui_mode
from utils.errors import ConfigError
from utils.ui.background import Cancelled, Progress
from utils.views.display import LiveOutput, show_html, show_text
from utils.views.html import Html, alert, element, status, text
from widgets.background_task import Outcome, TaskRow
from widgets.forms import button, markup_box, panel, paragraph, row, set_markup
from widgets.guarded import error_details, error_sentence
from widgets.pump import AwaitedWork, Pump

if TYPE_CHECKING:
    from utils.checks import CheckProgress, CheckReport

Tier = Literal[1, 2, 3, "all"]

# Seconds between two drawings of the progress.
_REDRAW_S = 0.5
_RUNNING = "The checks are running. The kernel's interrupt stops them."
_TIMING = "Measuring how long these checks take here …"


async def run_checks(
    model: Any, config: Any = None, *, tier: Tier = 1, ui: str | None = None, **arguments: Any
) -> CheckReport:
    """Run a tier of model checks, awaited in a notebook's cell, and show the report.

    Shows which check runs, elapsed time and expected total, and a Stop button. Stop and the kernel's interrupt end the checks
    at the model's next forward pass; the report so far is shown and returned, with the rest "not run". The model is left as it
    was. In a script use `run_all_tier1_tests` and its like.

    Args:
        model, config, arguments: as for `run_all_tier1_tests`, or the function of the tier. `task_spec` and `tokenizer` are
            those of `data`, a PreparedData, unless they are given.
        tier: 1, 2, 3 or "all".
        ui: "auto", "widget", "html", "text" or "none" (`utils.environment.ui_mode`).
    Raises:
        ConfigError: no such tier, or a check in `only` that it does not have.
    """
    run, _ = _tier(tier)
    arguments = _with_those_of_data(arguments)
    session = _Session(lambda **told: run(model, config, **arguments, **told))
    mode = ui_mode(ui)
    view: _View = {"widget": _WidgetView, "html": _HtmlView, "text": _TextView, "none": _View}[mode](session)
    report = await session.run(view)
    view.finish(report)
    return report


def _with_those_of_data(arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments with task and tokenizer of the data, where there are data and these are not given."""
    known = {name: getattr(arguments.get("data"), name, None) for name in ("task_spec", "tokenizer")}
    return {**{name: value for name, value in known.items() if value is not None}, **arguments}


class _Session:
    """One run of checks in a thread."""

    def __init__(self, run: Callable[..., CheckReport]) -> None:
        self.stop = threading.Event()
        self.delivers = True
        self._run, self._began = run, time.monotonic()
        self._newest: CheckProgress | None = None

    async def run(self, view: _View) -> CheckReport:
        """Run the checks; an interrupt of the kernel stops them."""
        work = functools.partial(self._run, progress=self._note, should_stop=self.stop.is_set)
        awaited, pump = AwaitedWork("trainbook-checks", work), Pump()

        def alive() -> bool:
            self.delivers = pump.delivers
            view.show(self.newest)
            return awaited.thread.is_alive()

        try:
            await awaited.ended(pump, alive, lambda _: self.stop.set())
        except (KeyboardInterrupt, asyncio.CancelledError):  # which one depends on ipykernel
            if awaited.thread.is_alive():  # interrupted again
                raise
        if awaited.error is not None:
            raise awaited.error
        assert awaited.result is not None
        return awaited.result

    def _note(self, progress: CheckProgress) -> None:
        self._newest, self._began = progress, time.monotonic() - progress.elapsed_s

    @property
    def newest(self) -> CheckProgress | None:
        """The last progress with the time of now."""
        newest = self._newest
        return None if newest is None else replace(newest, elapsed_s=time.monotonic() - self._began)


class _View:
    """How a run of checks is shown; this one shows nothing."""

    def __init__(self, session: _Session) -> None:
        self._session = session

    def show(self, progress: CheckProgress | None) -> None:
        """Draw, when it is time."""

    def finish(self, report: CheckReport) -> None:
        """Leave what stays in the saved notebook."""


class _TextView(_View):
    """A line per check, then the report."""

    _shown = ""

    def show(self, progress: CheckProgress | None) -> None:
        if progress is not None and progress.name and progress.name != self._shown:
            self._shown = progress.name
            show_text(progress.sentence)

    def finish(self, report: CheckReport) -> None:
        show_text(report.to_text())


class _HtmlView(_View):
    """The report, as static HTML."""

    def finish(self, report: CheckReport) -> None:
        show_html(report.to_html(), report.to_text())


class _WidgetView(_View):
    """Progress and Stop; in the end their place is taken by the report, which a saved notebook can show."""

    def __init__(self, session: _Session) -> None:
        super().__init__(session)
        self._line = markup_box("tb-checks-progress", paragraph("Preparing the checks …"))
        self._status = ipywidgets.HTML(status("", spoken_only=True))
        self.stop = button(
            "Stop", "tb-checks-stop", self._stop, self._report, "End the checks and keep the report so far."
        )
        box = panel(row(self.stop, self._line), self._status)
        self._output = LiveOutput(box, _RUNNING)
        self._drawn_s, self._spoken = 0.0, ""

    def show(self, progress: CheckProgress | None) -> None:
        now = time.monotonic()
        if progress is None or now - self._drawn_s < _REDRAW_S:
            return
        self._drawn_s = now
        stopping = self._session.stop.is_set()
        note = (
            ""
            if self._session.delivers
            else " Stop with the kernel's interrupt: this kernel delivers no clicks meanwhile."
        )
        set_markup(self._line, progress_line(progress, "Stopping. " if stopping else "", note))
        if progress.name != self._spoken:  # screen readers hear each check once, not each second
            self._spoken = progress.name
            self._status.value = status(progress.sentence, spoken_only=True)

    def finish(self, report: CheckReport) -> None:
        self._output.replace(report.to_html(), report.to_text())

    def _stop(self, _: Any) -> None:
        self._session.stop.set()
        self.stop.disabled, self.stop.description = True, "Stopping…"

    def _report(self, error: BaseException) -> None:
        set_markup(self._line, alert(error_sentence(error), error_details(error)))


def progress_line(progress: CheckProgress, before: str = "", after: str = "") -> Html:
    """A progress bar and the sentence that says what runs."""
    bar = element(
        "progress", value=f"{progress.fraction:.3f}", max=1, aria_label="share of the checks that is done",
        style="width:200px;vertical-align:middle;margin-right:8px",
    )  # fmt: skip
    return element("div", bar, text(f"{before}{progress.sentence}{after}"), style="line-height:1.4")


# ---- checks that a click starts ----


class _Relay:
    """Passes progress on to a `Progress`, with a clock that moves while a check runs."""

    def __init__(self, progress: Progress) -> None:
        self._progress, self._began = progress, 0.0
        self._newest: CheckProgress | None = None

    def note(self, newest: CheckProgress) -> None:
        """Called before each check."""
        self._newest, self._began = newest, time.monotonic() - newest.elapsed_s
        self._tell()

    def is_stopped(self) -> bool:
        """Called before each call of a module, which is often enough for the clock."""
        self._tell()
        return self._progress.cancelled

    def _tell(self) -> None:
        if self._newest is not None and self._newest.name:
            now = replace(self._newest, elapsed_s=time.monotonic() - self._began)
            with contextlib.suppress(Cancelled):  # the report so far is wanted, so the checks end by `is_stopped`
                self._progress.report(now.sentence)


class OfferedChecks:
    """Checks that a button starts.

    Attributes:
        report: of the last run; None before any has ended.
        box: what is shown.
    """

    def __init__(self, run: Callable[..., CheckReport], label: str, sentence: str) -> None:
        self.report: CheckReport | None = None
        self._run = run
        self._shown = markup_box("tb-offered-report")
        self._job = TaskRow(label, "tb-offer-checks", self._work, self._done, self._failed)
        self._job.cancel.description = "Stop"
        self._sentence = markup_box("tb-offered-sentence")
        self.box = panel(self._sentence, self._job.box, self._shown)
        self.say(sentence)

    def say(self, sentence: str) -> None:
        """Put a sentence over the button."""
        set_markup(self._sentence, paragraph(sentence))

    def _work(self, progress: Progress) -> CheckReport:
        relay = _Relay(progress)
        with progress.undisturbed():
            return self._run(progress=relay.note, should_stop=relay.is_stopped)

    def _done(self, outcome: Outcome) -> None:
        if outcome.error is not None:
            self._failed(outcome.error)
        elif outcome.result is not None:
            self.report = outcome.result
            set_markup(self._shown, outcome.result.to_html())

    def _failed(self, error: BaseException) -> None:
        set_markup(self._shown, alert(error_sentence(error), error_details(error)))


def offer_checks(
    model: Any, config: Any = None, *, tier: Tier = 3, ui: str | None = None, **arguments: Any
) -> OfferedChecks | None:
    """Show a button that runs a tier of checks, with the time that it will take here; the cell returns at once.

    Without widgets, where nobody can click, a line says how long it takes and how to run it.

    Args:
        model, config, tier, ui, arguments: as for `run_checks`.
    Returns:
        The offer, whose `report` is set when the checks have run; None without widgets.
    Raises:
        ConfigError: no such tier.
    """
    run, name = _tier(tier)
    arguments = _with_those_of_data(arguments)
    mode = ui_mode(ui)
    how = f"To run it: {name}(model, config)."
    if mode == "none":
        return None
    if mode != "widget":
        show_text(f"{_offer(model, config, tier, arguments)} {how}")
        return None
    offered = OfferedChecks(
        lambda **told: run(model, config, **arguments, **told), f"Run {_title(tier).lower()} checks", _TIMING
    )
    output = LiveOutput(offered.box, _TIMING)
    try:
        sentence = _offer(model, config, tier, arguments)
    except BaseException:
        offered.say("The time was not measured: this cell was interrupted or failed.")
        raise
    offered.say(sentence)
    output.describe(f"{sentence} {how}")
    return offered


def _offer(model: Any, config: Any, tier: Tier, arguments: Mapping[str, Any]) -> str:
    from utils.checks import expected_seconds, tier3_minutes

    sizes = {name: arguments[name] for name in ("task_spec", "tokenizer") if name in arguments}
    only = arguments.get("only")
    expected = expected_seconds(_names(tier, only, trains=False), model, config, **sizes)
    if tier in (3, "all"):
        known = {name: arguments[name] for name in ("data", "only", "time_limit_minutes") if name in arguments}
        expected = None if expected is None else expected + 60 * tier3_minutes(model, config, **sizes, **known)
    time_here = (
        "Its time is not known for this model." if expected is None else f"It takes about {_rounded(expected)} here."
    )
    trains = "trains a copy of the model" if tier in (3, "all") else "looks at the model"
    return f"{_title(tier)} {trains}. {time_here}"


def _rounded(seconds: float) -> str:
    """An estimate is not known to the second."""
    return f"{5 * max(1, round(seconds / 5))} s" if seconds < 90 else f"{round(seconds / 60)} min"


def _title(tier: Tier) -> str:
    return "All tiers" if tier == "all" else f"Tier {tier}"


def _tier(tier: Tier) -> tuple[Callable[..., CheckReport], str]:
    """The function that runs a tier, and its name."""
    from utils import checks

    names = {1: "run_all_tier1_tests", 2: "run_all_tier2_tests", 3: "run_all_tier3_tests", "all": "run_all_tests"}
    if tier not in names:
        raise ConfigError(f"tier is one of {', '.join(map(str, names))}; got {tier!r}.")
    return getattr(checks, names[tier]), names[tier]


def _names(tier: Tier, only: Sequence[str] | None, *, trains: bool = True) -> list[str]:
    """Names of a tier's checks; without those of tier 3 when trains is False."""
    from utils.checks.tier1 import TIER1
    from utils.checks.tier2 import TIER2
    from utils.checks.tier3 import TIER3

    third = [TIER3] if trains else []
    tiers: Mapping[Any, Sequence[Any]] = {1: [TIER1], 2: [TIER2], 3: third, "all": [TIER1, TIER2, *third]}
    return [name for checks in tiers[tier] for name in checks if only is None or name in only]
