"""Whether logits have the right shape for every input, rows of a batch are independent, and no position sees a later one."""

from __future__ import annotations

import torch

from utils.checks.probe import Probe, check
from utils.checks.result import CheckResult

NAME = "shapes"


@check(NAME)
def test_shape_robustness(found: Probe) -> CheckResult:
    """Forward passes of several shapes; then one batch against its rows; then, for causal models, a changed future.

    Called as (model, config=None, *, task_spec=None). Fails when logits have another shape than (B, T, V) or (B, C), when
    a row's logits depend on the other rows, or when a later token changes earlier logits: such a model reaches a low
    training loss by looking at its targets. Differences count above the number format's rounding (`Probe.tolerance`).
    """
    found.model.eval()
    with torch.no_grad():
        shapes = _shapes(found)
        wrong = [f"{inputs} gave {got}, not {wanted}" for inputs, got, wanted in shapes if got != wanted]
        measured: dict[str, object] = {"cases": [{"input": inputs, "logits": got} for inputs, got, _ in shapes]}
        if wrong:
            return CheckResult(
                NAME, "fail", f"Wrong shapes of logits: {'; '.join(wrong)}.", measured,
                remedy="The output layer must give one score per class, at every position for a language model.",
            )  # fmt: skip
        rows, future = _row_difference(found), _future_difference(found) if found.causal else None
    measured |= {"row_difference": rows, "future_difference": future, "causal": found.causal_because}
    thresholds = {"difference": found.tolerance}
    if not rows <= found.tolerance:
        return CheckResult(
            NAME, "fail", f"A row's logits change by {rows:.2g} of their size when other rows are in the batch.",
            measured, thresholds, "Normalise over features, not over the batch, and keep the batch dimension apart.",
        )  # fmt: skip
    if future is not None and not future <= found.tolerance:
        return CheckResult(
            NAME, "fail",
            f"A later token changes earlier logits by {future:.2g} of their size ({found.causal_because}).",
            measured, thresholds,
            "Use a causal attention mask; for a model that may see both sides give task_spec=TaskSpec.masked_lm().",
        )  # fmt: skip
    seen = "no position sees a later one" if found.causal else f"causality not asked: {found.causal_because}"
    return CheckResult(
        NAME,
        "pass",
        f"{len(shapes)} input shapes give the right logits, rows are independent, {seen}.",
        measured,
        thresholds,
    )


def _shapes(found: Probe) -> list[tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]:
    """(input's shape, logits' shape, the right one) of each case."""
    longest, batch = found.max_length, found.batch_size
    wanted = [(1, 1), (1, longest), (batch, 32), (4, 64), (2, 128)]
    cases = list(dict.fromkeys((b, min(t, longest)) for b, t in wanted))
    if found.image_shape is not None:
        cases = [(1, 0), (batch, 0)]
    rows: list[tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]] = []
    for b, t in cases:
        batch_of = found.batch(b, t)
        logits = tuple(found.call(batch_of).shape)
        given = tuple(next(iter(batch_of.values())).shape)
        classes = logits[-1] if logits else 0
        enough = max(classes, found.vocab_size or 0) if found.output == "tokens" and _is_lm(found) else classes
        right = (b, t, enough) if found.output == "tokens" else (b, classes)
        rows.append((given, logits, right))
    return rows


def _is_lm(found: Probe) -> bool:
    """Whether the logits are over the vocabulary, as opposed to labels of tokens."""
    return not type(found.model).__name__.endswith("ForTokenClassification")


def _row_difference(found: Probe) -> float:
    batch = found.batch(3, min(16, found.max_length))
    together = found.call(batch)
    alone = torch.cat([found.call({name: value[i : i + 1] for name, value in batch.items()}) for i in range(3)])
    return _relative(together, alone)


def _future_difference(found: Probe) -> float | None:
    length = min(16, found.max_length)
    if length < 2:
        return None
    assert found.vocab_size is not None
    batch = found.batch(2, length)
    cut = length // 2
    changed = batch["input_ids"].clone()
    changed[:, cut:] = (changed[:, cut:] + 1) % found.vocab_size
    return _relative(found.call(batch)[:, :cut], found.call({**batch, "input_ids": changed})[:, :cut])


def _relative(first: torch.Tensor, second: torch.Tensor) -> float:
    """Largest difference as a share of the largest logit; infinite when the shapes differ."""
    if first.shape != second.shape:
        return float("inf")
    return float((first.float() - second.float()).abs().max() / first.float().abs().max().clamp_min(1e-6))
