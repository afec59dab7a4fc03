"""The library as a process that has not imported it yet: in a fork, so that torch, which takes seconds, is there already."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from typing import Any

from tests.kit.crash import in_child

_OURS = ("utils", "widgets", "cli")


def before_its_import(function: Callable[[], Any], *without: str) -> Any:
    """Call `function` in a fork in which the library and the packages `without` are not imported; what it returned.

    For what an import does. What a whole new process does, such as a command line's, needs one.
    Raises:
        AssertionError: `function` raised; with its traceback.
    """

    def child() -> Any:
        gone = {*_OURS, *without}
        for name in list(sys.modules):
            if name.partition(".")[0] in gone:
                del sys.modules[name]
        warnings.simplefilter("ignore")
        return function()

    return in_child(child).value
