"""Models of the transformers library: from a config, a local folder, or a repository of the Hugging Face Hub.

Code that a folder or repository carries (`auto_map` in its config.json) is never run by transformers' own switch for it: the
files are shown with their sha256 and run, from memory, only if the caller trusts exactly these.
"""

from __future__ import annotations

import contextlib
import copy
import json
import logging
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from utils.errors import ConfigError, HubError, ModelError, TrainbookError, first_line
from utils.models.code_files import SourcePackage
from utils.models.construction import Arguments, changed, construct
from utils.models.untrusted import MOST_BYTES_OF_A_FILE, ForeignCode
from utils.schema import nearest

logger = logging.getLogger("trainbook.models")

# Seconds for the first answer of the Hub. Later requests have the timeouts and attempts of huggingface_hub.
_ANSWER_TIMEOUT_S = 15.0
_WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
# Files of a repository that a model is loaded from.
_NEEDED = (
    "*.json", "*.py", "*.safetensors", "*.safetensors.index.json", "*.jinja", "merges.txt", "vocab.txt", "*.model", "README.md",
)  # fmt: skip
_WAY_OUT = "Give the folder of a model on this machine, or the name of a model of ModelRegistry."


def is_transformers_config(value: Any) -> bool:
    """Whether `value` is a config object of transformers."""
    if not any(base.__module__.startswith("transformers.") for base in type(value).__mro__):
        return False
    from transformers import PretrainedConfig

    return isinstance(value, PretrainedConfig)


def model_from_config(config: Any, wanted: str | None, values: Mapping[str, Any], where: str) -> nn.Module:
    """A model with new weights.

    Args:
        config: a config object.
        wanted: the class, such as "BertForSequenceClassification"; None: `architectures` of the config, or the only kind
            of language or image model that this config has.
        values: attributes of the config to change.
    Raises:
        ConfigError: an unknown attribute, or a class that cannot be inferred.
        ModelError: the model cannot be created.
    """
    config = changed(config, values, where) if values else copy.deepcopy(config)
    return construct(model_class(config, wanted, where), Arguments(config), where)


def model_class(config: Any, wanted: str | None, where: str) -> Any:
    """The class of transformers for a config: see `model_from_config`."""
    import transformers

    names = [wanted] if wanted else list(getattr(config, "architectures", None) or [])
    if names:
        found: Any = getattr(transformers, names[0], None)
        if not (isinstance(found, type) and issubclass(found, transformers.PreTrainedModel)):
            classes = _classes_of(config)
            guess = nearest(names[0], classes)
            raise ConfigError(
                f"{where}: transformers {transformers.__version__} has no model class {names[0]!r}; for a "
                f"{type(config).__name__} it has {', '.join(classes) or 'none'}."
                + (f" Did you mean {guess!r}?" if guess else "")
            )
        if found.config_class is not None and not isinstance(config, found.config_class):
            raise ConfigError(
                f"{where}: {names[0]} takes a {found.config_class.__name__}; got a {type(config).__name__}."
            )
        return found
    candidates = _inferred(config)
    if len(candidates) != 1:
        known = ", ".join(_classes_of(config)) or "none"
        raise ConfigError(
            f"{where}: a {type(config).__name__} without `architectures` does not say which model it is for. Name the class "
            f"after a colon or as architectures=['…']; there are {known}."
        )
    return candidates[0]


def _inferred(config: Any) -> list[Any]:
    """The classes that a config without `architectures` can mean."""
    kinds = ["MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING"] if getattr(config, "is_encoder_decoder", False) else []
    if not kinds:
        causal, masked = "MODEL_FOR_CAUSAL_LM_MAPPING", "MODEL_FOR_MASKED_LM_MAPPING"
        both = all(type(config) in _mapping(kind) for kind in (causal, masked))
        # A model with both heads (BERT's family) is a decoder only if its config states so.
        kinds = [causal if getattr(config, "is_decoder", False) else masked] if both else [causal, masked]
        if not any(type(config) in _mapping(kind) for kind in kinds):
            kinds = ["MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING"]
    found: list[Any] = []
    for kind in kinds:
        if type(config) in _mapping(kind):
            entry = _mapping(kind)[type(config)]
            found += list(entry) if isinstance(entry, (tuple, list)) else [entry]
    return found


def _mapping(name: str) -> Any:
    from transformers.models.auto import modeling_auto

    return getattr(modeling_auto, name)


