"""What the tests of exports share: the exporter's list of operators is made once in a process."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import pytest


@pytest.fixture(scope="session", autouse=True)
def _operators_listed_once() -> Iterator[None]:
    """torch's ONNX exporter parses the source of a thousand functions of torchlib for each graph, to list the same ones again:
    a second of each export."""
    from torch.onnx._internal.exporter import _registration

    with pytest.MonkeyPatch.context() as patch:
        listing = _registration.onnxscript_apis
        patch.setattr(listing, "get_torchlib_ops", cache(listing.get_torchlib_ops))
        yield
