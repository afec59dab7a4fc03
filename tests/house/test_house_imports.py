"""`import utils` is this library, is cheap, and changes nothing in the process."""

from __future__ import annotations

import importlib
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


def test_every_exported_name_is_there():
    for package in map(importlib.import_module, ("utils", "utils.training", "utils.training.engine")):
        assert [name for name in getattr(package, "__all__", ()) if getattr(package, name, None) is None] == []


def test_the_wizard_and_its_kin_import_without_torch():
    names = modules_of("utils")
    without_torch = [n for n in names if n == "utils.ui" or n.startswith(("utils.ui.", "utils.views.", "utils.errors"))]
    done = run_python(f"import sys; sys.modules['torch'] = None; import {', '.join(without_torch)}")
    assert done.returncode == 0, done.stderr


def test_f50_without_any_optional_package_everything_imports_and_training_and_export_work(tmp_path):
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    optional = {name.replace("-", "_") for extra, names in extras.items() if extra != "test" for name in names}
    # Both say at their import which package is missing: the first under `cli.run_notebook`'s own message.
    need_one = ("cli.notebook_client", "utils.training.export.bundle_files.serve")
    modules = [name for name in modules_of("utils", "widgets", "cli") if name not in need_one]
    program = f"""
import importlib, sys
for name in {sorted(optional | {"mlflow", "tensorboard"})!r}:
    sys.modules[name] = None
from tests.kit.toys import golden_config, tiny_gpt, train_set
from utils.errors import MissingPackageError
from utils.training import Trainer, export_model
results = Trainer(tiny_gpt(), None, golden_config(epochs=1)).train(train_set())
print("torchmetrics" in sys.modules)
for name in {modules!r}:
    importlib.import_module(name)
print(export_model(results, formats=["safetensors"])["safetensors"].path.name)
try:
    Trainer(tiny_gpt(), None, golden_config(epochs=1, finetune="lora", run_name="lora")).train(train_set())
except MissingPackageError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=300, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    torchmetrics_imported, exported, refusal = done.stdout.splitlines()[-3:]
    assert torchmetrics_imported == "False", "Fabric imports it for its version: seconds before the first step"
    assert exported == "safetensors"
    assert "peft" in refusal
    assert "pip install" in refusal


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
