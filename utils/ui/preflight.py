"""Checks before training: the data, the Hub, one batch through the model, causality, and the run's name.

Each is done by the code that training itself uses, on a copy of the model and without leaving anything behind. Results hold
for the settings that they were made with: what changes those makes the checks concerned pending again.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from utils.data.source_kinds import SOURCE_KINDS
from utils.errors import DataError, HubError, TrainbookError, first_line
from utils.training.task_kinds import kind_of_task
from utils.ui.background import Progress
from utils.ui.run_plan import RunPlan, run_plan
from utils.ui.setting_values import counted
from utils.ui.setup_config import SetupConfig

if TYPE_CHECKING:
    from utils.data.prepared import PreparedData
    from utils.ui.rehearsal import FirstSteps

CheckName = Literal["hub", "data", "batch", "causality", "run"]
Verdict = Literal["pending", "passed", "failed", "not run"]

# Characters and rows of a dataset on the Hub that are read: enough for a tokenizer and some blocks, without a download.
_CHARACTERS, _ROWS = 200_000, 5_000
_TITLES: Mapping[CheckName, str] = {
    "hub": "Hugging Face Hub",
    "data": "Data",
    "batch": "Model",
    "causality": "Causality",
    "run": "Run name",
}
_DOING: Mapping[CheckName, str] = {
    "hub": "Asking the Hugging Face Hub",
    "data": "Reading the data",
    "batch": "One batch forward and backward",
    "causality": "Checking causality",
    "run": "Looking for the run",
}
# The wizard's step where a check that failed can be helped.
_STEP_OF: Mapping[CheckName, str] = {
    "hub": "dataset",
    "data": "dataset",
    "batch": "model",
    "causality": "model",
    "run": "training",
}


@dataclass(frozen=True)
class WayOut:
    """One-click remedy of a failed check.

    Attributes:
        label: of the button.
        changes: settings, as `SetupConfig.update` takes them.
    """

    label: str
    changes: Mapping[str, Any]


@dataclass(frozen=True)
class Check:
    """One check and what came of it.

    Attributes:
        verdict: "not run": it could not be made, and nothing is known.
        message: what was measured, or what is wrong; "" while it is pending.
        ways_out: what one click can do about it.
    """

    name: CheckName
    verdict: Verdict = "pending"
    message: str = ""
    ways_out: tuple[WayOut, ...] = ()

    @property
    def title(self) -> str:
        """Title for a form."""
        return _TITLES[self.name]

    @property
    def step(self) -> str:
        """The wizard's step that has the settings concerned."""
        return _STEP_OF[self.name]


@dataclass
class _Session:
    """Shared state of the checks of one `Preflight.run`, on a copy of the setup."""

    setup: SetupConfig
    load: Callable[[], Any]
    progress: Progress
    data: PreparedData | None = None
    table: Any = None
    passed: dict[CheckName, bool] = field(default_factory=dict)
    seen: FirstSteps | None = None

    @functools.cached_property
    def model(self) -> Any:
        """Model to train; a pretrained model is loaded now."""
        return self.load()


@dataclass(frozen=True)
class _Result:
    """A check, with what it was made for, and what it left for later ones."""

    check: Check
    key: Any
    data: PreparedData | None = field(default=None, repr=False)
    seen: FirstSteps | None = field(default=None, repr=False)


