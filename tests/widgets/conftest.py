"""A handler that raises fails the test: ipywidgets itself would drop the error."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from widgets.guarded import watching


@pytest.fixture(autouse=True)
def _handlers_do_not_raise() -> Iterator[None]:
    with watching() as failures:
        yield
    if failures:
        pytest.fail(f"handlers of widgets raised: {failures!r}", pytrace=False)
