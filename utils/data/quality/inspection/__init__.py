"""Findings about training data of any kind: tables, images and token ids, with their labels, training and validation together.

In: a `Source` (see `utils.data.sources`), of which a bounded, evenly spaced sample of rows is read. Out: `DataFinding`s, each
with its numbers, its threshold and where that comes from, and a remedy. Thresholds are relative to the data's own spread or to
what chance alone produces, so that small and noisy datasets are not reported.
"""

from utils.data.quality.inspection.finding import DataFinding
from utils.data.quality.inspection.inspect import Expectations, inspect_samples
from utils.data.quality.inspection.sampling import Sample, read_sample

__all__ = ["DataFinding", "Expectations", "Sample", "inspect_samples", "read_sample"]
