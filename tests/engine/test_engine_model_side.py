"""What the model would use or return beside ids and logits: masks, auxiliary losses, a loss of its own."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.kit.task_toys import tiny_bert, tiny_t5
from tests.kit.toys import VOCAB_SIZE, golden_config, plain_lm, tiny_gpt, tiny_llama, token_rows, train_set
from utils.training import Callback, TaskSpec, Trainer, TrainingConfig
from utils.training.engine.compute.assembly import assemble
from utils.training.engine.loss.tasks import CausalLM, Seq2Seq
from utils.training.engine.step import train_step

CLASSES = TaskSpec("text_classification", pad_token_id=0)
RAGGED = [{"input_ids": [8], "labels": 1}, {"input_ids": [1] * 8, "labels": 0}]


def trained(model, data, val=None, spec=None, callbacks=(), **changes):
    settings = {"epochs": 1, "batch_size": 2, "precision": "32", "learning_rate": 1e-9, **changes}
    return Trainer(model, None, TrainingConfig(**settings), spec, callbacks=callbacks).train(data, val)


# ---- masks ----


class Pooling(nn.Module):
    """One class a sample, from the mean of its tokens."""

    def __init__(self):
        super().__init__()
        self.embedding, self.head = nn.Embedding.from_pretrained(torch.arange(9.0)[:, None]), nn.Linear(1, 2)
        with torch.no_grad():
            self.head.weight.copy_(torch.tensor([[0.3], [-0.2]]))
            self.head.bias.zero_()

    def forward(self, input_ids, attention_mask=None):
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        return self.head((self.embedding(input_ids) * mask[..., None]).sum(1) / mask.sum(1, keepdim=True))


class Wrapped(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = Pooling()

    def forward(self, *args, **kwargs):
        return self.inner(*args, **kwargs)


class NoMask(Pooling):
    def forward(self, input_ids):
        return super().forward(input_ids)


class OtherName(Pooling):
    def forward(self, input_ids, padding_mask=None):
        return super().forward(input_ids, padding_mask)


@pytest.mark.parametrize("make", [Pooling, Wrapped, lambda: nn.DataParallel(Pooling())])
def test_a_sample_scores_the_same_alone_and_padded(make):
    runs = [trained(make(), RAGGED, RAGGED, CLASSES, batch_size=size, run_name=f"size-{size}") for size in (1, 2)]
    assert runs[0].final_metrics["val/loss"] == pytest.approx(runs[1].final_metrics["val/loss"], abs=1e-6)
    assert not any("mask" in sentence for run in runs for sentence in run.notices)


@pytest.mark.parametrize(("make", "says"), [(NoMask, "takes no attention_mask"), (OtherName, "parameter 'padding_mask'")])
def test_padding_that_no_mask_can_hide_is_one_notice(make, says):
    found = trained(make(), RAGGED, RAGGED, CLASSES, epochs=3).notices
    assert [says in sentence for sentence in found if "mask" in sentence] == [True]


def test_without_padding_there_is_no_notice_of_masks():
    equal = [{"input_ids": [token] * 4, "labels": token % 2} for token in range(1, 9)]
    assert not any("mask" in sentence for sentence in trained(NoMask(), equal, equal, CLASSES).notices)


@pytest.mark.parametrize(("left", "count"), [(False, 0), (True, 1)])
def test_a_model_that_reads_from_left_to_right_minds_padding_on_the_left_only(left, count):
    ids = token_rows(4, length=6)
    mask = torch.ones_like(ids)
    mask[0, slice(0, 2) if left else slice(4, 6)] = 0
    rows = [{"input_ids": row, "attention_mask": seen} for row, seen in zip(ids, mask, strict=True)]
    found = trained(plain_lm(), rows).notices
    assert sum("Batches hold padding" in sentence for sentence in found) == count


# ---- auxiliary losses ----


def tiny_mixtral(coefficient=0.5, output_router_logits=True):
    from transformers import MixtralConfig, MixtralForCausalLM

    torch.manual_seed(0)
    return MixtralForCausalLM(
        MixtralConfig(
            vocab_size=VOCAB_SIZE, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=1, max_position_embeddings=16,
            output_router_logits=output_router_logits, router_aux_loss_coef=coefficient, pad_token_id=None,
        )
    )  # fmt: skip


def tiny_qwen_moe():
    from transformers import Qwen2MoeConfig, Qwen2MoeForCausalLM

    torch.manual_seed(0)
    return Qwen2MoeForCausalLM(
        Qwen2MoeConfig(
            vocab_size=VOCAB_SIZE, hidden_size=32, intermediate_size=32, moe_intermediate_size=16,
            shared_expert_intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2,
            num_experts=4, num_experts_per_tok=2, output_router_logits=True, router_aux_loss_coef=0.5, pad_token_id=None,
        )
    )  # fmt: skip


def tiny_switch():
    from transformers import SwitchTransformersConfig, SwitchTransformersForConditionalGeneration

    torch.manual_seed(0)
    return SwitchTransformersForConditionalGeneration(
        SwitchTransformersConfig(
            vocab_size=VOCAB_SIZE, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_sparse_encoder_layers=1,
            num_decoder_layers=2, num_sparse_decoder_layers=1, num_heads=2, num_experts=2, dropout_rate=0.0,
            router_jitter_noise=0.0, output_router_logits=True, add_router_probs=True, router_z_loss_coef=0.3,
            router_aux_loss_coef=0.5, decoder_start_token_id=0, pad_token_id=0, eos_token_id=1,
        )
    )  # fmt: skip


class Balanced(nn.Module):
    """A module of nobody's library that returns a term of its own; `coefficient` is not stated: 1."""

    def __init__(self, own_coefficient=None):
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.head = nn.Embedding(VOCAB_SIZE, 16), nn.Linear(16, VOCAB_SIZE)
        if own_coefficient is not None:
            self.aux_loss_coef = own_coefficient

    def forward(self, input_ids, labels=None):
        logits = self.head(self.embedding(input_ids))
        auxiliary = self.embedding.weight.square().mean()
        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
            loss = loss + getattr(self, "aux_loss_coef", 1.0) * auxiliary
        return {"loss": loss, "logits": logits, "aux_loss": auxiliary}


