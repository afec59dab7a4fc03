"""A PEFT adapter (LoRA and relatives) without the model that it belongs to: megabytes instead of gigabytes."""

from __future__ import annotations

import copy
import json
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from utils.adapters.forward import ModelCall
from utils.errors import ExportError, MissingPackageError
from utils.storage import write_json
from utils.training.export.folders import check_space, size_of, staged_folder
from utils.training.export.greedy import greedy_parity
from utils.training.export.hf import (
    auto_class,
    base_model,
    compare_tokens,
    loader_elsewhere,
    save_tokenizer,
    scores_elsewhere,
    scores_of,
    without_progress_bars,
)
from utils.training.export.manifest import MARKER
from utils.training.export.other_process import UnreadableError, loaded_elsewhere
from utils.training.export.parity import Logits, compare_logits, example_batches
from utils.training.export.result import ExportResult

_CONFIG_NAME = "adapter_config.json"
# A repository in huggingface_hub's cache: models--owner--name/snapshots/<commit>.
_SNAPSHOT = re.compile(r"(?:^|/)models--(?P<id>[^/]+)/snapshots/(?P<revision>[0-9a-f]{40})/?$")

# The same code computes the same weights on both sides: anything above rounding is a wrong file.
_TOLERANCE = 1e-5


def refuse_unsupported(model: Any) -> None:
    """Raise `ExportError` for a model without a PEFT adapter."""
    try:
        from peft import PeftModel
    except ImportError as error:
        raise MissingPackageError("peft", "to write adapters") from error
    if not isinstance(model, PeftModel):
        raise ExportError(f"{type(model).__name__} has no PEFT adapter; 'hf' and 'safetensors' hold the whole model.")


def export_peft(
    model: nn.Module, tokenizer: Any, target: Path, source: str, notes: tuple[str, ...] = (), *, task_spec: Any = None
) -> ExportResult:
    """Write the adapter of `model` to the folder `target`, load it onto a copy of the base model, and compare.

    Args:
        model: a PEFT model on the CPU, in evaluation mode.
        tokenizer: saved with it; None: none.
        target: the folder; an export that is there is replaced.
        source: the checkpoint that the weights come from, for the record.
        notes: further sentences for the result.
        task_spec: fills what the model does not state of its inputs.
    Raises:
        ExportError: not written, or what was written is not the same adapter. `target` is then what it was.
    """
    from safetensors import SafetensorError

    adapted: Any = model
    batches = example_batches(model, task_spec)
    try:
        with staged_folder(target) as staging, without_progress_bars():
            check_space(staging, target, model)
            adapted.save_pretrained(staging, selected_adapters=[adapted.active_adapter])
            base, is_folder = portable_base(staging)
            if tokenizer is not None:
                notes += save_tokenizer(tokenizer, staging)
            parity, unverified = _compared(adapted, tokenizer, staging, batches)
            record = {"format": "peft", "source": source, "class": type(base_model(model)).__name__, "parity": parity}
            write_json(staging / MARKER, record)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ExportError(f"{target} could not be written: {reason}. What was there before is unchanged.") from error
    needs = base or "the base model, which has no published name: keep it, or export 'hf', which is merged"
    if is_folder:
        needs = f"the folder {base} that the training started from, not a model of that name on the Hub"
    notes += (*unverified, f"Load it with peft.PeftModel.from_pretrained(base, folder). The base is {needs}.")
    return ExportResult(
        "peft", target, size_of(target), parity, None, notes, other_process=None if unverified else parity
    )


def _compared(
    model: Any, tokenizer: Any, adapter: Path, batches: Sequence[Mapping[str, Tensor]]
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Compare `model` with its base model and the adapter, loaded in another process. Where only this process has the base
    model's class, they are loaded here, and the second value says so."""
    from peft import PeftModel
    from transformers import PreTrainedModel

    call = ModelCall(model)
    expected = scores_of(model, call)
    base = copy.deepcopy(model).unload()

    def compared(got: Logits) -> dict[str, Any]:
        parity = compare_logits(expected, got, batches, _TOLERANCE)
        return parity | greedy_parity(base_model(model), expected, got, batches, _TOLERANCE)

    try:
        if not isinstance(base, PreTrainedModel):
            raise UnreadableError(f"the base model, a {type(base).__name__}, has no from_pretrained")
        room, found = loader_elsewhere(auto_class(base), base)
    except UnreadableError as error:
        loaded = PeftModel.from_pretrained(base, str(adapter)).eval()
        return compared(scores_of(loaded)), (f"It was loaded and compared in this process only: {error}.",)
    folder = adapter / ".base"
    try:
        base.save_pretrained(folder)
        with loaded_elsewhere("peft", room, base=str(folder), adapter=str(adapter), **found) as elsewhere:
            compare_tokens(elsewhere, tokenizer, adapter)
            return compared(scores_elsewhere(call, elsewhere)), ()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def portable_base(folder: Path) -> tuple[str | None, bool]:
    """Name the base model in the adapter's config without the folders of this machine. Returns the name, and whether it is that
    of a folder; a model from the Hub's cache has its id, and its revision beside it."""
    file = folder / _CONFIG_NAME
    config = json.loads(file.read_text(encoding="utf-8"))
    base: str | None = config.get("base_model_name_or_path") or None
    if base is None or not (Path(base).is_absolute() or Path(base).exists()):
        changes, is_folder = {}, False
    elif cached := _SNAPSHOT.search(Path(base).as_posix()):
        base = cached["id"].replace("--", "/")
        changes, is_folder = {"base_model_name_or_path": base, "revision": cached["revision"]}, False
    else:
        base = Path(base).name
        changes, is_folder = {"base_model_name_or_path": base}, True
    if changes:
        file.write_text(json.dumps({**config, **changes}, indent=2), encoding="utf-8")
    readme = folder / "README.md"  # peft's template of a model card, all of it unfilled
    readme.unlink(missing_ok=True)
    return base, is_folder
