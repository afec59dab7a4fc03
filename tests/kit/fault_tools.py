"""What the fault programs are made of: a program, its data, and the collection of everything that the product reports on it."""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import inspect
import itertools
import re
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from utils.checks import CheckReport, check_data_quality, run_all_tier1_tests
from utils.errors import DataTypeError, TrainbookError
from utils.training import TaskSpec, Trainer, TrainingConfig
from utils.training.engine.compute.user_supplied import Criterion, OwnParts
from utils.training.engine.results import TrainingResults

SIDE, SIGNS = 12, 10
REGRESSION = TaskSpec.regression()


@dataclass
class Setup:
    """One training program.

    Attributes:
        config: settings of `TrainingConfig`.
        optimizer: of the caller's, made from the model; needed where there is a criterion of the caller's, then Adam by
            default.
        sizes: what the model checks are given as config.
    """

    model: nn.Module
    train: Any
    validation: Any = None
    config: dict[str, Any] = field(default_factory=dict)
    criterion: Criterion | None = None
    optimizer: Callable[[nn.Module], torch.optim.Optimizer] | None = None
    task: TaskSpec | None = None
    tokenizer: Any = None
    sizes: Mapping[str, Any] = field(default_factory=dict)

    def own_parts(self) -> OwnParts | None:
        """The caller's optimizer and criterion, if there are any."""
        if self.optimizer is None and self.criterion is None:
            return None
        make = self.optimizer or (lambda model: torch.optim.Adam(model.parameters(), lr=0.01))
        return OwnParts(make(self.model), self.criterion)


@dataclass(frozen=True)
class Program:
    """A fault as it was reported, made small, and the same program put right.

    Attributes:
        named: a pattern that the right finding contains, in any case of its letters.
    """

    name: str
    section: str
    faulty: Callable[[], Setup]
    repaired: Callable[[], Setup]
    named: str


def observe(make: Callable[[], Setup]) -> list[str]:
    """Everything that is reported before, during and after the training of one program, as "source: sentence".

    Errors, data checks, model checks of tier 1 before and after the training, the engine's notices, Python warnings, and the
    doctor's findings. Notices that only state what was inferred or is usual are left out.
    """
    torch.manual_seed(0)
    setup = make()
    lines = list(_data_findings(setup))
    lines += _model_findings("before training", setup, copy.deepcopy(setup.model))
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        results = None
        trainer: Trainer | None = None
        try:
            settings = {
                "run_name": "program",
                "output_dir": folder,
                "epochs": 5,
                "batch_size": 32,
                "learning_rate": 3e-3,
            }
            trainer = Trainer(
                setup.model, training_config=TrainingConfig(**{**settings, **setup.config}), task_spec=setup.task,
                tokenizer=setup.tokenizer, own_parts=setup.own_parts(),
            )  # fmt: skip
            results = trainer.train(setup.train, setup.validation)
        except (TrainbookError, RuntimeError, ValueError) as error:
            lines.append(f"error: {error} {' '.join(getattr(error, '__notes__', ()))}")
        lines += [
            f"notice: {sentence}" for sentence in (trainer.notices if trainer else ()) if not _USUAL.match(sentence)
        ]
        lines += [f"warning: {warning.message}" for warning in caught if issubclass(warning.category, UserWarning)]
        if results is not None:
            lines += _model_findings("after training", setup, setup.model)
        lines += _diagnosis(results, trainer, Path(folder) / "program")
    return lines


# Notices that every program of its kind gets, sound or not: what was inferred, and how precision and data are handled.
_USUAL = re.compile(
    r"Task: |No validation data: train/loss is monitored instead|auto_batch_size: |.*is trained in fp32"
)


def _data_findings(setup: Setup) -> Iterator[str]:
    offered = {
        "validation": setup.validation,
        "model": setup.model,
        "task_spec": setup.task,
        "tokenizer": setup.tokenizer,
    }
    known = inspect.signature(check_data_quality).parameters
    options = {name: value for name, value in offered.items() if name in known and value is not None}
    if hasattr(setup.train, "column_names"):
        options["label_column"] = "label"
    try:
        report = check_data_quality(setup.train, **options)
    except (DataTypeError, TrainbookError) as error:
        if "model" in known:
            yield f"data: {error}"
        return
    yield from _lines("data", report)


def _model_findings(when: str, setup: Setup, model: nn.Module) -> list[str]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        report = run_all_tier1_tests(model, setup.sizes, task_spec=setup.task, tokenizer=setup.tokenizer)
    return list(_lines(f"tier 1 {when}", report))


