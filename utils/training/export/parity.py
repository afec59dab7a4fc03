"""Whether two models compute the same: their logits on batches of several shapes, and the tokens they generate.

Shapes: B samples, T positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from utils.adapters.forward import ModelCall
from utils.adapters.input_shapes import InputShapes, infer_input_shapes, longest_accepted
from utils.errors import ExportError, ModelError
from utils.training.export.stages import stage

Logits = Callable[[Mapping[str, Tensor]], Tensor]

# Most positions of a compared batch: parity does not need a long context to be seen.
_LONGEST = 256
# Tried for a model that states no limit.
_LENGTHS = (256, 128, 64, 32, 16, 8)


def parity_batches(vocab_size: int, max_length: int | None, decoder: bool) -> list[dict[str, Tensor]]:
    """Random ids of three shapes (B, T): one token, several sequences, the longest sequence.

    Args:
        vocab_size: ids are below it.
        max_length: the most positions the model takes; None: it does not say.
        decoder: whether the model is an encoder-decoder, whose decoder needs ids too.
    """
    longest = min(max_length or _LONGEST, _LONGEST)
    generator = torch.Generator().manual_seed(0)
    batches = []
    for shape in ((1, 1), (3, max(1, longest // 2)), (1, longest)):
        ids_BT = torch.randint(vocab_size, shape, generator=generator)
        batches.append({"input_ids": ids_BT, **({"decoder_input_ids": ids_BT} if decoder else {})})
    return batches


def example_batches(
    model: nn.Module, task_spec: Any = None, *, sample: Mapping[str, Tensor] | None = None
) -> list[dict[str, Tensor]]:
    """Batches of several shapes that `model` takes, on the CPU; the same ones each time.

    Models over token ids get one token, several sequences, and the longest sequence; where they take an `attention_mask`,
    several sequences once padded on the left and once on the right, and once without a mask. An encoder-decoder gets decoder
    ids of another length. Models over images and tables get batches of 1, 2 and 3 samples.

    Args:
        model: any module that `ModelCall` can call.
        task_spec: fills what the model does not state (vocab_size, max_seq_len, modality); None: nothing.
        sample: a real batch; it is taken in place of made-up values, as it is and as its first row. Labels are left out.
    Raises:
        ExportError: the model's inputs cannot be inferred; says what to give.
    """
    if sample is not None:
        return _batches_of(sample)
    try:
        shapes = infer_input_shapes(model, task_spec, getattr(task_spec, "preprocessing_config", None))
    except ModelError as error:
        raise ExportError(str(error)) from error
    generator = torch.Generator().manual_seed(0)
    if shapes.kind == "tokens":
        return _token_batches(model, shapes, generator)
    name = "pixel_values" if shapes.kind == "images" else "inputs"
    of_one = shapes.image_shape or shapes.feature_shape or ()
    return [{name: torch.randn(count, *of_one, generator=generator)} for count in (1, 3, 2)]


def _batches_of(sample: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
    """The inputs in `sample`: the first row, then all of it."""
    inputs = {
        name: value.detach().cpu() for name, value in sample.items() if isinstance(value, Tensor) and name != "labels"
    }
    if not inputs:
        raise ExportError(f"the sample batch holds no input tensor; it has {sorted(sample) or 'nothing'}")
    return [{name: value[:1] for name, value in inputs.items()}, inputs]


def _token_batches(model: nn.Module, shapes: InputShapes, generator: torch.Generator) -> list[dict[str, Tensor]]:
    longest = min(shapes.max_length or _LONGEST, _LONGEST)
    if shapes.max_length is None and shapes.vocab_size is not None:
        # A table of positions that nobody states ends somewhere; where no length works, the comparison gives the reason.
        longest = longest_accepted(model, shapes.vocab_size, _LENGTHS) or longest
    middle = max(1, longest // 2)
    padding_ids = {
        module.padding_idx for module in model.modules() if isinstance(module, nn.Embedding) and module.padding_idx
    }

    def ids(*shape: int) -> Tensor:
        # Without the ids of padding: some models derive their mask from them.
        assert shapes.vocab_size is not None
        ids_BT = torch.randint(shapes.vocab_size, shape, generator=generator)
        for padding in padding_ids:
            ids_BT[ids_BT == padding] = (padding + 1) % shapes.vocab_size
        return ids_BT

    batches: list[dict[str, Tensor]] = [{"input_ids": ids(*shape)} for shape in ((1, 1), (3, middle), (1, longest))]
    if shapes.encoder_decoder:
        lengths = ((1, 1), (3, max(1, middle // 2)), (1, middle))
        batches = [{**batch, "decoder_input_ids": ids(*shape)} for batch, shape in zip(batches, lengths, strict=True)]
    if not takes_attention_mask(model, batches[0]):
        return batches
    one, several, long = ({**batch, "attention_mask": torch.ones_like(batch["input_ids"])} for batch in batches)
    padded = middle // 3
    mask_BT = several["attention_mask"]
    left, right = ({**several, "attention_mask": mask_BT.clone()} for _ in range(2))
    left["attention_mask"][-1, :padded] = 0
    right["attention_mask"][-1, middle - padded :] = 0
    without = [] if _needs_attention_mask(model, batches[0]) else [batches[1]]
    return [one, left, right, *without, long]


def takes_attention_mask(model: nn.Module, batch: Mapping[str, Tensor]) -> bool:
    """Whether a padding mask reaches `model`, under its own name or as torch's inverted one."""
    call, main = ModelCall(model), next(iter(batch.values()))
    return call.lost_mask({**batch, "attention_mask": torch.ones_like(main)}) is None


