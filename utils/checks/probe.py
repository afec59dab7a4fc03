"""Determine a model's inputs and outputs once for all checks, and guard it against changes by them.

Shapes: B batch, T positions, V vocabulary, C classes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, ParamSpec

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from utils.adapters.facts import first_count, model_facts
from utils.adapters.forward import ModelCall
from utils.adapters.input_shapes import (
    SERIES_LENGTH,
    first_fitting_size,
    first_layer,
    shape_for_layer,
    stated_image_shape,
)
from utils.adapters.inputs import forward_parameters
from utils.adapters.left_as_found import attributes_kept, buffers_kept, gradients_kept, modes_kept
from utils.errors import ModelError
from utils.training.engine import rng
from utils.training.task_kinds import kind_of_task

P = ParamSpec("P")

# Longest input that a check gives: enough to see what it looks for.
_LONGEST = 512
_DEFAULT_LENGTH = 128
_DEFAULT_BATCH = 4
# Trial calls for models over numbers whose first parameters are their own.
_MOST_FEATURES, _TRIED_SHAPES = 4096, 4

Output = Literal["tokens", "classes", "numbers"]

# Weights up to this size are copied while a check runs, and put back where the model changed them itself. Larger ones are
# not: a check that asks whether a model fits must not be what fills the memory.
_COPIED_BYTES = 512 * 2**20

_CLASSIFIERS = ("ForSequenceClassification", "ForImageClassification")


class CannotProbeError(Exception):
    """The model's inputs are not known well enough to check it. The message says what to give."""


@dataclass(frozen=True)
class Probe:
    """A model with everything that is needed to call it.

    Attributes:
        model, call: the model, and from a batch to its logits.
        vocab_size: ids are below it; None for models over images.
        image_shape: (channels, height, width); None for models over tokens and tables.
        feature_shape: of one sample of a table of numbers, (F,), or of a series of them, (T, F); None for others.
        max_length: the longest T that is tried; length: the T that training uses.
        batch_size: the B that training uses.
        output: what the logits should be: "tokens" (B, T, V), "classes" (B, C) or "numbers" (B,) or (B, K).
        scores_vocabulary: whether the logits at each position are over the vocabulary, as opposed to labels of tokens.
        causal: whether a position may see only earlier ones; causal_because: how that is known.
        tokenizer, task_spec: as given to the check; None where they were not.
        stated_vocab_size: the vocabulary that config or task_spec names, whatever the model takes; None where they do not.
    """

    model: nn.Module
    call: ModelCall
    vocab_size: int | None
    image_shape: tuple[int, int, int] | None
    max_length: int
    length: int
    batch_size: int
    output: Output
    scores_vocabulary: bool
    causal: bool
    causal_because: str
    encoder_decoder: bool
    feature_shape: tuple[int, ...] | None = None
    tokenizer: Any = None
    task_spec: Any = None
    stated_vocab_size: int | None = None

    @property
    def over_tokens(self) -> bool:
        """Whether inputs are token ids, and so have a length."""
        return self.vocab_size is not None

    @property
    def device(self) -> torch.device:
        """Device of the model."""
        return next((parameter.device for parameter in self.model.parameters()), torch.device("cpu"))

    def batch(self, batch_size: int, length: int, seed: int = 0) -> dict[str, Tensor]:
        """Random inputs: ids (B, T), images (B, channels, height, width) or numbers (B, *feature_shape).

        The same seed gives the same ones. An encoder-decoder gets different ids on its two sides.
        """
        generator = torch.Generator().manual_seed(seed)
        if self.image_shape is not None:
            return {"pixel_values": torch.randn(batch_size, *self.image_shape, generator=generator).to(self.device)}
        if self.feature_shape is not None:
            return {"inputs": torch.randn(batch_size, *self.feature_shape, generator=generator).to(self.device)}
        batch = {"input_ids": self._ids(batch_size, length, generator)}
        if self.encoder_decoder:
            batch["decoder_input_ids"] = self._ids(batch_size, length, generator)
        return batch

    def _ids(self, batch_size: int, length: int, generator: torch.Generator) -> Tensor:
        """Random ids without those of padding, whose embedding is a row of zeros that normalisation cannot scale."""
        assert self.vocab_size is not None
        ids_BT = torch.randint(self.vocab_size, (batch_size, length), generator=generator)
        for module in self.model.modules():
            if isinstance(module, nn.Embedding) and (pad := module.padding_idx) is not None:
                ids_BT[ids_BT == pad] = (pad + 1) % self.vocab_size
        return ids_BT.to(self.device)

    def loss(self, batch: Mapping[str, Tensor], seed: int = 0) -> Tensor:
        """Mean cross-entropy in nats per target: of the next token for causal models, else of random targets.

        For outputs that are numbers: the mean squared error to targets from a standard normal distribution.
        """
        logits = self.call(batch)
        logits = logits if logits.dtype == torch.float64 else logits.float()
        self._check_shape(logits, batch)
        if self.output == "numbers":
            targets = torch.randn(logits.shape, generator=torch.Generator().manual_seed(seed))
            return F.mse_loss(logits, targets.to(logits))
        if self.output == "classes":
            return F.cross_entropy(logits, self._random(logits.shape[:-1], logits.shape[-1], seed))
        if self.causal and logits.shape[1] > 1:
            return F.cross_entropy(logits[:, :-1].flatten(0, 1), batch["input_ids"][:, 1:].flatten())
        return F.cross_entropy(logits.flatten(0, 1), self._random(logits.shape[:2], logits.shape[-1], seed).flatten())

    def _check_shape(self, logits: Tensor, batch: Mapping[str, Tensor]) -> None:
        """Refuse logits that no loss can be computed from, before the loss raises an error about shapes or indices."""
        rows, scores = len(next(iter(batch.values()))), logits.shape[-1] if logits.dim() else 0
        if self.output == "numbers":
            return
        wanted = (rows, batch["input_ids"].shape[1]) if self.output == "tokens" else (rows,)
        least = (self.vocab_size or 0) if self.scores_vocabulary and self.output == "tokens" else 1
        if tuple(logits.shape[:-1]) != wanted or logits.dim() == 0 or scores < least:
            expected = ", ".join(map(str, [*wanted, max(scores, least)]))
            raise ModelError(
                f"{type(self.model).__name__} returned logits of shape {tuple(logits.shape)}, not ({expected})"
            )

    def _random(self, shape: torch.Size, limit: int, seed: int) -> Tensor:
        return torch.randint(limit, shape, generator=torch.Generator().manual_seed(seed)).to(self.device)

    @property
    def tolerance(self) -> float:
        """Relative rounding that is no difference, for the model's number format: about a thousand units in the last place."""
        dtype = next((p.dtype for p in self.model.parameters() if p.is_floating_point()), torch.float32)
        return 1000 * torch.finfo(dtype).eps if dtype in (torch.float32, torch.float64) else 0.1


