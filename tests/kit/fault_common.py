"""Faults of training programs that are asked about again and again, each beside the same program put right."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import ConcatDataset, Subset, TensorDataset

from tests.kit.fault_tools import (
    REGRESSION,
    SIDE,
    SIGNS,
    Program,
    Setup,
    for_signs,
    kinds,
    line,
    mlp,
    numbers,
    rings,
    signs,
    split,
)
from utils.training import TaskSpec

_MODELS, _DATA, _SETTINGS, _TRAINING = "Models and losses", "Data", "Settings", "Training"
_IMAGES = {"image_size": SIDE, "num_channels": 1}


class _Called(nn.Module):
    """A model and how it is called."""

    def __init__(self, model: nn.Module, call: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.model, self.call = model, call

    def forward(self, inputs: Tensor) -> Tensor:
        return self.call(self.model, inputs)


def _images(
    model: nn.Module | None = None, images: Tensor | None = None, labels: Tensor | None = None, **setup: Any
) -> Setup:
    made = signs()
    train, validation = split(made[0] if images is None else images, made[1] if labels is None else labels)
    return Setup(model or for_signs(), train, validation, sizes=_IMAGES, **setup)


def _three(model: nn.Module | None = None, **setup: Any) -> Setup:
    return Setup(model or mlp(4, 16, 3), *split(*kinds()), {"learning_rate": 0.01}, **setup)


# ---- models and losses ----


def _amount(criterion: Any, squeeze: bool = False) -> Setup:
    inputs, targets = line(4)
    model: nn.Module = mlp(4, 16, 1)
    return Setup(
        model, *split(inputs, targets[:, 0] if squeeze else targets), {"epochs": 12}, criterion, task=REGRESSION,
        optimizer=lambda model: torch.optim.Adam(model.parameters(), lr=0.01),
    )  # fmt: skip


def _root(eps: float) -> Setup:
    """A length feature by a square root, whose slope at zero is infinite."""
    inputs, labels = kinds()
    inputs[::7] = 0.0
    layers = mlp(5, 16, 3)
    layers.register_parameter("scale", nn.Parameter(torch.ones(4)))
    model = _Called(
        layers,
        lambda layers, x: layers(torch.cat([x, ((x * layers.scale).square().sum(-1, keepdim=True) + eps).sqrt()], -1)),
    )
    return Setup(model, *split(inputs, labels), {"learning_rate": 0.01})


class _Recurrent(nn.Module):
    """Series (B, 40, 2) -> scores (B, 2) by a plain recurrence."""

    def __init__(self, gain: float) -> None:
        super().__init__()
        self.cell, self.head = nn.RNN(2, 24, batch_first=True, nonlinearity="relu"), nn.Linear(24, 2)
        nn.init.orthogonal_(self.cell.weight_hh_l0, gain)

    def forward(self, rows: Tensor) -> Tensor:
        return self.head(self.cell(rows)[0][:, -1])


def _series(gain: float) -> Setup:
    rows = numbers(400, 80).view(400, 40, 2)
    labels = (rows[:, -4:, 0].sum(1) > 0).long()
    task = TaskSpec.classification(num_classes=2)
    return Setup(_Recurrent(gain), *split(rows, labels), {"learning_rate": 0.003, "epochs": 8}, task=task)


def _dropped(rate: float) -> Setup:
    return _images(nn.Sequential(nn.Flatten(), nn.Linear(144, 64), nn.ReLU(), nn.Dropout(rate), nn.Linear(64, SIGNS)))


def _sigmoids(layers: int) -> Setup:
    sizes = (144, *([24] * layers), SIGNS)
    activation = nn.Sigmoid if layers > 2 else nn.ReLU
    return _images(nn.Sequential(nn.Flatten(), *mlp(*sizes, activation=activation)))


def _zeros(faulty: bool) -> Setup:
    model = mlp(4, 16, 3)
    if faulty:
        for parameter in model.parameters():
            nn.init.zeros_(parameter)
    return _three(model)


def _loss_without_graph(outputs: Any, labels: Tensor) -> Tensor:
    return torch.tensor(F.cross_entropy(outputs, labels).item(), requires_grad=True)


def _share_wrong(outputs: Any, labels: Tensor) -> Tensor:
    return 1 - (outputs.argmax(-1) == labels).float().mean() + 0 * outputs.sum()


def _weighed(faulty: bool) -> Setup:
    """A tenth of the rows is of the second class; its weight is the common class's."""
    generator = torch.Generator().manual_seed(3)
    labels = (torch.rand(600, generator=generator) < 0.25).long()
    inputs = numbers(600, 4) + 0.9 * labels[:, None]
    weights = torch.tensor([8.0, 0.125]) if faulty else torch.tensor([0.7, 2.0])
    return Setup(mlp(4, 16, 2), *split(inputs, labels), {"epochs": 6}, nn.CrossEntropyLoss(weight=weights))


