"""prepare_conversations: records with roles -> rows of tokens with the answers as targets, and a report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from utils.adapters.special_ids import set_special_ids
from utils.data.batch import IGNORED
from utils.data.conversations.layouts import Conversation, ReadConversations, read_conversations
from utils.data.conversations.packing import Truncated, keeps_segments_apart, pack_rows, rows_of, truncate
from utils.data.conversations.rendering import Renderer, RenderingNotes, TokenizedConversation, TrainOn
from utils.data.conversations.report import ConversationsReport
from utils.data.conversations.roles import token_roles
from utils.data.conversations.shortening import with_shorter_prompt
from utils.data.conversations.templates import CHAT_TEMPLATES, set_chat_template
from utils.data.encoded import EncodedExamples, Ragged
from utils.data.labelled.learned_tokenizer import VOCAB_SIZE
from utils.data.prepared import PreparedData
from utils.data.text.splitting import check_val_split, split_examples
from utils.data.text_collator import TextCollator
from utils.data.unknown_tokens import unknown_note
from utils.errors import ConfigError, DataError, Problem
from utils.models.inspect import max_seq_len_of, vocab_size_of
from utils.schema import shown
from utils.tokenization.adaptive import check_fits, choose_tokenizer
from utils.tokenization.special_tokens import SPECIAL_TOKENS
from utils.training.finetuning import note_new_tokens
from utils.training.task_spec import TaskSpec

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

#: Longest row where neither arguments, model nor tokenizer say one, tokens.
MAX_LENGTH = 1024

# Rows of which `PreparedData.roles` says whose turn each token is.
_SHOWN_ROWS = 8


@dataclass(frozen=True)
class _Sizes:
    max_length: int
    vocab_size: int
    model_vocab_size: int | None


@dataclass(frozen=True)
class _Part:
    """Training or validation: its conversations as tokens, after truncation."""

    num_conversations: int
    num_answers: int
    longest: int
    truncated: Truncated
    shortened: int

    @property
    def num_tokens(self) -> int:
        return sum(map(len, self.truncated.kept))


def prepare_conversations(
    records: Any, tokenizer: PreTrainedTokenizerFast | None = None, *, model: Any = None, layout: str | None = None,
    chat_template: str | None = None, train_on: TrainOn = "assistant", max_length: int | None = None,
    pack: Literal["auto"] | bool = "auto", vocab_size: int | None = None, val_split: float = 0.1, random_seed: int = 42,
    validation: Any = None, on_bad_row: Literal["error", "skip"] = "error", source: str | None = None,
    shorten_prompts: bool = False, tokenizer_strategy: str = "auto",
) -> PreparedData:  # fmt: skip
    """Conversations, ready to train a causal language model on: the loss is on the assistant's turns, their ends included.

    Args:
        records: a Hugging Face Dataset, a DataFrame, a list of dicts or a dict of columns, in one of `LAYOUTS`.
        tokenizer: a fast tokenizer, the model's own; None: one is trained on the training part, with "chatml".
        model: the `nn.Module` to be trained; its sizes are limits, and its config is given the tokenizer's special ids.
        layout: one of `LAYOUTS`; None: found by the columns.
        chat_template: a name of CHAT_TEMPLATES; None: the tokenizer's own, else the first built-in one that fits.
        train_on: "assistant": every answer; "last": the last answer of each conversation; "all": every token.
        max_length: tokens of a row; None: what model and tokenizer take, at most 1,024.
        pack: put several conversations in a row, with positions that begin again at 0. "auto": where the model keeps them
            apart (`keeps_segments_apart`), else one a row, padded.
        vocab_size: maximum vocabulary size of a newly trained tokenizer; None: the model's, else 4,096.
        tokenizer_strategy: how a newly trained tokenizer makes tokens, as for `choose_tokenizer`.
        val_split: share of the conversations for validation, 0 to 0.5.
        random_seed: draws the validation conversations.
        validation: records of their own for validation, in place of `val_split`; not used when that is 0.
        on_bad_row: "error" names rows that cannot be used, "skip" leaves them out and counts them.
        source: what to call the records in the report.
        shorten_prompts: cut a prompt at its end where it and its answer do not fit into a row, as for articles that are to be
            summarized. False: such conversations are left out, and counted.
    Raises:
        ConfigError: arguments, tokenizer and model contradict each other.
        DataError: rows cannot be used, no answer fits `max_length`, or nothing is left to train on.
    """
    check_val_split(val_split)
    if pack not in ("auto", True, False):
        raise ConfigError(f'got pack={shown(pack)}; must be True, False or "auto".')
    sizes = _sizes(tokenizer, model, max_length, vocab_size)
    read = read_conversations(records, layout, on_bad_row)
    train, held_out, rule = _split(read, validation, val_split, random_seed, on_bad_row)
    tokenizer, kind = _tokenizer(tokenizer, train, chat_template, sizes, tokenizer_strategy)
    used = len(tokenizer)
    template = set_chat_template(tokenizer, chat_template, sizes.model_vocab_size)
    if model is not None:
        note_new_tokens(model, range(used, len(tokenizer)))
    notes = [note for note in (_smaller(tokenizer, sizes), _changed(model, tokenizer)) if note]
    renderer = Renderer(tokenizer, train_on)
    parts = [
        _part(renderer, conversations, sizes.max_length, on_bad_row, shorten_prompts)
        for conversations in (train, held_out)
    ]
    _check_targets(parts, sizes.max_length)
    notes += _stop_ids(model, renderer.notes.end_ids)
    if shortened := sum(part.shortened for part in parts):
        notes.append(f"{shortened:,} prompts were cut at their end, so that they fit into a block with their answers.")
    packed = pack is True or (pack == "auto" and model is not None and keeps_segments_apart(model))
    if pack is True and model is not None and not keeps_segments_apart(model):
        raise ConfigError(
            f"pack=True, but {type(model).__name__} lets the conversations of a block see each other: its attention does not "
            "follow position_ids. Use pack=False, or pack='auto'."
        )
    if pack == "auto" and not packed:
        reason = "no model is given" if model is None else f"{type(model).__name__} would let them see each other"
        notes.append(f"Each block holds one conversation: {reason}.")
    pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else (tokenizer.eos_token_id or 0)
    members = [_members(part, sizes.max_length, packed) for part in parts]
    data = [_examples(*part, sizes.max_length, pad_id, packed) for part in zip(parts, members, strict=True)]
    for examples in data:
        # Where every token is a target, nothing says where answers begin.
        examples.end_ids = frozenset() if train_on == "all" else frozenset(renderer.notes.end_ids)
    roles = _first_roles(renderer, train, parts[0], members[0], len(data[0].columns["input_ids"][0]) if packed else 0)
    kept = [one for part in parts for one in part.truncated.kept]
    report = ConversationsReport(
        source=source or type(records).__name__, layout=str(read.layout), num_rows=read.num_rows,
        skipped_rows=sum(read.skipped.values()), split=rule, num_train=parts[0].num_conversations,
        num_validation=parts[1].num_conversations, num_train_tokens=parts[0].num_tokens,
        num_validation_tokens=parts[1].num_tokens, num_answers=sum(part.num_answers for part in parts),
        supervised_share=sum(int(one.targets.sum()) for one in kept) / max(1, sum(map(len, kept))),
        ended_share=sum(_is_ended(one) for one in kept) / max(1, len(kept)),
        truncated=sum(part.truncated.shortened for part in parts), dropped=sum(part.truncated.dropped for part in parts),
        lost_tokens=sum(part.truncated.lost_tokens for part in parts), max_length=sizes.max_length,
        longest=max(part.longest for part in parts), packed=packed, num_rows_packed=sum(map(len, data)),
        fill=sum(map(len, kept)) / max(1, sum(_positions(one) for one in data)), chat_template=template, tokenizer=kind,
        vocab_size=len(tokenizer), unigram_loss=_unigram_loss(parts, len(tokenizer)),
        notes=[*notes, *unknown_note(data[0], tokenizer), *_notes(read, renderer.notes, tokenizer, train)],
    )  # fmt: skip
    spec = TaskSpec.language_modeling(
        name="conversations", vocab_size=sizes.model_vocab_size or len(tokenizer), max_seq_len=sizes.max_length,
        pad_token_id=tokenizer.pad_token_id, preprocessing_config={"most_answers": _most_answers(train)},
    )  # fmt: skip
    return PreparedData(data[0], data[1] if len(data[1]) else None, tokenizer, spec, report, roles=roles)


def _sizes(tokenizer: Any, model: Any, max_length: int | None, vocab_size: int | None) -> _Sizes:
    takes, available = (None, None) if model is None else (max_seq_len_of(model), vocab_size_of(model))
    problems = [
        Problem(name, f"got {shown(value)}; must be a whole number of at least {least}, or None", None)
        for name, value, least in (("max_length", max_length, 2), ("vocab_size", vocab_size, 1))
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least)
    ]
    if not problems and max_length is not None and takes is not None and max_length > takes:
        problems.append(
            Problem("max_length", f"got {max_length:,}, but the model takes at most {takes:,} tokens", takes)
        )
    if not problems and vocab_size is not None and available is not None and vocab_size > available:
        problems.append(
            Problem("vocab_size", f"got {vocab_size:,}, but the model takes {available:,} token ids", available)
        )
    if problems:
        raise ConfigError.from_problems("prepare_conversations", problems)
    limits = [MAX_LENGTH, takes, getattr(tokenizer, "model_max_length", None)]
    return _Sizes(
        max_length or min(limit for limit in limits if limit), vocab_size or available or VOCAB_SIZE, available
    )


def _split(
    read: ReadConversations, validation: Any, val_split: float, seed: int, on_bad_row: Literal["error", "skip"]
) -> tuple[list[Conversation], list[Conversation], str]:
    if val_split == 0:
        return read.conversations, [], "all of it for training, no validation (val_split=0)"
    if validation is not None:
        other = read_conversations(validation, read.layout.name, on_bad_row)
        return read.conversations, other.conversations, "validation has records of its own"
    # Equal conversations stay together: a copy of a training conversation validates nothing.
    keys: dict[str, int] = {}
    groups = np.array([keys.setdefault(repr(one.messages), len(keys)) for one in read.conversations])
    if len(keys) < 2:
        raise DataError(
            "all conversations are the same, so none can be kept for validation; give more, or val_split=0."
        )
    _, held_out = split_examples(np.zeros(len(keys), dtype=np.int64), val_split, seed)
    is_held_out = np.isin(groups, held_out)
    train, kept = ([one for one, chosen in zip(read.conversations, is_held_out == part, strict=True) if chosen]
                   for part in (False, True))  # fmt: skip
    return train, kept, f"{len(kept):,} of {len(groups):,} conversations, drawn with seed {seed}, are for validation"


def _tokenizer(
    given: Any, train: Sequence[Conversation], template: str | None, sizes: _Sizes, strategy: str
) -> tuple[PreTrainedTokenizerFast, str]:
    if given is not None:
        return given, f"{type(given).__name__} with {len(given):,} tokens (given)"
    choice = choose_tokenizer(_texts(train), sizes.vocab_size, strategy, special_tokens(template))
    return choice.tokenizer, choice.reason


def special_tokens(template: str | None = None) -> tuple[str, ...]:
    """The special tokens of a tokenizer that is trained for conversations in this chat template ("chatml" by default)."""
    tokens = CHAT_TEMPLATES[template or "chatml"][1] if template in (None, *CHAT_TEMPLATES) else ()
    return (*SPECIAL_TOKENS, *tokens)


def training_texts(records: Any, validation: Any, layout: str | None, val_split: float, random_seed: int) -> list[str]:
    """The texts from which `prepare_conversations` learns a tokenizer when it is given the same; bad rows are left out."""
    read = read_conversations(records, layout, "skip")
    return _texts(_split(read, validation, val_split, random_seed, "skip")[0])


def _texts(train: Sequence[Conversation]) -> list[str]:
    texts = [message["content"] for one in train for message in one.messages if message["content"]]
    # The template's own words must have tokens, whatever the texts are.
    return [*texts, "system\nuser\nassistant\n", "System: User: Assistant: Tool:"]


def _smaller(tokenizer: Any, sizes: _Sizes) -> str | None:
    return None if sizes.model_vocab_size is None else check_fits(tokenizer, sizes.model_vocab_size)


def _changed(model: Any, tokenizer: Any) -> str | None:
    return None if model is None else set_special_ids(model, tokenizer)


def _stop_ids(model: Any, end_ids: set[int]) -> list[str]:
    """Have the model's generation stop at the tokens that end answers; the note on what was changed."""
    generation: Any = getattr(model, "generation_config", None)
    if generation is None or not end_ids:
        return []
    known = generation.eos_token_id
    before = [] if known is None else list(known) if isinstance(known, (list, tuple)) else [known]
    missing = sorted(end_ids - set(before))
    if not missing:
        return []
    generation.eos_token_id = [*before, *missing]
    return [
        f"Generation stops at the tokens that end answers, too: generation_config.eos_token_id is {[*before, *missing]}."
    ]


