"""Model checks in a real JupyterLab with a real browser: Stop works while the cell runs, and a click starts what is offered."""

from __future__ import annotations

import os
import re

import pytest

from tests.kit.browser import NotebookPage, needs_chromium, running_browser, running_lab, write_notebook
from tests.kit.tree import ROOT

pytestmark = [pytest.mark.browser, pytest.mark.slow, needs_chromium]

PREPARE = """
import time
from tests.kit.planted import Causal
from widgets import offer_checks, run_checks

class Slow(Causal):
    def forward(self, *args, **named):
        time.sleep(0.1)
        return super().forward(*args, **named)
"""
RUN = "report = await run_checks(Slow())"
SAY = "print('ended', report.stopped, report['inference speed'].verdict)"
OFFER = "offered = offer_checks(Causal(), tier=1)"


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    path = f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    folder = tmp_path_factory.mktemp("lab")
    write_notebook(folder / "checks.ipynb", "")
    with running_lab(folder, OMP_NUM_THREADS="1", PYTHONPATH=path) as lab, running_browser() as browser:
        page = NotebookPage(browser, lab, "checks.ipynb")
        yield page
        page.close()


@pytest.fixture(params=["Light", "Dark"])
def notebook(page, request):
    """Cell 0 prepares, 1 runs checks, 2 says how they ended, 3 offers some. Both themes have the same kernel."""
    page.change_theme(request.param)
    page.replace_cells(PREPARE, RUN, SAY, OFFER)
    yield page
    assert page.alerts() == []


def test_stop_ends_the_checks_keeps_the_report_and_offered_checks_start_by_a_click(notebook):
    notebook.run_all()
    notebook.wait_for_text(".tb-checks-progress", "shapes (1 of 6)")
    notebook.wait_for_text(".tb-checks-progress", "of about")
    notebook.click(".tb-checks-stop")
    notebook.wait_until_done(2)
    assert "ended True not run" in notebook.output(2)
    assert re.search("Stopped|checks did not run", notebook.output(1))  # within a check, or between two on a slow machine
    assert notebook.cell(1).locator(".tb-checks-stop").count() == 0
    notebook.wait_until_done(3)
    assert "It takes about" in notebook.output(3)
    notebook.click(".tb-offer-checks")
    notebook.wait_for_text(".tb-offered-report", "6 passed")
