"""Who competes: names, what each needs, and whether it is there."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from benchmarks import engine_loops, frameworks, handwritten
from benchmarks.jobs import Job
from benchmarks.turns import Turn

Run = Callable[[Job, Any, Turn], None]


@dataclass(frozen=True)
class Contender:
    """One way to train.

    Attributes:
        label: its row in the tables; packed: whether it trains on full blocks, so that its losses can be compared.
        run: trains the given model until its turn says stop.
        packages: modules that must be importable; compiles: whether it is measured with torch.compile.
    """

    label: str
    packed: bool
    run: Run
    packages: tuple[str, ...] = ()
    compiles: bool = False

    def missing(self) -> str | None:
        """Why it cannot compete here, or None when it can."""
        absent = [name for name in self.packages if not installed(name)]
        if absent:
            return f"{' and '.join(absent)} not installed"
        if not self.compiles:
            return None
        if not any(map(shutil.which, (os.environ.get("CXX") or "c++", "g++", "clang++"))):
            return "torch.compile needs a C++ compiler"
        return engine_loops.refusal("default") if self.run is engine_loops.trainbook else None


#: The reference of every ratio, what most people run, and this engine.
REFERENCE, USUAL, ENGINE = "hand-packed", "hf", "trainbook"

CONTENDERS: dict[str, Contender] = {
    "hand-padded": Contender("hand-written, padded to max", False, handwritten.padded_to_max),
    "hand-dynamic": Contender("hand-written, dynamic padding", False, handwritten.dynamic_padding),
    "hf": Contender(
        "HF Trainer, its LM collator (what users run)",
        False,
        frameworks.hf_trainer,
        ("accelerate", "datasets"),
    ),
    "lightning": Contender(
        "Lightning Trainer, dynamic padding", False, frameworks.lightning_trainer, ("pytorch_lightning",)
    ),
    "accelerate": Contender("Accelerate loop, dynamic padding", False, frameworks.accelerate_loop, ("accelerate",)),
    "hand-packed": Contender("hand-written, packed", True, handwritten.packed),
    "hf-packed": Contender(
        "HF Trainer, packed by hand", True, frameworks.hf_trainer_packed, ("accelerate", "datasets")
    ),
    "lightning-packed": Contender(
        "Lightning, packed by hand", True, frameworks.lightning_trainer_packed, ("pytorch_lightning",)
    ),
    "accelerate-packed": Contender(
        "Accelerate loop, packed by hand", True, frameworks.accelerate_loop_packed, ("accelerate",)
    ),
    "same-work": Contender("bare loop, this engine's parts", True, engine_loops.same_work),
    "trainbook": Contender("this engine", True, engine_loops.trainbook),
    "hand-packed-compiled": Contender("hand-written, packed, compiled", True, handwritten.packed, compiles=True),
    "trainbook-compiled": Contender("this engine, compiled", True, engine_loops.trainbook, compiles=True),
}


def installed(module: str) -> bool:
    """Whether a module can be imported."""
    return importlib.util.find_spec(module) is not None


def split(names: Iterable[str]) -> tuple[list[str], dict[str, str]]:
    """Those of `names` that can compete here, and for the others label -> why not."""
    reasons = {name: CONTENDERS[name].missing() for name in names}
    present = [name for name, reason in reasons.items() if reason is None]
    return present, {CONTENDERS[name].label: reason for name, reason in reasons.items() if reason is not None}
