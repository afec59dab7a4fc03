"""The repository as it would be committed: its files, its Python sources, its notebooks."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]

#: Folders that hold nothing of the repository, for a copy without git.
_NOT_OURS = {"__pycache__", "build", "checkpoints", "dist", "node_modules", "runs", "site", "wandb"}


@cache
def repository_files() -> tuple[Path, ...]:
    """Every tracked file and every new one that git does not ignore. Without git: all but hidden and built folders."""
    if (ROOT / ".git").exists() and shutil.which("git"):
        listed = subprocess.run(
            # The owner of a checkout in a container is often somebody else, which git refuses unless told.
            ["git", "-c", "safe.directory=*", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT,
            capture_output=True,
            check=True,
        ).stdout.split(b"\0")
        paths = [ROOT / os.fsdecode(name) for name in listed if name]
    else:
        paths = [path for path in ROOT.rglob("*") if not _is_foreign(path.relative_to(ROOT))]
    return tuple(sorted(path for path in paths if path.is_file()))


def _is_foreign(path: Path) -> bool:
    return any(part in _NOT_OURS or part.endswith(".egg-info") for part in path.parts) or any(
        part.startswith(".") for part in path.parts[:-1] if part != ".ci"
    )


def text_of(path: Path) -> str | None:
    """A file's text, or None for a binary file."""
    try:
        return path.read_bytes().decode("utf-8")
    except UnicodeDecodeError:
        return None


def notebooks() -> list[tuple[Path, dict[str, Any]]]:
    """Every notebook of the repository, parsed as JSON."""
    return [(p, json.loads(p.read_bytes())) for p in repository_files() if p.suffix == ".ipynb"]


def python_sources(*, under: tuple[str, ...] = ("",), naming: str = "") -> Iterator[tuple[str, ast.Module]]:
    """(where, syntax tree) of every Python file and of every notebook cell of the repository.

    Args:
        under: only paths that begin with one of these; naming: only sources in which this regular expression is found.
            Parsing takes seconds.
    """
    for path in repository_files():
        where = path.relative_to(ROOT).as_posix()
        if path.suffix == ".py" and where.startswith(under) and (source := _naming(naming, path.read_text(encoding="utf-8"))):
            yield where, _parsed(source)
    for path, notebook in notebooks():
        if not path.relative_to(ROOT).as_posix().startswith(under):
            continue
        for number, cell in enumerate(notebook["cells"], start=1):
            if cell["cell_type"] == "code":
                lines = "".join(cell["source"]).splitlines()
                plain = [line for line in lines if not line.lstrip().startswith(("!", "%"))]  # lines of a shell
                if source := _naming(naming, "\n".join(plain)):
                    yield f"{path.relative_to(ROOT)} cell {number}", _parsed(source)


def _naming(pattern: str, source: str) -> str | None:
    return source if re.search(pattern, source) else None


def _parsed(source: str) -> ast.Module:
    # Cells may await at top level, which plain parsing refuses.
    tree = compile(source, "<source>", "exec", ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    assert isinstance(tree, ast.Module)
    return tree


def dotted(node: ast.expr) -> str:
    """`torch.load` for the expression torch.load; "" for anything that is not names joined by dots."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (start := dotted(node.value)):
        return f"{start}.{node.attr}"
    return ""
