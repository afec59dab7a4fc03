"""The steps of the setup wizard as data: their fields, taken from the schemas, and the problems that block each."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.adapters.facts import ModelFacts, model_facts
from utils.colab import drive_is_unknown, drive_path
from utils.data.mixture_settings import SETTINGS
from utils.data.read.files import find_files, path_problem
from utils.data.read.rows import listed
from utils.data.source_kinds import SOURCE_KINDS, sources_with
from utils.data.text.hub import dataset_name_problem, split_name
from utils.errors import DataError, Problem, TrainbookError
from utils.models.inspect import vocab_size_of
from utils.schema import shown
from utils.storage import path_from
from utils.training.task_kinds import LABELLED_TASKS
from utils.ui.choice_names import choice_name
from utils.ui.model_source import source_problems
from utils.ui.new_model import head_problems
from utils.ui.setup_config import SetupConfig
from utils.ui.wizard_fields import WizardField, wizard_field

if TYPE_CHECKING:
    from utils.data.file_records import Recognised
    from utils.data.mixture_settings import MixtureSource

Check = Callable[[SetupConfig, ModelFacts | None], list[Problem]]


@dataclass(frozen=True)
class Topic:
    """Settings that belong together and are rarely changed: a form folds them.

    Attributes:
        title: such as "Checkpoints".
    """

    title: str
    fields: tuple[WizardField, ...]


@dataclass(frozen=True)
class WizardStep:
    """One page of the wizard.

    Attributes:
        name: "dataset", "tokenizer", "model", "training" or "summary".
        title, help: what the page shows above its fields.
        fields: its essential settings.
        topics: the others.
    """

    name: str
    title: str
    help: str
    fields: tuple[WizardField, ...]
    topics: tuple[Topic, ...]
    check: Check

    @property
    def advanced(self) -> tuple[WizardField, ...]:
        """The settings of all topics."""
        return tuple(field for topic in self.topics for field in topic.fields)

    @property
    def all_fields(self) -> tuple[WizardField, ...]:
        """Essential and advanced ones."""
        return self.fields + self.advanced

    def holds(self, name: str) -> bool:
        """Whether `name` is one of its settings, or the step itself."""
        is_mixture = name == "mixture" and self.name == "dataset"  # which has rows of its own instead of a field
        return name == self.name or is_mixture or any(field.name == name for field in self.all_fields)

    def blockers(self, setup: SetupConfig, model: Any = None) -> list[Problem]:
        """Problems to solve before training, as far as this step sees. Without a model its sizes are not compared."""
        return self.check(setup, None if model is None else facts_of(model))


def facts_of(model: Any) -> ModelFacts:
    """The facts about a model, its vocabulary counted as `prepare_data` counts it."""
    return replace(model_facts(model), vocab_size=vocab_size_of(model))


def data_path(setup: SetupConfig) -> str | None:
    """Path of the setup's files; None if it names no files, or they are on a Drive that is not mounted.

    Raises:
        DataError: the path cannot be one of Google Drive.
    """
    if setup.dataset_path is None:
        return None
    if SOURCE_KINDS[setup.dataset_source].on_drive:
        return None if drive_is_unknown(setup.dataset_path) else str(drive_path(setup.dataset_path))
    return path_from(setup.home, setup.dataset_path)


def recognised_files(setup: SetupConfig) -> Recognised:
    """Kind of data in the first rows of the setup's files; empty where they cannot be read, which other checks report."""
    from utils.data.file_records import Recognised, recognise

    if SOURCE_KINDS[setup.dataset_source].reader == "hub":
        return _recognised_datasets.get(_dataset_key(setup), Recognised())
    try:
        path = data_path(setup)
        if path is None or path_problem(path):
            return Recognised()
        file = find_files(path).files[0]
        state = file.stat()
        key = (str(file), state.st_mtime_ns, state.st_size)
        if key not in _recognised:
            _recognised[key] = recognise(path)
        return _recognised[key]
    except (TrainbookError, OSError):
        return Recognised()


