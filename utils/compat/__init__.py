"""Documented interfaces of earlier and other systems, each a translation onto the engine with no loop of its own.

`utils.compat.install()` makes their import names work; `python -m utils.compat script.py` runs a script with them.
"""

from __future__ import annotations

from utils.compat.installing import install

__all__ = ["install"]
