"""setup_colab.sh: refuses what it does not know, and in Colab installs only what is missing."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.kit.tree import ROOT

SCRIPT = ROOT / "setup_colab.sh"


def run_script(*words: str, script: Path = SCRIPT, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the script with this environment's interpreter first on the PATH. pip finds nothing unless a test allows it."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return subprocess.run(
        ["bash", str(script), *words],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "PATH": path, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "", **environment},
    )


@pytest.fixture
def house(tmp_path: Path) -> Path:
    """A folder that holds the script and what it reads, as in a clone."""
    folder = tmp_path / "a clone with spaces"
    folder.mkdir()
    for name in ("setup_colab.sh", "requirements.txt", "constraints.txt", "pyproject.toml"):
        shutil.copy(ROOT / name, folder)
    return folder


def wheel(folder: Path, name: str, version: str, needs: str = "") -> None:
    """Write an installable package that holds one module."""
    info = f"{name}-{version}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    if needs:
        metadata += f"Requires-Dist: {needs}\n"
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as archive:
        archive.writestr(f"{name}.py", f"VERSION = {version!r}\n")
        archive.writestr(f"{info}/METADATA", metadata)
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")


def test_the_syntax_is_valid():
    assert subprocess.run(["bash", "-n", str(SCRIPT)], capture_output=True, text=True).stderr == ""


@pytest.mark.parametrize("words", [["frobnicate"], ["--help"], ["run", "test"], [" run"]])
def test_unknown_words_are_refused(words):
    done = run_script(*words)
    assert done.returncode == 2
    assert done.stdout == ""
    assert "run, test, lab, notebook, docs" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_without_a_word_outside_colab_it_says_which_words_there_are(house):
    done = run_script(script=house / "setup_colab.sh")
    assert done.returncode == 2
    assert "run | test | lab | notebook | docs" in done.stderr


def test_in_colab_nothing_happens_when_everything_is_there(house):
    done = run_script(script=house / "setup_colab.sh", COLAB_RELEASE_TAG="release")
    assert done.returncode == 0, done.stderr
    assert "installing" not in done.stdout
    assert done.stdout.splitlines()[-1] == "trainbook: ready: run the notebook's cells from top to bottom"


def test_in_colab_only_what_is_missing_is_installed(house, tmp_path):
    shelf, target = tmp_path / "shelf", tmp_path / "target"
    shelf.mkdir()
    wheel(shelf, "trainbook_probe", "1.5")
    wheel(shelf, "numpy", "999.0")
    with open(house / "requirements.txt", "a", encoding="utf-8") as file:
        file.write("trainbook-probe>=1.2  # is not there\nnumpy>=1\n")
    done = run_script(
        script=house / "setup_colab.sh",
        COLAB_RELEASE_TAG="release",
        PIP_FIND_LINKS=str(shelf),
        PIP_TARGET=str(target),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "installing trainbook-probe>=1.2" in done.stdout
    assert (target / "trainbook_probe.py").exists()
    assert not list(target.glob("numpy*"))


def test_in_colab_what_is_there_does_not_move_for_a_new_package(house, tmp_path):
    """A package that wants another numpy than Colab's is refused instead of replacing Colab's."""
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    wheel(shelf, "numpy", "999.0")
    wheel(shelf, "greedy", "1.0", needs="numpy>=999")
    with open(house / "requirements.txt", "a", encoding="utf-8") as file:
        file.write("greedy\n")
    done = run_script(
        script=house / "setup_colab.sh",
        COLAB_RELEASE_TAG="release",
        PIP_FIND_LINKS=str(shelf),
        PIP_TARGET=str(tmp_path / "target"),
        TMPDIR=str(tmp_path),
    )
    assert done.returncode == 1
    assert not (tmp_path / "target").exists()
    (line,) = done.stderr.splitlines()
    assert "installing greedy failed: ERROR:" in line
    assert "numpy" in Path(line.split("whole log: ")[1].split(")")[0]).read_text()


def test_in_colab_an_old_torch_is_named_and_left_alone(house):
    requirements = house / "requirements.txt"
    requirements.write_text(requirements.read_text().replace("torch>=2.6,<3", "torch>=999"), encoding="utf-8")
    done = run_script(script=house / "setup_colab.sh", COLAB_RELEASE_TAG="release")
    assert done.returncode == 1
    assert "torch>=999 is needed and this runtime has torch 2" in done.stderr
    assert "Change runtime type" in done.stderr


@pytest.mark.parametrize("word", ["run", "test", "docs"])
def test_a_folder_that_is_not_an_environment_is_left_alone(house, tmp_path, word):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years of work")
    (house / "training.ipynb").write_text("{}")
    done = run_script(word, script=house / "setup_colab.sh", TRAINBOOK_VENV=str(mine))
    assert done.returncode == 1
    assert "is not a Python environment" in done.stderr
    assert [path.name for path in mine.iterdir()] == ["thesis.txt"]


def test_an_environment_that_does_not_work_is_named(house, tmp_path):
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "pyvenv.cfg").write_text("")
    (house / "training.ipynb").write_text("{}")
    done = run_script("run", script=house / "setup_colab.sh", TRAINBOOK_VENV=str(tmp_path / "broken"))
    assert done.returncode == 1
    assert "delete that folder" in done.stderr


def test_without_a_new_python_the_version_is_named(house, tmp_path):
    """Only an old python3 on the PATH: the message says which one it is and what is needed."""
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("bash", "dirname", "mktemp", "ls", "rm", "id", "tail", "grep"):
        (tools / name).symlink_to(shutil.which(name))
    old = tools / "python3"
    old.write_text('#!/bin/bash\n[[ "$1" == --version ]] && echo "Python 3.9.2" && exit 0\nexit 1\n')
    old.chmod(0o755)
    (house / "training.ipynb").write_text("{}")
    done = subprocess.run(
        ["bash", str(house / "setup_colab.sh"), "run"], capture_output=True, text=True, env={"PATH": str(tools)}
    )
    assert done.returncode == 1
    assert "Python 3.11 or newer is needed; python3 is Python 3.9.2" in done.stderr


# ---- tests that fail once ----

STUB_TESTS = """
from pathlib import Path
import pytest

