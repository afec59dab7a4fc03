"""DatasetRegistry: image datasets by name, those that come with the library and the user's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from utils.registry import Registry


class DatasetRegistry(Registry):
    """Names -> dataset classes, or functions that return one. One registry for the whole process.

    Names are lower-cased. Use `register("mine", MyDataset)`, or as a decorator `@DatasetRegistry.register("mine")`.
    """

    KIND = "dataset"
    BUILT_IN = "utils.data.images.builtin"
    _factories: ClassVar[dict[str, Callable[..., Any]]] = {}
