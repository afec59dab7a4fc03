"""Rules about time and memory that are paid for nothing. Short runs have nothing to gain here."""

from __future__ import annotations

from utils.training.diagnosis.record import RunRecord
from utils.training.diagnosis.rules import Outcome, found, passed, rule, unknown

#: Seconds of a run that must be wasted before it is worth a finding.
WORTH_S = 60.0
#: Seconds that a run must take before unused memory is reported: a larger batch then saves minutes.
LONG_S = 600.0


def _seconds(run: RunRecord) -> float:
    return float(sum(row.get("time/epoch_s", 0.0) for row in run.epochs))


@rule(
    "padding",
    sees="Most positions of the batches are padding.",
    threshold="80 % of the positions; or half of them, once that costs a minute",
    source="a padded position costs as much as a token",
)
def padding(run: RunRecord) -> Outcome:
    share = run.facts.get("padding")
    if share is None:
        return unknown("the data are no rows of tokens")
    wasted = share * _seconds(run)
    measured = {"padding_share": share, "wasted_s": wasted}
    if share < 0.5 or (share < 0.8 and wasted < WORTH_S):
        return passed(f"{share:.0%} of the positions are padding.", **measured)
    return found(
        f"{share:.0%} of the positions in the batches are padding"
        + (f": about {wasted:.0f} s of the run." if wasted >= 1 else "."),
        "Pad to the longest sample of each batch instead of a fixed length, group samples of similar length, "
        "or pack several into "
        "one row.",
        measured, {"padding_share": 0.5, "wasted_s": WORTH_S},
    )  # fmt: skip


@rule(
    "data loading",
    sees="Training waits for its data.",
    threshold="half of the time, and a minute or more",
    source="measured in the training loop: time until the next batch is there",
)
def data_loading(run: RunRecord) -> Outcome:
    rows = [row for row in run.epochs if "time/loading_s" in row]
    total = sum(row["time/epoch_s"] for row in rows)
    if not rows or total <= 0:
        return unknown("no epoch is finished, or its times were not recorded")
    waited = sum(row["time/loading_s"] for row in rows)
    measured = {"loading_s": waited, "epochs_s": total}
    if waited < 0.5 * total or waited < WORTH_S:
        return passed(f"{waited / total:.0%} of the time went into loading.", **measured)
    return found(
        f"Training waited for data in {waited:.0f} of {total:.0f} s ({waited / total:.0%}).",
        f"Raise num_workers (now {run.config.num_workers}), or prepare the samples once and keep them.", measured,
        {"share": 0.5, "seconds": WORTH_S},
    )  # fmt: skip


@rule(
    "memory",
    sees="Most of the GPU's memory is not used.",
    threshold="less than 30 % at the peak, in a run of ten minutes or more",
    source="larger batches use a GPU better as long as they fit",
)
def memory(run: RunRecord) -> Outcome:
    rows = [row for row in run.intervals if row.get("peak_mib") and row.get("memory_mib")]
    if not rows:
        return unknown("memory is measured on CUDA devices only")
    share, seconds = max(row["peak_mib"] for row in rows) / rows[-1]["memory_mib"], _seconds(run)
    measured = {"peak_share": share, "seconds": seconds}
    if share >= 0.3 or seconds < LONG_S:
        return passed(f"{share:.0%} of the memory is used at the peak.", **measured)
    return found(
        f"Training uses {share:.0%} of the GPU's memory at its peak.",
        "Raise batch_size (auto_batch_size=True finds the largest that fits) and lower "
        "gradient_accumulation_steps to match; turn "
        "gradient_checkpointing off.",
        measured, {"peak_share": 0.3, "seconds": LONG_S},
    )  # fmt: skip
