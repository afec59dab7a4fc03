"""Tokens side by side with something said of each: attributions, tags."""

from __future__ import annotations

import math
from collections.abc import Sequence

from utils.views.html import Html, element, text

# For the prediction and against it; the sign of the number under each token says the same.
_FOR, _AGAINST = "#3b82d6", "#d9730d"


# Contributions that together reach this share of the explained value have full tints; below it tints fade in proportion. A
# tenth is what the sum may miss of the change before it is called approximate: what is smaller may be an error of the method.
_FULL_SHARE = 0.1
#: Below this share of the explained value the text hardly changes it, and tints have at most a tenth of their full strength.
HARDLY_SHARE = 0.01


def share_of(tokens: Sequence[tuple[str, float]], value: float) -> float:
    """The sizes of all contributions together, relative to the size of the value that they explain.

    Sizes and not the sum, in which large contributions for and against cancel. Infinite for a value of 0.
    """
    total = sum(abs(score) for _, score in tokens)
    return total / abs(value) if value else math.inf


def attribution_strip(tokens: Sequence[tuple[str, float]], value: float | None = None) -> Html:
    """Tokens with their attribution: tinted by size, and the signed number under each.

    Args:
        value: the explained value, beside which negligible contributions are hardly tinted. Without it the largest contribution
            has the full tint.
    """
    largest = max((abs(score) for _, score in tokens), default=0.0) or 1.0
    full = 1.0 if value is None else min(1.0, share_of(tokens, value) / _FULL_SHARE)
    rows = [(token, f"{score:+.2g}", full * score / largest) for token, score in tokens]
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
