"""Random settings, sensible and absurd, and what must hold for each of them.

    python -m tests.kit.random_configs 10000 [SEED]

makes that many configurations in every way there is (classes, builder, presets, files) and prints what broke. Each one either
is a valid object that files give back equal, or a `ConfigError` that can be printed.
"""

from __future__ import annotations

import datetime
import random
import sys
import tempfile
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from decimal import Decimal
from enum import Enum
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from utils.errors import ConfigError
from utils.scrubbing import scrubbed
from utils.training import TaskSpec, TrainingConfig, TrainingConfigBuilder
from utils.training.config_files import parse_value, read_config_file, write_config_file
from utils.ui import ConfigPresets, SetupConfig

#: Seconds that one configuration may take, with room for a slow machine.
LONGEST_S = 10.0


class Contrary:
    """Raises whatever is done with it."""

    __hash__ = None  # type: ignore[assignment]

    def _refuse(self, *_: object) -> Any:
        raise RuntimeError("no")

    __repr__ = __str__ = __eq__ = __bool__ = __len__ = __iter__ = __float__ = __index__ = _refuse  # type: ignore[assignment]


class Word(str, Enum):  # noqa: UP042 - the older idiom, which configurations of other systems use
    """Text with a name."""

    VALUE = "cosine"


def nested(depth: int, inside: Any = 1) -> Any:
    """Lists in lists."""
    for _ in range(depth):
        inside = [inside]
    return inside


_PLACES = ("builtin", "local", "huggingface", "drive", "upload", "data/*.txt", "Salesforce/wikitext")
_WORDS = (
    "", "a", "auto", "cosine", "bf16", "epoch", "val/loss", "val_accuracy", "max", "causal_lm", "vision", "5e-5", "012", "1:30",
    "2024-01-01", "null", "yes", "~", "<<", "=", "!!int 5", "- a", "a: b", "#", "{", "é", "\U0001f600", "\ud800", "\0", "\x85",
    "\u2028", "\ufeff", "\r\n", " a ", "\t", "x" * 20_000, "https://user:pass@host/a.csv", "../x", "CON", *_PLACES,
)  # fmt: skip
_OBJECTS: tuple[Callable[[], Any], ...] = (
    object, Contrary, lambda: int, lambda: np.array([1, 2]), lambda: np.array([]), lambda: np.float32(0.1), lambda: np.float64(0.1),
    lambda: np.int64(3), lambda: torch.tensor([1.0, 2.0]), lambda: torch.tensor(3), lambda: Path("a"), lambda: Path("a\0b"),
    lambda: {1}, lambda: frozenset("ab"), lambda: range(3), lambda: range(10**9), lambda: 1j, lambda: b"a", lambda: Decimal(1),
    lambda: Fraction(1, 3), lambda: datetime.date(2024, 1, 1), lambda: Word.VALUE, lambda: SimpleNamespace(a=1),
    lambda: OrderedDict(a=1), lambda: iter([1]), lambda: (i for i in "ab"), lambda: nested(8), lambda: nested(50),
    lambda: nested(3000), lambda: {"a": nested(8, "\ud800")}, lambda: len, lambda: TrainingConfig(), lambda: [0.9, 0.95],
    lambda: ["onnx"], lambda: ["hf", "x"], lambda: ("loss", "accuracy"),
)  # fmt: skip
_NUMBERS = (
    0, 1, 2, 7, -1, 10**6, 2**31, 2**63, 10**400, 10**5000, 0.0, -0.0, 0.1, 0.5, 1.0, 1e-5, 5e-324, 1e300, float("nan"),
    float("inf"), True, False, None,
)  # fmt: skip
_NAMES = (
    *TrainingConfig.model_fields, *TrainingConfig.aliases, *TaskSpec.model_fields, *SetupConfig.field_names(), "use_amp",
    "dataset", "frequency", "validation_split", "task_name", "num_labels", "d_model", "model_name",
)  # fmt: skip
_STRANGE_NAMES = (
    "self",
    "cls",
    "values",
    "name",
    "changes",
    "__class__",
    "\ud800",
    "",
    "a b",
    "n" * 300,
    "learning_rat",
    "\n",
)
_METHODS = sorted(name for name in dir(TrainingConfigBuilder) if name.startswith("with_"))
_TASKS = (
    "language_modeling",
    "masked_lm",
    "classification",
    "token_classification",
    "regression",
    "seq2seq",
    "image_classification",
)

