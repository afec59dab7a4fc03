"""The old functions `test_fine_tuning` and `test_hyperparameter_search`: a `Trainer` and a search, by their old names.

Both warn with a `DeprecationWarning` that says what to write instead and that is shown wherever the call stands.
docs/MIGRATION_GUIDE.md has the new form of each call. pytest does not collect them.
"""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Callable, Mapping
from textwrap import indent
from typing import TYPE_CHECKING, Any

from utils.errors import ConfigError
from utils.training.training_config import TrainingConfig

if TYPE_CHECKING:
    from torch import nn

    from utils.data.prepared import PreparedData
    from utils.training.engine.results import TrainingResults
    from utils.training.search import SearchResults
    from utils.training.task_spec import TaskSpec

log = logging.getLogger("trainbook.compat")

#: What `test_hyperparameter_search` searches when it is given no space, by its old names.
DEFAULT_SEARCH_SPACE: Mapping[str, Any] = {"lr": (1e-5, 1e-3), "batch_size": [4, 8, 16], "wd": (1e-6, 1e-2)}

# Of the built-in text: a vocabulary that it can fill, and blocks that a small machine trains on in minutes.
_BUILTIN_VOCAB_SIZE = 4096
_BUILTIN_LENGTH = 128


def test_fine_tuning(
    model: nn.Module, config: Any = None, train_data: Any = None, val_data: Any = None, n_epochs: int = 3,
    learning_rate: float = 5e-5, batch_size: int = 4, weight_decay: float = 0.01, gradient_clip_norm: float = 1.0,
    use_wandb: bool = False, use_amp: bool = False, gradient_accumulation_steps: int = 1, random_seed: int = 42,
    deterministic: bool = False, use_lr_schedule: bool = True, *, task_spec: TaskSpec | None = None, tokenizer: Any = None,
    **settings: Any,
) -> TrainingResults:  # fmt: skip
    """Train a model. Deprecated: `Trainer(model, config, TrainingConfig(...)).train(train_data, val_data)`.

    Args:
        model, config: the model, and its own configuration beside it (pad_token_id, vocab_size, max_seq_len).
        train_data, val_data: as for `Trainer.train`, such as a list of id tensors (T,). None: the built-in corpus, and a note
            in the results says so.
        n_epochs and the others: TrainingConfig's fields by their old names; `settings`: further fields or aliases of it.
        use_wandb: log to Weights & Biases, to the default project unless `wandb_project` names one.
    Returns:
        TrainingResults: `results["final_loss"]`, `["loss_history"]`, `["metrics_summary"]`, `["training_time"]`, ….
    Raises:
        ConfigError, DataError, ModelError: as `Trainer.train`.
    """
    _warn(
        "test_fine_tuning", "Trainer",
        old="results = test_fine_tuning(model, config, train_data, val_data, n_epochs=10)",
        new="""\
from utils.training.engine import Trainer
from utils.training.training_config import TrainingConfig

trainer = Trainer(model, config, TrainingConfig(epochs=10))
results = trainer.train(train_data, val_data)""",
    )  # fmt: skip
    training_config = _training_config(
        settings, epochs=n_epochs, learning_rate=learning_rate, batch_size=batch_size, weight_decay=weight_decay,
        max_grad_norm=gradient_clip_norm, use_wandb=use_wandb, use_amp=use_amp,
        gradient_accumulation_steps=gradient_accumulation_steps, random_seed=random_seed, deterministic=deterministic,
        use_lr_schedule=use_lr_schedule,
    )  # fmt: skip
    from utils.training.engine.trainer import Trainer

    said = ""
    if train_data is None:
        prepared, said = _builtin_data(model, config, random_seed)
        train_data, val_data = prepared.train, prepared.validation if val_data is None else val_data
        task_spec, tokenizer = task_spec or prepared.task_spec, tokenizer or prepared.tokenizer
    results = Trainer(model, config, training_config, task_spec, tokenizer=tokenizer).train(train_data, val_data)
    if said:
        results.notices.insert(0, said)
    return results