def _classes_of(config: Any) -> list[str]:
    """The names of the model classes that take this config."""
    from transformers.models.auto import modeling_auto

    names: set[str] = set()
    for kind in dir(modeling_auto):
        if not (kind.startswith("MODEL_") and kind.endswith("_MAPPING_NAMES")):
            continue
        entry = getattr(modeling_auto, kind).get(getattr(config, "model_type", None))
        names |= {entry} if isinstance(entry, str) else set(entry or ())
    return sorted(names)


def read_json(path: Path) -> dict[str, Any]:
    """The mapping in a config.json. Raises `ModelError`."""
    try:
        with open(path, "rb") as file:
            data = file.read(MOST_BYTES_OF_A_FILE + 1)
        if len(data) > MOST_BYTES_OF_A_FILE:
            raise ModelError(f"{path} has more than {MOST_BYTES_OF_A_FILE:,} bytes; it is no config of a model.")
        values = json.loads(data)
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror or error}.") from None
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path} is not valid JSON: {error}. Export the config again.") from None
    if not isinstance(values, dict):
        raise ModelError(f"{path} holds a {type(values).__name__}; a config is a mapping of names to values.")
    return values


def config_of_file(path: Path, values: Mapping[str, Any]) -> Any:
    """The config object of a config.json with a `model_type`. Raises `ModelError`: transformers does not know that type."""
    from transformers import AutoConfig

    kind = values.get("model_type")
    try:
        return AutoConfig.for_model(**values)
    except Exception as error:  # a config class raises whatever its own checks raise
        if not is_known_type(kind):
            guess = nearest(str(kind), _model_types())
            hint = f" Did you mean {guess!r}?" if guess else ""
            raise ModelError(
                f"{path}: transformers has no model_type {kind!r}.{hint} A newer transformers may."
            ) from None
        raise ModelError(f"{path}: {first_line(error, with_class=True, lines=2)}") from error


def is_known_type(kind: Any) -> bool:
    """Whether transformers has a model of this `model_type`."""
    return kind in _model_types()


def _model_types() -> list[str]:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES  # type: ignore[attr-defined]

    return list(CONFIG_MAPPING_NAMES)


