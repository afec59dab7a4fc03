"""The rules that are applied to the first samples of a training, in the order of their sentences."""

from __future__ import annotations

from utils.training.engine.sanity.criterion import (
    class_weights_are_not_reversed,
    criterion_has_the_right_sign,
    criterion_is_a_mean,
    criterion_pairs_outputs_with_targets,
    criterion_rewards_right_answers,
    criterion_takes_sure_answers,
    smoothing_leaves_targets,
)
from utils.training.engine.sanity.gradients import (
    enough_is_trained,
    frozen_layers_were_trained,
    gradients_reach_parameters,
    output_layer_is_trained,
)
from utils.training.engine.sanity.outputs import (
    model_bends,
    outputs_are_scores,
    outputs_reach_targets,
    rows_are_independent,
    units_are_alive,
)
from utils.training.engine.sanity.trial import Rule

RULES: tuple[Rule, ...] = (
    outputs_reach_targets, outputs_are_scores, rows_are_independent, units_are_alive, model_bends, criterion_is_a_mean,
    criterion_has_the_right_sign, criterion_rewards_right_answers, criterion_pairs_outputs_with_targets,
    class_weights_are_not_reversed, criterion_takes_sure_answers, smoothing_leaves_targets, gradients_reach_parameters,
    enough_is_trained, output_layer_is_trained, frozen_layers_were_trained,
)  # fmt: skip
