"""DatasetLoader: text from files, the Hub, a Drive, an upload or objects -> a dataset, with a report of what was left out."""

from __future__ import annotations

import inspect
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils import colab
from utils.data.read.arrow import tables_of
from utils.data.read.cache import TableCache, key_of
from utils.data.read.columns import one_text, text_column_of
from utils.data.read.dataset_columns import ROWS_AT_ONCE, text_column_of_rows
from utils.data.read.file_tables import kept_table, table_of_files
from utils.data.read.files import FORMAT_OF_SUFFIX, find_files, is_pattern, is_saved_dataset
from utils.data.read.load_report import LoadReport
from utils.data.read.rows import BadLines, ReadOptions, Row, cut, listed
from utils.data.read.text_rules import TextFilter, TextRules
from utils.data.read.uploads import save_upload
from utils.data.text.corpus import BUILTIN_NAME, builtin_corpus
from utils.data.text.hub import dataset_name_problem, load_hub_table
from utils.data.text.statistics import text_statistics
from utils.errors import ConfigError, DataError, DataTypeError, Problem
from utils.schema import nearest, shown
from utils.storage import absolute_path

if TYPE_CHECKING:
    import pyarrow as pa

_log = logging.getLogger("trainbook.data")
# Options of datasets that the datasets library reads.
_OF_THE_HUB = {"config_name", "split", "streaming"}
# Arguments that `load` itself passes to the methods that it calls.
_OWN_ARGUMENTS = {"dataset_name", "file_path", "rows", "source"}
# Characters of a sample that a preview shows.
_PREVIEW = 400


