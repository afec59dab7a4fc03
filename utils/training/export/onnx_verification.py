"""Compares ONNX files with the model that they were written from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from utils.adapters.facts import model_facts
from utils.adapters.forward import ModelCall
from utils.training.export.onnx_graphs import CACHE_FILE, DECODER_FILE, ENCODER_FILE, FILE_NAME, Graph
from utils.training.export.onnx_measures import int8_quality
from utils.training.export.onnx_runtime import (
    CachedRun,
    EncoderDecoderRun,
    ForwardRun,
    LocalSession,
    OtherSession,
    Session,
)
from utils.training.export.other_process import loaded_elsewhere
from utils.training.export.parity import Logits, compare_greedy_tokens, compare_logits

# Both sides compute in float32 but sum in another order: below 1e-6 of the largest logit on models of 2 to 12 layers.
# A hundred times that is still far below what changes a prediction, and far above what a wrong graph stays under.
_TOLERANCE = 1e-4
# Largest difference of the two int8 files of one model, as a share of the largest logit: activations are quantised for each
# call, and the calls differ in their number of positions.
_LARGEST_INT8_DIFF = 0.1
#: Greedy tokens that a language model and its file must have in common.
GREEDY_STEPS = 64
_PROMPT_LENGTH = 8


class OnnxVerification:
    """Compares the files of a folder, loaded in another process, with a model.

    Args:
        batches: what they are compared on.
        names: of the files' inputs, by the batches'.
    """

    def __init__(
        self, model: nn.Module, batches: Sequence[Mapping[str, Tensor]], names: Mapping[str, str],
        max_length: int | None, tokenizer: Any,
    ) -> None:  # fmt: skip
        self.model, self.original = model, ModelCall(model)
        self._continued = _LastLogits(self.original)
        self._names, self._tokenizer = names, tokenizer
        # An input that was left out cannot be compared with what the model computes from it.
        self.batches = [batch for batch in batches if set(batch) <= set(names)] or [
            {name: tensor for name, tensor in batch.items() if name in names} for batch in batches
        ]

        # Where a model states no limit, it is not asked for more positions than it has taken.
        taken = (tensor.shape[1] for batch in self.batches for tensor in batch.values() if tensor.dim() > 1)
        self._max_length = max_length or max(taken, default=None)

    def run(self, folder: Path, planned: Mapping[str, Graph], load: Callable[[Path], Session] = LocalSession) -> Logits:
        """Logits of the forward pass by the files in `folder`, in this process unless `load` says otherwise."""
        if ENCODER_FILE in planned:
            return EncoderDecoderRun(load(folder / ENCODER_FILE), load(folder / DECODER_FILE))
        return ForwardRun(load(folder / FILE_NAME), self._names)

    def parity(self, folder: Path, planned: Mapping[str, Graph]) -> dict[str, Any]:
        """Compare logits, and the greedy tokens of language models, of every file. Raises ExportError."""
        with loaded_elsewhere("onnx", "torch") as loaded:
            load = partial(OtherSession, loaded)
            runs: list[Logits] = [self.run(folder, planned, load)]
            if CACHE_FILE in planned:
                runs.append(CachedRun(load(folder / CACHE_FILE)))
            return self._compared(runs)

    def _compared(self, runs: Sequence[Logits]) -> dict[str, Any]:
        prompt = self._prompt()
        found: list[dict[str, Any]] = []
        for run in runs:
            parity = compare_logits(self.original, run, self.batches, _TOLERANCE)
            if prompt is not None:
                parity |= compare_greedy_tokens(
                    self._continued, run, prompt, _TOLERANCE, steps=GREEDY_STEPS, max_length=self._max_length
                )
            found.append(parity)
        worst = max(found, key=lambda parity: parity["max_abs_diff"])
        return {
            **found[0],
            **{name: worst[name] for name in ("max_abs_diff", "mean_abs_diff")},
            "tolerance": _TOLERANCE,
        }

    def quality(self, folder: Path, planned: Mapping[str, Graph]) -> dict[str, Any]:
        """Measure what int8 weights leave of the model's predictions. Raises ExportError below the limits."""
        with loaded_elsewhere("onnx", "torch") as loaded:
            load = partial(OtherSession, loaded)
            run = self.run(folder, planned, load)
            quality = int8_quality(self.model, self.original, run, self.batches[-1], self._tokenizer)
            if CACHE_FILE in planned:
                cached = CachedRun(load(folder / CACHE_FILE))
                compare_logits(run, cached, self.batches, _LARGEST_INT8_DIFF)
            return {**compare_logits(self.original, run, self.batches, float("inf")), **quality}

    def _prompt(self) -> dict[str, Tensor] | None:
        """Prompt for comparing generated tokens; None for other models, and where sizes are fixed."""
        batch = self.batches[-1]
        ids_BT = batch.get("input_ids")
        if ids_BT is None or len({tuple(one["input_ids"].shape) for one in self.batches}) == 1:
            return None
        if "decoder_input_ids" in batch:
            start = getattr(getattr(self.model, "config", None), "decoder_start_token_id", None) or 0
            return (
                {**_first_row(batch), "decoder_input_ids": torch.full((1, 1), start)} if self._writes(batch) else None
            )
        prompt = {"input_ids": ids_BT[:1, : min(_PROMPT_LENGTH, ids_BT.shape[1])]}
        return prompt if self._writes(prompt) and self._is_causal(prompt["input_ids"]) else None

    def _writes(self, batch: Mapping[str, Tensor]) -> bool:
        """Whether the logits are one for each token id at each position."""
        vocab_size = model_facts(self.model).vocab_size
        with torch.no_grad():
            logits = self.original(batch)
        return logits.dim() == 3 and vocab_size is not None and logits.shape[-1] >= vocab_size

    def _is_causal(self, ids_BT: Tensor) -> bool:
        """Whether the last token leaves the logits before it as they are."""
        if ids_BT.shape[1] < 2:
            return False
        other_BT = ids_BT.clone()
        other_BT[:, -1] = (other_BT[:, -1] + 1) % (model_facts(self.model).vocab_size or 1)
        with torch.no_grad():
            first, second = (self.original({"input_ids": ids})[:, :-1] for ids in (ids_BT, other_BT))
        return bool((first - second).abs().max() <= _TOLERANCE * first.abs().max().clamp_min(1.0))


class _LastLogits:
    """A model's logits at the last position, computed once for the same ids: every file is given the same continuation."""

    def __init__(self, run: Logits) -> None:
        self._run = run
        self._known: dict[bytes, Tensor] = {}

    def __call__(self, batch: Mapping[str, Tensor]) -> Tensor:
        key = batch.get("decoder_input_ids", batch["input_ids"]).numpy().tobytes()
        if key not in self._known:
            self._known[key] = self._run(batch)[:, -1:].clone()
        return self._known[key]


def _first_row(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor[:1] for name, tensor in batch.items()}
