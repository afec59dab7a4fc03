"""Uploads are kept under a safe name and never over another file."""

from __future__ import annotations

import pytest

from utils.data.read.uploads import safe_name, save_upload
from utils.errors import DataError


@pytest.mark.parametrize(
    ("name", "safe"),
    [
        ("my text.txt", "my text.txt"), ("../../etc/passwd", "passwd"), ("C:\\Users\\me\\a.txt", "a.txt"),
        ("..", "upload.txt"), ("", "upload.txt"), (".bashrc", "bashrc"), ("a\0b\nc.txt", "a_b_c.txt"),
        ("<img src=x>.txt", "_img src=x_.txt"), ("con.txt", "file-con.txt"), ("ü" * 100 + ".txt", "ü" * 48 + ".txt"),
        ("a." + "x" * 200, "a." + "x" * 98), ("\udc80.txt", "_.txt"),
    ],
)  # fmt: skip
def test_names_are_made_safe(name, safe):
    assert safe_name(name) == safe
    assert len(safe.encode()) <= 105


def test_other_content_under_the_same_name_gets_a_number_and_the_same_is_kept_once(tmp_path):
    first, again, other, third = (save_upload("a.txt", content) for content in (b"one", b"one", b"two", b"three"))
    assert [upload.path.name for upload in (first, again, other, third)] == ["a.txt", "a.txt", "a-2.txt", "a-3.txt"]
    assert [upload.is_new for upload in (first, again, other)] == [True, False, True]
    assert (tmp_path / first.path).read_bytes() == b"one"
    assert again.sentence == "Already there: uploads/a.txt (3 bytes)."


def test_an_empty_file_is_refused(tmp_path):
    with pytest.raises(DataError, match="empty"):
        save_upload("a.txt", b"")
    assert not (tmp_path / "uploads").exists()


def test_a_folder_that_cannot_be_is_an_error_in_words(tmp_path):
    (tmp_path / "uploads").write_text("a file")
    with pytest.raises(DataError, match="cannot be kept in uploads"):
        save_upload("a.txt", b"one")
