"""A text file is read exactly as it is, and every unusable one gives a message that says where and what to do."""

from __future__ import annotations

import gzip
import os
import subprocess
import sys
import textwrap

import pytest

from utils.data.read import decoding
from utils.data.read.text_file import read_text_file
from utils.errors import ConfigError, DataError, DataNotFoundError


@pytest.fixture
def write(tmp_path):
    def write(name, content):
        path = tmp_path / name
        path.write_bytes(content)
        return path

    return write


def test_text_is_kept_exactly(write):
    text = "\tTabs, trailing blanks  \n\n  größe … 世界 \x0b \u2028 no line end at the end"
    document = read_text_file(write("a.txt", text.encode()))
    assert document.text == text
    assert (document.num_lines, document.num_blank_lines, document.had_bom) == (3, 1, False)


def test_line_ends_become_lf_and_the_byte_order_mark_goes(write):
    document = read_text_file(write("a.txt", b"\xef\xbb\xbfone\r\ntwo\rthree\n\r\n"))
    assert document.text == "one\ntwo\nthree\n\n"
    assert (document.num_lines, document.num_blank_lines, document.had_bom) == (4, 1, True)


def test_other_encodings_are_read_when_named(write):
    assert read_text_file(write("a.txt", "größe\n".encode("latin-1")), encoding="latin-1").text == "größe\n"
    document = read_text_file(write("b.txt", "größe\n".encode("utf-16")), encoding="utf-16")
    assert (document.text, document.had_bom) == ("größe\n", True)


@pytest.mark.parametrize("encoding", ["utf-9", "hex", ""])
def test_an_encoding_that_is_none_is_named(write, encoding):
    with pytest.raises(ConfigError, match="no text encoding"):
        read_text_file(write("a.txt", b"text"), encoding=encoding)


def test_a_missing_file_names_the_ones_with_nearly_that_name(write):
    path = write("story.txt", b"text")
    with pytest.raises(DataNotFoundError, match=r"no such file\. Did you mean .*story\.txt\?") as error:
        read_text_file(path.with_name("Stroy.txt"))
    assert isinstance(error.value, FileNotFoundError)
    with pytest.raises(DataNotFoundError, match=r"Files in .*: story\.txt"):
        read_text_file(path.with_name("quite_different.md"))


def test_a_missing_folder_names_the_nearest_that_exists(tmp_path):
    with pytest.raises(DataNotFoundError, match="folder does not exist") as error:
        read_text_file(tmp_path / "no" / "such" / "story.txt")
    assert str(tmp_path) in str(error.value)


def test_a_folder_is_no_file(write, tmp_path):
    write("story.txt", b"text")
    with pytest.raises(DataError, match=r"is a folder, not a file\. Files in .*story\.txt"):
        read_text_file(tmp_path)


def test_a_pipe_is_refused_instead_of_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match="device or pipe"):
        read_text_file(tmp_path / "pipe")


@pytest.mark.parametrize("path", ["", "a\0b"])
def test_a_path_that_is_none_is_refused(path):
    with pytest.raises(DataError, match="as the path of a data file"):
        read_text_file(path)


def test_a_name_that_is_too_long_is_refused(tmp_path):
    with pytest.raises(DataNotFoundError, match="cannot be opened"):
        read_text_file(tmp_path / ("x" * 300))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"is empty \(0 bytes\)"),
        (b"\n", "only 1 blank line"),
        (b" \n\t\r\n\r", "only 3 blank lines"),
        (b"\xef\xbb\xbf\n", "only 1"),
    ],
)
def test_files_without_text_say_so(write, content, message):
    path = write("a.txt", content)
    with pytest.raises(DataError, match=message) as error:
        read_text_file(path)
    assert str(error.value).startswith(str(path))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"hello\n\0world", "byte 6 is NUL"),
        (gzip.compress(gzip.compress(b"hello", mtime=0), mtime=0), "byte"),
        (gzip.compress(b"hello" * 99, mtime=0)[:-9], "cannot be read: .*end-of-stream"),
        (b"\x89PNG\r\n\x1a\n\0\0", "PNG image"),
        (b"PK\x03\x04\x14\0", "zip archive"),
        (b"%PDF-1.4\n%\xe2\xe3\xcf\xd3\n", "PDF document"),
        ("hello wörld".encode("utf-16"), 'is in UTF-16 .*Save it as UTF-8.*encoding="utf-16"'),
        ("世界".encode("utf-16"), "is in UTF-16"),
        ("hello".encode("utf-32"), "is in UTF-32"),
        (("hello wörld\n" * 9).encode("utf-16-be"), "UTF-16 without a byte-order mark"),
    ],
)
def test_binary_files_are_named_for_what_they_are(write, content, message):
    with pytest.raises(DataError, match=message):
        read_text_file(write("a.txt", content))


