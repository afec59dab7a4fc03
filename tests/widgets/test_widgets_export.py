"""The export panel: what is exported without a click, what clicks add, failures of single formats, and the download."""

from __future__ import annotations

import asyncio
import itertools
import shutil
import sys
import zipfile
from dataclasses import replace
from types import SimpleNamespace

import pytest

import widgets.export_view
from tests.kit.toys import golden_config, plain_lm, tiny_gpt, train_set
from utils import colab
from utils.errors import ConfigError, ExportError
from utils.training import Trainer
from utils.training.export import FORMATS
from utils.training.export.folders import staged_folder
from utils.training.export.stages import stage
from utils.ui import export_choices as choices_module
from utils.ui import show_take_home
from widgets import export_panel, run_exports
from widgets.export_view import ExportPanel
from widgets.guarded import watching
from widgets.pump import Pump


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Model family -> results of one epoch."""
    made = {}
    for name, model in (("gpt", tiny_gpt(layers=1)), ("plain", plain_lm())):
        config = golden_config(epochs=1, run_name=name, output_dir=str(tmp_path_factory.mktemp("runs")))
        made[name] = Trainer(model, training_config=config).train(train_set())
    return made


@pytest.fixture
def results(trained):
    yield trained["gpt"]
    shutil.rmtree(trained["gpt"].run_dir / "exports", ignore_errors=True)


@pytest.fixture
def broken(monkeypatch):
    """Makes a format fail when it is written."""

    def breaks(name, error):
        def write(*arguments):
            raise error

        monkeypatch.setitem(FORMATS, name, replace(FORMATS[name], writer=write, refuser=lambda model: None))

    return breaks


def tick(panel, *names):
    for name, box in panel.boxes.items():
        box.value = name in names
    panel._job.start.click()


def test_without_widgets_everything_is_said_in_words(results, capsys):
    exported = export_panel(results, formats=["safetensors"])
    shown = capsys.readouterr().out
    assert list(exported) == ["safetensors"]
    for name in FORMATS:
        assert name in shown
    assert "bit for bit" in shown
    assert "To export other formats: export_model(results, formats=['hf'" in shown
    assert str(results.run_dir.absolute() / "exports" / "gpt-exports.zip") in shown


def test_nothing_is_shown_on_request(results, capsys):
    assert export_panel(results, formats="safetensors", ui="none")["safetensors"].path.is_dir()
    assert capsys.readouterr().out == ""


def test_a_format_that_does_not_fit_the_model_says_why_and_cannot_be_ticked(trained):
    panel = ExportPanel(trained["plain"])
    assert panel.boxes["hf"].disabled
    assert not panel.boxes["safetensors"].disabled
    assert "hf" in panel.to_text()
    assert "not a transformers model" in panel.to_text()
    explained = [line.children[1].value for line in panel.formats.children[0].children]
    assert any("Not for this model: PlainLM is not a transformers model" in one for one in explained)
    refusals = [choice.refusal for choice in panel.choices]
    repeated = sum(before is not None and before == one for before, one in itertools.pairwise(refusals))
    assert repeated
    assert sum("for the same reason" in one for one in explained) == repeated


@pytest.mark.parametrize("error", [ExportError("the file is not the same model"), RuntimeError("inside a library")])
def test_one_failing_format_does_not_stop_the_others(error, results, broken, capsys):
    broken("hf", error)
    exported = export_panel(results, formats=["hf", "safetensors"])
    assert list(exported) == ["safetensors"]
    assert str(error) in exported.not_written["hf"]
    assert str(error) in capsys.readouterr().out
    show_take_home(results, exported)
    assert "Not written" in capsys.readouterr().out


def test_when_no_format_can_be_written_the_reasons_are_shown(results, broken, capsys):
    broken("hf", ExportError("no room"))
    exported = export_panel(results, formats=["hf"])
    assert dict(exported) == {}
    assert "not written: no room" in " ".join(capsys.readouterr().out.split())


def test_clicks_export_what_is_ticked_and_add_to_what_the_cell_returned(results):
    panel = ExportPanel(results)
    panel.export(["safetensors"])
    exported = panel.exports
    with watching() as failures:
        tick(panel, "hf")
    assert failures == []
    assert list(exported) == ["safetensors", "hf"]
    assert "largest difference of logits" in panel._table.value
    assert [name for name, box in panel.boxes.items() if box.description.endswith(", exported")] == ["hf", "safetensors"]
    assert "<table" in panel._table.value
    with zipfile.ZipFile(panel.archive) as archive:
        assert {name.partition("/")[0] for name in archive.namelist()} == {"hf", "safetensors"}
        assert archive.testzip() is None
        assert "safetensors/model.safetensors" in archive.namelist()


def test_a_click_without_a_ticked_format_says_so(results):
    panel = ExportPanel(results)
    tick(panel)
    assert "tick at least one" in panel._alert.value


def test_a_failure_after_a_click_is_shown_beside_the_others(results, broken):
    broken("hf", RuntimeError("<b>inside</b>"))
    panel = ExportPanel(results)
    tick(panel, "hf", "safetensors")
    assert list(panel.exports) == ["safetensors"]
    assert "&lt;b&gt;inside" in panel._table.value


def test_the_download_is_a_link_where_the_notebook_server_has_the_file(results, monkeypatch):
    monkeypatch.chdir(results.run_dir.absolute().parent)
    panel = ExportPanel(results)
    assert panel.download.layout.display == "none", "nothing to download yet"
    panel.export(["safetensors"])
    assert 'href="gpt/exports/gpt-exports.zip"' in panel._link.value
    assert panel.download.layout.display == "none", "one way to download is enough"


def test_results_stand_first_and_formats_are_shown_on_request(results, monkeypatch):
    said = []
    monkeypatch.setattr(ExportPanel, "_say", lambda panel, words: words and said.append((words, panel.more.disabled)))
    panel = ExportPanel(results)
    assert panel.formats.layout.display is None, "nothing else to see"
    panel.export(["safetensors"])
    assert panel.formats.layout.display == "none"
    assert said[:2] == [
        ("Exporting safetensors (1 of 1)", True), ("Exporting safetensors (1 of 1): writing", True)
    ]
    assert not panel.more.disabled
    places = panel.box.children
    fold = next(box for box in places if panel.formats in getattr(box, "children", ()))
    assert places.index(panel._table) < places.index(fold)
    panel.more.click()
    assert panel.formats.layout.display is None
    assert panel.more.description == "Other formats, open"
    assert panel.boxes["gguf"].description == "GGUF"
    assert panel.boxes["onnx-int8"].description == "ONNX, 8-bit weights (onnx-int8)"


def test_the_download_in_colab_goes_to_the_browser(results, monkeypatch):
    sent = []
    monkeypatch.setattr(colab, "is_colab", lambda: True)
    monkeypatch.setitem(sys.modules, "google.colab.files", SimpleNamespace(download=sent.append))
    panel = ExportPanel(results)
    panel.export(["safetensors"])
    panel.download.click()
    assert sent == [str(panel.archive)]


def test_an_archive_that_does_not_fit_on_the_disk_leaves_the_exports(results, monkeypatch):
    monkeypatch.setattr(choices_module, "free_bytes", lambda folder: 10)
    panel = ExportPanel(results)
    panel.export(["safetensors"])
    assert panel.exports["safetensors"].path.is_dir()
    assert "not enough disk space" in panel._alert.value
    assert not (results.run_dir / "exports" / "gpt-exports.zip").exists()


def test_large_exports_are_packed_on_request_only(results, monkeypatch):
    monkeypatch.setattr(widgets.export_view, "_LARGEST_AT_ONCE", 10)
    panel = ExportPanel(results)
    panel.export(["safetensors"])
    assert panel.archive is None
    panel.download.click()
    assert panel.archive.is_file()


def test_an_unknown_format_is_refused_before_anything_is_exported(results):
    with pytest.raises(ConfigError, match="'onyx'; this version exports: hf"):
        export_panel(results, formats=["onyx", "hf"])
    assert not (results.run_dir / "exports").exists()


def test_the_widget_keeps_a_text_for_the_saved_notebook(results, monkeypatch):
    described = []

    class Output:
        def __init__(self, widget, plain):
            self.widget = widget

        def describe(self, plain):
            described.append(plain)

    monkeypatch.setattr(widgets.export_view, "ui_mode", lambda ui: "widget")
    monkeypatch.setattr(widgets.export_view, "LiveOutput", Output)
    export_panel(results, formats=["safetensors"])
    assert "bit for bit" in described[0]


def test_an_awaited_export_says_what_it_does_in_words(results, capsys):
    exported = asyncio.run(run_exports(results, formats=["safetensors"]))
    shown = capsys.readouterr().out
    assert list(exported) == ["safetensors"]
    assert shown.count("Exporting safetensors (1 of 1) …") == 1
    assert "bit for bit" in shown


def test_stop_ends_an_awaited_export_and_keeps_what_was_written(results, monkeypatch):
    panel = ExportPanel(results)
    seen = []

    def write(model, tokenizer, target, *arguments):
        with staged_folder(target) as staging:
            (staging / "half").write_bytes(b"written")
            seen.append((panel.stop.layout.display, panel.download.layout.display))
            panel.stop.click()
            stage("comparing logits")
            raise AssertionError("the stop was not seen")

    monkeypatch.setitem(FORMATS, "hf", replace(FORMATS["hf"], writer=write, refuser=lambda model: None))
    asyncio.run(panel.export_awaited(["safetensors", "hf", "pytorch"]))
    assert seen == [(None, "none")], "while formats are exported they can be stopped, and not be packed yet"
    assert panel.stop.layout.display == "none"
    assert list(panel.exports) == ["safetensors"]
    assert list(panel.exports.not_written) == ["hf", "pytorch"]
    assert panel._table.value.count("not written: stopped before it was written") == 2
    assert "Exporting" not in panel._progress.value
    assert {entry.name for entry in (results.run_dir / "exports").iterdir()} == {"safetensors", "gpt-exports.zip"}


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, asyncio.CancelledError])
def test_the_kernels_interrupt_ends_an_awaited_export_as_stop_does(results, monkeypatch, interrupt):
    waits = iter([None, interrupt()])

    async def wait(pump, alive, every_s=0.2):
        if (error := next(waits, None)) is not None:
            raise error
        while alive():
            await asyncio.sleep(0)

    monkeypatch.setattr(Pump, "wait", wait)
    exported = asyncio.run(run_exports(results, formats=["safetensors", "hf", "pytorch"], ui="none"))
    assert "safetensors" in exported
    assert exported.not_written["pytorch"] == "stopped before it was written"


def test_an_interrupted_export_that_is_not_awaited_says_what_is_missing(results, broken):
    broken("hf", KeyboardInterrupt())
    panel = ExportPanel(results)
    with pytest.raises(KeyboardInterrupt):
        panel.export(["safetensors", "hf"])
    assert list(panel.exports) == ["safetensors"]
    assert "stopped before it was written" in panel._table.value
    assert "Exporting" not in panel._progress.value
    assert not panel.more.disabled
