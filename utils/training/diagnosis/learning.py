"""Rules about the training loss: whether it falls, how far, and what it must not do."""

from __future__ import annotations

import math

import numpy as np

from utils.training.diagnosis.record import AT_BASELINE, RunRecord
from utils.training.diagnosis.rules import Outcome, found, passed, rule, unknown

#: Share of what was gained whose loss is a divergence.
LOST = 0.5


@rule(
    "finite numbers",
    sees="The loss or the gradient became NaN or infinite.",
    threshold="any step",
    source="IEEE 754: no update can be made from such a number",
)
def finite_numbers(run: RunRecord) -> Outcome:
    error = str(run.state.get("error") or "")
    stopped = run.state.get("status") == "failed" and "gradient norm is" in error
    bad = [row for row in run.validations if not math.isfinite(row.get("val/loss", 0.0))]
    measured = {"skipped_steps": len(run.skipped), "stopped": stopped, "validations_not_finite": len(bad)}
    if not (stopped or run.skipped or bad):
        return passed("Every loss and gradient was finite.", **measured)
    what = error or (
        f"{len(run.skipped)} steps were skipped, the first one at step {run.skipped[0]['step']}: {run.skipped[0]['fault']}."
        if run.skipped
        else f"The validation loss after step {bad[0]['step']} is {bad[0]['val/loss']}."
    )
    rest = (
        "A criterion of your own must not take the logarithm of a probability that can be 0: compute "
        "cross-entropy from scores "
        "(logits). " if run.task is None else ""
    )  # fmt: skip
    remedy = (
        f"{rest}Lower learning_rate, lengthen the warm-up, look at the samples of that step for NaN or extreme values, and "
        "use bf16 or 32 instead of fp16."
    )
    return found(what, remedy, measured, verdict="fail")


@rule(
    "learning",
    sees="The training loss never gets better than that of a model which ignores its inputs.",
    threshold="neither the last tenth of the steps nor any of the last three epochs is better than the baseline by 3 "
    "%, and "
    "neither is the accuracy by 2 points and two standard errors",
    source="entropy of the labels, variance of the targets: the best loss without the inputs",
)
def learning(run: RunRecord) -> Outcome:
    if run.judged:
        return unknown(run.judged)
    guess = run.guess
    if guess is None:
        return unknown("the loss of a model that ignores its inputs is not known for this task and data")
    measured = {"loss_first": run.start, "loss_last": run.end, "baseline_loss": guess.loss, "steps": run.done}
    if run.no_better_than_guess is None:
        return unknown("label smoothing changes the loss, and there is no accuracy to compare")
    if not run.no_better_than_guess:
        return passed(f"The training loss ends at {run.end:.4g}; {guess.what} gives {guess.score}.", **measured)
    if run.still_falling and not run.ended:
        return unknown("the training loss is still falling")
    if run.over_tokens and run.end <= (1 + AT_BASELINE) * guess.loss:
        return passed("See 'more than frequencies'.", **measured)
    falls = run.still_falling or (run.end < run.start and run.flat_since() < 0.25)
    longer = "The loss is still falling: train for more steps, or at a higher rate, first. " if falls else ""
    return found(
        f"After {run.done} steps the training loss is {run.end:.4g}; {guess.what} gives {guess.score}. The model has learned "
        "nothing about how labels follow from inputs.",
        f"{longer}{_reason(run)} Try to overfit one batch (utils.checks: test_overfit_one_batch): if that fails, the fault is "
        "in the model or the loss; if it works, it is in the data or the learning rate (find_learning_rate).",
        measured, {"baseline_share": 1 - AT_BASELINE}, verdict="fail",
    )  # fmt: skip


def _reason(run: RunRecord) -> str:
    """Hint from nearest neighbours on where to look."""
    neighbours, guess = run.facts.get("neighbours"), run.guess
    if run.facts.get("samples_vary"):
        return (
            "Samples differ from epoch to epoch: the augmentation may destroy what is to be learned. Train without it, "
            "then with weaker augmentation."
        )
    if neighbours is None or guess is None:
        return "Check that inputs and labels belong together and that gradients reach every layer."
    floor = guess.accuracy or 0.0
    if neighbours <= floor + 0.1:
        return (
            "The nearest neighbours of a sample do not predict its label either, so look at the data first: are inputs and "
            "labels in the same order?"
        )
    return (
        f"The data can be learned: nearest neighbours alone reach {neighbours:.2f} "
        f"({'accuracy' if guess.accuracy is not None else 'r2'}). The model may be too small or linear (no "
        "activation), its "
        "output constant, or the learning rate wrong."
    )


