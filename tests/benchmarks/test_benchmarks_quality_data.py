"""The tasks that models are measured on are real, leak nothing, and are not won without learning."""

from __future__ import annotations

from functools import cache

import pytest

from benchmarks.quality_data import (
    CHAPTERS,
    QualityTask,
    chapter_task,
    character_error_rate,
    main,
    vowel_task,
    without_vowels,
    word_accuracy,
)


@cache
def task(make) -> QualityTask:
    return make()


@pytest.mark.parametrize(("make", "fewest"), [(chapter_task, 600), (vowel_task, 3000)])
def test_a_fifth_of_the_records_is_held_out_and_never_trained_on(make, fewest):
    found = task(make)
    assert len(found.train) > fewest
    assert 0.15 < len(found.validation) / (len(found.train) + len(found.validation)) < 0.25
    seen = {tuple(record.items()) for record in found.train}
    assert not any(tuple(record.items()) in seen for record in found.validation)
    assert make() == found  # the same in every run


def test_no_chapter_is_a_good_guess():
    found = task(chapter_task)
    for part in (found.train, found.validation):
        assert {record["label"] for record in part} == set(CHAPTERS)
    assert 0.2 < found.baselines["majority_accuracy"] < 0.45
    assert not any("****" in record["text"] or "====" in record["text"] for record in found.train)


def test_a_phrase_is_not_its_own_answer():
    baselines = task(vowel_task).baselines
    assert baselines["copy_exact"] < 0.01
    assert baselines["copy_word_accuracy"] < 0.2
    assert baselines["copy_character_error_rate"] > 0.25
    assert baselines["copy_word_accuracy"] < baselines["lookup_word_accuracy"] < 0.95


def test_vowels_are_removed_and_no_word_is_lost():
    assert without_vowels("the class statement is in an area") == "th clss sttmnt s n n r"
    assert without_vowels("a io") == "a i"
    for record in task(vowel_task).train[:200]:
        assert len(record["source"].split()) == len(record["target"].split())


@pytest.mark.parametrize(
    ("answer", "target", "distance"),
    [("", "abc", 3), ("abc", "abc", 0), ("kitten", "sitting", 3), ("abcd", "acd", 1), ("ab", "ba", 2)],
)
def test_errors_are_counted_by_characters(answer, target, distance):
    assert character_error_rate([(answer, target)]) == pytest.approx(distance / len(target))


def test_words_are_right_at_their_place():
    assert word_accuracy([("the cat", "the cat sat"), ("a", "b")]) == pytest.approx(2 / 4)


def test_the_command_prints_the_baselines(capsys):
    main()
    shown = capsys.readouterr().out
    assert "majority_accuracy" in shown
    assert "copy_character_error_rate" in shown
