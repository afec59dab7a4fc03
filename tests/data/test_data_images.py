"""Image datasets: pixels equal those in the files, a damaged file is named, and augmentation is reproducible."""

from __future__ import annotations

import os
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.kit.image_files import bars, cifar_files, cifar_rows, image_tree, mnist_files, write_idx
from utils.data import UniversalDataModule
from utils.data.images.builtin import BaseDataset, MNISTDataset
from utils.data.images.registry import DatasetRegistry
from utils.data.images.transforms import Normalize, RandomAffine, RandomCrop, RandomFlip, torchvision_transforms
from utils.errors import ConfigError, DataError, DataNotFoundError, MissingPackageError
from utils.models import ModelRegistry


@pytest.fixture(autouse=True)
def without_torchvision(monkeypatch):
    """What is tested here is what happens without it, wherever the tests run."""
    monkeypatch.setitem(sys.modules, "torchvision", None)
    monkeypatch.setitem(sys.modules, "torchvision.transforms", None)
    torchvision_transforms.cache_clear()
    yield
    torchvision_transforms.cache_clear()


@pytest.fixture
def mnist(tmp_path):
    mnist_files(tmp_path / "data")
    return DatasetRegistry.create("mnist")


# The registry


def test_data_sets_are_found_by_name_in_any_case(monkeypatch):
    assert DatasetRegistry.list_available() == [
        "cifar10", "digits", "fashion-mnist", "image_folder", "image_table", "mnist",
    ]  # fmt: skip
    assert DatasetRegistry.get("MNIST") is MNISTDataset
    monkeypatch.setattr(DatasetRegistry, "_factories", dict(DatasetRegistry._factories))

    @DatasetRegistry.register("Mine")
    class Mine(MNISTDataset):
        pass

    assert isinstance(DatasetRegistry.create("mine", root="elsewhere"), Mine)
    assert DatasetRegistry.create("mine", "elsewhere").root.name == "elsewhere"
    assert "mine" not in ModelRegistry.list_available()


def test_an_unknown_data_set_lists_what_there_is():
    with pytest.raises(ValueError, match=r"Dataset 'minst' not found\. Available: \['cifar10', .*Did you mean 'mnist'"):
        DatasetRegistry.create("minst")
    with pytest.raises(ConfigError, match="'roots'.*It takes root, download.*Did you mean root"):
        DatasetRegistry.create("mnist", roots="x")
    with pytest.raises(ConfigError, match="too many positional arguments.*It takes root, download"):
        DatasetRegistry.create("mnist", "x", True, False, 28)


# IDX files


@pytest.mark.parametrize("gzipped", [False, True])
@pytest.mark.parametrize(("name", "folder"), [("mnist", "MNIST"), ("fashion-mnist", "FashionMNIST")])
def test_images_are_those_of_the_files(tmp_path, name, folder, gzipped):
    mnist_files(tmp_path / "d", folder=folder, gzipped=gzipped)
    dataset = DatasetRegistry.create(name, root=tmp_path / "d")
    images, labels = bars(20, seed=1)
    assert (len(dataset.train_set), len(dataset.test_set)) == (40, 20)
    assert dataset.test_set.images.dtype == torch.uint8
    sample = dataset.test_set[13]
    assert (sample["pixel_values"].shape, sample["pixel_values"].dtype) == ((1, 28, 28), torch.float32)
    assert sample["labels"] == labels[13] == 3
    back = sample["pixel_values"][0] * dataset.STD + dataset.MEAN
    assert torch.equal((back * 255).round().byte(), torch.from_numpy(images[13]))


def test_loaders_give_pairs_and_say_the_same_twice(mnist):
    train, validation = mnist.get_dataloaders(batch_size=16, shuffle_train=False)
    images, labels = next(iter(train))
    assert (images.shape, labels.dtype) == ((16, 1, 28, 28), torch.int64)
    assert [len(labels) for _, labels in train] == [16, 16, 8]
    first, second = ([images for images, _ in validation] for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))
    assert mnist.get_info() == {
        "name": "MNISTDataset", "root": str(Path("data").absolute()), "num_classes": 10, "input_channels": 1, "input_size": (28, 28),
        "train_samples": 40, "test_samples": 20,
    }  # fmt: skip


