"""Which pretrained models can be fine-tuned, and how: `python -m benchmarks.finetuning [--write]`.

Tiny models with random weights, saved to a folder and loaded from it. `--write` puts the table into docs/FINETUNING.md.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.machine import facts
from benchmarks.report import Table, write_section

DOCUMENT = Path(__file__).resolve().parent.parent / "docs" / "FINETUNING.md"
MODES = ("full", "lora")
STEPS = ("train", "resume", "evaluate", "merge", "export", "reload")

_ROWS = 60


def families() -> dict[str, tuple[str, Callable[[], Any]]]:
    """Name -> (task type, builder of the model that is saved)."""
    import transformers as hf

    small: dict[str, Any] = {
        "vocab_size": _ROWS, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "max_position_embeddings": 64,
    }  # fmt: skip
    rotary = {**small, "num_key_value_heads": 2}
    t5 = {"vocab_size": _ROWS, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
    vit = {name: size for name, size in small.items() if name not in ("vocab_size", "max_position_embeddings")}
    causal, classes = "causal_lm", "text_classification"
    return {
        "GPT-2": (causal, lambda: hf.GPT2LMHeadModel(
            hf.GPT2Config(vocab_size=_ROWS, n_positions=64, n_embd=32, n_layer=2, n_head=4, bos_token_id=1, eos_token_id=2))),
        "Llama": (causal, lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**rotary))),
        "Mistral": (causal, lambda: hf.MistralForCausalLM(hf.MistralConfig(**rotary))),
        "Qwen2": (causal, lambda: hf.Qwen2ForCausalLM(hf.Qwen2Config(**rotary))),
        "Gemma-2": (causal, lambda: hf.Gemma2ForCausalLM(hf.Gemma2Config(**rotary, head_dim=8))),
        "Phi": (causal, lambda: hf.PhiForCausalLM(hf.PhiConfig(**small, bos_token_id=1, eos_token_id=2))),
        "GPT-NeoX": (causal, lambda: hf.GPTNeoXForCausalLM(hf.GPTNeoXConfig(**small))),
        "Mixtral": (causal, lambda: hf.MixtralForCausalLM(hf.MixtralConfig(**rotary, num_local_experts=4))),
        "BERT": (classes, lambda: hf.BertModel(hf.BertConfig(**small))),
        "RoBERTa": (classes, lambda: hf.RobertaModel(hf.RobertaConfig(**{**small, "max_position_embeddings": 66}))),
        "T5": ("seq2seq", lambda: hf.T5ForConditionalGeneration(hf.T5Config(**t5, decoder_start_token_id=0))),
        "ViT": ("image_classification", lambda: hf.ViTModel(hf.ViTConfig(**vit, image_size=16, patch_size=4))),
    }  # fmt: skip


def samples(task: str, count: int = 20) -> list[Any]:
    """Samples with a pattern: ids that count up, or inputs whose first value gives the class."""
    import torch

    made: list[Any] = []
    generator = torch.Generator().manual_seed(0)
    for number in range(count):
        ids = 3 + (torch.arange(8) + number) % 40
        if task == "causal_lm":
            made.append(ids)
        elif task == "seq2seq":
            made.append({"input_ids": ids, "labels": ids.flip(0)})
        elif task == "image_classification":
            pixels = torch.randn(3, 16, 16, generator=generator) + number % 3
            made.append({"pixel_values": pixels, "labels": torch.tensor(number % 3)})
        else:
            made.append({"input_ids": ids, "labels": torch.tensor(number % 3)})
    return made


def save_family(name: str, folder: Path) -> str:
    """Save the family's tiny model to `folder`. Returns its task type."""
    import torch

    from utils.training.export.hf import without_progress_bars

    task, build = families()[name]
    with torch.random.fork_rng(), without_progress_bars():
        torch.manual_seed(0)
        build().save_pretrained(folder)
    return task


def load_family(folder: Path, task: str) -> Any:
    """The model in `folder` with the task's head."""
    from utils.models import load_pretrained

    classes = {"num_classes": 3} if "classification" in task else {}
    return load_pretrained(folder, {"name": task, "task_type": task, "modality": _modality(task), **classes})


def _modality(task: str) -> str:
    return "vision" if task == "image_classification" else "text"


