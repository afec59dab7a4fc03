"""The report of a run: one file that needs nothing else, says what was verified and what was not, and escapes every text."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from types import SimpleNamespace

import pytest

from cli.runs import main
from utils.check_result import CheckReport, CheckResult
from utils.errors import ConfigError
from utils.ui import write_report

HOSTILE = "<script>alert(1)</script><img src=x onerror='alert(2)'>\"&"


class Tags(HTMLParser):
    """Every tag with its attributes."""

    def __init__(self, markup):
        super().__init__()
        self.found = []
        self.feed(markup)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))


def lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture
def run(tmp_path):
    """A finished run's folder, with hostile texts wherever a user's text can be."""
    folder = tmp_path / "runs" / "mine"
    (folder / "exports" / "hf").mkdir(parents=True)
    steps = [{"event": "step", "step": s, "train/loss": 3.0 - s / 10, "train/learning_rate": 1e-3} for s in range(1, 5)]
    validation = {"event": "evaluate", "step": 4, "epoch": 0, "val/loss": 2.75}
    lines(folder / "history.jsonl", [*steps, validation])
    lines(folder / "samples.jsonl", [{"step": 4, "epoch": 0, "samples": [{"prompt": HOSTILE, "text": HOSTILE * 2}]}])
    lines(folder / "doctor.jsonl", [{"event": "start", "step": 0, "unigram_loss": 3.5}])
    (folder / "state.json").write_text(json.dumps({"status": "ended", "stop_reason": "finished", "step": 4}))
    (folder / "config.yaml").write_text(f"training:\n  epochs: 2\nsetup:\n  dataset_path: {json.dumps(HOSTILE)}\n")
    (folder / "environment.json").write_text(json.dumps({"python": "3.11.7", "packages": {"torch": HOSTILE}}))
    marker = {"format": "hf", "parity": {"max_abs_diff": 2.5e-6, "shapes": [[1, 8]]}}
    (folder / "exports" / "hf" / "trainbook_export.json").write_text(json.dumps(marker))
    return folder


def verified(markup):
    """Verdict by line of the table of what was verified."""
    table = markup.split('aria-label="What was verified"')[1].split("</table>")[0]
    rows = table.split("<tr>")[1:]
    return {row.split('scope="row">')[1].split("<")[0]: row.split("</span><span>")[1].split("<")[0] for row in rows}


def test_it_is_one_file_without_script_or_anything_from_elsewhere(run):
    written = write_report(run)
    assert written == run / "report.html"
    markup = written.read_text(encoding="utf-8")
    tags = Tags(markup).found
    assert not {"script", "link", "iframe", "img", "object"} & {tag for tag, _ in tags}
    assert not any(name.startswith("on") or name in ("src", "href") for _, attributes in tags for name in attributes)
    assert "url(" not in markup
    assert "http" not in markup


def test_it_shows_curves_samples_settings_exports_and_environment(run):
    markup = write_report(run).read_text(encoding="utf-8")
    for words in (
        "validation loss 2.75",
        "&lt;script&gt;",
        "epochs",
        "3.11.7",
        "2.5e-06",
        "Diagnosis",
        "unigram entropy",
    ):
        assert words in markup


def test_it_says_what_was_verified_and_what_was_not(run):
    found = verified(write_report(run).read_text(encoding="utf-8"))
    assert found == {
        "Training reached its planned end": "verified",
        "Every recorded loss is finite": "verified",
        "Validation loss is below that of a model that ignores its inputs": "verified",
        "Diagnosis finds no problem": "verified",
        "Model checks": "not verified",
        "Export hf": "verified",
    }


def test_a_run_that_went_wrong_is_not_certified(run):
    (run / "state.json").write_text(json.dumps({"status": "failed", "error": HOSTILE, "step": 4}))
    bad = {"event": "step", "step": 5, "train/loss": float("nan"), "skipped": True}
    lines(run / "history.jsonl", [{"event": "evaluate", "step": 4, "val/loss": 4.0}, bad])
    (run / "exports" / "hf" / "trainbook_export.json").write_text(json.dumps({"format": "hf"}))
    found = verified(write_report(run).read_text(encoding="utf-8"))
    assert found["Training reached its planned end"] == "failed"
    assert found["Every recorded loss is finite"] == "failed"
    assert found["Validation loss is below that of a model that ignores its inputs"] == "failed"
    assert found["Export hf"] == "not verified"


@pytest.mark.parametrize(("verdict", "words"), [("pass", "verified"), ("fail", "failed")])
def test_checks_that_are_given_are_part_of_it(run, verdict, words):
    report = CheckReport("Model checks", [CheckResult("shapes", verdict, HOSTILE, {}, {}, "")])
    markup = write_report(SimpleNamespace(run_dir=run), checks=report).read_text(encoding="utf-8")
    assert verified(markup)["Model checks"] == words
    assert "<script" not in markup


def test_a_run_of_which_hardly_anything_is_left_has_a_report(tmp_path):
    folder = tmp_path / "bare"
    folder.mkdir()
    (folder / "state.json").write_text('{"status": "ended", "stop_reason": "finished"}')
    found = verified(write_report("bare", output_dir=tmp_path).read_text(encoding="utf-8"))
    assert found["Exports"] == "not verified"


def test_a_run_that_does_not_exist_is_refused_by_name(tmp_path):
    with pytest.raises(ConfigError, match="There is no run 'nothing'"):
        write_report("nothing", output_dir=tmp_path)


def test_the_command_writes_it(run, tmp_path, capsys):
    out = tmp_path / "elsewhere" / "mine.html"
    assert main(["report", "mine", "--dir", str(run.parent), "--out", str(out)]) == 0
    assert capsys.readouterr().out.strip() == str(out)
    assert "Run mine" in out.read_text(encoding="utf-8")
