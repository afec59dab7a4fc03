"""Files of records are read as they are meant, whatever their format; what is no record is named with its place."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
import textwrap

import pytest
from datasets import Dataset

from utils.data import DatasetLoader
from utils.data.read import arrow as tables
from utils.data.read import decoding
from utils.data.read import json as json_rows
from utils.data.read import txt as text_rows
from utils.data.read.txt import LONGEST_TEXT
from utils.errors import ConfigError, DataError, DataNotFoundError

ROWS = [{"text": "the first", "label": 0}, {"text": "zwei\nlines, größe", "label": 1}, {"text": 'a "third"', "label": 2}]
JSONL = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)
CSV = 'text,label\nthe first,0\n"zwei\nlines, größe",1\n"a ""third""",2\n'


@pytest.fixture
def load(tmp_path):
    """Write a file and load it; nothing is left out for its length."""

    def load(name, content, **options):
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        loader = DatasetLoader(preprocessing=False, min_length=0, cache_dir=tmp_path / "cache")
        rows = loader.load_local_file(path, **options)
        load.report = loader.report
        return rows.to_list()

    return load


def error_of(load, name, content, **options):
    """The message, without the folder."""
    with pytest.raises(DataError) as caught:
        load(name, content, **options)
    return str(caught.value).partition("/test_")[2].partition("/")[2] or str(caught.value)


# What the formats hold

SAME = {
    "a.csv": CSV,
    "a.tsv": CSV.replace(",0", "\t0").replace(",1", "\t1").replace(",2", "\t2").replace("text,label", "text\tlabel"),
    "semicolons.csv": CSV.replace(",0", ";0").replace(",1", ";1").replace(",2", ";2").replace("text,label", "text;label"),
    "a.jsonl": JSONL,
    "a.ndjson": JSONL.replace("\n", "\n\n"),
    "list.json": json.dumps(ROWS),
    "indented.json": json.dumps(ROWS, indent=2),
    "named.json": json.dumps({"version": "1.0", "shape": [3, 2], "data": ROWS, "more": {"n": 1}}),
    "by key.json": json.dumps(dict(enumerate(ROWS))),
    "lines.json": JSONL,
}  # fmt: skip


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gz"])
@pytest.mark.parametrize("name", SAME)
def test_every_format_gives_the_same_rows(load, name, packed):
    content = SAME[name].encode()
    assert load(name + ".gz" * packed, gzip.compress(content) if packed else content) == ROWS


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gz"])
def test_parquet_gives_the_same_rows(load, tmp_path, packed):
    Dataset.from_list(ROWS).to_parquet(tmp_path / "a.parquet")
    content = (tmp_path / "a.parquet").read_bytes()
    assert load("b.parquet" + ".gz" * packed, gzip.compress(content) if packed else content) == ROWS


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "indented.json", "named.json", "lines.json"])
@pytest.mark.parametrize("chunk", [1, 7])
def test_rows_are_the_same_however_the_file_is_cut(load, name, chunk, monkeypatch):
    monkeypatch.setattr(decoding, "CHUNK_BYTES", chunk)
    assert load(name, SAME[name]) == ROWS


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "list.json"])
def test_byte_order_mark_and_crlf_do_not_show(load, name):
    content = b"\xef\xbb\xbf" + SAME[name].encode().replace(b"\n", b"\r\n")
    assert load(name, content) == ROWS


def test_a_list_of_texts_is_read_from_json(load):
    assert load("a.json", '["one", "two"]') == [{"text": "one"}, {"text": "two"}]


def test_the_format_may_be_named(load):
    assert load("export.dat", JSONL, file_format="jsonl") == ROWS
    with pytest.raises(ConfigError, match=r"file_format +got 'jsonll'; must be one of .*did you mean 'jsonl'"):
        load("export.dat", JSONL, file_format="jsonll")


