"""Fine-tuning: which parameters of a model are trained.

Blocks, heads and linear layers are found by the structure of the model, not by the names of an architecture: blocks are the
modules of one class that stand in a list, such as the layers of a transformer.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from utils.errors import ConfigError, MissingPackageError, ModelError
from utils.schema import nearest
from utils.training.adapter_checkpoints import base_of, note_base
from utils.training.optimizer_kinds import OPTIMIZERS
from utils.training.training_config import TrainingConfig

# Attribute of a base model with adapters in it: their settings, and the peft model around it.
_ADAPTED = "_trainbook_adapted"
#: Attribute of a model: ids of the tokens that were added to its vocabulary, whose rows nothing has trained yet.
NEW_TOKENS = "_trainbook_new_tokens"
#: Attribute of a pretrained model: names of the parameters that its checkpoint did not contain.
NEW_PARAMETERS = "_trainbook_new_parameters"

# Their fused kernels read the weights of the layers inside and would ignore an adapter.
_READS_WEIGHTS = (nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)


@dataclass(frozen=True)
class FineTuned:
    """A model with the parameters of its fine-tuning mode switched on.

    Attributes:
        model: what is trained: the model itself, or a peft model around it.
        base: the model that was given.
        mode: the value of `finetune`; trained, total: parameters that are trained, and all of them.
        notices: sentences for the user.
    """

    model: nn.Module
    base: nn.Module
    mode: str
    trained: int
    total: int
    notices: tuple[str, ...] = field(default=())

    @property
    def facts(self) -> dict[str, Any]:
        """Plain values for results and records."""
        share = self.trained / self.total if self.total else 0.0
        return {"mode": self.mode, "trained": self.trained, "total": self.total, "share": share}


@contextlib.contextmanager
def fine_tuned(model: nn.Module, config: TrainingConfig) -> Iterator[FineTuned]:
    """`model` as `config.finetune` trains it.

    "head" and "last_layers" freeze the other parameters inside the block only; "lora" puts adapters into the model, which stay.

    Raises:
        ConfigError: the model has no such parts, or `lora_targets` names layers that it does not have.
        MissingPackageError: LoRA without peft. ModelError: the model already holds adapters of another wrapper.
    """
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    if config.finetune in ("full", "lora"):
        adapted = with_lora(model, config) if config.finetune == "lora" else model
        yield _described(adapted, base_of(adapted) if config.finetune == "lora" else model, config)
        return
    chosen = head_parameters(model) if config.finetune == "head" else last_parameters(model, config.finetune_layers)
    try:
        for parameter, _ in flags:
            parameter.requires_grad_(id(parameter) in chosen)
        yield _described(model, model, config)
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


def _described(model: nn.Module, base: nn.Module, config: TrainingConfig) -> FineTuned:
    trained, total = (sum(_size(p) for p in model.parameters() if p.requires_grad or every) for every in (False, True))
    made = FineTuned(model, base, config.finetune, trained, total)
    if config.finetune == "full":
        return made
    share = f"{trained:,} of {total:,} parameters are trained ({trained / max(total, 1):.2%})."
    if config.finetune == "lora":
        layers = sum(1 for module in model.modules() if _is_adapted(module))
        how = f"LoRA of rank {config.lora_rank} on {layers} linear layers"
        if tokens := trained_tokens(model):
            how += f" and the embeddings of {len(tokens)} new tokens"
        if stacked := _stacked_weights(base):
            how += f" (not on {stacked}, whose weights are in no linear layer)"
    else:
        how = "The head only" if config.finetune == "head" else f"The last {config.finetune_layers} layers and the head"
    return FineTuned(model, base, config.finetune, trained, total, (f"{how}: {share}",))


@dataclass(frozen=True)
class TuningPlan:
    """Trainable parameters of a fine-tuning mode, counted before anything is changed.

    Attributes:
        mode: the value of `finetune`.
        trained, total: parameters that would be trained, and all of them, adapters included.
        saved_bytes: memory for gradients and optimizer state that training every parameter would need beyond this mode.
        state_bytes: memory for weights in fp32, gradients and optimizer state; activations come on top.
    """

    mode: str
    trained: int
    total: int
    saved_bytes: int
    state_bytes: int

    @property
    def share(self) -> float:
        """Trained parameters as a share of all."""
        return self.trained / max(self.total, 1)


def tuning_plan(model: nn.Module, config: TrainingConfig) -> TuningPlan:
    """Count what `config.finetune` would train of `model`, which stays as it is and may be on the meta device.

    Raises:
        ConfigError: the model has no such parts, see `fine_tuned`.
    """
    whole = trained = total = sum(_size(p) for p in model.parameters())
    if any(_is_adapted(module) for module in model.modules()):  # an earlier run has put its adapters into the model
        trained = sum(_size(p) for p in model.parameters() if p.requires_grad)
    elif config.finetune == "lora":
        modules = dict(model.named_modules())
        targets = _targets(model, config)
        added = sum(config.lora_rank * sum(modules[name].weight.shape) for name in targets)
        copied = sum(_size(p) for name in _trained_whole(model, targets) for p in modules[name].parameters())
        copied += sum(len(ids) * modules[name].weight.shape[1] for name, ids in _token_rows(model, targets).items())
        trained, total = added + copied, whole + added + copied
    elif config.finetune != "full":
        last = config.finetune == "last_layers"
        chosen = last_parameters(model, config.finetune_layers) if last else head_parameters(model)
        trained = sum(_size(p) for p in model.parameters() if id(p) in chosen)
    of_trained = OPTIMIZERS[config.optimizer].trained_bytes
    return TuningPlan(config.finetune, trained, total, (whole - trained) * of_trained, 4 * total + trained * of_trained)


def _size(parameter: Tensor) -> int:
    return 0 if nn.parameter.is_lazy(parameter) else parameter.numel()


# The parts of a model


def block_lists(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """(name, list) of every outermost list of blocks: modules of one class that hold linear layers."""
    found: list[tuple[str, nn.Module]] = []
    for name, module in model.named_modules():
        if not isinstance(module, (nn.ModuleList, nn.Sequential)) or any(name.startswith(f"{at}.") for at, _ in found):
            continue
        kinds = {type(part) for part in module}
        if len(kinds) == 1 and not _is_linear(module[0]) and any(_is_linear(part) for part in module[0].modules()):
            found.append((name, module))
    return found


def linear_layers(model: nn.Module) -> list[str]:
    """Full names of the linear layers that adapters can be put on: those of the blocks, or all but the head's where the model
    has no blocks."""
    inside = [f"{name}." for name, _ in block_lists(model)]
    head = [] if inside else [name for name, _ in _heads(model)]
    closed = [f"{name}." for name, module in model.named_modules() if isinstance(module, _READS_WEIGHTS) and name]
    return [
        name
        for name, module in model.named_modules()
        if _is_linear(module)
        and (not inside or name.startswith(tuple(inside)))
        and not name.startswith(tuple(closed))
        and not any(name == at or name.startswith(f"{at}.") for at in head)
    ]


def _is_linear(module: nn.Module) -> bool:
    # transformers' Conv1D is a linear layer with its weight transposed.
    return isinstance(module, nn.Linear) or _is_conv1d(module)


def _is_conv1d(module: nn.Module) -> bool:
    kind = type(module)
    return kind.__name__ == "Conv1D" and kind.__module__.startswith("transformers.")


def _heads(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """(name, module) of what stands behind the backbone of a model."""
    parts = [(name, part) for name, part in model.named_children() if any(True for _ in part.parameters())]
    prefix = getattr(model, "base_model_prefix", "")
    if prefix and hasattr(model, prefix):
        return [(name, part) for name, part in parts if name != prefix]
    output = getattr(model, "get_output_embeddings", lambda: None)()
    if output is not None:  # such as T5, whose encoder and decoder stand beside its output layer
        return [(name, part) for name, part in parts if output in set(part.modules())]
    # A list of layers of its own is a plain network: its last layer is the head.
    return parts[-1:] if len(parts) > 1 else []


def head_parameters(model: nn.Module) -> set[int]:
    """Identities of the parameters of the model's head. Raises `ConfigError` where none can be told apart."""
    found = {id(parameter) for _, part in _heads(model) for parameter in part.parameters()}
    if not found:
        raise ConfigError(
            f"finetune: got 'head', and {type(model).__name__} has no head apart from its backbone; set 'lora', "
            "'last_layers' or 'full'."
        )
    return found


