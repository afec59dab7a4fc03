"""Conversations as the model sees them: turn by turn, with the tokens that it is trained to produce marked.

Roles are written out and trained tokens are underlined, so that colour is never the only cue.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from utils.views.html import Html, element, joined, text

if TYPE_CHECKING:
    from utils.data.text.preview import SampleView, TokenView

# Tokens of a sample that are shown.
_MOST = 320

# Readable on light and dark backgrounds: used for a bar and, thinned, behind text in the page's own colour.
_COLOURS = {"system": "#848d97", "user": "#3b82d6", "assistant": "#2da44e", "tool": "#d9730d"}
_KEY = "what the model is trained to produce"


def is_conversation(sample: SampleView) -> bool:
    """Whether it is known whose turn its tokens belong to."""
    return any(token.role is not None for token in sample.tokens)


def turns_html(sample: SampleView) -> Html:
    """A sample as its turns, each with its role and the share of it that is trained on."""
    shown = sample.tokens[:_MOST]
    parts = [_turn_html(turn) for turn in _turns(shown)]
    more = len(sample.tokens) - len(shown)
    heading = element("div", text(f"Sample {sample.number}: {_counted(sample.tokens)}"), style="font-weight:600")
    key = element("div", element("u", text("Underlined")), text(f": {_KEY}"), style="font-size:smaller")
    rest = [element("div", text(f"… {more:,} more tokens"))] if more else []
    return element(
        "div", heading, *parts, *rest, key, style="margin:0 0 12px 0;color:inherit;line-height:1.5",
        role="group", aria_label=f"Sample {sample.number}",
    )  # fmt: skip


def turns_text(sample: SampleView) -> str:
    """The same for a terminal: a line for each turn, what is trained on between « and »."""
    shown = sample.tokens[:_MOST]
    lines = [f"Sample {sample.number}: {_counted(sample.tokens)}"]
    for turn in _turns(shown):
        if turn[0].begins:
            lines.append("--- conversation")
        pieces = (
            f"«{_written(group)}»" if is_target else _written(group)
            for is_target, group in ((kind, list(group)) for kind, group in groupby(turn, key=_is_target))
        )
        lines.append(f"{turn[0].role or 'padding'}: {''.join(pieces)}")
    if len(sample.tokens) > len(shown):
        lines.append(f"… {len(sample.tokens) - len(shown):,} more tokens")
    return "\n".join([*lines, f"(« »: {_KEY})"])


def _turn_html(turn: Sequence[TokenView]) -> Html:
    role = turn[0].role
    colour = _COLOURS.get(role or "", "currentColor")
    trained = sum(map(_is_target, turn))
    label = element("strong", text(role or "padding"))
    count = f" {trained:,} of {len(turn):,} tokens trained on" if trained else " not trained on"
    spans = [_span(token, colour) for token in turn] if role is not None else [text(f"{len(turn):,} positions")]
    style = f"border-left:3px solid {colour};padding:0 0 0 8px;margin:2px 0;white-space:pre-wrap;overflow-wrap:anywhere"
    begins = [element("div", text("conversation"), style="font-size:smaller;opacity:0.85;margin-top:6px")]
    return joined(
        [*(begins if turn[0].begins else []), element("div", label, text(count), element("div", *spans), style=style)]
    )


def _span(token: TokenView, colour: str) -> Html:
    if not _is_target(token):
        return element("span", text(token.token), title=f"id {token.id}")
    style = (
        f"text-decoration:none;border-bottom:2px solid {colour};background:color-mix(in srgb,{colour} 20%,transparent)"
    )
    return element("u", text(token.token), title=f"id {token.id}, trained on", style=style)


def _turns(tokens: Sequence[TokenView]) -> Iterator[list[TokenView]]:
    """Runs of tokens of one role; a new conversation begins a new run."""
    turn: list[TokenView] = []
    for token in tokens:
        if turn and (token.role != turn[-1].role or token.begins):
            yield turn
            turn = []
        turn.append(token)
    if turn:
        yield turn


def _counted(tokens: Sequence[TokenView]) -> str:
    real = [token for token in tokens if token.role is not None]
    trained = sum(map(_is_target, real))
    return f"{trained:,} of {len(real):,} tokens trained on ({trained / max(1, len(real)):.1%})"


def _is_target(token: TokenView) -> bool:
    return bool(token.is_target)


def _written(tokens: Sequence[TokenView]) -> str:
    return "".join(token.token for token in tokens)
