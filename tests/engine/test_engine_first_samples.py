"""What a pass over the first samples shows before training: each kind of fault in a sentence, and nothing of the kind on what is
right, by design or by twin."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from tests.kit.fault_tools import kinds, line, mlp, numbers, signs
from tests.kit.toys import NormedLM, golden_config, recurrent_lm, same_weights, tiny_gpt, tiny_llama, train_set
from utils.training import TaskSpec, Trainer, TrainingConfig
from utils.training.engine.compute.user_supplied import OwnParts

REGRESSION = TaskSpec.regression()
# Sentences of the rules, as opposed to those on task, data and precision.
SENTENCE = re.compile(
    r"never (negative|below|above)|probabilities already|whatever the weights|Examples of a batch mix|dead from the start|is linear:"
    r"|The criterion|sign of the criterion|loss becomes infinite|No gradient reaches|not in the optimizer|Every gradient|every input"
    r"|class weights|momentum=|Nearly all parameters|Most of the model|out of range|eps=|learning rate is far|max_grad_norm="
)


def notices(
    model: nn.Module,
    data: Any,
    task: TaskSpec | None = None,
    criterion: Any = None,
    own_optimizer: Any = None,
    **config: Any,
) -> list[str]:
    """The sentences of the rules in a training of two steps."""
    own = None
    if criterion is not None or own_optimizer is not None:
        own = OwnParts(own_optimizer or torch.optim.AdamW(model.parameters(), lr=1e-3), criterion)
    settings = {"batch_size": 32, "max_steps": 2, "epochs": 2, "learning_rate": 1e-3, "run_name": "first", **config}
    trainer = Trainer(model, training_config=TrainingConfig(**settings), task_spec=task, own_parts=own)
    trainer.train(data)
    return [sentence for sentence in trainer.notices if SENTENCE.search(sentence)]


def amounts(shift: float = 0.0) -> TensorDataset:
    inputs, targets = line(4, 64)
    return TensorDataset(inputs, targets + shift)


def classes() -> TensorDataset:
    return TensorDataset(*kinds(rows=64))


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)


@pytest.mark.parametrize(
    ("last", "shift", "expected"),
    [
        (nn.ReLU(), 0.0, "never negative"),
        (nn.Softplus(), 0.0, "never negative"),
        (nn.Sigmoid(), 0.0, "never negative"),
        (nn.Tanh(), 3.0, "never above 1"),
        (nn.Softmax(-1), 0.0, "1 for every input"),
        (nn.ReLU(), 9.0, None),
        (nn.Softplus(), 9.0, None),
        (nn.Identity(), 0.0, None),
        (nn.ELU(), 9.0, None),
    ],
)
def test_outputs_that_cannot_be_what_targets_are(last, shift, expected):
    model = nn.Sequential(*mlp(4, 8, 1), last)
    nn.init.constant_(model[2].bias, 1.0)  # alive behind a ReLU
    found = " ".join(notices(model, amounts(shift), REGRESSION))
    assert expected in found if expected else not found


@pytest.mark.parametrize(
    ("last", "expected"),
    [
        (nn.ReLU(), "never negative"), (nn.Sigmoid(), "between 0 and 1"), (nn.Softmax(-1), "probabilities already"),
        (nn.Tanh(), "stay between -1 and 1"), (nn.Hardtanh(-30, 30), None), (nn.LogSoftmax(-1), None), (nn.Identity(), None),
        (nn.LayerNorm(3), None),
    ],
)  # fmt: skip
@pytest.mark.parametrize(
    "criterion",
    [None, nn.CrossEntropyLoss(), lambda scores, labels: F.cross_entropy(scores, labels)],
    ids=["task", "criterion", "function"],
)
def test_scores_that_softmax_is_applied_to(last, expected, criterion):
    model = nn.Sequential(*mlp(4, 8, 3), last)
    found = " ".join(notices(model, classes(), TaskSpec.classification(num_classes=3), criterion))
    assert expected in found if expected else not found


def test_probabilities_of_images_and_of_tokens():
    images, labels = signs(64)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(400, 10), nn.Softmax(-1))
    assert "probabilities already" in " ".join(notices(model, TensorDataset(images, labels)))

    class Sure(NormedLM):
        def forward(self, tokens: Tensor) -> Tensor:
            return super().forward(tokens).softmax(-1)

    assert "probabilities already" in " ".join(notices(Sure(), train_set()))


def test_a_sigmoid_is_right_for_yes_and_no_and_wrong_before_another_one():
    inputs, labels = kinds(classes=2, rows=64)
    data = TensorDataset(inputs, labels.float()[:, None])
    with_sigmoid = nn.Sequential(*mlp(4, 8, 1), nn.Sigmoid())
    assert not notices(with_sigmoid, data, REGRESSION, nn.BCELoss())
    for name, criterion, wrong in (
        ("module", nn.BCEWithLogitsLoss(), True),
        ("function", lambda scores, labels: F.binary_cross_entropy_with_logits(scores, labels), True),
        ("probabilities", lambda outputs, labels: F.binary_cross_entropy(outputs, labels), False),
        ("squares", lambda outputs, labels: F.mse_loss(outputs, labels), False),
    ):
        found = " ".join(notices(with_sigmoid, data, REGRESSION, criterion, run_name=name))
        assert ("once more" in found) == wrong, name


@pytest.mark.parametrize("shape", [(-1,), (-1, 1)], ids=["N", "N1"])
def test_labels_that_are_floats_are_the_criterions_matter(shape):
    inputs, labels = kinds(classes=2, rows=64)
    criterion = lambda scores, labels: F.binary_cross_entropy_with_logits(scores.flatten(), labels.flatten())  # noqa: E731
    assert not notices(mlp(4, 8, 1), TensorDataset(inputs, labels.float().reshape(shape)), None, criterion)


class Rows(nn.Module):
    """Scores that may mix the rows of a batch."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way, self.body, self.head = way, nn.Linear(4, 8), nn.Linear(8, 3)
        self.norm = nn.BatchNorm1d(8)

    def forward(self, rows: Tensor) -> Tensor:
        hidden = self.body(rows).relu()
        if self.way == "mean":
            hidden = hidden + hidden.mean(0)
        if self.way == "batch norm":
            hidden = self.norm(hidden)
        if self.way == "noise":
            hidden = hidden + torch.randn(hidden.shape)
        scores = self.head(hidden)
        return scores.log_softmax(0) if self.way == "softmax" else scores


