"""Datasets of the Hugging Face Hub, and local folders of data files -> documents, through the `datasets` library.

A dataset is data here and nothing else: no code of it is run. One that the Hub holds as a loading script is read from
the Hub's own conversion to Parquet.
"""

from __future__ import annotations

import contextlib
import logging
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from utils.data.read.dataset_columns import text_column_of_rows, texts_in
from utils.data.read.rows import listed
from utils.data.read.stored_texts import HELD_BYTES, StoredTexts
from utils.data.text.hub_errors import no_configuration, plain_errors
from utils.errors import DataError, first_line
from utils.hub_ids import is_hub_id
from utils.schema import shown

#: Characters of a stream that are read at most: its texts are held in memory, beside their ids, about 4 bytes a token.
MOST_CHARACTERS = 1_000_000_000

# Seconds for the first answer of the Hub. Later requests have the timeouts and the five attempts of huggingface_hub.
_ANSWER_TIMEOUT_S = 15.0
# Delays before the first request is retried after a dropped connection or status 429/5xx; time-outs are not retried.
RETRY_WAITS_S: tuple[float, ...] = (1.0, 3.0)
_BUSY = (429, 500, 502, 503, 504)
# Bytes of a dataset's tables (all columns, all splits) above which it is read as a stream, not downloaded as a whole.
_STREAMED_ABOVE = 4 * MOST_CHARACTERS
# The branch of every dataset in which the Hub keeps its own conversion.
_PARQUET_BRANCH = "refs/convert/parquet"
VALIDATION_SPLITS = ("validation", "valid", "val", "dev")
_log = logging.getLogger("trainbook.data")


@dataclass(frozen=True)
class HubTable:
    """A split of a dataset.

    Attributes:
        rows: a `datasets.Dataset` mapped into memory, or an IterableDataset.
        splits: all splits by name.
        split: the name of the one that was chosen.
        source: what was read, for the report.
        notes: notices for the user, one sentence each.
    """

    rows: Any
    splits: Mapping[str, Any]
    split: str
    source: str
    notes: list[str]


def load_hub_table(
    name: str, config_name: str | None = None, split: str = "train", *, streaming: bool = False
) -> HubTable:
    """A split of a dataset with all its columns.

    Args:
        name, config_name: see `load_hub_texts`.
        split: its name, or a part of it as `datasets` writes it: "train[:1000]", "train[10%:20%]".
        streaming: read while it is used; else a copy is kept on disk, unless the tables have more than 4 GB.
    Raises:
        As `load_hub_texts`.
    """
    if problem := dataset_name_problem(name):
        raise DataError(f"dataset_name: {problem}")
    folder = _folder(name)
    with plain_errors(name, config_name), _quiet(folder is not None):
        splits, notes = _splits(name, folder, config_name, streaming)
        chosen = _chosen_split(splits, split.partition("[")[0], notes)
        rows = _part(splits[chosen], chosen, split) if "[" in split else splits[chosen]
    where = f"folder {folder}" if folder is not None else f"Hugging Face Hub: {name}"
    shown_split = split if "[" in split else chosen
    parts = [where, *([config_name] if config_name else []), f"split {shown_split}"]
    return HubTable(rows, splits, chosen, ", ".join(parts), notes)


@dataclass(frozen=True)
class LoadedTexts:
    """The texts of a dataset.

    Attributes:
        documents: one a row, in the dataset's order; "" where a row has no text. Many of them are read from disk.
        validation: those of its own validation split; None when it has none or it was not asked for.
        source: what was read, for the report.
        notes: notices for the user, one sentence each.
    """

    documents: Sequence[str]
    validation: Sequence[str] | None
    source: str
    notes: list[str] = field(default_factory=list)


def split_name(split: str | None) -> str:
    """The name of a split without its slice: "train" for "train[:1000]", and for None."""
    return "train" if split is None else split.partition("[")[0]


def load_hub_texts(
    name: str,
    config_name: str | None = None,
    text_column: str | None = None,
    split: str = "train",
    *,
    with_validation: bool = True,
    max_characters: int = MOST_CHARACTERS,
) -> LoadedTexts:
    """The text column of a dataset.

    Args:
        name: an id on the Hub, such as "Salesforce/wikitext", or the path of a folder that holds .txt, .csv, .json,
            .jsonl or .parquet files, or what `Dataset.save_to_disk` wrote. A folder comes first.
        config_name: the part or version of the dataset; None: its default or only one.
        text_column: a column of texts, or of lists of texts, which are joined by line ends; None: "text", or else the
            only column of texts.
        split: what to train on.
        with_validation: also read its own validation split, when it has one.
        max_characters: stop reading `split` after the row that reaches it, where texts are held in memory: those of tables
            up to 64 MB, and of streams. Tables above 4 GB are streamed.
    Raises:
        HubError: the Hub cannot be reached, has no such dataset, or requires a login.
        DataError: an invalid name, an unknown configuration, split or column, or files that cannot be read.
    """
    table = load_hub_table(name, config_name, split)
    with plain_errors(name, config_name), _quiet(_folder(name) is not None):
        return _texts_of(table, name, text_column, with_validation, max_characters)


