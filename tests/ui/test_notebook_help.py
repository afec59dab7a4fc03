"""A cell that is run too early names the cell to run first; nothing else changes."""

from __future__ import annotations

import pytest
from IPython.core.interactiveshell import InteractiveShell
from traitlets.config import Config

from utils.ui.notebook import explain_cell_order, hint


@pytest.fixture
def shell(tmp_path):
    """An IPython shell that keeps no history: a database would be written at exit, when its folder may be gone."""
    config = Config()
    config.HistoryManager.enabled = False
    yield InteractiveShell.instance(config=config, ipython_dir=str(tmp_path))
    InteractiveShell.clear_instance()


def test_the_missing_cell_is_named(shell, capsys):
    explain_cell_order()
    shell.run_cell("results = trainer.train(data)")
    captured = capsys.readouterr()
    assert "the cell under the heading 'Training'" in captured.err
    assert "NameError" in captured.out


def test_it_is_said_once_however_often_the_cell_is_run(shell, capsys):
    explain_cell_order()
    explain_cell_order()
    shell.run_cell("trainer")
    assert capsys.readouterr().err.count("run that cell first") == 1


def test_other_errors_are_left_alone(shell, capsys):
    explain_cell_order()
    shell.run_cell("1 / 0")
    shell.run_cell("something_else")
    assert capsys.readouterr().err == ""


def test_outside_ipython_nothing_happens():
    explain_cell_order()
    assert hint(None) is None
    assert hint(ValueError("data")) is None
