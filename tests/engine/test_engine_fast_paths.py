"""Faster routes compute the same: fused loss, oneDNN, GELU, numbers read late, compiled models."""

from __future__ import annotations

import math
import shutil

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset
from transformers import GPT2Config, GPT2LMHeadModel

from tests.kit.toys import (
    LENGTH,
    VOCAB_SIZE,
    RecurrentLM,
    assert_same_run,
    golden_config,
    recurrent_lm,
    tiny_gpt,
    tiny_llama,
    token_rows,
    train_set,
    validation_set,
)
from utils.adapters import ModelCall
from utils.adapters.output_layer import find_output_layer
from utils.errors import ConfigError, ModelError, NonFiniteError
from utils.training import Callback, Trainer
from utils.training.engine import pending_steps
from utils.training.engine import trainer as trainer_module
from utils.training.engine.hardware import fast_paths
from utils.training.engine.loss import fused as fused_loss
from utils.training.engine.loss.tasks import CausalLM


def both_ways(rows, width, vocabulary, dtype=torch.float64, bias=True, smoothing=0.0, ignored=0, autocast=False):
    """(loss, right, gradients) of the fused and of the plain computation on the same random numbers."""
    generator = torch.Generator().manual_seed(rows + vocabulary)
    hidden, weight = (torch.randn(n, width, generator=generator, dtype=dtype) for n in (rows, vocabulary))
    offsets = torch.randn(vocabulary, generator=generator, dtype=dtype) if bias else None
    targets = torch.randint(0, vocabulary, (rows,), generator=generator)
    found = []
    for fused in (True, False):
        leaves = [t.clone().requires_grad_() for t in (hidden, weight, offsets) if t is not None]
        h, w, b = [*leaves, None][:3]
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            if fused:
                out = fused_loss.linear_cross_entropy(h, w, b, targets, smoothing)
                loss, right = out.loss_sum, out.correct
            else:
                logits = F.linear(h, w, b)
                logits = logits.float() if autocast else logits
                loss = F.cross_entropy(logits, targets, reduction="sum", label_smoothing=smoothing)
                right = (logits.argmax(1) == targets).sum()
        (loss / rows).backward()
        found.append((loss.detach(), right, [leaf.grad for leaf in leaves]))
    return found


@pytest.fixture
def small_chunks(monkeypatch):
    """Chunks and blocks so small that every loop runs several times, with a ragged end."""
    monkeypatch.setattr(fused_loss, "_CHUNK_BYTES", {"cpu": 3 * 41 * 8})
    monkeypatch.setattr(fused_loss, "_BLOCK_BYTES", {"cpu": 7 * 41 * 8})


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("rows", [1, 3, 22])
@pytest.mark.usefixtures("small_chunks")
def test_fused_loss_and_gradients_in_double_precision(rows, smoothing, bias):
    fused, plain = both_ways(rows, 5, 41, bias=bias, smoothing=smoothing)
    assert fused[0].item() == pytest.approx(plain[0].item(), rel=1e-12)
    assert fused[1] == plain[1]
    for mine, theirs in zip(fused[2], plain[2], strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-13)


def test_fused_loss_at_a_real_size_in_fp32_and_in_half_precision():
    for autocast, rtol in ((False, 3e-6), (True, 1.5e-2)):
        fused, plain = both_ways(300, 64, 8192, torch.float32, bias=False, autocast=autocast)
        assert fused[0].item() == pytest.approx(plain[0].item(), rel=1e-6)
        assert int(fused[1]) == int(plain[1])
        for mine, theirs in zip(fused[2], plain[2], strict=True):
            assert float((mine - theirs).norm() / theirs.norm()) < rtol


def test_of_equal_logits_the_first_one_counts_as_the_prediction():
    hidden, weight = torch.ones(4, 3), torch.zeros(10, 3)
    out = fused_loss.linear_cross_entropy(hidden, weight, None, torch.tensor([0, 1, 2, 0]))
    assert int(out.correct) == 2
    assert out.loss_sum.item() == pytest.approx(4 * math.log(10))


def test_the_loss_of_a_very_unlikely_target_is_finite_and_right():
    weight = torch.tensor([[500.0], [-500.0], [0.0]])
    out = fused_loss.linear_cross_entropy(torch.ones(1, 1), weight, None, torch.tensor([1]))
    assert out.loss_sum.item() == pytest.approx(1000.0)


