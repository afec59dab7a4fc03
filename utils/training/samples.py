"""Samples while a model learns, the same at every validation and kept with the run: texts it writes, or what it predicts."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.errors import TrainbookError
from utils.storage import append_line, read_json_lines
from utils.training.engine.callbacks import Callback

if TYPE_CHECKING:
    from utils.training.engine.trainer import Trainer

#: The file in a run's folder that holds one line a validation.
SAMPLES_FILE = "samples.jsonl"

# Tokens of a beginning, and the most it may take to reach the end of a word. Small vocabularies have several tokens a word.
_PROMPT_TOKENS, _MOST_PROMPT_TOKENS = 8, 32
# Blocks that are looked at for a beginning that differs from those before, as questions repeat in some datasets.
_MOST_BLOCKS = 64
# Validation samples whose classes are looked at, to show samples of several.
_MOST_CANDIDATES = 64
# Tokens of a question at most.
_MOST_QUESTION_TOKENS = 256

# Characters besides letters and digits that join the parts of a word.
_IN_WORDS = "'\N{RIGHT SINGLE QUOTATION MARK}-_"

# Called with optimizer steps and the rows of one validation.
Tell = Callable[[int, list[dict[str, Any]]], None]


class SampleTexts(Callback):
    """Lets the model continue fixed beginnings at every validation, each with a random seed of its own.

    A beginning's seed is its position in `prompts`: its continuations at two validations differ only by what the model learned
    in between. Model, mode and the run's random state are as before afterwards.

    Args:
        tokenizer: the model's; its `encode` and `decode` are used.
        prompts: the beginnings.
        max_new_tokens: at most this many tokens are written after each.
        tell: called with each validation's rows, in the thread that trains.
    """

    main_only = True

    def __init__(
        self,
        tokenizer: Any,
        prompts: Sequence[str],
        max_new_tokens: int = 40,
        tell: Tell | None = None,
    ) -> None:
        self.tokenizer, self.prompts, self.max_new_tokens = tokenizer, tuple(prompts), max_new_tokens
        self._tell = tell
        self._works = True

    def on_train_begin(self, trainer: Trainer, logs: dict[str, Any] | None = None) -> None:
        """A new training: what could not write before may do so now."""
        self._works = True

    def on_evaluate_end(self, trainer: Trainer, logs: dict[str, Any] | None = None) -> None:
        """Write, keep and tell. A model that cannot write is reported once and not asked again; training continues."""
        from utils.adapters.generation import generate_text

        if not self._works or trainer.task is None or trainer.task.name != "causal_lm":
            return
        rows: list[dict[str, Any]] = []
        try:
            for seed, prompt in enumerate(self.prompts):
                text = generate_text(trainer.model, self.tokenizer, prompt, self.max_new_tokens, seed=seed)
                rows.append({"prompt": prompt, "text": text})
        except TrainbookError as error:
            self._works = False
            trainer.notice(f"No sample texts: {error}")
            return
        _keep(trainer, rows, self._tell)


class SamplePredictions(Callback):
    """Shows what the model makes of the same validation samples at every validation, for tasks that write no text.

    What a sample looks like is the task's business (`Task.predictions`). Model, mode and random state are as before afterwards.

    Args:
        tokenizer: turns ids into text; None: ids are shown.
        count: how many samples at most, spread over the validation data and its classes, as far as its first samples have them.
        tell: called with each validation's rows {"input", "true", "predicted", "score"}, in the thread that trains.
    """

    main_only = True

    def __init__(self, tokenizer: Any = None, count: int = 3, tell: Tell | None = None) -> None:
        self.tokenizer, self.count = tokenizer, count
        self._tell = tell
        self._works = True
        self._chosen: list[int] | None = None

    def on_train_begin(self, trainer: Trainer, logs: dict[str, Any] | None = None) -> None:
        """A new training: what could not be shown before may be now, and its data may be others."""
        self._works, self._chosen = True, None

    def on_evaluate_end(self, trainer: Trainer, logs: dict[str, Any] | None = None) -> None:
        """Predict, keep and tell. What cannot be predicted is reported once and not tried again; training continues."""
        if not self._works or trainer.task is None or trainer.data is None:
            return
        try:
            if self._chosen is None:
                self._chosen = _chosen_samples(trainer, self.count)
            rows = _predicted(trainer, self.tokenizer or trainer.tokenizer, self._chosen)
        except TrainbookError as error:
            self._works = False
            trainer.notice(f"No sample predictions: {error}")
            return
        if rows:
            _keep(trainer, rows, self._tell)


def _chosen_samples(trainer: Trainer, count: int) -> list[int]:
    """Numbers of the validation samples to show, in order: spread over the data, and over classes where these are learned.

    None of a stream.
    """
    from utils.data.sources import StreamSource

    assert trainer.task is not None
    assert trainer.data is not None
    source, total = trainer.data.validation, trainer.data.num_validation
    if source is None or isinstance(source, StreamSource) or not total:
        return []
    places = _spread(min(count, total), total)
    if trainer.task.label_kind != "class" or len(set(_classes_in(source.take(places)))) == len(places):
        return places
    candidates = _spread(min(_MOST_CANDIDATES, total), total)
    by_class: dict[Any, list[int]] = {}
    for place, label in zip(candidates, _classes_in(source.take(candidates)), strict=False):
        by_class.setdefault(label, []).append(place)
    # The first of each class, then the second of each, and so on: as many classes as there are samples.
    turns = [place for turn in zip_longest(*by_class.values()) for place in turn if place is not None]
    return sorted(turns[: len(places)]) or places


def _spread(count: int, total: int) -> list[int]:
    """`count` of `total` numbers, evenly spread."""
    return [index * total // count for index in range(count)]


def _classes_in(batch: Mapping[str, Any]) -> list[Any]:
    """The class of each sample: a number, the numbers of several classes, or of the tags of its tokens; [] without labels."""
    from utils.data.batch import IGNORED

    labels = batch.get("labels")
    if labels is None:
        return []
    if labels.dim() == 1:
        return list(labels.tolist())
    if labels.is_floating_point():
        return [tuple((row > 0.5).nonzero().flatten().tolist()) for row in labels]
    return [tuple(row[row != IGNORED].unique().tolist()) for row in labels]


def _predicted(trainer: Trainer, tokenizer: Any, places: Sequence[int]) -> list[dict[str, Any]]:
    """Rows of the task's predictions for the validation samples `places`; none for a task that shows none."""
    from utils.adapters.forward import ModelCall
    from utils.adapters.left_as_found import state_kept
    from utils.data.sources import StreamSource
    from utils.training.engine.loss.tasks import Wording

    assert trainer.task is not None
    assert trainer.data is not None
    source = trainer.data.validation
    if source is None or isinstance(source, StreamSource) or not places:
        return []
    batch = source.take(places)
    device = next((parameter.device for parameter in trainer.model.parameters()), None)
    batch = {name: value.to(device) for name, value in batch.items()}
    wording = Wording(tokenizer, _class_names(trainer))
    with state_kept(trainer.model):
        return [asdict(found) for found in trainer.task.predictions(ModelCall(trainer.model), batch, wording)]


