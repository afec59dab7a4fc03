"""From a setup to blocks: the text arrives complete, unseen text stays unseen, and what cannot work says what would."""

from __future__ import annotations

import importlib
import json
import math
import subprocess
import sys
from dataclasses import dataclass, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from tests.kit.tree import ROOT
from utils.data import PreparedData, prepare_data, prepare_text
from utils.data.source_kinds import SOURCE_KINDS
from utils.data.text.report import unigram_loss
from utils.errors import ConfigError, DataError, DataNotFoundError, DataTypeError
from utils.models import ModelRegistry
from utils.tokenization import build_character_tokenizer
from utils.training import Trainer, TrainingConfig
from utils.training.coordinator.arguments import DataArguments
from utils.ui.setup_config import SetupConfig

LINES = "".join(f"Line {number} of a text about the number {number * number}.\n" for number in range(400))


@dataclass
class Setup:
    """The least that prepare_data takes."""

    dataset_source: str = "local"
    dataset_path: str | None = None
    text_column: str | None = None
    vocab_size: int | None = 400
    max_length: int = 16
    tokenizer_strategy: str = "auto"
    val_split: float = 0.1
    random_seed: int = 42


@pytest.fixture
def text_file(tmp_path):
    path = tmp_path / "lines.txt"
    path.write_text(LINES)
    return str(path)


@pytest.fixture(scope="module")
def model():
    return ModelRegistry.create("gpt-small", vocab_size=400, max_seq_len=32, n_layer=1, n_embd=16, n_head=2)


def test_a_source_that_is_read_like_another_needs_a_row_in_the_table_only(text_file, model, monkeypatch):
    monkeypatch.setitem(SOURCE_KINDS, "archive", replace(SOURCE_KINDS["local"], title="Archive"))
    data = prepare_data(Setup(dataset_source="archive", dataset_path=text_file), model)
    assert data.report.source == text_file
    given = DataArguments(dataset_path=text_file, dataset_source="archive")
    assert [problem for problem in given.problems(model) if problem.field == "dataset_source"] == []


@pytest.mark.parametrize(("settings", "function"), [
    ({}, "load_texts"), ({"data_kind": "pairs"}, "load_answers"), ({"task": "text_classification"}, "load_labelled"),
])  # fmt: skip
def test_a_source_with_a_reader_of_its_own_is_refused_where_the_reader_is_missing(model, monkeypatch, settings, function):
    kind = replace(SOURCE_KINDS["builtin"], reader="ledger", given_as=())
    monkeypatch.setitem(SOURCE_KINDS, "ledger", kind)
    setup = SimpleNamespace(**vars(Setup(dataset_source="ledger")), **settings)
    with pytest.raises(ConfigError, match=rf"'ledger'.*{function} in utils\.data\.prepare.*SOURCE_KINDS"):
        prepare_data(setup, model)
    given = DataArguments(dataset_source="ledger")
    assert "keep one of the two" in given.problems(model)[0].message
    with pytest.raises(ConfigError, match="dataset_source"):
        SetupConfig(dataset_source="ledger")


LABELLED = [{"text": f"number {n} is {'even' if n % 2 == 0 else 'odd'}", "label": n % 2} for n in range(60)]
CHAT = [
    {"messages": [{"role": "user", "content": f"Say {n}"}, {"role": "assistant", "content": f"Said {n}"}]} for n in range(60)
]


@pytest.mark.parametrize(("strategy", "kind"), [("bpe", "byte-level BPE"), ("character", "one token per character")])
@pytest.mark.parametrize(("rows", "options"), [
    (LABELLED, {"task": "text_classification"}), (CHAT, {}), (CHAT, {"data_kind": "conversations"}),
], ids=["classes", "file of conversations", "conversations"])  # fmt: skip
def test_the_tokenizer_strategy_holds_for_every_kind_of_rows(tmp_path, rows, options, strategy, kind):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    setup = SetupConfig(
        dataset_source="local", dataset_path=str(path), tokenizer_strategy=strategy, vocab_size=400, max_length=64, **options
    )
    assert prepare_data(setup).report.tokenizer.startswith(kind)


@pytest.mark.parametrize(("rows", "task", "kind"), [
    (LABELLED, "text_classification", "byte-level BPE"), (CHAT, "causal_lm", "one token per character"),
])  # fmt: skip
def test_a_few_labelled_texts_become_subwords_from_which_a_label_is_learned_sooner(tmp_path, rows, task, kind):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    setup = SetupConfig(dataset_source="local", dataset_path=str(path), task=task, vocab_size=4096, max_length=64)
    assert prepare_data(setup).report.tokenizer.startswith(kind)


