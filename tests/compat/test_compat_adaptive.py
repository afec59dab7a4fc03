"""The callback trainer and the adaptive model: documented calls, order of events, equations, exact continuation."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from tests.kit.crash import in_child
from tests.kit.image_files import mnist_files
from tests.kit.toys import same_weights
from utils.compat.adaptive_callbacks import Callback, LoggingCallback, ProfilingCallback
from utils.compat.adaptive_config import AdaptiveConfig
from utils.compat.adaptive_datasets import load_mnist, load_mnist_subset
from utils.compat.adaptive_loops import TrainingLoop, evaluate_model, quick_train
from utils.compat.adaptive_model import AdaptiveModel
from utils.compat.adaptive_trainer import Trainer
from utils.errors import DataError, TrainingInterrupted
from utils.training import Trainer as EngineTrainer
from utils.training import TrainingConfig


def config(**changes):
    sizes = {"num_nodes": 6, "hidden_dim": 5, "input_dim": 12, "output_dim": 3, "learning_rate": 0.01, "num_epochs": 2}
    return AdaptiveConfig(**{**sizes, "save_checkpoint": False, **changes})


def data(count=20, shape=(12,), seed=0):
    generator = torch.Generator().manual_seed(seed)
    return TensorDataset(torch.randn(count, *shape, generator=generator), torch.arange(count) % 3)


def loader(count=20, **options):
    return DataLoader(data(count), batch_size=8, shuffle=True, **options)


def trainer(model=None, make=torch.optim.Adam, lr=0.01, **settings):
    model = model or AdaptiveModel(config())
    return Trainer(model, make(model.parameters(), lr=lr), nn.CrossEntropyLoss(), **{"seed": 42, **settings})


def test_three_steps_follow_the_equations_node_by_node():
    model = AdaptiveModel(config())
    dynamics = model.dynamics
    with torch.no_grad():
        dynamics.phase_scales.copy_(torch.tensor([0.1, 0.2, -0.3, 0.4]))
    h, e, a = torch.zeros(4, 6, 5), torch.full((4, 6, 1), 10.0), torch.zeros(4, 6, 1)
    for _ in range(3):
        x = torch.randn(4, 12)
        logits = model(x)
        u, phases = model.input_projection(x), model.phase_scheduler.phases
        anxiety = (5 - e).clamp(min=0) + 2 * a + h.var(-1, keepdim=True)
        h_new, e_new, a_new = torch.empty_like(h), torch.empty_like(e), torch.empty_like(a)
        for b in range(4):
            for n in range(6):
                m, s = float(phases[n] != 1), dynamics.phase_scales[phases[n]]
                h_new[b, n] = torch.tanh(h[b, n] + m * (dynamics.state_update(h[b, n]) * (1 + s) + 0.1 * u[b]))
                gain = dynamics.energy_update(h_new[b, n]) * (1 - 0.1 * (anxiety[b, n] / 10).clamp(0, 1))
                e_new[b, n] = (e[b, n] * 0.99 + m * gain).clamp(0, 50)
                a_new[b, n] = torch.sigmoid(dynamics.activity_update(torch.stack([h_new[b, n].mean(), u[b].mean()])))
        h, e, a = h_new.detach(), e_new.detach(), a_new.detach()
        torch.testing.assert_close(logits, model.output_projection(a.squeeze(-1)), rtol=0, atol=1e-6)
        torch.testing.assert_close(model.node_state.hidden_state, h, rtol=0, atol=1e-6)
        torch.testing.assert_close(model.node_state.energy, e, rtol=0, atol=1e-5)


def test_state_is_outside_state_dict_and_there_are_22_metrics():
    model = AdaptiveModel(config())
    model(torch.randn(4, 3, 2, 2))
    assert {name.partition(".")[0] for name in model.state_dict()} == {
        "input_projection",
        "output_projection",
        "dynamics",
    }
    assert not any(name.startswith(("node_state", "phase_scheduler")) for name in model.state_dict())
    assert len(model.get_metrics()) == 22
    model(torch.randn(2, 12))
    assert model.node_state.batch_size == 2


class Recorder(Callback):
    def __init__(self):
        self.events, self.batches = [], []

    def __getattribute__(self, name):
        if not name.startswith("on_"):
            return super().__getattribute__(name)
        return lambda *arguments: (self.events.append(name[3:]), self.batches.append(arguments[-1]))


def test_hooks_come_in_their_documented_order_and_epochs_keep_their_dict():
    recorder = Recorder()
    history = trainer(callbacks=[recorder]).fit(loader(), 1, loader(8))
    batch = ["batch_begin", "backward_end", "batch_end"]
    assert recorder.events == [
        "train_begin", "epoch_begin", *batch * 3, "evaluate_begin", "evaluate_end", "epoch_end", "train_end",
    ]  # fmt: skip
    assert recorder.batches[-2] is history[0]
    assert set(history[0]) == {"epoch", "train_loss", "train_accuracy", "val_loss", "val_accuracy"}
    assert recorder.batches[4].keys() == {"batch_idx", "batch_size", "loss", "accuracy"}


def test_loop_and_trainer_make_identical_weights_and_validation_changes_nothing():
    first, second = AdaptiveModel(config()), AdaptiveModel(config())
    TrainingLoop(first, config()).train(loader(), loader(8), 3)
    trainer(second).fit(loader(), 3)
    assert same_weights(first, second)
    assert torch.equal(first.node_state.hidden_state, second.node_state.hidden_state)


def test_a_loaded_checkpoint_continues_exactly(tmp_path):
    whole = trainer()
    expected = whole.fit(loader(), 4)
    part = trainer()
    part.fit(loader(), 2)
    part.save_checkpoint(tmp_path / "new" / "two.pt", note="mine")
    fresh = trainer()
    content = fresh.load_checkpoint(tmp_path / "new" / "two.pt")
    assert content["epoch"] == 1
    assert content["note"] == "mine"
    history = fresh.fit(loader(), 4, resume=True)
    assert history == expected
    assert same_weights(fresh.model, whole.model)
    assert torch.equal(fresh.model.node_state.energy, whole.model.node_state.energy)


def test_fit_trains_more_epochs_and_the_second_goes_on_with_the_order():
    whole, twice = trainer(), trainer()
    whole.fit(loader(), 4)
    twice.fit(loader(), 2)
    assert [row["epoch"] for row in twice.fit(loader(), 2)] == [0, 1]
    assert same_weights(whole.model, twice.model)


def test_the_engines_checkpoints_hold_the_state_of_nodes():
    def run(model, epochs, resume=None):
        settings = TrainingConfig(
            epochs=epochs, batch_size=8, use_lr_schedule=False, run_name="nodes", on_config_change="continue"
        )
        return EngineTrainer(model, training_config=settings, data_collator=torch.utils.data.default_collate).train(
            data(), resume_from=resume
        )

    run(model := AdaptiveModel(config()), 1)
    run(again := AdaptiveModel(config()), 1, "auto")
    assert model.run_state_dict()["nodes"].keys() == again.run_state_dict()["nodes"].keys()
    run(again, 2, "auto")
    assert again.node_state.batch_size == 4, "the last batch of an epoch has 4 rows"


def test_step_schedules_decay_with_validation_and_plateau_works_without():
    made = trainer(lr=0.1)
    made.fit(loader(), 4, loader(8), torch.optim.lr_scheduler.StepLR(made.optimizer, 1, 0.5))
    assert made.optimizer.param_groups[0]["lr"] == pytest.approx(0.00625)
    made = trainer()
    made.fit(loader(), 1, None, torch.optim.lr_scheduler.ReduceLROnPlateau(made.optimizer))


def test_means_are_exact_over_samples_and_functions_are_called_once_a_batch():
    calls = []

    class FromTheFirstBatch(Callback):
        def on_epoch_begin(self, epoch, trainer, logs=None):
            calls.clear()  # of what was tried before

    metrics = {"rows": lambda outputs, targets: calls.append(1) or float(len(targets))}
    made = trainer(nn.Linear(12, 3), metrics=metrics, callbacks=[FromTheFirstBatch()])
    row = made.fit(loader(), 1)[0]
    assert len(calls) == 3
    assert row["train_rows"] == pytest.approx((8 * 8 + 8 * 8 + 4 * 4) / 20)


def test_streams_regression_and_empty_loaders():
    assert len(trainer(nn.Linear(12, 3)).fit([(torch.randn(4, 12), torch.zeros(4).long())], 1)) == 1
    model = nn.Linear(12, 2)
    made = Trainer(model, torch.optim.SGD(model.parameters(), lr=0.1), nn.MSELoss(), seed=1)
    pairs = DataLoader(TensorDataset(torch.randn(6, 12), torch.randn(6, 2)), batch_size=4)
    assert set(made.fit(pairs, 1)[0]) == {"epoch", "train_loss"}
    with pytest.raises(DataError):
        trainer(nn.Linear(12, 3)).fit([], 1)


def test_any_callback_can_stop_and_lists_are_not_shared():
    class Stop(Callback):
        stop_training = False

        def on_epoch_end(self, epoch, trainer, logs=None):
            self.stop_training = True

    given = [Stop()]
    made = trainer(callbacks=given)
    assert len(made.fit(loader(), 5, early_stopping=given[0])) == 1
    assert len(given) == 1
    assert made.model.training


def test_an_error_of_a_callback_is_raised_as_it_is_and_train_end_fires():
    ended = []

    class Fails(Callback):
        def on_epoch_end(self, epoch, trainer, logs=None):
            raise KeyError("mine")

        def on_train_end(self, trainer, logs=None):
            ended.append(logs["error"])

    with pytest.raises(KeyError, match="mine"):
        trainer(callbacks=[Fails()]).fit(loader(), 1)
    assert len(ended) == 1


def test_foreign_optimizers_warn_and_amp_has_a_scaler():
    model = nn.Linear(12, 3)
    with pytest.warns(UserWarning, match="not the model's"):
        Trainer(model, torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1), nn.CrossEntropyLoss())
    assert trainer(use_amp=True).scaler is not None
    assert trainer().scaler is None


def test_built_in_callbacks_work_by_hand(capsys):
    profile, log = ProfilingCallback(), LoggingCallback(verbose=False)
    for callback in (profile, log):
        callback.on_epoch_begin(0, None)
        callback.on_batch_begin(0, None)
        callback.on_batch_end(0, None, {"batch_size": 3})
        callback.on_epoch_end(0, None)
    assert len(profile.get_metrics()["epoch_times"]) == len(profile.get_metrics()["batch_times"]) == 1
    assert log.sample_count == 3
    assert capsys.readouterr().out == ""


def test_the_legacy_loop_writes_its_files(tmp_path):
    settings = config(save_checkpoint=True)
    result = quick_train(settings, loader(), loader(8), 5)
    row = result["final_metrics"]
    assert 0 <= row["val_accuracy"] <= 100
    fresh = TrainingLoop(AdaptiveModel(settings), settings)
    assert fresh.load_checkpoint("checkpoints/checkpoint_epoch_4.pt") == 4
    assert torch.equal(fresh.model.node_state.energy, result["model"].node_state.energy)
    assert 0 <= evaluate_model(result["model"], loader(8), "cpu") <= 1
    assert (tmp_path / "metrics.json").is_file()


def test_configs_round_trip_and_refuse():
    config().to_yaml("a.yaml")
    assert AdaptiveConfig.from_yaml("a.yaml") == config()
    with pytest.raises(FileNotFoundError):
        AdaptiveConfig.from_yaml("nowhere.yaml")
    with pytest.raises(ValueError, match="learning_rate"):
        config().update(learning_rate=1.0)


def test_an_interrupted_fit_is_saved_and_continues_exactly():
    whole = trainer()
    expected = whole.fit(loader(), 3)

    class Presses(Callback):
        def on_batch_end(self, batch_idx, trainer, logs=None):
            if trainer.current_epoch == batch_idx == 1:
                os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(TrainingInterrupted) as caught:
        trainer(callbacks=[Presses()]).fit(loader(), 3)
    path = Path(caught.value.results.checkpoint_path)
    fresh = trainer()
    fresh.load_checkpoint(path)
    assert fresh.fit(loader(), 3, resume=True) == expected
    assert same_weights(fresh.model, whole.model)
    assert torch.equal(fresh.model.node_state.energy, whole.model.node_state.energy)
    shutil.rmtree(path.parents[2])


def test_a_killed_process_loses_at_most_an_epoch_with_a_checkpoint_folder():
    whole = trainer()
    expected = whole.fit(loader(), 4)

    class Killed(Callback):
        def on_batch_end(self, batch_idx, trainer, logs=None):
            if trainer.current_epoch == 2 and batch_idx == 1:
                os.kill(os.getpid(), signal.SIGKILL)

    assert in_child(lambda: trainer(callbacks=[Killed()]).fit(loader(), 4, checkpoint_dir="saved")).killed
    fresh = trainer()
    assert fresh.fit(loader(), 4, resume=True, checkpoint_dir="saved") == expected
    assert same_weights(fresh.model, whole.model)


@pytest.mark.parametrize("wanted", [True, False])
def test_the_progress_bar_is_shown_on_a_terminal(wanted, monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    trainer(progress_bar=wanted).fit(loader(), 2)
    assert ("Epoch 2/2" in capsys.readouterr().err) is wanted


def test_the_mnist_loaders_read_local_files(tmp_path):
    mnist_files(tmp_path, train=40, test=20)
    train, test = load_mnist(batch_size=8, root=tmp_path, download=False)
    images, labels = next(iter(train))
    assert (images.shape, labels.shape, len(train.dataset), len(test.dataset)) == ((8, 1, 28, 28), (8,), 40, 20)
    train, test = load_mnist_subset(8, 10, tmp_path, False)
    assert (len(train.dataset), len(test.dataset)) == (10, 2)


@pytest.mark.slow
def test_digits_are_classified_and_loop_and_trainer_agree():
    from sklearn.datasets import load_digits

    found = load_digits()
    images, labels = torch.tensor(found.data / 16, dtype=torch.float32), torch.tensor(found.target)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    held_out = len(labels) // 5
    train = TensorDataset(images[order[held_out:]], labels[order[held_out:]])
    test = DataLoader(TensorDataset(images[order[:held_out]], labels[order[:held_out]]), batch_size=32)
    settings = AdaptiveConfig(
        num_nodes=128, hidden_dim=32, input_dim=64, output_dim=10, learning_rate=0.01, batch_size=32, num_epochs=22,
        save_checkpoint=False,
    )  # fmt: skip
    batches = DataLoader(train, batch_size=32, shuffle=True)
    early = {}

    class AfterTwo(Callback):
        def on_epoch_end(self, epoch, trainer, logs=None):
            if epoch == 1:
                early.update({name: value.clone() for name, value in trainer.model.state_dict().items()})

    made = trainer(AdaptiveModel(settings), lr=settings.learning_rate, seed=settings.seed, callbacks=[AfterTwo()])
    made.fit(batches, settings.num_epochs)
    assert made.evaluate(test)["val_accuracy"] > 0.9
    legacy = AdaptiveModel(settings)
    TrainingLoop(legacy, settings).train(batches, num_epochs=2)  # as many as show that the two go the same way
    assert all(torch.equal(value, early[name]) for name, value in legacy.state_dict().items())


def test_weights_alone_classify_as_before_in_a_fresh_model():
    """Which node sees what is a matter of the nodes' start, which must not depend on a seed."""
    sizes = {"num_nodes": 20, "hidden_dim": 16}
    model, fresh = AdaptiveModel(config(**sizes, seed=1)), AdaptiveModel(config(**sizes, seed=2))
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(model.node_state.hidden_state, fresh.node_state.hidden_state)
    assert len(model.node_state.hidden_state[0].unique(dim=0)) > 1
    model(torch.randn(8, 12))
    units = model.node_state.hidden_state[0, :, :4]
    model.reset_state()
    assert torch.equal(units.sign(), model.node_state.hidden_state[0, :, :4]), "a node keeps its identity"
