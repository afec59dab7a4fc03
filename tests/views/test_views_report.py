"""A report of checks as HTML and text: nothing in it becomes markup, and every verdict is a word."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest
from matplotlib.figure import Figure

from tests.kit.browser import needs_chromium, running_browser
from utils.check_result import CheckReport, CheckResult
from utils.views.html import style_sheet, text
from utils.views.report import Details, page, report_html, report_text
from utils.views.values import Bounds, value_rows, value_text

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


@pytest.mark.parametrize(("passed", "folded"), [(8, False), (9, True)])
def test_findings_come_first_and_many_passes_are_folded(passed, folded):
    rows = [(f"p{number}", "pass", "fine", "") for number in range(passed)] + [("w", "warn", "odd", ""), ("f", "fail", "bad", "")]
    markup = report_html("T", rows)
    names = re.findall(r'<th scope="row" class="tb-name">(\w+)</th>', markup)
    assert names[:3] == ["f", "w", "p0"]
    assert len(names) == passed + 2
    assert (f"<details><summary>{passed} checks passed</summary>" in markup) == folded
    assert "No problem was found." not in markup
    assert ("No problem was found." in report_html("T", rows[:-2])) == folded


def test_checks_that_did_not_run_are_not_taken_for_fine():
    stopped = [(f"n{number}", "not run", "Stopped.", "") for number in range(6)]
    markup = report_html("T", stopped)
    assert "No problem was found." not in markup
    assert markup.count("Stopped.") == 6
    assert "<details>" not in markup
    passed = [(f"p{number}", "pass", "fine", "") for number in range(9)]
    assert "<summary>6 checks did not run: Stopped.</summary>" in report_html("T", passed + stopped)


def test_pictures_are_part_of_the_markup_and_have_a_text():
    figure = Figure(figsize=(1, 1))
    figure.subplots().plot([1, 2])
    images = [
        attributes for tag, attributes in Tags(report_html("Tier 1", ROWS, {"flow": figure})).found if tag == "svg"
    ]
    assert [image["role"] for image in images] == ["img"]
    assert "flow" in images[0]["aria-label"]


def test_the_text_form_says_what_to_do_only_where_there_is_something():
    plain = report_text("Tier 1", ROWS[:1])
    assert plain == "Tier 1\n  shapes  pass: Five shapes."
    assert "What to do: Give vocab_size." in report_text("Tier 1", ROWS)


# ---- values, limits and findings ----


def details_of(**changes):
    findings = (("fail", "It leaks.", "Mask it."), ("warn", "It is slow.", ""))
    values = value_rows({"leak": 0.31, "loss_nats": 4.16}, [Bounds("leak", at_most=0.05, source="rounding")])
    return {"shapes": Details(**{"findings": findings, "values": values, **changes})}


def plot():
    figure = Figure(figsize=(1, 1))
    figure.subplots().plot([1, 2])
    return figure


@pytest.mark.parametrize(("verdict", "folded"), [("fail", False), ("warn", False), ("pass", True)])
def test_where_something_is_wrong_picture_and_values_are_not_behind_a_fold(verdict, folded):
    tags = Tags(report_html("T", [("shapes", verdict, "s", "")], {"shapes": plot()}, details_of())).found
    names = [tag for tag, _ in tags]
    assert (names.index("svg") > names.index("details")) is folded
    assert ("open" not in dict(tags)["details"]) is folded


def test_the_sentence_of_a_check_that_passed_unfolds_what_was_measured():
    markup = report_html("T", [("shapes", "pass", "Five shapes.", "")], {"shapes": plot()}, details_of(findings=()))
    fold = markup[markup.index("<details") : markup.index("</details>")]
    assert "<summary>Five shapes.</summary>" in fold
    assert "rounding" in fold
    assert "<svg" in fold
    assert markup.count("Five shapes.") == 1


def test_a_value_beyond_its_limit_is_marked_and_its_limit_has_a_source():
    markup = report_html("T", [("shapes", "fail", "s", "")], details=details_of())
    assert 'aria-label="beyond the limit"' in markup
    for words in ("0.31", "at most 0.05", "rounding", "loss (nats)", "It leaks.", "Mask it.", "It is slow."):
        assert words in markup


@pytest.mark.parametrize(("bounds", "heads"), [
    (Bounds("loss", at_most=4.0, source="the data"), ["measured", "value", "limit", "source of the limit"]),
    (Bounds("loss", at_most=4.0), ["measured", "value", "limit"]),
    (Bounds("loss of layers", at_most=4.0, source="the data"), ["compared with a limit", "limit", "source of the limit"]),
])  # fmt: skip
def test_a_table_of_values_has_no_empty_column(bounds, heads):
    details = {"shapes": Details(values=value_rows({"loss": 3.0}, [bounds]))}
    found = re.findall("<th[^>]*scope=\"col\"[^>]*>([^<]*)</th>", report_html("Tier 1", ROWS, details=details))
    assert found[found.index(heads[0]) :] == heads


def test_parts_that_did_not_run_are_named_with_their_reason():
    markup = report_html("T", [("shapes", "pass", "s", "")], details=details_of(not_run={"the_slope": "no fp64"}))
    assert "not run: the slope (no fp64)" in markup


def test_tokens_show_their_attribution_as_a_number_too():
    markup = report_html("T", [("shapes", "pass", "s", "")], details=details_of(tokens=(("<b>", 0.5), ("y", -0.25))))
    assert "&lt;b&gt;" in markup
    assert "+0.5" in markup
    assert "-0.25" in markup


def test_a_report_needs_no_script_and_nothing_from_outside():
    markup = page("T", report_html("T", ROWS, {"shapes": plot()}, details_of()))
    tags = Tags(markup).found
    assert not {"script", "link", "iframe"} & {tag for tag, _ in tags}
    assert all(attributes.get("src", "data:").startswith("data:") for _, attributes in tags)
    assert "http" not in markup
    assert "url(" not in markup.replace("url(#", "")


def test_a_style_sheet_cannot_end_its_element():
    with pytest.raises(ValueError, match="style sheet"):
        style_sheet("a{}</style>")


@pytest.mark.parametrize(
    ("value", "expected"),
    [(1234567, "1,234,567"), (0.123456, "0.123"), (4321.0, "4,321"), (True, "yes"), (None, "not known"), ([], ""),
     ([[0.5, 1.0], [2.0, 3.0]] * 3, "12 values, 0.5 to 3"), (list("abcdef"), "a, b, c, d and 2 more"), (1e9, "1e+09")],
)  # fmt: skip
def test_values_are_short(value, expected):
    assert value_text(value) == expected


@pytest.mark.parametrize(
    ("bounds", "words", "inside", "outside"),
    [(Bounds("x", at_most=2), "at most 2", 2, 2.1), (Bounds("x", at_least=0.5), "at least 0.5", 1, 0.4),
     (Bounds("x", 0.001, 1000.0), "0.001 to 1,000", 5, float("nan"))],
)  # fmt: skip
def test_limits_in_words_and_what_they_exclude(bounds, words, inside, outside):
    assert bounds.in_words == words
    assert not bounds.excludes(inside)
    assert bounds.excludes(outside)
    assert not bounds.excludes("text")


def test_a_limit_without_its_value_is_left_out_unless_it_stands_for_several():
    limits = [Bounds("ratio", at_most=2), Bounds("leak", at_most=1), Bounds("one of many", at_most=3)]
    rows = value_rows({"ratio of blocks": 4.0, "other_ms": 2}, limits)
    assert [(row.name, row.value, row.outside) for row in rows] == [
        ("ratio of blocks", "4", True), ("one of many", "", False), ("other (ms)", "2", False),
    ]  # fmt: skip


# ---- on a page ----


def _contrast(first, second):
    def luminance(colour):
        parts = [c / 255 / 12.92 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in colour]
        return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]

    light, dark = sorted((luminance(first), luminance(second)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@needs_chromium
@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [600, 1000])
def test_a_report_fits_its_page_and_its_text_stands_out(scheme, width, tmp_path):
    rows = [(kind, kind, f"Something about {kind} that takes a line or two. " * 3, "Do this.") for kind in
            ("pass", "warn", "fail", "not run")]  # fmt: skip
    file = tmp_path / "report.html"
    file.write_text(page("T", report_html("T", rows, {"fail": plot()}, {"fail": details_of()["shapes"]}, 12.0)))
    with running_browser() as browser:
        opened = browser.new_page(color_scheme=scheme, viewport={"width": width, "height": 700})
        opened.goto(file.as_uri())
        assert opened.evaluate("document.documentElement.scrollWidth") <= width
        shown = opened.evaluate(_COLOURS)
    ground = (255, 255, 255) if scheme == "light" else (18, 18, 18)  # Chromium's own in a dark page
    for words, (*ink, alpha) in shown:
        seen = [alpha * part + (1 - alpha) * below for part, below in zip(ink, ground, strict=True)]
        assert _contrast(seen, ground) >= 4.5, words


#: Of every text, apart from icons: its words, and its colour with the opacity of all that it stands in.
_COLOURS = """() => {
  const found = [], walk = document.createTreeWalker(document.querySelector('.tb-checks'), NodeFilter.SHOW_TEXT);
  for (let node; (node = walk.nextNode()); ) {
    let at = node.parentElement, alpha = 1;
    if (!node.data.trim() || at.closest('style, .tb-icon')) continue;
    const colour = getComputedStyle(at).color, scale = colour.startsWith('color(') ? 255 : 1;
    const ink = colour.match(/[0-9.]+/g).map((part, index) => index < 3 ? scale * Number(part) : Number(part));
    for (; at; at = at.parentElement) alpha *= Number(getComputedStyle(at).opacity);
    found.push([node.data, [ink[0], ink[1], ink[2], alpha * (ink[3] ?? 1)]]);
  }
  return found;
}"""


def test_a_measured_value_stands_beside_its_threshold():
    measured = {"level_share": 0.75, "loss_last": 2.5}
    result = CheckResult("plateau", "fail", "Level.", measured, {"level_share": 0.6, "baseline_share": 0.8})
    rows = re.findall("<tr>(.*?)</tr>", CheckReport("Doctor", [result]).to_html())
    cells = [re.findall("<t[hd][^>]*>([^<]*)</t[hd]>", row) for row in rows]
    assert ["level share", "0.75", "0.6"] in cells
    assert not any("threshold level share" in row for row in rows)
