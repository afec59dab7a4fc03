"""A table of image paths and labels is an image dataset; what cannot be used is named with its line."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from tests.kit.image_files import bars
from utils.data.images.registry import DatasetRegistry
from utils.errors import ConfigError, DataError, DataNotFoundError


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """A folder with 0.png to 5.png below img, one bright bar each."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("photos")
    (folder / "img").mkdir()
    for number, pixels in enumerate(bars(6, size=8)[0]):
        Image.fromarray(pixels).save(folder / "img" / f"{number}.png")
    return folder


def table(photos: Path, content: str, name: str = "labels.csv", **options):
    (photos / name).write_text(content)
    return DatasetRegistry.create("image_table", photos / name, input_size=8, input_channels=1, **options)


ROWS = [(f"img/{number}.png", "cat" if number % 2 else "dog") for number in range(6)]
CSV = "file_name,label\n" + "".join(f"{path},{label}\n" for path, label in ROWS)


@pytest.mark.parametrize(
    ("name", "content", "options"),
    [
        ("labels.csv", CSV, {}),
        ("labels.tsv", CSV.replace(",", "\t"), {}),
        ("labels.csv", CSV.replace("file_name,label", "photo,kind"), {"image_column": "photo"}),
        (
            "labels.csv",
            "id,taken,path,seen,class\n" + "".join(f"{n},1,{p},2,{k}\n" for n, (p, k) in enumerate(ROWS)),
            {},
        ),
        ("labels.jsonl", "\n".join(json.dumps({"image": path, "label": label}) for path, label in ROWS), {}),
    ],
    ids=["csv", "tsv", "named column", "other columns", "jsonl"],
)
def test_rows_are_images_with_their_classes(photos, name, content, options):
    dataset = table(photos, content, name, **options)
    assert (dataset.classes, dataset.num_classes) == (["cat", "dog"], 2)
    assert (len(dataset.train_set), len(dataset.test_set)) == (4, 2)
    assert {path.name for path in dataset.test_set.images.paths}.isdisjoint(
        path.name for path in dataset.train_set.images.paths
    )
    for part in (dataset.train_set, dataset.test_set):
        for sample, path in zip(part, part.images.paths, strict=True):
            assert sample["pixel_values"].shape == (1, 8, 8)
            assert dataset.classes[sample["labels"]] == dict(ROWS)[f"img/{path.name}"]


def test_whole_numbers_are_classes_by_their_value(photos):
    content = "image,label\n" + "".join(f"{path},{(10, 9, 2)[n % 3]}\n" for n, (path, _) in enumerate(ROWS))
    assert table(photos, content).classes == ["2", "9", "10"]


def test_a_column_split_divides_the_rows(photos):
    def divided(*parts: str):
        rows = [f"{path},{label},{part}" for (path, label), part in zip(ROWS, parts, strict=True)]
        return table(photos, "\n".join(["image,label,split", *rows]))

    dataset = divided("train", "Train", "val", "dev", "test", "test")
    assert [path.stem for path in dataset.train_set.images.paths] == ["1", "0"]  # by class
    assert [path.stem for path in dataset.test_set.images.paths] == ["3", "2"]
    assert len(divided("train", "train", "train", "train", "test", "test").test_set) == 2
    with pytest.raises(DataError, match="6 rows for training and 0 for validation"):
        _ = divided(*["train"] * 6).train_set
    with pytest.raises(DataError, match="values of 'split' that are none of train, training, val.*line 7"):
        _ = divided("train", "train", "val", "val", "train", "yes").train_set


@pytest.mark.parametrize(
    ("rows", "error", "message"),
    [
        ("img/0.png,dog\nimg/9.png,cat\nimg/8.png,cat\n", DataNotFoundError,
         "2 of 3 rows cannot be used. Correct or remove them; paths begin in {photos}.\n"
         "  files that are not there (2): line 3 ('img/9.png'), line 4 ('img/8.png')"),
        ("img/0.png,dog\n../a.png,cat\n/etc/a.png,cat\n", DataError, "paths that lead out of the table's folder (allow_outside=True permits them) (2): line 3 ('../a.png'), line 4"),
        ("img/0.png,dog\nimg/1.png,\n", DataError, "rows without a label (1): line 3 ('img/1.png')"),
        ("img/0.png,dog\n,cat\n", DataError, "rows without a path (1): line 3 ('')"),
        ("img/0.png,dog\nlabels.csv,cat\n", DataError, "files that do not end in .png, .jpg, .jpeg"),
        ("img/0.png,dog\nimg/1.png,dog\n", DataError, "every training image has the label dog"),
        ("", DataError, "holds no rows"),
    ],
    ids=["missing", "outside", "no label", "no path", "no image", "one class", "empty"],
)  # fmt: skip
def test_rows_that_cannot_be_used_are_named(photos, rows, error, message):
    with pytest.raises(error) as caught:
        _ = table(photos, "image,label\n" + rows).train_set
    assert message.format(photos=photos) in str(caught.value)


def test_paths_may_lead_out_of_the_folder_where_that_is_allowed(photos, tmp_path):
    content = "image,label\n" + "".join(f"{photos / path},{label}\n" for path, label in ROWS)
    assert len(table(tmp_path, content, allow_outside=True).train_set) == 4


def test_what_is_no_clear_table_is_said(photos):
    with pytest.raises(DataError, match="columns are a, b; it could be none of them. Say it: image_column="):
        _ = table(photos, "a,b\nimg/0.png,dog\n").train_set
    with pytest.raises(ConfigError, match="no column 'pat'; the columns are path, label; did you mean 'path'"):
        _ = table(photos, "path,label\nimg/0.png,dog\n", image_column="pat").train_set
    with pytest.raises(DataError, match="is a folder. Give the table itself"):
        _ = DatasetRegistry.create("image_table", photos).train_set
    with pytest.raises(DataNotFoundError, match="is a file, no folder.*image_table"):
        _ = DatasetRegistry.create("image_folder", photos / "labels.csv").train_set


def test_images_in_several_rows_and_doubtful_labels_are_reported(photos, caplog):
    with caplog.at_level(logging.WARNING, logger="trainbook.data"):
        _ = table(photos, CSV + "img/0.png,nan\nimg/1.png,nan\n").train_set
    assert "2 images stand in more than one row" in caplog.text
    assert "2 labels are 'nan', the first in line 8" in caplog.text
