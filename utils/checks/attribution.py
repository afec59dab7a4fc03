"""Attribute a prediction to its inputs by integrated gradients, with their completeness error."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from utils.adapters.attribution import can_attribute, token_attributions, token_table
from utils.check_result import CheckResult, Finding, Limit
from utils.checks.checking import check
from utils.checks.probe import Probe
from utils.views.tables import visible

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAME = "feature attribution"

# Attributions add up to the change of the output from the baseline (Sundararajan et al. 2017, completeness); the rest is the
# error of the numerical integral, which more steps make smaller.
LARGEST_ERROR = 0.1
# Times as many steps with which a large error is measured again.
_FINER = 4

#: Limits of the measured values, and where each is from.
_LIMITS = (
    Limit("completeness_error", at_most=LARGEST_ERROR,
          source="attributions add up to the change of the output (Sundararajan et al. 2017)"),
)  # fmt: skip


@check(NAME, limits=_LIMITS)
def test_attribution_analysis(found: Probe, input_text: str | None = None, n_steps: int = 50) -> CheckResult:
    """Integrated gradients of the most likely prediction, over token embeddings or over the inputs, from a baseline of zeros.

    Called as (model, config=None, *, task_spec=None, tokenizer=None, input_text=None, n_steps=50). Warns when attributions
    miss the change of the output by more than 10 %, and when all inputs but the last one have none. Needs captum (the
    extra `checks`); without it the check is "not run".
    """
    if not can_attribute():
        return CheckResult(
            NAME, "not run", "Attributions need captum, which is not installed.",
            remedy="pip install captum, or the extra 'checks'.",
        )  # fmt: skip
    if found.encoder_decoder:
        return CheckResult(
            NAME, "not run", "Not made for encoder-decoders.", remedy="Look at the encoder's attributions."
        )
    found.model.eval()
    scores, error, tokens = _attributed(found, input_text, n_steps)
    if scores is None:
        return CheckResult(NAME, "not run", tokens[0])
    if not error <= LARGEST_ERROR:
        # The error of a smooth output falls with the square of the steps, that of one with kinks (ReLU) with the steps, that of
        # one with jumps (routed experts) does not.
        coarse, first, n_steps = error, n_steps, _FINER * n_steps
        scores, error, tokens = _attributed(found, input_text, n_steps)
        assert scores is not None
        if not error <= coarse / 2:
            return CheckResult(
                NAME, "not run", f"The output jumps along the path from the baseline: attributions miss {coarse:.0%} of its "
                f"change with {first} steps, and {error:.0%} with {n_steps}.",
                remedy="Integrated gradients need an output without jumps, which routed experts do not have.",
            )  # fmt: skip
    strongest = sorted(range(len(tokens)), key=lambda i: -abs(scores[i]))[:5]
    measured = {
        "completeness_error": error, "steps": n_steps, "tokens": tokens, "scores": scores,
        "strongest": [[tokens[i], scores[i]] for i in strongest],
    }  # fmt: skip
    summary = f"Strongest inputs: {', '.join(f'{tokens[i]} ({scores[i]:+.2g})' for i in strongest)}; error {error:.1%}."
    findings = []
    if not error <= LARGEST_ERROR:
        findings.append(Finding(
            "attribution error", "warn", f"Attributions miss the change of the output by {error:.0%}.",
            "Give more steps (n_steps), or do not rely on them: the output jumps along the path from the baseline.",
        ))  # fmt: skip
    result = CheckResult(
        NAME, "pass", summary, measured, {"completeness_error": LARGEST_ERROR}, figure=_figure(tokens, scores)
    )
    return result.with_findings(findings, {})


def _attributed(found: Probe, input_text: str | None, n_steps: int) -> tuple[list[float] | None, float, list[str]]:
    """Attributions, their completeness error and the names of the inputs; without attributions, the reason."""
    return _of_tokens(found, input_text, n_steps) if found.over_tokens else _of_numbers(found, n_steps)


def _of_tokens(found: Probe, input_text: str | None, n_steps: int) -> tuple[list[float] | None, float, list[str]]:
    table = token_table(found.model)
    if table is None:
        return None, 0.0, ["No embedding of token ids was found."]
    ids_BT, tokens = _tokens(found, input_text, 12)
    embedded = _embedded_length(found, table, ids_BT)
    if embedded != ids_BT.shape[1]:
        given = ids_BT.shape[1]
        if input_text is None:
            ids_BT, tokens = _tokens(found, None, embedded)
        if ids_BT.shape[1] != embedded:
            return None, 0.0, [f"The model fills up {given} tokens to {embedded}: give a text of that many."]
    target = int(_prediction(found, {"input_ids": ids_BT}).argmax())
    scores, error = token_attributions(
        lambda ids: _prediction(found, {"input_ids": ids})[:, target], table, ids_BT, n_steps
    )
    return scores, error, tokens


def _embedded_length(found: Probe, table: nn.Module, ids_BT: Tensor) -> int:
    """Positions that reach the embedding: models with attention in windows fill up their inputs."""
    shapes: list[torch.Size] = []
    hook = table.register_forward_hook(lambda module, arguments, output: shapes.append(output.shape))
    try:
        with torch.no_grad():
            _prediction(found, {"input_ids": ids_BT})
    finally:
        hook.remove()
    is_per_position = bool(shapes) and len(shapes[0]) == 3  # (B, T, D)
    return shapes[0][1] if is_per_position else ids_BT.shape[1]


def _of_numbers(found: Probe, n_steps: int) -> tuple[list[float] | None, float, list[str]]:
    from captum.attr import IntegratedGradients

    ((name, inputs),) = found.batch(1, 0, seed=10).items()
    outputs = _prediction(found, {name: inputs})
    target = int(outputs.flatten(1).argmax())

    def of_target(values: Tensor) -> Tensor:
        return _prediction(found, {name: values}).flatten(1)[:, target]

    method: Any = IntegratedGradients(of_target)
    attributions, delta = method.attribute(
        inputs, n_steps=n_steps, internal_batch_size=16, return_convergence_delta=True
    )
    change = float((of_target(inputs) - of_target(torch.zeros_like(inputs))).detach().abs())
    size = max(change, float(attributions.abs().sum()) * 0.1, 1e-9)
    values = attributions[0].flatten().tolist()
    return values, float(delta.abs().max()) / size, [f"input {index + 1}" for index in range(len(values))]


def _tokens(found: Probe, input_text: str | None, length: int) -> tuple[Tensor, list[str]]:
    tokenizer = found.tokenizer
    if input_text is not None and tokenizer is not None:
        ids = tokenizer.encode(input_text)
        ids = [int(one) for one in (ids.ids if hasattr(ids, "ids") else ids)][: found.max_length]
        names = [visible(str(tokenizer.decode([one]))) for one in ids]
        return torch.tensor([ids], device=found.device), names
    ids_BT = found.batch(1, min(length, found.max_length), seed=10)["input_ids"]
    return ids_BT, [f"#{int(one)}" for one in ids_BT[0]]


def _prediction(found: Probe, batch: dict[str, Tensor]) -> Tensor:
    """Scores of the last position, or of the row."""
    if found.over_tokens:  # no position is padding, whatever its id; models that take no mask are not given it
        batch = {**batch, "attention_mask": torch.ones_like(batch["input_ids"])}
    outputs = found.call(batch)
    return outputs[:, -1] if found.output == "tokens" else outputs


def _figure(tokens: Sequence[str], scores: Sequence[float]) -> Figure:
    """Bars of the inputs' attributions: for the prediction to the right, against it to the left."""
    from matplotlib.figure import Figure

    shown = min(len(tokens), 30)
    figure = Figure(figsize=(6, 0.22 * shown + 1), dpi=110, layout="constrained")
    axes = figure.subplots()
    colours = ["#1f4e9c" if score >= 0 else "#c05a00" for score in scores[:shown]]
    axes.barh(range(shown), list(scores[:shown]), color=colours)
    axes.set_yticks(range(shown), [repr(token)[1:-1] for token in tokens[:shown]], fontsize=7)
    axes.invert_yaxis()
    axes.set_xlabel("attribution to the predicted score")
    return figure
