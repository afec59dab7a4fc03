"""Read a model's sizes from its config or attributes, for models of any library."""

from __future__ import annotations

from typing import Any

from utils.adapters.facts import model_facts


def vocab_size_of(model: Any) -> int | None:
    """Vocabulary size of the model; None if it is unknown.

    The rows of the input embedding that it names (`get_input_embeddings`, as transformers models do), else what its
    config or its first embedding table says.
    """
    return model_facts(model).vocab_size


def max_seq_len_of(model: Any) -> int | None:
    """The most positions that the model says it takes, in tokens; None if it does not say or has no limit."""
    return model_facts(model).max_length
