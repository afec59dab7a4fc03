"""Tiny image datasets on disk, in the formats of the real ones, and a task that a small model can learn."""

from __future__ import annotations

import gzip
import pickle
import struct
from pathlib import Path

import numpy as np


def write_idx(path: Path, values: np.ndarray, *, gzipped: bool = False) -> Path:
    """An IDX file of unsigned bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    header = bytes((0, 0, 8, values.ndim)) + struct.pack(f">{values.ndim}I", *values.shape)
    content = header + values.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(content) if gzipped else content)
    return path


def bars(count: int, size: int = 28, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Images (count, size, size) of noise with one bright bar in one of ten places, the class: uint8 and int64.

    Five of them are upright and five lie flat, a fifth of the image apart: small shifts and turns leave them apart.
    """
    generator = np.random.default_rng(seed)
    labels = np.arange(count) % 10
    images = generator.integers(0, 60, (count, size, size), dtype=np.uint8)
    for image, label in zip(images, labels, strict=True):
        start = (label % 5) * size // 5 + 1
        across = image if label < 5 else image.T
        across[:, start : start + 3] += 180
    return images, labels


def mnist_files(root: Path, train: int = 40, test: int = 20, *, folder: str = "MNIST", gzipped: bool = False) -> Path:
    """A dataset of bars in MNIST's layout under `root`; returns the folder of its files."""
    raw = root / folder / "raw"
    ending = ".gz" if gzipped else ""
    for part, count, seed in (("train", train, 0), ("t10k", test, 1)):
        images, labels = bars(count, seed=seed)
        write_idx(raw / f"{part}-images-idx3-ubyte{ending}", images, gzipped=gzipped)
        write_idx(raw / f"{part}-labels-idx1-ubyte{ending}", labels, gzipped=gzipped)
    return raw


def cifar_rows(number: int, rows: int = 4) -> np.ndarray:
    """The images of batch `number` (0 to 5, the last for testing) of `cifar_files`: uint8 (rows, 3072)."""
    return np.random.default_rng(number).integers(0, 256, (rows, 3072), dtype=np.uint8)


def cifar_files(root: Path, rows: int = 4, protocol: int = 2) -> Path:
    """CIFAR-10's six batches with `rows` images each, as pickles of `protocol`; returns their folder."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    for number, name in enumerate([*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"]):
        images = np.random.default_rng(number).integers(0, 256, (rows, 3072), dtype=np.uint8)
        batch = {
            b"batch_label": name.encode(),
            b"labels": [(number + row) % 10 for row in range(rows)],
            b"data": images,
        }
        (folder / name).write_bytes(pickle.dumps(batch, protocol=protocol))
    return folder


def image_tree(root: Path, classes: dict[str, int], size: tuple[int, int] = (20, 16)) -> Path:
    """A folder for each class with so many PNG files of its own shade of red."""
    from PIL import Image

    for number, (name, count) in enumerate(classes.items()):
        (root / name).mkdir(parents=True)
        for index in range(count):
            Image.new("RGB", size, (40 * (number + 1), 10, index)).save(root / name / f"{index:02}.png")
    return root
