"""Whether everything that matters is registered, saved and shared as it seems to be."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from utils.check_result import Finding, Limit
from utils.checks.limits import OWN_CHOICE
from utils.checks.probe import Probe, counted, few, relative
from utils.training.engine import rng

# Largest model that is copied for the save and load round trip: 50 M parameters, 200 MB in fp32.
_LARGEST = 50_000_000
# Below this correlation of neighbouring values a table is noise, not a formula (sines, slopes, ranges correlate above 0.5).
_NOISE_CORRELATION = 0.3
_LEAST_VALUES = 8
_LARGEST_SANE_DROPOUT = 0.8
# Attributes in which torch keeps what is registered.
_OF_TORCH = frozenset(vars(nn.Module()))

#: Limits of what is measured here, and where each is from.
DROPOUT_LIMITS = (
    Limit("dropout rate", at_most=_LARGEST_SANE_DROPOUT, source=OWN_CHOICE),
)  # fmt: skip


def unregistered(found: Probe, measured: dict[str, Any]) -> Iterator[Finding]:
    """Tensors that get gradients and that no optimizer will be given: they are in no `parameters()`."""
    found.model.train()
    known = {id(parameter) for parameter in found.model.parameters()}
    with torch.enable_grad():
        loss = found.loss(found.batch(2, min(16, found.max_length)))
    strangers = [leaf for leaf in _leaves(loss) if id(leaf) not in known]
    measured["unregistered_tensors"] = len(strangers)
    if strangers:
        places = _places(found.model)
        names = [places.get(id(leaf), f"a tensor of shape {tuple(leaf.shape)}") for leaf in strangers]
        yield Finding(
            "unregistered", "fail",
            f"{counted(len(strangers), 'tensor')} with requires_grad=True {'is' if len(strangers) == 1 else 'are'} not in "
            f"parameters(), so the optimizer never updates them: {few(names)}.",
            "Keep layers in nn.ModuleList or nn.ModuleDict and tensors in nn.Parameter, as attributes of a module.",
        )  # fmt: skip


def repeated_modules(found: Probe, measured: dict[str, Any]) -> Iterator[Finding]:
    """One module in several places of a list, as `[layer] * n` makes it, or under several names of one parent."""
    repeated = []
    for name, module in found.model.named_modules():
        names: dict[int, list[str]] = {}
        for child_name, child in module._modules.items():
            if child is not None and _has_weights(child) and not isinstance(module, (nn.ModuleList, nn.Sequential)):
                names.setdefault(id(child), []).append(child_name)
        repeated += [
            " and ".join(f"{name}.{one}".lstrip(".") for one in same) for same in names.values() if len(same) > 1
        ]
        if isinstance(module, (nn.ModuleList, nn.Sequential)):
            layers = [layer for layer in module if _has_weights(layer)]
            if len({id(layer) for layer in layers}) < len(layers):
                repeated.append(
                    f"{name or 'the model'} ({len({id(layer) for layer in layers})} of {len(layers)} distinct)"
                )
    if repeated:
        yield Finding(
            "shared module", "warn", f"The same module stands in several places: {few(repeated)}.",
            "Make each layer anew, [Layer() for _ in range(n)]; [layer] * n repeats one. Right if the layers share weights "
            "on purpose.",
        )  # fmt: skip


def unsaved_state(found: Probe, measured: dict[str, Any]) -> Iterator[Finding]:
    """Tensors outside state_dict whose values cannot be recomputed: random ones, and ones that training changes."""
    tensors = {name: tensor for name, tensor in _unsaved(found.model).items() if _could_matter(tensor)}
    before = {name: tensor.detach().clone() for name, tensor in tensors.items()}
    found.model.train()
    with torch.no_grad():
        found.call(found.batch(2, min(16, found.max_length)))
    after = _unsaved(found.model)
    changed = [
        n for n, was in before.items() if n in after and after[n].shape == was.shape and not torch.equal(after[n], was)
    ]
    for name in changed:
        tensors[name].copy_(before[name])
    noise = [name for name, tensor in tensors.items() if name not in changed and _is_noise(tensor)]
    used = [name for name in (*noise, *changed) if _matters(found, name)]
    measured["unsaved_tensors"] = sorted(tensors)
    if used:
        yield Finding(
            "unsaved state", "fail",
            f"The outputs depend on {few(used)}, which state_dict() does not hold: a model that is loaded from a checkpoint "
            "gives other answers.",
            "Register it as a buffer, register_buffer(name, tensor), without persistent=False.",
        )  # fmt: skip


def round_trip(found: Probe, measured: dict[str, Any]) -> Iterator[Finding]:
    """A copy whose weights were destroyed, and which is given the state_dict, must answer as before."""
    if sum(parameter.numel() for parameter in found.model.parameters()) > _LARGEST:
        return
    found.model.eval()
    batch = found.batch(2, min(16, found.max_length))
    twin = copy.deepcopy(found.model)
    with torch.no_grad():
        for tensor in [*twin.parameters(), *(buffer for buffer in twin.buffers() if buffer.is_floating_point())]:
            if _in_state(twin, tensor):
                tensor.fill_(0.5)
    state = {name: value.clone() for name, value in found.model.state_dict().items()}
    try:
        twin.load_state_dict(state)
    except Exception as error:  # noqa: BLE001 - whatever the model's own loading raises is the finding
        yield Finding(
            "save and load", "fail",
            f"The model refuses its own state_dict(): {type(error).__name__}: {' '.join(str(error).split())[:200]}",
            "Look at overridden state_dict and load_state_dict methods and at hooks that drop or rename keys.",
        )  # fmt: skip
        return
    rng.seed_all(0)
    with torch.no_grad():
        here = found.call(batch)
    rng.seed_all(0)
    with torch.no_grad():
        there = type(found.call)(twin)(batch)
    difference = relative(here, there)
    measured["round_trip_difference"] = difference
    if not difference <= found.tolerance:
        yield Finding(
            "save and load", "fail",
            f"After save and load the outputs differ by {difference:.2g} of their size: state_dict() is not complete.",
            "Look at overridden state_dict and load_state_dict methods and at hooks that drop or rename keys.",
        )  # fmt: skip


def broken_ties(found: Probe, measured: dict[str, Any]) -> Iterator[Finding]:
    """Input and output embeddings that should be one tensor and are two."""
    config = getattr(found.model, "config", None)
    table, head = (_weight_of(found.model, name) for name in ("get_input_embeddings", "get_output_embeddings"))
    stated = bool(getattr(config, "tie_word_embeddings", False))
    if table is not None and head is not None and stated and table.shape == head.shape and table is not head:
        if table.data_ptr() != head.data_ptr():
            yield Finding(
                "broken tie", "fail",
                "The config ties the output layer to the input embedding (tie_word_embeddings), and they are two tensors.",
                "Call model.tie_weights() after the embedding or the head was replaced.",
            )  # fmt: skip
        return
    pair = _equal_pair(found.model)
    if pair is not None:
        yield Finding(
            "broken tie", "warn",
            f"{pair[0]} and {pair[1]} hold the same values in two tensors: training will move them apart.",
            "Assign the parameter itself, head.weight = embedding.weight, rather than a copy of its values.",
        )  # fmt: skip


def frozen_by_mistake(found: Probe, measured: dict[str, Any]) -> Iterator[Finding]:
    """A block, or the same part of a block, frozen between siblings that are trained.

    Freezing the first or last few blocks is usual, and no finding; neither is a part that is frozen in all of them.
    """
    for name, module in found.model.named_modules():
        if not isinstance(module, (nn.ModuleList, nn.Sequential)):
            continue
        kinds: dict[type[nn.Module], dict[int, nn.Module]] = {}
        for index, block in enumerate(module):
            if _has_weights(block):
                kinds.setdefault(type(block), {})[index] = block
        for blocks in kinds.values():
            part = _frozen_between(list(blocks.values()))
            if part is None:
                continue
            path, indices = part
            inside = [str(list(blocks)[index]) for index in indices]
            yield Finding(
                "frozen block", "warn",
                f"In {name or 'the model'}, {f'{path} of ' if path else ''}block {few(inside)} of {len(module)} is frozen "
                "between trainable ones.",
                "Set requires_grad_(True) on it, or freeze the first blocks up to one.",
            )  # fmt: skip


def _frozen_between(blocks: list[nn.Module]) -> tuple[str, list[int]] | None:
    """The outermost part ("" for the whole block) that is frozen in some blocks between others, and in which; None: none."""
    if len(blocks) < 3:
        return None
    for path, part in blocks[0].named_modules():
        if not _has_weights(part):
            continue
        try:
            parts = [block.get_submodule(path) for block in blocks]
        except AttributeError:  # blocks of one class that were built differently
            continue
        frozen = [not any(parameter.requires_grad for parameter in one.parameters()) for one in parts]
        edges = [index for index in range(1, len(frozen)) if frozen[index] != frozen[index - 1]]
        if len(edges) > 1:
            return path, [index for index, is_frozen in enumerate(frozen) if is_frozen]
    return None


def inputs_changed(found: Probe, measured: dict[str, Any]) -> Iterator[Finding]:
    """Input tensors that forward changes in place: the labels made from them, and the next epoch, see other data."""
    batch = found.batch(2, min(32, found.max_length))
    if found.over_tokens:
        batch["input_ids"] = _edge_ids(found, batch["input_ids"])
    before = {name: tensor.clone() for name, tensor in batch.items()}
    for training in (False, True):
        found.model.train(training)
        with torch.no_grad():
            found.call(batch)
    changed = [name for name, tensor in batch.items() if not torch.equal(tensor, before[name])]
    if changed:
        yield Finding(
            "inputs changed in place", "fail", f"Forward changes its input in place: {few(changed)}.",
            "Work on a clone(), or use operations without a trailing underscore.",
        )  # fmt: skip


def _edge_ids(found: Probe, ids_BT: Tensor) -> Tensor:
    """The same ids with the vocabulary's first and last at the end of each row: special ids, which forward may replace."""
    assert found.vocab_size is not None
    count = min(8, ids_BT.shape[1] // 4)
    ids_BT = ids_BT.clone()
    if count:
        ids_BT[:, -count:] = torch.arange(count, device=ids_BT.device)
        ids_BT[:, -2 * count : -count] = found.vocab_size - 1 - torch.arange(count, device=ids_BT.device)
    return ids_BT


def draws_in_evaluation(found: Probe, measured: dict[str, Any]) -> Iterator[Finding]:
    """Global random state that a forward pass in evaluation mode uses or sets."""
    found.model.eval()
    batch = found.batch(2, min(16, found.max_length))
    rng.seed_all(12)
    before = rng.snapshot()
    with torch.no_grad():
        found.call(batch)
    after = rng.snapshot()
    moved = [
        name
        for name, same in (
            ("random", before[0] == after[0]),
            ("numpy.random", bool((before[1][1] == after[1][1]).all()) and before[1][2] == after[1][2]),
            ("torch", torch.equal(before[2], after[2])),
        )
        if not same
    ]
    if moved:
        yield Finding(
            "random state", "warn",
            f"A forward pass in evaluation mode draws from, or seeds, the global generator of {few(moved)}.",
            "Draw only when self.training is set; where evaluation needs random numbers, use a torch.Generator of its own.",
        )  # fmt: skip


def growth_between_calls(found: Probe, measured: dict[str, Any]) -> Iterator[Finding]:
    """Tensors and list entries that the model keeps from each call: memory, and often time, that grows with every step."""
    found.model.train()
    batch = found.batch(2, min(16, found.max_length))
    sizes = []
    for _ in range(4):
        with torch.enable_grad():
            found.call(batch)
        sizes.append(_held(found.model))
    growing = [
        name for name in sizes[-1]
        if all(later[name] > earlier.get(name, 0) for earlier, later in itertools.pairwise(sizes[1:]))
    ]  # fmt: skip
    if growing:
        yield Finding(
            "growth", "fail", f"The model keeps more with every call, in {few(growing)}: memory grows without limit.",
            "Do not append outputs or inputs to attributes; keep detached numbers, and empty the list each step.",
        )  # fmt: skip


def dropout_rates(found: Probe, measured: dict[str, Any]) -> Iterator[Finding]:
    """Dropout with a rate near 1, and dropout that ignores the mode: always on, or always off."""
    high = [
        f"{name} (p={module.p:g})" for name, module in found.model.named_modules()
        if isinstance(module, nn.modules.dropout._DropoutNd) and module.p > _LARGEST_SANE_DROPOUT
    ]  # fmt: skip
    if high:
        yield Finding(
            "dropout rate", "warn", f"Dropout removes more than {_LARGEST_SANE_DROPOUT:.0%} of the values: {few(high)}.",
            "p is the share that is dropped, not the share that is kept: 0.1 is usual.",
        )  # fmt: skip


def _has_weights(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None


def _leaves(loss: Tensor) -> list[Tensor]:
    """Leaf tensors of the graph behind `loss`."""
    leaves, seen, left = [], set(), [loss.grad_fn]
    while left:
        node = left.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if isinstance(variable := getattr(node, "variable", None), Tensor):
            leaves.append(variable)
        left += [following for following, _ in node.next_functions]
    return leaves


def _places(model: nn.Module) -> dict[int, str]:
    """Tensors that attributes of modules hold, in lists, dicts and unregistered modules too: id -> path."""
    places: dict[int, str] = {}

    def look(value: Any, path: str, depth: int) -> None:
        if isinstance(value, Tensor):
            places.setdefault(id(value), path)
        elif isinstance(value, nn.Module) and depth:
            for name, parameter in value.named_parameters():
                places.setdefault(id(parameter), f"{path}.{name}")
        elif isinstance(value, (list, tuple)) and depth:
            for index, one in enumerate(value):
                look(one, f"{path}[{index}]", depth - 1)
        elif isinstance(value, Mapping) and depth:
            for key, one in value.items():
                look(one, f"{path}[{key!r}]", depth - 1)

    for prefix, module in model.named_modules():
        for name, value in vars(module).items():
            if name not in _OF_TORCH:
                look(value, f"{prefix}.{name}".lstrip("."), 3)
    return places


def _unsaved(model: nn.Module) -> dict[str, Tensor]:
    """Non-persistent buffers and tensors in plain attributes, in lists and dicts too, by path."""
    tensors = {}
    for prefix, module in model.named_modules():
        for name in module._non_persistent_buffers_set:
            if (buffer := module._buffers.get(name)) is not None:
                tensors[f"{prefix}.{name}".lstrip(".")] = buffer
        for name, value in vars(module).items():
            if name not in _OF_TORCH:
                held = _held_tensors(value, f"{prefix}.{name}".lstrip("."))
                tensors.update((path, tensor) for path, tensor in held if not tensor.requires_grad)
    return tensors


def _held_tensors(value: Any, path: str) -> Iterator[tuple[str, Tensor]]:
    """The tensor that an attribute is, or those in its list, tuple or dict, with their paths."""
    if isinstance(value, Tensor):
        yield path, value
    elif isinstance(value, Mapping):
        yield from ((f"{path}[{key!r}]", one) for key, one in value.items() if isinstance(one, Tensor))
    elif isinstance(value, (list, tuple)):
        yield from ((f"{path}[{index}]", one) for index, one in enumerate(value) if isinstance(one, Tensor))


def _could_matter(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and tensor.numel() >= 1 and tensor.is_leaf


def _is_noise(tensor: Tensor) -> bool:
    """Whether the values look drawn at random: many different ones, and neighbours along no dimension resemble each other."""
    values = tensor.detach().double()
    if values.numel() < _LEAST_VALUES or len(set(values.flatten().tolist())) < values.numel() // 2:
        return False
    correlations = []
    for dim in range(values.dim()):
        if values.shape[dim] < 3:
            continue
        first, second = (values.narrow(dim, start, values.shape[dim] - 1).flatten() for start in (0, 1))
        pair = torch.corrcoef(torch.stack([first, second]))[0, 1]
        correlations.append(abs(float(pair)))
    return bool(correlations) and max(correlations) < _NOISE_CORRELATION


def _matters(found: Probe, name: str) -> bool:
    """Whether other values of this tensor change the outputs."""
    tensor = _unsaved(found.model)[name]
    before = tensor.detach().clone()
    found.model.eval()
    batch = found.batch(2, min(16, found.max_length))
    with torch.no_grad():
        rng.seed_all(0)
        here = found.call(batch)
        tensor = _unsaved(found.model)[name]
        # Noise, not an offset: normalisation takes out what is added to every value alike.
        noise = torch.randn(before.shape, generator=torch.Generator().manual_seed(1)).to(before)
        tensor.copy_(before + noise * (before.abs().mean() if bool(before.any()) else 1.0))
        rng.seed_all(0)
        there = found.call(batch)
        tensor.copy_(before)
    return not relative(here, there) <= found.tolerance


def _in_state(model: nn.Module, tensor: Tensor) -> bool:
    return any(tensor is value for value in [*model.parameters()]) or any(
        module._buffers.get(name) is tensor and name not in module._non_persistent_buffers_set
        for module in model.modules() for name in module._buffers
    )  # fmt: skip


def _weight_of(model: nn.Module, getter: str) -> Tensor | None:
    named = getattr(model, getter, None)
    if not callable(named):
        return None
    try:
        return getattr(named(), "weight", None)
    except NotImplementedError:  # how transformers reports a missing one
        return None


def _equal_pair(model: nn.Module) -> tuple[str, str] | None:
    """An embedding and a linear layer whose weights are equal without being one."""
    tables = {n: m.weight for n, m in model.named_modules() if isinstance(m, nn.Embedding)}
    heads = {n: m.weight for n, m in model.named_modules() if isinstance(m, nn.Linear)}
    for table_name, table in tables.items():
        for head_name, head in heads.items():
            apart = table is not head and table.data_ptr() != head.data_ptr()
            if apart and table.shape == head.shape and torch.equal(table, head) and bool(table.any()):
                return f"{table_name}.weight", f"{head_name}.weight"
    return None


def _held(model: nn.Module) -> dict[str, int]:
    """Size of each attribute of the model's modules: entries of containers, and numbers in tensors."""
    held = {}
    for prefix, module in model.named_modules():
        for name, value in vars(module).items():
            path = f"{prefix}.{name}".lstrip(".")
            if isinstance(value, (list, dict, set, tuple)) and name not in _OF_TORCH:
                held[path] = len(value)
            elif isinstance(value, Tensor):
                held[path] = value.numel()
        for name, buffer in module._buffers.items():
            if buffer is not None:
                held[f"{prefix}.{name}".lstrip(".")] = buffer.numel()
    return held
