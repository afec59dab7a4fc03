"""Does it learn what it should? Known tasks to a known quality, through the public interface.

    python -m benchmarks.quality --text tinyshakespeare.txt --only characters
    python -m benchmarks.quality --text tinyshakespeare.txt --mnist FOLDER --write

- `characters`: nanoGPT's small CPU settings on its character data (its README: 4 layers, 4 heads, width 128, block 64, batch
  12, 2,000 steps, no dropout; validation loss 1.88 there). The model has 65 characters; the last tenth is for validation.

Each line of the table has the baseline that the model has to beat. `--write` puts it into docs/quality.md.
"""

from __future__ import annotations

import argparse
import datetime
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.children import ChildError, call
from benchmarks.report import Table, write_section
from utils.errors import TrainbookError

DOCUMENT = Path(__file__).resolve().parent.parent / "docs" / "quality.md"


def characters(parsed: argparse.Namespace) -> list[str]:
    """A row of the table: the character model after 2,000 steps."""
    from utils.data import prepare_text, read_text_file
    from utils.models import ModelRegistry
    from utils.tokenization import SPECIAL_TOKENS
    from utils.training import Trainer, TrainingConfig

    if parsed.text is None:
        raise TrainbookError("the section characters needs --text FILE, for instance tinyshakespeare.txt")
    text = read_text_file(parsed.text).text
    size = len(set(text)) + len(SPECIAL_TOKENS)
    data = prepare_text([text], vocab_size=size, block_size=64, tokenizer_strategy="character", val_split=0.1)
    model = ModelRegistry.create(
        "gpt-small", vocab_size=size, max_seq_len=64, n_layer=4, n_embd=128, n_head=4, dropout=0.0, seed=1337
    )  # fmt: skip
    config = TrainingConfig(
        epochs=10, max_steps=2000, batch_size=12, learning_rate=1e-3, min_lr_ratio=0.1, warmup_steps=100, betas=(0.9, 0.99),
        weight_decay=0.1, random_seed=1337, eval_every=250, keep_best_k=1, precision="32", output_dir=parsed.folder,
    )  # fmt: skip
    trainer = Trainer(model, training_config=config, task_spec=data.task_spec, tokenizer=data.tokenizer)
    results = trainer.train(data.train, data.validation)
    reached, baseline = results["final_metrics"]["val/loss"], data.report.unigram_loss
    return ["characters of a text, GPT-2 of 0.8 M parameters", f"{reached:.3f} nats a character", f"{baseline:.3f} (frequencies)",
            "1.88 or lower", "reached" if reached <= 1.88 else "NOT reached"]  # fmt: skip


SECTIONS: dict[str, Callable[[argparse.Namespace], list[str]]] = {"characters": characters}


def main(argv: list[str] | None = None) -> int:
    """Measure, print, and write when asked. Exit status 1 when a goal is not reached."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.quality", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--text", metavar="FILE", help="text for the character model")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS), help="which tasks")
    parser.add_argument("--write", action="store_true", help=f"put the table into docs/{DOCUMENT.name}")
    parsed = parser.parse_args(argv)
    table = Table("What is learnt", ["task", "reached on validation data", "baseline", "goal", ""])
    try:
        facts = call("benchmarks.machine:facts", None, device="cpu")
        for name in parsed.only:
            with tempfile.TemporaryDirectory() as parsed.folder:
                began = time.perf_counter()
                table.rows.append(SECTIONS[name](parsed))
                print(f"{name}: {table.rows[-1]} ({time.perf_counter() - began:.0f} s)", flush=True)
    except (TrainbookError, ChildError) as error:
        print(f"benchmarks.quality: {error}", file=sys.stderr)
        return 1
    command = " ".join(["python -m benchmarks.quality", *(sys.argv[1:] if argv is None else argv)])
    body = f"`{command}`, {datetime.date.today().isoformat()}, on {facts['about']}.\n\n{table.markdown(everything=True)}"
    print(body)
    if parsed.write:
        write_section(DOCUMENT, "Measured", body)
    return 0 if all(row[-1] == "reached" for row in table.rows) else 1


if __name__ == "__main__":
    sys.exit(main())
