"""Batch -> sum of the losses over all targets, and their number.

In: a model and a batch. Out: `Loss`. Open `objective.py` first; `tasks/` has one class per task, `fused.py` the output layer
fused with its cross-entropy. The division by the number of targets happens in `utils.training.engine.step`.
"""
