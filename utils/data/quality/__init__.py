"""Measures of a dataset: what its texts are like, how far two datasets are apart, and findings about samples and labels.

In: texts (`texts.py`), or samples as the model gets them (`inspection/`). Out: measured values and findings with evidence and
remedy; verdicts are given by `utils.checks`. Open `inspection/inspect.py` first.
"""