def probe(model: Any, config: Any = None, task_spec: Any = None, tokenizer: Any = None) -> Probe:
    """Find out how to call `model`.

    Args:
        model: an nn.Module. Its own config comes first; `config` and `task_spec` fill what it leaves open.
        config: a SetupConfig, TrainingConfig, namespace or mapping with any of vocab_size, max_seq_len or max_length,
            max_batch_size or batch_size; for models over images image_size or input_size, and num_channels or input_channels.
        task_spec: says the task; None: taken from the model's class, else next-token prediction, as `Trainer` infers it.
        tokenizer: its length is the vocabulary when nothing else says.
    Raises:
        CannotProbeError: it takes neither token ids nor images of a known size.
    """
    if not isinstance(model, nn.Module):
        raise CannotProbeError(f"got a {type(model).__name__}; checks take a torch.nn.Module")
    facts = model_facts(model)
    image_shape = _image_shape(model, config, task_spec)
    vocab_size = None if image_shape else _vocab_size(facts.vocab_size, config, task_spec, tokenizer)
    if image_shape is None and vocab_size is None:
        if (table := _table_probe(model, config, task_spec)) is not None:
            return table
        raise CannotProbeError(
            f"{type(model).__name__} does not say how many token ids it takes; give config with vocab_size, or a tokenizer"
        )
    stated = (
        facts.max_length,
        first_count([config], "max_seq_len", "max_length"),
        first_count([task_spec], "max_seq_len"),
    )
    known = [length for length in stated if length]
    length = min(known, default=_DEFAULT_LENGTH)
    output = _output(model, task_spec, image_shape is not None)
    causal, because = _causality(model, task_spec, output, image_shape is not None)
    found = Probe(
        model=model,
        call=ModelCall(model),
        vocab_size=vocab_size,
        image_shape=image_shape,
        max_length=min(length, _LONGEST),
        length=length,
        batch_size=first_count([config], "max_batch_size", "batch_size") or _DEFAULT_BATCH,
        output=output,
        scores_vocabulary=_scores_vocabulary(model, task_spec),
        causal=causal,
        causal_because=because,
        encoder_decoder=_is_encoder_decoder(model, getattr(task_spec, "task_type", None)),
        tokenizer=tokenizer,
        stated_vocab_size=max(first_count([config], "vocab_size") or 0, first_count([task_spec], "vocab_size") or 0)
        or None,
    )
    if output == "classes" and _scores_one(found):
        return replace(found, output="numbers")
    return _as_pooled(found) if causal and task_spec is None else found