def test_numbers_of_a_csv_become_numbers_unless_one_is_not(load):
    content = "text,whole,part,code,mixed,empty\na,1,0.5,007,1,\nb,-2,3,010,x,\nc,,1e3,1,2,\n"
    assert load("a.csv", content) == [
        {"text": "a", "whole": 1, "part": 0.5, "code": "007", "mixed": "1", "empty": ""},
        {"text": "b", "whole": -2, "part": 3.0, "code": "010", "mixed": "x", "empty": ""},
        {"text": "c", "whole": None, "part": 1000.0, "code": "1", "mixed": "2", "empty": ""},
    ]  # fmt: skip


@pytest.mark.parametrize("rows_at_once", [1, 1000])
@pytest.mark.parametrize(
    ("values", "loaded"),
    [
        (["12345678901234567", "0.5"], ["12345678901234567", "0.5"]),
        (["1234567890123456789", "2"], ["1234567890123456789", "2"]),  # more than a double holds
        (["0.30000000000000004", "2"], [0.1 + 0.2, 2.0]),
        (["1e400", "2"], ["1e400", "2"]),
        (["0.50", "2"], [0.5, 2.0]),  # the same numbers
    ],
)
def test_numbers_that_would_lose_digits_stay_texts(load, values, loaded, rows_at_once, monkeypatch):
    monkeypatch.setattr(tables, "_ROWS_AT_ONCE", rows_at_once)
    content = "text,number\n" + "".join(f"a,{value}\n" for value in values)
    assert [row["number"] for row in load("a.csv", content)] == loaded


@pytest.mark.parametrize("rows_at_once", [1, 1000])
@pytest.mark.parametrize("column", ["target", "Answer", "summary", "sentence2"])
@pytest.mark.parametrize(
    ("values", "loaded"),
    [
        (["2", "0.50"], ["2", "0.50"]), (["2", "0.5"], ["2", "0.5"]), (["1e3", "2.0"], ["1e3", "2.0"]),
        (["0.5", "2.25"], [0.5, 2.25]), (["2", "10"], [2, 10]),
    ],
)  # fmt: skip
def test_numbers_in_a_column_of_texts_are_kept_as_they_are_written(load, column, values, loaded, rows_at_once, monkeypatch):
    monkeypatch.setattr(tables, "_ROWS_AT_ONCE", rows_at_once)
    content = f"text,{column}\n" + "".join(f"a,{value}\n" for value in values)
    assert [row[column] for row in load("a.csv", content)] == loaded


def test_texts_of_json_stay_texts(load):
    assert load("a.jsonl", '{"text": "1", "year": "1984"}\n') == [{"text": "1", "year": "1984"}]


def test_the_column_of_texts_stays_one_of_texts(load):
    assert load("a.csv", "text,n\n12,1\n13,2\n", text_column="text") == [{"text": "12", "n": 1}, {"text": "13", "n": 2}]