AUXILIARY = {
    "mixtral": tiny_mixtral, "qwen2-moe": tiny_qwen_moe, "plain": Balanced, "plain, coefficient": lambda: Balanced(3.0),
}  # fmt: skip


def parts_of(model, objective):
    return assemble(model, objective, golden_config(precision="32"), total_steps=10)


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("fused", ["on", "off"])
@pytest.mark.parametrize("kind", AUXILIARY)
def test_gradients_are_those_of_the_models_own_loss(kind, fused):
    """Which adds its auxiliary losses itself, when it is given labels."""
    model, ids = AUXILIARY[kind]().train(), token_rows(6)
    model(input_ids=ids, labels=ids)["loss"].backward()
    wanted = gradients(model)
    parts = parts_of(model, CausalLM(fused=fused))
    train_step(parts, [{"input_ids": ids}], max_grad_norm=0.0)
    found = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert wanted.keys() <= found.keys()
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6)


def test_routers_of_encoder_and_decoder_are_balanced_too():
    model, ids = tiny_switch().train(), token_rows(4, length=8)
    model(input_ids=ids, labels=ids).loss.backward()
    wanted = gradients(model)
    train_step(parts_of(model, Seq2Seq()), [{"input_ids": ids, "labels": ids}], max_grad_norm=0.0)
    routers = [name for name in wanted if "router" in name]
    assert len(routers) == 2
    for name in routers:
        torch.testing.assert_close(model.get_parameter(name).grad, wanted[name], rtol=1e-4, atol=1e-7)


def test_an_auxiliary_loss_weighs_the_same_however_a_step_is_cut():
    ids, found = token_rows(6), []
    for sizes in ((6,), (3, 3), (4, 2), (1, 5)):
        model = Balanced(2.0)
        batches = [{"input_ids": part} for part in ids.split(sizes)]
        train_step(parts_of(model, CausalLM()), batches, max_grad_norm=0.0)
        found.append(model.embedding.weight.grad.clone())
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("fused", ["on", "off"])
def test_the_auxiliary_loss_is_a_metric_of_training_only(fused):
    model, rows = Balanced(2.0), token_rows(4)
    with torch.no_grad():
        wanted = 2.0 * float(model.embedding.weight.square().mean())
        cross_entropy = float(model(rows, rows)["loss"]) - wanted
    history = trained(model, rows, rows, batch_size=4, fused_loss=fused).history
    assert history[0]["train/aux_loss"] == pytest.approx(wanted, rel=1e-5)
    assert history[0]["train/loss"] == pytest.approx(cross_entropy, rel=1e-4)
    assert history[0]["val/loss"] == pytest.approx(cross_entropy, rel=1e-4)
    assert "val/aux_loss" not in history[0]


@pytest.mark.parametrize("make", [plain_lm, tiny_gpt, lambda: tiny_mixtral(output_router_logits=False)])
def test_without_an_auxiliary_loss_there_is_no_metric_of_it(make):
    assert "train/aux_loss" not in trained(make(), train_set()).history[0]


