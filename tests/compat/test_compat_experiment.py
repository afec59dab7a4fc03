"""The experiment trainer: documented results and files, and none of the mistakes that such trainers make."""

from __future__ import annotations

import math
import os
import signal
import threading
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import MultiStepLR, ReduceLROnPlateau, StepLR
from torch.utils.data import DataLoader, TensorDataset

from tests.kit.pictures import loaders, pictures, small_net
from tests.kit.toys import same_weights
from utils.compat.experiment import Trainer
from utils.errors import CheckpointError, ConfigError, ModelError, NonFiniteError, TrainingInterrupted
from utils.training import Callback, CheckpointManager, ExperimentManager
from utils.training.engine.checkpointing.store import read_plain


@pytest.fixture(autouse=True)
def pictures_are_drawn_only_where_they_are_looked_at(request, monkeypatch):
    """Drawing takes longer than all the epochs of such a test."""
    if "documented_ones" not in request.node.name:
        monkeypatch.setattr("utils.views.curves.save_figure", lambda figure, path: path)


HISTORY = {
    "train_loss", "train_accuracy", "val_loss", "val_accuracy", "learning_rate", "epoch_time", "train_speed", "val_speed",
}  # fmt: skip


def experiment(
    experiment=None, *, manager=True, scheduler=None, make=torch.optim.AdamW, rate=0.02, batches=None, frequency=2,
    criterion=None, model=None, **settings,
):  # fmt: skip
    """A trainer of a small net; `scheduler` makes one from the optimizer."""
    experiment = experiment or ExperimentManager("runs")
    model = small_net() if model is None else model
    optimizer = make(model.parameters(), lr=rate)
    train, validation = batches or loaders()
    keeper = CheckpointManager(experiment.checkpoints_dir, frequency) if manager else None
    return Trainer(
        model, train, validation, criterion or nn.CrossEntropyLoss(), optimizer, torch.device("cpu"), experiment, keeper,
        None if scheduler is None else scheduler(optimizer), **{"seed": 5, **settings},
    )  # fmt: skip


class Scripted(nn.Module):
    """A net that learns nothing: after epoch n its validation accuracy is what the script says, in 22nds."""

    def __init__(self, right):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.right, self.epoch, self.seen, self.trained = right, 0, 0, 0

    def forward(self, images):
        scores = torch.zeros(len(images), 4)
        if self.training:
            self.trained += 1
        else:
            if self.trained:  # the first pass after an epoch of training
                self.epoch += 1
                self.trained = self.seen = 0
            labels = pictures(22, seed=4).tensors[1][self.seen : self.seen + len(images)]
            hits = torch.arange(self.seen, self.seen + len(images)) < self.right[self.epoch - 1]
            scores[torch.arange(len(images)), torch.where(hits, labels, (labels + 1) % 4)] = 1.0
            self.seen += len(images)
        return scores + self.weight


def scripted(right, **settings):
    return experiment(
        model=Scripted(right), make=torch.optim.SGD, rate=1e-9, **settings
    )  # fmt: skip


def files(trainer):
    return {path.name for path in Path(trainer.experiment_manager.checkpoints_dir).iterdir()} - {"best.pt"}


def test_results_history_and_files_are_the_documented_ones():
    trainer = experiment(frequency=2)
    results = trainer.train(epochs=5)
    assert set(results) == {
        "epochs_trained", "best_accuracy", "training_time", "history", "experiment_dir", "stopped_early", "best_epoch",
    }  # fmt: skip
    assert results["history"] is trainer.history
    assert trainer.history.keys() == HISTORY
    assert {len(values) for values in trainer.history.values()} == {5}
    assert results["epochs_trained"] == 5
    assert results["best_accuracy"] == max(trainer.history["val_accuracy"]) > 50
    assert results["best_epoch"] == 1 + trainer.history["val_accuracy"].index(results["best_accuracy"])
    assert results["experiment_dir"] == str(Path("runs/exp1").absolute())
    assert {"latest_checkpoint.pt", "best_model.pt", "epoch_2.pt", "epoch_4.pt"} <= files(trainer)
    folder = Path("runs/exp1")
    assert (folder / "training_curves.png").stat().st_size > 10_000
    assert {"config.yaml", "training_log.txt", "history.jsonl"} <= {path.name for path in folder.iterdir()}


