"""Small trainings with one fault each, and healthy ones of many kinds: seconds on one core, and the same each time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset, TensorDataset

from utils.training import TaskSpec, Trainer, TrainingConfig
from utils.training.engine.compute.user_supplied import OwnParts
from utils.training.engine.results import TrainingResults

CLASSES = TaskSpec("classes", "tabular", task_type="text_classification", num_classes=3)
AMOUNT = TaskSpec("amount", "tabular", task_type="regression")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def classes(count: int = 320, features: int = 8, seed: int = 0, noise: float = 0.7) -> tuple[Tensor, Tensor]:
    """Three clouds of points."""
    draw = generator(seed)
    centres = torch.randn(3, features, generator=generator(99)) * 1.5
    labels = torch.randint(0, 3, (count,), generator=draw)
    return centres[labels] + noise * torch.randn(count, features, generator=draw), labels


def rings(count: int = 320, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Three rings around each other: no line divides them."""
    draw = generator(seed)
    labels = torch.randint(0, 3, (count,), generator=draw)
    angles = torch.rand(count, generator=draw) * 6.2832
    radius = labels + 1 + 0.1 * torch.randn(count, generator=draw)
    return torch.stack([radius * angles.cos(), radius * angles.sin()], 1), labels


def amounts(count: int = 320, features: int = 4, seed: int = 0, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    """A smooth function of a few numbers."""
    inputs = torch.randn(count, features, generator=generator(seed))
    return inputs, scale * (inputs[:, :1] + torch.sin(2 * inputs[:, 1:2]) + 0.5 * inputs[:, 2:3])


def signs(count: int = 300, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Images of five signs of 12 x 12 pixels, moved and noisy."""
    draw = generator(seed)
    labels = torch.randint(0, 5, (count,), generator=draw)
    shapes = (torch.rand(5, 8, 8, generator=generator(7)) > 0.5).float()
    images = torch.zeros(count, 1, 12, 12)
    for row, label in enumerate(labels.tolist()):
        top, left = torch.randint(0, 4, (2,), generator=draw).tolist()
        images[row, 0, top : top + 8, left : left + 8] = shapes[label]
    return images + 0.2 * torch.randn(images.shape, generator=draw), labels


def net(inputs: int, outputs: int, width: int = 32, seed: int = 0, activation: type[nn.Module] = nn.ReLU) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Linear(inputs, width), activation(), nn.Linear(width, width), activation(), nn.Linear(width, outputs)
        )


def image_net(outputs: int = 5, seed: int = 0, last: nn.Module | None = None) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers = [nn.Conv2d(1, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(200, outputs)]
        return nn.Sequential(*layers, *([] if last is None else [last]))


def train(
    model: nn.Module, data: tuple[Tensor, ...] | Dataset, validation: tuple[Tensor, ...] | Dataset | None, spec: TaskSpec | None,
    own_parts: OwnParts | None = None, callbacks: Any = (), **settings: Any,
) -> TrainingResults:  # fmt: skip
    """Train with the usual settings of a small table."""
    config = TrainingConfig(**{"epochs": 10, "batch_size": 16, "learning_rate": 3e-3, "precision": "32", **settings})
    trainer = Trainer(model, training_config=config, task_spec=spec, own_parts=own_parts, callbacks=callbacks)
    given = data if isinstance(data, Dataset) else TensorDataset(*data)
    return trainer.train(
        given, validation if validation is None or isinstance(validation, Dataset) else TensorDataset(*validation)
    )


def train_classes(model: nn.Module | None = None, **settings: Any) -> TrainingResults:
    """Three clouds; healthy as it stands."""
    data = settings.pop("data", classes())
    validation = settings.pop("validation", classes(120, seed=1))
    return train(model or net(data[0].shape[1], 3), data, validation, settings.pop("spec", CLASSES), **settings)


def train_amounts(model: nn.Module | None = None, **settings: Any) -> TrainingResults:
    """A smooth function; healthy as it stands."""
    data = settings.pop("data", amounts())
    validation = settings.pop("validation", amounts(120, seed=1))
    return train(model or net(data[0].shape[1], 1), data, validation, settings.pop("spec", AMOUNT), **settings)


def train_signs(model: nn.Module | None = None, **settings: Any) -> TrainingResults:
    """Signs; healthy as it stands."""
    spec = TaskSpec("signs", "vision", task_type="image_classification", num_classes=5)
    data, validation = settings.pop("data", signs()), settings.pop("validation", signs(100, seed=1))
    return train(model or image_net(), data, validation, spec, **settings)


def text_rows(count: int = 120, length: int = 33, seed: int = 0, followed: bool = True, vocab: int = 24) -> Tensor:
    """Rows of ids with unequal frequencies; followed: each id decides the next one, most of the time."""
    draw = generator(seed)
    weights = 1 / torch.arange(1, vocab + 1).float()
    ids = torch.multinomial(weights, count * length, replacement=True, generator=draw).reshape(count, length)
    if followed:
        jump = torch.rand(count, length, generator=draw) < 0.25
        for position in range(1, length):
            after = (ids[:, position - 1] * 5 + 3) % vocab
            ids[:, position] = torch.where(jump[:, position], ids[:, position], after)
    return ids


class OwnTokens(nn.Module):
    """A language model; blind: it does not see which token is where."""

    def __init__(self, vocab: int = 24, width: int = 32, blind: bool = False) -> None:
        super().__init__()
        self.embedding, self.blind = nn.Embedding(vocab, width), blind
        self.mixer, self.head = nn.GRU(width, width, batch_first=True), nn.Linear(width, vocab)

    def forward(self, input_ids: Tensor) -> Tensor:
        hidden, _ = self.mixer(self.embedding(input_ids * 0 if self.blind else input_ids))
        return self.head(hidden)


def train_text(blind: bool = False, rows: Tensor | None = None, **settings: Any) -> TrainingResults:
    """A small language model; healthy as it stands."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = OwnTokens(blind=blind)
    data = text_rows() if rows is None else rows
    spec = TaskSpec.language_modeling(vocab_size=24)
    return train(
        model,
        (data,),
        (text_rows(30, seed=1),),
        spec,
        **{"batch_size": 8, "epochs": 12, "learning_rate": 1e-2, **settings},
    )


class MeanLoss(nn.Module):
    def forward(self, outputs: Tensor, labels: Tensor) -> Tensor:
        return (outputs.squeeze(-1) - labels.squeeze(-1)).square().mean()


class OfProbabilities(nn.Module):
    """Cross-entropy by hand, without any care for zero."""

    def forward(self, outputs: Tensor, labels: Tensor) -> Tensor:
        chance = outputs.squeeze(-1)
        return -(labels * chance.log() + (1 - labels) * (1 - chance).log()).mean()


def own(
    model: nn.Module,
    criterion: Any,
    rate: float = 3e-3,
    kind: type[torch.optim.Optimizer] = torch.optim.Adam,
    **given: Any,
) -> OwnParts:
    return OwnParts(kind(model.parameters(), lr=rate, **given), criterion)


class Augmented(Dataset):
    """Signs drowned in noise, for training only."""

    def __init__(self, strength: float) -> None:
        (self.images, self.labels), self.strength = signs(), strength

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.images[index] + self.strength * torch.randn(1, 12, 12), self.labels[index]


class Detached(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = net(2, 32), nn.Linear(32, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.body(inputs).detach())


def dead_net() -> nn.Module:
    model = net(8, 3)
    with torch.no_grad():
        model[2].bias.fill_(-50.0)
    return model


def noisy(seed: int, count: int = 120) -> tuple[Tensor, Tensor]:
    """Two classes from thirty numbers, a fifth of the labels wrong."""
    draw = generator(seed)
    inputs = torch.randn(count, 30, generator=draw)
    labels = (inputs[:, 0] + inputs[:, 1] > 0).long()
    return inputs, torch.where(torch.rand(count, generator=draw) < 0.2, 1 - labels, labels)


def shuffled(pair: tuple[Tensor, Tensor], seed: int = 5) -> tuple[Tensor, Tensor]:
    return pair[0], pair[1][torch.randperm(len(pair[1]), generator=generator(seed))]


def of_one_class(pair: tuple[Tensor, Tensor], share: float) -> tuple[Tensor, Tensor]:
    """`share` of the rows have class 0, whatever they are."""
    return pair[0], torch.where(torch.rand(len(pair[1]), generator=generator(3)) < share, 0, pair[1])


def ends_with(model: nn.Module, last: nn.Module) -> nn.Module:
    return nn.Sequential(model, last)


def own_amounts(criterion: Any, rate: float = 1e-2, model: nn.Module | None = None, **settings: Any) -> TrainingResults:
    model = model or net(4, 1)
    return train_amounts(
        model,
        own_parts=own(model, criterion, rate, settings.pop("kind", torch.optim.Adam), **settings.pop("given", {})),
        **settings,
    )


def own_classes(criterion: Any, rate: float = 3e-3, model: nn.Module | None = None, **settings: Any) -> TrainingResults:
    model = model or net(8, 3)
    return train_classes(
        model,
        spec=None,
        own_parts=own(model, criterion, rate, settings.pop("kind", torch.optim.Adam), **settings.pop("given", {})),
        **settings,
    )


def negative_cross_entropy(outputs: Tensor, labels: Tensor) -> Tensor:
    return -F.cross_entropy(outputs, labels)


def part_optimizer() -> TrainingResults:
    model = net(2, 3)
    return train_classes(
        model, data=rings(), validation=rings(120, seed=1), spec=None,
        own_parts=OwnParts(torch.optim.Adam(model[-1].parameters(), lr=3e-3), nn.CrossEntropyLoss()),
    )  # fmt: skip


def padded_rows(share: float) -> list[dict[str, Tensor]]:
    rows = []
    for ids in text_rows(96):
        length = max(2, round(len(ids) * (1 - share)))
        mask = (torch.arange(len(ids)) < length).long()
        rows.append({"input_ids": ids * mask, "attention_mask": mask, "labels": torch.where(mask == 1, ids, -100)})
    return rows


#: Rule -> runs that it must find; name -> training.
SICK: dict[str, dict[str, Callable[[], TrainingResults]]] = {
    "learning": {
        "blind": lambda: train_classes(
            nn.Sequential(nn.Linear(8, 3), nn.Softmax(0)), data=shuffled(classes(640)), learning_rate=1e-3
        ),
        "linear": lambda: train_classes(nn.Linear(2, 3), data=rings(), validation=rings(120, seed=1)),
    },
    "more than frequencies": {"blind": lambda: train_text(blind=True)},
    "divergence": {
        "rising rate": lambda: rising_rate(),
    },
    "rate too high": {
        "adam": lambda: train_classes(learning_rate=0.9, use_lr_schedule=False),
        "images": lambda: train_signs(learning_rate=0.3, use_lr_schedule=False),
    },
    "rate too low": {
        "sgd": lambda: train_signs(optimizer="sgd", learning_rate=5e-5),
        "adam": lambda: train_classes(learning_rate=1e-7),
    },
    "Adam's eps": {"eps": lambda: train_amounts(eps=0.9)},
    "warm-up": {"as long as the run": lambda: train_classes(warmup_ratio=1.0)},
    "schedule": {"decayed at once": lambda: decayed()},
    "clipping": {"a millionth": lambda: train_signs(optimizer="sgd", learning_rate=0.05, max_grad_norm=1e-6)},
    "accumulation": {"256": lambda: train_signs(gradient_accumulation_steps=256, learning_rate=3e-3)},
    "number of steps": {"one epoch of one batch": lambda: train_signs(epochs=1, batch_size=512, learning_rate=1e-3)},
    "overfitting": {
        "noise": lambda: train(net(30, 2, 128), noisy(0), noisy(1), CLASSES.replace(num_classes=2), epochs=40),
    },
    "underfitting": {
        "one unit": lambda: train_signs(
            nn.Sequential(nn.Flatten(), nn.Linear(144, 1), nn.ReLU(), nn.Linear(1, 5)), epochs=20
        )
    },
    "dead layers": {"bias": lambda: train_classes(dead_net())},
    "gradients reach the layers": {
        "detached": lambda: train_classes(Detached(), data=rings(), validation=rings(120, seed=1))
    },
    "optimizer holds the model": {"head only": part_optimizer},
    "constant predictions": {
        "softmax over one unit": lambda: train_amounts(ends_with(net(4, 1), nn.Softmax(-1))),
        "unbalanced": lambda: train_classes(
            data=of_one_class(classes(noise=3), 0.96), validation=of_one_class(classes(120, seed=1, noise=3), 0.96)
        ),
    },
    "validation data": {
        "scale": lambda: train_signs(validation=(signs(100, seed=1)[0] * 255, signs(100, seed=1)[1])),
        "sorted": lambda: train_classes(
            validation=(
                classes(300, seed=1)[0][classes(300, seed=1)[1] == 2],
                torch.full((int((classes(300, seed=1)[1] == 2).sum()),), 2),
            )
        ),
        "range": lambda: train_amounts(
            data=(
                torch.rand(320, 1, generator=generator(0)) * 4,
                torch.rand(320, 1, generator=generator(0)).mul(4).square(),
            ),
            validation=(
                torch.rand(80, 1, generator=generator(1)) * 2 + 8,
                torch.rand(80, 1, generator=generator(1)).mul(2).add(8).square(),
            ),
            learning_rate=1e-2,
        ),
    },
    "labels": {"apart": lambda: train_signs(data=shuffled(signs()), epochs=40)},
    "validation": {"none": lambda: train_classes(validation=None, monitor="train/loss")},
    "sign of the loss": {"cross-entropy": lambda: own_classes(negative_cross_entropy)},
    "training harder than validation": {
        "dropout": lambda: train_classes(nn.Sequential(nn.Dropout(0.75), net(8, 3)), epochs=15)
    },
    "padding": {"nine tenths": lambda: train_padded(0.9)},
    "finite numbers": {"logarithm of zero": lambda: skipped_steps()},
}


def decayed() -> TrainingResults:
    model = net(8, 3)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    parts = OwnParts(optimizer, nn.CrossEntropyLoss(), torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.1))
    return train_classes(model, spec=None, own_parts=parts)


def train_padded(share: float) -> TrainingResults:
    from torch.utils.data import Subset

    rows = padded_rows(share)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = OwnTokens()
    return train(
        model, Subset(rows, range(80)), Subset(rows, range(80, 96)), TaskSpec.language_modeling(vocab_size=24), epochs=4
    )


def skipped_steps() -> TrainingResults:
    inputs, targets = amounts()
    inputs[5] = float("inf")
    return train_amounts(data=(inputs, targets), on_nonfinite="skip", epochs=1, batch_size=4)


def own_amounts_healthy() -> TrainingResults:
    return own_amounts(MeanLoss())


def converged() -> TrainingResults:
    """A converged model that is trained further with a fresh optimizer."""
    model = net(8, 3)
    train_classes(model, epochs=30)
    return train_classes(model, epochs=10, learning_rate=1e-3)


def fine_tuned() -> TrainingResults:
    model = net(8, 3)
    train_classes(model, epochs=20)
    return train_classes(model, data=classes(320, seed=11, noise=0.9), learning_rate=2e-5, epochs=5)


def stopped_by_user() -> TrainingResults:
    from utils.training import Callback

    class Stop(Callback):
        def on_step_end(self, step: int, trainer: Any, logs: Any = None) -> None:
            if step == 45:
                trainer.request_stop("stop_button")

    return train_classes(callbacks=[Stop()], epochs=20)


def resumed() -> TrainingResults:
    from utils.training import Callback

    class Stop(Callback):
        def on_step_end(self, step: int, trainer: Any, logs: Any = None) -> None:
            if step == 45:
                trainer.request_stop("stop_button")

    def once(callbacks: Any, resume: Any) -> TrainingResults:
        config = TrainingConfig(epochs=8, batch_size=16, learning_rate=3e-3, precision="32", run_name="resumed")
        trainer = Trainer(net(8, 3), training_config=config, task_spec=CLASSES, callbacks=callbacks)
        return trainer.train(TensorDataset(*classes()), TensorDataset(*classes(120, seed=1)), resume_from=resume)

    once([Stop()], None)
    return once([], "auto")


def lora_like() -> TrainingResults:
    class Adapted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.base = net(8, 3)
            for parameter in self.base.parameters():
                parameter.requires_grad_(False)
            self.down, self.up = nn.Linear(8, 4, bias=False), nn.Linear(4, 3, bias=False)
            nn.init.zeros_(self.up.weight)

        def forward(self, inputs: Tensor) -> Tensor:
            return self.base(inputs) + self.up(self.down(inputs))

    return train_classes(Adapted(), learning_rate=1e-2)


def with_batch_norm() -> TrainingResults:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(200, 5)
        )
    return train_signs(model, batch_size=32, epochs=15)


def with_unused_part() -> TrainingResults:
    class Unused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.pooler = net(8, 3, 64), nn.Linear(16, 16)

        def forward(self, inputs: Tensor) -> Tensor:
            return self.used(inputs)

    return train_classes(Unused())


def binary_with_logits() -> TrainingResults:
    inputs, labels = classes(noise=2.0)
    inputs2, labels2 = classes(120, seed=1, noise=2.0)
    model = net(8, 1)
    parts = own(model, nn.BCEWithLogitsLoss())
    return train(
        model, (inputs, (labels > 0).float()[:, None]), (inputs2, (labels2 > 0).float()[:, None]), AMOUNT, parts
    )


#: Kinds of healthy runs, on which no rule may fire.
HEALTHY: dict[str, Callable[[], TrainingResults]] = {
    "classifier": train_classes,
    "small noisy batches": lambda: train_classes(
        batch_size=2, epochs=6, learning_rate=1e-3, data=classes(noise=2), validation=classes(120, seed=1, noise=2)
    ),
    "large healthy gradients": lambda: train_amounts(
        data=amounts(scale=30.0), validation=amounts(120, seed=1, scale=30.0), learning_rate=2e-2, epochs=25
    ),
    "regression": lambda: train_amounts(epochs=20),
    "regression with sgd": lambda: train_amounts(optimizer="sgd", learning_rate=1e-2, epochs=20),
    "weak signal": lambda: train_amounts(
        data=(amounts()[0], amounts()[1] + 2 * torch.randn(320, 1, generator=generator(4))),
        validation=(amounts(120, seed=1)[0], amounts(120, seed=1)[1] + 2 * torch.randn(120, 1, generator=generator(5))),
        learning_rate=1e-3,
        epochs=8,
    ),
    "images": lambda: train_signs(epochs=15),
    "images with batch norm": with_batch_norm,
    "mild augmentation": lambda: train_signs(data=Augmented(0.3), epochs=15),
    "language model": train_text,
    "converged and continued": converged,
    "fine-tuned": fine_tuned,
    "stopped by the user": stopped_by_user,
    "resumed": resumed,
    "low-rank adapter": lora_like,
    "unused part": with_unused_part,
    "own criterion": own_amounts_healthy,
    "own binary criterion": binary_with_logits,
    "early stopping": lambda: train_classes(early_stopping_patience=2, epochs=40),
    "dropout": lambda: train_classes(nn.Sequential(net(8, 64, 64), nn.Dropout(0.3), nn.Linear(64, 3)), epochs=15),
    "label smoothing": lambda: train_classes(label_smoothing=0.1),
    "accumulation": lambda: train_classes(gradient_accumulation_steps=4, epochs=20),
    "step limit": lambda: train_classes(max_steps=60),
    "rings": lambda: train_classes(
        net(2, 3), data=rings(), validation=rings(120, seed=1), epochs=25, learning_rate=1e-2
    ),
    "very short": lambda: train_classes(epochs=1, max_steps=3),
    "no clipping": lambda: train_amounts(max_grad_norm=0.0, epochs=20),
    "adam with decay to zero": lambda: train_classes(min_lr_ratio=0.0),
    "padded text": lambda: train_padded(0.6),
    "unbalanced, learned": lambda: train_classes(
        net(8, 2),
        data=(classes(640)[0], (classes(640)[1] == 0).long()),
        validation=(classes(120, seed=1)[0], (classes(120, seed=1)[1] == 0).long()),
        spec=CLASSES.replace(num_classes=2),
    ),
}


def rising_rate() -> TrainingResults:
    """A rate that grows until the run diverges."""
    model = net(4, 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    parts = OwnParts(
        optimizer,
        None,
        torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: 1.0 if epoch < 6 else 3.0 ** (epoch - 5)),
    )
    return train_amounts(model, own_parts=parts, epochs=12)
