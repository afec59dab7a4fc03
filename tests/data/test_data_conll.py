"""CoNLL and BIO files: sentences of words with tags, whatever their columns; a malformed line is named."""

from __future__ import annotations

import gzip

import pytest

from utils.data import prepare_data
from utils.data.file_records import label_names, load_records, recognise
from utils.data.read.records import read_tables
from utils.data.read.rows import BadLines, ReadOptions
from utils.errors import ConfigError, DataError
from utils.ui.setup_config import SetupConfig

BIO = "Ada\tB-PER\nlives\tO\n\nTurin\tB-LOC\n"
ADA, TURIN = {"tokens": ["Ada", "lives"], "tags": ["B-PER", "O"]}, {"tokens": ["Turin"], "tags": ["B-LOC"]}


@pytest.fixture
def written(tmp_path):
    def write(content: str, name: str = "names.conll"):
        path = tmp_path / name
        path.write_bytes(content.encode())
        return path

    return write


CONLL_U = """# newdoc id = n1
# text = Vámonos al mar
1-2\tVámonos\t_\t_\t_\t_\t_\t_\t_\t_
1\tVamos\tir\tVERB\tv\tMood=Imp\t0\troot\t_\t_
2\tnos\tnosotros\tPRON\t_\t_\t1\tobj\t_\t_
3\t_\t_\tPUNCT\tp\t_\t1\tpunct\t_\t_
3.1\tvamos\t_\t_\t_\t_\t_\t_\t_\t_

"""


@pytest.mark.parametrize(
    ("content", "rows"),
    [
        (BIO, [ADA, TURIN]),
        (BIO.replace("\t", " ").replace("\n", "\r\n"), [ADA, TURIN]),
        (BIO.replace("\n\n", "\n\t\n \n\n"), [ADA, TURIN]),
        ("# id = 1\n" + BIO.replace("\n\n", "\n\n# text = Turin\n").replace("\t", " "), [ADA, TURIN]),
        ("# O\n#fun B-X\nAda O\n", [{"tokens": ["#", "#fun", "Ada"], "tags": ["O", "B-X", "O"]}]),
        (
            "-DOCSTART- -X- -X- O\n\nAda NNP I-NP I-PER\nlives VBZ I-VP O\n-DOCSTART- -X- -X- O\n\n",
            [{"tokens": ["Ada", "lives"], "column 2": ["NNP", "VBZ"], "column 3": ["I-NP", "I-VP"], "tags": ["I-PER", "O"]}],
        ),
        (
            "#\thttp://n-tv.de [2009]\n1\tAda\tB-PER\tO\n2\t1\tO\tO\n\n",
            [{"tokens": ["Ada", "1"], "column 3": ["B-PER", "O"], "tags": ["O", "O"]}],
        ),
    ],
    ids=["tabs", "blanks and CRLF", "blank lines", "comments", "hash words", "CoNLL-2003", "numbered"],
)  # fmt: skip
def test_a_sentence_is_a_row(written, content, rows):
    assert load_records(written(content)).records == rows


def test_conll_u_has_its_own_columns_and_skips_ranges_and_empty_words(written):
    (row,) = load_records(written(CONLL_U, "es.conllu")).records
    assert row["tokens"] == ["Vamos", "nos", "_"]
    assert (row["upos"], row["xpos"], row["deprel"]) == (
        ["VERB", "PRON", "PUNCT"], ["v", None, "p"], ["root", "obj", "punct"],
    )  # fmt: skip
    assert label_names(written(CONLL_U, "es.conllu"), "token_classification") == ("PRON", "PUNCT", "VERB")
    names = label_names(written(CONLL_U, "es.conllu"), "token_classification", label_column="deprel")
    assert names == ("obj", "punct", "root")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (BIO + "\nRome B-LOC\n", "names.conll:6: the line has 1 field, separated by tabs, and the others have 2: 'Rome B-LOC'"),
        ("Ada O\nlives\nRome O\n", "names.conll:2: the line has 1 field, separated by blanks, and the others have 2: 'lives'"),
        (BIO + "\nRome\t\n", "names.conll:6: 'tags' is empty: 'Rome\\t'"),
        (BIO + "\tO\n", "names.conll:5: 'tokens' is empty"),
        ("Ada\nlives\n", "names.conll: lines have one field, such as 'Ada'; give a word and its tag a line"),
        ("# only\n\n", "names.conll: holds no words with tags"),
    ],
)  # fmt: skip
def test_malformed_lines_are_named(written, content, message):
    with pytest.raises(DataError) as caught:
        load_records(written(content))
    assert message in str(caught.value)


def test_sentences_with_a_malformed_line_may_be_left_out_and_are_counted(written):
    bad = BadLines("skip")
    path = written(BIO + "\nRome B-LOC\nis\tO\nold O\n\nAda\tB-PER\nlives\tO\n")
    rows = [row for _, table in read_tables([path], ReadOptions(), bad) for row in table.to_pylist()]
    assert rows == [ADA, TURIN, ADA]
    assert bad.count == 1


def test_files_become_examples(tmp_path, written):
    for name, content in (("train.bio", (BIO + "\n") * 4), ("dev.bio", BIO), ("test.bio", "nothing to see\n")):
        written(content, name)
    setup = SetupConfig(dataset_path=str(tmp_path), task="token_classification", max_length=8, vocab_size=64)
    data = prepare_data(setup)
    assert data.task_spec.preprocessing_config["class_names"] == ["B-LOC", "B-PER", "O"]
    assert (len(data.train), len(data.validation)) == (8, 2)
    assert 'text from "tokens", label from "tags"' in data.report.columns
    with pytest.raises(ConfigError, match='train.bio holds words with tags.*set task="token_classification"'):
        prepare_data(SetupConfig(dataset_path=str(tmp_path / "train.bio"), max_length=8, vocab_size=64))


def test_a_text_file_is_one_where_every_line_ends_with_a_bio_tag(tmp_path, written):
    path = written(BIO, "eng.testa")
    found = recognise(path)
    assert (found.columns, found.task) == (("tokens", "tags"), "token_classification")
    assert load_records(path).records == [ADA, TURIN]
    for content in (BIO + "and so on\tto the end\n", "one O\ntwo O\n", "A sentence, plainly.\n"):
        plain = written(content, "plain.txt")
        assert recognise(plain).is_text
        with pytest.raises(DataError, match="plain text, which has no labels.*a CoNLL file: a word and its tag a line"):
            label_names(plain, "token_classification")
    packed = tmp_path / "names.conll.gz"
    packed.write_bytes(gzip.compress(BIO.encode()))
    assert load_records(packed).records == [ADA, TURIN]
