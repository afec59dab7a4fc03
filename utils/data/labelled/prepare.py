"""prepare_examples: labelled records of any text task -> split, tokenizer, token ids, and a report of what became of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from numbers import Integral
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from utils.adapters.special_ids import set_special_ids
from utils.data.collators import collator_for
from utils.data.encoded import EncodedExamples, Ragged
from utils.data.encoding import (
    Encoded,
    adds_end,
    encode_pairs_of_sequences,
    encode_texts,
    encode_words,
    with_end_of_text,
)
from utils.data.labelled.labels import Classes
from utils.data.labelled.learned_tokenizer import VOCAB_SIZE, learn_tokenizer
from utils.data.labelled.table import Table, as_table
from utils.data.labelled.target_statistics import target_statistics
from utils.data.labelled.targets import Targets, balance, baseline, read_targets
from utils.data.labelled.usable_rows import Part, usable_rows
from utils.data.prepared import PreparedData
from utils.data.read.rows import excerpt, listed
from utils.data.read.task_columns import TEXT_NAMES, Columns, find_columns
from utils.data.text.prepare import prepare_text
from utils.data.text.report import DataReport, ExamplesReport
from utils.data.text.splitting import check_val_split, split_documents, split_examples
from utils.data.unknown_tokens import unknown_note
from utils.errors import ConfigError, DataError, DataTypeError, Problem
from utils.models.inspect import max_seq_len_of, vocab_size_of
from utils.schema import shown
from utils.tokenization.adaptive import check_fits
from utils.training.task_kinds import LABELLED_TASKS, kind_of_task
from utils.training.task_spec import TaskSpec

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

#: Longest input where neither arguments, task, model nor tokenizer say one, tokens; and the length of packed blocks.
MAX_LENGTH, BLOCK_SIZE = 512, 128

_LANGUAGE_MODELS = ("causal_lm", "masked_lm")


@dataclass(frozen=True)
class _Sizes:
    """Tokens of an input and of a target, of a newly trained tokenizer, and of the model (None: not known)."""

    max_length: int
    max_target_length: int
    vocab_size: int
    model_vocab_size: int | None


@dataclass(frozen=True)
class _Examples:
    """One part of the data: its rows and what is to be predicted of them."""

    part: Part
    targets: Targets

    def at(self, places: np.ndarray) -> _Examples:
        return _Examples(self.part.at(places), self.targets.at(places))


def prepare_examples(
    records: Any, task_spec: TaskSpec | str, tokenizer: PreTrainedTokenizerFast | None = None, *,
    text_column: str | None = None, pair_column: str | None = None, label_column: str | None = None,
    target_column: str | None = None, max_length: int | None = None, max_target_length: int | None = None,
    val_split: float = 0.1, random_seed: int = 42, vocab_size: int | None = None, validation: Any = None,
    class_names: Sequence[str] | Sequence[int] | None = None, on_bad_row: Literal["error", "skip"] = "error", model: Any = None,
    source: str | None = None, tokenizer_strategy: str = "auto",
) -> PreparedData:  # fmt: skip
    """Records of a text task, ready to train on.

    Args:
        records: a Hugging Face Dataset, a DataFrame, a list of dicts, a dict of columns, (texts, labels), a list of pairs
            (text, label), or for language models a list of texts.
        task_spec: the task, or its type: "text_classification", "token_classification", "seq2seq", "regression",
            "masked_lm" or "causal_lm". Several classes for a text are given by labels that are lists: of classes, or vectors
            with a 0 or 1 for each class.
        tokenizer: the model's own; None: one is trained on the training part.
        text_column, pair_column, label_column, target_column: where the common names do not say it.
        max_length: most tokens of an input, special ones included (of a block, for language models). None: the task's
            max_seq_len, else what model and tokenizer take, at most 512 (128 for blocks).
        max_target_length: most tokens of a seq2seq target; None: as the input.
        val_split: share of the examples for validation, 0 to 0.5, of every class as large a share.
        random_seed: draws the validation examples; global generators are left alone.
        vocab_size: maximum vocabulary size of a newly trained tokenizer; None: the task's, the model's, else 4,096.
        validation: records of their own for validation, in place of `val_split`; not used when that is 0.
        class_names: the classes in their order, such as those of a trained model; None: those of the task, else of the data,
            sorted. Labels are these names or their numbers from 0 on; of names that are whole numbers, labels are these.
        on_bad_row: what to do with rows without text or label: "error" names them, "skip" passes over and counts them.
        model: the `nn.Module` to be trained; its sizes are limits, and its config is given the names of the classes and the
            special ids of the tokenizer.
        source: what to call the records in the report.
        tokenizer_strategy: how a newly trained tokenizer makes tokens, as for `choose_tokenizer`.
    Returns:
        examples as ids in flat arrays, all of them in memory (about 4 bytes a token); packed blocks for language models. The
        task_spec has the number of classes, and their names in `preprocessing_config["class_names"]`.
    Raises:
        ConfigError: arguments, task and model contradict each other.
        DataTypeError: records, tokenizer or model are something else.
        DataError: it is not clear which column is meant, or rows cannot be used; says which, and what works.
    """
    spec = _checked_spec(task_spec, pair_column, label_column, target_column, on_bad_row)
    check_val_split(val_split)
    _check_arguments(tokenizer, model, random_seed, class_names)
    sizes = _sizes(spec, tokenizer, model, max_length, max_target_length, vocab_size)
    changed: list[str] = []
    if tokenizer is not None:
        if sizes.model_vocab_size:
            check_fits(tokenizer, sizes.model_vocab_size)
        changed = _special_ids(model, tokenizer)
        # RoBERTa's longest input depends on its padding id.
        sizes = _sizes(spec, tokenizer, model, max_length, max_target_length, vocab_size)
    names = {"text": text_column, "pair": pair_column, "label": target_column or label_column}
    parts = _parts(records, validation if val_split else None, spec.task_type or "", names, on_bad_row)
    source = source or type(records).__name__
    if spec.task_type in _LANGUAGE_MODELS:
        blocks = _blocks(parts, spec, tokenizer, sizes, val_split, random_seed, source, tokenizer_strategy)
        blocks.report.notes.extend([*changed, *_special_ids(model, blocks.tokenizer)])
        return blocks

    known = spec.preprocessing_config
    class_names = class_names or known.get("class_values") or known.get("class_names")
    train, held_out, rule, notes = _split(parts, spec, class_names, val_split, random_seed)
    tokenizer, kind, more = _tokenizer(tokenizer, train.part, spec, sizes, tokenizer_strategy)
    spec = _filled(spec, sizes, tokenizer, train)
    _name_classes(model, train.targets.classes)
    changed += _special_ids(model, tokenizer)
    pools_at_end = kind_of_task(spec.task_type).per_sample and _is_encoder_decoder(model)
    changed += _ends(tokenizer, spec.task_type or "", pools_at_end)
    (train_data, train_lost), (held_out_data, held_out_lost) = (
        _encoded(examples, spec, tokenizer, sizes, pools_at_end) for examples in (train, held_out)
    )
    lengths = np.concatenate([train_data.lengths(), held_out_data.lengths()])
    lost = np.array([*train_lost, *held_out_lost])
    report = ExamplesReport(
        source=source, num_rows=sum(part.table.num_rows for part in parts), skipped_rows=sum(part.skipped for part in parts),
        columns=str(train.part.columns), split=rule, num_train=len(train_data), num_validation=len(held_out_data),
        num_train_tokens=train_data.num_tokens, num_validation_tokens=held_out_data.num_tokens,
        max_length=sizes.max_length, median_length=int(np.median(lengths)), longest=int(lengths.max()),
        truncated_examples=int((lost > 0).sum()), lost_tokens=int(lost.sum()), tokenizer=kind, vocab_size=len(tokenizer),
        labels=balance(train.targets, held_out.targets), baseline=baseline(train.targets, held_out.targets),
        notes=[*(note for part in parts for note in part.notes), *notes, *_leaks(train.part, held_out.part), *more, *changed,
               *unknown_note(train_data, tokenizer)],
        targets=target_statistics((train.targets, held_out.targets), (train_data, held_out_data), sizes.max_target_length),
    )  # fmt: skip
    return PreparedData(train_data, held_out_data if len(held_out_data) else None, tokenizer, spec, report)


def _checked_spec(
    task_spec: TaskSpec | str, pair: str | None, label: str | None, target: str | None, on_bad_row: str
) -> TaskSpec:
    """The task. Raises ConfigError that lists everything that does not fit it."""
    spec = TaskSpec(task_spec) if isinstance(task_spec, str) else task_spec
    known = (*LABELLED_TASKS, *_LANGUAGE_MODELS)
    if not isinstance(spec, TaskSpec) or spec.task_type not in known:
        got = repr(task_spec) if isinstance(task_spec, str) else f"task_type={getattr(spec, 'task_type', None)!r}"
        images = (
            " Images come from DatasetRegistry." if getattr(spec, "task_type", "") == "image_classification" else ""
        )
        raise ConfigError(f"prepare_examples makes examples for {', '.join(known)}; got {got}.{images}")
    problems = []
    if target is not None and spec.task_type != "seq2seq":
        problems.append(Problem("target_column", f"is for seq2seq; for {spec.task_type} give label_column"))
    if target is not None and label is not None:
        problems.append(Problem("target_column", "is given together with label_column; give one"))
    if pair is not None and not kind_of_task(spec.task_type).per_sample:
        problems.append(Problem("pair_column", f"is for text_classification and regression, not for {spec.task_type}"))
    if on_bad_row not in ("error", "skip"):
        problems.append(Problem("on_bad_row", f'got {on_bad_row!r}; must be "error" or "skip"', "error"))
    if problems:
        raise ConfigError.from_problems("prepare_examples", problems)
    return spec


def _check_arguments(tokenizer: Any, model: Any, random_seed: Any, class_names: Any) -> None:
    """Raises for arguments of another kind: DataTypeError for objects, ConfigError that lists the settings."""
    if tokenizer is not None and not (callable(tokenizer) and hasattr(tokenizer, "num_special_tokens_to_add")):
        raise DataTypeError(
            f"Expected a transformers tokenizer; got a {type(tokenizer).__name__}. AutoTokenizer.from_pretrained(name) loads "
            "one, AdaptiveTokenizer.load_or_create(vocab_size, tokenizer=path) reads one from a file."
        )
    if model is not None and not hasattr(model, "named_parameters"):
        raise DataTypeError(f"Expected the nn.Module that is to be trained as model; got a {type(model).__name__}.")
    problems = []
    if isinstance(random_seed, bool) or not isinstance(random_seed, Integral) or random_seed < 0:
        problems.append(Problem("random_seed", f"got {random_seed!r}; must be a whole number from 0 on", 42))
    if class_names is not None and (isinstance(class_names, str) or len(set(class_names)) < len(class_names)):
        problems.append(Problem("class_names", f"got {shown(class_names)}; give a list with every class once"))
    if problems:
        raise ConfigError.from_problems("prepare_examples", problems)


def _sizes(
    spec: TaskSpec,
    tokenizer: Any,
    model: Any,
    max_length: int | None,
    max_target_length: int | None,
    vocab_size: int | None,
) -> _Sizes:
    """Resolve lengths and vocabulary size. Raises ConfigError when more is asked for than the model has."""
    takes, vocabulary = (max_seq_len_of(model), vocab_size_of(model)) if model is not None else (None, None)
    usual = BLOCK_SIZE if spec.task_type in _LANGUAGE_MODELS else MAX_LENGTH
    numbers: dict[str, Any] = {
        "max_length": max_length,
        "max_target_length": max_target_length,
        "vocab_size": vocab_size,
    }
    problems = [
        Problem(name, f"got {value!r}; must be a whole number of at least 1, or None")
        for name, value in numbers.items()
        if value is not None and (isinstance(value, bool) or not isinstance(value, Integral) or value < 1)
    ]
    if problems:
        raise ConfigError.from_problems("prepare_examples", problems)
    limits = [usual, takes, getattr(tokenizer, "model_max_length", None)]
    length = max_length or spec.max_seq_len or min(limit for limit in limits if limit)
    asked = vocab_size or spec.vocab_size or vocabulary or VOCAB_SIZE
    if takes is not None and length > takes:
        problems.append(Problem("max_length", f"got {length:,}, but the model takes at most {takes:,} tokens", takes))
    if vocabulary is not None and tokenizer is None and asked > vocabulary:
        problems.append(
            Problem("vocab_size", f"got {asked:,}, but the model takes {vocabulary:,} token ids at most", vocabulary)
        )
    if problems:
        raise ConfigError.from_problems("prepare_examples", problems)
    return _Sizes(length, max_target_length or length, asked, vocabulary or spec.vocab_size)


def _parts(records: Any, validation: Any, task_type: str, names: dict[str, str | None], on_bad_row: str) -> list[Part]:
    """The rows that can be used, and those of validation where they are given."""
    table = as_table(records, task_type)
    columns = find_columns(task_type, table.example(), labelled=kind_of_task(task_type).labelled, **names)
    table = _with_texts(table, columns, task_type)
    parts = [usable_rows(table, columns, task_type, on_bad_row, "records")]
    if validation is not None:
        other = as_table(validation, task_type, "validation")
        missing = [name for name in (columns.text, columns.pair, columns.label) if name and name not in other.names]
        if missing:
            raise DataError(
                f"validation has no column {excerpt(missing[0])}, which records have; its columns are {listed(other.names)}."
            )
        other = _with_texts(other, columns, task_type)
        parts.append(usable_rows(other, columns, task_type, on_bad_row, "validation"))
    return parts


def _with_texts(table: Table, columns: Columns, task_type: str) -> Table:
    """The table with numbers as texts where the task reads texts: a target may well be 2.

    A column of inputs counts only where its first value is a number: a number among texts is rather a bad row.
    """
    example = table.example()
    inputs = [columns.text, columns.pair] if task_type != "token_classification" else []
    texts = [name for name in inputs if name is not None and not isinstance(example[name], str)]
    texts += [columns.label] if task_type == "seq2seq" and columns.label is not None else []
    return table.with_texts(texts, [name for name in texts if name.casefold() in TEXT_NAMES])


def _split(
    parts: list[Part], spec: TaskSpec, class_names: Sequence[Any] | None, val_split: float, seed: int
) -> tuple[_Examples, _Examples, str, list[str]]:
    """Training and validation examples, how they were divided, and notes."""
    label = parts[0].columns.label
    names = class_names or parts[0].table.class_names.get(label or "")
    targets, notes = read_targets([part.labels() for part in parts], spec.task_type or "", names, spec.num_classes)
    first = _Examples(parts[0], targets[0])
    if len(parts) == 2:
        return first, _Examples(parts[1], targets[1]), "validation has records of its own", notes
    strata = targets[0].strata(len(parts[0]))
    train, held_out = split_examples(strata, val_split, seed)
    if not len(held_out):
        return first, first.at(held_out), "all of it for training, no validation (val_split=0)", notes
    group = "class" if targets[0].classes is not None else "range of targets"
    how = f", of every {group} as large a share" if len(np.unique(strata)) > 1 else ""
    rule = f"{len(held_out):,} of {len(strata):,} examples, drawn with seed {seed}{how}, are for validation"
    return first.at(train), first.at(held_out), rule, notes


def _tokenizer(given: Any, train: Part, spec: TaskSpec, sizes: _Sizes, strategy: str) -> tuple[Any, str, list[str]]:
    """The tokenizer, what it is and why, and notes."""
    if given is None:
        texts = train.texts() + (train.labels() if spec.task_type == "seq2seq" else [])
        tokenizer, kind = learn_tokenizer(
            texts, sizes.vocab_size, spec.task_type or "", pairs=train.columns.pair is not None, strategy=strategy
        )
    else:
        tokenizer, kind = given, f"{type(given).__name__} with {len(given):,} tokens (given)"
    smaller = check_fits(tokenizer, sizes.model_vocab_size) if sizes.model_vocab_size else None
    return tokenizer, kind, [smaller] if smaller else []


def _filled(spec: TaskSpec, sizes: _Sizes, tokenizer: Any, train: _Examples) -> TaskSpec:
    """The task with what is known now."""
    classes, values = train.targets.classes, train.targets.values
    kept: dict[str, Any] = {"max_target_length": sizes.max_target_length} if spec.task_type == "seq2seq" else {}
    given = {name: value for name, value in spec.preprocessing_config.items() if name != "class_values"}
    num_classes = spec.num_classes
    if classes is not None:
        kept["class_names"] = list(classes.names)
        # Whole numbers that are not the classes' own: 1 to 5, say. The names alone do not tell that a label 1 is class 0.
        if classes.values not in (classes.names, tuple(range(len(classes)))):
            kept["class_values"] = list(classes.values)
        num_classes = max(num_classes or 0, len(classes))
        if train.targets.several:
            kept["problem_type"] = "multi_label_classification"
    elif isinstance(values, np.ndarray):
        num_classes = 1 if values.ndim == 1 else values.shape[1]
    return spec.replace(
        vocab_size=sizes.model_vocab_size or len(tokenizer), max_seq_len=sizes.max_length, num_classes=num_classes,
        multi_label=True if train.targets.several else spec.multi_label,
        pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else spec.pad_token_id,
        preprocessing_config={**given, **kept},
    )  # fmt: skip


def _name_classes(model: Any, classes: Classes | None) -> None:
    """Tell the model's config what its classes are called. Raises ConfigError when it has another number of them."""
    config: Any = getattr(model, "config", None)
    if classes is None or not hasattr(config, "id2label"):
        return
    if config.num_labels != len(classes):
        raise ConfigError(
            f"the data have {len(classes)} classes, but the model ({type(model).__name__}) has {config.num_labels}. Make it "
            f"with num_labels={len(classes)}, or give class_names with all {config.num_labels} of its classes."
        )
    config.id2label = dict(enumerate(classes.names))
    config.label2id = {name: number for number, name in enumerate(classes.names)}


