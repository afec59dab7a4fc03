"""Special token ids of a model's config, set from the tokenizer: padding, beginning and end of text, start of the decoder.

A classifier that pools at the last token finds it by its config's padding id, and generation stops at its config's end id:
where these are not the ids that the tokenizer writes, results are wrong without an error.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from utils.adapters.facts import model_facts
from utils.errors import ModelError

_PAD, _BOS, _EOS, _START = "pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id"


@dataclass(frozen=True)
class _Change:
    """An id of a config and what it becomes."""

    name: str
    old: Any
    new: int

    def __str__(self) -> str:
        return f"{self.name} {self.new} ({'not set' if self.old is None else f'{self.old}'} before)"


def set_special_ids(model: nn.Module, tokenizer: Any, pad_token_id: int | None = None) -> str | None:
    """Set the special ids of `model`'s config, and of its generation config, to those of the tokenizer.

    An id that the tokenizer does not have is left alone. `decoder_start_token_id` moves with the id that it was equal to
    (padding in T5, end of text in BART); where an encoder-decoder model has none, the beginning of text is taken, else padding.
    Layers of a transformers model that were built for the old padding id (`padding_idx`) are set to the new one.

    Args:
        model: any module; of a wrapper, the first module inside that has a config with a padding id.
        tokenizer: None: only `pad_token_id` is set.
        pad_token_id: the id that batches are padded with, where the tokenizer has none.
    Returns:
        a sentence that lists what was changed; None when nothing was.
    Raises:
        ModelError: an id is outside of the model's vocabulary, or the config cannot be changed; gives both numbers.
    """
    owner = _described(model)
    if owner is None:
        return None
    config: Any = owner.config
    decodes = bool(getattr(config, "is_encoder_decoder", False))
    wanted = _ids_of(tokenizer, pad_token_id, decodes)
    if decodes and (start := _decoder_start(config, wanted, tokenizer)) is not None:
        wanted[_START] = start
    vocab_size = model_facts(owner).vocab_size
    holders = _holders(owner, config)
    changes = []
    for name, new in wanted.items():
        olds = [_value(holder, name) for holder in holders if _has(holder, name, decodes)]
        if all(_agrees(old, new) for old in olds):
            continue
        changes.append(_Change(name, next((old for old in olds if not _agrees(old, new)), None), new))
        _check_vocabulary(owner, changes[-1], vocab_size)
    for change in changes:
        for holder in holders:
            if _has(holder, change.name, decodes):
                _assign(owner, holder, change)
        if change.name == _PAD and isinstance(change.old, int):
            _move_padding(owner, change.old, change.new)
    if not changes:
        return None
    return f"Special ids of {type(owner).__name__} set from the tokenizer: {', '.join(map(str, changes))}."


def pad_token_id_of(config: Any) -> int | None:
    """The padding id of a model's config, an object or a mapping; None where it has none."""
    value = config.get(_PAD) if isinstance(config, Mapping) else getattr(config, _PAD, None)
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def model_pad_token_id(model: nn.Module) -> int | None:
    """The padding id in the config of `model`, or of the model that it wraps, or None."""
    owner = _described(model)
    return None if owner is None else pad_token_id_of(owner.config)


def _described(model: Any) -> Any:
    """The outermost module whose config has special ids."""
    for module in model.modules() if isinstance(model, nn.Module) else ():
        config = getattr(module, "config", None)
        if config is None or isinstance(config, Mapping):
            continue
        if hasattr(config, _PAD) or getattr(config, "is_encoder_decoder", False):
            return module
    return None


def _ids_of(tokenizer: Any, pad_token_id: int | None, decodes: bool) -> dict[str, int]:
    """Name -> id, of those that the tokenizer has. BERT's tokenizer calls beginning and end of a text [CLS] and [SEP]."""
    roles: dict[str, tuple[str, ...]] = {_PAD: (_PAD,), _BOS: (_BOS,), _EOS: (_EOS,)}
    if decodes:
        roles |= {_BOS: (_BOS, "cls_token_id"), _EOS: (_EOS, "sep_token_id")}
    found: dict[str, int] = {}
    for name, sources in roles.items():
        ids = (getattr(tokenizer, source, None) for source in sources)
        token_id = next((value for value in ids if isinstance(value, int)), None)
        token_id = pad_token_id if token_id is None and name == _PAD else token_id
        if token_id is not None:
            found[name] = token_id
    return found


def _value(config: Any, name: str) -> Any:
    return getattr(config, name, None)


def _agrees(old: Any, new: int) -> bool:
    """Whether a config's id, or one of its several end ids, is `new`."""
    return new in old if isinstance(old, (list, tuple)) else bool(old == new)


def _holders(owner: Any, config: Any) -> list[Any]:
    """The objects that hold special ids: the config, its part about text, and the generation config."""
    text = config.get_text_config() if callable(getattr(config, "get_text_config", None)) else config
    generation = getattr(owner, "generation_config", None)
    return [config, *([] if text is config else [text]), *([] if generation is None else [generation])]


def _has(holder: Any, name: str, decodes: bool) -> bool:
    """Whether a config has a place for an id; encoder-decoders need these two even where their config does not list them."""
    return hasattr(holder, name) or (decodes and name in (_PAD, _START))


def _decoder_start(config: Any, wanted: Mapping[str, int], tokenizer: Any) -> int | None:
    """Decoder start id to set; None to leave it as it is."""
    old = _value(config, _START)
    if old is None:
        return None if tokenizer is None else wanted.get(_BOS, wanted.get(_PAD))
    same = next((name for name in (_PAD, _BOS, _EOS) if _value(config, name) == old), None)
    return None if same is None else wanted.get(same)


def _check_vocabulary(owner: nn.Module, change: _Change, vocab_size: int | None) -> None:
    if vocab_size is None or 0 <= change.new < vocab_size:
        return
    token = change.name.removesuffix("_id")
    raise ModelError(
        f"the tokenizer's {token} has the id {change.new}, but {type(owner).__name__} has {vocab_size} embeddings, ids 0 to "
        f"{vocab_size - 1} (its own {change.name} is {change.old}). Use the model's own tokenizer, enlarge the model with "
        f"model.resize_token_embeddings({change.new + 1}), or set tokenizer.{token} to a token of its vocabulary."
    )


def _assign(owner: Any, holder: Any, change: _Change) -> None:
    old = _value(holder, change.name)
    if _agrees(old, change.new):
        return
    # Several ends are alternatives: the tokenizer's is one more of them.
    new = [change.new, *old] if isinstance(old, (list, tuple)) else change.new
    try:
        setattr(holder, change.name, new)
    except AttributeError as error:  # a frozen dataclass, for example
        raise ModelError(
            f"{change.name} of {type(owner).__name__}'s config is {old}, the tokenizer's is {change.new}, and the config "
            f"cannot be changed ({error}). Make the model with {change.name}={change.new}."
        ) from error


def _move_padding(owner: nn.Module, old: int, new: int) -> None:
    """Set `padding_idx` of a transformers model's layers: an embedding does not train that row, and RoBERTa counts positions
    from it."""
    if not callable(getattr(owner.config, "get_text_config", None)):
        return
    for module in owner.modules():
        if getattr(module, "padding_idx", None) == old:
            module.padding_idx = new  # type: ignore[assignment]
