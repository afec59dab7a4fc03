"""Write dist/training-colab.ipynb: training.ipynb as one file that carries the library inside its first cell.

    python -m cli.notebook_alone

Exit status: 0 written, 1 it could not be made, 2 wrong arguments.
"""

from __future__ import annotations

import base64
import hashlib
import io
import lzma
import shutil
import subprocess
import sys
import tempfile
import textwrap
import zipfile
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from cli.common import Parser
from utils import HOME
from utils.errors import DataError, ExportError, TrainbookError
from utils.storage import write_text

#: What the wheel is built from.
_BUILT_FROM = ("utils", "widgets", "cli", "pyproject.toml", "requirements.txt", "README.md", "LICENSE")
#: Front ends open files of this size quickly, and every notebook service takes them.
MAX_BYTES = 2_000_000
_LINE_LENGTH = 400


def build_wheel(root: Path = HOME) -> bytes:
    """The library as a wheel without compression; the same sources give the same bytes.

    Raises:
        ExportError: `root` is no checkout, or the build failed.
    """
    absent = [name for name in _BUILT_FROM if not (root / name).exists()]
    if absent:
        raise ExportError(f"{root} has no {', '.join(absent)}; build the notebook in a checkout of the repository")
    with tempfile.TemporaryDirectory() as folder:
        # In a copy: setuptools packs whatever an earlier build left in build/.
        copy = Path(folder) / "source"
        for name in _BUILT_FROM:
            if (root / name).is_dir():
                shutil.copytree(root / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", ".*"))
            else:
                shutil.copy(root / name, copy)
        command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", folder, str(copy)]
        done = subprocess.run([*command, *_build_options()], capture_output=True, text=True, check=False)
        if done.returncode:
            reason = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:]
            raise ExportError(f"the wheel could not be built: {''.join(reason)}")
        (built,) = Path(folder).glob("*.whl")
        return _without_compression(built)


def _build_options() -> list[str]:
    """An installed setuptools that is new enough builds without network access."""
    try:
        recent = int(version("setuptools").split(".")[0]) >= 77
    except PackageNotFoundError:
        recent = False
    return ["--no-build-isolation"] if recent else []


def _without_compression(wheel: Path) -> bytes:
    """LZMA over all files together takes a third less than deflating each."""
    packed = io.BytesIO()
    with zipfile.ZipFile(wheel) as read, zipfile.ZipFile(packed, "w", zipfile.ZIP_STORED) as write:
        for name in sorted(read.namelist()):
            write.writestr(zipfile.ZipInfo(name), read.read(name))  # ZipInfo's default date, for equal bytes
    return packed.getvalue()


def first_cell(wheel: bytes) -> str:
    """Source of the cell that unpacks `wheel`."""
    program = (HOME / "cli" / "alone_cell.py").read_text(encoding="utf-8")
    payload = base64.b85encode(lzma.compress(wheel, preset=9 | lzma.PRESET_EXTREME)).decode("ascii")
    lines = "\n".join(textwrap.wrap(payload, _LINE_LENGTH, break_on_hyphens=False))
    return "\n".join([
        "# @title Start: unpacks the library that this notebook carries",
        'SOURCE = ""  # @param {type: "string"}',
        f'SHA256 = "{hashlib.sha256(wheel).hexdigest()}"',
        program.rstrip(),
        f'\n\nPAYLOAD = """\n{lines}\n"""',
        "print(set_up(PAYLOAD, SHA256, SOURCE))",
    ])  # fmt: skip


def build_notebook(notebook: Path, output: Path, source: str) -> Path:
    """Write `notebook` to `output` with its first code cell replaced by `source`, which `first_cell` makes.

    Raises:
        DataError: the notebook has no code cell, or its result would be larger than `MAX_BYTES`.
    """
    import nbformat

    content = nbformat.read(notebook, as_version=4)
    cell = next((cell for cell in content.cells if cell.cell_type == "code"), None)
    if cell is None:
        raise DataError(f"{notebook} has no code cell; give the path of training.ipynb")
    cell.source = source
    cell.metadata.update({"cellView": "form", "jupyter": {"source_hidden": True}})
    text = nbformat.writes(content) + "\n"
    if len(text.encode()) > MAX_BYTES:
        raise DataError(
            f"the notebook would have {len(text.encode()):,} bytes, at most {MAX_BYTES:,} can be uploaded well"
        )
    output.parent.mkdir(parents=True, exist_ok=True)
    write_text(output, text)
    return output


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit status."""
    parser = Parser(prog="python -m cli.notebook_alone", docstring=__doc__)
    parser.add_argument("--output", type=Path, default=HOME / "dist" / "training-colab.ipynb", metavar="FILE")
    options = parser.parse_args(arguments)
    try:
        wheel = build_wheel()
        path = build_notebook(HOME / "training.ipynb", options.output, first_cell(wheel))
    except TrainbookError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{path} ({path.stat().st_size / 1e6:.2f} MB), wheel sha256 {hashlib.sha256(wheel).hexdigest()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