def test_a_checkpoint_holds_what_is_documented():
    trainer = experiment()
    trainer.train(3)
    content = torch.load("runs/exp1/checkpoints/latest_checkpoint.pt", weights_only=True)
    assert content["epoch"] == 3
    assert content["loss"] == trainer.history["val_loss"][-1]
    assert content["accuracy"] == trainer.history["val_accuracy"][-1]
    assert content["train_loss"] == trainer.history["train_loss"][-1]
    fresh = small_net()
    fresh.load_state_dict(content["model_state_dict"])
    assert same_weights(fresh, trainer.model)
    info = trainer.checkpoint_manager.load_checkpoint(
        "runs/exp1/checkpoints/best_model.pt", fresh, torch.optim.AdamW(fresh.parameters())
    )
    assert info["accuracy"] == trainer.best_accuracy
    assert info["fully_restored"]


def test_weights_that_have_two_names_in_a_file_are_stored_once():
    trainer = experiment(make=torch.optim.SGD)
    trainer.train(1)
    parameters = sum(p.numel() * p.element_size() for p in trainer.model.parameters())
    import zipfile

    with zipfile.ZipFile("runs/exp1/checkpoints/latest_checkpoint.pt") as archive:
        sizes = [entry.file_size for entry in archive.infolist() if "/data/" in entry.filename]
    assert sum(size == 16 * 4 * 4 for size in sizes) == 1, "the classifier's weight"
    assert parameters > 0


def test_epochs_of_every_nth_number_are_kept_and_others_rotate():
    trainer = experiment(frequency=3)
    trainer.train(8)
    kept = files(trainer)
    assert {"epoch_3.pt", "epoch_6.pt", "epoch_8.pt"} <= kept
    assert len([name for name in kept if name.startswith("epoch")]) <= 5


def test_the_same_seed_gives_the_same_experiment_and_torchs_seed_counts():
    first, second = experiment(), experiment()
    assert first.train(2)["history"]["train_loss"] == second.train(2)["history"]["train_loss"]
    torch.manual_seed(11)
    third = experiment(seed=None)
    third.train(1)
    assert third.seed == 11


def test_a_loss_is_the_mean_over_samples_not_over_batches():
    trainer = experiment(batches=loaders(batch_size=16))
    trainer.train(1)
    images, labels = pictures(22, seed=4).tensors
    with torch.no_grad():
        trainer.model.eval()
        wanted = float(nn.functional.cross_entropy(trainer.model(images), labels))
    assert trainer.history["val_loss"][-1] == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_every_reduction_of_a_criterion_trains_the_same(reduction):
    trainer = experiment(criterion=nn.CrossEntropyLoss(reduction=reduction))
    trainer.train(2)
    other = experiment(criterion=lambda outputs, labels: nn.functional.cross_entropy(outputs, labels))
    other.train(2)
    assert trainer.history["train_loss"] == pytest.approx(other.history["train_loss"], rel=1e-4)


def test_the_gradient_is_that_of_a_plain_loop():
    """One batch an epoch, plain SGD: the weights are those that five lines of torch give."""
    batches = DataLoader(pictures(16), 16), DataLoader(pictures(8), 8)
    trainer = experiment(batches=batches, make=torch.optim.SGD, rate=0.1)
    trainer.model.classifier[1] = nn.Identity()
    plain = small_net()
    plain.classifier[1] = nn.Identity()
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.1)
    trainer.train(2)
    for _ in range(2):
        images, labels = next(iter(batches[0]))
        optimizer.zero_grad()
        nn.functional.cross_entropy(plain(images), labels).backward()
        optimizer.step()
    for mine, theirs in zip(trainer.model.parameters(), plain.parameters(), strict=True):
        assert torch.allclose(mine, theirs, atol=1e-6)


