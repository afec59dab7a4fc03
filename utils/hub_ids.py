"""Ids of repositories on the Hugging Face Hub, recognised among paths and other names without asking the Hub."""

from __future__ import annotations

import re
from typing import NamedTuple

# Characters and length that huggingface_hub allows for an owner and for a name (validate_repo_id refuses a few more of them).
_NAME = r"[\w-][\w.-]{0,95}"
_REFERENCE = re.compile(rf"(?P<id>{_NAME}/{_NAME})(?:@(?P<revision>[\w./-]+))?")
_OPTIONAL_OWNER = re.compile(rf"(?:{_NAME}/)?{_NAME}")


class HubReference(NamedTuple):
    """A repository, "owner/name", and one of its revisions, or None for the default branch."""

    id: str
    revision: str | None


def hub_reference(text: str) -> HubReference | None:
    """The reference that "owner/name" or "owner/name@revision" is, or None."""
    match = _REFERENCE.fullmatch(text)
    return None if match is None else HubReference(match["id"], match["revision"])


def is_hub_id(text: str, *, needs_owner: bool = True) -> bool:
    """Whether `text` is the id of a repository. Some old datasets have no owner: pass `needs_owner=False` for them."""
    reference = hub_reference(text)
    if needs_owner:
        return reference is not None and reference.revision is None
    return _OPTIONAL_OWNER.fullmatch(text) is not None