@rule(
    "more than frequencies",
    sees="A language model is stuck at the unigram loss: it knows how often tokens occur, and nothing of their order.",
    threshold="the loss is within 3 % of the unigram loss and level in the last third of the run",
    source="unigram entropy of the training text, Miller-Madow corrected",
)
def more_than_frequencies(run: RunRecord) -> Outcome:
    if not run.over_tokens:
        return unknown("only language models have a unigram loss")
    if run.judged:
        return unknown(run.judged)
    guess = run.guess
    if guess is None:
        return unknown("the text that was looked at is too short for its vocabulary to measure the unigram loss")
    measured = {"loss_last": run.end, "unigram_loss": guess.loss, "level_share": run.flat_since()}
    if abs(run.end / guess.loss - 1) > AT_BASELINE or run.flat_since() < 1 / 3:
        return passed(f"The training loss ends at {run.end:.4g}; the unigram loss is {guess.loss:.4g}.", **measured)
    return found(
        f"The training loss has been level at {run.end:.4g}, and a model that only knows how often each token occurs has "
        f"{guess.loss:.4g}: the model does not use the context.",
        "Check that attention or recurrence reaches earlier tokens (tier 2: order of tokens), that labels "
        "are the next tokens "
        "of the same row, and raise learning_rate with find_learning_rate.",
        measured, {"distance": AT_BASELINE},
    )  # fmt: skip


