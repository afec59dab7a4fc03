"""Look at the runs of a folder: what there is, what differs, which one is best.

    trainbook runs list --status failed --set batch_size=8
    trainbook runs show exp3
    trainbook runs compare exp1 exp3                  settings that differ, and the metrics of both
    trainbook runs best val/accuracy                  the run with the best value that this metric ever had
    trainbook runs tag exp3 baseline
    trainbook runs note exp3 "warm-up was too short"
    trainbook runs stop exp3 --keep-best              a run under way saves and ends
    trainbook runs finish exp3                        one with lr_schedule=wsd begins its decay now
    trainbook runs archive exp1 exp2                  they stay where they are, and lists leave them out
    trainbook runs delete exp2 --yes                  for good; never a run that is under way
    trainbook runs report exp3                        one HTML file: curves, samples, settings, what was verified

Everything is read from the runs' folders; runs.sqlite beside them is a table made from these, and can be deleted.

Exit status: 0 done, 1 no run has the metric (best), 2 an error that the message explains.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if __package__ in (None, ""):  # started as a file: Python looks beside this file only
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from cli.common import DONE, NEGATIVE, Parser, exit_status, print_columns

if TYPE_CHECKING:
    from utils.training.run_table import RunRecord, RunTable


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit status."""
    options = make_parser().parse_args(arguments)

    def command() -> int:
        from utils.training.run_table import RunTable

        table = RunTable(options.dir)
        for notice in table.notices:
            print(notice, file=sys.stderr)
        return int(options.run_command(table, options))

    return exit_status(command, interrupted="interrupted")


def make_parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    parser = Parser(prog="trainbook runs", docstring=__doc__)
    where = Parser(add_help=False)
    where.add_argument("--dir", metavar="FOLDER", default="runs", help="folder of the runs (default: runs)")
    where.add_argument("--json", action="store_true", help="print JSON, for a script")
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")

    listing = actions.add_parser("list", parents=[where], help="runs, the newest first")
    listing.add_argument("--status", choices=["running", "finished", "stopped", "broken off", "failed"])
    listing.add_argument("--tag", help="only runs with this tag")
    listing.add_argument("--name", metavar="TEXT", help="only runs whose name contains this")
    listing.add_argument("--set", metavar="NAME=VALUE", action="append", default=[], help="only runs with this setting")
    listing.add_argument("--archived", action="store_true", help="archived runs instead of the others")
    listing.add_argument("--limit", type=int, metavar="N", help="at most N")
    listing.set_defaults(run_command=_list)

    show = actions.add_parser("show", parents=[where], help="a run: status, metrics, settings, files, origin")
    show.add_argument("run", metavar="RUN")
    show.set_defaults(run_command=_show)

    compare = actions.add_parser("compare", parents=[where], help="runs side by side")
    compare.add_argument("runs", metavar="RUN", nargs="+")
    compare.add_argument("--all", action="store_true", help="settings that do not differ, too")
    compare.set_defaults(run_command=_compare)

    best = actions.add_parser("best", parents=[where], help="the run with the best value of a metric")
    best.add_argument("metric", metavar="METRIC", nargs="?", default="val/loss", help="default: val/loss")
    best.add_argument("--mode", choices=["min", "max"], help="which is better; default: by the metric's name")
    best.set_defaults(run_command=_best)

    report = actions.add_parser("report", parents=[where], help="write a report of a run, one HTML file")
    report.add_argument("run", metavar="RUN")
    report.add_argument("--out", metavar="FILE", help="where to write (default: report.html in the run's folder)")
    report.set_defaults(run_command=_report)

    for name, text in (("tag", "add tags to a run"), ("untag", "remove tags from a run")):
        tagging = actions.add_parser(name, parents=[where], help=text)
        tagging.add_argument("run", metavar="RUN")
        tagging.add_argument("tags", metavar="TAG", nargs="+")
        tagging.set_defaults(run_command=_tag)
    note = actions.add_parser("note", parents=[where], help='replace a run\'s notes; "" removes them')
    note.add_argument("run", metavar="RUN")
    note.add_argument("notes", metavar="TEXT")
    note.set_defaults(run_command=_note)
    for name, text in (("archive", "leave runs out of lists"), ("restore", "take runs out of the archive")):
        putting = actions.add_parser(name, parents=[where], help=text)
        putting.add_argument("runs", metavar="RUN", nargs="+")
        putting.set_defaults(run_command=_archive)
    delete = actions.add_parser("delete", parents=[where], help="delete runs with their checkpoints, for good")
    delete.add_argument("runs", metavar="RUN", nargs="+")
    delete.add_argument("--yes", action="store_true", help="do not ask")
    delete.set_defaults(run_command=_delete)
    stop = actions.add_parser("stop", parents=[where], help="ask a run under way to save and end")
    stop.add_argument("run", metavar="RUN")
    stop.add_argument("--keep-best", action="store_true", help="its results have the best checkpoint's weights")
    stop.set_defaults(run_command=_ask)
    finish = actions.add_parser(
        "finish", parents=[where], help="ask a run under way (lr_schedule=wsd) to begin its decay now"
    )
    finish.add_argument("run", metavar="RUN")
    finish.set_defaults(run_command=_ask)
    reindex = actions.add_parser("reindex", parents=[where], help="make the table anew from the folders")
    reindex.set_defaults(run_command=_reindex)
    return parser


