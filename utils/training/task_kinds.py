"""What each task is called, learns from and needs of a model: for the wizard, the playground, the checks and the data.

How its loss is computed stands in `utils.training.engine.loss.tasks`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Targets = Literal["tokens", "tags", "classes", "numbers"]
Input = Literal["text", "rewriting", "masks", "classes", "tags", "numbers", "image"]

_SEQUENCE_HEAD = "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING"


@dataclass(frozen=True)
class TaskKind:
    """One task. The defaults are those of a task that is registered elsewhere, of which only the loss is known.

    Attributes:
        title: its name in menus. learns: what its models do, in the middle of a sentence.
        targets: "tokens" of the vocabulary, "tags" of tokens, or "classes" or "numbers" of whole samples.
        labelled: whether it is learned from tables with labels, which a setup can name.
        words: other systems' names of it, as they appear in configuration files and in a spec's name.
        head: transformers' table of the classes with the head for it.
        pipeline: the Hub's name for it (huggingface.co/tasks).
        architectures: models of the registry that learn it, the usual one first.
        tried_with: its panel in the playground, named by the kind of output; tasks without one have no playground.
    """

    title: str = ""
    learns: str = ""
    targets: Targets | None = None
    labelled: bool = False
    words: tuple[str, ...] = ()
    head: str | None = None
    pipeline: str | None = None
    architectures: tuple[str, ...] = ()
    tried_with: Input | None = None

    @property
    def over_tokens(self) -> bool:
        """Whether the loss is over the tokens of a vocabulary."""
        return self.targets == "tokens"

    @property
    def per_token(self) -> bool:
        """Whether targets belong to tokens, so that inputs are token ids."""
        return self.targets in ("tokens", "tags")

    @property
    def per_sample(self) -> bool:
        """Whether a whole sample has one target, or a row of them."""
        return self.targets in ("classes", "numbers")

    @property
    def is_categorical(self) -> bool:
        """Whether targets are tokens or classes, whose probabilities a model gives."""
        return self.targets in ("tokens", "tags", "classes")

    @property
    def has_own_outputs(self) -> bool:
        """Whether its models have an output for each class, tag or number of the data."""
        return self.targets in ("tags", "classes", "numbers")


#: Task type -> what it is, those that setups offer first.
TASK_KINDS: Mapping[str, TaskKind] = {
    "causal_lm": TaskKind(
        "Next token", "predicting the next token", "tokens",
        words=("language_modeling", "lm", "clm"), head="MODEL_FOR_CAUSAL_LM_MAPPING", pipeline="text-generation",
        architectures=("gpt-small",), tried_with="text",
    ),
    "text_classification": TaskKind(
        "Text classification", "a class for each sample", "classes", labelled=True,
        words=("classification",), head=_SEQUENCE_HEAD, pipeline="text-classification",
        architectures=("bert-small-classifier",), tried_with="classes",
    ),
    "regression": TaskKind(
        "Regression", "a number for each sample", "numbers", labelled=True,
        head=_SEQUENCE_HEAD, architectures=("bert-small-classifier",), tried_with="numbers",
    ),
    "token_classification": TaskKind(
        "Token classification", "a class for each token", "tags", labelled=True,
        words=("ner",), head="MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING", pipeline="token-classification",
        architectures=("bert-small-token-classifier",), tried_with="tags",
    ),
    "seq2seq": TaskKind(
        "Text to text", "writing one text for another", "tokens", labelled=True,
        words=("translation", "summarization"), head="MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING",
        pipeline="text2text-generation", architectures=("t5-mini",), tried_with="rewriting",
    ),
    "masked_lm": TaskKind(
        "Masked tokens", "predicting masked tokens", "tokens",
        words=("mlm", "masked_language_modeling"), head="MODEL_FOR_MASKED_LM_MAPPING", pipeline="fill-mask",
        tried_with="masks",
    ),
    "image_classification": TaskKind(
        "Image classification", "a class for each image", "classes",
        words=("vision_classification",), head="MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING", pipeline="image-classification",
        tried_with="image",
    ),
}  # fmt: skip

#: Tasks that are learned from tables with labels, and all that a setup can name.
LABELLED_TASKS = tuple(name for name, kind in TASK_KINDS.items() if kind.labelled)
TASKS = ("causal_lm", *LABELLED_TASKS)

_ELSEWHERE = TaskKind()


def kind_of_task(task_type: str | None) -> TaskKind:
    """The row of a task; one that says nothing for None and for tasks that are registered elsewhere."""
    return TASK_KINDS.get(task_type or "", _ELSEWHERE)
