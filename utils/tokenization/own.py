"""The user's own tokenizer: a tokenizer.json, a vocab.txt, or a folder in the Hugging Face format."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.data.read.rows import excerpt
from utils.errors import DataError, DataNotFoundError, DataTypeError, first_line

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from utils.tokenization.fast import TrainbookTokenizer

# What tokens with a role are commonly called: a tokenizer.json does not say what they are for.
_COMMON_NAMES: Mapping[str, tuple[str, ...]] = {
    "pad_token": ("<pad>", "[PAD]", "<|padding|>", "<|pad|>", "<|finetune_right_pad_id|>"),
    "unk_token": ("<unk>", "[UNK]", "<|unk|>"),
    "bos_token": ("<s>", "<bos>", "[BOS]", "<|begin_of_text|>", "<|startoftext|>", "<|endoftext|>"),
    "eos_token": ("</s>", "<eos>", "[EOS]", "<|end_of_text|>", "<|endoftext|>"),
    "cls_token": ("[CLS]",),
    "sep_token": ("[SEP]",),
    "mask_token": ("[MASK]", "<mask>"),
}
_FORMATS = "a tokenizer.json, a vocab.txt with one token a line, or a folder that save_pretrained wrote"


def load_own(tokenizer: Any) -> tuple[TrainbookTokenizer, str]:
    """The tokenizer that the user has.

    Args:
        tokenizer: a transformers fast tokenizer, a `tokenizers.Tokenizer`, or the path of a file or folder.
    Returns:
        The tokenizer, and a sentence on what it is.
    Raises:
        DataNotFoundError: there is no such file or folder; DataError: it cannot be read; DataTypeError: it is not a tokenizer.
    """
    from tokenizers import Tokenizer

    if isinstance(tokenizer, (str, os.PathLike)):
        path = Path(tokenizer).expanduser()
        return _from_path(path), f"the tokenizer in {path}"
    if isinstance(tokenizer, Tokenizer):
        return _with_common_roles(tokenizer), "the tokenizer that was given"
    if getattr(tokenizer, "backend_tokenizer", None) is not None:
        from utils.tokenization.fast import TrainbookTokenizer, adopt

        own = tokenizer if isinstance(tokenizer, TrainbookTokenizer) else adopt(tokenizer)
        return own, "the tokenizer that was given"
    raise DataTypeError(f"got a {type(tokenizer).__name__} as the tokenizer; give a fast transformers one, {_FORMATS}.")


def _from_path(path: Path) -> TrainbookTokenizer:
    if path.is_dir():
        return _from_folder(path)
    if not path.is_file():
        raise DataNotFoundError(f"there is no tokenizer at {path}. Give {_FORMATS}.")
    return _from_vocabulary(path) if path.suffix == ".txt" else _from_json(path)


def _from_folder(folder: Path) -> TrainbookTokenizer:
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    from utils.tokenization.fast import adopt

    names = sorted(entry.name for entry in folder.iterdir())
    if "tokenizer_config.json" not in names:
        for name in ("tokenizer.json", "vocab.txt"):
            if name in names:
                return _from_path(folder / name)
    try:
        loaded = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:
        raise DataError(
            f"the folder {folder} holds no tokenizer that can be read ({first_line(error)}). Give {_FORMATS}; there are: "
            f"{', '.join(names[:10]) or 'no files'}."
        ) from error
    if not isinstance(loaded, PreTrainedTokenizerFast):
        raise DataTypeError(
            f"{folder} is a {type(loaded).__name__}, which has no fast backend; save it with a tokenizer.json."
        )
    return adopt(loaded)


def _from_json(path: Path) -> TrainbookTokenizer:
    from tokenizers import Tokenizer

    try:
        backend = Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises Exception itself for what it cannot read
        raise DataError(
            f"{path} is no tokenizer.json that tokenizers can read ({first_line(error)}). Give {_FORMATS}."
        ) from error
    return _with_common_roles(backend)


def _from_vocabulary(path: Path) -> TrainbookTokenizer:
    """A vocab.txt as BERT has it: one token a line, its line number the id; "##" begins a token inside a word."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is no UTF-8 text (byte {error.start}); a vocab.txt has one token a line.") from error
    vocabulary = {token: number for number, token in enumerate(lines)}
    if len(vocabulary) < len(lines):
        number, token = next((n, t) for n, t in enumerate(lines) if vocabulary[t] != n)
        raise DataError(
            f"{path}:{number + 1}: the token {excerpt(token)} is there twice; each line is a token of its own."
        )
    unknown = next((name for name in _COMMON_NAMES["unk_token"] if name in vocabulary), None)
    if unknown is None:
        raise DataError(f"{path} has no token for what is unknown: one line must be [UNK].")
    lowercase = not any(token != token.lower() for token in lines if not token.startswith(("[", "<")))
    backend = Tokenizer(models.WordPiece(vocabulary, unk_token=unknown))
    backend.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    if {"[CLS]", "[SEP]"} <= vocabulary.keys():
        marks = [(name, vocabulary[name]) for name in ("[SEP]", "[CLS]")]
        backend.post_processor = processors.BertProcessing(*marks)
    return _with_common_roles(backend)


def _with_common_roles(backend: Tokenizer) -> TrainbookTokenizer:
    from utils.tokenization.fast import TrainbookTokenizer

    vocabulary = backend.get_vocab()
    roles = {role: next((name for name in names if name in vocabulary), None) for role, names in _COMMON_NAMES.items()}
    return TrainbookTokenizer(  # type: ignore[no-untyped-call]
        tokenizer_object=backend,
        clean_up_tokenization_spaces=False,
        **{role: name for role, name in roles.items() if name is not None},
    )