# YAML and JSON that no writer of ours makes: tags, references, keys of every kind, numbers of YAML 1.1, depth and length.
_SNIPPETS = (
    "012", "0o14", "1:30", "1:30.5", "1_000", "0x1F", "2024-01-01", "2024-13-45", "2024-01-01 10:00:00", "!!int abc", "!!int",
    "!!bool maybe", "!!float x", "!!timestamp x", "!!binary AAAA", "!!set {a, b}", "!!omap [a: 1]", "!!pairs [a: 1]", "!!map [1]",
    "!!seq {a: 1}", "!!str [a]", "!!python/name:os.system", "!other 1", "&a [*a]", "&a {b: *a}", "*missing", "[&a 1, *a, *a]",
    "{? [a, b] : c}", "{? {a: b} : c}", "{~: 1}", "{1: 2}", "{.nan: 1}", "<<", "{<<: {a: 1}}", "=", ".inf", ".nan", "|\n  text\n",
    ">-\n  folded\n", "'it''s'", '"\\ud800"', '"\\x85"', "[" * 30 + "]" * 30, "[" * 3000, "{a: " * 3000, "9" * 5000,
    "0x" + "f" * 5000, "1" + ":1" * 3000, "- " * 300, "? " * 300, "[" + "1," * 20_000 + "]", "x" * 300_000, "%", "@", "`", "\t",
    "[", "{", "'", '"', "a: b: c", "--- 1\n--- 2", "NaN", "Infinity", "1e999", "-0", "-0.0",
)  # fmt: skip


def random_value(chance: random.Random, depth: int = 0) -> Any:
    """A value of any kind."""
    kind = chance.random()
    if kind < 0.3:
        return chance.choice(_NUMBERS)
    if kind < 0.6:
        return chance.choice(_WORDS)
    if kind < 0.68:
        return "".join(
            chr(chance.choice((chance.randrange(128), chance.randrange(0x3000)))) for _ in range(chance.randrange(12))
        )
    if kind < 0.8 and depth < 4:
        return [random_value(chance, depth + 1) for _ in range(chance.randrange(3))]
    if kind < 0.9 and depth < 4:
        return {random_name(chance): random_value(chance, depth + 1) for _ in range(chance.randrange(3))}
    return chance.choice(_OBJECTS)()


def random_name(chance: random.Random) -> Any:
    """A field's name, mostly."""
    kind = chance.random()
    if kind < 0.85:
        return chance.choice(_NAMES)
    return chance.choice(_STRANGE_NAMES) if kind < 0.97 else chance.choice((1, None, 2.5, True, ("a",)))


def random_values(chance: random.Random) -> dict[Any, Any]:
    """Names with values."""
    return {random_name(chance): random_value(chance) for _ in range(chance.randrange(5))}


def random_text(chance: random.Random, kind: str) -> str:
    """A config file's text, of our own writing or of nobody's."""
    lines = []
    for _ in range(chance.randrange(4)):
        name = chance.choice((*_NAMES, "training", "setup", "task", *_SNIPPETS))
        lines.append((name, chance.choice(_SNIPPETS)))
    if kind == "json":
        return "{" + ", ".join(f'"{name}": {value}' for name, value in lines) + chance.choice("}}}]")
    return "".join(f"{name}: {value}\n" for name, value in lines)


