"""Download a model's files from a GitHub gist: only from GitHub's own hosts, within limits of size and time.

The proxies of the environment (HTTPS_PROXY, NO_PROXY) are used. GITHUB_TOKEN, an environment variable or a secret of Colab,
raises GitHub's limit of 60 requests an hour; it is sent to GitHub's API alone and never shown.
"""

from __future__ import annotations

import http.client
import json
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from typing import IO, Any

from utils.colab import secret
from utils.errors import HubError, ModelError, TrainbookError
from utils.models.untrusted import MOST_BYTES, MOST_BYTES_OF_A_FILE, ForeignCode, check_names, check_size, is_code
from utils.schema import shown

API = "https://api.github.com"
#: Where files are read from: scheme and host. Everything else is refused, after a redirect as well.
ORIGINS = frozenset({"https://gist.github.com", "https://gist.githubusercontent.com", "https://api.github.com"})
# Seconds for a connection or an answer, and for a whole gist: a server that sends a byte now and then must end as well.
_ANSWER_TIMEOUT_S = 15.0
_WHOLE_TIMEOUT_S = 60.0
_ID = re.compile(r"[0-9a-f]{20,40}|\d{1,12}")
_REVISION = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class GistAddress:
    """A gist, and the revision that was asked for; None: the newest."""

    id: str
    revision: str | None = None

    def __str__(self) -> str:
        return f"gist {self.id}" + (f" at {self.revision[:10]}" if self.revision else "")


def gist_address(text: str) -> GistAddress | None:
    """The gist that an address or an id names; None when it is neither.

    Args:
        text: "gist:<id>", "gist:<id>@<revision>", "https://gist.github.com/<user>/<id>[/<revision>]", the address of its raw
            file, or its id alone (hexadecimal, 20 digits or more).
    Raises:
        ModelError: an address of another host, or one that names no gist.
    """
    if text.startswith("gist:"):
        gist_id, _, revision = text.removeprefix("gist:").strip().partition("@")
        return _checked(gist_id, revision or None, text)
    if "://" not in text:
        return GistAddress(text) if re.fullmatch(r"[0-9a-f]{20}|[0-9a-f]{32}", text) else None
    try:
        address = urllib.parse.urlsplit(text)
        host = (address.hostname or "").lower()
    except ValueError:
        raise ModelError(f"got {shown(text)}, which is no address of a gist, such as {_EXAMPLE}.") from None
    if address.scheme not in ("http", "https") or host not in {urllib.parse.urlsplit(one).hostname for one in ORIGINS}:
        raise ModelError(
            f"got an address of {host or 'no host'}; model code is loaded from gist.github.com only, such as {_EXAMPLE}. "
            "Download other files yourself, read them, and give their path."
        )
    parts = [part for part in address.path.split("/") if part]
    ids = [number for number, part in enumerate(parts) if _ID.fullmatch(part)]
    if not ids:
        raise ModelError(f"got {shown(text)}, which names no gist. Its address looks like {_EXAMPLE}.")
    # A user may be called like an id; a gist's own address has at most the user before it.
    position = ids[0] if ids[0] > 0 or len(parts) == 1 or not _ID.fullmatch(parts[1]) else 1
    given_revision = next((part for part in parts[position + 1 :] if _REVISION.fullmatch(part)), None)
    return GistAddress(parts[position], given_revision)


_EXAMPLE = "https://gist.github.com/<user>/<id>"


def _checked(gist_id: str, revision: str | None, text: str) -> GistAddress:
    if not _ID.fullmatch(gist_id) or (revision is not None and not _REVISION.fullmatch(revision)):
        raise ModelError(
            f"got {shown(text)}; a gist is named as gist:<id> or gist:<id>@<revision>, in hexadecimal digits."
        )
    return GistAddress(gist_id, revision)


def download_gist(gist: GistAddress) -> ForeignCode:
    """The Python files and the config.json of a gist. Nothing is run or written.

    Raises:
        HubError: GitHub cannot be reached, refused, has no such gist, or redirected to another host.
        ModelError: the gist has no model.py, or files outside of the limits.
    """
    deadline = time.monotonic() + _WHOLE_TIMEOUT_S
    path = f"/gists/{gist.id}" + (f"/{gist.revision}" if gist.revision else "")
    answer = _fetch(API + path, gist, 4 * MOST_BYTES, deadline)
    try:
        described = json.loads(answer)
        entries = {str(name): dict(entry) for name, entry in described["files"].items()}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise HubError(
            f"{gist}: the answer of {API} is not that of GitHub's API. A proxy or a login page may stand in between."
        ) from None
    check_names(entries, str(gist))
    if described.get("truncated"):
        raise ModelError(f"{gist} has more files than GitHub lists. Put the model into a gist of its own.")
    files = {name: _content(name, entry, gist, deadline) for name, entry in entries.items() if is_code(name)}
    if "model.py" not in files:
        raise ModelError(
            f"{gist} has no file model.py; it has {', '.join(sorted(entries)[:20]) or 'no files'}. A model's gist holds "
            "model.py, and config.json with its arguments."
        )
    return ForeignCode(str(gist), files)


