"""setup_colab.sh: refuses what it does not know, and in Colab installs only what is missing."""

from __future__ import annotations

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
    assert "run, test, lab" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_without_a_word_outside_colab_it_says_which_words_there_are(house):
    done = run_script(script=house / "setup_colab.sh")
    assert done.returncode == 2
    assert "run | test | lab" in done.stderr


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


@pytest.mark.parametrize("word", ["run", "test"])
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


def test_ci_calls_the_same_command():
    lines = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    assert lines[0] == "#!/usr/bin/env bash"
    assert lines[-1].endswith("bash setup_colab.sh test")
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
