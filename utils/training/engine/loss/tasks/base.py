"""Base class of tasks, and their registry.

A further task is one class and one registration; it is then accepted in `TaskSpec(task_type=...)` like those that are here:

    @register_task
    class Ranking(Task):
        name = "ranking"

        def count_targets(self, batch): ...
        def __call__(self, model, batch, keep_outputs=False, num_targets=None): ...
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeVar

import torch
from torch import Tensor

from utils.adapters.forward import ModelCall
from utils.data.batch import IGNORED, Batch, Collate
from utils.data.collators import register_collator
from utils.errors import ConfigError, DataError
from utils.schema import shown
from utils.training.engine.loss.objective import Objective
from utils.training.task_spec import TaskSpec, register_task_type
from utils.training.training_config import TrainingConfig

LabelKind = Literal["token", "class", "id", "amount"]

_MOST_SHOWN = 12  # values of a vector that are written out in a sample


@dataclass(frozen=True)
class Prediction:
    """One sample as a model sees it and what it makes of it, for a person to read.

    Attributes:
        input, true, predicted: text; `true` is empty where nothing is known.
        score: the probability (0-1) that the model gives to its prediction, None where there is none.
    """

    input: str
    true: str
    predicted: str
    score: float | None = None


@dataclass(frozen=True)
class Wording:
    """Ids and classes as words.

    Args:
        tokenizer: its `decode` is used; None: ids are written out.
        class_names: class number -> name; classes without one are written as numbers.
    """

    tokenizer: Any = None
    class_names: Mapping[int, str] | None = None

    def text(self, ids: Tensor | Sequence[int]) -> str:
        """Token ids as text; what is not scored (-100) is left out."""
        kept = [int(token) for token in ids if int(token) != IGNORED]
        if self.tokenizer is None:
            return " ".join(map(str, kept))
        return str(self.tokenizer.decode(kept))

    def tokens(self, ids: Tensor | Sequence[int]) -> str:
        """The same with each token by itself, for tokens that do not follow one another."""
        return " | ".join(self.text([token]).strip() for token in map(int, ids) if token != IGNORED)

    def name(self, number: int) -> str:
        """A class's name."""
        return (self.class_names or {}).get(number, str(number))

    def inputs(self, batch: Batch, row: int) -> str:
        """Show one row's input: its text without padding and the tokens that frame it, or the shape of its numbers."""
        ids = batch.get("input_ids")
        if ids is None:
            name, values = next((name, value) for name, value in batch.items() if name != "labels")
            return f"{name} {tuple(values[row].shape)}"
        mask = batch.get("attention_mask")
        return self.text(
            self._unframed(ids[row] if mask is None or mask.shape != ids.shape else ids[row][mask[row] != 0])
        )

    def _unframed(self, ids: Tensor) -> list[int]:
        """The ids without those that only mark the beginning and the end of a text, of which nobody wrote any."""
        marks = {getattr(self.tokenizer, f"{name}_token_id", None) for name in ("bos", "cls", "eos", "sep", "pad")}
        inner = [place for place, token in enumerate(ids.tolist()) if token not in marks]
        return ids[inner[0] : inner[-1] + 1].tolist() if inner else ids.tolist()

    @staticmethod
    def numbers(values: Tensor) -> str:
        """A number, or a row of numbers, with four digits."""
        row = values.flatten().tolist()
        more = ", …" if len(row) > _MOST_SHOWN else ""
        return ", ".join(f"{value:.4g}" for value in row[:_MOST_SHOWN]) + more


class Task(Objective):
    """Base class: everything that is particular to one task. One file in this folder each.

    Attributes:
        name: the task type in a TaskSpec.
        words: other names under which a TaskSpec takes it.
        over_tokens: whether the loss is over tokens of a vocabulary, so that it has a perplexity.
        loss_unit: the unit of the loss.
        label_kind: what a label numbers: "token" or "class", of which the model has so many; "id": they are ids like the
            inputs; "amount": it numbers nothing.
        tried_first: whether one sample is run before training starts, so that mismatches are reported then.
    """

    name: ClassVar[str]
    words: ClassVar[tuple[str, ...]] = ()
    over_tokens: ClassVar[bool] = False
    loss_unit: ClassVar[str] = "nats per target"
    label_kind: ClassVar[LabelKind] = "amount"
    tried_first: ClassVar[bool] = True

    @classmethod
    def from_spec(cls, spec: TaskSpec, config: TrainingConfig) -> Task:
        """The task as spec and config want it. Here: without any setting."""
        return cls()

    @staticmethod
    def collator(spec: TaskSpec, tokenizer: Any) -> Collate:
        """Collate function of the task, where it has its own; `utils.data.collators` has those of the others."""
        raise NotImplementedError

    def predictions(self, model: ModelCall, batch: Batch, wording: Wording) -> list[Prediction]:
        """Predict each row of `batch`, in evaluation mode and without gradients. Here: nothing."""
        return []


