"""Read one checkpoint file: bounded, verified against its checksums, tensors and plain values only."""

from __future__ import annotations

import os
import pickle
import re
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from utils.errors import CheckpointError, CheckpointNotFoundError
from utils.storage import NotRegularFileError, require_regular_file

Payload = dict[str, Any]

#: Set to 1, it lets a torch older than 2.10 load checkpoints that this process did not write.
TRUST = "TRAINBOOK_TRUST_CHECKPOINTS"

_FOLDER_ATTRIBUTE = 0x10  # in a zip's external attributes, as MS-DOS had it
_TENSOR_RECORD = re.compile(r"/data/\d+$")
_PIECE = 1 << 20  # bytes read at once

# Device, inode and modification time of the files that this process committed.
_WRITTEN: set[tuple[int, int, int]] = set()


def verify(path: Path) -> None:
    """Check every record of a checkpoint file against its CRC. Raises `CheckpointError` with what is wrong.

    Only regular files are opened, and only archives whose records are stored as torch.save stores them: uncompressed, and
    together no larger than the file. So no file can make a reader wait or allocate more than its own size.
    """
    _check_records(path, lambda name: True)


def verify_header(path: Path) -> None:
    """Check every record but the tensors' data, whatever the size of the file."""
    _check_records(path, lambda name: not _TENSOR_RECORD.search(name))


def read_plain(path: str | Path, *, mapped: bool = False) -> Any:
    """The content of any file of torch.save, of ours or of other systems, on the CPU: tensors and plain values only.

    Args:
        mapped: tensors stay on disk until they are used: for a look at the values beside them.
    Raises:
        CheckpointNotFoundError, CheckpointError: as `read_checkpoint`, whatever the content is.
    """
    path = Path(path)
    refuse_foreign_file_on_old_torch(path)
    verify(path)
    return load_verified(path, mapped)


def refuse_foreign_file_on_old_torch(path: Path) -> None:
    """Raise `CheckpointError` for a file that this process did not write, on a torch older than 2.10.

    `weights_only=True` had holes there, and nothing in a run's folder proves who wrote it.
    """
    version = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    identity = _identity(path)
    if version >= (2, 10) or os.environ.get(TRUST) == "1" or identity is None or identity in _WRITTEN:
        return
    raise CheckpointError(
        f"{path}: loading a checkpoint needs torch 2.10 or newer (this is {torch.__version__}), whose loader refuses code. "
        f"Install a newer torch, or set {TRUST}=1 if every file there is your own."
    )


def remember_as_own(path: Path) -> None:
    """This process has committed `path`."""
    identity = _identity(path)
    if identity is not None:
        _WRITTEN.add(identity)


def _identity(path: Path) -> tuple[int, int, int] | None:
    try:
        status = path.stat()
    except (OSError, ValueError):
        return None  # absent, which reading it reports
    return status.st_dev, status.st_ino, status.st_mtime_ns


def _check_records(path: Path, wanted: Callable[[str], bool]) -> None:
    try:
        size = require_regular_file(path)
        with zipfile.ZipFile(path) as archive:
            records = archive.infolist()
            reason = _strange_records(records, size) or _first_bad(archive, records, wanted)
    except FileNotFoundError:
        raise CheckpointNotFoundError(f"{path} does not exist.") from None
    except IsADirectoryError:
        raise CheckpointError(f"{path} is a folder, not a checkpoint file.") from None
    except NotRegularFileError as error:
        raise CheckpointError(f"{error}; a checkpoint is a regular file.") from None
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, ValueError, struct.error) as error:
        size = path.stat().st_size if path.exists() else 0
        if size and not _begins_as_archive(path):
            raise CheckpointError(
                _refusal(f"{path} is not the zip archive that torch.save writes, and anything else")
            ) from None
        raise CheckpointError(f"{path} is damaged ({error}; {size} bytes); use an older checkpoint.") from None
    if reason is not None:
        raise CheckpointError(f"{path} is damaged: {reason}; use an older checkpoint.")


def _strange_records(records: list[zipfile.ZipInfo], size: int) -> str | None:
    """Describe entries in the archive's directory that torch.save does not write, or None."""
    for record in records:
        # A record marked as a folder would pass, and torch would then leave its tensor as it finds the memory.
        if record.external_attr & _FOLDER_ATTRIBUTE:
            return f"record {record.filename!r} is marked as a folder"
        if record.compress_type != zipfile.ZIP_STORED or record.compress_size != record.file_size:
            return f"record {record.filename!r} is compressed, which torch.save does not do"
    total = sum(record.file_size for record in records)
    return f"its records claim {total:,} bytes, and the file has {size:,}" if total > size else None


def _first_bad(archive: zipfile.ZipFile, records: list[zipfile.ZipInfo], wanted: Callable[[str], bool]) -> str | None:
    for record in records:
        if not wanted(record.filename):
            continue
        try:
            with archive.open(record) as file:
                while file.read(_PIECE):
                    continue
        except zipfile.BadZipFile:
            return f"record {record.filename!r} does not match its checksum"
    return None


def load_verified(path: Path, mapped: bool = False) -> Any:
    """Load a verified file. Touches no random state or torch setting, so that any thread may call it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # torch comments on foreign files before it refuses them
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        reason = f"names {found[1]}" if found else "has a pickle that is not one of plain values"
        raise CheckpointError(_refusal(f"{path} {reason}, and anything but tensors and plain values")) from None
    # What torch's unpickler and its constructors of tensors raise on a pickle that makes no sense.
    except (RuntimeError, EOFError, LookupError, ValueError, TypeError, AttributeError, ArithmeticError, AssertionError,
            ImportError, struct.error) as error:  # fmt: skip
        first_line = (str(error).splitlines() or ["no reason given"])[0][:300]
        raise CheckpointError(f"{path} cannot be read: {type(error).__name__}: {first_line}") from None


def _begins_as_archive(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(2) == b"PK"


def _refusal(reason: str) -> str:
    return (
        f"{reason} could run code: refused. If you trust its author, load it in a process of your own and save its state_dict "
        "with safetensors."
    )