def test_training_batches_come_in_a_new_order_unless_asked_not_to(mnist):
    torch.manual_seed(0)
    shuffled, _ = mnist.get_dataloaders(batch_size=40)
    orders = [next(iter(shuffled))[1].tolist() for _ in range(2)]
    plain, _ = mnist.get_dataloaders(batch_size=40, shuffle_train=False)
    assert orders[0] != orders[1]
    assert next(iter(plain))[1].tolist() == mnist.train_set.labels.tolist()


@pytest.mark.parametrize(("argument", "value"), [("batch_size", 0), ("batch_size", 2.5), ("num_workers", -1)])
def test_loaders_refuse_what_is_no_number_of_samples_or_processes(mnist, argument, value):
    with pytest.raises(ConfigError, match=f"{argument}: got {value}; must be a whole number"):
        mnist.get_dataloaders(**{argument: value})


def test_missing_files_are_named_with_their_place(tmp_path):
    raw = mnist_files(tmp_path / "data")
    (raw / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(
        FileNotFoundError, match=rf"t10k-labels-idx1-ubyte is not in {raw}\. Put it there, plain or as \.gz.*install"
    ):
        DatasetRegistry.create("mnist").get_dataloaders()
    with pytest.raises(DataNotFoundError, match="download=True fetches"):
        DatasetRegistry.create("fashion-mnist", download=False).get_dataloaders()


def damage(tmp_path, change, name="train-images-idx3-ubyte"):
    """The error's text for a dataset in which one file's bytes were changed."""
    path = mnist_files(tmp_path / "data") / name
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(DataError) as error:
        DatasetRegistry.create("mnist").get_dataloaders()
    assert str(path.relative_to(tmp_path)) in str(error.value)
    return str(error.value)


def test_a_file_of_another_kind_is_refused_with_what_was_found(tmp_path):
    assert "begins with 0x7f454c46, not 0x00000803" in damage(tmp_path, lambda raw: b"\x7fELF" + raw)


def test_a_truncated_file_is_refused_with_both_numbers(tmp_path):
    assert "is cut off: 40 x 28 x 28 images are 31,360 bytes, and 31,355 follow" in damage(
        tmp_path, lambda raw: raw[:-5]
    )


def test_a_file_that_ends_in_its_header_is_refused(tmp_path):
    assert "is cut off: 9 bytes, and the header alone has 16" in damage(tmp_path, lambda raw: raw[:9])


def test_a_file_that_goes_on_after_its_end_is_refused(tmp_path):
    assert "has more than its header says" in damage(tmp_path, lambda raw: raw + b"more")


def test_an_empty_file_is_refused(tmp_path):
    assert "the file is empty" in damage(tmp_path, lambda raw: b"", "t10k-labels-idx1-ubyte")


def test_a_damaged_gzip_file_is_refused(tmp_path):
    import gzip

    assert "damaged gzip file" in damage(tmp_path, lambda raw: gzip.compress(raw)[:-40])


def test_labels_that_fit_no_image_or_class_are_refused(tmp_path):
    raw = mnist_files(tmp_path / "data")
    write_idx(raw / "train-labels-idx1-ubyte", np.zeros(39))
    with pytest.raises(DataError, match="MNISTDataset: 40 training images and 39 labels"):
        DatasetRegistry.create("mnist").get_dataloaders()
    write_idx(raw / "train-labels-idx1-ubyte", np.arange(40))
    with pytest.raises(DataError, match="the label of image 10 is 10; there are classes 0 to 9"):
        DatasetRegistry.create("mnist").get_dataloaders()


def test_images_of_another_size_are_refused(tmp_path):
    raw = mnist_files(tmp_path / "data")
    write_idx(raw / "t10k-images-idx3-ubyte", np.zeros((20, 20, 14)))
    with pytest.raises(DataError, match="holds images of 20 x 14 pixels; MNISTDataset has 28 x 28"):
        DatasetRegistry.create("mnist").get_dataloaders()


# CIFAR-10


@pytest.mark.parametrize("protocol", [2, 4])
def test_cifar_is_read_from_its_pickles(tmp_path, protocol):
    cifar_files(tmp_path, protocol=protocol)
    dataset = DatasetRegistry.create("cifar10", root=tmp_path)
    assert (len(dataset.train_set), len(dataset.test_set)) == (20, 4)
    assert np.array_equal(dataset.test_set.images.numpy(), cifar_rows(5).reshape(4, 3, 32, 32))
    assert dataset.test_set.labels.tolist() == [5, 6, 7, 8]
    images, _ = next(iter(dataset.get_dataloaders(batch_size=5)[0]))
    assert images.shape == (5, 3, 32, 32)


def test_a_pickle_in_the_words_of_old_numpy_is_read_too(tmp_path):
    """The real files come from Python 2: texts for bytes, and numpy's modules by their former names."""
    folder = cifar_files(tmp_path)
    path = folder / "test_batch"
    path.write_bytes(path.read_bytes().replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n"))
    assert b"numpy.core.multiarray" in path.read_bytes()
    assert len(DatasetRegistry.create("cifar10", root=tmp_path).test_set) == 4


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("bomb-went-off",)


def test_a_pickle_that_would_run_something_is_not_run(tmp_path):
    folder = cifar_files(tmp_path)
    (folder / "data_batch_3").write_bytes(pickle.dumps({b"data": Bomb(), b"labels": []}))
    with pytest.raises(DataError, match=r"data_batch_3: asks for posix\.mkdir to be loaded"):
        DatasetRegistry.create("cifar10", root=tmp_path).get_dataloaders()
    assert not os.path.exists("bomb-went-off")


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (
            pickle.dumps({b"data": np.zeros((2, 9), np.uint8), b"labels": [1, 2]}),
            r"of shape \(N, 3072\); got shape \(2, 9\)",
        ),
        (pickle.dumps({b"data": np.zeros((2, 3072), np.float32)}), "only bytes"),
        (
            pickle.dumps({b"data": np.zeros((2, 3072), np.uint8), b"labels": [1]}),
            "labels must be 2 whole numbers; got 1",
        ),
        (pickle.dumps(["no", "batch"]), "got a NoneType"),
        (pickle.dumps({b"data": b""})[:-4], "is a damaged batch"),
    ],
)
def test_what_is_no_batch_of_cifar_is_refused(tmp_path, batch, message):
    (cifar_files(tmp_path) / "data_batch_2").write_bytes(batch)
    with pytest.raises(DataError, match=f"data_batch_2: .*{message}"):
        DatasetRegistry.create("cifar10", root=tmp_path).get_dataloaders()


