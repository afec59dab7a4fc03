"""Data quality findings: each on texts that have the fault, and none on the same texts without it."""

from __future__ import annotations

import json
import re

import pandas as pd
import pytest

from utils.checks.data_quality import QualityThresholds, check_data_quality
from utils.checks.drift import check_drift
from utils.data import prepare_data
from utils.data.quality.drift import js_distance
from utils.data.quality.texts import profile_texts
from utils.data.text.corpus import builtin_corpus
from utils.errors import ConfigError, DataError, DataTypeError
from utils.tokenization import train_bpe
from utils.ui import SetupConfig


@pytest.fixture(scope="module")
def paragraphs() -> list[str]:
    """Different paragraphs of real text, of 10 words and more."""
    found = [" ".join(part.split()) for text in builtin_corpus() for part in text.split("\n\n")]
    return list(dict.fromkeys(text for text in found if len(text.split()) >= 10))[:400]


def verdicts(report) -> dict[str, str]:
    return {result.name: result.verdict for result in report.results}


def test_sound_text_passes_every_check(paragraphs):
    assert set(
        verdicts(check_data_quality(paragraphs, thresholds=QualityThresholds(not_language_warn=0.4))).values()
    ) == {"pass"}


def test_empty_rows_and_rows_that_are_no_text_are_counted_and_named(paragraphs):
    found = check_data_quality([paragraphs[0], "", " \n", None, *paragraphs[1:97]])["rows"]
    assert found.verdict == "warn"
    assert found.measured == {"rows": 100, "empty_rows": 3, "rows_that_are_no_text": 1}
    assert "1, 2, 3" in found.remedy
    assert check_data_quality([""] * 6 + paragraphs[:4])["rows"].verdict == "fail"


def test_empty_rows_are_no_duplicates_of_each_other(paragraphs):
    assert check_data_quality(["", "", "", *paragraphs[:20]])["exact duplicates"].measured["duplicate_rows"] == 0


@pytest.mark.parametrize(
    ("damage", "kind"),
    [
        ("it\ufffds broken", "replacement_character"), ("a\x00b", "control_character"), ("CafÃ© Zürich", "misread_UTF-8"),
        ("donâ€™t", "misread_UTF-8"), ("\udc80 half", "half_a_character"),
    ],
)  # fmt: skip
def test_damaged_characters_are_found(paragraphs, damage, kind):
    found = check_data_quality([*paragraphs[:99], damage])["encoding"]
    assert found.verdict == "warn"
    assert found.measured[f"rows_with_{kind}"] == 1
    assert "99" in found.remedy


@pytest.mark.parametrize(
    "text", ["Ça va, l’été à Zürich — “naïve” 100 €…", "São João", "東京 Привет", "tabs\tand\nlines\r\n", "Â", "ÂŸ x"]
)
def test_undamaged_text_of_other_languages_is_not_called_damaged(text):
    assert check_data_quality([text])["encoding"].verdict == "pass"


@pytest.mark.parametrize(
    ("rows", "title", "lengths"),
    [
        (["a single document"], "Data quality of 1 text (17 characters)", "The one text has 17 characters; 0 (0.0%)"),
        (["one and two", "two and one"], "Data quality of 2 texts (22 characters)", "Every text has 11 characters; 0 (0.0%)"),
        (["one", "one and two"], "Data quality of 2 texts (14 characters)", "Texts have 3 to 11 characters, half of them"),
        ([{"text": "a single row"}], "Data quality of 1 row", "The one row has 12 characters; 0 (0.0%)"),
        ([{"text": "one"}, {"text": "one and two"}], "Data quality of 2 rows", "Rows have 3 to 11 characters, half of them"),
    ],
)
def test_lengths_are_a_range_only_where_they_differ(rows, title, lengths):
    report = check_data_quality(rows)
    assert report.title == title
    assert report["lengths"].summary.startswith(lengths)


def test_a_report_on_texts_speaks_of_texts_and_one_on_a_table_of_rows(paragraphs):
    texts = [*paragraphs[:20], paragraphs[0], "", "it\ufffds broken"]
    table = [{"text": text, "label": number % 2} for number, text in enumerate(texts)]
    words = {
        noun: " ".join(f"{one.summary} {one.remedy}" for one in check_data_quality(data, validation=data).results)
        for noun, data in (("text", texts), ("row", table))
    }
    assert not re.search(r"\brows?\b", words["text"], re.IGNORECASE)
    assert "validation texts are in training too" in words["text"]
    assert "validation rows are in training too" in words["row"]


def test_a_report_on_drift_names_what_it_compares(paragraphs):
    table = [{"text": text} for text in paragraphs[:30]]
    frames = pd.DataFrame(table)
    assert check_drift(paragraphs[:20], paragraphs[:30]).title == "Drift between 20 and 30 texts"
    assert check_drift(frames, frames).title == "Drift between 30 and 30 rows"
    assert check_drift(paragraphs[:20], frames).title == "Drift between 20 texts and 30 rows"


