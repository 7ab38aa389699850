"""What goes over the wire: which server is asked, what a request says, and what became of it.

Shared by whoever builds requests, by the client that sends them and by the servers that answer, so
that none of those imports another.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field, field_validator

_CODE = "trust_remote_code"
_ASKS_FOR_CODE = re.compile(r"^\s*--trust|trust[-_]remote[-_]code[\"']?\s*[=:]", re.IGNORECASE)
"""An option of a command line among the values of another, and a setting within a text."""


def no_code(settings: Mapping[str, Any]) -> None:
    """Raise ValueError where settings of a library, at whatever depth, would let it run code that
    comes with a model or a data set: those are data here (SECURITY.md)."""
    if _asks_for_code(settings):
        raise ValueError(
            "`trust_remote_code` is refused: a model or data set may run no code of its own here; "
            "remove it"
        )


def _asks_for_code(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(
            (_is_code(str(key)) and inner is not None and inner is not False)
            or _asks_for_code(inner)
            for key, inner in value.items()
        )
    if isinstance(value, (list, tuple)):
        return any(map(_asks_for_code, value))
    return isinstance(value, str) and _ASKS_FOR_CODE.search(value) is not None


def _is_code(key: str) -> bool:
    """Whether a key names it, with dashes, in capitals or shortened as a command line allows."""
    name = key.lower().replace("-", "_")
    return _CODE in name or (name.startswith("trust") and _CODE.startswith(name))


class ServerSpec(BaseModel):
    """Which model to talk to, and how it is served."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    model: str
    """Folder or hub id of the model; also the model's name in requests, unless
    `args.served_model_name` is given."""
    urls: tuple[str, ...] = ()
    """OpenAI-compatible servers to use, each up to but without /v1; no server is started then."""
    api_key_env: str | None = None
    """Name of the environment variable that holds the key for `urls`."""
    replicas: int | None = Field(None, ge=1, le=10_000)
    """vLLM servers to start, each on its own GPUs (tensor x pipeline x data parallel size of
    them). None: as many as the GPUs of the machine hold, one without GPUs."""
    max_in_flight: int = Field(128, ge=1, le=100_000)
    """Requests in flight at each server that is started, so `replicas` times as many in all; over
    all `urls` together."""
    timeout: float = Field(600, gt=0)
    """Seconds that one attempt of one request may take."""
    args: dict[str, Any] = {}
    """vLLM engine arguments, passed verbatim, e.g. {max_model_len: 2048, tensor_parallel_size: 2,
    runner: pooling}."""
    env: dict[str, str] = {}
    """Environment variables for the server processes."""

    @field_validator("args", "env")
    @classmethod
    def _without_code(cls, settings: dict[str, Any]) -> dict[str, Any]:
        no_code(settings)
        return settings

    @field_validator("args")
    @classmethod
    def _written_here(cls, args: dict[str, Any]) -> dict[str, Any]:
        if "config" in args:  # a file of further arguments, which no check here would see
            raise ValueError("`config` names a file of arguments; write those here instead")
        return args

    @field_validator("urls")
    @classmethod
    def _check_urls(cls, urls: tuple[str, ...]) -> tuple[str, ...]:
        for url in urls:
            if not re.match(r"https?://[^/\s]+", url):
                raise ValueError(f"'{url}' is not an http:// or https:// address")
            if re.search(r"/v1(/.*)?$", url):
                raise ValueError(f"'{url}' must end before /v1")
        return tuple(url.rstrip("/") for url in urls)

    @property
    def in_flight(self) -> int:
        """Requests in flight over all servers."""
        return self.max_in_flight if self.urls else self.max_in_flight * (self.replicas or 1)

    @property
    def request_model(self) -> str:
        """The model's name as requests must give it."""
        served = self.args.get("served_model_name") or self.model
        return str(served[0]) if isinstance(served, (list, tuple)) else str(served)


@dataclass(frozen=True)
class Request:
    """One call: `key` comes back with the reply; `body` is the JSON body ("model" is filled in
    where absent)."""

    key: str
    body: dict[str, Any]
    path: str = "/v1/completions"


@dataclass(frozen=True)
class Reply:
    """What became of a request: the JSON `body`, or `error` in one sentence; `attempts` counts the
    calls made for it.

    `fault` says whose an error is: the "request"'s own (too long, malformed), the "server"'s (down,
    overloaded, too slow, after all attempts), or that of the "access" to it (wrong key or model
    name), which every request would meet.
    """

    key: str
    body: dict[str, Any] | None
    error: str | None = None
    attempts: int = 1
    fault: Literal["", "request", "server", "access"] = ""
    behind: int = field(default=0, compare=False)
    """How many further replies had arrived when this one was handed on."""


FollowUp = Callable[[Reply], Request | None]
"""The next request of a chain, given the reply to the one before; None where the chain ends."""


class OwnServer(Protocol):
    """What sending needs of a server that was started here (serving/vllm_server.py has one)."""

    url: str
    generation: int

    def revive(
        self, seen: int, limit: int, say: Callable[[str], None], abandon: threading.Event
    ) -> bool:
        """Start it again if it died since generation `seen`; true when it answers again. Raises
        UserError beyond generation `limit`."""


@dataclass(eq=False)
class Target:
    """A server that requests can go to: a `url` from the recipe, or a `server` of our own, which
    can be restarted (at another port)."""

    url: str = ""
    key: str | None = None
    server: OwnServer | None = None
    in_flight: int = 0
    first_generation: int = 0
    """The own server's generation when the stream began: restarts are counted from there."""

    @property
    def address(self) -> str:
        """Base address of the server now."""
        return self.server.url if self.server else self.url


def scoring_request(key: str, ids: list[int], more: Mapping[str, Any] | None = None) -> Request:
    """Ask a prompt's own log-probabilities: read the reply with `prompt_losses`. `more` of the
    body: the model, where it is not the server's own."""
    body = {"prompt": ids, "max_tokens": 1, "temperature": 0, "prompt_logprobs": 0}
    return Request(key, body | dict(more or {}))


def prompt_losses(
    choice: Mapping[str, Any], ids: Sequence[int], start: int, end: int
) -> list[float]:
    """Negative log-likelihood (nats) of `ids[start:end]`, each given all before it, from a choice
    of a reply to `scoring_request`.

    One mapping a position, from token id to {"logprob", ...}, holds the token that is there. Raises
    KeyError, IndexError, TypeError or ValueError when the reply holds no such thing.
    """
    given = choice["prompt_logprobs"]
    return [-float(given[at][str(ids[at])]["logprob"]) for at in range(start, end)]


def reward_request(key: str, ids: list[int]) -> Request:
    """Ask a sequence-classification model for a conversation's score: read the reply with
    `rewards`.

    Thresholds such as the paper's -12 are logits; the server applies a sigmoid unless told not to.
    """
    return Request(key, {"input": ids, "use_activation": False}, "/classify")


def rewards(body: Mapping[str, Any]) -> list[float]:
    """The logits in a reply to `reward_request`, one an output of the model (a reward model has
    one).

    Raises KeyError, IndexError, TypeError or ValueError when the reply holds none.
    """
    return [float(score) for score in body["data"][0]["probs"]]
