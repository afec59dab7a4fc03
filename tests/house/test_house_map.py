"""The map of the code names only what exists, and README and CONTRIBUTING lead to it."""

from __future__ import annotations

import re

import pytest

from tests.kit.tree import ROOT

MAP = "docs/ARCHITECTURE.md"
ROWS = re.findall(r"^\| (?!.*---).*`.*\|$", (ROOT / MAP).read_text(encoding="utf-8"), re.MULTILINE)


def quoted(row: str) -> tuple[list[str], list[str]]:
    """The paths and the plain identifiers that a row of the map quotes."""
    words = re.findall(r"`([^`]+)`", row)
    paths = [word for word in words if re.fullmatch(r"(?:utils|widgets|cli)(?:/[\w./]+)?", word)]
    return paths, [word for word in words if word.isidentifier() and word not in paths]


def test_every_path_exists():
    paths = [path for row in ROWS for path in quoted(row)[0]]
    assert len(paths) > 50, "nothing was found: the search is broken"
    assert [path for path in paths if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.split("|")[1].strip())
def test_what_a_row_names_is_in_the_files_it_names(row):
    paths, names = quoted(row)
    text = "\n".join((ROOT / path).read_text(encoding="utf-8") for path in paths if (ROOT / path).is_file())
    assert [name for name in names if name not in text] == []


def test_every_package_is_on_the_map():
    named = {path for row in ROWS for path in quoted(row)[0]}
    packages = {
        init.parent.relative_to(ROOT).as_posix()
        for pattern in ("utils/*/__init__.py", "utils/*/*/__init__.py", "widgets/__init__.py", "cli/__init__.py")
        for init in ROOT.glob(pattern)
    }
    assert packages <= named


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md", "docs/index.md"])
def test_the_map_is_one_link_away(document):
    assert "ARCHITECTURE.md)" in (ROOT / document).read_text(encoding="utf-8")
