"""Every error that Trainbook raises on purpose.

    TrainbookError
    ├── ConfigError (ValueError)              a setting is unknown, of the wrong type, out of range or contradicts another
    │   └── PresetNotFoundError (KeyError)    no preset of that name
    ├── DataError (ValueError)                a file or dataset cannot be used; path:line where there is one
    │   ├── DataTypeError (RuntimeError)      an object of a kind that cannot be trained on
    │   └── DataNotFoundError (FileNotFoundError)
    ├── ModelError (ValueError)               the model's inputs or outputs do not fit the task
    │   ├── ModelNotFoundError (FileNotFoundError)
    │   └── UntrustedCodeError (PermissionError)   somebody else's code that the caller has not trusted by its sha256
    ├── HubError (RuntimeError)               a hub cannot be reached or refused
    ├── CheckpointError (RuntimeError)        a checkpoint is damaged, foreign or does not fit the model
    │   ├── CheckpointNotFoundError (FileNotFoundError)
    │   └── CheckpointWriteError (OSError)    a checkpoint could not be written; older ones are intact
    ├── FileWriteError (OSError)              a file could not be written; says which one and why
    ├── RunLockedError (RuntimeError)         another process is training in the same run folder
    ├── RunTableError (RuntimeError)          the table of runs or the registry of models cannot be read or written
    │   └── RunNotFoundError (KeyError)       there is no run, model or version of that name
    ├── QueueError (RuntimeError)             a job queue cannot be opened, read or written, or a job did not end well
    │   ├── QueueBusyError (TimeoutError)     another process keeps the queue's database locked
    │   ├── JobNotFoundError (KeyError)       the queue has no job of that id
    │   └── LeaseLostError                    a worker is no longer the owner of the job that it writes about
    ├── NonFiniteError (RuntimeError)         a loss or gradient is NaN or infinite
    ├── OutOfMemoryError (MemoryError)        not even one sample fits in memory
    ├── CallbackError (RuntimeError)          a callback raised; says which one and in which event
    ├── PeerProcessError (RuntimeError)       another process of the same training failed or was lost
    ├── ExportError (RuntimeError)            a model could not be exported or the exported file is not the same model
    └── MissingPackageError (ImportError)     an optional package is not installed; says what it is for

    TrainingInterrupted (KeyboardInterrupt)   Ctrl-C or the kernel's interrupt: saved at a step boundary; carries `.results`

A message says what happened, what was got, and what to do. Each class is also the built-in class a caller would expect, so
`except ValueError` and `except FileNotFoundError` work without knowing this module.
"""

from __future__ import annotations

import os
import sysconfig
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.scrubbing import scrub

# A message is read by people: what a file full of wrong names has is listed up to here.
_MOST_LISTED = 40
_LONGEST_NAME = 60


def first_line(error: BaseException | str, *, with_class: bool = False, lines: int = 1) -> str:
    """The beginning of an error's text for the middle of a sentence: scrubbed, at most 300 characters, no full stop at its end.

    Args:
        error: an error, or the text of one. One without text gives the name of its class.
        with_class: begin with the name of the class: "ValueError: ...".
        lines: how many lines that are not blank to take, joined by spaces.
    """
    name = "" if isinstance(error, str) else type(error).__name__
    found = [line.strip() for line in scrub(str(error)).splitlines() if line.strip()]
    said = " ".join(found[:lines])[:300].rstrip(". ")
    return f"{name}: {said}" if said and name and with_class else said or name


