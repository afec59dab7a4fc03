"""Evaluation of what a model writes."""

from __future__ import annotations

from utils.training.evaluation.generation import evaluate_generation
from utils.training.evaluation.report import GeneratedExample, GenerationReport

__all__ = ["GeneratedExample", "GenerationReport", "evaluate_generation"]
