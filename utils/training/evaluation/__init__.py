"""Evaluation of what a model writes."""

from __future__ import annotations

from utils.training.evaluation.generation import evaluate_generation
from utils.training.evaluation.harness import HarnessReport, HarnessScore, evaluate_harness
from utils.training.evaluation.report import GeneratedExample, GenerationReport

__all__ = [
    "GeneratedExample", "GenerationReport", "HarnessReport", "HarnessScore", "evaluate_generation", "evaluate_harness",
]  # fmt: skip
