"""Data as they were named -> what `Trainer.train` takes."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn
from torch.utils.data import Subset, TensorDataset

from utils import colab
from utils.adapters.facts import model_facts
from utils.data.documents import check_is_text
from utils.data.file_records import LoadedRecords, load_records, prepare_files, prepare_labelled
from utils.data.labelled.prepare import prepare_examples
from utils.data.record_sources import (
    builtin_records,
    has_answers,
    hub_records,
    prepare_records,
)
from utils.data.text.corpus import BUILTIN_NAME, builtin_corpus
from utils.data.text.hub import LoadedTexts, load_hub_texts, table_texts
from utils.data.text.local import load_local_texts
from utils.data.text.prepare import prepare_text
from utils.errors import DataError, HubError
from utils.training.coordinator.arguments import DataArguments
from utils.training.task_kinds import kind_of_task
from utils.training.task_spec import TaskSpec

if TYPE_CHECKING:
    from utils.data.prepare import DataSetup
    from utils.data.prepared import Report


@dataclass(frozen=True)
class GivenData:
    """Data to train on.

    Attributes:
        train, validation: what `Trainer.train` takes; validation may be None.
        tokenizer: the texts', or the one that was given.
        task_spec: the task; None: inferred by the Trainer.
        report: what became of the texts; None for data that were ids or batches already.
        notices: sentences the user should know.
    """

    train: Any
    validation: Any
    tokenizer: Any
    task_spec: TaskSpec | None
    report: Report | None = None
    notices: list[str] = field(default_factory=list)


def prepared(given: DataArguments, model: nn.Module) -> GivenData:
    """The data of `given`, which has no problems, in the sizes of `model`.

    Raises:
        DataNotFoundError, DataError: they cannot be read, or are too little; says what would work.
        HubError: the dataset cannot be had from the Hub.
    """
    if given.kind == "module" or given.kind == "rows":
        found = _from_module(given) if given.kind == "module" else _from_rows(given)
        return _with_vocabulary(found, given)
    if given.is_labelled:
        return _labelled(given, model)
    if given.kind == "mixture":
        return _mixed(given, model)
    if has_answers(given.data_kind):
        check_is_text(given.packing_settings)
        return _with_answers(given, model)
    length = given.block_length(model)
    known = model_facts(model).vocab_size
    vocab_size = given.vocab_size if given.vocab_size is not None else known
    assert vocab_size is not None
    as_text = given.data_kind == "text" and given.task == "causal_lm"
    if given.kind == "file" and not as_text and (records := _records(given, model, length, vocab_size)) is not None:
        check_is_text(given.packing_settings)
        return records
    if given.kind == "named" and kind_of_task(given.task).labelled:
        named = hub_records(
            str(given.dataset),
            given.config_name,
            given.dataset_split,
            with_validation=given.val_split > 0,
            as_tables=True,
        )
        labelled = prepare_labelled(
            named, given.task, max_length=length, vocab_size=vocab_size, val_split=given.val_split,
            random_seed=given.seed, text_column=given.text_column, label_column=given.label_column,
            tokenizer=given.tokenizer, model=model,
        )  # fmt: skip
        report = labelled.report
        notes = [] if report is None else list(report.notes)
        return GivenData(labelled.train, labelled.validation, labelled.tokenizer, labelled.task_spec, report, notes)
    loaded = documents(given)
    texts = prepare_text(
        loaded.documents, vocab_size=vocab_size, block_size=length, model_vocab_size=known, tokenizer=given.tokenizer,
        tokenizer_strategy=given.tokenizer_strategy, val_split=given.val_split, random_seed=given.seed,
        validation_documents=loaded.validation, source=loaded.source, notes=loaded.notes,
        **asdict(given.packing_settings),
    )  # fmt: skip
    notices = list(texts.report.notes)
    if not given.names_data:
        notices.insert(0, f"No data named: trained on the built-in corpus ({BUILTIN_NAME}), {len(texts.train)} blocks.")
    return GivenData(texts.train, texts.validation, texts.tokenizer, texts.task_spec, texts.report, notices)


def _mixed(given: DataArguments, model: nn.Module) -> GivenData:
    """A mixture of datasets that were named."""
    from utils.data.prepare_mixture import prepare_mixture

    setup = SimpleNamespace(
        mixture=given.mixture, mixture_by=given.mixture_by, mixture_temperature=given.mixture_temperature,
        vocab_size=given.vocab_size, max_length=given.block_length(model), tokenizer_strategy=given.tokenizer_strategy,
        val_split=given.val_split, random_seed=given.seed, task=given.task,
    )  # fmt: skip
    found = prepare_mixture(cast("DataSetup", setup), model, given.tokenizer)
    return GivenData(
        found.train, found.validation, found.tokenizer, found.task_spec, found.report, list(found.report.notes)
    )


def _records(given: DataArguments, model: nn.Module, length: int, vocab_size: int) -> GivenData | None:
    """The data of files of conversations, or of texts with labels; None: they hold texts."""
    found = prepare_files(
        _file_path(given), task=given.task, max_length=length, vocab_size=vocab_size, val_split=given.val_split,
        random_seed=given.seed, text_column=given.text_column, label_column=given.label_column,
        layout=given.conversation_layout, tokenizer=given.tokenizer, model=model,
    )  # fmt: skip
    if found is None:
        return None
    notes = list(found.report.notes)
    return GivenData(found.train, found.validation, found.tokenizer, found.task_spec, found.report, notes)


def _file_path(given: DataArguments) -> Any:
    source: Any = given.dataset if given.dataset_path is None else given.dataset_path
    return colab.drive_path(source) if given.is_on_drive else source


def _with_answers(given: DataArguments, model: nn.Module) -> GivenData:
    """Conversations, or pairs of texts, that were named."""
    source: Any = given.dataset if given.dataset_path is None else given.dataset_path
    with_validation = given.val_split > 0
    if given.kind == "builtin":
        loaded = builtin_records(given.data_kind)
    elif given.kind == "file":
        loaded = load_records(_file_path(given), with_validation=with_validation)
    elif given.kind == "named":
        loaded = hub_records(str(source), given.config_name, given.dataset_split, with_validation=with_validation)
    else:
        records, validation = _parts(given.dataset)
        rows = records.to_dict("records") if hasattr(records, "iloc") else list(records)
        loaded = LoadedRecords(rows, None if validation is None else list(validation), f"the {type(records).__name__}")
    found = prepare_records(
        loaded, given.data_kind, column=given.text_column, model=model, tokenizer=given.tokenizer,
        max_length=given.block_length(model), vocab_size=given.vocab_size, val_split=given.val_split, seed=given.seed,
    )  # fmt: skip
    return GivenData(
        found.train, found.validation, found.tokenizer, found.task_spec, found.report, list(found.report.notes)
    )


def documents(given: DataArguments) -> LoadedTexts:
    """The texts that were named: the one place where a source becomes documents."""
    source: Any = given.dataset if given.dataset_path is None else given.dataset_path
    with_validation = given.val_split > 0
    if given.kind == "builtin":
        return LoadedTexts(builtin_corpus(), None, f"built-in: {BUILTIN_NAME}, CPython {platform.python_version()}")
    if given.kind == "file":
        return load_local_texts(_file_path(given), given.text_column, with_validation=with_validation)
    if given.kind == "named":
        return _named(str(source), given, with_validation)
    if given.kind == "table":
        return table_texts(source, given.text_column, with_validation=with_validation)
    return LoadedTexts(list(source), None, f"a list of {len(source):,} texts")


def _named(name: str, given: DataArguments, with_validation: bool) -> LoadedTexts:
    """A dataset by its name. Where the Hub cannot give it, a folder beside the program that has its name is read."""
    which = (given.config_name, given.text_column, given.dataset_split or "train")
    try:
        return load_hub_texts(name, *which, with_validation=with_validation)
    except HubError as error:
        owner, _, short = name.rpartition("/")
        if not owner or not Path(short).is_dir():
            raise
        loaded = load_hub_texts(short, *which, with_validation=with_validation)
        loaded.notes.insert(0, f"The Hub did not give {name}: the folder {short!r} here was read. ({error})")
        return loaded


def _from_module(given: DataArguments) -> GivenData:
    module = given.datamodule if given.datamodule is not None else given.dataset
    if hasattr(module, "train") and hasattr(module, "task_spec"):
        return GivenData(
            module.train, module.validation, given.tokenizer or module.tokenizer, given.task_spec or module.task_spec,
            getattr(module, "report", None),
        )  # fmt: skip
    if not callable(getattr(module, "train_dataloader", None)):
        raise DataError(
            f"got a {type(module).__name__} as datamodule; expected an object with train_dataloader(), such as a "
            "LightningDataModule, a UniversalDataModule, or what prepare_data returned"
        )
    # Lightning's order; a module that was set up by somebody else already is set up once more, as Lightning does too.
    for prepare, arguments in (("prepare_data", ()), ("setup", ("fit",))):
        if callable(getattr(module, prepare, None)):
            getattr(module, prepare)(*arguments)
    validation = module.val_dataloader() if _has_validation(module) else None
    tokenizer = given.tokenizer if given.tokenizer is not None else getattr(module, "tokenizer", None)
    return GivenData(module.train_dataloader(), validation, tokenizer, given.task_spec)


def _has_validation(module: Any) -> bool:
    """Whether it has a method of its own: Lightning's base class has one that only raises."""
    method = getattr(type(module), "val_dataloader", None)
    return callable(method) and not str(getattr(method, "__module__", "")).startswith(
        ("pytorch_lightning", "lightning")
    )


