"""Print a script that completes commands and options in a shell.

    source <(trainbook completion bash)                          in bash, or in a line of ~/.bashrc
    source <(trainbook completion zsh)                           in zsh
    trainbook completion fish > ~/.config/fish/completions/trainbook.fish

The script holds all words, so completing starts no Python. Print it again after an update.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

if __package__ in (None, ""):  # started as a file: Python looks beside this file only
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from cli.commands import COMMANDS
from cli.common import DONE, Parser

_BASH = """\
_trainbook() {{
  local word place=""
  for word in "${{COMP_WORDS[@]:1:COMP_CWORD-1}}"; do
    case "$place $word" in
{places}
    esac
  done
  local words=""
  case "$place" in
{words}
  esac
  COMPREPLY=($(compgen -W "$words" -- "${{COMP_WORDS[COMP_CWORD]}}"))
}}
complete -o default -F _trainbook trainbook
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Print one shell's script. Returns the exit status."""
    options = make_parser().parse_args(arguments)
    words = completions()
    print({"bash": _bash, "zsh": _zsh, "fish": _fish}[options.shell](words), end="")
    return DONE


def make_parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    parser = Parser(prog="trainbook completion", docstring=__doc__)
    parser.add_argument("shell", choices=["bash", "zsh", "fish"])
    return parser


def completions() -> dict[tuple[str, ...], list[str]]:
    """Words that may follow, by the commands before them: () -> the commands, ("runs", "list") -> options, …"""
    found: dict[tuple[str, ...], list[str]] = {(): [*COMMANDS, "--help", "--version"]}
    for name, command in COMMANDS.items():
        module = importlib.import_module(command.place.partition(":")[0])
        parser: argparse.ArgumentParser = getattr(module, command.parser)()
        nested = _choices_of(parser)
        found |= _words((name,), nested.get(name, parser))
    return found


def _words(place: tuple[str, ...], parser: argparse.ArgumentParser) -> dict[tuple[str, ...], list[str]]:
    nested = _choices_of(parser)
    options = [o for action in parser._actions for o in action.option_strings if o.startswith("--")]
    positional = [
        str(c) for action in parser._actions if not action.option_strings and not nested for c in action.choices or ()
    ]
    found = {place: [*nested, *positional, *options]}
    for name, inner in nested.items():
        found |= _words((*place, name), inner)
    return found


def _choices_of(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    return {}


def _path(place: tuple[str, ...]) -> str:
    return "".join(f" {word}" for word in place)


def _bash(words: dict[tuple[str, ...], list[str]]) -> str:
    places = "|".join(f'"{_path(place)}"' for place in words if place)
    known = "\n".join(f'    "{_path(place)}") words="{" ".join(entries)}" ;;' for place, entries in words.items())
    return _BASH.format(places=f'      {places}) place="$place $word" ;;', words=known)


def _zsh(words: dict[tuple[str, ...], list[str]]) -> str:
    return "autoload -U +X compinit bashcompinit && compinit && bashcompinit\n" + _bash(words)


def _fish(words: dict[tuple[str, ...], list[str]]) -> str:
    lines = []
    for place, entries in words.items():
        nested = {other[len(place)] for other in words if len(other) > len(place) and other[: len(place)] == place}
        before = [f"__fish_seen_subcommand_from {word}" for word in place]
        if nested:
            before.append(f"not __fish_seen_subcommand_from {' '.join(sorted(nested))}")
        condition = "; and ".join(before)
        for word in entries:
            given = f"-l {word[2:]}" if word.startswith("--") else f"-a {word}"
            lines.append(f"complete -c trainbook -n '{condition}' {given}")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
