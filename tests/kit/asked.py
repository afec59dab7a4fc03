"""A process that answers questions one after another: for what is read from the environment when packages are imported."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from tests.kit.tree import ROOT

_LOOP = """
import json as _json, os as _os, sys as _sys
_answers = _os.fdopen(_os.dup(1), "w")
_os.dup2(2, 1)  # what libraries print must not mix with the answers
for _line in _sys.stdin:
    print(_json.dumps(answer(_json.loads(_line))), file=_answers, flush=True)
"""


class Asked:
    """A running process. Questions and answers are plain values; its imports are paid for once."""

    def __init__(self, process: subprocess.Popen[str], errors: Any) -> None:
        self._process, self._errors = process, errors

    def ask(self, *questions: Any) -> list[Any]:
        """The answers of its function `answer`, one for each question."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        found = []
        for question in questions:
            self._process.stdin.write(json.dumps(question) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
            if not line:
                self._process.wait()
                self._errors.seek(0)
                raise AssertionError(f"the process ended with {self._process.returncode}:\n{self._errors.read()}")
            found.append(json.loads(line))
        return found


@contextmanager
def answering(program: str, *options: str, environment: Mapping[str, str]) -> Iterator[Asked]:
    """A process that runs `program`, which defines `answer(question)`, and ends with the block.

    Args:
        options: of the interpreter; environment: variables besides those that this process has.
    """
    command = [sys.executable, *options, "-c", textwrap.dedent(program) + _LOOP]
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, cwd=ROOT,
            env={**os.environ, **environment},
        ) as process,
    ):  # fmt: skip
        try:
            yield Asked(process, errors)
        finally:
            process.kill()


def hub_environment(endpoint: str, home: Any) -> dict[str, str]:
    """Variables of a process whose Hub is `endpoint`, and which keeps what it has from there in `home`."""
    return {"HF_ENDPOINT": endpoint, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HOME": str(home)}