@pytest.mark.parametrize("rows_at_once", [1, 1000])
def test_a_column_widens_to_what_its_rows_hold(load, rows_at_once, monkeypatch):
    monkeypatch.setattr(tables, "_ROWS_AT_ONCE", rows_at_once)
    rows = [
        {"text": "a", "n": 1, "late": None}, {"text": "b", "n": 2.5, "late": "x"},
        {"text": "c", "object": {"k": 1}}, {"text": "d", "object": {"k": 2, "more": [1]}},
    ]  # fmt: skip
    loaded = load("a.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    assert [row["n"] for row in loaded] == [1.0, 2.5, None, None]
    assert [row["late"] for row in loaded] == [None, "x", None, None]
    assert [row["object"] for row in loaded] == [None, None, {"k": 1, "more": None}, {"k": 2, "more": [1]}]


# Plain text

STORY = "One.\nStill one.\n\n \nTwo.\n\n\nThree."


@pytest.mark.parametrize(
    ("unit", "rows"),
    [
        ("paragraph", ["One.\nStill one.", "Two.", "Three."]),
        ("line", ["One.", "Still one.", "Two.", "Three."]),
        ("file", [STORY]),
    ],
)
def test_a_row_of_a_text_is_what_was_asked_for(load, unit, rows):
    assert [row["text"] for row in load("a.txt", STORY, text_unit=unit)] == rows


def test_a_text_without_blank_lines_has_a_row_a_line(load):
    assert [row["text"] for row in load("a.txt", "one\ntwo\nthree\n")] == ["one", "two", "three"]


@pytest.mark.parametrize("unit", ["file", "paragraph", "line"])
def test_a_text_too_long_for_a_row_is_cut_between_words_and_nothing_is_lost(load, unit, monkeypatch):
    monkeypatch.setattr(text_rows, "LONGEST_TEXT", 50)
    text = " ".join(f"word{number}" for number in range(100))
    rows = [row["text"] for row in load("a.txt", text, text_unit=unit)]
    assert "".join(rows) == text
    assert max(map(len, rows)) <= 50
    assert all(row.endswith(" ") for row in rows[:-1])


def test_a_long_text_is_cut_at_blank_lines(load, monkeypatch):
    monkeypatch.setattr(text_rows, "LONGEST_TEXT", 100)
    text = "".join(f"Paragraph {number} is here.\n\n" for number in range(20))
    rows = [row["text"] for row in load("a.txt", text, text_unit="file")]
    assert "".join(rows) == text
    assert all(row.startswith("Paragraph") and row.endswith("\n\n") for row in rows)


# What is no record


RAGGED = 'text,label\n"two\nlines",1\n\nalone\na,b,c\n'


def test_f24_a_bad_table_is_named_with_its_physical_line_and_columns(load):
    says = {
        "short.csv": (RAGGED, "short.csv:5: the row has 1 field, the header 2 ('text, label'): 'alone'."),
        "long.csv": (RAGGED.replace("alone\n", ""), "long.csv:5: the row has 3 fields, the header 2"),
        "twice.csv": ("text,text,id\n1,2,3\n", "twice.csv:1: the header names 'text' more than once"),
        "open.csv": ('text\nok\n"never closed\nmore\n', "open.csv:3: a quote is opened in this row and not closed."),
        "inside.csv": ('text,n\n"a"b,1\n', "inside.csv:2: ',' expected after '\"'."),
        "no header.csv": ("\n\ntext\n", "no header.csv:1: the first line is blank; it must name the columns"),
        "rows.csv": ("text\n", "rows.csv: holds no rows."),
    }
    for name, (content, message) in says.items():
        assert error_of(load, name, content).startswith(message)
    missing = error_of(load, "a.csv", "body,tilte\nx,y\n", text_column="title")
    assert missing.startswith("a.csv are body, tilte; with text: body, tilte. Did you mean 'tilte'?\n  body ")


def test_bad_rows_of_a_table_are_left_out_and_counted_when_asked(load):
    assert load("a.csv", RAGGED, on_bad_line="skip") == [{"text": "two\nlines", "label": 1}]
    assert load.report.dropped == {"lines that are no record": 2}
    assert [message.partition("a.csv:")[2][:2] for message in load.report.bad_lines] == ["5:", "6:"]
    assert "2 lines that are no record" in load.report.sentence


def test_quotes_may_be_characters_like_others(load):
    content = 'text\tn\n"To be\t1\nhe said "no"\t2\n'
    assert "quotes=False" in error_of(load, "a.tsv", content)
    assert [row["text"] for row in load("a.tsv", content, quotes=False)] == ['"To be', 'he said "no"']


def lines(seventh):
    return "".join(f'{{"text": "line {number}"}}\n' for number in range(1, 7)) + seventh + '\n{"text": "last"}\n'


SEVENTH = {
    '{"text": "cut off': "a.jsonl:7:10: the line is not valid JSON (Unterminated string starting at): '{\"text\": \"cut off'.",
    "  {'text': 1}": "a.jsonl:7:4: the line is not valid JSON (Expecting property name enclosed in double quotes)",
    '["text"]': "a.jsonl:7: the line is a list, not an object: '[\"text\"]'.",
    "null": "a.jsonl:7: the line is null, not an object: 'null'.",
    '{"txet": "x"}': "a.jsonl:7: the row has no 'text'; it has 'txet', of which 'txet' is the nearest.",
    '{"text": 7}': "a.jsonl:7: 'text' is 7, a number, and a text in the rows before.",
    '{"text": ["x"]}': "a.jsonl:7: 'text' is ['x'], list<item: string>, and a text in the rows before.",
    '{"text": "\\ud800"}': "a.jsonl:7: 'text' is '\\ud800', which no column can hold",
    '{"text": "x", "n": ["x", 1]}': "a.jsonl:7: 'n' is ['x', 1], which no column can hold (values of several kinds in one list",
    '{"text": "x", "n": 1e999999, "m": 99999999999999999999}': "a.jsonl:7: 'm' is 99999999999999999999, which no column",
    "[" * 100_000: "a.jsonl:7: the line cannot be read (nested too deeply)",
}  # fmt: skip


@pytest.mark.parametrize("rows_at_once", [3, 1000])
def test_f25_a_bad_line_is_named_with_an_excerpt_or_left_out_and_counted(load, rows_at_once, monkeypatch):
    monkeypatch.setattr(tables, "_ROWS_AT_ONCE", rows_at_once)
    for seventh, message in SEVENTH.items():
        assert error_of(load, "a.jsonl", lines(seventh)).startswith(message)
        assert len(load("a.jsonl", lines(seventh), on_bad_line="skip")) == 7
        assert load.report.num_bad_lines == 1
    loud = error_of(load, "a.jsonl", lines('{"text": "\x1b[31m' + "x" * 500))
    shown = loud.partition("): ")[2].partition(". Correct")[0]
    assert len(shown) <= 80
    assert "\x1b" not in loud


BAD_DOCUMENTS = {
    '[{"text": "a"},\n {"text": "b" "c"}]': ":2:15: is not valid JSON (Expecting ',' delimiter)",
    '[{"text": "a"},\n 5]': ":2:2: a row is a number, not an object: 5.",
    '[{"text": "a"}': ":1:15: expected ','",
    '[{"text": "a"}]\n[]': ":2:1: something follows the end of the document",
    '{"text": ["a", "b"]}': ":1: the document is one object with lists of values ('text'), one a column.",
    '{"a": [{"text": "x"}], "b": [{"text": "y"}]}': ":1:29: the document holds two lists of rows, 'a' and 'b'",
    "7": ":1:1: the document is neither a list of rows nor an object",
    "[]": ": holds no rows.",
    '{"data": []}': ": holds no rows.",
    '[{"text": ' + "[" * 100_000: ":1:2: cannot be read (nested too deeply)",
}


@pytest.mark.parametrize("chunk", [9, 1 << 20])
@pytest.mark.parametrize("content", BAD_DOCUMENTS, ids=lambda content: content[:30])
def test_a_bad_document_is_named_with_line_and_column(load, content, chunk, monkeypatch):
    monkeypatch.setattr(decoding, "CHUNK_BYTES", chunk)
    assert error_of(load, "a.json", content).startswith(f"a.json{BAD_DOCUMENTS[content]}")


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.json", "a.txt"])
def test_what_is_no_text_is_refused_by_every_reader(load, name):
    wide, latin = error_of(load, name, CSV.encode("utf-16")), error_of(load, name, CSV.encode("latin-1"))
    assert "is in UTF-16" in wide
    assert f"{name}:4:10: byte 0xf6 is not valid UTF-8" in latin
    assert "is empty (0 bytes)" in error_of(load, name, b"")
    assert "NUL" in error_of(load, name, CSV.replace("first", "fir\0st"))
    assert "cannot be read: Compressed file ended" in error_of(load, name, gzip.compress(CSV.encode())[:-20])


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
@pytest.mark.parametrize("first", ["sep=;", "SEP=;", '"sep=;"', "\ufeffsep=;"])
def test_the_delimiter_that_excel_names_is_used(load, first, name, packed):
    content = f"{first}\ntext;label, or class\nthe first;0\nthe second;1\n".encode()
    rows = load(f"{name}.gz" if packed else name, gzip.compress(content) if packed else content)
    assert rows == [{"text": "the first", "label, or class": 0}, {"text": "the second", "label, or class": 1}]
    message = error_of(load, "b.csv", content + b"one; two; three\n")
    assert "b.csv:5: the row has 3 fields, the header 2" in message


@pytest.mark.parametrize(
    ("content", "columns"),
    [
        ("text;label, or class\nthe first;0\nthe second;1\n", ["text", "label, or class"]),
        ("text,a;b\nthe first,0\nthe second,1\n", ["text", "a;b"]),
        ("text|note, long\nno comma|x\none, comma|x\n", ["text", "note, long"]),
        ("text\tnote, long\nno comma\tx\n", ["text", "note, long"]),
        ('text;"a,b";c\n"x, y";1;2\n', ["text", "a,b", "c"]),
        ("text,label\na;b;c,1\nd;e;f,2\n", ["text", "label"]),
        ("text;price\nbread;1,50\nmilk;2,25\n", ["text", "price"]),
        ("text,label\n" + 60 * "a;b,1\n", ["text", "label"]),
        ("text;label,x\n" + 49 * "a;1\n" + 'b;"cut off\nhere"\n', ["text", "label,x"]),
    ],
)
def test_the_delimiter_is_the_sign_by_which_the_rows_agree_with_the_header(load, content, columns):
    assert list(load("a.csv", content)[0]) == columns


def test_other_encodings_are_read_when_named(load):
    assert load("a.csv", CSV.encode("latin-1"), encoding="latin-1") == ROWS


def test_a_damaged_parquet_file_is_named(load):
    assert "a.parquet: cannot be read as Parquet" in error_of(load, "a.parquet", b"PAR1 and nonsense")


@pytest.mark.parametrize("name", ["a.parquet.gz", "a.csv.gz", "a.tsv.gz", "a.jsonl.gz", "a.json.gz", "a.txt.gz"])
@pytest.mark.parametrize("damage", ["middle", "cut off", "checksum"])
def test_a_damaged_archive_of_any_format_is_named(load, name, damage):
    packed = bytearray(gzip.compress(bytes(range(1, 128)) * 400))
    if damage == "middle":
        packed[20:40] = bytes(20)
    elif damage == "cut off":
        del packed[len(packed) // 2 :]
    else:
        packed[-8:-4] = b"\x01\x02\x03\x04"
    assert f"{name}: cannot be read" in error_of(load, name, bytes(packed))


LONG = "n" * 600_000


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", f"{LONG},{LONG}\n1,2\n"),
        ("a.csv", f"{LONG},{LONG}x\nb,c\n"),
        ("a.csv", ",".join(f"column{n}" for n in range(5_000)) + "\n" + ",".join("x" for _ in range(5_000)) + "\n"),
        ("a.csv", f"text,{LONG}\na\n"),
        ("a.jsonl", json.dumps({LONG: "a", f"{LONG}x": "b"}) + "\n"),
        ("a.jsonl", json.dumps({"text": "a", LONG: 1}) + "\n" + json.dumps({"text": "a", LONG: "x"}) + "\n"),
        ("a.json", json.dumps({LONG: [{"a": 1}], f"{LONG}x": [{"a": 1}]})),
    ],
    ids=["same names", "two texts", "many columns", "ragged", "names of json", "kinds of json", "two lists"],
)
def test_a_message_is_short_however_long_the_input(load, name, content):
    assert len(error_of(load, name, content)) < 4000
    with pytest.raises(DataError) as caught:
        load(name, content, text_column=LONG[:-1] + "y")
    assert len(str(caught.value)) < 4000