# Digits


def test_digits_need_no_files():
    dataset = DatasetRegistry.create("digits")
    assert (len(dataset.train_set), len(dataset.test_set)) == (1437, 360)
    assert set(dataset.test_set.labels.tolist()) == set(range(10))
    assert dataset.test_set[0]["pixel_values"].shape == (1, 8, 8)
    assert dataset.train_set.images.max() == 255
    train, test = ({image.numpy().tobytes() for image in part.images} for part in (dataset.train_set, dataset.test_set))
    assert not train & test


def test_digits_say_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(MissingPackageError, match="pip install scikit-learn"):
        DatasetRegistry.create("digits").get_dataloaders()


# A folder for each class


def test_class_folders_are_labels_and_a_share_of_each_is_held_back(tmp_path):
    image_tree(tmp_path / "pets", {"dog": 10, "cat": 4})
    dataset = DatasetRegistry.create("image_folder", root=tmp_path / "pets", input_size=(8, 12), validation_share=0.25)
    assert (dataset.classes, dataset.num_classes) == (["cat", "dog"], 2)
    assert torch.bincount(dataset.train_set.labels).tolist() == [3, 8]
    assert torch.bincount(dataset.test_set.labels).tolist() == [1, 2]
    files = [set(part.images.paths) for part in (dataset.train_set, dataset.test_set)]
    assert not files[0] & files[1]
    assert len(files[0] | files[1]) == 14
    sample = dataset.test_set[0]["pixel_values"]
    assert sample.shape == (3, 8, 12)
    assert torch.allclose(sample[0], torch.tensor(80 / 255 * 2 - 1))  # the cats' red: the second class that was written