def _softmax_in_criterion(outputs: Any, labels: Tensor) -> Tensor:
    return F.cross_entropy(outputs.softmax(-1), labels)


def _last_dropout(faulty: bool) -> Setup:
    inputs, targets = line(4)
    layers = [*mlp(4, 32, 1)]
    model = nn.Sequential(*layers, nn.Dropout(0.5)) if faulty else nn.Sequential(*layers)
    return Setup(model, *split(inputs, targets), {"learning_rate": 0.01, "epochs": 12}, task=REGRESSION)


def _classes_as_amounts(faulty: bool) -> Setup:
    """Two classes as 0 and 1 for one output with cross-entropy, whose only class is always right."""
    inputs, labels = kinds(4, 2)
    task = TaskSpec.classification(num_classes=2)
    return Setup(mlp(4, 16, 1 if faulty else 2), *split(inputs, labels), {"learning_rate": 0.01}, task=task)


# ---- data ----


def _leaking(faulty: bool) -> Setup:
    inputs, labels = kinds(6, 2, spread=3.0)
    if faulty:
        inputs = torch.cat([inputs[:, :5], labels[:, None].float()], 1)
    return Setup(mlp(6, 16, 2), *split(inputs, labels), {"learning_rate": 0.01})


def _same_for_both(share: float) -> Setup:
    inputs, labels = kinds(8, 2, spread=2.0, rows=500)
    train = TensorDataset(inputs[:400], labels[:400])
    held_out = TensorDataset(inputs[400:], labels[400:])
    if share:
        held_out = ConcatDataset(
            [Subset(train, range(int(100 * share))), Subset(held_out, range(100 - int(100 * share)))]
        )
    return Setup(mlp(8, 16, 2), train, held_out, {"learning_rate": 0.01})


def _twice_normalised(faulty: bool) -> Setup:
    images, labels = signs()
    return _images(images=images / 255 if faulty else images, labels=labels, config={"learning_rate": 3e-3})


def _one_image(faulty: bool) -> Setup:
    images, labels = signs()
    return _images(images=images[:1].expand_as(images).clone() if faulty else images, labels=labels)


def _missing(faulty: bool) -> Setup:
    inputs, labels = kinds()
    if faulty:
        inputs[torch.arange(0, 360, 9), 2] = float("nan")
    return Setup(mlp(4, 16, 3), *split(inputs, labels), {"learning_rate": 0.01})


def _flat_column(faulty: bool) -> Setup:
    """A column without any variation that was standardised by hand: everything is divided by zero."""
    inputs, labels = kinds(5, 3)
    if faulty:
        inputs[:, 3] = 7.0
    inputs = (inputs - inputs.mean(0)) / inputs.std(0)
    return Setup(mlp(5, 16, 3), *split(inputs, labels), {"learning_rate": 0.01})


