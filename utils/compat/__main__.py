"""Run a script that was written for another system, with its import names in place.

    python -m utils.compat old_script.py --its --own --arguments

The script is `__main__`, its arguments are in sys.argv, its folder is the first place where it imports from, and its exit
status is this command's. A package named `utils` beside it is hidden by the library's own.
"""

from __future__ import annotations

import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

from utils.compat.installing import install
from utils.compat.old_names import OLD_MODULES


def main(arguments: Sequence[str]) -> int:
    """Run the script named by the first argument. Returns 2 without an argument; otherwise the script decides."""
    if not arguments or arguments[0] in ("-h", "--help"):
        text = (__doc__ or "").strip()
        print(text, file=sys.stdout if arguments else sys.stderr)
        return 0 if arguments else 2
    script = Path(arguments[0])
    if not script.is_file():
        print(f"{script} is not there; give the path of a Python script.", file=sys.stderr)  # noqa: T201 - a command
        return 2
    sys.argv = [str(script), *arguments[1:]]
    # As Python does it when it is given a script; the library itself stays importable behind it.
    sys.path.insert(0, str(script.resolve().parent))
    for package in sorted({name.partition(".")[0] for name in OLD_MODULES} - set(install())):
        message = f"note: {package!r} is a package or folder of yours, and the script imports from that one"
        print(message, file=sys.stderr)  # noqa: T201 - a command
    runpy.run_path(str(script), run_name="__main__")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