def test_files_that_are_no_known_images_are_passed_over_and_it_is_said(tmp_path, caplog):
    image_tree(tmp_path / "pets", {"dog": 3, "cat": 3})
    (tmp_path / "pets" / "dog" / "rex.webp").write_bytes(b"x")
    (tmp_path / "pets" / "dog" / ".hidden").write_bytes(b"x")
    dataset = DatasetRegistry.create("image_folder", root=tmp_path / "pets", input_size=8)
    assert len(dataset.train_set) + len(dataset.test_set) == 6
    assert "1 files are skipped" in caplog.text
    assert "rex.webp" in caplog.text


def test_folders_of_their_own_are_the_two_sets(tmp_path):
    image_tree(tmp_path / "pets" / "train", {"cat": 2, "dog": 3})
    image_tree(tmp_path / "pets" / "val", {"dog": 1})
    dataset = DatasetRegistry.create("image_folder", root=tmp_path / "pets", input_channels=1, input_size=8)
    assert (len(dataset.train_set), len(dataset.test_set)) == (5, 1)
    assert dataset.test_set[0]["labels"] == 1
    assert dataset.test_set[0]["pixel_values"].shape == (1, 8, 8)


def test_a_train_folder_that_is_alone_holds_the_classes(tmp_path):
    image_tree(tmp_path / "pets" / "train", {"cat": 4, "dog": 6})
    dataset = DatasetRegistry.create("image_folder", root=tmp_path / "pets", input_size=8)
    assert dataset.classes == ["cat", "dog"]
    assert (len(dataset.train_set), len(dataset.test_set)) == (8, 2)
    image_tree(tmp_path / "rail", {"train": 3, "tram": 3})
    assert DatasetRegistry.create("image_folder", root=tmp_path / "rail").classes == ["train", "tram"]


def test_an_image_that_cannot_be_read_is_an_error_with_its_path(tmp_path):
    root = image_tree(tmp_path / "pets", {"cat": 3, "dog": 3})
    for path in root.glob("cat/*.png"):
        path.write_bytes(path.read_bytes()[:40])
    train, _ = DatasetRegistry.create("image_folder", root=root).get_dataloaders(shuffle_train=False)
    with pytest.raises(DataError, match=r"pets/cat/0\d\.png: cannot be read as an image \(.*Replace or remove it"):
        next(iter(train))


def test_folders_that_hold_no_images_are_named(tmp_path):
    with pytest.raises(DataNotFoundError, match="nowhere: no such folder"):
        DatasetRegistry.create("image_folder", root=tmp_path / "nowhere").get_dataloaders()
    (tmp_path / "pets").mkdir()
    with pytest.raises(DataError, match="has no folders"):
        DatasetRegistry.create("image_folder", root=tmp_path / "pets").get_dataloaders()
    image_tree(tmp_path / "pets", {"cat": 2})
    (tmp_path / "pets" / "dog").mkdir()
    with pytest.raises(DataError, match=r"pets/dog: has no image \(\.png"):
        DatasetRegistry.create("image_folder", root=tmp_path / "pets").get_dataloaders()


@pytest.mark.parametrize(
    "settings",
    [
        {"input_size": 0},
        {"input_size": (3, 4, 5)},
        {"input_channels": 2},
        {"validation_share": 1},
        {"validation_share": "x"},
    ],
)
def test_sizes_that_cannot_be_are_refused(settings):
    with pytest.raises(ConfigError, match=f"{next(iter(settings))}: got"):
        DatasetRegistry.create("image_folder", **settings)


# Augmentation


def batches(dataset, seed=3, workers=0, epoch=0):
    data = UniversalDataModule(dataset.train_set, seed=seed, batch_size=8, num_workers=workers, data_collator=collate)
    return [batch["pixel_values"] for step in data.steps(epoch, 0, 1) for batch in step.micro_batches]


