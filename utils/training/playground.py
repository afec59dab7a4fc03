"""A trained model to try out: continue a prompt, answer in a conversation, classify a text or an image, tag tokens."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from utils.errors import ConfigError
from utils.storage import read_json_object
from utils.training.run_state import read_state
from utils.training.task_kinds import Input, kind_of_task
from utils.training.task_spec import named_task

if TYPE_CHECKING:
    from torch import Tensor, nn

    from utils.training.engine.results import TrainingResults

Kind = Literal["text", "chat", "classes", "tags", "image"]

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
    """What the most likely class rests on: integrated gradients of its logit, compared with a text of token id 0.

    Attributes:
        target: the class; tokens: (token, contribution) in order, positive for the class and negative against it.
        error: share of the logit's change that the contributions miss in sum; above about 0.1 do not rely on them.
    """

    target: str
    tokens: list[tuple[str, float]]
    error: float


@dataclass(frozen=True)
class Tagged:
    """A token with its most likely class and that class's probability."""

    token: str
    tag: str
    probability: float


class Playground:
    """A model with its tokenizer, ready for input that somebody types.

    Args:
        model, tokenizer: of one training.
        task_type: what it was trained for; None: a causal language model.
        multi_label: whether a text may have several classes, so that each has a probability of its own.
        preprocessing: of image models, how an image becomes pixels: "channels", "height", "width", "mean", "std".
    Attributes:
        kind: "text", "chat" (the tokenizer has a chat template), "classes", "tags" or "image".
        weights: a sentence on which weights these are; "" where a run has only one choice.
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
                f"got a model for {task_type}; the playground takes language models and classifiers of texts, tokens and images"
            )
        self.model, self.tokenizer, self._multi_label = model, tokenizer, multi_label
        self.weights = ""
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
        """What each token of a text adds to the logit of its most likely class.

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
            target = int(self._logits(ids_BT)[0].argmax())
            scores, error = token_attributions(lambda ids: self._logits(ids)[:, target], table, ids_BT, n_steps)
        self.model.zero_grad(set_to_none=True)
        tokens = [self._token(token) for token in ids]
        return Attribution(self._class_name(target), list(zip(tokens, scores, strict=True)), error)

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

    def _token(self, token: int) -> str:
        return str(self.tokenizer.decode([token]))

    @property
    def _device(self) -> Any:
        return next(self.model.parameters()).device

    def _logits(self, ids_BT: Tensor) -> Tensor:
        """Logits (B, C), of tags (B, T, C), in fp32."""
        import torch

        from utils.adapters.forward import ModelCall

        batch = {"input_ids": ids_BT, "attention_mask": torch.ones_like(ids_BT)}
        return ModelCall(self.model)(batch).float()

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


def _best_of(results: TrainingResults) -> tuple[nn.Module, str]:
    """The model with the weights of the best checkpoint, and a sentence on them: a copy where it has other ones now."""
    path = results.best_model_path
    if path is None or results.weights == "best" or results.state.best.step in (None, results.steps):
        return results.model, ""
    import copy

    from utils.training.engine.checkpointing.store import read_checkpoint
    from utils.training.engine.checkpointing.weights import load_model_weights, weights_to_use
    from utils.training.engine.compute.master_weights import in_formats_of

    checkpoint = read_checkpoint(path, mapped=True)
    model = copy.deepcopy(results.bare_model)
    load_model_weights(model, in_formats_of(model, weights_to_use(checkpoint)), path)
    measured = (
        f" ({results.training_config.monitor} {results.best_value:.4g})" if results.best_value is not None else ""
    )
    best = f"Weights of the best checkpoint, step {results.state.best.step:,}{measured}"
    return model, f"{best}; the last step is {results.steps:,}."


def _of_results(results: TrainingResults, model: nn.Module, weights: str) -> Playground:
    spec = results.task_spec
    preprocessing = None
    if spec is not None and spec.task_type == "image_classification":
        from utils.training.export.image_processing import preprocessing_of

        preprocessing = preprocessing_of(model, None, spec)
    opened = Playground(
        model, results.tokenizer, None if spec is None else spec.task_type,
        multi_label=spec is not None and bool(spec.multi_label), preprocessing=preprocessing,
    )  # fmt: skip
    opened.weights = weights
    return opened


def open_playground(source: TrainingResults | str | Path) -> Playground:
    """The playground of a training's results, of a run's folder, or of an exported folder for transformers.

    Results are played with the weights of the best checkpoint, as they are exported. Where these are not the model's own, a
    copy of the model takes them, on the same device.

    Raises:
        ConfigError: the folder is neither, or holds no tokenizer; CheckpointError, ModelError: it cannot be loaded.
        ExportError: nothing says how large a model's images are.
    """
    if not isinstance(source, (str, Path)):
        return _of_results(source, *_best_of(source))
    from utils.training.stored_models import load_results, load_stored_model

    folder = Path(source)
    if read_state(folder) is not None:
        if not (folder / "exports" / "hf" / "config.json").is_file():
            raise ConfigError(
                f"{folder} has no export for transformers, and checkpoints hold no model code; export the run first "
                "(results.export('hf')), or pass the results themselves"
            )
        loaded = load_results(folder, "", {})
        return _of_results(loaded, loaded.model, "")  # the export has the best weights
    if not (folder / "config.json").is_file():
        raise ConfigError(f"{folder} is neither a run's folder nor an exported folder for transformers")
    from transformers import AutoTokenizer

    model: Any = load_stored_model(str(folder), "", {}).model  # of transformers
    has_tokenizer = any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json"))
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True) if has_tokenizer else None
    name = type(model).__name__
    if name.endswith("ForTokenClassification"):
        return Playground(model, tokenizer, "token_classification")
    if name.endswith("ForImageClassification"):
        return Playground(model, None, "image_classification", preprocessing=_stored_preprocessing(folder, model))
    if not name.endswith("ForSequenceClassification"):
        writes = model.can_generate() and not model.config.is_encoder_decoder
        return Playground(model, tokenizer, None if writes else name)
    # As transformers: a single output, or the problem type where it is stated, is a regression.
    problem = model.config.problem_type or ("regression" if model.config.num_labels == 1 else None)
    task = "regression" if problem == "regression" else "classification"
    return Playground(model, tokenizer, task, multi_label=problem == "multi_label_classification")


def _stored_preprocessing(folder: Path, model: nn.Module) -> Mapping[str, Any]:
    """How an image becomes pixels, by the folder's preprocessor_config.json, else by the model's config."""
    from utils.training.export.image_processing import preprocessing_of
    from utils.training.task_spec import TaskSpec

    stated = read_json_object(folder / "preprocessor_config.json")
    normalised = stated.get("do_normalize", True)
    kept = {name: stated[name] for name in ("image_mean", "image_std") if normalised and stated.get(name) is not None}
    return preprocessing_of(model, None, TaskSpec.image_classification(preprocessing_config=kept))
