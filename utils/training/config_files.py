"""Config files: JSON and YAML, with YAML 1.2's numbers, no key twice, and limits on size, depth and digits.

YAML is read as the data that JSON can hold: text, numbers, booleans, null, lists and mappings. Dates are text. Other tags, keys
that are not scalars, and the octal and sexagesimal numbers of YAML 1.1 are errors.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from utils.errors import ConfigError, DataNotFoundError, FileWriteError
from utils.schema import shown, size_problem
from utils.scrubbing import scrubbed
from utils.storage import absolute_path, write_text

# A setup with every field set takes 3 kB. PyYAML reads about 150 kB, or 30,000 values, in a second.
_MOST_BYTES = 512 * 1024
_MOST_VALUES = 10_000
_MOST_NESTED = 20
_MOST_DIGITS = 30

_TAG = "tag:yaml.org,2002:"
# Of YAML 1.1: 012 is ten there, and 1:30 is ninety.
_OCTAL = re.compile(r"[-+]?0[0-9_]+")
_NOT_SUPPORTED = ("timestamp", "merge", "value")


class _Unsupported(yaml.MarkedYAMLError):
    """Valid YAML that a config file may not hold."""

    def __init__(self, problem: str, mark: yaml.Mark) -> None:
        super().__init__(problem=problem, problem_mark=mark)


class _Loader(yaml.SafeLoader):
    """PyYAML reads YAML 1.1, where 5e-5 is text; this reads it as the number that everybody means."""

    _depth = 0
    _count = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Compose a node as PyYAML does, within limits: its own recursion ends in RecursionError, after a second or two."""
        self._depth += 1
        self._count += 1
        mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
        if self._depth > _MOST_NESTED:
            raise _Unsupported(f"nested more than {_MOST_NESTED} levels deep", mark)
        if self._count > _MOST_VALUES:
            raise _Unsupported(f"more than {_MOST_VALUES:,} values", mark)
        node: yaml.Node | None = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def fetch_flow_collection_start(self, token_class: type[yaml.Token]) -> None:
        """Scan a flow collection as PyYAML does, which reads far ahead of `compose_node` to see whether a bracket
        begins a key."""
        if self.flow_level > _MOST_NESTED:
            raise _Unsupported(f"nested more than {_MOST_NESTED} levels deep", self.get_mark())
        super().fetch_flow_collection_start(token_class)


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
# The writer still quotes what YAML 1.1 would read as a date, for other readers.
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in rules if tag.removeprefix(_TAG) not in _NOT_SUPPORTED]
    for first, rules in _Loader.yaml_implicit_resolvers.items()
}


def _text(dumper: _Dumper, text: str) -> yaml.Node:
    # PyYAML writes these line breaks and the byte-order mark as they are, and reads them back as other characters.
    style = '"' if re.search("[\x85\u2028\u2029\ufeff]", text) else None
    return dumper.represent_scalar(f"{_TAG}str", text, style=style)


_Dumper.add_representer(str, _text)


def _mapping_without_repeats(loader: _Loader, node: yaml.Node) -> dict[Any, Any]:
    if not isinstance(node, yaml.MappingNode):
        raise _Unsupported("!!map must hold `name: value` lines", node.start_mark)
    mapping: dict[Any, Any] = {}
    for key_node, value_node in node.value:
        if not isinstance(key_node, yaml.ScalarNode):
            raise _Unsupported("a key must be a name, not a list or mapping", key_node.start_mark)
        key = loader.construct_object(key_node, deep=True)
        if key in mapping:
            raise ConfigError(f"{_place(key_node)}: {key!r} stands twice; keep one")
        mapping[key] = loader.construct_object(value_node, deep=True)
    return mapping


def _number(loader: _Loader, node: yaml.ScalarNode) -> int | float:
    text = str(loader.construct_scalar(node))
    is_whole = node.tag == f"{_TAG}int"
    if ":" in text:
        raise _Unsupported(f"{text[:40]} is a base-60 number in YAML 1.1; put text in quotes", node.start_mark)
    if is_whole and _OCTAL.fullmatch(text):
        raise _Unsupported(
            f"{text[:40]} is an octal number in YAML 1.1; write it without the leading zero, or in quotes if it is text",
            node.start_mark,
        )
    try:
        if is_whole:
            _check_digits(text)
        return loader.construct_yaml_int(node) if is_whole else loader.construct_yaml_float(node)
    except (ValueError, IndexError):  # IndexError: !!int without any text
        raise _Unsupported(f"{shown(text)} cannot be read as a number", node.start_mark) from None