def collate(samples):
    return torch.utils.data.default_collate(samples)


def same(first, second):
    return all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


def test_an_image_is_drawn_as_a_function_of_seed_epoch_and_sample(mnist):
    torch.manual_seed(98)
    first = batches(mnist)
    torch.manual_seed(99)
    assert same(first, batches(mnist))
    assert same(first, batches(mnist, workers=2))
    assert not same(first, batches(mnist, seed=4))
    data = UniversalDataModule(mnist.train_set, seed=3, batch_size=8, data_collator=collate)
    later = [step.micro_batches[0]["pixel_values"] for step in data.steps(0, 16, 1)]
    assert same(first[2:], later)


def test_the_loaders_work_in_the_engine_too(mnist):
    train, validation = mnist.get_dataloaders(batch_size=8)
    data = UniversalDataModule(train, validation)
    (batch,) = next(iter(data.steps(0, 0, 1))).micro_batches
    assert {name: tuple(value.shape) for name, value in batch.items()} == {
        "pixel_values": (8, 1, 28, 28),
        "labels": (8,),
    }
    assert data.digest() == UniversalDataModule(train, validation).digest()


def test_training_images_are_drawn_anew_each_time_and_test_images_never(mnist):
    assert not torch.equal(mnist.train_set[0]["pixel_values"], mnist.train_set[0]["pixel_values"])
    assert torch.equal(mnist.test_set[0]["pixel_values"], mnist.test_set[0]["pixel_values"])


def test_kept_images_are_drawn_again_by_reset_only_with_reapply_transforms(tmp_path, rng_untouched):
    mnist_files(tmp_path / "data")

    def drawn(dataset):
        return dataset.train_set[5]["pixel_values"]

    kept = MNISTDataset(keep_transformed=True, reapply_transforms=True)
    first = drawn(kept)
    assert torch.equal(first, drawn(kept))
    kept.reset_train_transforms()
    second = drawn(kept)
    assert not torch.equal(first, second)
    again = MNISTDataset(keep_transformed=True, reapply_transforms=True)
    assert torch.equal(drawn(again), first)  # whatever was drawn before elsewhere
    again.reset_train_transforms()
    assert torch.equal(drawn(again), second)
    never = MNISTDataset(keep_transformed=True)
    before = drawn(never)
    never.reset_train_transforms()
    assert torch.equal(before, drawn(never))


def test_reset_makes_the_transform_anew_for_loaders_that_exist(tmp_path):
    mnist_files(tmp_path / "data")

    class Brightening(MNISTDataset):
        level = 0

        def get_train_transform(self):
            self.level += 1
            level = float(self.level)
            return lambda image: torch.full(image.shape, level)

    dataset = Brightening(reapply_transforms=True)
    train, _ = dataset.get_dataloaders()
    dataset.reset_train_transforms()
    assert next(iter(train))[0].unique().tolist() == [2.0]


def test_a_loader_that_does_not_shuffle_still_does_not_after_a_reset(tmp_path):
    mnist_files(tmp_path / "data")
    dataset = MNISTDataset(reapply_transforms=True)
    train, _ = dataset.get_dataloaders(batch_size=40, shuffle_train=False)
    dataset.reset_train_transforms()
    assert next(iter(train))[1].tolist() == dataset.train_set.labels.tolist()


def test_a_data_set_of_ones_own_is_a_class(tmp_path):
    class Ramps(BaseDataset):
        num_classes, input_channels, input_size = 2, 1, (4, 4)

        def get_train_transform(self):
            return lambda image: image.float()

        get_test_transform = get_train_transform

        def load_data(self):
            images = torch.arange(6 * 16, dtype=torch.uint8).view(6, 1, 4, 4)
            plain = [(image.float(), 1) for image in images]  # pairs, as other libraries' datasets have them
            return self.samples(images, np.arange(6) % 2, training=True), plain

    train, validation = Ramps().get_dataloaders(batch_size=6)
    assert next(iter(train))[1].sort().values.tolist() == [0, 0, 0, 1, 1, 1]
    assert next(iter(validation))[1].tolist() == [1] * 6
    with pytest.raises(TypeError, match="abstract"):
        BaseDataset()


