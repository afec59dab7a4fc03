"""Colab's own services: Drive, uploads, secrets. The only module that knows google.colab.

Every call ends with what was asked for, or with an error that says what works without Colab.
"""

from __future__ import annotations

import glob
import importlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from utils.environment import front_end
from utils.errors import DataError, DataNotFoundError
from utils.scrubbing import remember_secret

#: Where Colab shows a Drive, and the folder in it that is the user's own.
MOUNT_POINT = Path("/content/drive")
_MY_DRIVE = "MyDrive"
# Seconds that somebody has to answer Colab's question whether it may.
_ANSWER_TIMEOUT_S = 180.0


def is_colab() -> bool:
    """Whether this is a notebook of Colab."""
    return front_end() == "colab"


def mount_drive(timeout_s: float = _ANSWER_TIMEOUT_S) -> Path:
    """The user's folder of the Drive; asks Colab to mount it where that was not done.

    Args:
        timeout_s: seconds that the user has to agree.
    Raises:
        DataError: this is not Colab, the user did not agree, or it took too long; says what works without a Drive.
    """
    folder = MOUNT_POINT / _MY_DRIVE
    if folder.is_dir():
        return folder
    if not is_colab():
        raise DataError(f"{folder}: no Google Drive is mounted here, and only Colab can mount one. {_WITHOUT_DRIVE}")
    drive = importlib.import_module("google.colab.drive")
    # Its own limit, in this thread: Colab's questions to the page need the kernel's main thread.
    _told("Google Drive was not mounted", lambda: drive.mount(str(MOUNT_POINT), timeout_ms=round(timeout_s * 1000)))
    if not folder.is_dir():
        raise DataError(f"{folder}: Colab mounted the Drive, but this folder is not in it. {_WITHOUT_DRIVE}")
    return folder


def drive_path(path: str | os.PathLike[str], timeout_s: float = _ANSWER_TIMEOUT_S) -> Path:
    """Local path of a file or folder in Drive, which is mounted when needed.

    Args:
        path: a path or a pattern of paths as Colab shows it ("/content/drive/MyDrive/data.txt") or below the Drive
            ("data.txt", "MyDrive/data.txt"). What exists on this machine is taken as it is: so a notebook also works
            without Colab.
    Raises:
        DataNotFoundError, DataError: the Drive cannot be had, or there is no such file in it.
    """
    name = os.fspath(path)
    given = Path(name).expanduser()
    if name and "\0" not in name and (given.exists() or _matches(given)):
        return given
    below = given
    for start in (MOUNT_POINT / _MY_DRIVE, MOUNT_POINT, Path(_MY_DRIVE)):
        if below.is_relative_to(start):
            below = below.relative_to(start)
    if below.is_absolute():
        raise DataNotFoundError(
            f"{name}: no such file. A file of the Drive is given as {MOUNT_POINT / _MY_DRIVE}/..., or as its path below "
            "the Drive."
        )
    try:
        return mount_drive(timeout_s) / below
    except DataError as error:
        raise DataNotFoundError(f"{name}: is no file on this machine, and the Drive cannot be had: {error}") from error


def _matches(pattern: Path) -> bool:
    return glob.has_magic(str(pattern)) and next(glob.iglob(str(pattern), recursive=True), None) is not None


def drive_is_unknown(path: str | os.PathLike[str]) -> bool:
    """Whether it would take the Drive, which Colab has not mounted yet, to know if there is such a file."""
    given = Path(path).expanduser()
    return is_colab() and not (MOUNT_POINT / _MY_DRIVE).is_dir() and not given.exists() and not _matches(given)


def upload_files() -> Mapping[str, bytes]:
    """Let the user choose files in the browser; returns their content by name. It waits until that is done or cancelled.

    Raises:
        DataError: this is not Colab, or nothing was chosen; says what works elsewhere.
    """
    if not is_colab():
        raise DataError(
            "the browser's upload needs Colab. Elsewhere: put the file beside the notebook and give its path, or use the "
            "setup wizard's upload, which works in Jupyter as well."
        )
    files = importlib.import_module("google.colab.files")
    chosen: Mapping[str, bytes] = _told("no file was uploaded", files.upload)
    if not chosen:
        raise DataError("no file was chosen. Run the cell again and choose one, or give a file's path.")
    return chosen


def download_file(path: str | os.PathLike[str]) -> None:
    """Have the browser download a file of this machine.

    Raises:
        DataError: this is not Colab, or it refused; names the file.
    """
    if not is_colab():
        raise DataError(f"{os.fspath(path)}: the browser's download needs Colab; the file is at this path.")
    files = importlib.import_module("google.colab.files")
    _told(
        f"{os.fspath(path)} was not downloaded", lambda: files.download(os.fspath(path)), "Find it in the Files panel."
    )


def secret(name: str) -> str | None:
    """A secret: an environment variable, else Colab's secret of that name. None if it does not exist or is not granted."""
    value = os.environ.get(name) or _userdata(name)
    if value is not None:
        remember_secret(value)
    return value


def _userdata(name: str) -> str | None:
    if not is_colab():
        return None
    userdata = importlib.import_module("google.colab.userdata")
    refusals = (userdata.SecretNotFoundError, userdata.NotebookAccessError)
    try:
        value = userdata.get(name)
    except refusals:
        return None
    return str(value) if value else None


_WITHOUT_DRIVE = "Without a Drive: upload the file, or put it on this machine and give its path."


def _told(what: str, call: Callable[[], Any], way_out: str = _WITHOUT_DRIVE) -> Any:
    """Return what `call` returns; convert an error of Colab's, of whatever class, to one of ours. An interrupt propagates."""
    try:
        return call()
    except Exception as error:  # Colab raises ValueError, RuntimeError and classes of its own; raised again as ours
        raise DataError(f"{what}: {str(error) or type(error).__name__}. {way_out}") from error
