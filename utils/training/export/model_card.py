"""Model cards: what a model is, what it was trained on and how, what was measured, and code that uses it.

A card states only what is known: from the model, the results of its training, the run's folder and the arguments. Everything
else is said to be unknown. It holds no path of this machine.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils import __version__
from utils.adapters.facts import model_facts
from utils.errors import ExportError
from utils.hub_ids import is_hub_id
from utils.scrubbing import scrub
from utils.storage import write_text
from utils.training.export.folders import size_of
from utils.training.export.manifest import add_file
from utils.training.export.markdown import code, counted, inline, table, without_folders
from utils.training.export.training_record import TrainingRecord
from utils.training.export.usage_code import Usage, usage_of
from utils.training.task_kinds import kind_of_task

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

    from utils.training.export.result import ExportResult

#: The card's name in an export's folder, where the Hub shows it.
CARD_NAME = "README.md"

_NOT_STATED = "Not stated by the author."


class ModelCardGenerator:
    """Write model cards in the format of the Hugging Face Hub."""

    def generate(
        self,
        model_name: str,
        model: Any,
        training_results: Any = None,
        dataset_name: str | None = None,
        dataset_size: int | None = None,
        vocab_size: int | None = None,
        description: str | None = None,
        limitations: str | Sequence[str] | None = None,
        intended_use: str | None = None,
        output_path: str | Path | None = None,
        *,
        exports: ExportResult | Mapping[str, ExportResult] | Sequence[str | Path] | None = None,
        checks: Any = None,
        license: str | None = None,
        energy_kwh: float | None = None,
    ) -> str:
        """Write the card of a trained model.

        Args:
            model_name: title of the card.
            model: the model, or the adapter around it.
            training_results: a TrainingResults, or a mapping with `final_metrics` or metrics of its own; None: unknown.
            dataset_name: what the model was trained on; None: what the run recorded. Of a path only the file's name is shown.
            dataset_size: number of training samples; None: what the run recorded.
            vocab_size: token ids; None: the model's.
            description, limitations, intended_use: the author's words, in Markdown.
            output_path: file to write, replaced in one step; None: none is written.
            exports: the exported formats that "Usage" shows, as results of `export_model` or as folders; None: the run's.
            checks: a CheckReport of this model.
            license: the Hub's identifier, such as "mit".
            energy_kwh: measured energy of the training.
        Returns:
            The card: YAML metadata and Markdown.
        Raises:
            ExportError: `output_path` cannot be written.
        """
        model = _unwrapped(model)
        run = TrainingRecord(training_results, exports)
        facts = model_facts(model)
        name = dataset_name if dataset_name is not None else run.dataset
        name = None if name is None else without_folders(name)
        sections = {
            "Model details": table(
                {
                    "Class": facts.name,
                    "Parameters": "unknown" if facts.parameters is None else f"{facts.parameters:,}",
                    "Trainable parameters": "unknown" if facts.trainable is None else f"{facts.trainable:,}",
                    "Vocabulary size": counted(vocab_size or facts.vocab_size, "unknown, or no token ids"),
                    "Longest input": counted(facts.max_length, "not limited by the model's config"),
                    "Task": run.task or "unknown",
                    "License": license or "not stated",
                }
            ),
            "Intended use": intended_use or _NOT_STATED,
            "Training data": table(
                {
                    "Dataset": name or "not recorded",
                    "Training samples": counted(dataset_size or run.samples("train_samples"), "not recorded"),
                    "Validation samples": counted(run.samples("validation_samples"), "none, or not recorded"),
                    **run.preparation,
                }
            ),
            "Training procedure": run.procedure,
            "Performance metrics": run.metrics_table,
            "Checks": _checks(checks),
            "Usage": _usage(run.exports, model),
            "Limitations": _limitations(limitations),
            "Environment and energy": run.environment(energy_kwh),
            "Citation": _citation(model_name),
        }
        body = [f"# {inline(model_name)}", description or "The author gave no description."]
        body += [f"## {title}\n\n{text}" for title, text in sections.items()]
        metadata = _metadata(model_name, model, name, license, run)
        card = scrub(f"---\n{metadata}\n---\n\n" + "\n\n".join(part.strip() for part in body) + "\n")
        if output_path is not None:
            _write(Path(output_path).expanduser(), card)
        return card


def _metadata(model_name: str, model: Any, dataset: str | None, license_id: str | None, run: TrainingRecord) -> str:
    """The card's YAML."""
    from huggingface_hub import ModelCardData

    pipeline = kind_of_task(run.task).pipeline
    transformers = hasattr(getattr(model, "config", None), "model_type")
    hub_id = (dataset or "").partition(" (")[0]
    results = _evaluations(run, dataset, pipeline)
    data = ModelCardData(
        model_name=model_name if results else None,
        license=license_id,
        library_name="transformers" if transformers else "pytorch",
        pipeline_tag=pipeline,
        tags=["trainbook"],
        datasets=[hub_id] if is_hub_id(hub_id) else None,
        eval_results=results or None,
    )
    return str(data.to_yaml(line_break="\n"))


