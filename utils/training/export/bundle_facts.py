"""Facts about a bundle's model: sizes, labels, special ids, preprocessing, and an example input with its outputs."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from utils.adapters.facts import model_facts
from utils.adapters.forward import ModelCall
from utils.adapters.generation import generate
from utils.training.export.hf import save_tokenizer
from utils.training.export_formats import FORMATS
from utils.training.task_spec import TaskSpec

log = logging.getLogger("trainbook.export")

# Recorded example: rows of ids of this length, so many logits of each row, so many greedily generated tokens.
_LENGTH, _LOGITS, _GREEDY = 12, 256, 8
# Differences that two ways of computing the same stay under, as a share of the largest logit.
_TOLERANCE = 1e-3
_SAMPLES = ("The quick brown fox: 1 + 2 = 3.", "Ünïcödé, 你好 🙂\n\ttabs", "<s> [MASK] </s>")


def sizes_of(model: nn.Module, config: Any, task_spec: TaskSpec) -> dict[str, Any]:
    """Class, parameters, vocabulary and longest input; None where nothing says."""
    facts = model_facts(model)
    return {
        "class": facts.name,
        "parameters": facts.parameters,
        "vocab_size": facts.vocab_size or task_spec.vocab_size or _number(config, "vocab_size"),
        "max_length": facts.max_length or task_spec.max_seq_len or _number(config, "max_seq_len"),
    }


def not_finite(model: nn.Module) -> list[str]:
    """Names of the parameters and buffers that hold NaN or infinity."""
    return [
        name
        for name, value in model.state_dict().items()
        if isinstance(value, Tensor) and value.is_floating_point() and not bool(value.isfinite().all())
    ]


def labels_of(model: nn.Module, task_spec: TaskSpec) -> list[str] | None:
    """Names of the classes, in order; None where they have none."""
    given = task_spec.preprocessing_config
    named = next((given[name] for name in ("labels", "classes", "class_names", "label_names") if name in given), None)
    if named is None:
        named = getattr(getattr(model, "config", None), "id2label", None)
        named = [named[index] for index in sorted(named)] if isinstance(named, Mapping) else None
        if named is not None and all(str(name) == f"LABEL_{index}" for index, name in enumerate(named)):
            return None  # transformers' placeholders
    return [str(name) for name in named] if isinstance(named, (list, tuple)) else None


def special_ids_of(model: nn.Module, tokenizer: Any) -> dict[str, Any]:
    """{"pad", "bos", "mask": id or None, "eos": list of ids}, from the tokenizer, else from the model's configs."""
    sources = [tokenizer, getattr(model, "generation_config", None), getattr(model, "config", None)]
    found: dict[str, Any] = {}
    for role in ("pad", "bos", "mask", "eos"):
        values = (getattr(source, f"{role}_token_id", None) for source in sources)
        found[role] = next((value for value in values if value is not None), None)
    eos = found["eos"]
    found["eos"] = [int(one) for one in ([] if eos is None else eos if isinstance(eos, (list, tuple)) else [eos])]
    return found


def write_tokenizer(tokenizer: Any, folder: Path) -> tuple[dict[str, Any] | None, tuple[str, ...]]:
    """Save the tokenizer and say which library reads it: the small `tokenizers` where it gives the same ids, else transformers.

    Returns:
        {"library", "size"}, or None when there is no tokenizer that can be saved; and notes.
    """
    if tokenizer is None or not hasattr(tokenizer, "save_pretrained"):
        kind = "the run had none" if tokenizer is None else f"{type(tokenizer).__name__} has no save_pretrained"
        return None, (f"The bundle has no tokenizer, because {kind}: it takes token ids.",)
    folder.mkdir()
    notes = save_tokenizer(tokenizer, folder)
    library = "tokenizers" if _reads_alike(tokenizer, folder / "tokenizer.json") else "transformers"
    return {"library": library, "size": len(tokenizer)}, notes


