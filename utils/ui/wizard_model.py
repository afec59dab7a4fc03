"""The wizard's model: the one that the notebook gave, or the pretrained one that the setup names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from utils.adapters.facts import ModelFacts
from utils.errors import ConfigError
from utils.ui.model_source import load_source, source_facts, source_path
from utils.ui.setup_config import SetupConfig
from utils.ui.wizard_steps import facts_of

if TYPE_CHECKING:
    from utils.models.pretrained import Pretrained
    from utils.training.finetuning import TuningPlan


#: Where a model can come from, as the form's menu names it.
MODEL_SOURCES: Mapping[str, str] = {
    "notebook": "the notebook's model",
    "pretrained": "a pretrained folder or Hub id",
    "run": "a run or export made here",
}
# The start of a sentence about each way of fine-tuning.
_TRAINS = {"full": "Every parameter", "lora": "LoRA", "head": "The head", "last_layers": "The last layers"}


class ModelChoice:
    """Model that a setup trains. A pretrained one is loaded when it is first needed.

    Args:
        setup: its `pretrained_model` decides; it may change at any time.
        given: the notebook's model, or None.
    """

    def __init__(self, setup: SetupConfig, given: Any = None) -> None:
        self.setup, self._given = setup, given
        self._loaded: tuple[Any, Pretrained] | None = None

    @property
    def exists(self) -> bool:
        """Whether there is a model to train, loaded or not."""
        return self.setup.pretrained_model is not None or self._given is not None

    @property
    def model(self) -> Any:
        """The model; None where there is none, or where it is not loaded yet."""
        if self.setup.pretrained_model is None:
            return self._given
        loaded = self.loaded
        return None if loaded is None else loaded.model

    @property
    def loaded(self) -> Pretrained | None:
        """The pretrained model that the setup names, with what its checkpoint did not contain; None before `load`."""
        if self.setup.pretrained_model is None or self._loaded is None or self._loaded[0] != self._key():
            return None
        return self._loaded[1]

    def load(self) -> Any:
        """The model, loaded where it is a pretrained one; None where there is none.

        It is loaded again when its source, the task or the way of fine-tuning has changed since, or the run's name: a new run
        starts from the pretrained weights.

        Raises:
            TrainbookError: the pretrained model cannot be loaded; says what would work.
        """
        if self.setup.pretrained_model is not None and self.loaded is None:
            key = self._key()
            self._loaded = None  # before another one takes as much memory
            self._loaded = (key, load_source(self.setup))
        return self.model

    @property
    def facts(self) -> ModelFacts | None:
        """Current facts about the model; of a pretrained one that is not loaded yet from its files."""
        if self.setup.pretrained_model is not None and self.loaded is None:
            found = source_facts(self.setup)
            return None if found is None else found.model_facts
        return None if self.model is None else facts_of(self.model)

    @property
    def given_facts(self) -> ModelFacts | None:
        """Facts about the notebook's model."""
        return None if self._given is None else facts_of(self._given)

    def tuning(self) -> TuningPlan | None:
        """Trainable parameters under the setup's `finetune`; None where there is no model, or its files are not here.

        Raises:
            ConfigError: the model has no such parts.
        """
        model = self._given
        if self.setup.pretrained_model is not None:
            found = source_facts(self.setup)
            model = None if found is None else found.outline
        if model is None or not callable(getattr(model, "named_modules", None)):
            return None
        from utils.training.finetuning import tuning_plan

        return tuning_plan(model, self.setup.training_config)

    def _key(self) -> tuple[Any, ...]:
        setup = self.setup
        place = (setup.dataset_path, setup.dataset_name, setup.config_name, setup.dataset_split)
        data = (*place, setup.text_column, setup.label_column) if setup.task != "causal_lm" else ()
        return source_path(setup), setup.task, data, setup.finetune, setup.lora_rank, setup.lora_alpha, setup.run_name


def tuning_sentence(choice: ModelChoice) -> str:
    """Describe what the setup's way of fine-tuning trains, and the memory that it saves; "" where no model is known."""
    try:
        plan = choice.tuning()
    except ConfigError as error:
        return str(error)
    if plan is None:
        return ""
    if plan.mode == "full":
        return f"Every parameter is trained: {plan.trained:,}."
    return (
        f"{_TRAINS[plan.mode]}: {plan.trained:,} of {plan.total:,} parameters are trained ({plan.share:.2%}). Gradients and "
        f"optimizer state take {plan.saved_bytes / 2**20:,.1f} MiB less than with every parameter trained."
    )
