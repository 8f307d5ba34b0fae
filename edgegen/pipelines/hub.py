"""Fetching models from the Hugging Face hub, with errors that say what to do."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import constants, get_session, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)

_PROBE_SECONDS = 5.0


def is_hub_id(source: str) -> bool:
    """Whether `source` reads as `owner/name`."""
    return re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", source) is not None


def fetch(repository: str, patterns: Sequence[str]) -> Path:
    """Local folder with those files of a hub repository that match `patterns`.

    Without network the cache serves. No file is ever executed.

    Raises:
        FileNotFoundError: no network, and nothing in the cache.
        ValueError: the hub has no such repository, or does not hand it out.
    """
    try:
        folder = snapshot_download(
            repository, allow_patterns=list(patterns), local_files_only=not _reachable()
        )
    except LocalEntryNotFoundError as error:
        raise FileNotFoundError(
            f"hub model '{repository}' is not in the local cache and the hub cannot be reached: "
            "connect to the network, or give a local folder or file"
        ) from error
    except GatedRepoError as error:
        raise ValueError(
            f"hub model '{repository}' is gated: accept its terms on its page, then `hf auth login`"
        ) from error
    except RepositoryNotFoundError as error:
        raise ValueError(
            f"the hub has no model '{repository}' (for a private one: `hf auth login`)"
        ) from error
    except HfHubHTTPError as error:
        line = str(error).strip().splitlines()[0]
        raise ValueError(f"hub model '{repository}': {line}") from error
    return Path(folder)


def _reachable() -> bool:
    # Without this probe each request to a hub out of reach is tried six times, in 23 s.
    if constants.HF_HUB_OFFLINE:
        return False
    try:
        answer = get_session().head(constants.ENDPOINT, timeout=_PROBE_SECONDS)
    except Exception:  # whichever HTTP library the hub's client uses: no answer is no network
        return False
    return answer.status_code < 500  # a proxy that reaches nothing
