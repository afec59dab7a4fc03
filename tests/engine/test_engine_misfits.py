"""A model that cannot be trained as it is: the check says so before, and training says what was got and what is needed."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from tests.kit.checked_models import Block, TakesFewerPositions
from tests.kit.misfits import MISFITS
from tests.kit.toys import golden_config, plain_lm, same_weights, token_rows, train_set, validation_set
from utils.checks import run_all_tier1_tests
from utils.errors import ModelError
from utils.training import TaskSpec, Trainer


def train(model, rows=None, **changes):
    data = train_set() if rows is None else TensorDataset(rows)
    return Trainer(model, None, golden_config(epochs=1, **changes)).train(data)


@pytest.mark.parametrize("misfit", MISFITS)
def test_f48_a_model_that_does_not_fit_is_told_by_the_check_and_by_training(misfit):
    make, check_says, training_says = MISFITS[misfit]
    report = run_all_tier1_tests(make())
    assert not report.passed
    assert check_says in " ".join(result.summary for result in report.results)
    if training_says is None:
        return
    model = make()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises((ModelError, RuntimeError)) as caught:
        train(model)
    said = "\n".join([str(caught.value), *getattr(caught.value, "__notes__", ())])
    assert training_says in said
    assert type(model).__name__ in said
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_the_right_shape_is_named_beside_the_wrong_one():
    with pytest.raises(ModelError, match=r"shape \(4, 32\); predicting the next token needs \(B=4, T=16, V\)"):
        train(MISFITS["one prediction a row"][0]())
    with pytest.raises(ModelError, match=r"shape \(4, 16, 24\), and a label is 3\d\. Expected at least 3\d scores"):
        train(MISFITS["too few scores"][0]())


def test_an_error_of_the_models_own_keeps_its_type_and_gets_the_inputs_shapes():
    with pytest.raises(RuntimeError) as caught:
        train(MISFITS["raises"][0]())
    assert "Breaks.forward was called with input_ids (4, 16) int64." in caught.value.__notes__


def test_positions_that_a_model_states_and_does_not_have_are_told():
    with pytest.raises(
        ModelError, match=r"input_ids \(4, 32\) int64, ids 0 to 31\. It states 32 token ids and 32 positions"
    ):
        train(TakesFewerPositions(), token_rows(length=32))
    shapes = run_all_tier1_tests(TakesFewerPositions())["shapes"]
    assert "IndexError" in shapes.summary
    assert "1 other shape worked" in shapes.summary


def test_labels_are_never_given_and_a_model_that_needs_them_is_told():
    class OwnLoss(Block):
        def forward(self, input_ids, labels):
            return super().forward(input_ids)

    with pytest.raises(ModelError, match=r"needs \['labels'\].*the loss is computed outside"):
        train(OwnLoss())


def test_a_model_given_in_evaluation_mode_is_trained_in_training_mode_and_given_back_as_it_was():
    seen = []

    class Watched(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = plain_lm()

        def forward(self, tokens):
            if torch.is_grad_enabled():  # the first samples are looked at in evaluation mode too, without gradients
                seen.append(self.inner.dropout.training)
            return self.inner(tokens)

    trained, reference = Watched().eval(), Watched().train()
    train(trained, run_name="first")
    train(reference, run_name="second")
    assert all(seen)
    assert same_weights(trained, reference)
    assert not trained.inner.dropout.training
    assert reference.inner.dropout.training


def test_validation_data_find_a_misfit_too():
    class OnlyTrains(Block):
        def forward(self, input_ids):
            logits = super().forward(input_ids)
            return logits if self.training else logits.mean(1)

    with pytest.raises(ModelError, match=r"shape \(4, 32\)"):
        Trainer(OnlyTrains(), None, golden_config()).train(train_set(), validation_set())


class WithLazyLayers(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.norm, self.head = nn.Embedding(32, 8), nn.LazyBatchNorm1d(), nn.LazyLinear(32)

    def forward(self, input_ids):
        hidden_BDT = self.norm(self.embedding(input_ids).transpose(1, 2))
        return self.head(hidden_BDT.transpose(1, 2))


def test_lazy_layers_get_their_sizes_from_the_first_sample():
    model, before = WithLazyLayers(), torch.get_rng_state()
    results = train(model)
    assert any("head: LazyLinear" in sentence and "first sample" in sentence for sentence in results.notices)
    assert model.head.weight.shape == (32, 8)
    assert torch.equal(before, torch.get_rng_state())
    again = train(model, run_name="again")
    assert not any("Lazy" in sentence for sentence in again.notices)


def test_a_lazy_layer_that_is_not_used_or_cannot_be_tried_is_named():
    unused = plain_lm()
    unused.spare = nn.LazyLinear(3)
    with pytest.raises(ModelError, match="does not use spare: LazyLinear"):
        train(unused)
    stream = DataLoader(TensorDataset(token_rows(4)), batch_sampler=[[0, 1], [2, 3]])
    with pytest.raises(ModelError, match="LazyLinear.*Call the model once with a sample"):
        Trainer(WithLazyLayers(), None, golden_config(epochs=1, lr_schedule="constant")).train(stream)


@pytest.mark.parametrize("settings", [{"optimizer": name} for name in ("adamw", "adam", "sgd", "muon")] + [
    {"optimizer": "sgd", "max_grad_norm": 0.0, "weight_decay": 0.0},
])  # fmt: skip
def test_sparse_gradients_are_refused_before_the_first_step(settings):
    model = plain_lm()
    model.embedding = nn.Embedding(32, 32, sparse=True)
    with pytest.raises(ModelError, match=r"sparse=True \(embedding\).*model\.embedding\.sparse = False"):
        train(model, **settings)
    model.embedding.sparse = False
    assert train(model, run_name="dense", **settings).final_loss is not None


def test_a_sparse_embedding_that_is_frozen_does_no_harm():
    model = plain_lm()
    model.embedding = nn.Embedding(32, 32, sparse=True).requires_grad_(False)
    assert train(model).final_loss is not None


class Normed(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.norm, self.head = nn.Embedding(32, 8), nn.BatchNorm1d(8), nn.Linear(8, 2)

    def forward(self, input_ids):
        return self.head(self.norm(self.embedding(input_ids).mean(1)))


def samples_for_classes(count):
    return [{"input_ids": row, "labels": index % 2} for index, row in enumerate(token_rows(count))]


@pytest.mark.parametrize(("count", "changes"), [
    (9, {}), (1, {}), (6, {"batch_size": 1}), (13, {"gradient_accumulation_steps": 1}),
])  # fmt: skip
def test_a_last_batch_of_one_sample_is_refused_for_a_batch_norm_before_the_first_step(count, changes):
    model = Normed()
    trainer = Trainer(model, None, golden_config(**changes), TaskSpec("text_classification"))
    size = changes.get("batch_size", 4)
    with pytest.raises(ModelError, match=rf"{count} samples in batches of {size} end with a batch of one.*BatchNorm"):
        trainer.train(samples_for_classes(count))
    assert trainer.state.step == 0
    assert not model.norm.num_batches_tracked


@pytest.mark.parametrize("changes", [{}, {"auto_batch_size": True}])
def test_a_batch_norm_trains_where_no_batch_has_one_sample(changes):
    trainer = Trainer(Normed(), None, golden_config(**changes), TaskSpec("text_classification"))
    assert trainer.train(samples_for_classes(10)).final_loss is not None


def test_a_batch_norm_over_positions_takes_a_single_sample():
    class OverPositions(Normed):
        def forward(self, input_ids):
            return self.head(self.norm(self.embedding(input_ids).transpose(1, 2)).mean(2))

    trainer = Trainer(OverPositions(), None, golden_config(), TaskSpec("text_classification"))
    assert trainer.train(samples_for_classes(9)).final_loss is not None
