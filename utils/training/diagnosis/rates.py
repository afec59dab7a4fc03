"""Rules about the size of the steps: learning rate, warm-up, schedule, clipping, Adam's eps, weight decay."""

from __future__ import annotations

import itertools
import math

import numpy as np

from utils.training.diagnosis.record import RunRecord, relative_update
from utils.training.diagnosis.rules import Outcome, found, passed, rule, unknown

#: Relative movement of the weights over a whole run below which the run changed nothing.
STOOD_STILL = 0.03
#: Update of one step relative to the weights from which on a step replaces them.
REPLACED = 0.3
_FINDER = "find_learning_rate(model, train_data) measures where the loss falls fastest."


def learned(run: RunRecord) -> bool | None:
    """Whether the run got better than its baseline; without one, whether the loss fell by a twentieth. None: too early."""
    if run.judged:
        return None
    if run.no_better_than_guess is not None:
        return not run.no_better_than_guess
    if run.over_tokens or run.task is None:
        return run.end < run.start - max(0.05 * abs(run.start), 2 * run.error)
    return None


@rule(
    "rate too high",
    sees="The learning rate is so high that steps overshoot.",
    threshold="nothing is learned or numbers overflow, and the loss jumped to twice its beginning and its "
    "baseline, or a "
    "step replaced 30 % of the weights; or it jumped to 10 times; or 3 epochs of the last two thirds each "
    "lost 30 % of all gain",
    source="relative to the run's first loss and to the size of its weights; about 0.1 % a step is usual",
)
def rate_too_high(run: RunRecord) -> Outcome:
    overflowed = run.state.get("status") == "failed" and "gradient norm is" in str(run.state.get("error"))
    if not overflowed and run.judged:
        return unknown(run.judged)
    # LoRA's second matrices start at zero: their first steps replace them at any rate.
    ratios = [ratio for look in run.looks if (ratio := relative_update(look, from_zero=False)) is not None]
    largest = max(ratios, default=0.0)
    jump = run.highest
    measured = {"loss_jump": jump, "largest_relative_update": largest, "rate": _peak(run)}
    signs = jump >= 2 or largest >= REPLACED
    did = learned(run)
    if did is None and not overflowed:
        return unknown("whether anything was learned is not known")
    if did and jump >= 10 and run.guess is not None and math.isfinite(run.guess.loss):
        return found(
            f"With a learning rate of {_peak(run):.3g} the training loss jumped to {jump:.3g} times that of "
            "its beginning and of "
            "the baseline before it fell.",
            f"Lower learning_rate, with warm-up. {_FINDER}", measured, {"loss_jump": 10},
        )  # fmt: skip
    if not signs or (did and not overflowed):
        return _restless(run, measured)
    evidence = [f"the loss jumped to {jump:.3g} times that of its beginning and of its baseline"] if jump >= 2 else []
    evidence += [f"one step changed the weights by {largest:.0%}"] if largest >= REPLACED else []
    return found(
        f"With a learning rate of {_peak(run):.3g}, {' and '.join(evidence)}"
        + (", and then numbers overflowed." if overflowed else "; nothing was learned after that."),
        f"Lower learning_rate to a tenth or less, with warm-up. {_FINDER}",
        measured, {"loss_jump": 2, "relative_update": REPLACED}, verdict="fail",
    )  # fmt: skip