def _truth(loader: _Loader, node: yaml.ScalarNode) -> bool:
    text = str(loader.construct_scalar(node))
    if text.lower() not in loader.bool_values:
        raise _Unsupported(f"{shown(text)} is neither true nor false", node.start_mark)
    return bool(loader.bool_values[text.lower()])


def _unknown_tag(loader: _Loader, node: yaml.Node) -> Any:
    tag = node.tag.replace(_TAG, "!!")
    problem = f"the tag {shown(tag)} is not supported; write plain values"
    raise yaml.constructor.ConstructorError(problem=problem, problem_mark=node.start_mark)


def _check_digits(text: str) -> str:
    if len(text) > _MOST_DIGITS:
        raise ValueError(f"a whole number of {len(text):,} digits")
    return text


_Loader.yaml_constructors = {
    f"{_TAG}null": yaml.SafeLoader.construct_yaml_null,
    f"{_TAG}str": yaml.SafeLoader.construct_yaml_str,
    f"{_TAG}seq": yaml.SafeLoader.construct_yaml_seq,
    f"{_TAG}map": _mapping_without_repeats,
    f"{_TAG}bool": _truth,
    f"{_TAG}int": _number,
    f"{_TAG}float": _number,
    None: _unknown_tag,
}


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
    """Read the mapping in a `.json`, `.yaml` or `.yml` file.

    Raises:
        DataNotFoundError: there is no such file.
        ConfigError: another extension, not UTF-8, a syntax error (with path:line), a key twice, not a mapping, or over the
            limits: 512 KiB, 10,000 values, 20 levels, 30 digits.
    """
    path = Path(path)
    kind = _kind(path)
    text = _read_text(path)
    try:
        values = _parse_json(path, text) if kind == "json" else _parse_yaml(path, text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path}:{error.lineno}:{error.colno}: not JSON: {error.msg}") from None
    except RecursionError:
        raise ConfigError(f"{path} is nested more than {_MOST_NESTED} levels deep; a config file holds few.") from None
    except _Unsupported as error:
        raise ConfigError(f"{path}{_where(error)}: {error.problem}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}{_where(error)}: not YAML: {getattr(error, 'problem', None) or error}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path} holds a {type(values).__name__}; a config file holds `name: value` lines.")
    # Repeated references (*name) are counted as often as they stand for a value.
    if (problem := size_problem(values, _MOST_NESTED, _MOST_VALUES, _MOST_BYTES)) is not None:
        raise ConfigError(f"{path} {problem}; a config file is small.")
    return values


def _read_text(path: Path) -> str:
    if path.exists() and not path.is_file() and not path.is_dir():
        raise ConfigError(f"{path} is not a regular file; give a .json, .yaml or .yml file.")
    try:
        with open(path, "rb") as file:
            data = file.read(_MOST_BYTES + 1)
        if len(data) > _MOST_BYTES:
            raise ConfigError(f"{path} has more than {_MOST_BYTES // 1024} KiB; a config file is small.")
        return data.decode("utf-8-sig")
    except FileNotFoundError:
        raise DataNotFoundError(f"{path} does not exist; a config file is read from there.") from None
    except IsADirectoryError:
        raise ConfigError(f"{path} is a folder; give a .json, .yaml or .yml file in it.") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text (byte {error.start}); save it as UTF-8.") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL character in the path
        raise ConfigError(
            f"{shown(str(path))[1:-1]} cannot be read: {getattr(error, 'strerror', None) or error}."
        ) from None


def _parse_json(path: Path, text: str) -> Any:
    def whole_number(digits: str) -> int:
        try:
            return int(_check_digits(digits))
        except ValueError as error:
            raise ConfigError(f"{path} holds {error}; at most {_MOST_DIGITS} are read.") from None

    return json.loads(text, object_pairs_hook=_pairs_without_repeats(path), parse_int=whole_number)


def _parse_yaml(path: Path, text: str) -> Any:
    loader = _Loader(text)
    loader.name = str(path)
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()


def _where(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    return f":{mark.line + 1}:{mark.column + 1}" if mark else ""


def write_config_file(path: str | Path, values: Mapping[str, Any]) -> Path:
    """Write `values` as JSON or YAML, by the path's extension, atomically and without secrets. Returns the absolute path."""
    path, values = absolute_path(path), scrubbed(values)
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
