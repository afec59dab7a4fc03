"""Showing things: in a notebook as output of the cell that runs, elsewhere as text on standard output.

Static outputs only: they are still there when the page is loaded again, in the saved notebook and on a code host.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from utils.environment import front_end
from utils.scrubbing import scrub
from utils.views.design import styled
from utils.views.html import Html, columns, element, table
from utils.views.tables import columns_text, summary_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def in_notebook() -> bool:
    """Whether this process is a notebook's kernel, where images and HTML can be shown. A terminal's IPython cannot."""
    return front_end() != "plain"


def show_figure(figure: Figure, description: str = "figure") -> bool:
    """Show the figure in a notebook, static and in the colours of the page; elsewhere nothing is shown.

    Args:
        figure: what to show.
        description: what it is, in words: the text form of the output.
    Returns:
        Whether it was shown. When not, name the file that it was saved in.
    """
    if not in_notebook():
        return False
    from utils.views.themed import themed_figure

    _publish({"text/html": styled(themed_figure(figure, description)), "text/plain": description})
    return True


def show_table(title: str, rows: Mapping[str, str]) -> None:
    """Show a two-column table: HTML with a text form in a notebook, text elsewhere."""
    plain = summary_text(title, rows)
    if in_notebook():
        _publish({"text/html": styled(table(title, rows)), "text/plain": plain})
    else:
        show_text(plain)


def show_columns(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Show a table with a row of column headers: HTML with a text form in a notebook, text elsewhere."""
    show_html(styled(columns(title, header, rows)), f"{title}\n{columns_text(header, rows)}")


def show_html(markup: Html, plain: str) -> None:
    """Show markup in a notebook, and `plain` elsewhere. `plain` is also the output's text form."""
    if in_notebook():
        _publish({"text/html": markup, "text/plain": plain})
    else:
        show_text(plain)


class LiveOutput:
    """A widget as a cell's output, to be replaced by something static that a saved notebook can show.

    Attributes:
        bundle: the output's content, by MIME type; display_id: its identity, which all its copies on a page share; None
            outside a kernel.
    """

    def __init__(self, widget: Any, plain: str) -> None:
        from IPython.display import display

        # As a bundle: shown as an object, a widget of ipywidgets 7 publishes itself and knows no display_id.
        view = {"version_major": 2, "version_minor": 0, "model_id": widget.model_id}
        self.bundle = {"application/vnd.jupyter.widget-view+json": view, "text/plain": plain}
        self._handle = display(self.bundle, raw=True, display_id=True)  # type: ignore[no-untyped-call]

    @property
    def display_id(self) -> str | None:
        """Identity of the output; None outside a kernel."""
        return None if self._handle is None else str(self._handle.display_id)

    def show_again(self) -> None:
        """Show the widget in the running cell's output too."""
        from IPython.display import display

        if self._handle is not None:
            display(self.bundle, raw=True, display_id=self.display_id)  # type: ignore[no-untyped-call]

    def describe(self, plain: str) -> None:
        """Change the output's text form, which is what a saved notebook keeps of a widget."""
        self.bundle = {**self.bundle, "text/plain": plain}
        if self._handle is not None:
            self._handle.update(self.bundle, raw=True)

    def replace(self, markup: Html, plain: str) -> None:
        """Put static markup in the widget's place. Outside a kernel there is no place, and nothing happens."""
        if self._handle is not None:
            self._handle.update({"text/html": markup, "text/plain": plain}, raw=True)


class KeptCopy:
    """A static output beside a widget, which the style sheet hides while the page has a live view (`tb-copy`).

    It is what a notebook shows that was saved during a run and opened again without its kernel. Nothing is shown before the
    first `keep`, and nothing outside a kernel.
    """

    def __init__(self) -> None:
        self._handle: Any = None

    def keep(self, markup: Html, plain: str) -> None:
        """Put `markup` in place of what was kept before."""
        from IPython.display import display

        bundle = {"text/html": element("div", markup, class_="tb-copy"), "text/plain": plain}
        if self._handle is None:
            self._handle = display(bundle, raw=True, display_id=True)  # type: ignore[no-untyped-call]
        else:
            self._handle.update(bundle, raw=True)

    def drop(self) -> None:
        """Keep nothing any more."""
        if self._handle is not None:
            self._handle.update({"text/html": "", "text/plain": ""}, raw=True)
            self._handle = None


def show_text(text: str) -> None:
    """Print `text` on standard output, without secrets. Characters that the terminal's encoding lacks become escapes."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    # Flushed, so that a log file or a pipe shows a long training's progress while it happens.
    print(scrub(text).encode(encoding, "backslashreplace").decode(encoding), flush=True)  # noqa: T201 - what it is for


def _publish(bundle: Mapping[str, str]) -> None:
    from IPython.display import display

    display(dict(bundle), raw=True)  # type: ignore[no-untyped-call]