@pytest.mark.parametrize(
    ("way", "mixes"), [("mean", True), ("softmax", True), ("batch norm", False), ("noise", False), ("", False)]
)
def test_rows_of_a_batch_that_mix(way, mixes):
    found = notices(Rows(way), classes(), TaskSpec.classification(num_classes=3))
    assert any("Examples of a batch mix" in sentence for sentence in found) == mixes


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_layers_that_take_the_batch_for_time(kind, batch_first):
    class Series(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.head = kind(3, 8, batch_first=batch_first), nn.Linear(8, 2)

        def forward(self, rows: Tensor) -> Tensor:
            return self.head(self.layer(rows)[0][:, -1])

    data = TensorDataset(numbers(64, 24).view(64, 8, 3), torch.arange(64) % 2)
    found = " ".join(notices(Series(), data, TaskSpec.classification(num_classes=2)))
    assert ("batch_first=True" in found) != batch_first


def test_dead_units_and_missing_activations():
    dead = mlp(4, 16, 3)
    nn.init.constant_(dead[0].bias, -50.0)
    assert "dead from the start" in " ".join(notices(dead, classes(), TaskSpec.classification()))
    straight = mlp(4, 16, 16, 3, activation=nn.Identity)
    assert "is linear" in " ".join(notices(straight, classes(), TaskSpec.classification(), run_name="straight"))


@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh, nn.GELU, nn.Sigmoid, nn.LeakyReLU, nn.SiLU])
def test_models_with_activations_are_not_called_linear(activation):
    assert not notices(mlp(4, 16, 16, 3, activation=activation), classes(), TaskSpec.classification())


def test_a_single_layer_and_a_low_rank_map_are_linear_on_purpose():
    assert not notices(nn.Linear(4, 3), classes(), TaskSpec.classification())
    assert not notices(
        nn.Sequential(nn.Linear(4, 1), nn.Linear(1, 3)), classes(), TaskSpec.classification(), run_name="rank"
    )


def by_hand(probabilities: Tensor, labels: Tensor) -> Tensor:
    return -(labels * probabilities.log() + (1 - labels) * (1 - probabilities).log()).mean()


CRITERIA: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], str | None]] = {
    "mean": (nn.MSELoss(), None),
    "summed": (lambda outputs, targets: (outputs - targets).square().sum(), "sum over the batch"),
    "summed and says so": (nn.MSELoss(reduction="sum"), None),
    "one a sample": (nn.L1Loss(reduction="none"), None),
    "flipped": (lambda outputs, targets: -(outputs - targets).abs().mean(), "sign of the criterion"),
    "Huber": (nn.HuberLoss(), None),
    "cosine, negative when right": (lambda outputs, targets: -F.cosine_similarity(outputs, targets, dim=0).mean(), None),
    "log-cosh": (lambda outputs, targets: (outputs - targets).cosh().log().mean(), None),
    "density, below zero": (lambda outputs, targets: (50 * (outputs - targets).square() - 2.5).mean(), None),
    "correlation": (lambda outputs, targets: 1 - torch.corrcoef(torch.cat([outputs, targets], 1).T)[0, 1], None),
}  # fmt: skip


