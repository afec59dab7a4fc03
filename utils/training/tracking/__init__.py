"""Trackers send a run's metrics to other tools: W&B, TensorBoard, MLflow, Trackio, or an object of your own.

In: rows of metrics from the training loop. Out: whatever the tool stores. A tracker never stops, slows or changes a run
(`delivery`), and none of them is needed to read a run: its folder holds everything. How to choose them: `choosing`.
"""

from __future__ import annotations

from utils.training.tracking.choosing import TRACKERS, check_trackers, make_trackers
from utils.training.tracking.delivery import Trackers
from utils.training.tracking.tracker import RunFacts, Tracker
from utils.training.tracking.wandb_tracker import WandbTracker

__all__ = ["TRACKERS", "RunFacts", "Tracker", "Trackers", "WandbTracker", "check_trackers", "make_trackers"]
