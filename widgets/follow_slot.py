"""A panel's place for the live view of a run, which a task of the kernel's event loop keeps up to date."""

from __future__ import annotations

import asyncio
from pathlib import Path

import ipywidgets

from utils.ui.live_picture import live_picture, sentence
from utils.ui.run_on_disk import run_on_disk
from utils.views.html import element
from utils.views.live import live_view
from widgets.attach import FollowView
from widgets.forms import markup_box


class FollowSlot:
    """A panel's place for one run at a time, drawn from its folder.

    Attributes:
        box: what is shown.
    """

    def __init__(self, css_class: str) -> None:
        self.box = ipywidgets.VBox([])
        self._css_class = css_class
        self._following: asyncio.Task[None] | None = None

    def show(self, *children: ipywidgets.Widget) -> None:
        """Show these in place of what was shown before."""
        if self._following is not None:
            self._following.cancel()
            self._following = None
        self.box.children = children

    def open(self, folder: Path) -> bool:
        """Show the live view of the run in `folder`, or how it ended; whether it is under way."""
        live, stop_reason = run_on_disk(folder)
        if live.over:
            picture = live_view(live_picture(live, (), stop_reason))
            self.show(markup_box(self._css_class, element("div", picture, title=sentence(live, stop_reason))))
            return False
        view = FollowView(folder, shown=False)
        self.show(view.dashboard.box)
        self._following = asyncio.get_running_loop().create_task(view.follow())
        return True
