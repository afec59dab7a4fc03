"""A Hugging Face folder: safetensors, config, generation config and tokenizer, as `from_pretrained` reads them."""

from __future__ import annotations

import contextlib
import copy
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from utils.adapters.forward import ModelCall, logits_of
from utils.errors import ExportError
from utils.storage import write_json
from utils.training.export.folders import check_space, size_of, staged_folder
from utils.training.export.greedy import greedy_parity
from utils.training.export.image_processing import save_image_processor
from utils.training.export.manifest import MARKER
from utils.training.export.other_process import Loaded, UnreadableError, code_room, loaded_elsewhere
from utils.training.export.parity import Logits, compare_logits, example_batches
from utils.training.export.result import ExportResult

# The same code computes the same weights on both sides: anything above rounding is a wrong file.
_TOLERANCE = 1e-5

_SAMPLE = "The quick brown fox: 1 + 2 = 3."


# Looked up in this order: some configs are registered with several heads of the same class.
_AUTO_CLASSES = (
    "AutoModelForCausalLM", "AutoModelForSeq2SeqLM", "AutoModelForMaskedLM", "AutoModelForSequenceClassification",
    "AutoModelForTokenClassification", "AutoModelForQuestionAnswering", "AutoModelForMultipleChoice",
    "AutoModelForImageClassification", "AutoModelForAudioClassification", "AutoModel",
)  # fmt: skip


def refuse_unsupported(model: Any) -> None:
    """Raise `ExportError` for a model that this format cannot hold; says what there is instead."""
    from transformers import PreTrainedModel

    if not isinstance(base_model(model), PreTrainedModel):
        raise ExportError(
            f"{type(model).__name__} is not a transformers model, so it cannot be written as a Hugging Face folder. Use "
            "formats=['safetensors'], which holds the weights of any module."
        )


def export_hf(
    model: nn.Module, tokenizer: Any, target: Path, source: str, notes: tuple[str, ...] = (), *, task_spec: Any = None
) -> ExportResult:
    """Write `model` to the folder `target`, verify it by loading it again, and only then give it its name.

    A PEFT model is written with its adapter merged into the weights; the merged model is compared with it first.

    Args:
        model: a transformers model or a PEFT model of one, on the CPU, in evaluation mode.
        tokenizer: saved with it; None: none.
        target: the folder; an export that is there is replaced.
        source: the checkpoint that the weights come from, for the record.
        notes: further sentences for the result.
        task_spec: fills what the model does not state of its inputs; says how images are normalized.
    Raises:
        ExportError: not written, or what was written is not the same model. `target` is then what it was.
    """
    from safetensors import SafetensorError

    batches = example_batches(model, task_spec)
    try:
        with staged_folder(target) as staging, without_progress_bars():
            check_space(staging, target, model)
            merged, merging_notes = merged_model(model, batches)
            _use_special_tokens(merged, tokenizer)
            merged.save_pretrained(staging)
            if tokenizer is not None or "input_ids" in batches[0]:
                notes += save_tokenizer(tokenizer, staging)
            notes += save_image_processor(merged, task_spec, staging)
            loader = auto_class(merged)
            parity, unverified = _compared(merged, tokenizer, staging, loader, batches)
            record = {
                "format": "hf", "source": source, "class": type(merged).__name__, "parity": parity,
                "loader": loader.__name__,
            }  # fmt: skip
            write_json(staging / MARKER, record)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ExportError(f"{target} could not be written: {reason}. What was there before is unchanged.") from error
    notes += (*merging_notes, *unverified, f"Load it with transformers.{loader.__name__}.from_pretrained.")
    return ExportResult(
        "hf", target, size_of(target), parity, None, notes, other_process=None if unverified else parity
    )


def base_model(model: Any) -> Any:
    """The transformers model inside a PEFT model; any other model as it is."""
    inside = getattr(model, "get_base_model", None)
    return inside() if callable(inside) else model


def auto_class(model: Any) -> Any:
    """Auto class that loads the folder and knows the model's class; without one the class itself."""
    import transformers

    for name in _AUTO_CLASSES:
        registered: Any = getattr(transformers, name)._model_mapping.get(type(model.config), None)
        if type(model) in (registered if isinstance(registered, (tuple, list)) else (registered,)):
            return getattr(transformers, name)
    return type(model)


def scores_of(model: nn.Module, call: ModelCall | None = None) -> Logits:
    """Make a function from batch to logits; start and end logits of extractive question answering, hidden states
    without a head."""
    call = call or ModelCall(model)

    def scores(batch: Mapping[str, Tensor]) -> Tensor:
        outputs = call.outputs(batch)
        if hasattr(outputs, "start_logits"):
            return torch.stack([outputs.start_logits, outputs.end_logits], dim=-1)
        states = getattr(outputs, "last_hidden_state", None)
        return states if states is not None and not hasattr(outputs, "logits") else logits_of(outputs, model)

    return scores


def scores_elsewhere(call: ModelCall, loaded: Loaded) -> Logits:
    """The same of a model in another process, which gets the arguments that `call` gives its own model."""

    def scores(batch: Mapping[str, Tensor]) -> Tensor:
        outputs = loaded.run(*call.inputs(batch))
        if isinstance(outputs, Tensor):
            return outputs
        if "start_logits" in outputs:
            return torch.stack([outputs["start_logits"], outputs["end_logits"]], dim=-1)
        states: Tensor = outputs["last_hidden_state"]
        return states

    return scores


def loader_elsewhere(loader: type, model: nn.Module) -> tuple[str, dict[str, Any]]:
    """The room and the request's arguments with which another process finds `loader`. Raises UnreadableError: it cannot."""
    if loader.__module__.partition(".")[0] == "transformers":
        return "transformers", {"loader": ("transformers", loader.__name__), "path": []}
    return code_room(model), {"loader": (loader.__module__, loader.__qualname__), "path": list(sys.path)}


