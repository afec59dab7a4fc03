"""A trained model to try out: continue or rewrite a text, chat, fill in masked tokens, classify, tag, estimate a number.

`open_playground` in `utils.training.playground_sources` makes one from results, a run's folder or an export.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from utils.errors import ConfigError
from utils.training.task_kinds import Input, kind_of_task
from utils.training.task_spec import named_task

if TYPE_CHECKING:
    from torch import Tensor, nn

Kind = Literal["text", "chat", "rewriting", "masks", "classes", "tags", "numbers", "image"]

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


@dataclass(frozen=True)
class Attribution:
    """What the most likely class, or the largest number, rests on: integrated gradients of its output, compared with a text of
    token id 0.

    Attributes:
        target: name of the class or number; value: its logit, or the number itself.
        tokens: (token, contribution) in order, positive where they raise it; their sum is what the text changes.
        error: share of the output's change that the contributions miss in sum; above about 0.1 do not rely on them.
    """

    target: str
    tokens: list[tuple[str, float]]
    error: float
    value: float


@dataclass(frozen=True)
class Tagged:
    """A token with its most likely class and that class's probability."""

    token: str
    tag: str
    probability: float


@dataclass(frozen=True)
class Filled:
    """A text whose masked tokens a model has filled in.

    Attributes:
        text: with the most likely token in each place; candidates: for each masked token in order, (token, probability), the
            most likely first.
        cut: tokens at the end that did not fit into the model's context.
    """

    text: str
    candidates: list[list[tuple[str, float]]]
    cut: int = 0


