"""Config files: JSON and YAML, with YAML 1.2's numbers and no key twice."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from utils.errors import ConfigError, DataNotFoundError, FileWriteError
from utils.storage import NotRegularFileError, absolute_path, require_regular_file, write_text


class _Loader(yaml.SafeLoader):
    """PyYAML reads YAML 1.1, where 5e-5 is text; this reads it as the number that everybody means."""


class _Dumper(yaml.SafeDumper):
    """Quotes what `_Loader` would read as something else than text."""


for _side in (_Loader, _Dumper):
    _side.yaml_implicit_resolvers = {key: list(rules) for key, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()}
    _side.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(
            r"^[-+]?([0-9][0-9_]*)(\.[0-9_]*)?([eE][-+]?[0-9]+)$|^[-+]?[0-9]+\.[0-9]*$|^[-+]?\.[0-9]+([eE][-+]?[0-9]+)?$"
        ),
        list("-+0123456789."),
    )


def _mapping_without_repeats(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    mapping: dict[Any, Any] = {}
    for key_node, value_node in node.value:
        key = loader.construct_object(key_node, deep=True)
        if key in mapping:
            raise ConfigError(f"{_place(key_node)}: {key!r} stands twice; keep one")
        mapping[key] = loader.construct_object(value_node, deep=True)
    return mapping


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping_without_repeats)


def _place(node: yaml.Node) -> str:
    return f"{node.start_mark.name}:{node.start_mark.line + 1}"


def _pairs_without_repeats(path: Path) -> Any:
    def build(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key, value in pairs:
            if key in values:
                raise ConfigError(f"{path}: {key!r} stands twice; keep one")
            values[key] = value
        return values

    return build


def parse_value(text: str) -> Any:
    """One value as a config file would read it: "5e-5" is a number, "true" a bool, "[1, 2]" a list, other text is text."""
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506 - _Loader is a SafeLoader
    except yaml.YAMLError:
        return text


def read_config_file(path: str | Path) -> dict[str, Any]:
    """The mapping in a `.json`, `.yaml` or `.yml` file.

    Raises:
        DataNotFoundError: there is no such file.
        ConfigError: another extension, not UTF-8, a syntax error (with path:line), a key twice, or not a mapping.
    """
    path = Path(path)
    kind = _kind(path)
    try:
        require_regular_file(path)
        text = path.read_text(encoding="utf-8-sig")
    except NotRegularFileError as error:
        raise ConfigError(f"{error}; a config file is a regular file.") from None
    except FileNotFoundError:
        raise DataNotFoundError(f"{path} does not exist; a config file is read from there.") from None
    except IsADirectoryError:
        raise ConfigError(f"{path} is a folder; give a .json, .yaml or .yml file in it.") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text (byte {error.start}); save it as UTF-8.") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror or error}.") from None
    try:
        if kind == "json":
            values = json.loads(text, object_pairs_hook=_pairs_without_repeats(path))
        else:
            loader = _Loader(text)
            loader.name = str(path)
            try:
                values = loader.get_single_data()
            finally:
                loader.dispose()
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path}:{error.lineno}:{error.colno}: not JSON: {error.msg}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
        raise ConfigError(f"{path}{where}: not YAML: {getattr(error, 'problem', None) or error}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path} holds a {type(values).__name__}; a config file holds `name: value` lines.")
    return values


def write_config_file(path: str | Path, values: Mapping[str, Any]) -> Path:
    """Write `values` as JSON or YAML, by the path's extension, atomically. Returns the absolute path."""
    path = absolute_path(path)
    if _kind(path) == "json":
        text = json.dumps(dict(values), indent=2, ensure_ascii=False) + "\n"
    else:
        text = yaml.dump(dict(values), Dumper=_Dumper, sort_keys=False, allow_unicode=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_text(path, text).resolve()


def save_config_file(path: str | Path, values: Mapping[str, Any]) -> str:
    """`write_config_file` where a user has named the file.

    Raises:
        FileWriteError: it cannot be written; what was there before is intact.
        ConfigError: another extension.
    """
    try:
        return str(write_config_file(path, values))
    except OSError as error:
        raise FileWriteError(
            f"{absolute_path(path)} could not be written: {error.strerror or error}. Free some space, or choose another path."
        ) from error


def _kind(path: Path) -> str:
    kind = {".json": "json", ".yaml": "yaml", ".yml": "yaml"}.get(path.suffix.lower())
    if kind is None:
        raise ConfigError(f"{path}: a config file ends in .json, .yaml or .yml; got {path.suffix or 'no extension'!r}")
    return kind
