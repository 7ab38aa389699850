"""Embeddings by a service: `/v1/embeddings` of anything that speaks OpenAI's API, what they cost
counted like what chats cost."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from core.errors import UserError
from core.models import Model
from core.sending.chat import EMBEDDINGS
from core.servers import Endpoint, Servers
from core.store import digest
from core.tracking import Log
from core.wire import Reply, Request
from synth.config.tags import NeighborsConfig
from synth.context import Context, Serving
from synth.duplicates.blocks import Vectors

BATCH = 64
"""Texts of one request."""
CUT = 8_000
"""Characters that are left of a text which a service refuses: it is too long for its model."""


def model_of(config: NeighborsConfig, context: Context) -> Model:
    """The model that embeds, with what determines its vectors. A service knows its own by name."""
    given = config.model
    if isinstance(given, str):
        return context.resolve(given, None)
    revision = digest(["/v1/embeddings", given.model, given.revision])
    return Model(given.model, given.model, revision)


def service_of(config: NeighborsConfig, context: Context) -> Service | None:
    """The service that embeds; None where a model on this machine does."""
    given = config.model
    if isinstance(given, str):
        return None
    if isinstance(context, Serving):
        return Service(context.serve(given).endpoint)
    # A pool reads vectors where no server of ours is at hand, and a service needs none.
    servers = Servers(Log(), context.root / "logs")
    return Service(context.serving(servers).serve(given).endpoint)


@dataclass
class Service:
    """A service that embeds texts."""

    endpoint: Endpoint
    _keys: list[str] = field(default_factory=list)

    @contextmanager
    def open(self) -> Iterator[None]:
        """In this block nothing that was paid for is lost, nor paid twice after a kill."""
        account = self.endpoint.account
        with account.open() if account else nullcontext():
            yield

    def stored(self) -> None:
        """What was embedded so far is in the store."""
        if self.endpoint.account:
            self.endpoint.account.stored(self._keys)
        self._keys = []

    def encode(self, texts: Sequence[str]) -> Vectors:
        """Vectors of texts, float64 [n, d], not of unit length. Raises UserError when the service
        gives none."""
        found: dict[int, list[list[float]]] = {}
        starts = range(0, len(texts), BATCH)
        batches = {start: list(texts[start : start + BATCH]) for start in starts}
        again: dict[int, list[str]] = {}
        for start, vectors in self._asked({start: batches[start] for start in starts}):
            if vectors is None:
                again |= {start + at: [text] for at, text in enumerate(batches[start])}
            else:
                found[start] = vectors
        found |= self._one_by_one(again)
        return np.array(list(itertools.chain(*(found[at] for at in sorted(found)))))

    def _one_by_one(self, texts: dict[int, list[str]]) -> dict[int, list[list[float]]]:
        """Texts of a batch that was refused, each by itself; one that is refused is cut."""
        found, long = {}, {}
        for at, vectors in self._asked(texts):
            if vectors is None:
                long[at] = [texts[at][0][:CUT]]
            else:
                found[at] = vectors
        for at, vectors in self._asked(long):
            if vectors is None:
                shown = " ".join(long[at][0].split())[:60]
                raise UserError(
                    f"{self.endpoint.spec.model} embeds neither a text nor its first {CUT:,} "
                    f"characters: {shown!r} ..."
                )
            found[at] = vectors
        return found

    def _asked(
        self, batches: dict[int, list[str]]
    ) -> Iterator[tuple[int, list[list[float]] | None]]:
        """The vectors of each batch; None where the service refused it for what it holds."""
        if not batches:
            return
        requests = (
            Request(f"{digest(texts)[:24]}:{at}", {"input": texts}, EMBEDDINGS)
            for at, texts in batches.items()
        )
        for reply in self.endpoint.answers(requests):
            at = int(reply.key.rpartition(":")[2])
            self._keys.append(reply.key)
            if reply.body is not None:
                yield at, self._vectors(reply.body, len(batches[at]))
            elif reply.fault == "request":
                yield at, None
            else:
                raise self._useless(reply)

    def _vectors(self, body: dict[str, Any], count: int) -> list[list[float]]:
        try:
            ordered = sorted(body["data"], key=lambda each: each["index"])
            vectors = [list(map(float, each["embedding"])) for each in ordered]
        except (KeyError, TypeError, ValueError) as error:
            raise self._bad() from error
        if len(vectors) != count or len({len(vector) for vector in vectors}) != 1:
            raise self._bad()
        return vectors

    def _bad(self) -> UserError:
        return UserError(
            f"{self.endpoint.spec.model} does not answer {EMBEDDINGS} with one vector of numbers "
            "for each text; is it an embedding model?"
        )

    def _useless(self, reply: Reply) -> UserError:
        return UserError(
            f"{self.endpoint.spec.model} gave no vectors: {reply.error}; what was embedded is "
            "kept: run again."
        )
