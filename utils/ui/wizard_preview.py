"""Measurements of the wizard on request: the text as the model will see it, and the model itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from utils.ui.background import Progress
from utils.ui.setup_config import SetupConfig
from utils.views.html import Html

if TYPE_CHECKING:
    from utils.data.text.preview import SampleView

# Tokens of a block that are shown, and blocks.
_TOKENS, _BLOCKS = 48, 3


@dataclass(frozen=True)
class DataPreview:
    """The data of a setup, prepared.

    Attributes:
        rows: their statistics, as the report has them.
        blocks: of texts, the beginnings of the first training blocks, each as (the text, its tokens with marks between them).
        samples: of conversations and texts with labels, the first training samples.
    """

    rows: Mapping[str, str]
    blocks: tuple[tuple[str, str], ...] = ()
    samples: tuple[SampleView, ...] = ()


def preview_data(setup: SetupConfig, model: Any = None) -> DataPreview:
    """Read the data, learn the tokenizer or take the model's, and encode them, just as training will.

    Raises:
        ConfigError, DataError, HubError: they cannot be read or prepared; says what would work.
    Not covered: a large text takes as long as it takes for training; it is read whole.
    """
    from utils.data import TokenBlocks, prepare_data, preview_batch

    data = prepare_data(setup, model)
    if not isinstance(data.train, TokenBlocks):
        return DataPreview(data.report.rows(), samples=tuple(preview_batch(data, _BLOCKS)))
    shown = []
    for number in range(min(_BLOCKS, len(data.train))):
        (ids_T,) = data.train.take([number])["input_ids"]
        (attended_T,) = data.train.attention_mask([number])
        ids = ids_T[attended_T.bool()].tolist()[:_TOKENS]
        tokens = _tokens(data.tokenizer, ids)
        if padding := int((attended_T == 0).sum()):
            tokens += f"| … {padding:,} positions of padding"
        shown.append((str(data.tokenizer.decode(ids)), tokens))
    return DataPreview(data.report.rows(), tuple(shown))


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
