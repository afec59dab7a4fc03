"""evaluate_generation: what a model writes for held-out examples, scored as the libraries score it."""

from __future__ import annotations

import json
import sys

import pytest
import torch
from transformers import T5Config, T5ForConditionalGeneration

from tests.kit.toys import golden_config, plain_lm, tiny_gpt, tiny_llama
from utils.adapters.batched_generation import write_after
from utils.adapters.generation import generate
from utils.data import prepare_conversations, prepare_examples
from utils.data.conversations import answer_statistics, read_conversations
from utils.errors import ConfigError, DataError, MissingPackageError, ModelError
from utils.tokenization import build_character_tokenizer
from utils.training import TaskSpec, Trainer, evaluate_generation

QUESTIONS = [{"question": f"What follows {'x' * (n % 5)} {n}?", "answer": f"It is {n + 1}."} for n in range(24)]
PAIRS = [{"source": f"say {'x' * (n % 5)} {n}", "target": f"{n} {n + 1}"} for n in range(24)]


@pytest.fixture(scope="module")
def chat():
    """A conversation model with random weights, and its tokenizer."""
    model = tiny_llama(vocab_size=300, length=96)
    data = prepare_conversations(QUESTIONS, model=model, max_length=64)
    return model, data.tokenizer


def small_t5():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = T5Config(
            vocab_size=120,
            d_model=16,
            d_kv=8,
            d_ff=16,
            num_layers=1,
            num_heads=2,
            decoder_start_token_id=0,
            pad_token_id=0,
        )
        return T5ForConditionalGeneration(config)


DECODERS = {"gpt": tiny_gpt, "llama": tiny_llama, "plain module": plain_lm, "encoder-decoder": small_t5}


@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize("kind", DECODERS)
def test_answers_do_not_depend_on_what_is_in_the_batch(kind, batch_size):
    model = DECODERS[kind]()
    prompts = [torch.randint(1, 30, (length,), generator=torch.Generator().manual_seed(length)).tolist()
               for length in (3, 5, 3, 8, 1, 5)]  # fmt: skip
    found = write_after(model, prompts, 5, end_id=7, vocab_size=30, batch_size=batch_size)
    for prompt, written in zip(prompts, found, strict=True):
        start = 1 if kind == "encoder-decoder" else len(prompt)
        alone = generate(model, torch.tensor([prompt]), 5, 0.0, eos_token_id=7, vocab_size=30)[0, start:].tolist()
        assert written.ended == (7 in alone)
        assert written.ids == (alone[: alone.index(7)] if 7 in alone else alone)


def test_the_scores_are_those_of_the_libraries(chat):
    from rouge_score.rouge_scorer import RougeScorer
    from sacrebleu.metrics import BLEU, CHRF

    report = evaluate_generation(chat[0], QUESTIONS, chat[1], max_new_tokens=12)
    written, expected = [one.written for one in report.examples], [one.expected for one in report.examples]
    assert expected == [record["answer"] for record in QUESTIONS]
    for name, metric in (("bleu", BLEU()), ("chrf", CHRF())):
        assert report.scores[name] == metric.corpus_score(written, [expected]).score
        assert str(metric.get_signature()) in report.signatures[name]
    scorer = RougeScorer(["rougeL"])
    rouge = [scorer.score(other, one)["rougeL"].fmeasure for one, other in zip(written, expected, strict=True)]
    assert report.scores["rouge_l"] == pytest.approx(sum(rouge) / len(rouge))
    assert [one.scores["rouge_l"] for one in report.examples] == rouge
    assert "bleu" not in report.examples[0].scores


def test_of_conversations_it_says_what_answer_statistics_says(chat):
    model, tokenizer = chat
    conversations = read_conversations(QUESTIONS).conversations[:6]
    expected = answer_statistics(model, tokenizer, conversations, max_new_tokens=12)
    for held_out in (conversations, QUESTIONS[:6]):
        report = evaluate_generation(model, held_out, tokenizer, max_new_tokens=12, metrics=["exact_match"])
        assert report.kind == "conversations"
        assert [(one.written, one.ended) for one in report.examples] == [(a.text, a.ended) for a in expected.answers]
        assert (report.ended_share, report.scores["exact_match"]) == (expected.ended_share, expected.exact_share)


