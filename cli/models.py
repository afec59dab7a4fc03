"""Register exported models under names and versions, and say which version is in production.

    trainbook models register chat runs/exp3/exports/hf --tag small
    trainbook models list
    trainbook models promote chat 2                   the version that was in production is "registered" again
    trainbook models show chat                        the version in production, else the newest

Exit status: 0 done, 1 a version's files have changed since it was registered (show), 2 an error that the message explains.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if __package__ in (None, ""):  # started as a file: Python looks beside this file only
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from cli.common import DONE, NEGATIVE, Parser, exit_status, print_columns
from cli.runs import print_json

if TYPE_CHECKING:
    from utils.training.run_table import ExportRegistry


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit status."""
    options = make_parser().parse_args(arguments)

    def command() -> int:
        from utils.training.run_table import ExportRegistry

        return int(options.run_command(ExportRegistry(options.dir), options))

    return exit_status(command, interrupted="interrupted")


def make_parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    parser = Parser(prog="trainbook models", docstring=__doc__)
    where = Parser(add_help=False)
    where.add_argument("--dir", metavar="FOLDER", default="runs", help="folder of the runs (default: runs)")
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    register = actions.add_parser("register", parents=[where], help="register an exported file or folder")
    register.add_argument("name", metavar="NAME")
    register.add_argument("path", metavar="PATH")
    register.add_argument("--tag", action="append", default=[], help="repeatable")
    register.add_argument("--notes", default="")
    register.set_defaults(run_command=_register)
    listing = actions.add_parser("list", parents=[where], help="every version of every model")
    listing.add_argument("--stage", choices=["registered", "production", "retired"])
    listing.add_argument("--tag", help="only versions with this tag")
    listing.add_argument("--json", action="store_true", help="print JSON, for a script")
    listing.set_defaults(run_command=_list)
    show = actions.add_parser("show", parents=[where], help="a version, and where it comes from")
    show.add_argument("name", metavar="NAME")
    show.add_argument("version", metavar="VERSION", type=int, nargs="?")
    show.add_argument("--json", action="store_true", help="print JSON, for a script")
    show.set_defaults(run_command=_show)
    for name, text in (
        ("promote", "put a version into production"), ("retire", "take a version out of use"),
        ("delete", "forget a version; its files stay"),
    ):  # fmt: skip
        change = actions.add_parser(name, parents=[where], help=text)
        change.add_argument("name", metavar="NAME")
        change.add_argument("version", metavar="VERSION", type=int)
        change.set_defaults(run_command=_change)
    return parser


def _register(registry: ExportRegistry, options: argparse.Namespace) -> int:
    model = registry.register(options.name, options.path, tags=options.tag, notes=options.notes)
    print(f"{model.name} version {model.version}: {model.path}")
    return DONE


def _list(registry: ExportRegistry, options: argparse.Namespace) -> int:
    models = registry.list_models(stage=options.stage, tag=options.tag)
    if options.json:
        print_json([dataclasses.asdict(model) for model in models])
        return DONE
    rows = [
        (m.name, str(m.version), m.stage, m.run or "-", f"{m.size_bytes / 1e6:.2f} MB", " ".join(m.tags))
        for m in models
    ]
    print_columns(("model", "version", "stage", "run", "size", "tags"), rows)
    return DONE


def _show(registry: ExportRegistry, options: argparse.Namespace) -> int:
    model = registry.get(options.name, options.version)
    unchanged = registry.is_unchanged(model.name, model.version)
    lineage = registry.lineage(model.name, model.version)
    if options.json:
        print_json({**dataclasses.asdict(model), "unchanged": unchanged, "lineage": lineage})
    else:
        facts = dataclasses.asdict(model) | {"unchanged": "yes" if unchanged else "no: the files are others now"}
        for name, value in facts.items():
            print(f"{name:<12}{value}")
        for entry in lineage:
            print(f"{'from run':<12}{entry['run']}")
    return DONE if unchanged else NEGATIVE


def _change(registry: ExportRegistry, options: argparse.Namespace) -> int:
    getattr(registry, options.action)(options.name, options.version)
    done = {"promote": "is in production", "retire": "is retired", "delete": "is forgotten"}[options.action]
    print(f"{options.name} version {options.version} {done}")
    return DONE


if __name__ == "__main__":
    sys.exit(main())