@pytest.mark.slow
@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.csv", "a.json"])
def test_one_line_of_200_mb_is_read_or_refused_in_little_memory(tmp_path, name):
    """The peak of a process of its own, over what its imports take. A text is read, a record of this size refused."""
    before, after = {"a.txt": (b"", b""), "a.jsonl": (b'{"text": "', b'"}'), "a.csv": (b'text\n"', b'"'), "a.json": (b'[{"text": "', b'"}]')}[name]  # fmt: skip
    with open(tmp_path / name, "wb") as file:
        file.write(before)
        for _ in range(200):
            file.write(b"word " * 200_000)
        file.write(after)
    code = """
        import re, sys
        from utils.data import DatasetLoader
        from utils.errors import DataError
        DatasetLoader(min_length=1).load(["everything is imported now"])
        peak = lambda: int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1])
        base = peak()
        try:
            print(sum(len(row["text"]) for row in DatasetLoader(preprocessing=False).load(sys.argv[1])))
        except DataError as error:
            assert "33,554,432 characters" in str(error), error
            print("refused")
        print((peak() - base) // 1024)
    """
    child = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), tmp_path / name], capture_output=True, text=True, timeout=300
    )
    assert child.returncode == 0, child.stderr
    outcome, mib = child.stdout.split()
    assert outcome == ("200000000" if name == "a.txt" else "refused")
    assert int(mib) < 300


