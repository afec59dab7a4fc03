"""Text of any kind inside Markdown: escaped, in tables, and without paths of this machine."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Mapping
from typing import Any

# Folders in front of a name, from the root, a drive or the home folder. Addresses and ids such as owner/name have none.
_FOLDERS = re.compile(r"(?<![\w:/])~?(?:[A-Za-z]:)?[\\/](?:[^\\/:*?\"<>|\r\n,;]+[\\/])*(?=\S)")


def table(rows: Mapping[str, Any], escape_names: bool = True) -> str:
    """A table of two columns without headers."""
    lines = ["| | |", "|---|---|"]
    lines += [f"| {inline(name) if escape_names else name} | {inline(value)} |" for name, value in rows.items()]
    return "\n".join(lines)


def inline(value: Any) -> str:
    """Text inside a line or a table's cell: no character of it is Markdown or HTML, and it has no line breaks."""
    text = re.sub(r"\s+", " ", str(value)).strip()
    text = re.sub(r"([\\`*\[\]|])", r"\\\1", text)
    return html.escape(text, quote=False)


def code(value: Any) -> str:
    """Text between backticks."""
    return re.sub(r"[`\s]+", " ", str(value))


def shown(value: Any) -> str:
    """A setting's value in words."""
    if value is None:
        return "not set"
    return f"{value:g}" if isinstance(value, float) else str(value)


def counted(value: int | None, otherwise: str) -> str:
    """A number with separators, or `otherwise` for None."""
    return otherwise if value is None else f"{value:,}"


def is_number(value: Any) -> bool:
    """Whether it is a finite number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def without_folders(text: str) -> str:
    """`text` with only the last part of each path in it."""
    return _FOLDERS.sub("", text)
