"""Whether logits have the right shape for every input, rows of a batch are independent, and no position sees a later one."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from utils.check_result import CheckResult, Limit
from utils.checks.checking import check
from utils.checks.generation import key_value_cache
from utils.checks.independence import carried_state, encoder_is_used, later_positions, other_rows_in_training
from utils.checks.lengths import lengths, vocabulary
from utils.checks.limits import ROUNDING
from utils.checks.padding import padding
from utils.checks.positions import POSITION_LIMITS, arrangement_is_seen, relative_positions
from utils.checks.probe import Probe, counted, few, relative
from utils.checks.reach import both_sides_are_seen, own_token_is_seen, whole_source_is_seen
from utils.errors import ModelError, first_line

NAME = "shapes"

Shape = tuple[int, ...]


@dataclass(frozen=True)
class _Case:
    """One forward pass: what went in, the outputs, the expected outputs; `error` where it raised instead."""

    inputs: Shape
    logits: Shape
    wanted: Shape
    error: str = ""


#: Limits of the measured values, and where each is from.
_LIMITS = tuple(
    Limit(name, at_most="difference", source=ROUNDING)
    for name in (
        "row_difference", "future_difference", "future_difference_evaluation", "future_difference_training",
        "row_difference_training", "left_padding_difference", "right_padding_difference",
        "left_padding_id_difference", "right_padding_id_difference", "cache_difference",
        "cache_difference_after_left_padding",
    )
)  # fmt: skip


@check(
    NAME,
    (
        later_positions, other_rows_in_training, carried_state, encoder_is_used, own_token_is_seen, both_sides_are_seen,
        whole_source_is_seen, padding, key_value_cache, lengths, vocabulary, relative_positions, arrangement_is_seen,
    ),
    limits=(*_LIMITS, *POSITION_LIMITS),
)  # fmt: skip
def test_shape_robustness(found: Probe) -> CheckResult:
    """Forward passes of several shapes; then one batch against its rows; then, for causal models, a changed future.

    Called as (model, config=None, *, task_spec=None). Fails when logits have another shape than (B, T, V) or (B, C), when
    a row's logits depend on the other rows, or when a later token changes earlier logits: such a model reaches a low
    training loss by looking at its targets. Differences count above the number format's rounding (`Probe.tolerance`).
    """
    found.model.eval()
    with torch.no_grad():
        cases = [_case(found, rows, length) for rows, length in _sizes(found)]
        measured: dict[str, object] = {
            "cases": [{"input": case.inputs, "logits": case.error or case.logits} for case in cases]
        }
        problem = _problem(cases)
        if problem is not None:
            return CheckResult(NAME, "fail", problem[0], measured, remedy=problem[1])
        rows, future = _row_difference(found), _future_difference(found) if found.causal else None
    measured |= {"row_difference": rows, "future_difference": future, "causal": found.causal_because}
    thresholds = {"difference": found.tolerance}
    if rows != rows or future != future:  # NaN is equal to nothing, itself included
        return CheckResult(
            NAME, "fail", "The logits are NaN, so whether rows and positions are kept apart cannot be seen.", measured,
            thresholds, "Check the weights for NaN first: see the check of the initial weights.",
        )  # fmt: skip
    if not rows <= found.tolerance:
        return CheckResult(
            NAME, "fail", f"A row's logits change by {rows:.2g} of their size when other rows are in the batch.",
            measured, thresholds, "Normalise over features, not over the batch, and keep the batch dimension apart.",
        )  # fmt: skip
    if future is not None and not future <= found.tolerance:
        return CheckResult(NAME, "fail", _leak(found, future), measured, thresholds, _CAUSAL_MASK)
    seen = "no position sees a later one" if found.causal else f"causality not asked: {found.causal_because}"
    return CheckResult(
        NAME,
        "pass",
        f"Logits are right for {counted(len(cases), 'input shape')}, rows are independent, {seen}.",
        measured,
        thresholds,
    )


@check("causality")
def test_causality(found: Probe) -> CheckResult:
    """Whether a later token changes the logits of earlier positions, for models that predict the next token.

    Called as (model, config=None, *, task_spec=None). A part of `test_shape_robustness`, for two forward passes. Passes for
    models of other tasks, which may see both sides.
    """
    if not found.causal:
        return CheckResult("causality", "pass", f"Not needed: {found.causal_because}.")
    found.model.eval()
    with torch.no_grad():
        difference = _future_difference(found)
    measured, thresholds = {"future_difference": difference}, {"difference": found.tolerance}
    if difference is None:
        return CheckResult("causality", "pass", "Not needed: the model takes one position at a time.", measured)
    if not difference <= found.tolerance:
        return CheckResult("causality", "fail", _leak(found, difference), measured, thresholds, _CAUSAL_MASK)
    return CheckResult("causality", "pass", "No position sees a later token.", measured, thresholds)


_CAUSAL_MASK = "Use a causal attention mask; for a model that may see both sides give task_spec=TaskSpec.masked_lm()."


def _leak(found: Probe, difference: float) -> str:
    return f"A later token changes earlier logits by {difference:.2g} of their size ({found.causal_because})."


def _sizes(found: Probe) -> list[tuple[int, int]]:
    """(B, T) of each case, none longer than the model takes; T has no meaning for images and tables."""
    if not found.over_tokens:
        return list(dict.fromkeys([(1, 0), (found.batch_size, 0)]))
    wanted = [(1, 1), (1, found.max_length), (found.batch_size, 32), (4, 64), (2, 128)]
    return list(dict.fromkeys((rows, min(length, found.max_length)) for rows, length in wanted))


def _case(found: Probe, rows: int, length: int) -> _Case:
    batch = found.batch(rows, length)
    inputs = tuple(next(iter(batch.values())).shape)
    try:
        logits = tuple(found.call(batch).shape)
    except ModelError as error:
        if error.__cause__ is None:
            raise
        return _Case(inputs, (), (), first_line(error.__cause__, with_class=True))
    except Exception as error:  # noqa: BLE001 - whatever the model raises is found, and at which shape
        return _Case(inputs, (), (), first_line(error, with_class=True))
    # More scores than the model takes ids are allowed: vocabularies are padded to round sizes.
    scores = logits[-1] if logits else 0
    if found.output == "numbers":
        return _Case(inputs, logits, (rows, scores) if len(logits) == 2 else (rows,))
    if found.output == "classes":
        return _Case(inputs, logits, (rows, scores))
    least = (found.vocab_size or 0) if found.scores_vocabulary else 0
    return _Case(inputs, logits, (rows, length, max(scores, least)))


def _problem(cases: list[_Case]) -> tuple[str, str] | None:
    """The shape error and its remedy; None when every shape is right."""
    raised = [case for case in cases if case.error]
    if raised:
        shapes = few([str(case.inputs) for case in raised], 5)
        fine = f"; {counted(len(cases) - len(raised), 'other shape')} worked" if len(raised) < len(cases) else ""
        return (
            f"The model raised {raised[0].error} (inputs of shape {shapes}{fine}).",
            "Call the model on random inputs of that shape to see the whole error; a model that cannot take so many "
            "positions states fewer (max_position_embeddings in its config, or max_seq_len).",
        )
    wrong = [f"{case.inputs} gave {case.logits}, not {case.wanted}" for case in cases if case.logits != case.wanted]
    if wrong:
        return (
            f"Wrong shapes of logits: {'; '.join(wrong)}.",
            "The output layer must give one score per class, at every position for a language model.",
        )
    return None


def _row_difference(found: Probe) -> float:
    batch = found.batch(3, min(16, found.max_length))
    together = found.call(batch)
    alone = torch.cat([found.call({name: value[i : i + 1] for name, value in batch.items()}) for i in range(3)])
    return relative(together, alone)


def _future_difference(found: Probe) -> float | None:
    length = min(16, found.max_length)
    if length < 2:
        return None
    assert found.vocab_size is not None
    batch = found.batch(2, length)
    cut = length // 2
    changed = batch["input_ids"].clone()
    changed[:, cut:] = (changed[:, cut:] + 1) % found.vocab_size
    return relative(found.call(batch)[:, :cut], found.call({**batch, "input_ids": changed})[:, :cut])