@pytest.mark.parametrize("name", CRITERIA)
def test_criteria_for_amounts(name):
    criterion, expected = CRITERIA[name]
    found = " ".join(notices(mlp(4, 8, 1), amounts(), REGRESSION, criterion))
    assert expected in found if expected else not found


CLASS_CRITERIA: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], str | None]] = {
    "cross-entropy": (F.cross_entropy, None),
    "smoothed": (nn.CrossEntropyLoss(label_smoothing=0.2), None),
    "margin": (nn.MultiMarginLoss(), None),
    "focal": (lambda scores, labels: ((1 - (-F.cross_entropy(scores, labels, reduction="none")).exp()) ** 2 * F.cross_entropy(scores, labels, reduction="none")).mean(), None),
    "log-likelihood": (lambda scores, labels: scores.log_softmax(-1).gather(1, labels[:, None]).mean(), "sign of the criterion"),
    "summed": (lambda scores, labels: F.cross_entropy(scores, labels, reduction="sum"), "sum over the batch"),
    "contrastive": (
        lambda scores, labels: torch.where(labels == 0, scores[:, 0] ** 2, (2 - scores[:, 0]).relu() ** 2).mean(), None,
    ),
    "softmax inside": (lambda scores, labels: F.cross_entropy(scores.softmax(-1) + 0 * scores, labels), "cannot fall below"),
    "smoothed away": (nn.CrossEntropyLoss(label_smoothing=1.0), "does not reward right answers"),
    "two terms": (lambda scores, labels: F.cross_entropy(scores, labels) + 0.01 * scores.square().mean(), None),
}  # fmt: skip


@pytest.mark.parametrize("name", CLASS_CRITERIA)
def test_criteria_for_classes(name):
    criterion, expected = CLASS_CRITERIA[name]
    found = " ".join(notices(mlp(4, 8, 3), classes(), TaskSpec.classification(), criterion))
    assert expected in found if expected else not found


def test_a_criterion_with_reduction_sum_is_divided_and_this_is_reported():
    config = TrainingConfig(batch_size=32, max_steps=1, run_name="sum")
    model = mlp(4, 8, 1)
    own = OwnParts(torch.optim.SGD(model.parameters(), lr=1e-3), nn.MSELoss(reduction="sum"))
    trainer = Trainer(model, training_config=config, task_spec=REGRESSION, own_parts=own)
    trainer.train(amounts())
    assert any("reduction='sum'" in sentence for sentence in trainer.notices)


@pytest.mark.parametrize("flipped", [False, True])
def test_the_sign_of_a_criterion_for_one_score_and_whole_labels(flipped):
    def criterion(outputs: Tensor, labels: Tensor) -> Tensor:
        loss = F.binary_cross_entropy_with_logits(outputs[:, 0], labels.float())
        return -loss if flipped else loss

    data = TensorDataset(*kinds(classes=2, rows=64))
    found = notices(mlp(4, 8, 1), data, TaskSpec.classification(), criterion)
    assert [("sign of the criterion" in sentence) for sentence in found] == [True] * flipped


def test_a_criterion_that_takes_the_logarithm_of_zero():
    inputs, labels = kinds(classes=2, rows=64)
    data = TensorDataset(inputs, labels.float()[:, None])
    for criterion, breaks in (
        (by_hand, True),
        (nn.BCELoss(), False),
        (lambda p, y: by_hand(p.clamp(1e-6, 1 - 1e-6), y), False),
    ):
        found = notices(nn.Sequential(*mlp(4, 8, 1), nn.Sigmoid()), data, REGRESSION, criterion, run_name=f"{breaks}")
        assert any("logarithm of zero" in sentence for sentence in found) == breaks


class Parts(nn.Module):
    """A body, a head, and a way between them."""

    def __init__(self, way: str = "") -> None:
        super().__init__()
        self.way, self.body, self.head, self.unused = way, nn.Linear(4, 8), nn.Linear(8, 3), nn.Linear(8, 2)

    def forward(self, rows: Tensor) -> Tensor:
        if self.way == "no_grad":
            with torch.no_grad():
                hidden = self.body(rows).relu()
        else:
            hidden = self.body(rows).relu()
        if self.way == "unused":
            self.unused(hidden)
        return self.head(hidden.detach() if self.way == "detach" else hidden)


