"""Passwords, tokens and keys are removed from text before it is written, logged, sent or shown.

`scrub` knows a secret by where it stands (the user part of a URL, a query parameter, `api_key=…`), by its shape (tokens of
Hugging Face, GitHub, OpenAI and others), and by its value: those of environment variables such as HF_TOKEN, and of Colab's
secrets that were read.

Not covered: a password without any of these marks, in the middle of a sentence or of a path.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import mmap
import os
import re
import traceback
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from typing import Any

#: What takes a secret's place.
HIDDEN = "***"

# Shorter values of environment variables are words such as "none", which other text holds too.
_SHORTEST_VALUE = 8
_SHORTEST_TEXT = 8

_WORDS = (
    r"api[_-]?key|access[_-]?key|secret[_-]?key|private[_-]?key|client[_-]?secret|secret|password|passwd|pwd"
    r"|(?:access|api|auth|bearer|github|hf|hub|hugging_?face|hugging_?face_hub|refresh|session)[_-]?token"
)
_NAME = re.compile(rf"(?:\w+[_-])?(?:{_WORDS}|authorization)", re.IGNORECASE)
_VARIABLE_ENDINGS = ("TOKEN", "SECRET", "PASSWORD", "PASSWD", "API_KEY", "APIKEY", "ACCESS_KEY")

# What begins a secret of a known kind, and how it goes on.
_SHAPES = {
    "hf_": r"[A-Za-z0-9]{16,}",
    "sk-": r"(?:(?:proj|ant|svcacct|admin|or)-[\w-]{16,}|[A-Za-z0-9]{16,})",
    "ghp_": r"[A-Za-z0-9]{16,}",
    "gho_": r"[A-Za-z0-9]{16,}",
    "ghs_": r"[A-Za-z0-9]{16,}",
    "ghu_": r"[A-Za-z0-9]{16,}",
    "ghr_": r"[A-Za-z0-9]{16,}",
    "github_pat_": r"\w{16,}",
    "glpat-": r"[\w-]{16,}",
    "wandb_v": r"\d+_\w{16,}",
    "AKIA": r"[A-Z0-9]{16}",
    "ASIA": r"[A-Z0-9]{16}",
    "xox": r"[abeoprs]-[\w-]{10,}",
    "AIza": r"[\w-]{35}",
    "eyJ": r"[\w-]{8,}\.eyJ[\w-]{8,}\.[\w-]{8,}",  # a JSON web token
}
# Substrings of which the lower-case text must hold one, which is quick to see; the pattern; what takes its place.
_RULES = (
    # The user part of a URL as a whole: a token often stands there without a password.
    (("://",), re.compile(r"\b([a-z][a-z0-9+.-]*://)[^\s/?#\"'<>]*@", re.IGNORECASE), rf"\1{HIDDEN}@"),
    (
        ("token", "secret", "passw", "signature", "credential", "key", "auth", "sig"),
        re.compile(
            r"([?&;](?:[^=&\s?]*(?:token|secret|passw|signature|credential|api_?key|auth)[^=&\s]*|sig|key)=)[^&#\s\"'<>]+",
            re.IGNORECASE,
        ),
        rf"\1{HIDDEN}",
    ),
    (
        ("key", "secret", "passw", "pwd", "token"),
        re.compile(rf"((?:{_WORDS})[\"']?\s*[:=]\s*[\"']?)[^\s\"',;&)\]}}]{{6,}}", re.IGNORECASE),
        rf"\1{HIDDEN}",
    ),
    (("bearer", "basic"), re.compile(r"(\b(?:bearer|basic)\s+)[\w.~+/=-]{16,}", re.IGNORECASE), rf"\1{HIDDEN}"),
    # W&B's older keys look like the hash of a commit.
    (("wandb",), re.compile(r"(\bwandb\b[^\n]{0,60}?)\b[0-9a-f]{40}\b", re.IGNORECASE), rf"\1{HIDDEN}"),
    (
        ("private key-",),
        re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL),
        HIDDEN,
    ),
    (
        tuple(start.lower() for start in _SHAPES),
        re.compile(rf"(?<![A-Za-z0-9])(?:{'|'.join(start + rest for start, rest in _SHAPES.items())})"),
        HIDDEN,
    ),
)

_SHAPE_RULE = _RULES[-1][1]

_seen: set[str] = set()
_HELD: ContextVar[frozenset[str] | None] = ContextVar("_HELD", default=None)


def remember_secret(value: str) -> None:
    """Remove `value` from now on wherever it stands."""
    if len(value) >= _SHORTEST_VALUE:
        _seen.add(value)


def scrub(text: str) -> str:
    """`text` with `***` in place of passwords, tokens and keys."""
    if len(text) < _SHORTEST_TEXT:
        return text
    for value in _known_values():
        text = text.replace(value, HIDDEN)
    return _by_rules_again(text) if len(text) <= _LONGEST_REMEMBERED else _by_rules(text)


def _by_rules(text: str) -> str:
    """`text` without what stands where a secret does, or has the shape of one."""
    lower = text.lower()
    for needles, pattern, replacement in _RULES:
        if any(needle in lower for needle in needles):
            text = pattern.sub(replacement, text)
    return text


# A view that is drawn twice a second has hundreds of texts, most of them the same each time.
_LONGEST_REMEMBERED = 200
_by_rules_again = functools.lru_cache(maxsize=2048)(_by_rules)


@contextlib.contextmanager
def environment_read_once() -> Iterator[None]:
    """Read the environment's secrets once for everything that this thread scrubs inside the block, such as a drawing."""
    held = _HELD.set(_values_of_environment())
    try:
        yield
    finally:
        _HELD.reset(held)


