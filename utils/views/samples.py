"""Samples as the model sees them, token by token: one table a sample."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from utils.views.html import Html, columns, element, joined, text
from utils.views.tables import columns_text, on_one_line
from utils.views.turns import is_conversation, turns_html, turns_text

if TYPE_CHECKING:
    from utils.data.text.preview import SampleView, TokenView

# Positions of a sample that are shown.
_MOST = 48

_NOT_SCORED = "–"
_KEY = f"label {_NOT_SCORED}: not scored; mask 0: padding, which is not read"


def samples_html(samples: Sequence[SampleView]) -> Html:
    """Every sample as a table with a column for each position, and its text and label above; conversations as turns."""
    key = [element("div", text(_KEY), style="font-size:smaller;color:inherit")]
    return joined(
        [
            *(turns_html(sample) if is_conversation(sample) else _sample_html(sample) for sample in samples),
            *([] if all(map(is_conversation, samples)) else key),
        ]
    )


def samples_text(samples: Sequence[SampleView]) -> str:
    """The same for a terminal: a line for each position, or turn."""
    key = [] if all(map(is_conversation, samples)) else [f"({_KEY})"]
    written = (turns_text(sample) if is_conversation(sample) else _sample_text(sample) for sample in samples)
    return "\n\n".join([*written, *key])


def _sample_html(sample: SampleView) -> Html:
    parts = [_table(f"Sample {sample.number}: {_headline(sample)}", "token", sample.tokens)] if sample.tokens else []
    if sample.target:
        parts.append(_table(f"Target of sample {sample.number}", "target", sample.target))
    if not sample.tokens:
        parts.append(element("p", text(f"Sample {sample.number}: {_headline(sample)}")))
    return element("div", *parts, style="margin:0 0 12px 0;color:inherit")


def _table(title: str, name: str, tokens: Sequence[TokenView]) -> Html:
    """A table whose columns are positions; a long one is scrolled sideways, with the keyboard too."""
    shown = tokens[:_MOST]
    header = [name, *(token.token for token in shown), *_more(tokens)]
    rows = [[what, *values, *("" for _ in _more(tokens))] for what, values in _rows(shown)]
    return element(
        "div", columns(title, header, rows), style="overflow-x:auto", tabindex=0, role="region", aria_label=title[:80]
    )  # fmt: skip


def _sample_text(sample: SampleView) -> str:
    lines = [f"Sample {sample.number}: {_headline(sample)}"]
    for what, tokens in (("token", sample.tokens), ("target", sample.target)):
        if tokens:
            shown = tokens[:_MOST]
            rows = _rows(shown)
            header = [what, *(name for name, _ in rows)]
            lines.append(
                columns_text(
                    header, [[token.token, *(values[i] for _, values in rows)] for i, token in enumerate(shown)]
                )
            )
            lines += _more(tokens)
    return "\n".join(lines)


def _rows(tokens: Sequence[TokenView]) -> list[tuple[str, list[str]]]:
    """Facts about each position, by name; those equal for all positions are left out, but for ids."""
    rows = [("id", [str(token.id) for token in tokens])]
    if any(token.token_type for token in tokens):
        rows.append(("type", [str(token.token_type) for token in tokens]))
    if any(token.label is not None for token in tokens):
        rows.append(("label", [_NOT_SCORED if token.label is None else token.label for token in tokens]))
    if not all(token.attended for token in tokens):
        rows.append(("mask", ["1" if token.attended else "0" for token in tokens]))
    return rows


def _more(tokens: Sequence[TokenView]) -> list[str]:
    return [f"… {len(tokens) - _MOST:,} more"] if len(tokens) > _MOST else []


def _headline(sample: SampleView) -> str:
    label = "" if sample.label is None else f"label {sample.label}; "
    shown = on_one_line(sample.text)
    return f"{label}{shown if len(shown) <= 160 else shown[:159] + '…'}"