class Preflight:
    """The checks before a training. Holds their results; looks at the setup each time it is asked.

    Args:
        setup: whose training is checked. It may change at any time.
        model: what is trained; None: what needs a model cannot be checked.
        load: gives the model when a check first needs it; None: it is `model`.
    """

    def __init__(self, setup: SetupConfig, model: Any = None, load: Callable[[], Any] | None = None) -> None:
        self.setup, self.model = setup, model
        self._load = load
        self._results: dict[CheckName, _Result] = {}

    @property
    def checks(self) -> tuple[Check, ...]:
        """The checks that these settings need, in order; pending where they have not been made for these settings."""
        return tuple(self._current(name, self.setup) for name in _needed(self.setup))

    @property
    def pending(self) -> bool:
        """Whether a check has not been made for these settings."""
        return any(check.verdict == "pending" for check in self.checks)

    @property
    def ready(self) -> bool:
        """Whether every check passed."""
        return all(check.verdict == "passed" for check in self.checks)

    @property
    def verdict(self) -> str:
        """One sentence: "Ready to train." only when every check passed."""
        return verdict_of(self.checks)

    def forget_run(self) -> None:
        """Make the check of the run pending: the runs on disk may have changed."""
        self._results.pop("run", None)

    def run(self, progress: Progress | None = None) -> tuple[Check, ...]:
        """Make the checks that have not passed with these settings, in order. Returns `checks`.

        Args:
            progress: reports each check; it may be cancelled between two of them.
        Raises:
            Cancelled: somebody cancelled; the checks made until then hold.
        """
        session = _Session(self.setup.copy(), self._load or (lambda: self.model), progress or Progress())
        for name in _needed(session.setup):
            known = self._results.get(name)
            if known is None or self._current(name, session.setup).verdict != "passed":
                session.progress.report(_DOING[name])
                check = _RUN[name](session)
                known = _Result(check, _key(name, session.setup), session.data, session.seen)
                self._results[name] = known
            session.data, session.seen = known.data, known.seen
            session.passed[name] = known.check.verdict == "passed"
        return self.checks

    def _current(self, name: CheckName, setup: SetupConfig) -> Check:
        result = self._results.get(name)
        return Check(name) if result is None or result.key != _key(name, setup) else result.check


def check_text(check: Check) -> str:
    """A check's message, with its verdict where it did not pass."""
    return check.message if check.verdict == "passed" else f"{check.verdict}. {check.message}".strip()


def verdict_of(checks: tuple[Check, ...]) -> str:
    """One sentence about checks: "Ready to train." only when every one of them passed."""
    count = {verdict: sum(check.verdict == verdict for check in checks) for verdict in ("failed", "pending", "not run")}
    if count["failed"]:
        return f"Not ready to train: {counted(count['failed'], 'check')} failed."
    if count["pending"]:
        return f"{counted(count['pending'], 'check')} pending."
    if count["not run"]:
        return f"{counted(count['not run'], 'check')} could not be made."
    return "Ready to train."


def _needed(setup: SetupConfig) -> tuple[CheckName, ...]:
    asks_hub = SOURCE_KINDS[setup.dataset_source].reader == "hub" and not _is_folder(setup)
    return ("hub", "data", "batch", "causality", "run") if asks_hub else ("data", "batch", "causality", "run")


def _is_folder(setup: SetupConfig) -> bool:
    return setup.dataset_name is not None and Path(setup.dataset_name).expanduser().is_dir()


def _key(name: CheckName, setup: SetupConfig) -> Any:
    """Settings that a check's result depends on."""
    sections = setup.sections()
    data, training = sections["setup"], sections["training"]
    if name in ("hub", "data"):
        return data, training["random_seed"]
    if name == "run":  # what is found is about the run's folder: "is free" is over when the run begins
        name_of_run = setup.training_config.run_name
        return data, training, name_of_run is not None and Path(setup.training_config.output_dir, name_of_run).exists()
    not_learned = setup.training_config.NOT_LEARNED
    return data, {setting: value for setting, value in training.items() if setting not in not_learned}


# ---- the checks ----


def _reported(name: CheckName) -> Callable[[Callable[[_Session], Check]], Callable[[_Session], Check]]:
    """A check that reports what is raised in it, instead of raising."""

    def decorate(function: Callable[[_Session], Check]) -> Callable[[_Session], Check]:
        def run(session: _Session) -> Check:
            try:
                return function(session)
            except TrainbookError as error:
                return Check(name, "failed", str(error))
            except Exception as error:  # noqa: BLE001 - whatever the user's data and model raise is what the check reports
                return Check(name, "failed", f"{first_line(error, with_class=True)}")

        return run

    return decorate