def with_weights(model: nn.Module, file: Path) -> nn.Module:
    """`model` with the weights of a safetensors file, every one of them. Raises `ModelError`: they are another model's."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        left = model.load_state_dict(load_file(file), strict=False)
    except (OSError, SafetensorError, RuntimeError) as error:
        raise ModelError(
            f"{file} does not hold the weights of this {type(model).__name__}: {first_line(error, with_class=True, lines=2)}"
        ) from None
    if left.missing_keys or left.unexpected_keys:
        names = ", ".join([*left.missing_keys, *left.unexpected_keys][:6])
        raise ModelError(
            f"{file} does not hold the weights of this {type(model).__name__}: {len(left.missing_keys)} of its tensors are not "
            f"in the file, {len(left.unexpected_keys)} of the file are not the model's ({names})."
        )
    return model


def load_folder(
    folder: Path,
    wanted: str | None,
    overrides: Mapping[str, Any],
    trust: str | None,
    call: str,
    origin: str | None = None,
) -> nn.Module:
    """A transformers model with the weights of a local folder.

    Args:
        wanted, overrides: as `model_from_config`.
        trust: sha256 of the code in the folder, where its config.json names some.
        call: the caller's call up to its trust argument, for messages.
        origin: what messages call the folder; None: its path.
    Raises:
        ModelError, ConfigError: no weights, weights of another model, or a config that cannot be used.
        UntrustedCodeError: the config names code in the folder, which was not trusted.
    """
    where = origin or str(folder)
    values = read_json(folder / "config.json")
    weights = [path.name for pattern in _WEIGHTS for path in sorted(folder.glob(pattern))]
    if not weights:
        raise ModelError(
            f"{where} has a config.json, but no weights (model.safetensors). For a model with new weights give the file "
            "config.json itself."
        )
    if not any(name.endswith(".safetensors") for name in weights) and torch_version() < (2, 10):
        raise ModelError(
            f"{where} has its weights as {weights[0]} only, which torch {torch.__version__} cannot load safely. Use torch 2.10 "
            "or newer, or convert them to safetensors."
        )
    if values.get("auto_map"):
        config, found = _custom_class(folder, values, wanted, trust, call, where)
    else:
        if trust is not None:
            raise ConfigError(f"trust: {where} holds no code to trust, only a config and weights. Leave it out.")
        config = config_of_file(folder / "config.json", values)
        found = model_class(config, wanted, where)
    config = changed(config, overrides, where) if overrides else config
    with quiet_loading(where):
        model, report = found.from_pretrained(folder, config=config, local_files_only=True, output_loading_info=True)
    _check_loaded(model, report, where)
    loaded: nn.Module = model
    return loaded


def _check_loaded(model: nn.Module, report: Mapping[str, Any], where: str) -> None:
    """Raise `ModelError` if none of the weights came from the folder; log those that did not."""
    names = [name for name, _ in model.named_parameters()]
    missing = [name for name in report.get("missing_keys") or () if name in set(names)]
    if missing and len(missing) >= len(names):
        raise ModelError(
            f"{where}: none of its weights has a name that {type(model).__name__} has, so the model would be untrained. Name "
            "the class that the weights were saved from after a colon."
        )
    if missing:
        logger.warning(
            "%s: %d of %d tensors of %s are not in the weights and were initialised: %s.",
            where, len(missing), len(names), type(model).__name__, ", ".join(sorted(missing)[:8]),
        )  # fmt: skip


def _custom_class(
    folder: Path, values: Mapping[str, Any], wanted: str | None, trust: str | None, call: str, where: str
) -> tuple[Any, Any]:
    """Config object and model class of a folder with its own code, if that is trusted."""
    classes = {kind: name for kind, name in dict(values["auto_map"]).items() if isinstance(name, str)}
    if elsewhere := [name for name in classes.values() if "--" in name]:
        raise ModelError(
            f"{where}: its code is in another repository ({elsewhere[0].partition('--')[0]}). Load a folder that "
            "holds the code."
        )
    files = {path.name: path.read_bytes() for path in sorted(folder.glob("*.py"))}
    code = ForeignCode(where, {**files, "config.json": (folder / "config.json").read_bytes()})
    code.require_trust(trust, call)
    package = SourcePackage(code.files, where)

    def load(reference: str) -> Any:
        module, _, name = reference.rpartition(".")
        if f"{module}.py" not in code.files:
            raise ModelError(f"{where}: config.json names {module}.py, which is not there.")
        found = getattr(package.load(f"{module}.py"), name, None)
        if found is None:
            raise ModelError(f"{where}: {module}.py has no {name!r}, which config.json names.")
        return found

    models = {kind: name for kind, name in classes.items() if kind.startswith("AutoModel")}
    heads = [wanted] if wanted else list(values.get("architectures") or [])
    chosen = [name for name in models.values() if not heads or name.rpartition(".")[2] in heads]
    if len(set(chosen)) != 1:
        raise ModelError(
            f"{where}: config.json does not say which of its model classes to use: {', '.join(models.values()) or 'none'}. "
            "Name one after a colon."
        )
    with quiet_loading(where):
        if "AutoConfig" in classes:
            config = load(classes["AutoConfig"]).from_pretrained(folder, local_files_only=True)
        else:
            config = config_of_file(folder / "config.json", {k: v for k, v in values.items() if k != "auto_map"})
    return config, load(chosen[0])


def load_from_hub(
    repository: str,
    revision: str | None,
    wanted: str | None,
    overrides: Mapping[str, Any],
    trust: str | None,
    call: str,
) -> nn.Module:
    """A model of the Hugging Face Hub with its weights; without a connection, the copy that this machine has.

    Raises:
        HubError: the Hub cannot be reached and there is no copy, has no such model, or gives it only to those it knows.
        As `load_folder`.
    """
    folder = hub_folder(repository, revision)
    return load_folder(folder, wanted, overrides, trust, call, f"Hugging Face Hub: {repository}")


@dataclass(frozen=True)
class HubEntry:
    """A model of the Hub, without its weights.

    Attributes:
        config: the contents of config.json; sizes: file -> bytes, None where the Hub does not say.
        parameters: numbers of the weights by safetensors' name of their format, empty where the Hub does not say.
        licence: by the model card.
    """

    config: dict[str, Any]
    sizes: dict[str, int | None]
    parameters: dict[str, int]
    licence: str | None


def entry_on_hub(repository: str, revision: str | None) -> HubEntry:
    """Ask the Hub for a model's config and files. Raises `HubError`; `ModelError`: no config."""
    from huggingface_hub import HfApi, hf_hub_download

    try:
        about = HfApi().model_info(repository, revision=revision, timeout=_ANSWER_TIMEOUT_S, files_metadata=True)
        sizes = {entry.rfilename: entry.size for entry in about.siblings or []}
        if "config.json" not in sizes:
            raise ModelError(f"{repository} has no config.json, so transformers cannot load it. {_WAY_OUT}")
        # Into a folder of its own: a config alone in the cache looks like a model that was downloaded.
        with tempfile.TemporaryDirectory() as folder:
            config = read_json(Path(hf_hub_download(repository, "config.json", revision=about.sha, local_dir=folder)))
    except TrainbookError:
        raise
    except Exception as error:  # noqa: BLE001 - network and Hub errors have no common class; raised again as ours
        raise HubError(_refusal(repository, error)) from None
    licence = getattr(about.card_data, "license", None) or next(
        (tag.removeprefix("license:") for tag in about.tags or [] if tag.startswith("license:")), None
    )
    counts = {} if about.safetensors is None else about.safetensors.parameters
    return HubEntry(config, sizes, dict(counts), None if licence is None else str(licence))