CHUNKS = (1 << 20, 7, 5)  # how a file is cut into pieces must not show


@pytest.mark.parametrize("chunk", CHUNKS)
@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"\xff", ":1:1: byte 0xff is not valid UTF-8"),
        ("line one\r\nline zwei: größe\n".encode("latin-1"), ":2:14: byte 0xf6"),
        (b"a\rb\rc\xff", ":3:2: byte 0xff"),
        (b"abcd\r\xff", ":2:1: byte 0xff"),
        (b"\xef\xbb\xbfab\xffc", ":1:3: byte 0xff"),  # a byte-order mark is no column
        ("€uro\n€".encode() + b"\xe2\x82", ":2:2: byte 0xe2"),  # columns count characters, not bytes
        (b"long enough a line for several pieces, and then\n \xc3(", ":2:2: byte 0xc3"),
        (b"hello, this is text and then comes\n\0world", ": is not a text file: byte 35 is NUL"),
        ("hello wörld".encode("utf-16"), ": is in UTF-16 (it begins with that byte-order mark)"),
        (b"", ": is empty (0 bytes)"),
        (b"\xef\xbb\xbf\r\n \r\n", ": holds no text, only 2 blank lines"),
    ],
)
def test_f23_what_is_no_utf8_text_is_named_with_its_place(write, content, says, chunk, monkeypatch):
    monkeypatch.setattr(decoding, "CHUNK_BYTES", chunk)
    path = write("a.txt", content)
    with pytest.raises(DataError) as error:
        read_text_file(path)
    assert str(error.value).startswith(f"{path}{says}")


@pytest.mark.parametrize("chunk", CHUNKS)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be", "latin-1"])
@pytest.mark.parametrize("text", ["one\r\ntwo\rthree\n\n \t\r\n", "größe", "\r\n\r\nx\n\n", "a\u00a0\x0b\n\x0c\nb"])
def test_text_is_the_same_however_it_is_cut(write, text, encoding, chunk, monkeypatch):
    monkeypatch.setattr(decoding, "CHUNK_BYTES", chunk)
    document = read_text_file(write("a.txt", text.encode(encoding)), encoding=encoding.removesuffix("-sig"))
    lines = text.replace("\r\n", "\n").replace("\r", "\n")
    assert document.text == lines
    split = lines.removesuffix("\n").split("\n")
    assert document.num_lines == len(split)
    assert document.num_blank_lines == sum(not line or line.isspace() for line in split)


@pytest.mark.parametrize("bad", [b"", b"\xff"], ids=["text", "a bad byte at its end"])
def test_a_long_line_takes_little_more_memory_than_itself(tmp_path, bad):
    """40 MB in one line. The same share of 200 MB is less than 300."""
    path = tmp_path / "long.txt"
    path.write_bytes(b"word " * 8_000_000 + bad)
    code = """
        import re, sys
        from utils.data.read.text_file import read_text_file
        from utils.errors import DataError
        # This program's own peak; getrusage would count the parent it was forked from.
        peak = lambda: int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1])
        base = peak()
        try:
            read_text_file(sys.argv[1])
        except DataError as error:
            assert ":1:40000001: byte 0xff" in str(error), error
        print((peak() - base) // 1024)
    """
    child = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), path], capture_output=True, text=True, timeout=300
    )
    assert child.returncode == 0, child.stderr
    assert int(child.stdout) < 60