def test_a_load_that_returns_nothing_is_said(tmp_path):
    class Forgot(MNISTDataset):
        def load_data(self):
            return None

    with pytest.raises(DataError, match=r"Forgot\.load_data returned a NoneType; it must return a pair"):
        Forgot().get_dataloaders()


# Transforms


def test_a_turn_and_a_shift_move_the_image_as_far_as_they_may():
    image = torch.zeros(1, 20, 40)
    image[0, 10, 20] = 1
    spread = torch.stack([RandomAffine(degrees=0, shift=0.1)(image)[0] for _ in range(200)]).amax(0).nonzero()
    assert spread.amin(0).tolist() == [8, 16]
    assert spread.amax(0).tolist() == [12, 24]


def test_a_quarter_turn_keeps_lengths_in_an_image_that_is_no_square(monkeypatch):
    image = torch.zeros(1, 21, 41)
    image[0, 10, 20:28] = 1  # a bar of 8 pixels to the right of the middle
    monkeypatch.setattr(torch, "rand", lambda *_: torch.tensor([1.0, 0.5, 0.5]))
    turned = RandomAffine(degrees=90, shift=0.1)(image)[0]
    assert turned[:, 20].sum() == pytest.approx(8, abs=0.01)
    assert turned.sum() == pytest.approx(8, abs=0.01)


def test_crops_have_the_size_and_every_place_is_drawn():
    image = torch.zeros(1, 6, 6)
    image[0, 3, 3] = 1
    places = {tuple(RandomCrop(1)(image)[0].nonzero()[0].tolist()) for _ in range(100)}
    assert places == {(row, column) for row in (2, 3, 4) for column in (2, 3, 4)}


def test_half_of_the_images_are_mirrored():
    torch.manual_seed(0)
    image = torch.arange(3.0).expand(1, 2, 3)
    mirrored = sum(RandomFlip()(image)[0, 0, 0].item() == 2 for _ in range(400))
    assert 160 < mirrored < 240


def test_each_channel_is_normalised_by_its_own_numbers():
    image = torch.stack([torch.full((2, 2), value) for value in (0.5, 1.0, 0.0)])
    made = Normalize([0.5, 0.5, 0.25], [1.0, 0.25, 0.5])(image)
    assert made[:, 0, 0].tolist() == [0.0, 2.0, -0.5]


def test_a_torchvision_of_another_torch_is_done_without(monkeypatch, tmp_path, caplog):
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text(
        "raise RuntimeError('operator torchvision::nms does not exist')"
    )
    monkeypatch.delitem(sys.modules, "torchvision")
    monkeypatch.delitem(sys.modules, "torchvision.transforms")
    monkeypatch.syspath_prepend(tmp_path)
    torchvision_transforms.cache_clear()
    mnist_files(tmp_path / "data")
    assert MNISTDataset().train_set[0]["pixel_values"].shape == (1, 28, 28)
    assert "nms does not exist" in caplog.text


FETCHING = """
class MNIST:
    def __init__(self, root, train, download):
        {does}
"""


@pytest.fixture
def torchvision_that(tmp_path, monkeypatch):
    """A torchvision whose MNIST does what a test says when it is asked to fetch; its transforms are not used."""

    def install(does):
        dataset = MNISTDataset()  # before it is there, so with the transforms of this library
        package = tmp_path / "other" / "torchvision"
        package.mkdir(parents=True)
        for name, text in {"__init__": "", "transforms": "", "datasets": FETCHING.format(does=does)}.items():
            (package / f"{name}.py").write_text(text)
        for name in ("torchvision", "torchvision.transforms"):
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.delitem(sys.modules, "torchvision.datasets", raising=False)
        monkeypatch.syspath_prepend(package.parent)
        torchvision_transforms.cache_clear()
        return dataset

    yield install
    for name in ("torchvision", "torchvision.transforms", "torchvision.datasets"):
        sys.modules.pop(name, None)


