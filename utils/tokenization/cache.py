"""Tokenizers that are kept on disk, found again by what they were made from.

One file an entry, written in one step, with a checksum of its content: an entry is there whole or not at all, and a damaged
one is made anew. The name holds the digest of everything that decides: texts, settings, version of `tokenizers`.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.errors import ConfigError
from utils.storage import absolute_path, write_text

if TYPE_CHECKING:
    from utils.tokenization.fast import TrainbookTokenizer

logger = logging.getLogger("trainbook.tokenization")

# Of the file, and of the rules that made the tokenizers: a change to either makes older entries unknown.
_FORMAT = 1
_SETTINGS = ("model_max_length", "padding_side", "truncation_side", "clean_up_tokenization_spaces", "chat_template")


def content_key(settings: Mapping[str, Any], texts: Iterable[str] = ()) -> str:
    """Digest (32 hexadecimal digits) of settings, texts and versions. Reads the texts once, at about 1 GB/s."""
    import tokenizers

    described = {"format": _FORMAT, "tokenizers": tokenizers.__version__, **settings}
    hasher = hashlib.blake2b(json.dumps(described, sort_keys=True, default=str).encode(), digest_size=16)
    for text in texts:
        data = text.encode("utf-8", errors="surrogatepass")
        hasher.update(len(data).to_bytes(8, "little"))  # or ["ab"] and ["a", "b"] would be the same
        hasher.update(data)
    return hasher.hexdigest()


def cached_tokenizer(
    cache_dir: str | os.PathLike[str], settings: Mapping[str, Any], texts: Iterable[str],
    make: Callable[[], tuple[TrainbookTokenizer, str]],
) -> tuple[TrainbookTokenizer, str]:  # fmt: skip
    """The tokenizer from the cache, or from `make`, which is then kept.

    Args:
        cache_dir: a folder; made where it is missing.
        settings, texts: what decides on the tokenizer; `settings["strategy"]` begins the file's name.
        make: gives the tokenizer and the reason for its choice.
    Returns:
        Tokenizer and reason.
    Raises:
        ConfigError: the folder cannot be made.
    """
    folder = cache_folder(cache_dir)
    entry = CacheEntry(folder / f"{_named(settings)}-{content_key(settings, texts)[:16]}.json")
    kept = entry.read()
    if kept is not None:
        return kept
    tokenizer, reason = make()
    entry.write(tokenizer, reason)
    return tokenizer, reason


@dataclass(frozen=True)
class CacheEntry:
    """One tokenizer in one file."""

    path: Path

    def read(self) -> tuple[TrainbookTokenizer, str] | None:
        """Tokenizer and reason; None when there is no file, or, with a notice, when it is damaged."""
        try:
            content = json.loads(self.path.read_text(encoding="utf-8"))
            body = content["body"]
            if content["checksum"] != _checksum(body):
                raise ValueError("its checksum differs")
            return _made_of(body), body["reason"]
        except FileNotFoundError:
            return None
        except OSError as error:
            logger.warning("The tokenizer kept in %s cannot be read (%s): it is made anew.", self.path, error.strerror)
        except Exception as error:  # noqa: BLE001 - tokenizers raises Exception itself for what it cannot read
            logger.warning("The tokenizer kept in %s is damaged (%s): it is made anew.", self.path, error)
        return None

    def write(self, tokenizer: TrainbookTokenizer, reason: str) -> None:
        """Keep it. A disk that is full or read-only costs the cache and not the tokenizer: a notice, no error."""
        from utils.tokenization.fast import backend_text, special_tokens_of

        body = {
            "reason": reason,
            "special_tokens": special_tokens_of(tokenizer),
            "settings": {name: value for name in _SETTINGS if (value := getattr(tokenizer, name, None)) is not None},
            "tokenizer": backend_text(tokenizer),
        }
        content = json.dumps({"format": _FORMAT, "checksum": _checksum(body), "body": body}, ensure_ascii=False)
        try:
            write_text(self.path, content)
        except OSError as error:
            logger.warning("The tokenizer could not be kept in %s (%s).", self.path.parent, error.strerror)


def _made_of(body: Mapping[str, Any]) -> TrainbookTokenizer:
    from tokenizers import Tokenizer

    from utils.tokenization.fast import TrainbookTokenizer

    backend = Tokenizer.from_str(body["tokenizer"])
    return TrainbookTokenizer(tokenizer_object=backend, **body["special_tokens"], **body["settings"])  # type: ignore[no-untyped-call]


def _checksum(body: Any) -> str:
    return hashlib.blake2b(json.dumps(body, sort_keys=True).encode(), digest_size=16).hexdigest()


def cache_folder(cache_dir: str | os.PathLike[str]) -> Path:
    """The folder, made where it is missing. Raises ConfigError when it cannot be."""
    folder = absolute_path(cache_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        raise ConfigError(f"cache_dir: the folder {folder} cannot be made: {error}. Choose another one.") from error
    return folder


def _named(settings: Mapping[str, Any]) -> str:
    name = f"{settings.get('strategy', 'tokenizer')}-{settings.get('vocab_size', 0)}"
    return re.sub(r"[^\w.-]+", "_", name)