def _restless(run: RunRecord, measured: dict[str, float]) -> Outcome:
    """Epochs whose loss rises again and again by a good part of everything that was gained."""
    losses = [row["train/loss"] for row in run.epochs]
    if len(losses) >= 6:
        gain = max(losses[0], run.start) - min(losses)
        rises = [after - before for before, after in itertools.pairwise(losses)][len(losses) // 3 :]
        large = [rise for rise in rises if rise > 0.3 * gain]
        if gain > 0 and len(large) >= 3:
            return found(
                f"With a learning rate of {_peak(run):.3g} the training loss rose by more than 30 % of all "
                "that was gained in "
                f"{len(large)} of the last {len(rises)} epochs: steps overshoot.",
                f"Lower learning_rate to a third or a tenth. {_FINDER}", {**measured, "large_rises": len(large)},
                {"rise_share_of_gain": 0.3, "rises": 3},
            )  # fmt: skip
    return passed("Steps do not overshoot.", **measured)


def _peak(run: RunRecord) -> float:
    return float(np.nanmax(run.rates)) if len(run.rates) and np.isfinite(run.rates).any() else run.config.learning_rate


@rule(
    "rate too low",
    sees="The learning rate is so low that the weights do not move: often plain SGD with a rate meant for Adam.",
    threshold="nothing is learned, and over all steps the weights moved by less than 3 % of their size",
    source="relative to the size of the weights; an upper bound, as if all steps had one direction",
)
def rate_too_low(run: RunRecord) -> Outcome:
    if run.judged:
        return unknown(run.judged)
    movement, did = run.movement, learned(run)
    guess = run.guess
    if did and guess is not None and math.isfinite(guess.loss) and run.end > 0.8 * guess.loss:
        did = run.end < 0.95 * run.start  # better than the baseline from the first step on is not learned either
    if movement is None or did is None:
        return unknown("the movement of the weights, or whether anything was learned, was not measured")
    measured = {"movement": movement, "rate": _peak(run)}
    if did or movement >= STOOD_STILL:
        return passed(f"Weights moved by up to {movement:.1%} of their size.", **measured)
    if _cut(run) or _swallowed(run) is not None:
        return passed("Steps are small for another reason: see clipping and Adam's eps.", **measured)
    if not _pulled(run):
        return passed("Steps are small because there are no gradients: see 'dead layers'.", **measured)
    sgd = str(run.facts.get("optimizer", run.config.optimizer)).lower() == "sgd"
    return found(
        f"Over {run.done} steps at a learning rate of {_peak(run):.3g} the weights moved by at most "
        f"{movement:.2%} of their size: "
        "nothing could be learned.",
        ("Plain SGD needs a rate hundreds of times larger than Adam (0.01 to 0.1): raise learning_rate, or "
         "set optimizer='adamw'. "
         if sgd else "Raise learning_rate tenfold or more. ") + _FINDER,
        measured, {"movement": STOOD_STILL}, verdict="fail",
    )  # fmt: skip


def _pulled(run: RunRecord) -> bool:
    """Whether most matrices have gradients in most looks."""
    grads = [
        bool(t["grad"]) and t.get("silent", 0.0) < 0.95 for look in run.looks for t in look["tensors"] if t["matrix"]
    ]
    return float(np.mean(grads)) > 0.5 if grads else False


def _cut(run: RunRecord) -> bool:
    """Whether clipping takes 99 % off nearly every step of an optimizer whose steps are as long as its gradients."""
    limit, norms = run.config.max_grad_norm, run.norms[np.isfinite(run.norms)]
    adaptive = "adam" in str(run.facts.get("optimizer", run.config.optimizer)).lower()
    return limit > 0 and len(norms) > 0 and not adaptive and float(np.percentile(norms, 10)) > 100 * limit


def _swallowed(run: RunRecord) -> tuple[float, float] | None:
    """Adam's eps and the gradients' typical size, where eps swallows nine tenths of each step from the first look on."""
    eps = run.facts.get("eps")
    if eps is None or not run.looks:
        return None
    sizes = []
    for look in run.looks[: max(1, len(run.looks) // 2)]:
        pairs = [(t["grad"], t["size"]) for t in look["tensors"] if t["grad"]]
        if pairs:
            grads, weights = np.array([g for g, _ in pairs]), np.array([s for _, s in pairs], dtype=np.float64)
            sizes.append(float((grads * weights).sum() / weights.sum()))
    return (float(eps), max(sizes)) if sizes and max(sizes) < eps / 9 else None


@rule(
    "Adam's eps",
    sees="eps is larger than the gradients and shrinks Adam's steps; clipping to a tiny norm does the same.",
    threshold="eps is more than 9 times the typical gradient, so that a step has less than a tenth of its length",
    source="Kingma & Ba 2014: a step is lr * m / (sqrt(v) + eps)",
)
def adams_eps(run: RunRecord) -> Outcome:
    if run.facts.get("eps") is None:
        return unknown("the optimizer has no eps, or was not recorded")
    if not run.looks:
        return unknown("no gradient was looked at")
    swallowed, did = _swallowed(run), learned(run)
    if swallowed is None:
        return passed("Gradients are large beside eps.", eps=run.facts["eps"])
    eps, size = swallowed
    measured = {"eps": eps, "gradient": size}
    if did is not False and eps <= 1e-6:  # a model that has converged, or whose gradients vanish: not the fault of eps
        return passed("Gradients are smaller than eps, which is small.", **measured)
    limit, norms = run.config.max_grad_norm, run.norms[np.isfinite(run.norms)]
    if limit > 0 and len(norms) and float(np.median(norms)) > 100 * limit:
        return found(
            f"Clipping leaves gradients of {size:.2g} (median norm {np.median(norms):.3g}, "
            f"max_grad_norm={limit:g}), smaller than "
            f"Adam's eps={eps:g}: every step is cut to nothing.",
            "Set max_grad_norm=1.0, or 0 to turn clipping off.", {**measured, "max_grad_norm": limit}, {"ratio": 9},
            verdict="fail",
        )  # fmt: skip
    return found(
        f"Gradients are about {size:.2g} and eps={eps:g}, so Adam's steps have {size / (size + eps):.1%} of their length.",
        "Set eps=1e-8, the default.", measured, {"ratio": 9}, verdict="warn" if did else "fail",
    )  # fmt: skip


@rule(
    "warm-up",
    sees="The learning rate rises for most of the run, or the run ends before it arrives.",
    threshold="half of all planned steps",
    source="recipes warm up for 1 to 10 % of the steps (Goyal et al. 2017, GPT-3)",
)
def warm_up(run: RunRecord) -> Outcome:
    config, total = run.config, run.planned
    if not config.use_lr_schedule or run.facts.get("own_schedule"):
        return passed("There is no warm-up.")
    if total is None:
        return unknown("the number of steps is not known")
    steps = config.warmup_steps if config.warmup_steps is not None else int((config.warmup_ratio or 0.0) * total)
    measured = {"warmup_steps": steps, "planned_steps": total}
    if total < 4 or steps < 0.5 * total:
        return passed(f"Warm-up takes {steps} of {total} steps.", **measured)
    longer = steps >= total
    return found(
        f"Warm-up takes {steps} steps and the run has {total}: "
        + ("the learning rate never arrives." if longer else "it trains at full rate for less than half of its time."),
        f"Set warmup_ratio=0.1, or warmup_steps={max(1, total // 10)}.", measured, {"share": 0.5},
        verdict="fail" if longer else "warn",
    )  # fmt: skip


@rule(
    "schedule",
    sees="The learning rate is practically zero for a large part of the run.",
    threshold="below 1 % of the peak in more than 40 % of the steps after the peak",
    source="the built-in schedules spend at most a third of their steps there",
)
def schedule(run: RunRecord) -> Outcome:
    rates = run.rates[np.isfinite(run.rates)]
    if len(rates) < 10:
        return unknown("fewer than 10 learning rates were recorded")
    if float(rates.max()) <= 0:
        return found("The learning rate is 0 in every step.", "Set learning_rate, or check your scheduler.", {"peak": 0.0},
                     verdict="fail")  # fmt: skip
    after = rates[int(rates.argmax()) :]
    dead = float((after < 0.01 * rates.max()).mean()) * len(after) / len(rates)
    measured = {"dead_share": dead, "peak": float(rates.max()), "last": float(rates[-1])}
    if dead <= 0.4:
        return passed(f"The learning rate is below 1% of its peak in {dead:.0%} of the steps.", **measured)
    return found(
        f"The learning rate is below 1 % of its peak ({rates.max():.3g}) in {dead:.0%} of the steps: nothing "
        "is learned there.",
        "Make the schedule as long as the run (a scheduler that is stepped each batch instead of each epoch "
        "decays too fast), or "
        "set min_lr_ratio=0.1.",
        measured, {"dead_share": 0.4},
    )  # fmt: skip


@rule(
    "clipping",
    sees="Clipping cuts every step, and the run does not learn.",
    threshold="nothing is learned, 95 % of the steps are clipped, and the typical step by more than 90 % (or, with "
    "SGD, nearly "
    "every one by 99 %)",
    source="relative to the run's own gradient norms; with Adam, clipping every step alone is harmless",
)
def clipping(run: RunRecord) -> Outcome:
    limit, norms = run.config.max_grad_norm, run.norms[np.isfinite(run.norms)]
    if limit <= 0:
        return passed("Clipping is off.")
    if len(norms) < 10:
        return unknown("fewer than 10 gradient norms were recorded")
    counted = sum(row["steps"] for row in run.intervals)
    share = sum(row["clipped"] for row in run.intervals) / counted if counted else float((norms > limit).mean())
    median = float(np.median(norms))
    measured = {"clipped_share": share, "median_norm": median, "max_grad_norm": limit}
    did = learned(run)
    if share < 0.95 or median <= 10 * limit:
        kept = (
            f"; a typical step that was clipped kept {limit / median:.0%} of its length"
            if share and median > limit
            else ""
        )
        return passed(f"{share:.0%} of the steps were clipped; the median norm is {median:.3g}{kept}.", **measured)
    if did is None:
        return unknown(run.judged or "whether anything was learned is not known")
    if did and not (_cut(run) and (run.movement or 1.0) < STOOD_STILL):
        return passed(f"{share:.0%} of the steps were clipped, and the run learned.", **measured)
    return found(
        f"{share:.0%} of the steps were clipped to max_grad_norm={limit:g}; the median norm is {median:.3g}, "
        "so a step keeps "
        f"{limit / median:.2g} of its length, and nothing is learned.",
        f"Set max_grad_norm to about {_rounded(median)} or to 0 (off). If gradients are large because targets "
        "or inputs are, "
        "standardise those instead.",
        measured, {"clipped_share": 0.95, "norm_over_limit": 10}, verdict="fail",
    )  # fmt: skip


def _rounded(value: float) -> str:
    return f"{10 ** math.ceil(math.log10(value)):g}" if value > 0 else "1"


@rule(
    "weight decay",
    sees="Weight decay pulls the weights to zero faster than they can learn.",
    threshold="1 / (learning rate * weight decay) is less than 20 steps",
    source="Loshchilov & Hutter 2017: weights forget with this time constant",
)
def weight_decay(run: RunRecord) -> Outcome:
    decay = float(run.facts.get("weight_decay", run.config.weight_decay))
    rate = _peak(run)
    steps = math.inf if decay * rate == 0 else 1 / (decay * rate)
    measured = {"weight_decay": decay, "rate": rate, "time_constant_steps": steps}
    if steps >= 20 or run.done < 20:
        forgotten = "Weights do not decay." if math.isinf(steps) else f"Weights forget over {steps:,.0f} steps."
        return passed(forgotten, **measured)
    return found(
        f"With weight_decay={decay:g} and a learning rate of {rate:.3g} weights shrink to a third within "
        f"{steps:.2g} steps.",
        "Set weight_decay between 0 and 0.1.", measured, {"time_constant_steps": 20},
    )  # fmt: skip