def _labelled(given: DataArguments, model: nn.Module) -> GivenData:
    """A table with labels, as examples of its task."""
    assert given.task_spec is not None
    records, validation = _parts(given.dataset)
    found = prepare_examples(
        records, given.task_spec, given.tokenizer, text_column=given.text_column, max_length=given.max_length,
        val_split=given.val_split, random_seed=given.seed, vocab_size=given.vocab_size, validation=validation, model=model,
    )  # fmt: skip
    notes = list(found.report.notes)
    return GivenData(found.train, found.validation, found.tokenizer, found.task_spec, found.report, notes)


def _parts(table: Any) -> tuple[Any, Any]:
    """A dataset's training and validation parts, where it has several; else itself and None."""
    if not isinstance(table, Mapping):
        return table, None
    validation = next((table[name] for name in ("validation", "valid", "val", "dev") if name in table), None)
    return table["train"] if "train" in table else next(iter(table.values())), validation


def _from_rows(given: DataArguments) -> GivenData:
    """Rows of token ids; a share of them, drawn with the seed, is kept for validation."""
    rows = given.dataset
    if type(rows).__name__ == "DataFrame":
        rows = rows.to_dict("records")
    rows, validation = _parts(rows)
    if validation is not None and given.val_split > 0:
        return GivenData(rows, validation, given.tokenizer, given.task_spec)
    count = len(rows)
    kept = max(1, round(count * given.val_split)) if given.val_split > 0 else 0
    if kept >= count:
        raise DataError(
            f"got {count} example{'' if count == 1 else 's'} of token ids, too few to keep some of them for validation. "
            "Give more, or val_split=0."
        )
    if kept == 0:
        return GivenData(rows, None, given.tokenizer, given.task_spec)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(given.seed)).tolist()
    notice = f"{kept:,} of {count:,} examples, drawn with seed {given.seed}, are for validation."
    train, validation = _chosen(rows, sorted(order[kept:])), _chosen(rows, sorted(order[:kept]))
    return GivenData(train, validation, given.tokenizer, given.task_spec, notices=[notice])


def _chosen(rows: Any, indices: Sequence[int]) -> Any:
    """Some of the rows, as what they are, so that they are still known as ids of equal length."""
    if hasattr(rows, "select") and hasattr(rows, "column_names"):
        return rows.select(indices)
    if type(rows) is TensorDataset:
        return TensorDataset(*(tensor[list(indices)] for tensor in rows.tensors))
    if isinstance(rows, torch.Tensor):
        return rows[list(indices)]
    if isinstance(rows, (list, tuple)):
        return [rows[index] for index in indices]
    return Subset(rows, indices)


def _with_vocabulary(found: GivenData, given: DataArguments) -> GivenData:
    """The task with the vocabulary that was named, against which ids are checked."""
    if given.vocab_size is None:
        return found
    spec = found.task_spec or TaskSpec("training")
    if spec.vocab_size is None:
        spec = spec.replace(vocab_size=given.vocab_size)
    return GivenData(found.train, found.validation, found.tokenizer, spec, found.report, found.notices)
