"""A new model that a setup names: an architecture of the registry with its sizes.

Vocabulary and positions are the setup's, the number of classes is that of the data. A job file's `model` section has the same
form: `{name: gpt-small, n_layer: 4, n_embd: 256, n_head: 4}`.
"""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from utils.adapters.facts import ModelFacts, model_facts
from utils.errors import ConfigError, Problem, TrainbookError
from utils.schema import shown
from utils.training.task_kinds import TASK_KINDS, TASKS, kind_of_task
from utils.ui.choice_names import choice_name

if TYPE_CHECKING:
    from torch import nn

    from utils.ui.presets import Preset
    from utils.ui.setup_config import SetupConfig

#: Architectures of the registry that learn a task, the usual one first.
ARCHITECTURES: Mapping[str, tuple[str, ...]] = {name: TASK_KINDS[name].architectures for name in TASKS}
#: What they are, for a menu.
TITLES: Mapping[str, str] = {
    "gpt-small": "GPT-2, decoder",
    "bert-small-classifier": "BERT, encoder with one output per class or target",
    "bert-small-token-classifier": "BERT, encoder with one output per tag",
    "t5-mini": "T5, encoder-decoder",
}
#: Those that normalise after each residual connection, as the first transformers did.
POST_NORM = frozenset({"bert-small-classifier", "bert-small-token-classifier"})
#: Layers, width and heads by name (Turc et al. 2019, table 1: BERT miniatures; base is also the size of the smallest GPT-2).
SIZES: Mapping[str, tuple[int, int, int]] = {
    "tiny": (2, 128, 2), "mini": (4, 256, 4), "small": (4, 512, 8), "medium": (8, 512, 8), "base": (12, 768, 12),
}  # fmt: skip
SIZE_NAMES = ("n_layer", "n_embd", "n_head")
_USUAL_SIZE = "mini"

# Arguments that come from elsewhere, with where from.
_FROM_SETUP: Mapping[str, str] = {
    "vocab_size": "the setting vocab_size",
    "max_seq_len": "the setting max_length",
    "num_classes": "the labels of the data",
}
# A typing error in the number of layers would have the form build thousands of modules to count parameters.
_MOST_LAYERS = 256


def checked_description(value: Any) -> list[Problem]:
    """Problems of `value` as the description of a new model, as far as its form tells; nothing is created."""
    if not isinstance(value, Mapping):
        return [Problem("new_model", f"got {shown(value)}; must be a mapping such as {{name: gpt-small, n_layer: 4}}")]
    name = value.get("name")
    if not isinstance(name, str) or not name.strip():
        return [
            Problem(
                "new_model", f"got {shown(dict(value))}; must have the name of a registered model, such as gpt-small"
            )
        ]
    return [
        Problem("new_model", f"got {argument}={shown(value[argument])}; it comes from {source}: leave it out here")
        for argument, source in _FROM_SETUP.items()
        if argument in value
    ]


def size_name(description: Mapping[str, Any]) -> str | None:
    """Name in `SIZES` of a description's layers, width and heads; None for other sizes."""
    sizes = tuple(description.get(name) for name in SIZE_NAMES)
    return next((name for name, known in SIZES.items() if known == sizes), None)


def with_size(description: Mapping[str, Any], size: str) -> dict[str, Any]:
    """The description with the layers, width and heads of a size in `SIZES`."""
    return {**description, **dict(zip(SIZE_NAMES, SIZES[size], strict=True))}


def usual_description(task: str, preset: Preset | None = None) -> dict[str, Any]:
    """The new model that a form begins with: the preset's where it learns the task, else the usual architecture and size."""
    names = ARCHITECTURES[task]
    given = {} if preset is None or preset.model_name not in names else dict(preset.model_arguments)
    own = {name: value for name, value in given.items() if name not in _FROM_SETUP}
    return {**with_size({"name": names[0]}, _USUAL_SIZE), **own}


def head_problems(class_name: str, task: str) -> list[Problem]:
    """The problem of a model of transformers whose head is for other tasks, with a new model that would do. Own classes may
    be for any task."""
    if "transformers" not in sys.modules:  # which a model of its classes would have imported
        return []
    from utils.models.pretrained import tasks_of

    learned = tasks_of(class_name)
    if not learned or task in learned:
        return []
    own = " or ".join(choice_name("task", one) for one in learned)
    message = f"{class_name} is for the task {own}; {choice_name('task', task)} needs a model with another output layer"
    return [Problem("new_model", message, usual_description(task))]


