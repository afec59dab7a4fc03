"""Checkpoints by hand and of Lightning: committed whole, loaded safely, and every misfit is said."""

from __future__ import annotations

import math
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from utils.errors import CheckpointError, CheckpointNotFoundError, CheckpointWriteError, ConfigError
from utils.training import CheckpointManager
from utils.training.engine.checkpointing.store import read_plain


def net(classes=3, hidden=4):
    return nn.Sequential(nn.Linear(5, hidden), nn.ReLU(), nn.Linear(hidden, classes))


def adam(model, **settings):
    return torch.optim.AdamW(model.parameters(), lr=0.01, **settings)


def trained(model, optimizer, steps=2):
    """The optimizer has a state after this."""
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(6, 5)).square().mean().backward()
        optimizer.step()
    return model, optimizer


@pytest.fixture
def manager():
    return CheckpointManager("checkpoints", save_frequency=2)


@pytest.fixture
def saved(manager):
    """A trained model, its optimizer, and their latest checkpoint."""
    model = net()
    optimizer = adam(model)
    trained(model, optimizer)
    manager.save_latest_checkpoint(model, optimizer, 3, 0.5, 85.0)
    return model, optimizer, Path("checkpoints/latest_checkpoint.pt")


def test_the_documented_files_have_the_documented_content(manager):
    model = net()
    optimizer = adam(model)
    path = manager.save_checkpoint(
        model=model, optimizer=optimizer, epoch=10, loss=0.5, accuracy=85.0, filepath="deep/er/epoch_10.pt",
        additional_info={"train_loss": 0.4},
    )  # fmt: skip
    content = torch.load(path, weights_only=True)
    assert content["epoch"] == 10
    assert (content["loss"], content["accuracy"], content["train_loss"]) == (0.5, 85.0, 0.4)
    assert content["model_state_dict"].keys() == model.state_dict().keys()
    assert {"optimizer_state_dict", "model_config"} <= content.keys()
    assert manager.save_epoch_checkpoint(model, optimizer, 3, 0.5, 1.0) is None
    assert manager.save_epoch_checkpoint(model, optimizer, 4, 0.5, 1.0) == Path("checkpoints/epoch_4.pt").absolute()


def test_numbers_of_numpy_do_not_make_a_file_that_cannot_be_loaded(manager):
    model = net()
    path = manager.save_latest_checkpoint(model, adam(model), 1, np.float64(0.5), np.float32(85))
    assert read_plain(path)["accuracy"] == 85.0
    with pytest.raises(CheckpointWriteError, match=r"f1 is a numpy\.float64"):
        manager.save_latest_checkpoint(model, adam(model), 1, 0.5, 85.0, {"f1": np.float64(0.5)})
    assert read_plain(path)["epoch"] == 1


@pytest.mark.parametrize("name", ["epoch", "model_state_dict", "accuracy"])
def test_additional_information_never_overwrites_what_the_checkpoint_says(manager, name):
    model = net()
    with pytest.raises(ConfigError, match=name):
        manager.save_latest_checkpoint(model, adam(model), 1, 0.5, 85.0, {name: 99})
    assert not Path("checkpoints/latest_checkpoint.pt").exists()


def test_only_a_higher_accuracy_is_a_better_model(manager):
    model = net()
    save = lambda accuracy: manager.save_best_model(model, adam(model), 1, 0.5, accuracy)  # noqa: E731
    assert not save(math.nan)
    assert save(0.0), "0 % is the best there is so far"
    assert not save(0.0)
    assert save(10.0)
    assert not save(math.nan)
    assert manager.best_accuracy == 10.0
    assert read_plain("checkpoints/best_model.pt")["accuracy"] == 10.0


def test_everything_comes_back(manager, saved):
    model, optimizer, path = saved
    other = net()
    other_optimizer = adam(other)
    info = manager.load_checkpoint(path, other, other_optimizer)
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(model.parameters(), other.parameters(), strict=True))
    first = next(iter(other.parameters()))
    assert torch.equal(other_optimizer.state[first]["exp_avg"], optimizer.state[next(model.parameters())]["exp_avg"])
    wanted = {"epoch": 3, "loss": 0.5, "accuracy": 85.0, "fully_restored": True, "loaded_layers": 4, "total_layers": 4}
    assert {name: info[name] for name in wanted} == wanted
    assert info["optimizer_restored"]
    assert not info["skipped"]


