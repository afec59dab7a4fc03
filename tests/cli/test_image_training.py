"""The image trainer's flags: every one works, and what is typed wins."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
import torch
import yaml

from cli import image_training
from cli.run_training import main
from tests.kit.pictures import CLASSES, SmallNet, pictures
from utils.compat.image_config import (
    Config,
    ImageSettings,
    create_config_parser,
    get_default_config,
    load_config,
)
from utils.data.images.registry import DatasetRegistry
from utils.errors import ConfigError
from utils.models import ModelRegistry
from utils.training.engine.checkpointing.store import read_plain


class Quadrants:
    """A dataset of toy pictures, as image datasets are used."""

    num_classes, input_channels, input_size = CLASSES, 1, (8, 8)
    made: list

    def __init__(self, root="./data", download=True, reapply_transforms=False):
        self.root, self.reapply_transforms, self.resets = str(root), reapply_transforms, 0
        self._train_dataset = pictures()
        type(self).made.append(self)

    def get_dataloaders(self, batch_size=64, num_workers=0, shuffle_train=True):
        self.asked = (batch_size, num_workers)
        loader = torch.utils.data.DataLoader
        return (
            loader(self._train_dataset, batch_size, shuffle=shuffle_train, num_workers=num_workers),
            loader(pictures(22, seed=4), batch_size),
        )

    def reset_train_transforms(self):
        self.resets += 1


@pytest.fixture
def quadrants(monkeypatch):
    """The dataset "quadrants" and the model "smallnet" in the registries, for one test."""
    for one, name, factory in ((DatasetRegistry, "quadrants", Quadrants), (ModelRegistry, "smallnet", SmallNet)):
        one.list_available()
        monkeypatch.setattr(one, "_factories", {**one._factories, name: factory})
    Quadrants.made = []
    return Quadrants


def train(*flags):
    typed = ["--dataset", "quadrants", "--model", "smallnet", "--batch-size", "8", "--lr", "0.02", *map(str, flags)]
    return main(typed)


def test_an_experiment_from_flags_ends_with_model_curves_and_folder(quadrants, capsys):
    assert train("--epochs", 2) == 0
    out = capsys.readouterr().out
    assert "epoch 2/2  train loss" in out
    folder = Path("runs/exp1")
    for name in ("final_model.pth", "latest_checkpoint.pt", "best_model.pt", "epoch_1.pt"):
        assert (folder / "checkpoints" / name).is_file()
    SmallNet().load_state_dict(torch.load(folder / "checkpoints" / "final_model.pth", weights_only=True))
    kept = yaml.safe_load((folder / "config.yaml").read_text())["experiment"]
    assert (kept["dataset"], kept["model"], kept["learning_rate"]) == ("quadrants", "smallnet", 0.02)
    assert (folder / "training_curves.png").is_file()


def test_resume_needs_no_other_flag_and_extends(quadrants, capsys):
    train("--epochs", 2, "--scheduler", "step", "--scheduler-step-size", 1, "--scheduler-gamma", 0.5)
    assert main(["--resume", "exp1"]) == 0
    assert "trained     0 epochs" in capsys.readouterr().out
    assert main(["--resume", "exp1", "--epochs", "3"]) == 0
    out = capsys.readouterr().out
    assert "epoch 3/3" in out
    assert "epoch 2/3" not in out
    rows = Path("runs/exp1/training_log.txt").read_text().splitlines()
    assert [row.split(",")[5].strip() for row in rows[1:]] == ["2.00e-02", "1.00e-02", "5.00e-03"]
    assert not Path("runs/exp2").exists()


def test_fork_has_the_weights_and_the_rate_that_is_typed(quadrants, capsys):
    train("--epochs", 3)
    assert main(["--fork", "exp1", "--epochs", "1", "--learning-rate", "1e-5"]) == 0
    assert "6 of" not in capsys.readouterr().err
    row = Path("runs/exp2/training_log.txt").read_text().splitlines()[1].split(",")
    assert row[5].strip() == "1.00e-05"
    source, fork = (read_plain(f"runs/{name}/checkpoints/latest_checkpoint.pt") for name in ("exp1", "exp2"))
    weight = "classifier.2.weight"
    assert torch.allclose(source["model_state_dict"][weight], fork["model_state_dict"][weight], atol=1e-3)
    assert fork["epoch"] == 1


def test_a_fork_of_which_nothing_fits_is_an_error(quadrants, capsys, monkeypatch):
    def flat(num_classes=CLASSES, input_channels=1, **_):
        return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64 * input_channels, num_classes))

    monkeypatch.setattr(ModelRegistry, "_factories", {**ModelRegistry._factories, "flat": flat})
    train("--epochs", 1)
    assert main(["--fork", "exp1", "--model", "flat", "--epochs", "1"]) != 0
    assert "none of the" in capsys.readouterr().err


def test_resume_and_fork_exclude_each_other_and_an_unknown_name_lists_what_there_is(quadrants, capsys):
    train("--epochs", 1)
    assert train("--resume", "exp1", "--fork", "exp1") == 2
    assert train("--resume", "exp7") == 2
    err = capsys.readouterr().err
    assert "resumed or forked" in err
    assert "there are: exp1" in err
    assert not Path("runs/exp2").exists()


def test_flags_go_over_the_file_even_with_a_defaults_value(quadrants, tmp_path):
    path = tmp_path / "experiment.yaml"
    path.write_text(
        "dataset: {name: quadrants}\nmodel: smallnet\ntraining: {epochs: 1, batch_size: 8}\n"
        "optimization: {learning_rate: 5e-2, optimizer: sgd}\n"
    )
    assert main(["--config", str(path), "--learning-rate", "1e-3"]) == 0
    kept = yaml.safe_load(Path("runs/exp1/config.yaml").read_text())["experiment"]
    assert (kept["learning_rate"], kept["optimizer"], kept["epochs"]) == (1e-3, "sgd", 1)


def test_data_flags_reach_the_data_set(quadrants):
    train("--epochs", 2, "--data-root", "elsewhere", "--reapply-transforms", "--num-workers", 1)
    made = quadrants.made[0]
    assert (made.root, made.reapply_transforms, made.asked) == ("elsewhere", True, (8, 1))
    assert made.resets == 1


def test_checkpoint_flags_decide_which_and_where(quadrants):
    train("--epochs", 3, "--checkpoint-dir", "kept", "--save-frequency", 2)
    assert {path.name for path in Path("kept").iterdir()} == {"latest_checkpoint.pt", "best_model.pt", "epoch_2.pt"}


def test_patience_stops(quadrants, capsys):
    assert train("--epochs", 30, "--patience", 1, "--lr", "1e-9", "--runs-dir", "tries") == 0
    assert "stopped early" in capsys.readouterr().out
    assert Path("tries/exp1").is_dir()


def test_number_of_classes_is_not_ignored(quadrants, capsys):
    train("--epochs", 1, "--num-classes", 6)
    weights = read_plain("runs/exp1/checkpoints/latest_checkpoint.pt")["model_state_dict"]
    assert weights["classifier.2.weight"].shape == (6, 16)
    assert train("--num-classes", 2) == 2
    assert "quadrants has 4 classes" in capsys.readouterr().err


def test_frozen_layers_stay_as_they_are(quadrants, capsys):
    assert train("--epochs", 1, "--freeze", "features") == 0
    assert "frozen " in capsys.readouterr().out
    torch.manual_seed(42)
    fresh = SmallNet().state_dict()
    weights = read_plain("runs/exp1/checkpoints/latest_checkpoint.pt")["model_state_dict"]
    assert all(torch.equal(weights[name], fresh[name]) for name in fresh if name.startswith("features"))
    assert not torch.equal(weights["classifier.2.weight"], fresh["classifier.2.weight"])
    assert train("--freeze", "features", "classifier") == 2
    assert "nothing is left to train" in capsys.readouterr().err


def test_a_dry_run_checks_and_makes_nothing(quadrants, capsys):
    assert train("--dry-run") == 0
    assert not Path("runs").exists()
    assert train("--dry-run", "--model", "gpt-small") == 2
    assert "no model for images" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "kind"),
    [
        ({"scheduler": "none"}, type(None)), ({"scheduler": "step"}, torch.optim.lr_scheduler.StepLR),
        ({"scheduler": "cosine"}, torch.optim.lr_scheduler.CosineAnnealingLR),
        ({"scheduler": "exponential"}, torch.optim.lr_scheduler.ExponentialLR),
    ],
)  # fmt: skip
def test_every_scheduler_is_made(settings, kind):
    optimizer = torch.optim.SGD(SmallNet().parameters(), lr=1.0)
    assert type(image_training.make_scheduler(ImageSettings(**settings), optimizer)) is kind


def test_the_scheduler_for_plateaus_waits_for_the_accuracy():
    optimizer = torch.optim.SGD(SmallNet().parameters(), lr=1.0)
    scheduler = image_training.make_scheduler(ImageSettings(scheduler="plateau", scheduler_patience=2), optimizer)
    assert (scheduler.mode, scheduler.patience) == ("max", 2)


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd"])
def test_every_optimizer_is_made_with_its_settings(name):
    settings = ImageSettings(optimizer=name, learning_rate=0.5, weight_decay=0.25, momentum=0.5)
    group = image_training.make_optimizer(settings, SmallNet()).param_groups[0]
    assert (group["lr"], group["weight_decay"]) == (0.5, 0.25)
    assert group.get("momentum", 0.5) == 0.5


def test_every_setting_has_a_flag_that_sets_it():
    words = {str: "adam", int: "3", float: "0.5"}
    for name, field in ImageSettings.model_fields.items():
        flag = "--" + name.replace("_", "-")
        given = {
            "scheduler": "step",
            "device": "cpu",
            "precision": "auto",
            "optimizer": "sgd",
            "freeze": "features",
        }.get(name, words.get(field.annotation, "4"))
        arguments = [flag] if field.annotation is bool else [flag, given]
        config = load_config(None, create_config_parser().parse_args(arguments))
        assert getattr(config.settings, name) != field.default, flag


def test_mistakes_are_told_together_and_before_anything_is_read(capsys):
    assert main(["--dataset", "mnist", "--epochs", "0", "--learning-rate", "fast"]) == 2
    err = capsys.readouterr().err
    assert "2 problems in ImageSettings" in err
    assert "epochs" in err
    assert "learning_rate" in err


def test_a_config_is_read_by_section_and_by_field(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("epochs: 3\ndataset: {name: MNIST}\noptimization:\n")
    config = Config.from_yaml(path)
    assert config.dataset["name"] == "mnist"
    assert config.get("epochs") == config.training["epochs"] == 3
    assert config.get("nothing", 7) == 7
    assert config.get("training") == config.to_dict()["training"]
    config.to_dict()["training"]["epochs"] = 99
    assert config.training["epochs"] == 3
    path.write_text("epochs: 3\ntraining: {epochs: 4}\n")
    with pytest.raises(ConfigError, match="stands twice"):
        load_config(path)
    assert get_default_config().training["epochs"] == 20


def test_text_jobs_are_told_from_image_experiments(tmp_path):
    text, image = tmp_path / "text.yaml", tmp_path / "image.yaml"
    text.write_text("model: {name: gpt-small}\ntraining: {epochs: 2}\n")
    image.write_text("dataset: mnist\nepochs: 2\n")
    assert not image_training.is_meant([])
    assert not image_training.is_meant(["--config", str(text), "--resume", "auto"])
    assert not image_training.is_meant(["--help"])
    assert image_training.is_meant(["--config", str(image)])
    assert image_training.is_meant(["--dataset=mnist", "--help"])
    assert not image_training.is_meant(["--resume", "exp1"])


def test_help_names_every_flag(capsys):
    with pytest.raises(SystemExit) as left:
        main(["--dataset", "mnist", "--help"])
    assert left.value.code == 0
    shown = capsys.readouterr().out
    assert "--reapply-transforms" in shown
    assert "--scheduler-eta-min" in shown
    assert inspect.cleandoc(image_training.__doc__).splitlines()[-1] in shown


def test_another_rate_or_schedule_is_for_a_fork(quadrants, capsys):
    train("--epochs", 1)
    assert main(["--resume", "exp1", "--epochs", "2", "--lr", "1e-5", "--scheduler", "cosine"]) == 2
    err = capsys.readouterr().err
    assert "learning_rate  got 1e-05; exp1 continues with 0.02" in err
    assert "got 'cosine'; exp1 continues with 'none'" in err
    assert "--fork exp1" in err
    assert len(Path("runs/exp1/training_log.txt").read_text().splitlines()) == 2
    assert main(["--fork", "exp1", "--epochs", "1", "--lr", "1e-5"]) == 0


def test_an_optimizer_that_starts_afresh_is_said(quadrants, capsys, caplog):
    train("--epochs", 1)
    assert main(["--resume", "exp1", "--epochs", "2", "--optimizer", "sgd"]) == 0
    assert "The optimizer starts afresh: AdamW's averages" in caplog.text


def test_an_experiment_that_was_ended_before_it_began_is_not_taken_for_one_of_the_defaults(quadrants, capsys):
    Path("runs/exp1/checkpoints").mkdir(parents=True)
    assert main(["--runs-dir", "runs", "--resume", "exp1"]) == 2
    assert "exp1 keeps no settings of this command" in capsys.readouterr().err
    assert train("--resume", "exp1", "--epochs", 1) == 0
