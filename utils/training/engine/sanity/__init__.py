"""Checks before the first step: arguments, and one pass of the first samples through a model, its loss and its gradients.

In: the assembled parts and the first samples. Out: errors before anything is written, or notices. Open `trial.py` first;
`rules.py` lists the rules that are applied.
"""