def _diagnosis(results: TrainingResults | None, trainer: Trainer | None, run: Path) -> list[str]:
    if (
        importlib.util.find_spec("utils.training.doctor") is None
        or trainer is None
        or (results is None and not run.exists())
    ):
        return []
    from utils.training import diagnose

    with contextlib.suppress(TrainbookError):  # a run that ended before its first step has left nothing to read
        return list(_lines("doctor", diagnose(results if results is not None else run)))
    return []


def _lines(source: str, report: CheckReport) -> Iterator[str]:
    for result in report.results:
        if result.verdict in ("warn", "fail"):
            yield f"{source}: {result.name}: {result.summary} {result.remedy}"


def named_by(program: Program, lines: list[str]) -> list[str]:
    """The lines that name the program's fault."""
    return [line for line in lines if re.search(program.named, line, re.IGNORECASE | re.DOTALL)]


# ---- data ----


def numbers(rows: int, features: int, seed: int = 0) -> Tensor:
    """(rows, features) from a standard normal distribution."""
    return torch.randn(rows, features, generator=torch.Generator().manual_seed(seed))


def split(inputs: Tensor, targets: Tensor, share: float = 0.8) -> tuple[TensorDataset, TensorDataset]:
    """The first rows for training, the others for validation."""
    cut = int(len(inputs) * share)
    return TensorDataset(inputs[:cut], targets[:cut]), TensorDataset(inputs[cut:], targets[cut:])


def line(features: int, rows: int = 400, noise: float = 0.1) -> tuple[Tensor, Tensor]:
    """Numbers and a noisy linear function of them of unit scale, (rows, 1)."""
    inputs = numbers(rows, features)
    weights = numbers(features, 1, seed=5)
    targets = inputs @ (weights / weights.norm())
    return inputs, targets + noise * numbers(rows, 1, seed=6)


def kinds(features: int = 4, classes: int = 3, rows: int = 360, spread: float = 0.8) -> tuple[Tensor, Tensor]:
    """Clouds around as many centres as there are classes, in mixed order."""
    labels = torch.randint(classes, (rows,), generator=torch.Generator().manual_seed(1))
    centres = 1.5 * numbers(classes, features, seed=2)
    inputs = centres[labels] + spread * numbers(rows, features, seed=3)
    return (inputs - inputs.mean(0)) / inputs.std(0), labels


def rings(rows: int = 480) -> tuple[Tensor, Tensor]:
    """Two rings, one inside the other: no straight line parts them."""
    generator = torch.Generator().manual_seed(4)
    labels = torch.randint(2, (rows,), generator=generator)
    angle = 6.2832 * torch.rand(rows, generator=generator)
    radius = 0.6 + 0.9 * labels + 0.1 * torch.randn(rows, generator=generator)
    return torch.stack([radius * angle.cos(), radius * angle.sin()], 1), labels


def signs(rows: int = 800, noise: float = 0.25) -> tuple[Tensor, Tensor]:
    """Images (rows, 1, 12, 12) from 0 to 1 of ten signs, moved by up to one pixel."""
    generator = torch.Generator().manual_seed(7)
    coarse = torch.rand(SIGNS, 1, 6, 6, generator=generator).round()
    patterns = F.interpolate(coarse, scale_factor=2, mode="nearest")
    labels = torch.randint(SIGNS, (rows,), generator=generator)
    shifts = torch.randint(-1, 2, (rows, 2), generator=generator).tolist()
    images = torch.stack(
        [patterns[label].roll(tuple(shift), (1, 2)) for label, shift in zip(labels.tolist(), shifts, strict=True)]
    )
    return (0.15 + 0.7 * images + noise * torch.randn(images.shape, generator=generator)).clamp(0, 1), labels


def mlp(*sizes: int, activation: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    """Linear layers of these sizes with activations between them."""
    layers: list[nn.Module] = []
    for index, (before, after) in enumerate(itertools.pairwise(sizes)):
        layers += [nn.Linear(before, after), *([activation()] if index < len(sizes) - 2 else [])]
    return nn.Sequential(*layers)


def for_signs(hidden: int = 48, scores: int = SIGNS) -> nn.Sequential:
    """Flattens images of signs and scores them."""
    return nn.Sequential(nn.Flatten(), *mlp(SIDE * SIDE, hidden, scores))