def test_frozen_output_layer_and_frozen_body():
    hidden, weight = torch.randn(6, 4, requires_grad=True), torch.randn(9, 4)
    fused_loss.linear_cross_entropy(hidden, weight, None, torch.arange(6)).loss_sum.backward()
    assert hidden.grad is not None
    frozen, head = torch.randn(6, 4), torch.randn(9, 4, requires_grad=True)
    fused_loss.linear_cross_entropy(frozen, head, None, torch.arange(6)).loss_sum.backward()
    assert head.grad is not None


class Capped(RecurrentLM):
    def forward(self, tokens):
        return torch.tanh(super().forward(tokens) / 5) * 5


class OtherWhenTraining(RecurrentLM):
    def forward(self, tokens):
        logits = super().forward(tokens)
        return logits * 2 if self.training else logits


MODELS = {"gpt2": lambda: tiny_gpt(dropout=0.0), "llama": tiny_llama, "plain": lambda: recurrent_lm(dropout=0.0)}


@pytest.mark.parametrize("kind", MODELS)
def test_output_layer_is_found_whatever_it_is_called(kind):
    model = MODELS[kind]()
    batch = {"input_ids": token_rows(1)}
    layer, reason = find_output_layer(model, lambda: ModelCall(model)(batch))
    assert layer is (model.head if kind == "plain" else model.lm_head), reason


@pytest.mark.parametrize("make", [Capped, OtherWhenTraining])
def test_a_model_that_changes_its_logits_takes_the_plain_path(make):
    model = make(dropout=0.0)
    layer, reason = find_output_layer(model, lambda: ModelCall(model)({"input_ids": token_rows(1)}))
    assert layer is None
    assert "untouched" in reason
    with pytest.raises(ModelError, match="fused_loss='on', but what the model returns is not the untouched output"):
        Trainer(model, None, golden_config(fused_loss="on", epochs=1)).train(train_set())
    automatic = Trainer(make(dropout=0.0), None, golden_config(epochs=1, random_seed=1)).train(train_set())
    assert automatic.final_loss is not None


def test_hooks_on_the_output_layer_are_not_bypassed():
    model = recurrent_lm(dropout=0.0)
    model.head.register_forward_hook(lambda layer, inputs, output: None)
    layer, reason = find_output_layer(model, lambda: ModelCall(model)({"input_ids": token_rows(1)}))
    assert layer is None
    assert "hooks" in reason


def hook_on_layer(model, seen):
    return model.get_output_embeddings().register_forward_hook(lambda module, inputs, output: seen.append(output))


def hook_on_model(model, seen):
    return model.register_forward_hook(lambda module, inputs, output: seen.append(output.logits))


def hook_that_changes(model, seen):
    return model.get_output_embeddings().register_forward_hook(lambda module, inputs, output: seen.append(output) or 2 * output)


def backward_hook(model, seen):
    return model.get_output_embeddings().register_full_backward_hook(lambda module, inner, outer: seen.append(outer[0]))


def parametrization(model, seen):
    class Halved(nn.Module):
        def forward(self, weight):
            seen.append(torch.zeros(1, 1, model.config.vocab_size))
            return weight / 2

    nn.utils.parametrize.register_parametrization(model.get_output_embeddings(), "weight", Halved())


ADDED = [hook_on_layer, hook_on_model, hook_that_changes, backward_hook, parametrization]


@pytest.mark.parametrize("add", ADDED)
@pytest.mark.parametrize("make", [lambda: tiny_gpt(dropout=0.0), tiny_llama])
def test_a_hook_that_is_added_after_the_first_step_is_not_bypassed(make, add, monkeypatch):
    """The output layer is known by then."""
    monkeypatch.setattr(fused_loss, "WORTH_IT", 1)
    ids, losses = token_rows(4), {}
    for fused in ("auto", "off"):
        model, seen = make().train(), []
        task, call = CausalLM(fused=fused), ModelCall(model)
        task(call, {"input_ids": ids}).loss_sum.backward()
        add(model, seen)
        loss = task(call, {"input_ids": ids}).loss_sum
        loss.backward()
        losses[fused] = loss.item()
        assert seen
        assert seen[-1].shape[-1] == model.config.vocab_size
        assert fused == "off" or "hooks" in task.notice
    assert losses["auto"] == pytest.approx(losses["off"], rel=1e-6)


