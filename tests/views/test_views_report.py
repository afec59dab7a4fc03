"""A report of checks as HTML and text: nothing in it becomes markup, and every verdict is a word."""

from __future__ import annotations

import base64
from html.parser import HTMLParser

from matplotlib.figure import Figure

from utils.views.html import text
from utils.views.report import page, report_html, report_text

HOSTILE = '"><script>alert(1)</script>'
ROWS = [
    ("shapes", "pass", "Five shapes.", ""),
    (HOSTILE, "fail", HOSTILE, HOSTILE),
    ("speed", "not run", "Nothing was checked.", "Give vocab_size."),
]


class Tags(HTMLParser):
    """Every tag with its attributes."""

    def __init__(self, markup):
        super().__init__()
        self.found = []
        self.feed(markup)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))


def test_no_text_of_a_report_becomes_markup():
    for markup in (report_html(HOSTILE, ROWS, {HOSTILE: Figure()}), page(HOSTILE, text(HOSTILE))):
        tags = Tags(markup).found
        assert "script" not in {tag for tag, _ in tags}
        assert not any(name.startswith("on") for _, attributes in tags for name in attributes)


def test_every_verdict_is_told_in_words():
    markup, plain = report_html("Tier 1", ROWS), report_text("Tier 1", ROWS)
    for verdict in ("pass", "fail", "not run"):
        assert f">{verdict}<" in markup
        assert f"{verdict}: " in plain


def test_pictures_are_part_of_the_markup_and_have_a_text():
    figure = Figure(figsize=(1, 1))
    figure.subplots().plot([1, 2])
    images = [
        attributes for tag, attributes in Tags(report_html("Tier 1", ROWS, {"flow": figure})).found if tag == "img"
    ]
    assert len(images) == 1
    kind, data = images[0]["src"].split(",")
    assert kind == "data:image/png;base64"
    assert base64.b64decode(data).startswith(b"\x89PNG")
    assert "flow" in images[0]["alt"]


def test_the_text_form_says_what_to_do_only_where_there_is_something():
    plain = report_text("Tier 1", ROWS[:1])
    assert plain == "Tier 1\n  shapes  pass: Five shapes."
    assert "What to do: Give vocab_size." in report_text("Tier 1", ROWS)