class _Words(nn.Module):
    """ids (B, 10) -> scores (B, 2)."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(50, 16), mlp(16, 16, 2)

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.head(self.embedding(input_ids).mean(1))


def _unknown_words(faulty: bool) -> Setup:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, 60 if faulty else 50, (300, 10), generator=generator)
    labels = ((ids < 10).sum(1) > 1).long()
    return Setup(_Words(), *split(ids, labels), {"learning_rate": 0.02}, task=TaskSpec.classification(num_classes=2))


def _validation_flipped(faulty: bool) -> Setup:
    inputs, labels = kinds(6, 2)
    train, held_out = split(inputs, labels)
    if faulty:
        held_out = TensorDataset(held_out.tensors[0], 1 - held_out.tensors[1])
    return Setup(mlp(6, 16, 2), train, held_out, {"learning_rate": 0.01})


def _noisy_labels(share: float) -> Setup:
    images, labels = signs()
    generator = torch.Generator().manual_seed(5)
    other = torch.randint(SIGNS, labels.shape, generator=generator)
    labels = torch.where(torch.rand(labels.shape, generator=generator) < share, other, labels)
    return _images(images=images, labels=labels, config={"epochs": 12})


def _minus_one(faulty: bool) -> Setup:
    inputs, labels = kinds(6, 2)
    return Setup(
        mlp(6, 16, 2), *split(inputs, 2 * labels - 1 if faulty else labels), {"learning_rate": 0.01},
        task=TaskSpec.classification(num_classes=2),
    )  # fmt: skip


def _text(labels_shifted: bool) -> Setup:
    """Rows that count up; the labels are moved by one already, and the objective moves them once more."""
    from tests.kit.fault_data import _counting, _language

    ids = _counting(16)
    return _language(ids, ids.roll(-1, 1) if labels_shifted else ids)


class _BothWays(nn.Module):
    """A language model whose recurrence also runs backwards: it reads what it is to foretell."""

    def __init__(self, both: bool) -> None:
        super().__init__()
        self.vocab_size, self.max_seq_len = 24, 32
        self.embedding = nn.Embedding(24, 24)
        self.layer = nn.GRU(24, 24, batch_first=True, bidirectional=both)
        self.head = nn.Linear(48 if both else 24, 24)

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.head(self.layer(self.embedding(input_ids))[0])


def _ahead(both: bool) -> Setup:
    from tests.kit.fault_data import _counting, _language

    made = _language(_counting(16))
    made.model = _BothWays(both)
    return made


# ---- settings and training ----


def _sgd(**settings: Any) -> Callable[[nn.Module], torch.optim.Optimizer]:
    return lambda model: torch.optim.SGD(model.parameters(), **settings)


def _batch_normed(batch_size: int) -> Setup:
    model = nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3))
    return Setup(model, *split(*kinds()), {"learning_rate": 0.01, "batch_size": batch_size})


def _through_numpy(faulty: bool) -> Setup:
    """The hidden layer's output takes the way through numpy, on which its graph is lost."""
    body, head = nn.Linear(2, 16), nn.Linear(16, 2)

    def call(layers: Any, x: Tensor) -> Tensor:
        hidden = layers[0](x).relu()
        return layers[1](torch.from_numpy(hidden.detach().float().numpy()) if faulty else hidden)

    model = _Called(nn.ModuleList([body, head]), call)
    return Setup(model, *split(*rings()), {"learning_rate": 0.02, "epochs": 25})


def _warm(ratio: float) -> Setup:
    return _images(config={"warmup_ratio": ratio, "epochs": 6})


def _decaying(decay: float) -> Setup:
    return _images(optimizer=_sgd(lr=0.1, weight_decay=decay))


