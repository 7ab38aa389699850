"""Embeddings of texts as unit vectors, kept in the store: a text is embedded once by a model,
whichever pool, measure or run asks for it.

One folder a model revision, `ROOT/vectors/KEY/`: `vectors.f32` holds the rows (float32, appended),
`rows-PLACE-DIGEST.parquet` the digests of the texts whose vectors begin at row PLACE
(synth/duplicates/kept_vectors.py). A part is published after its vectors are on disk, so what a
killed run had finished is there, and bytes behind the last part are written over.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from core.cells.seals import with_seal
from core.errors import UserError
from core.files import write_atomic
from core.models import Model, folder
from core.store import canonical, digest
from synth.duplicates.blocks import Ints, Vectors, slices
from synth.duplicates.kept_vectors import FLOAT, INFO, Index
from synth.duplicates.known_texts import Known

VERSION = 1
"""Part of the folder's key: raised when a text's vector would be another."""

SLICE = 2048
"""Texts embedded between two writes."""
BATCH = 64
"""Texts that the model takes at a time."""
IN_MEMORY = 2**30
"""Bytes up to which vectors that lie scattered in the file are copied to memory."""


class Encoder(Protocol):
    """Whatever gives vectors of texts in place of a model on this machine."""

    def open(self) -> AbstractContextManager[object]:
        """Held open while texts are embedded."""

    def encode(self, texts: list[str]) -> NDArray[Any]:
        """Vectors of texts, [n, d], of any length."""

    def stored(self) -> None:
        """Told once the vectors are on disk."""


def vectors(
    root: Path,
    ids: Sequence[str],
    texts: Iterable[str | None],
    model: Model,
    service: Encoder | None = None,
    known_as: Sequence[str] | None = None,
) -> Vectors:
    """Unit vectors of `texts` by a sentence-transformers model, or by a `service` that encodes,
    float32 [len(ids), dimensions], row k of `ids[k]`. Read-only.

    `root` is the store's folder. Texts may stream: only a slice of them is held at a time. Only
    texts that no earlier call has embedded are embedded; equal texts have bitwise equal vectors.
    The result is a memory map of the store's file where the order allows it; else an array, or over
    IN_MEMORY bytes a map of a copy in a temporary file that goes away with the array. `known_as`:
    digests by which the caller knows the texts; where all were embedded under them, no text is
    taken from `texts`.
    Raises UserError when a text is missing (null), or when the model cannot be loaded.
    """
    folder = _folder(root, model)
    folder.mkdir(parents=True, exist_ok=True)
    # a second run waits, then finds what this one has embedded
    with FileLock(str(folder / ".lock")), service.open() if service else nullcontext():
        kept = _Kept(root, model, service)
        if known_as is not None and (known := kept.known.places(known_as)) is not None:
            return kept.rows(known)
        places = np.empty(len(ids), np.int64)
        done = 0
        source = iter(texts)
        while batch := list(itertools.islice(source, SLICE)):
            end = done + len(batch)
            if end > len(ids):
                raise ValueError(f"{len(ids)} ids came with more texts")
            if None in batch:
                row = ids[done + batch.index(None)]
                raise UserError(
                    f"row {row} has no text to embed; keep to rows whose text is there."
                )
            places[done:end] = kept.embed([text for text in batch if text is not None])
            if service:
                service.stored()
            done = end
        if done != len(ids):
            raise ValueError(f"{len(ids)} ids came with {done} texts")
        if known_as is not None:
            kept.known.keep(known_as, places)
        kept.index.remember()
        return kept.rows(places)


def stored(root: Path, texts: Sequence[str], model: Model) -> Vectors | None:
    """Unit vectors of texts that were embedded before, as in `vectors`; None where one of them was
    not. Embeds nothing and waits for nobody."""
    if not _folder(root, model).is_dir():
        return None
    kept = _Kept(root, model)
    known = kept.index.places
    places = [known.get(_digest(text)) for text in texts]
    found = [place for place in places if place is not None]
    return kept.rows(np.array(found, np.int64)) if len(found) == len(places) else None


@functools.lru_cache(maxsize=2)
def _found(folder: Path, root: Path) -> tuple[Index, Known]:
    """What is known of a folder, built once a process: a million rows take seconds, and every arm
    that chooses by likeness asks."""
    index = Index(folder, root)
    return index, Known(index)


class _Kept:
    """The vectors of one model that the store holds: `index` says where."""

    def __init__(self, root: Path, model: Model, service: Encoder | None = None) -> None:
        """Looks at what is there; what is damaged is dealt with as core/cells/damage.py says."""
        root = root.resolve()
        self.model, self.service = model, service
        self.folder = _folder(root, model)
        self.index, self.known = _found(self.folder, root)
        self.index.read()

    @functools.cached_property
    def encoder(self) -> Any:
        """The model, loaded when the first text is embedded."""
        return _load(str(folder(self.model)), self.model.name)

    def embed(self, texts: Sequence[str]) -> list[int]:
        """The place of each text's vector; vectors that are not there yet are appended."""
        digests = [_digest(text) for text in texts]
        known = self.index.places
        fresh = {key: t for key, t in zip(digests, texts, strict=True) if key not in known}
        if fresh:
            self._append(list(fresh), self._encoded(list(fresh.values())))
            known = self.index.places
        return [known[key] for key in digests]

    def _encoded(self, texts: list[str]) -> Vectors:
        if self.service is not None:
            return _unit(self.service.encode(texts))
        return _encode(self.encoder, texts)

    def _append(self, digests: list[bytes], vectors: Vectors) -> None:
        """Publish vectors, and beside them what they are of."""
        self.index.add(digests, vectors)
        info = self.folder / INFO
        if not info.exists():
            about = {**_cell(self.model), "name": self.model.name, "dimensions": self.index.width}
            write_atomic(info, canonical(with_seal(about)))

    def rows(self, places: Ints) -> Vectors:
        """The vectors at `places`, in that order."""
        if not len(places):
            return np.empty((0, self.index.width), np.float32)
        shape = self.index.count, self.index.width
        stored = np.memmap(self.index.file, np.float32, "r", shape=shape)
        if (np.diff(places) == 1).all():  # a new pool's vectors lie as its rows do: no copy
            return stored[places[0] : places[-1] + 1]
        if len(places) * shape[1] * FLOAT <= IN_MEMORY:
            taken: Vectors = stored[places]
            return taken
        # a file without a name; the map keeps it alive
        with tempfile.TemporaryFile(dir=self.folder) as handle:
            copy: np.memmap[Any, np.dtype[np.float32]] = np.memmap(
                handle, np.float32, "w+", shape=(len(places), shape[1])
            )
        for part in slices(len(places), SLICE):
            copy[part] = stored[places[part]]
        return copy


