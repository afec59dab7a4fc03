"""Trainbook: the notebook toolkit that people train transformers with.

Importing this package is cheap; what is heavy is imported by the part that needs it. `PRODUCT` tells this package from any
other that is called `utils`.
"""

from __future__ import annotations

from pathlib import Path

from utils.moved import install as _install_former_names

PRODUCT = "Trainbook"
__version__ = "0.1.0"

#: The folder that holds this package, training.ipynb and the rest of the house.
HOME = Path(__file__).resolve().parent.parent

_install_former_names()
