"""Rules about the plan: how many steps there are, and of what."""

from __future__ import annotations

from utils.training.diagnosis.record import RunRecord
from utils.training.diagnosis.rules import Outcome, found, passed, rule, unknown


@rule(
    "accumulation",
    sees="Gradients are added up over more batches than an epoch has, so that there are hardly any steps.",
    threshold="gradient_accumulation_steps is larger than the batches of an epoch, or half of them or more and the "
    "run has fewer than 20 steps",
    source="each epoch ends with a step; recipes need hundreds of steps",
    at_start=True,
)
def accumulation(run: RunRecord) -> Outcome:
    micro = int(run.facts.get("accumulation") or run.config.gradient_accumulation_steps)
    number, size, total = run.facts.get("num_train"), run.facts.get("batch_size"), run.planned
    if micro == 1:
        return passed("Gradients are not accumulated.", accumulation=1)
    if not number or not size or total is None:
        return unknown("the number of samples or steps is not known")
    batches = -(-int(number) // int(size))
    measured = {"accumulation": micro, "batches_per_epoch": batches, "planned_steps": total}
    longer = micro > batches
    if not longer and (total >= 20 or batches > 2 * micro):
        return passed(f"A step takes {micro} of {batches} batches; {total} steps are planned.", **measured)
    if not longer and batches <= 2 * micro and run.config.max_steps is not None:
        return passed(f"The step limit is {run.config.max_steps}.", **measured)
    return found(
        f"gradient_accumulation_steps={micro}, and an epoch has {batches} batches: {total} steps in the whole run"
        + (", one an epoch." if longer else "."),
        f"Set gradient_accumulation_steps={max(1, batches // 50)}, or train for more epochs.", measured, {"steps": 20},
    )  # fmt: skip
