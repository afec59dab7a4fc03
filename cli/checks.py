"""Check a model without a notebook: what is sound, what is not, and what to do about it.

    trainbook checks runs/starter                           a run's best checkpoint, or its export
    trainbook checks runs/starter/checkpoints/epoch_3.pt --config job.yaml
    trainbook checks path/to/transformers-model --tier all --html report.html
    trainbook checks mymodels:make_model --only shapes --json -
    trainbook checks my_model.py:Net                        also a registered name, a Hub id, a gist

A run and a checkpoint hold weights, and every one must fit. A run that was exported for transformers is loaded from its export;
one whose model is a registered name or came from a folder of transformers knows how it was made; another one is made as in the
job's file (--config, section `model`).

Exit status: 0 passed (warnings included), 1 a check failed, 2 something could not be checked: the model cannot be loaded, a
check does not fit it, or the checks were interrupted.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if __package__ in (None, ""):  # started as a file: Python looks beside this file only
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from cli.common import ERROR, Parser, add_job_arguments, exit_status
from cli.job_files import JobConfig, model_of
from utils.errors import ConfigError
from utils.ui.presets import ConfigPresets
from utils.ui.setup_config import SetupConfig, values_of_sections

if TYPE_CHECKING:
    from utils.checks import CheckProgress, CheckReport

TIERS = {
    "1": "run_all_tier1_tests", "2": "run_all_tier2_tests", "3": "run_all_tier3_tests", "all": "run_all_tests",
}  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Check one model. Returns the exit status."""
    options = make_parser().parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")

    def command() -> int:
        report = _checked(options)
        _write(report, options)
        return status_of(report)

    return exit_status(command, interrupted="interrupted before the checks began", interrupted_status=ERROR)


def status_of(report: CheckReport) -> int:
    """0 passed, 1 a check failed, 2 nothing failed and something could not be checked."""
    if any(result.verdict == "fail" for result in report.results):
        return 1
    return 0 if report.passed else 2


def make_parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    parser = Parser(prog="trainbook checks", docstring=__doc__)
    parser.add_argument(
        "source", metavar="MODEL_OR_RUN", help="a run's folder, a checkpoint, or what utils.models.load_model takes"
    )
    parser.add_argument("--tier", choices=list(TIERS), default="1", help="which checks; 1 when it is left out")
    parser.add_argument("--only", metavar="NAME", action="append", help="one check of the tier; repeatable")
    parser.add_argument("--json", metavar="FILE", help="write the report as JSON; -: print it instead of the text")
    parser.add_argument("--html", metavar="FILE", help="write the report as an HTML file")
    add_job_arguments(parser, "its section `model` says how the model is made")
    return parser


def _checked(options: argparse.Namespace) -> CheckReport:
    if options.tier == "all" and options.only:
        raise ConfigError("--only names checks of one tier; give --tier 1, 2 or 3 with it.")
    for path, suffix in ((options.json, ".json"), (options.html, ".html")):
        if path not in (None, "-") and Path(path).suffix != suffix:
            raise ConfigError(f"--{suffix[1:]} takes a file that ends in {suffix}; got {path!r}.")
    job = JobConfig.from_file(options.config, options.set)
    preset = ConfigPresets().get(job.preset)
    values = values_of_sections({"setup": job.setup, "training": job.training})
    SetupConfig().update(**values)  # every mistake is reported before torch is even imported
    name, model_arguments = model_of(job.model, preset.model_name, preset.model_arguments)

    from utils import checks
    from utils.training.stored_models import load_stored_model

    stored = load_stored_model(options.source, name, model_arguments, job.model)
    print(f"model: {stored.description}", file=sys.stderr, flush=True)
    run: Any = getattr(checks, TIERS[options.tier])
    only = {"only": options.only} if options.only else {}
    config = {**(stored.config or {}), **values}
    report: CheckReport = run(stored.model, config, task_spec=stored.task_spec, progress=_print_progress, **only)
    return report


def _print_progress(progress: CheckProgress) -> None:
    print(progress.sentence, file=sys.stderr, flush=True)


def _write(report: CheckReport, options: argparse.Namespace) -> None:
    print(report.to_json() if options.json == "-" else report.to_text(), flush=True)
    for path in (options.json, options.html):
        if path not in (None, "-"):
            print(f"report  {report.save(path)}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