def _text_names(values: Mapping[Any, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if isinstance(name, str)}


def _from_file(chance: random.Random, folder: Path) -> Any:
    kind = chance.choice(("json", "yaml"))
    path = folder / f"config.{kind}"
    path.write_bytes(random_text(chance, kind).encode())
    maker = chance.choice(
        (TrainingConfig.load, SetupConfig.load, lambda path: TaskSpec.from_dict(read_config_file(path)))
    )
    return maker(path)


def _built(chance: random.Random, folder: Path) -> Any:
    builder = (
        TrainingConfigBuilder.from_config(random_values(chance)) if chance.random() < 0.3 else TrainingConfigBuilder()
    )
    return getattr(builder, chance.choice(_METHODS))(**_text_names(random_values(chance))).build()


def _named_task(chance: random.Random, folder: Path) -> Any:
    return getattr(TaskSpec, chance.choice(_TASKS))(**_text_names(random_values(chance)))


def _sections(chance: random.Random, folder: Path) -> Any:
    parts: Any = {
        chance.choice(("setup", "training", "other", 1)): chance.choice((random_values, random_value))(chance)
        for _ in range(2)
    }
    return SetupConfig.from_sections(parts if chance.random() < 0.9 else random_value(chance))


def _updated(chance: random.Random, folder: Path) -> Any:
    setup = SetupConfig()
    setup.update(**_text_names(random_values(chance)))
    setup.set(random_name(chance), random_value(chance))
    return setup


def _customized(chance: random.Random, folder: Path) -> Any:
    presets = ConfigPresets()
    name = chance.choice((*presets.list_presets(), random_value(chance)))
    values = {key: value for key, value in _text_names(random_values(chance)).items() if key != "name"}
    return presets.customize(name, **values).setup()


_WAYS: tuple[Callable[[random.Random, Path], Any], ...] = (
    lambda chance, folder: TrainingConfig(**_text_names(random_values(chance))),
    lambda chance, folder: TrainingConfig.from_dict(chance.choice((random_values, random_value))(chance)),
    lambda chance, folder: TrainingConfig().replace(**_text_names(random_values(chance))),
    lambda chance, folder: TaskSpec(random_value(chance), **{k: v for k, v in _text_names(random_values(chance)).items() if k != "name"}),
    lambda chance, folder: TaskSpec(preprocessing_config={random_name(chance): random_value(chance)}),
    lambda chance, folder: TaskSpec.from_dict(chance.choice((random_values, random_value))(chance)),
    lambda chance, folder: SetupConfig(**_text_names(random_values(chance))),
    _named_task, _built, _sections, _updated, _customized, _from_file, _from_file, _from_file,
)  # fmt: skip


def check(chance: random.Random, folder: Path) -> str:
    """Make one configuration. Returns "valid" or "refused".

    Raises:
        AssertionError: it is accepted and a file does not give it back equal.
        Exception: whatever the library raised that is no ConfigError.
    """
    if chance.random() < 0.05:
        parse_value(chance.choice(_SNIPPETS))
    try:
        made = chance.choice(_WAYS)(chance, folder)
    except ConfigError as error:
        refusal = str(error)
    else:
        _check_round_trip(made, folder)
        return "valid"
    assert len(refusal.encode()) < 20_000, "a message is read by people, and can be printed"
    return "refused"


def _check_round_trip(made: Any, folder: Path) -> None:
    values = made.sections() if isinstance(made, SetupConfig) else made.to_dict()
    # A file holds no secrets; everything else comes back equal.
    safe = scrubbed(values)
    for name in ("config.yaml", "config.json"):
        again = read_config_file(write_config_file(folder / name, {"kept": values}))["kept"]
        restored = type(made).from_sections(again) if isinstance(made, SetupConfig) else type(made).from_dict(again)
        written = restored.sections() if isinstance(restored, SetupConfig) else restored.to_dict()
        assert written == safe, f"{restored!r} was read back for {made!r}"
        assert restored == made or safe != values


def main(count: int, first_seed: int = 0) -> int:
    """Check that many seeds; print every failure. Returns the exit status."""
    counts: Counter[str] = Counter()
    failures, slowest = [], (0.0, 0)
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(first_seed, first_seed + count):
            started = time.process_time()
            try:
                counts[check(random.Random(seed), Path(folder))] += 1
            except Exception as error:  # noqa: BLE001 - what was raised is the finding
                failures.append(f"seed {seed}: {type(error).__name__}: {str(error)[:200]!a}")
            slowest = max(slowest, (time.process_time() - started, seed))
    print(*failures, sep="\n")
    print(f"{count} configurations: {counts['valid']} valid, {counts['refused']} refused, {len(failures)} broken")
    print(f"slowest: {slowest[0]:.2f} s of CPU (seed {slowest[1]})")
    return bool(failures) or slowest[0] > LONGEST_S


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
