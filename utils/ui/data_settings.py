"""DataSettings: where the data come from, and how text becomes token ids. Validated as TrainingConfig is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from utils.data.mixture_settings import MixtureSource, mixture_sources
from utils.data.source_kinds import SOURCE_KINDS, DatasetSource, sources_with
from utils.errors import ConfigError, Problem
from utils.schema import Schema, equal, path_text, setting, shown
from utils.ui.new_model import checked_description

#: The source, and the dataset's name, that mean the corpus that needs no network.
BUILTIN = "builtin"
_A_NAME = "must be text: 'builtin', or a dataset's id on the Hugging Face Hub"
# Where data can be, with what that is; and which source each belongs to.
_PLACES: Mapping[str, str] = {
    "dataset": _A_NAME,
    "dataset_name": "a dataset's id on the Hugging Face Hub, such as 'Salesforce/wikitext', or a folder of data files",
    "dataset_path": "the path of a file, a folder or a pattern of paths",
}
PLACE_SOURCES: Mapping[str, tuple[str, ...]] = {
    place: sources_with(place) for place in ("dataset_path", "dataset_name")
}
# What says which part of a dataset is meant: the sources that have such parts, and what to say of others.
_OWNERS = {
    **dict.fromkeys(("config_name", "dataset_split"), "a dataset of the Hub: name that too, as dataset_name"),
    **dict.fromkeys(
        ("text_column", "label_column"),
        "a dataset of the Hub or a file: name that too, as dataset_name or dataset_path",
    ),
    "conversation_layout": "files: name them too, as dataset_path",
}
PARTS: Mapping[str, tuple[tuple[str, ...], str]] = {
    name: (sources_with(name), owner) for name, owner in _OWNERS.items()
}


class DataSettings(Schema):
    """Data source and tokenization. Lengths are in tokens."""

    aliases: ClassVar[Mapping[str, str]] = {
        "max_seq_len": "max_length",
        "max_seq_length": "max_length",
        "validation_split": "val_split",
    }

    dataset_source: DatasetSource = setting(
        "builtin", "Data", " ".join(f"{name}: {kind.help}." for name, kind in SOURCE_KINDS.items())
    )
    dataset_path: str | None = setting(
        None,
        "File",
        "A .txt, .csv, .tsv, .json, .jsonl, .parquet or .conll file, a folder of such files, or a pattern such as data/*.txt.",
        min_length=1,
    )
    dataset_name: str | None = setting(
        None,
        "Dataset",
        "Id on the Hub, such as Salesforce/wikitext, or a local folder of data files.",
        min_length=1,
    )
    config_name: str | None = setting(
        None, "Configuration", "Configuration of the dataset. Leave empty for its default.", min_length=1
    )
    dataset_split: str | None = setting(
        None, "Split", "Split to train on, such as train or train[:5000]. Leave empty for train.", min_length=1
    )
    text_column: str | None = setting(
        None,
        "Text column",
        "Column of the text, the words or the source text. Detected in the data unless one is named.",
        min_length=1,
    )
    task: Literal["causal_lm", "text_classification", "regression", "token_classification", "seq2seq"] = setting(
        "causal_lm",
        "Task",
        "causal_lm: causal language modelling of text and conversations. text_classification: a class for a text. "
        "regression: a number for a text. token_classification: a tag for each word. seq2seq: a target text for a source text, "
        "with an encoder-decoder such as T5. Labels need a table.",
    )
    label_column: str | None = setting(
        None,
        "Label or target column",
        "Column of the class, number, tags or target text of each row. Detected in the data unless one is named.",
        min_length=1,
    )
    conversation_layout: (
        Literal["messages", "sharegpt", "instruction", "prompt_completion", "question_answer"] | None
    ) = setting(
        None, "Conversation layout", "How the file stores conversations. Detected in the data unless one is named."
    )
    pretrained_model: str | None = setting(
        None,
        "Pretrained model",
        "Folder saved by transformers, folder of a run or of its export, or an id on the Hub such as owner/name. "
        "Leave empty to train the notebook's model.",
        min_length=1,
    )
    new_model: dict[str, Any] | None = setting(
        None,
        "New model",
        "A model with new weights instead of the notebook's: the name of a registered model, or its name and sizes, such as "
        "{name: gpt-small, n_layer: 4, n_embd: 256, n_head: 4}. Vocabulary size and block length are those of the tokenizer, "
        "the number of classes is that of the data. Leave empty to train the notebook's model.",
    )
    val_split: float = setting(
        0.1,
        "Validation split",
        "Fraction of the text held out for validation; 0 disables validation.",
        ge=0,
        le=0.5,
    )
    data_kind: Literal["auto", "text", "conversations", "pairs"] = setting(
        "auto",
        "Kind of data",
        "conversations: dialogues, with the loss on the answers. pairs: a text and the text to generate for it, such as "
        "article and summary. text: plain text. auto: conversations if the file contains them, else text.",
    )
    mixture: tuple[MixtureSource, ...] = setting(
        (),
        "Mixture",
        "Several datasets instead of one: a list of {path or dataset, weight, name}, with data_kind, text_column, "
        "config_name or conversation_layout where needed. Text and conversations can be mixed.",
    )
    mixture_by: Literal["examples", "tokens"] = setting(
        "examples",
        "Mixture weights count",
        "Whether the weights of a mixture are shares of the examples or of the tokens.",
    )
    mixture_temperature: float = setting(
        1.0,
        "Mixture temperature",
        "Weights become weight ** (1 / temperature): above 1 small datasets are seen more often than their weight says.",
        gt=0,
        le=1000,
    )
    tokenizer_strategy: Literal["auto", "bpe", "character"] = setting(
        "auto",
        "Tokenizer",
        "bpe: subwords trained on the text. character: one token per character. auto: chosen by vocabulary, text and task.",
    )
    packing: Literal["concatenate", "best_fit"] = setting(
        "concatenate",
        "Packing",
        "concatenate: documents follow each other and are cut where a block ends. best_fit: only documents longer than a block "
        "are cut; what remains of a block is padding. Plain text only.",
    )
    shuffle_documents: bool = setting(
        False,
        "Shuffle documents each epoch",
        "Pack the training documents into blocks in a new order in each epoch. Plain text only.",
    )
    document_masks: bool = setting(
        False,
        "Document masks",
        "Attention does not cross from one document of a block to the next (block-diagonal mask). Plain text only.",
    )
    vocab_size: int | None = setting(
        None,
        "Vocabulary size",
        "Maximum number of tokens of the tokenizer. Leave empty for the vocabulary size of the model.",
        unit="tokens",
        ge=2,
        le=2_000_000,
    )
    max_length: int = setting(
        128, "Block length", "Context length in tokens of each training sample.", unit="tokens", ge=2, le=1_000_000
    )

    @classmethod
    def extra_inputs(cls) -> tuple[str, ...]:
        return ("dataset",)

    @classmethod
    def translate(cls, values: dict[str, Any]) -> tuple[dict[str, Any], list[Problem]]:
        """`dataset` becomes `dataset_name`, the name "builtin" a source; one place that is named says which source. A
        `new_model` may be a name alone."""
        paths = (*_PLACES, "pretrained_model")
        values = {name: path_text(value) if name in paths else value for name, value in values.items()}
        problems = [
            Problem(name, f"got {shown(values[name])}; it holds a NUL character, which no path or dataset's id does")
            for name in paths
            if isinstance(values.get(name), str) and "\0" in values[name]
        ]
        if isinstance(model := values.get("new_model"), str):
            values["new_model"] = {"name": model}
        if "mixture" in values:
            try:
                values["mixture"] = mixture_sources(values["mixture"])
            except ConfigError as error:
                problems.append(Problem("mixture", str(error).removeprefix("mixture: ")))
        dataset = values.pop("dataset", None)
        if dataset is not None and not isinstance(dataset, str):
            problems.append(Problem("dataset", f"got {shown(dataset)}; {_A_NAME}", BUILTIN))
            values.pop("dataset_source", None)  # or the name would be reported as missing too
        elif (
            dataset is not None
            and values.get("dataset_name") is not None
            and not equal(values["dataset_name"], dataset)
        ):
            both = f"dataset={shown(dataset)} and dataset_name={shown(values['dataset_name'])}"
            problems.append(Problem("dataset_name", f"given twice: {both}; keep one"))
        elif dataset is not None:
            values["dataset_name"] = dataset
        if equal(values.get("dataset_name"), BUILTIN):
            values["dataset_name"] = None
            if not equal(values.setdefault("dataset_source", BUILTIN), BUILTIN):
                message = (
                    f"got {shown(values['dataset_source'])} together with the dataset 'builtin'; keep one of the two"
                )
                problems.append(Problem("dataset_source", message, BUILTIN))
        for name, sources in PLACE_SOURCES.items():
            if values.get(name) is not None:
                values.setdefault("dataset_source", sources[0])
        return values, problems

    @classmethod
    def contradictions(cls, values: Mapping[str, Any], given: Mapping[str, Any]) -> list[Problem]:
        source, path, name = values["dataset_source"], values["dataset_path"], values["dataset_name"]
        if values["new_model"] is not None:
            if found := checked_description(values["new_model"]):
                return found
            if values["pretrained_model"] is not None:
                message = f"got {shown(values['new_model'])} together with a pretrained_model; keep one of the two"
                return [Problem("new_model", message)]
        if values["mixture"] and (found := _of_one_dataset(values)):
            return found
        if path is not None and name is not None:
            message = f"got {shown(path)} together with dataset_name={shown(name)}; keep one of the two"
            return [Problem("dataset_path", message)]
        for place, its_sources in PLACE_SOURCES.items():
            if source not in its_sources and (value := values[place]) is not None:
                message = f"got {source!r} together with {place}={shown(value)}; keep one of the two"
                return [Problem("dataset_source", message, its_sources[0])]
        for place, its_sources in PLACE_SOURCES.items():
            if source in its_sources and values[place] is None:
                return [Problem(place, f"is required when dataset_source is {source!r}: {_PLACES[place]}")]
        return [
            Problem(part, f"got {shown(values[part])}; it is for {owner}")
            for part, (sources, owner) in PARTS.items()
            if values[part] is not None and source not in sources
        ]


def _of_one_dataset(values: Mapping[str, Any]) -> list[Problem]:
    """Settings beside a mixture that name or describe a single dataset."""
    if values["task"] != "causal_lm":
        message = f"got {values['task']!r} together with a mixture; only text and conversations can be mixed"
        return [Problem("task", message, "causal_lm")]
    own = {"dataset_path": None, "dataset_name": None, **dict.fromkeys(PARTS), "data_kind": "auto"}
    return [
        Problem(name, f"got {shown(values[name])} together with a mixture; set it in the entries of the mixture")
        for name, default in own.items()
        if values[name] != default
    ]
