"""Judge a run: what went wrong, with the evidence and what to do.

    trainbook doctor runs/exp3          a run's folder, or its name in runs/
    trainbook doctor exp3 --json        as JSON, for a script

The exit status is 0 without findings, 1 with findings, and 2 when the run cannot be read. A run may still be under way.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

if __package__ in (None, ""):  # started as a file: Python looks beside this file only
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from cli.common import DONE, ERROR, NEGATIVE, Parser, exit_status


def main(arguments: Sequence[str] | None = None) -> int:
    """Diagnose one run. Returns the exit status."""
    options = make_parser().parse_args(arguments)
    return exit_status(lambda: _diagnose(options), interrupted="interrupted", interrupted_status=ERROR)


def _diagnose(options: argparse.Namespace) -> int:
    from utils.storage import write_text
    from utils.training.doctor import diagnose
    from utils.training.stored_models import run_folder_of

    report = diagnose(options.run if Path(options.run).is_dir() else run_folder_of(options.run))
    if options.html is not None:
        write_text(options.html, report.to_page())
    if options.json:
        print(report.to_json())
    else:
        report.show()
    return DONE if report.passed else NEGATIVE


def make_parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    parser = Parser(prog="trainbook doctor", docstring=__doc__)
    parser.add_argument("run", metavar="RUN", help="the run's folder, or its name in runs/")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.add_argument("--html", metavar="FILE", help="also write the report as an HTML file")
    return parser


if __name__ == "__main__":
    sys.exit(main())
