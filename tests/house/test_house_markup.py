"""Only `utils/views/html.py` turns text into markup: everything else is made of its escaping pieces."""

from __future__ import annotations

import ast
import re

import pytest

from tests.kit.tree import python_sources

MARKUP_MODULE = "utils/views/html.py"
_NAMES = ["a", "b", "body", "br", "button", "caption", "code", "details", "div", "em", "form", "h1", "h2", "h3", "h4", "head", "hr", "html", "i", "iframe", "img", "input", "label", "li", "link", "meta", "ol", "p", "path", "polyline", "pre", "progress", "script", "span", "strong", "style", "summary", "svg", "table", "tbody", "td", "text", "th", "thead", "title", "tr", "u", "ul"]
_TAG = re.compile(rf"</?({'|'.join(_NAMES)})(\s[^<>]*)?/?>|&(lt|gt|amp|nbsp|#\d+);", re.IGNORECASE)


def markup_literals(tree: ast.Module) -> list[str]:
    """Strings of the code (docstrings apart) that hold a tag or an entity, and calls that declare text to be markup."""
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef))
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            found += [f"line {node.lineno}: {match[0]}" for match in _TAG.finditer(node.value)]
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Html":
            found.append(f"line {node.lineno}: Html(...)")
    return found


def test_no_other_module_writes_markup():
    found = [
        f"{path}: {line}"
        for path, tree in python_sources(under=("utils/", "widgets/", "cli/"))
        if path != MARKUP_MODULE
        for line in markup_literals(tree)
    ]
    assert found == []


@pytest.mark.parametrize("source", ['x = f"<b>{name}</b>"', "x = Html(name)", 'x = "<img src=x>"', 'x = "a&nbsp;b"'])
def test_the_search_finds(source):
    assert markup_literals(ast.parse(source))


@pytest.mark.parametrize("source", ['x = "a < b > c"', 'x = "<pad>"', '"""<b>"""'])
def test_the_search_allows(source):
    assert markup_literals(ast.parse(source)) == []
