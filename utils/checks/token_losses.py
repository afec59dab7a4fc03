"""A trained language model's loss on real text by position and by token frequency.

Shapes: N targets, T positions, V vocabulary.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from utils.adapters.maturity import is_untrained
from utils.check_result import CheckResult, Finding, Limit
from utils.checks.checking import check
from utils.checks.limits import OWN_CHOICE
from utils.checks.probe import Probe, few
from utils.checks.real_data import DATA_ERRORS, CheckData, batches, class_counts, data_for, scored
from utils.data.packing import TokenBlocks, blocks_of
from utils.training.task_kinds import kind_of_task

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAME = "loss by position and frequency"

# Nats by which more context must lower the loss of text that has usable context; and by which trigrams must beat bigrams
# for the text to count as such. A small GPT on English gains about 1 nat between the second and the 64th token. The
# project's own choice.
LEAST_GAIN = 0.05
# Nats by which older tokens change the predictions of a model that sees them at all: rounding in fp32 is below 1e-10, and
# after a short training that learned bigrams only it is above 1e-3. The project's own choice.
LEAST_CHANGE = 1e-6
# Nats by which the last quarter of the positions may be worse than the quarter before it. The project's own choice.
LARGEST_RISE = 0.1
_SIGMAS = 3.0
# Ranks by frequency, from and to.
_RANKS = ((0, 10), (10, 100), (100, 1000), (1000, None))
# Occurrences of a token above which its mean loss is judged.
_LEAST_SEEN = 20
_LEAST_ROWS = 16
# Occurrences of a context at which its own counts weigh as much as those of the shorter one. The project's own choice.
_BACK_OFF = 5.0


@dataclass(frozen=True)
class _Losses:
    """Loss of each target in nats, that of its frequency alone, and where it stands."""

    model: Tensor
    unigram: Tensor
    targets: Tensor
    positions: Tensor
    rows: Tensor

    @property
    def gain(self) -> Tensor:
        """Improvement over the unigram loss, token by token; differences between tokens, and most noise with them, cancel."""
        return self.unigram - self.model


#: Limits of the measured values, and where each is from.
_LIMITS = (
    Limit("loss_nats", at_most="loss_nats", source="the loss of the tokens' frequencies in the training data"),
    Limit("gain by more context (nats), where trigrams beat bigrams", at_least=LEAST_GAIN,
          source=f"a small GPT gains about 1 nat on English; {OWN_CHOICE}"),
    Limit("loss of the last quarter above the third (nats)", at_most=LARGEST_RISE, source=OWN_CHOICE),
)  # fmt: skip


@check(NAME, limits=_LIMITS)
def test_token_losses(found: Probe, data: Any = None) -> CheckResult:
    """Loss on held-out text by position in the row and by frequency of the token, for trained language models.

    Called as (model, config=None, *, task_spec=None, tokenizer=None, data=None). A sound causal model's loss falls with the
    position, as it sees more context. Warns when it does not although trigrams beat bigrams on the same text, when it rises
    towards the end, when tokens that are frequent in training get less than a uniform guess, and, on given data, when the whole
    is no better than the frequencies of tokens. Positions are judged in packed blocks only: in texts of their own the first
    tokens are of another kind.

    Args:
        data: as for `test_calibration`.
    """
    if not (found.over_tokens and found.output == "tokens" and found.scores_vocabulary):
        return CheckResult(
            NAME, "not run", "The model does not predict tokens of a vocabulary.", remedy="Nothing to do."
        )
    if is_untrained(found.model):
        return CheckResult(NAME, "not run", "The model is untrained: its loss means nothing yet.", remedy="Train it.")
    try:
        prepared = data_for(found, data)
        if not kind_of_task(prepared.task_spec.task_type).over_tokens:
            return CheckResult(
                NAME, "not run", f"Not defined for {prepared.task_spec.task_type}.", remedy="Nothing to do."
            )
        counts, losses, uniform = _losses(found, prepared)
    except DATA_ERRORS as error:
        return CheckResult(NAME, "not run", f"Nothing was measured: {error}.", remedy=str(error))
    if not len(losses.model):
        return CheckResult(NAME, "not run", "The held-out data have no targets.", remedy="Give held-out text.")
    mean, unigram = float(losses.model.mean()), float(losses.unigram.mean())
    measured: dict[str, Any] = {
        "loss_nats": mean, "unigram_loss_nats": unigram, "uniform_loss_nats": uniform, "targets": len(losses.model),
        "data": prepared.source, "by_frequency": _by_frequency(losses, counts), "by_position": _by_position(losses),
    }  # fmt: skip
    thresholds = {"loss_nats": unigram, "gain_nats": LEAST_GAIN, "rise_nats": LARGEST_RISE}
    excluded, unlikely = _below_chance(losses, counts, uniform, prepared.tokenizer)
    kept = ~torch.isin(losses.targets, unlikely)  # a few tokens that are never predicted outweigh all others
    if not float(losses.gain[kept].mean()) > 0:
        return _worse_than_frequency(prepared, mean, unigram, measured, thresholds)
    findings = []
    if prepared.task_spec.task_type == "causal_lm" and prepared.packed:
        findings = _judged_positions(found, losses, prepared, measured)
    findings += excluded
    summary = (
        f"Loss {mean:.3g} nats per token (frequencies alone: {unigram:.3g}) on {len(losses.model):,} tokens of "
        f"{prepared.source}."
    )
    result = CheckResult(NAME, "pass", summary, measured, thresholds, figure=_figure(measured))
    return result.with_findings(findings, {})


def _losses(found: Probe, prepared: CheckData) -> tuple[Tensor, _Losses, float]:
    """Counts of tokens in training, losses of held-out targets, and that of a uniform guess."""
    parts, classes = [], 0
    for one in scored(found.model, prepared):
        classes = one.outputs.shape[1]
        loss = F.cross_entropy(one.outputs, one.targets, reduction="none")
        parts.append([column.cpu() for column in (loss, one.targets, one.positions, one.rows)])
    if not parts:
        empty = torch.zeros(0)
        return empty, _Losses(empty, empty, empty, empty, empty), 0.0
    loss, targets, positions, rows = (torch.cat(column) for column in zip(*parts, strict=True))
    part = prepared.validation if prepared.train is None else prepared.train
    counts = class_counts(found.model, prepared, part, classes)
    shares = (counts + 1) / (counts.sum() + classes)  # add-one smoothing: no token is impossible
    return counts, _Losses(loss.double(), -shares.log()[targets], targets, positions, rows), math.log(classes)


def _worse_than_frequency(
    prepared: CheckData, mean: float, unigram: float, measured: dict[str, Any], thresholds: dict[str, float]
) -> CheckResult:
    summary = (
        f"The loss on {prepared.source} is {mean:.3g} nats per token, no better than frequencies alone ({unigram:.3g})."
    )
    if not prepared.given:
        return CheckResult(
            NAME, "not run", f"{summary} The model was trained on other text.", measured, thresholds,
            "Give data=… of the kind it was trained on.",
        )  # fmt: skip
    remedy = "Check that tokenizer and data are those of the training; else train longer."
    finding = Finding("worse than frequency", "warn", summary, remedy)
    return CheckResult(NAME, "warn", summary, measured, thresholds, remedy, _figure(measured), (finding,))


def _by_frequency(losses: _Losses, counts: Tensor) -> dict[str, dict[str, float]]:
    """Mean losses of tokens by their rank in training."""
    ranks = torch.empty(len(counts), dtype=torch.long)
    ranks[counts.argsort(descending=True, stable=True)] = torch.arange(len(counts))
    found = {}
    for start, end in _RANKS:
        chosen = (ranks[losses.targets] >= start) & (ranks[losses.targets] < (end or len(counts)))
        if chosen.any():
            name = f"ranks {start + 1} to {end}" if end else f"ranks above {start}"
            found[name] = {
                "loss": float(losses.model[chosen].mean()), "unigram_loss": float(losses.unigram[chosen].mean()),
                "tokens": int(chosen.sum()),
            }  # fmt: skip
    return found


def _by_position(losses: _Losses) -> dict[str, dict[str, float]]:
    """Mean losses in ranges of positions that double in length."""
    found, start, last = {}, int(losses.positions.min()), int(losses.positions.max())
    while start <= last:
        end = min(max(2 * start, start + 1), last + 1)
        chosen = (losses.positions >= start) & (losses.positions < end)
        if chosen.any():
            name = f"{start}" if end == start + 1 else f"{start} to {end - 1}"
            found[name] = {"loss": float(losses.model[chosen].mean()), "gain": float(losses.gain[chosen].mean())}
        start = end
    return found


def _judged_positions(found: Probe, losses: _Losses, prepared: CheckData, measured: dict[str, Any]) -> list[Finding]:
    last, rows = int(losses.positions.max()), len(torch.unique(losses.rows))
    if last < 8 or rows < _LEAST_ROWS:
        return []
    first = losses.positions <= max(1, last // 32)  # with little context
    late = (losses.positions > last // 2) & (losses.positions <= 3 * last // 4)
    end = losses.positions > 3 * last // 4
    findings = []
    gain, error = _difference(losses, late, first)
    measured |= {"gain_by_context_nats": gain, "gain_standard_error": error}
    if gain - _SIGMAS * error < LEAST_GAIN:
        change = _change_by_older_tokens(found, prepared, 3 * last // 4 + 1)
        measured["older_tokens_change_prediction_by_nats"] = change
        measured["trigrams_beat_bigrams_by_nats"] = known = _context_in(prepared)
        if change < LEAST_CHANGE and known > LEAST_GAIN:
            findings.append(
                Finding(
                    "context unused", "warn",
                    f"The loss does not fall with the position ({gain:.2g} ± {error:.1g} nats), and "
                    "all tokens before the last one "
                    f"change predictions by {change:.1g} nats, though longer context helps on this "
                    "text (trigrams beat bigrams by "
                    f"{known:.2g} nats).",
                    "Check the attention mask and what is passed from layer to layer: each position sees itself only.",
                )
            )  # fmt: skip
    rise, error = _difference(losses, late, end)
    measured |= {"rise_at_the_end_nats": rise, "rise_standard_error": error}
    if rise - _SIGMAS * error > LARGEST_RISE:
        findings.append(
            Finding(
                "late positions worse", "warn",
                f"The last quarter of the positions is worse than the quarter before it by {rise:.2g} ± {error:.1g} nats.",
                "Train on rows as long as these: late positions were rarely or never trained.",
            )
        )  # fmt: skip
    return findings


def _change_by_older_tokens(found: Probe, prepared: CheckData, length: int) -> float:
    """Mean KL divergence in nats of the last prediction when all tokens before the last one come from another text.

    A short training leaves a healthy model at the loss of bigrams too, but not independent of what it sees.
    """
    batch = next(iter(batches(found.model, prepared, prepared.validation, _LEAST_ROWS, _LEAST_ROWS)))
    ids_BT = batch["input_ids"][:, :length].to(found.device)
    other_BT = torch.cat([ids_BT.roll(1, 0)[:, :-1], ids_BT[:, -1:]], 1)
    found.model.eval()
    with torch.no_grad():
        first, second = (found.call({"input_ids": ids})[:, -1].float().log_softmax(-1) for ids in (ids_BT, other_BT))
    return float(F.kl_div(second, first, log_target=True, reduction="batchmean"))


def _difference(losses: _Losses, here: Tensor, there: Tensor) -> tuple[float, float]:
    """By how much the mean gain is larger in `here`, and its standard error with the targets of a row taken as dependent."""
    _, row = torch.unique(losses.rows, return_inverse=True)
    count, total, parts = int(row.max()) + 1, 0.0, torch.zeros(int(row.max()) + 1, dtype=torch.float64)
    for chosen, sign in ((here, 1.0), (there, -1.0)):
        gain = losses.gain[chosen]
        total += sign * float(gain.mean())
        parts += sign * torch.zeros(count, dtype=torch.float64).index_add_(
            0, row[chosen], (gain - gain.mean()) / len(gain)
        )
    return total, math.sqrt(float(parts.square().sum()))


def _context_in(prepared: CheckData) -> float:
    """By how many nats interpolated trigrams predict held-out text better than bigrams: context beyond the last token."""
    held_out = prepared.validation.blocks
    if isinstance(prepared.train, TokenBlocks):
        block_size = prepared.train.block_size
        train = blocks_of(prepared.train.ids[: 4000 * block_size], block_size)  # without padding
    else:
        train, held_out = held_out[::2], held_out[1::2]
    train, held_out = train[:4000].astype(np.int64), held_out[:200].astype(np.int64)
    ones = Counter(train[:, 1:].ravel().tolist())
    twos = Counter(zip(train[:, :-1].ravel().tolist(), train[:, 1:].ravel().tolist(), strict=True))
    threes = Counter(zip(*(train[:, k : train.shape[1] - 2 + k].ravel().tolist() for k in range(3)), strict=True))
    after_one: Counter[int] = Counter()
    after_two: Counter[tuple[int, int]] = Counter()
    for (first, _), number in twos.items():
        after_one[first] += number
    for (first, second, _), number in threes.items():
        after_two[first, second] += number
    total, size = sum(ones.values()), len(ones) + 1
    bigram = trigram = 0.0
    predicted = list(zip(*(held_out[:, k : held_out.shape[1] - 2 + k].ravel().tolist() for k in range(3)), strict=True))
    for first, second, third in predicted:
        # Dirichlet-smoothed interpolation (MacKay & Peto 1995): a context weighs the more, the more often it was seen.
        low = (ones[third] + 1) / (total + size)
        seen = after_one[second]
        low = (twos[second, third] + _BACK_OFF * low) / (seen + _BACK_OFF)
        high = (threes[first, second, third] + _BACK_OFF * low) / (after_two[first, second] + _BACK_OFF)
        bigram -= math.log(low)
        trigram -= math.log(high)
    return (bigram - trigram) / max(1, len(predicted))


def _below_chance(losses: _Losses, counts: Tensor, uniform: float, tokenizer: Any) -> tuple[list[Finding], Tensor]:
    """Tokens more frequent in training than the average one that get less probability than a uniform guess gives."""
    frequent = counts > max(_LEAST_SEEN, 2 * float(counts.sum()) / len(counts))
    size = len(counts)
    seen = torch.bincount(losses.targets, minlength=size)
    sums = torch.zeros(size, dtype=torch.float64).index_add_(0, losses.targets, losses.model)
    squares = torch.zeros(size, dtype=torch.float64).index_add_(0, losses.targets, losses.model.square())
    mean = sums / seen.clamp_min(1)
    error = ((squares / seen.clamp_min(1) - mean.square()).clamp_min(0) / seen.clamp_min(1)).sqrt()
    # Chance and one nat: at a uniform guess a token may well stand in contexts that the model has not learned.
    bad = (frequent & (seen >= _LEAST_SEEN) & ~(mean - _SIGMAS * error <= uniform + 1)).nonzero().flatten()
    if not len(bad):
        return [], bad
    ordered = sorted(bad.tolist(), key=lambda token: -float(mean[token]))
    names = [f"{token}" if tokenizer is None else f"{token} ({tokenizer.decode([token])!r})" for token in ordered]
    finding = Finding(
        "tokens below chance", "warn",
        f"Tokens that are frequent in training are predicted with less than a uniform guess: {few(names)} "
        f"(loss {float(mean[ordered[0]]):.3g} nats; uniform {uniform:.3g}).",
        "Look for a mask, bias or missing rows in the output layer, and for labels that leave these tokens out.",
    )  # fmt: skip
    return [finding], bad


def _figure(measured: dict[str, Any]) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 2.8), dpi=110, layout="constrained")
    left, right = figure.subplots(1, 2)
    by_position, by_frequency = measured["by_position"], measured["by_frequency"]
    left.plot(list(by_position), [row["loss"] for row in by_position.values()], marker="o", color="#1f4e9c")
    left.set(xlabel="position", ylabel="loss (nats)", title="By position")
    left.tick_params(axis="x", labelrotation=45)
    names = list(by_frequency)
    right.barh(
        names[::-1], [by_frequency[name]["unigram_loss"] for name in names][::-1], color="#cccccc", label="frequencies"
    )
    right.barh(
        names[::-1], [by_frequency[name]["loss"] for name in names][::-1], height=0.5, color="#1f4e9c", label="model"
    )
    right.set(xlabel="loss (nats)", title="By token frequency")
    right.legend()
    return figure
