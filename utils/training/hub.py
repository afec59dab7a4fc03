"""push_to_hub: an exported folder to a repository of the Hugging Face Hub, after a look for secrets in it."""

from __future__ import annotations

import contextlib
import logging
import mmap
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils import colab
from utils.errors import ExportError, HubError, first_line
from utils.hub_ids import is_hub_id
from utils.schema import shown
from utils.scrubbing import holds_secret, remember_secret

_log = logging.getLogger("trainbook.export")

# Where a token is looked for, in this order: environment variables, then Colab's secrets of that name.
_TOKEN_NAMES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
_TOKEN_PAGE = "https://huggingface.co/settings/tokens"  # noqa: S105 - an address

# Files that exist to hold credentials.
_SECRET_NAMES = re.compile(
    r"\.env(\..*)?|\.netrc|\.pypirc|\.git-credentials|id_(rsa|dsa|ecdsa|ed25519)|.*\.(pem|p12|pfx|key)|kaggle\.json"
    r"|credentials(\.json)?|token",
    re.IGNORECASE,
)
# Their entries are pieces of words, among which any word may stand before any number.
_VOCABULARIES = ("tokenizer.json", "vocab.json", "vocab.txt", "merges.txt", "added_tokens.json")
_LARGEST_TEXT = 8_000_000
_NEVER_SENT = (".git", ".cache")


@dataclass(frozen=True)
class HubPush:
    """Files that were pushed to the Hub, or would be.

    Attributes:
        repo_id: owner/name.
        files: path in the repository -> bytes.
        private: whether the repository is private, or would be created so.
        dry_run: whether nothing was sent.
        url: the repository's page; None in a dry run.
        commit: id of the commit that holds the files; None in a dry run.
    """

    repo_id: str
    files: Mapping[str, int]
    private: bool
    dry_run: bool
    url: str | None = None
    commit: str | None = None

    @property
    def total_bytes(self) -> int:
        """Size of all files."""
        return sum(self.files.values())

    def __str__(self) -> str:
        kind = "private" if self.private else "public"
        done = f"would be sent to {self.repo_id} ({kind})" if self.dry_run else f"sent to {self.url}"
        lines = [f"{len(self.files)} files, {self.total_bytes / 1e6:.1f} MB, {done}"]
        return "\n".join([*lines, *(f"  {size:>14,}  {name}" for name, size in self.files.items())])


def push_to_hub(
    export: Any,
    repo_id: str,
    token: str | None = None,
    private: bool = True,
    dry_run: bool = False,
    *,
    checked_files: Collection[str] = (),
    commit_message: str | None = None,
    endpoint: str | None = None,
) -> HubPush:
    """Upload an export to a model repository of the Hugging Face Hub; the repository is created if it does not exist.

    An interrupted upload continues with the same call: what the Hub has already is not sent again. The repository has all
    files of the export or, until the commit, none of them.

    Args:
        export: an ExportResult, or a folder such as an exported format or a bundle.
        repo_id: owner/name.
        token: with write access; None: HF_TOKEN of the environment or of Colab's secrets, else the one that
            `huggingface_hub.login()` saved. It is never written to a file or the log.
        private: create a private repository. An existing public repository is refused unless this is False.
        dry_run: only list what would be sent, with sizes; needs neither token nor network.
        checked_files: files that are sent although they look as if they held a secret, by their path in the folder.
        commit_message: default: names the export.
        endpoint: address of another Hub; None: HF_ENDPOINT, else huggingface.co.
    Raises:
        ExportError: no such folder, nothing in it, or a file that looks as if it held a secret; names file and line.
        HubError: no token, no such owner, no permission, or no connection; says what to do.
    """
    if not isinstance(repo_id, str) or not is_hub_id(repo_id):
        raise HubError(f"got repo_id={shown(repo_id)}; a repository is named owner/name, such as 'me/my-model'.")
    folder = _folder_of(export)
    found = None if dry_run and token is None else _token(token)
    if found is not None:
        remember_secret(found)
    files = _files(folder)
    _refuse_secrets(folder, files, checked_files)
    if dry_run:
        return HubPush(repo_id, files, private, True)
    if found is None:
        raise HubError(
            f"there is no token of the Hugging Face Hub. Create one with write access at {_TOKEN_PAGE}, then set HF_TOKEN in "
            "the environment or in Colab's secrets, pass token=..., or call huggingface_hub.login()."
        )
    from huggingface_hub import HfApi

    api = HfApi(endpoint=endpoint, token=found)
    with _hub_errors(repo_id), _without_progress_bars():
        url = api.create_repo(repo_id, private=private, exist_ok=True, repo_type="model")
        is_private = bool(api.repo_info(repo_id, repo_type="model").private)
        if private and not is_private:
            raise HubError(
                f"{repo_id} exists and is public; nothing was sent. Pass private=False to publish the export there, or choose "
                "another repository."
            )
        commit: Any = api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            repo_type="model",
            commit_message=commit_message or f"Upload {folder.name} with Trainbook",
            allow_patterns=[_literal(name) for name in files],
        )
    _log.info("%d files were sent to %s.", len(files), repo_id)
    return HubPush(repo_id, files, is_private, False, str(url), commit.oid)