def tune(folder: Path, task: str, mode: str, output: Path, stop_after: int | None = None, **changes: Any) -> Any:
    """One run, or its continuation; `stop_after`: ask it to stop after that many steps."""
    from utils.training import Callback, Trainer, TrainingConfig

    class Stop(Callback):
        def on_step_end(self, step: int, trainer: Any, logs: Any = None) -> None:
            if step == stop_after:
                trainer.request_stop("a test of resuming")

    loaded = load_family(folder, task)
    data = samples(task)
    config = TrainingConfig(**{
        "finetune": mode, "epochs": 3, "batch_size": 4, "learning_rate": 3e-3, "run_name": "run", "output_dir": str(output),
        "precision": "32", "lora_rank": 4, "lora_dropout": 0.1, **changes,
    })  # fmt: skip
    trainer = Trainer(loaded.model, training_config=config, task_spec=loaded.task_spec, callbacks=[Stop()])
    return trainer.train(data[:16], data[16:], resume_from="auto")


def verdicts(name: str, mode: str, folder: Path) -> dict[str, str]:
    """Step of `STEPS` -> "yes", "-" where there is nothing to do, or why not."""
    try:
        return _verdicts(name, mode, folder)
    except Exception as error:  # noqa: BLE001 - the table says whatever any library raised
        return dict.fromkeys(STEPS, f"{type(error).__name__}: {' '.join(str(error).split())[:120]}")


def _verdicts(name: str, mode: str, folder: Path) -> dict[str, str]:
    import torch

    from utils.training.adapter_checkpoints import checkpoint_state
    from utils.training.export import export_model

    task = save_family(name, folder / "base")
    whole = tune(folder / "base", task, mode, folder / "whole")
    found = {
        "train": "yes" if whole.steps == 12 and whole.loss_history[-1] < whole.loss_history[0] else "does not learn"
    }
    tune(folder / "base", task, mode, folder / "parts", stop_after=3)
    again = tune(folder / "base", task, mode, folder / "parts")
    mine, theirs = checkpoint_state(whole.model), checkpoint_state(again.model)
    same = mine.keys() == theirs.keys() and all(torch.equal(mine[key], theirs[key]) for key in mine)
    found["resume"] = "yes" if same and again.loss_history == whole.loss_history else "other weights"
    found["evaluate"] = "yes" if whole.val_loss_history and "val/loss" in whole.final_metrics else "no metrics"
    exported = export_model(whole, ["hf"], which="last")
    notes = " ".join(exported["hf"].notes)
    found["merge"] = "-" if mode == "full" else "yes" if "merged into the weights" in notes else "not proven"
    found["export"] = "yes" if exported["hf"].parity else "not compared"
    loaded = load_family(exported["hf"].path, task)
    batch = {key: value[None] for key, value in _inputs(samples(task)[0]).items()}
    with torch.no_grad():
        got, expected = loaded.model(**batch).logits, whole.model.eval()(**batch).logits
    complete = not (loaded.missing or loaded.unexpected or loaded.reinitialised)
    found["reload"] = "yes" if complete and torch.allclose(got, expected, atol=1e-5) else "another model"
    return found


def _inputs(sample: Any) -> dict[str, Any]:
    if not isinstance(sample, dict):
        return {"input_ids": sample}
    if "pixel_values" in sample:
        return {"pixel_values": sample["pixel_values"]}
    return {"input_ids": sample["input_ids"]} | (
        {"decoder_input_ids": sample["labels"]} if sample["labels"].dim() else {}
    )


def table() -> Table:
    """One row a family and mode."""
    logging.getLogger("trainbook").setLevel(logging.ERROR)
    made = Table("Architectures", ["model", "fine-tuning", *STEPS])
    for name in families():
        for mode in MODES:
            with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of other libraries, about their own insides
                found = verdicts(name, mode, Path(folder))
            made.rows.append([name, mode, *(found[step] for step in STEPS)])
            print(" | ".join(made.rows[-1]), flush=True)
    cells = [cell for row in made.rows for cell in row[2:] if cell != "-"]
    made.notes.append(f"{sum(cell == 'yes' for cell in cells)} of {len(cells)} steps pass.")
    return made


def main(arguments: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.finetuning", description=__doc__)
    parser.add_argument("--write", action="store_true", help="write the table into docs/FINETUNING.md")
    options = parser.parse_args(arguments)
    body = table().markdown(everything=True)
    about = facts("cpu")
    machine = about["about"] if about else ""
    if options.write:
        lead = (
            f"Written by `python -m benchmarks.finetuning --write` on {machine} Each model is tiny and random, saved to a "
            "local folder and loaded with the head of its task. Resume: a run that was stopped after three steps and continued "
            "with the model loaded anew has the weights of the run that was not stopped, bit for bit."
        )
        write_section(DOCUMENT, "Architectures", f"{lead}\n\n{body}")
    else:
        print(f"{body}\n\n{machine}")


if __name__ == "__main__":
    main()
