"""Does it learn what it should? Known tasks to a known quality, through the public interface.

    python -m benchmarks.quality --text tinyshakespeare.txt --only characters
    python -m benchmarks.quality --text tinyshakespeare.txt --mnist FOLDER --write

- `characters`: nanoGPT's small CPU settings on its character data (its README: 4 layers, 4 heads, width 128, block 64, batch
  12, 2,000 steps, no dropout; validation loss 1.88 there). The last tenth of the text is for validation.
- `images`: lenet on 8,000 of MNIST's 10,000 test images, five epochs, tested on the rest; FOLDER holds the IDX files.
- `classification`: a BERT told from which chapter of Python's documentation a paragraph is (`benchmarks.quality_data`).
- `seq2seq`: a T5 that puts the vowels back into phrases; what it writes is compared, not what it would say to the right words.

Each line of the table has the baseline that the model has to beat. `--write` puts the table into docs/quality.md.
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
    return row("characters of a text, GPT-2 of 0.8 M parameters", "nats a character", reached, baseline, 1.88, low=True)


def images(parsed: argparse.Namespace) -> list[str]:
    """A row of the table: MNIST after five epochs."""
    from benchmarks import quality_images

    if parsed.mnist is None:
        raise TrainbookError("the section images needs --mnist FOLDER, with t10k-images-idx3-ubyte and t10k-labels-idx1-ubyte")
    options = quality_images.arguments().parse_args([parsed.mnist])
    _, test = quality_images.split_of(options.folder, options.train, options.seed)
    majority = float(test.labels.bincount().max() / len(test.labels))
    reached = quality_images.accuracies(options)[-1]
    return row("handwritten digits, lenet, 8,000 images", "of the images", reached, majority, quality_images.GOAL)


def classification(parsed: argparse.Namespace) -> list[str]:
    """A row of the table: paragraphs by chapter."""
    from benchmarks.quality_data import chapter_task
    from utils.data.labelled.prepare import prepare_examples
    from utils.models import ModelRegistry
    from utils.training import Trainer, TrainingConfig

    task = chapter_task()
    data = prepare_examples(
        task.train, "text_classification", validation=task.validation, max_length=96, vocab_size=1500
    )  # fmt: skip
    model = ModelRegistry.create(
        "bert-small-classifier", num_classes=data.task_spec.num_classes, vocab_size=len(data.tokenizer), max_seq_len=96,
        n_layer=2, n_embd=128,
    )  # fmt: skip
    config = TrainingConfig(
        epochs=15, batch_size=16, learning_rate=1e-3, random_seed=1, monitor="val/accuracy", mode="max",
        output_dir=parsed.folder,
    )  # fmt: skip
    trainer = Trainer(model, training_config=config, task_spec=data.task_spec, tokenizer=data.tokenizer)
    reached = trainer.train(data.train, data.validation)["final_metrics"]["val/accuracy"]
    majority = task.baselines["majority_accuracy"]
    return row("chapter of a paragraph, BERT of 2 layers", "of the paragraphs", reached, majority, majority + 0.2)


def seq2seq(parsed: argparse.Namespace) -> list[str]:
    """A row of the table: words restored in phrases without vowels."""
    import torch

    from benchmarks.quality_data import vowel_task, word_accuracy
    from utils.data.labelled.prepare import prepare_examples
    from utils.models import ModelRegistry
    from utils.training import Trainer, TrainingConfig

    task = vowel_task(words=2)
    data = prepare_examples(task.train, "seq2seq", validation=task.validation, max_length=48, vocab_size=4000)
    model = ModelRegistry.create("t5-mini", vocab_size=len(data.tokenizer), dropout=0.0)
    config = TrainingConfig(
        epochs=10, max_steps=1200, batch_size=64, learning_rate=2e-3, random_seed=1, output_dir=parsed.folder
    )
    trainer = Trainer(model, training_config=config, task_spec=data.task_spec, tokenizer=data.tokenizer)
    trainer.train(data.train, data.validation)
    model.eval()
    answers = []
    with torch.no_grad():
        for start in range(0, len(task.validation), 64):
            batch = data.validation.take(range(start, min(start + 64, len(task.validation))))
            written = model.generate(
                input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], max_new_tokens=48, do_sample=False
            )
            answers += data.tokenizer.batch_decode(written, skip_special_tokens=True)
    reached = word_accuracy([(a, r["target"]) for a, r in zip(answers, task.validation, strict=True)])
    best = max(task.baselines["copy_word_accuracy"], task.baselines["lookup_word_accuracy"])
    copied = task.baselines["copy_word_accuracy"]
    found = row("vowels put back into two words, T5 of 2 + 2 layers", "of the words", reached, copied, copied + 0.2)
    return [*found[:2], f"{copied:.1%} (copying), {best:.1%} (a table of words)", *found[3:]]


def row(task: str, unit: str, reached: float, baseline: float, goal: float, low: bool = False) -> list[str]:
    """A line of the table; `low`: less is better, and the numbers are no shares."""
    number = "{:.3f} " if low else "{:.1%} "
    fine = reached <= goal if low else reached >= goal
    return [
        task, number.format(reached) + unit, (number.format(baseline)).strip(),
        f"{number.format(goal)}or {'less' if low else 'more'}", "reached" if fine else "NOT reached",
    ]  # fmt: skip


SECTIONS: dict[str, Callable[[argparse.Namespace], list[str]]] = {
    "characters": characters, "images": images, "classification": classification, "seq2seq": seq2seq,
}  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    """Measure, print, and write when asked. Exit status 1 when a goal is not reached."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.quality", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--text", metavar="FILE", help="text for the character model")
    parser.add_argument("--mnist", metavar="FOLDER", help="MNIST's IDX files for the images")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS), help="which tasks")
    parser.add_argument("--write", action="store_true", help=f"put the table into docs/{DOCUMENT.name}")
    parsed = parser.parse_args(argv)
    table = Table("What is learned", ["task", "reached on validation data", "baseline", "goal", ""])
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
    # Where somebody keeps the files is nobody else's business.
    given = [Path(part).name if "/" in part else part for part in (sys.argv[1:] if argv is None else argv)]
    command = " ".join(["python -m benchmarks.quality", *given])
    body = f"`{command}`, {datetime.date.today().isoformat()}, on {facts['about']}.\n\n{table.markdown(everything=True)}"
    print(body)
    if parsed.write:
        write_section(DOCUMENT, "Measured", body)
    return 0 if all(row[-1] == "reached" for row in table.rows) else 1


if __name__ == "__main__":
    sys.exit(main())
