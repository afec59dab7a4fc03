"""Train a run again from its reproduction bundle, and compare every recorded loss.

    trainbook reproduce bundle.zip
    trainbook reproduce bundle.zip --steps 20        only the first steps, with the schedule of the whole run
    trainbook reproduce bundle/ --data my.txt --model my_model.py:Net

Exit status: 0 the losses agree, 1 they do not, 2 it cannot be trained here; the message says why.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from cli.job_files import JobConfig, model_maker, setup_of
from utils.errors import ConfigError, DataError, TrainbookError
from utils.storage import read_json_lines
from utils.training.reproduction import ReproBundle, code_version, compare_histories, read_repro_bundle

if TYPE_CHECKING:
    from utils.data import PreparedData

# Relative difference of losses that other machines and versions of torch may make.
_RTOL = 1e-3
# Endings that follow from settings and losses, and so come again.
_OWN_ENDINGS = ("finished", "max_steps", "early_stopping", "finish_now")
_COMPARED = ("torch", "device", "device_name", "threads", "precision")


def main(arguments: Sequence[str] | None = None) -> int:
    """Reproduce one run. Returns the exit status."""
    options = make_parser().parse_args(arguments)
    try:
        return _reproduce(read_repro_bundle(options.bundle), options)
    except TrainbookError as error:
        print(f"cannot reproduce: {type(error).__name__}: {error}", file=sys.stderr)
        return 2


def make_parser() -> argparse.ArgumentParser:
    summary, _, details = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(
        prog="trainbook reproduce", description=summary, epilog=details, formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )  # fmt: skip
    parser.add_argument("bundle", help="folder or zip file that create_repro_bundle wrote")
    parser.add_argument(
        "--data", metavar="PATH", help="the data on this machine, where they are elsewhere than in the run"
    )
    parser.add_argument(
        "--model", metavar="SOURCE", help="where the model comes from, for a run that did not record it"
    )
    parser.add_argument("--steps", type=int, metavar="N", help="stop after N optimizer steps")
    parser.add_argument("--output-dir", default="reproduction", metavar="FOLDER", help="where the new run is written")
    parser.add_argument("--rtol", type=float, default=_RTOL, help=f"largest relative difference of losses ({_RTOL:g})")
    return parser


def _reproduce(bundle: ReproBundle, options: argparse.Namespace) -> int:
    from utils.data import prepare_data
    from utils.training.engine.trainer import Trainer
    from utils.ui.progress import PrintProgress

    job = _job(bundle, options)
    model = model_maker(job)()
    setup = setup_of(job, model)
    setup.update(output_dir=options.output_dir, run_name=bundle.record["run"])
    data = _same_data(prepare_data(setup, model), bundle.record.get("fingerprint") or {})
    ended_by_itself = bundle.record.get("stop_reason") in _OWN_ENDINGS
    steps = options.steps or (None if ended_by_itself else bundle.record.get("steps"))
    trainer = Trainer(
        model, training_config=setup.training_config, task_spec=data.task_spec, tokenizer=data.tokenizer,
        callbacks=[PrintProgress(), *([_stop_after(steps)] if steps else [])],
    )  # fmt: skip
    results = trainer.train(data.train, data.validation)
    comparison = compare_histories(bundle.expected, read_json_lines(results.run_dir / "history.jsonl"), steps)
    for sentence in _differences(bundle.record, trainer):
        print(f"differs: {sentence}")
    agrees = comparison.agrees(options.rtol)
    print(f"{'reproduced' if agrees else 'NOT reproduced'}: {comparison}")
    return 0 if agrees else 1


def _job(bundle: ReproBundle, options: argparse.Namespace) -> JobConfig:
    """The bundle's job with what was given for this machine. Raises `ConfigError` that says what is missing."""
    missing: Mapping[str, str] = bundle.record.get("missing") or {}
    values: dict[str, Any] = {
        name: dict(section) if isinstance(section, Mapping) else section for name, section in bundle.job.items()
    }
    if options.data is not None:
        values["setup"] |= {"dataset_source": "local", "dataset_path": options.data, "dataset_name": None}
    if options.model is not None:
        values["model"] = {**values["model"], "name": options.model}
    given = {"data": options.data, "model": options.model}
    if unknown := [reason for name, reason in missing.items() if given.get(name) is None]:
        raise ConfigError("\n".join(unknown))
    return JobConfig.from_values(values, "the bundle's job.yaml")


def _same_data(data: PreparedData, fingerprint: Mapping[str, str]) -> PreparedData:
    """The data, if they are those of the run. Raises `DataError` otherwise."""
    recorded = str(fingerprint.get("data") or "").rpartition(":")[2]
    found = data.train.digest()
    if recorded and recorded != found:
        source = getattr(data.report, "source", "a mixture")
        raise DataError(
            f"the data prepared here are not those of the run: fingerprint {found}, the run's {recorded} (source: "
            f"{source}). Give the run's file with --data, and use the versions in requirements.txt."
        )
    return data


def _stop_after(steps: int) -> Any:
    from utils.training.engine.callbacks import Callback

    class StopAfter(Callback):
        """Ends the training where the recorded run ended, with the schedule of the whole run."""

        def on_step_end(self, step: int, trainer: Any, logs: dict[str, Any] | None = None) -> None:
            if step >= steps:
                trainer.request_stop("reproduced_steps")

    return StopAfter()


def _differences(record: Mapping[str, Any], trainer: Any) -> list[str]:
    """Differences from the recorded run that may change the losses."""
    from utils.training.engine.checkpointing.saver import environment_facts

    here, there = environment_facts(trainer.parts), record.get("environment") or {}
    found = [
        f"{name}: {there[name]} in the run, {here.get(name)} here"
        for name in _COMPARED
        if name in there and there[name] != here.get(name)
    ]
    code, own = record.get("code"), code_version()
    if code and own and code["commit"] != own["commit"]:
        found.append(f"code: commit {code['commit']} in the run, {own['commit']} here")
    return found


if __name__ == "__main__":
    sys.exit(main())