def last_parameters(model: nn.Module, count: int) -> set[int]:
    """Identities of the parameters of the last `count` blocks and of what follows them, tied embeddings left out."""
    lists = block_lists(model)
    if not lists:
        raise ConfigError(f"finetune: got 'last_layers', and {type(model).__name__} has no list of blocks; set 'full'.")
    name, blocks = lists[-1]
    parts: list[Any] = list(blocks.children())  # type: ignore[attr-defined, unused-ignore]
    if count > len(parts):
        raise ConfigError(f"finetune_layers: got {count}; {type(model).__name__} has {len(parts)} blocks in {name}.")
    found = {id(parameter) for part in parts[-count:] for parameter in part.parameters()}
    current: nn.Module = model
    for step in name.split("."):
        children = dict(current.named_children())
        behind = list(children)[list(children).index(step) + 1 :]
        found |= {id(parameter) for other in behind for parameter in children[other].parameters()}
        current = children[step]
    embeddings = {
        id(p)
        for module in model.modules()
        if isinstance(module, nn.Embedding)
        for p in module.parameters(recurse=False)
    }
    return found - embeddings


def _stacked_weights(model: nn.Module) -> str | None:
    """Class of modules in the blocks that hold matrices without being linear layers, such as stacked experts."""
    for _, blocks in block_lists(model):
        for module in blocks.modules():
            if any(p.dim() > 2 for p in module.parameters(recurse=False)) and "xpert" in type(module).__name__:
                return type(module).__name__
    return None