def recognised_in_mixture(source: MixtureSource, home: Path) -> Recognised:
    """Kind of data in the first rows of one dataset of a mixture, as `recognised_files`."""
    return recognised_files(setup_of_source(source, home))


def setup_of_source(source: MixtureSource, home: Path) -> SetupConfig:
    """A setup with one dataset of a mixture as its only one; relative paths start at `home`."""
    values = {name: getattr(source, name) for name in SETTINGS}
    if source.dataset_path is not None and not SOURCE_KINDS[source.dataset_source].on_drive:
        values["dataset_path"] = path_from(home, source.dataset_path)
    return SetupConfig(**values)


def recognise_dataset(setup: SetupConfig) -> Recognised:
    """Read the first rows of the setup's dataset on the Hub; `recognised_files` knows them from then on.

    Raises:
        HubError, DataError: they cannot be had.
    """
    from utils.data.file_records import recognise_rows
    from utils.data.text.hub import load_hub_table

    assert setup.dataset_name is not None
    table = load_hub_table(setup.dataset_name, setup.config_name, split_name(setup.dataset_split), streaming=True)
    found = _recognised_datasets[_dataset_key(setup)] = recognise_rows(
        [dict(row) for row in table.rows.take(_FIRST_ROWS)]
    )
    return found


def _dataset_key(setup: SetupConfig) -> tuple[str | None, ...]:
    return setup.dataset_name, setup.config_name


# Rows of a dataset on the Hub that tell what it holds.
_FIRST_ROWS = 100
_recognised_datasets: dict[tuple[str | None, ...], Recognised] = {}

# What files hold, by path, time of the last change and size.
_recognised: dict[tuple[str, int, int], Recognised] = {}


def _check_dataset(setup: SetupConfig, facts: ModelFacts | None) -> list[Problem]:
    for source in setup.mixture:
        path = None if SOURCE_KINDS[source.dataset_source].on_drive else source.dataset_path
        if path is not None and (problem := path_problem(path_from(setup.home, path))):
            return [Problem("mixture", f"{source.label}: {problem}")]
        found, column = recognised_in_mixture(source, setup.home), source.text_column
        if column is not None and found.columns and column not in found.columns:
            listing = f"the columns are {listed(found.columns)}"
            return [Problem("mixture", f"{source.label}: got {shown(column)} as the text column; {listing}")]
    if SOURCE_KINDS[setup.dataset_source].reader == "hub":
        message = dataset_name_problem(setup.dataset_name)
        return [Problem("dataset_name", message)] if message else _check_task(setup)
    try:
        path = data_path(setup)
    except DataError as error:
        return [Problem("dataset_path", str(error))]
    problem = path_problem(path) if path is not None else None
    return [Problem("dataset_path", problem)] if problem else _check_task(setup)


def _check_task(setup: SetupConfig) -> list[Problem]:
    """Problems of the data with the chosen task."""
    found = recognised_files(setup)
    if setup.task in LABELLED_TASKS:
        return _check_labelled(setup, found)
    layout = setup.conversation_layout
    if layout is not None and found.columns and layout not in found.layouts:
        return [Problem("conversation_layout", f"got {layout!r}; the columns are {listed(found.columns)}")]
    if layout is None and setup.text_column is None and len(found.layouts) > 1 and not found.has_texts:
        message = f"the file can be read as {' or '.join(found.descriptions)}; choose one"
        return [Problem("conversation_layout", message, found.layouts[0])]
    return []