def _special_ids(model: Any, tokenizer: Any) -> list[str]:
    """Set the special ids of the model's config from the tokenizer; the note on what was changed."""
    note = None if model is None else set_special_ids(model, tokenizer)
    return [] if note is None else [note]


def _is_encoder_decoder(model: Any) -> bool:
    """Whether a classifier pools at the end-of-text token, as BART's and T5's do."""
    return bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False))


def _ends(tokenizer: Any, task_type: str, pools_at_end: bool) -> list[str]:
    """The note on end-of-text tokens that the tokenizer does not add by itself, where the task needs them."""
    if task_type != "seq2seq" and not pools_at_end:
        return []
    what = "target" if task_type == "seq2seq" else "text"
    if adds_end(tokenizer, target=task_type == "seq2seq"):
        return []
    if tokenizer.eos_token_id is None:
        return [
            f"The tokenizer has no end-of-text token: the model cannot learn where a {what} ends. Set tokenizer.eos_token."
        ]
    return [f"The end-of-text token {tokenizer.eos_token!r} was added to every {what}: the tokenizer does not add it."]


def _encoded(
    examples: _Examples, spec: TaskSpec, tokenizer: Any, sizes: _Sizes, pools_at_end: bool
) -> tuple[EncodedExamples, list[int]]:
    """The examples as ids, and the tokens that each of them lost."""
    rows: dict[str, list[Ragged]] = {}
    lost: list[int] = []
    for place, texts, pairs in examples.part.chunks():
        found = _encode(examples, place, texts, pairs, spec, tokenizer, sizes)
        if pools_at_end:
            found = with_end_of_text(found, tokenizer.eos_token_id, sizes.max_length)
        lost += found.lost_tokens
        for name, values in found.rows.items():
            rows.setdefault(name, []).append(Ragged.of(values))
    columns: dict[str, Ragged | np.ndarray] = {name: Ragged.joined(found) for name, found in rows.items()}
    columns.setdefault("input_ids", Ragged.of([]))
    if isinstance(examples.targets.values, np.ndarray):
        columns["labels"] = examples.targets.values
    return EncodedExamples(columns, collator_for(spec, tokenizer)), lost


