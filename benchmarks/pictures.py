"""Makes the pictures of the README and the documentation anew: the wizard and the live view, light and dark.

    python -m benchmarks.pictures                        writes docs/images/
    python -m benchmarks.pictures --out FOLDER --width 1400

It starts a JupyterLab and Chromium on this machine, trains a small model on the built-in text for as long as the picture needs,
and stops it. The numbers in the pictures are measured. Needs the system package chromium.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.kit.browser import NotebookPage, running_browser, running_lab, write_notebook

ROOT = Path(__file__).resolve().parent.parent

#: Width of the file browser and margins beside the notebook's cells.
_BESIDE = 360

_WIZARD = f"""
import sys; sys.path.insert(0, {str(ROOT)!r})
from utils.models import ModelRegistry
from utils.ui import SetupWizard
model = ModelRegistry.create("gpt-small", vocab_size=2048, max_seq_len=64, n_layer=2, n_embd=64, n_head=4)
wizard = SetupWizard()
setup = wizard.run(model=model, preset="starter", eval_every=50, run_name="starter")
"""
_TRAIN = """
from utils.data import prepare_data
from utils.training import Trainer
from widgets import train_live
data = prepare_data(setup, model)
trainer = Trainer(model, training_config=setup.training_config, task_spec=data.task_spec, tokenizer=data.tokenizer)
results = await train_live(trainer, data)
"""

#: Whether the table of validations has at least three rows.
_SEEN_ENOUGH = "() => document.querySelectorAll('.tb-live table tbody tr').length >= 3"


def main(arguments: list[str] | None = None) -> int:
    """Make the pictures. Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "images", help="folder (default: docs/images)")
    parser.add_argument(
        "--width", type=int, default=1000, help="width of the notebook's cells in pixels (default: 1000)"
    )
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    with running_browser() as browser:
        for dark in (False, True):
            _pictures(browser, options.out, options.width, dark=dark)
    return 0


def _pictures(browser: Any, out: Path, width: int, *, dark: bool) -> None:
    ending = "-dark" if dark else ""
    with tempfile.TemporaryDirectory() as folder, running_lab(Path(folder), dark=dark) as lab:
        write_notebook(lab.folder / "pictures.ipynb", _WIZARD, _TRAIN)
        notebook = NotebookPage(browser, lab, "pictures.ipynb", width=width + _BESIDE, height=1800)
        notebook.run_cell(0)
        notebook.wait_until_done(0)
        notebook.click(".tb-step-training")
        notebook.page.locator(".tb-page-training").wait_for()
        _save(notebook, ".tb-wizard", out / f"wizard{ending}.png")
        notebook.run_cell(1)
        notebook.page.wait_for_function(_SEEN_ENOUGH)
        _save(notebook, ".tb-dashboard", out / f"live{ending}.png")
        notebook.click(".tb-stop")
        notebook.wait_until_done(1)
        notebook.close()


def _save(notebook: NotebookPage, selector: str, path: Path) -> None:
    notebook.page.locator(selector).first.screenshot(path=path)
    print(path, flush=True)


if __name__ == "__main__":
    sys.exit(main())