def test_a_file_of_plain_text_is_one_text(tmp_path):
    text = "A line of the text.\n" * 400
    (tmp_path / "my.txt").write_text(text)
    data = prepare_data(SetupConfig(dataset_path=tmp_path / "my.txt", vocab_size=300, max_length=16))
    title = check_data_quality(data).title
    assert re.fullmatch(r"Data quality of 1 text \([\d,]+ characters\)", title)


def test_exact_duplicates_anywhere_in_the_data_are_counted(paragraphs):
    found = check_data_quality([*paragraphs[:300], paragraphs[0], paragraphs[0], paragraphs[299]])["exact duplicates"]
    assert found.measured["duplicate_rows"] == 3
    assert found.verdict == "pass", "3 of 303 are below one percent"
    assert check_data_quality([*paragraphs[:50], *paragraphs[:50]])["exact duplicates"].verdict == "warn"


def test_near_duplicates_are_found_and_different_texts_are_not(paragraphs):
    long = [text for text in paragraphs if len(text.split()) >= 60][:20]
    changed = [text + " indeed" for text in long]
    found = check_data_quality([*long, *changed])["near duplicates"]
    assert found.measured["near_duplicate_rows"] == len(long)
    assert found.verdict == "warn"
    assert check_data_quality(long)["near duplicates"].measured["near_duplicate_rows"] == 0


def test_a_near_duplicate_is_one_in_the_share_that_is_stated(paragraphs):
    words = " ".join(paragraphs).split()[:400]
    nearly = words[:390] + [f"other{number}" for number in range(10)]
    less = words[:280] + [f"another{number}" for number in range(120)]  # half of all runs are in both
    profile = profile_texts([" ".join(words), " ".join(nearly), " ".join(less)])
    assert profile.near_duplicates().tolist() == [[1, 0]]


def test_scripts_are_told_apart():
    shares = profile_texts(["abcd", "привет", "東京東京", "ひら", "γ"]).scripts()
    assert {"Latin", "Cyrillic", "Han", "Hiragana", "Greek"} == set(shares)
    assert shares["Cyrillic"] == pytest.approx(6 / 17)


def test_markup_and_tables_are_noticed():
    assert check_data_quality(["<a=1;b=2;c={3,4,5}>"] * 3)["characters"].verdict == "warn"


