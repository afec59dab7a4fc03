"""The record of export formats: one entry is all that a new format needs, and everything that lists formats reads it."""

from __future__ import annotations

import inspect

import pytest
from torch import nn

from benchmarks.exports import formats_table
from cli.export import make_parser
from tests.kit.toys import tiny_gpt
from tests.kit.tree import ROOT
from utils.checks.export_health import ExportHealthChecker
from utils.errors import ConfigError, ExportError
from utils.training import TrainingConfig, export_model
from utils.training.export import FORMATS, ExportFormat
from utils.training.export.result import ExportResult
from utils.training.export_formats import _function
from utils.ui.export_choices import export_choices, panel_text


def write_toy(model, tokenizer, target, source, notes=(), *, ending):
    target.mkdir(parents=True)
    file = target / f"weights.{ending}"
    file.write_text(str(len(model.state_dict())), encoding="utf-8")
    return ExportResult("toy", target, file.stat().st_size, {"tensors": len(model.state_dict())}, None, notes)


def refuse_embeddings(model):
    if isinstance(model, nn.Embedding):
        raise ExportError("a toy holds no embeddings")


@pytest.fixture
def toy(monkeypatch):
    entry = ExportFormat(
        "toy", "Toy file", "play", write_toy, ("*.toy",), refuse_embeddings, options={"ending": "toy"}, aliases=("toys",)
    )
    monkeypatch.setitem(FORMATS, "toy", entry)


class Results:
    def __init__(self, model):
        self.model = model


def test_one_entry_is_in_the_panel_the_command_line_the_configuration_and_the_results(toy, tmp_path):
    choices = export_choices(Results(nn.Linear(2, 2)))
    assert [(one.title, one.purpose, one.refusal) for one in choices if one.name == "toy"] == [("Toy file", "play", None)]
    assert "toy" in panel_text(choices, {}, {})
    assert make_parser().parse_args(["exp1", "--formats", "hf", "toy"]).formats == ["hf", "toy"]
    assert TrainingConfig(export_formats=["toy"]).export_formats == ("toy",)
    exported = export_model(nn.Linear(2, 2), ["toy"], output_dir=tmp_path)
    assert exported["toy"].parity == {"tensors": 2}
    assert (tmp_path / "toy" / "weights.toy").is_file()
    report = ExportHealthChecker(nn.Linear(2, 2)).run_all_checks(tmp_path, ["toys"], write=False)
    assert report["load: toy"].verdict == "pass"
    assert report["parity: toy"].verdict == "not run"


def test_a_format_of_ones_own_can_reject_models(toy, tmp_path):
    model = nn.Embedding(2, 2)
    assert [one.refusal for one in export_choices(Results(model)) if one.name == "toy"] == ["a toy holds no embeddings"]
    with pytest.raises(ExportError, match="a toy holds no embeddings"):
        export_model(model, ["toy"], output_dir=tmp_path)


@pytest.mark.parametrize("name", FORMATS)
def test_the_functions_of_an_entry_exist_and_take_what_they_are_called_with(name):
    entry = FORMATS[name]
    writer = inspect.signature(_function(entry.writer))
    writer.bind("model", "tokenizer", "folder", "source", (), task_spec=None, **entry.options)
    assert entry.made_from is None or "traced" in writer.parameters
    for reference in filter(None, (entry.loader, entry.usage)):
        inspect.signature(_function(reference)).bind("file", "model")
    assert {entry.made_from, entry.files_like} <= {None, *FORMATS}
    assert (entry.tolerance is None) == (name == "peft" or name.startswith("gguf"))
    with pytest.raises(Exception, match="str"):
        entry.refuse("not a model")


def test_an_unknown_format_is_named_with_the_nearest(capsys):
    with pytest.raises(ConfigError, match="'hf' or 'onnx'.*did you mean 'onnx'"):
        TrainingConfig(export_formats=["onxx"])
    with pytest.raises(SystemExit):
        make_parser().parse_args(["exp1", "--formats", "onxx"])
    assert "got 'onxx'; must be one of hf, onnx" in " ".join(capsys.readouterr().err.split())


def test_the_table_in_the_documentation_is_that_of_the_record():
    assert formats_table() in (ROOT / "docs" / "EXPORT.md").read_text(encoding="utf-8"), (
        "replace the table by what `python -m benchmarks.exports --list` prints"
    )


class Ended(BaseException):
    """Raised by whoever watches an export."""


@pytest.mark.parametrize("name", ["hf", "safetensors", "torchscript"])
def test_an_export_says_what_it_does_and_can_be_ended_at_each_stage(name, tmp_path):
    model, stages = tiny_gpt(layers=1), []
    export_model(model, [name], output_dir=tmp_path, on_stage=lambda *stage: stages.append(stage))
    assert (stages[0], stages[-1]) == ((name, "writing"), (name, "storing the files"))
    assert (name, "comparing logits with the model's") in stages
    before = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*")}

    for ended_at in dict.fromkeys(stages):

        def end(*stage, at=ended_at):
            if stage == at:
                raise Ended

        with pytest.raises(Ended):
            export_model(model, [name], output_dir=tmp_path, on_stage=end)
        assert {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*")} == before
