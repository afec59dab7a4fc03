"""show_live: the live view again, after the page was loaded anew, the notebook was reopened or the kernel was restarted.

What a page shows of a running cell is lost when the page is loaded again before the notebook was saved; what a saved notebook
holds of a widget is lost with its kernel. Nothing of the run is: it is in this kernel, or in the run's folder.
"""

from __future__ import annotations

import ast
import asyncio
from collections.abc import Sequence
from pathlib import Path

from utils.environment import UiMode, ui_mode
from utils.errors import ConfigError
from utils.storage import FolderLock
from utils.ui.live_picture import live_picture, phase_text, sentence
from utils.ui.live_run import LiveRun
from utils.ui.run_on_disk import StopFile, can_finish_early, run_on_disk
from utils.ui.runs import newest_run
from utils.views.display import LiveOutput, show_html, show_text
from utils.views.live import live_view
from widgets.pump import running_request

# Seconds between two looks at the folder of a run in another process.
FOLLOW_S = 2.0

#: Text form of a live view: what a page shows that has lost its widgets, or cannot show any.
LIVE_TEXT = "Live view of a training. Execute show_live() to see it again."

# Requests whose cells were given the live view while they waited, and tasks that follow a run: a loop keeps no task alive.
_served: set[str] = set()
_following: set[asyncio.Task[None]] = set()


def show_live(run: str | Path | None = None, *, output_dir: str | Path = "runs", ui: str | None = None) -> None:
    """Show the run that is under way, with its buttons; where there is none, the latest run. Returns at once.

    After the page was loaded again during `train_live`, execute a cell with `show_live()`: it gets the live view at once, with
    Stop, Pause and Save, although it waits for the training cell to end. In another kernel the view follows the run's folder,
    and Stop works through its STOP file, Finish now through its FINISH file. A run that is over is shown as it ended: folded
    to a line where none was asked for, so that it is not taken for the run that a later cell trains.

    Args:
        run: a run's name in `output_dir`, or its folder; None: the run under way in this kernel, else one in `output_dir` that
            is under way, else the last one of this kernel, else the one in `output_dir` that was written to last.
        output_dir: where runs are.
        ui: "auto", "widget", "html", "text" or "none" (`utils.environment.ui_mode`).
    Raises:
        ConfigError: there is no such run.
    """
    from widgets.live import current_session, last_run

    mode = ui_mode(ui)
    was_served = running_request() in _served
    folded = run is None and not was_served  # somebody watched it here
    if was_served:
        from IPython.display import clear_output

        clear_output(wait=True)  # type: ignore[no-untyped-call]  # this cell was given the view while it waited
    folder = newest_run(output_dir) if run is None else _folder_of(run, Path(output_dir))
    session, ended = current_session(), last_run()
    if session is not None and (run is None or _is_of(session.live, folder)):
        session.show_again(mode)
    elif ended is not None and (not _under_way(folder) if run is None else _is_of(ended.live, folder)):
        show_state(mode, ended.live, ended.stop_reason, ended.notices, folded=folded)
    elif folder is not None:
        _show_folder(folder, mode, folded)
    elif mode != "none":
        show_text(f"No run in {Path(output_dir).absolute()} yet: run the training cell first.")


def _is_of(live: LiveRun, folder: Path | None) -> bool:
    return folder is not None and live.run_dir is not None and folder.resolve() == Path(live.run_dir).resolve()


def _under_way(folder: Path | None) -> bool:
    return folder is not None and FolderLock(folder / "lock").is_taken()


def _show_folder(folder: Path, mode: UiMode, folded: bool) -> None:
    live, stop_reason = run_on_disk(folder)
    if mode == "widget" and not live.over:
        _follow(folder)
    else:
        show_state(mode, live, stop_reason, folded=folded)