def _class_names(trainer: Trainer) -> dict[int, str]:
    """Class number -> name: the task's, else the model's where it was given some."""
    spec = trainer.task_spec
    named = spec.preprocessing_config.get("class_names") if spec is not None else None
    if named:
        return {number: str(name) for number, name in enumerate(named)}
    stated = getattr(getattr(trainer.model, "config", None), "id2label", None) or {}
    # transformers makes up "LABEL_0" where nobody named the classes.
    return {int(number): str(name) for number, name in stated.items() if not str(name).startswith("LABEL_")}


def _keep(trainer: Trainer, rows: list[dict[str, Any]], tell: Tell | None) -> None:
    """Add the rows of one validation to the run's file, and pass them on."""
    step = trainer.state.step
    line = json.dumps({"step": step, "epoch": trainer.state.epoch, "samples": rows})
    try:
        assert trainer.run_dir is not None
        append_line(trainer.run_dir / SAMPLES_FILE, line)
    except OSError as error:
        trainer.notice(f"Samples are shown but not kept: {error.strerror or error}.")
    if tell is not None:
        tell(step, rows)


# What chat templates put around turns, such as <|im_start|> or <|eot_id|>.
_MARK = re.compile(r"<\|\w+\|>")


def without_marks(text: str) -> str:
    """A text without the special tokens of chat templates, for people: who speaks stays."""
    return _MARK.sub("", text)


def as_prompt_and_text(row: Mapping[str, Any]) -> tuple[str, str]:
    """A sample of either kind as a beginning and a text that begins with it, which a view sets apart."""
    if "prompt" in row:
        return without_marks(str(row["prompt"])), without_marks(str(row["text"]))
    shown = f"{row['input']} \N{RIGHTWARDS ARROW} {row['predicted']}"
    known = [f"true: {row['true']}"] if row["true"] else []
    known += [f"{row['score']:.2f}"] if row["score"] is not None else []
    return str(row["input"]), f"{shown} ({', '.join(known)})" if known else shown