def _scores_one(found: Probe) -> bool:
    """Whether a model has a single output per sample: a regression target, or the logit of a binary classifier.

    Cross-entropy over one output is 0 whatever the model does.
    """
    outputs = _trial_outputs(found, found.batch(2, min(5, found.max_length)))
    return outputs is not None and tuple(outputs.shape) in ((2,), (2, 1))


def _as_pooled(found: Probe) -> Probe:
    """The probe of a model that was taken to predict the next token, and whose logits are one row of scores a sample.

    A row with one score for each token of the vocabulary stays what it was: a language model that lost its positions.
    """
    outputs = _trial_outputs(found, found.batch(2, min(5, found.max_length)))
    if outputs is None or outputs.dim() not in (1, 2) or len(outputs) != 2 or outputs.shape[-1] == found.vocab_size:
        return found
    numbers = outputs.dim() == 1 or outputs.shape[1] == 1
    because = "it gives one row of scores for its whole input"
    return replace(found, output="numbers" if numbers else "classes", causal=False, causal_because=because)


def _trial_outputs(found: Probe, batch: Mapping[str, Tensor]) -> Tensor | None:
    """The model's outputs for this batch; None where it raises."""
    try:
        with left_as_it_was(found.model), torch.no_grad():
            found.model.eval()
            return found.call(batch)
    except Exception:  # noqa: BLE001 - it takes something else; the checks report what a wrong input raises
        return None


def _is_encoder_decoder(model: nn.Module, task: str | None) -> bool:
    stated = bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False))
    named = forward_parameters(model, "input_ids")
    return stated or "decoder_input_ids" in (named.declared if task == "seq2seq" else named.required)


def _table_probe(model: nn.Module, config: Any, task_spec: Any) -> Probe | None:
    """The probe of a model over a table of numbers, or over series of them; None when it does not take those.

    The number of features is the stated one, that of the first layer, or a side of the model's own first parameters: a trial
    call tells which of them is the model's input.
    """
    found = Probe(
        model=model, call=ModelCall(model), vocab_size=None, image_shape=None, max_length=0, length=0,
        batch_size=first_count([config], "max_batch_size", "batch_size") or _DEFAULT_BATCH, output="classes",
        scores_vocabulary=False, causal=False, causal_because="its inputs are numbers", encoder_decoder=False,
    )  # fmt: skip
    for shape in _feature_shapes(model, config):
        tried = replace(found, feature_shape=shape)
        outputs = _trial_outputs(tried, tried.batch(2, 0))
        if outputs is not None:
            regression = getattr(task_spec, "task_type", None) == "regression"
            numbers = regression or outputs.dim() < 2 or (outputs.dim() == 2 and outputs.shape[1] == 1)
            return replace(tried, output="numbers" if numbers else "classes")
    return None


def _feature_shapes(model: nn.Module, config: Any) -> list[tuple[int, ...]]:
    """Shapes that one sample of numbers may have, the most likely first."""
    shapes: list[tuple[int, ...]] = []
    first = first_layer(model)
    for source in (model, getattr(model, "config", None), config):
        if (
            count := first_count([source], "in_features", "num_features", "n_features", "input_dim", "input_size")
        ) is not None:
            if isinstance(first, nn.RNNBase) and first.input_size == count:
                shapes.append((SERIES_LENGTH, count))  # the numbers of one step, where a series is taken
            shapes.append((count,))
    if (shape := shape_for_layer(first)) is not None:
        shapes.append(shape)
    elif first is not None and not isinstance(first, nn.Embedding):
        sides = (side for parameter in first.parameters(recurse=False) for side in parameter.shape)
        shapes += [(side,) for side in sides if 1 < side <= _MOST_FEATURES]
    return list(dict.fromkeys(shapes))[:_TRIED_SHAPES]


def _vocab_size(of_model: int | None, config: Any, task_spec: Any, tokenizer: Any) -> int | None:
    given = of_model or first_count([config], "vocab_size") or first_count([task_spec], "vocab_size")
    return given or (len(tokenizer) if tokenizer is not None else None)