T = TypeVar("T", bound=type[Task])

_TASKS: dict[str, type[Task]] = {}


def register_task(task: T) -> T:
    """Make a task known by its name; also as a class decorator. A later one of the same name takes the place of the earlier.

    Raises:
        ConfigError: it is no subclass of `Task`, or has no name.
    """
    name = getattr(task, "name", None)
    if not (isinstance(task, type) and issubclass(task, Task)) or not isinstance(name, str) or not name.isidentifier():
        raise ConfigError(
            f"register_task takes a subclass of Task whose `name` is an identifier, such as 'ranking'; got {shown(task)} with "
            f"name {shown(name)}"
        )
    register_task_type(name, task.words)
    _TASKS[name] = task
    if task.collator is not Task.collator:
        register_collator(name, task.collator)
    return task


def find_task(name: str | None) -> type[Task]:
    """The task of that name. Raises `ConfigError` that lists those there are."""
    task = _TASKS.get(name or "")
    if task is None:
        raise ConfigError(
            f"task_type={name!r} has no objective; available: {', '.join(sorted(_TASKS))}. A further one is a subclass of Task "
            "under @register_task (utils.training.engine.loss.tasks)."
        )
    return task


def make_task(spec: TaskSpec, config: TrainingConfig) -> Task:
    """The task of `spec.task_type`, ready to be trained. Raises `ConfigError` as `find_task`."""
    return find_task(spec.task_type).from_spec(spec, config)


def labels_of(batch: Mapping[str, Tensor], task: str, dims: tuple[int, ...], wanted: str) -> Tensor:
    """The batch's labels. Looks at their shape only, so nothing waits for the device.

    Args:
        task: its name in the message; dims: how many dimensions labels may have; wanted: what they should be, in words.
    Raises:
        DataError: there are none, or they have another number of dimensions.
    """
    labels = batch.get("labels")
    if labels is None or labels.dim() not in dims:
        raise DataError(f"{task} needs labels: {wanted}; the batch has {shapes_of(batch)}.")
    return labels


def whole_labels_of(batch: Mapping[str, Tensor], task: str, dims: tuple[int, ...], wanted: str) -> Tensor:
    """The same for labels that number classes or tokens. Raises `DataError` for fractions, too."""
    labels = labels_of(batch, task, dims, wanted)
    if labels.is_floating_point():
        raise DataError(
            f"{task} needs whole numbers as labels: {wanted}; got {str(labels.dtype)[6:]} of shape {tuple(labels.shape)}. "
            "Convert them with .long(), or, where they are regression targets, set task_type='regression'."
        )
    return labels


def shapes_of(batch: Mapping[str, Tensor]) -> str:
    """Names, shapes and formats of a batch's tensors, for a message."""
    described = [f"{name} {tuple(tensor.shape)} {str(tensor.dtype)[6:]}" for name, tensor in batch.items()]
    return ", ".join(described) or "nothing"


def float_ids_hint(batch: Mapping[str, Tensor]) -> str:
    """Hint for a batch without token ids whose floats are whole numbers from 0 on; else ""."""
    rows = batch.get("pixel_values")
    if "input_ids" in batch or rows is None or rows.dim() != 2 or not rows.numel():
        return ""
    if not bool(((rows >= 0) & (rows == rows.round())).all()):
        return ""
    return " The samples hold whole numbers as floats: token ids must be whole numbers (int64), so convert them with .long()."


def flattening_hint(outputs: Tensor, batch: Mapping[str, Tensor]) -> str:
    """Hint for outputs that still have the shape of an image, or another input of several dimensions; else ""."""
    inputs = next((tensor for name, tensor in batch.items() if name != "labels"), None)
    if inputs is None or inputs.dim() < 3 or outputs.dim() != inputs.dim() or outputs.shape[:-1] != inputs.shape[:-1]:
        return ""
    return (
        " They still have the shape of the input: the last layer was applied to each of its rows. Flatten before the linear "
        "layer (nn.Flatten()), or pool."
    )


def summed(logits: Tensor) -> Tensor:
    """Logits in the format in which losses are computed: fp32, so that a sum is never rounded to half precision; fp64 stays."""
    return logits if logits.dtype == torch.float64 else logits.float()
