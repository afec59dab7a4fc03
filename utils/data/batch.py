"""A batch: a dict of tensors, named as transformers names them; and the label of what is not scored."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from utils.errors import DataTypeError, first_line

#: Label of a position that is not scored, as in torch and transformers.
IGNORED = -100

Batch = dict[str, Tensor]
Collate = Callable[[list[Any]], Any]


@runtime_checkable
class PreparingCollate(Protocol):
    """A collate function in two stages: what it draws at random for a sample, it draws before samples are put together."""

    def prepare(self, sample: Any) -> Any:
        """One sample, ready to be collated. Called with torch's generator seeded for this sample."""
        ...

    def collate(self, samples: list[Any]) -> Any:
        """Prepared samples as a batch."""
        ...

    def __call__(self, samples: list[Any]) -> Any:
        """Both stages."""
        ...


class ColumnCollate(Protocol):
    """A collate function that can do without single samples where data are columns of tensors."""

    def of_columns(self, inputs_B: Tensor, labels_B: Tensor | None) -> Batch | None:
        """The batch that the rows of these columns give as samples (inputs, labels), or (inputs,), to the last bit.

        Args:
            inputs_B, labels_B: B rows, B at least 1; the tensors become the batch's.
        Returns:
            None where it takes the samples themselves, one by one.
        Raises:
            DataError: no sample of this kind can be in a batch; one by one, they say which.
        """
        ...


def as_batch(value: Any) -> Batch:
    """Convert the output of a collate function or loader to a dict of tensors named as in transformers."""
    if isinstance(value, Mapping):
        return {str(name): _as_tensor(str(name), entry) for name, entry in value.items()}
    if isinstance(value, Tensor):
        return {_input_name(value): value}
    if isinstance(value, (tuple, list)) and value and all(isinstance(entry, Tensor) for entry in value):
        if len(value) == 1:
            return {_input_name(value[0]): value[0]}
        if len(value) == 2:
            return {_input_name(value[0]): value[0], "labels": value[1]}
    raise DataTypeError(
        f"Expected a batch to be a dict of tensors, a tensor, or a pair (inputs, labels); got {described(value)}. "
        "Give a data_collator that returns a dict with input_ids (or pixel_values) and labels."
    )


def _as_tensor(name: str, entry: Any) -> Tensor:
    try:
        return torch.as_tensor(entry)
    except (TypeError, ValueError, RuntimeError) as error:
        if isinstance(entry, (tuple, list)) and all(isinstance(part, Tensor) for part in entry):
            raise DataTypeError(
                f"{name!r} of a batch is {described(entry)}, as torch's default_collate makes of samples that hold lists of "
                'numbers. Have samples hold tensors (of a Hugging Face dataset: .with_format("torch")), or give the DataLoader '
                "a collate_fn."
            ) from error
        raise DataTypeError(
            f"{name!r} of a batch is {described(entry)}, which cannot become a tensor ({first_line(error)}). Remove {name!r} "
            "from the samples, or give a data_collator that leaves it out or turns it into numbers."
        ) from error


def _input_name(tensor: Tensor) -> str:
    return "pixel_values" if tensor.is_floating_point() else "input_ids"


def described(value: Any) -> str:
    """The kind of a value for messages, with its keys, its beginning or the kind of its entries."""
    kind = f"a {type(value).__name__}"
    if isinstance(value, Mapping):
        return f"{kind} with keys {sorted(map(str, value))[:8]}"
    if isinstance(value, (str, bytes)):
        return f"{kind} {value[:40]!r}"
    if isinstance(value, (tuple, list)) and value:
        return f"{kind} of {type(value[0]).__name__}"
    return kind
