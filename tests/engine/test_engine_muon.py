"""optimizer="muon": which parameters it takes, that its update is torch's, and that it is resumed, refused and learned with."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from tests.kit.healthy_models import HEALTHY
from tests.kit.toys import golden_config, recurrent_lm, tiny_gpt, tiny_llama, train_set, validation_set
from utils.errors import ConfigError
from utils.training import Trainer, TrainingConfig
from utils.training.engine.compute import muon
from utils.training.engine.compute.muon import hidden_matrices, orthogonalised
from utils.training.engine.compute.optim import Schedule, make_optimizer


def names(model):
    taken = {id(matrix) for matrix in hidden_matrices(model)}
    return {name for name, parameter in model.named_parameters() if id(parameter) in taken}


class Attending(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(32, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.positions = nn.Parameter(torch.zeros(16, 8))
        self.head = nn.Linear(8, 32)

    def forward(self, tokens):
        hidden = self.embedding(tokens) + self.positions[: tokens.shape[1]]
        return self.head(self.attention(hidden, hidden, hidden, need_weights=False)[0])


@pytest.mark.parametrize(("make", "taken", "left"), [
    (tiny_gpt, "transformer.h.0.attn.c_attn.weight", ["transformer.wte.weight", "transformer.wpe.weight"]),
    (tiny_llama, "model.layers.0.mlp.down_proj.weight", ["lm_head.weight", "model.embed_tokens.weight"]),
    (HEALTHY["BERT"], "bert.encoder.layer.0.intermediate.dense.weight", ["cls.predictions.decoder.weight"]),
    (HEALTHY["BERT classifier"], "bert.encoder.layer.0.attention.self.query.weight", ["classifier.weight"]),
    (HEALTHY["ViT"], "vit.layers.0.mlp.fc1.weight", ["classifier.weight"]),
    (Attending, "attention.in_proj_weight", ["positions", "head.weight", "embedding.weight"]),
    (lambda: nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3)), "0.weight", ["2.weight"]),
], ids=["GPT-2", "Llama", "BERT", "BERT classifier", "ViT", "attention", "table"])  # fmt: skip
def test_hidden_matrices_are_taken_and_embeddings_and_output_layers_are_not(make, taken, left):
    model = make()
    found = names(model)
    assert taken in found
    assert not found & set(left)
    assert all(dict(model.named_parameters())[name].dim() == 2 for name in found)


def test_frozen_matrices_are_not_taken():
    model = tiny_gpt()
    model.transformer.h[0].requires_grad_(False)
    assert all(name.startswith("transformer.h.1.") for name in names(model))


def test_the_update_is_that_of_torchs_own_two_optimizers():
    model = tiny_gpt(dropout=0.0)
    start, reference = copy.deepcopy(model), copy.deepcopy(model)
    optimizer = make_optimizer(model, TrainingConfig(optimizer="muon", learning_rate=1e-2, weight_decay=0.1))
    taken = names(model)
    matrices = [p for name, p in reference.named_parameters() if name in taken]
    others = [p for name, p in reference.named_parameters() if name not in taken]
    by_torch = torch.optim.Muon(matrices, lr=1e-2, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    adamw = torch.optim.AdamW(
        [{"params": [p for p in others if p.dim() > 1], "weight_decay": 0.1},
         {"params": [p for p in others if p.dim() < 2], "weight_decay": 0.0}],
        lr=1e-2, fused=True,
    )  # fmt: skip
    ids = torch.randint(32, (4, 8))
    for step in range(5):
        model.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        for mine, theirs in zip(model.parameters(), reference.parameters(), strict=True):
            theirs.grad = mine.grad.clone()
        by_torch.param_groups[0]["momentum"] = 0.85 + 0.1 * step / 300
        optimizer.step()
        by_torch.step()
        adamw.step()
    parameters = zip(model.named_parameters(), reference.parameters(), start.parameters(), strict=True)
    for (name, mine), theirs, before in parameters:
        if name in taken:  # torch orthogonalises in bf16, which has less than three decimal digits
            assert (mine - theirs).norm() < 0.05 * (theirs - before).norm(), name
        else:
            assert torch.equal(mine, theirs), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_singular_vectors_are_kept_and_singular_values_are_near_one(dtype):
    given = [torch.randn(*shape) for shape in ((24, 8), (8, 24), (24, 8), (8, 8))]
    found = orthogonalised(given, dtype)
    assert [one.shape for one in found] == [one.shape for one in given]
    for before, after in zip(given[:3], found, strict=False):
        left, _, right = torch.linalg.svd(before, full_matrices=False)
        values = left.mT @ after @ right.mT
        assert ((values.diagonal() > 0.6) & (values.diagonal() < 1.3)).all()
        assert (values - values.diagonal().diag()).abs().max() < (1e-4 if dtype == torch.float32 else 0.05)


def test_a_device_without_bf16_hardware_multiplies_in_fp32(monkeypatch):
    given = [torch.randn(16, 16)]
    monkeypatch.setattr(muon, "has_bf16", lambda kind: False)
    assert torch.equal(orthogonalised(given)[0], orthogonalised(given, torch.float32)[0])
    monkeypatch.setattr(muon, "has_bf16", lambda kind: True)
    assert torch.equal(orthogonalised(given)[0], orthogonalised(given, torch.bfloat16)[0])


def test_the_state_survives_a_copy_and_a_load():
    ids = torch.randint(32, (4, 8))

    def step(model, optimizer):
        optimizer.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()

    config = TrainingConfig(optimizer="muon", learning_rate=1e-2)
    model = tiny_gpt(dropout=0.0)
    optimizer = make_optimizer(model, config)
    step(model, optimizer)
    other = copy.deepcopy(model)
    restored = make_optimizer(other, config)
    restored.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    pair = copy.deepcopy((model, optimizer))
    for _ in range(2):
        step(model, optimizer)
        step(other, restored)
        step(*pair)
    for mine, loaded, copied in zip(model.parameters(), other.parameters(), pair[0].parameters(), strict=True):
        assert torch.equal(mine, loaded)
        assert torch.equal(mine, copied)


def test_a_run_says_what_is_updated_by_which_method_and_learns():
    config = golden_config(optimizer="muon", epochs=6)
    results = Trainer(tiny_gpt(dropout=0.0), None, config).train(train_set(), validation_set())
    assert any("Muon updates 24,576 parameters in 8 matrices" in notice for notice in results.notices)
    assert results.loss_history[-1] < 0.9 * results.loss_history[0]


def test_a_model_without_hidden_matrices_is_left_to_adamw_and_that_is_said():
    config = golden_config(optimizer="muon", epochs=1)
    results = Trainer(recurrent_lm(), None, config).train(train_set(), validation_set())
    assert any("Muon updates nothing" in notice and "AdamW updates all" in notice for notice in results.notices)
    assert results.loss_history == Trainer(
        recurrent_lm(), None, golden_config(epochs=1, run_name="adamw")
    ).train(train_set(), validation_set()).loss_history  # fmt: skip


def test_shards_of_matrices_are_refused():
    with pytest.raises(ConfigError, match="'muon' with strategy='fsdp'.*needs whole"):
        TrainingConfig(optimizer="muon", strategy="fsdp")


# ---- warm-up, stable, decay ----


def test_the_rate_stays_and_falls_in_the_last_fifth():
    schedule = Schedule(golden_config(lr_schedule="wsd", learning_rate=0.01, warmup_steps=10, epochs=1), total_steps=100)
    rates = [schedule.at(step) for step in range(100)]
    assert rates[10:80] == [0.01] * 70
    assert rates[84] == pytest.approx(0.001 + 0.009 * (1 - 0.25**0.5))
    assert rates[99] == pytest.approx(0.001)


def test_a_run_decays_from_any_checkpoint_of_the_plateau():
    """The first steps of a long run are those of a short one: a continued run is as if it had been planned so."""
    changes = {
        "lr_schedule": "wsd", "warmup_steps": 1, "warmup_ratio": None, "lr_decay_ratio": 0.5, "on_config_change": "continue"
    }  # fmt: skip
    short = golden_config(max_steps=8, epochs=10, run_name="short", **changes)
    planned = Trainer(tiny_gpt(), None, short).train(train_set(), validation_set())
    long = golden_config(max_steps=30, epochs=10, run_name="long", keep_last_n=None, **changes)
    Trainer(tiny_gpt(), None, long).train(train_set(), validation_set())
    early = planned.run_dir.with_name("long") / "checkpoints" / "epoch_1.pt"  # step 3
    again = golden_config(max_steps=8, epochs=10, run_name="again", **changes)
    forked = Trainer(tiny_gpt(seed=9), None, again).train(train_set(), validation_set(), resume_from=str(early))
    for name, tensor in planned.model.state_dict().items():
        assert torch.equal(tensor, forked.model.state_dict()[name]), name
