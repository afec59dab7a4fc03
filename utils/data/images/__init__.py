"""Image files -> samples of pixels with their class.

In: the datasets that come with the library, IDX and CIFAR files, or a folder with one folder per class. Out: map-style datasets
of `pixel_values` (C, H, W) float32 and a class index. Open `registry.py` first.
"""

from __future__ import annotations

from utils.lazy import lazy_exports

_EXPORTS = {
    "BaseDataset": "utils.data.images.samples",
    "DatasetRegistry": "utils.data.images.registry",
    "ImageSamples": "utils.data.images.samples",
}
__all__ = sorted(_EXPORTS)

__getattr__, __dir__ = lazy_exports(__name__, _EXPORTS)