def _compared(
    model: nn.Module, tokenizer: Any, folder: Path, loader: Any, batches: Sequence[Mapping[str, Tensor]]
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Compare `model` with the folder, loaded in another process. Where only this process has its class, the folder is loaded
    here, and the second value says so."""
    call = ModelCall(model)
    expected = scores_of(model, call)

    def compared(got: Logits) -> dict[str, Any]:
        try:
            parity = compare_logits(expected, got, batches, _TOLERANCE)
        except ExportError as error:
            raise ExportError(f"{error}{_rounded_buffers(model)}") from error
        return parity | greedy_parity(model, expected, got, batches, _TOLERANCE)

    try:
        room, found = loader_elsewhere(loader, model)
    except UnreadableError as error:
        loaded = loader.from_pretrained(folder, local_files_only=True).eval()
        return compared(scores_of(loaded)), (f"It was loaded and compared in this process only: {error}.",)
    with loaded_elsewhere("hf", room, folder=str(folder), **found) as elsewhere:
        compare_tokens(elsewhere, tokenizer, folder)
        return compared(scores_elsewhere(call, elsewhere)), ()


def _rounded_buffers(model: nn.Module) -> str:
    """A likely cause of a difference, as the end of a message: converting a whole model to half precision rounds buffers that
    no file holds, such as the frequencies of rotary positions, which a loaded model computes anew. "" without such buffers."""
    rounded = [
        f"{prefix}.{name}".lstrip(".")
        for prefix, module in model.named_modules()
        for name in sorted(module._non_persistent_buffers_set)
        if (buffer := module._buffers.get(name)) is not None and buffer.is_floating_point() and _is_rounded(buffer)
    ]
    if not rounded:
        return ""
    return (
        f". Likely cause: buffers that are not saved, {', '.join(rounded[:3])}, were rounded to half precision by "
        "model.bfloat16() or model.half(), and loading computes them anew; load or create the model with dtype=torch.bfloat16 "
        "instead, which leaves them in fp32"
    )


def _is_rounded(values: Tensor) -> bool:
    """Whether fractions are all exact in bf16 or in fp16."""
    full = values.float()
    if torch.equal(full, full.round()):
        return False
    return any(torch.equal(full, full.to(half).float()) for half in (torch.bfloat16, torch.float16))


def merged_model(model: Any, batches: Sequence[Mapping[str, Tensor]]) -> tuple[Any, tuple[str, ...]]:
    """The model with its adapters merged into the weights, proven equal; a model without adapters as it is. And notes."""
    if base_model(model) is model:
        return model, ()
    merged = copy.deepcopy(model).merge_and_unload().eval()
    # Merged weights are rounded to their dtype, where the adapter's product was added to the activations.
    eps = max(torch.finfo(p.dtype).eps for p in merged.parameters() if p.is_floating_point())
    tolerance = max(_TOLERANCE, 16 * eps if eps > _TOLERANCE else 0.0)
    parity = compare_logits(scores_of(model), scores_of(merged), batches, tolerance)
    return merged, (f"The adapter is merged into the weights: logits differ by at most {parity['max_abs_diff']:.2g}.",)


def _use_special_tokens(model: Any, tokenizer: Any) -> None:
    """Let the configs name the tokenizer's special ids, so that a loaded model's `generate` can stop."""
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        token = getattr(tokenizer, name, None)
        if isinstance(token, int):
            setattr(model.config, name, token)
            if getattr(model, "generation_config", None) is not None:
                setattr(model.generation_config, name, token)


def save_tokenizer(tokenizer: Any, folder: Path) -> tuple[str, ...]:
    """Save the tokenizer beside the model and check that it gives the same ids when loaded again. Returns notes."""
    if tokenizer is None:
        return ("There is no tokenizer in the folder: the run had none.",)
    if not hasattr(tokenizer, "save_pretrained"):
        return (f"There is no tokenizer in the folder: {type(tokenizer).__name__} has no save_pretrained.",)
    from transformers import AutoTokenizer, PreTrainedTokenizerBase

    tokenizer.save_pretrained(folder)
    loader = AutoTokenizer if isinstance(tokenizer, PreTrainedTokenizerBase) else type(tokenizer)
    loaded = loader.from_pretrained(folder)
    if getattr(loaded, "chat_template", None) != getattr(tokenizer, "chat_template", None):
        raise ExportError("the saved tokenizer has another chat template than the run's; not exported")
    expected, got = (_ids(one) for one in (tokenizer, loaded))
    if expected != got:
        raise ExportError(
            f"the saved tokenizer gives other ids than the run's, {got[:8]} instead of {expected[:8]}; not exported"
        )
    return ()


def compare_tokens(loaded: Loaded, tokenizer: Any, folder: Path) -> None:
    """Check that another process gets the same ids from the tokenizer in `folder`. One of this library's own is left out."""
    from transformers import PreTrainedTokenizerBase

    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        return
    got = loaded.ask("token_ids", folder=str(folder), text=_SAMPLE)
    if got != _ids(tokenizer):
        raise ExportError("the saved tokenizer gives other ids in another process than the run's; not exported")


def _ids(tokenizer: Any) -> list[int]:
    return [int(token) for token in tokenizer(_SAMPLE)["input_ids"]]


@contextlib.contextmanager
def without_progress_bars() -> Iterator[None]:
    """transformers draws a bar for every file it writes or reads, also for one that takes a millisecond."""
    from transformers.utils import logging

    shown, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if shown:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]