@pytest.mark.parametrize("n", range({once}))
def test_fails_once(n):
    seen = Path(__file__).with_name(f"seen-{{n}}")
    before = seen.exists()
    seen.touch()
    assert before

@pytest.mark.parametrize("n", range({always}))
def test_fails_always(n):
    raise AssertionError

def test_passes():
    pass
"""
# Everything but pytest is taken to pass; of its plugins only xdist is loaded, since the others take seconds to import.
STUB_PYTHON = """#!/usr/bin/env bash
case "$*" in
  "-m ruff"* | "-m mypy"* | "-m mkdocs"* | *--nbmake*) exit 0 ;;
  "-m pytest"*) shift 2; PYTEST_DISABLE_PLUGIN_AUTOLOAD=1 exec "{python}" -m pytest -p xdist.plugin "$@" ;;
  *) exec "{python}" "$@" ;;
esac
"""


def program(path: Path, text: str = "#!/bin/sh\n") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    path.chmod(0o755)


def run_stub_suite(house: Path, once: int, always: int) -> subprocess.CompletedProcess[str]:
    """`setup_colab.sh test` in a project whose tests fail once or always, and whose environment is installed already."""
    environment = house.parent / "environment"
    program(environment / "bin" / "python", STUB_PYTHON.format(python=sys.executable))
    program(environment / "bin" / "lint-imports")
    for name in ("g++", "chromium"):
        program(house.parent / "tools" / name)
    (environment / "pyvenv.cfg").touch()
    read = ("requirements.txt", "constraints.txt", "pyproject.toml")
    digest = hashlib.sha256(b"".join((house / name).read_bytes() for name in read)).hexdigest()
    (environment / "trainbook-installed").write_text(f"test {digest}\n")
    (house / "training.ipynb").write_text("{}")
    for versions in (
        house / "tests" / "browser" / "colab_versions.txt",
        Path(f"{environment}-colab") / "trainbook-versions",
    ):
        versions.parent.mkdir(parents=True)
        versions.touch()
    (house / "tests" / "kit").mkdir()
    shutil.copy(ROOT / "tests" / "kit" / "failed_before.py", house / "tests" / "kit")
    (house / "tests" / "conftest.py").write_text(
        "from tests.kit.failed_before import pytest_terminal_summary\n"
        "from tests.kit.failed_before import remember_failures as pytest_configure\n"
    )
    (house / "tests" / "test_stub.py").write_text(STUB_TESTS.format(once=once, always=always))
    path = os.pathsep.join([str(house.parent / "tools"), os.environ["PATH"]])
    command = ["bash", str(house / "setup_colab.sh"), "test"]
    kept = {**os.environ, "PATH": path, "TRAINBOOK_VENV": str(environment)}
    return subprocess.run(command, capture_output=True, text=True, timeout=600, env=kept)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("once", "always", "status", "unstable", "closing"),
    [
        (0, 0, 0, [], "1 passed"),
        (3, 0, 0, ["[0]", "[1]", "[2]"], "3 passed"),
        (1, 1, 1, ["[0]"], "1 failed, 1 passed"),
        (4, 0, 1, [], "4 failed, 1 passed"),
    ],
    ids=["none fails", "three pass alone", "one fails again", "four are too many"],
)
def test_what_fails_once_is_named_and_only_what_fails_again_or_is_much_fails_the_suite(
    house, once, always, status, unstable, closing
):
    done = run_stub_suite(house, once, always)
    assert done.returncode == status, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    named = [line for line in lines if line.startswith("unstable: ")]
    assert named == [f"unstable: tests/test_stub.py::test_fails_once{n}" for n in unstable]
    assert ("mend it" in done.stdout) == bool(unstable)
    assert closing in lines[-1]
    if unstable and not always:
        assert [line for line in lines if line][-2] == named[-1], "the last words before the closing line"


def test_ci_calls_the_same_command():
    lines = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    assert lines[0] == "#!/usr/bin/env bash"
    assert lines[-1].endswith("bash setup_colab.sh test")
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
