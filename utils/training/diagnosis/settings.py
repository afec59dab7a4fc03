"""Rules about the plan: how many steps there are, and of what."""

from __future__ import annotations

from utils.training.diagnosis.record import RunRecord
from utils.training.diagnosis.rules import Outcome, found, passed, rule, unknown

#: Optimizer steps that are too few for anything to be learned.
_HARDLY_ANY = 5


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


@rule(
    "number of steps",
    sees="The run ended as planned after so few steps that nothing could be learned.",
    threshold=f"at most {_HARDLY_ANY} steps without a step limit, and the loss is no better than the baseline",
    source="Adam moves a weight by about the learning rate a step; relative to the run: its baseline",
)
def number_of_steps(run: RunRecord) -> Outcome:
    measured = {"steps": run.done}
    if not run.ended or run.config.max_steps is not None or run.done > _HARDLY_ANY or not len(run.losses):
        return passed(f"{run.done} steps were taken.", **measured)
    if not run.no_better_than_guess:
        return unknown(
            "the loss is better than that of a model that ignores its inputs, or there is none to compare with"
        )
    number, size = run.facts.get("num_train"), run.facts.get("batch_size")
    of_data = f" ({number:,} samples, {size} in a batch, epochs={run.config.epochs})" if number and size else ""
    return found(
        f"The whole run had {run.done} optimizer {'step' if run.done == 1 else 'steps'}{of_data}: too few to learn anything.",
        "Raise epochs, or lower batch_size or gradient_accumulation_steps.", measured, {"steps": _HARDLY_ANY},
    )  # fmt: skip
