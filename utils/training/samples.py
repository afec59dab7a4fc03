"""Sample texts while a model learns: the same beginnings continued at every validation, kept with the run."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.errors import TrainbookError
from utils.storage import append_line, read_json_lines
from utils.training.engine.callbacks import Callback

if TYPE_CHECKING:
    from utils.training.engine.trainer import Trainer

#: The file in a run's folder that holds one line a validation.
SAMPLES_FILE = "samples.jsonl"

_PROMPT_TOKENS = 8


class SampleTexts(Callback):
    """Lets the model continue fixed beginnings at every validation, always with the same random numbers.

    The model, its mode and the run's random state are as before afterwards: sampling changes nothing that is learnt.

    Args:
        tokenizer: the model's; its `encode` and `decode` are used.
        prompts: the beginnings.
        max_new_tokens: at most this many tokens are written after each.
        tell: called with each validation's rows, in the thread that trains.
    """

    main_only = True

    def __init__(
        self,
        tokenizer: Any,
        prompts: Sequence[str],
        max_new_tokens: int = 40,
        tell: Callable[[int, list[dict[str, str]]], None] | None = None,
    ) -> None:
        self.tokenizer, self.prompts, self.max_new_tokens = tokenizer, tuple(prompts), max_new_tokens
        self._tell = tell
        self._works = True

    def on_train_begin(self, trainer: Trainer, logs: dict[str, Any] | None = None) -> None:
        """A new training: what could not write before may do so now."""
        self._works = True

    def on_evaluate_end(self, trainer: Trainer, logs: dict[str, Any] | None = None) -> None:
        """Write, keep and tell. A model that cannot write is said once and not asked again; training goes on."""
        from utils.adapters.generation import generate_text

        if not self._works or trainer.run_dir is None:
            return
        rows = []
        try:
            for prompt in self.prompts:
                text = generate_text(trainer.model, self.tokenizer, prompt, self.max_new_tokens, seed=0)
                rows.append({"prompt": prompt, "text": text})
        except TrainbookError as error:
            self._works = False
            trainer.notice(f"No sample texts: {error}")
            return
        step = trainer.state.step
        line = json.dumps({"step": step, "epoch": trainer.state.epoch, "samples": rows})
        try:
            append_line(trainer.run_dir / SAMPLES_FILE, line)
        except OSError as error:
            trainer.notice(f"Sample texts are shown but not kept: {error.strerror or error}.")
        if self._tell is not None:
            self._tell(step, rows)


def prompts_from(blocks: Any, tokenizer: Any, count: int = 2) -> tuple[str, ...]:
    """The first words of some of the validation blocks: beginnings that fit any text and any tokenizer.

    Args:
        blocks: an indexable data set of samples with `input_ids` (T,), or None.
        tokenizer: decodes ids; None: no prompts.
        count: how many, spread over the blocks.
    """
    if blocks is None or tokenizer is None or not len(blocks):
        return ()
    prompts = []
    for index in range(min(count, len(blocks))):
        sample = blocks[index * len(blocks) // count]
        ids = sample["input_ids"] if isinstance(sample, dict) else sample
        prompts.append(str(tokenizer.decode([int(token) for token in ids[:_PROMPT_TOKENS]])))
    return tuple(prompts)


def read_samples(run_dir: Path) -> list[dict[str, Any]]:
    """Rows {"step", "epoch", "samples": [{"prompt", "text"}]} of a run, by step; of a step done twice the last."""
    path = run_dir / SAMPLES_FILE
    rows = read_json_lines(path) if path.exists() else []
    return [row for _, row in sorted({int(row["step"]): row for row in rows}.items())]
