"""Errors of the Hub, the network and the readers of files as errors of ours that say what to do."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence

from utils.data.read.rows import listed
from utils.errors import DataError, HubError, TrainbookError, first_line, root_cause
from utils.schema import nearest

# Those that reading a dataset goes through; httpx's network errors are OSErrors in some of its versions only.
_PACKAGES = ("aiohttp", "datasets", "fsspec", "httpcore", "httpx", "httpx2", "huggingface_hub", "pyarrow", "requests")
_NETWORK_PACKAGES = ("aiohttp", "httpcore", "httpx", "httpx2", "requests")
WAYS_OUT = 'use the built-in corpus (dataset="builtin") or a file of yours (dataset_path="my.txt")'


@contextlib.contextmanager
def plain_errors(name: str, config_name: str | None) -> Iterator[None]:
    """Translate errors of datasets, huggingface_hub, pyarrow and the network into one of ours."""
    try:
        yield
    except TrainbookError:
        raise
    except Exception as error:  # whose classes belong to half a dozen packages; anything else is raised unchanged
        foreign = type(error).__module__.partition(".")[0] in _PACKAGES
        if not foreign and not isinstance(error, (OSError, ValueError, RuntimeError)):
            raise
        raise plain_error(error, name, config_name) from error


def plain_error(error: BaseException, name: str, config_name: str | None = None) -> TrainbookError:
    """Translate an error of loading a dataset into one sentence with a remedy. Only its type and text are read."""
    if (refusal := _known_refusal(error, name)) is not None:
        return refusal
    text = str(error)
    if configs := re.search(r"(?:Available: |available configs: )(\[.*?\])", text):
        return no_configuration(name, config_name, [part.strip(" '\"") for part in configs[1].strip("[]").split(",")])
    if "scripts are no longer supported" in text:
        return DataError(
            f"{name} is a loading script, which is not run. Give the data files themselves, or {WAYS_OUT}."
        )
    if type(error).__name__ in ("EmptyDatasetError", "DataFilesNotFoundError"):
        return DataError(f"{name} holds no data files that can be read (.txt, .csv, .json, .jsonl, .parquet).")
    if "disk space" in text:
        return DataError(f"{name} does not fit on the disk: {first_line(text)}. Free some space, or {WAYS_OUT}.")
    return DataError(f"{name} cannot be read: {first_line(root_cause(error))}. Try another dataset, or {WAYS_OUT}.")


def no_configuration(name: str, config_name: str | None, known: Sequence[str]) -> DataError:
    """The error for an unknown configuration, or for none where the dataset has several; names those there are."""
    got = f"has no configuration {config_name!r}" if config_name else "has several configurations"
    guess = nearest(config_name, known) if config_name else None
    hint = f" Did you mean {guess!r}?" if guess else ""
    names = listed(known)
    return DataError(f"{name} {got}; set config_name to one of: {names}.{hint}")


def _known_refusal(error: BaseException, name: str) -> TrainbookError | None:
    """The error for a refusal by the Hub, or a Hub that does not answer; None for everything else."""
    kinds = {kind.__name__ for kind in type(error).__mro__}
    text = str(error)
    status = getattr(getattr(error, "response", None), "status_code", None)
    if "GatedRepoError" in kinds or "gated dataset" in text:
        return HubError(
            f"{name} is gated. Request access on its page of the Hub, log in with "
            f"huggingface_hub.login(), and try again; or {WAYS_OUT}."
        )
    if "OfflineModeIsEnabled" in kinds or "(OfflineModeIsEnabled)" in text:
        return HubError(
            f"{name} is not on this machine, and HF_HUB_OFFLINE forbids asking the Hub. Unset it, or {WAYS_OUT}."
        )
    if kinds & {"RepositoryNotFoundError", "DatasetNotFoundError"} or status in (401, 403, 404):
        return HubError(
            f"the Hugging Face Hub has no dataset {name!r}, or it is private. Check the spelling (owner/name), log in "
            f"with huggingface_hub.login() if it is yours, or {WAYS_OUT}."
        )
    network = kinds & {"ConnectionError", "TimeoutError", "HfHubHTTPError", "LocalEntryNotFoundError", "gaierror"}
    if network or type(error).__module__.partition(".")[0] in _NETWORK_PACKAGES:
        reason = f"it answered {status}" if status else first_line(root_cause(error))
        return HubError(
            f"the Hugging Face Hub could not be reached for {name}: {reason}. Check the connection and try "
            f"again, or {WAYS_OUT}."
        )
    return None
