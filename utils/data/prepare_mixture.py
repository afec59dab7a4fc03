"""prepare_mixture: the datasets that a setup names -> one mixture with a common tokenizer."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from utils.data.documents import PackingSettings
from utils.data.file_records import holds_conversations, load_records
from utils.data.mixture import mix
from utils.data.mixture_settings import SETTINGS, MixtureSource, mixture_sources
from utils.data.prepare import (
    DataSetup,
    checked_vocab_size,
    files_of,
    load_answers,
    load_texts,
    optional_setting,
    own_tokenizer,
    prepare_one,
)
from utils.data.prepared import PreparedData
from utils.data.record_sources import as_conversations, has_answers
from utils.data.source_kinds import kind_of_source
from utils.errors import ConfigError, DataError, HubError
from utils.tokenization.adaptive import TokenizerChoice, choose_tokenizer
from utils.tokenization.special_tokens import SPECIAL_TOKENS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def prepare_mixture(
    setup: DataSetup, model: Any = None, tokenizer: PreTrainedTokenizerFast | None = None
) -> PreparedData:
    """Prepare the datasets of `setup.mixture` with one tokenizer, and mix them by their weights (`utils.data.mix`).

    The tokenizer is the given one, else the model's own; without one it is trained on the training parts of all datasets,
    unweighted. Each dataset keeps `val_split` of its own for validation, or its own validation split.

    Raises:
        ConfigError: entries contradict each other or the model; an entry that cannot be mixed is named.
        DataNotFoundError, DataError, HubError: a dataset cannot be read or is too small; its name stands first.
    """
    sources = mixture_sources(optional_setting(setup, "mixture"))
    if (task := optional_setting(setup, "task")) != "causal_lm":
        raise ConfigError(f"task: got {task!r} with a mixture; only text and conversations can be mixed.")
    for name, value in PackingSettings.of(setup).changed.items():
        default = getattr(PackingSettings(), name)
        raise ConfigError(
            f"{name}: got {value!r} with a mixture, whose epochs and blocks are its own; set it to {default!r}."
        )
    views = {source.label: _view(setup, source) for source in sources}
    vocab_size = max(checked_vocab_size(view, model) for view in views.values())
    tokenizer, kind = tokenizer or own_tokenizer(setup, model), None
    if tokenizer is None:
        choice = _common_tokenizer(views, vocab_size, setup.tokenizer_strategy)
        tokenizer, kind = choice.tokenizer, f"{choice.reason}, from all datasets together"
    parts = {}
    for name, view in views.items():
        with _named(name):
            parts[name] = prepare_one(view, model, vocab_size, tokenizer)
    weights = {source.label: source.weight for source in sources if source.weight is not None}
    data = mix(
        parts, weights or None, by=optional_setting(setup, "mixture_by"),
        temperature=optional_setting(setup, "mixture_temperature"),
    )  # fmt: skip
    return data if kind is None else replace(data, report=replace(data.report, tokenizer=kind))


class _View:
    """A setup, with the settings of one dataset of its mixture in place of its own."""

    def __init__(self, setup: DataSetup, changes: Mapping[str, Any]) -> None:
        self._setup = setup
        vars(self).update(changes)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._setup, name)


def _view(setup: DataSetup, source: MixtureSource) -> Any:
    return _View(setup, {**{name: getattr(source, name) for name in SETTINGS}, "mixture": ()})


@contextlib.contextmanager
def _named(name: str) -> Iterator[None]:
    """Errors in the block begin with the name of the dataset."""
    try:
        yield
    except (ConfigError, DataError, HubError) as error:
        raise type(error)(f"mixture, dataset {name!r}: {error}") from error


def _common_tokenizer(views: Mapping[str, Any], vocab_size: int, strategy: str) -> TokenizerChoice:
    """A tokenizer learned from the training parts of all datasets, with a chat template's tokens where one has answers."""
    from utils.data.conversations.prepare import special_tokens

    texts: list[str] = []
    special: tuple[str, ...] = SPECIAL_TOKENS
    for name, view in views.items():
        with _named(name):
            found, answers = _training_texts(view)
            texts += found
            special = special_tokens() if answers else special
    return choose_tokenizer(texts, vocab_size, strategy, special)


def _training_texts(view: Any) -> tuple[Iterable[str], bool]:
    """The texts that a tokenizer is trained on, and whether they are conversations."""
    from utils.data.conversations.prepare import training_texts
    from utils.data.text.prepare import training_documents

    split = (view.val_split, view.random_seed)
    if has_answers(view.data_kind):
        records, validation = as_conversations(load_answers(view, view.data_kind), view.data_kind, view.text_column)
        return training_texts(records, validation, None, *split), True
    of_files = kind_of_source(view.dataset_source).reader == "files"
    may_hold = of_files and view.data_kind != "text" and view.text_column is None
    if may_hold and holds_conversations(files_of(view), view.conversation_layout):
        loaded = load_records(files_of(view), with_validation=view.val_split > 0)
        return training_texts(loaded.records, loaded.validation, view.conversation_layout, *split), True
    texts = load_texts(view)
    return training_documents(texts.documents, texts.validation, *split), False