def _encode(
    examples: _Examples,
    place: slice,
    texts: list[Any],
    pairs: list[Any] | None,
    spec: TaskSpec,
    tokenizer: Any,
    sizes: _Sizes,
) -> Encoded:
    """Some examples as rows of ids."""
    if spec.task_type == "seq2seq":
        targets = examples.part.labels(place)
        return encode_pairs_of_sequences(tokenizer, texts, targets, sizes.max_length, sizes.max_target_length)
    if spec.task_type == "token_classification":
        tags = examples.targets.values
        assert isinstance(tags, list)
        return encode_words(tokenizer, texts, tags[place], sizes.max_length)
    return encode_texts(tokenizer, texts, pairs, sizes.max_length)


def _leaks(train: Part, held_out: Part) -> list[str]:
    """A note on validation examples whose input stands in training too."""
    seen = {hash(text) for _, texts, pairs in train.chunks() for text in _whole(texts, pairs)}
    count = sum(hash(text) in seen for _, texts, pairs in held_out.chunks() for text in _whole(texts, pairs))
    if not count:
        return []
    which = f"{count:,} of {len(held_out):,} validation examples"
    return [f"{which} have an input that training has too, which makes the metrics look better."]


def _whole(texts: list[Any], pairs: list[Any] | None) -> list[tuple[Any, ...]]:
    second = texts if pairs is None else pairs
    return [(text, pair) if isinstance(text, str) else tuple(text) for text, pair in zip(texts, second, strict=True)]