def text_of(data, blocks):
    return data.tokenizer.decode(blocks.blocks.reshape(-1))


# What comes out


@pytest.mark.parametrize("strategy", ["bpe", "character"])
def test_a_file_becomes_blocks_that_decode_to_its_text(text_file, model, strategy):
    data = prepare_data(Setup(dataset_path=text_file, tokenizer_strategy=strategy), model)
    assert isinstance(data, PreparedData)
    train, validation = text_of(data, data.train), text_of(data, data.validation)
    assert LINES.startswith(train.removesuffix("</s>"))
    assert validation.removesuffix("</s>") in LINES
    report = data.report
    assert (report.num_documents, report.num_characters, report.block_size) == (1, len(LINES), 16)
    assert (len(data.train), data.train.num_tokens) == (report.num_train_blocks, report.num_train_tokens)
    assert (len(data.validation), data.validation.num_tokens) == (
        report.num_validation_blocks,
        report.num_validation_tokens,
    )
    total = len(data.tokenizer(LINES)["input_ids"]) + 2  # an end after each part
    assert report.num_train_tokens + report.num_validation_tokens + report.dropped_tokens == total
    assert 0 <= report.dropped_tokens < 2 * 16
    assert 0.08 < report.num_validation_tokens / total < 0.12


def test_the_validation_text_begins_where_the_training_text_ends(text_file, model):
    data = prepare_data(Setup(dataset_path=text_file, val_split=0.25), model)
    validation = text_of(data, data.validation)
    assert validation.startswith("Line ")
    first = LINES.index(validation[:60])
    train = text_of(data, data.train).removesuffix("</s>")
    assert len(train) <= first
    assert LINES[len(train) : first].count("\n") <= 1  # only the dropped tail lies between


def test_the_tokenizer_has_seen_the_training_part_only():
    unseen = "".join(chr(0x4E00 + number) for number in range(40)) * 5
    settings = {"vocab_size": 2000, "block_size": 8, "val_split": 0.02, "tokenizer_strategy": "bpe"}
    data = prepare_text([LINES + "\n" + unseen], **settings)
    assert unseen[:9] in text_of(data, data.validation)
    vocabulary = {data.tokenizer.decode([number]) for number in range(len(data.tokenizer))}
    assert not vocabulary & set(unseen)


def test_every_document_ends_with_the_end_token():
    data = prepare_text(["abcde", "fgh"], vocab_size=300, block_size=5, val_split=0, tokenizer_strategy="character")
    assert text_of(data, data.train) == "abcde</s>fgh</s>"


def test_the_task_has_the_models_vocabulary_and_the_blocks_length(text_file, model):
    data = prepare_data(Setup(dataset_path=text_file, vocab_size=300, tokenizer_strategy="character"), model)
    assert (data.task_spec.task_type, data.task_spec.vocab_size, data.task_spec.max_seq_len) == ("causal_lm", 400, 16)
    assert data.task_spec.pad_token_id == data.tokenizer.pad_token_id == 0
    assert len(data.tokenizer) <= 300
    assert any("of the model's 400 are never used" in note for note in data.report.notes)


def test_without_a_model_the_task_has_the_vocabulary_that_the_tokenizer_came_to_have():
    data = prepare_text(["ab ab abba " * 40], vocab_size=96, block_size=8, tokenizer_strategy="character")
    assert data.task_spec.vocab_size == len(data.tokenizer) < 96
    model = ModelRegistry.create("gpt-small", vocab_size=len(data.tokenizer), max_seq_len=8, n_layer=1, n_embd=8, n_head=1)
    trainer = Trainer(model, training_config=TrainingConfig(max_steps=1), task_spec=data.task_spec)
    assert trainer.train(data.train).steps == 1


def test_without_a_share_there_is_no_validation(text_file, model):
    data = prepare_data(Setup(dataset_path=text_file, val_split=0.0), model)
    assert data.validation is None
    assert data.report.unigram_loss is None
    assert data.report.num_validation_blocks == 0
    assert data.train.num_tokens > len(data.tokenizer(LINES)["input_ids"]) - 16


def test_the_same_setup_gives_the_same_blocks(text_file, model):
    setup = Setup(dataset_path=text_file)
    first, second = prepare_data(setup, model), prepare_data(setup, model)
    assert first.train.digest() == second.train.digest()
    assert first.validation.digest() == second.validation.digest()
    assert first.report == second.report