def _reads_alike(tokenizer: Any, file: Path) -> bool:
    from tokenizers import Tokenizer

    if not file.is_file():
        return False
    fast = Tokenizer.from_file(str(file))
    fast.no_truncation()
    fast.no_padding()
    return all(list(fast.encode(text).ids) == [int(one) for one in tokenizer(text)["input_ids"]] for text in _SAMPLES)


def example_of(
    model: nn.Module, task_spec: TaskSpec, sizes: Mapping[str, Any], special: Mapping[str, Any],
    preprocessing: Mapping[str, Any] | None, vocabulary: int | None,
) -> dict[str, Any]:  # fmt: skip
    """An input, and what the model gives for it: what verify.py compares with.

    Args:
        vocabulary: ids that are generated are below it; None: all.
    Raises:
        whatever the model raises for the input.
    """
    ids: list[list[int]] | None = None
    shape: list[int] | None = None
    call = ModelCall(model)
    logits = torch.zeros(0)
    with torch.no_grad():
        if preprocessing is not None:
            shape = [2, *(int(preprocessing[name]) for name in ("channels", "height", "width"))]
            pixels = np.linspace(0, 1, int(np.prod(shape)), dtype=np.float32).reshape(shape)
            logits = call({"pixel_values": torch.from_numpy(pixels)}).float()
        else:
            length = min(_LENGTH, sizes["max_length"] or _LENGTH)
            ids_BT = torch.randint(sizes["vocab_size"] or 2, (2, length), generator=torch.Generator().manual_seed(0))
            ids = ids_BT.tolist()
            if task_spec.task_type != "seq2seq":
                logits = call({"input_ids": ids_BT, "attention_mask": torch.ones_like(ids_BT)}).float()
                logits = logits[:, -1] if logits.dim() > 2 else logits
        greedy = _greedy(model, task_spec.task_type, ids, special["eos"], vocabulary)
    flat = logits.reshape(len(logits), -1) if logits.numel() else logits
    columns = np.unique(np.linspace(0, max(flat.shape[-1] - 1, 0), min(flat.shape[-1], _LOGITS)).astype(int)).tolist()
    largest = max(1.0, float(logits.abs().max())) if logits.numel() else 1.0
    return {
        "input_ids": ids, "image_shape": shape, "columns": columns,
        "logits": flat[:, columns].tolist() if logits.numel() else [], "greedy": greedy,
        "tolerance": {
            "default": _TOLERANCE * largest,
            **{
                name: one.tolerance[0] * largest
                for name, one in FORMATS.items() if one.tolerance is not None and one.tolerance[0] > _TOLERANCE
            },
        },
    }  # fmt: skip


def _greedy(
    model: nn.Module, task_type: str | None, ids: list[list[int]] | None, eos: list[int], vocabulary: int | None
) -> list[int] | None:
    """The tokens that the model writes after the first row, up to and with the end-of-text token."""
    if ids is None or task_type not in ("causal_lm", "seq2seq"):
        return None
    row_BT: Tensor = torch.tensor(ids[:1])
    if task_type == "causal_lm":
        # Ended here, below: a model can have several end-of-text tokens.
        new = generate(model, row_BT, _GREEDY, temperature=0, vocab_size=vocabulary)[0, row_BT.shape[1] :].tolist()
    else:
        writer: Any = model
        mask_BT = torch.ones_like(row_BT)
        new = writer.generate(row_BT, attention_mask=mask_BT, max_new_tokens=_GREEDY, do_sample=False, num_beams=1)[
            0, 1:
        ]
        new = new.tolist()
    end = next((number + 1 for number, token in enumerate(new) if token in eos), len(new))
    return [int(token) for token in new[:end]]


def _number(source: Any, name: str) -> int | None:
    value = source.get(name) if isinstance(source, Mapping) else getattr(source, name, None)
    return value if isinstance(value, int) and not isinstance(value, bool) else None