def _needs_attention_mask(model: nn.Module, batch: Mapping[str, Tensor]) -> bool:
    """Whether the forward pass does without a default for the mask that `batch` has not."""
    try:
        ModelCall(model).inputs(batch)
    except ModelError:
        return True
    return False


def at_real_positions(logits: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
    """`logits` with zeros where the batch is padding: nobody reads those logits, and engines differ in them."""
    mask_BT = batch.get("decoder_attention_mask" if "decoder_input_ids" in batch else "attention_mask")
    if mask_BT is None or logits.shape[:-1] != mask_BT.shape:
        return logits
    return logits.masked_fill(mask_BT[..., None] == 0, 0.0)


def compare_logits(
    original: Logits, exported: Logits, batches: Sequence[Mapping[str, Tensor]], tolerance: float
) -> dict[str, Any]:
    """Compare the logits of two models on every batch. Logits at padding are not compared.

    Args:
        original, exported: from a batch to logits.
        batches: what they are compared on, see `example_batches`.
        tolerance: the largest difference allowed, as a share of the largest logit (at least of 1).
    Returns:
        {"max_abs_diff", "mean_abs_diff", "max_abs_logit", "shapes": the distinct shapes of the main input, "batches": their
        number}.
    Raises:
        ExportError: other shapes, NaN on one side only, or a difference above the tolerance; says how large.
    """
    largest_difference = largest_logit = total = 0.0
    count = 0
    shapes: dict[tuple[int, ...], None] = {}
    with torch.no_grad():
        for batch in batches:
            stage("comparing logits with the model's")
            expected, got = (run(batch).float().cpu() for run in (original, exported))
            if expected.shape != got.shape:
                raise ExportError(
                    f"the exported model returns logits of shape {tuple(got.shape)}, the model {tuple(expected.shape)}"
                )
            expected, got = at_real_positions(expected, batch), at_real_positions(got, batch)
            if not bool(expected.isfinite().all()):
                raise ExportError("the model returns NaN or infinite logits; such weights are not exported")
            differences = (expected - got).abs()
            difference, logit = float(differences.max()), float(expected.abs().max())
            name, main = next(iter(batch.items()))
            # `not <=`: a NaN difference is no agreement.
            if not difference <= tolerance * max(1.0, logit):
                what = {"input_ids": "ids", "pixel_values": "images"}.get(name, "inputs")
                raise ExportError(
                    f"the exported model computes something else: logits differ by {difference:.3g} on {what} of shape "
                    f"{tuple(main.shape)} (largest logit {logit:.3g}); nothing was exported"
                )
            largest_difference, largest_logit = max(largest_difference, difference), max(largest_logit, logit)
            total, count = total + float(differences.sum(dtype=torch.float64)), count + differences.numel()
            shapes[tuple(main.shape)] = None
    return {
        "max_abs_diff": largest_difference,
        "mean_abs_diff": total / max(1, count),
        "max_abs_logit": largest_logit,
        "shapes": list(shapes),
        "batches": len(batches),
    }


def compare_greedy_tokens(
    original: Logits, exported: Logits, prompt: Mapping[str, Tensor], tolerance: float, *, steps: int = 64,
    max_length: int | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Let two models continue a prompt greedily, each from its own tokens, and require the same tokens.

    Where the model's two best logits are closer than `tolerance`, rounding decides which of them is taken: from there on the
    exported model follows the original's token, and the step is counted as a tie.

    Args:
        original, exported: from a batch to logits (B, T, V).
        prompt: `input_ids` (1, T); of an encoder-decoder also `decoder_input_ids`, which are continued instead.
        tolerance: as for `compare_logits`.
        steps: tokens to generate.
        max_length: the most positions that the models take: older tokens are cut off; None: no limit.
    Returns:
        {"greedy_tokens_equal": steps, "greedy_ties": how many of them rounding decided}.
    Raises:
        ExportError: another token; says at which step.
    """
    name = "decoder_input_ids" if "decoder_input_ids" in prompt else "input_ids"
    given = {
        key: value for key, value in prompt.items() if key != name and (name != "input_ids" or key != "attention_mask")
    }
    ids_BT = prompt[name]
    ties = 0
    with torch.no_grad():
        for step in range(steps):
            stage("comparing generated tokens with the model's")
            visible = ids_BT if max_length is None else ids_BT[:, -max_length:]
            batch = {**given, name: visible} if name == "decoder_input_ids" else {name: visible, **given}
            expected_V, got_V = (run(batch)[0, -1].float().cpu() for run in (original, exported))
            token, other = int(expected_V.argmax()), int(got_V.argmax())
            if token != other:
                margin = float(expected_V[token] - expected_V[other])
                if not margin <= 2 * tolerance * max(1.0, float(expected_V.abs().max())):
                    raise ExportError(
                        f"the exported model generates other text: token {other} in place of {token} at step {step + 1} of "
                        f"{steps} of greedy decoding; nothing was exported"
                    )
                ties += 1
            ids_BT = torch.cat([ids_BT, ids_BT.new_full((1, 1), token)], dim=1)
    return {"greedy_tokens_equal": steps, "greedy_ties": ties}