def _part(
    renderer: Renderer, conversations: Sequence[Conversation], max_length: int, on_bad_row: str, shorten: bool
) -> _Part:
    samples: list[TokenizedConversation] = []
    count = shortened = 0
    trial = Renderer(renderer.tokenizer, renderer.train_on)  # whose notes nobody reads
    for conversation in conversations:
        try:
            if shorten and (shorter := with_shorter_prompt(trial, conversation, max_length)) is not None:
                conversation, shortened = shorter, shortened + 1
            samples += renderer(conversation)
        except DataError as error:
            if on_bad_row == "error":
                raise DataError(
                    f'row {conversation.row}: {error} Repair it, or leave such rows out with on_bad_row="skip".'
                ) from error
        else:
            count += 1
    answers = sum(len(one.ends) for one in samples)
    longest = max(map(len, samples), default=0)
    return _Part(count, answers, longest, truncate(samples, max_length), shortened)


def _check_targets(parts: Sequence[_Part], max_length: int) -> None:
    """Raises DataError when there is nothing to train on."""
    for name, part in zip(("training", "validation"), parts, strict=True):
        found = part.truncated
        if part.num_conversations and not any(one.targets.any() for one in found.kept):
            if found.dropped:
                raise DataError(
                    f"no answer of the {name} conversations fits max_length={max_length:,} with its question; the longest "
                    f"conversation has {part.longest:,} tokens. Raise max_length."
                )
            raise DataError(
                f"no token of the {name} conversations is a target: the chat template marks none of the assistant's turns "
                "(0 % supervised). Use chat_template='chatml', or train_on='all'."
            )
    if not parts[0].truncated.kept:
        raise DataError("no conversation is left to train on: the chat template refuses every one of them.")


