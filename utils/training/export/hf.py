"""A Hugging Face folder: safetensors, config, generation config and tokenizer, as `from_pretrained` reads them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.adapters.facts import model_facts
from utils.adapters.forward import ModelCall
from utils.errors import ExportError
from utils.storage import write_json
from utils.training.export.folders import MARKER, check_space, size_of, staged_folder
from utils.training.export.parity import compare_logits, parity_batches
from utils.training.export.result import ExportResult

if TYPE_CHECKING:
    from torch import nn

# The same code computes the same weights on both sides: anything above rounding is a wrong file.
_TOLERANCE = 1e-5

_SAMPLE = "The quick brown fox: 1 + 2 = 3."


def refuse_unsupported(model: Any) -> None:
    """Raise `ExportError` for a model that this format cannot hold; says what there is instead."""
    from transformers import PreTrainedModel

    if not isinstance(model, PreTrainedModel):
        raise ExportError(
            f"{type(model).__name__} is not a transformers model, so it cannot be written as a Hugging Face folder. Use "
            "formats=['safetensors'], which holds the weights of any module."
        )
    if model.main_input_name != "input_ids":
        raise ExportError(
            f"{type(model).__name__} takes {model.main_input_name}; only models over token ids can be exported as a Hugging "
            "Face folder. Use formats=['safetensors']."
        )


def export_hf(model: nn.Module, tokenizer: Any, target: Path, source: str, notes: tuple[str, ...] = ()) -> ExportResult:
    """Write `model` to the folder `target`, verify it by loading it again, and only then give it its name.

    Args:
        model: a transformers model on the CPU, in evaluation mode.
        tokenizer: saved with it; None: none.
        target: the folder; an export that is there is replaced.
        source: the checkpoint that the weights come from, for the record.
        notes: what the result should say besides.
    Raises:
        ExportError: not written, or what was written is not the same model. `target` is then what it was.
    """
    from safetensors import SafetensorError

    facts = model_facts(model)
    try:
        with staged_folder(target) as staging, without_progress_bars():
            check_space(staging, target, model)
            _use_special_tokens(model, tokenizer)
            model.save_pretrained(staging)  # type: ignore[operator]
            notes += save_tokenizer(tokenizer, staging)
            loaded = _loader(model).from_pretrained(staging, local_files_only=True).eval()
            decoder = bool(getattr(model.config, "is_encoder_decoder", False))
            batches = parity_batches(facts.vocab_size or 1, facts.max_length, decoder)
            parity = compare_logits(ModelCall(model), ModelCall(loaded), batches, _TOLERANCE)
            write_json(
                staging / MARKER, {"format": "hf", "source": source, "class": type(model).__name__, "parity": parity}
            )
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ExportError(f"{target} could not be written: {reason}. What was there before is unchanged.") from error
    return ExportResult("hf", target, size_of(target), parity, None, notes)


def _loader(model: Any) -> Any:
    """What a user would load the folder with: AutoModelForCausalLM where it knows the class, else the class itself."""
    from transformers import AutoModelForCausalLM

    registered: Any = AutoModelForCausalLM._model_mapping.get(type(model.config), None)
    return AutoModelForCausalLM if registered is type(model) else type(model)


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
    expected, got = (_ids(one) for one in (tokenizer, loaded))
    if expected != got:
        raise ExportError(
            f"the saved tokenizer gives other ids than the run's, {got[:8]} instead of {expected[:8]}; not exported"
        )
    return ()


def _ids(tokenizer: Any) -> list[int]:
    return [int(token) for token in tokenizer(_SAMPLE)["input_ids"]]


@contextlib.contextmanager
def without_progress_bars() -> Iterator[None]:
    """transformers draws a bar for every file it writes or reads, also for one that takes a millisecond."""
    from transformers.utils import logging

    shown, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if shown:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]
