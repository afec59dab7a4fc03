"""Colab's versions of ipykernel, IPython and ipywidgets, without torch: the wizard can be clicked, Stop works, and a page that
was loaded again gets the live view back."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kit.browser import NotebookPage, needs_chromium, running_browser, running_lab, write_notebook
from tests.kit.tree import ROOT

PYTHON = Path(f"{sys.prefix}-colab") / "bin" / "python"

pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    needs_chromium,
    pytest.mark.skipif(
        not PYTHON.exists(), reason="needs the environment that `bash setup_colab.sh test` makes for it"
    ),
]

WIZARD = """
from utils.ui import SetupWizard

wizard = SetupWizard()
setup = wizard.run(preset="starter")
"""
TRAIN = """
from pathlib import Path
from types import SimpleNamespace

from paced import PacedTrainer

from widgets import train_live

trainer = PacedTrainer(Path("runs/paced"))
results = await train_live(trainer, SimpleNamespace(train=None, validation=None))
"""


ATTACH = "from widgets import show_live\n\nshow_live()"


@pytest.fixture(scope="module")
def notebook(tmp_path_factory):
    """Cell 0 shows the wizard, 1 says what was set, 2 trains, 3 says how it ended, 4 attaches."""
    folder = tmp_path_factory.mktemp("lab")
    shutil.copy(ROOT / "tests" / "kit" / "paced.py", folder)
    say = "print('batch size', setup.batch_size)"
    end = "print('ended', results.stop_reason, results.steps)"
    write_notebook(folder / "n.ipynb", WIZARD, say, TRAIN, end, ATTACH)
    with running_lab(folder, str(PYTHON)) as lab, running_browser() as browser:
        page = NotebookPage(browser, lab, "n.ipynb")
        yield page
        page.close()


def test_it_is_colabs_versions_and_there_is_no_torch():
    program = (
        "import importlib.util as u, importlib.metadata as m;"
        "print(m.version('ipykernel'), m.version('ipywidgets'), m.version('ipython'), u.find_spec('torch'))"
    )
    done = subprocess.run([PYTHON, "-c", program], capture_output=True, text=True)
    assert done.stdout.split() == ["6.17.1", "7.7.1", "7.34.0", "None"]


def test_the_wizard_can_be_clicked_through(notebook):
    notebook.run_cell(0)
    for step in ("dataset", "tokenizer", "model"):
        notebook.page.locator(f".tb-page-{step}").wait_for()
        notebook.click(".tb-next")
    batch_size = notebook.page.locator(".tb-field-batch_size input")
    batch_size.fill("16")
    batch_size.press("Enter")
    notebook.click(".tb-next")
    # Nothing can be trained without torch, which the checks find by themselves.
    notebook.wait_for_text(".tb-verdict", "Not ready to train")
    notebook.wait_for_text(".tb-check-run", "No module named 'torch'")
    notebook.run_cell(1)
    notebook.wait_until_done(1)
    assert "batch size 16" in notebook.output(1)
    assert notebook.alerts() == []


def test_pause_and_stop_work_while_the_cell_runs(notebook):
    notebook.run_cell(2)
    notebook.wait_for_text(".tb-live-status", "Training")
    notebook.click(".tb-pause")
    notebook.wait_for_text(".tb-live-status", "Paused and saved")
    notebook.click(".tb-pause")
    notebook.wait_for_text(".tb-live-status", "Training")
    notebook.click(".tb-stop")
    notebook.wait_until_done(2)
    assert "Stopped by the Stop button and saved" in notebook.output(2)
    assert re.search(r"step \d+ of 3,000", notebook.output(2))
    notebook.run_cell(3)
    notebook.wait_until_done(3)
    assert "ended stop_button" in notebook.output(3)
    assert notebook.alerts() == []


def test_with_colabs_versions_too_a_page_loaded_again_gets_view_and_stop_from_one_cell(notebook):
    notebook.run_cell(2)
    notebook.wait_for_text(".tb-live-status", "Training")
    notebook.open()
    assert notebook.page.locator(".tb-stop").count() == 0
    notebook.run_cell(4)
    notebook.wait_for_text(".tb-live-status", "Training")
    assert notebook.is_running(4)
    notebook.click(".tb-stop")
    notebook.wait_until_done(4)
    assert notebook.cell(4).locator(".tb-live-view").count() == 1
    assert re.search(r"step \d+", notebook.output(4))
    notebook.run_cell(3)
    notebook.wait_until_done(3)
    assert "ended stop_button" in notebook.output(3)
    assert notebook.alerts() == []