def test_a_model_that_learned_its_answers_gets_full_marks():
    records = [{"prompt": f"say {word}", "completion": f"{word} it is, {word}!"} for word in ("one", "two")] * 4
    model = tiny_llama(vocab_size=300, length=64)
    data = prepare_conversations(records, model=model, val_split=0, max_length=64)
    config = golden_config(
        epochs=40, learning_rate=2e-2, early_stopping_patience=None, gradient_accumulation_steps=1, batch_size=8
    )
    results = Trainer(model, None, config, data.task_spec, tokenizer=data.tokenizer).train(data.train)
    report = evaluate_generation(results, records[:2], max_new_tokens=40)
    assert report.scores == pytest.approx({"exact_match": 1, "rouge_l": 1, "chrf": 100, "bleu": 100})
    assert report.ended_share == 1
    assert evaluate_generation(results, records[:2], max_new_tokens=2, metrics="exact_match").ended_share == 0


def test_an_encoder_decoder_writes_its_targets():
    spec = TaskSpec.seq2seq(vocab_size=120, max_seq_len=24)
    data = prepare_examples(PAIRS, spec)
    report = evaluate_generation(small_t5(), PAIRS, data.tokenizer, max_new_tokens=6, max_examples=5)
    assert report.kind == "seq2seq"
    assert [(one.prompt, one.expected) for one in report.examples] == [(r["source"], r["target"]) for r in PAIRS[:5]]


def test_without_a_template_a_prompt_is_continued_as_it_is():
    records = [{"prompt": "abc", "completion": "abc"}, {"prompt": "cab", "completion": "b"}]
    tokenizer = build_character_tokenizer(["abc"])
    model = tiny_gpt(vocab_size=len(tokenizer))
    report = evaluate_generation(model, records, tokenizer, max_new_tokens=4, metrics=["chrf"])
    assert report.kind == "completions"
    ids = generate(model, torch.tensor([tokenizer.encode("abc", add_special_tokens=False)]), 4, 0.0,
                   eos_token_id=tokenizer.eos_token_id, vocab_size=len(tokenizer))[0, 3:]  # fmt: skip
    assert report.examples[0].written == tokenizer.decode(ids, skip_special_tokens=True).strip()


def test_the_report_is_a_table_and_json(chat, tmp_path):
    report = evaluate_generation(chat[0], QUESTIONS[:3], chat[1], max_new_tokens=4)
    frame = report.to_frame()
    assert list(frame) == ["prompt", "expected", "written", "ended", "num_tokens", "exact_match", "rouge_l", "chrf"]
    assert len(frame) == len(report) == 3
    found = json.loads(report.save(tmp_path / "report.json").read_text(encoding="utf-8"))
    assert found["scores"] == report.scores
    assert found["examples"][2]["written"] == report.examples[2].written
    assert "ROUGE-L" in str(report)
    assert "version:" in str(report)


@pytest.mark.parametrize(("package", "metric"), [("rouge_score", "rouge_l"), ("sacrebleu", "bleu")])
def test_a_missing_package_is_reported_before_anything_is_generated(chat, monkeypatch, package, metric):
    for name in [name for name in sys.modules if name.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setattr("utils.training.evaluation.generation.write_after", lambda *_, **__: pytest.fail("generated"))
    with pytest.raises(MissingPackageError, match=r"\[eval\]"):
        evaluate_generation(chat[0], QUESTIONS, chat[1], metrics=[metric])


def test_what_does_not_fit_is_refused(chat):
    model, tokenizer = chat
    bare = build_character_tokenizer(["abc"])
    several = [{"messages": [{"role": role, "content": "a"} for role in ("user", "assistant") * 2]}]
    with pytest.raises(ConfigError, match="rouge_l"):
        evaluate_generation(model, QUESTIONS, tokenizer, metrics=["rouge"])
    with pytest.raises(ConfigError, match="max_new_tokens"):
        evaluate_generation(model, QUESTIONS, tokenizer, max_new_tokens=0)
    with pytest.raises(ConfigError, match="tokenizer"):
        evaluate_generation(tiny_gpt(), QUESTIONS)
    with pytest.raises(ModelError, match="str"):
        evaluate_generation("gpt2", QUESTIONS)
    with pytest.raises(ConfigError, match="chat template"):
        evaluate_generation(model, several, bare)
    with pytest.raises(DataError, match="row 1"):
        evaluate_generation(small_t5(), [PAIRS[0], {"source": "a", "target": None}], tokenizer)