def root_cause(error: BaseException) -> BaseException:
    """The error at the end of the chain of `raise ... from ...`."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


class _ShownShort(BaseException):
    """An error whose message says what to do: a notebook shows it with the caller's lines, and without the library's."""

    def _render_traceback_(self) -> list[str]:
        """What IPython shows of the error: lines of the caller's code, then the message.

        With the environment variable TRAINBOOK_TRACEBACK=full, everything that Python would show.
        """
        import traceback

        if os.environ.get("TRAINBOOK_TRACEBACK") == "full":
            return "".join(traceback.format_exception(self)).splitlines()
        frames = [frame for frame in traceback.extract_tb(self.__traceback__) if not _is_internal(frame.filename)]
        lines = [scrub(f"{_place(frame.filename)}line {frame.lineno}: {frame.line}") for frame in frames]
        name = type(self).__name__
        hint = "(TRAINBOOK_TRACEBACK=full in the environment shows the library's lines too.)"
        return [*lines, f"\x1b[31m{name}\x1b[0m: {self}", "", hint]


def _is_internal(file: str) -> bool:
    """Whether a frame belongs to this library, to an installed package or to Python."""
    path = Path(file)
    library = Path(__file__).resolve().parent.parent
    inside = any(path.is_relative_to(library / package) for package in ("utils", "widgets", "cli"))
    return inside or "site-packages" in path.parts or path.is_relative_to(sysconfig.get_path("stdlib"))


def _place(file: str) -> str:
    """The file of a frame in front of its line; nothing for a notebook's cell, whose file is a temporary one."""
    is_cell = file.startswith("<") or "ipykernel_" in file
    return "" if is_cell else f"{Path(file).name}, "


class TrainbookError(_ShownShort, Exception):
    """Base class: `except TrainbookError` catches everything the library raises on purpose, except an interrupt.

    Attributes:
        told_by_main: of several processes that train together, whether the main one raises and tells the same.
    """

    told_by_main = False

    def __init__(self, *arguments: Any, **options: Any) -> None:
        # Messages quote paths, URLs and other libraries' errors, any of which may hold a password.
        super().__init__(*(scrub(part) if isinstance(part, str) else part for part in arguments), **options)


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a configuration.

    Attributes:
        field: the field's name as the user wrote it.
        message: what was got and what is allowed, one sentence.
        fix: a value that would be accepted, where one is obvious.
    """

    field: str
    message: str
    fix: Any = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "message", scrub(self.message))


class ConfigError(TrainbookError, ValueError):
    """A configuration is not valid. `problems` lists every problem, not only the first."""

    def __init__(self, message: str, problems: Sequence[Problem] = ()) -> None:
        super().__init__(message)
        self.problems = tuple(problems)

    @classmethod
    def from_problems(cls, subject: str, problems: Sequence[Problem]) -> ConfigError:
        """One error that lists all `problems` of `subject` (a class or file name), one line each."""
        names = [_quotable(problem.field) for problem in problems[:_MOST_LISTED]]
        width = min(max(map(len, names)), 28)
        count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''} in {subject}"
        lines = [f"  {name:<{width}}  {problem.message}" for name, problem in zip(names, problems, strict=False)]
        if len(problems) > _MOST_LISTED:
            lines.append(f"  … and {len(problems) - _MOST_LISTED} more")
        return cls("\n".join([count, *lines]), problems)


def _quotable(name: str) -> str:
    """A field's name as a message can show it: on one line, of a length that leaves room for the message."""
    name = name if name.isprintable() else repr(name)[1:-1]
    return name if len(name) <= _LONGEST_NAME else name[: _LONGEST_NAME - 1] + "…"


class PresetNotFoundError(ConfigError, KeyError):
    """There is no preset of that name; the message lists those that there are."""

    # KeyError would show the message in quotes, with its line breaks escaped.
    __str__ = Exception.__str__


class DataError(TrainbookError, ValueError):
    """A file or dataset cannot be used as it is."""


class DataTypeError(DataError, RuntimeError):
    """An object was given as data that cannot be trained on."""


class DataNotFoundError(DataError, FileNotFoundError):
    """A data file or folder does not exist."""


class ModelError(TrainbookError, ValueError):
    """The model's inputs, outputs or sizes do not fit the task."""


