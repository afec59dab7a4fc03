"""What a training step computes with: model, optimizer, learning-rate schedule, precision and device, assembled once.

In: a model, an objective and a `TrainingConfig`. Out: `Parts`, which the step works on. Open `assembly.py` first.
"""
