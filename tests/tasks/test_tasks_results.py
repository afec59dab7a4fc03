"""What a run's results show of a task that is not language modelling: its score and its baseline, and nothing of tokens."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from types import SimpleNamespace

import pytest
import torch

from tests.kit.toys import golden_config
from utils.training import TaskSpec, Trainer
from utils.training.samples import SamplePredictions, as_prompt_and_text, read_samples
from utils.ui import show_samples
from utils.ui.live_picture import live_picture
from utils.ui.run_on_disk import run_on_disk

CLASSES = [0] * 12 + [1] * 6 + [2] * 6


class Head(torch.nn.Module):
    def __init__(self, outputs):
        super().__init__()
        self.linear, self.outputs = torch.nn.Linear(4, outputs), outputs

    def forward(self, values):
        outputs = self.linear(values)
        return outputs[:, 0] if self.outputs == 1 else outputs


def classified(labels=CLASSES, **changes):
    generator = torch.Generator().manual_seed(0)
    samples = [
        {"values": torch.randn(4, generator=generator) + torch.eye(4)[label], "labels": torch.tensor(label)}
        for label in labels
    ]
    return results_of(Head(3), samples, "text_classification", **changes)


def estimated():
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(24, 4, generator=generator)
    samples = [{"values": row, "labels": 3 * row[0]} for row in values]
    return results_of(Head(1), samples, "regression"), (3 * values[:, 0]).var(correction=0).item()


def results_of(model, samples, task, callbacks=(), multi_label=False, **changes):
    torch.manual_seed(0)
    settings = {"epochs": 3, "learning_rate": 1e-2, "run_name": task, "early_stopping_patience": None, **changes}
    trainer = Trainer(
        model, training_config=golden_config(**settings),
        task_spec=TaskSpec("mine", task_type=task, multi_label=multi_label),
        data_collator=torch.utils.data.default_collate, callbacks=callbacks,
    )  # fmt: skip
    return trainer.train(samples, samples)


@pytest.fixture
def shown(monkeypatch):
    """(markup, text) of everything that was shown."""
    pages = []
    monkeypatch.setattr("utils.views.display.show_html", lambda markup, plain: pages.append((str(markup), plain)))
    return pages


def tiles(markup):
    """name -> number and its note."""
    found = re.findall(r'tb-kpi"><span>(.*?)</span><b[^>]*>(.*?)</b>(?:<small[^>]*>(.*?)</small>)?', markup)
    return {name: (number, note) for name, number, note in found}


def test_a_classifier_shows_its_accuracy_beside_the_loss_with_the_best_one_and_the_most_frequent_class(shown):
    results = classified()
    results.show(baseline=None)
    ((markup, plain),) = shown
    accuracies = [row["val/accuracy"] for row in results.evaluate_rows]
    most = max(Counter(CLASSES).values()) / len(CLASSES)
    number, note = tiles(markup)["validation accuracy"]
    assert list(tiles(markup)).index("validation accuracy") == list(tiles(markup)).index("validation loss") + 1
    assert number == f"{accuracies[-1]:.1%}"
    assert note == f"best {max(accuracies):.1%}, most frequent class {most:.1%}"
    for word in ("unigram", "perplexity", "\N{EN DASH}</b>"):
        assert word not in markup
        assert word not in plain


def test_a_classifiers_loss_is_compared_with_the_entropy_of_its_classes(shown):
    results = classified()
    results.show()
    entropy = -sum(n / len(CLASSES) * math.log(n / len(CLASSES)) for n in Counter(CLASSES).values())
    side = "below" if results.val_loss_history[-1] <= entropy else "above"
    number, note = tiles(shown[0][0])[f"{side} class frequencies by"]
    assert float(number) == pytest.approx(abs(entropy - results.val_loss_history[-1]), abs=1e-3)
    assert note == f"class frequencies {entropy:.4f}"
    live, reason = run_on_disk(results.run_dir)
    assert live_picture(live, (), reason).baselines == {"class frequencies": pytest.approx(entropy)}


def test_a_smoothed_loss_is_compared_with_no_entropy(shown):
    classified(label_smoothing=0.1).show()
    assert not any(name.startswith(("below", "above")) for name in tiles(shown[0][0]))
    assert "most frequent class 50.0%" in tiles(shown[0][0])["validation accuracy"][1]


def test_a_regression_shows_r2_and_is_compared_with_the_mean(shown):
    results, variance = estimated()
    results.show()
    values = [row["val/r2"] for row in results.evaluate_rows]
    found = tiles(shown[0][0])
    assert found["validation R²"] == (f"{values[-1]:.3f}", f"best {max(values):.3f}")
    (name,) = (name for name in found if "mean target" in name)
    assert found[name][1] == f"mean target {variance:.4f}"


def test_a_baseline_of_ones_own_is_no_unigram_model_where_there_are_no_tokens(shown):
    classified().show(baseline=5.0)
    assert "below baseline by" in tiles(shown[0][0])
    assert "unigram" not in shown[0][0]


SORTED = [0] * 90 + [1] * 6 + [2] * 4


@pytest.mark.parametrize(
    ("labels", "count", "classes"),
    [
        (SORTED, 3, ["0", "1", "2"]),
        (SORTED, 2, ["0", "1"]),
        ([0] * 8 + [1], 3, ["0", "0", "1"]),
        ([0, 1, 2] * 4, 3, ["0", "1", "2"]),
        ([2] * 5, 3, ["2"] * 3),
        ([1, 2], 3, ["1", "2"]),
    ],
)
def test_the_samples_of_a_classifier_are_of_several_classes_and_always_the_same(labels, count, classes):
    run_dirs = [classified(labels, callbacks=[SamplePredictions(count=count)], run_name=name).run_dir for name in "ab"]
    first, second = (
        [[(s["input"], s["true"]) for s in row["samples"]] for row in read_samples(folder)] for folder in run_dirs
    )
    assert first == second
    assert all(row == first[0] for row in first)
    assert [true for _, true in first[0]] == classes


def test_the_samples_of_several_classes_each_differ_in_their_classes():
    vectors = [[1.0, 0.0, 0.0]] * 40 + [[0.0, 1.0, 1.0]] * 3
    samples = [{"values": torch.randn(4), "labels": torch.tensor(vector)} for vector in vectors]
    results = results_of(Head(3), samples, "text_classification", [SamplePredictions(count=2)], multi_label=True)
    assert {sample["true"] for sample in read_samples(results.run_dir)[-1]["samples"]} == {"0", "1, 2"}


@pytest.mark.parametrize(
    ("losses", "percent"),
    [((3.0, 2.0, 1.0), 50), ((3.0, 1.0, 0.99), None), ((3.0, 1.0, 1.2), None), ((3.0, 0.02, 0.01), None), ((3.0, 1.0), None)],
    ids=["falls", "settled", "rises", "near zero", "too few"],
)
def test_a_loss_that_fell_steeply_to_the_end_asks_for_more_epochs(losses, percent, monkeypatch):
    results = classified()
    monkeypatch.setattr(type(results), "evaluate_rows", property(lambda self: [{"val/loss": value} for value in losses]))
    said = " ".join(results.summary().values())
    assert ("The validation loss still fell" in said) == (percent is not None)
    if percent:
        assert f"still fell by {percent}%" in said
        results.state.stop_reason = "stop_button"
        assert "still fell" not in " ".join(results.summary().values()), "a run that was stopped has no planned end"


def test_answers_of_a_chat_are_shown_without_the_templates_marks(tmp_path, capsys):
    prompt = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    row = {"prompt": prompt, "text": f"{prompt}hello 1 < 2 <b><|im_end|>"}
    assert as_prompt_and_text(row) == ("user\nhi\nassistant\n", "user\nhi\nassistant\nhello 1 < 2 <b>")
    (tmp_path / "samples.jsonl").write_text(json.dumps({"step": 1, "samples": [row]}), encoding="utf-8")
    show_samples(SimpleNamespace(run_dir=tmp_path))
    shown = capsys.readouterr().out
    assert "im_start" not in shown
    assert "hello 1 < 2 <b>" in shown
