"""Panels in a real JupyterLab with a real browser: the live view, whose buttons work while the cell runs, also after a reload;
the runs panel; a picture that is uploaded and classified."""

from __future__ import annotations

import re

import pytest

from tests.kit.browser import NotebookPage, needs_chromium, running_browser, running_lab, write_notebook
from tests.training.test_run_table import make_run

pytestmark = [pytest.mark.browser, pytest.mark.slow, needs_chromium]

PREPARE = """
from utils.data import prepare_data
from utils.models import ModelRegistry
from utils.training import Callback, Trainer
from utils.ui import SetupWizard
from widgets import train_live

class Paced(Callback):
    # Steps at a pace that a click can meet; between them the kernel leaves the processor to the page.
    def on_step_end(self, step, trainer, logs=None):
        trainer.control.stop.wait(0.5)

def make_trainer(run_name):
    model = ModelRegistry.create("gpt-small", vocab_size=512, max_seq_len=32, n_layer=1, n_embd=32, n_head=2)
    setup = SetupWizard().run(model=model, interactive=False, preset="starter", epochs=40, eval_every=100, run_name=run_name)
    data = prepare_data(setup, model)
    named = {"training_config": setup.training_config, "task_spec": data.task_spec, "tokenizer": data.tokenizer}
    return Trainer(model, callbacks=[Paced()], **named), data
"""
TRAIN = "trainer, data = make_trainer({name!r})\nresults = await train_live(trainer, data)"
ATTACH = "from widgets import show_live\n\nshow_live()"
SAY = "print('ended', results.stop_reason, results.steps, results.checkpoint_path)"


STEP_IS_LATER = (
    "before => { const m = /step ([\\d,]+)/.exec(document.querySelector('.tb-live').innerText);"
    " return m && Number(m[1].replace(/,/g, '')) > before }"
)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """One page with one kernel for all tests, each of which puts its own cells there."""
    with running_lab(tmp_path_factory.mktemp("lab"), OMP_NUM_THREADS="1") as lab, running_browser() as browser:
        write_notebook(lab.folder / "live.ipynb", "")
        page = NotebookPage(browser, lab, "live.ipynb")
        yield page
        page.close()


@pytest.fixture
def notebook(page, request):
    """A notebook that trains: cell 0 prepares, 1 trains, 2 says how it ended."""
    page.replace_cells(PREPARE, TRAIN.format(name=request.node.name), SAY)
    yield page
    assert page.alerts() == []


def step_of(text):
    return int(re.search(r"step ([\d,]+)", text)[1].replace(",", ""))


def test_pause_holds_the_run_and_continue_lets_it_go_on(notebook):
    notebook.run_all()
    notebook.wait_for_text(".tb-live", "training loss")
    notebook.click(".tb-pause")
    notebook.wait_for_text(".tb-live-status", "Paused and saved")
    paused_at = step_of(notebook.output(1))
    notebook.click(".tb-pause")
    notebook.wait_for_text(".tb-live-status", "Training")
    notebook.click(".tb-stop")
    notebook.wait_until_done(2)
    said = re.search(r"ended stop_button (\d+) (\S+)", notebook.output(2))
    assert int(said[1]) >= paused_at
    assert (notebook.lab.folder / said[2]).is_file()


def test_what_is_typed_into_a_field_during_training_arrives_then_and_later(page):
    field = (
        "import ipywidgets\n\nfield, echo = ipywidgets.Text(), ipywidgets.HTML()\n"
        "field.observe(lambda change: setattr(echo, 'value', 'the kernel has: ' + change['new']), 'value')\n"
        "ipywidgets.VBox([field, echo])"
    )
    page.replace_cells(PREPARE, field, TRAIN.format(name="typed"))
    page.run_all()
    page.wait_for_text(".tb-live", "training loss")
    box = page.cell(1).locator("input[type=text]")
    box.press_sequentially("during training")
    page.wait_for_text(".widget-html", "the kernel has: during training")
    assert page.is_running(2), "the training went on meanwhile"
    page.click(".tb-stop")
    page.wait_until_done(2)
    box.fill("")
    box.press_sequentially("afterwards")
    page.wait_for_text(".widget-html", "the kernel has: afterwards")


def test_after_the_page_was_loaded_again_the_view_lives_and_stop_works(notebook):
    notebook.run_all()
    notebook.wait_for_text(".tb-live", "training loss")
    notebook.save()
    notebook.open()
    notebook.page.locator(".tb-stop").wait_for()
    before = step_of(notebook.output(1))
    notebook.page.wait_for_function(STEP_IS_LATER, arg=before)
    notebook.click(".tb-stop")
    notebook.wait_for_text(".tb-live", "Stopped by the Stop button and saved")
    notebook.run_cell(2)
    notebook.wait_for_text(".jp-OutputArea", "ended stop_button")


@pytest.fixture
def unsaved(page, request):
    """A notebook on disk with the outputs of an earlier run: cell 0 prepares, 1 trains, 2 says how it ended, 3 attaches."""
    page.replace_cells(PREPARE, TRAIN.format(name=request.node.name), SAY, ATTACH)
    yield page
    assert page.alerts() == []