def is_stock(model: nn.Module) -> bool:
    """Whether the model's class and those of all its modules are of transformers and torch, with their own forward and without
    hooks of others."""
    return type(model).__module__.startswith("transformers.") and all(
        type(module).__module__.startswith(("transformers.", "torch.")) and "forward" not in vars(module)
        and all(
            str(getattr(hook, "__module__", "")).startswith("transformers.")
            for hook in (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
        )
        for module in model.modules()
    )  # fmt: skip


def reserved_positions(model: nn.Module) -> int:
    """Positions that a model states and does not take: RoBERTa's begin after the padding id, so 514 of them take 512."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding) and "position" in name and module.padding_idx is not None:
            return module.padding_idx + 1
    return 0


def _image_shape(model: nn.Module, config: Any, task_spec: Any) -> tuple[int, int, int] | None:
    """(channels, height, width) of the images that `model` takes; None for one over other inputs."""
    stated = stated_image_shape(model, *filter(None, (config, task_spec)))
    if stated is None:
        return None
    channels, size = stated
    size = size or first_fitting_size(model, channels)
    if size is None:
        raise CannotProbeError(
            f"{type(model).__name__} takes images and does not say of what size, and accepts none of the usual sizes; give "
            "config with image_size (in pixels)"
        )
    return channels, *size


def _output(model: nn.Module, task_spec: Any, over_images: bool) -> Output:
    task = getattr(task_spec, "task_type", None)
    if task is not None:
        kind = kind_of_task(task)
        return "numbers" if kind.targets == "numbers" else "tokens" if kind.per_token else "classes"
    if type(model).__name__.endswith(_CLASSIFIERS) and _is_regressor(getattr(model, "config", None)):
        return "numbers"
    return "classes" if over_images or type(model).__name__.endswith(_CLASSIFIERS) else "tokens"


def _is_regressor(config: Any) -> bool:
    """Whether a transformers head computes the squared error, by the rule of its family: as stated, or for one label."""
    kind = getattr(config, "problem_type", None)
    return kind == "regression" or (kind is None and getattr(config, "num_labels", None) == 1)


def _scores_vocabulary(model: nn.Module, task_spec: Any) -> bool:
    labels = type(model).__name__.endswith("ForTokenClassification")
    return not labels and getattr(task_spec, "task_type", None) != "token_classification"


def _causality(model: nn.Module, task_spec: Any, output: str, images: bool) -> tuple[bool, str]:
    name, task = type(model).__name__, getattr(task_spec, "task_type", None)
    if images or output != "tokens":
        what = "gives one answer for" if output == "numbers" else "classifies"
        return False, f"it {what} its whole input"
    if task is not None:
        return task == "causal_lm", f"the task is {task}"
    if _is_encoder_decoder(model, task):
        return False, "it is an encoder-decoder"
    if name.endswith(("ForMaskedLM", "ForTokenClassification", "ForPreTraining")):
        return False, f"{name} sees both sides"
    config = getattr(model, "config", None)
    if getattr(config, "causal", None) is False or getattr(config, "attn_type", None) == "bi":  # XLM, XLNet
        return False, f"the config of {name} says that it sees both sides"
    return True, "no task was given, so it is taken to predict the next token"


@contextlib.contextmanager
def left_as_it_was(model: nn.Module) -> Iterator[None]:
    """Mode, gradients, buffers, weights, plain attributes and random state are as before after the block.

    Inside, every gradient is None. Attributes are numbers, tensors and the entries of lists, dicts and sets. Not covered:
    weights of more than 512 MiB in a model that changes them itself, in forward or in a hook of its gradients.
    """
    weights = _copied(model)
    with modes_kept(model), rng.preserved(), buffers_kept(model), attributes_kept(model), gradients_kept(model):
        for parameter in model.parameters():
            parameter.grad = None
        try:
            yield
        finally:
            with torch.no_grad():
                for parameter, before in weights:
                    if not torch.equal(parameter, before):
                        parameter.copy_(before)


def _copied(model: nn.Module) -> list[tuple[nn.Parameter, Tensor]]:
    """Every parameter and a copy of its values; nothing when they are large."""
    parameters = list(model.parameters())
    if sum(parameter.numel() * parameter.element_size() for parameter in parameters) > _COPIED_BYTES:
        return []
    return [(parameter, parameter.detach().clone()) for parameter in parameters]


def relative(first: Tensor, second: Tensor) -> float:
    """Largest difference as a share of the largest value of `first`; infinite when the shapes differ, NaN where one is."""
    if first.shape != second.shape:
        return float("inf")
    if not first.numel():
        return 0.0
    return float((first.float() - second.float()).abs().max() / first.float().abs().max().clamp_min(1e-6))


def counted(count: int, noun: str) -> str:
    """`count` and `noun`, in the plural where there are more than one."""
    if count == 1:
        return f"1 {noun}"
    return f"{count} {noun[:-1]}ces" if noun.endswith("ix") else f"{count} {noun}s"


def few(names: list[str], limit: int = 4) -> str:
    """The first of `names`, and how many more there are."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