def _list(table: RunTable, options: argparse.Namespace) -> int:
    from utils.errors import ConfigError
    from utils.training.config_files import parse_value

    settings = {}
    for setting in options.set:
        name, equals, text = setting.partition("=")
        if not equals or not name:
            raise ConfigError(f"--set takes name=value; got {setting!r}")
        settings[name] = parse_value(text)
    runs = table.list_runs(
        status=options.status, tag=options.tag, name=options.name, settings=settings, archived=options.archived,
        limit=options.limit,
    )  # fmt: skip
    if options.json:
        print_json([_plain(run) for run in runs])
    elif not runs:
        print(f"no such run in {table.folder}")
    else:
        rows = [
            (run.name, run.status, _text(run.step), _text(run.epoch), _text(run.metrics.get("val/loss")),
             _text(run.metrics.get("train/loss")), _time(run.updated_at), " ".join(run.tags))
            for run in runs
        ]  # fmt: skip
        print_columns(("run", "status", "step", "epoch", "val/loss", "train/loss", "changed", "tags"), rows)
    return DONE


def _show(table: RunTable, options: argparse.Namespace) -> int:
    run = table.get(options.run)
    artifacts, lineage = table.artifacts(run.name), table.lineage(run.name)
    if options.json:
        print_json({**_plain(run), "artifacts": artifacts, "lineage": lineage})
        return DONE
    facts = {
        "run": run.name, "folder": run.path, "status": run.status, "ended by": run.stop_reason, "error": run.error,
        "step": run.step, "epoch": run.epoch, "changed": _time(run.updated_at), "tags": " ".join(run.tags),
        "archived": "yes" if run.archived else None, "notes": run.notes,
    }  # fmt: skip
    sections = [
        ("", {name: value for name, value in facts.items() if value not in (None, "")}),
        ("metrics (last)", {n: v for n, v in run.metrics.items() if not n.startswith("time/")}),
        ("settings", {n: v for n, v in run.settings.items() if v is not None}),
        ("files", {entry["path"]: f"{(entry['size_bytes'] or 0) / 1e6:.2f} MB" for entry in artifacts}),
        ("started from", {entry["run"]: f"step {_text(entry['step'])} ({entry['kind']})" for entry in lineage}),
    ]
    for title, values in sections:
        if values:
            print(f"\n{title}" if title else "", end="\n" if title else "")
            width = max(len(name) for name in values)
            for name, value in values.items():
                print(f"  {name:<{width}}  {_text(value)}")
    return DONE


def _compare(table: RunTable, options: argparse.Namespace) -> int:
    compared = table.compare(options.runs, only_differences=not options.all)
    if options.json:
        print_json({run: dict(compared[run]) for run in compared.columns})
    else:
        rows = [(name, *map(_text, compared.loc[name])) for name in compared.index]
        print_columns(("", *compared.columns), rows)
    return DONE


