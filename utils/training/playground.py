"""A trained model to try out: continue a prompt, answer in a conversation, or classify a text."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from utils.errors import ConfigError
from utils.training.run_state import read_state

if TYPE_CHECKING:
    from torch import Tensor, nn

    from utils.training.engine.results import TrainingResults

Kind = Literal["text", "chat", "classes"]

# Seconds between two updates of a text that is being generated.
_UPDATE_S = 0.1


@dataclass(frozen=True)
class Generated:
    """Output of a model.

    Attributes:
        text: without the prompt; cut: tokens at the beginning of the prompt that did not fit into the model's context.
    """

    text: str
    cut: int = 0


class Playground:
    """A model with its tokenizer, ready for input that somebody types.

    Args:
        model, tokenizer: of one training.
        task_type: what it was trained for; None: a causal language model.
        multi_label: whether a text may have several classes, so that each has a probability of its own.
    Attributes:
        kind: "text", "chat" (the tokenizer has a chat template) or "classes".
    Raises:
        ConfigError: there is no tokenizer, or no typed input exists for this task; says which tasks have one.
    """

    def __init__(self, model: nn.Module, tokenizer: Any, task_type: str | None = None, *, multi_label: bool = False) -> None:
        if tokenizer is None:
            raise ConfigError(
                "typed text needs the model's tokenizer, and none is known here; pass a tokenizer to the Trainer, "
                "or export the run for transformers, which stores it"
            )
        if task_type not in (None, "causal_lm", "classification", "text_classification"):
            raise ConfigError(f"got a model for {task_type}; the playground takes language models and text classifiers")
        self.model, self.tokenizer, self._multi_label = model, tokenizer, multi_label
        self.kind: Kind = "classes"
        if task_type in (None, "causal_lm"):
            self.kind = "chat" if getattr(tokenizer, "chat_template", None) else "text"

    def generate(
        self, prompt: str, *, max_new_tokens: int = 100, temperature: float = 0.8, top_p: float | None = 0.95,
        seed: int | None = None, on_text: Callable[[str], object] = lambda text: None,
    ) -> Generated:  # fmt: skip
        """Continue a prompt.

        Args:
            prompt: at least one token; its beginning is cut where it leaves no room in the model's context.
            max_new_tokens, temperature, top_p, seed: as for `utils.adapters.generation.generate`.
            on_text: called after every token with the new text so far, which is decoded at most ten times a second. What
                it raises ends the generation.
        Raises:
            ConfigError: an empty prompt, or a setting out of range.
        """
        end = getattr(self.tokenizer, "eos_token_id", None)
        return self._generate(
            self._ids(prompt),
            end,
            max_new_tokens,
            temperature,
            top_p,
            seed,
            on_text,
        )

    def answer(
        self, messages: Sequence[Mapping[str, str]], *, max_new_tokens: int = 100, temperature: float = 0.8,
        top_p: float | None = 0.95, seed: int | None = None, on_text: Callable[[str], object] = lambda text: None,
    ) -> Generated:  # fmt: skip
        """The next turn of a conversation, which ends with the template's end-of-turn token.

        Args:
            messages: {"role", "content"} each, ending with the one to be answered; others: as for `generate`.
        Raises:
            ConfigError: the last message is empty, or a setting is out of range.
            DataError: the chat template refuses the messages.
        """
        from utils.data.conversations.answers import end_of_turn_id
        from utils.data.conversations.rendering import Renderer

        if not messages or not messages[-1]["content"].strip():
            raise ConfigError("the message is empty; type at least one character")
        prompt = Renderer(self.tokenizer).prompt([dict(message) for message in messages])
        ids = self.tokenizer.encode(prompt, add_special_tokens=False)
        return self._generate(ids, end_of_turn_id(self.tokenizer), max_new_tokens, temperature, top_p, seed, on_text)

    def classify(self, prompt: str) -> tuple[list[tuple[str, float]], int]:
        """(class, probability) of every class, the most likely first, and how many tokens at the end were cut.

        The probabilities are a softmax over the classes, or a sigmoid of each where a text may have several.

        Raises:
            ConfigError: the text is empty.
        """
        import torch

        from utils.adapters.facts import model_facts
        from utils.adapters.forward import ModelCall

        ids = self._ids(prompt)
        longest = model_facts(self.model).max_length
        cut = max(0, len(ids) - longest) if longest else 0
        ids = ids[: len(ids) - cut]
        device = next(self.model.parameters()).device
        batch = {"input_ids": torch.tensor([ids], device=device)}
        batch["attention_mask"] = torch.ones_like(batch["input_ids"])
        was_training = self.model.training
        self.model.eval()
        try:
            with torch.no_grad():
                logits_C = ModelCall(self.model)(batch)[0].float()
        finally:
            self.model.train(was_training)
        probabilities = (logits_C.sigmoid() if self._multi_label else logits_C.softmax(-1)).tolist()
        names = getattr(getattr(self.model, "config", None), "id2label", None) or {}
        found = [(str(names.get(place, f"class {place}")), value) for place, value in enumerate(probabilities)]
        return sorted(found, key=lambda entry: -entry[1]), cut

    def _ids(self, prompt: str) -> list[int]:
        encoded = self.tokenizer.encode(prompt) if prompt.strip() else []
        ids = [int(token) for token in getattr(encoded, "ids", encoded)]
        if not ids:
            raise ConfigError("the prompt is empty; type at least one character that the tokenizer knows")
        return ids

    def _generate(
        self, ids: list[int], end: int | None, max_new_tokens: int, temperature: float, top_p: float | None,
        seed: int | None, on_text: Callable[[str], object],
    ) -> Generated:  # fmt: skip
        import torch

        from utils.adapters.facts import model_facts
        from utils.adapters.generation import generate

        context = model_facts(self.model).max_length
        cut = max(0, len(ids) - context) if context else 0
        new: list[int] = []
        text, updated = "", -_UPDATE_S

        def note(next_B: Tensor) -> None:
            nonlocal text, updated
            token = int(next_B[0])
            if token != end:
                new.append(token)
            if time.monotonic() - updated >= _UPDATE_S:
                text, updated = str(self.tokenizer.decode(new)), time.monotonic()
            on_text(text)

        known = len(self.tokenizer) if hasattr(self.tokenizer, "__len__") else None
        generate(
            self.model, torch.tensor([ids[cut:]]), max_new_tokens, temperature, None, top_p, end, seed,
            vocab_size=known, on_token=note,
        )  # fmt: skip
        return Generated(str(self.tokenizer.decode(new)), cut)


def open_playground(source: TrainingResults | str | Path) -> Playground:
    """The playground of a training's results, of a run's folder, or of an exported folder for transformers.

    Raises:
        ConfigError: the folder is neither, or holds no tokenizer; CheckpointError, ModelError: it cannot be loaded.
    """
    if not isinstance(source, (str, Path)):
        spec = source.task_spec
        if spec is None:
            return Playground(source.model, source.tokenizer)
        return Playground(source.model, source.tokenizer, spec.task_type, multi_label=bool(spec.multi_label))
    from utils.training.stored_models import load_results, load_stored_model

    folder = Path(source)
    if read_state(folder) is not None:
        if not (folder / "exports" / "hf" / "config.json").is_file():
            raise ConfigError(
                f"{folder} has no export for transformers, and checkpoints hold no model code; export the run first "
                "(results.export('hf')), or pass the results themselves"
            )
        return open_playground(load_results(folder, "", {}))
    if not (folder / "config.json").is_file():
        raise ConfigError(f"{folder} is neither a run's folder nor an exported folder for transformers")
    from transformers import AutoTokenizer

    model: Any = load_stored_model(str(folder), "", {}).model  # of transformers
    has_tokenizer = any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json"))
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True) if has_tokenizer else None
    name = type(model).__name__
    if not name.endswith("ForSequenceClassification"):
        writes = model.can_generate() and not model.config.is_encoder_decoder
        return Playground(model, tokenizer, None if writes else name)
    # As transformers: a single output, or the problem type where it is stated, is a regression.
    problem = model.config.problem_type or ("regression" if model.config.num_labels == 1 else None)
    task = "regression" if problem == "regression" else "classification"
    return Playground(model, tokenizer, task, multi_label=problem == "multi_label_classification")
