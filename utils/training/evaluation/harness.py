"""evaluate_harness: tasks of the Language Model Evaluation Harness (EleutherAI) on a trained or an exported model."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from utils.adapters.facts import model_facts
from utils.adapters.left_as_found import state_kept
from utils.errors import ConfigError, DataNotFoundError, MissingPackageError, ModelError
from utils.models.origins import tokenizer_of
from utils.schema import nearest, shown
from utils.storage import absolute_path, write_json
from utils.training.engine import rng

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class HarnessScore:
    """One metric of one task.

    Attributes:
        task, metric: the harness's names; filter: how answers were extracted, "none" where they were not.
        value: in the metric's own unit; stderr: its standard error, None where the harness gives none.
        higher_is_better: None where the task does not say.
        num_examples, num_fewshot: examples that were scored, and solved examples before each.
        version: the task's version; scores of different versions do not compare.
    """

    task: str
    metric: str
    filter: str
    value: float
    stderr: float | None
    higher_is_better: bool | None
    num_examples: int
    num_fewshot: int
    version: str


@dataclass(frozen=True)
class HarnessReport:
    """What the harness measured.

    Attributes:
        scores: one a task and metric, in the order of the tasks.
        harness_version: of the package lm-eval; limit: most examples of a task, None: all.
        raw: everything that `lm_eval.simple_evaluate` returned besides samples.
    """

    scores: tuple[HarnessScore, ...]
    harness_version: str
    limit: int | None
    raw: Mapping[str, Any] = field(repr=False)

    def score(self, task: str, metric: str) -> float:
        """The value of a metric. Raises `ConfigError` that lists what there is."""
        for one in self.scores:
            if (one.task, one.metric) == (task, metric):
                return one.value
        known = ", ".join(f"{one.task}: {one.metric}" for one in self.scores)
        raise ConfigError(f"there is no {metric} of {task}; there are {known}.")

    def to_frame(self) -> pd.DataFrame:
        """One row a score."""
        import pandas as pd

        return pd.DataFrame([asdict(one) for one in self.scores])

    def to_dict(self) -> dict[str, Any]:
        """Scores, version and limit as plain values, without `raw`."""
        scores = [asdict(one) for one in self.scores]
        return {"scores": scores, "harness_version": self.harness_version, "limit": self.limit}

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write `to_dict` as JSON. Returns the absolute path."""
        target = absolute_path(path)
        write_json(target, self.to_dict())
        return target

    def rows(self) -> Mapping[str, str]:
        """The report as a table: what, and how much in words."""
        rows = {"Harness": f"lm-eval {self.harness_version}" + (f", first {self.limit} examples" if self.limit else "")}
        for one in self.scores:
            error = "" if one.stderr is None else f" ± {one.stderr:.4f}"
            rows[f"{one.task}: {one.metric}"] = (
                f"{one.value:.4f}{error} on {one.num_examples:,} examples, {one.num_fewshot}-shot, version {one.version}"
            )
        return rows

    def __str__(self) -> str:
        from utils.views.tables import summary_text

        return summary_text("Evaluation harness", self.rows())

    def show(self) -> None:
        """Show it: a table in a notebook, text elsewhere."""
        from utils.views.display import show_table

        show_table("Evaluation harness", self.rows())


