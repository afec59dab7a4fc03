"""`load_model`: one function for every place that a model can come from."""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.errors import ConfigError, ModelError, ModelNotFoundError
from utils.hub_ids import HubReference, hub_reference
from utils.models.origins import note_origin
from utils.models.registry import ModelRegistry
from utils.schema import nearest, shown

if TYPE_CHECKING:
    from torch import nn

    from utils.models.untrusted import ForeignCode

_NAME = r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*"
_FACTORY = re.compile(rf"(?P<module>{_NAME}):(?P<name>{_NAME})")
_CHOSEN = re.compile(rf"(?P<place>.+):(?P<name>{_NAME})", re.DOTALL)
_HUB_ADDRESS = re.compile(
    r"https?://(?:www\.)?huggingface\.co/(?P<id>[\w.-]+/[\w.-]+)(?:/tree/(?P<revision>[\w.-]+))?/?"
)
_KINDS = (
    "a name of ModelRegistry, a file (model.py, model.py:ClassName, config.json), a folder of transformers, "
    "'module:function', a Hub id (owner/name), or a gist (gist:<id>)"
)


def load_model(source: Any, *, trust: str | None = None, config: Any = None, **overrides: Any) -> nn.Module:
    """Load a model by name, from a file or folder, the Hub or a gist. No fallback: the result is that model or an error.

    | source | model |
    |---|---|
    | an `nn.Module` | itself |
    | a class or a function | what it returns |
    | "gpt-small" | of that name in ModelRegistry |
    | "model.py", "model.py:Net" | the file's only model class, or the one named; it is run as your own code |
    | "package.module:function" | what the importable function or class returns; the working folder is importable |
    | a transformers config, "config.json" | that architecture with new weights |
    | a folder with config.json and weights | a transformers model with these weights |
    | a folder with adapter_config.json | an adapter of peft on its base model, or on `base=` |
    | a folder with model.py | as the file, with the folder's config.json and model.safetensors, where there are any |
    | "owner/name", "owner/name@revision" | a transformers model of the Hugging Face Hub |
    | "gist:<id>", its address or id; a zip archive | its model.py with its config.json, if trusted |

    A class of transformers is named after a colon: "owner/name:BertForSequenceClassification".

    Args:
        source: see the table. A name of ModelRegistry comes before a file or folder of that name; write "./name" for these.
        trust: sha256 of somebody else's code. Code of a gist, of an archive, or of a transformers folder or repository with
            code of its own is run only with its digest; without it, the error shows the code and the digest. Given for a
            .py file of yours, it must be that file's.
        config: the model's config: an object, a mapping, or the path of a JSON or YAML file. What a file describes beyond
            the model's arguments is logged.
        **overrides: arguments of the model, or entries of its config.
    Returns:
        The model, as its code or library creates it.
    Raises:
        UntrustedCodeError: somebody else's code without its sha256, or that has changed.
        ModelNotFoundError: no such file, folder or name.
        ModelError: the model's code fails (with file, line and message), or it makes no nn.Module.
        ConfigError: an argument that the model does not take, or one that it needs.
        HubError: the Hub or GitHub cannot be reached, or refused.
    Not covered: trusted code has the full power of this process; the digest says which code runs, not that it is harmless.
    """
    return load_described(source, {**overrides, "trust": trust, "config": config})


