"""Which models can be exported to which formats, and how well: `python -m benchmarks.exports [--write]`.

Tiny models with random weights. `--write` puts the tables into docs/EXPORT.md.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.machine import facts
from benchmarks.report import Table, write_section
from utils.training.export_formats import FORMATS

DOCUMENT = Path(__file__).resolve().parent.parent / "docs" / "EXPORT.md"

_VOCABULARY = 280


def models() -> dict[str, Callable[[Any], Any]]:
    """Name -> builder, which is given the tokenizer."""
    import transformers as hf

    from benchmarks.export_modules import Built, LeNet, PlainLM
    from utils.adapters import ComputationalGraphExecutor

    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    rotary = {**small, "num_key_value_heads": 2, "max_position_embeddings": 64}
    encoder = {**small, "max_position_embeddings": 64}

    def gpt2(rows: int) -> Any:
        return hf.GPT2LMHeadModel(hf.GPT2Config(vocab_size=rows, n_positions=64, n_embd=32, n_layer=2, n_head=2))

    def lora(rows: int) -> Any:
        from peft import LoraConfig, get_peft_model

        return get_peft_model(
            gpt2(rows), LoraConfig(target_modules=["c_attn"], fan_in_fan_out=True, init_lora_weights=False)
        )

    return {
        "GPT-2": gpt2,
        "Llama": lambda rows: hf.LlamaForCausalLM(hf.LlamaConfig(vocab_size=rows, **rotary)),
        "Qwen2": lambda rows: hf.Qwen2ForCausalLM(hf.Qwen2Config(vocab_size=rows, **rotary)),
        "BERT classifier": lambda rows: hf.BertForSequenceClassification(hf.BertConfig(vocab_size=rows, **encoder)),
        "BERT token classifier": lambda rows: hf.BertForTokenClassification(hf.BertConfig(vocab_size=rows, **encoder)),
        "T5": lambda rows: hf.T5ForConditionalGeneration(
            hf.T5Config(vocab_size=rows, d_model=32, d_ff=64, d_kv=8, num_layers=2, num_heads=4, n_positions=64,
                decoder_start_token_id=0)
        ),
        "BART": lambda rows: hf.BartForConditionalGeneration(
            hf.BartConfig(
                vocab_size=rows, d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=2,
                decoder_attention_heads=2, encoder_ffn_dim=64, decoder_ffn_dim=64, max_position_embeddings=64,
            )
        ),
        "ViT": lambda _: hf.ViTForImageClassification(hf.ViTConfig(image_size=16, patch_size=8, **small)),
        "LeNet": lambda _: LeNet(),
        "plain nn.Module": PlainLM,
        "GPT-2 with LoRA": lora,
        "visual builder": lambda rows: ComputationalGraphExecutor(Built(rows)),
    }  # fmt: skip


def exported(build: Callable[[Any], Any], name: str, tokenizer: Any, folder: Path) -> list[str]:
    """The cells of one model in one format: difference, tokens, size, speed; or why it cannot be."""
    import torch

    from utils.errors import TrainbookError
    from utils.training import export_model

    torch.manual_seed(0)
    model = build(len(tokenizer)).eval()
    with_text = tokenizer if name in ("hf", "gguf") else None
    try:
        result = export_model(model, [name], output_dir=folder, tokenizer=with_text)[name]
    except TrainbookError as error:
        return ["–", "–", "–", "–", "–", _sentence(str(error))]
    found = {**result.parity, **(result.other_process or {})}
    speed = f"{result.benchmark['speedup']:.1f}" if result.benchmark else FORMATS[name].no_speed
    return [
        f"{found['max_abs_diff']:.1g}", _predictions(found), "yes" if result.other_process else "no",
        f"{result.size_bytes / 1e6:.2f}", speed, "",
    ]  # fmt: skip


def _predictions(found: Mapping[str, Any]) -> str:
    """Greedy tokens; the share of equal predictions of int8 weights; or that no answers were compared."""
    if "argmax_agreement" in found:
        return f"{found['argmax_agreement']:.0%} of predictions"
    if "shapes" not in found:
        return "weights only"
    tokens = found.get("greedy_tokens_equal")
    return "writes no text" if tokens is None else f"{tokens} of 64 tokens"


def _sentence(text: str) -> str:
    """The first sentence, as one cell of a table."""
    line = " ".join(text.split()).replace("|", "/")
    end = line.find(". ")
    return line[: end + 1] if end > 0 else line


def formats_table() -> str:
    """The table of formats in docs/EXPORT.md."""
    table = Table("Formats", ["format", "name", "for", "main file"])
    for name, one in FORMATS.items():
        file = next((pattern for pattern in one.files if "*" not in pattern), one.files[0])
        table.rows.append([f"`{name}`", one.title, one.purpose, f"`{file}`"])
    return table.markdown(everything=True).partition("\n\n")[2].strip()


def tables(only: list[str] | None = None) -> list[Table]:
    """One table a format of `FORMATS`, one row a model."""
    from utils.tokenization import train_bpe
    from utils.training.export.other_process import kept_processes

    logging.getLogger("trainbook").setLevel(logging.ERROR)
    tokenizer = train_bpe(["the quick brown fox jumps over the lazy dog\n"] * 5, _VOCABULARY)
    found = []
    with kept_processes():
        for name in [name for name, one in FORMATS.items() if one.benchmarked and (only is None or name in only)]:
            columns = ["model", "largest difference", "equal", "other process", "MB", "speed, to PyTorch", "why not"]
            table = Table(f"Format `{name}`", columns)
            for label, build in models().items():
                with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # of other libraries, about their own insides
                    table.rows.append([label, *exported(build, name, tokenizer, Path(folder))])
                print(f"{name}: {' | '.join(table.rows[-1])}", flush=True)
            found.append(table)
    return found


def main(arguments: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.exports", description=__doc__)
    parser.add_argument("--write", action="store_true", help="write the tables into docs/EXPORT.md")
    parser.add_argument("--formats", nargs="+", help="these formats only; not with --write")
    parser.add_argument("--list", action="store_true", help="print the table of formats for docs/EXPORT.md, nothing else")
    options = parser.parse_args(arguments)
    if options.list:
        print(formats_table())
        return
    if options.write and options.formats:
        parser.error("--write writes every format; leave --formats out")
    found = tables(options.formats)
    about = facts("cpu")
    machine = about["about"] if about else ""
    body = "\n\n".join(table.markdown(everything=True) for table in found)
    if options.write:
        lead = (
            f"Written by `python -m benchmarks.exports --write` on {machine} The models are tiny and random: the speed of such "
            "models says more about the overhead of a call than about a large model. Speed is PyTorch's time over the exported "
            "model's, both measured in turn while other work used the machine: above 1 the exported model is faster."
        )
        write_section(DOCUMENT, "Models and formats", f"{lead}\n\n{body}")
    else:
        print(f"{body}\n\n{machine}")


if __name__ == "__main__":
    main()