def _evaluations(run: TrainingRecord, dataset: str | None, pipeline: str | None) -> list[EvalResult]:
    from huggingface_hub import EvalResult

    return [
        EvalResult(
            task_type=pipeline or "other",
            dataset_type=dataset or "unknown",
            dataset_name=dataset or "not recorded",
            dataset_split="validation",
            metric_type=name.removeprefix("val/"),
            metric_name=where,
            metric_value=value,
        )
        for name, value, where in run.measured
        if name.startswith("val/")
    ]


def _usage(folders: Sequence[Path], model: Any) -> str:
    found: list[tuple[Path, Usage]] = []
    for folder in sorted(folders, key=lambda path: path.name != "hf"):
        usage = usage_of(folder, model) if folder.is_dir() else None
        if usage is not None:
            found.append((folder, usage))
    if not found:
        return (
            "No exported files belong to this card. With the results of the training:\n\n"
            '```python\nfrom utils.training import export_model\n\nexport_model(results, formats=["safetensors"])\n```'
        )
    texts = []
    for folder, usage in found:
        heading = f"### {usage.title}\n\n" if len(found) > 1 else ""
        needs = f"Needs: {', '.join(f'`{one}`' for one in usage.packages)}. " if usage.packages else ""
        texts.append(
            f"{heading}{needs}Run it in the folder `{code(folder.name)}`.\n\n```{usage.language}\n{usage.code}```"
        )
    return "\n\n".join(texts)


def _checks(report: Any) -> str:
    if report is None:
        return "No results of model checks were given."
    lines = [
        f"{inline(report.title)}. {inline(report.conclusion)}.",
        "",
        "| Check | Verdict | Summary |",
        "|---|---|---|",
    ]
    lines += [f"| {inline(one.name)} | {one.verdict} | {inline(one.summary)} |" for one in report.results]
    return "\n".join(lines)


def _limitations(given: str | Sequence[str] | None) -> str:
    if given is not None and not isinstance(given, str):
        given = "\n".join(f"- {one}" for one in given)
    own = (
        "- Metrics were measured on data of the same source as the training data; other data were not tested.\n"
        "- Bias, safety and factual accuracy of the outputs were not evaluated."
    )
    return f"{given}\n\n{own}" if given else f"{_NOT_STATED} What follows from the procedure:\n\n{own}"


def _citation(name: str) -> str:
    key = re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-").lower() or "model"
    title = re.sub(r"[{}\\`<>\r\n]+", " ", name)
    return (
        f"```bibtex\n@misc{{{key},\n  title = {{{title}}},\n  note = {{Trained with Trainbook {__version__}}}\n}}\n```"
    )


def _unwrapped(model: Any) -> Any:
    """The model itself, without the adapter of Lightning or torch.compile around it."""
    model = getattr(model, "_orig_mod", model)
    return model.model if type(model).__name__ == "UniversalModelAdapter" else model


def _write(path: Path, card: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, card)
    except OSError as error:
        raise ExportError(f"{path} could not be written: {error.strerror or error}. Choose another path.") from error


def add_card(result: ExportResult, results: Any, model: Any) -> ExportResult:
    """Write a card into an export's folder as README.md, and return the result with the new size.

    Args:
        result: a verified export.
        results: of the training; model: the model that was exported.
    Raises:
        ExportError: it could not be written; the export itself is intact.
    """
    if not result.path.is_dir():
        return result
    name = getattr(results, "run_name", None) or type(model).__name__
    card = ModelCardGenerator().generate(str(name), model, results, exports=result)
    try:
        add_file(result.path, CARD_NAME, card)
    except OSError as error:
        raise ExportError(f"{result.path / CARD_NAME} could not be written: {error.strerror or error}.") from error
    return replace(result, size_bytes=size_of(result.path))