class DatasetLoader:
    """Loads texts from the Hub, files, folders, Drive, an upload or objects, always as a `datasets.Dataset`.

    What comes from files or the Hub lies on disk and is mapped into memory. Rows without a visible character are always left
    out. Nothing is left out silently: `report` has the counts, and a source of which nothing is left is an error.

    Args:
        preprocessing: take white space off the two ends of every text. White space inside a text is never changed.
        min_length, max_length: characters of a text; shorter and longer ones are left out, not cut. None: no limit.
        remove_duplicates: leave out texts that came before, letter for letter.
        cache_dir: where tables are kept; None: `trainbook/datasets` in the user's cache folder.
    Attributes:
        report: what became of the rows of the last load; None before the first.
    Raises:
        ConfigError: limits that contradict each other.
    """

    def __init__(
        self,
        preprocessing: bool = True,
        min_length: int = 10,
        max_length: int | None = None,
        remove_duplicates: bool = False,
        cache_dir: str | os.PathLike[str] | None = None,
    ) -> None:
        self.rules = TextRules(bool(preprocessing), min_length, max_length, bool(remove_duplicates))
        self.cache_dir = None if cache_dir is None else absolute_path(cache_dir)
        self.report: LoadReport | None = None

    def load(self, source: Any, **options: Any) -> Any:
        """Load a dataset from any kind of source.

        Args:
            source: "builtin"; a file, folder or pattern of paths, or a list of these; the id of a dataset on the Hub; a
                list of texts or of dicts; a pandas DataFrame; a `datasets.Dataset`. What exists on disk comes before
                the Hub. A folder that `save_to_disk` wrote, or with the options config_name, split or streaming, is
                read by `load_huggingface`.
            options: those of `load_local_file` or `load_huggingface`; for objects `text_column`.
        Raises:
            DataTypeError: another kind of object; DataError, HubError: it cannot be loaded; says what would work.
            ConfigError: an option that this kind of source does not have.
        """
        if isinstance(source, str) and source == "builtin" and not Path(source).exists():
            _check_options(options, self._objects, source)
            return self._objects([Row(n, {"text": text}) for n, text in enumerate(builtin_corpus(), 1)],
                                 f"built-in: {BUILTIN_NAME}", **options)  # fmt: skip
        if isinstance(source, (str, os.PathLike)):
            name = os.fspath(source)
            if options.keys() & _OF_THE_HUB or not _is_local(name) or is_saved_dataset(os.path.expanduser(name)):
                _check_options(options, self.load_huggingface, source)
                return self.load_huggingface(name, **options)
            _check_options(options, self.load_local_file, source)
            return self.load_local_file(name, **options)
        if _is_list_of(source, (str, os.PathLike)) and _are_paths(source):
            _check_options(options, self.load_local_file, source)
            return self.load_local_file(source, **options)
        _check_options(options, self._objects, source)
        if _is_list_of(source, (str, Mapping)):
            rows = [Row(n, {"text": item} if isinstance(item, str) else item) for n, item in enumerate(source, 1)]
            return self._objects(rows, f"list of {len(rows):,}", **options)
        if hasattr(source, "to_parquet") and hasattr(source, "iloc"):
            return self._data_frame(source, **options)
        if hasattr(source, "with_format") and hasattr(source, "column_names"):
            return self._dataset(source, "dataset", **options)
        raise DataTypeError(
            f"got {shown(source)} as a source of texts; give a path, a dataset's id on the Hub, a list of texts or dicts, a "
            "DataFrame or a datasets.Dataset."
        )

    def load_huggingface(
        self,
        dataset_name: str,
        config_name: str | None = None,
        split: str = "train",
        streaming: bool = False,
        text_column: str | None = None,
    ) -> Any:
        """A dataset of the Hugging Face Hub, or a folder of data files as the `datasets` library reads it.

        Args:
            dataset_name, config_name, split: as for `datasets.load_dataset`. No code of a dataset is run.
            streaming: give an IterableDataset that reads while it is used; `report` then counts as it goes.
            text_column: None: "text" or another usual name, else the only column of texts.
        Raises:
            HubError: it cannot be had; says why. Interruptions of the line are tried again first.
            DataError: an unknown configuration, split or column; ConfigError: duplicates cannot be left out of a stream.
        """
        if streaming and self.rules.remove_duplicates:
            raise ConfigError(
                "remove_duplicates=True and streaming=True: a stream is read anew each time, and nothing of it is "
                "remembered; use one of the two."
            )
        loaded = load_hub_table(dataset_name, config_name, split, streaming=streaming)
        return self._dataset(loaded.rows, loaded.source, text_column, loaded.notes)

    def load_local_file(
        self,
        file_path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
        file_format: str | None = None,
        text_column: str | None = None,
        encoding: str = "utf-8",
        *,
        on_bad_line: str = "error",
        text_unit: str = "paragraph",
        delimiter: str | None = None,
        quotes: bool = True,
    ) -> Any:
        """A file, a folder, a pattern such as "data/*.jsonl", or several; each may be packed with gzip.

        A plain text is one row a paragraph, because limits of length, duplicates and previews are about samples; for
        training on whole texts use `text_unit="file"`. All other columns of tables are kept.

        Args:
            file_path: see `find_files`.
            file_format: "txt", "csv", "tsv", "json", "jsonl", "parquet" or "conll"; default: by each file's extension.
            text_column: by default chosen by `text_column_of`.
            encoding, on_bad_line, text_unit, delimiter, quotes: see `ReadOptions`.
        Raises:
            DataNotFoundError, DataError: what is wrong, with path:line; ConfigError: an unknown option.
        """
        options = ReadOptions(file_format, encoding, text_unit, on_bad_line, delimiter, quotes)
        found = find_files(file_path)
        source = _described(file_path, found.files)
        dataset, report = table_of_files(
            found.files, TableCache(self.cache_dir), source=source, text_column=text_column, options=options,
            rules=self.rules,
        )  # fmt: skip
        validation = [f"{len(found.validation)} files are for validation by their names, and were not read."]
        return self._reported(dataset, report, [*found.notes, *(validation if found.validation else [])])

    def load_from_drive(
        self, drive_path: str | os.PathLike[str], text_column: str | None = None, **options: Any
    ) -> Any:
        """A file or folder of the user's Google Drive, which is mounted where it has to be.

        Args:
            drive_path: see `utils.colab.drive_path`; a path that exists without a Drive is taken as it is.
            text_column, options: as for `load_local_file`.
        Raises:
            DataError: the Drive cannot be had; or as `load_local_file`.
        """
        return self.load_local_file(colab.drive_path(drive_path), text_column=text_column, **options)

    def load_upload(self, max_size_mb: float = 500, **options: Any) -> Any:
        """Load the file that the user uploads in the browser, in Colab; see `DatasetUploader`."""
        return DatasetUploader(max_size_mb, loader=self).upload_and_load(**options)

    def get_statistics(self, dataset: Any, text_column: str | None = None) -> dict[str, Any]:
        """Lengths of the texts of a dataset, streamed; see `text_statistics`."""
        return text_statistics(dataset, text_column)

    def print_statistics(self, dataset: Any, text_column: str | None = None) -> None:
        """Show the statistics: a table in a notebook, text elsewhere. `text_column` as for `get_statistics`."""
        from utils.views.display import show_table

        numbers = self.get_statistics(dataset, text_column)
        others = numbers.pop("other_columns")
        rows = {_label(name): _number(value) for name, value in numbers.items()}
        rows |= {"Other columns": ", ".join(f"{name} ({kind})" for name, kind in others.items())} if others else {}
        show_table("Dataset statistics", rows)

    def preview_samples(self, dataset: Any, num_samples: int = 3, text_column: str | None = None) -> None:
        """Show the first texts, each cut after 400 characters: a table in a notebook, text elsewhere. `text_column` as for
        `get_statistics`."""
        from itertools import islice

        from utils.data.text.statistics import iter_texts
        from utils.views.display import show_table

        if isinstance(num_samples, bool) or not isinstance(num_samples, int) or num_samples < 1:
            raise ConfigError(f"num_samples: got {shown(num_samples)}; must be a whole number, at least 1.")
        texts = list(islice(iter_texts(dataset, text_column), num_samples))
        shown_texts = [
            text if len(text) <= _PREVIEW else f"{text[:_PREVIEW]}… ({len(text):,} characters)" for text in texts
        ]
        show_table("Samples", {str(number): text for number, text in enumerate(shown_texts, 1)})

    # ---- from objects ----

    def _objects(self, rows: Sequence[Row], source: str, text_column: str | None = None) -> Any:
        import pyarrow as pa

        tables = list(tables_of(rows, source, BadLines()))
        if not tables:
            raise DataError(f"{source}: holds no rows. Give a source with text in it.")
        return self._in_memory(pa.concat_tables(tables, promote_options="permissive"), source, text_column)

    def _data_frame(self, frame: Any, text_column: str | None = None) -> Any:
        import pyarrow as pa

        source = f"DataFrame of {len(frame):,} rows"
        try:
            table = pa.Table.from_pandas(frame, preserve_index=False).replace_schema_metadata()
        except (pa.ArrowException, OverflowError, ValueError) as error:
            reason = cut("; ".join(map(str, error.args)), 300)
            raise DataError(f"{source}: a column holds values of different kinds: {reason}.") from error
        return self._in_memory(table, source, text_column)

    def _in_memory(self, table: pa.Table, source: str, text_column: str | None) -> Any:
        import datasets  # type: ignore[import-untyped]

        example = (table.slice(0, 1).to_pylist() or [{}])[0]
        report = LoadReport(source, text_column_of(table.schema, text_column, source, example))
        texts = TextFilter(self.rules, report)
        try:
            kept = texts.table(table)
            texts.check()
        finally:
            texts.close()
        return self._reported(datasets.Dataset(kept), report)

    def _dataset(self, rows: Any, source: str, text_column: str | None = None, notes: Sequence[str] = ()) -> Any:
        """A dataset or stream of the `datasets` library, cleaned."""
        if isinstance(rows, Mapping):
            raise DataTypeError(f"got a DatasetDict; give one of its splits: {listed(map(repr, rows))}.")
        column = text_column_of_rows(rows, text_column, source)
        report = LoadReport(source, column, notes=list(notes))
        if not hasattr(rows, "num_rows"):
            self.report = report
            return rows.map(_cleaned, batched=True, fn_kwargs={"texts": TextFilter(self.rules, report)})
        key = key_of((), {"fingerprint": rows._fingerprint, "column": column, "rules": repr(self.rules)})
        tables = _tables_of_dataset(rows, source)
        metadata = _features(rows, column).arrow_schema.metadata
        dataset, kept = kept_table(tables, TableCache(self.cache_dir), key, report, self.rules, BadLines(), metadata)
        return self._reported(dataset, kept, notes)

    def _reported(self, dataset: Any, report: LoadReport, notes: Sequence[str] = ()) -> Any:
        report.notes = list(notes)
        self.report = report
        if report.sentence:
            _log.warning("%s: %s", report.source, report.sentence)
        return dataset