def table_texts(
    table: Any, text_column: str | None = None, *, with_validation: bool = True, max_characters: int = MOST_CHARACTERS
) -> LoadedTexts:
    """The text column of a table that is in memory.

    Args:
        table: a Hugging Face Dataset, or several by split; a pandas DataFrame; a list of records (dicts).
        text_column, with_validation, max_characters: as for `load_hub_texts`.
    Raises:
        DataError: an unknown column, or no single one of texts.
    """
    name = f"the {type(table).__name__}"
    with plain_errors(name, None):
        if isinstance(table, (list, tuple)):
            table = _datasets().Dataset.from_list([dict(record) for record in table])
        elif not hasattr(table, "column_names"):
            table = _datasets().Dataset.from_pandas(table, preserve_index=False)
        splits = table if isinstance(table, Mapping) else {"train": table}
        notes: list[str] = []
        chosen = _chosen_split(splits, "train", notes)
        split = HubTable(splits[chosen], splits, chosen, name, notes)
        return _texts_of(split, name, text_column, with_validation, max_characters)


def _texts_of(
    table: HubTable, name: str, text_column: str | None, with_validation: bool, max_characters: int
) -> LoadedTexts:
    """The text column of a split, and that of the dataset's validation split where there is one and it is wanted."""
    notes = list(table.notes)
    column = text_column_of_rows(table.rows, text_column, name)
    documents, complete = _texts(table.rows, column, max_characters)
    if not complete:
        notes.append(
            f"Only the first {len(documents):,} rows were read: they reach {max_characters:,} characters, the most "
            "that is held in memory."
        )
    own = next((known for known in VALIDATION_SPLITS if known in table.splits and known != table.split), None)
    validation = None
    if with_validation and own is not None:
        validation, complete = _texts(table.splits[own], column, max_characters)
        number = len(validation)
        rows = f"rows: {number:,}" if complete else f"its first {number:,} rows"
        notes.append(f"Validation is the dataset's own split {own!r} ({rows}).")
    return LoadedTexts(documents, validation, f"{table.source}, column {column}", notes)


def dataset_name_problem(name: Any) -> str | None:
    """Explain why `name` is not a valid dataset name, as far as it shows without asking the Hub, or None."""
    if not isinstance(name, str) or not name.strip():
        return f"got {shown(name)}; must be a dataset's id on the Hub, such as 'Salesforce/wikitext'"
    if match := re.match(r"https?://[^/]+/datasets/([^?#]+)", name):
        return f"got an address; give the dataset's id alone: {match[1].strip('/')!r}"
    try:
        path = Path(name).expanduser()
        is_file, is_folder = path.is_file(), path.is_dir()
    except (OSError, RuntimeError, ValueError):  # too long, no home folder, a NUL: no path, perhaps an id
        is_file = is_folder = False
    if is_file:
        return f"got {shown(name)}, which is a file; give it as dataset_path, or the folder it is in as the name"
    if is_folder or is_hub_id(name, needs_owner=False):
        return None
    if name.startswith((".", "/", "~", "\\")) or name.count("/") > 1:
        return f"got {shown(name)}; there is no such folder, and it is no id on the Hub, such as 'Salesforce/wikitext'"
    return f"got {shown(name)}; an id on the Hub is letters, digits, '-', '_' and '.', such as 'Salesforce/wikitext'"


def _datasets() -> Any:
    """The library, imported when a dataset is loaded: it is slow to import, and not typed."""
    import datasets  # type: ignore[import-untyped]

    return datasets


def _folder(name: str) -> Path | None:
    path = Path(name).expanduser()
    return path.absolute() if path.is_dir() else None


def _splits(
    name: str, folder: Path | None, config_name: str | None, streaming: bool
) -> tuple[Mapping[str, Any], list[str]]:
    """The dataset's splits by name, in memory-mapped tables or as streams, and notes."""
    if folder is not None and any((folder / marker).is_file() for marker in ("state.json", "dataset_dict.json")):
        saved = _datasets().load_from_disk(folder)
        splits = saved if isinstance(saved, Mapping) else {"train": saved}
        return ({split: rows.to_iterable_dataset() for split, rows in splits.items()} if streaming else splits), []
    notes: list[str] = []
    if folder is not None:
        builder = _datasets().load_dataset_builder(str(folder), config_name)
    else:
        builder, notes = _hub_builder(name, config_name)
    size = builder.info.dataset_size or 0
    if folder is None and size > _STREAMED_ABOVE:
        notes.append(f"The dataset has {size / 1e9:.0f} GB: it was read as a stream, and no copy of it is kept.")
        return builder.as_streaming_dataset(), notes
    if streaming:
        return builder.as_streaming_dataset(), notes
    builder.download_and_prepare()
    tables = builder.as_dataset()
    assert isinstance(tables, Mapping)  # no split was asked for
    return tables, notes


