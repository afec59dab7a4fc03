"""FastBPETrainer: `train_bpe` with its settings in one place, sizes by name, and an estimate of the time it takes."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MethodType
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar

from pydantic import Field

from utils.errors import ConfigError, Problem
from utils.schema import Schema, nearest
from utils.tokenization.bpe import smallest_bpe_vocabulary, train_bpe
from utils.tokenization.cache import cached_tokenizer
from utils.tokenization.fast import TrainbookTokenizer
from utils.tokenization.special_tokens import SPECIAL_TOKENS, check_special_tokens
from utils.tokenization.texts import TextCounts, as_sequence, checked_texts, count_texts, texts_of

P = ParamSpec("P")
R = TypeVar("R")

#: Vocabulary sizes by name.
PRESETS = {"small": 5_000, "medium": 10_000, "large": 25_000, "xlarge": 50_000}

# Characters that an estimate trains on: enough for the merges to be counted, about half a second on one core.
_SAMPLE = 500_000


class BPETrainerConfig(Schema):
    """Settings for training a BPE tokenizer.

    Raises:
        ConfigError: a value is out of range, or an argument unknown; lists every problem.
    """

    vocab_size: int = Field(
        10_000, title="Vocabulary", description="Most tokens, special ones included; a short text gives fewer."
    )
    min_frequency: int = Field(
        2, ge=1, title="Smallest count", description="A pair that occurs less often is not merged."
    )
    special_tokens: tuple[str, ...] = Field(
        SPECIAL_TOKENS,
        title="Special tokens",
        description="Padding, unknown, beginning and end of text, then any others.",
    )
    show_progress: bool = Field(False, title="Progress", description="Show the progress bar of tokenizers.")

    @classmethod
    def translate(cls, values: dict[str, Any]) -> tuple[dict[str, Any], list[Problem]]:
        """A list of special tokens is as good as a tuple."""
        names = values.get("special_tokens")
        return ({**values, "special_tokens": tuple(names)} if isinstance(names, list) else values), []

    @classmethod
    def contradictions(cls, values: Mapping[str, Any], given: Mapping[str, Any]) -> list[Problem]:
        """The special tokens have their roles, and the vocabulary holds them and every byte."""
        names = values["special_tokens"]
        try:
            check_special_tokens(names)
        except ConfigError as error:
            return [Problem("special_tokens", str(error))]
        smallest = smallest_bpe_vocabulary(names)
        if values["vocab_size"] >= smallest:
            return []
        message = (
            f"got {values['vocab_size']:,}; must be at least {smallest:,}: every byte and {len(names)} special tokens"
        )
        return [Problem("vocab_size", message, smallest)]

    @classmethod
    def get_preset(cls, name: str, **changes: Any) -> BPETrainerConfig:
        """The settings called "small" (5,000 tokens), "medium" (10,000), "large" (25,000) or "xlarge" (50,000).

        Raises:
            ConfigError: an unknown name.
        """
        if name not in PRESETS:
            guess = nearest(str(name), tuple(PRESETS))
            hint = f" Did you mean {guess!r}?" if guess else ""
            raise ConfigError(f"got the preset {name!r}; there are {', '.join(PRESETS)}.{hint}")
        return cls(**{"vocab_size": PRESETS[name], **changes})


class _AlsoOnTheClass(Generic[P, R]):
    """A method that can be called on the class as well, where it works on an instance with default settings."""

    def __init__(self, method: Callable[Concatenate[Any, P], R]) -> None:
        self._method = method
        self.__doc__ = method.__doc__

    def __get__(self, instance: object | None, owner: type) -> Callable[P, R]:
        return MethodType(self._method, owner() if instance is None else instance)


class FastBPETrainer:
    """Learns byte-level BPE tokenizers (`train_bpe`), on all cores.

    Args:
        config: the settings; None: 10,000 tokens.
    """

    def __init__(self, config: BPETrainerConfig | None = None) -> None:
        self.config = config or BPETrainerConfig()

    @classmethod
    def from_preset(cls, name: str) -> FastBPETrainer:
        """A trainer with the settings of that name."""
        return cls(BPETrainerConfig.get_preset(name))

    @_AlsoOnTheClass
    def train_on_dataset(
        self, texts: Any, vocab_size: int | None = None, special_tokens: Sequence[str] | None = None,
        cache_dir: Any = None, min_frequency: int | None = None, show_progress: bool | None = None,
    ) -> TrainbookTokenizer:  # fmt: skip
        """Learn a tokenizer from `texts`. Also `FastBPETrainer.train_on_dataset(texts, vocab_size=...)`, on the class.

        Args:
            texts: a list of texts, a column or a dataset; an iterator is read into memory where there is a `cache_dir`.
            cache_dir: folder in which the tokenizer is kept for the same texts and settings; None: not kept.
            vocab_size, special_tokens, min_frequency, show_progress: instead of the config's.
        Raises:
            DataError, DataTypeError: there is no text, or something else among the texts.
            ConfigError: as `BPETrainerConfig`.
        """
        given = {
            "vocab_size": vocab_size, "min_frequency": min_frequency, "show_progress": show_progress,
            "special_tokens": None if special_tokens is None else tuple(check_special_tokens(special_tokens)),
        }  # fmt: skip
        changes = {name: value for name, value in given.items() if value is not None}
        trainer = FastBPETrainer(BPETrainerConfig(**{**self.config.model_dump(), **changes}))
        wanted = texts_of(texts)
        if cache_dir is None:
            return trainer.train_with_streaming(wanted)
        kept = as_sequence(wanted)
        settings = {"strategy": "bpe", **trainer.config.model_dump(exclude={"show_progress"})}
        return cached_tokenizer(cache_dir, settings, kept, lambda: (trainer.train_with_streaming(kept), ""))[0]

    def train_with_streaming(self, iterator: Iterable[str]) -> TrainbookTokenizer:
        """Learn from texts that are read once, one after the other: what is held is how often each word occurs.

        Raises: as `train_on_dataset`.
        """
        texts = iter(checked_texts(texts_of(iterator)))
        first = next((text for text in texts if text and not text.isspace()), None)
        if first is None:
            count_texts([])
        config = self.config
        rest = itertools.chain([first or ""], texts)
        return train_bpe(
            rest, config.vocab_size, config.min_frequency, config.special_tokens, show_progress=config.show_progress
        )

    @staticmethod
    def validate_texts(texts: Any) -> TextCounts:
        """Read all texts, as training would, and count them.

        Raises:
            DataTypeError: one is no text; DataError: one is no valid Unicode, or none holds any text.
        """
        return count_texts(texts_of(texts))

    @_AlsoOnTheClass
    def estimate_training_time(self, texts: Any, vocab_size: int | None = None) -> float:
        """Seconds that training takes on this machine, measured on up to 500,000 characters spread over the texts.

        Reading and counting words grow with the text, learning the merges with the number of different words: about the
        square root of the text (Heaps' law). Where the sample is the whole text, the time is that of the training itself.
        """
        counts = count_texts(texts := as_sequence(texts_of(texts)))
        sample = _sample(texts, counts.num_characters)
        times_more = counts.num_characters / max(1, sum(map(len, sample)))
        size = vocab_size or self.config.vocab_size
        counting_s = _seconds(lambda: train_bpe(sample, smallest_bpe_vocabulary(), show_progress=False))
        merging_s = max(0.0, _seconds(lambda: train_bpe(sample, size, show_progress=False)) - counting_s)
        return float(counting_s * times_more + merging_s * times_more**0.5)


def _sample(texts: Sequence[str], num_characters: int) -> list[str]:
    """The texts, or the beginnings of all of them or of many, about `_SAMPLE` characters in all."""
    if num_characters <= _SAMPLE:
        return list(texts)
    step = max(1, len(texts) // 1000)
    chosen = range(0, len(texts), step)
    each = max(1, _SAMPLE // len(chosen))
    return [texts[number][:each] for number in chosen]


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
