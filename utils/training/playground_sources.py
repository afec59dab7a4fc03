"""Where a playground's model comes from: the results of a training, a run's folder, or a folder exported for transformers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.errors import CheckpointError, ConfigError
from utils.storage import read_json_object
from utils.training.playground import Playground
from utils.training.run_state import read_state

if TYPE_CHECKING:
    from torch import nn

    from utils.training.engine.results import TrainingResults


def open_playground(source: TrainingResults | str | Path) -> Playground:
    """The playground of a training's results, of a run's folder, or of an exported folder for transformers.

    Results are played with the weights of the best checkpoint, as they are exported. Where these are not the model's own, a
    copy of the model takes them, on the same device.

    Raises:
        ConfigError: the folder is neither, or holds no tokenizer; CheckpointError, ModelError: it cannot be loaded.
        ExportError: nothing says how large a model's images are.
    """
    if not isinstance(source, (str, Path)):
        return _of_results(source, *_best_of(source))
    from utils.training.stored_models import load_results, load_stored_model

    folder = Path(source)
    if read_state(folder) is not None:
        if not (folder / "exports" / "hf" / "config.json").is_file():
            raise ConfigError(
                f"{folder} has no export for transformers, and checkpoints hold no model code; export the run first "
                "(results.export('hf')), or pass the results themselves"
            )
        loaded = load_results(folder, "", {})
        return _of_results(loaded, loaded.model, "")  # the export has the best weights
    if not (folder / "config.json").is_file():
        raise ConfigError(f"{folder} is neither a run's folder nor an exported folder for transformers")
    from transformers import AutoTokenizer

    model: Any = load_stored_model(str(folder), "", {}).model  # of transformers
    has_tokenizer = any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json"))
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True) if has_tokenizer else None
    name = type(model).__name__
    if name.endswith("ForTokenClassification"):
        return Playground(model, tokenizer, "token_classification")
    if name.endswith("ForImageClassification"):
        return Playground(model, None, "image_classification", preprocessing=_stored_preprocessing(folder, model))
    if name.endswith("ForMaskedLM"):
        return Playground(model, tokenizer, "masked_lm")
    if not name.endswith("ForSequenceClassification"):
        task = "seq2seq" if model.config.is_encoder_decoder else None
        return Playground(model, tokenizer, task if model.can_generate() else name)
    # As transformers: a single output, or the problem type where it is stated, is a regression.
    problem = model.config.problem_type or ("regression" if model.config.num_labels == 1 else None)
    task = "regression" if problem == "regression" else "classification"
    return Playground(model, tokenizer, task, multi_label=problem == "multi_label_classification")


def _best_of(results: TrainingResults) -> tuple[nn.Module, str]:
    """The model with the weights of the best checkpoint, and a sentence on them: a copy where it has other ones now."""
    path = results.best_model_path
    if path is None or results.weights == "best" or results.state.best.step in (None, results.steps):
        return results.model, ""
    import copy

    from utils.training.engine.checkpointing.store import read_checkpoint
    from utils.training.engine.checkpointing.weights import load_model_weights, weights_to_use
    from utils.training.engine.compute.master_weights import in_formats_of

    checkpoint = read_checkpoint(path, mapped=True)
    model = copy.deepcopy(results.bare_model)
    load_model_weights(model, in_formats_of(model, weights_to_use(checkpoint)), path)
    measured = (
        f" ({results.training_config.monitor} {results.best_value:.4g})" if results.best_value is not None else ""
    )
    best = f"Weights of the best checkpoint, step {results.state.best.step:,}{measured}"
    return model, f"{best}; the last step is {results.steps:,}."


def _of_results(results: TrainingResults, model: nn.Module, weights: str) -> Playground:
    spec = results.task_spec
    preprocessing = None
    if spec is not None and spec.task_type == "image_classification":
        from utils.training.export.image_processing import preprocessing_of

        preprocessing = preprocessing_of(model, None, spec)
    opened = Playground(
        model, results.tokenizer, None if spec is None else spec.task_type,
        multi_label=spec is not None and bool(spec.multi_label), preprocessing=preprocessing,
    )  # fmt: skip
    opened.weights = weights
    opened.most_answers = None if spec is None else spec.preprocessing_config.get("most_answers")
    if opened.kind in ("classes", "numbers", "tags"):
        opened.never_seen = _never_seen(getattr(results, "checkpoint_path", None), results.model)
    return opened


def _never_seen(checkpoint: str | None, model: nn.Module) -> frozenset[int]:
    """Token ids that the training never had, as far as its last checkpoint tells."""
    from utils.training.engine.checkpointing.store import read_checkpoint
    from utils.training.seen_tokens import never_seen_ids

    if checkpoint is None:
        return frozenset()
    try:
        found = never_seen_ids(read_checkpoint(checkpoint, mapped=True), model)
    except CheckpointError:  # moved or removed since: the model itself can still be tried
        return frozenset()
    return found or frozenset()


def _stored_preprocessing(folder: Path, model: nn.Module) -> Mapping[str, Any]:
    """How an image becomes pixels, by the folder's preprocessor_config.json, else by the model's config."""
    from utils.training.export.image_processing import preprocessing_of
    from utils.training.task_spec import TaskSpec

    stated = read_json_object(folder / "preprocessor_config.json")
    normalised = stated.get("do_normalize", True)
    kept = {name: stated[name] for name in ("image_mean", "image_std") if normalised and stated.get(name) is not None}
    return preprocessing_of(model, None, TaskSpec.image_classification(preprocessing_config=kept))
