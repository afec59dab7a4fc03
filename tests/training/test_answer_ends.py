"""After a training on conversations, how many sampled answers end by themselves is reported without being asked for."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import nn

from utils.data import prepare_conversations, prepare_text
from utils.models import ModelRegistry
from utils.training import Trainer, TrainingConfig
from utils.training.evaluation.answer_ends import MOST_ANSWERS, answer_ends
from utils.training.export.model_card import ModelCardGenerator

CHATS = [
    {"messages": [{"role": "user", "content": f"Say {n % 7}."}, {"role": "assistant", "content": f"{n % 7}"},
                  {"role": "user", "content": "Sure?"}, {"role": "assistant", "content": "Yes."}]}
    for n in range(60)
]  # fmt: skip


class Always(nn.Module):
    """A model that always writes the same token, and keeps the lengths of what it was given."""

    def __init__(self, token: int) -> None:
        super().__init__()
        self.token, self.seen = token, []
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, input_ids):
        self.seen.append(input_ids.clone())
        logits = torch.zeros(*input_ids.shape, 400)
        logits[..., self.token] = 1.0
        return logits + self.weight


def small_model():
    torch.manual_seed(0)
    return ModelRegistry.create("gpt-small", vocab_size=400, max_seq_len=64, n_layer=1, n_embd=8, n_head=1)


@pytest.fixture(scope="module")
def data():
    return prepare_conversations(CHATS, model=small_model(), vocab_size=400, max_length=64, val_split=0.4)


@pytest.fixture(scope="module")
def results(data, tmp_path_factory):
    config = TrainingConfig(output_dir=str(tmp_path_factory.mktemp("runs")), run_name="chat", max_steps=2, batch_size=4)
    return Trainer(small_model(), None, config, data.task_spec, tokenizer=data.tokenizer).train(data.train, data.validation)


@pytest.mark.parametrize("packed", [False, True])
def test_prompts_end_where_the_last_answer_begins_and_an_end_token_ends_it(data, packed):
    held_out = data.validation if packed else prepare_conversations(
        CHATS, data.tokenizer, max_length=64, val_split=0.4, pack=False
    ).validation  # fmt: skip
    (end_id,) = held_out.end_ids
    model = Always(end_id)
    found = answer_ends(model, held_out, data.tokenizer, seed=1)
    assert (found.ended, found.share) == (found.count, 1.0)
    assert found.count == min(MOST_ANSWERS, len(held_out))
    assert found.num_tokens == found.count
    for text in (data.tokenizer.decode(ids) for batch in model.seen if batch.shape[1] > 1 for ids in batch):
        assert text.count("Sure?") == 1
        assert "Yes." not in text
    never = answer_ends(Always(int(data.tokenizer.encode("a")[0])), held_out, data.tokenizer, seed=1)
    assert never.ended == 0
    assert never.num_tokens == never.count * never.max_new_tokens
    assert never.max_new_tokens <= 2 * len(data.tokenizer.encode("Yes.")) + 6  # bounded by the expected answers


def test_a_training_reports_it_in_results_notices_and_model_card(results):
    found = results.answer_ends
    assert found is not None
    assert found.step == 2
    assert any("sampled validation answers end by themselves" in notice for notice in results.notices)
    assert list(results.summary().values()).count(str(found)) == 1
    assert not any(row.startswith(str(found)) for name, row in results.summary().items() if name != "answers")
    card = ModelCardGenerator().generate("chat", results.model, results)
    assert "answers/ended\\_share" in card or "answers/ended_share" in card


def test_the_rest_of_the_run_is_what_it_was(data, results, tmp_path):
    config = results.training_config.replace(output_dir=str(tmp_path))
    other = Trainer(small_model(), None, config, data.task_spec, tokenizer=data.tokenizer).train(data.train, data.validation)
    assert [row["val/loss"] for row in other.evaluate_rows] == [row["val/loss"] for row in results.evaluate_rows]
    again = Trainer(small_model(), None, config, data.task_spec, tokenizer=data.tokenizer).train(
        data.train, data.validation, resume_from="auto"
    )
    assert again.answer_ends == other.answer_ends  # of a finished run the stored ones
    assert (other.answer_ends.count, other.answer_ends.ended) == (results.answer_ends.count, results.answer_ends.ended)


def test_what_cannot_be_measured_fails_no_training(data, tmp_path, caplog):
    caplog.set_level(logging.INFO)

    class Fails(Always):
        def forward(self, input_ids):
            if not self.training and input_ids.shape[1] < 64:
                raise RuntimeError("no generation here")
            return super().forward(input_ids)

    config = TrainingConfig(output_dir=str(tmp_path), max_steps=1, batch_size=4)
    held_out = data.validation
    results = Trainer(Fails(5), None, config, data.task_spec, tokenizer=data.tokenizer).train(data.train, held_out)
    assert results.answer_ends is None
    assert any("not measured: RuntimeError: no generation here" in notice for notice in results.notices)


def test_text_has_no_answers(data):
    text = prepare_text(["some text " * 200], vocab_size=400, block_size=16, tokenizer=data.tokenizer)
    assert answer_ends(small_model(), text.validation, data.tokenizer, seed=0) is None
    every = prepare_conversations(CHATS, data.tokenizer, max_length=64, train_on="all", val_split=0.2)
    assert answer_ends(small_model(), every.validation, data.tokenizer, seed=0) is None
    assert answer_ends(small_model(), None, data.tokenizer, seed=0) is None