@rule(
    "divergence",
    sees="The loss rises for good, or gradients explode behind clipping while the loss no longer falls.",
    threshold="half of the best gain is lost again, or the loss ends above its beginning; or the gradient norm grows "
    "tenfold "
    "while the loss does not fall",
    source="relative to the run: its own best loss, its own gradients, its own scatter",
)
def divergence(run: RunRecord) -> Outcome:
    if len(run.losses) < 20:
        return unknown(f"{len(run.losses)} rows of losses are too few; 20 are needed")
    blocks = [float(np.median(block)) for block in np.array_split(run.losses, 10)]
    first, best, last = blocks[0], min(blocks), min(blocks[-2:])
    early = run.losses[: len(run.losses) // 4]
    late = run.losses[-(len(run.losses) // 4) :]
    # Of the first half: a divergence would hide in its own scatter.
    half = run.losses[: len(run.losses) // 2]
    noise = 4 * float(np.std(np.diff(half)) / math.sqrt(2)) / math.sqrt(max(1, len(run.losses) // 10))
    floor = run.guess.loss if run.guess is not None and math.isfinite(run.guess.loss) else None
    measured = {"loss_first": first, "loss_best": best, "loss_last": last}
    gain = first - best
    lost = last - best > max(LOST * gain, noise) and gain > noise
    above = float(np.percentile(late, 25)) > float(np.max(early)) and last > 1.1 * abs(first) + noise
    harmless = floor is not None and last < 0.5 * floor and not last > 10 * max(best, 1e-12)
    if (lost and not harmless) or (above and (floor is None or last > 0.5 * floor)):
        return found(
            f"The training loss fell to {best:.4g} and is {last:.4g} in the last fifth of the run (first: {first:.4g})."
            if lost
            else f"The training loss began at {first:.4g} and is {last:.4g} in the last fifth of the run.",
            "Lower learning_rate (find_learning_rate suggests one) or lengthen the warm-up; continue from "
            "the best checkpoint. "
            "Check that the loss is a mean over samples and has the right sign.",
            measured, {"lost_share_of_gain": LOST}, verdict="fail",
        )  # fmt: skip
    return _hidden_divergence(run, measured)


def _hidden_divergence(run: RunRecord, measured: dict[str, float]) -> Outcome:
    """Clipped steps have a bounded length, so the loss of a diverging run may only stop falling."""
    norms = run.norms[np.isfinite(run.norms)]
    limit = run.config.max_grad_norm
    level = "The training loss does not rise for good."
    if limit <= 0 or len(norms) < 20:
        return passed(level, **measured)
    quarter = len(norms) // 4
    before, after = float(np.median(norms[:quarter])), float(np.median(norms[-quarter:]))
    loss_then, loss_now = float(np.median(run.losses[quarter : 2 * quarter])), float(np.median(run.losses[-quarter:]))
    measured = {**measured, "norm_first": before, "norm_last": after}
    stuck = loss_now >= loss_then - 0.01 * abs(loss_then)
    clipped = float((norms[-quarter:] > limit).mean())
    converged = run.guess is not None and run.no_better_than_guess is False and loss_now < 0.5 * run.guess.loss
    if after > 10 * before and clipped >= 0.9 and stuck and not converged:
        return found(
            f"Gradient norms before clipping grew from {before:.3g} to {after:.3g} while the loss did not fall "
            f"({loss_then:.4g}, then {loss_now:.4g}): max_grad_norm={limit:g} hides a divergence.",
            "Lower learning_rate; find_learning_rate suggests one. Clipping bounds a step and does not make it right.",
            measured, {"norm_growth": 10}, verdict="fail",
        )  # fmt: skip
    return passed(level, **measured)


@rule(
    "sign of the loss",
    sees="The loss falls below zero, or falls while accuracy falls: its sign is wrong, or it has no lower bound.",
    threshold="below 0 for a cross-entropy or squared error; with a criterion of the caller's, below 0 together with "
    "an accuracy "
    "under chance, or at an accelerating rate",
    source="cross-entropy and squared error are never negative",
)
def sign_of_the_loss(run: RunRecord) -> Outcome:
    if not len(run.losses):
        return unknown("no step has been recorded")
    lowest = float(run.losses.min())
    measured = {"loss_lowest": lowest, "loss_last": float(run.losses[-1])}
    if lowest >= 0:
        return passed(f"The loss is never below zero (lowest: {lowest:.4g}).", **measured)
    if run.task is not None and lowest > -1e-4:
        return passed("The loss is zero up to rounding.", **measured)
    if run.task is not None:
        return found(
            f"The training loss is {lowest:.4g}, and the loss of {run.task} cannot be negative.",
            "Look for a wrong sign, or for labels that are not what the task expects.", measured, verdict="fail",
        )  # fmt: skip
    accuracies = [row["train/accuracy"] for row in run.epochs if "train/accuracy" in row]
    chance = run.guess.accuracy if run.guess is not None else None
    falls = len(run.losses) >= 10 and run.end < run.start
    if accuracies and falls and accuracies[-1] < (chance if chance is not None else accuracies[0]):
        return found(
            f"The loss falls to {lowest:.4g}, below zero, while the accuracy is {accuracies[-1]:.1%}"
            + (f" (most frequent class: {chance:.1%})" if chance is not None else "")
            + ": the criterion rewards wrong answers.",
            "Change the sign of the criterion: it must be small where the answer is right.",
            {**measured, "accuracy_last": accuracies[-1]}, verdict="fail",
        )  # fmt: skip
    if len(run.losses) >= FEWEST_FOR_SPEED:
        thirds = np.array_split(run.losses, 3)
        drops = [float(third[0] - third[-1]) for third in (thirds[0], thirds[-1])]
        if run.end < -10 * abs(run.start) - 1 and drops[1] > drops[0] > 0:
            return found(
                f"The loss began at {run.start:.4g}, is {run.end:.4g} and falls ever faster: it has no lower bound.",
                "Check the sign of the criterion, and that probabilities and not scores go into a logarithm.",
                measured, verdict="fail",
            )  # fmt: skip
    return passed("The loss is negative, which a likelihood of densities may be.", **measured)


FEWEST_FOR_SPEED = 30


@rule(
    "plateau",
    sees="The loss of a language model fell a little and has been level since.",
    threshold="level for 60 % of the run at more than 80 % of the unigram loss",
    source="relative to the run's scatter and to the baseline; text that is not random allows far less",
)
def plateau(run: RunRecord) -> Outcome:
    if not run.over_tokens:
        return unknown("only language models have a unigram loss to compare with")
    if run.judged:
        return unknown(run.judged)
    guess = run.guess
    if guess is None:
        return unknown("the unigram loss is not known")
    level, share = run.flat_since(), run.end / guess.loss
    measured = {"level_share": level, "loss_last": run.end, "unigram_loss": guess.loss}
    if run.no_better_than_guess or share < 0.8 or level < 0.6:
        return passed(f"The loss ends at {share:.0%} of the unigram loss.", **measured)
    return found(
        f"The loss has been level at {run.end:.4g} for {level:.0%} of the run, {share:.0%} of the unigram "
        f"loss of {guess.loss:.4g}.",
        "Raise learning_rate or use a warm-up and decay (find_learning_rate); then try a larger model.",
        measured, {"level_share": 0.6, "baseline_share": 0.8},
    )  # fmt: skip


@rule(
    "underfitting",
    sees="The model stays far below what its own training data allow: too small, linear, or cut off.",
    threshold="level at the end, and on its own training data the model gains less than half of what nearest neighbours "
    "gain over the baseline (accuracy or r2), beyond two standard errors",
    source="Cover & Hart 1967: the nearest neighbour's error is at most twice the smallest possible one",
)
def underfitting(run: RunRecord) -> Outcome:
    if run.judged:
        return unknown(run.judged)
    neighbours, number = run.facts.get("neighbours"), run.facts.get("neighbour_samples", 1)
    name = "train/accuracy" if run.guess is not None and run.guess.accuracy is not None else "train/r2"
    reached = [row[name] for row in run.epochs[-3:] if name in row]
    if run.no_better_than_guess:
        return unknown("the model does not beat the baseline, which 'learning' reports")
    if neighbours is None or not reached:
        return unknown(
            "nearest neighbours are known only for inputs that are numbers of one shape, with a class or number each"
        )
    best, chance = max(reached), (run.guess.accuracy if run.guess is not None else None) or 0.0
    error = 2 * math.sqrt(max(neighbours * (1 - neighbours), 0.0) / number)
    limit = chance + (neighbours - error - chance) / 2
    measured = {"model": best, "nearest_neighbours": neighbours, "level_share": run.flat_since()}
    if best >= limit or run.flat_since() < 0.25 or run.still_falling:
        return passed(f"Training reaches {best:.2f}; nearest neighbours alone reach {neighbours:.2f}.", **measured)
    return found(
        f"On its own training data the model reaches {best:.2f} ({name[6:]}) and no longer improves; the "
        "nearest neighbours "
        f"alone reach {neighbours:.2f}.",
        "The model is too simple for these data, or its outputs are cut off: add hidden units or layers, with activations "
        "between them, and check the learning rate.",
        measured, {"model": limit},
    )  # fmt: skip
