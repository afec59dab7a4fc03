"""Old import names work, bring only what is used, and never hide a package of the user's."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

import utils.training
from utils.compat.experiment import Trainer as OwnTrainer
from utils.compat.installing import OldModule, install
from utils.compat.old_names import OLD_MODULES
from utils.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def names_are_put_back():
    """What a test registers is gone after it, and what another module's tests have left is gone before it."""
    _forget()
    yield
    _forget()


def _forget():
    for name in list(sys.modules):
        if name.partition(".")[0] in ("src", "adaptiveneuralnetwork", "oldsystem"):
            del sys.modules[name]


def run(*arguments, cwd=None):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *map(str, arguments)], cwd=cwd, env=environment, capture_output=True, text=True, timeout=300
    )  # fmt: skip


def test_old_names_are_the_librarys_own_objects():
    assert "src" in install()
    from src.training import CheckpointManager, ExperimentManager, MetricsTracker, Trainer
    from src.training.metrics import MetricsTracker as AgainTracker
    from src.utils import get_device

    assert CheckpointManager is utils.training.CheckpointManager
    assert ExperimentManager is utils.training.ExperimentManager
    assert MetricsTracker is AgainTracker is utils.training.MetricsTracker
    assert Trainer is OwnTrainer
    assert get_device("cpu").type == "cpu"
    import src

    assert src.training.Trainer is Trainer


def test_it_may_be_called_twice():
    install()
    first = importlib.import_module("src.training")
    install()
    assert importlib.import_module("src.training") is first


def test_what_is_not_there_is_named_with_what_is():
    install()
    with pytest.raises(ImportError, match="Trainor"):
        from src.training import Trainor  # noqa: F401
    module = importlib.import_module("src.training")
    with pytest.raises(AttributeError, match="it has Trainer, MetricsTracker"):
        _ = module.Trainor
    assert "Trainer" in dir(module)
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("src.nothing")


def test_a_package_of_the_users_is_not_shadowed(tmp_path, monkeypatch):
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "__init__.py").write_text("mine = True\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert "src" not in install()
    import src

    assert src.mine
    assert "src" not in install(), "imported by now"
    with pytest.raises(ConfigError, match="is not replaced"):
        install("src")


def test_a_folder_without_an_init_file_is_a_package_of_the_users_too(tmp_path, monkeypatch):
    (tmp_path / "src").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    assert "src" not in install()


def test_another_system_is_one_entry_of_the_table():
    modules = {"oldsystem.training.loops": {"Sums": "utils.training.engine.metrics:Sums"}}
    assert install(modules=modules) == ["oldsystem"]
    from oldsystem.training.loops import Sums

    from utils.training.engine.metrics import Sums as Own

    assert Sums is Own
    assert isinstance(sys.modules["oldsystem.training"], OldModule)
    with pytest.raises(ConfigError, match="there are oldsystem"):
        install("src", modules=modules)


def test_registering_imports_nothing_heavy():
    code = "import sys, utils.compat; utils.compat.install(); import src.training; print('torch' in sys.modules)"
    assert run("-c", code).stdout.strip() == "False"


@pytest.mark.parametrize("module", sorted(OLD_MODULES))
def test_every_name_of_the_table_is_there(module):
    for target in OLD_MODULES[module].values():
        home, _, name = target.partition(":")
        assert hasattr(importlib.import_module(home), name), target


def test_a_script_runs_as_if_python_had_started_it(tmp_path):
    (tmp_path / "beside.py").write_text("WORD = 'beside'\n")
    script = tmp_path / "old.py"
    script.write_text(
        "import sys\nfrom beside import WORD\nfrom src.training import ExperimentManager\n"
        "if __name__ == '__main__':\n"
        "    print(WORD, sys.argv[1:], ExperimentManager('runs').experiment_dir)\n    sys.exit(7)\n"
    )
    result = run("-m", "utils.compat", script, "--epochs", "3", cwd=tmp_path)
    assert result.returncode == 7, result.stderr
    assert result.stdout.split("\n")[0] == f"beside ['--epochs', '3'] {tmp_path / 'runs/exp1'}"


def test_a_script_that_fails_shows_its_own_error(tmp_path):
    script = tmp_path / "old.py"
    script.write_text("raise ValueError('mine')\n")
    result = run("-m", "utils.compat", script)
    assert result.returncode == 1
    assert "ValueError: mine" in result.stderr
    assert run("-m", "utils.compat").returncode == 2
    assert run("-m", "utils.compat", tmp_path / "nowhere.py").returncode == 2
    assert run("-m", "utils.compat", "--help").returncode == 0


def test_a_script_that_gets_the_users_own_package_is_told(tmp_path):
    (tmp_path / "src").mkdir()
    script = tmp_path / "old.py"
    script.write_text("print('ran')\n")
    result = run("-m", "utils.compat", script)
    assert (result.returncode, result.stdout) == (0, "ran\n")
    assert "'src' is a package or folder of yours" in result.stderr
    (tmp_path / "src").rmdir()
    assert run("-m", "utils.compat", script).stderr == ""