def test_hyperparameter_search(
    model_factory: Callable[..., nn.Module] | nn.Module | None = None, config: Any = None, train_data: Any = None,
    val_data: Any = None, n_trials: int = 10, search_space: Mapping[str, Any] | None = None, timeout: float | None = None,
    *, model: nn.Module | None = None, n_epochs: int = 5, random_seed: int = 42, task_spec: TaskSpec | None = None,
    tokenizer: Any = None, **settings: Any,
) -> SearchResults:  # fmt: skip
    """Search hyper-parameters with Optuna. Deprecated: `search_hyperparameters(model_factory, space, train_data, val_data)`.

    Args:
        model_factory: called once a trial; or `model`: each trial starts from its weights, and it keeps them.
        search_space: by the old names (lr, batch_size, wd, warmup) or TrainingConfig's; None: `DEFAULT_SEARCH_SPACE`.
        timeout: seconds for all trials together.
        n_epochs: epochs of each trial; settings: what the trials share, by TrainingConfig's names.
    Returns:
        SearchResults: `results["best_params"]` by the config's names (learning_rate, weight_decay), `["best_value"]`,
        `["trials"]`. Without val_data trials are judged by their training loss.
    Raises:
        ConfigError: neither or both of model_factory and model, or a space that cannot be searched.
    """
    _warn(
        "test_hyperparameter_search", "search_hyperparameters",
        old="results = test_hyperparameter_search(model_factory, config, train_data, val_data, search_space=space)",
        new="""\
from utils.training.search import search_hyperparameters

results = search_hyperparameters(model_factory, space, train_data, val_data, strategy="optuna")""",
    )  # fmt: skip
    given = [maker for maker in (model_factory, model) if maker is not None]
    if len(given) != 1:
        raise ConfigError(
            "give one of model_factory (makes a model) and model; got " + ("both" if given else "neither")
        )
    training_config = _training_config(settings, epochs=n_epochs, random_seed=random_seed)
    from utils.training.search import search_hyperparameters

    said = ""
    if train_data is None:
        prepared, said = _builtin_data(_example(given[0], random_seed), config, random_seed)
        train_data, val_data = prepared.train, prepared.validation if val_data is None else val_data
        task_spec, tokenizer = task_spec or prepared.task_spec, tokenizer or prepared.tokenizer
    results = search_hyperparameters(
        given[0], DEFAULT_SEARCH_SPACE if search_space is None else search_space, train_data, val_data, strategy="optuna",
        n_trials=n_trials, training_config=training_config, config=config, task_spec=task_spec, tokenizer=tokenizer,
        timeout_s=timeout,
    )  # fmt: skip
    if said:
        results.notices.insert(0, said)
    return results


# Their names begin with "test_" because they are documented so; pytest leaves them alone.
test_fine_tuning.__test__ = False  # type: ignore[attr-defined]
test_hyperparameter_search.__test__ = False  # type: ignore[attr-defined]


_NOTICE = """
{line}
DEPRECATION WARNING: {name}() is deprecated; use {instead}

This function is part of the legacy tier3_training_utilities API and will be removed in v4.0.0 (Q3 2025). Please migrate to the
new engine API.

Migration Example:
    OLD:
{old}

    NEW:
{new}

See docs/MIGRATION_GUIDE.md for complete migration guide.
{line}"""
# With these two of its own filters Python shows a DeprecationWarning only where the main module causes it.
_PYTHONS_FILTERS = [("default", None, DeprecationWarning, "__main__", 0), ("ignore", None, DeprecationWarning, None, 0)]


def _warn(name: str, instead: str, old: str, new: str) -> None:
    notice = _NOTICE.format(
        line="=" * 80, name=name, instead=instead, old=indent(old, " " * 8), new=indent(new, " " * 8)
    )
    with warnings.catch_warnings():
        if _only_python_hides(notice):
            warnings.simplefilter("always", DeprecationWarning)
        warnings.warn(notice, DeprecationWarning, stacklevel=3)


def _only_python_hides(notice: str) -> bool:
    """Whether no filter of the user's speaks about this warning, on the command line or in code."""
    if sys.warnoptions or _PYTHONS_FILTERS[0] not in warnings.filters:
        return False
    others = warnings.filters[: warnings.filters.index(_PYTHONS_FILTERS[0])]
    return _PYTHONS_FILTERS[1] in warnings.filters and not any(
        issubclass(DeprecationWarning, category) and module is None and (message is None or message.match(notice))
        for _, message, category, module, _ in others
    )


def _training_config(settings: Mapping[str, Any], **named: Any) -> TrainingConfig:
    """The config of the old arguments; `settings` win, whatever they are called."""
    fields = {TrainingConfig.aliases.get(name, name) for name in settings}
    if "precision" in fields:
        named.pop("use_amp", None)
    return TrainingConfig(**{name: value for name, value in named.items() if name not in fields}, **settings)


def _example(maker: Any, seed: int) -> nn.Module:
    """A model that is only looked at, for its sizes."""
    from torch import nn

    from utils.training.engine import rng

    if isinstance(maker, nn.Module):
        return maker
    with rng.preserved():
        rng.seed_all(seed)
        made: nn.Module = maker()
    return made


def _builtin_data(model: nn.Module, config: Any, seed: int) -> tuple[PreparedData, str]:
    """The built-in corpus in the model's sizes, and the sentence that says that it was taken."""
    from utils.adapters.facts import model_facts
    from utils.data.text.corpus import BUILTIN_NAME, builtin_corpus
    from utils.data.text.prepare import prepare_text

    facts = model_facts(model)
    vocab_size = facts.vocab_size or getattr(config, "vocab_size", None) or _BUILTIN_VOCAB_SIZE
    longest = facts.max_length or getattr(config, "max_seq_len", None) or _BUILTIN_LENGTH
    prepared = prepare_text(
        builtin_corpus(), vocab_size=min(vocab_size, _BUILTIN_VOCAB_SIZE), block_size=min(longest, _BUILTIN_LENGTH),
        model_vocab_size=vocab_size, random_seed=seed, source=BUILTIN_NAME,
    )  # fmt: skip
    sentence = f"No train_data given: trained on the built-in corpus ({BUILTIN_NAME}), {len(prepared.train)} blocks."
    log.warning(sentence)
    return prepared, sentence
