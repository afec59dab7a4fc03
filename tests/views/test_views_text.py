"""Tables and HTML: aligned, escaped, and shown where they can be."""

from __future__ import annotations

import pytest

from utils.views.curves import training_curves
from utils.views.display import show_figure, show_table, show_text
from utils.views.html import table, text
from utils.views.tables import columns_text, summary_text, visible

HOSTILE = ["<script>alert(1)</script>", "<img src=x onerror='alert(1)'>", '" onmouseover="alert(1)', "</table>&amp;"]


def test_summary_values_line_up():
    assert summary_text("Run", {"loss": "3.2", "steps": "100"}) == "Run\n  loss   3.2\n  steps  100"


def test_summary_lines_of_one_value_stay_together():
    assert summary_text("Run", {"note": "one\ntwo"}) == "Run\n  note  one\n        two"


def test_columns_line_up_under_their_header():
    assert columns_text(("a", "name"), [("1", "x"), ("100", "y")]) == "a    name\n---  ----\n1    x\n100  y"


@pytest.mark.parametrize("hostile", HOSTILE)
def test_f34_no_text_becomes_markup(hostile):
    for markup in (text(hostile), table(hostile, {hostile: hostile})):
        assert hostile not in markup
        assert "<script" not in markup
        assert "<img" not in markup
        assert '" onmouseover' not in markup


def test_html_follows_the_page_theme():
    markup = table("Run", {"loss": "3"})
    assert "style=" not in markup  # its colours are the design's, which tests/views/test_views_design.py checks
    assert "#" not in markup


def test_a_table_is_text_outside_a_notebook(capsys):
    show_table("Run", {"loss": "3.2"})
    assert capsys.readouterr().out == "Run\n  loss  3.2\n"


def test_no_figure_is_shown_outside_a_notebook(capsys):
    assert not show_figure(training_curves([]))
    assert capsys.readouterr().out == ""


def test_a_figure_in_a_notebook_follows_the_colours_of_the_page(monkeypatch):
    shown = []
    monkeypatch.setattr("utils.views.display.in_notebook", lambda: True)
    monkeypatch.setattr("IPython.display.display", lambda bundle, raw: shown.append(bundle))
    assert show_figure(training_curves([]), "Trials of mine")
    assert list(shown[0]) == ["text/html", "text/plain"]
    assert "currentColor" in shown[0]["text/html"]
    assert shown[0]["text/plain"] == "Trials of mine"


def test_text_that_the_terminal_cannot_encode_is_escaped(monkeypatch):
    import io
    import sys

    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    show_text("Größe …")
    sys.stdout.flush()
    assert raw.getvalue() == b"Gr\\xf6\\xdfe \\u2026\n"


@pytest.mark.parametrize(("token", "shown"), [("\n", "⏎"), ("  ", "␣␣"), (" the", " the"), ("a\n", "a⏎")])
def test_a_token_of_nothing_but_space_can_be_seen(token, shown):
    assert visible(token) == shown
