"""TrainingResults: what a training leaves behind, as attributes and as a mapping with every documented key."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from utils.training.engine.hardware.energy import EnergyUse
from utils.training.engine.metrics import perplexity
from utils.training.engine.state import Row, TrainState
from utils.training.evaluation.answer_ends import AnswerEnds, stored_answer_ends

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure
    from torch import Tensor, nn

    from utils.training.diagnosis.record import Guess
    from utils.training.doctor import Diagnosis
    from utils.training.engine.loss.tasks import Task
    from utils.training.task_spec import TaskSpec
    from utils.training.training_config import TrainingConfig

Weights = Literal["trained", "averaged", "best"]

# A validation loss falls steeply that is lower by this share of the one before, and of what it fell in all, in so many
# validations at least.
_STEEP, _FEWEST_VALIDATIONS = 0.1, 3

# Columns that readers of metrics_summary rely on; unknown values are NaN there.
_COLUMNS = (
    "epoch", "train/loss", "val/loss", "train/accuracy", "val/accuracy", "train/perplexity", "val/perplexity",
    "train/learning_rate", "train/grad_norm",
)  # fmt: skip


class StepRows(list[Row]):
    """Rows of steps. Calling it returns it, so that `results.step_rows` and `results.step_rows()` are the same."""

    def __call__(self) -> StepRows:
        return self


class TrainingResults(Mapping[str, Any]):
    """A run's outcome. `results["final_loss"]` and `results.final_loss` are the same; unknown is None, never 0.

    Attributes:
        model: the trained model, with the weights that `weights` names; tokenizer: what was given to the Trainer.
        weights: "trained": the model has the weights of the last step; "averaged": it has their average (`weight_averaging`),
            which was better at the latest validation; "best": it has those of the best checkpoint, because the run was asked
            to stop and keep the best; None: not known, of results that were read from a run's folder.
        task_spec, training_config: what was learned and how.
        run_dir: the run's folder (Path); run_name: its name.
        precision: that of forward and backward passes, "bf16", "fp16" or "32"; precision_reason: with
            precision="auto", what decided; else None.
        state: the TrainState at the end.
        fine_tuning: of a run that trained a part of the model: its mode, the parameters that were trained, all of them, their
            share, the optimizer's bytes and the names of trained tensors that did not move; else None.
        notices: sentences the user should know: inferences, fallbacks, failed services.
        checkpoint_path: newest checkpoint; best_model_path: best one; checkpoint_paths: all that are kept, oldest first.
        export_dir: the export bundle, where the config asks for one; export_error: why there is none, else None.
        curves_shown: whether a live view has shown the run's curves, so that `show` folds them.
    """

    KEYS: tuple[str, ...] = (
        "loss_history", "val_loss_history", "metrics_summary", "best_epoch", "best_value", "final_loss", "final_perplexity",
        "final_metrics", "training_time", "grad_norm_history", "amp_enabled", "checkpoint_path", "checkpoint_paths",
        "best_model_path", "final_model_state", "export_dir", "stopped_early", "stop_reason", "epochs_trained", "steps",
        "run_name", "run_dir", "history", "model", "tokenizer", "notices",
    )  # fmt: skip

    def __init__(
        self, *, state: TrainState, model: nn.Module, tokenizer: Any, task_spec: TaskSpec | None,
        training_config: TrainingConfig,
        run_dir: Path, precision: str, checkpoints: list[Path], best_model_path: Path | None, notices: list[str],
        fine_tuning: dict[str, Any] | None = None, weights: Weights | None = "trained",
        precision_reason: str | None = None,
    ) -> None:  # fmt: skip
        self.state, self.model, self.tokenizer = state, model, tokenizer
        self.task_spec, self.training_config = task_spec, training_config
        self.run_dir, self.run_name = run_dir, run_dir.name
        self.precision, self.precision_reason = precision, precision_reason
        self.checkpoint_paths = [str(path) for path in checkpoints]
        self.checkpoint_path = self.checkpoint_paths[-1] if checkpoints else None
        self.best_model_path = str(best_model_path) if best_model_path else None
        self.notices = notices
        self.fine_tuning, self.weights = fine_tuning, weights
        self.export_dir: str | None = None
        self.export_error: str | None = None
        self.curves_shown = False

    @property
    def bare_model(self) -> nn.Module:
        """The module that was trained, whatever `model` may have around it."""
        return self.model

    @property
    def epoch_rows(self) -> list[Row]:
        """One row an epoch; an epoch that was cut short and finished later counts once."""
        return list({row["epoch"]: row for row in self.state.history if row["event"] == "epoch"}.values())

    @property
    def history(self) -> list[Row]:
        """Epoch rows: what `loss_history` and `metrics_summary` are made of."""
        return self.epoch_rows

    @property
    def evaluate_rows(self) -> list[Row]:
        """One row a validation."""
        return [row for row in self.state.history if row["event"] == "evaluate"]

    @property
    def step_rows(self) -> StepRows:
        """Rows of single steps (at most about 1,000 a run), read from the run's history.jsonl each time. `step_rows()` is the
        same list."""
        from utils.storage import read_json_lines

        return StepRows(row for row in read_json_lines(self.run_dir / "history.jsonl") if row["event"] == "step")

    @property
    def loss_history(self) -> list[float]:
        """Training loss of each epoch: the mean over all targets of the loss that is minimised, in the task's unit."""
        return [row["train/loss"] for row in self.epoch_rows if "train/loss" in row]

    @property
    def val_loss_history(self) -> list[float]:
        """Validation losses, in order."""
        return [row["val/loss"] for row in self.evaluate_rows]

    @property
    def grad_norm_history(self) -> list[float]:
        """Mean gradient norm (before clipping) of each epoch."""
        return [row["train/grad_norm"] for row in self.epoch_rows if "train/grad_norm" in row]

    @property
    def final_loss(self) -> float | None:
        """Training loss of the last epoch; of the part of it that was done, when the first was not finished."""
        if self.loss_history:
            return self.loss_history[-1]
        return self.state.epoch_sums.mean_loss

    @property
    def final_perplexity(self) -> float | None:
        """Perplexity of the last validation; of the last training epoch when nothing was validated. From the cross-entropy
        without label smoothing. None where the loss is not over tokens."""
        if not self._task.over_tokens:
            return None
        for rows, name in ((self.evaluate_rows, "val/perplexity"), (self.epoch_rows, "train/perplexity")):
            if rows:
                return rows[-1].get(name)
        sums = self.state.epoch_sums
        loss = sums.count("plain_loss") if "plain_loss" in sums.counts else sums.loss
        return perplexity(loss / sums.targets) if sums.targets else None

    @property
    def bits_per_byte(self) -> float | None:
        """Cross-entropy of the last validation in bits per UTF-8 byte of its text, which runs with different tokenizers have in
        common. None where nothing was validated, or the bytes of the text are not known (the notices say why)."""
        return self.evaluate_rows[-1].get("val/bits_per_byte") if self.evaluate_rows else None

    @property
    def answer_ends(self) -> AnswerEnds | None:
        """After a training on conversations, how many sampled validation answers the model ends by itself; None: not measured,
        because the data are none, nothing was validated, or the run can be continued."""
        return stored_answer_ends(self.run_dir)

    @property
    def _task(self) -> type[Task]:
        from utils.training.engine.loss.tasks import Task, find_task

        if self.task_spec is None:
            return find_task("causal_lm")
        # With a criterion of the caller's there need be no task.
        return Task if self.task_spec.task_type is None else find_task(self.task_spec.task_type)

    @property
    def final_metrics(self) -> dict[str, float]:
        """The metrics of the last epoch's row and of the last validation."""
        found: dict[str, float] = {}
        for rows in (self.epoch_rows, self.evaluate_rows):
            if rows:
                found |= {name: value for name, value in rows[-1].items() if name.startswith(("train/", "val/"))}
        return found

    @property
    def best_epoch(self) -> int | None:
        """Completed epochs (1-based) when the monitored metric was best."""
        return self.state.best.epoch

    @property
    def best_value(self) -> float | None:
        """The monitored metric's best value."""
        return self.state.best.value

    @property
    def training_time(self) -> float:
        """Seconds spent training over all sessions of the run, pauses left out."""
        return self.state.elapsed_s

    @property
    def energy(self) -> EnergyUse:
        """The energy that processors and GPUs of this machine counted in all sessions; without counters there is none."""
        return self.state.energy

    @property
    def amp_enabled(self) -> bool:
        """Whether matrix products were computed in half precision."""
        return self.precision != "32"

    @property
    def stopped_early(self) -> bool:
        """Whether early stopping ended the run."""
        return self.state.stop_reason == "early_stopping"

    @property
    def stop_reason(self) -> str | None:
        """Reason why training ended: "finished", "max_steps", "early_stopping", "finish_now", or an interruption."""
        return self.state.stop_reason

    @property
    def epochs_trained(self) -> int:
        """Completed epochs."""
        return self.state.epoch

    @property
    def steps(self) -> int:
        """Optimizer steps done."""
        return self.state.step

    @property
    def metrics_summary(self) -> pd.DataFrame:
        """One row an epoch: epoch (0-based), train/* and val/* metrics, times."""
        import pandas as pd

        rows = [
            {name: value for name, value in row.items() if name not in ("event", "complete")} for row in self.epoch_rows
        ]
        frame = pd.DataFrame(rows)
        for name in _COLUMNS:
            if name not in frame:
                frame[name] = math.nan
        return frame[[*_COLUMNS, *(name for name in frame if name not in _COLUMNS)]]

    @property
    def final_model_state(self) -> dict[str, Tensor]:
        """The model's weights on the CPU in its dtypes, read from a checkpoint on each access: the newest one, or the
        best where `weights` is "best"."""
        path = self.best_model_path if self.weights == "best" else self.checkpoint_path
        if path and Path(path).is_file():
            from utils.training.engine.checkpointing.store import read_checkpoint
            from utils.training.engine.checkpointing.weights import weights_to_use
            from utils.training.engine.compute.master_weights import in_formats_of

            weights = weights_to_use(read_checkpoint(path, mapped=True))
            return copy.deepcopy(in_formats_of(self.bare_model, weights))  # of the mapped file, which may change or go
        return {name: tensor.detach().cpu().clone() for name, tensor in self.bare_model.state_dict().items()}

    def __getitem__(self, key: str) -> Any:
        if key not in self.KEYS:
            raise KeyError(key)
        value = getattr(self, key)
        return str(value) if key == "run_dir" else value

    def __iter__(self) -> Iterator[str]:
        return iter(self.KEYS)

    def __len__(self) -> int:
        return len(self.KEYS)

    def __repr__(self) -> str:
        return f"TrainingResults({self.run_name}: {self.stop_reason}, {self.steps} steps, final_loss={self.final_loss})"

    def summary(self, baseline: float | None = None) -> dict[str, str]:
        """The run in a few words: label -> text, in reading order."""
        from utils.views.curves import EPOCH_LOSS, VALIDATION_LOSS

        reason = {"max_steps": "step limit reached"}.get(
            self.stop_reason or "", str(self.stop_reason).replace("_", " ")
        )
        rows = {
            "run": str(self.run_dir),
            "ended": f"{reason} after {self.steps:,} steps, complete epochs: {self.epochs_trained}",
        }
        if self.final_loss is not None:
            rows[EPOCH_LOSS] = f"{self.final_loss:.4f} {self._task.loss_unit}"
        if self.val_loss_history:
            last = self.val_loss_history[-1]
            measured = self.final_perplexity
            more = f" (perplexity {measured:.1f})" if measured is not None else ""
            if self.bits_per_byte is not None:
                more = f"{more.removesuffix(')')}, {self.bits_per_byte:.3f} bits per byte)"
            rows[VALIDATION_LOSS] = f"{last:.4f} {self._task.loss_unit}{more}"
        for name, value in self.evaluate_rows[-1].items() if self.evaluate_rows else ():
            if name.startswith("val/loss/"):
                rows[f"loss of {name.removeprefix('val/loss/')}"] = f"{value:.4f} {self._task.loss_unit}"
        if (answers := self.answer_ends) is not None:
            rows["answers"] = str(answers)
        for name, loss in self._compared(baseline).items():
            what = "text" if self._task.over_tokens else "data"
            rows[name] = f"{loss:.4f} {self._task.loss_unit} on the same validation {what}"
        if other := self._other_metrics():
            rows["validation"] = other
        if self.best_value is not None:
            step = self.state.best.step
            where = "" if step is None else f" (step {step:,})"
            rows["best"] = f"{self.training_config.monitor} {self.best_value:.4f}{where}"
        if self.training_config.weight_averaging != "none" or self.weights == "best":
            best = "those of the best checkpoint"
            rows["weights"] = best if self.weights in (None, "best") else self.weights
        why = f" ({self.precision_reason})" if self.precision_reason else ""
        rows["time"] = (
            f"{self.training_time:.0f} s, {'fp32' if self.precision == '32' else self.precision} precision{why}"
        )
        if self.best_model_path:
            rows["best checkpoint"] = self.best_model_path
        if self.export_dir:
            rows["export bundle"] = self.export_dir
        known = rows.get("answers", "")
        notices = [text for text in (*self.notices, self._outlook()) if text and text.rstrip(".") != known]
        for number, notice in enumerate(notices, 1):
            rows[f"note {number}"] = notice
        return rows

    def _outlook(self) -> str:
        """A sentence where the validation loss fell steeply until a run came to its planned end; else ""."""
        losses = [float(row["val/loss"]) for row in self.evaluate_rows if row.get("val/loss") is not None]
        if self.stop_reason not in ("finished", "max_steps") or len(losses) < _FEWEST_VALIDATIONS:
            return ""
        fell = losses[-2] - losses[-1]
        if not fell > _STEEP * max(abs(losses[-2]), losses[0] - losses[-1]):
            return ""
        return (
            f"The validation loss still fell by {fell / abs(losses[-2]):.0%} between the last two validations: train for more "
            "epochs."
        )

    def _other_metrics(self) -> str:
        """Metrics of the last validation besides loss and perplexity, for tasks that are not judged by these."""
        from utils.views.values import SCORES

        row = self.evaluate_rows[-1] if self.evaluate_rows and not self._task.over_tokens else {}
        skipped = ("val/loss", "val/mse")
        return ", ".join(
            f"{SCORES.get(name.removeprefix('val/'), name.removeprefix('val/'))} {value:.4f}"
            for name, value in row.items()
            if name.startswith("val/") and name not in skipped
        )

    def diagnose(self) -> Diagnosis:
        """Run the doctor on this run: `utils.training.diagnose(results)`."""
        from utils.training.doctor import diagnose  # it reads results, and is above the engine

        return diagnose(self)

    def plot(self, baseline: float | None = None) -> Figure:
        """The curves of loss and learning rate; also written to the run's plots/curves.png."""
        from utils.views.curves import save_figure, training_curves

        figure = training_curves(self.epoch_rows, self.step_rows, self.evaluate_rows, self._compared(baseline))
        self.curves_path.parent.mkdir(parents=True, exist_ok=True)
        save_figure(figure, self.curves_path)
        return figure

    @property
    def curves_path(self) -> Path:
        """File that `plot` and `show` write the curves to."""
        return self.run_dir / "plots" / "curves.png"

    def show(self, baseline: float | None = None) -> None:
        """Show numbers, curves and notes: in a notebook in the colours of the page, elsewhere as text. The curves are written
        to the run's plots/curves.png too, which the text names.

        Args:
            baseline: a loss to compare with, such as `data.report.unigram_loss`, which is None of other data than texts. A
                run that learns classes or numbers is then compared with the best constant answer, where it was measured.
        """
        from utils.views.display import show_html
        from utils.views.run_results import curves_html, results_html
        from utils.views.tables import summary_text

        self.plot(baseline)
        title, rows = f"Training {self.run_name}", {**self.summary(baseline), "curves": str(self.curves_path)}
        cards = self._cards(baseline)
        notes = [text for name, text in rows.items() if name.startswith("note ")]
        compared = self._compared(baseline)
        told = {*cards, *compared} if self.val_loss_history else set(cards)
        shown = {name: text for name, text in rows.items() if not name.startswith("note ") and name not in told}
        drawn = curves_html(self.epoch_rows, self.step_rows, self.evaluate_rows, compared)
        page = results_html(title, cards, drawn, shown, notes, folded=self.curves_shown)
        show_html(page, summary_text(title, rows))

    def _cards(self, baseline: float | None) -> dict[str, str]:
        """The numbers that matter most, as `number_cards` shows them."""
        from utils.views.curves import EPOCH_LOSS, VALIDATION_LOSS
        from utils.views.report import duration

        cards = {}
        if self.final_loss is not None:
            cards[EPOCH_LOSS] = f"{self.final_loss:.4f} ({self._task.loss_unit})"
        if self.val_loss_history:
            last, measured, bits = self.val_loss_history[-1], self.final_perplexity, self.bits_per_byte
            more = [] if measured is None else [f"perplexity {measured:.1f}"]
            more += [] if bits is None else [f"{bits:.3f} bits per byte"]
            cards[VALIDATION_LOSS] = f"{last:.4f} ({', '.join(more) or self._task.loss_unit})"
            cards |= self._score_card()
            for name, loss in self._compared(baseline).items():
                cards[f"{'below' if last <= loss else 'above'} {name} by"] = (
                    f"{abs(loss - last):.4f} ({name} {loss:.4f})"
                )
        if self.best_value is not None:
            where = "" if self.state.best.step is None else f", step {self.state.best.step:,}"
            cards["best"] = f"{self.best_value:.4f} ({self.training_config.monitor}{where})"
        cards["training time"] = duration(self.training_time)
        return cards

    def _score_card(self) -> dict[str, str]:
        """Accuracy or R² of the last validation with the best value; nothing of a model that is judged by its loss."""
        from utils.views.values import score_card, score_in, score_text

        last = self.evaluate_rows[-1] if self.evaluate_rows else {}
        if (name := score_in(last)) is None:
            return {}
        values = [row[f"val/{name}"] for row in self.evaluate_rows if row.get(f"val/{name}") is not None]
        most = None if self._constant_baseline is None else self._constant_baseline[1].accuracy
        more = "" if most is None or name != "accuracy" else f"most frequent class {score_text(name, most)}"
        return score_card(name, last[f"val/{name}"], max(values), more)

    def _compared(self, baseline: float | None) -> dict[str, float]:
        """A loss to compare with by its name: the given one, else that of the best constant answer, where it is known."""
        if baseline is not None:
            return {"unigram model" if self._task.over_tokens else "baseline": baseline}
        found = self._constant_baseline
        return {} if found is None or not math.isfinite(found[1].loss) else {found[0]: found[1].loss}

    @cached_property
    def _constant_baseline(self) -> tuple[str, Guess] | None:
        """Read once: the run is over."""
        from utils.training.diagnosis.record import constant_baseline

        return None if self._task.over_tokens else constant_baseline(self.run_dir)
