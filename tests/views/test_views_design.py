"""The design: readable on every page, described in docs/DESIGN.md, and the only style sheet there is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from utils.views.design import PRIMARY, TOKENS, sheet, styled
from utils.views.html import pill, text

ROOT = Path(__file__).resolve().parents[2]

#: Text colour, its opacity and the background of pages that the library is shown on.
PAGES = {
    "JupyterLab light": ("#000000", 0.87, "#ffffff"),
    "JupyterLab dark": ("#ffffff", 1.0, "#111111"),
    "JupyterLab dark, raised": ("#ffffff", 1.0, "#212121"),
    "Colab light": ("#212121", 1.0, "#ffffff"),
    "Colab dark": ("#e3e3e3", 1.0, "#383838"),
    "file light": ("#000000", 1.0, "#ffffff"),
    "file dark": ("#ffffff", 1.0, "#121212"),
}
#: Tokens that text is never written in.
NOT_TEXT = ("line", "card")


def test_the_arrow_of_a_list_has_the_colour_of_the_text():
    """That of ipywidgets is black in every theme."""
    rules = sheet(controls=True).split("}")
    assert any(".widget-dropdown select{appearance:none" in rule and "var(--tb-ink)" in rule for rule in rules)


def rgb(colour):
    return [int(colour[at : at + 2], 16) for at in (1, 3, 5)]


def luminance(colour):
    parts = [c / 255 / 12.92 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in colour]
    return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]


def contrast(first, second):
    dark, light = sorted((luminance(first), luminance(second)))
    return (light + 0.05) / (dark + 0.05)


def seen(token, ink, opacity, ground):
    """The colour of a token on a page: the mixture with the page's text colour, over the background."""
    share = token.share / 100
    if token.hue is None:
        alpha, mixed = opacity * (1 - share), rgb(ink)
    else:
        alpha = share + (1 - share) * opacity
        mixed = [(h * share + i * (1 - share) * opacity) / alpha for h, i in zip(rgb(token.hue), rgb(ink), strict=True)]
    return [alpha * c + (1 - alpha) * g for c, g in zip(mixed, rgb(ground), strict=True)]


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize("name", [name for name in TOKENS if name not in NOT_TEXT])
def test_every_colour_of_text_can_be_read_on_every_page(name, page):
    _, _, ground = PAGES[page]
    assert contrast(seen(TOKENS[name], *PAGES[page]), rgb(ground)) >= 4.5


def test_the_label_of_the_primary_button_can_be_read():
    assert contrast(rgb(PRIMARY), (255, 255, 255)) >= 4.5


def test_the_documentation_lists_the_tokens_as_they_are():
    page = (ROOT / "docs" / "DESIGN.md").read_text(encoding="utf-8")
    listed = dict(re.findall(r"^\| `--tb-([\w-]+)` \| (.*?) \|", page, re.MULTILINE))
    mixed = {
        name: f"{100 - token.share} % of the text colour" if token.hue is None else f"{token.share} % of `{token.hue}`"
        for name, token in TOKENS.items()
    }
    assert listed == mixed
    assert PRIMARY in page


@pytest.mark.parametrize("controls", [False, True])
def test_the_style_sheet_defines_every_colour_it_uses_and_loads_nothing(controls):
    css = sheet(controls)
    used, defined = set(re.findall(r"var\(--tb-([\w-]+)\)", css)), set(re.findall(r"--tb-([\w-]+):", css))
    assert used <= defined
    assert "url(" not in css
    assert "@import" not in css
    assert "PRIMARY" not in css


def test_no_other_module_has_a_style_sheet():
    found = [
        str(path.relative_to(ROOT))
        for folder in ("utils", "widgets", "cli")
        for path in (ROOT / folder).rglob("*.py")
        if "style_sheet(" in path.read_text(encoding="utf-8")
    ]
    assert sorted(found) == ["utils/views/design.py", "utils/views/html.py"]


def test_static_markup_brings_its_style_sheet_along():
    markup = styled(pill("✓", "pass <b>", "tb-pass"), text("<i>"))
    assert markup.count("<style>") == 1
    assert "<b>" not in markup
    assert "<i>" not in markup
