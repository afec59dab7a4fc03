"""python -m cli COMMAND: the command line, as the installed `trainbook`."""

from __future__ import annotations

import sys

from cli.commands import main

__all__ = ["main"]

if __name__ == "__main__":
    sys.exit(main())
