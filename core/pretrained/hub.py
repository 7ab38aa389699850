"""The hub, asked in one place: whether it can be asked at all, which commit a revision is, whether
it lets us have a repository, and what its refusals mean, in sentences.

Its own client waits and tries again for a minute where there is no network, in lines that nobody
can read; here a hub that does not answer within PATIENCE seconds is not asked, and what it said
before is taken.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Literal, TypeVar

from core.errors import UserError, first_line
from core.files import cache_folder, read_json, write_atomic
from core.store import digest

PATIENCE = 5.0
"""Seconds in which the hub answers a small question, or counts as out of reach."""
AGAIN = 60.0
"""Seconds for which a hub out of reach is not knocked at again."""
STILL = 10.0
"""Seconds for which one that answered is taken to be there."""
BUSY = (429, 500, 502, 503, 504)
"""Statuses that pass by themselves."""

Kind = Literal["model", "dataset"]
NOUNS: dict[Kind, str] = {"model": "model", "dataset": "data set"}
_COMMIT = re.compile(r"[0-9a-f]{40}")

_ADDRESSES = re.compile(
    r"\(Request ID: [^)]*\)\s*|\s*((for|on|from) (url:? )?)?\S*https?://\S+"
    r"|\s*For more information\b.*",
    re.IGNORECASE,
)

_knocked: dict[str, tuple[float, str | None]] = {}
_commits: dict[str, str] = {}
_allowed: set[str] = set()
_knocking = threading.Lock()

Answer = TypeVar("Answer")


class HubError(UserError):
    """The hub said no, or nothing."""


def endpoint() -> str:
    """The hub's address: HF_ENDPOINT, else the public one."""
    from huggingface_hub import constants

    return str(constants.ENDPOINT)


def out_of_reach() -> str | None:
    """Why the hub cannot be asked, None where it can. What was found holds for a while."""
    from huggingface_hub import constants

    if constants.is_offline_mode():
        return "HF_HUB_OFFLINE is set"
    address = endpoint()
    with _knocking:
        until, why = _knocked.get(address, (0.0, None))
        if time.monotonic() >= until:
            why = _knock(address)
            _knocked[address] = (time.monotonic() + (AGAIN if why else STILL), why)
    return why


def require(what: str) -> None:
    """Raises HubError where the hub cannot be asked; `what` needs it."""
    why = out_of_reach()
    if why is not None:
        raise HubError(f"{what} needs the hub, and {endpoint()} cannot be reached ({why}).")


def lost(error: BaseException) -> bool:
    """Whether the hub took a question and never answered. It then counts as out of reach for a
    while, so that what is asked next does not wait for it too."""
    asked = list(causes(error))
    if any(map(status_of, asked)) or not any(map(_of_network, asked)):
        return False
    with _knocking:
        _knocked[endpoint()] = (time.monotonic() + AGAIN, plain(error))
    return True


def _of_network(error: BaseException) -> bool:
    """Whether an error is one of a connection, whichever library makes it."""
    names = [kind.__name__ for kind in type(error).__mro__]
    return isinstance(error, OSError) or "TransportError" in names


def offline_variables() -> dict[str, str]:
    """For the environment of a child whose libraries would wait for a hub that is out of reach."""
    return {"HF_HUB_OFFLINE": "1"} if out_of_reach() is not None else {}


def _knock(address: str) -> str | None:
    """Why nobody answers at an address, None where somebody does. In a thread of its own, since
    nothing limits how long a name is looked up."""
    from huggingface_hub import get_session

    said: list[str | None] = []

    def knock() -> None:
        try:
            get_session().head(address, timeout=PATIENCE, follow_redirects=False)
            said.append(None)
        except Exception as error:  # of the hub client's HTTP library, which changed twice
            said.append(first_line(error))

    thread = threading.Thread(target=knock, daemon=True)
    thread.start()
    thread.join(PATIENCE + 1)
    return said[0] if said else f"no answer within {PATIENCE:.0f} s"


def commit_of(repo: str, revision: str | None, kind: Kind = "model") -> str | None:
    """The commit that `revision` (a branch, tag or commit; None: the newest) of a repository is.

    Asked of the hub once in a process, so that all of it sees one commit. Of a hub out of reach:
    what it said last, to any process of this user, or what its cache holds; else None. Raises
    HubError where the hub knows no such repository or revision, or answers badly and nothing was
    said before.
    """
    if revision and _COMMIT.fullmatch(revision):
        return revision
    asked = digest([endpoint(), kind, repo, revision or "main"])[:32]
    if asked in _commits:
        return _commits[asked]
    memory = cache_folder() / "commits" / f"{asked}.json"
    try:
        found = _asked(repo, revision, kind)
    except HubError:
        raise
    except Exception as error:
        found = _remembered(memory, repo, revision, kind)
        if found is None:
            raise HubError(refusal(error, repo, kind)) from error
    if found is None:
        return _remembered(memory, repo, revision, kind)
    _commits[asked] = found
    said = {"hub": endpoint(), kind: repo, "revision": revision or "main", "commit": found}
    with suppress(OSError):
        write_atomic(memory, json.dumps(said))
    return found


def _asked(repo: str, revision: str | None, kind: Kind) -> str | None:
    """The commit as the hub says it, None where it is out of reach. Raises HubError where it knows
    none, and the hub client's errors."""
    if out_of_reach() is not None:
        return None
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    try:
        said = patiently(
            lambda: HfApi().repo_info(repo, revision=revision, repo_type=kind, timeout=PATIENCE)
        )
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise HubError(refusal(error, repo, kind, revision)) from error
    except Exception as error:
        if lost(error):
            return None
        raise
    return str(said.sha)


