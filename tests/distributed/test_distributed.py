"""Two processes train as one would with twice the accumulation, and stop, fail and resume as one."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset

from tests.kit.ports import held_port
from tests.kit.together import environment_of, together
from tests.kit.toys import golden_config, recurrent_lm, tiny_gpt, token_rows, train_set, validation_set, without_times
from utils.errors import CallbackError, CheckpointError, ConfigError, DataError, NonFiniteError, PeerProcessError
from utils.storage import read_json_lines
from utils.training import Callback, Trainer
from utils.training.engine.checkpointing.store import newest, read_checkpoint
from utils.training.monitors import LoggingCallback

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
CHECKPOINTS = Path("runs/golden/checkpoints")
PORT = 29500  # for environments that are read and never connected to


def train(model, *callbacks, resume_from=None, data=None, **changes):
    settings = {"gradient_accumulation_steps": 2, "early_stopping_patience": None, "precision": "32", **changes}
    trainer = Trainer(model, None, golden_config(**settings), callbacks=list(callbacks))
    return trainer.train(train_set() if data is None else data, validation_set(), resume_from=resume_from)


def outcome(results):
    """What a process can send to the test that started it."""
    state = results.state.to_dict()
    state["history"] = without_times(state["history"])
    del state["elapsed_s"], state["energy"]  # of the machine
    weights = {name: tensor.numpy() for name, tensor in results.model.state_dict().items()}
    return {"state": state, "weights": weights, "paths": results.checkpoint_paths, "notices": results.notices}


def largest_difference(first, second):
    return max(float(abs(first[name] - second[name]).max()) for name in first)


def numbers(row):
    return {name: value for name, value in row.items() if not isinstance(value, str)}


class Recorder(Callback):
    """The number and size of each micro-batch of this process, and the loss of each step."""

    def __init__(self):
        self.losses, self.batches = [], []

    def on_batch_begin(self, batch_idx, trainer, logs=None):
        self.batches.append((batch_idx, logs["batch_size"]))

    def on_step_end(self, step, trainer, logs=None):
        self.losses.append(logs["train/loss"])


class StopAt(Callback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, step, trainer, logs=None):
        if step == self.step:
            trainer.request_stop("enough")


class FailAt(Callback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, step, trainer, logs=None):
        if step == self.step:
            raise ValueError("the callback is wrong")


def test_two_processes_with_muon_hold_the_same_weights():
    def work(rank):
        return outcome(train(tiny_gpt(dropout=0.0, seed=rank), optimizer="muon", strategy="ddp", run_name="two"))

    alone = outcome(
        train(tiny_gpt(dropout=0.0), optimizer="muon", gradient_accumulation_steps=4, run_name="one")
    )
    first, second = (ended.value for ended in together(work))
    assert largest_difference(first["weights"], second["weights"]) == 0
    # Muon computes in bf16, so that another order of summation is seen at bf16's resolution of an update.
    assert largest_difference(first["weights"], alone["weights"]) < 2e-3


@pytest.mark.parametrize("make", [tiny_gpt, recurrent_lm])
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_two_processes_learn_what_one_does_with_twice_the_accumulation(make, optimizer, strategy):
    def work(rank):
        recorder = Recorder()
        # Models that begin differently: the main process's weights must count. The last step of an epoch has 2 samples, all
        # of them of the first process.
        model = make(dropout=0.0, seed=rank)
        results = train(model, recorder, optimizer=optimizer, eval_every=2, strategy=strategy, run_name="two")
        return outcome(results) | {"losses": recorder.losses, "batches": recorder.batches}

    recorder = Recorder()
    alone = outcome(train(
        make(dropout=0.0), recorder, optimizer=optimizer, eval_every=2, gradient_accumulation_steps=4, run_name="one",
    ))  # fmt: skip
    first, second = (ended.value for ended in together(work))
    assert largest_difference(first["weights"], second["weights"]) == 0
    assert largest_difference(first["weights"], alone["weights"]) < (1e-5 if optimizer == "adamw" else 1e-6)
    assert first["losses"] == second["losses"] == pytest.approx(recorder.losses, rel=1e-5)
    assert len(first["losses"]) == 12
    for mine, theirs in zip(first["state"]["history"], alone["state"]["history"], strict=True):
        assert mine["event"] == theirs["event"]
        assert numbers(mine) == pytest.approx(numbers(theirs), rel=1e-4)
    for name in ("step", "epoch", "targets_done", "samples_done", "rows_written"):
        assert first["state"][name] == alone["state"][name]
    assert [size for _, size in first["batches"]][:5] == [4, 4, 4, 4, 2]
    assert [index for index, _ in first["batches"]][:5] == [0, 1, 2, 3, 4]
    assert [size for _, size in second["batches"]][:4] == [4, 4, 4, 4]
    # With sharded layers every process takes part in every pass: the second one's has nothing that counts then.
    assert len(second["batches"]) == (16 if strategy == "ddp" else 20)


def test_a_parameter_that_no_process_uses_is_left_alone_and_running_statistics_are_the_same():
    class Model(torch.nn.Module):
        def __init__(self, seed):
            super().__init__()
            self.inner = recurrent_lm(dropout=0.0, seed=seed)
            self.unused = torch.nn.Parameter(torch.ones(4, 4))
            self.norm = torch.nn.BatchNorm1d(self.inner.head.out_features)

        def forward(self, tokens):
            return self.norm(self.inner(tokens).transpose(1, 2)).transpose(1, 2)

    first, second = (ended.value for ended in together(lambda rank: outcome(train(Model(rank), weight_decay=0.5))))
    assert (first["weights"]["unused"] == 1).all()  # a gradient of zeros would let weight decay pull on it
    assert largest_difference(first["weights"], second["weights"]) == 0
    assert first["weights"]["norm.num_batches_tracked"] > 0


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_half_precision_weights_are_trained_in_fp32_by_two_processes_too(strategy):
    def work(rank):
        model = tiny_gpt(dropout=0.0).bfloat16()
        results = train(model, strategy=strategy, run_name="two", epochs=1)
        formats = {str(tensor.dtype) for tensor in model.state_dict().values()}
        ended = outcome(SimpleNamespace(**{**vars(results), "model": model.float()}))
        return ended | {"formats": formats}

    alone = train(tiny_gpt(dropout=0.0).bfloat16(), gradient_accumulation_steps=4, run_name="one", epochs=1)
    weights = {name: tensor.numpy() for name, tensor in alone.model.float().state_dict().items()}
    first, second = (ended.value for ended in together(work))
    assert first["formats"] == second["formats"] == {"torch.bfloat16"}
    assert largest_difference(first["weights"], second["weights"]) == 0
    assert largest_difference(first["weights"], weights) < 0.01  # one unit in the last place of bf16 at 1
    kept = read_checkpoint("runs/two/checkpoints/epoch_1.pt")["model"]
    assert {tensor.dtype for tensor in kept.values()} == {torch.float32}


def test_in_double_precision_two_processes_are_one_to_the_last_digits():
    def work(rank):
        return outcome(train(tiny_gpt(dropout=0.0).double(), run_name="two"))

    alone = outcome(train(tiny_gpt(dropout=0.0).double(), gradient_accumulation_steps=4, run_name="one"))
    for ended in together(work):
        assert largest_difference(ended.value["weights"], alone["weights"]) < 1e-13


def test_a_process_that_runs_out_of_memory_splits_its_share_and_nobody_waits():
    def too_large(module, given, named):
        if module.training and len(named["input_ids"]) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    class Full(Callback):
        """From the third step on, only 2 samples at once fit."""

        def on_step_end(self, step, trainer, logs=None):
            if step == 2:
                trainer.model.register_forward_pre_hook(too_large, with_kwargs=True)

    def work(rank):
        return outcome(train(tiny_gpt(dropout=0.0), *([Full()] if rank == 1 else []), run_name="full"))

    reference = [ended.value for ended in together(lambda rank: outcome(train(tiny_gpt(dropout=0.0))))]
    first, second = (ended.value for ended in together(work))
    assert largest_difference(first["weights"], second["weights"]) == 0
    assert largest_difference(first["weights"], reference[0]["weights"]) < 1e-5
    assert (first["state"]["pieces"], second["state"]["pieces"]) == (None, 2)
    assert newest(Path("runs/full/checkpoints"))[1]["other_processes"][0]["pieces"] == 2


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_resume_with_two_processes_is_exact_and_with_one_is_refused(strategy):
    def whole(rank):
        return outcome(train(tiny_gpt(), strategy=strategy))

    def stopped(rank):
        # Only the second process asks to stop: both do, after the same step.
        return outcome(train(tiny_gpt(), *([StopAt(5)] if rank == 1 else []), run_name="again", strategy=strategy))

    def resumed(rank):
        return outcome(train(tiny_gpt(seed=7), resume_from="auto", run_name="again", strategy=strategy))

    reference = [ended.value for ended in together(whole)]
    for ended in together(stopped):
        assert (ended.value["state"]["step"], ended.value["state"]["stop_reason"]) == (5, "enough")
    states = newest(Path("runs/again/checkpoints"))[1]
    assert len(states["other_processes"]) == 1
    assert not torch.equal(states["rng"]["torch"], states["other_processes"][0]["rng"]["torch"])
    with pytest.raises(CheckpointError, match=r"saved by 2 processes, and this training has 1.*nproc_per_node=2"):
        train(tiny_gpt(), resume_from="auto", run_name="again")
    for there, here in zip(reference, together(resumed), strict=True):
        assert largest_difference(there["weights"], here.value["weights"]) == 0
        assert there["state"] == here.value["state"]
    rows = [read_json_lines(Path("runs", name, "history.jsonl")) for name in ("golden", "again")]
    assert without_times(rows[0]) == without_times(rows[1])
    # A finished run's results are there for any number of processes.
    assert train(tiny_gpt(), resume_from="auto", run_name="again").stop_reason == "finished"


def test_a_run_of_one_process_is_not_continued_by_two():
    train(tiny_gpt(), StopAt(2))

    def work(rank):
        with pytest.raises(CheckpointError, match="saved by 1 process, and this training has 2"):
            train(tiny_gpt(), resume_from="auto")

    together(work)


def test_the_first_process_writes_and_user_callbacks_run_everywhere():
    class Pause(Callback):
        """Pauses on the main process alone; its checkpoint lifts the pause."""

        def on_step_end(self, step, trainer, logs=None):
            if step == 2:
                trainer.control.pause.set()
            if step == 4:
                trainer.control.save_now.set()

        def on_checkpoint_saved(self, path, trainer, logs=None):
            trainer.control.pause.clear()

    class Heard(Callback):
        def __init__(self):
            self.saved, self.steps = [], 0

        def on_step_end(self, step, trainer, logs=None):
            self.steps += 1
            if step == 1:
                self.random = torch.get_rng_state().numpy().tobytes()

        def on_checkpoint_saved(self, path, trainer, logs=None):
            self.saved.append(path.name)

    def work(rank):
        lines = []
        heard = Heard()
        results = train(
            tiny_gpt(), heard, LoggingCallback(1, write=lines.append), *([Pause()] if rank == 0 else []), epochs=2,
            early_stopping_patience=1, save_every_minutes=None,
        )  # fmt: skip
        paths = results.checkpoint_paths, results.best_model_path
        return heard.steps, heard.saved, len(lines), paths, heard.random

    first, second = (ended.value for ended in together(work))
    assert first[0] == second[0] == 6
    assert first[1] == ["step_2.pt", "epoch_1.pt", "step_4.pt", "epoch_2.pt"]
    assert second[1] == []
    assert first[2] > 0
    assert second[2] == 0
    assert first[3] == second[3]
    assert first[4] != second[4]  # the same numbers drawn, from another seed: other dropout
    assert [path.name for path in Path("runs").iterdir()] == ["golden"]
    rows = read_json_lines(Path("runs/golden/history.jsonl"))
    assert [row["epoch"] for row in rows if row["event"] == "epoch"] == [0, 1]
    assert Path(first[3][1]).is_file()


def test_a_signal_to_one_process_saves_and_ends_both():
    class Terminate(Callback):
        def on_step_end(self, step, trainer, logs=None):
            if step == 4:
                os.kill(os.getpid(), signal.SIGTERM)

    ended = together(lambda rank: train(tiny_gpt(), *([Terminate()] if rank == 1 else [])))
    assert [one.exit_code for one in ended] == [143, 143]
    assert newest(CHECKPOINTS)[1]["state"]["step"] == 4


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_what_goes_wrong_on_one_process_ends_the_other_and_says_so(strategy):
    class FailInTheStep(Callback):
        def on_batch_begin(self, batch_idx, trainer, logs=None):
            if trainer.state.step == 1:
                raise ValueError("the callback is wrong")

    def one_fails(rank):
        with pytest.raises(CallbackError if rank == 1 else PeerProcessError) as caught:
            train(tiny_gpt(), *([FailInTheStep()] if rank == 1 else []), strategy=strategy)
        return str(caught.value)

    messages = [ended.value for ended in together(one_fails)]
    assert "process 1: CallbackError: FailInTheStep.on_batch_begin failed at step 1" in messages[0]


def test_a_process_that_is_killed_ends_the_other():
    class Die(Callback):
        def on_batch_begin(self, batch_idx, trainer, logs=None):
            if batch_idx == 3:
                os.kill(os.getpid(), signal.SIGKILL)

    def work(rank):
        with pytest.raises(PeerProcessError, match="another one of this training did not answer"):
            train(tiny_gpt(), *([Die()] if rank == 1 else []))

    first, second = together(work)
    assert first.exit_code == 0
    assert second.killed


def test_what_goes_wrong_on_all_processes_keeps_a_checkpoint_of_the_last_step(monkeypatch):
    # Both processes fail at the same step; on a loaded machine one of them may report it much later than the other.
    monkeypatch.setattr("utils.training.engine.distributed.world._PATIENCE", timedelta(seconds=60))

    def all_fail(rank):
        with pytest.raises(CallbackError) as caught:
            train(tiny_gpt(), FailAt(2))
        return [caught.value.told_by_main, *getattr(caught.value, "__notes__", [])]

    first, second = (ended.value for ended in together(all_fail))
    assert first[0] is False
    assert "saved up to step 2" in first[1]
    assert second == [True]
    assert newest(CHECKPOINTS)[1]["state"]["step"] == 2


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_loss_that_is_nan_on_one_process_stops_both_before_the_update(strategy):
    class Poison(Callback):
        def on_batch_begin(self, batch_idx, trainer, logs=None):
            if trainer.state.step == 3:
                trainer.parts.model.transformer.h[0].register_forward_hook(
                    lambda module, given, made: made * float("nan")
                )

    def work(rank):
        model = tiny_gpt()
        with pytest.raises(NonFiniteError, match="step 4: loss is nan"):
            train(model, *([Poison()] if rank == 1 else []), strategy=strategy)
        return all(bool(parameter.isfinite().all()) for parameter in model.parameters())

    assert [ended.value for ended in together(work)] == [True, True]
    assert newest(CHECKPOINTS)[1]["state"]["step"] == 3


def test_processes_that_were_given_different_things_do_not_begin():
    def settings(rank):
        with pytest.raises(ConfigError, match="different things: settings"):
            train(tiny_gpt(), learning_rate=1e-3 * (1 + rank))

    def data(rank):
        with pytest.raises(ConfigError, match="different things: data"):
            train(tiny_gpt(), data=torch.utils.data.TensorDataset(token_rows(seed=rank)))

    class Stream(IterableDataset):
        def __iter__(self):
            return iter(token_rows())

    def stream(rank):
        with pytest.raises(DataError, match="order of its own"):
            train(tiny_gpt(), data=DataLoader(Stream(), batch_size=4))

    def taken(rank):
        name = "ConfigError" if rank == 0 else "PeerProcessError"
        with pytest.raises((ConfigError, PeerProcessError), match="cannot be made in") as caught:
            train(tiny_gpt(), output_dir=__file__)
        assert type(caught.value).__name__ == name

    together(lambda rank: [check(rank) for check in (settings, data, stream, taken)])
    assert not Path("runs").exists()


def test_torchrun_starts_the_command_line_which_prints_once(tmp_path):
    text = tmp_path / "my.txt"
    text.write_text("\n\n".join(f"{n} bottles of beer on the wall." for n in range(100)))
    job = tmp_path / "job.yaml"
    job.write_text(
        "model: {name: gpt-small, vocab_size: 120, max_seq_len: 16, n_layer: 1, n_embd: 16, n_head: 2}\n"
        f"setup: {{dataset_path: {text}, max_length: 16, tokenizer_strategy: character}}\n"
        f"training: {{epochs: 2, batch_size: 8, run_name: small, devices: 2, output_dir: {tmp_path / 'runs'}}}\n"
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--master_addr=127.0.0.1"]
    with held_port() as port:
        done = subprocess.run(
            [*command, f"--master_port={port}", str(ROOT / "cli" / "run_training.py"), "--config", str(job)],
            env={**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
            capture_output=True, text=True, timeout=300,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert re.findall(r"^epoch (\d)/2", done.stdout, re.MULTILINE) == ["1", "2"]
    assert len(re.findall("^model ", done.stdout, re.MULTILINE)) == 1
    assert "Trained by 2 processes together" in done.stdout
    assert (tmp_path / "runs" / "small" / "exports").is_dir()


def test_f44_a_notebook_refuses_several_processes_and_names_the_command(monkeypatch):
    import utils.training.engine.distributed.world as world

    monkeypatch.setattr(world, "front_end", lambda: "notebook")
    for changes in ({"strategy": "ddp"}, {"strategy": "fsdp"}, {"devices": 3}, {"num_nodes": 2}):
        with pytest.raises(ConfigError) as caught:
            Trainer(tiny_gpt(), None, golden_config(**changes)).train(train_set())
        name, value = next(iter(changes.items()))
        assert f"{name}={value!r}" in str(caught.value)
        processes = changes.get("devices", 2)
        assert f"--nproc_per_node={processes} cli/run_training.py --config job.yaml" in str(caught.value)
        assert not Path("runs").exists()
    assert not torch.distributed.is_initialized()
    assert train(tiny_gpt(), max_steps=2).steps == 2  # one device needs no permission
    with monkeypatch.context() as started:
        for name, value in environment_of(1, 2, PORT).items():
            started.setenv(name, value)
        with pytest.raises(ConfigError, match="WORLD_SIZE=2 in the environment"):
            Trainer(tiny_gpt(), None, golden_config())
    monkeypatch.setenv("TRAINBOOK_ALLOW_DISTRIBUTED_NOTEBOOK", "1")
    results = train(tiny_gpt(), devices=2, max_steps=2, run_name="allowed")
    assert "devices=2: this notebook has one process, so it trains on one device." in results.notices


def test_several_devices_need_torchrun_and_the_numbers_it_was_given(monkeypatch):
    for changes in ({"devices": 2}, {"num_nodes": 2}):
        with pytest.raises(ConfigError, match="torchrun .*--nproc_per_node=2 cli/run_training.py --config job.yaml"):
            Trainer(tiny_gpt(), None, golden_config(**changes))
    results = train(tiny_gpt(), strategy="ddp", max_steps=2)
    assert any("there is one process, so nothing is shared" in sentence for sentence in results.notices)
    for name, value in environment_of(0, 4, PORT).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match=r"devices +got 3, but 2 processes .*\n +num_nodes +got 3, .* on 2"):
        Trainer(tiny_gpt(), None, golden_config(devices=3, num_nodes=3))
    monkeypatch.setenv("RANK", "first")
    with pytest.raises(ConfigError, match="RANK='first', which must be whole numbers"):
        Trainer(tiny_gpt(), None, golden_config())
