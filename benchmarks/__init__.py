"""Side-by-side measurements. Each module named in RESULTS.md is one command: `python -m benchmarks.training`."""
