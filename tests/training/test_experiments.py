"""Experiments are numbered without collisions, found again, and forked from what is whole."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import pytest
import torch
from torch import nn

from utils.errors import CheckpointError, ConfigError
from utils.training import CheckpointManager, ExperimentManager


def net(width=3):
    return nn.Linear(2, width)


def save(experiment, epoch, *, fill=0.0):
    """A checkpoint whose weights are `fill`, by an optimizer with a state."""
    model = net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.5)
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    nn.init.constant_(model.weight, fill)
    manager = CheckpointManager(experiment.checkpoints_dir, save_frequency=1)
    manager.save_epoch_checkpoint(model, optimizer, epoch, 0.1, 50.0)
    manager.save_latest_checkpoint(model, optimizer, epoch, 0.1, 50.0)


def test_paths_are_the_documented_ones():
    experiment = ExperimentManager(base_dir="runs")
    assert experiment.experiment_dir == str(Path("runs/exp1").absolute())
    assert experiment.checkpoints_dir == str(Path("runs/exp1/checkpoints").absolute())
    assert Path(experiment.checkpoints_dir).is_dir()
    assert experiment.log_file.endswith("training_log.txt")
    assert experiment.plot_file.endswith("training_curves.png")
    assert experiment.config_file.endswith("config.yaml")
    assert experiment.get_experiment_info() == f"Experiment directory: {experiment.experiment_dir}"
    assert experiment.fork_source_dir is None


def test_the_next_number_is_above_all_there_are():
    for name in ("exp3", "exp7", "expfoo"):
        Path("runs", name).mkdir(parents=True)
    Path("runs/exp9").touch()
    assert ExperimentManager("runs").name == "exp8"
    assert ExperimentManager("runs").name == "exp10"


def reserve(start, names):
    start.wait()
    names.put([ExperimentManager("runs").name for _ in range(10)])


def test_processes_that_start_at_the_same_moment_get_numbers_of_their_own():
    context = multiprocessing.get_context("fork")
    start, names = context.Event(), context.Queue()
    processes = [context.Process(target=reserve, args=(start, names)) for _ in range(4)]
    for process in processes:
        process.start()
    start.set()
    found = [name for _ in processes for name in names.get(timeout=300)]
    for process in processes:
        process.join(300)
    assert len(found) == len(set(found)) == 40


def test_resume_takes_the_folder_and_fork_a_new_one():
    ExperimentManager("runs")
    resumed = ExperimentManager("runs", resume_exp="exp1")
    assert (resumed.name, resumed.resumed) == ("exp1", True)
    fork = ExperimentManager("runs", fork_exp="exp1")
    assert (fork.name, fork.fork_source_dir, fork.resumed) == ("exp2", str(Path("runs/exp1").absolute()), False)


@pytest.mark.parametrize("how", ["resume_exp", "fork_exp"])
@pytest.mark.parametrize("name", ["exp5", "../outside", "", "afile"])
def test_a_missing_source_lists_what_there_is_and_makes_nothing(how, name):
    ExperimentManager("runs")
    Path("outside").mkdir()
    Path("runs/afile").touch()
    with pytest.raises(FileNotFoundError, match="there are: exp1"):
        ExperimentManager("runs", **{how: name})
    assert sorted(path.name for path in Path("runs").iterdir()) == ["afile", "exp1"]


def test_resume_and_fork_together_are_an_error():
    with pytest.raises(ConfigError, match="resumed or forked"):
        ExperimentManager("runs", resume_exp="exp1", fork_exp="exp1")
    assert not Path("runs").exists()


def test_a_fork_takes_the_newest_checkpoint_and_keeps_the_rates_that_are_set():
    source = ExperimentManager("runs")
    save(source, 1, fill=1.0)
    save(source, 2, fill=2.0)
    model = net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    info = ExperimentManager("runs", fork_exp="exp1").restore_fork(model, optimizer)
    assert bool((model.weight == 2.0).all())
    assert (info["epoch"], info["optimizer_restored"]) == (2, True)
    assert optimizer.param_groups[0]["lr"] == 1e-5
    assert optimizer.state[model.weight]["step"] == 1


def test_a_damaged_newest_checkpoint_is_passed_over():
    source = ExperimentManager("runs")
    save(source, 1, fill=1.0)
    save(source, 2, fill=2.0)
    for name in ("latest_checkpoint.pt", "epoch_2.pt"):
        path = Path(source.checkpoints_dir, name)
        path.write_bytes(path.read_bytes()[:300])
    model = net()
    info = ExperimentManager("runs", fork_exp="exp1").restore_fork(model)
    assert info["epoch"] == 1
    assert bool((model.weight == 1.0).all())


def test_a_fork_of_nothing_whole_says_what_was_tried():
    source = ExperimentManager("runs")
    fork = ExperimentManager("runs", fork_exp="exp1")
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        fork.restore_fork(net())
    Path(source.checkpoints_dir, "latest_checkpoint.pt").write_bytes(b"PK and no more")
    with pytest.raises(CheckpointError, match="is damaged"):
        fork.restore_fork(net())
    with pytest.raises(ConfigError, match="is no fork"):
        source.restore_fork(net())


def test_a_fork_into_another_head_takes_what_fits():
    save(ExperimentManager("runs"), 1)
    info = ExperimentManager("runs", fork_exp="exp1").restore_fork(nn.Sequential(net(7)))
    assert not info["fully_restored"]
    assert info["loaded_layers"] == 0


def test_the_folder_above_is_no_experiment():
    ExperimentManager("deep/runs")
    for how in ("resume_exp", "fork_exp"):
        with pytest.raises(CheckpointError, match="there are: exp1"):
            ExperimentManager("deep/runs", **{how: ".."})
    assert not Path("deep/checkpoints").exists()


def test_an_emptied_section_of_the_config_is_as_none():
    experiment = ExperimentManager("runs")
    Path(experiment.config_file).write_text("training:\nexperiment: 5\n")
    resumed = ExperimentManager("runs", resume_exp="exp1")
    assert (resumed.kept_seed(), resumed.settings) == (None, {})