class DatasetUploader:
    """Files that the user chooses in the browser -> a dataset. They are kept in the folder `uploads`.

    Args:
        max_size_mb: most megabytes (10^6 bytes) of one file.
        loader: reads them; None: a `DatasetLoader` with its defaults.
    """

    def __init__(self, max_size_mb: float = 500, loader: DatasetLoader | None = None) -> None:
        if isinstance(max_size_mb, bool) or not isinstance(max_size_mb, (int, float)) or not max_size_mb > 0:
            raise ConfigError(f"max_size_mb: got {shown(max_size_mb)}; must be a number of megabytes above 0.")
        self.max_size_mb = max_size_mb
        self.loader = DatasetLoader() if loader is None else loader

    def upload_and_load(self, **options: Any) -> Any:
        """Ask for files, keep them, load them; options as for `DatasetLoader.load_local_file`.

        Raises:
            DataError: this is not Colab, nothing was chosen, a file is too large or cannot be read.
        """
        chosen = colab.upload_files()
        for name, content in chosen.items():
            if len(content) > self.max_size_mb * 1e6:
                raise DataError(
                    f"{name!r} has {len(content) / 1e6:,.1f} MB, more than max_size_mb={self.max_size_mb:g}. Allow more, or "
                    "put the file on the Drive and use load_from_drive."
                )
        return self.loader.load_local_file(
            [save_upload(name, content).path for name, content in chosen.items()], **options
        )