def hub_folder(repository: str, revision: str | None) -> Path:
    """The local folder with a Hub repository's config, weights and tokenizer. Raises `HubError`; `ModelError`: no config."""
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import OfflineModeIsEnabled

    patterns: list[str] = list(_NEEDED)
    problem: Exception | None = None
    try:
        described = HfApi().model_info(repository, revision=revision, timeout=_ANSWER_TIMEOUT_S)
        names = [entry.rfilename for entry in described.siblings or []]
        if not any(name.endswith(".safetensors") for name in names):
            patterns.append("pytorch_model*.bin*")
    except OfflineModeIsEnabled as error:
        problem = error
    except Exception as error:  # noqa: BLE001 - network and Hub errors have no common class; reported when there is no copy
        problem = error
        patterns.append("pytorch_model*.bin*")
    try:
        folder = snapshot_download(
            repository, revision=revision, allow_patterns=patterns, local_files_only=problem is not None
        )
    except Exception as error:  # noqa: BLE001 - as above; raised again as ours
        raise HubError(_refusal(repository, problem or error)) from None
    if problem is not None:
        logger.warning("%s: the Hub did not answer; the copy on this machine is used.", repository)
    if not (Path(folder) / "config.json").is_file():
        raise ModelError(f"{repository} has no config.json, so transformers cannot load it. {_WAY_OUT}")
    return Path(folder)


def _refusal(repository: str, error: Exception) -> str:
    """Explain why the Hub did not serve a repository."""
    kinds = {kind.__name__ for kind in type(error).__mro__}
    status = getattr(getattr(error, "response", None), "status_code", None)
    if "OfflineModeIsEnabled" in kinds:
        return f"{repository} is not on this machine, and HF_HUB_OFFLINE forbids asking the Hub. Unset it. {_WAY_OUT}"
    if "GatedRepoError" in kinds:
        return f"{repository} is gated. Ask for access on its page of the Hub, and log in with huggingface_hub.login()."
    if "RevisionNotFoundError" in kinds:
        return f"{repository} has no such revision. Check it on the Hub."
    if "RepositoryNotFoundError" in kinds or status in (401, 403, 404):
        return (
            f"the Hugging Face Hub has no model {repository!r}, or it is private. Check the spelling (owner/name), or log in "
            f"with huggingface_hub.login() if it is yours. {_WAY_OUT}"
        )
    reason = f"it answered {status}" if status else first_line(error, with_class=True, lines=2)
    return f"the Hugging Face Hub could not be reached for {repository}: {reason.rstrip('.')}. Check the connection. {_WAY_OUT}"


@contextlib.contextmanager
def quiet_loading(where: str) -> Iterator[None]:
    """transformers' errors as `ModelError`; without its progress bars and its report of the keys, which we give ourselves."""
    from transformers.utils import logging as verbosity

    level = verbosity.get_verbosity()
    verbosity.set_verbosity_error()  # type: ignore[no-untyped-call]
    try:
        with without_progress_bars():
            yield
    except TrainbookError:
        raise
    except (
        Exception
    ) as error:  # weights of other sizes, damaged files, a config's own checks: of several libraries' classes
        raise ModelError(f"{where} cannot be loaded: {first_line(error, with_class=True, lines=2)}") from error
    finally:
        verbosity.set_verbosity(level)


@contextlib.contextmanager
def without_progress_bars() -> Iterator[None]:
    """transformers without its progress bars, which a notebook would keep among the outputs."""
    from transformers.utils import logging as verbosity

    shown = verbosity.is_progress_bar_enabled()
    verbosity.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        if shown:
            verbosity.enable_progress_bar()  # type: ignore[no-untyped-call]


def torch_version() -> tuple[int, int]:
    major, minor = torch.__version__.split(".")[:2]
    return int(major), int(minor)
