"""Relative paths mean what they meant when they were accepted, wherever the process is later."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import Dataset

from tests.kit.golden import golden_parts
from tests.kit.toys import same_weights, tiny_gpt, token_rows
from utils.compat.experiment_log import ExperimentLog
from utils.data.read.cache import TableCache
from utils.data.read.uploads import save_upload
from utils.data.text.loader import DatasetLoader
from utils.tokenization.cache import cache_folder
from utils.training import Callback, Trainer, TrainingConfig, TrainingResults, export_model
from utils.training.checkpoint_manager import CheckpointManager
from utils.training.config_files import read_config_file
from utils.training.coordinator import TrainingCoordinator
from utils.training.experiments import ExperimentManager
from utils.training.mirror import mirror_folder
from utils.training.run_folder import RunFolder
from utils.training.search import search_hyperparameters
from utils.ui.runs import list_runs
from utils.ui.setup_config import SetupConfig


@pytest.fixture
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which nothing may appear."""
    return tmp_path_factory.mktemp("elsewhere")


class Move(Callback):
    """Changes the working folder at every event."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_begin(self, trainer, logs=None):
        os.chdir(self.folder)

    def on_step_end(self, step, trainer, logs=None):
        os.chdir(self.folder)

    def on_epoch_end(self, epoch, trainer, logs=None):
        os.chdir(self.folder)


class MovingRows(Dataset):
    """Rows of the golden run's data; reading one changes the working folder."""

    def __init__(self, rows: Dataset, folder: Path) -> None:
        self.rows, self.folder = rows, folder

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> Any:
        os.chdir(self.folder)
        return self.rows[number]


def train(folder: Path, *, resume_from: Any = None, rows: bool = False, **changes: Any) -> TrainingResults:
    model, config, train_set, validation_set, count = golden_parts()
    trainer = Trainer(model, None, config.replace(**changes), callbacks=[count, Move(folder)])
    return trainer.train(MovingRows(train_set, folder) if rows else train_set, validation_set, resume_from=resume_from)