def _is_local(name: str, must_exist: bool = False) -> bool:
    """Whether `name` is a path or a pattern rather than the id of a dataset."""
    try:
        exists = Path(name).expanduser().exists() or is_pattern(os.path.expanduser(name))
    except (OSError, RuntimeError, ValueError):  # too long, no home folder, a NUL
        exists = False
    if exists or must_exist:
        return exists
    looks_like_a_file = Path(name.lower().removesuffix(".gz")).suffix in FORMAT_OF_SUFFIX
    return looks_like_a_file or dataset_name_problem(name) is not None


def _are_paths(source: Sequence[str | os.PathLike[str]]) -> bool:
    """Whether a list is of paths: one is a Path, or all are there or have the name of a data file. One that is missing is
    then an error, and no text."""
    named = [os.fspath(part) for part in source]
    return any(isinstance(part, os.PathLike) for part in source) or all(
        _is_local(name, must_exist=True) or _names_a_file(name) for name in named
    )


def _names_a_file(name: str) -> bool:
    """Whether `name` is one word that ends as the names of data files do."""
    return len(name.split()) == 1 and Path(name.lower().removesuffix(".gz")).suffix in FORMAT_OF_SUFFIX


def _check_options(options: Mapping[str, Any], load: Callable[..., Any], source: Any) -> None:
    """Raise `ConfigError` with every option that `load` does not take."""
    known = [name for name, one in inspect.signature(load).parameters.items() if one.kind is not one.VAR_KEYWORD]
    known = [name for name in known if name not in _OWN_ARGUMENTS]
    problems = []
    for name in options:
        if name not in known:
            guess = nearest(name, known)
            hint = f"did you mean {guess}?" if guess else f"there are {', '.join(known)}"
            problems.append(Problem(name, f"is no option for {_named(source)}; {hint}", guess))
    if problems:
        raise ConfigError.from_problems("DatasetLoader.load", problems)


def _named(source: Any) -> str:
    return shown(source) if isinstance(source, (str, os.PathLike)) else f"a {type(source).__name__}"


def _is_list_of(source: Any, kinds: tuple[type, ...]) -> bool:
    return isinstance(source, (list, tuple)) and all(isinstance(item, kinds) for item in source)


def _described(source: Any, files: Sequence[Path]) -> str:
    if isinstance(source, (str, os.PathLike)):
        return os.fspath(source) if len(files) == 1 else f"{os.fspath(source)} ({len(files):,} files)"
    return f"{len(files):,} files: {', '.join(str(file) for file in files[:3])}{' …' if len(files) > 3 else ''}"


def _features(rows: Any, column: str) -> Any:
    """The features of a dataset when its column of texts, which may be one of lists, holds texts."""
    import datasets

    features = rows.features.copy()
    features[column] = datasets.Value("string")
    return features


def _tables_of_dataset(rows: Any, source: str) -> Iterator[tuple[str, pa.Table]]:
    for table in rows.with_format("arrow").iter(batch_size=ROWS_AT_ONCE):
        yield source, table.replace_schema_metadata()


def _cleaned(batch: Mapping[str, Sequence[Any]], texts: TextFilter) -> dict[str, list[Any]]:
    """The rows of a batch of a stream that are kept."""
    column = texts.report.text_column
    cleaned = [texts.text(one_text(value)) for value in batch[column]]
    kept = [place for place, text in enumerate(cleaned) if text is not None]
    return {
        name: [cleaned[place] if name == column else values[place] for place in kept] for name, values in batch.items()
    }


def _label(name: str) -> str:
    """ "num_samples" as "Samples", "avg_chars" as "Avg chars"."""
    return name.removeprefix("num_").replace("_", " ").capitalize()


def _number(value: Any) -> str:
    return f"{value:,.1f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