@pytest.mark.parametrize(("way", "cut"), [("detach", True), ("no_grad", True), ("unused", False), ("", False)])
def test_parameters_that_get_no_gradient(way, cut):
    found = " ".join(notices(Parts(way), classes(), TaskSpec.classification()))
    assert ("body.weight, body.bias" in found) == cut
    assert "unused" not in found


def test_a_detached_body_that_is_frozen_is_meant():
    model = Parts("detach")
    model.body.requires_grad_(False)
    assert not notices(model, classes(), TaskSpec.classification())


def test_parameters_outside_of_the_optimizer():
    model = Parts()
    found = notices(
        model, classes(), TaskSpec.classification(), own_optimizer=torch.optim.Adam(model.head.parameters(), lr=1e-3)
    )
    assert "2 of 6" in found[0]
    assert "body.weight, body.bias" in found[0]
    model.body.requires_grad_(False)
    optimizer = torch.optim.Adam(model.head.parameters(), lr=1e-3)
    assert not notices(model, classes(), TaskSpec.classification(), own_optimizer=optimizer, run_name="frozen")


@pytest.mark.parametrize("trained", ["norms", "biases", "head", "adapter"])
def test_what_is_left_to_train(trained):
    model = nn.Sequential(nn.Linear(4, 16), nn.LayerNorm(16), nn.ReLU(), nn.Linear(16, 3)).requires_grad_(False)
    wanted = {
        "norms": [model[1].weight, model[1].bias],
        "biases": [model[0].bias, model[3].bias],
        "head": [model[3].weight],
    }
    if trained == "adapter":
        down, up = nn.Linear(16, 1), nn.Linear(1, 3)
        nn.init.zeros_(up.weight)

        class Adapted(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.base, self.down, self.up = model, down, up

            def forward(self, rows: Tensor) -> Tensor:
                hidden = self.base[:3](rows)
                return self.base[3](hidden) + self.up(self.down(hidden))

        assert not notices(Adapted(), classes(), TaskSpec.classification())
        return
    for parameter in wanted[trained]:
        parameter.requires_grad_(True)
    found = " ".join(notices(model, classes(), TaskSpec.classification()))
    assert ("Nearly all parameters are frozen" in found) == (trained == "norms")


@pytest.mark.parametrize("body", ["random", "random, normalised", "trained", "loaded", "with adapters", "small"])
def test_a_body_that_is_frozen_at_random_weights(body):
    layers = {"random, normalised": nn.LayerNorm(128), "small": nn.Linear(128, 128)}
    model = nn.Sequential(nn.Linear(4, 128), layers.get(body, nn.Identity()), nn.Linear(128, 3))
    model[0].requires_grad_(False)
    model[1].requires_grad_(body == "small")  # which makes the frozen part the smaller one
    if body in ("trained", "random, normalised"):  # from a normal distribution, as trained weights may be
        nn.init.normal_(model[0].weight, std=0.3)
    if body == "loaded":
        model.config = SimpleNamespace(_name_or_path="a-pretrained-model")
    if body == "with adapters":
        model[2].lora_A = nn.Parameter(torch.zeros(3))
    found = " ".join(notices(model, classes(), TaskSpec.classification()))
    assert ("frozen at its initial random weights" in found) == body.startswith("random")


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"learning_rate": 0.5}, "learning rate is far too high"),
        ({"optimizer": "adam", "learning_rate": 0.9}, "learning rate is far too high"),
        ({"learning_rate": 0.01}, None),
        ({"eps": 0.5}, "eps=0.5"),
        ({"eps": 1e-6}, None),
        ({"optimizer": "sgd", "learning_rate": 0.05, "max_grad_norm": 1e-6}, "Clipping cuts every step"),
        ({"optimizer": "sgd", "learning_rate": 0.05, "max_grad_norm": 0.1}, None),
        ({"optimizer": "sgd", "learning_rate": 1e-4}, None),
        ({"max_grad_norm": 1e-8}, "max_grad_norm=1e-08 cuts"),
    ],
)
def test_settings_against_the_first_gradients(config, expected):
    found = " ".join(notices(mlp(4, 16, 3), classes(), TaskSpec.classification(), **config))
    assert expected in found if expected else not found


def test_weight_decay_out_of_range_in_an_optimizer_of_the_callers():
    model = mlp(4, 16, 3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=10.0)
    assert (
        "weight_decay=10 is out of range"
        in notices(model, classes(), TaskSpec.classification(), own_optimizer=optimizer)[0]
    )


