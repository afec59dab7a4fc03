"""evaluate_generation: a model answers held-out examples, and its answers are scored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from utils.adapters.batched_generation import write_after
from utils.adapters.decoding import is_encoder_decoder
from utils.adapters.facts import model_facts
from utils.data.conversations.answers import end_of_turn_id
from utils.data.conversations.layouts import Conversation, read_conversations
from utils.data.conversations.rendering import Renderer
from utils.data.encoding import encode_texts
from utils.data.labelled.table import as_table
from utils.data.read.task_columns import find_columns
from utils.errors import ConfigError, DataError, ModelError
from utils.models.origins import tokenizer_of
from utils.schema import shown
from utils.training.evaluation.report import GeneratedExample, GenerationReport
from utils.training.evaluation.text_scores import METRICS, make_scorers


@dataclass(frozen=True)
class _Task:
    """Prompts as ids and as text, what is expected after each, and the token that ends it."""

    kind: str
    ids: list[list[int]]
    prompts: list[str]
    expected: list[str]
    end_id: int | None


def evaluate_generation(
    model: Any, held_out: Any, tokenizer: Any = None, *, metrics: Sequence[str] = METRICS, max_new_tokens: int = 256,
    batch_size: int = 16, layout: str | None = None, max_examples: int | None = None, text_column: str | None = None,
    target_column: str | None = None,
) -> GenerationReport:  # fmt: skip
    """Let a model write the answers of held-out examples, greedily, and compare them with the data's.

    What is asked follows from model and data:

    - an encoder-decoder reads a text and writes its target ("seq2seq");
    - with a chat template, the last answer of each conversation is written again ("conversations"), after the same prompt as in
      training. Every layout of `utils.data.conversations` is one, prompt and completion included;
    - without a chat template, records of prompt and completion are continued as they are ("completions").

    Args:
        model: an `nn.Module`, or the `TrainingResults` of a run.
        held_out: records that the model was not trained on: a Hugging Face Dataset, a DataFrame, a list of dicts or a dict of
            columns; or `Conversation`s.
        tokenizer: None: that of the results, or the one that came with a pretrained model.
        metrics: of `exact_match`, `rouge_l` (needs rouge-score), `chrf` and `bleu` (need sacrebleu).
        max_new_tokens: a text that is longer is cut, and has not ended by itself.
        batch_size: prompts that go through the model at once.
        layout: how records hold a conversation, where two could be meant.
        max_examples: only the first so many.
        text_column, target_column: for an encoder-decoder, where the columns' names do not say it.
    Raises:
        ConfigError, DataError: arguments, tokenizer and data do not fit together.
        MissingPackageError: a metric's package is not installed (extra `eval`).
    """
    model, tokenizer = _model_and_tokenizer(model, tokenizer)
    for name, value in (("max_new_tokens", max_new_tokens), ("batch_size", batch_size), ("max_examples", max_examples)):
        if (value is not None or name != "max_examples") and (
            isinstance(value, bool) or not isinstance(value, int) or value < 1
        ):
            raise ConfigError(f"{name}: got {shown(value)}; must be a whole number, at least 1.")
    scorers = make_scorers(metrics)  # a missing package is reported before anything is generated
    if is_encoder_decoder(model):
        task = _pairs(model, tokenizer, held_out, text_column, target_column, max_examples)
    else:
        task = _answers(tokenizer, held_out, layout, max_examples)
    context = model_facts(model).max_length
    texts = write_after(
        model, task.ids, max_new_tokens, end_id=task.end_id, vocab_size=len(tokenizer), batch_size=batch_size,
        pad_id=tokenizer.pad_token_id,
    )  # fmt: skip
    written = [str(tokenizer.decode(one.ids, skip_special_tokens=True)).strip() for one in texts]
    expected = [text.strip() for text in task.expected]
    scores = {name: score(written, expected) for name, score in scorers.items()}
    examples = tuple(
        GeneratedExample(
            prompt, wanted, text, one.ended, len(one.ids),
            {name: found.each[number] for name, found in scores.items() if found.each is not None},
        )
        for number, (prompt, wanted, text, one) in enumerate(zip(task.prompts, expected, written, texts, strict=True))
    )  # fmt: skip
    too_long = 0 if context is None or task.kind == "seq2seq" else sum(len(ids) >= context for ids in task.ids)
    notes = (
        [f"{too_long:,} prompts fill the {context:,} positions of the model; it sees their ends only."]
        if too_long
        else []
    )
    return GenerationReport(
        task.kind, {name: found.value for name, found in scores.items()},
        {name: found.signature for name, found in scores.items()},
        None if task.end_id is None else sum(one.ended for one in texts) / len(texts), max_new_tokens, examples,
        tuple(notes),
    )  # fmt: skip


def _model_and_tokenizer(model: Any, tokenizer: Any) -> tuple[nn.Module, Any]:
    if not isinstance(model, nn.Module):
        results, model = model, getattr(model, "model", None)
        if not isinstance(model, nn.Module):
            raise ModelError(
                f"evaluate_generation takes an nn.Module or the results of a training; got a {type(results).__name__}."
            )
        tokenizer = getattr(results, "tokenizer", None) if tokenizer is None else tokenizer
    tokenizer = tokenizer_of(model) if tokenizer is None else tokenizer
    if tokenizer is None:
        raise ConfigError("evaluate_generation needs the tokenizer that the model was trained with: tokenizer=...")
    return model, tokenizer


def _answers(tokenizer: Any, held_out: Any, layout: str | None, most: int | None) -> _Task:
    if isinstance(held_out, (list, tuple)) and held_out and isinstance(held_out[0], Conversation):
        conversations = list(held_out)
    else:
        conversations = read_conversations(held_out, layout).conversations
    conversations = conversations[:most]
    expected = [str(one.messages[-1]["content"]) for one in conversations]
    if getattr(tokenizer, "chat_template", None):
        renderer = Renderer(tokenizer)
        prompts = [renderer.prompt(one.messages[:-1]) for one in conversations]
        kind, end_id = "conversations", end_of_turn_id(tokenizer)
    else:
        longer = next((one.row for one in conversations if len(one.messages) != 2), None)
        if longer is not None:
            raise ConfigError(
                f"row {longer} has several turns, and the tokenizer has no chat template to write them with; "
                "utils.data.conversations.set_chat_template gives it one."
            )
        prompts = [str(one.messages[0]["content"]) for one in conversations]
        kind, end_id = "completions", tokenizer.eos_token_id
    ids = [list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]) for text in prompts]
    return _Task(kind, ids, prompts, expected, end_id)


def _pairs(
    model: nn.Module, tokenizer: Any, held_out: Any, text: str | None, target: str | None, most: int | None
) -> _Task:
    table = as_table(held_out, "seq2seq")
    columns = find_columns("seq2seq", table.example(), text=text, label=target)
    assert columns.label is not None
    rows = range(table.num_rows if most is None else min(most, table.num_rows))
    prompts, expected = ([_text(value, name, row) for row, value in zip(rows, table.read(name, rows), strict=True)]
                         for name in (columns.text, columns.label))  # fmt: skip
    ids = encode_texts(tokenizer, prompts, max_length=model_facts(model).max_length).rows["input_ids"]
    end_id = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else getattr(tokenizer, "sep_token_id", None)
    return _Task("seq2seq", ids, prompts, expected, end_id)


def _text(value: Any, column: str, row: int) -> str:
    if not isinstance(value, str):
        raise DataError(f"row {row}: column {column!r} holds no text but {shown(value)}.")
    return value
