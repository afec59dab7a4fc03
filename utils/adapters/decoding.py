"""Logits of the next token, from a key/value cache where the model has one.

Shapes: B sequences, T positions, V vocabulary.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from utils.adapters.forward import ModelCall, logits_of
from utils.adapters.inputs import forward_parameters
from utils.errors import ConfigError, ModelError, NonFiniteError, Problem

_log = logging.getLogger("trainbook.models")

# Largest difference between cached and uncached logits, as a share of the largest logit. Rounding alone stays below 1e-5 in
# float32; in half precision it is several units in the last place, since the matrix products have other shapes.
_TOLERANCE, _TOLERANCE_IN_EPS = 1e-3, 16


class NextLogits:
    """`next_logits(ids)`: logits (B, V) of the token after ids (B, T). Call it with one more token each time.

    A key/value cache is used when all of these hold: the forward takes `past_key_values` and `use_cache`, the first call
    returns a cache, and the first step from that cache gives the logits of a full pass within rounding. A model that fails
    one of them, or raises when asked for its cache, is run without it: the whole sequence for every token. So is any model
    once its context is full, because the positions of all tokens then shift with every step.

    An encoder-decoder runs its encoder once, where its forward takes `encoder_outputs`.

    Args:
        model: in evaluation mode.
        prompt_BT: the prompts; for an encoder-decoder the encoder's input.
        mask_BT: 1 at tokens, 0 at padding; None: no padding.
        context: the most positions that the model is shown; None: no limit.
        vocab_size: logits of the first `vocab_size` ids are returned; None: all.
        steps: tokens to be generated; a cache does not pay for a single one.
        use_cache: False: never; True or None: as described above.
    Attributes:
        cached: whether the last call computed its logits from a cache.
    """

    def __init__(
        self, model: nn.Module, prompt_BT: Tensor, mask_BT: Tensor | None, context: int | None, vocab_size: int | None,
        steps: int, use_cache: bool | None,
    ) -> None:  # fmt: skip
        self.cached = False
        self._call = ModelCall(model)
        self._context, self._vocab_size = context, vocab_size
        self._prompt_length = prompt_BT.shape[1]
        padded = mask_BT is not None and not bool(mask_BT.all())
        self._mask_BT = mask_BT.to(torch.int64) if padded and mask_BT is not None else None
        self._source: dict[str, Tensor] = {"input_ids": prompt_BT}
        if self._mask_BT is not None:
            self._source["attention_mask"] = self._mask_BT
            self._check_mask()
        self.is_encoder_decoder = is_encoder_decoder(model)
        self._encoder_outputs: Any = None
        takes_cache = all(self._call.has_parameter(name, self._source) for name in ("past_key_values", "use_cache"))
        self._may_cache = takes_cache and steps > 1 and use_cache is not False
        self._past: Any = None
        self._past_length = 0
        self._verified = False

    def first_ids(self) -> Tensor:
        """Ids (B, T) that generation begins with: the prompts, or an encoder-decoder's start token, T = 1."""
        prompt_BT = self._source["input_ids"]
        if not self.is_encoder_decoder:
            return prompt_BT
        return torch.full_like(prompt_BT[:, :1], _decoder_start(self._call.model))

    def __call__(self, ids_BT: Tensor) -> Tensor:
        full = self._context is not None and ids_BT.shape[1] > self._context
        if full:
            self._may_cache, self._past = False, None
        if self._may_cache:
            logits_BV = self._from_cache(ids_BT)
            if logits_BV is not None:
                return logits_BV
        return self._without_cache(ids_BT)

    def _from_cache(self, ids_BT: Tensor) -> Tensor | None:
        """The logits, or None when the model turns out to have no cache that can be trusted."""
        first_step = self._past is not None and not self._verified
        try:
            outputs = self._outputs(ids_BT, self._past_length, {"use_cache": True, "past_key_values": self._past})
            logits_BV = self._last(outputs, ids_BT.shape[1] - self._past_length)
        except Exception as error:
            # Whatever the model raises: without the cache it either works, or raises an error that is about the model.
            if self._verified or isinstance(error, NonFiniteError):
                raise
            self._give_up(f"its forward raised {type(error).__name__} with a cache")
            return None
        self._past, self._past_length = _cache_of(outputs), ids_BT.shape[1]
        if self._past is None:
            self._give_up("its forward returned none")
        elif first_step:
            return self._checked(logits_BV, self._without_cache(ids_BT))
        self.cached = self._verified
        return logits_BV

    def _checked(self, cached_BV: Tensor, full_BV: Tensor) -> Tensor:
        """`full_BV`; from now on the cache is used, or no longer."""
        finite = full_BV.isfinite()
        largest = float(full_BV[finite].abs().max())
        eps = next((torch.finfo(p.dtype).eps for p in self._call.model.parameters() if p.is_floating_point()), 0.0)
        tolerance = max(_TOLERANCE, _TOLERANCE_IN_EPS * eps) * max(1.0, largest)
        difference = float((cached_BV - full_BV)[finite].abs().max())
        self._verified = difference <= tolerance
        if not self._verified:
            self._give_up(f"its logits differ by {difference:.3g} from those of a full pass")
        return full_BV

    def _give_up(self, reason: str) -> None:
        _log.info("%s generates without a key/value cache: %s", type(self._call.model).__name__, reason)
        self._may_cache, self._past, self.cached = False, None, False

    def _without_cache(self, ids_BT: Tensor) -> Tensor:
        self.cached = False
        visible_BT = ids_BT if self._context is None else ids_BT[:, -self._context :]
        return self._last(self._outputs(visible_BT, 0, {}, ids_BT.shape[1]), visible_BT.shape[1])

    def _outputs(self, ids_BT: Tensor, seen: int, options: dict[str, Any], length: int | None = None) -> Any:
        """Run the model on the columns of `ids_BT` from `seen` on; `length`: of the sequence that they end."""
        new_BT = ids_BT[:, seen:]
        if not self.is_encoder_decoder:
            batch = {"input_ids": new_BT, **self._padding(ids_BT, seen, length or ids_BT.shape[1])}
            return self._call.outputs(batch, options)
        if self._encoder_outputs is not None:
            options = {**options, "encoder_outputs": self._encoder_outputs}
        outputs = self._call.outputs({**self._source, "decoder_input_ids": new_BT}, options)
        if self._encoder_outputs is None and self._call.has_parameter("encoder_outputs", self._source):
            hidden = getattr(outputs, "encoder_last_hidden_state", None)
            self._encoder_outputs = None if hidden is None else (hidden,)
        return outputs

    def _padding(self, ids_BT: Tensor, seen: int, length: int) -> dict[str, Tensor]:
        """Attention mask (B, T) and, where the model takes them, positions that do not count padding."""
        if self._mask_BT is None:
            return {}
        new_tokens = self._mask_BT.new_ones(len(ids_BT), length - self._prompt_length)
        mask_BT = torch.cat([self._mask_BT, new_tokens], dim=1)[:, -ids_BT.shape[1] :]
        inputs = {"attention_mask": mask_BT}
        if self._call.has_parameter("position_ids", self._source):
            inputs["position_ids"] = (mask_BT.cumsum(1) - 1).clamp_min(0)[:, seen:]
        return inputs

    def _last(self, outputs: Any, length: int) -> Tensor:
        """Logits (B, V) at the last of `length` positions, in fp32."""
        model = self._call.model
        logits = logits_of(outputs, model)
        expected = (len(self._source["input_ids"]), length)
        if logits.dim() != 3 or logits.shape[:2] != expected:
            raise ModelError(
                f"{type(model).__name__} returned logits of shape {tuple(logits.shape)} for ids of shape {expected}; text is "
                "generated from logits of shape (B, T, V)"
            )
        last_BV = logits[:, -1, : self._vocab_size].float()
        # Minus infinity is how a model forbids a token; a row of nothing else leaves nothing to draw.
        if bool(last_BV.isnan().any()) or not bool(last_BV.max(dim=-1).values.isfinite().all()):
            raise NonFiniteError(f"{type(model).__name__} returned NaN or infinite logits: its weights are damaged")
        return last_BV

    def _check_mask(self) -> None:
        lost = self._call.lost_mask(self._source)
        if lost is not None:
            raise ModelError(f"The prompts are padded, but {lost}")


def is_encoder_decoder(model: nn.Module) -> bool:
    """Whether the model's forward takes ids for a decoder beside `input_ids`."""
    parameters = forward_parameters(model, "input_ids")
    return "decoder_input_ids" in parameters.declared | parameters.passed_on


def _cache_of(outputs: Any) -> Any:
    """The key/value cache in what a model returned, or None."""
    if isinstance(outputs, Mapping):
        return outputs.get("past_key_values")
    if not isinstance(outputs, Sequence):
        return getattr(outputs, "past_key_values", None)
    return next((part for part in outputs if part is not None and not isinstance(part, Tensor)), None)


def _decoder_start(model: nn.Module) -> int:
    """The id that an encoder-decoder's output begins with."""
    for holder in (getattr(model, "generation_config", None), getattr(model, "config", None)):
        for name in ("decoder_start_token_id", "bos_token_id"):
            token = getattr(holder, name, None)
            if isinstance(token, int):
                return token
    message = (
        f"{type(model).__name__} does not say which token its output begins with; set config.decoder_start_token_id"
    )
    raise ConfigError.from_problems("generate's arguments", [Problem("model", message)])
