"""The Take-home list is about one run: what is exported of another one is not shown as this one's."""

from __future__ import annotations

import pytest

from tests.kit.toys import golden_config, normed_lm, train_set
from utils.training import Trainer, export_model
from utils.ui import show_take_home


@pytest.fixture
def run():
    def train(name):
        return Trainer(normed_lm(), None, golden_config(epochs=1, run_name=name)).train(train_set())

    return train


def listed(capsys, results, exported):
    capsys.readouterr()
    show_take_home(results, exported)
    return capsys.readouterr().out


def test_exports_of_the_run_are_listed_with_how_well_they_agree(run, capsys):
    results = run("mine")
    exported = export_model(results, formats="safetensors")
    shown = listed(capsys, results, exported)
    assert str(exported["safetensors"].path) in shown
    assert "bit for bit" in shown
    assert str(results.best_model_path) in shown
    assert exported["safetensors"].step == results.steps


def test_exports_of_another_run_are_not_listed_as_this_ones(run, capsys, tmp_path):
    exported = export_model(run("first"), formats="safetensors", output_dir=tmp_path / "out")
    second = run("second")
    shown = listed(capsys, second, exported)
    assert str(exported["safetensors"].path) not in shown
    assert "the last export is of run first. Run the Export cell again." in " ".join(shown.split())
    assert str(second.best_model_path) in shown


def test_a_format_that_was_not_written_is_listed_with_its_reason(run, capsys):
    results = run("mine")
    shown = " ".join(listed(capsys, results, export_model(results, formats=["hf", "safetensors"])).split())
    assert "hf export Not written: NormedLM is not a transformers model" in shown
    assert "safetensors export" in shown


def test_an_export_survives_a_change_of_the_working_folder(run, capsys, monkeypatch, tmp_path):
    results = run("mine")
    exported = export_model(results, formats="safetensors")
    results.run_dir = results.run_dir.absolute()
    monkeypatch.chdir(tmp_path)
    assert str(exported["safetensors"].path) in listed(capsys, results, exported)
