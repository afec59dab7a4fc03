"""GLUE: official files, official metrics, and a report against the majority baseline."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from tests.kit.limits import assert_limits
from tests.kit.toys import plain_lm, tiny_gpt
from utils.checks import evaluate_glue
from utils.checks.glue_data import TASKS, chosen_tasks, load_task
from utils.checks.glue_head import glue_model
from utils.checks.glue_metrics import accuracy, f1, matthews, pearson, spearman
from utils.errors import ConfigError, DataNotFoundError, HubError
from utils.tokenization.adaptive import choose_tokenizer

# ---- metrics ----


@pytest.mark.parametrize("seed", range(4))
def test_metrics_are_those_of_scikit_learn_and_scipy(seed):
    from scipy import stats
    from sklearn import metrics

    rng = np.random.default_rng(seed)
    true, predicted = rng.integers(0, 2, 40), rng.integers(0, 2, 40)
    assert accuracy(predicted, true) == pytest.approx(metrics.accuracy_score(true, predicted))
    assert f1(predicted, true) == pytest.approx(metrics.f1_score(true, predicted))
    assert matthews(predicted, true) == pytest.approx(metrics.matthews_corrcoef(true, predicted))
    numbers, others = rng.normal(size=30).round(1), rng.normal(size=30).round(1)  # rounded, so that some are equal
    assert pearson(numbers, others) == pytest.approx(stats.pearsonr(numbers, others).statistic)
    assert spearman(numbers, others) == pytest.approx(stats.spearmanr(numbers, others).statistic)


def test_metrics_of_constant_predictions():
    assert matthews([1, 1, 1], [0, 1, 1]) == 0.0
    assert f1([0, 0], [0, 0]) == 0.0
    assert math.isnan(pearson([2.0, 2.0, 2.0], [1.0, 2.0, 3.0]))
    assert math.isnan(spearman([2.0, 2.0, 2.0], [1.0, 2.0, 3.0]))


# ---- files in the official layout ----

GOOD, BAD = ["good fine nice", "fine nice day", "nice good fun"], ["bad awful poor", "poor bad film", "awful poor plot"]

HEADERS = {
    "SST-2": ["sentence", "label"],
    "MRPC": ["Quality", "#1 ID", "#2 ID", "#1 String", "#2 String"],
    "STS-B": ["index", "genre", "filename", "year", "old_index", "source1", "source2", "sentence1", "sentence2", "score"],
    "QQP": ["id", "qid1", "qid2", "question1", "question2", "is_duplicate"],
    "MNLI": [
        "index", "promptID", "pairID", "genre", "sentence1_binary_parse", "sentence2_binary_parse", "sentence1_parse",
        "sentence2_parse", "sentence1", "sentence2", "label1", "gold_label",
    ],
    "QNLI": ["index", "question", "sentence", "label"],
    "RTE": ["index", "sentence1", "sentence2", "label"],
    "WNLI": ["index", "sentence1", "sentence2", "label"],
}  # fmt: skip


def labels_of(name):
    return ["0.0", "2.5", "5.0"] if name == "STS-B" else list(TASKS[name].classes)


def row_of(name, number, label):
    """A row whose text gives its label away."""
    places = labels_of(name)
    words = [GOOD, BAD, ["so so", "neither nor", "maybe so"]][places.index(label)]
    texts = [words[number % 3], words[(number + 1) % 3]]
    if name == "CoLA":
        return ["gj04", label, "" if label == "1" else "*", texts[0]]
    task = TASKS[name]
    values = dict(zip(task.texts, texts, strict=False)) | {task.label: label}
    return [values.get(column, str(number)) for column in HEADERS[name]]


def write(folder, name, part, rows):
    path = folder / name / f"{part}.tsv"
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [*([HEADERS[name]] if name in HEADERS else []), *rows]
    path.write_bytes("".join("\t".join(line) + "\n" for line in lines).encode())
    return path


def write_task(folder, name, count=120):
    labels = labels_of(name)
    # Unequal classes, so that the majority is one of them.
    order = [labels[0] if number % 5 == 4 else labels[number % len(labels)] for number in range(count)]
    rows = [row_of(name, number, label) for number, label in enumerate(order)]
    write(folder, name, "train", rows)
    for part in TASKS[name].evaluation:
        write(folder, name, part, rows)


@pytest.mark.parametrize("name", TASKS)
def test_every_task_is_read_from_its_official_files(name, tmp_path):
    write_task(tmp_path, name)
    data = load_task(TASKS[name], tmp_path)
    assert len(data.train) == 120
    assert list(data.evaluation) == (["dev_matched", "dev_mismatched"] if name == "MNLI" else ["dev"])
    assert set(data.train[0]) == {"text", "label"} | ({"pair"} if len(TASKS[name].texts) == 2 else set())
    expected = row_of(name, 1, labels_of(name)[1])
    assert data.train[1]["label"] == (2.5 if name == "STS-B" else 1)
    assert data.train[1]["text"] in expected
    assert data.notes == []


def test_quotation_marks_and_foreign_line_ends_are_text(tmp_path):
    rows = [['"an open quote', "1"], ["a\u2028b \x85c\rd", "0"], ['"quoted"', "1"]]
    write(tmp_path, "SST-2", "train", rows)
    write(tmp_path, "SST-2", "dev", rows)
    data = load_task(TASKS["SST-2"], tmp_path)
    assert [record["text"] for record in data.train] == [row[0] for row in rows]


def test_bad_rows_are_named_and_counted(tmp_path):
    rows = [row_of("QQP", number, str(number % 2)) for number in range(6)]
    rows[2], rows[4] = rows[2][:4], [*rows[4][:4], "", "1"]
    write(tmp_path, "QQP", "train", rows)
    write(tmp_path, "QQP", "dev", rows[:2])
    data = load_task(TASKS["QQP"], tmp_path)
    assert len(data.train) == 4
    assert len(data.notes) == 1
    assert "2 of 6 rows" in data.notes[0]
    assert "lines 4, 6" in data.notes[0]


def test_pairs_without_agreement_are_left_out_of_mnli(tmp_path):
    rows = [row_of("MNLI", number, label) for number, label in enumerate(TASKS["MNLI"].classes)]
    rows[1][-1] = "-"
    for part in ("train", "dev_matched", "dev_mismatched"):
        write(tmp_path, "MNLI", part, rows)
    data = load_task(TASKS["MNLI"], tmp_path)
    assert [record["label"] for record in data.train] == [0, 2]


def test_a_missing_file_or_folder_is_named(tmp_path):
    with pytest.raises(DataNotFoundError, match="no folder CoLA"):
        load_task(TASKS["CoLA"], tmp_path)
    write(tmp_path, "RTE", "train", [row_of("RTE", 0, "entailment")])
    with pytest.raises(DataNotFoundError, match=r"dev\.tsv is missing"):
        load_task(TASKS["RTE"], tmp_path)


def test_tasks_are_found_in_either_spelling():
    assert [task.name for task in chosen_tasks(["sst2", "STS-B", "cola"])] == ["SST-2", "STS-B", "CoLA"]
    assert len(chosen_tasks(None)) == 9
    with pytest.raises(ConfigError, match="ANLI"):
        chosen_tasks(["ANLI"])


def test_the_hub_is_read_by_its_own_names(monkeypatch):
    asked = []

    splits = {
        "train": [{"premise": "a", "hypothesis": "b", "label": 0}, {"premise": "a", "hypothesis": "b", "label": -1}],
        "validation_matched": [{"premise": "c", "hypothesis": "d", "label": 2}],
        "validation_mismatched": [{"premise": "e", "hypothesis": "f", "label": 1}],
    }
    table = SimpleNamespace(splits=splits)
    monkeypatch.setattr("utils.data.text.hub.load_hub_table", lambda *names: asked.append(names) or table)
    data = load_task(TASKS["MNLI"], None)
    assert asked == [("nyu-mll/glue", "mnli")]
    assert data.train == [{"text": "a", "pair": "b", "label": 0}]
    assert data.evaluation["dev_mismatched"] == [{"text": "e", "pair": "f", "label": 1}]
    assert "1 rows without a label" in data.notes[0]


def test_an_unreachable_hub_says_what_else_works(monkeypatch):
    def fail(*names):
        raise HubError("The Hub cannot be reached.")

    monkeypatch.setattr("utils.data.text.hub.load_hub_table", fail)
    result = evaluate_glue(tiny_gpt(), tokenizer(), ["CoLA"])["GLUE CoLA"]
    assert result.verdict == "not run"
    assert "data_dir=" in result.remedy


# ---- fine-tuning ----


def tokenizer(size=60):
    return choose_tokenizer([" ".join(GOOD + BAD + ["so so neither nor maybe"])], size, "character").tokenizer


FAST = {"epochs": 5, "batch_size": 8, "learning_rate": 1e-2, "max_length": 32}


@pytest.mark.parametrize("name", TASKS)
def test_a_task_that_can_be_learned_beats_the_majority(name, tmp_path):
    write_task(tmp_path, name)
    model = plain_lm(60, dropout=0.0)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    report = evaluate_glue(model, tokenizer(), [name], tmp_path, **FAST)
    result = report[f"GLUE {name}"]
    assert result.verdict == "pass", result.summary
    if name != "WNLI":  # measured and not judged
        assert_limits(result)
    suffixes = ("_matched", "_mismatched") if name == "MNLI" else ("",)
    for metric in TASKS[name].metrics:
        for suffix in suffixes:
            assert result.measured[f"{metric}{suffix}"] > 0.9, result.summary
            assert result.measured["baseline"][f"{metric}{suffix}"] < 0.9
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


class Deaf(nn.Module):
    """Gives every text the same scores."""

    def __init__(self, outputs):
        super().__init__()
        self.vocab_size, self.max_seq_len = 60, 32
        self.embedding = nn.Embedding(60, 4)
        self.scores = nn.Parameter(torch.zeros(outputs))

    def forward(self, input_ids):
        return self.scores + 0 * self.embedding(input_ids).mean((1, 2))[:, None]


@pytest.mark.parametrize("name", ["CoLA", "SST-2", "STS-B", "MNLI"])
def test_a_model_that_ignores_the_text_does_not_beat_the_majority(name, tmp_path):
    write_task(tmp_path, name)
    result = evaluate_glue(Deaf, tokenizer(), [name], tmp_path, **{**FAST, "epochs": 1})[f"GLUE {name}"]
    assert result.verdict == "warn"
    assert result.remedy


def test_wnli_is_measured_and_not_judged(tmp_path):
    write_task(tmp_path, "WNLI")
    result = evaluate_glue(Deaf, tokenizer(), ["WNLI"], tmp_path, **{**FAST, "epochs": 1})["GLUE WNLI"]
    assert result.verdict == "pass"
    assert "accuracy" in result.measured
    assert result.limits == (), "a report would mark a value that passes as outside of its limit"


def test_a_transformers_model_keeps_its_body_and_gets_a_head_of_the_tasks_size():
    model = tiny_gpt(60)
    made = glue_model(model, 3, tokenizer())
    assert type(made).__name__ == "GPT2ForSequenceClassification"
    assert made.config.num_labels == 3
    assert torch.equal(made.transformer.wte.weight, model.transformer.wte.weight)
    assert made.config.pad_token_id == tokenizer().pad_token_id


def test_a_tasks_missing_files_leave_the_others(tmp_path):
    write_task(tmp_path, "RTE")
    report = evaluate_glue(Deaf, tokenizer(), ["CoLA", "RTE"], tmp_path, **{**FAST, "epochs": 1})
    assert report["GLUE CoLA"].verdict == "not run"
    assert "no folder CoLA" in report["GLUE CoLA"].summary
    assert report["GLUE RTE"].verdict != "not run"
