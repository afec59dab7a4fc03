"""Figures of matplotlib in a page: in the colours of the page, and without reaching beyond themselves."""

from __future__ import annotations

import re

import pytest
from matplotlib.figure import Figure

from utils.views.design import sheet
from utils.views.themed import MOST_SVG, themed_figure


def drawn(count=2, colour="#1f4e9c", name="loss"):
    figure = Figure(figsize=(4, 3))
    axes = figure.subplots()
    axes.bar(range(count), range(count), color=colour, label=name)
    axes.axhline(0.5, color="#888888")
    axes.grid(visible=True)
    axes.set_title(name)
    axes.legend()
    return figure


def test_ink_is_the_page_s_and_nothing_is_black_or_white():
    markup = themed_figure(drawn(), "bars")
    colours = set(re.findall(r' (?:fill|stroke)="([^"]+)"', markup))
    assert colours == {"currentColor", "none", "#3b82d6", "#8b8b8b", "#b8b8b8"}
    assert markup.startswith('<svg viewBox="0 0 288 216" role="img" aria-label="bars" fill="currentColor"')


def test_colours_of_curves_are_those_of_the_design():
    classes = set(re.findall(r"tb-[cf]-[a-z]+", themed_figure(drawn(), "bars")))
    assert classes == {"tb-f-train", "tb-c-soft", "tb-c-line"}
    assert all(f".{name}{{" in sheet() for name in classes)


def test_two_figures_on_a_page_share_nothing_and_style_nothing_else():
    first, second = (themed_figure(drawn(), "bars") for _ in range(2))
    ids = [set(re.findall(r' id="([^"]+)"', markup)) for markup in (first, second)]
    assert ids[0]
    assert not ids[0] & ids[1]
    for markup in (first, second):
        assert set(re.findall(r"(?:url\(#|href=\"#)([^)\"]+)", markup)) <= set(re.findall(r' id="([^"]+)"', markup))
        assert "<style" not in markup


def test_names_in_a_figure_are_text():
    markup = themed_figure(drawn(name="<script>alert(1)</script> & more"), '"><script>')
    assert "<script" not in markup
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; more" in markup


@pytest.mark.parametrize(("count", "tag"), [(20, "svg"), (1200, "img")])
def test_a_figure_of_very_many_elements_is_an_image(count, tag):
    markup = themed_figure(drawn(count), "bars")
    assert markup.startswith(f"<{tag} ")
    assert len(markup) < MOST_SVG
