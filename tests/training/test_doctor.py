"""diagnose: each rule finds its fault, and no rule fires on healthy runs of many kinds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from cli.doctor import main
from tests.kit.sick_runs import HEALTHY, SICK, Augmented, train_classes, train_signs
from utils import HOME
from utils.data.text.prepare import prepare_text
from utils.errors import DataNotFoundError, DataTypeError
from utils.models import ModelRegistry
from utils.storage import json_line, read_json_lines
from utils.training import Callback, DoctorCallback, Trainer, diagnose
from utils.training.diagnosis.record import RunRecord
from utils.training.diagnosis.rules import Outcome, Rule, all_rules, findings_of, run_rules
from utils.training.training_config import TrainingConfig
from utils.ui.run_past import baseline_of


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize(("rule", "name"), [(rule, name) for rule, runs in SICK.items() for name in runs])
def test_a_fault_is_found_by_its_rule(rule, name):
    report = diagnose(SICK[rule][name]())
    found = report[rule]
    assert found.verdict in ("warn", "fail"), found.summary
    assert found.remedy
    assert found.measured
    assert not report.passed


@pytest.mark.parametrize("name", HEALTHY)
def test_a_healthy_run_has_no_findings(name):
    results = HEALTHY[name]()
    found = {result.name: result.summary for result in diagnose(results).findings}
    assert found == {}
    assert [notice for notice in results.notices if notice.startswith("Doctor")] == []


def test_every_rule_has_a_run_that_it_finds():
    recorded = {
        "data loading",
        "memory",
        "exploding layers",
        "updates and number format",
        "monitored metric",
        "plateau",
        "weight decay",
    }
    assert {rule.name for rule in all_rules()} == set(SICK) | recorded


# Faults that take hours or a GPU are tested on records.


def record(rows=(), measurements=(), task="image_classification", state=None, **settings):
    return RunRecord(
        "run", TrainingConfig(**settings), task, rows=rows, measurements=measurements,
        state=state or {"stop_reason": "finished", "status": "ended"},
    )  # fmt: skip


def falling(count=200, start=2.0, end=0.5):
    """Step rows of a loss that falls."""
    return [
        {"event": "step", "step": n + 1, "train/loss": start + (end - start) * n / count + 0.01 * (-1) ** n, "train/grad_norm": 0.5,
         "train/learning_rate": 1e-3}
        for n in range(count)
    ]  # fmt: skip


def outcome(name, run):
    return next(one for one in run_rules(run) if one.rule == name)


@pytest.mark.parametrize(("loading", "seconds", "found"), [(80, 100, True), (20, 100, False), (0.8, 1.0, False)])
def test_waiting_for_data_counts_when_it_costs_minutes(loading, seconds, found):
    rows = [
        {"event": "epoch", "epoch": 0, "step": 1, "train/loss": 1.0, "time/loading_s": loading, "time/epoch_s": seconds}
    ]
    assert outcome("data loading", record(rows)).found == found


@pytest.mark.parametrize(("peak", "seconds", "found"), [(8_000, 3600, True), (60_000, 3600, False), (8_000, 60, False)])
def test_unused_memory_counts_in_long_runs(peak, seconds, found):
    rows = [{"event": "epoch", "epoch": 0, "step": 1, "train/loss": 1.0, "time/epoch_s": seconds}]
    measured = [{"event": "interval", "step": 1, "steps": 1, "clipped": 0, "peak_mib": peak, "memory_mib": 80_000}]
    assert outcome("memory", record(rows, measured)).found == found


def look(step, **changes):
    tensor = {"name": "layer.weight", "size": 100, "matrix": True, "format": "float32", "weight": 0.1, "update": 1e-4,
              "grad": 1e-2, "lost": 0.0, "silent": 0.0}  # fmt: skip
    return {"event": "look", "step": step, "tensors": [{**tensor, **changes}]}


@pytest.mark.parametrize(
    ("weights", "end", "found"),
    [((0.1, 1.0, 9.0), 3.0, True), ((0.1, 0.2, 0.3), 3.0, False), ((1e-9, 1.0, 1.0), 3.0, False)],
)
def test_weights_that_grow_without_bound(weights, end, found):
    looks = [look(step, weight=weight) for step, weight in enumerate(weights, 1)]
    assert outcome("exploding layers", record(falling(end=end), looks)).found == found


@pytest.mark.parametrize(
    ("form", "lost", "found"), [("bfloat16", 0.9, True), ("bfloat16", 0.1, False), ("float32", 0.9, False)]
)
def test_updates_lost_in_half_precision(form, lost, found):
    looks = [look(step, format=form, lost=lost) for step in (1, 2, 3)]
    labels = {"event": "start", "step": 0, "labels": {"guess_loss": 2.0, "targets": 100}}
    assert outcome("updates and number format", record(falling(), [labels, *looks])).found == found


@pytest.mark.parametrize(("name", "found"), [("layer.weight", True), ("layer.lora_B.default.weight", False)])
def test_a_step_that_replaces_weights_is_a_fault_unless_they_start_at_zero(name, found):
    looks = [look(step, name=name, update=0.1) for step in (2, 4)]
    labels = {"event": "start", "step": 0, "labels": {"guess_loss": 2.0, "targets": 100}}
    run = record(falling(start=3.0, end=2.9), [labels, *looks], finetune="lora")
    assert outcome("rate too high", run).found == found


@pytest.mark.parametrize(("decay", "found"), [(100.0, True), (0.1, False)])
def test_weight_decay_that_forgets_within_steps(decay, found):
    measured = [{"event": "start", "step": 0, "weight_decay": decay}]
    assert outcome("weight decay", record(falling(), measured)).found == found


@pytest.mark.parametrize(("monitor", "found"), [("val/accuracy", True), ("val/loss", False)])
def test_a_monitored_metric_that_is_never_computed(monitor, found):
    rows = [{"event": "evaluate", "step": 1, "val/loss": 1.0}]
    mode = "max" if monitor == "val/accuracy" else "min"
    assert outcome("monitored metric", record(rows, task="regression", monitor=monitor, mode=mode)).found == found


@pytest.mark.parametrize(("end", "falls"), [(2.4, True), (3.0, False)])
def test_a_loss_that_still_falls_is_given_more_steps_before_the_data_are_doubted(end, falls):
    labels = {"event": "start", "step": 0, "labels": {"guess_loss": 2.0, "targets": 100}}
    found = outcome("learning", record(falling(start=3.0, end=end), [labels]))
    assert found.verdict == "fail"
    assert found.remedy.startswith("The loss is still falling") == falls


def test_a_model_that_learned_nothing_has_not_passed_as_large_enough():
    labels = {"event": "start", "step": 0, "labels": {"guess_loss": 2.0, "targets": 100}}
    rows = record([{**row, "train/loss": 2.0} for row in falling()], [labels])
    assert outcome("learning", rows).found
    assert outcome("underfitting", rows).verdict == "not run"


@pytest.mark.parametrize(("end", "found"), [(2.7, True), (1.0, False)])
def test_a_language_model_on_a_plateau(end, found):
    rows = [{**row, "train/loss": max(end, 4.0 - 0.1 * row["step"]) + 0.005 * (-1) ** row["step"]} for row in falling()]
    measured = [{"event": "start", "step": 0, "unigram_loss": 3.0}]
    assert outcome("plateau", record(rows, measured, task="causal_lm")).found == found


@pytest.mark.parametrize(("growth", "found"), [(30.0, True), (2.0, False)])
def test_clipping_does_not_hide_a_divergence(growth, found):
    rows = [
        {**row, "train/loss": 2.0 + 0.05 * (-1) ** row["step"], "train/grad_norm": 2.0 * growth ** (row["step"] / 200)}
        for row in falling()
    ]
    assert outcome("divergence", record(rows)).found == found


def test_large_gradients_that_are_clipped_are_no_fault_when_the_run_learns():
    rows = [{**row, "train/grad_norm": 500.0} for row in falling()]
    measured = [{"event": "start", "step": 0, "optimizer": "AdamW", "labels": {"guess_loss": 2.0, "targets": 100}}]
    assert not findings_of(record(rows, measured, task="regression", max_grad_norm=1.0), live=True)


def test_few_steps_are_no_evidence():
    report = diagnose(train_classes(epochs=1, max_steps=3))
    assert report["learning"].verdict == "not run"
    assert "3 optimizer steps are too few" in report["learning"].summary
    assert report.passed


def test_results_trainer_folder_and_name_give_the_same(monkeypatch):
    results = train_classes(run_name="four-ways", max_steps=40)
    expected = diagnose(results).to_json()
    assert results.diagnose().to_json() == expected
    assert diagnose(results.run_dir).to_json() == expected
    assert diagnose("four-ways").to_json() == expected
    assert diagnose(str(results.run_dir)).to_json() == expected


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(DataNotFoundError, match="holds no run"):
        diagnose(tmp_path)
    with pytest.raises(DataTypeError, match="got a int"):
        diagnose(3)


def test_a_run_without_measurements_is_judged_by_its_history():
    results = train_classes(learning_rate=1e-2)
    (results.run_dir / "doctor.jsonl").unlink()
    report = diagnose(results)
    assert report.passed
    assert report["divergence"].verdict == "pass"
    assert report["dead layers"].verdict == "not run"


class Judged(Callback):
    """Diagnoses the run while it is under way."""

    def __init__(self) -> None:
        self.seen = []

    def on_epoch_end(self, epoch, trainer, logs=None):
        self.seen.append(diagnose(trainer))


def test_a_run_can_be_diagnosed_while_it_trains():
    watch = Judged()
    train_classes(epochs=3, callbacks=[watch])
    assert [report["learning"].verdict for report in watch.seen] == ["not run", "pass", "pass"]


def test_during_a_run_the_rules_see_the_settings_that_its_config_file_has():
    seen: list[tuple[RunRecord, RunRecord]] = []

    class Watch(Callback):
        def on_train_begin(self, trainer, logs=None):
            folder = Path(logs["run_dir"])
            begun = RunRecord.begun(folder, trainer.training_config, trainer.planned_task)
            seen.append((begun, RunRecord.read(folder, running=True)))

    train_classes(epochs=1, max_steps=1, callbacks=[Watch()], label_smoothing=0.1)
    begun, read = seen[0]
    assert begun.config == read.config
    assert (begun.name, begun.spec, begun.multi_label, begun.running) == (read.name, read.spec, read.multi_label, True)


def test_findings_are_notices_during_the_run_and_once():
    seen: list[tuple[int, int]] = []

    class Count(Callback):
        def on_epoch_end(self, epoch, trainer, logs=None):
            seen.append((epoch, sum(notice.startswith("Doctor, warm-up") for notice in trainer.notices)))

    results = train_classes(warmup_ratio=1.0, epochs=4, callbacks=[DoctorCallback(), Count()])
    assert seen[0] == (0, 1)
    assert sum(notice.startswith("Doctor, warm-up") for notice in results.notices) == 1


def test_what_the_plan_shows_is_said_before_the_first_step():
    noted: list[list[str]] = []

    class Watch(Callback):
        def on_epoch_begin(self, epoch, trainer, logs=None):
            noted.append(list(trainer.notices))

    train_classes(gradient_accumulation_steps=256, epochs=1, callbacks=[Watch()])
    assert any(sentence.startswith("Doctor, accumulation:") for sentence in noted[0])


def test_a_finding_that_no_longer_holds_is_withdrawn(monkeypatch):
    judged = iter(["warn", "not run", "pass", "warn"])

    def judge(run):
        return Outcome(next(judged, "warn"), "evidence", "remedy")

    rule = Rule("made up", "", "", "", live=True, at_start=False, judge=judge)
    monkeypatch.setattr("utils.training.diagnosis.rules.all_rules", lambda: [rule])
    noted: list[bool] = []

    class Watch(Callback):
        def on_epoch_begin(self, epoch, trainer, logs=None):
            noted.append(any("made up" in sentence for sentence in trainer.notices))

    results = train_classes(epochs=5, callbacks=[Watch()])
    assert noted == [False, True, True, False, True]  # too little evidence withdraws nothing
    assert any("made up" in sentence for sentence in results.notices)


def test_the_callback_can_be_told_to_measure_only():
    results = train_classes(warmup_ratio=1.0, epochs=2, callbacks=[DoctorCallback(live=False)])
    assert not [notice for notice in results.notices if notice.startswith("Doctor")]
    assert diagnose(results)["warm-up"].verdict == "fail"


def test_measuring_changes_nothing_about_the_training():
    with_doctor = train_signs(data=Augmented(0.3), epochs=2)
    without = train_signs(data=Augmented(0.3), epochs=2, callbacks=[Blind()])
    assert with_doctor.loss_history == without.loss_history
    assert with_doctor.val_loss_history == without.val_loss_history
    for name, tensor in with_doctor.model.state_dict().items():
        assert torch.equal(tensor, without.model.state_dict()[name])


class Blind(DoctorCallback):
    """Measures nothing."""

    def _guarded(self, work):
        pass


def test_a_failing_measurement_does_not_end_the_run(caplog):
    class Broken(DoctorCallback):
        def _begin(self, trainer):
            raise ZeroDivisionError

    results = train_classes(epochs=2, callbacks=[Broken()])
    assert results.stop_reason == "finished"
    assert "stops measuring" in caplog.text


def test_a_continued_run_has_no_measurements_of_steps_that_were_done_again():
    results = HEALTHY["resumed"]()
    steps = [row["step"] for row in read_json_lines(results.run_dir / "doctor.jsonl")]
    assert steps == sorted(steps)


def test_the_baseline_of_a_run_is_the_one_of_the_data_report():
    data = prepare_text(["the cat sat on the mat. " * 3, "a dog ran to the cat. "] * 40, vocab_size=64, block_size=16)
    model = ModelRegistry.create("gpt-small", vocab_size=64, n_layer=1, n_embd=16, n_head=2, max_seq_len=16)
    trainer = Trainer(
        model, training_config=TrainingConfig(max_steps=4, batch_size=8), task_spec=data.task_spec, tokenizer=data.tokenizer
    )
    results = trainer.train(data.train, data.validation)
    assert baseline_of(results.run_dir) == ("unigram model", data.report.unigram_loss)


def test_the_report_shows_findings_first_and_counts_them(capsys):
    report = diagnose(train_classes(warmup_ratio=1.0, epochs=2))
    assert report[0].name == "warm-up"
    report.show()
    shown = capsys.readouterr().out
    assert shown.startswith(f"Diagnosis of {report.run_name}. 1 finding: ")
    assert "Set warmup_ratio=0.1" in shown
    assert report.to_frame()["verdict"].tolist().count("fail") == 1


def test_measurements_that_are_not_finite_are_no_evidence():
    counted = {
        "event": "counts",
        "step": 1,
        "targets": 50,
        "guess_loss": None,
        "label_means": [None],
        "label_variances": [None],
    }
    measured = [{**counted, "part": part} for part in ("train", "val")] + [
        look(n, weight=None, update=None) for n in (1, 2, 3)
    ]
    rows = [*falling(), *({"event": "evaluate", "epoch": n, "step": 50 * n, "val/loss": 1.0} for n in (1, 2, 3))]
    assert not [found for found in findings_of(record(rows, measured, task="regression"), live=True) if found.found]


# The command line


def test_the_command_line_says_by_its_status_what_was_found(capsys):
    healthy, ill = train_classes(run_name="well"), train_classes(run_name="ill", warmup_ratio=1.0, epochs=2)
    assert main([str(healthy.run_dir)]) == 0
    assert "No findings" in capsys.readouterr().out
    assert main(["ill"]) == 1
    assert "warm-up" in capsys.readouterr().out
    assert main(["ill", "--json"]) == 1
    content = json.loads(capsys.readouterr().out)
    assert content["results"][0]["name"] == "warm-up"
    assert main(["nothing-there"]) == 2
    assert "Runs there: ill, well" in capsys.readouterr().err
    assert ill.run_dir.is_dir()


def test_a_damaged_config_cannot_be_read(capsys, tmp_path):
    Path(tmp_path / "config.yaml").write_text("training: [1, 2]\n", encoding="utf-8")
    Path(tmp_path / "history.jsonl").write_text(json_line({"event": "step", "step": 1}) + "\n", encoding="utf-8")
    assert main([str(tmp_path)]) == 2
    assert "config.yaml" in capsys.readouterr().err


def test_the_command_line_writes_a_page(tmp_path):
    train_classes(run_name="paged", epochs=2)
    page = tmp_path / "report.html"
    assert main(["paged", "--html", str(page)]) == 0
    assert "Diagnosis of paged" in page.read_text(encoding="utf-8")


def test_the_document_has_every_rule_as_it_is():
    text = (HOME / "docs" / "DOCTOR.md").read_text(encoding="utf-8")
    for rule in all_rules():
        assert f"| {rule.name} | {rule.sees} | {rule.threshold} | {rule.source} |" in text


@pytest.mark.parametrize("continued", [False, True])
def test_a_loss_that_rises_with_the_rate_of_a_continued_run_is_no_overfitting(continued):
    rows = falling()
    for row in rows:  # decays in the first half of the steps; a continued run begins anew with the highest rate
        row["train/learning_rate"] = 1e-5 if row["step"] > 100 - 20 else 1e-3
        if continued and row["step"] > 100:
            row["train/learning_rate"] = 1e-3
    losses = (1.5, 1.0, 0.9, 1.4, 1.5, 1.6)
    rows += [{"event": "evaluate", "step": 33 * place, "val/loss": loss} for place, loss in enumerate(losses, 1)]
    assert outcome("overfitting", record(rows)).found != continued
