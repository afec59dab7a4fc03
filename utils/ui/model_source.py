"""Source of the wizard's model: the notebook, or a pretrained or new model that the setup names.

What a pretrained model is, is read from its files. Its weights are loaded only by `load_source`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.adapters.facts import ModelFacts
from utils.errors import ConfigError, Problem, TrainbookError
from utils.training.task_kinds import kind_of_task
from utils.ui.new_model import create_new_model, new_model_facts

if TYPE_CHECKING:
    from torch import nn

    from utils.models.pretrained import Pretrained
    from utils.models.pretrained_facts import PretrainedDescription, PretrainedFacts
    from utils.ui.setup_config import SetupConfig

# What is known of pretrained models, by where and when their config was written, and the task.
_known: dict[tuple[Any, ...], SourceFacts] = {}


@dataclass(frozen=True)
class SourceFacts:
    """Facts from the files of a pretrained model.

    Attributes:
        facts: architecture, sizes, licence; None where they cannot be read.
        model_facts: sizes of the model with the head for the task; None as well.
        outline: that model without weights, for counting.
        has_tokenizer: whether a tokenizer comes with it.
        problem: why it cannot be used; "" where nothing speaks against it.
    """

    facts: PretrainedFacts | None = None
    model_facts: ModelFacts | None = None
    outline: Any = None
    has_tokenizer: bool = False
    problem: str = ""


def source_path(setup: SetupConfig) -> str:
    """The setup's pretrained model as `load_pretrained` takes it: an absolute path, or an id of the Hub."""
    source = setup.pretrained_model
    assert source is not None
    path = os.path.join(setup.home, os.path.expanduser(source))
    looks_like_an_id = source.count("/") == 1 and not source.startswith((".", "/", "~")) and "\\" not in source
    # A name that is too long for a path does not exist either.
    return source if looks_like_an_id and not os.path.exists(path) else path


def is_on_hub(setup: SetupConfig) -> bool:
    """Whether the pretrained model is named by an id of the Hub, and no folder here."""
    return not os.path.isabs(source_path(setup))


def source_facts(setup: SetupConfig, *, download: bool = False) -> SourceFacts | None:
    """Facts from the files of the setup's pretrained model; None for one of the Hub that is not cached here.

    Args:
        download: have the Hub's files downloaded.
    """
    source = source_path(setup)
    if is_on_hub(setup) and not download:
        copy = _cached(source)
        if copy is None:
            return None
        source = copy
    stamp = _stamp(Path(source))
    key = (source, stamp, setup.task)
    if stamp is None or key not in _known:
        _known[key] = _read(source, setup.task)
    return _known[key]


def named_facts(setup: SetupConfig) -> SourceFacts | None:
    """Facts about the pretrained or new model that the setup names; None where it names none, or where the files of a
    pretrained one are not on this machine."""
    if setup.new_model is not None:
        facts, outline, problem = new_model_facts(setup)
        return SourceFacts(None, facts, outline, problem=problem)
    return None if setup.pretrained_model is None else source_facts(setup)


def load_named(setup: SetupConfig) -> nn.Module:
    """The model that the setup names. Raises `ConfigError` where it names none; as `load_source` and `create_new_model`."""
    if setup.new_model is not None:
        return create_new_model(setup)
    if setup.pretrained_model is None:
        raise ConfigError("the setup names no model; set new_model or pretrained_model, or train a model of your own.")
    return load_source(setup).model


def load_source(setup: SetupConfig) -> Pretrained:
    """The setup's pretrained model with the head for its task, and its tokenizer.

    The classes or tags are those of the data; a checkpoint that knows them by name keeps its order. A regression has as many
    outputs as the data have targets.

    Raises:
        TrainbookError: the model cannot be loaded, or the data have no labels; says what would work.
    """
    from utils.models.pretrained import load_pretrained
    from utils.models.pretrained_facts import inspect_pretrained

    source = source_path(setup)
    if not kind_of_task(setup.task).has_own_outputs:
        return load_pretrained(source, setup.task)
    labels = _labels(setup, inspect_pretrained(source))
    spec = {"name": setup.task, "task_type": setup.task, "num_classes": len(labels)}
    return load_pretrained(source, spec, labels=None if setup.task == "regression" else labels)


def source_problems(setup: SetupConfig) -> list[Problem]:
    """Problems with the pretrained or new model that the setup names, as far as files and sizes tell."""
    found = named_facts(setup)
    field = "new_model" if setup.new_model is not None else "pretrained_model"
    return [Problem(field, found.problem)] if found is not None and found.problem else []


def describe_source(setup: SetupConfig) -> PretrainedDescription:
    """Ask the Hub for the setup's pretrained model, of which nothing is downloaded yet.

    Raises:
        TrainbookError: the Hub did not answer, has no such model, or the model is not one of transformers.
    """
    from utils.models.pretrained_facts import describe_on_hub

    return describe_on_hub(source_path(setup))


