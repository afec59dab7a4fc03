"""Jobs and searches on a Ray cluster: the same queue and the same search, run by the cluster's workers."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from pathlib import Path

import pytest
from torch.utils.data import ConcatDataset

from tests.kit.databases import stored_trials
from tests.kit.toys import golden_config, plain_lm, train_set, validation_set
from utils.errors import ConfigError, JobNotFoundError, LeaseLostError, QueueError, TrainingInterrupted
from utils.training import JobConfig, JobQueue, Trainer, TrainingConfig, search_hyperparameters
from utils.training.engine.callbacks import Callback

CONFIG = golden_config(run_name=None, early_stopping_patience=None)
_PATIENCE_S = 180.0


def job(**changes) -> JobConfig:
    named = {
        "model_factory": "tests.kit.toys:plain_lm", "train_data": "tests.kit.toys:train_set", "training_config": CONFIG,
    }  # fmt: skip
    return JobConfig(**{**named, **changes})


def broken():
    """A model factory that fails."""
    raise ConfigError("no such model")


class KilledInTheSecondEpoch(list):
    """Rows whose first reader is killed when it has read them once and a half."""

    def __init__(self, rows, marker):
        super().__init__(rows)
        self.marker, self.reads = Path(marker), 0

    def __getitem__(self, index):
        self.reads += 1
        if self.reads > 1.5 * len(self) and not self.marker.exists():
            self.marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(index)

    def __reduce__(self):
        return KilledInTheSecondEpoch, (list(self), str(self.marker))


def rows_that_kill_once(marker):
    """Training data of a job."""
    return KilledInTheSecondEpoch(train_set(), marker)


def wait_until(condition):
    """Wait for what another process does."""
    deadline = time.monotonic() + _PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def opened(url):
    """The queue. Ray gives its server for a new client half a minute to start, which a busy machine may exceed."""
    with contextlib.suppress(QueueError):
        return JobQueue(url)
    try:
        return JobQueue(url)
    except QueueError as error:
        pytest.skip(f"Ray's client server did not answer: {error}")


@pytest.fixture(scope="module")
def queue(ray_url):
    """The one connection of this process; a search uses it as well."""
    found = opened(ray_url)
    yield found
    found.close()


@pytest.mark.slow
def test_a_ray_cluster_runs_the_jobs_of_a_queue(queue, tmp_path):
    good, bad = queue.submit_job(job()), queue.submit_job(job(model_factory=broken))
    killed = queue.submit_job(
        job(
            train_data=rows_that_kill_once,
            data_arguments={"marker": str(tmp_path / "killed")},
        ),
        priority=9,
    )
    with pytest.raises(ConfigError, match="module:function"):
        queue.submit_job(job(model_factory=lambda: plain_lm()))
    with pytest.raises(ConfigError, match="one device"):
        queue.submit_job(job(devices=2))
    with pytest.raises(QueueError, match="one connection to Ray"):
        JobQueue("ray://127.0.0.1:9")
    with pytest.raises(JobNotFoundError, match="no job 999"):
        queue.get_job_status(999)
    wait_until(lambda: not any(queue.get_job_status(n) in ("pending", "running") for n in (good, bad, killed)))
    alone = Trainer(plain_lm(), None, CONFIG).train(train_set())["final_loss"]
    assert queue.get_job_results(good)["final_loss"] == alone
    assert queue.get_job(killed).attempts == 2
    assert queue.get_job_results(killed)["final_loss"] == alone
    assert queue.get_job_status(bad) == "failed"
    with pytest.raises(QueueError, match="no such model"):
        queue.get_job_results(bad)
    assert "trains in" in "\n".join(queue.get_job_logs(good)["message"])
    statistics = queue.get_queue_stats()
    assert (statistics["completed"], statistics["failed"], statistics["running"]) == (2, 1, 0)
    assert {found.id for found in queue.list_jobs("completed")} == {good, killed}
    assert not queue.cancel_job(good)
    assert queue.retry_job(bad)
    assert queue.cancel_job(bad) or queue.get_job_status(bad) == "failed"
    done = queue.get_job(good)
    with pytest.raises(LeaseLostError, match="no longer owned"):
        queue.complete_job(done, {"final_loss": 0.0})


@pytest.mark.slow
def test_a_running_job_of_a_ray_cluster_is_cancelled_and_keeps_its_checkpoint(queue):
    number = queue.submit_job(job(training_config=CONFIG.replace(epochs=100_000, save_every_n_epochs=100_000)))
    wait_until(lambda: queue.get_job(number).progress.get("step"))
    assert queue.get_job_status(number) == "running"
    assert queue.cancel_job(number)
    wait_until(lambda: queue.get_job_status(number) != "running")
    assert queue.get_job_status(number) == "cancelled"
    assert list(Path(queue.get_job(number).run_dir, "checkpoints").glob("*.pt"))


# ---- searches ----


@pytest.mark.slow
def test_a_search_on_a_ray_cluster_is_the_same_search(queue, tmp_path):
    """The cluster's values are those of this process; a trial whose worker is killed goes on, and nothing is run twice."""
    space, marker = {"lr": [1e-4, 1e-2, 3e-2]}, str(tmp_path / "killed")
    config = TrainingConfig(epochs=2, batch_size=8)
    options = {"strategy": "optuna", "n_trials": 3, "prune": True, "training_config": config}
    data = rows_that_kill_once(marker)
    seen = []
    results = search_hyperparameters(
        plain_lm, space, data, validation_set(), name="mine", storage="sqlite:///study.db", backend="ray",
        on_trial_end=lambda trial: seen.append(trial.number), **options,
    )  # fmt: skip
    assert Path(marker).exists()
    assert [trial.status for trial in results.trials] == ["finished"] * 3
    assert sorted(seen) == [0, 1, 2]
    here = search_hyperparameters(
        plain_lm, space, train_set(), validation_set(), name="here", strategy="grid", training_config=config
    )
    assert {t.params["learning_rate"]: t.value for t in results.trials} == {
        t.params["learning_rate"]: t.value for t in here.trials
    }
    assert [list(trial.intermediate_values) for trial in stored_trials("sqlite:///study.db", "mine")] == [[0, 1]] * 3
    # The same call again finds that everything is done, also without the cluster.
    again = search_hyperparameters(
        plain_lm, space, data, validation_set(), name="mine", storage="sqlite:///study.db", **options
    )
    assert [trial.to_dict() for trial in again.trials] == [trial.to_dict() for trial in results.trials]


