"""From a file of one's own to a model that answers, clicked in a real JupyterLab: a classifier with the keyboard alone, in a narrow
dark window, and conversations in a wide one; and a run that fails."""

from __future__ import annotations

import json

import pytest

from tests.kit.browser import NotebookPage, needs_chromium, running_browser, running_lab, write_notebook

pytestmark = [pytest.mark.browser, pytest.mark.slow, needs_chromium]

IMPORTS = """
import torch
import widgets
from utils.data import prepare_data
from utils.models import ModelRegistry
from utils.training import TaskSpec, Trainer, TrainingConfig
from utils.ui import SetupWizard, start_notebook

start_notebook()
"""
SETUP = """
wizard = SetupWizard()
setup = wizard.run(max_steps=4, batch_size=4, max_length=48, vocab_size=300, eval_every=2, run_name={name!r})
"""
TRAIN = """
data = prepare_data(setup, wizard.model)
trainer = Trainer(
    wizard.model, training_config=setup.training_config, task_spec=data.task_spec, tokenizer=data.tokenizer
)
results = await widgets.train_live(trainer, data)
"""
PLAY = "widgets.playground(results)"
FAIL = """
class Broken(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.calls = torch.nn.Linear(4, 2), 0

    def forward(self, x):
        self.calls += 1
        if self.calls > 20:
            raise ValueError("the third layer is missing")
        return self.layer(x)


rows = torch.utils.data.TensorDataset(torch.randn(400, 4), torch.randint(2, (400,)))
config = TrainingConfig(epochs=1, batch_size=4, run_name="failing")
failing = Trainer(Broken(), training_config=config, task_spec=TaskSpec.classification(num_classes=2))
await widgets.train_live(failing, rows)
"""
CELLS = {
    "imports": IMPORTS, "set up classes": SETUP.format(name="classes"), "train classes": TRAIN, "play classes": PLAY,
    "set up chat": SETUP.format(name="chat"), "train chat": TRAIN, "play chat": PLAY, "fail": FAIL,
}  # fmt: skip
NUMBER = {name: number for number, name in enumerate(CELLS)}

#: Presses of Tab after which a control counts as out of reach.
MOST_TABS = 40


@pytest.fixture(scope="module")
def notebook(tmp_path_factory):
    """A dark lab with a table of reviews and a file of conversations; one cell for each part of `CELLS`."""
    folder = tmp_path_factory.mktemp("lab")
    moods = ("fine and warm", "good"), ("cold and bad", "bad")
    reviews = [f"film {number} is {words},{mood}" for number in range(30) for words, mood in moods]
    (folder / "reviews.csv").write_text("\n".join(["text,mood", *reviews]))
    talks = [
        {"messages": [
            {"role": "user", "content": f"What is {number} and one?"}, {"role": "assistant", "content": f"{number + 1}."}
        ]}
        for number in range(40)
    ]  # fmt: skip
    (folder / "talks.jsonl").write_text("\n".join(map(json.dumps, talks)))
    write_notebook(folder / "n.ipynb", *CELLS.values())
    with running_lab(folder, dark=True, OMP_NUM_THREADS="1") as lab, running_browser() as browser:
        page = NotebookPage(browser, lab, "n.ipynb")
        run(page, "imports")
        yield page
        page.close()


def run(notebook, name):
    notebook.run_cell(NUMBER[name])
    notebook.wait_until_done(NUMBER[name])


def press(notebook, cell, selector, key):
    """Press a key on the control of a cell's output that Tab or Shift+Tab leads to; nothing is clicked."""
    target = notebook.cell(NUMBER[cell]).locator(selector).first
    target.wait_for()
    has_focus = "element => element.contains(document.activeElement)"
    is_before = "element => element.compareDocumentPosition(document.activeElement) & Node.DOCUMENT_POSITION_FOLLOWING"
    for _ in range(MOST_TABS):
        if target.evaluate(has_focus):
            break
        notebook.page.keyboard.press("Shift+Tab" if target.evaluate(is_before) else "Tab")
    else:
        focused = notebook.page.evaluate("document.activeElement.outerHTML.slice(0, 200)")
        pytest.fail(f"Tab does not lead to {selector}; the focus is on {focused}")
    notebook.page.keyboard.press(key)


def begin_at(notebook, cell):
    """Put the focus where somebody has it who came to the output by Tab: on its first control."""
    notebook.cell(NUMBER[cell]).locator(".jp-OutputArea button").first.focus()