def _folder(root: Path, model: Model) -> Path:
    return root / "vectors" / digest(_cell(model))[:16]


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=16).digest()


@functools.lru_cache(maxsize=1)
def _load(path: str, name: str) -> Any:
    from sentence_transformers import SentenceTransformer
    from transformers.utils import logging

    # the loading bar would break into the run's own progress
    logging.disable_progress_bar()
    try:
        return SentenceTransformer(path, trust_remote_code=False)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"the embedding model {name} cannot be loaded: {reason}") from error


def _encode(encoder: Any, texts: list[str]) -> Vectors:
    """Unit vectors; the model cuts texts at its own max_seq_length in tokens (256 for MiniLM, 384
    for mpnet)."""
    raw = encoder.encode(texts, batch_size=BATCH, convert_to_numpy=True, show_progress_bar=False)
    return _unit(raw)


def _unit(raw: NDArray[Any]) -> Vectors:
    """Vectors of length 1."""
    exact = raw.astype(np.float64)
    vectors: Vectors = (exact / np.linalg.norm(exact, axis=1, keepdims=True)).astype(np.float32)
    return vectors


def _cell(model: Model) -> dict[str, Any]:
    """What determines a vector besides its text."""
    known = model.revision != "unresolved"
    return {
        "model": model.revision if known else [model.name, model.revision],
        "VERSION": VERSION,
    }
