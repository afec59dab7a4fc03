"""Batches for the engine: `utils.data.module`, under the import path that its users know."""

from utils.data.module import StepBatches, UniversalDataModule, nothing_to_learn

__all__ = ["StepBatches", "UniversalDataModule", "nothing_to_learn"]
