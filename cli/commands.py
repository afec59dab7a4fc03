"""The commands: `trainbook COMMAND …`, also `python -m cli COMMAND …` and `python cli/run_training.py COMMAND …`.

Nothing is imported before it is known which command runs: the help comes at once.
"""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Sequence
from typing import NamedTuple


class Command(NamedTuple):
    """Where a command is, and what it does."""

    place: str
    summary: str
    #: Whether its function also serves another command, and needs the word.
    takes_word: bool = False
    #: The function of that module that makes its parser.
    parser: str = "make_parser"


COMMANDS = {
    "train": Command("cli.run_training:main", "train the model of a job file; --resume auto continues"),
    "image": Command("cli.image_training:main", "train an image model as a numbered experiment"),
    "search": Command(
        "cli.run_training:search", "search hyper-parameters, as a sweep file says", parser="make_search_parser"
    ),
    "queue": Command("cli.queue_commands:main", "submit, list, show, cancel and retry queued jobs", takes_word=True),
    "worker": Command("cli.queue_commands:main", "run queued jobs until stopped", takes_word=True),
    "runs": Command("cli.runs:main", "list, show, compare and tag runs; which one is best"),
    "models": Command("cli.models:main", "register exported models; promote and retire versions"),
    "checks": Command("cli.checks:main", "check a model: shapes, gradients, stability, …"),
    "doctor": Command("cli.doctor:main", "what went wrong in a run, and what to do about it"),
    "export": Command("cli.export:main", "export a run's model: hf, onnx, …"),
    "reproduce": Command("cli.reproduce:main", "train a run again from its bundle, and compare every loss"),
    "notebook": Command("cli.run_notebook:main", "execute a notebook from top to bottom"),
    "completion": Command("cli.completion:main", "print a shell's completion script"),
}

_HELP = """\
usage: trainbook COMMAND [ARGUMENTS]        trainbook COMMAND --help explains a command

{commands}

Typed values (--set learning_rate=1e-3) go over the job file, the file over its preset.

  trainbook train --config job.yaml --set epochs=3 --resume auto
  trainbook runs compare first second
  trainbook export first --formats hf onnx

Exit status: 0 done; 1 the answer is no (a check failed, the doctor found something); 2 an error that the message explains;
130 interrupted and saved; 143 terminated and saved.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command. Returns its exit status."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    if not given or given[0] in ("-h", "--help", "help"):
        print(help_text(), end="", file=sys.stdout if given else sys.stderr)
        return 0 if given else 2
    if given[0] == "--version":
        from utils import PRODUCT, __version__

        print(f"{PRODUCT} {__version__}")
        return 0
    word, rest = given[0], given[1:]
    if word.startswith("-"):  # options of a training, without its word
        word, rest = "train", given
    if word not in COMMANDS:
        close = difflib.get_close_matches(word, COMMANDS, 1)
        hint = f"did you mean {close[0]}?" if close else f"commands are {', '.join(COMMANDS)}."
        print(f"trainbook: unknown command {word!r}; {hint}\ntrainbook --help explains them.", file=sys.stderr)
        return 2
    command = COMMANDS[word]
    module, _, function = command.place.partition(":")
    status: int = getattr(importlib.import_module(module), function)([word, *rest] if command.takes_word else rest)
    return status


def help_text() -> str:
    """Every command in a line, on one screen."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {command.summary}" for name, command in COMMANDS.items()]
    return _HELP.format(commands="\n".join(lines))