@pytest.mark.usefixtures("only_the_runs_own_passes")
def test_a_loader_that_does_not_shuffle_is_not_shuffled():
    seen = []

    class Watching(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(1, 2)

        def forward(self, numbers):
            if self.training:
                seen.extend(numbers[:, 0].int().tolist())
            return self.layer(numbers)

    data = TensorDataset(torch.arange(10.0)[:, None], torch.arange(10) % 2)
    model = Watching()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    Trainer(
        model, DataLoader(data, 4), DataLoader(data, 4), nn.CrossEntropyLoss(), optimizer, "cpu", ExperimentManager("runs")
    ).train(2)  # fmt: skip
    assert seen == [*range(10), *range(10)]


# Patience and what is best


def test_patience_counts_epochs_that_are_not_strictly_better():
    trainer = scripted([5, 9, 9, 8, 10, 11], patience=2)
    results = trainer.train(6)
    assert results["stopped_early"]
    assert results["epochs_trained"] == 4
    assert (results["best_epoch"], trainer.epochs_without_improvement) == (2, 2)
    assert "latest_checkpoint.pt" in files(trainer)
    assert "epoch_4.pt" in files(trainer), "an epoch that is the last one is saved as every other"


def test_patience_works_without_a_checkpoint_manager():
    trainer = scripted([5, 4, 4, 4, 4], patience=1, manager=False)
    results = trainer.train(5)
    assert (results["stopped_early"], results["epochs_trained"]) == (True, 2)
    assert results["best_accuracy"] == pytest.approx(100 * 5 / 22)
    assert results["best_epoch"] == 1
    assert not {"latest_checkpoint.pt", "best_model.pt"} & files(trainer)


def test_an_accuracy_of_zero_is_an_accuracy():
    trainer = scripted([0, 0, 0], patience=2)
    results = trainer.train(3)
    assert results["best_epoch"] == 1
    assert "best_model.pt" in files(trainer)
    assert results["epochs_trained"] == 3


def test_after_an_early_stop_a_second_call_has_all_patience_again():
    trainer = scripted([5, 4, 4, 4, 9, 4, 4, 4, 4], patience=2)
    assert trainer.train(8)["epochs_trained"] == 3
    results = trainer.train(5)
    assert results["epochs_trained"] == 4
    assert trainer.best_epoch == 5
    assert [len(values) for values in trainer.history.values()] == [7] * 8


def test_best_values_survive_a_second_call_that_finds_nothing_better():
    trainer = scripted([9, 4, 4, 4])
    trainer.train(2)
    results = trainer.train(2)
    assert results["best_epoch"] == 1
    assert results["best_accuracy"] == pytest.approx(100 * 9 / 22)


def test_an_accuracy_to_beat_can_be_set_beforehand():
    trainer = scripted([5, 9, 9])
    trainer.checkpoint_manager.best_accuracy = 30.0
    trainer.train(3)
    assert trainer.best_epoch == 2
    assert read_plain("runs/exp1/checkpoints/best_model.pt")["epoch"] == 2


def test_a_regression_has_no_accuracy_and_is_judged_by_its_loss():
    data = TensorDataset(torch.randn(20, 3), torch.randn(20, 1))
    model = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    experiment = ExperimentManager("runs")
    trainer = Trainer(
        model, DataLoader(data, 5), DataLoader(data, 5), nn.MSELoss(), optimizer, "cpu", experiment,
        CheckpointManager(experiment.checkpoints_dir), patience=3,
    )  # fmt: skip
    results = trainer.train(4)
    assert all(math.isnan(value) for value in trainer.history["val_accuracy"])
    assert results["best_epoch"] == 1 + trainer.history["val_loss"].index(min(trainer.history["val_loss"]))
    assert "best_model.pt" in files(trainer)
    assert trainer.load_history_from_log() == 4


# Schedulers


def test_a_step_scheduler_gets_no_value_and_the_rate_is_that_of_the_epoch():
    trainer = experiment(scheduler=lambda optimizer: StepLR(optimizer, 2, 0.5), rate=0.1)
    assert trainer.train(5)["history"]["learning_rate"] == [0.1, 0.1, 0.05, 0.05, 0.025]


@pytest.mark.parametrize("mode", ["min", "max"])
def test_a_plateau_scheduler_waits_for_the_value_of_its_mode(mode):
    """A model that gets better keeps its rate, whichever way the scheduler looks."""
    right = [2, 4, 6, 8, 10, 12]
    trainer = scripted(
        right, scheduler=lambda optimizer: ReduceLROnPlateau(optimizer, mode=mode, patience=1, factor=0.1, eps=0)
    )
    rates = trainer.train(6)["history"]["learning_rate"]
    assert rates == [1e-9] * 6


def test_a_plateau_scheduler_lowers_the_rate_of_a_model_that_stands_still():
    trainer = scripted([5] * 6, scheduler=lambda optimizer: ReduceLROnPlateau(optimizer, mode="max", patience=1, factor=0.1,
                                                                              eps=0))  # fmt: skip
    rates = trainer.train(6)["history"]["learning_rate"]
    assert rates[-1] < rates[0]


def test_a_plateau_scheduler_for_what_is_not_measured_is_an_error():
    data = TensorDataset(torch.randn(8, 3), torch.randn(8, 1))
    model = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    scheduler = ReduceLROnPlateau(optimizer, mode="max")
    loader = DataLoader(data, 4)
    with pytest.raises(ConfigError, match='mode="min"'):
        Trainer(model, loader, loader, nn.MSELoss(), optimizer, "cpu", ExperimentManager("runs"), scheduler=scheduler)


# Resume and fork


class StopAfter(Callback):
    def __init__(self, epochs):
        self.epochs = epochs

    def on_epoch_end(self, epoch, trainer, logs=None):
        if epoch + 1 == self.epochs:
            trainer.request_stop("test")


@pytest.mark.parametrize(
    "scheduler", [lambda o: StepLR(o, 2, 0.5), lambda o: MultiStepLR(o, [1, 4]), lambda o: ReduceLROnPlateau(o, patience=0)]
)  # fmt: skip
def test_a_resumed_experiment_is_the_one_that_was_never_stopped(scheduler):
    whole = experiment(scheduler=scheduler, patience=4)
    whole.train(6)
    experiment(scheduler=scheduler, patience=4, callbacks=[StopAfter(3)]).train(6)
    resumed = experiment(
        ExperimentManager("runs", resume_exp="exp2"), scheduler=scheduler, patience=4, seed=None, model=small_net(seed=9)
    )
    results = resumed.train(6)
    assert results["epochs_trained"] == 3
    assert same_weights(whole.model, resumed.model)
    for name in ("train_loss", "val_loss", "val_accuracy", "learning_rate"):
        assert resumed.history[name] == whole.history[name]
    assert (resumed.best_epoch, resumed.best_accuracy) == (whole.best_epoch, whole.best_accuracy)
    assert Path(resumed.experiment_manager.log_file).read_text().count("\n") == 7


def test_patience_and_best_go_on_right_after_a_resume():
    scripted([9, 4, 4, 4, 4], patience=3, callbacks=[StopAfter(2)]).train(5)
    resumed = scripted([4, 4, 10], patience=3, experiment=ExperimentManager("runs", resume_exp="exp1"))
    results = resumed.train(5)
    assert (results["best_epoch"], results["stopped_early"], results["epochs_trained"]) == (1, True, 2)
    assert results["best_accuracy"] == pytest.approx(100 * 9 / 22)
    assert read_plain("runs/exp1/checkpoints/best_model.pt")["epoch"] == 1, "a worse model took its place"


def test_a_resumed_experiment_that_is_finished_trains_nothing_and_keeps_its_results():
    first = experiment()
    first.train(2)
    resumed = experiment(ExperimentManager("runs", resume_exp="exp1"))
    results = resumed.train(2)
    assert results["epochs_trained"] == 0
    assert results["history"] == first.history
    assert results["best_accuracy"] == first.best_accuracy
    assert same_weights(first.model, resumed.model)
    assert resumed.train(1)["epochs_trained"] == 1, "a call after that trains more"


def test_a_log_that_is_ahead_of_the_checkpoint_skips_no_epoch():
    trainer = experiment()
    trainer.train(2)
    trainer._record.log.append(3, dict.fromkeys(HISTORY, 1.0))  # the process died before this epoch's checkpoint
    resumed = experiment(ExperimentManager("runs", resume_exp="exp1"))
    assert resumed.load_history_from_log() == 3
    resumed.train(4, start_epoch=3)
    assert len(resumed.history["train_loss"]) == 4
    assert resumed.history["train_loss"][2] != 1.0
    assert resumed._record.log.read()[0] == [1, 2, 3, 4]


def test_an_interrupted_experiment_goes_on_in_the_middle_of_an_epoch(monkeypatch):
    whole = experiment()
    whole.train(3)

    class Interrupt(Callback):
        def on_step_end(self, step, trainer, logs=None):
            if step == 7:
                os.kill(os.getpid(), signal.SIGINT)

    assert threading.current_thread() is threading.main_thread()
    with pytest.raises(TrainingInterrupted):
        experiment(callbacks=[Interrupt()]).train(3)
    assert "latest_checkpoint.pt" in {path.name for path in Path("runs/exp2/checkpoints").iterdir()}
    resumed = experiment(ExperimentManager("runs", resume_exp="exp2"), model=small_net(seed=9))
    resumed.train(3)
    assert same_weights(whole.model, resumed.model)
    assert resumed.history["train_loss"] == whole.history["train_loss"]


def test_a_fork_starts_from_the_weights_with_a_history_of_its_own_and_the_rate_that_is_set():
    source = experiment(rate=0.02)
    source.train(3)
    fork = experiment(ExperimentManager("runs", fork_exp="exp1"), rate=0.005, model=small_net(seed=9))
    before = {}

    class Watch(Callback):
        def on_train_begin(self, trainer, logs=None):
            before["same"] = same_weights(trainer.model, source.model)
            before["steps"] = [float(state["step"]) for state in trainer.optimizer.state.values()]

    fork.callbacks.append(Watch())
    results = fork.train(2)
    assert before["same"]
    assert set(before["steps"]) == {15.0}, "the optimizer's averages are the source's"
    assert results["epochs_trained"] == 2
    assert results["history"]["learning_rate"] == [0.005, 0.005]
    assert results["best_epoch"] in (1, 2)
    assert results["experiment_dir"].endswith("exp2")
    assert "best_model.pt" in files(fork)


def test_what_was_changed_after_loading_a_fork_is_not_taken_back():
    experiment().train(1)
    fork_of = ExperimentManager("runs", fork_exp="exp1")
    fork = experiment(fork_of, model=small_net(seed=9), rate=1e-9, make=torch.optim.SGD)
    fork_of.restore_fork(fork.model, fork.optimizer)
    with torch.no_grad():
        fork.model.classifier[2].bias.fill_(7.0)
    fork.train(1)
    assert torch.allclose(fork.model.classifier[2].bias, torch.tensor(7.0))


def test_an_experiment_of_another_system_is_forked_not_overwritten():
    foreign = ExperimentManager("runs")
    model = small_net(seed=9)
    content = {"epoch": 4, "model_state_dict": model.state_dict(), "optimizer_state_dict": {}, "loss": 1.0, "accuracy": 50.0}
    for name in ("epoch_4.pt", "latest_checkpoint.pt"):
        torch.save(content, Path(foreign.checkpoints_dir, name))
    with pytest.raises(CheckpointError, match="fork_exp='exp1'"):
        experiment(ExperimentManager("runs", resume_exp="exp1")).train(5)
    fork = experiment(ExperimentManager("runs", fork_exp="exp1"), rate=1e-9, make=torch.optim.SGD)
    fork.train(1)
    for mine, theirs in zip(fork.model.parameters(), model.parameters(), strict=True):
        assert torch.allclose(mine, theirs, atol=1e-6)


# The log


def test_the_log_is_read_back_once_however_often_it_is_asked_for():
    trainer = experiment()
    trainer.train(3)
    exact = {name: list(values) for name, values in trainer.history.items()}
    assert [trainer.load_history_from_log() for _ in range(2)] == [3, 3]
    assert trainer.history == exact
    fresh = experiment(ExperimentManager("runs", resume_exp="exp1"))
    assert fresh.load_history_from_log() == 3
    for name in HISTORY:
        assert fresh.history[name] == pytest.approx(exact[name], abs=0.06, rel=0.01)


def test_a_damaged_row_shifts_no_column(caplog):
    trainer = experiment()
    trainer.train(3)
    path = Path(trainer.experiment_manager.log_file)
    lines = path.read_text().splitlines()
    lines[2] = lines[2][:20]
    path.write_text("\n".join(lines) + "\n   4,   0.5, what")
    fresh = experiment(ExperimentManager("runs", resume_exp="exp1"))
    assert fresh.load_history_from_log() == 3
    assert {len(values) for values in fresh.history.values()} == {2}
    assert "left out" in caplog.text


def test_columns_are_found_by_their_names():
    em = ExperimentManager("runs")
    Path(em.log_file).write_text(
        "# experiment exp1\nepoch, train_loss, train_acc, val_loss, val_acc, best_acc, lr, epoch_time(s), train_it/s, val_it/s\n"
        "1, 1.0, 50.0, 1.1, 60.0, 75.0, 1.00e-03, 2.0s, 3.0, 4.0\n"
    )
    trainer = experiment(em)
    assert trainer.load_history_from_log() == 1
    assert trainer.history["learning_rate"] == [0.001]
    assert trainer.history["val_accuracy"] == [60.0]


def test_without_a_log_there_is_no_history():
    trainer = experiment()
    Path(trainer.experiment_manager.log_file).unlink()
    assert trainer.load_history_from_log() == 0


# Single passes, and what cannot be


def test_single_passes_change_only_what_they_say():
    trainer = experiment(scheduler=lambda optimizer: StepLR(optimizer, 1, 0.5), rate=0.02)
    before = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    metrics, speed = trainer.validate()
    assert metrics.keys() == {"loss", "accuracy", "total_samples"}
    assert metrics["total_samples"] == 22
    assert speed > 0
    assert all(torch.equal(tensor, before[name]) for name, tensor in trainer.model.state_dict().items())
    metrics, _ = trainer.train_epoch(0)
    assert metrics["total_samples"] == 40
    assert not same_weights(trainer.model, small_net())
    assert trainer.optimizer.param_groups[0]["lr"] == 0.02
    assert trainer.history["train_loss"] == []
    assert trainer.validate()[0]["loss"] != metrics["loss"]
    assert trainer.train_metrics.get_metrics()["total_samples"] == 40


def test_start_epoch_at_the_end_trains_nothing():
    trainer = experiment()
    results = trainer.train(3, start_epoch=3)
    assert (results["epochs_trained"], results["stopped_early"]) == (0, False)
    assert trainer.train(5, start_epoch=3)["epochs_trained"] == 2
    assert trainer._record.epochs == [4, 5]


def test_an_optimizer_of_another_model_is_refused_before_anything_is_trained():
    train, validation = loaders()
    other = torch.optim.SGD(nn.Sequential(*[nn.Linear(1, 1) for _ in range(4)]).parameters(), lr=0.1)
    with pytest.raises(ConfigError, match="8 of its 8 parameters are not the model's"):
        Trainer(small_net(), train, validation, nn.CrossEntropyLoss(), other, "cpu", ExperimentManager("runs"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"make": torch.optim.LBFGS}, "closure"),
        ({"scheduler": lambda _: StepLR(torch.optim.SGD([torch.zeros(1)], lr=1.0), 1)}, "another optimizer"),
        ({"patience": -1}, "patience"),
    ],
)
def test_parts_that_do_not_belong_together_are_named(change, message):
    with pytest.raises(ConfigError, match=message):
        experiment(**change)


