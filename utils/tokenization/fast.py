"""The tokenizers that are made here, as transformers' fast tokenizer with the two things that it lacks.

`encode(...)` gives transformers' list of ids, which also answers by name: `encoded["input_ids"]`, `encoded["attention_mask"]`.
A list and not a mapping, because whatever takes a transformers tokenizer counts on the list: slices, `torch.tensor([encoded])`.
And `save(path)` writes one tokenizer.json in a single step. In a folder (`save_pretrained`) it is an ordinary
PreTrainedTokenizerFast, which `AutoTokenizer` loads on machines where this package is not.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, SupportsIndex, overload

from transformers import PreTrainedTokenizerFast

from utils.storage import atomic_write, write_text

if TYPE_CHECKING:
    from utils.tokenization.adaptive import TokenizerChoice

# Which of the arguments of PreTrainedTokenizerFast say what the tokenizer is, beside its backend.
_KEPT_SETTINGS = (
    "model_max_length", "padding_side", "truncation_side", "chat_template", "model_input_names",
    "clean_up_tokenization_spaces", "split_special_tokens", "extra_special_tokens",
)  # fmt: skip


class EncodedText(list[int]):
    """Token ids as a list, whose other columns are there by name: `encoded["attention_mask"]`."""

    def __init__(self, columns: Mapping[str, list[int]]) -> None:
        super().__init__(columns["input_ids"])
        self._columns = dict(columns)

    @overload
    def __getitem__(self, key: SupportsIndex) -> int: ...
    @overload
    def __getitem__(self, key: slice | str) -> list[int]: ...
    def __getitem__(self, key: SupportsIndex | slice | str) -> int | list[int]:
        return self._columns[key] if isinstance(key, str) else super().__getitem__(key)

    def __contains__(self, key: object) -> bool:
        return key in self._columns if isinstance(key, str) else super().__contains__(key)

    def keys(self) -> Iterable[str]:
        """The names of the columns: `dict(encoded)` and `**encoded` work as with a mapping."""
        return self._columns.keys()


class TrainbookTokenizer(PreTrainedTokenizerFast):
    """A fast tokenizer whose `encode` gives a list of ids that also answers by name.

    Attributes:
        choice: how it was chosen and why, where `AdaptiveTokenizer` made it. Not saved.
    """

    choice: TokenizerChoice | None = None

    def encode(
        self, text: Any, text_pair: Any = None, add_special_tokens: bool = True, padding: Any = False,
        truncation: Any = None, max_length: int | None = None, stride: int = 0, padding_side: str | None = None,
        return_tensors: str | None = None, **options: Any,
    ) -> Any:  # fmt: skip
        """Token ids of a text.

        Args:
            text, text_pair, …: as transformers has them, with one difference: a `max_length` without a word on truncation
                also cuts where there is padding, so `max_length=512, padding="max_length"` gives 512 ids.
        Returns:
            `EncodedText`, a list of int. With `return_tensors` transformers' tensor of shape (1, T).
        """
        if truncation is None and max_length is not None:
            truncation = True
        encoded = self(
            text, text_pair, add_special_tokens=add_special_tokens, padding=padding, truncation=truncation,
            max_length=max_length, stride=stride, padding_side=padding_side, return_tensors=return_tensors, **options,
        )  # fmt: skip
        ids = encoded["input_ids"]
        of_one_text = isinstance(ids, list) and not (ids and isinstance(ids[0], list))
        return EncodedText(encoded) if of_one_text else ids

    def save(self, path: str | Path) -> Path:
        """Write tokenizer.json, the format of the `tokenizers` library, in one step. Which tokens pad and end is in
        `save_pretrained`'s folder only; `AdaptiveTokenizer.load_or_create(tokenizer=path)` knows them by their names."""
        return write_text(path, backend_text(self))

    def save_pretrained(self, save_directory: Any, *arguments: Any, **options: Any) -> tuple[str, ...]:
        """Write the folder that `AutoTokenizer.from_pretrained` and `from_pretrained` of this class read."""
        names: tuple[str, ...] = super().save_pretrained(save_directory, *arguments, **options)
        for name in names or ():
            if name.endswith("tokenizer_config.json"):
                _name_plain_class(Path(name))
        return names

    @classmethod
    def convert_to_native_format(cls, *arguments: Any, **options: Any) -> dict[str, Any]:
        """transformers 5 takes apart the tokenizer.json of a class that has a constructor; ours is loaded as it is."""
        native: dict[str, Any] = PreTrainedTokenizerFast.convert_to_native_format(*arguments, **options)  # type: ignore[no-untyped-call]
        return native


def adopt(tokenizer: PreTrainedTokenizerFast) -> TrainbookTokenizer:
    """The same tokenizer, of our class. The given one is left as it is."""
    settings = {name: getattr(tokenizer, name) for name in _KEPT_SETTINGS if getattr(tokenizer, name, None) is not None}
    return TrainbookTokenizer(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer.backend_tokenizer, **special_tokens_of(tokenizer), **settings
    )


def special_tokens_of(tokenizer: PreTrainedTokenizerFast) -> dict[str, str]:
    """Role -> token, such as "pad_token" -> "<pad>", of the roles that are taken."""
    roles = tokenizer.special_tokens_map
    return {role: str(token) for role, token in roles.items() if role.endswith("_token") and token is not None}


def backend_text(tokenizer: PreTrainedTokenizerFast) -> str:
    """tokenizer.json: what the `tokenizers` library knows of it, without the truncation and padding of an earlier call."""
    backend = copy.deepcopy(tokenizer.backend_tokenizer)
    backend.no_truncation()
    backend.no_padding()
    text: str = backend.to_str(pretty=True)
    return text


def _name_plain_class(config_file: Path) -> None:
    config = json.loads(config_file.read_text(encoding="utf-8"))
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    text = json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    atomic_write(config_file, lambda file: file.write(text.encode()))