@_reported("hub")
def _check_hub(session: _Session) -> Check:
    setup = session.setup
    builtin = WayOut("Use the built-in text", {"dataset_source": "builtin"})
    try:
        session.table = _stream(setup)
    except HubError as error:
        return Check("hub", "failed", str(error), (builtin,))
    except DataError:
        pass  # the Hub answered; what is wrong with the dataset is reported by the check of the data
    return Check("hub", "passed", f"The Hub answered for {setup.dataset_name}.")


@_reported("data")
def _check_data(session: _Session) -> Check:
    from utils.data import prepare_data

    if not session.passed.get("hub", True):
        return Check("data", "not run", "The Hugging Face Hub did not answer.")
    if "hub" in session.passed:
        return _check_hub_data(session)
    data = session.data = prepare_data(session.setup, session.model)
    row = "example" if kind_of_task(session.setup.task).labelled else "block"
    blocks = counted(len(data.train), f"training {row}")
    validation = "" if data.validation is None else f", {counted(len(data.validation), row)} for validation"
    tokenizer = data.report.rows().get("Tokenizer", "").rstrip(".")
    return Check("data", "passed", f"{blocks}{validation}. Tokenizer: {tokenizer}.")


def _check_hub_data(session: _Session) -> Check:
    """Open the dataset as a stream, and prepare its beginning. Nothing is downloaded as a whole."""
    from utils.data.documents import PackingSettings
    from utils.data.file_records import LoadedRecords, prepare_labelled
    from utils.data.prepare import own_tokenizer
    from utils.data.record_sources import has_answers, prepare_records
    from utils.data.text.hub import table_texts
    from utils.data.text.prepare import prepare_text
    from utils.models.inspect import vocab_size_of

    setup = session.setup
    table = session.table or _stream(setup)
    records = list(_beginning(table.rows))
    if kind_of_task(setup.task).labelled:
        from datasets import Dataset  # type: ignore[import-untyped]

        rows = LoadedRecords(Dataset.from_list(records, features=table.rows.features), None, table.source)
        session.data = prepare_labelled(
            rows, setup.task, max_length=setup.max_length, vocab_size=setup.vocab_size, val_split=0,
            random_seed=setup.random_seed, text_column=setup.text_column, label_column=setup.label_column,
            tokenizer=own_tokenizer(setup, session.model), model=session.model,
        )  # fmt: skip
        return Check("data", "passed", f"The first {counted(len(records), 'row')} were read: {table.source}.")
    if has_answers(setup.data_kind):
        loaded = LoadedRecords(records, None, table.source)
        session.data = prepare_records(
            loaded, setup.data_kind, column=setup.text_column, model=session.model, max_length=setup.max_length,
            vocab_size=setup.vocab_size, val_split=0, seed=setup.random_seed,
        )  # fmt: skip
        return Check("data", "passed", f"The first {counted(len(records), 'row')} were read: {table.source}.")
    texts = table_texts(records, setup.text_column, with_validation=False)
    model_vocab_size = vocab_size_of(session.model)
    vocab_size = setup.vocab_size or model_vocab_size
    assert vocab_size is not None  # the settings are checked first
    session.data = prepare_text(
        texts.documents, vocab_size=vocab_size, block_size=setup.max_length, model_vocab_size=model_vocab_size,
        tokenizer=own_tokenizer(setup, session.model), tokenizer_strategy=setup.tokenizer_strategy, val_split=0,
        random_seed=setup.random_seed, source=table.source, **asdict(PackingSettings.of(setup)),
    )  # fmt: skip
    return Check(
        "data", "passed", f"The first {counted(len(records), 'row')} were read: {table.source}, {texts.source}."
    )