def _check_labelled(setup: SetupConfig, found: Recognised) -> list[Problem]:
    """Problems of a table with a task that needs labels, as far as its first rows tell."""
    from utils.data.read.task_columns import find_columns

    task = choice_name("task", setup.task)
    if SOURCE_KINDS[setup.dataset_source].reader == "corpus":
        message = f"{task} is learned from a table with labels: choose a file, a dataset of the Hub, Google Drive or an upload"
        return [Problem("task", message)]
    if found.is_text:
        other = f"{choice_name('task', 'causal_lm')} (causal_lm)"
        return [Problem("task", f"{task} needs columns, and the file is plain text; give a table, or choose {other}")]
    if not found.columns:
        return []
    names = {"text_column": setup.text_column, "label_column": setup.label_column}
    if unknown := {name: value for name, value in names.items() if value is not None and value not in found.columns}:
        listing = listed(found.columns)
        return [Problem(name, f"got {shown(value)}; the columns are {listing}") for name, value in unknown.items()]
    columns = {"text": setup.text_column, "label": setup.label_column}
    for name, needs_label in (("text_column", False), ("label_column", True)):
        try:
            find_columns(setup.task, found.example, labelled=needs_label, **columns)
        except DataError:
            message = f"is not clear for {task}: the columns are {listed(found.columns)}; choose one"
            return [Problem(name, message)]
    return []


def _check_tokenizer(setup: SetupConfig, facts: ModelFacts | None) -> list[Problem]:
    problems = []
    wanted, had = setup.vocab_size, facts.vocab_size if facts else None
    if wanted is None and had is None:
        where = (
            f"{facts.name} does not say how many token ids it takes" if facts else "there is no model to take it from"
        )
        problems.append(Problem("vocab_size", f"is not known: {where}; set vocab_size"))
    elif facts is not None and wanted is not None and had is not None and wanted > had:
        problems.append(
            Problem(
                "vocab_size", f"got {wanted}, more than the {had} token ids that {facts.name} takes; at most {had}", had
            )
        )
    longest = facts.max_length if facts else None
    if facts is not None and longest is not None and setup.max_length > longest:
        problems.append(
            Problem(
                "max_length",
                f"got {setup.max_length}, more than the {longest} positions that {facts.name} has",
                longest,
            )
        )
    return problems


def _check_model(setup: SetupConfig, facts: ModelFacts | None) -> list[Problem]:
    if problems := source_problems(setup):
        return problems
    if facts is None:
        return []
    if facts.parameters is None:
        return [
            Problem(
                "model",
                f"got a {facts.name}; must be a torch.nn.Module, for instance ModelRegistry.create('gpt-small', …)",
            )
        ]
    if not facts.parameters:
        return [Problem("model", f"{facts.name} has no parameters: there is nothing to train")]
    if not facts.trainable:
        return [
            Problem("model", f"all parameters of {facts.name} are frozen; set requires_grad=True on those to train")
        ]
    return head_problems(facts.name, setup.task)


def _check_training(setup: SetupConfig, facts: ModelFacts | None) -> list[Problem]:
    problems = []
    for name in ("output_dir", "checkpoint_dir", "export_dir"):
        folder = getattr(setup, name)
        if folder is not None and (reason := _not_writable(Path(path_from(setup.home, folder)))):
            problems.append(Problem(name, f"got {folder!r}; {reason}"))
    return problems


def _not_writable(folder: Path) -> str | None:
    """Explain why files cannot be written into `folder`, which need not exist yet; None when they can."""
    for ancestor in (folder.absolute(), *folder.absolute().parents):
        if ancestor.is_dir():
            return None if os.access(ancestor, os.W_OK | os.X_OK) else f"{ancestor} may not be written to by this user"
        if ancestor.exists():
            return f"{ancestor} is a file, not a folder"
    return None


def _check_everything(setup: SetupConfig, facts: ModelFacts | None) -> list[Problem]:
    return [problem for step in STEPS if step.name != "summary" for problem in step.check(setup, facts)]


def _fields(names: str) -> tuple[WizardField, ...]:
    return tuple(wizard_field(name) for name in names.split())


def _topics(names: Mapping[str, str]) -> tuple[Topic, ...]:
    return tuple(Topic(title, _fields(of_topic)) for title, of_topic in names.items())


