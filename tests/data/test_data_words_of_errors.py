"""Foreign errors fit into a sentence, and ids of the Hub are distinguished from paths and names without a request."""

from __future__ import annotations

import pytest

from utils.errors import first_line, root_cause
from utils.hub_ids import HubReference, hub_reference, is_hub_id


@pytest.mark.parametrize(("error", "options", "expected"), [
    (ValueError("\n  The file ended.\nTraceback of a library"), {}, "The file ended"),
    (ValueError("The file ended."), {"with_class": True}, "ValueError: The file ended"),
    (RuntimeError("Missing key(s)\n\n  in layer 1\n  in layer 2"), {"lines": 2}, "Missing key(s) in layer 1"),
    (KeyError(), {"with_class": True}, "KeyError"),
    ("no space left. \n", {}, "no space left"),
    (OSError("401 for hf_" + "a1B2" * 9), {}, "401 for ***"),
    (ValueError("x" * 1000), {}, "x" * 300),
])  # fmt: skip
def test_an_error_becomes_the_middle_of_a_sentence(error, options, expected):
    assert first_line(error, **options) == expected


def test_the_first_cause_is_what_a_reader_of_a_file_said():
    broken, outer, outermost = ValueError("line 3 is cut off"), RuntimeError("generating failed"), OSError("no dataset")
    outer.__cause__, outermost.__cause__ = broken, outer
    assert root_cause(outermost) is broken


@pytest.mark.parametrize(("text", "expected"), [
    ("owner/name", HubReference("owner/name", None)),
    ("owner/name@refs/pr/1", HubReference("owner/name", "refs/pr/1")),
    ("name", None), ("a/b/c", None), ("./a", None), ("owner/" + "x" * 97, None), ("owner/na me", None),
])  # fmt: skip
def test_a_reference_is_an_owner_a_name_and_perhaps_a_revision(text, expected):
    assert hub_reference(text) == expected
    assert is_hub_id(text) == (expected is not None and expected.revision is None)


def test_only_datasets_may_lack_an_owner():
    assert is_hub_id("wikitext", needs_owner=False)
    assert not is_hub_id("./wikitext", needs_owner=False)
