"""Running out of memory: the step is done again in halves, and the run goes on as if it had begun so."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.kit.toys import (
    assert_same_run,
    golden_config,
    normed_lm,
    recurrent_lm,
    token_rows,
    train_set,
    validation_set,
)
from utils.errors import CallbackError, OutOfMemoryError
from utils.training import Callback, Trainer
from utils.training.engine.hardware.memory import Pieces, is_out_of_memory, largest_that_fits, split

CUDA_WORDS = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 14.75 GiB"


class Hungry(nn.Module):
    """Takes at most `most` rows at once, in its forward or its backward pass, when training or when not."""

    def __init__(self, most, where="forward", dropout=0.1):
        super().__init__()
        self.inner, self.most, self.where = recurrent_lm(dropout=dropout), most, where

    def forward(self, tokens):
        too_large = len(tokens) > self.most
        if too_large and self.where == ("forward" if self.training else "validation"):
            raise torch.OutOfMemoryError(CUDA_WORDS)
        logits = self.inner(tokens)
        if too_large and self.where == "backward" and self.training:

            def fail(gradient):
                raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")

            logits.register_hook(fail)
        return logits


def run(model, stop_at=None, resume_from=None, callbacks=(), **changes):
    class Stop(Callback):
        def on_step_end(self, step, trainer, logs=None):
            if step == stop_at:
                trainer.request_stop("test")

    changes = {"batch_size": 12, "gradient_accumulation_steps": 1, "precision": "32", **changes}
    trainer = Trainer(model, None, golden_config(**changes), callbacks=[Stop(), *callbacks])
    return trainer.train(train_set(), validation_set(), resume_from=resume_from)


@pytest.mark.parametrize("where", ["forward", "backward"])
def test_f15_a_step_that_does_not_fit_is_done_in_halves(where):
    results = run(Hungry(most=3, where=where, dropout=0.0))
    assert results.state.pieces.most == 3
    assert any("at most 3 samples go through the model at once" in notice for notice in results.notices)
    small = run(Hungry(most=99, dropout=0.0), batch_size=3, gradient_accumulation_steps=4, run_name="small")
    assert results.loss_history == pytest.approx(small.loss_history, rel=1e-6)
    assert results.val_loss_history == pytest.approx(small.val_loss_history, rel=1e-6)


def test_a_failed_try_leaves_no_trace_in_random_state():
    """With dropout: the step is repeated from the random state it began with."""
    results = run(Hungry(most=6, where="backward"))
    from_the_start = run(Hungry(most=99), batch_size=6, gradient_accumulation_steps=2, run_name="small")
    assert results.loss_history == pytest.approx(from_the_start.loss_history, rel=1e-6)


class Counting(nn.Module):
    """A model with every kind of buffer that a forward pass may change: it runs out of memory after all have changed."""

    def __init__(self, most, where="forward"):
        super().__init__()
        self.inner, self.most, self.where = normed_lm(), most, where
        self.register_buffer("in_place", torch.zeros(2))
        self.register_buffer("replaced", torch.zeros((), dtype=torch.int64), persistent=False)
        self.register_buffer("growing", torch.zeros(0))
        self.register_buffer("late", None)

    def forward(self, tokens):
        logits = self.inner(tokens)
        if not self.training:
            return logits
        self.in_place += 1.0
        self.replaced = self.replaced + len(tokens)
        self.growing = torch.cat([self.growing, self.growing.new_ones(1)])
        self.late = torch.ones(1) if self.late is None else self.late + 1
        if len(tokens) > self.most and self.where == "forward":
            raise torch.OutOfMemoryError(CUDA_WORDS)
        if len(tokens) > self.most:
            logits.register_hook(_fail)
        return logits


def _fail(gradient):
    raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")


def buffers_of(model):
    return {name: buffer.clone() for name, buffer in model.named_buffers()}


def same_buffers(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("where", ["forward", "backward"])
def test_buffers_change_once_however_often_a_step_is_tried(where):
    hungry, small = Counting(most=3, where=where), Counting(most=99)
    changes = {"max_steps": 2, "epochs": 1}
    results = run(hungry, **changes)  # 12, 6, then 3 at once
    assert results.state.pieces.most == 3
    run(small, batch_size=3, gradient_accumulation_steps=4, run_name="small", **changes)
    assert int(small.inner.norm.num_batches_tracked) == 8
    assert same_buffers(buffers_of(hungry), buffers_of(small))


def test_measuring_the_batch_size_leaves_no_trace_in_buffers():
    plain, measured = Counting(most=99), Counting(most=99)
    changes = {"max_steps": 2, "epochs": 1}
    run(plain, run_name="plain", **changes)
    run(measured, auto_batch_size=True, **changes)
    assert same_buffers(buffers_of(measured), buffers_of(plain))


def test_the_checkpoint_of_a_failed_step_holds_the_buffers_of_the_step_before():
    class Fails(Callback):
        def on_batch_end(self, batch_idx, trainer, logs=None):
            if trainer.state.step == 2:
                raise ValueError("mine")

    unbroken, continued = normed_lm(), normed_lm()
    run(unbroken, run_name="unbroken", epochs=2)
    with pytest.raises(CallbackError) as caught:
        run(normed_lm(), callbacks=[Fails()], epochs=2)
    assert "step_2.pt" in "".join(caught.value.__notes__)
    run(continued, resume_from="auto", epochs=2)
    assert same_buffers(buffers_of(unbroken), buffers_of(continued))


@pytest.mark.parametrize("stop", [1, 4])
def test_a_run_that_ran_out_of_memory_resumes_exactly(stop):
    unbroken = run(Hungry(most=5), run_name="unbroken")
    assert run(Hungry(most=5), stop_at=stop).stop_reason == "test"
    # Continued where everything would fit: the checkpoint's size holds, or dropout would draw other masks.
    assert_same_run(unbroken, run(Hungry(most=99), resume_from="auto"))


def test_a_validation_batch_that_does_not_fit_is_scored_in_pieces():
    results = run(Hungry(most=2, where="validation"))
    assert results.state.pieces.most is None
    assert results.state.validation_pieces.most == 2
    assert results.val_loss_history == pytest.approx(run(Hungry(most=99), run_name="plain").val_loss_history, rel=1e-6)


def test_a_single_sample_that_does_not_fit_is_an_error_with_remedies():
    with pytest.raises(OutOfMemoryError, match=r"step 1 with a single sample .*gradient_checkpointing=True") as caught:
        run(Hungry(most=0))
    assert isinstance(caught.value, MemoryError)


def test_nothing_but_memory_errors_is_tried_again():
    calls = []

    class Broken(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = recurrent_lm()

        def forward(self, tokens):
            calls.append(len(tokens))
            raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="mat1"):
        run(Broken())
    assert [rows for rows in calls if rows == 12] == [12]  # the first samples are tried before, in smaller numbers
    assert calls[-1] == 12
    with pytest.raises(CallbackError):
        run(Hungry(most=99), callbacks=[_OutOfMemoryCallback()], run_name="callback")


class _OutOfMemoryCallback(Callback):
    def on_batch_end(self, batch_idx, trainer, logs=None):
        raise RuntimeError(CUDA_WORDS)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("x"), True),
        (MemoryError(), True),
        (RuntimeError(CUDA_WORDS), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 18.13 GB)"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("CUDA error: device-side assert triggered"), False),
        (ValueError("out of memory"), False),
        (OutOfMemoryError("dealt with: out of memory"), False),
    ],
)
def test_what_counts_as_out_of_memory(error, expected):
    assert is_out_of_memory(error) is expected


@pytest.mark.parametrize("text", ["", CUDA_WORDS])
def test_a_single_sample_that_does_not_fit_is_an_error_that_says_what_helps(text):
    def work(pieces):
        raise MemoryError(text)

    with pytest.raises(OutOfMemoryError, match="does not fit in memory: .+\\. Train on shorter sequences"):
        Pieces().run([{"input_ids": token_rows(1)}], work, "a pass")


def test_pieces_hold_the_same_samples_in_the_same_order():
    batch = {"input_ids": token_rows(7), "labels": token_rows(7), "temperature": torch.tensor(2.0)}
    pieces = split([batch], 3)
    assert [len(piece["input_ids"]) for piece in pieces] == [3, 3, 1]
    assert torch.equal(torch.cat([piece["labels"] for piece in pieces]), batch["labels"])
    assert all(float(piece["temperature"]) == 2.0 for piece in pieces)
    assert split([batch], None) == [batch]
    assert Pieces().most is None


def test_auto_batch_size_takes_the_whole_step_at_once_where_it_fits():
    results = run(Hungry(most=99, dropout=0.0), auto_batch_size=True, batch_size=4, gradient_accumulation_steps=3)
    assert results.state.pieces.most is None
    assert any("12 samples go through the model at once, of 12 a step" in notice for notice in results.notices)
    plain = run(Hungry(most=99, dropout=0.0), batch_size=4, gradient_accumulation_steps=3, run_name="plain")
    assert results.steps == plain.steps
    assert results.loss_history == pytest.approx(plain.loss_history, rel=1e-6)


def test_auto_batch_size_is_bounded_by_the_memory_that_is_free(monkeypatch):
    model = Hungry(most=99)
    parameters = sum(p.numel() for p in model.parameters())
    monkeypatch.setattr(
        "utils.training.engine.hardware.memory.free_memory_bytes", lambda kind: (12 * parameters + 200_000) / 0.8
    )
    results = run(model, auto_batch_size=True, run_name="unbroken")
    assert 1 <= results.state.pieces.most < 12
    run(Hungry(most=99), auto_batch_size=True, stop_at=4)
    monkeypatch.setattr("utils.training.engine.hardware.memory.free_memory_bytes", lambda kind: 2**40)
    assert_same_run(results, run(Hungry(most=99), auto_batch_size=True, resume_from="auto"))
    monkeypatch.setattr("utils.training.engine.hardware.memory.free_memory_bytes", lambda kind: 10 * parameters)
    with pytest.raises(OutOfMemoryError, match="with a single sample, and .* MiB are free"):
        run(Hungry(most=99), auto_batch_size=True, run_name="none")


def test_on_an_accelerator_it_is_tried():
    tried = []

    def rehearse(batch):
        tried.append(len(batch["input_ids"]))
        if tried[-1] > 5:
            raise torch.OutOfMemoryError(CUDA_WORDS)

    assert largest_that_fits({"input_ids": token_rows(16)}, rehearse, on_cpu=False, fixed_bytes=0) == 4
    assert tried == [16, 8, 4]


CHILD = """
import resource, sys, torch
torch.set_num_threads(1)
sys.path.insert(0, {root!r})
from torch.utils.data import TensorDataset
from tests.kit.toys import golden_config
from utils.models import ModelRegistry
from utils.training import Trainer
model = ModelRegistry.create("gpt-small", vocab_size=4096, max_seq_len=64, n_layer=1, n_embd=32, n_head=2)
def run(name):
    config = golden_config(batch_size=256, gradient_accumulation_steps=1, max_steps=2, run_name=name, fused_loss="off", epochs=2, warmup_steps=0,
                           precision="32", max_train_samples=256)
    return Trainer(model, None, config).train(TensorDataset(torch.randint(0, 4096, (512, 64))))