PROGRAMS: tuple[Program, ...] = (
    Program("broadcast_targets", _MODELS, lambda: _amount(F.mse_loss, squeeze=True), lambda: _amount(F.mse_loss), r"broadcast|shape.*(target|label)|(target|label).*shape"),
    Program("root_of_zero", _MODELS, lambda: _root(0.0), lambda: _root(1e-6), r"nan|not finite|square root"),
    Program("recurrence_explodes", _MODELS, lambda: _series(2.0), lambda: _series(1.0), r"explod|gradient.*(grow|large)|too large"),
    Program("dropout_99", _MODELS, lambda: _dropped(0.99), lambda: _dropped(0.1), r"dropout"),
    Program("ten_sigmoids", _MODELS, lambda: _sigmoids(10), lambda: _sigmoids(2), r"vanish"),
    Program("all_zeros", _MODELS, lambda: _zeros(True), lambda: _zeros(False), r"zero|the same"),
    Program("loss_item", _TRAINING, lambda: _three(criterion=_loss_without_graph), lambda: _three(criterion=F.cross_entropy), r"graph|no gradient|not connected|detach|without a gradient"),
    Program("share_as_loss", _MODELS, lambda: _three(criterion=_share_wrong), lambda: _three(criterion=F.cross_entropy), r"gradient.*zero|no gradient|not differentiable|argmax|flat"),
    Program("weights_reversed", _MODELS, lambda: _weighed(True), lambda: _weighed(False), r"class weights"),
    Program("softmax_in_criterion", _MODELS, lambda: _three(criterion=_softmax_in_criterion), lambda: _three(criterion=F.cross_entropy), r"softmax.*(twice|probabilit)|criterion.*softmax|bounded|cannot (get|fall)|floor"),
    Program("nll_of_scores", _MODELS, lambda: _three(criterion=nn.NLLLoss()), lambda: _three(criterion=nn.CrossEntropyLoss()), r"log_?softmax|below zero|no lower bound|nll|unbounded"),
    Program("dropout_on_the_output", _MODELS, lambda: _last_dropout(True), lambda: _last_dropout(False), r"dropout"),
    Program("one_score_for_two_classes", _MODELS, lambda: _classes_as_amounts(True), lambda: _classes_as_amounts(False), r"one (unit|output|score)|label 1|(1|num_classes).*(classes|outputs|scores)|outside"),
    Program("label_among_the_features", _DATA, lambda: _leaking(True), lambda: _leaking(False), r"leak|feature 5|column 5|gives? (away|the label)"),
    Program("validation_is_training", _DATA, lambda: _same_for_both(1.0), lambda: _same_for_both(0.0), r"validation.*(also|same|repeat|overlap|train)"),
    Program("normalised_twice", _DATA, lambda: _twice_normalised(True), lambda: _twice_normalised(False), r"twice|inputs are tiny"),
    Program("always_the_same_image", _DATA, lambda: _one_image(True), lambda: _one_image(False), r"same|repeat|duplicate|constant|do not differ"),
    Program("missing_values", _DATA, lambda: _missing(True), lambda: _missing(False), r"nan|missing|not finite"),
    Program("column_divided_by_zero", _DATA, lambda: _flat_column(True), lambda: _flat_column(False), r"nan|not finite|constant"),
    Program("words_beyond_the_table", _DATA, lambda: _unknown_words(True), lambda: _unknown_words(False), r"vocab|id 5\d|outside|beyond|embedding"),
    Program("validation_labels_flipped", _DATA, lambda: _validation_flipped(True), lambda: _validation_flipped(False), r"validation.*(distribution|label|worse|differ)|labels.*validation"),
    Program("labels_noisy", _DATA, lambda: _noisy_labels(0.7), lambda: _noisy_labels(0.0), r"label|over-?fit|memoris"),
    Program("labels_minus_one", _DATA, lambda: _minus_one(True), lambda: _minus_one(False), r"label -1"),
    Program("labels_moved_twice", _DATA, lambda: _text(True), lambda: _text(False), r"shift|moved|next token"),
    Program("reads_ahead", _MODELS, lambda: _ahead(True), lambda: _ahead(False), r"causal|later|future|ahead"),
    Program("batch_of_one_normed", _SETTINGS, lambda: _batch_normed(1), lambda: _batch_normed(32), r"batch.?norm|more than 1 value|batch_size"),
    Program("through_numpy", _TRAINING, lambda: _through_numpy(True), lambda: _through_numpy(False), r"no gradient|without a gradient"),
    Program("warm_up_only", _SETTINGS, lambda: _warm(1.0), lambda: _warm(0.1), r"warm.?up"),
    Program("decay_of_one", _SETTINGS, lambda: _decaying(3.0), lambda: _decaying(1e-4), r"weight.decay"),
    Program("momentum_too_high", _SETTINGS, lambda: _images(optimizer=_sgd(lr=0.05, momentum=0.9999)), lambda: _images(optimizer=_sgd(lr=0.05, momentum=0.9)), r"momentum"),
    Program("labels_smoothed_away", _SETTINGS, lambda: _three(criterion=nn.CrossEntropyLoss(label_smoothing=1.0)), lambda: _three(criterion=nn.CrossEntropyLoss(label_smoothing=0.1)), r"smooth|label"),
    Program("rate_decays_at_once", _SETTINGS, lambda: _images(config={"learning_rate": 1e-7}), lambda: _images(config={"learning_rate": 3e-3}), r"learning.rate|rate too low"),
)  # fmt: skip