def holds_secret(content: str | mmap.mmap, *, by_name: bool = True) -> bool:
    """Whether `scrub` would take something out of `content`.

    Args:
        content: text; of a memory-mapped file only known values are looked for.
        by_name: also what only the words around it mark as a secret, such as `password=...`.
    """
    if isinstance(content, mmap.mmap):
        return any(content.find(value.encode()) >= 0 for value in _known_values())
    if by_name:
        return scrub(content) != content
    return any(value in content for value in _known_values()) or _SHAPE_RULE.search(content) is not None


def scrubbed(value: Any) -> Any:
    """A copy of plain values (mappings, lists, text, numbers) whose text is scrubbed, also by the names it stands under."""
    if isinstance(value, str):
        return scrub(value)
    if isinstance(value, Mapping):
        return {
            name: HIDDEN if isinstance(entry, str) and entry and _is_secret_name(name) else scrubbed(entry)
            for name, entry in value.items()
        }
    if type(value) in (list, tuple):
        return type(value)(scrubbed(entry) for entry in value)
    return value


def describe_error(error: BaseException) -> str:
    """An exception's class and message, scrubbed: what may be kept and shown of an error of unknown origin."""
    return scrub(f"{type(error).__name__}: {error}" if str(error) else type(error).__name__)


def _is_secret_name(name: Any) -> bool:
    return isinstance(name, str) and _NAME.fullmatch(name) is not None


def _known_values() -> frozenset[str]:
    held = _HELD.get()
    return (_values_of_environment() if held is None else held) | _seen


def _values_of_environment() -> frozenset[str]:
    named = (os.environ[name] for name in os.environ if name.upper().endswith(_VARIABLE_ENDINGS))
    return frozenset(value for value in named if len(value) >= _SHORTEST_VALUE)


class ScrubbingFilter(logging.Filter):
    """Scrubs the records of a logger, tracebacks included."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = scrub(record.getMessage()), None
        if record.exc_info:
            record.exc_text = scrub("".join(traceback.format_exception(*record.exc_info)).rstrip())
        return True


#: Every logger of the library. A filter of a parent does not see its children's records, so each has its own.
LOGGERS = tuple(
    f"trainbook.{name}"
    for name in (
        "checkpoints", "checks", "compat", "coordinator", "data", "doctor", "engine", "experiments", "export", "mirror",
        "models", "monitors", "queue", "run", "runs", "search", "tokenization", "widgets",
    )
)  # fmt: skip
for _name in LOGGERS:
    logging.getLogger(_name).addFilter(ScrubbingFilter())