def test_missing_files_are_fetched_by_torchvision(torchvision_that):
    dataset = torchvision_that(
        "from tests.kit.image_files import mnist_files; mnist_files(__import__('pathlib').Path(root))"
    )
    assert len(dataset.train_set) == 40


def test_what_torchvision_cannot_fetch_is_said_with_the_place_for_the_files(torchvision_that):
    dataset = torchvision_that("raise RuntimeError('no route to host')")
    with pytest.raises(
        DataError, match=r"could not fetch it to .*: RuntimeError: no route to host\. Put its files into .*raw"
    ):
        dataset.get_dataloaders()


def test_nothing_is_fetched_unless_allowed(torchvision_that):
    dataset = torchvision_that("raise RuntimeError('asked')")
    dataset.download = False
    with pytest.raises(DataNotFoundError, match="download=True fetches"):
        dataset.get_dataloaders()


def test_a_plain_loop_over_the_loaders_learns(tmp_path):
    mnist_files(tmp_path / "data", train=100)
    torch.manual_seed(0)
    model = ModelRegistry.create("mynet")
    train, validation = DatasetRegistry.create("mnist").get_dataloaders(batch_size=20)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(8):
        for images, labels in train:
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(images), labels).backward()
            optimizer.step()
    model.eval()
    right = sum((model(images).argmax(1) == labels).sum().item() for images, labels in validation)
    assert right >= 15  # of 20; chance is 2


# Pixels of every format


def saved_as(mode: str, path) -> None:
    """An image whose four columns go from black to white, as a file of `mode`; transparent ones are white where they show."""
    from PIL import Image

    ramp = np.repeat(np.array([[0, 85, 170, 255]]), 4, axis=0)
    if mode in ("I;16", "I"):
        image = Image.fromarray((ramp * 257).astype(np.uint16 if mode == "I;16" else np.int32))
    elif mode == "F":
        image = Image.fromarray((ramp / 255).astype(np.float32))
    elif mode in ("LA", "RGBA", "PA"):
        # What is stored is black: opacity makes the ramp.
        image = Image.merge("LA", [Image.new("L", (4, 4), 0), Image.fromarray((255 - ramp).astype(np.uint8))])
        image = image.convert(mode if mode != "PA" else "RGBA")
    elif mode == "P with transparency":
        image = Image.fromarray(ramp.astype(np.uint8)).convert("RGB").quantize(4)
        image.info["transparency"] = image.getpixel((0, 0))  # black is invisible
    else:
        image = Image.fromarray(ramp.astype(np.uint8)).convert(mode)
    image.save(path, format="TIFF" if mode in ("I", "F", "CMYK") else "PNG")


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK", "I;16", "I", "F", "LA", "RGBA", "P with transparency"])
def test_images_of_every_mode_keep_their_shades(tmp_path, mode, channels):
    for name in "ab":
        (tmp_path / name).mkdir()
        for number in range(2):
            saved_as(mode, tmp_path / name / f"{number}.png")
    data = DatasetRegistry.create("image_folder", root=tmp_path, input_size=4, input_channels=channels)
    pixels = data.test_set[0]["pixel_values"]
    first = 1.0 if mode == "P with transparency" else -1.0
    expected = torch.tensor([first, -1 / 3, 1 / 3, 1.0]).expand(channels, 4, 4)
    assert torch.allclose(pixels, expected, atol=0.02)


def test_pixels_outside_of_the_range_of_their_format_are_refused_with_both_numbers(tmp_path):
    from PIL import Image

    for name in "ab":
        (tmp_path / name).mkdir()
        for number in range(2):
            Image.fromarray(np.full((4, 4), 255, np.float32)).save(tmp_path / name / f"{number}.png", format="TIFF")
    data = DatasetRegistry.create("image_folder", root=tmp_path, input_size=4)
    with pytest.raises(DataError, match=r"\d\.png: pixels of type float32 from 255 to 255; expected 0 to 1\."):
        data.train_set[0]