def test_an_auxiliary_loss_that_is_no_scalar_is_refused():
    class PerSample(Balanced):
        def forward(self, input_ids):
            return {"logits": super().forward(input_ids)["logits"], "aux_loss": torch.ones(len(input_ids))}

    with pytest.raises(ValueError, match=r"aux_loss of shape \(2,\); expected a scalar"):
        trained(PerSample(), train_set())


# ---- a loss of the model's own ----


def rows_of_classes(count=8, classes=4):
    return [{"input_ids": row, "labels": index % classes} for index, row in enumerate(token_rows(count, 8, vocab_size=20) + 4)]


def rows_of_amounts():
    return [{**row, "labels": float(row["labels"])} for row in rows_of_classes()]


def rows_with_labels():
    return [{"input_ids": row, "labels": row.clone()} for row in token_rows(8, 8, vocab_size=20) + 4]


def masked_rows():
    return [{**row, "labels": row["labels"].index_fill(0, torch.tensor([0, 3, 4]), -100)} for row in rows_with_labels()]


FAMILIES = {
    "gpt2": (tiny_gpt, train_set, None, {}),
    "llama": (tiny_llama, train_set, None, {}),
    "mixtral": (tiny_mixtral, train_set, None, {}),
    "gpt2, smoothed": (tiny_gpt, train_set, None, {"label_smoothing": 0.2}),
    "bert, classes": (lambda: tiny_bert("ForSequenceClassification", num_labels=4), rows_of_classes, None, {}),
    "bert, classes, smoothed": (
        lambda: tiny_bert("ForSequenceClassification", num_labels=4), rows_of_classes, None, {"label_smoothing": 0.2}
    ),
    "bert, amounts": (
        lambda: tiny_bert("ForSequenceClassification", num_labels=1), rows_of_amounts, TaskSpec.regression(), {}
    ),
    "bert, tokens": (
        lambda: tiny_bert("ForTokenClassification", num_labels=30), rows_with_labels, TaskSpec.token_classification(), {}
    ),
    "bert, masked": (lambda: tiny_bert("ForMaskedLM"), masked_rows, TaskSpec.masked_lm(), {}),
    "t5": (tiny_t5, rows_with_labels, TaskSpec.seq2seq(), {}),
    "own module": (Balanced, train_set, None, {}),
}  # fmt: skip


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_model_whose_own_loss_is_the_one_that_is_minimised_gets_no_notice(kind):
    make, data, spec, changes = FAMILIES[kind]
    model = make()
    config = getattr(model, "config", None)
    before = getattr(config, "problem_type", None)
    found = trained(model, data(), spec=spec, **changes)
    assert not any("another loss" in sentence for sentence in found.notices)
    assert getattr(config, "problem_type", None) == before


class Penalised(Balanced):
    """Its own loss has a term that its outputs do not name."""

    def forward(self, input_ids, labels=None):
        found = super().forward(input_ids, labels)
        if labels is not None:
            found["loss"] = found["loss"] + found["logits"].square().mean()
        return found


class LossInATuple(Penalised):
    def forward(self, input_ids, labels=None):
        found = super().forward(input_ids, labels)
        return (found["logits"],) if labels is None else (found["loss"], found["logits"])


@pytest.mark.parametrize("make", [Penalised, LossInATuple])
def test_a_model_with_another_loss_of_its_own_gets_one_notice(make):
    found = trained(make(), train_set(), epochs=2).notices
    assert [make.__name__ in sentence for sentence in found if "another loss" in sentence] == [True]


def test_asking_for_the_models_own_loss_leaves_no_trace():
    class FirstWeights(Callback):
        def on_train_begin(self, trainer, logs=None):
            self.random = torch.rand(3)
            self.state = {name: value.clone() for name, value in trainer.model.state_dict().items()}

    class Asked(Balanced):
        def __init__(self):
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, input_ids, labels=None):
            torch.rand(7)
            self.calls += 1
            return super().forward(input_ids, labels)

    class NotAsked(Asked):
        def forward(self, input_ids):
            return super().forward(input_ids)

    watches = []
    for make in (Asked, NotAsked):
        watches.append(FirstWeights())
        trained(make(), train_set(), callbacks=[watches[-1]], run_name=make.__name__)
    assert torch.equal(watches[0].random, watches[1].random)
    assert all(torch.equal(value, watches[1].state[name]) for name, value in watches[0].state.items())


def test_a_model_that_cannot_compute_its_own_loss_trains_all_the_same():
    class NeedsOtherLabels(Balanced):
        def forward(self, input_ids, labels=None):
            if labels is not None:
                raise KeyError("spans")
            return super().forward(input_ids)

    found = trained(NeedsOtherLabels(), train_set())
    assert found.final_loss is not None
    assert not any("another loss" in sentence for sentence in found.notices)