def _hub_builder(name: str, config_name: str | None) -> tuple[Any, list[str]]:
    """Dataset builder: from the Hub, from its conversion of a loading script, or from the local cache.

    One short request comes first, so that a missing connection is reported after seconds and not minutes of retries.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import OfflineModeIsEnabled, RepositoryNotFoundError

    try:
        about = _asked_again(lambda: HfApi().dataset_info(name, timeout=_ANSWER_TIMEOUT_S))
        files = [entry.rfilename for entry in about.siblings or ()]
    except RepositoryNotFoundError:
        raise
    except OfflineModeIsEnabled as error:
        return _kept_builder(name, config_name, error), []
    except Exception as error:  # noqa: BLE001 - the network's errors have no common class; raised again if no copy is there
        builder = _kept_builder(name, config_name, error)
        return builder, ["The Hub could not be reached: the copy from an earlier time was read."]
    if f"{name.rpartition('/')[2]}.py" in files:
        note = "The dataset is a loading script, which is not run: the Hub's conversion of it to Parquet was read."
        return _converted_builder(name, config_name), [note]
    return _datasets().load_dataset_builder(name, config_name), []


def _asked_again(ask: Callable[[], Any]) -> Any:
    """Call `ask` with retries and back-off while the connection fails or the Hub is busy."""
    for number, wait_s in enumerate(RETRY_WAITS_S, start=1):
        try:
            return ask()
        except Exception as error:  # whose classes belong to several packages; an error that is not transient is raised
            if not _is_transient(error):
                raise
            _log.info("The Hub did not answer (%s); asking again, %d of %d.", error, number, len(RETRY_WAITS_S))
            time.sleep(wait_s)
    return ask()


def _is_transient(error: Exception) -> bool:
    """Whether a retry may succeed: the server is busy (status 429 or 5xx), or the connection dropped."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status is not None:
        return status in _BUSY
    kinds = {kind.__name__ for kind in type(error).__mro__}
    broken = kinds & {"ConnectionError", "ConnectError", "ReadError", "RemoteProtocolError"}
    return bool(broken) and "OfflineModeIsEnabled" not in kinds


def _kept_builder(name: str, config_name: str | None, reason: Exception) -> Any:
    """The builder of the copy in the local cache. Raises `reason` without such a copy."""
    from datasets.packaged_modules.cache.cache import Cache  # type: ignore[import-untyped]

    try:
        return Cache(
            dataset_name=name.rpartition("/")[2], repo_id=name, config_name=config_name, version="auto", hash="auto"
        )
    except ValueError:
        raise reason from None


def _converted_builder(name: str, config_name: str | None) -> Any:
    """The builder of the Hub's Parquet conversion, with a folder for each configuration. Raises DataError that names them."""
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFolder

    entries = HfApi().list_repo_tree(name, repo_type="dataset", revision=_PARQUET_BRANCH)
    configs = sorted(entry.path for entry in entries if isinstance(entry, RepoFolder))
    wanted = configs[0] if config_name is None and len(configs) == 1 else config_name
    if wanted not in configs:
        raise no_configuration(name, config_name, configs)
    return _datasets().load_dataset_builder(name, data_dir=wanted, revision=_PARQUET_BRANCH)


def _chosen_split(splits: Mapping[str, Any], split: str, notes: list[str]) -> str:
    """`split`, or the only one there is, with a note."""
    if split in splits:
        return split
    if len(splits) == 1:
        only = next(iter(splits))
        notes.append(f"There is no split {split!r}; the only one, {only!r}, was taken.")
        return only
    raise DataError(f"got the split {split!r}; the dataset has {listed(splits)}")


def _part(rows: Any, name: str, split: str) -> Any:
    """The rows of a split that its slice names. Raises DataError for a stream, and for an invalid slice."""
    if not hasattr(rows, "num_rows"):
        raise DataError(f"split: got {split!r}; a stream has no parts. Use split={name!r} and rows.take(number).")
    part = f"{name}[{split.partition('[')[2]}"
    try:
        ranges = _datasets().ReadInstruction.from_spec(part).to_absolute({name: rows.num_rows})
    except (ValueError, AssertionError) as error:
        raise DataError(
            f'split: got {split!r} ({first_line(error)}); write a part as "train[:1000]" or "train[10%:20%]".'
        ) from error
    return rows.select([number for one in ranges for number in range(one.from_ or 0, one.to or rows.num_rows)])


def _texts(rows: Any, column: str, max_characters: int) -> tuple[Sequence[str], bool]:
    """The texts of a column until they reach `max_characters`, and whether those are all. A large table's stay on disk."""
    if hasattr(rows, "num_rows") and rows.data.nbytes > HELD_BYTES:
        return StoredTexts(rows, column), True
    documents: list[str] = []
    characters = 0
    for text in texts_in(rows, column):
        if characters >= max_characters:
            return documents, False
        documents.append(text)
        characters += len(text)
    return documents, True


@contextlib.contextmanager
def _quiet(quiet: bool) -> Iterator[None]:
    """No progress bars, for a folder; a download shows them."""
    datasets = _datasets()
    were_disabled = datasets.are_progress_bars_disabled()
    if quiet:
        datasets.disable_progress_bars()
    try:
        yield
    finally:
        if not were_disabled:
            datasets.enable_progress_bars()
