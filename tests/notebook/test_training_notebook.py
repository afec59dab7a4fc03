"""The shipped notebook: short cells without outputs, and "Run all" with nobody clicking ends with a trained model."""

from __future__ import annotations

import ast
import copy
import re
from pathlib import Path

import nbformat
import papermill
import pytest
from nbclient import NotebookClient

from utils.ui.notebook import CELL_OF

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOK = ROOT / "training.ipynb"


@pytest.fixture(scope="module")
def notebook():
    return nbformat.read(NOTEBOOK, as_version=4)


def sections(notebook):
    """heading -> the code cell under it."""
    found, heading = {}, None
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            heading = re.match(r"#+ (.+)", cell.source)[1]
        else:
            assert heading not in found, "one code cell under each heading"
            found[heading] = cell
    return found


def names_made_by(source):
    """Names that a cell assigns or imports."""
    tree = ast.parse(source)
    stored = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    imports = (node for node in ast.walk(tree) if isinstance(node, (ast.Import, ast.ImportFrom)))
    return stored | {alias.asname or alias.name for node in imports for alias in node.names}


def names_read_by(source):
    tree = ast.parse(source)
    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}


def test_it_is_committed_without_outputs_and_widget_state(notebook):
    nbformat.validate(notebook)
    assert "widgets" not in notebook.metadata
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert cell.outputs == []
            assert cell.execution_count is None


def test_cells_are_short_and_hold_no_logic(notebook):
    for cell in notebook.cells:
        if cell.cell_type == "code":
            lines = [line for line in cell.source.splitlines() if line.strip()]
            assert len(lines) <= 8, cell.source
            logic = (ast.If, ast.For, ast.While, ast.Try, ast.FunctionDef, ast.ClassDef, ast.With, ast.Lambda)
            assert not any(isinstance(node, logic) for node in ast.walk(ast.parse(cell.source)))
        else:
            text = [line for line in cell.source.splitlines() if line and not line.startswith("#")]
            assert len(text) == 1, "one sentence under each heading"


def test_the_sentences_are_true_of_every_task(notebook):
    for heading in ("Data", "Results", "Samples"):
        (words,) = (cell.source for cell in notebook.cells if cell.source.startswith(f"## {heading}\n"))
        assert not re.search("unigram|beginnings|token|block|order of words", words)
        assert max(map(len, words.splitlines())) <= 90


def test_settings_are_a_parameters_cell(notebook):
    tagged = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    assert [cell.source for cell in tagged] == ["CONFIG = {}"]


def test_a_hanging_cell_is_given_up(notebook):
    assert 60 <= notebook.metadata["execution"]["timeout"] <= 900


def test_every_cell_needs_only_what_cells_above_it_made(notebook):
    known = set(dir(__builtins__)) | set(__builtins__)
    for heading, cell in sections(notebook).items():
        missing = names_read_by(cell.source) - known - names_made_by(cell.source)
        assert not missing, f"{heading} reads {missing}"
        known |= names_made_by(cell.source)