def test_a_hook_that_is_removed_again_gives_the_fused_path_back(monkeypatch):
    monkeypatch.setattr(fused_loss, "WORTH_IT", 1)
    calls = []
    original = fused_loss.linear_cross_entropy
    monkeypatch.setattr(fused_loss, "linear_cross_entropy", lambda *given: calls.append(1) or original(*given))
    model = tiny_gpt(dropout=0.0)
    task, call, batch = CausalLM(), ModelCall(model), {"input_ids": token_rows(4)}
    task(call, batch)
    handle = hook_on_layer(model, [])
    task(call, batch)
    assert len(calls) == 1
    handle.remove()
    task(call, batch)
    assert len(calls) == 2


def test_a_hook_that_comes_later_is_refused_where_fusing_was_demanded():
    model = tiny_gpt(dropout=0.0)
    task, call, batch = CausalLM(fused="on"), ModelCall(model), {"input_ids": token_rows(4)}
    task(call, batch)
    hook_on_layer(model, [])
    with pytest.raises(ModelError, match="fused_loss='on', but its output layer.*has hooks"):
        task(call, batch)


def test_looking_for_the_output_layer_leaves_no_trace():
    model = nn.Sequential(nn.Embedding(32, 8), nn.Dropout(0.5), nn.Linear(8, 32))
    model.register_buffer("calls", torch.zeros(()))
    model.register_forward_pre_hook(lambda module, inputs: module.calls.add_(1) and None)
    before = torch.get_rng_state()
    find_output_layer(model, lambda: model(token_rows(1)))
    assert torch.equal(before, torch.get_rng_state())
    assert model.calls == 0
    assert "forward" not in vars(model[2])


@pytest.mark.parametrize("kind", MODELS)
def test_a_fused_run_learns_what_a_plain_one_learns(kind):
    """Over 12 steps with accumulation, padding-free ragged batches and validation."""
    runs = [
        Trainer(
            MODELS[kind](), None, golden_config(precision="32", fused_loss=fused, run_name=fused, max_grad_norm=0.0)
        ).train(train_set(), validation_set())
        for fused in ("on", "off")
    ]
    assert runs[0].loss_history == pytest.approx(runs[1].loss_history, rel=1e-4)
    assert runs[0].val_loss_history == pytest.approx(runs[1].val_loss_history, rel=1e-4)
    assert [row["train/accuracy"] for row in runs[0].epoch_rows] == [
        row["train/accuracy"] for row in runs[1].epoch_rows
    ]


def test_only_positions_with_a_target_get_logits():
    rows = token_rows(6)
    labels = rows.clone()
    labels[:, :10] = -100
    seen = []

    class Spy(CausalLM):
        pass

    model = recurrent_lm(dropout=0.0)
    original = fused_loss.linear_cross_entropy

    def spy(hidden, *rest):
        seen.append(len(hidden))
        return original(hidden, *rest)

    fused_loss.linear_cross_entropy = spy
    try:
        loss = Spy(fused="on")(ModelCall(model), {"input_ids": rows, "labels": labels})
    finally:
        fused_loss.linear_cross_entropy = original
    assert seen == [6 * 6]
    plain = Spy(fused="off")(ModelCall(model), {"input_ids": rows, "labels": labels})
    assert loss.loss_sum.item() == pytest.approx(plain.loss_sum.item(), rel=1e-6)
    assert loss.num_targets == plain.num_targets == 36


# ---- oneDNN and GELU ----


