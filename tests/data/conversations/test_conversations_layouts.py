"""Layouts of chat datasets, in every kind of file, and rows that are no conversations."""

from __future__ import annotations

import csv
import json

import pandas as pd
import pytest

from utils.data.conversations import find_layout, read_conversations
from utils.data.file_records import holds_conversations, load_records
from utils.errors import ConfigError, DataError

TURNS = [("user", "Hello"), ("assistant", "Hi."), ("user", "Bye"), ("assistant", "Goodbye.")]
RECORDS = {
    "messages": {"messages": [{"role": role, "content": text} for role, text in TURNS]},
    "sharegpt": {
        "conversations": [{"from": {"user": "human", "assistant": "gpt"}[role], "value": text} for role, text in TURNS]
    },
    "instruction": {"instruction": "Add.", "input": "1 2", "output": "3"},
    "prompt_completion": {"prompt": "1 + 2 =", "completion": "3"},
    "question_answer": {"question": "What is 1 + 2?", "answer": "3"},
}


def turns(read):
    return [[(message["role"], message["content"]) for message in one.messages] for one in read.conversations]


@pytest.mark.parametrize("layout", RECORDS)
def test_a_layout_is_recognised_by_its_columns(layout):
    assert find_layout([RECORDS[layout]] * 2).name == layout


@pytest.mark.parametrize("layout", ["messages", "sharegpt"])
def test_roles_are_those_of_chat_templates(layout):
    assert turns(read_conversations([RECORDS[layout]])) == [TURNS]


def test_an_instruction_and_its_input_are_one_turn():
    assert turns(read_conversations([RECORDS["instruction"]])) == [[("user", "Add.\n\n1 2"), ("assistant", "3")]]
    empty = {**RECORDS["instruction"], "input": ""}
    assert turns(read_conversations([empty])) == [[("user", "Add."), ("assistant", "3")]]


def test_prompt_and_completion_may_be_messages():
    record = {"prompt": RECORDS["messages"]["messages"][:3], "completion": RECORDS["messages"]["messages"][3:]}
    assert turns(read_conversations([record])) == [TURNS]


def test_squads_answers_are_the_first_of_them():
    record = {"question": "Who?", "answers": {"text": ["Ada", "Ada L."], "answer_start": [3, 3]}}
    assert turns(read_conversations([record])) == [[("user", "Who?"), ("assistant", "Ada")]]


def test_texts_are_no_conversations():
    assert find_layout([{"text": "a"}]) is None
    with pytest.raises(DataError, match="hold no conversations; their columns are text"):
        read_conversations([{"text": "a"}])


def test_two_layouts_ask_which():
    both = [{**RECORDS["messages"], **RECORDS["prompt_completion"]}]
    with pytest.raises(DataError, match="layout='messages' or layout='prompt_completion'"):
        read_conversations(both)
    assert turns(read_conversations(both, "prompt_completion")) == [[("user", "1 + 2 ="), ("assistant", "3")]]


def test_an_unknown_or_unfitting_layout_is_refused():
    with pytest.raises(ConfigError, match="Did you mean 'sharegpt'"):
        read_conversations([RECORDS["messages"]], "share_gpt")
    with pytest.raises(DataError, match="not in the layout 'sharegpt'"):
        read_conversations([RECORDS["messages"]], "sharegpt")


BAD = {
    "no turn of the assistant": [{"role": "user", "content": "a"}],
    "an empty answer": [{"role": "user", "content": "a"}, {"role": "assistant", "content": " "}],
    "the unknown role 'narrator'": [{"role": "narrator", "content": "a"}],
    "content that is no text": [{"role": "user", "content": 3}, {"role": "assistant", "content": "b"}],
    "a message without role and content": ["a"],
    "no list of messages": "a",
}


@pytest.mark.parametrize("reason", BAD)
def test_a_row_that_cannot_be_used_is_named_or_skipped(reason):
    records = [RECORDS["messages"], {"messages": BAD[reason]}]
    with pytest.raises(DataError, match=rf"1 of 2 rows cannot be used: row 1: {reason}"):
        read_conversations(records)
    read = read_conversations(records, on_bad_row="skip")
    assert turns(read) == [TURNS]
    assert read.skipped == {reason: 1}


def test_turns_that_nobody_answers_are_removed():
    record = {"messages": [*RECORDS["messages"]["messages"], {"role": "user", "content": "Anyone?"}]}
    read = read_conversations([record])
    assert turns(read) == [TURNS]
    assert read.trimmed == 1


def test_parts_of_a_content_are_joined_and_other_keys_are_kept():
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": None, "tool_calls": [{"name": "add"}]},
        {"role": "tool", "content": "3"},
        {"role": "assistant", "content": "c", "name": None},
    ]
    (one,) = read_conversations([{"messages": messages}]).conversations
    assert one.messages[0] == {"role": "user", "content": "ab"}
    assert one.messages[1] == {"role": "assistant", "content": "", "tool_calls": [{"name": "add"}]}
    assert one.messages[3] == {"role": "assistant", "content": "c"}


def write(path, records):
    if path.suffix == ".parquet":
        pd.DataFrame(records).to_parquet(path)
    elif path.suffix == ".csv":
        with path.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, list(records[0]))
            writer.writeheader()
            writer.writerows(
                {name: value if isinstance(value, str) else json.dumps(value) for name, value in record.items()}
                for record in records
            )
    elif path.suffix == ".json":
        path.write_text(json.dumps(records))
    else:
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.mark.parametrize("suffix", ["jsonl", "json", "parquet", "csv"])
@pytest.mark.parametrize("layout", RECORDS)
def test_every_layout_is_read_from_every_kind_of_file(tmp_path, layout, suffix):
    path = write(tmp_path / f"chat.{suffix}", [RECORDS[layout]] * 3)
    assert holds_conversations(path)
    read = read_conversations(load_records(path).records)
    assert turns(read) == turns(read_conversations([RECORDS[layout]])) * 3


def test_a_table_with_a_text_column_is_no_file_of_conversations(tmp_path):
    assert not holds_conversations(write(tmp_path / "a.jsonl", [{"text": "a", **RECORDS["messages"]}]))
    (tmp_path / "a.txt").write_text("question,answer\n")
    assert not holds_conversations(tmp_path / "a.txt")


def test_files_named_for_validation_are_validation(tmp_path):
    write(tmp_path / "train.jsonl", [RECORDS["messages"]] * 2)
    write(tmp_path / "validation.jsonl", [RECORDS["messages"]])
    found = load_records(tmp_path)
    assert (len(found.records), len(found.validation)) == (2, 1)
