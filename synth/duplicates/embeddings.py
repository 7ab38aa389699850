"""Embeddings of texts as unit vectors, kept in the store: a text is embedded once by a model,
whichever pool, measure or run asks for it.

One folder a model revision, `ROOT/vectors/KEY/`: `vectors.f32` holds the rows (float32, appended),
`rows-PLACE.parquet` the digests of the texts whose vectors begin at row PLACE. A part is published
after its vectors are on disk, so what a killed run had finished is there, and bytes behind the last
part are written over.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import os
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import polars as pl
from filelock import FileLock
from numpy.typing import NDArray

from core.errors import UserError
from core.files import read_json, read_parquet, replacing, write_atomic
from core.models import Model, folder
from core.store import canonical, digest
from synth.duplicates.blocks import Ints, Vectors, slices

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
    folder = root / "vectors" / digest(_cell(model))[:16]
    folder.mkdir(parents=True, exist_ok=True)
    # a second run waits, then finds what this one has embedded
    with FileLock(str(folder / ".lock")), service.open() if service else nullcontext():
        kept = _Kept(folder, model, service)
        if known_as is not None and (known := kept.index.known(known_as)) is not None:
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
            kept.index.keep(known_as, places)
        return kept.rows(places)


def stored(root: Path, texts: Sequence[str], model: Model) -> Vectors | None:
    """Unit vectors of texts that were embedded before, as in `vectors`; None where one of them was
    not. Embeds nothing and waits for nobody."""
    folder = root / "vectors" / digest(_cell(model))[:16]
    if not folder.is_dir():
        return None
    kept = _Kept(folder, model)
    places = [kept.index.places.get(_digest(text)) for text in texts]
    found = [place for place in places if place is not None]
    return kept.rows(np.array(found, np.int64)) if len(found) == len(places) else None


class _Index:
    """Where a folder holds the vector of each text, by the text's digest."""

    def __init__(self, folder: Path) -> None:
        """Nothing is read yet."""
        self.folder = folder
        self.parts: dict[Path, int] = {}  # and when each was written (ns)
        self.places: dict[bytes, int] = {}
        self.count = 0
        self._named: list[pl.DataFrame] = []

    def known(self, names: Sequence[str]) -> Ints | None:
        """The places of vectors that were kept under these names; None where one was not."""
        while (part := self.folder / f"known-{len(self._named):06d}.parquet").exists():
            self._named.append(read_parquet(part))
        if not self._named:
            return None
        places = pl.concat(self._named).filter(pl.col("place") < self.count).unique("name")
        asked = pl.DataFrame({"name": pl.Series(names, dtype=pl.String)})
        found = asked.join(places, on="name", how="left", maintain_order="left")["place"]
        return None if found.null_count() else found.to_numpy()

    def keep(self, names: Sequence[str], places: Ints) -> None:
        """Remember under which names vectors lie where; for whoever holds the folder's lock."""
        self.known(())  # what others have kept meanwhile
        new = pl.DataFrame({"name": pl.Series(names, dtype=pl.String), "place": places})
        for before in self._named:
            new = new.join(before, on=["name", "place"], how="anti")
        part = self.folder / f"known-{len(self._named):06d}.parquet"
        with replacing(part) as temporary:
            new.unique("name").write_parquet(temporary)

    def forget(self) -> None:
        """Begin anew."""
        self._named.clear()
        self.parts.clear()
        self.places.clear()
        self.count = 0

    def read(self) -> None:
        """Read what was added since, by whichever process; all anew where a part is another or has
        gone."""
        paths = sorted(self.folder.glob("rows-*.parquet"))
        there = {path: path.stat().st_mtime_ns for path in paths}
        if any(there.get(part) != written for part, written in self.parts.items()):
            self.forget()
        for part in (path for path in paths if path not in self.parts):
            self.add(part, read_parquet(part)["digest"].to_list())

    def add(self, part: Path, digests: Sequence[bytes]) -> None:
        """Take in what a part names."""
        self.parts[part] = part.stat().st_mtime_ns
        self.places.update(zip(digests, itertools.count(self.count)))
        self.count += len(digests)


_index = functools.lru_cache(maxsize=2)(_Index)
"""The index of a folder, built once a process: a million rows take seconds, and every arm that
chooses by likeness asks."""


class _Kept:
    """The vectors of one model that the store holds: `index` says where."""

    def __init__(self, folder: Path, model: Model, service: Encoder | None = None) -> None:
        """Raises UserError where the file of vectors is shorter than what is known to be in it."""
        folder = folder.resolve()
        self.model, self.service = model, service
        self.file, self.info = folder / "vectors.f32", folder / "model.json"
        self.index, self.folder = _index(folder), folder
        self.index.read()
        self.width = read_json(self.info)["dimensions"] if self.info.exists() else 0
        size = self.file.stat().st_size if self.file.exists() else 0
        if self.index.count and size < max(self._bytes(self.index.count), 1):
            raise UserError(
                f"{folder} has lost vectors that its rows-*.parquet name; "
                "remove that folder and run again."
            )

    def _bytes(self, rows: int) -> int:
        return rows * self.width * np.dtype(np.float32).itemsize

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
        return [known[key] for key in digests]

    def _encoded(self, texts: list[str]) -> Vectors:
        if self.service is not None:
            return _unit(self.service.encode(texts))
        return _encode(self.encoder, texts)

    def _append(self, digests: list[bytes], vectors: Vectors) -> None:
        """Publish vectors: first the rows on disk, then the part that names them."""
        if not self.width:
            self.width = vectors.shape[1]
            about = {**_cell(self.model), "name": self.model.name, "dimensions": self.width}
            write_atomic(self.info, canonical(about))
        with self.file.open("r+b" if self.file.exists() else "w+b") as handle:
            # over what a killed run left behind the last part
            handle.seek(self._bytes(self.index.count))
            handle.write(vectors.tobytes())
            handle.truncate()
            handle.flush()
            os.fsync(handle.fileno())
        part = self.folder / f"rows-{self.index.count:012d}.parquet"
        with replacing(part) as temporary:
            pl.DataFrame({"digest": digests}, schema={"digest": pl.Binary}).write_parquet(temporary)
        self.index.add(part, digests)

    def rows(self, places: Ints) -> Vectors:
        """The vectors at `places`, in that order."""
        if not len(places):
            return np.empty((0, self.width), np.float32)
        stored = np.memmap(self.file, np.float32, "r", shape=(self.index.count, self.width))
        if (np.diff(places) == 1).all():  # a new pool's vectors lie as its rows do: no copy
            return stored[places[0] : places[-1] + 1]
        if self._bytes(len(places)) <= IN_MEMORY:
            taken: Vectors = stored[places]
            return taken
        # a file without a name; the map keeps it alive
        with tempfile.TemporaryFile(dir=self.folder) as handle:
            copy: np.memmap[Any, np.dtype[np.float32]] = np.memmap(
                handle, np.float32, "w+", shape=(len(places), self.width)
            )
        for part in slices(len(places), SLICE):
            copy[part] = stored[places[part]]
        return copy


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
