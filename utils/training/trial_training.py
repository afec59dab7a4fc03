"""Training a copy of a model for a few steps, in a temporary folder, to find something out."""

from __future__ import annotations

import copy
import tempfile
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.utils.data import DataLoader

from utils.adapters.facts import model_facts
from utils.data.module import UniversalDataModule
from utils.errors import DataError, ModelError, TrainingInterrupted
from utils.training.engine.callbacks import Callback
from utils.training.engine.state import TrainState
from utils.training.engine.trainer import Trainer
from utils.training.training_config import TrainingConfig

if TYPE_CHECKING:
    from utils.training.task_spec import TaskSpec


@dataclass(frozen=True)
class TrialTraining:
    """Inputs of repeated trial trainings."""

    model: nn.Module
    model_config: Any
    config: TrainingConfig
    task_spec: TaskSpec | None
    tokenizer: Any
    data_collator: Any
    train_data: Any

    @classmethod
    def of(
        cls, model: Any, train_data: Any, config: Any, task_spec: TaskSpec | None, tokenizer: Any, data_collator: Any
    ) -> TrialTraining:
        """Build from the user's arguments: a model or a Trainer; rows or prepared data; a config or a setup."""
        config = getattr(config, "training_config", config)
        prepared = train_data if hasattr(train_data, "train") and hasattr(train_data, "task_spec") else None
        # A Trainer checks its arguments, and is the one place that knows the defaults.
        given = model if isinstance(model, Trainer) else Trainer(model, None, config)
        own = given.training_config if config is None else Trainer(given.model, None, config).training_config
        return cls(
            given.model, given.config, own,
            task_spec or given.task_spec or getattr(prepared, "task_spec", None),
            tokenizer or given.tokenizer or getattr(prepared, "tokenizer", None),
            data_collator or given.data_collator,
            train_data if prepared is None else prepared.train,
        )  # fmt: skip

    def data(self) -> UniversalDataModule:
        """The data as the engine sees them; nothing is read from a stream yet."""
        return UniversalDataModule(
            self.train_data, None, self.task_spec, self.tokenizer, self.data_collator, self.config.batch_size,
            max_train_samples=self.config.max_train_samples, block_size=model_facts(self.model).max_length,
        )  # fmt: skip

    def refuse_streams(self) -> None:
        """Raise `DataError` for data that could not be put back to where they were."""
        if isinstance(self.train_data, DataLoader) and not self.data().resumable:
            raise DataError(
                "train_data come in an order of their own, so what is tried out here would be missing in training. Give a "
                "map-style dataset, or a second loader over the same data made for this."
            )

    def train(self, *callbacks: Callback, val_data: Any = None, **changes: Any) -> TrainState:
        """Train a copy of the model in a temporary folder that is removed afterwards. Returns where it ended.

        Args:
            val_data: validated on at the end of each epoch; None: no validation.
            changes: settings that differ from the config's.
        """
        with tempfile.TemporaryDirectory(prefix="trainbook-finder-") as folder:
            config = self.config.replace(
                output_dir=folder, run_name=None, checkpoint_dir=None, max_time_hours=None, save_every_minutes=None,
                use_wandb=False, wandb_project=None, eval_every="epoch", early_stopping_patience=None, warmup_steps=0,
                on_save_error="warn", on_nonfinite="stop", isolate_callbacks=False, auto_batch_size=False,
                export_bundle=False,
                # Never lower than at first, so that no checkpoint is written because it is the best so far.
                monitor="train/learning_rate", mode="min", **changes,
            )  # fmt: skip
            trainer = Trainer(
                self._copy(), self.model_config, config, self.task_spec, tokenizer=self.tokenizer,
                data_collator=self.data_collator, callbacks=callbacks,
            )  # fmt: skip
            try:
                return trainer.train(self.train_data, val_data).state
            except TrainingInterrupted:  # its message names a checkpoint that is gone in a moment
                raise KeyboardInterrupt("interrupted while trying out; the model is as it was") from None

    def _copy(self) -> nn.Module:
        try:
            model = copy.deepcopy(self.model)
        except Exception as error:  # whatever the attributes of a stranger's module raise when they are copied
            raise ModelError(
                f"{type(self.model).__name__} cannot be copied ({type(error).__name__}: {error}), and is only tried out as "
                "a copy. Attributes such as open files or tensors with a graph must not be on the module."
            ) from error
        model.zero_grad(set_to_none=True)
        return model