# LoRA


def with_lora(model: nn.Module, config: TrainingConfig) -> nn.Module:
    """`model` inside a peft model with LoRA adapters; a peft model is returned as it is, and a model that got adapters of the
    same settings before is returned inside the peft model of that time, so that a cell can be run twice.

    A head for classes or numbers is trained too, and so are every module that the pretrained checkpoint did not contain and the
    rows of tokens that were added to the vocabulary (`note_new_tokens`), in embeddings and output layer. The adapters start
    from `random_seed` alone, and the global random generators are left as they were.
    """
    try:
        from peft import LoraConfig, PeftModel, get_peft_model
    except ImportError as error:
        raise MissingPackageError("peft", "for finetune='lora'", "peft") from error
    if isinstance(model, PeftModel):
        note_base(model, trained_tokens(model))
        return model
    chosen = (config.lora_rank, config.lora_alpha, config.lora_dropout, config.lora_targets, new_tokens(model))
    earlier, adapted_before = model.__dict__.get(_ADAPTED, (None, None))
    if isinstance(adapted_before, nn.Module) and earlier == chosen:
        return adapted_before
    if any(_is_adapted(module) for module in model.modules()):
        raise ModelError(
            f"{type(model).__name__} holds the adapters of an earlier run with other LoRA settings. Give that run's model "
            "(results.model), or load the base model again."
        )
    names = _targets(model, config)
    modules = dict(model.named_modules())
    settings = LoraConfig(
        r=config.lora_rank, lora_dropout=config.lora_dropout, target_modules=names,
        lora_alpha=config.lora_alpha,  # type: ignore[arg-type, unused-ignore]  # peft scales by floats too
        fan_in_fan_out=all(_is_conv1d(modules[name]) for name in names),
        modules_to_save=_trained_whole(model, names) or None,
        trainable_token_indices=_token_rows(model, names) or None,
    )  # fmt: skip
    floats = getattr(model, "main_input_name", "input_ids") == "pixel_values"
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on what peft corrects by itself
        torch.manual_seed(config.random_seed)
        made: Any = get_peft_model(model, settings, autocast_adapter_dtype=not floats)  # type: ignore[arg-type, unused-ignore]
    note_base(made, trained_tokens(made))
    adapted: nn.Module = made
    model.__dict__[_ADAPTED] = (chosen, adapted)
    return adapted


