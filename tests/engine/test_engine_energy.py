"""The energy that a run takes, where the machine counts it."""

from __future__ import annotations

import logging
import sys
from types import SimpleNamespace

import pytest
import torch

from tests.kit.toys import golden_config, tiny_gpt, train_set
from utils.training import Callback, ModelCardGenerator, Trainer
from utils.training.engine.hardware import energy
from utils.training.engine.hardware.energy import Counter, EnergyMeter

WRAPS_AT = 1_000_000  # microjoules
PACKAGE = "processor package-0"


@pytest.fixture
def powercap(tmp_path, monkeypatch):
    """A machine with one processor package, as Linux shows it; the counter stands at 0.9 J and goes round at 1 J."""
    for name, what in (("intel-rapl:0", "package-0"), ("intel-rapl:0:0", "core"), ("intel-rapl:1", "psys")):
        place = tmp_path / "powercap" / name
        place.mkdir(parents=True)
        for file, content in (("name", what), ("max_energy_range_uj", WRAPS_AT), ("energy_uj", 900_000)):
            (place / file).write_text(f"{content}\n")
    monkeypatch.setattr(energy, "POWERCAP", tmp_path / "powercap")
    return tmp_path / "powercap" / "intel-rapl:0" / "energy_uj"


class Burn(Callback):
    """Each step takes 0.03 J."""

    def __init__(self, counter):
        self.counter = counter

    def on_step_end(self, trainer, step, logs):
        self.counter.write_text(f"{(int(self.counter.read_text()) + 30_000) % WRAPS_AT}\n")


def train(tmp_path, counter, **settings):
    config = golden_config(output_dir=str(tmp_path / "runs"), **settings)
    trainer = Trainer(tiny_gpt(), training_config=config, callbacks=[Burn(counter)])
    return trainer.train(train_set(), resume_from="auto")


def test_a_run_adds_up_what_was_counted_over_its_sessions(tmp_path, powercap):
    first = train(tmp_path, powercap, max_steps=5)
    assert first.energy.joules == {PACKAGE: pytest.approx(0.15)}  # over the counter's turn from 1 J to 0
    powercap.write_text("0\n")  # a restart of the machine
    results = train(tmp_path, powercap, max_steps=7, on_config_change="continue")
    assert results.energy.joules == {PACKAGE: pytest.approx(0.21)}
    assert results.energy.kwh == pytest.approx(0.21 / 3.6e6)
    assert results.energy.seconds == pytest.approx(results.training_time, rel=0.05)
    assert f"counted by {PACKAGE} over" in ModelCardGenerator().generate("m", results.model, results)


def test_a_counter_that_cannot_be_read_any_more_ends_nothing(tmp_path, powercap, caplog):
    class Unplug(Callback):
        def on_step_end(self, trainer, step, logs):
            powercap.write_text("?\n")

    trainer = Trainer(tiny_gpt(), training_config=golden_config(output_dir=str(tmp_path), max_steps=2), callbacks=[Unplug()])
    with caplog.at_level(logging.WARNING, "trainbook.engine"):
        results = trainer.train(train_set())
    assert results.energy.kwh is None
    assert results.steps == 2
    assert [PACKAGE in record.message for record in caplog.records if "not measured any more" in record.message] == [True]


def test_time_without_counters_is_not_said_to_be_measured():
    use = energy.EnergyUse()
    use.add({}, 10.0)
    use.add({"GPU 0": 7.2e6}, 5.0)
    assert (use.kwh, use.seconds) == (2.0, 5.0)
    assert energy.EnergyUse.from_dict(use.to_dict()) == use
    card = ModelCardGenerator().generate("m", torch.nn.Linear(2, 2), SimpleNamespace(energy=use, training_time=15.0))
    assert "2 kWh, counted by GPU 0 over 5.0 s of 15.0 s" in card


def test_a_counter_that_was_set_back_counts_from_zero():
    values = iter([5.0, 7.0, 1.5])
    meter = EnergyMeter([Counter("GPU 0", lambda: next(values))])
    assert [meter.taken(), meter.taken()] == [{"GPU 0": 2.0}, {"GPU 0": 1.5}]


def test_gpus_are_found_by_their_own_id(monkeypatch):
    handles = {"GPU-b": 2_000, "GPU-a": 1_000}  # NVML's order is not torch's

    def handle_of(uuid):
        return handles[uuid]

    monkeypatch.setitem(sys.modules, "pynvml", SimpleNamespace(
        nvmlInit=lambda: None, nvmlDeviceGetHandleByUUID=handle_of, nvmlDeviceGetTotalEnergyConsumption=lambda one: one,
    ))  # fmt: skip
    facts = [SimpleNamespace(uuid="a", name="T4"), SimpleNamespace(uuid="b", name="L4")]
    monkeypatch.setattr(torch.cuda, "get_device_properties", facts.__getitem__)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    one = energy.gpu_counters(torch.device("cuda", 1))
    assert [(counter.name, counter.read()) for counter in one] == [("GPU 1 (L4)", 2.0)]
    both = energy.gpu_counters(torch.device("cuda", 0), devices=2)
    assert [(counter.name, counter.read()) for counter in both] == [("GPU 0 (T4)", 1.0), ("GPU 1 (L4)", 2.0)]
    handles.clear()
    assert energy.gpu_counters(torch.device("cuda", 0)) == []
