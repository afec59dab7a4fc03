"""The notebook that carries the library: its wheel is whole, its first cell unpacks, verifies and refuses."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import lzma
import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import nbformat
import pytest

from cli.notebook_alone import MAX_BYTES, build_notebook, build_wheel, first_cell
from tests.kit.tree import ROOT, repository_files

PACKAGES = ("utils", "widgets", "cli")
FIRST_IMPORT = "import utils, widgets, utils.ui; print('library in', utils.HOME)"


@pytest.fixture(scope="module")
def wheel() -> bytes:
    return build_wheel(ROOT)


@pytest.fixture(scope="module")
def cell(wheel: bytes) -> str:
    return first_cell(wheel)


def execute(program: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run in an empty interpreter: -S skips .pth files, and with them the editable installation of this project."""
    site = [p for p in sys.path if p.endswith("site-packages")] or [sysconfig.get_path("purelib")]
    return subprocess.run(
        [sys.executable, "-S", "-"],
        input=program,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(site),
            "PIP_NO_INDEX": "1",
            "TRAINBOOK_SOURCE": "",
            **environment,
        },
    )


def small_cell(requires: str = "", utils: str = "__version__ = '9'\n") -> str:
    """The cell with a library of a few lines inside, for what does not depend on the real one."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("utils/__init__.py", utils)
        archive.writestr("utils/ui/__init__.py", "")
        archive.writestr("widgets/__init__.py", "")
        metadata = "Metadata-Version: 2.1\nName: trainbook\nVersion: 9\n" + (
            f"Requires-Dist: {requires}\n" if requires else ""
        )
        archive.writestr("trainbook-9.dist-info/METADATA", metadata)
    return first_cell(packed.getvalue())


def test_the_wheel_holds_every_file_of_the_packages(wheel):
    tracked = {p.relative_to(ROOT).as_posix() for p in repository_files()}
    expected = {name for name in tracked if name.split("/")[0] in PACKAGES and not name.endswith(".md")}
    with zipfile.ZipFile(io.BytesIO(wheel)) as archive:
        assert archive.testzip() is None
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert packed == expected


def test_the_notebook_is_valid_small_and_shows_the_checksum(wheel, cell, tmp_path):
    path = build_notebook(ROOT / "training.ipynb", tmp_path / "dist" / "training-colab.ipynb", cell)
    notebook, original = (nbformat.read(p, as_version=4) for p in (path, ROOT / "training.ipynb"))
    nbformat.validate(notebook)
    assert path.stat().st_size < MAX_BYTES
    first, *others = [c for c in notebook.cells if c.cell_type == "code"]
    assert f'SHA256 = "{hashlib.sha256(wheel).hexdigest()}"' in first.source
    assert [c.source for c in others] == [c.source for c in original.cells if c.cell_type == "code"][1:]


def test_in_an_empty_folder_the_cell_makes_the_library_importable_and_a_second_run_unpacks_nothing(cell, tmp_path):
    done = execute(f"{cell}\n{FIRST_IMPORT}", tmp_path)
    assert done.returncode == 0, done.stderr
    said, where = done.stdout.splitlines()
    assert "verified" in said
    home = Path(where.removeprefix("library in "))
    assert home.is_relative_to(tmp_path)
    written = {p: p.stat().st_mtime_ns for p in home.rglob("*.py")}
    again = execute(f"{cell}\n{cell}", tmp_path)
    assert again.returncode == 0, again.stderr
    assert "unpacked before" in again.stdout.splitlines()[0]
    assert {p: p.stat().st_mtime_ns for p in home.rglob("*.py")} == written


@pytest.mark.parametrize("damage", ["payload", "checksum", "cut"])
def test_a_damaged_payload_is_refused_in_one_line_without_unpacking(damage, tmp_path):
    cell = small_cell()
    lines = cell.splitlines()
    start = lines.index('PAYLOAD = """') + 1
    if damage == "payload":
        other = base64.b85encode(lzma.compress(b"another wheel")).decode()
        lines[start : lines.index('"""', start)] = [other]
    elif damage == "checksum":
        number = next(i for i, line in enumerate(lines) if line.startswith("SHA256"))
        lines[number] = f'SHA256 = "{"0" * 64}"'
    else:
        lines[start] = lines[start][:50]
    done = execute("\n".join(lines), tmp_path)
    assert done.returncode == 1
    assert "is damaged; download the notebook again" in done.stderr.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["utils.py", "utils/__init__.py"])
def test_a_utils_of_the_users_is_named_with_the_way_out(name, tmp_path):
    mine = tmp_path / name
    mine.parent.mkdir(exist_ok=True)
    mine.write_text("MINE = 1\n")
    done = execute(small_cell(), tmp_path)
    assert done.returncode == 1
    assert str(tmp_path / name.split("/")[0]) in done.stderr.splitlines()[-1]
    assert "rename it, then restart the kernel" in done.stderr.splitlines()[-1]


def test_a_utils_that_was_imported_before_is_named(tmp_path):
    before = "import sys, types; sys.modules['utils'] = types.ModuleType('utils'); sys.modules['utils'].__file__ = '/other/utils.py'"
    before += "; import importlib.machinery as m; sys.modules['utils'].__spec__ = m.ModuleSpec('utils', None, origin='/other/utils.py')"
    done = execute(f"{before}\n{small_cell()}", tmp_path)
    assert "/other/utils.py" in done.stderr.splitlines()[-1]


def test_a_read_only_folder_is_left_alone_and_the_temporary_one_is_used(tmp_path):
    """A file where the folder would be stands for a read-only one: as root, permissions stop nothing."""
    given, temporary = tmp_path / "input", tmp_path / "temporary"
    given.mkdir()
    temporary.mkdir()
    (given / ".trainbook").write_text("")
    done = execute(small_cell(), given, TMPDIR=str(temporary))
    assert done.returncode == 0, done.stderr
    assert str(temporary) in done.stdout


@pytest.mark.parametrize("name", ["a-package-that-nobody-has>=1", "numpy>=999", "torch>=999"])
def test_what_cannot_be_installed_is_one_line_and_torch_and_numpy_are_never_replaced(name, tmp_path):
    done = execute(small_cell(requires=name), tmp_path)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert name in last
    assert ("never replaced" in last) == name.endswith("999")


@pytest.mark.parametrize("how", ["variable", "field"])
def test_a_named_source_wins_over_the_payload(how, tmp_path):
    cell = small_cell()
    variable = {}
    if how == "variable":
        variable["TRAINBOOK_SOURCE"] = str(ROOT)
    else:
        cell = cell.replace('SOURCE = ""', f"SOURCE = {json.dumps(str(ROOT))}", 1)
    done = execute(cell, tmp_path, **variable)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith(f"used in {ROOT}")
    assert list(tmp_path.iterdir()) == []


def test_the_shipped_notebooks_first_cell_installs_a_wheel_without_touching_torch(tmp_path):
    """pip is replaced by a program that records its arguments: the real one would change this environment."""
    notebook = nbformat.read(ROOT / "training.ipynb", as_version=4)
    source = next(cell.source for cell in notebook.cells if cell.cell_type == "code")
    record = "import subprocess; subprocess.call = lambda command: print(*command) or 1"
    done = execute(f"{record}\n{source}", tmp_path, TRAINBOOK_SOURCE="mine.whl#sha256=00")
    assert " mine.whl#sha256=00 " in done.stdout
    assert " torch==" in done.stdout
    assert " numpy==" in done.stdout
    assert len(done.stderr.splitlines()) == 1
    assert "SOURCE" in done.stderr