def show_state(
    mode: UiMode, live: LiveRun, stop_reason: str | None, notices: Sequence[str] = (), *, folded: bool = False
) -> None:
    """Show a run as it stands now, without widgets; folded to a line if it is over and `folded`."""
    if mode == "text":
        errors = [live.error] if live.error else []
        show_text("\n".join([f"{live.name or 'Training'}: {sentence(live, stop_reason)}", *notices, *errors]))
    elif mode != "none":
        said = f"Latest run, {live.name or 'unnamed'}: {sentence(live, stop_reason)}" if folded and live.over else ""
        show_html(live_view(live_picture(live, notices, stop_reason), said), said or sentence(live, stop_reason))


def asks_for_live_view(code: str) -> bool:
    """Whether a cell calls `show_live()` for the live view of the run under way: without naming a run, a folder or another kind
    of output."""
    try:
        tree = ast.parse(_without_magics(code))
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # no Python at all
        return False
    calls = (node for node in ast.walk(tree) if isinstance(node, ast.Call) and not node.args)
    return any(
        "show_live" in (getattr(call.func, "id", ""), getattr(call.func, "attr", ""))
        and all(map(_is_widget, call.keywords))
        for call in calls
    )


def _without_magics(code: str) -> str:
    """`code` with lines such as `%matplotlib inline` as the calls that IPython makes of them."""
    from IPython.core.inputtransformer2 import TransformerManager

    return str(TransformerManager().transform_cell(code))  # type: ignore[no-untyped-call]


def _is_widget(keyword: ast.keyword) -> bool:
    """Whether a call's keyword is `ui="widget"`, or "auto", which is the same where a cell can be given the view."""
    return (
        keyword.arg == "ui"
        and isinstance(keyword.value, ast.Constant)
        and keyword.value.value in ("widget", "auto", None)
    )


def note_served(request_id: str) -> bool:
    """Note that a waiting cell is given the view; False when it has it already."""
    if request_id in _served:
        return False
    _served.add(request_id)
    return True


def _folder_of(run: str | Path, output_dir: Path) -> Path:
    for folder in (output_dir / run, Path(run)):
        if folder.is_dir():
            return folder.absolute()
    raise ConfigError(
        f"There is no run {str(run)!r} in {output_dir.absolute()}; `show_runs({str(output_dir)!r})` lists those that are there."
    )


def _follow(folder: Path) -> None:
    """Show the run in `folder` and keep the view up to date until the run is over, by a task of the kernel's event loop."""
    view = FollowView(folder)
    task = asyncio.get_running_loop().create_task(view.follow())
    _following.add(task)
    task.add_done_callback(_following.discard)


class FollowView:
    """The live view of a run in another process, drawn from its folder.

    Attributes:
        dashboard: its widgets.
    Args:
        shown: whether it is the output of the running cell, which static HTML replaces in the end; else it is part of a panel.
    """

    def __init__(self, folder: Path, *, shown: bool = True) -> None:
        from widgets.dashboard import Dashboard

        self._folder = folder
        self.dashboard = Dashboard(StopFile(folder), can_finish=can_finish_early(folder))
        self._output = LiveOutput(self.dashboard.box, LIVE_TEXT) if shown else None

    async def follow(self, every_s: float = FOLLOW_S) -> None:
        """Draw until the run is over; then leave static HTML. An error ends it and is shown in the view."""
        try:
            while True:
                live, stop_reason = run_on_disk(self._folder)
                self._draw(live, stop_reason)
                if live.over:
                    break
                await asyncio.sleep(every_s)
            if self._output is not None:
                self._output.replace(live_view(live_picture(live, (), stop_reason)), sentence(live, stop_reason))
        except Exception as error:  # noqa: BLE001 - nobody awaits this task, so the view itself must show what ended it
            self.dashboard.report(error)

    def _draw(self, live: LiveRun, stop_reason: str | None) -> None:
        picture = live_picture(live, (), stop_reason)
        self.dashboard.draw(picture, live.phase, phase_text(live, stop_reason))