def load_described(source: Any, arguments: Mapping[str, Any]) -> nn.Module:
    """`load_model` with its other arguments as a mapping, as job files and runs record them.

    The model's own arguments may have any name, such as `source`, which the registered name "pretrained" takes.
    """
    overrides = {name: value for name, value in arguments.items() if name not in ("trust", "config")}
    trust, config = arguments.get("trust"), arguments.get("config")
    if isinstance(source, (str, os.PathLike)):
        model = _from_text(os.fspath(source), trust, config, overrides)
        if os.fspath(source).strip().lower() != "pretrained":  # which notes the folder that the weights came from
            note_origin(model, os.fspath(source), _recorded(trust, config, overrides))
        return model
    from utils.models.construction import construct
    from utils.models.transformers_models import is_transformers_config, model_from_config

    _refuse_trust(trust, f"a {type(source).__name__}")
    if is_transformers_config(source):
        if config is not None:
            raise ConfigError("config: the source is a config already. Change its entries by name, such as n_layer=2.")
        return model_from_config(source, None, overrides, type(source).__name__)
    if not callable(source):
        raise ModelError(
            f"got {shown(source)} as the source of a model; must be an nn.Module, its class, a function, {_KINDS}."
        )
    return construct(
        source, _arguments(config, overrides), getattr(source, "__module__", None) or type(source).__name__
    )