config = golden_config(batch_size=2, gradient_accumulation_steps=1, max_steps=1, warmup_steps=0, run_name="warm", fused_loss="off", precision="32")
Trainer(model, None, config).train(TensorDataset(torch.randint(0, 4096, (512, 64))))  # libraries are loaded, threads are there
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
# 256 rows need about 800 MiB for logits, their logarithms and gradients
resource.setrlimit(resource.RLIMIT_AS, (used + 500 * 2**20, used + 500 * 2**20))
results = run("limited")
print("PIECES", results.state.pieces.most, results.final_loss)
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs Linux's limit on address space")
def test_a_real_lack_of_memory_is_survived():
    root = str(Path(__file__).resolve().parents[2])
    done = subprocess.run(
        [sys.executable, "-c", CHILD.format(root=root)], capture_output=True, text=True, timeout=300, cwd=Path.cwd()
    )
    assert done.returncode == 0, done.stderr[-2000:]
    pieces = int(done.stdout.split("PIECES")[1].split()[0])
    assert 1 <= pieces <= 128


KEPT = """
import os, sys, torch
sys.path.insert(0, {root!r})
torch.set_num_threads(1)
from utils.training.engine.hardware.memory import _glibc, freed_memory_kept
if _glibc() is None:
    print("SKIP"); sys.exit()
def held():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
def use():
    block = torch.ones(100 * 2**18); del block  # 100 MiB
use(); before = held()
with freed_memory_kept():
    use(); inside = held()
after = held(); use()
print("HELD", before, inside, after, held())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator")
def test_what_a_step_frees_is_kept_while_training_and_given_back_after():
    root = str(Path(__file__).resolve().parents[2])
    done = subprocess.run([sys.executable, "-c", KEPT.format(root=root)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    if "SKIP" in done.stdout:
        pytest.skip("another C library, or its own settings")
    before, inside, after, later = map(float, done.stdout.split("HELD")[1].split())
    assert inside > before + 80
    assert after < before + 30
    assert later < before + 30