@pytest.mark.parametrize(
    ("other", "loaded"), [(net(classes=7), 2), (net(hidden=9), 1), (nn.Sequential(*net(), nn.Linear(3, 3)), 4)]
)
def test_a_part_that_fits_is_loaded_and_the_rest_is_told(manager, saved, other, loaded, caplog):
    optimizer = adam(other)
    info = manager.load_checkpoint(saved[2], other, optimizer, strict=False)
    assert (info["fully_restored"], info["loaded_layers"], info["total_layers"]) == (False, loaded, 4)
    assert not info["optimizer_restored"]
    assert not optimizer.state
    assert info["skipped"]
    assert "entries loaded" in caplog.text


def test_what_only_the_model_has_is_missing_too(manager, saved):
    other = nn.Sequential(*net(), nn.Linear(3, 3))
    info = manager.load_checkpoint(saved[2], other, strict=False)
    assert info["skipped"] == {"3.weight": "not in the file", "3.bias": "not in the file"}


def test_strict_loading_changes_nothing_when_it_fails(manager, saved):
    other = net(classes=7)
    before = [parameter.clone() for parameter in other.parameters()]
    with pytest.raises(RuntimeError, match=r"2\.weight: \(3, 4\) in the checkpoint, \(7, 4\)"):
        manager.load_checkpoint(saved[2], other)
    assert all(torch.equal(mine, old) for mine, old in zip(other.parameters(), before, strict=True))


def test_a_state_of_another_kind_never_gets_into_an_optimizer(manager, saved):
    model, _, path = saved
    sgd = torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9)
    with pytest.raises(CheckpointError, match="it is of AdamW, and this is SGD"):
        manager.load_checkpoint(path, model, sgd)
    info = manager.load_checkpoint(path, model, sgd, strict=False)
    assert "AdamW" in info["optimizer_reason"]
    assert sgd.param_groups[0]["lr"] == 0.3
    trained(model, sgd, 1)


def test_a_foreign_file_that_does_not_name_its_optimizer_is_told_by_its_settings(manager, saved):
    model, optimizer, _ = saved
    torch.save({"epoch": 1, "model_state_dict": model.state_dict(), "optimizer_state_dict": optimizer.state_dict(),
                "loss": 1.0, "accuracy": 50.0, "model_config": {}}, "old.pt")  # fmt: skip
    sgd = torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9)
    with pytest.raises(CheckpointError, match="it has no dampening, momentum, nesterov"):
        manager.load_checkpoint("old.pt", model, sgd)
    assert manager.load_checkpoint("old.pt", model, adam(model))["optimizer_restored"]


def test_averages_of_other_shapes_are_refused(manager, saved):
    _, optimizer, _ = saved
    turned = net(hidden=4)
    state = optimizer.state_dict()
    state["state"][0]["exp_avg"] = torch.zeros(5, 4)
    torch.save({"model_state_dict": turned.state_dict(), "optimizer_state_dict": state}, "turned.pt")
    with pytest.raises(CheckpointError, match=r"exp_avg of parameter 0 is \(5, 4\)"):
        manager.load_checkpoint("turned.pt", turned, adam(turned))


def test_after_a_resume_the_best_model_is_still_to_be_beaten(manager, saved):
    model, optimizer, path = saved
    manager.save_best_model(model, optimizer, 2, 0.4, 90.0)
    resumed = CheckpointManager("checkpoints")
    resumed.load_checkpoint(path, model, optimizer)
    assert resumed.best_accuracy == 90.0
    assert not resumed.save_best_model(model, optimizer, 4, 0.5, 90.0)
    assert resumed.save_best_model(model, optimizer, 4, 0.5, 90.1)


def test_the_best_of_another_model_need_not_be_beaten(manager, saved):
    model, optimizer, path = saved
    manager.save_best_model(model, optimizer, 2, 0.4, 90.0)
    resumed = CheckpointManager("checkpoints")
    resumed.load_checkpoint(path, net(classes=7), strict=False)
    assert not resumed.has_best


def test_a_damaged_best_model_does_not_keep_the_next_one_from_being_saved(manager, saved, caplog):
    model, optimizer, path = saved
    manager.save_best_model(model, optimizer, 2, 0.4, 90.0)
    Path("checkpoints/best_model.pt").write_bytes(b"PK no more")
    manager.load_checkpoint(path, model, optimizer)
    assert "cannot be read" in caplog.text
    assert manager.save_best_model(model, optimizer, 4, 0.5, 50.0)


