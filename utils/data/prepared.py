"""PreparedData: what every way of preparing data returns."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from utils.data.conversations.report import ConversationsReport
    from utils.data.encoded import EncodedExamples
    from utils.data.mixed_examples import MixedExamples
    from utils.data.mixture import MixtureReport
    from utils.data.packing import TokenBlocks
    from utils.data.text.report import DataReport, ExamplesReport
    from utils.data.text.splitting import Split
    from utils.training.task_spec import TaskSpec

    #: The report of any kind of data.
    Report: TypeAlias = DataReport | ExamplesReport | ConversationsReport | MixtureReport


@dataclass(frozen=True)
class PreparedData:
    """Data that are ready to train on.

    Attributes:
        train: what to train on: blocks of tokens (`TokenBlocks`) for language models, `MixedExamples` for
            a mixture, else `EncodedExamples`.
        validation: the same, never seen in training; None when `val_split` is 0.
        tokenizer: given, or learned from the training part; to be saved with the model.
        task_spec: the task with these sizes.
        report: what became of the data; `data.report.show()`.
        texts: the documents of both parts, for `utils.checks.check_data_quality(data)`; None where records were given.
        roles: of conversations, whose turn each token of the first rows of `train` belongs to; None for padding.
    """

    train: TokenBlocks | EncodedExamples | MixedExamples
    validation: TokenBlocks | EncodedExamples | MixedExamples | None
    tokenizer: PreTrainedTokenizerFast
    task_spec: TaskSpec
    report: Report
    texts: Split | None = field(default=None, repr=False, compare=False)
    roles: tuple[tuple[str | None, ...], ...] = field(default=(), repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.validation is not None:
            self.validation.unigram_loss = self.report.unigram_loss

    def show_samples(self, n: int = 3) -> None:
        """Show the first `n` training samples as the model gets them: tokens, labels, masks."""
        from utils.data.text.preview import show_samples

        show_samples(self, n)
