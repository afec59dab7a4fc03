"""Foreign model code: shown with its sha256, and run only if the caller trusts that digest.

The digest is what decides: code that has changed since it was read has another one. Once trusted, code has the full power of
this process: it can read and delete files, and send them away. The digest says which code runs, not that it is harmless.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from utils.errors import ConfigError, ModelError, UntrustedCodeError

#: Of one file and of all files together. A model's code and config are text; weights are not read from such sources.
MOST_BYTES_OF_A_FILE = 1 << 20
MOST_BYTES = 4 << 20
MOST_FILES = 100
# A listing is read by people, in a notebook's output. The complete text is in the error's `files`.
_MOST_LISTED = 60_000
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class ForeignCode:
    """The files of a foreign model: Python sources, and config.json.

    Attributes:
        origin: where they come from, such as "gist 0123abcd".
        files: name -> content.
    Raises:
        ModelError: a name that is not a plain file name, a file that is too large or is not text, or too many.
    """

    origin: str
    files: Mapping[str, bytes]

    def __post_init__(self) -> None:
        check_names(self.files, self.origin)
        total = sum(map(len, self.files.values()))
        if total > MOST_BYTES:
            raise ModelError(f"{self.origin} holds {total:,} bytes of code; at most {MOST_BYTES:,} are read.")
        for name, content in self.files.items():
            check_size(name, len(content), self.origin)
            try:
                content.decode("utf-8")
            except UnicodeDecodeError:
                raise ModelError(f"{self.origin}: {name} is not UTF-8 text. Ask its author for the source.") from None

    @property
    def sha256(self) -> str:
        """Digest of all files: a single file's own, as `sha256sum model.py` prints it; of several that of their lines, as
        `sha256sum config.json model.py | sha256sum` does with the names sorted."""
        if len(self.files) == 1:
            return hashlib.sha256(next(iter(self.files.values()))).hexdigest()
        lines = "".join(f"{hashlib.sha256(self.files[name]).hexdigest()}  {name}\n" for name in sorted(self.files))
        return hashlib.sha256(lines.encode()).hexdigest()

    def require_trust(self, trust: str | None, call: str) -> None:
        """Return only if `trust` is the digest of exactly these files.

        Args:
            call: the call that loads them, up to its trust argument, for the message.
        Raises:
            UntrustedCodeError: it is None or another digest. Nothing was run.
            ConfigError: it is not a sha256.
        """
        if trust is not None and not (isinstance(trust, str) and _SHA256.fullmatch(trust.strip().lower())):
            raise ConfigError(
                f"trust: got {str(trust)[:80]!r}; must be the sha256 of the code, 64 hexadecimal digits. Load without trust to "
                "see the code and its sha256."
            )
        if trust is not None and trust.strip().lower() == self.sha256:
            return
        names = ", ".join(f"{name} ({len(self.files[name]):,} bytes)" for name in sorted(self.files))
        if trust is None:
            reason = f"{self.origin} holds code that somebody else wrote; nothing of it was run."
        else:
            reason = (
                f"{self.origin} is not the code that you trusted: trust is {trust.strip().lower()}, the sha256 of what is "
                f"there now is {self.sha256}. Nothing of it was run. Read what has changed."
            )
        raise UntrustedCodeError(
            f"{reason}\nFiles: {names}\nOnce run, it can do whatever you can do on this machine. If you have read it and "
            f"trust it, run exactly this code with\n    {call}trust={self.sha256!r})",
            self.sha256,
            {name: content.decode("utf-8") for name, content in self.files.items()},
            self.listing(),
        )

    def listing(self) -> str:
        """The files one below another, for reading; characters that would change how a line looks are written as escapes."""
        parts = []
        for name in sorted(self.files):
            text = visible(self.files[name].decode("utf-8"))
            digest = hashlib.sha256(self.files[name]).hexdigest()
            cut = text[:_MOST_LISTED]
            if len(cut) < len(text):
                cut += f"\n… {len(text) - len(cut):,} more characters: see the error's files[{name!r}]"
            parts.append(f"--- {name}  sha256 {digest}\n{cut.rstrip()}")
        return "\n\n".join(parts)


def visible(text: str) -> str:
    """`text` with control and formatting characters as escapes: a carriage return, an escape sequence or a change of the
    writing direction can make code look like other code (CVE-2021-42574)."""
    return "".join(
        character
        if character in "\n\t" or unicodedata.category(character) not in ("Cc", "Cf", "Co", "Cs", "Zl", "Zp")
        else character.encode("unicode_escape").decode()
        for character in text.replace("\r\n", "\n")
    )


def check_names(names: Mapping[str, object] | list[str], origin: str) -> None:
    """Raise `ModelError` for names that are not plain file names, or differ in case only, and for too many files."""
    if len(names) > MOST_FILES:
        raise ModelError(f"{origin} has {len(names)} files; at most {MOST_FILES} are read.")
    seen: set[str] = set()
    for name in names:
        if not _NAME.fullmatch(name):
            raise ModelError(
                f"{origin} has a file named {name[:120]!r}. Names are letters, digits, '_', '-' and '.', without folders; "
                "nothing was written or run."
            )
        if name.lower() in seen:
            raise ModelError(f"{origin} has two files that differ in upper and lower case only: {name!r}. Rename one.")
        seen.add(name.lower())


def check_size(name: str, size: int, origin: str) -> None:
    """Raise `ModelError` for a file above the limit."""
    if size > MOST_BYTES_OF_A_FILE:
        raise ModelError(
            f"{origin}: {name} has {size:,} bytes; at most {MOST_BYTES_OF_A_FILE:,} are read. A model's code is text of some "
            "kilobytes; weights belong into a safetensors file."
        )


def is_code(name: str) -> bool:
    """Whether a file of a gist or an archive belongs to the model: its Python files and config.json."""
    return name.endswith(".py") or name == "config.json"


def read_archive(path: Path) -> ForeignCode:
    """The model's files in a zip archive: in its root, or in its only folder. Nothing is extracted.

    Raises:
        ModelError: no zip archive, no model.py in it, or files outside of the limits.
    """
    origin = str(path)
    try:
        with zipfile.ZipFile(path) as archive:
            members = [entry for entry in archive.infolist() if not entry.is_dir()]
            if len(members) > 10 * MOST_FILES:
                raise ModelError(f"{origin} has {len(members):,} files; at most {10 * MOST_FILES:,} are looked at.")
            folder = _folder_of_code([entry.filename for entry in members])
            chosen = {
                entry.filename.removeprefix(folder): entry
                for entry in members
                if entry.filename.startswith(folder)
                and is_code(entry.filename.removeprefix(folder))
                and "/" not in entry.filename.removeprefix(folder)
            }
            if "model.py" not in chosen:
                raise ModelError(
                    f"{origin} has no model.py in its root or its only folder. Name a file of your own disk."
                )
            check_names(list(chosen), origin)
            files = {}
            for name, entry in chosen.items():
                check_size(name, entry.file_size, origin)
                with archive.open(entry) as file:  # the declared size may be a lie
                    files[name] = file.read(MOST_BYTES_OF_A_FILE + 1)
    except (zipfile.BadZipFile, zipfile.LargeZipFile, NotImplementedError, RuntimeError, OSError) as error:
        raise ModelError(f"{origin} cannot be read as a zip archive: {error}.") from None
    return ForeignCode(origin, files)


def _folder_of_code(names: list[str]) -> str:
    """The folder in which an archive has its files, with a slash at the end; "" for its root."""
    if any("/" not in name for name in names):
        return ""
    tops = {name.partition("/")[0] for name in names}
    return f"{tops.pop()}/" if len(tops) == 1 else ""