class Trap:
    def __reduce__(self):
        return os.mkdir, ("run by the file",)


def test_a_file_that_would_run_code_is_refused(manager):
    torch.save({"model_state_dict": Trap()}, "trap.pt")
    with pytest.raises(CheckpointError, match="could run code"):
        manager.load_checkpoint("trap.pt", net())
    assert not Path("run by the file").exists()


def test_a_torn_file_is_named_and_an_absent_one_is_not_found(manager, saved):
    content = saved[2].read_bytes()
    saved[2].write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match="is damaged"):
        manager.load_checkpoint(saved[2], net())
    with pytest.raises(FileNotFoundError):
        manager.load_checkpoint("nowhere.pt", net())


def test_a_full_disk_leaves_the_checkpoint_before(manager, saved, monkeypatch):
    model, optimizer, path = saved
    monkeypatch.setattr("utils.training.engine.checkpointing.writing.free_bytes", lambda folder: 10)
    with pytest.raises(CheckpointWriteError, match="10 are free"):
        manager.save_latest_checkpoint(model, optimizer, 4, 0.1, 99.0)
    assert read_plain(path)["epoch"] == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "got neither"), ({"checkpoints_dir": "a", "checkpoint_dir": "b"}, "got both"),
        ({"checkpoints_dir": "a", "save_frequency": 0}, "at least 1"), ({"checkpoint_dir": "a", "mode": "up"}, "'min' or 'max'"),
        ({"checkpoint_dir": "a", "save_top_k": -2}, "save_top_k"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_when_it_is_made(arguments, message):
    with pytest.raises(ConfigError, match=message):
        CheckpointManager(**arguments)


# Lightning


def lightning_module():
    import pytorch_lightning as pl

    class Small(pl.LightningModule):
        """Learns nothing; its validation losses are what the test wants them to be."""

        def __init__(self, losses=(3.0, 1.0, 2.0), width=2, model=None):
            super().__init__()
            self.save_hyperparameters(ignore=["model"])
            self.layer, self.model = nn.Linear(width, 1), model

        def training_step(self, batch, _):
            return self.layer(batch).square().mean()

        def validation_step(self, batch, _):
            self.log("val_loss", torch.tensor(self.hparams.losses[self.current_epoch]))

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.01)

    return Small


def fit(model, callbacks, epochs=3):
    import pytorch_lightning as pl

    loader = torch.utils.data.DataLoader(torch.ones(4, 2), batch_size=2)
    trainer = pl.Trainer(
        max_epochs=epochs, callbacks=callbacks, logger=False, enable_progress_bar=False, enable_model_summary=False,
        accelerator="cpu",
    )  # fmt: skip
    trainer.fit(model, loader, loader)


