"""One validation of all held-out data, and of each dataset of a mixture."""

from __future__ import annotations

from collections.abc import Callable

from utils.data.module import UniversalDataModule
from utils.training.engine.bits_per_byte import ValidationBytes
from utils.training.engine.compute.assembly import Parts
from utils.training.engine.hardware.memory import Pieces
from utils.training.engine.metrics import Sums, metrics_of
from utils.training.engine.step import validation_sums


def validate(
    parts: Parts,
    data: UniversalDataModule,
    poll: Callable[[], None],
    pieces: Pieces,
    counter: ValidationBytes | None = None,
) -> tuple[Sums, dict[str, float]]:
    """The sums of a validation and its metrics; of a mixture also the loss of each dataset, as `val/loss/<name>`.

    Args:
        poll: called before each batch; may raise to give up.
        pieces: how many samples fit at once; made smaller when memory runs out.
        counter: counts the bytes of the targets.
    """
    names: tuple[str | None, ...] = data.validation_names or (None,)
    sums_of: dict[str | None, Sums] = {}
    for name in names:
        batches = data.validation_batches(name)
        seen = batches if counter is None else counter.watching(batches, continued=bool(sums_of))
        sums_of[name] = validation_sums(parts, seen, poll, pieces)
    if None in sums_of:
        return sums_of[None], metrics_of(sums_of[None], parts.objective, "val")
    total = Sums()
    for sums in sums_of.values():
        total.add(sums.loss, sums.targets, sums.counts)
    metrics = metrics_of(total, parts.objective, "val")
    for name, sums in sums_of.items():
        own = metrics_of(sums, parts.objective, "val")
        metrics |= {f"val/loss/{name}": own["val/loss"]} if "val/loss" in own else {}
    return total, metrics