class Playground:
    """A model with its tokenizer, ready for input that somebody types.

    Args:
        model, tokenizer: of one training.
        task_type: what it was trained for; None: a causal language model.
        multi_label: whether a text may have several classes, so that each has a probability of its own.
        preprocessing: of image models, how an image becomes pixels: "channels", "height", "width", "mean", "std".
    Attributes:
        kind: "text", "chat" (the tokenizer has a chat template), "rewriting" (encoder-decoders), "masks", "classes", "tags",
            "numbers" or "image".
        weights: a sentence on which weights these are; "" where a run has only one choice.
        never_seen: ids of tokens that are known to be in no training sample.
        most_answers: largest number of answers in a training conversation, where it is known.
    Raises:
        ConfigError: there is no tokenizer, or no typed input exists for this task; says which tasks have one.
    """

    def __init__(
        self, model: nn.Module, tokenizer: Any, task_type: str | None = None, *, multi_label: bool = False,
        preprocessing: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        if tokenizer is None and task_type != "image_classification":
            raise ConfigError(
                "typed text needs the model's tokenizer, and none is known here; pass a tokenizer to the Trainer, "
                "or export the run for transformers, which stores it"
            )
        kind: Input | None = "text" if task_type is None else kind_of_task(named_task(task_type)).tried_with
        if kind is None:
            raise ConfigError(
                f"got a model for {task_type}; the playground takes language models, encoder-decoders, and models that "
                "classify texts, tokens and images or estimate numbers"
            )
        self.model, self.tokenizer, self._multi_label = model, tokenizer, multi_label
        self.weights = ""
        self.never_seen: frozenset[int] = frozenset()
        self.most_answers: int | None = None
        self.kind: Kind = "chat" if kind == "text" and getattr(tokenizer, "chat_template", None) else kind
        if self.kind == "image" and preprocessing is None:
            raise ConfigError("a model of images needs preprocessing: channels, height, width, mean and std")
        self.preprocessing = preprocessing

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

    def rewrite(
        self, source: str, *, max_new_tokens: int = 100, temperature: float = 0.0, top_p: float | None = None,
        seed: int | None = None, on_text: Callable[[str], object] = lambda text: None,
    ) -> Generated:  # fmt: skip
        """The text that an encoder-decoder writes for another one; by default the most likely token each time.

        Args:
            source: what the encoder reads, with a prefix where the model was trained with one; its end is cut where it does
                not fit. Others: as for `generate`.
        Raises:
            ConfigError: the text is empty, or a setting is out of range.
        """
        ids, cut = self._fitting(source)
        end = getattr(self.tokenizer, "eos_token_id", None)
        return self._written(ids, cut, end, max_new_tokens, temperature, top_p, seed, on_text)

    def fill(self, prompt: str, most: int = 5) -> Filled:
        """The tokens that a masked language model expects in place of the tokenizer's mask token.

        Args:
            prompt: a text with at least one mask token, such as "a [MASK] text".
            most: candidates for each place.
        Raises:
            ConfigError: the text is empty or has no mask token.
        """
        import torch

        ids, cut = self._fitting(prompt)
        mask = getattr(self.tokenizer, "mask_token_id", None)
        places = [place for place, token in enumerate(ids) if token == mask]
        if not places:
            token = getattr(self.tokenizer, "mask_token", None)
            raise ConfigError(
                f"the text has no {token}; type {token} in place of each token that the model should fill in"
                if token
                else "the tokenizer has no mask token, so there is nothing to fill in"
            )
        with torch.no_grad(), self._evaluating():
            logits_TV = self._logits(torch.tensor([ids], device=self._device))[0]
        known = logits_TV[places, : self._num_tokens].softmax(-1)
        scores, tokens = (found.tolist() for found in known.topk(min(most, known.shape[-1])))
        for place, best in zip(places, tokens, strict=True):
            ids[place] = best[0]
        special = set(getattr(self.tokenizer, "all_special_ids", None) or ())
        candidates = [
            [(self._token(token), score) for token, score in zip(*row, strict=True)]
            for row in zip(tokens, scores, strict=True)
        ]
        kept = [token for place, token in enumerate(ids) if place in places or token not in special]
        return Filled(str(self.tokenizer.decode(kept)), candidates, cut)

    def estimate(self, prompt: str) -> tuple[list[tuple[str, float]], int]:
        """(name, number) of every output of a regression, and how many tokens at the end were cut.

        Raises:
            ConfigError: the text is empty.
        """
        import torch

        ids, cut = self._fitting(prompt)
        with torch.no_grad(), self._evaluating():
            numbers_K = self._logits(torch.tensor([ids], device=self._device)).flatten().tolist()
        return [(self._output_name(place, len(numbers_K)), value) for place, value in enumerate(numbers_K)], cut

    def classify(self, prompt: str) -> tuple[list[tuple[str, float]], int]:
        """(class, probability) of every class, the most likely first, and how many tokens at the end were cut.

        The probabilities are a softmax over the classes, or a sigmoid of each where a text may have several.

        Raises:
            ConfigError: the text is empty.
        """
        import torch

        ids, cut = self._fitting(prompt)
        with torch.no_grad(), self._evaluating():
            logits_C = self._logits(torch.tensor([ids], device=self._device))[0]
        return self._probabilities(logits_C), cut

    def attribute(self, prompt: str, n_steps: int = 50) -> Attribution:
        """What each token of a text adds to the logit of its most likely class, or to the largest number of a regression.

        Args:
            n_steps: steps of the numerical integral.
        Raises:
            ConfigError: the text is empty, or the model has no embedding of token ids.
            MissingPackageError: captum is not installed.
        """
        import torch

        from utils.adapters.attribution import token_attributions, token_table

        table = token_table(self.model)
        if table is None:
            raise ConfigError(f"{type(self.model).__name__} has no embedding of token ids to attribute a prediction to")
        ids, _ = self._fitting(prompt)
        ids_BT = torch.tensor([ids], device=self._device)
        with torch.enable_grad(), self._evaluating():
            outputs_C = self._logits(ids_BT).detach().reshape(-1)
            target = int(outputs_C.argmax())
            scores, error = token_attributions(
                lambda ids: self._logits(ids).reshape(len(ids), -1)[:, target], table, ids_BT, n_steps
            )
        self.model.zero_grad(set_to_none=True)
        tokens = [self._token(token) for token in ids]
        name = self._output_name(target, len(outputs_C)) if self.kind == "numbers" else self._class_name(target)
        return Attribution(name, list(zip(tokens, scores, strict=True)), error, float(outputs_C[target]))

    def unknown_tokens(self, prompt: str) -> tuple[list[str], int]:
        """The tokens of a text that are in no training sample, as far as that is known, and how many tokens the text has."""
        special = set(getattr(self.tokenizer, "all_special_ids", None) or ())
        ids = [token for token in self._fitting(prompt)[0] if token not in special]
        return [self._token(token) for token in ids if token in self.never_seen], len(ids)

    def tag(self, prompt: str) -> tuple[list[Tagged], int]:
        """Every token of a text with its most likely class, and how many tokens at the end were cut.

        Special tokens, such as [CLS], are read by the model and left out here.

        Raises:
            ConfigError: the text is empty.
        """
        import torch

        ids, cut = self._fitting(prompt)
        with torch.no_grad(), self._evaluating():
            scores_T, classes_T = self._logits(torch.tensor([ids], device=self._device))[0].softmax(-1).max(-1)
        special = set(getattr(self.tokenizer, "all_special_ids", None) or ())
        rows = zip(ids, classes_T.tolist(), scores_T.tolist(), strict=True)
        return [
            Tagged(self._token(token), self._class_name(place), score) for token, place, score in rows if token not in special
        ], cut  # fmt: skip

    def classify_image(self, image: Any) -> list[tuple[str, float]]:
        """(class, probability) of every class, the most likely first.

        Args:
            image: a path, a file's bytes, a PIL image, or an array (H, W) or (H, W, C) of bytes. It is resized, scaled to 0 … 1
                and normalised as `preprocessing` says.
        Raises:
            ConfigError: no image that can be read.
        """
        import torch

        from utils.adapters.forward import ModelCall
        from utils.training.export.bundle_files.inference import InputError, pixels_of

        assert self.preprocessing is not None  # of an image model
        try:
            pixels = pixels_of(image, self.preprocessing)
        except InputError as error:
            raise ConfigError(f"{error}; choose a PNG or JPEG file") from None
        with torch.no_grad(), self._evaluating():
            logits_BC = ModelCall(self.model)({"pixel_values": torch.from_numpy(pixels).to(self._device)})
        return self._probabilities(logits_BC[0].float())

    def _probabilities(self, logits_C: Tensor) -> list[tuple[str, float]]:
        values = (logits_C.sigmoid() if self._multi_label else logits_C.softmax(-1)).tolist()
        return sorted(
            ((self._class_name(place), value) for place, value in enumerate(values)), key=lambda entry: -entry[1]
        )

    def _class_name(self, place: int) -> str:
        names = getattr(getattr(self.model, "config", None), "id2label", None) or {}
        return str(names.get(place, f"class {place}"))

    def _output_name(self, place: int, count: int) -> str:
        return "number" if count == 1 else f"number {place + 1}"

    def _token(self, token: int) -> str:
        return str(self.tokenizer.decode([token]))

    @property
    def _device(self) -> Any:
        return next(self.model.parameters()).device

    def _logits(self, ids_BT: Tensor) -> Tensor:
        """Logits (B, C), of tags and tokens (B, T, C), numbers (B, K) or (B,), in fp32."""
        import torch

        from utils.adapters.forward import ModelCall

        batch = {"input_ids": ids_BT, "attention_mask": torch.ones_like(ids_BT)}
        call = ModelCall(self.model)
        return (call.uncounted(batch) if self.kind == "numbers" else call(batch)).float()

    @contextlib.contextmanager
    def _evaluating(self) -> Iterator[None]:
        from utils.adapters.left_as_found import modes_kept

        with modes_kept(self.model):
            self.model.eval()
            yield

    def _fitting(self, prompt: str) -> tuple[list[int], int]:
        """Ids of a text without those at the end that the model has no room for, and how many those were."""
        from utils.adapters.facts import model_facts

        ids = self._ids(prompt)
        longest = model_facts(self.model).max_length
        cut = max(0, len(ids) - longest) if longest else 0
        return ids[: len(ids) - cut], cut

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
        """Continue `ids`, of which as many as fit are kept at the end."""
        from utils.adapters.facts import model_facts

        context = model_facts(self.model).max_length
        cut = max(0, len(ids) - context) if context else 0
        return self._written(ids[cut:], cut, end, max_new_tokens, temperature, top_p, seed, on_text)

    def _written(
        self, ids: list[int], cut: int, end: int | None, max_new_tokens: int, temperature: float, top_p: float | None,
        seed: int | None, on_text: Callable[[str], object],
    ) -> Generated:  # fmt: skip
        import torch

        from utils.adapters.generation import generate

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

        generate(
            self.model, torch.tensor([ids]), max_new_tokens, temperature, None, top_p, end, seed,
            vocab_size=self._num_tokens, on_token=note,
        )  # fmt: skip
        return Generated(str(self.tokenizer.decode(new)), cut)

    @property
    def _num_tokens(self) -> int | None:
        """Tokens of the tokenizer; a model may have more."""
        return len(self.tokenizer) if hasattr(self.tokenizer, "__len__") else None
