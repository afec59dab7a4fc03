"""`python -m cli.run_notebook`: output as it comes, a copy that is kept, and one short message when a cell fails."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbformat import v4

from cli.run_notebook import main, run_report

pytestmark = pytest.mark.notebook


def write_notebook(path: Path, *cells: str) -> Path:
    """A notebook of these code cells; a cell that begins with `#` and a blank is Markdown."""
    made = [v4.new_markdown_cell(cell) if cell.startswith("# ") else v4.new_code_cell(cell) for cell in cells]
    nbformat.write(v4.new_notebook(cells=made), path)
    return path


def outputs_of(path: Path) -> list[list[str]]:
    """The output types of each code cell."""
    cells = json.loads(path.read_bytes())["cells"]
    return [[output["output_type"] for output in cell["outputs"]] for cell in cells if cell["cell_type"] == "code"]


def test_it_runs_every_cell_with_this_interpreter_and_shows_text(tmp_path, capfd):
    folder = tmp_path / "a folder"
    folder.mkdir()
    source = write_notebook(
        folder / "sample.ipynb",
        "# First part\nexplained",
        "import os, sys\nprint(sys.executable)\nprint(os.getcwd())",
        "import utils\nutils.PRODUCT",
        "from IPython.display import display\n"
        "display({'image/png': 'iVBORw0KGgo=', 'text/plain': 'the loss curve'}, raw=True)\n"
        "display({'text/html': '<b>bold</b>', 'text/plain': 'plain'}, raw=True)",
        "import ipywidgets\nipywidgets.IntSlider()",
        "import asyncio\nawait asyncio.sleep(0)\nprint('awaited', file=sys.stderr)",
    )
    before = source.read_bytes()
    assert main([str(source)]) == 0
    shown = capfd.readouterr().out.splitlines()
    assert shown[1:4] == ["# First part", sys.executable, str(folder)]
    assert shown[4:9] == ["'Trainbook'", "[figure] the loss curve", "plain", "[widget]", "awaited"]
    copy = folder / "runs" / "executed" / "sample.ipynb"
    assert shown[-1].split(maxsplit=1) == ["notebook", str(copy)]
    assert outputs_of(copy) == [["stream"], ["execute_result"], ["display_data"] * 2, ["execute_result"], ["stream"]]
    assert source.read_bytes() == before


def test_a_kernel_of_another_interpreter_under_the_same_name_is_not_used(tmp_path, capfd, monkeypatch):
    foreign = tmp_path / "jupyter" / "kernels" / "python3"
    foreign.mkdir(parents=True)
    description = {"argv": ["false", "{connection_file}"], "display_name": "Python 3", "language": "python"}
    (foreign / "kernel.json").write_text(json.dumps(description))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    assert main([str(write_notebook(tmp_path / "sample.ipynb", "import sys\nprint(sys.executable)"))]) == 0
    assert capfd.readouterr().out.splitlines()[0] == sys.executable


def test_a_failing_cell_is_shown_in_short_and_stops_the_notebook(tmp_path, capfd):
    failing = "x = 1\nraise ValueError('got -4; must be at least 1')"
    source = write_notebook(tmp_path / "bad.ipynb", "print('fine')", failing, "print('never')")
    assert main([str(source), "--output", str(tmp_path / "kept")]) == 1
    captured = capfd.readouterr()
    assert captured.out == "fine\n"
    copy = tmp_path / "kept" / "bad.ipynb"
    assert captured.err.strip().splitlines() == [
        "cell 2 failed:",
        "    x = 1",
        "    raise ValueError('got -4; must be at least 1')",
        "ValueError: got -4; must be at least 1",
        f"whole traceback in {copy}",
    ]
    assert outputs_of(copy) == [["stream"], ["error"], []]


@pytest.mark.parametrize(
    ("cell", "timeout_s", "reason"),
    [
        ("import os; os._exit(3)", 300, "the kernel died"),
        ("import time; time.sleep(60)", 1, "took longer than --timeout 1 seconds"),
    ],
)
def test_a_cell_that_never_ends_well(cell, timeout_s, reason, tmp_path, capfd):
    source = write_notebook(tmp_path / "bad.ipynb", cell)
    assert main([str(source), "--timeout", str(timeout_s)]) == 1
    message = capfd.readouterr().err
    assert "cell 1 failed:" in message
    assert reason in message
    assert "Traceback" not in message


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_cell_may_save(number, status, tmp_path):
    source = write_notebook(
        tmp_path / "long.ipynb",
        "import time\n"
        "try:\n    print('started', flush=True)\n    time.sleep(600)\n"
        "except KeyboardInterrupt:\n    open('saved', 'w').close()\n    raise",
    )
    command = [sys.executable, "-m", "cli.run_notebook", str(source)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "started\n"
        os.kill(process.pid, number)
        _, message = process.communicate(timeout=300)
    assert process.returncode == status
    assert "cell 1 was interrupted:" in message
    assert "Traceback" not in message
    assert (tmp_path / "saved").exists()


@pytest.mark.parametrize("content", [None, b"", b"import torch", b"[1]", b"\xff\xfe\x00", b'{"nbformat": 99}'])
def test_what_is_not_a_notebook_is_named(content, tmp_path, capfd):
    path = tmp_path / "training.ipynb"
    if content is not None:
        path.write_bytes(content)
    assert main([str(path)]) == 1
    message = capfd.readouterr().err
    assert str(path) in message
    assert len(message.splitlines()) == 1


def test_the_notebook_itself_is_never_replaced(tmp_path, capfd):
    source = write_notebook(tmp_path / "mine.ipynb", "1")
    before = source.read_bytes()
    assert main([str(source), "--output", str(tmp_path)]) == 1
    assert "would replace" in capfd.readouterr().err
    assert source.read_bytes() == before


@pytest.mark.parametrize("arguments", [[], ["a.ipynb", "--timeout", "0"], ["a.ipynb", "--timeout", "0.5"]])
def test_wrong_arguments_end_with_status_2(arguments, capfd):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2


def test_the_report_names_what_this_execution_wrote(tmp_path):
    for name, modified in (("old", 1000.0), ("new", 3000.0)):
        run = tmp_path / name
        for made in ("exports/hf", "plots"):
            (run / made).mkdir(parents=True)
        for file in ("state.json", "plots/curves.png", "plots/.hidden"):
            (run / file).touch()
        for path in [run / "state.json", run / "exports" / "hf", run / "plots" / "curves.png"]:
            os.utime(path, (modified, modified))
    new = tmp_path / "new"
    assert [line.split(maxsplit=2) for line in run_report(tmp_path, since=2000.0)] == [
        ["run", "folder", str(new)],
        ["model", str(new / "exports" / "hf")],
        ["plot", str(new / "plots" / "curves.png")],
    ]
    assert run_report(tmp_path / "missing", since=0.0) == []