def _recorded(trust: str | None, config: Any, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of `load_model` that were given, for the record."""
    given = {"trust": trust, "config": config}
    return {**{name: value for name, value in given.items() if value is not None}, **overrides}


def _from_text(text: str, trust: str | None, config: Any, overrides: Mapping[str, Any]) -> nn.Module:
    if not text.strip() or "\0" in text:
        raise ModelError(f"got {shown(text)} as the source of a model; must be {_KINDS}.")
    if text.strip().lower() in ModelRegistry.list_available():
        _refuse_trust(trust, f"the model {text!r} of ModelRegistry")
        return _construct(ModelRegistry.get(text), config, overrides, f"Model {text!r}")
    if match := _HUB_ADDRESS.fullmatch(text):
        return _from_hub(HubReference(match["id"], match["revision"]), None, trust, config, overrides, text)
    from utils.models.gists import download_gist, gist_address

    gist = gist_address(text)
    if gist is not None:
        return _from_foreign(download_gist(gist), trust, config, overrides, text)
    path, wanted = _path_and_name(text)
    if path is not None:
        return _from_path(path, wanted, trust, config, overrides, text)
    if match := _FACTORY.fullmatch(text):
        return _from_module(match["module"], match["name"], trust, config, overrides)
    place, _, name = text.partition(":")
    if reference := hub_reference(place):
        return _from_hub(reference, name or None, trust, config, overrides, text)
    names = ModelRegistry.list_available()
    guess = nearest(text, names)
    raise ModelNotFoundError(
        f"{shown(text)} is no file or folder here and no name of ModelRegistry ({', '.join(names)})."
        + (f" Did you mean {guess!r}?" if guess else "")
        + f" A source is {_KINDS}."
    )


def _path_and_name(text: str) -> tuple[Path | None, str | None]:
    """The file or folder that a text means, with the name after a colon; (None, None) where it means none.

    Raises:
        ModelNotFoundError: it has the form of a path, and nothing is there.
    """
    whole = Path(text).expanduser()
    match = _CHOSEN.fullmatch(text)
    choices = [(whole, None)] + ([(Path(match["place"]).expanduser(), match["name"])] if match else [])
    for path, name in choices:
        if _exists(path):
            return path.absolute(), name
    path = choices[-1][0]
    if path.suffix.lower() in (".py", ".json", ".zip") or text.startswith(("/", "./", "../", "~")):
        beside = [entry.name for entry in path.parent.glob(f"*{path.suffix or ''}")] if _exists(path.parent) else []
        guess = nearest(path.name, beside)
        raise ModelNotFoundError(
            f"{path} does not exist; the working folder is {Path.cwd()}."
            + (f" Did you mean {guess!r}?" if guess else "")
        )
    return None, None


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a name that is too long for the file system is no path
        return False


def _from_path(
    path: Path, wanted: str | None, trust: str | None, config: Any, overrides: Mapping[str, Any], text: str
) -> nn.Module:
    from utils.models.transformers_models import is_known_type, load_folder, read_json, with_weights

    suffix = path.suffix.lower()
    if path.is_dir():
        if (path / "adapter_config.json").is_file():
            _refuse_config(config, text)
            return _from_adapter(path, trust, overrides)
        has_code, described = (path / "model.py").is_file(), path / "config.json"
        values = read_json(described) if described.is_file() else {}
        if "model_type" in values and (values.get("auto_map") or not has_code or is_known_type(values["model_type"])):
            _refuse_config(config, text)
            return load_folder(path, wanted, overrides, trust, _call(text, overrides))
        if has_code:
            model = _from_own_file(path / "model.py", wanted, trust, config, overrides, values)
            return with_weights(model, path / "model.safetensors") if (path / "model.safetensors").is_file() else model
        raise ModelError(
            f"{path} is not the folder of a model: it needs config.json and weights as transformers writes them, or a "
            f"model.py. It has {', '.join(sorted(entry.name for entry in path.iterdir())[:12]) or 'no files'}."
            + (
                f" Its export is in {path / 'exports' / 'hf'}."
                if (path / "exports" / "hf" / "config.json").is_file()
                else ""
            )
        )
    if suffix == ".py":
        return _from_own_file(path, wanted, trust, config, overrides, {})
    if suffix == ".json":
        _refuse_trust(trust, str(path))
        _refuse_config(config, text)
        return _from_config_file(path, wanted, overrides)
    if suffix == ".zip":
        from utils.models.untrusted import read_archive

        return _from_foreign(read_archive(path), trust, config, overrides, text, wanted)
    raise ModelError(f"{path} is a {suffix or 'file without an extension'}; a model's source is {_KINDS}.")


def _from_adapter(path: Path, trust: str | None, overrides: Mapping[str, Any]) -> nn.Module:
    """The base model that an adapter of peft names, with the adapter on it. `base` overrides where the base is."""
    from torch import nn

    from utils.models.transformers_models import read_json

    named = overrides.get("base", read_json(path / "adapter_config.json").get("base_model_name_or_path"))
    if not named:
        raise ModelError(
            f"{path} is an adapter of peft and does not name its base model. Give load_model({str(path)!r}, base=...), the "
            "base model itself or its source."
        )
    try:
        from peft import PeftModel
    except ImportError as error:
        raise ModelError(
            f"{path} is an adapter of peft, which is not installed. Install it: pip install peft."
        ) from error
    rest = {name: value for name, value in overrides.items() if name != "base"}
    base = named if isinstance(named, nn.Module) else load_model(named, trust=trust, **rest)
    try:
        adapted: nn.Module = PeftModel.from_pretrained(base, str(path))
    except (ValueError, RuntimeError) as error:
        raise ModelError(f"The adapter in {path} does not fit its base model {shown(str(named))}: {error}") from error
    return adapted


def _from_config_file(path: Path, wanted: str | None, overrides: Mapping[str, Any]) -> nn.Module:
    from utils.models.transformers_models import config_of_file, model_from_config, read_json

    values = read_json(path)
    if "model_type" not in values:
        raise ModelError(
            f"{path} has no model_type, so it is no config of transformers. For a config of your own code use "
            f"load_model('model.py', config={str(path)!r})."
        )
    if values.get("auto_map"):
        raise ModelError(
            f"{path} needs code that is not part of transformers (auto_map). Give the folder that "
            "holds the code and the weights."
        )
    return model_from_config(config_of_file(path, values), wanted, overrides, str(path))


def _from_own_file(
    path: Path,
    wanted: str | None,
    trust: str | None,
    config: Any,
    overrides: Mapping[str, Any],
    described: Mapping[str, Any],
) -> nn.Module:
    """A model of a Python file of the user's own disk."""
    from utils.models.code_files import load_file
    from utils.models.construction import choose, construct

    source = path.read_bytes()
    if trust is not None:
        from utils.models.untrusted import ForeignCode

        ForeignCode(str(path), {path.name: source}).require_trust(trust, _call(str(path), overrides))
    module = load_file(path)
    factory = choose(module, wanted, str(path), source, str(described.get("model_name", "")))
    return construct(factory, _arguments(config, overrides, described), str(path), [str(path)])


def _from_foreign(
    code: ForeignCode,
    trust: str | None,
    config: Any,
    overrides: Mapping[str, Any],
    text: str,
    wanted: str | None = None,
) -> nn.Module:
    """Load a model from foreign code if it is trusted; exactly the bytes that were hashed are run."""
    import json

    from utils.models.code_files import SourcePackage
    from utils.models.construction import choose, construct

    code.require_trust(trust, _call(text, overrides))
    try:
        described = json.loads(code.files.get("config.json", b"{}"))
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{code.origin}: config.json is not valid JSON: {error}.") from None
    if not isinstance(described, dict):
        raise ModelError(f"{code.origin}: config.json holds a {type(described).__name__}; must be a mapping.")
    package = SourcePackage(code.files, code.origin)
    module = package.load("model.py")
    hint = str(described.get("model_name", ""))
    factory = choose(module, wanted, f"{code.origin}: model.py", code.files["model.py"], hint)
    return construct(factory, _arguments(config, overrides, described), f"{code.origin}: model.py", package.paths)


def _from_module(module: str, name: str, trust: str | None, config: Any, overrides: Mapping[str, Any]) -> nn.Module:
    """Build a model with an importable function or class."""
    from utils.models.code_files import importable, reported

    where = f"{module}:{name}"
    _refuse_trust(trust, where)
    with importable(Path.cwd()), reported(where):
        target: Any = importlib.import_module(module)
    for part in name.split("."):
        if not hasattr(target, part):
            guess = nearest(part, [known for known in dir(target) if not known.startswith("_")])
            hint = f" Did you mean {guess!r}?" if guess else ""
            raise ModelNotFoundError(f"{where}: the module {module} has no {name!r}.{hint}")
        target = getattr(target, part)
    return _construct(target, config, overrides, where)


def _from_hub(
    reference: HubReference, wanted: str | None, trust: str | None, config: Any, overrides: Mapping[str, Any], text: str
) -> nn.Module:
    from utils.models.transformers_models import load_from_hub

    _refuse_config(config, text)
    return load_from_hub(reference.id, reference.revision, wanted, overrides, trust, _call(text, overrides))


def _construct(factory: Callable[..., Any], config: Any, overrides: Mapping[str, Any], where: str) -> nn.Module:
    from utils.models.construction import construct

    return construct(factory, _arguments(config, overrides), where)


def _arguments(config: Any, overrides: Mapping[str, Any], described: Mapping[str, Any] | None = None) -> Any:
    """Constructor arguments for the model; `described` is the config.json beside the code, which an explicit config
    replaces."""
    from utils.models.construction import Arguments
    from utils.training.config_files import read_config_file

    if config is None:
        entries = {name: value for name, value in (described or {}).items() if name != "model_name"}
        return Arguments(None, overrides, entries)
    if isinstance(config, Mapping):
        return Arguments(None, {**config, **overrides})
    if isinstance(config, (str, os.PathLike)):
        return Arguments(
            None, overrides, {n: v for n, v in read_config_file(os.fspath(config)).items() if n != "model_name"}
        )
    return Arguments(config, overrides)


def _refuse_trust(trust: str | None, source: str) -> None:
    if trust is not None:
        raise ConfigError(
            f"trust: {source} is not code that somebody else wrote, so there is nothing to trust. Leave it out."
        )


def _refuse_config(config: Any, source: str) -> None:
    if config is not None:
        raise ConfigError(f"config: {source} has its own config. Change its entries by name, such as n_layer=2.")


def _call(source: str, overrides: Mapping[str, Any]) -> str:
    """The caller's call up to its trust argument, for a message."""
    given = "".join(f"{name}={shown(value)}, " for name, value in overrides.items())
    return f"load_model({source!r}, {given}"
