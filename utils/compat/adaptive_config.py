"""`AdaptiveConfig`: the settings of `AdaptiveModel` and of the legacy `TrainingLoop`."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from utils.compat.adaptive_nodes import NodeConfig
from utils.errors import ConfigError, DataNotFoundError, Problem, first_line
from utils.schema import nearest, shown
from utils.storage import atomic_write

PHASE_NAMES = ("active", "sleep", "interactive", "inspired")  # in the order of `Phase`
_DTYPES = ("float32", "float64", "bfloat16", "float16")


def _default_weights() -> dict[str, float]:
    return {"active": 0.6, "interactive": 0.25, "sleep": 0.1, "inspired": 0.05}


@dataclass
class AdaptiveConfig:
    """Settings of an adaptive model and of its training.

    Attributes:
        num_nodes, hidden_dim: N and H of the model; input_dim: features of a flattened input; output_dim: classes.
        spatial_dim: coordinates of a node's position.
        energy_decay: share of its energy that a node loses in each forward pass.
        activity_threshold: activity above which a node counts as active in the metrics of sparsity.
        phase_weights: how nodes that leave their phase by the transition matrix are spread over the other phases, in
            proportion; names active, sleep, interactive, inspired. A phase that is left out has weight 0.
        learning_rate, batch_size, num_epochs, seed: of training; `seed` also decides the initial weights.
        device, dtype: where the model is, and the number format of its parameters.
        log_interval: batches between two lines of `TrainingLoop`.
        save_checkpoint, checkpoint_dir, metrics_file: what `TrainingLoop` writes, and where.
        connection_radius, adaptation_rate, circadian_period: kept and passed on; the equations do not use them.
        backend: "pytorch". enable_continual_learning, enable_ablation_study: False; True is refused.
    Raises:
        ConfigError (a ValueError): lists every value out of range.
    """

    num_nodes: int = 100
    hidden_dim: int = 64
    input_dim: int = 784
    output_dim: int = 10
    spatial_dim: int = 2
    energy_decay: float = 0.01
    activity_threshold: float = 0.5
    connection_radius: float = 1.0
    learning_rate: float = 0.001
    batch_size: int = 64
    num_epochs: int = 10
    adaptation_rate: float = 0.1
    circadian_period: int = 100
    phase_weights: dict[str, float] = field(default_factory=_default_weights)
    backend: str = "pytorch"
    device: str = "cpu"
    dtype: str = "float32"
    seed: int = 42
    log_interval: int = 100
    save_checkpoint: bool = True
    checkpoint_dir: str = "checkpoints"
    metrics_file: str = "metrics.json"
    enable_continual_learning: bool = False
    enable_ablation_study: bool = False

    def __post_init__(self) -> None:
        if problems := _problems(self):
            raise ConfigError.from_problems("AdaptiveConfig", problems)

    def to_node_config(self) -> NodeConfig:
        """The part that nodes need."""
        names = [entry.name for entry in dataclasses.fields(NodeConfig)]
        return NodeConfig(**{name: getattr(self, name) for name in names})

    def to_dict(self) -> dict[str, Any]:
        """Convert all settings to plain values."""
        return dataclasses.asdict(self)

    def update(self, **changes: Any) -> AdaptiveConfig:
        """A copy with some settings changed. Raises `ConfigError` for unknown names and values out of range."""
        return _made({**self.to_dict(), **changes}, "AdaptiveConfig.update")

    def to_yaml(self, path: str | Path) -> None:
        """Write the settings to a YAML file; its folder is created."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        text = yaml.safe_dump(self.to_dict(), sort_keys=False)
        atomic_write(path, lambda file: file.write(text.encode()))

    @classmethod
    def from_yaml(cls, path: str | Path) -> AdaptiveConfig:
        """Read the settings from a YAML file; those that it does not name have their defaults.

        Raises:
            FileNotFoundError: no such file. ConfigError (a ValueError): not YAML, no mapping, or settings that are not valid.
        """
        try:
            values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise DataNotFoundError(
                f"{path} does not exist; expected a YAML file of AdaptiveConfig settings."
            ) from None
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path} is not valid YAML: {first_line(error)}") from None
        if values is not None and not isinstance(values, dict):
            raise ConfigError(f"{path}: got a {type(values).__name__}; expected settings, one `name: value` a line.")
        return _made(values or {}, str(path))


def _made(values: dict[Any, Any], subject: str) -> AdaptiveConfig:
    known = [entry.name for entry in dataclasses.fields(AdaptiveConfig)]
    problems = []
    for name in values:
        if name not in known:
            guess = nearest(str(name), known)
            problems.append(Problem(str(name), f"unknown setting{f'; did you mean {guess}?' if guess else ''}", guess))
    if problems:
        raise ConfigError.from_problems(subject, problems)
    return AdaptiveConfig(**values)


def _problems(config: AdaptiveConfig) -> list[Problem]:
    def number(name: str, kind: type, low: float, high: float | None = None, *, open_low: bool = False) -> None:
        value = getattr(config, name)
        right = isinstance(value, (int, float) if kind is float else int) and not isinstance(value, bool)
        if right and (value > low if open_low else value >= low) and (high is None or value < high):
            return
        limits = f"{'above' if open_low else 'at least'} {low:g}{'' if high is None else f' and below {high:g}'}"
        problems.append(
            Problem(name, f"got {shown(value)}; must be a{' whole' if kind is int else ''} number {limits}")
        )

    problems: list[Problem] = []
    for name in ("num_nodes", "hidden_dim", "input_dim", "output_dim", "spatial_dim", "batch_size", "circadian_period"):
        number(name, int, 1)
    number("num_epochs", int, 0)
    number("log_interval", int, 1)
    number("seed", int, 0, 2**32)
    number("learning_rate", float, 0, 1, open_low=True)
    number("energy_decay", float, 0, 1)
    for name in ("activity_threshold", "connection_radius", "adaptation_rate"):
        number(name, float, 0)
    problems += _weight_problems(config.phase_weights)
    for name, allowed in (("backend", ("pytorch",)), ("dtype", _DTYPES)):
        if getattr(config, name) not in allowed:
            problems.append(Problem(name, f"got {shown(getattr(config, name))}; must be {' or '.join(allowed)}"))
    for name in ("enable_continual_learning", "enable_ablation_study"):
        if getattr(config, name) is not False:
            problems.append(
                Problem(name, f"got {shown(getattr(config, name))}; it has no implementation here, set False")
            )
    return problems


def _weight_problems(weights: Any) -> list[Problem]:
    if not isinstance(weights, dict) or not weights:
        return [Problem("phase_weights", f"got {shown(weights)}; must be a dict of {', '.join(PHASE_NAMES)}")]
    problems = []
    for name, value in weights.items():
        if name not in PHASE_NAMES:
            guess = nearest(str(name), PHASE_NAMES)
            problems.append(
                Problem(f"phase_weights.{name}", f"unknown phase; there are {', '.join(PHASE_NAMES)}", guess)
            )
        elif not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 <= value < float("inf"):
            problems.append(Problem(f"phase_weights.{name}", f"got {shown(value)}; must be a number of at least 0"))
    return problems
