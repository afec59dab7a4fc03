"""Rules that compare training with validation."""

from __future__ import annotations

import math

import numpy as np

from utils.training.diagnosis.learning import divergence
from utils.training.diagnosis.record import RunRecord
from utils.training.diagnosis.rules import Outcome, found, passed, rule, unknown


def _losses(run: RunRecord) -> list[float]:
    return [row["val/loss"] for row in run.validations if math.isfinite(row.get("val/loss", math.nan))]


def _scale(run: RunRecord, best: float) -> float:
    """Possible improvement: from the baseline, or from the first loss, down to the best validation loss."""
    guess = run.validation_guess or run.guess
    known = guess.loss if guess is not None and math.isfinite(guess.loss) else (run.start if len(run.losses) else best)
    return max(known - best, 0.0)


@rule(
    "validation",
    sees="There is no validation data, so nobody sees how the model does on other data.",
    threshold="none",
    source="without it, overfitting cannot be seen",
    live=False,
)
def validation(run: RunRecord) -> Outcome:
    if run.validations or run.facts.get("has_validation"):
        count = len(run.validations)
        return passed(f"{count} validation{'' if count == 1 else 's'}.", validations=count)
    if not run.facts and not run.epochs:
        return unknown("no epoch is finished")
    return found(
        "The run has no validation data: overfitting and a useless model look the same as success.",
        "Hold back a part of the data (5 to 20 %) and pass it as val_data.", {"validations": 0},
    )  # fmt: skip


@rule(
    "overfitting",
    sees="Validation gets worse while training gets better, or training data are memorised.",
    threshold="since its best epoch the validation loss rose by 10 % and by 5 % of what there was to gain, for 2 validations "
    "or more, while the training loss fell by 10 % and the learning rate did not rise again; or training is below a tenth and "
    "validation above 30 % of the baseline",
    source="relative to the run's best validation and to its baseline",
)
def overfitting(run: RunRecord) -> Outcome:
    values, rows = _losses(run), [row for row in run.validations if math.isfinite(row.get("val/loss", math.nan))]
    if len(values) < 3:
        return unknown(f"{len(values)} validations are too few; 3 are needed")
    at = int(np.argmin(values))
    best, last = values[at], float(np.median(values[-3:]))
    training = _training_at(run, rows[at]["step"]), _training_at(run, rows[-1]["step"])
    measured = {
        "best": best,
        "best_validation": at + 1,
        "last": last,
        "train_then": training[0],
        "train_last": training[1],
    }
    if run.no_better_than_guess or validation_data(run).found:
        return passed("Nothing was learned that could be overfitted; see 'learning' and 'validation data'.", **measured)
    rose = last - best > max(0.1 * abs(best), 0.05 * _scale(run, best)) and len(values) - at > 2
    fell = training[1] < 0.9 * training[0] if training[0] > 0 else training[1] < training[0]
    if rose and fell and not _rate_rose_again(run, rows[at]["step"], rows[-1]["step"]):
        epoch = rows[at].get("epoch", at) + 1
        return found(
            f"The validation loss was best in epoch {epoch} (step {rows[at]['step']}): {best:.4g}. Since then it rose to "
            f"{last:.4g} while the training loss fell from {training[0]:.4g} to {training[1]:.4g}.",
            f"Use the best checkpoint, stop earlier (early_stopping_patience={max(2, len(values) // 10)}), "
            "and add data, dropout, "
            "weight_decay or augmentation, or take a smaller model.",
            measured, {"rise_share": 0.1},
        )  # fmt: skip
    guess = run.validation_guess
    if guess is not None and guess.loss > 0 and math.isfinite(guess.loss) and not run.over_tokens:
        by_heart = training[1] < 0.1 * guess.loss and last > 0.3 * guess.loss and training[1] < 0.2 * last
        if by_heart and not run.judged:
            return found(
                f"The training loss is {training[1]:.4g} and the validation loss {last:.4g}, "
                f"{last / guess.loss:.0%} of what "
                f"{guess.what} gives: the training samples ({run.facts.get('num_train')}) are memorised.",
                "Add training samples, or take a smaller model, dropout, weight_decay or augmentation.",
                measured, {"train_share": 0.1, "validation_share": 0.3},
            )  # fmt: skip
    return passed(f"The last validation loss is {values[-1]:.4g}; the best is {best:.4g}.", **measured)