# Which files


def test_folders_patterns_and_lists_give_their_files_in_order(tmp_path):
    for name in ("b.txt", "a.jsonl", "deep/c.csv", "notes.bin", ".hidden.txt", "README.md"):
        (tmp_path / "data" / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / "data" / name).write_text({"a.jsonl": '{"text": "from a"}', "deep/c.csv": "text\nfrom c"}.get(name, "from b"))
    loader = DatasetLoader(min_length=1)
    assert loader.load(tmp_path / "data")["text"][:] == ["from a", "from b", "from c"]
    assert "3 other files" in " ".join(loader.report.notes)
    assert loader.load(str(tmp_path / "data" / "**" / "*.csv"))["text"][:] == ["from c"]
    both = [tmp_path / "data" / "deep", tmp_path / "data" / "b.txt"]
    assert loader.load(both)["text"][:] == ["from c", "from b"]


def test_files_for_validation_are_not_trained_on(tmp_path):
    for name in ("train.txt", "validation.txt", "test.txt", "other.txt"):
        (tmp_path / name).write_text(f"from {name}")
    loader = DatasetLoader(min_length=1)
    assert loader.load(tmp_path)["text"][:] == ["from train.txt"]
    notes = " ".join(loader.report.notes)
    assert "1 files are for validation" in notes
    assert "(test.txt)" in notes
    assert "(other.txt)" in notes