def _content(name: str, entry: Mapping[str, Any], gist: GistAddress, deadline: float) -> bytes:
    size, content = entry.get("size"), entry.get("content")
    if isinstance(size, int):
        check_size(name, size, str(gist))
    if isinstance(content, str) and not entry.get("truncated"):
        data = content.encode("utf-8", errors="surrogatepass")
    else:
        data = _fetch(str(entry.get("raw_url")), gist, MOST_BYTES_OF_A_FILE, deadline)
    check_size(name, len(data), str(gist))
    return data


def _origin(address: str) -> str:
    """Scheme and host of an address, as ORIGINS has them. A user name before the host is no part of it."""
    parts = urllib.parse.urlsplit(address)
    port = f":{parts.port}" if parts.port is not None else ""
    return f"{parts.scheme.lower()}://{(parts.hostname or '').lower()}{port}"


def _require_origin(address: str, gist: GistAddress) -> None:
    try:
        origin = _origin(address)
    except ValueError:
        origin = "an address that cannot be read"
    if origin not in ORIGINS:
        raise HubError(
            f"{gist}: GitHub's answer leads to {origin}, which is not one of GitHub's hosts for gists; nothing was read there. "
            "Check the gist in a browser."
        )


class _SameHosts(urllib.request.HTTPRedirectHandler):
    """Follows a redirect only to one of ORIGINS."""

    def __init__(self, gist: GistAddress) -> None:
        self._gist = gist

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        try:
            _require_origin(newurl, self._gist)
        except HubError:
            fp.close()
            raise
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _fetch(address: str, gist: GistAddress, most: int, deadline: float) -> bytes:
    """Download `address`, at most `most` bytes."""
    _require_origin(address, gist)
    request = urllib.request.Request(address, headers={"User-Agent": "trainbook"})  # noqa: S310 - https, by ORIGINS
    if address.startswith(API):
        request.add_header("Accept", "application/vnd.github+json")
        if token := secret("GITHUB_TOKEN"):
            request.add_unredirected_header("Authorization", f"Bearer {token}")
    try:
        with urllib.request.build_opener(_SameHosts(gist)).open(request, timeout=_ANSWER_TIMEOUT_S) as answer:
            return _read(answer, gist, most, deadline)
    except TrainbookError:
        raise
    except urllib.error.HTTPError as error:
        with error:
            raise HubError(_refusal(error, gist)) from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        raise HubError(
            f"{gist}: {_origin(address)} could not be reached: {str(reason) or type(reason).__name__}. Check the connection "
            "and the proxy settings, or save model.py on this machine and give its path."
        ) from None


def _read(answer: Any, gist: GistAddress, most: int, deadline: float) -> bytes:
    chunks, total = [], 0
    while chunk := answer.read1(1 << 16):
        chunks.append(chunk)
        total += len(chunk)
        if total > most:
            raise ModelError(
                f"{gist}: the answer has more than {most:,} bytes, the most that is read. Make the gist smaller."
            )
        if time.monotonic() > deadline:
            raise HubError(f"{gist}: not complete after {_WHOLE_TIMEOUT_S:.0f} seconds. Try again later.")
    return b"".join(chunks)


def _refusal(error: urllib.error.HTTPError, gist: GistAddress) -> str:
    """Error message for GitHub's HTTP status."""
    if error.code in (403, 429) and (error.headers.get("X-RateLimit-Remaining") == "0" or error.code == 429):
        try:
            minutes = max(1, round((int(error.headers.get("X-RateLimit-Reset") or 0) - time.time()) / 60))
        except ValueError:
            minutes = 60
        when = f" Try again in {minutes} min" if minutes <= 120 else " Try again later"
        return (
            f"{gist}: GitHub's limit of requests is used up (status {error.code}).{when}, or set GITHUB_TOKEN to a token of "
            "yours, in the environment or in Colab's secrets."
        )
    if error.code == 401:
        return (
            f"{gist}: GitHub does not accept GITHUB_TOKEN (status 401). Renew it, or unset it: public gists need none."
        )
    if error.code == 404:
        return (
            f"{gist}: GitHub has no such gist, or no such revision of it (status 404). Check the address in a browser."
        )
    if 500 <= error.code < 600:
        return f"{gist}: GitHub cannot answer now (status {error.code}). Try again in a minute."
    return f"{gist}: GitHub refused (status {error.code} {error.reason})."
