"""Measure an exported ONNX file: quality after int8 quantisation, and the time of a forward pass."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from utils.adapters.facts import model_facts
from utils.errors import ExportError
from utils.training.export.parity import Logits, at_real_positions
from utils.training.export.stages import stage

#: Least share of predictions that int8 weights may leave as they are, and the largest factor by which perplexity may grow.
LEAST_AGREEMENT, LARGEST_PERPLEXITY_RATIO = 0.9, 1.1
# Largest difference of a regression's outputs, as a share of the largest output.
_LARGEST_SHARE = 0.1

_TEXT = (
    "The quick brown fox jumps over the lazy dog. In the beginning there was nothing but a field, a river and a road that "
    "led from the hills to the sea; people who lived there counted the years by their harvests."
)
_ROWS, _POSITIONS = 32, 128

_RUNS, _LEAST_RUNS, _SECONDS = 15, 3, 3.0
#: Batch sizes that are timed, and the number of tokens of their rows at most.
BATCH_SIZES, TIMED_LENGTH = (1, 4, 8), 128


def int8_quality(
    model: nn.Module, original: Logits, quantised: Logits, batch: Mapping[str, Tensor], tokenizer: Any
) -> dict[str, Any]:
    """Compare predictions of a model and its int8 form.

    Language models are compared by their loss on a sample text (on random ids where there is no tokenizer), classifiers by
    the share of equal predictions on random inputs, and models with a single output by its size.

    Args:
        batch: an example of what the model takes.
    Returns:
        {"perplexity_ratio", "loss", "loss_int8", "limit", "argmax_agreement": the share of tokens that stay the most likely
        ones}, {"argmax_agreement", "samples", "limit"} or {"relative_diff", "limit"}.
    Raises:
        ExportError: below the limit; says by how much.
    """
    vocab_size = model_facts(model).vocab_size
    sample = _varied(batch, vocab_size)
    with torch.no_grad():
        logits = original(sample)
    if logits.dim() == 3 and vocab_size is not None and logits.shape[-1] >= vocab_size:
        sample = _with_text(sample, tokenizer, vocab_size)
        return _perplexities(*_outputs(original, quantised, sample), sample)
    expected, got = _outputs(original, quantised, sample)
    if expected.shape[-1] == 1 or expected.dim() < 2:
        share = float((expected - got).abs().max() / expected.abs().max().clamp_min(1e-6))
        _require(
            share <= _LARGEST_SHARE, f"its outputs differ by {share:.1%}, and at most {_LARGEST_SHARE:.0%} are allowed"
        )
        return {"relative_diff": share, "limit": _LARGEST_SHARE}
    agreement = _agreement(expected, got)
    _require(
        agreement >= LEAST_AGREEMENT,
        f"{agreement:.1%} of its predictions stay the same, and at least {LEAST_AGREEMENT:.0%} are required",
    )
    return {"argmax_agreement": agreement, "samples": len(expected), "limit": LEAST_AGREEMENT}


def _outputs(original: Logits, quantised: Logits, sample: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        expected, got = (at_real_positions(run(sample).float(), sample) for run in (original, quantised))
    _require(bool(got.isfinite().all()), "its logits are NaN or infinite")
    return expected, got


def _perplexities(expected: Tensor, got: Tensor, sample: Mapping[str, Tensor]) -> dict[str, Any]:
    """Losses of the next token at each position; of a model that sees both sides it is an equally good yardstick."""
    ids_BT = sample.get("decoder_input_ids", sample["input_ids"])
    shift = 1 if ids_BT.shape[1] > 1 else 0
    kept = ids_BT.shape[1] - shift
    losses = [
        float(F.cross_entropy(logits[:, :kept].flatten(0, 1), ids_BT[:, shift:].flatten()))
        for logits in (expected, got)
    ]
    ratio = float(torch.tensor(losses[1] - losses[0]).exp())
    _require(
        ratio <= LARGEST_PERPLEXITY_RATIO,
        f"its perplexity on a sample text grows by a factor of {ratio:.3f}, and at most {LARGEST_PERPLEXITY_RATIO} is allowed",
    )
    return {
        "perplexity_ratio": ratio, "loss": losses[0], "loss_int8": losses[1], "limit": LARGEST_PERPLEXITY_RATIO,
        "argmax_agreement": _agreement(expected, got),
    }  # fmt: skip


def _agreement(expected: Tensor, got: Tensor) -> float:
    """The share of positions, or samples, whose largest logit is the same."""
    return float((expected.argmax(-1) == got.argmax(-1)).float().mean())


def _require(condition: bool, failing: str) -> None:
    if not condition:
        raise ExportError(
            f"int8 weights change the model too much: {failing}. Use formats=['onnx'], which keeps float32."
        )


def _varied(batch: Mapping[str, Tensor], vocab_size: int | None) -> dict[str, Tensor]:
    """Random inputs of the batch's shapes and kinds, for many samples."""
    generator = torch.Generator().manual_seed(1)
    varied = {}
    for name, tensor in batch.items():
        shape = (_ROWS, *tensor.shape[1:])
        if tensor.is_floating_point():
            varied[name] = torch.randn(shape, generator=generator, dtype=tensor.dtype)
        elif "mask" in name:
            varied[name] = torch.ones(shape, dtype=tensor.dtype)
        else:
            varied[name] = torch.randint(vocab_size or int(tensor.max()) + 1, shape, generator=generator)
    return varied