def test_the_help_for_cells_run_too_early_knows_every_name(notebook):
    made = {
        name: heading
        for heading, cell in sections(notebook).items()
        if heading not in ("Installation", "Start")
        for name in names_made_by(cell.source)
    }
    assert dict(CELL_OF) == made


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    """For the kernel: steps this small are slower with several threads, and much slower beside other tests."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def run(config, output):
    executed = papermill.execute_notebook(
        str(NOTEBOOK), str(output), {"CONFIG": config}, cwd=str(ROOT), progress_bar=False, start_timeout=300
    )
    # The cell that papermill put in takes the place of the one it overrides.
    executed.cells = [cell for cell in executed.cells if "parameters" not in cell.metadata.get("tags", [])]
    return texts_of(executed), executed


def texts_of(executed):
    """heading -> what the cell under it has shown as text."""
    return {heading: text_of(cell) for heading, cell in sections(executed).items()}


def text_of(cell):
    return "".join(output.get("text", "") + output.get("data", {}).get("text/plain", "") for output in cell.outputs)


def execute(notebook, folder):
    """Run all cells in a kernel of its own that works in `folder`."""
    NotebookClient(notebook, timeout=600, startup_timeout=300, resources={"metadata": {"path": str(folder)}}).execute()


def replace_once(notebook, old, new):
    """Replace what stands in one place of one cell."""
    (cell,) = (cell for cell in notebook.cells if old in cell.source)
    assert cell.source.count(old) == 1
    cell.source = cell.source.replace(old, new)


def up_to(heading, notebook):
    """A copy of the notebook that ends with the cell under `heading`."""
    beginning = copy.deepcopy(notebook)
    beginning.cells = beginning.cells[: beginning.cells.index(sections(beginning)[heading]) + 1]
    return beginning


@pytest.mark.notebook
@pytest.mark.slow
def test_run_all_trains_shows_samples_and_saves(tmp_path):
    sizes = {"epochs": 1, "max_train_samples": 32, "max_val_samples": 8, "max_length": 32}
    small = {**sizes, "output_dir": str(tmp_path / "runs")}
    texts, executed = run(small, tmp_path / "executed.ipynb")
    folder = Path(small["output_dir"]) / "starter"
    assert texts["Installation"] == ""
    assert texts["Training"].startswith("Finished · step 4 of 4")
    assert "unigram model" in texts["Results"]
    outputs = [output for cell in executed.cells for output in cell.get("outputs", [])]
    assert not any("image/png" in output.get("data", {}) for output in outputs), "an image does not follow the theme"
    assert texts["Samples"].startswith("What the model wrote")
    assert "Tier 1. Passed: 6 pass" in texts["Checks"]
    assert re.search(r"Tier 2\. Passed: .*attention patterns +pass: ", texts["Tier 2 checks"], re.DOTALL)
    assert re.search(r"Tier 3 trains .* about .* here\. To run it: run_all_tier3_tests", texts["Tier 3 checks"])
    assert re.search(r"starter\s+finished", texts["Runs"])
    assert "ONNX opset" in texts["Take home"]
    for path in (folder, folder / "plots" / "curves.png", folder / "exports" / "hf", folder / "exports" / "onnx"):
        assert str(path) in texts["Take home"]
        assert path.exists()
    assert "widgets" not in executed.metadata


@pytest.mark.notebook
@pytest.mark.slow
def test_every_cell_can_be_run_twice_and_the_next_kernel_shows_the_run_and_trains_nothing(notebook, tmp_path):
    smaller = copy.deepcopy(notebook)
    settings = {"max_steps": 2, "max_train_samples": 16, "max_val_samples": 4, "max_length": 32}
    replace_once(smaller, "CONFIG = {}", f"CONFIG = {settings}")
    # Size is for the test above, and ONNX for it and for those of the panel.
    replace_once(smaller, 'create("gpt-small", ', 'create("gpt-small", n_layer=1, n_embd=32, n_head=2, ')
    replace_once(smaller, '["hf", "onnx"]', '["hf"]')
    doubled = copy.deepcopy(smaller)
    doubled.cells = []
    for cell in smaller.cells:
        again = copy.deepcopy(cell)
        again["id"] += "-again"
        doubled.cells += [cell, again] if cell.cell_type == "code" else [cell]
    execute(doubled, tmp_path)
    samples = text_of(sections(smaller)["Samples"])
    assert samples.startswith("What the model wrote")

    later = up_to("Samples", smaller)
    setup = later.cells.index(sections(later)["Setup"])
    mistyped = [nbformat.v4.new_code_cell("right, CONFIG = CONFIG, {'epocs': 1}"), copy.deepcopy(later.cells[setup])]
    mistyped[1]["id"] += "-mistyped"
    mistyped[1].metadata["tags"] = ["raises-exception"]
    later.cells[setup:setup] = [*mistyped, nbformat.v4.new_code_cell("CONFIG = right")]
    execute(later, tmp_path)
    (error,) = (output for output in mistyped[1].outputs if output.output_type == "error")
    assert "did you mean epochs" in error.evalue, "it stops at the setup cell, in words"
    del later.cells[setup : setup + 3]
    texts = texts_of(later)
    assert texts["Training"] == "Finished: the step limit is reached · step 2", "a finished run is not trained again"
    assert texts["Samples"] == samples
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["starter"]
