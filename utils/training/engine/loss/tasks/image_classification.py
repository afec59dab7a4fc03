"""A class for each image."""

from __future__ import annotations

from utils.training.engine.loss.tasks.base import register_task
from utils.training.engine.loss.tasks.text_classification import Classification


@register_task
class ImageClassification(Classification):
    """One class for each image: `pixel_values` (B, channels, height, width) float, `labels` (B,). See `Classification`."""

    name = "image_classification"