def test_a_criterion_that_returns_nonsense_is_named():
    trainer = experiment(criterion=lambda outputs, labels: torch.zeros(3))
    with pytest.raises(ModelError, match=r"shape \(3,\) for 8 samples"):
        trainer.train(1)


def test_a_loss_that_is_no_number_stops_and_keeps_what_was_there():
    def poisoned(outputs, labels):
        loss = nn.functional.cross_entropy(outputs, labels)
        return loss * math.nan if trainer.history["train_loss"] else loss

    trainer = experiment(criterion=poisoned)
    with pytest.raises(NonFiniteError):
        trainer.train(3)
    assert all(bool(torch.isfinite(p).all()) for p in trainer.model.parameters())
    assert len(trainer.history["train_loss"]) == 1


def test_transforms_are_drawn_anew_between_epochs_and_not_after_the_last():
    class Counting:
        def __init__(self):
            self.count, self._train_dataset = 0, pictures()

        def reset_train_transforms(self):
            self.count += 1
            self._train_dataset = pictures(40, seed=100 + self.count)

    dataset = Counting()
    validation = loaders()[1]
    trainer = experiment(batches=(DataLoader(dataset._train_dataset, 8, shuffle=True), validation), dataset=dataset)
    trainer.train(3)
    assert dataset.count == 2
    plain = experiment()
    plain.train(3)
    assert trainer.history["train_loss"][0] == plain.history["train_loss"][0]
    assert trainer.history["train_loss"][1] != plain.history["train_loss"][1], "the new training set is trained on"


def test_a_manager_of_the_users_own_class_saves_by_itself():
    calls = []

    class Own:
        save_frequency = 1

        def __getattr__(self, name):
            return lambda *arguments: calls.append((name, arguments[2]))

    trainer = experiment(manager=False)
    trainer.checkpoint_manager = trainer._record.manager = Own()
    trainer.train(1)
    assert calls == [("save_latest_checkpoint", 1), ("save_best_model", 1), ("save_epoch_checkpoint", 1)]
