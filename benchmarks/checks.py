"""What the checks catch, and on what they raise false alarms: the tables of docs/CHECKS.md.

    python -m benchmarks.checks --write
    python -m benchmarks.checks --only planted healthy

Runs every check on the models with a planted fault (`tests/kit/planted.py`) and on the healthy ones
(`tests/kit/healthy_models.py`). A fault counts as named when the check that is there for it reports one of its causes. Then
trains the programs with reported faults and their repaired twins (`tests/kit/fault_programs.py`), a few minutes, and collects
everything that is reported before, during and after the training.
Exit code 1 when a fault is missed, or a healthy model or a repaired program raises an alarm.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from benchmarks.report import Table, write_section
from tests.kit.fault_programs import COMMON, PROGRAMS, Program, named_by, observe
from tests.kit.healthy_models import HEALTHY
from tests.kit.planted import PLANTED
from utils.checks import CheckReport, run_all_tier1_tests

DOCUMENT = Path(__file__).resolve().parent.parent / "docs" / "CHECKS.md"


def planted() -> tuple[Table, int]:
    """The faults, the check and cause that name each, and how many were missed."""
    table = Table("Models with one planted fault", ["fault", "check", "named as", "also reported by"])
    missed = 0
    for name, plant in PLANTED.items():
        report = _report(plant.make)
        causes = [finding.cause for finding in report[plant.check].findings]
        named = next((cause for cause in causes if cause in plant.causes), None)
        missed += named is None
        others = [r.name for r in report.results if r.name != plant.check and r.verdict in ("warn", "fail")]
        table.rows.append([name, plant.check, _cause(named, plant.check), ", ".join(others)])
    table.notes.append(f"{len(PLANTED) - missed} of {len(PLANTED)} named by the check that is there for them.")
    return table, missed


def healthy() -> tuple[Table, int]:
    """The healthy models, what was reported on each, and how many raised an alarm."""
    table = Table("Healthy models", ["model", "alarms"])
    alarms = 0
    for name, make in HEALTHY.items():
        raised = [f"{r.name}: {r.summary}" for r in _report(make).results if r.verdict != "pass"]
        alarms += bool(raised)
        table.rows.append([name, "; ".join(raised) or "none"])
    table.notes.append(f"{alarms} of {len(HEALTHY)} healthy models raised an alarm.")
    return table, alarms


def programs() -> tuple[Table, int]:
    """The programs, what named each fault and in which words, what was reported on its repaired twin; and how many failed."""
    table = Table("Training programs with reported faults", ["program", "section", "named by", "as", "repaired twin"])
    missed = alarms = 0
    home = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            for program in (*PROGRAMS.values(), *COMMON.values()):
                named, twin = named_by(program, observe(program.faulty)), observe(program.repaired)
                missed += not named
                alarms += bool(twin)
                source, sentence = _naming(program, named[0]) if named else ("missed", "")
                quiet = "; ".join(map(_shortened, twin)) or "quiet"
                table.rows.append([program.name, program.section, source, _shortened(sentence), quiet])
        finally:
            os.chdir(home)
    table.notes.append(
        f"{len(table.rows) - missed} of {len(table.rows)} named; {alarms} of {len(table.rows)} repaired twins raised an alarm."
    )
    return table, missed + alarms


def _naming(program: Program, line: str) -> tuple[str, str]:
    """What reported a line, and the sentence of it that names the fault."""
    source, _, text = line.partition(": ")
    sentences = re.split(r"(?<=[.!?])\s+", text)
    return source, next((sentence for sentence in sentences if named_by(program, [sentence])), text)


def _shortened(sentence: str, length: int = 110) -> str:
    """The beginning of a sentence on one line, without what would end a table's cell."""
    text = " ".join(sentence.replace("|", "/").split())
    return text if len(text) <= length else text[:length].rsplit(" ", 1)[0] + " …"


def _report(make: Callable[[], nn.Module]) -> CheckReport:
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return run_all_tier1_tests(make())


def _cause(named: str | None, check: str) -> str:
    """The cause that was reported; a check's own name as cause stands for its main test."""
    return "missed" if named is None else "main test" if named == check else named


#: By the name that `--only` takes: the document's section, and what makes its table and counts what is wrong in it.
SECTIONS: dict[str, tuple[str, Callable[[], tuple[Table, int]]]] = {
    "planted": ("Faults that are caught", planted),
    "healthy": ("Models that are healthy", healthy),
    "programs": ("Programs with faults", programs),
}


def main(arguments: list[str] | None = None) -> int:
    """Make all tables; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="put the tables into docs/CHECKS.md")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS), help="tables to make; all by default")
    parsed = parser.parse_args(arguments)
    failures = 0
    for name in parsed.only:
        section, make = SECTIONS[name]
        table, failed = make()
        failures += failed
        print(table.markdown(everything=True), flush=True)
        if parsed.write:
            write_section(DOCUMENT, section, table.markdown(everything=True))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