class Steps(Callback):
    """Writes down every step of every trial. In its second step, trial 1 waits until the search is interrupted, and takes its
    time from then on, so that the request to stop reaches it before its end."""

    def __init__(self, file, interrupted):
        self.file, self.interrupted = Path(file), Path(interrupted)

    def on_step_end(self, step, trainer, logs=None):
        with self.file.open("a") as file:
            file.write(f"{trainer.run_dir.name.removeprefix('mine-trial')} {step}\n")
        if trainer.run_dir.name == "mine-trial1" and step >= 2 and not self.interrupted.with_suffix(".over").exists():
            wait_until(self.interrupted.exists)
            threading.Event().wait(0.25)


@pytest.mark.slow
def test_an_interrupted_search_on_a_ray_cluster_continues_and_repeats_no_step(queue, tmp_path):
    optuna = pytest.importorskip("optuna")
    rates = [1e-2, 2e-2, 3e-2, 1.5e-2, 1e-7]

    class InOrder(optuna.samplers.RandomSampler):
        def sample_independent(self, study, trial, name, distribution):
            return rates[trial.number]

    def interrupt(trial):
        wait_until(lambda: "1 2" in steps.read_text().splitlines())  # where trial 1 waits, however late its worker began
        interrupted.touch()
        raise KeyboardInterrupt

    interrupted, steps = tmp_path / "interrupted", tmp_path / "steps"
    rows = ConcatDataset([train_set()] * 24)  # 816 rows, 102 steps an epoch
    options = {
        "name": "mine", "strategy": "optuna", "storage": "sqlite:///study.db", "sampler": InOrder(), "backend": "ray", "prune": True,
        "training_config": TrainingConfig(epochs=2, batch_size=8), "callbacks": [Steps(steps, interrupted)], "n_trials": 5,
    }  # fmt: skip
    with pytest.raises(TrainingInterrupted, match="name='mine'") as info:
        search_hyperparameters(
            plain_lm, {"lr": (1e-8, 1e-1)}, rows, validation_set(), on_trial_end=interrupt, **options
        )
    first, second = info.value.results.trials
    assert (first.status, second.status) == ("finished", "stopped")
    assert 2 <= second.steps < first.steps == 204
    interrupted.with_suffix(".over").touch()
    results = search_hyperparameters(plain_lm, {"lr": (1e-8, 1e-1)}, rows, validation_set(), **options)
    # Two trials run at once: when the fifth begins, three have finished, which is what Optuna's median needs.
    assert [trial.status for trial in results.trials] == ["finished"] * 4 + ["pruned"]
    assert [trial.params["learning_rate"] for trial in results.trials] == rates
    done = [tuple(map(int, line.split())) for line in steps.read_text().splitlines()]
    assert sorted(done) == [(n, step) for n in range(5) for step in range(1, 205 if n < 4 else 103)]
    assert not list(results.folder.glob("trial*.lock"))


@pytest.mark.parametrize(
    ("backend", "message"), [("rai", "did you mean 'ray'"), ("dask", "'local', 'ray'"), (None, "'local', 'ray'")]
)
def test_an_unknown_backend_is_refused_with_the_choices(backend, message):
    with pytest.raises(ConfigError, match=message):
        search_hyperparameters(plain_lm, {"lr": [1e-3]}, train_set(), backend=backend)
    assert not Path("runs").exists()
