"""Execute a notebook from top to bottom without a front end, showing its output as it comes.

    trainbook notebook training.ipynb
    trainbook notebook training.ipynb --output executed --timeout 1800

The kernel is this very interpreter. The notebook's file is left alone; the executed copy goes to runs/executed.

Exit status: 0 every cell ran, 1 a cell failed or the notebook cannot be run, 2 wrong arguments, 130 interrupted,
143 terminated.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cli.common import Parser
from utils.errors import DataError, DataNotFoundError, MissingPackageError, TrainbookError, first_line
from utils.storage import write_text

if TYPE_CHECKING:
    from nbformat import NotebookNode

    from cli.notebook_client import PrintingClient

#: Last lines of an error that are shown; the executed copy holds the whole traceback.
MAX_ERROR_LINES = 12

_TERMINAL_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


class CellError(TrainbookError):
    """A cell raised, ran out of time, or its kernel died. The message holds the cell's source and the error in short.

    Attributes:
        interrupted_by: the signal that ended it, or None when it failed by itself.
    """

    def __init__(self, message: str, interrupted_by: signal.Signals | None = None) -> None:
        super().__init__(message)
        self.interrupted_by = interrupted_by


def run_notebook(notebook: Path, output: Path | None = None, timeout_s: int | None = None) -> Path:
    """Execute every cell of `notebook` in its own folder; text output is printed as it comes.

    Args:
        notebook: an .ipynb file. It is never written to.
        output: folder of the executed copy; `runs/executed` beside the notebook when None.
        timeout_s: seconds that one cell may take; None for no limit.
    Returns:
        The executed copy. It is written also when a cell fails, with the outputs up to there.
    Raises:
        DataNotFoundError: there is no such file.
        DataError: the file is not a notebook, or the copy would replace it.
        MissingPackageError: the extra `notebook` is not installed.
        CellError: a cell failed or was interrupted.
    """
    try:
        import nbformat
        from nbclient.exceptions import CellControlSignal, DeadKernelError

        from cli.notebook_client import PrintingClient
    except ModuleNotFoundError as error:
        raise MissingPackageError(error.name or "nbclient", "to execute a notebook", extra="notebook") from error

    folder = notebook.resolve().parent
    copy = (output or folder / "runs" / "executed") / notebook.name
    if copy.resolve() == notebook.resolve():
        raise DataError(f"the executed copy would replace {notebook}; name another folder with --output")
    content = _read(notebook)
    client = PrintingClient(content, str(folder), timeout_s)
    try:
        # Text is what this command can show; TRAINBOOK_UI set by the caller still wins.
        client.execute(env={"TRAINBOOK_UI": "text", **os.environ})
    except (CellControlSignal, DeadKernelError) as error:
        raise CellError(_describe(client, error, copy), client.interrupted_by) from error
    finally:
        copy.parent.mkdir(parents=True, exist_ok=True)
        write_text(copy, nbformat.writes(content) + "\n")
    return copy


def _read(notebook: Path) -> NotebookNode:
    import nbformat

    if not notebook.is_file():
        raise DataNotFoundError(f"there is no notebook {notebook}; give the path of an .ipynb file")
    try:
        content: NotebookNode = nbformat.read(notebook, as_version=4)
    # nbformat looks into the JSON before it checks that it is an object: hence the AttributeError.
    except (ValueError, AttributeError, nbformat.ValidationError) as error:
        raise DataError(
            f"{notebook} is not a notebook ({first_line(error)}); give the path of an .ipynb file"
        ) from error
    return content


def _describe(client: PrintingClient, error: Exception, copy: Path) -> str:
    """Summarise a failure: cell number, source, the end of the error, and where the rest is."""
    from nbclient.exceptions import CellExecutionError, CellTimeoutError

    if isinstance(error, CellExecutionError):
        evalue = _TERMINAL_COLOURS.sub("", error.evalue)
        lines = (f"{error.ename}: {evalue}" if evalue else error.ename).splitlines()
    elif isinstance(error, CellTimeoutError):
        lines = [f"the cell took longer than --timeout {client.timeout} seconds"]
    elif client.interrupted_by is not None:
        lines = ["ended at once, nothing more was saved"]
    else:
        lines = ["the kernel died: out of memory, a crash in native code, or ended from outside"]
    if len(lines) > MAX_ERROR_LINES:
        lines = [*lines[:MAX_ERROR_LINES], f"... {len(lines) - MAX_ERROR_LINES} more lines"]
    if client.running_cell is None:
        return "\n".join(["the kernel did not start", *lines])
    number, cell = client.running_cell
    verb = "was interrupted" if client.interrupted_by is not None else "failed"
    source = [f"    {line}" for line in cell.source.splitlines()]
    return "\n".join([f"cell {number} {verb}:", *source, *lines, f"whole traceback in {copy}"])


def run_report(runs: Path, since: float) -> list[str]:
    """Where the runs, models and plots are that were written under `runs` since the time `since` (seconds, epoch)."""
    lines: list[str] = []
    for state in sorted(runs.glob("*/state.json")):
        run = state.parent
        exports = _visible(run / "exports")
        plots = _visible(run / "plots")
        if max(path.stat().st_mtime for path in [state, *exports, *plots]) < since:
            continue
        rows = [("run folder", run)]
        rows += [("model", path) for path in exports]
        rows += [("plot", path) for path in plots]
        rows += [("report", path) for path in [run / "report.html"] if path.is_file()]
        lines += [f"{label:<12}{path}" for label, path in rows]
    return lines


def _visible(folder: Path) -> list[Path]:
    entries: Iterable[Path] = folder.iterdir() if folder.is_dir() else ()
    return sorted(path for path in entries if not path.name.startswith("."))


def make_parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    parser = Parser(prog="trainbook notebook", docstring=__doc__)
    parser.add_argument("notebook", type=Path, help="the .ipynb file")
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FOLDER",
        help="where the executed copy goes (default: runs/executed beside the notebook)",
    )
    parser.add_argument("--timeout", type=_seconds, metavar="SECONDS", help="longest time for one cell (default: none)")
    return parser


def _seconds(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"got {text!r}; must be a whole number of seconds, at least 1")
    return int(text)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit status."""
    options = make_parser().parse_args(arguments)
    started = time.time()
    try:
        copy = run_notebook(options.notebook, options.output, options.timeout)
    except CellError as error:
        print(f"\n{error}", file=sys.stderr)
        return 1 if error.interrupted_by is None else 128 + error.interrupted_by
    except TrainbookError as error:
        print(error, file=sys.stderr)
        return 1
    print()
    for line in run_report(options.notebook.parent / "runs", started):
        print(line)
    print(f"{'notebook':<12}{copy}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
