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
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from filelock import FileLock
from numpy.typing import NDArray

from core.errors import UserError
from core.files import fsync_folder, write_atomic
from core.models import Model
from core.store import canonical, digest

VERSION = 1
"""Part of the folder's key: raised when a text's vector would be another."""

SLICE = 2048
"""Texts embedded between two writes."""
IN_MEMORY = 2**30
"""Bytes of vectors up to which the result is an array in memory; a larger one is a memory map."""

Vectors = NDArray[np.float32]


def vectors(
    root: Path,
    ids: Sequence[str],
    texts: Iterable[str | None],
    model: Model,
    tell: Callable[[int], None] = lambda done: None,
) -> Vectors:
    """Unit vectors of `texts` by a sentence-transformers model, float32 [len(ids), dimensions], row
    k of `ids[k]`. Read-only.

    `root` is the store's folder. Texts may stream: only a slice of them is held at a time. Only
    texts that no earlier call has embedded are embedded; equal texts have bitwise equal vectors. A
    result over IN_MEMORY bytes is a memory map of the store's file where the order allows it, else
    of a copy in a temporary file that goes away with the array. `tell` hears how many texts are
    done. Raises UserError when a text is missing (null), or when the model cannot be loaded.
    """
    folder = root / "vectors" / digest(_cell(model))[:16]
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(
        str(folder / ".lock")
    ):  # a second run waits, then finds what this one has embedded
        kept = _Kept(folder, model)
        places = np.empty(len(ids), np.int64)
        done = 0
        source = iter(texts)
        while batch := list(itertools.islice(source, SLICE)):
            if done + len(batch) > len(ids):
                raise ValueError(f"{len(ids)} ids came with more texts")
            if None in batch:
                raise UserError(
                    f"row {ids[done + batch.index(None)]} has no text to embed; keep to rows whose text is there."
                )
            slice_ = [text for text in batch if text is not None]
            digests = [
                hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=16).digest()
                for text in slice_
            ]
            kept.embed(slice_, digests)
            places[done : done + len(batch)] = [kept.places[key] for key in digests]
            done += len(batch)
            tell(done)
        if done != len(ids):
            raise ValueError(f"{len(ids)} ids came with {done} texts")
        return kept.rows(places)


def embed(
    texts: Sequence[str], model_path: str, batch: int = 64, device: str | None = None
) -> Vectors:
    """Unit vectors of texts, float32 [len(texts), dimensions], by a sentence-transformers model (a
    folder or hub id); nothing is kept.

    Equal texts are embedded once, so their vectors are bitwise equal. `batch` is texts at a time;
    the model cuts texts at its own max_seq_length in tokens (256 for MiniLM, 384 for mpnet). Raises
    UserError when the model cannot be loaded.
    """
    distinct = list(dict.fromkeys(texts))
    made = _encode(_load(model_path, device), distinct, batch)
    place = {text: at for at, text in enumerate(distinct)}
    found: Vectors = made[[place[text] for text in texts]]
    return found


class _Kept:
    """The vectors of one model that the store holds: `places` maps a text's digest to its row."""

    def __init__(self, folder: Path, model: Model) -> None:
        self.folder, self.model, self.file = folder, model, folder / "vectors.f32"
        parts = sorted(folder.glob("rows-*.parquet"))
        held: list[list[bytes]] = [pl.read_parquet(part)["digest"].to_list() for part in parts]
        self.places = {key: at for at, key in enumerate(itertools.chain.from_iterable(held))}
        self.count = sum(map(len, held))
        info = folder / "model.json"
        self.width: int | None = (
            json.loads(info.read_text())["dimensions"] if info.exists() else None
        )
        if self.count and (
            not self.width
            or not self.file.exists()
            or self.file.stat().st_size < self.count * self.width * 4
        ):
            raise UserError(
                f"{folder} has lost vectors that its rows-*.parquet name; remove that folder and run again."
            )
        self.encoder: Any = None

    def embed(self, texts: Sequence[str], digests: Sequence[bytes]) -> None:
        """Append the vectors of those texts that are not there yet."""
        fresh = {
            key: text for key, text in zip(digests, texts, strict=True) if key not in self.places
        }
        if not fresh:
            return
        self.encoder = self.encoder or _load(self.model.path, None)
        made = _encode(self.encoder, list(fresh.values()), 64)
        if self.width is None:
            self.width = made.shape[1]
            write_atomic(
                self.folder / "model.json",
                canonical({**_cell(self.model), "name": self.model.name, "dimensions": self.width}),
            )
        with self.file.open("r+b" if self.file.exists() else "w+b") as handle:
            handle.seek(self.count * self.width * 4)
            handle.write(made.tobytes())
            handle.truncate()
            handle.flush()
            os.fsync(handle.fileno())
        part = self.folder / f"rows-{self.count:012d}.parquet"
        temporary = part.with_name(f".{part.name}.tmp")
        pl.DataFrame({"digest": list(fresh)}, schema={"digest": pl.Binary}).write_parquet(temporary)
        with temporary.open("rb") as handle:
            os.fsync(handle.fileno())
        temporary.replace(part)
        fsync_folder(self.folder)
        self.places.update(zip(fresh, range(self.count, self.count + len(fresh)), strict=True))
        self.count += len(fresh)

    def rows(self, places: NDArray[np.int64]) -> Vectors:
        """The vectors at `places`, in that order."""
        if not len(places):
            return np.empty((0, self.width or 0), np.float32)
        assert self.width is not None
        stored = np.memmap(self.file, np.float32, "r", shape=(self.count, self.width))
        large = len(places) * self.width * 4 > IN_MEMORY
        if large and (np.diff(places) == 1).all():
            return stored[places[0] : places[-1] + 1]
        if not large:
            taken: Vectors = stored[places]
            return taken
        with tempfile.TemporaryFile(
            dir=self.folder
        ) as handle:  # without a name; the map keeps it alive
            copy: np.memmap[Any, np.dtype[np.float32]] = np.memmap(
                handle, np.float32, "w+", shape=(len(places), self.width)
            )
        for top in range(0, len(places), SLICE):
            copy[top : top + SLICE] = stored[places[top : top + SLICE]]
        return copy


@functools.lru_cache(maxsize=1)
def _load(model_path: str, device: str | None) -> Any:
    from sentence_transformers import SentenceTransformer
    from transformers.utils import logging

    logging.disable_progress_bar()  # the loading bar would break into the run's own progress
    try:
        return SentenceTransformer(model_path, device=device, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise UserError(
            f"the embedding model {model_path} cannot be loaded: {str(error).splitlines()[0]}"
        ) from error


def _encode(encoder: Any, texts: Sequence[str], batch: int) -> Vectors:
    raw = encoder.encode(
        list(texts), batch_size=batch, convert_to_numpy=True, show_progress_bar=False
    ).astype(np.float64)
    raw /= np.linalg.norm(raw, axis=1, keepdims=True)
    made: Vectors = raw.astype(np.float32)
    return made


def _cell(model: Model) -> dict[str, Any]:
    """What determines a vector besides its text."""
    return {
        "model": model.revision if model.revision != "unresolved" else [model.name, model.revision],
        "VERSION": VERSION,
    }
