"""The comparison of packings: documents, scores in two ways, losses after the same number of targets, and both tables."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from benchmarks.packing import RATE, TOY, Curve, _Steps, documents_of, losses_of, main, scored_on
from benchmarks.rivals import AHEAD, CONTENDERS, REFERENCE
from benchmarks.time_to_loss import prepare
from utils.data import prepare_text

TEXT = " = One = \n\n First words . \n = = Part = = \n\n More words . \n = Two = \n\n Other words . \n"


def test_documents_are_paragraphs_or_articles():
    assert documents_of(TEXT, "paragraphs") == ["First words .", "More words .", "Other words ."]
    assert [part.split("\n")[0] for part in documents_of(TEXT, "articles")] == [" = One = ", " = Two = "]


def test_documents_alone_are_scored_without_padding():
    texts = [f"{number} comes before {number + 1}." for number in range(60)]
    tokenizer = prepare_text(texts, vocab_size=TOY.vocab, block_size=TOY.length).tokenizer
    together, alone = scored_on(texts[:5], tokenizer, TOY.length, 8)
    model, total, count = TOY.model(0), 0.0, 0
    with torch.no_grad():
        for text in texts[:5]:
            ids = torch.tensor([[*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]])
            total += float(F.cross_entropy(model(input_ids=ids).logits[0, :-1], ids[0, 1:], reduction="sum"))
            count += ids.shape[1] - 1
    assert alone.loss(model) == pytest.approx(total / count, rel=1e-5)
    assert int((together.labels == -100).sum()) == 0


def test_losses_are_compared_after_the_same_number_of_targets():
    assert Curve([100, 200], [(4.0, 6.0), (3.0, 4.0)]).at(150, 1) == 5.0


def test_the_last_position_is_scored_on_the_next_blocks_first_token():
    race = prepare(None, TOY, 4)
    model = race.sizes.model(0).eval()
    ids = torch.from_numpy(race.validation.reshape(-1).astype("int64"))
    with torch.no_grad():
        logits = model(input_ids=ids[: 3 * TOY.length].view(3, -1)).logits[:, -1]
    expected = float(F.cross_entropy(logits, ids[TOY.length : 3 * TOY.length + 1 : TOY.length]))
    assert losses_of(model, race)[1] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", [REFERENCE, AHEAD])
def test_a_loop_does_the_steps_that_it_is_given(name):
    race = prepare(None, TOY, 4)
    losses = {}
    for steps in (1, 40):
        model = race.sizes.model(0)
        CONTENDERS[name].run(race, model, RATE, 0, steps, _Steps(steps))
        losses[steps] = losses_of(model, race)[0]
    assert losses[40] < losses[1] - 0.1


def test_a_quick_run_makes_the_table(capsys):
    assert main(["--quick", "--ahead"]) == 0
    assert "| T - 1 " in capsys.readouterr().out