def _remembered(memory: Path, repo: str, revision: str | None, kind: Kind) -> str | None:
    """What the hub said last, or what its client noted when it downloaded."""
    with suppress(OSError, UserError, KeyError, TypeError):
        return str(read_json(memory)["commit"])
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    folder = repo_folder_name(repo_id=repo, repo_type=kind)
    with suppress(OSError):
        found = (Path(constants.HF_HUB_CACHE) / folder / "refs" / (revision or "main")).read_text()
        return found.strip() or None
    return None


def check_access(repo: str, commit: str, kind: Kind = "model") -> None:
    """Raises HubError where the hub does not let us have a repository's files: it is gated, or
    private. What is here already, and a hub out of reach or without an answer, pass."""
    from huggingface_hub import get_session, try_to_load_from_cache
    from huggingface_hub.errors import RepositoryNotFoundError
    from huggingface_hub.utils._headers import build_hf_headers
    from huggingface_hub.utils._http import hf_raise_for_status

    here = try_to_load_from_cache(repo, "config.json", revision=commit, repo_type=kind)
    address = f"{endpoint()}/api/{kind}s/{repo}/auth-check"
    if isinstance(here, str) or address in _allowed or out_of_reach() is not None:
        return

    def ask() -> None:
        answer = get_session().get(address, headers=build_hf_headers(), timeout=PATIENCE)
        hf_raise_for_status(answer)

    try:
        patiently(ask)
        _allowed.add(address)
    except RepositoryNotFoundError as error:  # gated, private
        raise HubError(refusal(error, repo, kind)) from error
    except Exception as error:
        if status_of(error) in (401, 403):
            raise HubError(refusal(error, repo, kind)) from error
        lost(error)


def patiently(ask: Callable[[], Answer]) -> Answer:
    """The answer to a small question, asked again after a second and two where the hub is busy."""
    for pause in (1, 2):
        try:
            return ask()
        except Exception as error:
            if status_of(error) not in BUSY or _wait(error) > pause:
                raise
            time.sleep(pause)
    return ask()


def refusal(
    error: BaseException, repo: str, kind: Kind = "model", revision: str | None = None
) -> str:
    """What an error of the hub's client (or of `datasets`, which wraps it) means, and what to do,
    in one sentence."""
    what = f"{NOUNS[kind]} {repo}"
    names = {type(each).__name__ for each in causes(error)}
    status = next((s for each in causes(error) if (s := status_of(each))), 0)
    if "GatedRepoError" in names:
        return _gated(what, repo, kind)
    if "RevisionNotFoundError" in names:
        named = f" '{revision}'" if revision else ""
        return (
            f"{what} has no revision{named} on the hub; name a branch, tag or commit that it has."
        )
    if names & {"RepositoryNotFoundError", "DatasetNotFoundError"}:
        return (
            f"the hub knows no {what}, or it is private: "
            "check the name, and set HF_TOKEN if it is yours."
        )
    if status:
        return _by_status(status, what, error)
    if "OfflineModeIsEnabled" in names:
        return f"{what} is not in the hub's cache, and HF_HUB_OFFLINE is set."
    return f"{what} cannot be had from the hub ({plain(error)})"


def _gated(what: str, repo: str, kind: Kind) -> str:
    from huggingface_hub import get_token

    page = f"{endpoint()}/{'datasets/' if kind == 'dataset' else ''}{repo}"
    if get_token():
        return f"{what} is gated, and the account of HF_TOKEN has no access: ask for it at {page}."
    return f"{what} is gated: ask for access at {page}, then set HF_TOKEN (`hf auth login`)."


def _by_status(status: int, what: str, error: BaseException) -> str:
    """What a status that has no class of its own means."""
    if status == 401:
        return f"the hub does not accept the token in HF_TOKEN for {what}; make a new one there."
    if status == 403:
        return f"the hub forbids {what} ({_own_words(error)}); HF_TOKEN's account may not do that."
    if status == 404:
        return f"the hub has no such file of {what} ({_own_words(error)}); check the name."
    if status == 429:
        later = f"in {_wait(error):.0f} s" if _wait(error) else "in some minutes"
        return (
            f"the hub takes no more questions for now (429, {what}); try again {later}, "
            "or set HF_TOKEN, which raises the limit."
        )
    if status >= 500:
        return f"the hub has a fault of its own ({status}, {what}); try again in some minutes."
    return f"the hub refuses {what} ({status}: {_own_words(error)})"


def _own_words(error: BaseException) -> str:
    """What the hub itself says of an error."""
    said = next((s for each in causes(error) if (s := getattr(each, "server_message", None))), "")
    return str(said).strip() or plain(error)


def _wait(error: BaseException) -> float:
    """Seconds that the hub asks to wait, 0 where it does not say."""
    for each in causes(error):
        headers = getattr(getattr(each, "response", None), "headers", {})
        named = re.search(r";\s*t\s*=\s*(\d+)", str(headers.get("ratelimit", "")))
        said = str(headers.get("retry-after", named[1] if named else ""))
        if said.isdigit():
            return float(said)
    return 0.0


def plain(error: BaseException) -> str:
    """The innermost thing that an error says, without addresses, in at most 200 characters."""
    said = [text for each in causes(error) if (text := " ".join(str(each).split()))]
    best = said[-1] if said else type(error).__name__
    return _ADDRESSES.sub("", best)[:200].rstrip(". ")


def status_of(error: BaseException) -> int:
    """The HTTP status of an error, 0 where it has none."""
    return int(getattr(getattr(error, "response", None), "status_code", 0) or 0)


def causes(error: BaseException) -> Iterator[BaseException]:
    """An error and what it came of, outermost first."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or current.__context__
