"""Parts of a training step, assembled once: model, optimizer, learning-rate schedule, precision and device.

In: a model, an objective and a `TrainingConfig`. Out: `Parts`, which the step works on. Open `assembly.py` first.
"""
