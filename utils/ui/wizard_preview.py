"""What the wizard measures when asked: the text as the model will see it, and the model itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from utils.ui.background import Progress
from utils.ui.setup_config import SetupConfig
from utils.views.html import Html

# Tokens of a block that are shown, and blocks.
_TOKENS, _BLOCKS = 48, 3


@dataclass(frozen=True)
class DataPreview:
    """The text of a setup, prepared.

    Attributes:
        rows: its statistics, as `DataReport.rows` has them.
        blocks: the beginnings of the first training blocks, each as (the text, its tokens with marks between them).
    """

    rows: Mapping[str, str]
    blocks: tuple[tuple[str, str], ...]


def preview_data(setup: SetupConfig, model: Any = None) -> DataPreview:
    """Read the text, learn the tokenizer and pack the blocks, just as training will.

    Raises:
        ConfigError, DataError, HubError: it cannot be read or prepared; says what would work.
    Not covered: a large text takes as long as it takes for training; it is read whole.
    """
    from utils.data import TokenBlocks, prepare_data

    data = prepare_data(setup, model)
    assert isinstance(data.train, TokenBlocks)
    blocks = data.train.blocks[:_BLOCKS, :_TOKENS].tolist()
    shown = tuple((str(data.tokenizer.decode(ids)), _tokens(data.tokenizer, ids)) for ids in blocks)
    return DataPreview(data.report.rows(), shown)


def _tokens(tokenizer: Any, ids: list[int]) -> str:
    """Token by token. A line's end is shown, and a token that is a part of a character is its id."""
    pieces = [tokenizer.decode([token_id]) for token_id in ids]
    return "|".join(
        f"<{token_id}>" if "\ufffd" in piece else piece.replace("\n", "⏎")
        for token_id, piece in zip(ids, pieces, strict=True)
    )


def estimate_rows(setup: SetupConfig, model: Any, progress: Progress | None = None) -> Mapping[str, str]:
    """The time that training takes on this machine and the memory that it needs, measured: `utils.ui.estimate`."""
    from utils.ui.estimate import estimate_training

    return estimate_training(setup, model, progress).rows()


def check_model(model: Any, setup: SetupConfig) -> Html:
    """The first tier of checks as a table. The model is left as it was. Raises `TrainbookError` where it has no sizes."""
    from utils.checks import run_all_tier1_tests

    return run_all_tier1_tests(model, setup).to_html()
