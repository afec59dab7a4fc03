"""The image quality benchmark: what is tested was not trained on, and what is missing is said."""

from __future__ import annotations

from benchmarks.quality_images import arguments, main, split_of
from tests.kit.image_files import bars, write_idx


def idx_files(folder, count=60):
    images, labels = bars(count)
    write_idx(folder / "t10k-images-idx3-ubyte", images)
    write_idx(folder / "t10k-labels-idx1-ubyte.gz", labels, gzipped=True)
    return folder


def test_every_image_is_trained_on_or_tested(tmp_path):
    train, test = split_of(idx_files(tmp_path), 48, seed=1)
    assert (len(train), len(test)) == (48, 12)
    images = [{image.numpy().tobytes() for image in part.images} for part in (train, test)]
    assert not images[0] & images[1]
    assert len(images[0] | images[1]) == 60
    assert not split_of(tmp_path, 48, seed=2)[1].labels.equal(test.labels)


def test_what_is_aimed_at_is_the_default():
    options = arguments().parse_args(["folder"])
    assert (options.model, options.epochs, options.train) == ("lenet", 5, 8000)


def test_missing_files_are_named(tmp_path, capsys):
    assert main([str(tmp_path)]) == 2
    assert "t10k-images-idx3-ubyte is not in" in capsys.readouterr().err


def test_it_trains_and_says_what_came_out(tmp_path, capsys):
    assert main([str(idx_files(tmp_path)), "--train", "48", "--epochs", "2"]) in (0, 1)
    said = capsys.readouterr().out.splitlines()
    assert [line[:8] for line in said] == ["epoch 1:", "epoch 2:", "aimed at"]