@pytest.mark.usefixtures("rng_untouched")
def test_the_global_random_state_is_left_alone(text_file, model):
    prepare_data(Setup(dataset_path=text_file), model)


def test_the_builtin_corpus_goes_through_the_real_setup():
    model = ModelRegistry.create("gpt-small", vocab_size=1024, max_seq_len=64, n_layer=1, n_embd=16, n_head=2)
    data = prepare_data(SetupConfig(max_length=64), model)
    report = data.report
    assert "Python language reference" in report.source
    assert "documents, drawn with seed 42" in report.split
    assert report.vocab_size == len(data.tokenizer) == 1024
    assert report.num_train_tokens > 5 * report.num_validation_tokens > 0  # the corpus differs between Pythons
    assert data.train.max_id() < 1024
    # Far below a uniform guess, and no model has seen anything yet.
    assert 4 < report.unigram_loss < math.log(1024)


def test_sizes_may_come_from_the_model_alone_or_from_the_setup_alone(text_file):
    plain = nn.Sequential(nn.Embedding(350, 4), nn.Linear(4, 350))
    assert prepare_data(Setup(dataset_path=text_file, vocab_size=None), plain).task_spec.vocab_size == 350
    data = prepare_data(Setup(dataset_path=text_file))
    assert data.task_spec.vocab_size == len(data.tokenizer) <= 400


# The report


def test_the_unigram_loss_is_that_of_smoothed_frequencies():
    train = np.array([[0, 0, 1, 2]], dtype=np.int32)
    validation = np.array([[3, 0, 3, 1]], dtype=np.int32)  # the first of a block is no target
    expected = -np.mean([math.log(3 / 8), math.log(1 / 8), math.log(2 / 8)])
    assert unigram_loss(train, validation, vocab_size=4) == pytest.approx(expected)


def test_a_tokenizer_with_gaps_in_its_ids_has_a_unigram_loss_too():
    ids = np.array([[0, 9, 9]], dtype=np.int32)
    expected = -math.log(3 / 13)
    assert unigram_loss(ids, ids, vocab_size=2) == pytest.approx(expected)
    assert math.isfinite(unigram_loss(ids[:, :1], ids, vocab_size=2))


def test_a_trained_unigram_model_reaches_the_reported_loss(text_file, model):
    data = prepare_data(Setup(dataset_path=text_file, tokenizer_strategy="character"), model)
    counts = torch.bincount(torch.from_numpy(data.train.blocks).flatten().long(), minlength=len(data.tokenizer)) + 1
    targets = data.validation.take(range(len(data.validation)))["labels"][:, 1:]
    logits = counts.double().log().expand(targets.numel(), -1)
    assert nn.functional.cross_entropy(logits, targets.flatten()).item() == pytest.approx(data.report.unigram_loss)


def test_the_report_is_readable_and_complete(text_file, model, capsys):
    report = prepare_data(Setup(dataset_path=text_file), model).report
    assert report.to_dict()["num_train_blocks"] == report.num_train_blocks
    text = str(report)
    for part in (
        text_file,
        "1 document,",
        f"{report.num_train_blocks:,} blocks of 16",
        f"{report.unigram_loss:.3f} nats",
    ):
        assert part in text
    report.show()
    assert capsys.readouterr().out == text + "\n"


def test_what_happened_to_the_file_is_noted(tmp_path, model):
    path = tmp_path / "page.html"
    path.write_bytes(b"\xef\xbb\xbf" + LINES.replace("\n", "\n\n", 5).encode())
    notes = " ".join(prepare_data(Setup(dataset_path=str(path)), model).report.notes)
    assert "5 of 405 lines are blank" in notes
    assert "byte-order mark was removed" in notes
    assert ".html file was read as plain text" in notes


def test_documents_without_text_are_passed_over_and_counted():
    report = prepare_text(["", LINES, " \n"], vocab_size=400, block_size=8).report
    assert report.num_documents == 1
    assert "2 documents without text were skipped." in report.notes


# What cannot work