def _stream(setup: SetupConfig) -> Any:
    """The setup's dataset on the Hub as a stream. A slice of a split is checked by its beginning."""
    from utils.data.text.hub import load_hub_table, split_name

    assert setup.dataset_name is not None
    return load_hub_table(setup.dataset_name, setup.config_name, split_name(setup.dataset_split), streaming=True)


def _beginning(rows: Any) -> Iterator[dict[str, Any]]:
    """The first rows of a stream: as many as have enough text."""
    characters = 0
    for number, row in enumerate(rows):
        if number >= _ROWS or characters >= _CHARACTERS:
            return
        characters += sum(len(value) for value in row.values() if isinstance(value, str))
        yield dict(row)


@_reported("batch")
def _check_batch(session: _Session) -> Check:
    if session.model is None:
        return Check("batch", "not run", "No model was given: pass it as SetupWizard.run(model=model).")
    if session.data is None:
        return Check("batch", "not run", "There are no data to take a batch from.")
    from utils.ui.rehearsal import Rehearsal

    with session.progress.undisturbed():
        session.seen = seen = Rehearsal(session.setup, session.model, session.data).first_steps()
    summary = f"One batch forward and backward in {seen.first_s:.2g} s; loss {seen.loss:.3g}."
    return Check("batch", "passed", summary if "hub" in session.passed else f"{summary} {_how_long(session, seen)}")


def _how_long(session: _Session, seen: FirstSteps) -> str:
    """How long the steps of the training take, or at most take where only the first batch was measured, which is slower."""
    from utils.ui.estimate import planned_steps
    from utils.ui.live_picture import duration

    assert session.data is not None
    config = session.setup.training_config
    _, steps = planned_steps(config, len(session.data.train))
    batches, number = steps * config.gradient_accumulation_steps, counted(steps, "step")
    if seen.step_s is None:
        return f"A first batch is the slowest: {number} take at most about {duration(batches * seen.first_s)}."
    return f"{number} take about {duration(batches * seen.step_s)}, without validations."


@_reported("causality")
def _check_causality(session: _Session) -> Check:
    if session.model is None:
        return Check("causality", "not run", "No model was given.")
    from utils.checks import test_causality

    spec = None if session.data is None else session.data.task_spec
    with session.progress.undisturbed():
        result = test_causality(session.model, session.setup, task_spec=spec)
    if result.verdict == "not run":
        return Check("causality", "not run", result.summary)
    message = f"{result.summary} {result.remedy}".strip()
    return Check("causality", "passed" if result.passed else "failed", message)


@_reported("run")
def _check_run(session: _Session) -> Check:
    seen = session.seen
    # Of a dataset on the Hub only the beginning was read, which has another digest.
    fingerprint = None if seen is None or "hub" in session.passed else seen.fingerprint
    plan = run_plan(session.setup.training_config, fingerprint, None if seen is None else seen.weights)
    ways = []
    if plan.free_name is not None:
        # Checkpoints in a folder of their own would still be the other run's.
        moved = {"checkpoint_dir": None} if session.setup.checkpoint_dir is not None else {}
        ways.append(WayOut(f"Use run name {plan.free_name}", {"run_name": plan.free_name, **moved}))
    if plan.settings_differ:
        ways.append(WayOut("Continue with the new settings", {"on_config_change": "continue"}))
    return Check("run", "passed" if plan.allowed else "failed", f"{plan.sentence}{_left(session, plan)}", tuple(ways))


def _left(session: _Session, plan: RunPlan) -> str:
    """How much of a training is left that continues."""
    from utils.ui.estimate import planned_steps

    if session.data is None or not plan.allowed or not plan.done_steps:
        return ""
    _, planned = planned_steps(session.setup.training_config, len(session.data.train))
    left = planned - plan.done_steps
    return f" {left:,} of {planned:,} steps are left." if left > 0 else ""


_RUN: Mapping[CheckName, Callable[[_Session], Check]] = {
    "hub": _check_hub,
    "data": _check_data,
    "batch": _check_batch,
    "causality": _check_causality,
    "run": _check_run,
}