def _blocks(
    parts: list[Part], spec: TaskSpec, tokenizer: Any, sizes: _Sizes, val_split: float, seed: int, source: str, strategy: str
) -> PreparedData:  # fmt: skip
    """Texts for a language model: packed, so that no position is padding."""
    train: Sequence[str]
    held_out: Sequence[str]
    if len(parts) == 2:
        train, held_out, rule = parts[0].texts(), parts[1].texts(), "validation has records of its own"
    else:
        split = split_documents(parts[0].texts(), val_split, seed)
        train, held_out, rule = split.train, split.validation, split.rule
    kind = None
    if tokenizer is None and spec.task_type == "masked_lm":
        tokenizer, kind = learn_tokenizer(train, sizes.vocab_size, "masked_lm", strategy=strategy)
    data = prepare_text(
        train, vocab_size=sizes.vocab_size if tokenizer is None else len(tokenizer), block_size=sizes.max_length,
        model_vocab_size=sizes.model_vocab_size,
        tokenizer=tokenizer, tokenizer_strategy=strategy, val_split=val_split, random_seed=seed,
        validation_documents=held_out, source=source,
        notes=[note for part in parts for note in part.notes],
    )  # fmt: skip
    filled = spec.replace(
        vocab_size=sizes.model_vocab_size or len(data.tokenizer), max_seq_len=sizes.max_length,
        pad_token_id=data.tokenizer.pad_token_id,
    )  # fmt: skip
    assert isinstance(data.report, DataReport)
    report = replace(data.report, split=rule, tokenizer=kind or data.report.tokenizer)
    return replace(data, task_spec=filled, report=report)
