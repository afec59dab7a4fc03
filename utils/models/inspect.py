"""What a model says about its sizes, whoever wrote it."""

from __future__ import annotations

from typing import Any

from utils.adapters.facts import model_facts


def vocab_size_of(model: Any) -> int | None:
    """How many token ids the model takes; None if that is unknown.

    The rows of the input embedding that it names (`get_input_embeddings`, as transformers models do), else what its
    config or its first embedding table says.
    """
    rows = _input_embedding_rows(model)
    return model_facts(model).vocab_size if rows is None else rows


def max_seq_len_of(model: Any) -> int | None:
    """The most positions that the model says it takes, in tokens; None if it does not say or has no limit."""
    return model_facts(model).max_length


def _input_embedding_rows(model: Any) -> int | None:
    named = getattr(model, "get_input_embeddings", None)
    if not callable(named):
        return None
    try:
        rows = getattr(named(), "num_embeddings", None)
    except NotImplementedError:  # transformers' way of saying that there is none
        return None
    return rows if isinstance(rows, int) else None