@pytest.fixture
def everything_routed(monkeypatch):
    """Every product, however small, takes the fast route, on any processor that has it."""
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        pytest.skip("this torch has no oneDNN linear")
    monkeypatch.setattr(fast_paths, "_WORTH_IT", 0)
    monkeypatch.setattr(fast_paths, "_onednn_is_faster", lambda: True)


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.usefixtures("everything_routed")
def test_routed_layers_give_the_same_loss_and_gradients(kind):
    model = MODELS[kind]()
    ids = token_rows(4)

    def gradients():
        model.zero_grad()
        logits = ModelCall(model)({"input_ids": ids})
        loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
        loss.backward()
        return loss.detach(), [parameter.grad.clone() for parameter in model.parameters()]

    plain = gradients()
    with fast_paths.fast_paths(model):
        touched = [module for module in model.modules() if "forward" in vars(module)]
        fast = gradients()
    assert len(touched) >= 1
    assert all("forward" not in vars(module) for module in model.modules())
    torch.testing.assert_close(fast[0], plain[0])
    for mine, theirs in zip(fast[1], plain[1], strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.usefixtures("everything_routed")
def test_fast_paths_can_be_turned_off(monkeypatch):
    monkeypatch.setenv("TRAINBOOK_FAST_PATHS", "0")
    model = tiny_gpt()
    with fast_paths.fast_paths(model):
        assert all("forward" not in vars(module) for module in model.modules())
    assert not fast_paths.uses_onednn()


def test_a_run_that_is_continued_by_another_route_says_so(monkeypatch):
    golden_run(tiny_gpt(), epochs=2)
    monkeypatch.setenv("TRAINBOOK_FAST_PATHS", "0")
    continued = golden_run(tiny_gpt(), epochs=3, resume_from="auto", on_config_change="continue")
    assert any("the last bits may differ" in notice and "fast_paths" in notice for notice in continued.notices)


def test_nothing_is_left_of_the_fast_paths_after_an_error():
    model = tiny_gpt()

    class Fails(Callback):
        def on_step_end(self, step, trainer, logs=None):
            raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError):
        Trainer(model, None, golden_config(), callbacks=[Fails()]).train(train_set())
    assert all("forward" not in vars(module) for module in model.modules())


# ---- numbers that are read late ----


@pytest.fixture
def reads_late(monkeypatch):
    """As on a GPU: the optimizer's kernels decide, and the host looks every few steps."""
    original = trainer_module.assemble

    def guarded(*arguments, **named):
        parts = original(*arguments, **named)
        parts.guard = torch.zeros(3)
        return parts

    monkeypatch.setattr(trainer_module, "assemble", guarded)
    monkeypatch.setattr(pending_steps, "_READ_EVERY", 5)


def golden_run(model, callbacks=(), resume_from=None, **changes):
    trainer = Trainer(model, None, golden_config(precision="32", **changes), callbacks=callbacks)
    return trainer.train(train_set(), validation_set(), resume_from=resume_from)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_reading_late_changes_nothing(request, optimizer):
    prompt = golden_run(tiny_gpt(), run_name="prompt", optimizer=optimizer, max_grad_norm=0.0)
    request.getfixturevalue("reads_late")
    late = golden_run(tiny_gpt(), run_name="late", optimizer=optimizer, max_grad_norm=0.0)
    assert_same_run(prompt, late)


def test_clipping_in_the_kernel_is_the_same_clipping(request):
    prompt = golden_run(tiny_gpt(), run_name="prompt")
    request.getfixturevalue("reads_late")
    late = golden_run(tiny_gpt(), run_name="late")
    assert late.loss_history == pytest.approx(prompt.loss_history, rel=1e-6)


class Poison(nn.Module):
    """NaN in chosen training passes."""

    def __init__(self, passes):
        super().__init__()
        self.inner, self.passes, self.count = recurrent_lm(dropout=0.0), set(passes), 0

    def forward(self, tokens):
        logits = self.inner(tokens)
        if not self.training:
            return logits
        self.count += 1
        return logits * math.nan if self.count in self.passes else logits


@pytest.mark.usefixtures("reads_late")
def test_a_fault_that_is_seen_late_is_named_and_nothing_after_it_is_learned():
    changes = {"gradient_accumulation_steps": 1, "early_stopping_patience": None, "max_grad_norm": 0.0}
    good = golden_run(Poison(()), run_name="good", max_steps=6, **changes)
    model = Poison({7})
    with pytest.raises(NonFiniteError, match=r"^step 7: loss is nan"):
        golden_run(model, run_name="bad", lr_schedule="cosine", max_steps=6 + 5, **changes)
    assert good.steps == 6
    from utils.training.engine.checkpointing.store import read_checkpoint

    kept = read_checkpoint("runs/bad/checkpoints/step_6.pt")
    assert kept["state"]["step"] == 6
    assert all(torch.isfinite(weight).all() for weight in kept["model"].values())
    steps = {int(entry["step"]) for entry in kept["optimizer"]["state"].values()}
    assert steps == {6}  # nothing was learned from steps 8 to 10, which were under way already


