"""Mixtures: every dataset gets its share, the order follows from the seed, each has a validation loss, resume is exact."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from tests.kit.toys import assert_same_run
from utils.data import MixedExamples, mix, prepare_conversations, prepare_data, prepare_examples, prepare_text
from utils.data.batch import IGNORED
from utils.data.mixture import num_targets
from utils.data.packing import TokenBlocks
from utils.errors import ConfigError, DataError, DataTypeError
from utils.models import ModelRegistry
from utils.tokenization import build_character_tokenizer
from utils.training import Callback, Trainer, TrainingConfig, train_model
from utils.training.config_files import read_config_file
from utils.ui.setup_config import SetupConfig

LINES = "".join(f"Line {number} of a text about the number {number * number}.\n" for number in range(120))
CHATS = [
    {"messages": [{"role": "user", "content": f"{n}?"}, {"role": "assistant", "content": f"{n + 1}."}]} for n in range(40)
]


def small_model():
    torch.manual_seed(0)
    return ModelRegistry.create("gpt-small", vocab_size=128, max_seq_len=48, n_layer=1, n_embd=8, n_head=1)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mixture")
    (folder / "web.txt").write_text(LINES)
    (folder / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in CHATS))
    return folder


def setup_of(files, **changes):
    sources = [{"path": str(files / "web.txt"), "weight": 1}, {"path": str(files / "chats.jsonl"), "weight": 3, "name": "chat"}]
    settings = {"mixture": sources, "max_length": 48, "tokenizer_strategy": "character", "batch_size": 8, "max_steps": 6,
                "eval_every": 3, "learning_rate": 1e-2, **changes}  # fmt: skip
    return SetupConfig(**settings)


@pytest.fixture(scope="module")
def data(files):
    return prepare_data(setup_of(files), small_model())


@pytest.fixture(scope="module")
def trained(data, files, tmp_path_factory):
    return train(data, files, output_dir=str(tmp_path_factory.mktemp("runs")), run_name="unbroken")


def train(data, files, *, stop_at=None, resume_from=None, **changes):
    class Stop(Callback):
        def on_step_end(self, step, trainer, logs=None):
            if step == stop_at:
                trainer.request_stop("test")

    setup = setup_of(files, **changes)
    trainer = Trainer(small_model(), None, setup.training_config, data.task_spec, tokenizer=data.tokenizer, callbacks=[Stop()])
    return trainer.train(data.train, data.validation, resume_from=resume_from)


def blocks(count, first=0):
    return TokenBlocks(np.arange(first, first + count * 4, dtype=np.int32).reshape(count, 4))


# The order


def test_an_epoch_holds_each_share_and_every_row_comes_once_before_any_comes_twice():
    mixed = MixedExamples({"a": blocks(30), "b": blocks(10)}, [1, 3])
    seen = [mixed.order(5, epoch, 40) for epoch in range(3)]
    for rows in seen:
        assert (rows < 30).sum() == 10  # a quarter is of a, though it has three quarters of the rows
        assert np.bincount(rows[rows >= 30] - 30).tolist() == [3] * 10  # b is repeated, each row as often
    assert sorted(np.concatenate(seen)[np.concatenate(seen) < 30]) == list(range(30))  # a is complete after three epochs
    assert np.array_equal(seen[1], mixed.order(5, 1, 40))
    assert not np.array_equal(seen[1], mixed.order(6, 1, 40))
    assert not np.array_equal(seen[0], seen[1])
    assert mixed.quotas(7) == [2, 5]  # of an epoch that max_train_samples makes shorter


def test_a_share_too_small_for_one_example_is_refused_by_name():
    with pytest.raises(ConfigError, match="'b' with its share"):
        MixedExamples({"a": blocks(30), "b": blocks(10)}, [1000, 1])


def test_digests_differ_by_share_and_content():
    parts = {"a": blocks(4), "b": blocks(4, 20)}
    kept = MixedExamples(parts, [1, 1]).digest()
    assert kept == MixedExamples(parts, [2, 2]).digest()
    assert kept != MixedExamples(parts, [1, 2]).digest()
    assert kept != MixedExamples({**parts, "b": blocks(4)}, [1, 1]).digest()


# From a setup


def test_the_report_says_each_share_and_repetition(data):
    web, chat = data.report.sources
    assert (web.name, chat.name) == ("web", "chat")
    assert chat.share_of_examples == pytest.approx(0.75, abs=0.01)
    assert web.share_of_examples + chat.share_of_examples == pytest.approx(1)
    assert chat.repetitions == pytest.approx(chat.examples_per_epoch / chat.num_examples)
    assert chat.repetitions > 1 > web.repetitions
    assert chat.share_of_targets < chat.share_of_tokens  # only answers are targets
    assert "repeated" in str(data.report)
    assert "from all datasets together" in data.report.tokenizer
    batch = data.train.take([0, len(data.train) - 1])
    assert set(batch) == {"input_ids", "labels", "position_ids"}
    assert batch["position_ids"][0].tolist() == list(range(48))


def test_weights_by_tokens_and_temperature(files):
    by_tokens = prepare_data(setup_of(files, mixture_by="tokens"), small_model()).report.sources
    assert by_tokens[1].share_of_tokens == pytest.approx(0.75, abs=0.03)
    flat = prepare_data(setup_of(files, mixture_temperature=1000.0), small_model()).report.sources
    assert flat[0].share_of_examples == pytest.approx(0.5, abs=0.02)
    unweighted = mix({"a": text_data(LINES), "b": text_data(LINES[:1500])})
    first, second = unweighted.report.sources
    assert (first.repetitions, second.repetitions) == (1, 1)  # without weights every example comes once


TOKENIZER = build_character_tokenizer([LINES], 128)


def text_data(text):
    return prepare_text([text], vocab_size=128, block_size=16, tokenizer=TOKENIZER)


def test_targets_are_counted_as_the_loss_counts_them(data):
    for part in data.train.parts.values():
        labels = torch.stack([part[index]["labels"] for index in range(len(part))])
        assert num_targets(part) == int((labels[:, 1:] != IGNORED).sum())


# Training


def test_each_dataset_has_a_validation_loss_and_all_together_weigh_targets_the_same(trained, data):
    metrics = trained.final_metrics
    own = {name: metrics[f"val/loss/{name}"] for name in ("web", "chat")}
    counts = {name: num_targets(part) for name, part in data.validation.parts.items()}
    mean = sum(own[name] * counts[name] for name in own) / sum(counts.values())
    assert metrics["val/loss"] == pytest.approx(mean, rel=1e-6)
    assert own["web"] != own["chat"]
    assert metrics["val/bits_per_byte"] > 0
    assert "val/loss/chat" in trained.metrics_summary
    assert "loss of chat" in trained.summary()


@pytest.mark.parametrize("step", [2, 3, 5])
def test_a_mixture_that_was_stopped_is_continued_bit_for_bit(trained, data, files, tmp_path, step):
    place = {"output_dir": str(tmp_path), "run_name": "stopped"}
    assert train(data, files, stop_at=step, **place).steps == step
    assert_same_run(trained, train(data, files, resume_from="auto", **place))


def test_the_loss_of_one_dataset_can_be_monitored(data, files, tmp_path):
    results = train(data, files, output_dir=str(tmp_path), monitor="val/loss/chat", max_train_samples=16, max_steps=2, max_val_samples=3)
    assert results.best_value == min(row["val/loss/chat"] for row in results.evaluate_rows)
    with pytest.raises(ConfigError, match="did you mean val/loss/chat"):
        train(data, files, output_dir=str(tmp_path), monitor="val/loss/chats")


def test_one_call_trains_on_a_mixture_and_the_run_records_it(files, tmp_path):
    setup = setup_of(files, max_steps=1, output_dir=str(tmp_path), run_name="one")
    found = train_model(small_model(), **setup.to_dict())
    assert {"val/loss/web", "val/loss/chat"} <= set(found["final_metrics"])
    recorded = json.loads((tmp_path / "one" / "data.json").read_text())["arguments"]
    assert [source["name"] or source["dataset_path"].rpartition("/")[2] for source in recorded["mixture"]] == ["web.txt", "chat"]
    data = prepare_data(setup, small_model())
    config = TrainingConfig(output_dir=str(tmp_path), run_name="two", max_steps=1, batch_size=4)
    Trainer(small_model(), None, config, data.task_spec, tokenizer=data.tokenizer).train(data.train)
    kept = read_config_file(tmp_path / "two" / "config.yaml")["setup"]
    assert SetupConfig(**{name: value for name, value in kept.items() if name != "random_seed"}).mixture == setup.mixture


# What cannot be mixed


@pytest.mark.parametrize(("changes", "message"), [
    ({"mixture": [{"path": "a.txt"}]}, "at least two"),
    ({"mixture": [{"path": "a.txt"}, {"path": "b/a.txt"}]}, "'a' names several"),
    ({"mixture": [{"path": "a.txt", "weight": 1}, {"path": "b.txt"}]}, "b has no weight"),
    ({"mixture": [{"path": "a.txt", "weight": 0}, {"path": "b.txt", "weight": 1}]}, "weight"),
    ({"mixture": [{"pth": "a.txt"}, {"path": "b.txt"}]}, "did you mean path"),
    ({"task": "text_classification"}, "only text and conversations can be mixed"),
    ({"dataset_path": "a.txt"}, "dataset_path"),
])  # fmt: skip
def test_a_mixture_that_cannot_be_is_refused_before_anything_is_read(files, changes, message):
    with pytest.raises(ConfigError, match=message):
        setup_of(files, **changes)


def test_a_mixture_of_nothing_is_refused_by_one_call():
    with pytest.raises(ConfigError, match="mixture  got no dataset; give at least two, or leave it out"):
        train_model(small_model(), mixture=[], max_steps=1)


def test_naming_one_dataset_ends_the_mixture(files):
    setup = setup_of(files)
    setup.update(dataset_path="other.txt")
    assert setup.mixture == ()
    setup.update(mixture=setup_of(files).mixture)
    assert setup.dataset_path is None
    assert SetupConfig(**setup.differences()) == setup


def test_other_tasks_and_other_tokenizers_are_refused_by_name():
    text = text_data(LINES)
    rows = [{"text": line, "label": str(number % 2)} for number, line in enumerate(LINES.splitlines())]
    classes = prepare_examples(rows, "text_classification", max_length=16)
    with pytest.raises(DataError, match="'labels' is for text_classification"):
        mix({"text": text, "labels": classes})
    other = prepare_conversations(CHATS, max_length=48)
    with pytest.raises(DataError, match="different tokenizers"):
        mix({"text": text, "chat": other})
    with pytest.raises(ConfigError, match="val/loss/<name>"):
        mix({"a/b": text, "c": text})


def test_an_unreadable_dataset_is_named(files):
    sources = [{"path": str(files / "web.txt")}, {"path": str(files / "chats.jsonl"), "conversation_layout": "sharegpt", "name": "odd"}]
    with pytest.raises((DataError, ConfigError), match="dataset 'odd'"):
        prepare_data(setup_of(files, mixture=sources), small_model())


def test_a_loader_around_a_mixture_is_refused(data):
    with pytest.raises(DataTypeError, match="would not keep its shares"):
        Trainer(small_model(), None, TrainingConfig(), data.task_spec).train(DataLoader(data.train, batch_size=4))