def prompts_from(blocks: Any, tokenizer: Any, count: int = 2) -> tuple[str, ...]:
    """The first whole words of some of the validation blocks: beginnings that fit any text and any tokenizer.

    Where only answers are learned, as in conversations, it is all that stands before a block's first answer, so that the model
    answers it. A block that begins within a word, because the text was cut there, contributes the words after it. Text without
    spaces is cut after a fixed number of tokens.

    Args:
        blocks: an indexable dataset of samples with `input_ids` (T,), or None; of others there are no prompts.
        tokenizer: decodes ids; None: no prompts.
        count: how many at most, spread over the blocks. They all differ: where the data repeat one, the next other one is
            taken, as far as it is among the next 64 blocks.
    """
    if blocks is None or tokenizer is None or not len(blocks):
        return ()
    prompts: dict[str, str] = {}  # without the spacing -> as it stands
    for start in (index * len(blocks) // count for index in range(min(count, len(blocks)))):
        for offset in range(min(_MOST_BLOCKS, len(blocks))):
            prompt = _prompt_at(blocks, (start + offset) % len(blocks), tokenizer)
            if prompt is None:
                return ()
            if (known := " ".join(prompt.split())) not in prompts:
                prompts[known] = prompt
                break
    return tuple(prompts.values())


def _prompt_at(blocks: Any, place: int, tokenizer: Any) -> str | None:
    """The beginning of one block; None where it holds no token ids."""
    ids = _ids_of(blocks[place])
    if ids is None:
        return None
    if (question := _question_of(blocks[place], tokenizer)) is not None:
        return question
    before = _ids_of(blocks[place - 1]) if place else None
    first, last = ids[: _MOST_PROMPT_TOKENS + 1], () if before is None else before[-1:]
    return _first_words([int(token) for token in first], [int(token) for token in last], tokenizer)


def _question_of(sample: Any, tokenizer: Any) -> str | None:
    """What stands before a sample's first answer, with the template's tokens; None where all tokens are learned."""
    from utils.data.batch import IGNORED

    ids: Any = _ids_of(sample)
    labels: Any = sample.get("labels") if isinstance(sample, Mapping) else None
    if not hasattr(labels, "dim") or getattr(ids, "shape", None) != labels.shape:  # such as a class of the whole sample
        return None
    learned = [place for place, label in enumerate(labels.tolist()) if label != IGNORED]
    # A document's first token alone is not learned either: nothing stands before it.
    if not learned or not 1 < learned[0] <= _MOST_QUESTION_TOKENS:
        return None
    return str(tokenizer.decode(ids[: learned[0]].tolist()))


def text_from(samples: Any, tokenizer: Any, most_tokens: int = 24) -> str | None:
    """The beginning of the first sample as text, without special tokens.

    Args:
        samples: an indexable dataset of samples with `input_ids` (T,), or None.
        tokenizer: decodes ids.
        most_tokens: length of the beginning.
    Returns:
        The text, or None without samples, token ids in them, or a tokenizer.
    """
    if tokenizer is None or not hasattr(samples, "__getitem__") or not len(samples):
        return None
    ids = _ids_of(samples[0])
    if ids is None:
        return None
    special = frozenset(getattr(tokenizer, "all_special_ids", ()))
    kept = [int(token) for token in ids[: most_tokens + len(special)] if int(token) not in special]
    return str(tokenizer.decode(kept[:most_tokens])).strip() or None


def _first_words(ids: list[int], before: list[int], tokenizer: Any) -> str:
    """About `_PROMPT_TOKENS` of `ids` as text, up to the end of a word, without a word that began in the ids `before`."""
    previous = str(tokenizer.decode(before)) if before else ""
    for count in range(_PROMPT_TOKENS, len(ids)):
        text, longer = str(tokenizer.decode(ids[:count])), str(tokenizer.decode(ids[: count + 1]))
        # Where it is not a continuation, the tokens end within a character.
        ends = longer.startswith(text) and not _within_word(text, longer[len(text) :])
        if ends and (words := _without_cut_word(previous, text)):
            return words
    text = str(tokenizer.decode(ids[:_PROMPT_TOKENS]))
    text = _without_cut_word(previous, text) or text
    if len(ids) <= _PROMPT_TOKENS:
        return text
    parts = text.rsplit(maxsplit=1)
    return parts[0] if len(parts) == 2 else text.rstrip("\N{REPLACEMENT CHARACTER}")


def _without_cut_word(before: str, text: str) -> str:
    """`text` without its first word where that word began in the text `before`; empty where nothing is left."""
    if not _within_word(before, text):
        return text
    return "".join(text.split(maxsplit=1)[1:])


def _within_word(before: str, after: str) -> bool:
    """Whether the place between two pieces of text lies within a word."""
    return all(character.isalnum() or character in _IN_WORDS for character in (before[-1:] or " ", after[:1] or " "))


def _ids_of(sample: Any) -> Any:
    """The token ids of a sample; None where it has none, such as an image or a record with text."""
    if isinstance(sample, Mapping):
        return sample.get("input_ids")
    if isinstance(sample, (tuple, list)) and sample and hasattr(sample[0], "dim"):
        sample = sample[0]
    floating = getattr(sample, "is_floating_point", None)
    return None if floating is not None and floating() else sample


def read_samples(run_dir: Path) -> list[dict[str, Any]]:
    """Rows {"step", "epoch", "samples"} of a run, by step; of a step done twice the last.

    A sample is {"prompt", "text"} of a model that writes, else {"input", "true", "predicted", "score"}.
    """
    path = run_dir / SAMPLES_FILE
    rows = read_json_lines(path) if path.exists() else []
    return [row for _, row in sorted({int(row["step"]): row for row in rows}.items())]
