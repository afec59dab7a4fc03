"""`import utils` is this library, is cheap, and changes nothing in the process."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib

import pytest

from tests.kit.tree import ROOT, repository_files

HEAVY = {"torch", "transformers", "tokenizers", "datasets", "pandas", "numpy", "matplotlib", "wandb"}


def run_python(program: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=300, env={**os.environ, **environment}
    )


def modules_of(*packages: str) -> list[str]:
    """Dotted names of every module of these packages, packages included."""
    names = []
    for path in repository_files():
        relative = path.relative_to(ROOT)
        if path.suffix == ".py" and relative.parts[0] in packages:
            parts = relative.with_suffix("").parts
            names.append(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    return names


def test_import_utils_is_this_library():
    done = run_python("import utils; print(utils.__file__); print(utils.PRODUCT)")
    file, product = done.stdout.splitlines()
    assert file == str(ROOT / "utils" / "__init__.py")
    assert product == "Trainbook"


@pytest.mark.parametrize("place", ["utils.py", "utils/__init__.py"])
@pytest.mark.parametrize("imported", ["", "import utils; "], ids=["not imported", "imported already"])
def test_a_utils_of_the_users_own_is_named_with_the_way_out(place, imported, tmp_path):
    own = tmp_path / place
    own.parent.mkdir(exist_ok=True)
    own.write_text("def helper(): pass\n")
    done = run_python(f"import sys; sys.path.insert(0, {str(tmp_path)!r}); {imported}import widgets")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(f"ImportError: `import utils` gives {own}, which hides the package")
    assert "Rename that file or folder" in done.stderr
    assert "restart the kernel" in done.stderr


def test_the_notebook_checks_for_a_utils_of_the_users_own_before_it_imports_the_library():
    cells = json.loads((ROOT / "training.ipynb").read_text(encoding="utf-8"))["cells"]
    sources = [cell["source"] for cell in cells if cell["cell_type"] == "code"]
    first = next(
        lines for lines in sources if any(re.match(r"(import|from) (utils|widgets|cli)\b", line) for line in lines)
    )
    assert first[0].startswith("import widgets")


@pytest.mark.parametrize("package", ["utils", "utils.training", "utils.training.engine", "utils.errors"])
def test_importing_is_cheap(package):
    done = run_python(f"import sys, {package}; print(*sorted({HEAVY!r} & set(sys.modules)))")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []


@pytest.mark.parametrize("package", ["utils", "utils.training", "utils.training.engine"])
def test_every_exported_name_is_there(package):
    program = f"import {package} as p; print(*[n for n in getattr(p, '__all__', ()) if getattr(p, n, None) is None])"
    done = run_python(program)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []


def test_the_wizard_and_its_kin_import_without_torch():
    names = modules_of("utils")
    without_torch = [n for n in names if n == "utils.ui" or n.startswith(("utils.ui.", "utils.views.", "utils.errors"))]
    done = run_python(f"import sys; sys.modules['torch'] = None; import {', '.join(without_torch)}")
    assert done.returncode == 0, done.stderr


def test_importing_every_module_changes_nothing_in_the_process(tmp_path):
    program = f"""
import importlib, os, random, signal, sys, threading, warnings
import numpy as np, pytorch_lightning, torch, transformers

def state():
    return {{
        "random": random.getstate(),
        "numpy": repr(np.random.get_state()),
        "torch": torch.get_rng_state().tolist(),
        "signal handlers": [signal.getsignal(number) for number in signal.valid_signals()],
        "environment": dict(os.environ),
        "folder": os.getcwd(),
        "threads": threading.enumerate(),
        "dtype": torch.get_default_dtype(),
        "determinism": torch.are_deterministic_algorithms_enabled(),
        "excepthook": sys.excepthook,
    }}

before = state()
for name in {modules_of("utils", "cli")!r}:
    importlib.import_module(name)
after = state()
print(*[name for name in before if before[name] != after[name]], sep=", ")
"""
    done = run_python(program)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == ""
    assert list(tmp_path.iterdir()) == []


def test_every_module_stands_in_a_layer():
    """A module that no layer names could import anything: import-linter would not look at it."""
    options = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
    layers = next(contract["layers"] for contract in options["contracts"] if contract["type"] == "layers")
    named = {name.strip(" ()") for layer in layers for name in layer.replace("|", ":").split(":")}
    loose = []
    for name in modules_of("utils", "cli"):
        ancestors = {name[:end] for end, letter in enumerate(name + ".") if letter == "."}
        holds_layers = any(layer.startswith(f"{name}.") for layer in named)  # such a package only exports, lazily
        if not ancestors & named and not holds_layers:
            loose.append(name)
    assert loose == [], "add these to the layers in pyproject.toml"