def _folder_of(export: Any) -> Path:
    if isinstance(export, Mapping) and not hasattr(export, "path"):
        if len(export) != 1:
            raise ExportError(
                f"one repository holds one export; got {', '.join(map(str, export)) or 'none'}. Push them one by one, such as "
                "push_to_hub(exported['hf'], ...)."
            )
        export = next(iter(export.values()))
    path = getattr(export, "path", export)
    if not isinstance(path, (str, Path)):
        raise ExportError(f"got a {type(export).__name__}; push an ExportResult or the path of a folder.")
    folder = Path(path).expanduser().absolute()
    if not folder.is_dir():
        raise ExportError(f"{folder} is not a folder; export the model first.")
    return folder


def _files(folder: Path) -> dict[str, int]:
    """Files to push: path in the repository -> bytes."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if not path.is_file() or any(part in _NEVER_SENT for part in name.parts):
            continue
        if not path.resolve().is_relative_to(folder.resolve()):
            raise ExportError(
                f"{path} is a link to a file outside the folder; nothing was sent. Remove it, or copy the file."
            )
        found[name.as_posix()] = path.stat().st_size
    if not found:
        raise ExportError(f"{folder} holds no files.")
    return found


def _refuse_secrets(folder: Path, files: Collection[str], checked: Collection[str]) -> None:
    suspicious = [
        reason for name in files if name not in checked and (reason := _suspicion(folder / name, name)) is not None
    ]
    if suspicious:
        raise ExportError(
            "nothing was sent, because these files look as if they held credentials:\n  "
            + "\n  ".join(suspicious)
            + "\nRemove them (and revoke them if they were shared), or name the file in checked_files."
        )


def _suspicion(file: Path, name: str) -> str | None:
    """Location of a possible secret in a file, without the secret itself; None where nothing looks like one."""
    if _SECRET_NAMES.fullmatch(file.name):
        return f"{name}: files of this name hold credentials"
    size = file.stat().st_size
    if not size:
        return None
    if size <= _LARGEST_TEXT:
        try:
            text = file.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            text = None
        if text is not None and "\0" not in text:
            by_name = file.name not in _VOCABULARIES
            if not holds_secret(text, by_name=by_name):
                return None
            lines = text.splitlines()
            number = next((n for n, line in enumerate(lines, 1) if holds_secret(line, by_name=by_name)), 1)
            return f"{name}, line {number}"
    with open(file, "rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return f"{name}: a token of this machine" if holds_secret(content) else None


def _token(given: str | None) -> str | None:
    if given is not None:
        if not isinstance(given, str) or not given.strip():
            raise HubError("token is empty; pass a token with write access, or None to use HF_TOKEN.")
        return given.strip()
    for name in _TOKEN_NAMES:
        if value := colab.secret(name):
            return value
    from huggingface_hub import get_token

    return get_token()


@contextlib.contextmanager
def _hub_errors(repo_id: str) -> Iterator[None]:
    """Errors of the Hub and of the network as HubError with the way out."""
    try:
        yield
    except HubError:
        raise
    except Exception as error:  # noqa: BLE001 - networking libraries and huggingface_hub share no class; raised again as ours
        raise HubError(_explained(repo_id, error)) from None


def _explained(repo_id: str, error: BaseException) -> str:
    owner = repo_id.partition("/")[0]
    again = "What the Hub has received is kept: the same call continues."
    chain = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None and cause not in chain:
        chain.append(cause)
    kinds = {kind.__name__ for one in chain for kind in type(one).__mro__}
    codes = (getattr(getattr(one, "response", None), "status_code", None) for one in chain)
    status = next((code for code in codes if code is not None), None)
    if "OfflineModeIsEnabled" in kinds:
        return f"{repo_id}: HF_HUB_OFFLINE forbids asking the Hub. Unset it, restart, and push again."
    if status == 401:
        return f"{repo_id}: the Hub did not accept the token (401). Create one with write access at {_TOKEN_PAGE}."
    if status == 403:
        return (
            f"{repo_id}: the token may not write to {owner!r} (403). Give it write access at {_TOKEN_PAGE}, or choose a "
            "repository of your own."
        )
    if status == 404:
        return (
            f"{repo_id}: the Hub has no owner {owner!r} or no such repository (404). Check the spelling of owner/name."
        )
    if status in (409, 412):
        return f"{repo_id}: somebody else changed the repository at the same time ({status}). Push again. {again}"
    if status == 413 or status == 507:
        return f"{repo_id}: the Hub has no room for the files ({status}). Check the storage limit of {owner!r}."
    if status is not None and status != 200:
        return f"{repo_id}: the Hub answered {status}: {first_line(error)}. {again}"
    if isinstance(error, ValueError):
        return f"{repo_id}: {first_line(error)}"
    return f"{repo_id}: the Hub could not be reached: {first_line(error)}. Check the connection and push again. {again}"


def _literal(name: str) -> str:
    """A pattern of huggingface_hub that fits this name only."""
    return re.sub(r"([\[*?])", r"[\1]", name)


@contextlib.contextmanager
def _without_progress_bars() -> Iterator[None]:
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    off = are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if not off:
            enable_progress_bars()