def _rate_rose_again(run: RunRecord, best: float, now: float) -> bool:
    """Whether a learning rate that had decayed at one step is above twice that at a later one, as where a finished run is
    continued with more epochs. The loss rises with it for a while, which says nothing about overfitting."""
    rates = run.rates
    before, until_now = rates[run.steps <= best], rates[run.steps <= now]
    if not len(before) or not np.isfinite(before).any():
        return False
    return bool(before[-1] < 0.5 * np.nanmax(before) and until_now[-1] > 2 * before[-1])


def _training_at(run: RunRecord, step: float) -> float:
    """Training loss around a step: the mean of the steps of about one epoch before it."""
    before = run.losses[run.steps <= step]
    if not len(before):
        return float(run.losses[0]) if len(run.losses) else math.nan
    per_epoch = run.facts.get("steps_per_epoch") or max(1, len(before) // max(1, len(run.validations)))
    return float(before[-max(3, min(int(per_epoch), len(before))) :].mean())


@rule(
    "validation data",
    sees="Validation data come from another distribution than the training data.",
    threshold="the first validation loss, and the best of the run, are above the training loss of the first epoch by "
    "four standard "
    "errors and a quarter; or half of the labels would have to change to make the classes alike, or the mean "
    "target is three "
    "standard deviations away",
    source="in its first epoch a model has seen no sample twice, so training loss there estimates the loss on new samples",
)
def validation_data(run: RunRecord) -> Outcome:
    values = _losses(run)
    if not values:
        return unknown("there is no validation")
    shifted = _labels_shifted(run)
    if shifted is not None:
        return shifted
    steps = run.facts.get("steps_per_epoch")
    first = run.losses[run.steps <= min(run.validations[0]["step"], steps or math.inf)]
    if len(first) < 4:
        return unknown("the first epoch has fewer than 4 rows to compare with")
    late = first[len(first) // 2 :]
    spread = float(np.std(np.diff(first)) / math.sqrt(2))
    number = run.facts.get("num_validation") or 0
    share = run.facts.get("batch_size", 1) * run.facts.get("accumulation", 1) / number if number else 1.0
    error = spread * math.sqrt(1 / len(late) + share)
    limit = max(float(first.mean()) + 4 * error, float(first.mean()) * 1.25 if first.mean() > 0 else -math.inf)
    measured = {"train_first_epoch": float(first.mean()), "first_validation": values[0], "best_validation": min(values)}
    settled = len(values) >= 3 or run.ended
    if values[0] <= limit or min(values) <= limit:
        return passed(
            f"The first validation loss is {values[0]:.4g}, training {float(late.mean()):.4g} by then.", **measured
        )
    if not settled or len(run.losses) < 20:
        return unknown("the first validations are not enough to tell a shift from a start")
    if run.end > run.start:
        return passed("Training itself gets worse; see 'divergence'.", **measured)
    return found(
        f"The first validation loss is {values[0]:.4g} and the best {min(values):.4g}, while training cost "
        f"{first.mean():.4g} on "
        "samples that were just as new to the model: validation data differ from training data.",
        "Compare both parts (utils.checks: check_drift): the same source, shuffled before splitting, and the "
        "same normalisation. "
        "If they are alike, a layer behaves differently in evaluation mode.",
        measured, {"limit": limit},
    )  # fmt: skip


def _labels_shifted(run: RunRecord) -> Outcome | None:
    train, val = run.counts("train"), run.counts("val")
    if not train or not val:
        return None
    here, there = train[-1], val[-1]
    if here.get("actual") and there.get("actual") and len(here["actual"]) == len(there["actual"]):
        shares = [np.array(row["actual"]) / max(1.0, sum(row["actual"])) for row in (here, there)]
        distance = float(np.abs(shares[0] - shares[1]).sum() / 2)
        if distance >= 0.5 and there["targets"] >= 20:
            return found(
                f"Training and validation have other classes: {distance:.0%} of the labels would have to "
                "change to make them "
                "alike.",
                "Shuffle the rows before splitting, or split each class alike.", {"distance": distance}, {"distance": 0.5},
            )  # fmt: skip
    if here.get("label_means") and len(here["label_means"]) == len(there.get("label_means") or ()):
        means = zip(here["label_means"], there["label_means"], here["label_variances"], strict=True)
        away = [abs(a - b) / math.sqrt(variance) for a, b, variance in means if variance and None not in (a, b)]
        deviations = max(away, default=0.0)
        if deviations >= 3 and there["targets"] >= 10:
            return found(
                f"The mean target in validation is {deviations:.1f} standard deviations away from that in training.",
                "Shuffle the rows before splitting; a model cannot be expected to work outside the range of "
                "its training data.",
                {"deviations": deviations}, {"deviations": 3},
            )  # fmt: skip
    return None


@rule(
    "labels",
    sees="Labels look shuffled: training data are memorised, and validation is never better than guessing.",
    threshold="training gains 20 % on the baseline (5 % where the nearest neighbours predict labels no better than chance), "
    "while no validation beats its own baseline; or nothing is learned and the nearest neighbours predict labels no "
    "better than chance",
    source="entropy or variance of the validation labels; two standard errors for accuracies",
)
def labels(run: RunRecord) -> Outcome:
    if run.judged:
        return unknown(run.judged)
    neighbours, number = run.facts.get("neighbours"), run.facts.get("neighbour_samples", 1)
    guess = run.guess
    by_chance = False
    if guess is not None and neighbours is not None and number >= 200:
        chance = guess.accuracy or 0.0
        margin = 0.05 + 2 * math.sqrt(0.25 / number)
        by_chance = neighbours <= chance + margin and not run.facts.get("samples_vary")
        if by_chance and run.no_better_than_guess:
            return found(
                f"Nothing is learned, and the nearest neighbours of a sample predict its label no better than chance "
                f"({neighbours:.2f}): inputs and labels seem to have nothing to do with each other.",
                "Check that inputs and labels are in the same order: shuffle both with one permutation.",
                {"neighbours": neighbours, "chance": chance}, {"margin": margin},
            )  # fmt: skip
    values, guess_there = _losses(run), run.validation_guess
    if run.over_tokens:
        return unknown("language models learn from the text itself, which has no labels beside it")
    if len(values) < 2 or guess is None or guess_there is None:
        return unknown("there are no validations or baselines to compare")
    accuracies = [row["val/accuracy"] for row in run.validations if "val/accuracy" in row]
    worse = min(values) >= 0.98 * guess_there.loss if math.isfinite(guess_there.loss) else True
    measured = {"best_validation": min(values), "baseline": guess_there.loss, "train_last": run.end}
    if guess_there.accuracy is not None:
        if not accuracies:
            return unknown("there are no accuracies to compare")
        chance = guess_there.accuracy
        worse = worse and max(accuracies) <= chance + run.accuracy_margin("val", chance)
    share = 0.95 if by_chance else 0.8
    gained = run.end < share * guess.loss if math.isfinite(guess.loss) else run.no_better_than_guess is False
    constant = any(row.get("top_prediction") == 1 for row in run.counts("val")[-1:])
    if not (gained and worse) or constant or validation_data(run).found:
        return passed(
            f"The best validation loss is {min(values):.4g}; the baseline is {guess_there.score}.", **measured
        )
    return found(
        f"The training loss fell to {run.end:.4g}, and no validation was better than {guess_there.what} "
        f"({min(values):.4g}; baseline {guess_there.score}): on other samples the model is no better than guessing.",
        "Check that inputs and labels are in the same order, and that validation labels mean the same. With "
        "few or noisy rows "
        "this is overfitting from the first epoch: add data.",
        measured, {"train_share": share, "validation_share": 0.98},
    )  # fmt: skip


@rule(
    "training harder than validation",
    sees="Training is much harder than validation: augmentation, dropout or noise is too strong.",
    threshold="in the last third the validation loss is at most half of the training loss, which is above 30 % of the "
    "baseline",
    source="training loss is usually the smaller one",
)
def harder(run: RunRecord) -> Outcome:
    values = _losses(run)
    if run.judged or len(values) < 3:
        return unknown(run.judged or "3 validations are needed")
    guess = run.guess
    if guess is None or not math.isfinite(guess.loss):
        return unknown("the loss of a model that ignores its inputs is not known")
    there = float(np.median(values[-max(1, len(values) // 3) :]))
    measured = {"train_last": run.end, "validation_last": there}
    end = float(np.median(run.losses[-max(3, len(run.losses) // 10) :]))
    if not (0 <= there <= 0.5 * end and end >= 0.3 * guess.loss) or divergence(run).found:
        return passed(f"Training ends at {run.end:.4g}, validation at {there:.4g}.", **measured)
    return found(
        f"The training loss ends at {run.end:.4g} and the validation loss at {there:.4g}: what is done to "
        "training samples makes "
        "them much harder than they are.",
        "Weaken augmentation, dropout or label noise until training reaches validation.", measured, {"ratio": 0.5},
    )  # fmt: skip
