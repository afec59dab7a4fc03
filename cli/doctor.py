"""Judge a run: what went wrong, with the evidence and what to do.

    python -m cli.doctor runs/exp3          a run's folder, or its name in runs/
    python -m cli doctor exp3 --json        as JSON, for a script

The exit status is 0 without findings, 1 with findings, and 2 when the run cannot be read. A run may still be under way.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

if __package__ in (None, ""):  # started as a file: Python looks for packages beside this file only
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from utils.errors import TrainbookError


def main(arguments: Sequence[str] | None = None) -> int:
    """Diagnose one run. Returns the exit status."""
    options = _parser().parse_args(arguments)

    from utils.storage import write_text
    from utils.training.doctor import diagnose

    try:
        report = diagnose(options.run)
        if options.html is not None:
            write_text(options.html, report.to_page())
    except TrainbookError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"{error.filename or options.run}: {error.strerror or error}", file=sys.stderr)
        return 2
    if options.json:
        print(report.to_json())
    else:
        report.show()
    return 0 if report.passed else 1


def _parser() -> argparse.ArgumentParser:
    summary, _, details = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(
        prog="doctor", description=summary, epilog=details, formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )  # fmt: skip
    parser.add_argument("run", metavar="RUN", help="the run's folder, or its name in runs/")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.add_argument("--html", metavar="FILE", help="also write the report as an HTML file")
    return parser


if __name__ == "__main__":
    sys.exit(main())
