"""Export the model of a run, from its checkpoint.

    trainbook export runs/exp3                                    as a transformers folder, in runs/exp3/exports/hf
    trainbook export exp3 --formats hf onnx safetensors           several formats at once
    trainbook export exp3 --which last --output-dir deploy
    trainbook export mine --config job.yaml                       a model that the job's file describes

A run holds weights, not the model's code. It knows how its model was made if that is a registered name or a folder of
transformers; another one is made as in the job's file (--config, section `model`).

Exit status: 0 exported, 1 a format could not be written while others were, 2 an error that the message explains.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

if __package__ in (None, ""):  # started as a file: Python looks beside this file only
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from cli.common import DONE, NEGATIVE, Parser, add_job_arguments, exit_status
from utils.training.export_formats import FORMATS


def main(arguments: Sequence[str] | None = None) -> int:
    """Export one run. Returns the exit status."""
    options = make_parser().parse_args(arguments)
    logging.basicConfig(level=logging.ERROR, format="%(levelname)s: %(message)s")
    return exit_status(lambda: _export(options), interrupted="interrupted; a format that was not complete is not there")


def make_parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    parser = Parser(prog="trainbook export", docstring=__doc__)
    parser.add_argument("run", metavar="RUN", help="a run's folder, or its name in runs/")
    parser.add_argument(
        "--formats", metavar="FORMAT", nargs="+", default=["hf"], choices=list(FORMATS),
        help=f"default: hf; one or several of {', '.join(FORMATS)}",
    )  # fmt: skip
    parser.add_argument("--which", choices=["best", "last"], default="best", help="which checkpoint; default: best")
    parser.add_argument("--output-dir", metavar="FOLDER", help="default: exports in the run's folder")
    add_job_arguments(parser, "its section `model` says how the model is made")
    return parser


def _export(options: argparse.Namespace) -> int:
    from cli.job_files import JobConfig, model_of
    from utils.training.stored_models import run_folder_of
    from utils.ui.presets import ConfigPresets

    folder = run_folder_of(options.run)
    job = JobConfig.from_file(options.config, options.set)
    preset = ConfigPresets().get(job.preset)
    name, arguments = model_of(job.model, preset.model_name, preset.model_arguments)

    from utils.training.export import export_model
    from utils.training.stored_models import load_results

    results = load_results(folder, name, arguments, job.model)
    exports = export_model(results, options.formats, options.which, options.output_dir)
    for export in exports.values():
        print(export)
        for note in export.notes:
            print(f"  {note}")
    for name, reason in exports.not_written.items():
        print(f"{name}: not written: {reason}", file=sys.stderr)
    return NEGATIVE if exports.not_written else DONE


if __name__ == "__main__":
    sys.exit(main())