def source_rows(facts: PretrainedDescription) -> dict[str, str]:
    """A pretrained model as a table, before it is loaded."""
    folder = getattr(facts, "folder", None)
    unknown = "not stated"
    parameters = unknown if facts.parameters is None else f"{facts.parameters:,}"
    return {
        "Architecture": facts.architecture or facts.model_type,
        "Parameters": parameters,
        "Number format": facts.dtype or unknown,
        "Size on disk" if folder else "To download": f"{facts.bytes_on_disk / 2**20:,.1f} MiB",
        "Vocabulary": unknown if facts.vocab_size is None else f"{facts.vocab_size:,} token ids",
        "Context length": unknown if facts.context_length is None else f"{facts.context_length:,} tokens",
        "Licence": facts.licence or unknown,
        **({"Folder": str(folder)} if folder else {}),
    }


def tokenizer_sentence(setup: SetupConfig) -> str:
    """Name the tokenizer that a pretrained model is trained with; "" for the notebook's model."""
    if setup.pretrained_model is None:
        return ""
    found = source_facts(setup)
    if found is not None and found.facts is not None and not found.has_tokenizer:
        return (
            f"{setup.pretrained_model} has no tokenizer, so one is trained on the data. Its ids mean nothing to the "
            "pretrained weights: put the tokenizer's files into the folder."
        )
    if setup.tokenizer_strategy != "auto":
        return (
            f"A new tokenizer is trained, whose ids mean nothing to the pretrained weights. Choose auto for the tokenizer of "
            f"{setup.pretrained_model}."
        )
    return f"The tokenizer of {setup.pretrained_model} is used. The vocabulary above is the model's."


def adapters_here(setup: SetupConfig) -> str:
    """The adapters that runs have exported for the setup's pretrained model, a line each, or ""."""
    from utils.training.export.adapters import list_adapters

    found = source_facts(setup)
    if found is None or found.facts is None:
        return ""
    folder = setup.home / os.path.expanduser(setup.output_dir)
    return "\n".join(map(str, list_adapters(folder, found.facts.folder)))


def exported_runs(setup: SetupConfig) -> list[str]:
    """Folders of the runs in the setup's output folder that were exported for transformers, the newest first."""
    folder = setup.home / os.path.expanduser(setup.output_dir)
    found = {path.parents[2]: path.stat().st_mtime for path in folder.glob("*/exports/hf/config.json")}
    newest = sorted(found, key=lambda run: (-found[run], run.name))
    return [os.fspath(run.relative_to(setup.home) if run.is_relative_to(setup.home) else run) for run in newest]


def data_labels(setup: SetupConfig) -> tuple[str, ...]:
    """The classes or tags in the setup's data; for regression, a name for each target. Raises as `label_names`."""
    from utils.data.file_records import label_names
    from utils.data.prepare import load_labelled

    rows = load_labelled(setup, with_validation=False).records
    return label_names(rows, setup.task, text_column=setup.text_column, label_column=setup.label_column)


def _labels(setup: SetupConfig, facts: PretrainedFacts) -> list[str]:
    from utils.models.pretrained import checkpoint_labels

    found = data_labels(setup)
    known = checkpoint_labels(facts)
    return list(known) if set(found) <= set(known) else list(found)


def _read(source: str, task: str) -> SourceFacts:
    from utils.models.inspect import vocab_size_of
    from utils.models.pretrained import TOKENIZER_FILES, outline_pretrained
    from utils.models.pretrained_facts import inspect_pretrained

    facts = None
    try:
        facts = inspect_pretrained(source)
        outline = outline_pretrained(source, task)
    except TrainbookError as error:
        return SourceFacts(facts, problem=str(error))
    except Exception as error:  # noqa: BLE001 - a config can make transformers raise anything; the form reports it
        return SourceFacts(facts, problem=f"{source}: its config makes no model ({type(error).__name__}: {error})")
    if problem := _reads_both_ways(outline, task, facts):
        return SourceFacts(facts, problem=problem)
    from utils.adapters.facts import model_facts

    found = model_facts(outline)
    known = ModelFacts(found.name, found.parameters, found.trainable, vocab_size_of(outline), found.max_length)
    has_tokenizer = any(name in facts.files for name in TOKENIZER_FILES)
    return SourceFacts(facts, known, outline, has_tokenizer)


def _reads_both_ways(outline: Any, task: str, facts: PretrainedFacts) -> str:
    """Explain why an encoder cannot be trained on causal language modelling; "" for other models and tasks."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING

    config = outline.config
    if task != "causal_lm" or type(config) not in MODEL_FOR_MASKED_LM_MAPPING or getattr(config, "is_decoder", False):
        return ""
    if getattr(config, "is_encoder_decoder", False) or (facts.architecture or "").endswith(
        ("ForCausalLM", "LMHeadModel")
    ):
        return ""
    return (
        f"{facts.architecture or facts.model_type} reads a text in both directions and cannot learn to continue it; choose the "
        "task text_classification, regression or token_classification, or a model such as GPT-2 or Llama"
    )


def _cached(source: str) -> str | None:
    """The folder of a Hub model that was downloaded before."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    name, _, revision = source.partition("@")
    try:
        found = try_to_load_from_cache(name, "config.json", revision=revision or None)
    except HFValidationError:
        return source  # no id: reading it says so
    return os.fspath(Path(found).parent) if isinstance(found, str) else None


def _stamp(folder: Path) -> Any:
    """Changes when the config of a folder does, or None."""
    for place in (folder, folder / "exports" / "hf", folder / "hf"):
        try:
            return (place / "config.json").stat().st_mtime_ns
        except OSError:
            continue
    return None
