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
    from utils.training import LearningRateSuggestion, Trainer

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


# Steps of a range test in the wizard: the finder's default.
_RATE_STEPS = 100


def find_rate(setup: SetupConfig, model: Any, progress: Progress) -> LearningRateSuggestion:
    """The learning-rate range test on the setup's data: `utils.training.find_learning_rate`. The model is left as it was.

    Raises:
        Cancelled: through `progress`, at a step's end. TrainbookError: what the training itself would raise.
    """
    from utils.data import prepare_data
    from utils.training.engine.callbacks import Callback
    from utils.training.finders import find_learning_rate

    class Reports(Callback):
        def on_step_end(self, step: int, trainer: Trainer, logs: Mapping[str, Any] | None = None) -> None:
            if progress.cancelled:
                trainer.request_stop("cancelled")
                return
            rate = (logs or {}).get("train/learning_rate", float("nan"))
            progress.report(f"Step {step} of at most {_RATE_STEPS}, learning rate {rate:.1e}")

    progress.report("Reading the data")
    data = prepare_data(setup, model)
    with progress.undisturbed():
        progress.report("Copying the model")
        found = find_learning_rate(model, data, training_config=setup, steps=_RATE_STEPS, callbacks=[Reports()])
    progress.raise_if_cancelled()
    return found


def check_model(model: Any, setup: SetupConfig) -> Html:
    """The first tier of checks as a table. The model is left as it was. Raises `TrainbookError` where it has no sizes."""
    from utils.checks import run_all_tier1_tests

    return run_all_tier1_tests(model, setup).to_html()