def for_task(description: Mapping[str, Any], task: str) -> dict[str, Any]:
    """The description, with the usual architecture of `task` where its own is known to learn other tasks only."""
    known = {name for names in ARCHITECTURES.values() for name in names}
    if description["name"] not in known or description["name"] in ARCHITECTURES[task]:
        return dict(description)
    kept = {name: value for name, value in description.items() if name in SIZE_NAMES}
    return {"name": ARCHITECTURES[task][0], **kept}


def architectures(task: str) -> list[tuple[str, str]]:
    """(title, name) of the models to choose for a task: those of `ARCHITECTURES`, then models that the user registered."""
    from utils.models import ModelRegistry

    own = [
        name for name in ModelRegistry.list_available() if not ModelRegistry.get(name).__module__.startswith("utils.")
    ]
    fitting = [name for name in own if "vocab_size" in _parameters(name)]
    known = [(f"{TITLES[name]} ({name})", name) for name in ARCHITECTURES[task]]
    return [*known, *((f"{name}, registered here", name) for name in fitting)]


def new_model_facts(setup: SetupConfig) -> tuple[ModelFacts | None, Any, str]:
    """Facts about the new model of `setup` before it is created, its outline without weights, and why it cannot be created.

    A classifier is counted with the usual number of classes of its architecture: the data are not read for it.
    """
    assert setup.new_model is not None
    try:
        arguments = _arguments(setup, setup.new_model, None)
        return _outlined(json.dumps(arguments, sort_keys=True), setup.task)
    except (ConfigError, TypeError) as error:
        return None, None, str(error)


def create_new_model(setup: SetupConfig, **changes: Any) -> nn.Module:
    """The new model of `setup`, with the vocabulary, positions and number of classes of setup and data; `changes` replace its
    arguments. Its first weights follow the setup's `random_seed`.

    Raises:
        ConfigError: no such model, or arguments that it does not take. TrainbookError: the labels cannot be read.
    """
    from utils.models import ModelRegistry
    from utils.ui.model_source import data_labels

    assert setup.new_model is not None
    if problem := _wrong_task(setup.new_model["name"], setup.task):
        raise ConfigError(problem)
    needs_outputs = kind_of_task(setup.task).has_own_outputs and "num_classes" in _parameters(setup.new_model["name"])
    outputs = len(data_labels(setup)) if needs_outputs else None
    return ModelRegistry.create(**{**_arguments(setup, setup.new_model, outputs), **changes})


def description_text(description: Mapping[str, Any]) -> str:
    """A new model in words, such as "gpt-small, n_layer 4, n_embd 256"."""
    return ", ".join(
        [str(description["name"]), *(f"{name} {value}" for name, value in description.items() if name != "name")]
    )


@lru_cache(maxsize=32)
def _outlined(arguments: str, task: str) -> tuple[ModelFacts | None, Any, str]:
    from utils.models import ModelRegistry

    values = json.loads(arguments)
    if problem := _wrong_task(values["name"], task):
        return None, None, problem
    layers = values.get("n_layer")
    if isinstance(layers, int) and layers > _MOST_LAYERS:
        return None, None, f"got n_layer={layers}; at most {_MOST_LAYERS} layers can be chosen here"
    try:
        outline = ModelRegistry.outline(**values)
    except TrainbookError as error:
        listed = "; ".join(f"{problem.field}: {problem.message}" for problem in getattr(error, "problems", ()))
        return None, None, listed or str(error)
    except Exception as error:  # noqa: BLE001 - the user's own class may raise anything; the form reports it
        return None, None, f"{values['name']} cannot be created ({type(error).__name__}: {error})"
    return model_facts(outline), outline, ""


def _wrong_task(name: str, task: str) -> str:
    """Explain why a model that comes with the library does not learn a task; "" where it does, and for the user's models."""
    learned = [known for known, names in ARCHITECTURES.items() if name in names]
    if not learned or task in learned:
        return ""
    tasks, others = " and ".join(choice_name("task", one) for one in learned), " or ".join(ARCHITECTURES[task])
    return f"got {name}, which is for the task {tasks}; choose {others} for {choice_name('task', task)}"


def _arguments(setup: SetupConfig, description: Mapping[str, Any], outputs: int | None) -> dict[str, Any]:
    """Every argument of the registry's function: the description's, then those that setup and data give."""
    name = str(description["name"])
    wanted: dict[str, Any] = {
        "vocab_size": setup.vocab_size, "max_seq_len": setup.max_length, "num_classes": outputs, "seed": setup.random_seed,
    }  # fmt: skip
    taken = _parameters(name)
    given = {key: value for key, value in wanted.items() if key in taken and value is not None}
    return {**given, **description}


def _parameters(name: str) -> Sequence[str]:
    from utils.models import ModelRegistry

    return tuple(inspect.signature(ModelRegistry.get(name)).parameters)