def _best(table: RunTable, options: argparse.Namespace) -> int:
    found = table.best(options.metric, options.mode)
    if found is None:
        print(f"no run in {table.folder} has a value of {options.metric}", file=sys.stderr)
        return NEGATIVE
    run, value = found
    if options.json:
        print_json({**_plain(run), "metric": options.metric, "value": value})
    else:
        print(f"{run.name}  {options.metric} {_text(value)}\n{run.path}")
    return DONE


def _report(table: RunTable, options: argparse.Namespace) -> int:
    from utils.ui.run_report import write_report

    written = write_report(table.get(options.run).path, path=options.out)
    if options.json:
        print_json({"report": written})
    else:
        print(written)
    return DONE


def _tag(table: RunTable, options: argparse.Namespace) -> int:
    change = table.tag if options.action == "tag" else table.untag
    change(options.run, *options.tags)
    run = table.get(options.run)
    print(f"{run.name}: {' '.join(run.tags) or 'no tags'}")
    return DONE


def _note(table: RunTable, options: argparse.Namespace) -> int:
    table.note(options.run, options.notes)
    run = table.get(options.run)
    print(f"{run.name}: {run.notes or 'no notes'}")
    return DONE


def _ask(table: RunTable, options: argparse.Namespace) -> int:
    from utils.errors import ConfigError
    from utils.training.engine.interrupts import KEEP_BEST
    from utils.ui.run_on_disk import StopFile, can_finish_early

    run = table.get(options.run)
    path = table.folder / run.name
    if run.status != "running":
        hint = "" if options.action == "stop" else "; continue it with `trainbook train --resume auto --finish-now`"
        raise ConfigError(f"run {run.name!r} is not under way ({run.status}){hint}.")
    if options.action == "stop":
        StopFile(path).request_stop(KEEP_BEST if options.keep_best else "stop_file")
        print(f"{run.name}: asked to save and end")
        return DONE
    if not can_finish_early(path):
        raise ConfigError(
            f"run {run.name!r} cannot finish now: only lr_schedule=wsd has a decay that can begin at any step."
        )
    StopFile(path).request_finish()
    print(f"{run.name}: asked to begin its decay")
    return DONE


def _archive(table: RunTable, options: argparse.Namespace) -> int:
    change = table.archive if options.action == "archive" else table.restore
    for name in [table.get(run).name for run in options.runs]:  # a name that does not exist changes nothing
        change(name)
        print(f"{name}: {'archived' if options.action == 'archive' else 'restored'}")
    return DONE


def _delete(table: RunTable, options: argparse.Namespace) -> int:
    from utils.errors import ConfigError
    from utils.views.values import size_text

    doomed = dict(table.to_delete(run) for run in dict.fromkeys(options.runs))  # all of them, before any is deleted
    listed = ", ".join(f"{name} ({size_text(size)})" for name, size in doomed.items())
    if not options.yes:
        if not sys.stdin.isatty():
            raise ConfigError(f"nothing was deleted: {listed} would be deleted for good. Add --yes to do it.")
        if input(f"Delete {listed} for good? [y/N] ").strip().lower() not in ("y", "yes"):
            print("nothing was deleted")
            return DONE
    for name in doomed:
        deleted = table.delete(name)
        kept = "" if deleted.left is None else f"; its checkpoints in {deleted.left} were kept"
        print(f"{name}: deleted, {size_text(deleted.size_bytes)}{kept}")
    return DONE


def _reindex(table: RunTable, options: argparse.Namespace) -> int:
    count = table.reindex()
    print(f"{count} run{'' if count == 1 else 's'} in {table.folder}")
    return DONE


def _plain(run: RunRecord) -> dict[str, Any]:
    return dataclasses.asdict(run)


def print_json(value: Any) -> None:
    """Print JSON. NaN and infinity, which JSON does not have, are the texts "nan" and "inf"."""
    print(json.dumps(_finite(value), indent=2, default=str))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(name): _finite(entry) for name, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(entry) for entry in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _text(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _time(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(at)) if at else "-"


if __name__ == "__main__":
    sys.exit(main())
