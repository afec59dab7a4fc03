"""Lets griffe find every section of this library's docstrings: it expects a blank line before each, which they leave out."""

from __future__ import annotations

import re
from typing import Any

import griffe

_SECTION = re.compile(r"(?<=[^\n])\n(?=(?:Args|Attributes|Returns|Yields|Raises):\n)")


class Docstrings(griffe.Extension):
    """Applied to every docstring when its object is loaded, before it is parsed."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = _SECTION.sub("\n\n", obj.docstring.value)
