"""python -m cli COMMAND: the command lines under one name."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

#: Command -> the module whose `main` it runs.
COMMANDS = {"checks": "cli.checks", "doctor": "cli.doctor", "reproduce": "cli.reproduce"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command. Returns its exit status."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    module = COMMANDS.get(given[0]) if given else None
    if module is None:
        listed = ", ".join(sorted(COMMANDS))
        print(f"usage: python -m cli COMMAND ...; commands: {listed}. Each has --help.", file=sys.stderr)
        return 0 if given and given[0] in ("-h", "--help") else 2
    status: int = importlib.import_module(module).main(given[1:])
    return status


if __name__ == "__main__":
    sys.exit(main())
