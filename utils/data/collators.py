"""Samples -> batches, by task: who registers a collate function for a task type, and who asks for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from utils.data.examples import Collate

if TYPE_CHECKING:
    from utils.training.task_spec import TaskSpec

MakeCollate = Callable[["TaskSpec", Any], "Collate | None"]

_MAKERS: dict[str, MakeCollate] = {}


def register_collator(task_type: str, make: MakeCollate) -> None:
    """Have `collator_for` use `make(task_spec, tokenizer)` for a task type. A later registration replaces an earlier one."""
    _MAKERS[task_type] = make


def collator_for(task_spec: TaskSpec | None, tokenizer: Any = None) -> Collate | None:
    """The collate function of a task; None where nobody registered one."""
    make = _MAKERS.get((task_spec.task_type if task_spec is not None else None) or "")
    return None if make is None or task_spec is None else make(task_spec, tokenizer)
