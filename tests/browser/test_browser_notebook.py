"""training.ipynb in a real JupyterLab: click through the wizard, watch it train, stop it, go on to the same weights."""

from __future__ import annotations

import re

import nbformat
import pytest

from tests.kit.browser import NotebookPage, needs_chromium, running_browser, running_lab
from tests.kit.tree import ROOT

pytestmark = [pytest.mark.browser, pytest.mark.slow, needs_chromium]

STEPS = 60

#: The training is clicked here, not judged: the model of the notebook's size is trained in tests/notebook.
MODEL = 'ModelRegistry.create("gpt-small", vocab_size=4096, max_seq_len=128, n_layer=1, n_embd=32, n_head=2)'

SETTINGS = f"""
from utils.training import Callback

class UntilStop(Callback):
    # Nothing is learned beyond step 20 before somebody clicks Stop, however long the page takes.
    clicked = False

    def on_step_end(self, step, trainer, logs=None):
        if step == 20 and not self.clicked:
            trainer.control.stop.wait()

    def on_train_end(self, trainer, logs=None):
        UntilStop.clicked = True

CONFIG = {{"max_steps": {STEPS}, "eval_every": 10, "run_name": "clicked"}}
"""

COMPARE = f"""
import torch

fresh = {MODEL}
config = setup.training_config.replace(run_name="unbroken")
unbroken = Trainer(fresh, training_config=config, task_spec=data.task_spec, tokenizer=data.tokenizer)
reference = unbroken.train(data.train, data.validation)
pairs = zip(results.model.parameters(), fresh.parameters(), strict=True)
print("steps", results.steps, reference.steps, "same weights:", all(torch.equal(*pair) for pair in pairs))
"""


@pytest.fixture(scope="module")
def cells(tmp_path_factory):
    """The lab's folder with the notebook in it, and heading -> number of the code cell under it."""
    folder = tmp_path_factory.mktemp("lab")
    notebook = nbformat.read(ROOT / "training.ipynb", as_version=4)
    numbers, heading = {}, ""
    for number, cell in enumerate(notebook.cells):
        if cell.cell_type == "markdown":
            heading = cell.source.splitlines()[0].lstrip("# ")
        else:
            numbers[heading] = number
    notebook.cells[numbers["Settings"]].source = SETTINGS
    notebook.cells[numbers["Model"]].source = f"model = {MODEL}"
    training = notebook.cells[numbers["Training"]]
    assert training.source.count("tokenizer=data.tokenizer,") == 1
    training.source = training.source.replace("tokenizer=data.tokenizer,", "tokenizer=data.tokenizer, callbacks=[UntilStop()],")
    notebook.cells.append(nbformat.v4.new_code_cell(COMPARE))
    numbers["compare"] = len(notebook.cells) - 1
    nbformat.write(notebook, folder / "training.ipynb")
    return folder, numbers


@pytest.fixture(scope="module")
def notebook(cells):
    """The notebook, with the cells up to the model executed; each test executes Setup, so that it depends on no other."""
    with running_lab(cells[0], OMP_NUM_THREADS="1") as lab, running_browser() as browser:
        page = NotebookPage(browser, lab, "training.ipynb", height=1600)
        for heading in ("Start", "Settings", "Model"):
            run(page, cells[1][heading])
        yield page
        page.close()


def run(notebook, number):
    notebook.run_cell(number)
    notebook.wait_until_done(number)


def set_batch_size(notebook, size):
    field = notebook.page.locator(".tb-field-batch_size input")
    field.fill(str(size))
    field.press("Enter")


def test_click_through_train_stop_and_go_on_to_the_same_weights(notebook, cells):
    number = cells[1]
    run(notebook, number["Setup"])
    for step in ("dataset", "tokenizer", "model"):
        notebook.page.locator(f".tb-page-{step}").wait_for()
        notebook.click(".tb-next")
    notebook.page.locator(".tb-page-training").wait_for()
    set_batch_size(notebook, 4)
    notebook.click(".tb-next")
    notebook.wait_for_text(".tb-verdict", "Ready to train")
    run(notebook, number["Summary"])
    assert re.search(r"Batch size\s+4 samples", notebook.output(number["Summary"]))
    run(notebook, number["Data"])

    training = number["Training"]
    notebook.run_cell(training)
    notebook.wait_for_text(".tb-live", "training loss")
    notebook.click(".tb-stop")
    notebook.wait_until_done(training)
    stopped = re.search(r"Stopped by the Stop button and saved · step (\d+) of 60", notebook.output(training))
    assert 0 < int(stopped[1]) < STEPS
    assert (notebook.lab.folder / "runs" / "clicked" / "checkpoints" / f"step_{stopped[1]}.pt").is_file()

    notebook.run_cell(training)
    notebook.wait_for_text(".jp-OutputArea", f"Finished: the step limit is reached · step {STEPS} of {STEPS}")
    notebook.wait_until_done(training)
    run(notebook, number["compare"])
    assert f"steps {STEPS} {STEPS} same weights: True" in notebook.output(number["compare"])
    assert notebook.alerts() == []


def test_what_was_clicked_stays_when_the_cell_runs_again(notebook, cells):
    setup = cells[1]["Setup"]
    run(notebook, setup)
    notebook.click(".tb-step-training")
    set_batch_size(notebook, 4)
    notebook.wait_for_text(".tb-clicks", "Batch size")
    run(notebook, setup)
    notebook.wait_for_text(".tb-clicks", "(kept from before this cell ran again): Batch size")
    run(notebook, cells[1]["Summary"])
    assert re.search(r"Batch size\s+4 samples", notebook.output(cells[1]["Summary"]))


def test_a_rejected_value_is_said_beside_its_field_and_changes_nothing(notebook, cells):
    run(notebook, cells[1]["Setup"])
    notebook.click(".tb-step-training")
    field = notebook.page.locator(".tb-field-learning_rate input")
    field.fill("7")
    field.press("Enter")
    notebook.wait_for_text(".tb-error-learning_rate", "must be less than 1")
    run(notebook, cells[1]["Summary"])
    assert re.search(r"Learning rate\s+0.003", notebook.output(cells[1]["Summary"]))
    assert notebook.alerts() == []