def evaluate_harness(
    model: Any, tasks: Sequence[str], tokenizer: Any = None, *, task_folder: str | os.PathLike[str] | None = None,
    num_fewshot: int | None = None, limit: int | None = None, batch_size: int = 8, seed: int = 42,
    apply_chat_template: bool = False,
) -> HarnessReport:  # fmt: skip
    """Score a language model on tasks of lm-evaluation-harness, through the harness's own Python interface.

    Model, mode and random state are left as they were.

    Args:
        model: the `TrainingResults` of a run, an export's folder in the "hf" format or the `ExportResult` of one, or a model of
            the transformers library.
        tasks: names of the harness's tasks, such as "arc_easy", or of tasks in `task_folder`.
        tokenizer: None: that of the results, of the folder, or the one that came with a pretrained model.
        task_folder: a folder of task files (.yaml) of your own; then only these tasks are known, and nothing of the Hub is read
            unless they say so. A task file may hold Python that is run: use only files that you trust.
        num_fewshot: solved examples before each one; None: as the task says.
        limit: only the first so many examples of each task, to try it; such scores do not compare with published ones.
        batch_size: examples that go through the model at once.
        seed: draws the few-shot examples.
        apply_chat_template: render the prompts with the tokenizer's chat template.
    Raises:
        MissingPackageError: lm-eval is not installed (extra `eval`).
        ConfigError: no such task, arguments out of range, or no tokenizer. ModelError: no model of the transformers library.
        DataNotFoundError: no such folder.
    """
    for name, value, least in (("num_fewshot", num_fewshot, 0), ("limit", limit, 1), ("batch_size", batch_size, 1)):
        optional = name != "batch_size"
        if not (value is None and optional) and (
            isinstance(value, bool) or not isinstance(value, int) or value < least
        ):
            raise ConfigError(f"{name}: got {shown(value)}; must be a whole number, at least {least}.")
    tasks = [tasks] if isinstance(tasks, str) else list(tasks)
    if not tasks:
        raise ConfigError("tasks: got none; name at least one task of the harness.")
    if task_folder is not None and not absolute_path(task_folder).is_dir():
        raise DataNotFoundError(f"there is no folder {os.fspath(task_folder)}; give one with task files (.yaml).")
    model, tokenizer = _model_and_tokenizer(model, tokenizer)
    try:
        import lm_eval
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise MissingPackageError("lm-eval", "to run tasks of the evaluation harness", "eval") from error
    folder = None if task_folder is None else str(absolute_path(task_folder))
    manager = TaskManager(include_path=folder, include_defaults=folder is None)
    for name in tasks:
        if name not in manager.all_tasks:
            guess = nearest(str(name), manager.all_tasks)
            hint = f"; did you mean {guess!r}?" if guess else ""
            where = "the harness" if folder is None else folder
            raise ConfigError(f"tasks: {where} has no task {shown(name)}{hint}")
    with rng.preserved(), state_kept(model):  # the harness seeds the global generators
        wrapped = HFLM(
            pretrained=model, tokenizer=tokenizer, batch_size=batch_size, max_length=model_facts(model).max_length
        )
        found: dict[str, Any] = lm_eval.simple_evaluate(
            model=wrapped, tasks=tasks, task_manager=manager, num_fewshot=num_fewshot, limit=limit, log_samples=False,
            random_seed=seed, numpy_random_seed=seed, torch_random_seed=seed, fewshot_random_seed=seed,
            apply_chat_template=apply_chat_template,
        )  # fmt: skip
    return HarnessReport(tuple(_scores(found)), str(found.get("lm_eval_version", "unknown")), limit, found)


def _scores(found: Mapping[str, Any]) -> list[HarnessScore]:
    """The metrics of each task: the harness calls them "metric,filter", and their errors "metric_stderr,filter"."""
    scores = []
    for task, row in found["results"].items():
        for name, value in row.items():
            metric, comma, how = name.partition(",")
            if not comma or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            error = row.get(f"{metric}_stderr,{how}")
            counts = found.get("n-samples", {}).get(task, {})
            better = found.get("higher_is_better", {}).get(task, {}).get(metric)
            scores.append(
                HarnessScore(
                    task, metric, how, float(value), float(error) if isinstance(error, int | float) else None, better,
                    int(counts.get("effective", 0)), int(found.get("n-shot", {}).get(task) or 0),
                    str(found.get("versions", {}).get(task, "unknown")),
                )
            )  # fmt: skip
    return scores


def _model_and_tokenizer(given: Any, tokenizer: Any) -> tuple[nn.Module, Any]:
    model = given if isinstance(given, nn.Module) else getattr(given, "model", None)
    if not isinstance(model, nn.Module):
        place = getattr(given, "path", given)
        if not isinstance(place, (str, os.PathLike)):
            raise ModelError(
                f"evaluate_harness takes the results of a training, an export's folder or a model of transformers; got a "
                f"{type(given).__name__}."
            )
        model = _of_folder(Path(place))
    if not (hasattr(model, "config") and hasattr(model.config, "model_type")):
        raise ModelError(
            f"the harness runs models of the transformers library, and {type(model).__name__} is not one of them. Use "
            "evaluate_generation, or a model of ModelRegistry."
        )
    found = next(
        (one for one in (tokenizer, getattr(given, "tokenizer", None), tokenizer_of(model)) if one is not None), None
    )
    if found is None:
        raise ConfigError("evaluate_harness needs the tokenizer that the model was trained with: tokenizer=...")
    return model, found


def _of_folder(folder: Path) -> nn.Module:
    """The model in an export's folder, read offline; its tokenizer comes with it."""
    from utils.models.pretrained import load_pretrained

    if not (absolute_path(folder) / "config.json").is_file():
        raise DataNotFoundError(f"{folder} holds no model in the format of transformers: it has no config.json.")
    return load_pretrained(str(absolute_path(folder))).model