@pytest.mark.usefixtures("reads_late")
def test_skipped_steps_are_counted_when_they_are_seen_late():
    changes = {"gradient_accumulation_steps": 1, "early_stopping_patience": None, "on_nonfinite": "skip"}
    results = golden_run(Poison({3, 4}), run_name="skips", **changes)
    assert results.state.skipped_steps == 2
    with pytest.raises(NonFiniteError, match=r"^step 6 \(after 3 skipped steps\)"):
        golden_run(Poison({3, 4, 5, 6}), run_name="too-many", **changes)


def test_a_callback_that_must_be_prompt_is(monkeypatch, reads_late):
    seen = []

    class Prompt(Callback):
        def on_step_end(self, step, trainer, logs=None):
            seen.append((step, trainer.state.step, logs["train/loss"]))

    class Late(Prompt):
        may_be_late = True

    golden_run(tiny_gpt(), [Prompt()], run_name="prompt")
    assert all(step == state for step, state, _ in seen)
    prompt = [loss for *_, loss in seen]
    seen.clear()
    golden_run(tiny_gpt(), [Late()], run_name="late")
    assert any(step < state for step, state, _ in seen)
    assert [step for step, *_ in seen] == list(range(1, 13))
    assert [loss for *_, loss in seen] == pytest.approx(prompt, rel=1e-6)


# ---- compiled ----


@pytest.mark.slow
@pytest.mark.skipif(not any(map(shutil.which, ("g++", "c++", "clang++"))), reason="needs a C++ compiler")
@pytest.mark.parametrize("fused", ["on", "off"])
def test_a_compiled_run_learns_the_same_and_is_compiled_before_it_begins(fused):
    changes = {"precision": "32", "fused_loss": fused, "epochs": 1}
    eager = Trainer(plain_mlp(), None, golden_config(run_name="eager", **changes)).train(train_set(), validation_set())
    order = []

    class Order(Callback):
        def on_train_begin(self, trainer, logs=None):
            order.append(list(trainer.notices))

    trainer = Trainer(
        plain_mlp(), None, golden_config(run_name="compiled", compile_mode="default", **changes), callbacks=[Order()]
    )
    compiled = trainer.train(train_set(), validation_set())
    assert compiled.loss_history == pytest.approx(eager.loss_history, rel=1e-5)
    assert compiled.val_loss_history == pytest.approx(eager.val_loss_history, rel=1e-5)
    assert any("Compiled in" in notice for notice in order[0])


@pytest.mark.slow
@pytest.mark.skipif(not any(map(shutil.which, ("g++", "c++", "clang++"))), reason="needs a C++ compiler")
def test_a_compiled_model_of_transformers_learns_the_same():
    train = TensorDataset(token_rows(8))  # full batches of one shape, as each further one is compiled for itself
    histories = []
    for mode in (None, "reduce-overhead"):
        config = golden_config(run_name=f"{mode}", compile_mode=mode, precision="32", epochs=2, batch_size=4)
        torch.manual_seed(0)
        sizes = {"vocab_size": VOCAB_SIZE, "n_positions": LENGTH, "n_embd": 16, "n_layer": 1, "n_head": 2}
        model = GPT2LMHeadModel(GPT2Config(**sizes, attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.0))
        results = Trainer(model, None, config).train(train)
        assert any("Compiled in" in notice for notice in results.notices) == (mode is not None)
        histories.append(results.loss_history)
    assert histories[1] == pytest.approx(histories[0], rel=1e-5)


def test_compiling_without_a_compiler_is_refused_with_what_to_install(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ConfigError, match=r"compile_mode='default' needs a C\+\+ compiler.*apt-get install g\+\+"):
        Trainer(recurrent_lm(), None, golden_config(compile_mode="default")).train(train_set())


class PlainMLP(nn.Module):
    """Small enough to be compiled within seconds."""

    def __init__(self):
        super().__init__()
        self.embedding, self.head = nn.Embedding(32, 16), nn.Linear(16, 32)

    def forward(self, tokens):
        return self.head(torch.tanh(self.embedding(tokens)))


def plain_mlp():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return PlainMLP()