def test_a_page_loaded_again_without_saving_gets_view_and_stop_from_one_cell(unsaved):
    unsaved.run_cell(0)
    unsaved.run_cell(1)
    unsaved.wait_for_text(".tb-live", "training loss")
    for _ in range(2):  # what the attaching cell showed is lost with the page as well, and comes back in the same way
        unsaved.open()
        assert unsaved.page.locator(".tb-stop").count() == 0
        unsaved.run_cell(3)
        unsaved.wait_for_text(".tb-live", "training loss")
        assert unsaved.is_running(3)
    before = step_of(unsaved.output(3))
    unsaved.page.wait_for_function(STEP_IS_LATER, arg=before)
    unsaved.click(".tb-pause")
    unsaved.wait_for_text(".tb-live-status", "Paused and saved")
    unsaved.click(".tb-stop")
    unsaved.wait_until_done(3)
    assert unsaved.cell(3).locator(".tb-live-view").count() == 1
    assert unsaved.cell(3).locator(".tb-stop").count() == 0
    assert "Stopped by the Stop button and saved" in unsaved.output(3)
    unsaved.run_cell(2)
    unsaved.wait_for_text(".jp-OutputArea", "ended stop_button")


def test_a_notebook_saved_mid_run_and_reopened_with_a_new_kernel_shows_the_run(unsaved):
    unsaved.run_cell(0)
    unsaved.run_cell(1)
    unsaved.wait_for_text(".tb-live", "training loss")
    unsaved.save()
    unsaved.click(".tb-stop")
    unsaved.wait_until_done(1)
    unsaved.restart_kernel()
    unsaved.open()
    unsaved.run_cell(3)
    unsaved.wait_until_done(3)
    assert "Stopped by the Stop button and saved" in unsaved.output(3)
    assert unsaved.cell(3).locator("svg[role=img][aria-label^='Curves of the loss']").count() == 1


def test_the_kernels_interrupt_saves_and_raises(notebook):
    notebook.run_all()
    notebook.wait_for_text(".tb-live", "training loss")
    notebook.command("notebook:interrupt-kernel")
    notebook.wait_until_done(1)
    assert re.search(r"TrainingInterrupted: Interrupted after step \d+; saved as \S*runs", notebook.output(1))
    assert "ended" not in notebook.output(2)


def test_the_last_state_stays_in_the_saved_notebook_without_widgets(notebook):
    notebook.run_all()
    notebook.wait_for_text(".tb-live", "training loss")
    notebook.click(".tb-stop")
    notebook.wait_until_done(2)
    assert notebook.cell(1).locator(".tb-stop").count() == 0
    output = notebook.output(1)
    assert "Stopped by the Stop button and saved" in output
    assert notebook.cell(1).locator("svg[role=img][aria-label^='Curves of the loss']").count() == 1


PLAY = """
from utils.models import ModelRegistry
from widgets import playground

model = ModelRegistry.create("vit-small", num_classes=3, input_size=8, n_layer=1, n_embd=8, n_head=1)
model.save_pretrained("pictures")
playground("pictures")
"""


@pytest.fixture
def panels(page):
    """A notebook with the panel of three runs, and a play panel for a model of images."""
    for number, name in enumerate(("first", "second", "third")):
        make_run(page.lab.folder / "kept", name, monitor="val/loss", notes="" if number else "to compare with")
    page.replace_cells("from widgets import runs_panel\n\nruns_panel('kept');", PLAY)
    page.run_all()
    yield page
    assert page.alerts() == []


def tick(notebook, *names):
    for name in ("first", "second", "third"):
        box = notebook.page.locator(".tb-run-row", has_text=name).locator("input")
        if box.count():
            box.set_checked(name in names)


def test_runs_are_opened_compared_noted_archived_and_deleted_and_a_picture_is_classified(panels, tmp_path):
    from PIL import Image

    folder, view = panels.lab.folder / "kept", panels.page
    view.locator(".tb-run-row").nth(2).wait_for()
    tick(panels, "first", "second")
    panels.click(".tb-runs-compare")
    panels.wait_for_text(".tb-runs-compared", "Runs compared")
    tick(panels, "second")
    panels.click(".tb-runs-open")
    panels.wait_for_text(".tb-runs-live", "second")
    assert view.locator(".tb-runs-compared").count() == 0
    view.locator(".tb-runs-notes textarea").fill("better")
    view.locator(".tb-runs-tags input").fill("kept, long")
    panels.click(".tb-runs-save")
    panels.wait_for_text(".tb-run-row", "kept, long · better")
    assert (folder / "second" / "notes.txt").read_text().strip() == "better"

    panels.click(".tb-runs-archive")
    panels.wait_for_text(".tb-runs-message", "Archived: second")
    assert view.locator(".tb-run-row").count() == 2
    panels.click(".tb-runs-archived input")
    view.locator(".tb-run-row", has_text="second").wait_for()
    tick(panels, "second")
    panels.click(".tb-runs-archive")
    panels.wait_for_text(".tb-runs-message", "Restored: second")
    panels.click(".tb-runs-archived input")
    view.locator(".tb-run-row").nth(2).wait_for()

    tick(panels, "third")
    panels.click(".tb-runs-delete")
    panels.wait_for_text(".tb-runs-question", "cannot be undone")
    panels.click(".tb-runs-keep")
    panels.wait_for_text(".tb-runs-message", "Nothing was deleted")
    panels.click(".tb-runs-delete")
    assert (folder / "third").is_dir()
    panels.click(".tb-runs-confirm")
    panels.wait_for_text(".tb-runs-message", "Deleted: third")
    assert not (folder / "third").exists()

    Image.new("RGB", (20, 12), (200, 30, 30)).save(tmp_path / "red.jpg")
    with view.expect_file_chooser() as chooser:
        panels.click(".tb-play-upload")
    chooser.value.set_files(tmp_path / "red.jpg")
    view.locator(".tb-play-picture").wait_for(state="visible")
    panels.click(".tb-play")
    panels.wait_for_text(".tb-play-output", "probability")
    assert view.locator(".tb-play-output .tb-bar").count() == 3
