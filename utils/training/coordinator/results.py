"""CoordinatorResults: a training's results, with the model as a LightningModule."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from utils.adapters.facts import model_facts
from utils.training.engine.results import TrainingResults

if TYPE_CHECKING:
    from torch import nn

    from utils.adapters.lightning import UniversalModelAdapter
    from utils.data.prepared import Report
    from utils.training.engine.trainer import Trainer


class CoordinatorResults(TrainingResults):
    """TrainingResults, and what was made on the way.

    Attributes:
        model: a UniversalModelAdapter around the trained model, which is its `.model`; made when asked for first.
        trainer: the Trainer that trained it.
        report: what became of the texts; None when the data were token ids or batches already.
    """

    KEYS = (*TrainingResults.KEYS, "trainer", "report")

    def __init__(
        self,
        results: TrainingResults,
        trainer: Trainer,
        report: Report | None,
    ) -> None:
        facts = dict(vars(results))
        self._bare: nn.Module = facts.pop("model")
        vars(self).update(facts)
        self.trainer, self.report = trainer, report
        self._adapter: UniversalModelAdapter | None = None

    @property
    def bare_model(self) -> nn.Module:
        """The module that was given."""
        return self._bare

    @property
    def model(self) -> UniversalModelAdapter:  # type: ignore[override]  # what the engine keeps as an attribute
        """The trained model with `generate` and Lightning's methods."""
        if self._adapter is None:
            from utils.adapters.lightning import UniversalModelAdapter

            config = self.training_config
            self._adapter = UniversalModelAdapter(
                self._bare, config.learning_rate, self._known_tokens(), config.warmup_steps or 0, config.weight_decay,
                self.tokenizer, task_spec=self.task_spec,
            )  # fmt: skip
        return self._adapter

    def _known_tokens(self) -> int | None:
        """The tokenizer's size: a model may have more ids, which nobody could read."""
        if not hasattr(self.tokenizer, "__len__"):
            return None
        return min(len(self.tokenizer), model_facts(self._bare).vocab_size or len(self.tokenizer))

    def __getitem__(self, key: str) -> Any:
        return getattr(self, key) if key in ("trainer", "report") else super().__getitem__(key)