def test_truncation_counts_the_tokens_that_are_lost(paragraphs):
    tokenizer = train_bpe(paragraphs, 400)
    lengths = [len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in paragraphs]
    limit = sorted(lengths)[len(lengths) // 2]
    found = check_data_quality(paragraphs, tokenizer=tokenizer, max_length=limit)["truncation"]
    assert found.measured["lost_tokens"] == sum(max(0, length - limit) for length in lengths)
    assert found.measured["tokens"] == sum(lengths)
    assert found.verdict in ("warn", "fail")
    assert check_data_quality(paragraphs, tokenizer=tokenizer, max_length=max(lengths))["truncation"].verdict == "pass"
    with pytest.raises(ConfigError, match="tokenizer"):
        check_data_quality(paragraphs, max_length=10)
    with pytest.raises(ConfigError, match="give QualityThresholds"):
        check_data_quality(paragraphs, thresholds={"truncated_warn": 0.2})
    for wrong in (0, -5, True, 2.5):
        with pytest.raises(ConfigError, match="whole number of tokens"):
            check_data_quality(paragraphs, tokenizer=tokenizer, max_length=wrong)


def frame(texts, labels):
    import pandas as pd

    return pd.DataFrame({"text": texts, "label": labels})


def test_labels_balance_rare_and_missing_ones(paragraphs):
    balanced = frame(paragraphs[:40], ["a", "b"] * 20)
    assert check_data_quality(balanced, label_column="label")["labels"].verdict == "pass"
    skewed = frame(paragraphs[:40], ["a"] * 37 + ["b"] * 2 + [None])
    found = check_data_quality(skewed, label_column="label")["labels"]
    assert found.verdict == "warn"
    assert found.measured["unlabelled_rows"] == 1
    assert "f1_macro" in found.remedy
    as_pandas_writes_it = skewed.assign(label=skewed["label"].astype("string"))
    again = check_data_quality(as_pandas_writes_it, label_column="label")["labels"]
    assert (again.measured, again.summary) == (found.measured, found.summary)
    assert check_data_quality(frame(paragraphs[:9], ["a"] * 9), label_column="label")["labels"].verdict == "fail"
    unseen = check_data_quality(balanced, validation=frame(["one two three"], ["c"]), label_column="label")["labels"]
    assert unseen.verdict == "fail"
    assert "'c'" in unseen.remedy


def test_leakage_exact_and_near(paragraphs):
    train, clean = paragraphs[:200], paragraphs[200:300]
    assert check_data_quality(train, validation=clean)["leakage"].verdict == "pass"
    long = next(text for text in train if len(text.split()) >= 60)
    found = check_data_quality(train, validation=[*clean, train[5], long + " indeed"])["leakage"]
    assert found.measured["exact_rows"] == 1
    assert found.measured["near_rows"] == 1
    assert found.verdict == "fail"


def test_checks_that_nothing_was_given_for_are_left_out(paragraphs):
    assert not {"truncation", "labels", "leakage"} & set(check_data_quality(paragraphs))


def test_the_report_is_json_and_html_with_hostile_labels_and_texts():
    data = frame(["<script>alert(1)</script> & more", "$x^2$ \\alpha"] * 10, ["<b>", "$\\frac"] * 10)
    report = check_data_quality(data, label_column="label")
    assert json.loads(report.to_json())["results"]
    assert "<script>alert" not in report.to_html()
    assert "<b>" not in report.to_html()


def test_an_iterator_is_read_once_and_other_things_are_refused(paragraphs):
    assert check_data_quality(iter(paragraphs))["rows"].measured["rows"] == len(paragraphs)
    with pytest.raises(DataTypeError, match=r"\[text\]"):
        check_data_quality("one text")
    with pytest.raises(DataError, match="no rows"):
        check_data_quality([])
    with pytest.raises(DataError, match="text, label"):
        check_data_quality(frame(["a"], [1]), text_column="body")
    with pytest.raises(DataError, match="2 labels for 3 texts"):
        profile_texts(["a", "b", "c"], labels=[1, 2])


def test_prepared_data_are_checked_with_their_own_validation(paragraphs):
    from utils.data import prepare_examples, prepare_text

    data = prepare_text([*paragraphs, paragraphs[0]], vocab_size=400, block_size=16, val_split=0.5)
    report = check_data_quality(data)
    measured = report["rows"].measured["rows"] + report["leakage"].measured["validation_rows"]
    assert measured == len(paragraphs) + 1
    labelled = prepare_examples({"text": paragraphs[:40], "label": ["a", "b"] * 20}, "text_classification")
    found = check_data_quality(labelled)
    assert found.passed
    assert "2 classes" in found["labels"].summary


def pieces(words: list[str], length: int) -> list[str]:
    return [" ".join(words[start : start + length]) for start in range(0, len(words) - length, length // 10)][:60]


def test_drift_is_zero_for_the_same_and_large_for_600_against_5000_tokens(paragraphs):
    words = " ".join(builtin_corpus()).split()
    same = check_drift(paragraphs, list(reversed(paragraphs)))
    assert all(result.measured["js_distance"] == 0 for result in same.results)
    found = check_drift(pieces(words, 600), pieces(words, 5000))
    assert found["lengths"].verdict == "fail"
    assert found["lengths"].measured["js_distance"] > 0.95


def test_two_halves_of_one_text_do_not_drift_and_another_language_does(paragraphs):
    assert set(verdicts(check_drift(paragraphs[::2], paragraphs[1::2])).values()) == {"pass"}
    russian = ["Съешь же ещё этих мягких французских булок, да выпей чаю"] * 50
    assert verdicts(check_drift(paragraphs, russian))["characters"] == "fail"


def test_labels_that_only_one_has_count_in_full(paragraphs):
    first, second = frame(paragraphs[:40], ["a"] * 40), frame(paragraphs[:40], ["a"] * 20 + ["b"] * 20)
    assert check_drift(first, second, label_column="label")["labels"].measured["js_distance"] > 0.4


def test_the_distance_of_histograms():
    import numpy as np

    many = 1_000_000
    assert js_distance(np.array([many, 0]), np.array([0, many])) == pytest.approx(1.0)
    # By hand: half the mass is shared; entropy of the middle (3/4, 1/4) less half of one bit, in bits, square root.
    expected = (-(0.75 * np.log2(0.75) + 0.25 * np.log2(0.25)) - 0.5) ** 0.5
    assert js_distance(np.array([many, 0]), np.array([many // 2, many // 2])) == pytest.approx(expected, rel=1e-4)
    assert js_distance(np.zeros(3), np.zeros(3)) == 0
    assert js_distance(np.zeros(3), np.ones(3)) == 1


@pytest.mark.parametrize(
    ("label", "counted"),
    [
        ({"toxic": 1, "spam": 0, "rude": True}, {"toxic": 1, "rude": 1}),
        ({"start": 3, "text": "two"}, {"{'start': 3, 'text': 'two'}": 1}),
        ([{"start": 3}, {"start": 5}], {"{'start': 3}": 1, "{'start': 5}": 1}),
        ([["a", "b"], ["a", "b"]], {"['a', 'b']": 2}),
        (frozenset({"a"}), {"a": 1}),
    ],
)
def test_labels_of_every_kind_are_counted(label, counted):
    assert dict(profile_texts(["one text"], labels=[label]).labels) == counted