class ModelNotFoundError(ModelError, FileNotFoundError):
    """A model's file or folder does not exist."""


class UntrustedCodeError(ModelError, PermissionError):
    """A model comes with somebody else's code, which was not run: its sha256 was not trusted, or is not the trusted one.

    Attributes:
        sha256: of the code that was not run; `trust=` takes it.
        files: file name -> source text, complete.
        listing: the source as it is shown: not scrubbed, because `***` in it could hide code.
    """

    def __init__(self, message: str, sha256: str, files: Mapping[str, str], listing: str) -> None:
        super().__init__(message)
        self.sha256, self.files, self.listing = sha256, dict(files), listing

    def __str__(self) -> str:
        return f"{self.args[0]}\n\n{self.listing}"


class HubError(TrainbookError, RuntimeError):
    """A hub of models or datasets could not be reached, or refused."""


class CheckpointError(TrainbookError, RuntimeError):
    """A checkpoint is damaged, unsafe, from another format, or does not fit."""


class CheckpointNotFoundError(CheckpointError, FileNotFoundError):
    """No checkpoint where one was asked for."""


class CheckpointWriteError(CheckpointError, OSError):
    """A checkpoint could not be committed. Checkpoints that were there before are intact."""


class FileWriteError(TrainbookError, OSError):
    """A file could not be written. What was there before is intact."""


class RunLockedError(TrainbookError, RuntimeError):
    """Another process is using the run folder."""


class RunTableError(TrainbookError, RuntimeError):
    """The table of runs or the registry of exported models cannot be read or written."""


class RunNotFoundError(RunTableError, KeyError):
    """There is no run, model or version of that name."""

    # KeyError would show the message in quotes.
    __str__ = Exception.__str__


class QueueError(TrainbookError, RuntimeError):
    """A job queue cannot be opened, read or written, or a job has no results because it did not complete."""


class QueueBusyError(QueueError, TimeoutError):
    """Another process kept the queue's database locked for longer than the time limit. Nothing was written."""


class JobNotFoundError(QueueError, KeyError):
    """The queue has no job of that id."""

    # KeyError would show the message in quotes.
    __str__ = Exception.__str__


class LeaseLostError(QueueError):
    """A worker's lease ended and the job was given to another one, or it was cancelled. Nothing was written."""


class NonFiniteError(TrainbookError, RuntimeError):
    """A loss or a gradient became NaN or infinite. Weights on disk are from before that."""


class OutOfMemoryError(TrainbookError, MemoryError):
    """A training step does not fit in memory, and cannot be made smaller."""


class CallbackError(TrainbookError, RuntimeError):
    """A callback raised. The message names callback, event and step; `__cause__` is what it raised."""


class PeerProcessError(TrainbookError, RuntimeError):
    """Another process of the same training failed or was lost, so this one ended as well. The message says what is known."""

    told_by_main = True


class ExportError(TrainbookError, RuntimeError):
    """A model could not be exported, or what was exported does not compute the same."""


class MissingPackageError(TrainbookError, ImportError):
    """An optional package is needed for what was asked and is not installed."""

    def __init__(self, package: str, purpose: str, extra: str | None = None) -> None:
        install = f'pip install -e ".[{extra}]"' if extra else f"pip install {package}"
        super().__init__(
            f"{package} is not installed; it is needed {purpose}. Install it with: {install}", name=package
        )


class TrainingInterrupted(_ShownShort, KeyboardInterrupt):
    """Training was interrupted at a step boundary and saved.

    Attributes:
        results: the `TrainingResults` up to the interrupt, or None when the interrupt came before the first step.
        what_happened: the message without how to continue from Python, for a front end that continues in another way.
    """

    def __init__(self, message: str, results: Any = None, *, to_continue: str = "") -> None:
        super().__init__(scrub(f"{message} {to_continue}".rstrip()))
        self.what_happened = scrub(message)
        self.results = results