def _members(part: _Part, length: int, packed: bool) -> list[list[int]]:
    """The conversations of each row, by number."""
    lengths = [len(one) for one in part.truncated.kept]
    return rows_of(lengths, length) if packed else [[number] for number in range(len(lengths))]


def _first_roles(
    renderer: Renderer,
    conversations: Sequence[Conversation],
    part: _Part,
    members: Sequence[Sequence[int]],
    length: int,
) -> tuple[tuple[str | None, ...], ...]:
    """Role of each token of the first rows. `length`: of a row that is filled up; 0: rows end with their text."""
    by_row = {one.row: one for one in conversations}
    found = []
    for numbers in members[:_SHOWN_ROWS]:
        kept = (part.truncated.kept[number] for number in numbers)
        roles = [role for one in kept for role in token_roles(renderer, by_row[one.row], one)]
        found.append((*roles, *([None] * (length - len(roles)))))
    return tuple(found)


def _examples(part: _Part, members: list[list[int]], length: int, pad_id: int, packed: bool) -> EncodedExamples:
    kept = part.truncated.kept
    collate = TextCollator(pad_id)
    if packed:
        return EncodedExamples(pack_rows(kept, length, pad_id, members), collate)
    labels = [np.where(one.targets, one.ids, IGNORED).tolist() for one in kept]
    return EncodedExamples(
        {"input_ids": Ragged.of([one.ids.tolist() for one in kept]), "labels": Ragged.of(labels)}, collate
    )