@pytest.fixture
def quiet_lightning(recwarn):
    """Lightning's advice on loader processes is a warning."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.fixture
def fitted(quiet_lightning):
    manager = CheckpointManager(checkpoint_dir="ckpts", save_top_k=3, monitor="val_loss", mode="min")
    fit(lightning_module()(), [manager.get_callback()])
    return manager


def test_the_best_of_lightnings_checkpoints_is_really_the_best(fitted):
    assert Path(fitted.get_best_checkpoint_path()).name.startswith("epoch=01")
    assert fitted.load_checkpoint()["epoch"] == 1
    fresh = CheckpointManager(checkpoint_dir="ckpts")  # in another process, days later
    assert fresh.get_best_checkpoint_path() == fitted.get_best_checkpoint_path()
    largest = CheckpointManager(checkpoint_dir="ckpts", mode="max")
    assert Path(largest.get_best_checkpoint_path()).name.startswith("epoch=00")


def test_lists_are_in_the_order_that_was_asked_for(fitted):
    order = [Path(path).name[:8] for path in fitted.list_checkpoints("metric")]
    assert [name for name in order if name != "last.ckp"] == ["epoch=01", "epoch=02", "epoch=00"]
    assert [Path(path).name[:8] for path in fitted.list_checkpoints("epoch")][:2] == ["epoch=00", "epoch=01"]
    with pytest.raises(ConfigError, match="time, epoch, metric, name"):
        fitted.list_checkpoints("size")


def test_the_best_and_the_newest_outlive_a_clean_up(fitted):
    removed = fitted.cleanup_old_checkpoints(keep_top_k=1)
    assert [Path(path).name[:8] for path in removed] == ["epoch=00"]
    assert {Path(path).name[:8] for path in fitted.list_checkpoints()} == {"epoch=01", "epoch=02", "last.ckp"}


def test_a_model_comes_back_from_its_checkpoint(fitted):
    model = fitted.load_model_from_checkpoint(lightning_module())
    assert not model.training
    content = fitted.load_checkpoint(fitted.get_best_checkpoint_path())
    assert torch.equal(model.layer.weight, content["state_dict"]["layer.weight"])
    with pytest.raises(CheckpointError, match=r"layer\.weight: \(1, 2\) in the checkpoint"):
        fitted.load_model_from_checkpoint(lightning_module(), width=5)


def test_arguments_that_are_missing_are_named(fitted):
    class Needy(lightning_module()):
        def __init__(self, network, width=2):
            super().__init__(width=width)

    with pytest.raises(ConfigError, match="missing a required argument: 'network'"):
        fitted.load_model_from_checkpoint(Needy)
    assert fitted.load_model_from_checkpoint(Needy, network=None).layer.weight.shape == (1, 2)


def test_hyper_parameters_that_are_objects_are_refused_with_what_to_do(quiet_lightning):
    class Careless(lightning_module()):
        def __init__(self, network=None):
            super().__init__()
            self.save_hyperparameters("network")

    manager = CheckpointManager(checkpoint_dir="careless")
    fit(Careless(nn.Linear(2, 2)), [manager.get_callback()], epochs=1)
    path = next(Path("careless").glob("*.ckpt"))
    with pytest.raises(CheckpointError, match="save_hyperparameters"):
        manager.load_checkpoint(path)


def test_a_damaged_file_is_neither_best_nor_listed(fitted, caplog):
    best = Path(fitted.get_best_checkpoint_path())
    best.write_bytes(best.read_bytes()[:200])
    assert Path(fitted.get_best_checkpoint_path()).name.startswith("epoch=02")
    assert "Passed over" in caplog.text


def test_an_empty_folder_has_no_best_and_says_so():
    manager = CheckpointManager(checkpoint_dir="empty")
    assert manager.get_best_checkpoint_path() is None
    assert manager.list_checkpoints() == []
    with pytest.raises(CheckpointNotFoundError, match=r"no intact \.ckpt"):
        manager.load_checkpoint()


def test_the_table_shows_every_file(fitted, capsys):
    fitted.print_checkpoint_info()
    shown = capsys.readouterr().out
    assert shown.count("MiB") == len(fitted.list_checkpoints())
    assert shown.count("best") == 1


def test_lightnings_checkpoints_are_copied_and_removed_with_it(quiet_lightning):
    Path("drive").mkdir()
    manager = CheckpointManager(
        checkpoint_dir="ckpts", save_top_k=1, drive_backup=True, drive_backup_path="drive/copies"
    )
    fit(lightning_module()(), [manager.get_callback(), manager.get_backup_callback()])
    here = {path.name: path.read_bytes() for path in Path("ckpts").glob("*.ckpt")}
    there = {path.name: path.read_bytes() for path in Path("drive/copies").iterdir()}
    assert there == here
    assert CheckpointManager(checkpoint_dir="ckpts").get_backup_callback() is None
    shutil.rmtree("drive")


def test_files_of_others_are_not_read_by_a_torch_whose_loader_had_holes(manager, saved, monkeypatch):
    model, _, path = saved
    shutil.copy(path, "elsewhere.pt")
    monkeypatch.setattr(torch, "__version__", "2.9.1+cpu")
    assert manager.load_checkpoint(path, model)["fully_restored"], "a file of its own"
    for load in (
        lambda: manager.load_checkpoint("elsewhere.pt", model),
        lambda: manager.load_checkpoint("elsewhere.pt"),
    ):
        with pytest.raises(CheckpointError, match=r"needs torch 2\.10"):
            load()


@pytest.mark.parametrize("state", [5, {"param_groups": [5], "state": {}}, {"param_groups": [{}], "state": {}}])
def test_an_optimizers_state_that_is_none_is_said(tmp_path, state):
    model = torch.nn.Linear(2, 3)
    torch.save(
        {"model_state_dict": model.state_dict(), "epoch": None, "optimizer_state_dict": state}, tmp_path / "x.pt"
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    manager = CheckpointManager(tmp_path)
    with pytest.raises(CheckpointError, match="it is no optimizer's state_dict"):
        manager.load_checkpoint(tmp_path / "x.pt", model, optimizer)
    assert manager.load_checkpoint(tmp_path / "x.pt", model)["epoch"] == 0
