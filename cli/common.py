"""Shared parts of all commands: their parser, their exit status, and how an error is shown."""

from __future__ import annotations

import argparse
import difflib
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from utils.errors import TrainbookError

#: Exit statuses; docs/CLI.md explains them.
DONE, NEGATIVE, ERROR, INTERRUPTED = 0, 1, 2, 130
_BROKEN_PIPE = 141  # what a shell sees of a program that SIGPIPE ended


class Parser(argparse.ArgumentParser):
    """An argument parser without abbreviations, which names the nearest option, command or value for one it does not know.

    Args:
        docstring: of the command's module: its first line becomes the summary, the rest stands below the options.
    """

    def __init__(self, *, docstring: str | None = None, **settings: Any) -> None:
        summary, _, details = (docstring or "").partition("\n")
        settings.setdefault("description", summary or None)
        settings.setdefault("epilog", details or None)
        settings.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(allow_abbrev=False, **settings)

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse does it, with the nearest known option for an unknown one."""
        found, unknown = self.parse_known_args(args, namespace)
        refuse_unknown(self, unknown)
        return found

    def error(self, message: str) -> NoReturn:
        """Print the message and where help is, and exit with status 2."""
        self.exit(ERROR, f"{self.prog}: {message}\n{self.prog} --help lists what there is.\n")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        choices = None if action.choices is None else list(map(str, action.choices))
        if choices is not None and str(value) not in choices:
            close = difflib.get_close_matches(str(value), choices, 1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise argparse.ArgumentError(action, f"got {str(value)!r}; must be one of {', '.join(choices)}{hint}")


def refuse_unknown(parser: argparse.ArgumentParser, unknown: Sequence[str]) -> None:
    """End the program when there are arguments that the parser does not know, with the nearest one that it does."""
    if unknown:
        options = [option for action in _actions(parser) for option in action.option_strings]
        name = unknown[0].partition("=")[0]
        close = difflib.get_close_matches(name, options, 1) if name.startswith("-") else []
        hint = f"; did you mean {close[0]}?" if close else ""
        parser.error(f"unknown argument: {' '.join(unknown)}{hint}")


def _actions(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    """The parser's actions, and those of its sub-commands."""
    found = list(parser._actions)
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                found += _actions(inner)
    return found


def add_job_arguments(parser: argparse.ArgumentParser, what: str) -> None:
    """`--config` and `--set`: the job, from a file and from values that go over it.

    Args:
        what: what the job's file says here, for the help.
    """
    parser.add_argument("--config", metavar="FILE", help=f"the job, a .yaml or .json file: {what}")
    parser.add_argument(
        "--set", metavar="NAME=VALUE", action="append", default=[], help="change one value of the job; repeatable"
    )


def exit_status(command: Callable[[], int], *, interrupted: str, interrupted_status: int = INTERRUPTED) -> int:
    """Run a command whose status 1 is an answer, such as a failed check: every error is status 2, with a message.

    Args:
        interrupted: what to print at Ctrl-C.
    """
    try:
        status = command()
        sys.stdout.flush()
        return status
    except TrainbookError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
    except BrokenPipeError:
        # What reads the output has ended, such as `head`. Python flushes once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _BROKEN_PIPE
    except OSError as error:
        print(f"{error.filename or 'error'}: {error.strerror or error}", file=sys.stderr)
    except KeyboardInterrupt:
        print(f"\n{interrupted}", file=sys.stderr)
        return interrupted_status
    except Exception:  # noqa: BLE001 - a model's own code may raise anything, and Python's status for it is 1
        traceback.print_exc()
    return ERROR


def print_columns(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print an aligned table."""
    from utils.views.tables import columns_text

    print(columns_text(header, rows))