@pytest.mark.parametrize("places", [
    {}, {"output_dir": "deep/er"}, {"checkpoint_dir": "files"}, {"output_dir": "../beside"}, {"run_name": None},
], ids=["default", "output_dir", "checkpoint_dir", "parent", "unnamed"])  # fmt: skip
def test_a_run_stays_where_it_began(places, elsewhere, tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    os.chdir(home)
    results = train(elsewhere, **places)
    results.show()
    assert not list(elsewhere.iterdir())
    assert results.run_dir.resolve().parent == (home / places.get("output_dir", "runs")).resolve()
    for path in (*results.checkpoint_paths, results.best_model_path, str(results.run_dir)):
        assert Path(path).is_absolute()
        assert Path(path).exists()
    if "checkpoint_dir" in places:
        assert Path(results.checkpoint_path).parent == home / "files"
    assert results.curves_path.is_file()


def test_the_config_that_is_kept_stays_portable(elsewhere):
    results = train(elsewhere, checkpoint_dir="files")
    kept = read_config_file(results.run_dir / "config.yaml")["training"]
    assert (kept["output_dir"], kept["checkpoint_dir"]) == ("runs", "files")
    assert TrainingConfig.from_dict(kept) == results.training_config


@pytest.mark.parametrize("source", ["run", "checkpoints", "file", "path", "results"])
@pytest.mark.parametrize("rows", [False, True], ids=["callback", "data"])
def test_a_relative_source_is_found_though_the_folder_changes(source, rows, elsewhere):
    home = Path.cwd()
    first = train(elsewhere)
    os.chdir(home)
    resume_from: Any = {
        "run": "runs/golden", "checkpoints": "runs/golden/checkpoints", "file": "runs/golden/checkpoints/epoch_3.pt",
        "path": Path("runs/golden"), "results": first,
    }[source]  # fmt: skip
    again = train(elsewhere, resume_from=resume_from, rows=rows, run_name="forked", epochs=4, on_config_change="continue")
    assert again.run_dir == home / "runs/forked"
    assert again.steps == 16
    assert not list(elsewhere.iterdir())


def test_a_trainer_that_is_made_before_the_folder_changes(elsewhere):
    home = Path.cwd()
    model, config, train_set, validation_set, count = golden_parts()
    trainer = Trainer(model, None, config, callbacks=[count])
    os.chdir(elsewhere)
    results = trainer.train(train_set, validation_set)
    assert results.run_dir == home / "runs/golden"
    os.chdir("/")
    again = Trainer(golden_parts()[0], None, config.at(home), callbacks=[count]).train(
        train_set, validation_set, resume_from="auto"
    )
    assert again.run_dir == results.run_dir
    assert same_weights(again.model, results.model)
    assert not list(elsewhere.iterdir())


def test_an_export_goes_into_the_run(elsewhere):
    home = Path.cwd()
    trainer = Trainer(tiny_gpt(), None, TrainingConfig(epochs=1, run_name="exported"), callbacks=[Move(elsewhere)])
    results = trainer.train(torch.utils.data.TensorDataset(token_rows(8)))
    exported = export_model(results)
    assert home / "runs/exported" in exported["hf"].path.parents
    assert not list(elsewhere.iterdir())


def test_a_search_stays_where_it_began(elsewhere):
    home = Path.cwd()
    model, config, train_set, validation_set, _ = golden_parts()
    found = search_hyperparameters(
        model, {"learning_rate": [1e-3, 1e-2]}, train_set, validation_set, strategy="grid",
        training_config=config.replace(epochs=1, run_name=None, checkpoint_dir="files"), callbacks=[Move(elsewhere)],
    )  # fmt: skip
    assert found.folder.is_relative_to(home)
    assert len(list((home / "files").rglob("epoch_1.pt"))) == 2
    assert not list(elsewhere.iterdir())


def test_a_coordinator_stays_where_it_was_made(elsewhere):
    home = Path.cwd()
    coordinator = TrainingCoordinator("out")
    os.chdir(elsewhere)
    rows = list(token_rows(12))
    results = coordinator.train(tiny_gpt(), rows, max_epochs=1, batch_size=4)
    assert home / "out" in Path(results["run_dir"]).parents
    again = coordinator.resume_training(results, tiny_gpt(), dataset=rows, max_epochs=2)
    assert home / "out" in Path(again["run_dir"]).parents
    assert not list(elsewhere.iterdir())


def test_a_setup_keeps_its_folder(elsewhere):
    Path("mine.txt").write_text("one line and more\n" * 400)
    home = Path.cwd()
    setup = SetupConfig(dataset_path="mine.txt", max_length=16, vocab_size=300)
    os.chdir(elsewhere)
    from utils.data import prepare_data

    model = tiny_gpt(vocab_size=300)
    data = prepare_data(setup, model)
    assert data.train is not None
    trainer = Trainer(model, None, setup.training_config.replace(max_steps=2, run_name="mine"))
    results = trainer.train(data.train)
    assert results.run_dir == home / "runs/mine"
    assert setup.training_config == TrainingConfig()
    assert setup.dataset_path == "mine.txt"
    assert not list(elsewhere.iterdir())


#: Whatever else keeps a path for later -> the path that it keeps, made from a relative one.
KEPT: dict[str, Callable[[], Any]] = {
    "CheckpointManager": lambda: CheckpointManager("kept").checkpoints_dir,
    "CheckpointManager for Lightning": lambda: CheckpointManager(checkpoint_dir="kept").get_callback().dirpath,
    "ExperimentManager": lambda: ExperimentManager("kept").checkpoints_dir,
    "ExperimentLog": lambda: ExperimentLog("kept/log.txt").path,
    "RunFolder": lambda: RunFolder(Path("kept"), Path("kept/files")).checkpoints,
    "mirror": lambda: mirror_folder("kept"),
    "DatasetLoader": lambda: DatasetLoader(cache_dir="kept").cache_dir,
    "TableCache": lambda: TableCache("kept").folder,
    "tokenizer cache": lambda: cache_folder("kept"),
    "upload": lambda: save_upload("a.txt", b"text", "kept").path,
    "config file": lambda: TrainingConfig().save("kept/config.yaml"),
    "saved checkpoint": lambda: CheckpointManager("kept").save_checkpoint(nn.Linear(2, 2), None, 1, 0.0, 0.0, "kept/a.pt"),
}  # fmt: skip


@pytest.mark.parametrize("owner", sorted(KEPT))
def test_every_path_is_kept_absolute(owner):
    path = Path(KEPT[owner]())
    assert path.is_absolute()
    assert path.is_relative_to(Path.cwd() / "kept")


def test_runs_are_listed_with_absolute_folders(elsewhere):
    home = Path.cwd()
    train(elsewhere)
    os.chdir(home)
    assert [run.name for run in list_runs("runs")] == ["golden"]
