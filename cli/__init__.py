"""Command lines: training and notebooks without a front end."""
