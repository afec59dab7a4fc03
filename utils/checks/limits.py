"""Limits of every check and their sources. Reports show them beside the measured values.

The numbers themselves stand where they are used, at the top of each module.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from utils.check_result import Limit
from utils.checks import (
    attention,
    attribution,
    bookkeeping,
    calibration,
    comparison,
    compiled,
    depth,
    fine_tuning,
    gradients,
    growth,
    half_precision,
    initialization,
    learning,
    memory,
    output_range,
    outputs,
    own_loss,
    robustness,
    search_works,
    shapes,
    slope,
    speed,
    token_losses,
    usage,
)

_ROUNDING = "1,000 units in the last place of the model's number format (0.1 in half precision)"
_OWN_CHOICE = "this project's choice"
_LENGTH_SOURCE = "attention pairs positions, which is at most quadratic in the length"

#: By the name of the check. `measured` names the value that is compared; `at_most="x"` reads the threshold called x.
LIMITS: Mapping[str, tuple[Limit, ...]] = {
    shapes.NAME: tuple(
        Limit(name, at_most="difference", source=_ROUNDING)
        for name in (
            "row_difference", "future_difference", "future_difference_evaluation", "future_difference_training",
            "row_difference_training", "left_padding_difference", "right_padding_difference",
            "left_padding_id_difference", "right_padding_id_difference", "cache_difference",
            "cache_difference_after_left_padding",
        )
    ),
    gradients.NAME: (
        Limit("total_norm", at_most=gradients.EXPLODING_NORM,
              source=f"healthy models stay below about 100 at any stage; {_OWN_CHOICE}; for cross-entropy only"),
        Limit("smallest gradient of a matrix / median", at_least=gradients.VANISHING_SHARE,
              source=f"fp16 spans about 1e-8 to 6e4; {_OWN_CHOICE}"),
        Limit("slope_disagreement", at_most=slope._DISAGREEMENT,
              source="central differences in fp64 agree to the square of their step; the rest is room for kinks"),
        Limit("gradient_first_to_last", at_least=1 / depth._GRADIENT_RATIO, at_most=depth._GRADIENT_RATIO,
              source="well-scaled stacks stay within 100 (He et al. 2015); before training only"),
    ),
    outputs.NAME: (
        Limit("spread_over_classes", at_most=outputs.LARGEST_SPREAD,
              source=f"softmax is one-hot at this spread; trained language models have 2 to 10; {_OWN_CHOICE}"),
        Limit("dependence", at_least=outputs.LEAST_DEPENDENCE,
              source=f"relative to the logits, as healthy classifiers start with a spread of 0.005; {_OWN_CHOICE}"),
        Limit("repeat_difference", at_most="repeat_difference", source=f"{_ROUNDING}, times the largest logit"),
        Limit("loss_on_random_targets_nats above ln V", at_least=-own_loss.IMPOSSIBLE_GAIN,
              source="no model that cannot see uniformly random targets gets below ln V"),
        Limit("loss before training above ln V (nats)", at_most=own_loss.UNTRAINED_EXCESS,
              source="logits with a standard deviation of s add s²/2 nats; 2 nats are s = 2; before training only"),
        Limit("own loss against cross-entropy of its logits (relative)", at_most=own_loss._LOSS_TOLERANCE,
              source="rounding in fp32"),
        Limit("bound of the outputs when the last layer is enlarged", at_least=output_range._NARROW_BOUND,
              source="soft caps in use are 30 and more (Gemma 2); tanh and sigmoid end at 1"),
    ),
    initialization.NAME: (
        Limit("smallest_std", at_least=initialization.SMALLEST_STD,
              source="GPT-2's residual projection, 0.02/√(2·layers), is 0.0014 with 100 layers; before training only"),
        Limit("largest_std", at_most=initialization.LARGEST_STD,
              source="torch's default embedding is N(0, 1); before training only"),
        Limit("standard deviation × √inputs", at_most=initialization.LARGEST_GAIN,
              source="0.58 for torch's default (He et al. 2015), below 10 in trained models"),
        Limit("the same / median layer", at_least=1 / initialization.OUT_OF_LINE, at_most=initialization.OUT_OF_LINE,
              source=f"residual scaling makes it 14 times smaller with 100 layers; {_OWN_CHOICE}"),
        Limit("mean of a normalisation's scales", at_least=initialization.SMALLEST_SCALE,
              at_most=initialization.LARGEST_SCALE, source="1 at first, 0 where the design adds 1"),
        Limit("activation_last_to_first", at_least=1 / depth._ACTIVATION_RATIO, at_most=depth._ACTIVATION_RATIO,
              source="variance-keeping initialisation (He et al. 2015); before training only"),
        Limit("share of dead units in a ReLU layer", at_most=depth._DEAD_SHARE,
              source="random ReLU layers leave 0 to 5 %"),
        Limit("dropout rate", at_most=bookkeeping._LARGEST_SANE_DROPOUT, source=_OWN_CHOICE),
    ),
    memory.NAME: (
        Limit("total_mib / free_mib", at_most=memory._USABLE, source="the rest is for fragments and workspaces of kernels"),
        Limit("memory of a further row / of the row before", at_most=memory._GROWTH,
              source="memory is linear in the batch; the rest is room for kernels that differ with it"),
        Limit("exponent_in_length", at_most=2.2, source=_LENGTH_SOURCE),
        Limit("exponent_in_batch", at_most=1.2, source="rows do not meet each other"),
        Limit("numbers for each pair of positions / width", at_most=1 / growth._NARROWEST_HEAD,
              source="attention scores have one for each head, and heads are 16 wide or wider"),
    ),
    speed.NAME: (
        Limit("batch_ratio", at_most=speed._BATCH_LIMIT, source="a batch should cost less than its rows one by one"),
        Limit("length_ratio", at_most=speed._LENGTH_LIMIT, source=f"{_LENGTH_SOURCE}: 4, doubled for noise"),
        Limit("operations_per_further_row", at_most=speed._CALLS_LIMIT, source="counted; 0 without a loop over rows"),
        Limit("values_per_row_for_four_times_the_rows", at_most=speed._ROW_WORK_LIMIT, source="counted; 1 without pairs"),
        Limit("values_for_twice_the_length", at_most=speed._LENGTH_WORK_LIMIT, source=f"counted; {_LENGTH_SOURCE}: 4"),
    ),
    attention.NAME: (
        Limit("median_entropy", at_least=attention.UNTRAINED_ENTROPY,
              source="of ln(visible keys); scaled scores start near 1 (Vaswani et al. 2017, 3.2.1); before training only"),
        Limit("share of collapsed heads", at_most=attention.COLLAPSED_SHARE,
              source="trained models have some heads that look at the previous or the first token"),
        Limit("entropy of a collapsed head", at_most=attention.COLLAPSED, source=f"of ln(visible keys); {_OWN_CHOICE}"),
        Limit("difference between two heads", at_least=attention.SAME_HEAD, source="rounding in fp32"),
        Limit("change_by_earlier_tokens", at_least=usage._LEAST_CHANGE, source="rounding in fp32"),
        Limit("change by exchange / by replacement", at_least=usage._LEAST_ORDER,
              source=f"judged where a replaced token is seen; {_OWN_CHOICE}"),
        Limit("change_by_shifted_positions", at_most=usage._SHIFT_TOLERANCE,
              source="rotary positions leave rounding of about 1e-4"),
    ),
    attribution.NAME: (
        Limit("completeness_error", at_most=attribution.LARGEST_ERROR,
              source="attributions add up to the change of the output (Sundararajan et al. 2017)"),
    ),
    robustness.NAME: (
        Limit("changes / noise 1% / change", at_most=robustness.LARGEST_KL,
              source=f"nats; a model above this reacts to rounding in fp16 as well; {_OWN_CHOICE}"),
        Limit("variation after the last block", at_least=robustness.COLLAPSED_SHARE,
              source="below it all positions look alike"),
    ),
    calibration.NAME: (
        Limit("calibration_error", at_most="calibration_error",
              source=f"{calibration.LARGEST_ERROR:g}, which most uncalibrated deep classifiers stay below (Guo et al. 2017, "
              "table 1), plus sampling noise with three standard errors"),
    ),
    token_losses.NAME: (
        Limit("loss_nats", at_most="loss_nats", source="the loss of the tokens' frequencies in the training data"),
        Limit("gain by more context (nats), where trigrams beat bigrams", at_least=token_losses.LEAST_GAIN,
              source=f"a small GPT gains about 1 nat on English; {_OWN_CHOICE}"),
        Limit("loss of the last quarter above the third (nats)", at_most=token_losses.LARGEST_RISE, source=_OWN_CHOICE),
    ),
    learning.NAME: (
        Limit("share_left", at_most="share_left", source="a model in which only a bias learns keeps about nine tenths"),
    ),
    fine_tuning.NAME: (
        Limit("error", at_most="error",
              source="the baseline's error on the same held-out samples, less one hundredth of it for language models"),
    ),
    search_works.NAME: (
        Limit("best_loss", at_most="best_loss", source="held-out loss before training"),
    ),
    half_precision.NAME: (
        Limit("bf16_loss_change", at_most=half_precision.LARGEST_LOSS_CHANGE,
              source=f"rounding to 8 bits moves the loss by about 1 %; {_OWN_CHOICE}"),
        Limit("bf16_gradient_cosine", at_least=half_precision.LEAST_COSINE,
              source=f"below it half of the update is rounding noise; {_OWN_CHOICE}"),
        Limit("largest_layer_output", at_most=half_precision._FP16_MAX, source="largest number in fp16 (IEEE 754)"),
        Limit("gradient_underflow_share", at_most=half_precision.LARGEST_UNDERFLOW,
              source="training works with 5 % lost (Micikevicius et al. 2018)"),
    ),
    compiled.NAME: tuple(
        Limit(name, at_most=compiled.LARGEST_DIFFERENCE,
              source=f"torch.compile's own accuracy test takes 0.001 for single operations; {_OWN_CHOICE}")
        for name in ("logits_difference", "gradient_difference")
    ),
    comparison.NAME: (
        Limit("lag", at_most="lag",
              source=f"of the reference's loss: {comparison.LARGEST_LAG:g}, as architectures of one size differ by less, or "
              f"three standard errors of the paired difference; {_OWN_CHOICE}"),
    ),
}  # fmt: skip


def limits_of(check: str, thresholds: Mapping[str, Any]) -> tuple[Limit, ...]:
    """The limits of a check, with named thresholds replaced by their values; without a value a limit is left out."""
    found = []
    for limit in LIMITS.get(check, ()):
        values = {side: _value(getattr(limit, side), thresholds) for side in ("at_least", "at_most")}
        if any(value is not None for value in values.values()):
            found.append(Limit(limit.measured, source=limit.source, **values))
    return tuple(found)


def _value(limit: float | str | None, thresholds: Mapping[str, Any]) -> Any:
    return thresholds.get(limit) if isinstance(limit, str) else limit