@pytest.mark.filterwarnings("ignore:Using a target size")
@pytest.mark.parametrize(("shape", "paired"), [((-1,), False), ((-1, 1), True)])
def test_targets_that_are_broadcast_against_outputs(shape, paired):
    inputs, targets = line(4, 64)
    data = TensorDataset(inputs, targets.view(shape))
    model = nn.Linear(4, 1)
    with torch.no_grad():  # outputs go with their targets, so that pairing them makes a difference
        model.weight.copy_(torch.linalg.lstsq(inputs, targets).solution.T)
    found = " ".join(notices(model, data, REGRESSION, F.mse_loss))
    assert ("every output with every target" in found) == (not paired)


@pytest.mark.parametrize(("weights", "reversed_"), [((4.0, 1.0), True), ((1.0, 4.0), False), ((1.0, 1.0), False)])
def test_class_weights_against_the_frequencies(weights, reversed_):
    labels = (torch.arange(64) % 4 == 0).long()
    data = TensorDataset(numbers(64, 4) + labels[:, None], labels)
    criterion = nn.CrossEntropyLoss(weight=torch.tensor(weights))
    found = " ".join(notices(mlp(4, 8, 2), data, TaskSpec.classification(), criterion))
    assert ("class weights look reversed" in found) == reversed_


@pytest.mark.parametrize(("momentum", "expected"), [(0.9999, True), (0.9, False)])
def test_momentum_that_is_longer_than_the_run(momentum, expected):
    model = mlp(4, 8, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=momentum)
    found = " ".join(notices(model, classes(), TaskSpec.classification(), own_optimizer=optimizer))
    assert (f"momentum={momentum:g} averages" in found) == expected


def test_an_accumulation_longer_than_the_epoch():
    model, spec = mlp(4, 8, 3), TaskSpec.classification()
    for batches, longer in ((8, True), (4, False)):
        config = TrainingConfig(batch_size=16, gradient_accumulation_steps=batches, epochs=1, run_name=f"of {batches}")
        trainer = Trainer(model, training_config=config, task_spec=spec)
        trainer.train(classes())
        assert any("one an epoch" in sentence for sentence in trainer.notices) == longer


def test_large_gradients_of_a_healthy_regression_are_no_finding():
    inputs, targets = line(4, 64)
    assert not notices(mlp(4, 16, 1), TensorDataset(inputs, 500 * targets), REGRESSION)


def test_heads_and_branches_that_begin_at_zero_are_no_finding():
    model = mlp(4, 16, 3)
    for parameter in model[2].parameters():
        nn.init.zeros_(parameter)
    assert not notices(model, classes(), TaskSpec.classification())


@pytest.mark.parametrize(
    "make", [tiny_gpt, tiny_llama, recurrent_lm, NormedLM], ids=["GPT-2", "Llama", "GRU", "batch norm"]
)
def test_language_models_are_no_finding(make):
    assert not notices(make(), train_set(), batch_size=4)


class Remembering(nn.Module):
    """Draws, and keeps a buffer, a tensor, a number and a list from one call to the next."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.dropout, self.norm = nn.Linear(4, 3), nn.Dropout(0.5), nn.BatchNorm1d(3)
        self.register_buffer("seen", torch.zeros(3))
        self.last, self.calls, self.kept = torch.zeros(3), 0, list[int]()

    def forward(self, rows: Tensor) -> Tensor:
        scores = self.dropout(self.norm(self.layer(rows))) + 0.1 * self.last + 0.01 * self.calls
        self.last, self.calls = scores.detach().mean(0), self.calls + 1
        self.kept.append(len(rows))
        self.seen = self.seen + scores.detach().sum(0)
        return scores


@pytest.mark.parametrize(
    "make", [Remembering, lambda: NormedLM(), tiny_gpt], ids=["remembering", "batch norm", "dropout"]
)
def test_training_is_the_same_as_without_the_trial(make, monkeypatch):
    data = classes() if make is Remembering else train_set()
    spec = TaskSpec.classification(num_classes=3) if make is Remembering else None
    models = [make()]
    models.append(copy.deepcopy(models[0]))
    losses = []
    for number, model in enumerate(models):
        if number:
            monkeypatch.setattr("utils.training.engine.trainer.first_samples_notices", lambda *arguments: [])
        torch.manual_seed(3)
        results = Trainer(model, training_config=golden_config(run_name=f"run {number}"), task_spec=spec).train(data)
        losses.append(results.loss_history)
    assert losses[0] == losses[1]
    assert same_weights(*models)
