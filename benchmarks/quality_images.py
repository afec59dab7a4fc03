"""How well a small model learns MNIST from few images: trained on a part of the IDX files given, tested on the rest.

    python -m benchmarks.quality_images FOLDER                          lenet, 5 epochs, 8,000 images; about a minute
    python -m benchmarks.quality_images FOLDER --model mynet --epochs 10

FOLDER holds t10k-images-idx3-ubyte and t10k-labels-idx1-ubyte, plain or .gz: MNIST's 10,000 test images. Which of them are
tested is drawn by the seed. Accuracy is the share of tested images whose class has the highest score.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from utils.data.images.builtin import MNISTDataset
from utils.data.images.files import read_idx
from utils.errors import DataNotFoundError, TrainbookError
from utils.models import ModelRegistry
from utils.training import TaskSpec, Trainer, TrainingConfig

if TYPE_CHECKING:
    from utils.data.images.samples import ImageSamples

#: What is aimed at, for the defaults.
GOAL = 0.96

_SEED = 42


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.quality_images",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="where the IDX files are")
    parser.add_argument("--model", default="lenet", help="a name in ModelRegistry (default: lenet)")
    parser.add_argument("--epochs", type=int, default=5, help="passes over the training images (default: 5)")
    parser.add_argument("--train", type=int, default=8000, metavar="N", help="images to train on (default: 8000)")
    parser.add_argument("--learning-rate", type=float, default=3e-3, help="peak of AdamW's (default: 0.003)")
    parser.add_argument("--seed", type=int, default=_SEED, help="of the weights, the order and the split (default: 42)")
    return parser


def split_of(folder: Path, num_train: int, seed: int) -> tuple[ImageSamples, ImageSamples]:
    """`num_train` of the images in `folder` for training, augmented as MNIST is, and the rest for testing."""
    images, labels = (
        read_idx(_find(folder, f"t10k-{kind}-ubyte"), dimensions)
        for kind, dimensions in (("images-idx3", 3), ("labels-idx1", 1))
    )
    mnist = MNISTDataset(download=False)
    order = np.random.default_rng(seed).permutation(len(images))
    parts = (order[:num_train], True), (order[num_train:], False)
    train, test = (
        mnist.samples(torch.from_numpy(images[chosen][:, None]), labels[chosen].astype(np.int64), training=training)
        for chosen, training in parts
    )
    return train, test


def _find(folder: Path, name: str) -> Path:
    found = next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)
    if found is None:
        raise DataNotFoundError(f"{name} is not in {folder.resolve()}, neither plain nor as .gz. Put it there.")
    return found


def accuracies(options: argparse.Namespace) -> list[float]:
    """Train as `options` say: accuracy on the tested images after each epoch, 0 to 1."""
    train, test = split_of(options.folder, options.train, options.seed)
    torch.manual_seed(options.seed)
    model = ModelRegistry.create(options.model, num_classes=10)
    with tempfile.TemporaryDirectory() as folder:
        config = TrainingConfig(
            epochs=options.epochs, batch_size=64, learning_rate=options.learning_rate, random_seed=options.seed,
            run_name="quality-images", output_dir=folder,
        )  # fmt: skip
        trainer = Trainer(model, None, config, TaskSpec.image_classification(num_classes=10))
        results = trainer.train(train, test)
        return [float(value) for value in results.metrics_summary["val/accuracy"]]


def main(arguments_given: Sequence[str] | None = None) -> int:
    """Train, print what came out; 0 when the defaults' goal is reached, 1 when not."""
    options = arguments().parse_args(arguments_given)
    try:
        found = accuracies(options)
    except TrainbookError as error:
        print(error, file=sys.stderr)
        return 2
    for epoch, accuracy in enumerate(found, start=1):
        print(f"epoch {epoch}: {accuracy:.2%} of the tested images are classified rightly")
    print(f"aimed at: {GOAL:.0%}; {'reached' if found[-1] >= GOAL else 'not reached'}")
    return 0 if found[-1] >= GOAL else 1


if __name__ == "__main__":
    raise SystemExit(main())
