"""TaskSpec: what is learned, apart from how (`TrainingConfig`) and from which data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Literal, Self

from pydantic import Field

from utils.errors import ConfigError, Problem
from utils.schema import Schema, equal, nearest, plain, shown
from utils.training.task_kinds import TASK_KINDS

Modality = Literal["text", "vision", "audio", "tabular"]

# Every name of a task -> its task type. `register_task_type` adds others.
_TASK_WORDS: dict[str, str] = {word: name for name, kind in TASK_KINDS.items() for word in (name, *kind.words)}


def register_task_type(task_type: str, words: Iterable[str] = ()) -> None:
    """Have `TaskSpec` accept a task type, and other words for it. Called by `register_task`, which gives it an objective."""
    _TASK_WORDS.update(dict.fromkeys((task_type, *words), task_type))


def named_task(word: str) -> str | None:
    """The task type that a word stands for; None for words that are no task's."""
    return _TASK_WORDS.get(word)


class TaskSpec(Schema):
    """Description of a training task: modality, objective, sizes, special ids, metrics.

    `TaskSpec(name, modality)` is enough; what is not given is inferred from the model and the first batch, and the
    inference is stated in the results' notices.
    """

    aliases: ClassVar[Mapping[str, str]] = {"task_name": "name", "num_labels": "num_classes"}

    name: str = Field("task", min_length=1, title="Name", description="Free name of the task.")
    modality: Modality = Field("text", title="Modality", description="What the inputs are.")
    task_type: str | None = Field(
        None, title="Task", description="The objective; None: taken from the name, else from model and batch."
    )
    vocab_size: int | None = Field(
        None, ge=1, title="Vocabulary", description="Token ids run from 0 to vocab_size - 1."
    )
    max_seq_len: int | None = Field(
        None, ge=1, title="Longest input", description="Positions the model can take (tokens)."
    )
    num_classes: int | None = Field(None, ge=1, title="Classes", description="Number of classes or regression outputs.")
    multi_label: bool | None = Field(
        None,
        title="Several classes a sample",
        description="Each class is a yes or no of its own; None: as the labels are.",
    )
    pad_token_id: int | None = Field(
        None, ge=0, title="Padding id", description="Positions with this id are not scored."
    )
    metrics: tuple[str, ...] = Field(
        ("loss",), strict=False, title="Metrics", description="Metrics of interest, by name."
    )
    preprocessing_config: dict[str, Any] = Field(
        default_factory=dict, title="Preprocessing", description="Free settings; pad_token_id is read from here too."
    )

    def __init__(self, /, name: str = "task", modality: str = "text", **values: Any) -> None:
        super().__init__(name=name, modality=modality, **values)

    @classmethod
    def translate(cls, values: dict[str, Any]) -> tuple[dict[str, Any], list[Problem]]:
        values = dict(values)
        problems: list[Problem] = []
        given = values.get("task_type")
        if isinstance(given, str) and given in _TASK_WORDS:
            values["task_type"] = _TASK_WORDS[given]
        elif given is None and isinstance(name := values.get("name"), str) and name in _TASK_WORDS:
            values["task_type"] = _TASK_WORDS[name]
        elif isinstance(given, str):
            guess = nearest(given, _TASK_WORDS)
            hint = f"; did you mean {guess!r}?" if guess else ""
            del values["task_type"]
            message = f"got {shown(given)}; must be one of {', '.join(sorted(_TASK_WORDS))}{hint}"
            problems.append(Problem("task_type", message, guess))
        preprocessing = values.get("preprocessing_config")
        if isinstance(preprocessing, Mapping):
            try:
                values["preprocessing_config"] = preprocessing = plain(preprocessing)
            except ValueError as error:
                problems.append(Problem("preprocessing_config", f"got {shown(preprocessing)}; {error}"))
        if values.get("pad_token_id") is None and isinstance(preprocessing, Mapping):
            values["pad_token_id"] = preprocessing.get("pad_token_id")
        return values, problems

    @classmethod
    def language_modeling(
        cls,
        /,
        name: str = "language_modeling",
        vocab_size: int | None = None,
        max_seq_len: int | None = None,
        **values: Any,
    ) -> Self:
        """Predict each next token (GPT-like models)."""
        values = {"metrics": ("loss", "perplexity", "accuracy"), **values}
        return cls._of("causal_lm", "text", name, values, vocab_size=vocab_size, max_seq_len=max_seq_len)

    @classmethod
    def masked_lm(
        cls, /, name: str = "masked_lm", vocab_size: int | None = None, max_seq_len: int | None = None, **values: Any
    ) -> Self:
        """Predict masked tokens (BERT-like models)."""
        return cls._of("masked_lm", "text", name, values, vocab_size=vocab_size, max_seq_len=max_seq_len)

    @classmethod
    def classification(cls, /, name: str = "classification", num_classes: int | None = None, **values: Any) -> Self:
        """One label for each text."""
        return cls._of("text_classification", "text", name, values, num_classes=num_classes)

    @classmethod
    def token_classification(
        cls, /, name: str = "token_classification", num_classes: int | None = None, **values: Any
    ) -> Self:
        """One label for each token (tagging, named entities)."""
        return cls._of("token_classification", "text", name, values, num_classes=num_classes)

    @classmethod
    def regression(cls, /, name: str = "regression", num_classes: int | None = None, **values: Any) -> Self:
        """One number for each sample, or `num_classes` of them."""
        return cls._of("regression", values.pop("modality", "text"), name, values, num_classes=num_classes)

    @classmethod
    def seq2seq(cls, /, name: str = "seq2seq", vocab_size: int | None = None, **values: Any) -> Self:
        """Sequence-to-sequence (T5-like models)."""
        return cls._of("seq2seq", "text", name, values, vocab_size=vocab_size)

    @classmethod
    def image_classification(
        cls, /, name: str = "image_classification", num_classes: int | None = None, **values: Any
    ) -> Self:
        """One label for each image."""
        return cls._of("image_classification", "vision", name, values, num_classes=num_classes)

    @classmethod
    def _of(cls, task_type: str, modality: str, name: str, values: Mapping[str, Any], **sizes: int | None) -> Self:
        """A spec of this task type. Raises `ConfigError` for a value that names another task type or modality."""
        fixed = {"task_type": task_type, "modality": modality}
        problems = [
            Problem(field, f"got {shown(values[field])}; it is {value!r} here: call TaskSpec(...) for another")
            for field, value in fixed.items()
            if field in values and not equal(values[field], value)
        ]
        if problems:
            raise ConfigError.from_problems(cls.__name__, problems)
        return cls(name, **{**values, **fixed, **sizes})
