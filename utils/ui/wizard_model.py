"""The wizard's model: the one that the notebook gave, or the pretrained or new one that the setup names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from utils.adapters.facts import ModelFacts
from utils.errors import ConfigError
from utils.training.task_kinds import kind_of_task
from utils.ui.choice_names import choice_name
from utils.ui.model_source import load_source, named_facts, source_path
from utils.ui.new_model import create_new_model
from utils.ui.setup_config import SetupConfig
from utils.ui.wizard_steps import facts_of

if TYPE_CHECKING:
    from utils.models.pretrained import Pretrained
    from utils.training.finetuning import TuningPlan


#: Where a model can come from, as the form's menu names it.
MODEL_SOURCES: Mapping[str, str] = {
    "notebook": "the notebook's model",
    "new": "a new model",
    "pretrained": "a pretrained folder or Hub id",
    "run": "a run or export made here",
}
# The start of a sentence about each way of fine-tuning.
_TRAINS = {"full": "Every parameter", "lora": "LoRA", "head": "The head", "last_layers": "The last layers"}


class ModelChoice:
    """Model that a setup trains. One that the setup names is loaded or created when it is first needed.

    Args:
        setup: its `pretrained_model` or `new_model` decides; they may change at any time.
        given: the notebook's model, or None.
    """

    def __init__(self, setup: SetupConfig, given: Any = None) -> None:
        self.setup, self._given = setup, given
        # Key, model, and what its checkpoint did not contain.
        self._made: tuple[Any, Any, Pretrained | None] | None = None

    @property
    def exists(self) -> bool:
        """Whether there is a model to train, loaded or not."""
        return self.setup.names_model or self._given is not None

    @property
    def is_given(self) -> bool:
        """Whether the notebook gave a model."""
        return self._given is not None

    @property
    def is_made(self) -> bool:
        """Whether the model that the setup names is loaded or created."""
        return self.setup.names_model and self._made is not None and self._made[0] == self._key()

    @property
    def model(self) -> Any:
        """The model, or None if there is no model or it is not loaded yet."""
        if not self.setup.names_model:
            return self._given
        return self._made[1] if self.is_made and self._made is not None else None

    @property
    def loaded(self) -> Pretrained | None:
        """The pretrained model that the setup names, with what its checkpoint did not contain; None before `load`."""
        return self._made[2] if self.is_made and self._made is not None else None

    def load(self) -> Any:
        """The model, loaded or created where the setup names it, or None.

        It is made again when its source, the task or the way of fine-tuning has changed since, or the run's name: a new run
        starts from the pretrained weights, or from those that a new model begins with.

        Raises:
            TrainbookError: the model cannot be loaded or created; says what would work.
        """
        if self.setup.names_model and not self.is_made:
            key = self._key()
            self._made = None  # before another one takes as much memory
            if self.setup.new_model is not None:
                self._made = (key, create_new_model(self.setup), None)
            else:
                loaded = load_source(self.setup)
                self._made = (key, loaded.model, loaded)
        return self.model

    @property
    def facts(self) -> ModelFacts | None:
        """Current facts about the model; of one that is not made yet from its files or sizes."""
        if self.setup.names_model and not self.is_made:
            found = named_facts(self.setup)
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
        if self.setup.names_model:
            found = named_facts(self.setup)
            model = None if found is None else found.outline
        if model is None or not callable(getattr(model, "named_modules", None)):
            return None
        from utils.training.finetuning import tuning_plan

        return tuning_plan(model, self.setup.training_config)

    def _key(self) -> tuple[Any, ...]:
        setup = self.setup
        place = (setup.dataset_path, setup.dataset_name, setup.config_name, setup.dataset_split)
        data = (*place, setup.text_column, setup.label_column) if kind_of_task(setup.task).labelled else ()
        if setup.new_model is None:
            source: Any = source_path(setup)
        else:
            source = (sorted(setup.new_model.items()), setup.vocab_size, setup.max_length, setup.random_seed)
        return source, setup.task, data, setup.finetune, setup.lora_rank, setup.lora_alpha, setup.run_name


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


def memory_rows(choice: ModelChoice) -> dict[str, str]:
    """Memory that training the model takes besides activations, and what is not known of it yet, as rows of a table."""
    try:
        plan = choice.tuning()
    except ConfigError:
        return {}  # the Training step reports it
    if plan is None:
        return {}
    optimizer = choice.setup.training_config.optimizer
    what = f"for weights, gradients and {choice_name('optimizer', optimizer)}'s state in fp32; activations come on top"
    rows = {"Training memory": f"{plan.state_bytes / 2**20:,.1f} MiB {what}"}
    has_outputs = kind_of_task(choice.setup.task).has_own_outputs
    if choice.setup.new_model is not None and not choice.is_made and has_outputs:
        rows["Outputs"] = "counted as 2; the model is created with as many as the data have classes, tags or targets"
    return rows