def test_f26_every_contradiction_of_setup_and_model_is_named_before_any_work(model):
    setup = Setup(dataset_path="not/read/yet.txt", vocab_size=401, max_length=33)
    with pytest.raises(ConfigError) as error:
        prepare_data(setup, model)
    message = str(error.value)
    assert {problem.field for problem in error.value.problems} == {"vocab_size", "max_length"}
    assert "got 401, but the model (GPT2LMHeadModel) takes 400 token ids" in message
    assert "got 33, but the model (GPT2LMHeadModel) takes at most 32 tokens" in message


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dataset_source": "hub"}, "dataset_source .*'hub'; must be one of builtin, local"),
        ({"dataset_source": "lokal"}, "did you mean 'local'"),
        ({"dataset_path": None}, "dataset_path .*is needed"),
        ({"max_length": 1}, "max_length .*at least 2"),
        ({"vocab_size": None}, "vocab_size .*is not set"),
    ],
)
def test_setups_that_cannot_be_are_refused(text_file, changes, message):
    setup = Setup(**{"dataset_path": text_file, **changes})
    with pytest.raises(ConfigError, match=message):
        prepare_data(setup, nn.Linear(2, 2))


def test_a_missing_file_is_a_missing_file(tmp_path, model):
    with pytest.raises(DataNotFoundError, match="no such file"):
        prepare_data(Setup(dataset_path=str(tmp_path / "none.txt")), model)


def test_too_little_text_says_how_much_there_is_and_what_works():
    text = "word " * 30 + "\n" + "end " * 5
    settings = {"vocab_size": 300, "tokenizer_strategy": "character"}
    with pytest.raises(
        DataError, match=r"the validation part has \d+ tokens, but one block takes max_length=64"
    ) as error:
        prepare_text([text], block_size=64, **settings)
    message = str(error.value)
    longest = int(message.split("What works: max_length=")[1].split()[0])
    # Each of the ways works, and the first is the longest that does.
    assert len(prepare_text([text], block_size=longest, **settings).validation) == 1
    with pytest.raises(DataError):
        prepare_text([text], block_size=longest + 1, **settings)
    assert "val_split=0 " in message
    assert prepare_text([text], block_size=64, val_split=0, **settings).validation is None


def test_a_text_too_short_for_anything_offers_only_what_works():
    with pytest.raises(DataError, match="training part has 6 tokens") as error:
        prepare_text(["short"], vocab_size=300, block_size=64, val_split=0, tokenizer_strategy="character")
    assert str(error.value).endswith("What works: max_length=6 (or less), or more text.")
    with pytest.raises(DataError, match="validation part has 0 tokens") as error:
        prepare_text(["x"], vocab_size=300, block_size=64, tokenizer_strategy="character")
    assert str(error.value).endswith("What works: more text.")


@pytest.mark.parametrize(
    ("documents", "error", "message"),
    [
        ("one text", DataTypeError, "give a list"),
        (["a", 3], DataTypeError, "document 1 is of type int"),
        (["", " \n"], DataError, "none of the 2 documents holds any text"),
        ([], DataError, "none of the 0 documents"),
        (["abc\ud800"], DataError, "document 0, character 3: .*lone surrogate"),
    ],
)
def test_documents_that_are_no_texts_are_refused(documents, error, message):
    with pytest.raises(error, match=message):
        prepare_text(documents, vocab_size=400, block_size=4)


def test_a_given_tokenizer_must_fit_the_model():
    tokenizer = build_character_tokenizer([LINES])
    with pytest.raises(ConfigError, match=rf"has {len(tokenizer)} tokens, but the model's vocabulary holds 100"):
        prepare_text([LINES], vocab_size=100, block_size=8, tokenizer=tokenizer)
    data = prepare_text([LINES], vocab_size=len(tokenizer), block_size=8, tokenizer=tokenizer)
    assert data.tokenizer is tokenizer


def test_an_id_that_the_model_does_not_have_is_located_in_its_block():
    # A vocabulary with a hole: fewer tokens than its largest id.
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE(vocab={"<unk>": 0, "a": 1, "b": 2, "c": 90}, merges=[], unk_token="<unk>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")
    with pytest.raises(DataError, match=r"training data holds the token id 90 \(block 1, position 2\).* ids 0 to 49"):
        prepare_text(["abababca"], vocab_size=50, block_size=4, val_split=0, tokenizer=tokenizer)


def test_importing_the_package_is_cheap_and_every_exported_name_is_there():
    code = (
        "import sys, utils.data, utils.tokenization, utils.models\n"
        "heavy = {'torch', 'transformers', 'tokenizers', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    for package in map(importlib.import_module, ("utils.data", "utils.tokenization", "utils.models")):
        for name in package.__all__:
            assert getattr(package, name) is not None, name
