"""Tokens side by side with something said of each: attributions, tags."""

from __future__ import annotations

from collections.abc import Sequence

from utils.views.html import Html, element, text

# For the prediction and against it; the sign of the number under each token says the same.
_FOR, _AGAINST = "#3b82d6", "#d9730d"


def attribution_strip(tokens: Sequence[tuple[str, float]]) -> Html:
    """Tokens with their attribution: tinted by size, and the signed number under each."""
    largest = max((abs(score) for _, score in tokens), default=0.0) or 1.0
    rows = [(token, f"{score:+.2g}", score / largest) for token, score in tokens]
    return token_strip(rows, "attribution of each token")


def token_strip(tokens: Sequence[tuple[str, str, float]], label: str) -> Html:
    """Tokens with a note under each.

    Args:
        tokens: token, note, and strength of its tint from -1 to 1; label: for screen readers.
    """
    shown = (
        element(
            "span", element("span", text(token)), element("small", text(note)), class_="tb-token",
            style=f"background:color-mix(in srgb,{_FOR if tint >= 0 else _AGAINST} {round(45 * abs(tint))}%,transparent)",
        )
        for token, note, tint in tokens
    )  # fmt: skip
    return element("div", *shown, class_="tb-tokens", role="group", aria_label=label)