@pytest.mark.parametrize(
    ("path", "message"),
    [("nothing/*.txt", "no file matches this pattern"), ("empty", "holds no data files"), ("stroy.txt", "Did you mean story.txt")],
)  # fmt: skip
def test_files_that_are_not_there_are_said(tmp_path, path, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "story.txt").write_text("text")
    with pytest.raises((DataError, DataNotFoundError), match=message):
        DatasetLoader().load_local_file(path)


def test_a_column_of_another_kind_in_the_next_file_names_that_file(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a", "n": 1}')
    (tmp_path / "b.jsonl").write_text('{"text": "b", "n": "one"}')
    with pytest.raises(DataError, match=r"b\.jsonl: the column 'n' holds a text, and a number in the files before"):
        DatasetLoader(min_length=1).load(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"delimiter": ",,"}, "delimiter"), ({"delimiter": '"'}, "neither a quote"), ({"text_column": 5}, "name of a column"),
        ({"on_bad_line": "ignore"}, "must be one of error, skip"), ({"text_unit": "page"}, "file, paragraph, line"),
        ({"encoding": "utf-9"}, "no text encoding"),
    ],
)  # fmt: skip
def test_an_option_that_cannot_be_is_refused(load, options, message):
    with pytest.raises(ConfigError, match=message):
        load("a.csv", CSV, **options)


@pytest.mark.parametrize("path", [None, 5, [1, 2], {"a": 1}])
def test_what_is_no_path_is_refused(path):
    with pytest.raises(DataError, match="give a path"):
        DatasetLoader().load_local_file(path)


def test_the_limits_are_what_the_documents_say():
    assert LONGEST_TEXT == 1 << 20
    assert decoding.LONGEST_RECORD == 1 << 25
    assert json_rows.LONGEST_RECORD is decoding.LONGEST_RECORD