STEPS: tuple[WizardStep, ...] = (
    WizardStep(
        "dataset", "Data", "What the model learns from.",
        _fields(
            "dataset_source dataset_path dataset_name config_name dataset_split task text_column label_column "
            "conversation_layout mixture_by mixture_temperature val_split"
        ),
        _topics({"Sample limits": "max_train_samples max_val_samples"}),
        _check_dataset,
    ),
    WizardStep(
        "tokenizer", "Tokenizer", "How text becomes token ids. The model's vocabulary is the upper limit.",
        _fields("tokenizer_strategy vocab_size max_length"),
        _topics({"Kind of data and packing": "data_kind packing shuffle_documents document_masks"}), _check_tokenizer,
    ),
    WizardStep(
        "model", "Model", "What is trained. Its sizes are read from the model itself.",
        _fields("pretrained_model new_model"), (), _check_model,
    ),
    WizardStep(
        "training", "Training", "How long, how fast, and where it is kept.",
        _fields(
            "epochs batch_size learning_rate finetune finetune_layers lora_rank lora_alpha lora_dropout precision run_name"
        ),
        _topics({
            "Optimizer and schedule": "optimizer weight_decay betas max_grad_norm lr_schedule warmup_ratio warmup_steps "
            "min_lr_ratio lr_decay_ratio",
            "Length and early stopping": "max_steps max_time_hours eval_every early_stopping_patience",
            "Averaging and regularisation": "weight_averaging ema_decay averaging_ratio label_smoothing",
            "Memory and speed": "gradient_accumulation_steps gradient_checkpointing num_workers",
            "Checkpoints": "save_every_n_epochs save_every_minutes keep_best_k keep_last_n on_nonfinite on_config_change",
            "Reproducibility and notes": "random_seed deterministic output_dir notes",
        }),
        _check_training,
    ),
    WizardStep("summary", "Summary", "Review, then run the cells below.", (), (), _check_everything),
)  # fmt: skip

#: Fields that only a mixture has, and those that only a single dataset has.
MIXTURE_FIELDS = ("mixture_by", "mixture_temperature")
SINGLE_FIELDS = (
    "task", "dataset_source", "dataset_path", "dataset_name", "config_name", "dataset_split", "text_column", "label_column",
    "conversation_layout", "data_kind", "packing", "shuffle_documents", "document_masks",
)  # fmt: skip

#: Fields that have a meaning only beside some values of another one.
MEANT_WITH: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "label_column": ("task", LABELLED_TASKS),
    "conversation_layout": ("task", ("causal_lm",)),
    "data_kind": ("task", ("causal_lm",)),
    "packing": ("task", ("causal_lm",)),
    "shuffle_documents": ("task", ("causal_lm",)),
    "document_masks": ("task", ("causal_lm",)),
    "ema_decay": ("weight_averaging", ("ema",)),
    "averaging_ratio": ("weight_averaging", ("last",)),
    "lr_decay_ratio": ("lr_schedule", ("wsd",)),
    "lora_rank": ("finetune", ("lora",)),
    "lora_alpha": ("finetune", ("lora",)),
    "lora_dropout": ("finetune", ("lora",)),
    "finetune_layers": ("finetune", ("last_layers",)),
}

#: Of those, the ones that say where the data is, each with what to enter: without it the source cannot be used.
PLACES: Mapping[str, str] = {
    "dataset_path": "Enter a file or folder path.",
    "dataset_name": "Enter the id of a dataset on the Hub, or a folder of data files.",
}


def step_of(name: str) -> WizardStep:
    """The step that a setting, or a problem's field, belongs to; the summary when none has it."""
    return next((step for step in STEPS if step.holds(name)), STEPS[-1])


def concerns(field: WizardField, source: str) -> bool:
    """Whether a setting has a meaning for data from `source`."""
    owners = sources_with(field.name)
    return not owners or source in owners
