"""Errors of handlers are reported, logged and seen by whoever watches."""

from __future__ import annotations

import ipywidgets
import pytest

from utils.errors import DataError
from widgets.guarded import error_details, error_sentence, guarded, watching


def fails(event):
    raise ZeroDivisionError("no such number")


def test_a_handler_that_raises_is_reported_logged_and_watched(caplog):
    reported = []
    button = ipywidgets.Button()
    button.on_click(guarded(fails, reported.append))
    with watching() as failures:
        button.click()
    assert [str(error) for error in reported] == ["no such number"]
    assert failures == reported
    assert "no such number" in caplog.text
    assert "ZeroDivisionError" in caplog.text


def test_the_innermost_watcher_gets_the_error():
    with watching() as outer, watching() as inner:
        guarded(fails, lambda error: None)(None)
    assert (len(outer), len(inner)) == (0, 1)


def test_a_handler_that_works_is_left_alone():
    seen = []
    guarded(seen.append, pytest.fail)("event")
    assert seen == ["event"]


def test_an_interrupt_goes_on():
    def interrupted(event):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        guarded(interrupted, pytest.fail)(None)


def test_errors_are_said_in_the_librarys_words_or_with_their_class():
    assert error_sentence(DataError("a.txt: is empty.")) == "a.txt: is empty."
    assert error_sentence(ZeroDivisionError("no such number")) == "ZeroDivisionError: no such number"
    assert error_sentence(KeyError()) == "KeyError"
    assert "ZeroDivisionError" in error_details(ZeroDivisionError())