def note_new_tokens(model: nn.Module, ids: Iterable[int]) -> None:
    """Note tokens that were added to the vocabulary of `model`: LoRA trains their rows, which nothing has trained yet."""
    model.__dict__[NEW_TOKENS] = tuple(sorted({*new_tokens(model), *(int(number) for number in ids)}))


def new_tokens(model: nn.Module) -> tuple[int, ...]:
    """Ids of the tokens that `note_new_tokens` noted, ascending."""
    found: tuple[int, ...] = base_of(model).__dict__.get(NEW_TOKENS, ())
    return found


def trained_tokens(model: nn.Module) -> tuple[int, ...]:
    """Ids of the tokens whose rows a peft model trains beside its adapters, ascending."""
    found: set[int] = set()
    for module in model.modules():
        indices = getattr(module, "token_indices", None)
        for ids in indices.values() if isinstance(indices, Mapping) else ():
            found.update(ids)
    return tuple(sorted(found))


def _token_rows(model: nn.Module, targets: list[str]) -> dict[str, list[int]]:
    """Names of the embeddings and of an untied output layer, with the rows of new tokens in them; empty without any."""
    tokens = list(new_tokens(model))
    if not tokens:
        return {}
    transformer: Any = model
    layers = [getattr(transformer, f"get_{side}_embeddings", lambda: None)() for side in ("input", "output")]
    inputs, outputs = layers
    if inputs is None:
        raise ConfigError(
            f"finetune: got 'lora', and {type(model).__name__} does not say which layer holds the embeddings of the "
            f"{len(tokens)} tokens that were added to its vocabulary; set 'full'."
        )
    tied = outputs is not None and outputs.weight is inputs.weight  # peft trains tied rows together
    wanted = [inputs] if tied or outputs is None else [inputs, outputs]
    names = [name for name, module in model.named_modules() if any(module is layer for layer in wanted)]
    return {name: tokens for name in names if name not in targets}


def _trained_whole(model: nn.Module, targets: list[str]) -> list[str]:
    """Names of the modules that are trained themselves, beside the adapters on `targets`."""
    is_language_model = getattr(model, "get_output_embeddings", lambda: None)() is not None
    found = [] if is_language_model else [name for name, _ in _heads(model)]
    modules = dict(model.named_modules())
    for parameter in model.__dict__.get(NEW_PARAMETERS, ()):
        owner = parameter.rpartition(".")[0]
        inside = any(owner == name or owner.startswith(f"{name}.") for name in found)
        if owner and not inside and not isinstance(modules.get(owner), (nn.Embedding, type(None))):
            found.append(owner)
    return [name for name in found if not any(target == name or target.startswith(f"{name}.") for target in targets)]


def _targets(model: nn.Module, config: TrainingConfig) -> list[str]:
    every = linear_layers(model)
    if config.lora_targets == "auto":
        if not every:
            raise ConfigError(
                f"finetune: got 'lora', and {type(model).__name__} has no linear layer that an adapter can be put on; "
                "set 'full', 'head' or 'last_layers'."
            )
        return every
    linear = [name for name, module in model.named_modules() if _is_linear(module)]
    found: list[str] = []
    for wanted in config.lora_targets:
        meant = [name for name in linear if name == wanted or name.endswith(f".{wanted}")]
        if not meant:
            endings = sorted({name.rpartition(".")[2] for name in linear})
            guess = nearest(wanted, endings)
            hint = f" Did you mean {guess!r}?" if guess else ""
            raise ConfigError(
                f"lora_targets: {type(model).__name__} has no linear layer {wanted!r}.{hint} It has {', '.join(endings[:20])}."
            )
        found += [name for name in meant if name not in found]
    return found


def _is_adapted(module: nn.Module) -> bool:
    return hasattr(module, "lora_A") and hasattr(module, "base_layer")
