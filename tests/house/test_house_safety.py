"""No file runs code that it carries: nothing in the tree unpickles, and torch reads tensors only."""

from __future__ import annotations

import ast
import re

import pytest

from tests.kit.tree import dotted, python_sources

#: Whatever these read may run code.
UNPICKLING = {
    f"{module}.{name}"
    for module in ("pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "jsonpickle")
    for name in ("load", "loads", "open", "decode", "Unpickler")
} | {"pandas.read_pickle", "pd.read_pickle"}

#: What stands in every source that `unsafe_loads` finds something in.
SUSPECT = rf"{'|'.join({re.escape(name.rpartition('.')[0]) for name in UNPICKLING} - {'pandas', 'pd'})}|read_pickle|torch\s*\.\s*load|weights_only|allow_pickle|trust_remote_code"

#: Files with a reason of their own.
EXCEPTIONS = {
    "tests/data/test_data_images.py": "reads back a file in CIFAR-10's format that the test has just written",
    "tests/kit/crash.py": "a forked child's answer through a pipe that nobody else can write to",
    "tests/reliability/test_hostile_checkpoints.py": "shows that the hostile files are live before they are refused",
}


def unsafe_loads(tree: ast.Module) -> list[str]:
    """One line for everything in `tree` that could run code out of a file."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            found += [
                f"line {node.lineno}: from {node.module} import {alias.name}"
                for alias in node.names
                if f"{node.module}.{alias.name}" in UNPICKLING
            ]
        if not isinstance(node, ast.Call):
            continue
        name = dotted(node.func)
        keywords = {keyword.arg: keyword.value for keyword in node.keywords}
        weights_only = keywords.get("weights_only")
        if name in UNPICKLING and not _is_round_trip(node):
            found.append(f"line {node.lineno}: {name}")
        if weights_only is not None and not _is_true(weights_only):
            found.append(f"line {node.lineno}: weights_only is not literally True")
        if name == "torch.load" and weights_only is None:
            found.append(f"line {node.lineno}: torch.load without weights_only=True")
        if "allow_pickle" in keywords and not _is_false(keywords["allow_pickle"]):
            found.append(f"line {node.lineno}: allow_pickle")
        if "trust_remote_code" in keywords and not _is_false(keywords["trust_remote_code"]):
            found.append(f"line {node.lineno}: trust_remote_code")
    return found


def _is_round_trip(node: ast.Call) -> bool:
    """`pickle.loads(pickle.dumps(value))` reads back what this very line wrote."""
    return (
        dotted(node.func) == "pickle.loads"
        and len(node.args) == 1
        and isinstance(node.args[0], ast.Call)
        and dotted(node.args[0].func) == "pickle.dumps"
    )


def _is_true(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is True


def _is_false(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is False


def test_nothing_in_the_tree_can_run_code_out_of_a_file():
    sources = dict(python_sources(naming=SUSPECT))
    assert "utils/training/engine/checkpointing/reading.py" in sources
    found = {where: lines for where, tree in sources.items() if (lines := unsafe_loads(tree))}
    assert {where: lines for where, lines in found.items() if where not in EXCEPTIONS} == {}


@pytest.mark.parametrize(
    "source",
    [
        "pickle.load(f)",
        "x = dill.loads(b)",
        "from pickle import loads as read",
        "class U(pickle.Unpickler): pass\npickle.Unpickler(f).load()",
        "torch.load(p)",
        "torch.load(p, weights_only=False)",
        "torch.load(p, weights_only=flag)",
        "trainer.restore(p, weights_only=False)",
        "np.load(p, allow_pickle=True)",
        "AutoModel.from_pretrained(n, trust_remote_code=True)",
    ],
)
def test_the_search_finds(source):
    assert re.search(SUSPECT, source)
    assert unsafe_loads(ast.parse(source))


@pytest.mark.parametrize(
    "source",
    [
        "torch.load(p, weights_only=True)",
        "json.load(f)",
        "np.load(p, allow_pickle=False)",
        "pickle.loads(pickle.dumps(preset))",
    ],
)
def test_the_search_allows(source):
    assert not unsafe_loads(ast.parse(source))