def test_a_classifier_of_ones_own_table_without_a_mouse_in_a_narrow_dark_window(notebook):
    setup = "set up classes"
    notebook.page.set_viewport_size({"width": 700, "height": 1400})
    run(notebook, setup)
    notebook.cell(NUMBER[setup]).locator(".tb-field-dataset_source button").first.wait_for()
    begin_at(notebook, setup)
    press(notebook, setup, ".tb-field-dataset_source button:has-text('File or folder')", "Enter")
    press(notebook, setup, ".tb-field-dataset_path input", "ControlOrMeta+a")
    notebook.page.keyboard.type("reviews.csv")
    notebook.page.keyboard.press("Tab")
    press(notebook, setup, ".tb-use-task", "Enter")
    press(notebook, setup, ".tb-step-model", "Enter")
    press(notebook, setup, ".tb-use-new-model", "Enter")
    press(notebook, setup, ".tb-step-summary", "Enter")
    notebook.wait_for_text(".tb-verdict", "Ready to train")
    run(notebook, "train classes")
    assert "Finished" in notebook.output(NUMBER["train classes"])
    run(notebook, "play classes")
    begin_at(notebook, "play classes")
    press(notebook, "play classes", ".tb-play-prompt input", "ControlOrMeta+a")
    notebook.page.keyboard.type("a cold film")
    notebook.page.keyboard.press("Enter")
    notebook.wait_for_text(".tb-play-output", "probability")
    for name in (setup, "train classes", "play classes"):
        area = notebook.cell(NUMBER[name]).locator(".jp-OutputArea-output").last
        assert area.evaluate("element => element.scrollWidth - element.clientWidth") <= 1, f"{name} is wider than its cell"
        assert brightness(area) > 128, f"{name} has dark letters on a dark page"
    assert notebook.alerts() == []


def brightness(area):
    """Of the letters of the first control or paragraph that has some, 0 to 255."""
    return area.evaluate(
        "area => { const shown = [...area.querySelectorAll('label, p, div, span, td')].find("
        "  one => one.childNodes.length && one.firstChild.nodeType == 3 && one.firstChild.textContent.trim());"
        " const [r, g, b] = getComputedStyle(shown).color.match(/\\d+/g).map(Number);"
        " return 0.299 * r + 0.587 * g + 0.114 * b }"
    )


def test_conversations_are_learned_and_answered_in_a_wide_window(notebook):
    notebook.page.set_viewport_size({"width": 1800, "height": 1400})
    run(notebook, "set up chat")
    cell = notebook.cell(NUMBER["set up chat"])
    cell.locator(".tb-field-dataset_source button", has_text="File or folder").click()
    cell.locator(".tb-field-dataset_path input").fill("talks.jsonl")
    notebook.page.keyboard.press("Tab")
    cell.get_by_text("conversation").first.wait_for()
    cell.locator(".tb-step-model").click()
    cell.locator(".tb-use-new-model").click()
    cell.locator(".tb-step-training").click()
    left, right = (cell.locator(f".tb-field-{name}").first.bounding_box() for name in ("epochs", "batch_size"))
    assert left["x"] + left["width"] <= right["x"], "fields are not side by side"
    cell.locator(".tb-step-summary").click()
    cell.locator(".tb-verdict", has_text="Ready to train").wait_for()
    run(notebook, "train chat")
    assert "Finished" in notebook.output(NUMBER["train chat"])
    samples = notebook.cell(NUMBER["train chat"]).get_by_text("and one?").first
    assert "assistant" in samples.inner_text(), "the samples are not answers to whole questions"
    run(notebook, "play chat")
    panel = notebook.cell(NUMBER["play chat"])
    panel.locator(".tb-play-prompt input").fill("")
    panel.locator(".tb-play-prompt input").press_sequentially("What is 7 and one?")  # faster than the kernel answers
    panel.locator(".tb-play-prompt input").press("Enter")
    panel.locator(".tb-play-output", has_text="assistant:").wait_for()
    assert "What is 7 and one?" in panel.locator(".tb-play-output").inner_text()
    widths = [panel.locator(name).first.bounding_box()["width"] for name in (".tb-play-new", ".tb-play-prompt")]
    assert widths[0] < widths[1] / 2, "a button is as wide as the field"
    assert notebook.alerts() == []


def test_a_run_that_fails_says_so_in_its_view_and_in_the_cell(notebook):
    run(notebook, "fail")
    said = notebook.output(NUMBER["fail"])
    assert "failed" in said
    assert "the third layer is missing" in said
    assert "Stop and keep best" not in said, "the buttons of a run that ended are still there"
