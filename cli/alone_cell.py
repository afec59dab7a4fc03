"""Makes a notebook self-sufficient that carries the library: this source is the first cell of dist/training-colab.ipynb.

Uses the standard library only. `cli.notebook_alone` appends the payload and the call of `set_up`.
"""

import base64
import hashlib
import importlib
import importlib.util
import io
import lzma
import os
import subprocess
import sys
import tempfile
import zipfile
from importlib.metadata import PackageNotFoundError, PathDistribution, distributions, version
from pathlib import Path
from types import TracebackType


class SetUpError(Exception):
    """The library cannot be used here. Notebooks show the message alone, without a traceback."""

    def _render_traceback_(
        self, kind: type | None = None, value: Exception | None = None, trace: TracebackType | None = None
    ) -> list[str]:
        return [f"trainbook: {self}"]


def set_up(payload: str, sha256: str, source: str = "") -> str:
    """Make `utils`, `widgets` and `cli` importable and install what they need, never replacing torch or numpy.

    Args:
        payload: the wheel, compressed with LZMA, in base 85; white space is ignored.
        sha256: of the wheel.
        source: a folder, a wheel or a git URL to use instead; empty: `TRAINBOOK_SOURCE`, else a checkout on the import
            path, else the payload.
    Returns:
        One line: what is used, from where.
    Raises:
        SetUpError: the payload is damaged, a requirement cannot be installed, or another `utils` hides the library's.
    """
    source = source or os.environ.get("TRAINBOOK_SOURCE", "")
    found = importlib.util.find_spec("utils")
    if source:
        home, done = _from_source(source)
    elif found is not None and _is_library(Path(found.origin or "").parent.parent):
        home, done = Path(found.origin or "").resolve().parent.parent, "found"
    else:
        home, done = _unpacked(payload, sha256)
    if str(home) not in sys.path:
        sys.path.insert(0, str(home))
    # Processes started from this notebook, such as job workers and export checks, import the same library.
    os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys([str(home), *_python_path()]))
    importlib.invalidate_caches()
    _refuse_another_utils(home)
    installed = _install_missing(home)
    # Known only now: the version is read from the library that the cells below will import.
    release = importlib.import_module("utils").__version__
    return f"Trainbook {release} {done} in {home}" + (f"; installed {', '.join(installed)}" if installed else "")


def _is_library(folder: Path) -> bool:
    return (folder / "widgets" / "__init__.py").is_file() and (folder / "utils" / "ui").is_dir()


def _python_path() -> list[str]:
    return [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]


def _folder(name: str) -> Path:
    """A folder for unpacked files: beside the notebook, or in the temporary folder where that is read-only."""
    for parent in (Path.cwd(), Path(tempfile.gettempdir())):
        folder = parent / ".trainbook" / name
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError:
            continue
        return folder
    raise SetUpError("no folder can be written to: neither this one nor the temporary one; set TMPDIR to one that can")


def _unpacked(payload: str, sha256: str) -> tuple[Path, str]:
    """The carried wheel's folder, and whether it was unpacked now."""
    damaged = "the library inside this notebook is damaged; download the notebook again"
    try:
        wheel = lzma.decompress(base64.b85decode("".join(payload.split())))
    except (ValueError, lzma.LZMAError, EOFError) as error:
        raise SetUpError(damaged) from error
    got = hashlib.sha256(wheel).hexdigest()
    if got != sha256:
        raise SetUpError(f"{damaged} (its sha256 is {got}, must be {sha256})")
    home = _folder(sha256[:16])
    complete = home / "complete"
    if complete.is_file() and _is_library(home):
        return home, "unpacked before"
    with zipfile.ZipFile(io.BytesIO(wheel)) as archive:
        archive.extractall(home)
    complete.touch()
    return home, f"unpacked (sha256 {sha256[:12]}…, verified)"


def _from_source(source: str) -> tuple[Path, str]:
    """The library from a folder, or from anything that pip installs, without its requirements."""
    folder = Path(source).expanduser()
    if _is_library(folder):
        return folder.resolve(), "used"
    home = _folder(hashlib.sha256(source.encode()).hexdigest()[:16])
    if _is_library(home):
        return home, f"installed before from {source}"
    _pip("--no-deps", "--upgrade", "--target", str(home), source)
    if not _is_library(home):
        raise SetUpError(f"{source} does not hold Trainbook; set TRAINBOOK_SOURCE to its folder, wheel or git URL")
    return home, f"installed from {source}"


def _pip(*arguments: str) -> None:
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "--no-input",
        *arguments,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()
        raise SetUpError(
            f"pip could not install {arguments[-1]}: {lines[0] if lines else 'no reason given'}; "
            "check that internet access is on, then run this cell again"
        )


def _install_missing(home: Path) -> list[str]:
    """Install the requirements that are not there; torch and numpy keep their versions or this ends with an error."""
    try:
        from packaging.requirements import Requirement
    except ImportError:  # pip always carries a copy
        from pip._vendor.packaging.requirements import Requirement  # type: ignore[assignment]

    missing = []
    for line in _requirements(home):
        requirement = Requirement(line)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            have = version(requirement.name)
        except PackageNotFoundError:
            have = None
        if have is not None and requirement.specifier.contains(have, prereleases=True):
            continue
        if requirement.name in ("torch", "numpy") and have is not None:
            raise SetUpError(
                f"{requirement} is needed, and this runtime has {have}, which is never replaced here; "
                "choose a newer runtime version"
            )
        missing.append(line)
    if missing:
        kept = {d.name: d.version for d in distributions() if d.name in ("torch", "numpy")}
        _pip(*(f"{name}=={have}" for name, have in kept.items()), *missing)
    return missing


def _requirements(home: Path) -> list[str]:
    """Requirements of the library: from requirements.txt in a checkout, from its metadata where it was unpacked."""
    listed = home / "requirements.txt"
    if listed.is_file():
        lines = (line.split("#")[0].strip() for line in listed.read_text(encoding="utf-8").splitlines())
        return [line for line in lines if line]
    for info in home.glob("trainbook-*.dist-info"):
        return PathDistribution(info).requires or []
    return []


def _refuse_another_utils(home: Path) -> None:
    """A `utils` of the user's, beside the notebook or imported before, would hide the library's: name it."""
    loaded = sys.modules.get("utils")
    spec = importlib.util.find_spec("utils") if loaded is None else loaded.__spec__
    file = getattr(loaded, "__file__", None) or (spec.origin if spec is not None else None)
    if file is None or Path(file).resolve() != home.resolve() / "utils" / "__init__.py":
        where = file or next(iter(getattr(spec, "submodule_search_locations", None) or ["nothing"]))
        raise SetUpError(f"`import utils` gives {where}, not the library: rename it, then restart the kernel")
    # The import path has the library first, yet a file beside the notebook is what its author will want to import.
    mine = [path for path in (Path.cwd() / "utils.py", Path.cwd() / "utils") if path.exists()]
    if mine and home.resolve() != Path.cwd().resolve():
        raise SetUpError(f"{mine[0]} has the name of the library's package: rename it, then restart the kernel")
