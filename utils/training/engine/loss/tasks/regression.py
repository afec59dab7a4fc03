"""A number, or several, for each sample."""

from __future__ import annotations

import math

from torch import Tensor

from utils.adapters.forward import ModelCall
from utils.data.batch import Batch
from utils.errors import ModelError
from utils.training.engine.loss.objective import Loss, output_spread
from utils.training.engine.loss.tasks.base import Prediction, Task, Wording, labels_of, register_task, summed
from utils.training.engine.metrics import Sums, widest
from utils.training.task_spec import TaskSpec
from utils.training.training_config import TrainingConfig

# Labels are fp32, so their squares differ by this much where they are equal.
_NO_VARIANCE = 1e-12


@register_task
class Regression(Task):
    """Numbers for each sample, by the squared error. Outputs (B,), (B, 1) or (B, K), `labels` (B,) or (B, K).

    A target is one number; a label that is NaN is not known and not scored. (-100 is a number like any other here.)

    Args:
        num_outputs: K; None: 1, unless the labels say otherwise, and then r2 is over all numbers together.
    """

    name = "regression"
    loss_unit = "squared error per number"

    def __init__(self, num_outputs: int | None = None) -> None:
        self.num_outputs = num_outputs
        by_output = ("targets", "label_sum", "label_squares", "error_squares")
        self.count_sizes = {"absolute_error": 1, "output_spread": 1, **dict.fromkeys(by_output, num_outputs or 1)}

    @classmethod
    def from_spec(cls, spec: TaskSpec, config: TrainingConfig) -> Task:
        return cls(spec.num_classes)

    def labels(self, batch: Batch) -> Tensor:
        """The labels as (B, K) in fp32 or fp64; their shape is checked."""
        labels = labels_of(batch, "regression", (1, 2), "numbers, (B,) or (B, K)")
        return summed(labels if labels.dim() == 2 else labels[:, None])

    def count_targets(self, batch: Batch) -> int:
        return int((~self.labels(batch).isnan()).sum())

    def __call__(
        self, model: ModelCall, batch: Batch, keep_outputs: bool = False, num_targets: int | None = None
    ) -> Loss:
        labels_BK = self.labels(batch)
        known_BK = ~labels_BK.isnan()
        count = int(known_BK.sum()) if num_targets is None else num_targets
        outputs_BK = self._outputs(model, batch, labels_BK)
        errors_BK = (summed(outputs_BK) - labels_BK).masked_fill(~known_BK, 0.0)
        loss_sum = errors_BK.square().sum()
        counts = self._counts(errors_BK.detach(), labels_BK.masked_fill(~known_BK, 0.0), known_BK)
        counts["output_spread"] = output_spread(outputs_BK)
        return Loss(loss_sum, count, outputs_BK if keep_outputs else None, counts)

    def _outputs(self, model: ModelCall, batch: Batch, labels_BK: Tensor) -> Tensor:
        outputs = model.uncounted(batch)
        outputs_BK = outputs[:, None] if outputs.dim() == 1 else outputs
        if outputs_BK.shape != labels_BK.shape or self.num_outputs not in (None, outputs_BK.shape[-1]):
            rows, numbers = labels_BK.shape
            said = f", the task says num_classes={self.num_outputs}" if self.num_outputs not in (None, numbers) else ""
            raise ModelError(
                f"{type(model.model).__name__} returned {tuple(outputs.shape)}; the labels are {tuple(batch['labels'].shape)}"
                f"{said}. Regression needs (B={rows}, K={numbers}): one output for each number of a label."
            )
        return outputs_BK

    def _counts(self, errors_BK: Tensor, labels_BK: Tensor, known_BK: Tensor) -> dict[str, Tensor]:
        errors_BK, labels_BK = widest(errors_BK), widest(labels_BK)
        by_output = {
            "targets": known_BK, "label_sum": labels_BK, "label_squares": labels_BK.square(),
            "error_squares": errors_BK.square(),
        }  # fmt: skip
        dims = (0,) if self.num_outputs is not None else (0, 1)
        sums = {name: values.sum(dims).reshape(-1) for name, values in by_output.items()}
        return {"absolute_error": errors_BK.abs().sum(), **sums}

    @property
    def metric_names(self) -> tuple[str, ...]:
        return ("loss", "mse", "rmse", "mae", "r2")

    def metrics(self, sums: Sums) -> dict[str, float]:
        """`loss` and `mse` (mean squared error), `rmse` (its root), `mae` (mean absolute error), over all numbers; `r2`.

        r2 = 1 - sum of squared errors / sum of squared distances of the labels from their mean (coefficient of determination),
        the mean of it over the K outputs, as scikit-learn's `r2_score` has it; outputs whose labels are all the same have none
        and are left out, and where there are no others, so is r2.
        """
        mse = sums.loss / sums.targets
        found = {"loss": mse, "mse": mse, "rmse": math.sqrt(mse), "mae": sums.count("absolute_error") / sums.targets}
        shares = [share for share in map(_explained, *_rows(sums)) if share is not None]
        return {**found, "r2": sum(shares) / len(shares)} if shares else found

    def predictions(self, model: ModelCall, batch: Batch, wording: Wording) -> list[Prediction]:
        """The numbers of each row."""
        labels_BK = self.labels(batch)
        outputs_BK = self._outputs(model, batch, labels_BK)
        return [
            Prediction(wording.inputs(batch, row), wording.numbers(labels_BK[row]), wording.numbers(outputs_BK[row]))
            for row in range(len(labels_BK))
        ]


def _rows(sums: Sums) -> tuple[list[float], ...]:
    return tuple(sums.counts[name] for name in ("targets", "label_sum", "label_squares", "error_squares"))


def _explained(count: float, label_sum: float, label_squares: float, error_squares: float) -> float | None:
    """r2 of one output, from its sums; None where its labels do not differ."""
    if count == 0:
        return None
    variation = label_squares - label_sum**2 / count
    return 1 - error_squares / variation if variation > _NO_VARIANCE * label_squares else None
