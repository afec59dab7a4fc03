"""docs/RELIABILITY.md promises nothing that no test holds, and no reliability test goes unmentioned."""

from __future__ import annotations

import ast
import re
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT = (ROOT / "docs" / "RELIABILITY.md").read_text(encoding="utf-8")
ROW = re.compile(r"^\| (F\d\d) .* \| `(test_\w+)` \|$", re.MULTILINE)


def functions_of(folder: Path, names: str = "test_*.py") -> Counter[str]:
    """The test functions of the files with these names, and how often each is defined."""
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in folder.rglob(names)]
    functions = [node.name for tree in trees for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    return Counter(name for name in functions if name.startswith("test_"))


HERE = Path(__file__).parent
EVERYWHERE = functions_of(ROOT / "tests")
ROWS = dict(ROW.findall(DOCUMENT))


def test_every_row_of_the_table_is_one_test():
    assert len(ROWS) == len(ROW.findall(DOCUMENT)) == DOCUMENT.count("\n| F"), "a row is malformed or is there twice"
    for row, name in ROWS.items():
        assert name.startswith(f"test_{row.lower()}_"), f"{row} cites {name}"
        assert EVERYWHERE[name] == 1, f"{name} is defined {EVERYWHERE[name]} times"


def test_a_row_number_stands_in_one_name_only():
    numbered = sorted(name for name in EVERYWHERE if re.match(r"test_f\d\d_", name))
    rows = Counter(name[5:8].upper() for name in numbered)
    twice = [name for name in numbered if rows[name[5:8].upper()] > 1]
    assert not twice, f"which of these is the row's test? {twice}"
    assert set(rows) == set(ROWS), "tests with a number and rows of the table differ"


def test_every_number_and_name_in_the_text_is_known():
    assert set(re.findall(r"\bF\d\d\b", DOCUMENT)) == set(ROWS)
    assert [name for name in re.findall(r"`(test_\w+)`", DOCUMENT) if EVERYWHERE[name] != 1] == []


@pytest.mark.parametrize("name", sorted(set(functions_of(HERE)) - set(functions_of(HERE, Path(__file__).name))))
def test_every_reliability_test_is_mentioned(name):
    assert f"`{name}`" in DOCUMENT