def _positions(data: EncodedExamples) -> int:
    """Positions of all rows; of rows of their own length, their tokens."""
    return data.num_tokens


def _is_ended(one: TokenizedConversation) -> bool:
    """Whether the last target is where an answer ends."""
    targets = np.flatnonzero(one.targets)
    return bool(len(targets)) and bool(one.ends) and int(targets[-1]) + 1 == one.ends[-1]


def _unigram_loss(parts: Sequence[_Part], vocab_size: int) -> float | None:
    """Cross-entropy of the validation targets under the frequencies of the training targets, add-one smoothed."""
    train, held_out = (
        np.concatenate([one.ids[one.targets] for one in part.truncated.kept] or [np.zeros(0, np.int32)])
        for part in parts
    )
    if not len(held_out):
        return None
    size = max(vocab_size, int(max(train.max(), held_out.max())) + 1)
    counts_V = np.bincount(train, minlength=size) + 1.0
    return float(np.mean(np.log(counts_V.sum()) - np.log(counts_V[held_out])))


def _most_answers(train: Sequence[Conversation]) -> int:
    """Answers of the longest training conversation."""
    return max((conversation.num_answers for conversation in train), default=0)


def _notes(read: ReadConversations, seen: RenderingNotes, tokenizer: Any, train: Sequence[Conversation]) -> list[str]:
    notes = [f"{count:,} rows were left out: {reason}." for reason, count in read.skipped.items()]
    if read.trimmed:
        notes.append(f"{read.trimmed:,} conversations end with a turn nobody answers; those turns were removed.")
    if _most_answers(train) == 1:
        notes.append(
            "Every training conversation has one answer: questions that follow up on an answer are not learned."
        )
    if seen.rewritten:
        notes.append(
            f"The chat template writes earlier turns differently once others follow ({seen.rewritten:,} conversations), so "
            "each answer is a sample of its own, as the model sees it when it answers."
        )
    if seen.merged:
        notes.append(f"{seen.merged:,} answers share their first token with the prompt; that token is not trained on.")
    if seen.appended_ends:
        notes.append(
            f"The chat template ends answers with no special token; {tokenizer.eos_token!r} was added to "
            f"{seen.appended_ends:,} of them, or the model would not learn to stop."
        )
    if seen.unmarked_ends:
        notes.append(
            f"{seen.unmarked_ends:,} answers have no end: neither the chat template nor the tokenizer has an end token, so the "
            "model cannot learn to stop. Set tokenizer.eos_token."
        )
    if seen.extra_prompt:
        notes.append(
            f"The generation prompt of the chat template has text that {seen.extra_prompt:,} answers do not begin with (a "
            "reasoning block, say); generate with a prompt that ends as the training data do."
        )
    bos_id = tokenizer.bos_token_id
    if bos_id is not None and train:
        text = tokenizer.apply_chat_template(list(train[0].messages), tokenize=False)
        if tokenizer(text, verbose=False)["input_ids"][:2] == [bos_id, bos_id]:
            notes.append(
                "The chat template writes the beginning-of-text token, and the tokenizer adds another by default: tokenize "
                "rendered text with add_special_tokens=False, as training does."
            )
    return notes
