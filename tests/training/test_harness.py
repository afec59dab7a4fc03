"""evaluate_harness: the harness's own interface on a local task, with nothing downloaded."""

from __future__ import annotations

import json
import sys
import textwrap

import pytest
import torch
from torch import nn

from tests.kit.toys import plain_lm, tiny_gpt
from utils.errors import ConfigError, DataNotFoundError, MissingPackageError, ModelError
from utils.tokenization import build_character_tokenizer
from utils.training import evaluate_harness

TOKENIZER = build_character_tokenizer(["0123456789 plus is one two"], 60)


@pytest.fixture(scope="module")
def task_folder(tmp_path_factory):
    """Six questions; the right answer is always the first one."""
    folder = tmp_path_factory.mktemp("tasks")
    rows = [{"question": f"{n} plus 1 is", "choices": [" one", " two"], "gold": 0} for n in range(6)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = f"""\
        task: always_one
        dataset_path: json
        dataset_kwargs: {{data_files: {{test: {folder / "rows.jsonl"}}}}}
        test_split: test
        output_type: multiple_choice
        doc_to_text: "{{{{question}}}}"
        doc_to_choice: "{{{{choices}}}}"
        doc_to_target: gold
        metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
        metadata: {{version: 3.0}}
        """
    (folder / "always_one.yaml").write_text(textwrap.dedent(task))
    return folder


def favouring(letter):
    """A model to which one letter is always the likeliest."""
    model = tiny_gpt(vocab_size=60)
    model.lm_head = nn.Linear(model.config.n_embd, 60)
    with torch.no_grad():
        model.lm_head.weight.zero_()
        model.lm_head.bias.zero_()
        model.lm_head.bias[TOKENIZER.convert_tokens_to_ids(letter)] = 9.0
    return model


@pytest.fixture(scope="module")
def harness():
    pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install -e '.[eval]'")


def test_a_local_task_is_scored(harness, task_folder, tmp_path):
    model, other = favouring("n").train(), favouring("w")
    state = torch.get_rng_state()
    report = evaluate_harness(model, ["always_one"], TOKENIZER, task_folder=task_folder, limit=4)
    assert report.score("always_one", "acc") == 1.0  # "one" holds the favoured letter
    (score,) = report.scores
    assert (score.num_examples, score.num_fewshot, score.version, score.higher_is_better) == (4, 0, "3.0", True)
    assert evaluate_harness(other, "always_one", TOKENIZER, task_folder=task_folder).score("always_one", "acc") == 0.0
    assert model.training
    assert torch.equal(state, torch.get_rng_state())
    assert "always_one: acc" in str(report)
    assert json.loads(report.save(tmp_path / "scores.json").read_text())["scores"][0]["value"] == 1.0
    with pytest.raises(ConfigError, match="there are always_one: acc"):
        report.score("always_one", "f1")


def test_an_exported_folder_is_scored_like_its_model(harness, task_folder, tmp_path):
    folder = tmp_path / "export"
    favouring_model = favouring("n")
    favouring_model.tie_weights = lambda *arguments, **options: None  # its head is its own
    favouring_model.config.tie_word_embeddings = False
    favouring_model.save_pretrained(folder)
    TOKENIZER.save_pretrained(folder)
    assert evaluate_harness(folder, ["always_one"], task_folder=task_folder, limit=2).score("always_one", "acc") == 1.0


def test_unknown_tasks_name_the_nearest(harness, task_folder):
    with pytest.raises(ConfigError, match="did you mean 'always_one'"):
        evaluate_harness(tiny_gpt(vocab_size=60), ["always_on"], TOKENIZER, task_folder=task_folder)


def test_what_cannot_be_evaluated_is_refused(tmp_path):
    with pytest.raises(ModelError, match="transformers library"):
        evaluate_harness(plain_lm(), ["x"], TOKENIZER)
    with pytest.raises(ConfigError, match="limit"):
        evaluate_harness(tiny_gpt(), ["x"], TOKENIZER, limit=0)
    with pytest.raises(ConfigError, match="name at least one"):
        evaluate_harness(tiny_gpt(), [], TOKENIZER)
    with pytest.raises(DataNotFoundError, match="config.json"):
        evaluate_harness(tmp_path, ["x"])
    with pytest.raises(DataNotFoundError, match="task files"):
        evaluate_harness(tiny_gpt(), ["x"], TOKENIZER, task_folder=tmp_path / "none")


def test_the_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(MissingPackageError, match=r"lm-eval is not installed.*\[eval\]"):
        evaluate_harness(tiny_gpt(), ["x"], TOKENIZER)
