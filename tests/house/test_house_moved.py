"""Modules that have moved: importable under their former names, used nowhere under them."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path

import pytest

from tests.kit.fresh import before_its_import
from tests.kit.tree import ROOT, repository_files
from utils.moved import _MOVED, new_name_of

FORMER = [package + name for package, moved in _MOVED.items() for name in moved]


@pytest.mark.parametrize("former", FORMER)
def test_a_former_name_gives_the_same_module_and_says_where_it_is(former):
    sys.modules.pop(former, None)
    with pytest.warns(DeprecationWarning, match=re.escape(f"{former} is {new_name_of(former)} now")):
        module = importlib.import_module(former)
    assert module is importlib.import_module(new_name_of(former))
    assert module.__spec__.name == new_name_of(former)


def test_a_module_below_a_package_that_has_moved_is_not_loaded_twice():
    def imported():
        former = importlib.import_module("utils.training.engine.tasks.base")
        assert former.Task is importlib.import_module("utils.training.engine.loss.tasks.base").Task
        from utils.data import hub

        assert hub is importlib.import_module("utils.data.text.hub")

    before_its_import(imported)


def test_names_that_have_not_moved_are_left_to_the_import_system():
    assert new_name_of("utils.data.packing") is None
    assert new_name_of("utils.training.engine.trainer") is None
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("utils.data.no_such_module")


def test_the_house_uses_the_names_of_today():
    former = re.compile(rf"\b(?:{'|'.join(map(re.escape, FORMER))})\b(?![\w.]*\()")
    found = [
        f"{path.relative_to(ROOT)}: {match[0]}"
        for path in repository_files()
        if path.suffix in {".py", ".md", ".ipynb", ".toml", ".yml"} and path != Path(__file__) and path.exists()
        for match in former.finditer(path.read_text(encoding="utf-8"))
    ]
    for package, moved in _MOVED.items():
        imported = re.compile(rf"from {re.escape(package[:-1])} import [^\n(]*\b({'|'.join(moved)})\b")
        found += [
            f"{path.relative_to(ROOT)}: {match[0]}"
            for path in repository_files()
            if path.suffix in {".py", ".md", ".ipynb"} and path != Path(__file__)
            for match in imported.finditer(path.read_text(encoding="utf-8"))
        ]
    assert not found