def _with_text(sample: dict[str, Tensor], tokenizer: Any, vocab_size: int) -> dict[str, Tensor]:
    """`sample` with the ids of a text where a tokenizer gives ids that the model has."""
    name = "decoder_input_ids" if "decoder_input_ids" in sample else "input_ids"
    if tokenizer is None or not callable(tokenizer):
        return {key: value[:4] for key, value in sample.items()}
    ids = [int(token) for token in tokenizer(_TEXT)["input_ids"] if int(token) < vocab_size]
    length = min(sample[name].shape[1], _POSITIONS, len(ids))
    if length < 2:
        return {key: value[:4] for key, value in sample.items()}
    rows = torch.tensor([ids[start : start + length] for start in range(0, len(ids) - length + 1, length)])
    others = {key: value[: len(rows)] for key, value in sample.items() if key != name}
    kept = min(len(rows), _ROWS)
    masks = {"attention_mask"} if name == "input_ids" else set()
    others = {key: torch.ones_like(rows[:kept]) if key in masks else value[:kept] for key, value in others.items()}
    return {key: rows[:kept] if key == name else others[key] for key in sample}


def benchmark(
    original: Logits,
    exported: Logits,
    batch: Mapping[str, Tensor],
    batch_sizes: Sequence[int] = BATCH_SIZES,
    longest: int | None = TIMED_LENGTH,
) -> dict[str, Any]:
    """Median times of a forward pass, measured in turns, so that a busy machine slows both alike. The first calls do not count.

    Args:
        batch: an example, whose first row is repeated.
        batch_sizes: the first is the one of the main figures.
        longest: tokens that a row is cut to; None: it is not cut.
    Returns:
        {"pytorch_ms", "onnxruntime_ms", "speedup": the first over the second, "shape": of the main input, "threads", "runs",
        "by_batch_size": {size: {"pytorch_ms", "onnxruntime_ms"}}}.
    """
    by_size: dict[int, dict[str, float]] = {}
    runs = 0
    shape: tuple[int, ...] = ()
    for size in batch_sizes:
        stage("measuring the speed")
        rows = {name: _rows(tensor, size, longest) for name, tensor in batch.items()}
        times = _timed(original, exported, rows, _SECONDS if not by_size else _SECONDS / len(batch_sizes))
        if not by_size:
            runs, shape = len(times[0]), tuple(next(iter(rows.values())).shape)
        pytorch_ms, onnxruntime_ms = (1000 * statistics.median(taken) for taken in times)
        by_size[size] = {"pytorch_ms": pytorch_ms, "onnxruntime_ms": onnxruntime_ms}
    first = by_size[batch_sizes[0]]
    return {
        **first,
        "speedup": first["pytorch_ms"] / first["onnxruntime_ms"],
        "shape": shape,
        "threads": torch.get_num_threads(),
        "runs": runs,
        "by_batch_size": by_size,
    }


def _rows(tensor: Tensor, count: int, longest: int | None) -> Tensor:
    row = tensor[:1, :longest] if tensor.dim() == 2 and not tensor.is_floating_point() else tensor[:1]
    return row.repeat(count, *[1] * (tensor.dim() - 1))


def _timed(
    original: Logits, exported: Logits, batch: Mapping[str, Tensor], seconds: float
) -> tuple[list[float], list[float]]:
    times: tuple[list[float], list[float]] = ([], [])
    with torch.no_grad():
        original(batch), exported(batch)  # the first calls allocate
        started = time.perf_counter()
        while len(times[0]) < _RUNS:
            if len(times[0]) >= _LEAST_RUNS and time.perf_counter() - started > seconds:
                break
            for run, taken in zip((original, exported), times, strict=True):
                before = time.perf_counter()
                run(batch)
                taken.append(time.perf_counter() - before)
    return times
