"""Committed notebooks: valid, without outputs, and short enough to read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nbformat
import pytest

from tests.kit.tree import ROOT, notebooks

MAX_CODE_LINES = 8
# What a cell shows without a scroll bar in JupyterLab at 1,280 pixels, beside the file browser.
MAX_LINE_LENGTH = 90


def problems_of(notebook: dict[str, Any]) -> list[str]:
    """What keeps a notebook from being committed."""
    found = []
    if "widgets" in notebook["metadata"]:
        found.append("metadata.widgets")
    for number, cell in enumerate(notebook["cells"], start=1):
        if cell["cell_type"] != "code":
            continue
        if cell["outputs"]:
            found.append(f"cell {number} has outputs")
        if cell["execution_count"] is not None:
            found.append(f"cell {number} has an execution count")
        long = [line for line in "".join(cell["source"]).splitlines() if len(line) > MAX_LINE_LENGTH]
        found += [f"cell {number} has a line of {len(line)} characters, at most {MAX_LINE_LENGTH}" for line in long]
        if len(lines := code_lines(cell)) > MAX_CODE_LINES:
            found.append(f"cell {number} has {len(lines)} lines of code, at most {MAX_CODE_LINES}")
    return found


def code_lines(cell: dict[str, Any]) -> list[str]:
    lines = [line.strip() for line in "".join(cell["source"]).splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def test_the_product_is_there():
    assert ROOT / "training.ipynb" in [path for path, _ in notebooks()]


@pytest.mark.parametrize(("path", "notebook"), notebooks(), ids=[path.name for path, _ in notebooks()])
def test_a_committed_notebook_is_clean_and_valid(path: Path, notebook: dict[str, Any]):
    assert problems_of(notebook) == []
    nbformat.validate(nbformat.read(path, as_version=4))
    assert notebook["nbformat"] == 4
    assert path.read_bytes().endswith(b"\n")


def test_the_search_finds_everything():
    source = ["a = 1\n"] * 8 + [f"b = {'1' * 90}"]
    cell = {"cell_type": "code", "outputs": [{}], "execution_count": 3, "source": source}
    found = problems_of({"metadata": {"widgets": {}}, "cells": [cell]})
    assert len(found) == 5


def test_comments_and_blank_lines_are_free():
    source = ["# why\n", "\n", *["a = 1\n"] * MAX_CODE_LINES]
    cell = {"cell_type": "code", "outputs": [], "execution_count": None, "source": source}
    assert problems_of({"metadata": {}, "cells": [cell]}) == []
