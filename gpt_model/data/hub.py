"""The Hugging Face hub: which commit a name stands for now, and whether a failure is ours or the
network's.

Reading rows is `location.py`'s. HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE mean what they mean to the
hub's own client.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from gpt_model.errors import Unreachable, UserError

COMMIT = re.compile(r"[0-9a-f]{40}")
TIMEOUT = 20.0  # seconds to wait for an answer
RETRY_AFTER = 60.0  # seconds that a hub which did not answer is not asked again
ASK_AGAIN_AFTER = 60.0  # seconds that an answer holds: dozens of tasks may read one data set
_silent_since = float("-inf")
# (endpoint, kind, repository, revision) -> when it was asked, and the commit
_answers: dict[tuple[str | None, str, str, str], tuple[float, str]] = {}
_UNREACHABLE = (
    "The hub could not be asked which commit {0!r} of {1} is ({2}). "
    "Try again where it can be reached, or write the commit's 40 digits as `revision`."
)


def commit_of(repository: str, revision: str, kind: Literal["dataset", "model"]) -> str:
    """The commit, 40 digits, that a branch or tag of a repository stands for now; `revision` itself
    where it is one already.

    Raises Unreachable where the hub does not answer, UserError (field `hub` or `revision`) where it
    knows no such thing.
    """
    global _silent_since
    if COMMIT.fullmatch(revision):
        return revision
    if time.monotonic() - _silent_since < RETRY_AFTER:
        raise Unreachable(
            _UNREACHABLE.format(revision, repository, "it did not answer a moment ago"),
            field="revision",
        )
    from huggingface_hub import HfApi  # slow to import, and most recipes name no branch
    from huggingface_hub.errors import (
        GatedRepoError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    endpoint = os.environ.get("HF_ENDPOINT")
    question = (endpoint, kind, repository, revision)
    answered, commit = _answers.get(question, (float("-inf"), ""))
    if time.monotonic() - answered < ASK_AGAIN_AFTER:
        return commit
    hub = HfApi(endpoint=endpoint)
    ask = hub.dataset_info if kind == "dataset" else hub.model_info
    try:
        commit = str(ask(repository, revision=revision, timeout=TIMEOUT).sha)
        _answers[question] = time.monotonic(), commit
        return commit
    except RevisionNotFoundError:
        raise UserError(
            f"The {kind} {repository} on the hub has no revision {revision!r}. Give a commit or "
            "branch of it.",
            field="revision",
        ) from None
    except GatedRepoError:
        raise UserError(
            f"The {kind} {repository} on the hub is given only to those its authors let in: ask "
            "on its page, then set HF_TOKEN.",
            field="hub",
        ) from None
    except RepositoryNotFoundError:
        raise UserError(
            f"The hub has no {kind} {repository}, or HF_TOKEN does not open it. Correct the name.",
            field="hub",
        ) from None
    except Exception as error:
        if silent(error):
            _silent_since = time.monotonic()
            raise Unreachable(
                _UNREACHABLE.format(revision, repository, _short(error)), field="revision"
            ) from None
        raise


def snapshot(repository: str, commit: str, patterns: Sequence[str], downloads: Path) -> Path:
    """A folder with those files of a model at a commit. Raises Unreachable where the hub does not
    answer.
    """
    from huggingface_hub import snapshot_download  # slow to import, and most data is elsewhere

    try:
        folder = snapshot_download(
            repository,
            revision=commit,
            allow_patterns=list(patterns),
            cache_dir=downloads / "hub",
            endpoint=os.environ.get("HF_ENDPOINT"),
        )
    except Exception as error:
        if silent(error):
            raise Unreachable(
                f"The hub did not give {repository} at {commit[:12]}: it does not answer. Try "
                "again where it can be reached."
            ) from None
        raise
    return Path(folder)


def silent(error: BaseException) -> bool:
    """Whether a failure of the hub's client or of `datasets` means that nobody answered: no
    network, no server, or offline by order.
    """
    import requests  # slow to import, and only a failure needs it
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    # httpx under whichever name this version of the client has it
    from huggingface_hub.utils import httpx

    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        if isinstance(
            cause,
            (
                ConnectionError,
                TimeoutError,
                httpx.TransportError,
                requests.ConnectionError,
                requests.Timeout,
            ),
        ):
            return True
        if isinstance(cause, (LocalEntryNotFoundError, OfflineModeIsEnabled)):
            return True
        if (
            isinstance(cause, HfHubHTTPError)
            and cause.response is not None
            and cause.response.status_code in (403, 407, 502, 503, 504)
        ):
            # a proxy's refusal or a server that is down, not the hub's own answer
            return cause.response.headers.get("x-error-code") is None
        cause = cause.__cause__ or cause.__context__
    return False


def _short(error: BaseException) -> str:
    first_line = next(iter(str(error).strip().splitlines()), "no answer")
    return f"{type(error).__name__}: {first_line[:160]}"
