"""Results: immutable directories named by what determines their content.

A result lives in `ROOT/results/STAGE/KEY/`. Work happens in `KEY.partial/`, which survives a kill
so that the next run continues it; publishing is fsync, rename, and `manifest.json` last. What has
no manifest is unfinished.

The key is a digest of whatever the caller says determines the content (config, digests of inputs,
VERSION of the code). The manifest also holds the digest of what was actually written, which
children put into their own keys: a rebuilt parent with other bytes leaves its children behind as
stale.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from core.cells.leases import leased
from core.errors import UserError
from core.files import (
    file_digest,
    finite,
    fsync_folder,
    fsync_tree,
    read_json,
    remove,
    write_atomic,
)

Counts = dict[str, Any]
"""What a stage reports: numbers by name (rows, tokens, seconds, failures by reason); written into
the manifest, never part of a key."""

MANIFEST = "manifest.json"

LAYOUT = 2
"""How files lie in a store. 1: columns in parts of 32 rows and more, by name; such a store has no
version file, and is read as it is. 2: columns in journals and in parts in the order of the pool."""


def canonical(value: Any) -> str:
    """JSON with sorted keys and no spaces; pydantic models, paths, tuples and sets are converted.
    Equal values give equal text."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=_plain
    )


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    raise TypeError(f"no canonical form for {type(value).__name__}")


def check_version(root: Path) -> None:
    """Raises UserError for a store that a newer version of this program wrote."""
    with suppress(FileNotFoundError):
        written = read_json(root / "store.json", 'restore it from a copy, or write {"version": 2}')
        if written["version"] > LAYOUT:
            raise UserError(
                f"the store {root} has layout {written['version']} and this version of "
                f"magpie-harness knows layouts up to {LAYOUT}; install the version that wrote it, "
                "or give another `store:`."
            )


def mark_version(root: Path) -> None:
    """Say in the store how its files lie; for whoever writes in this layout."""
    check_version(root)
    if not (root / "store.json").is_file():
        write_atomic(root / "store.json", json.dumps({"version": LAYOUT}))


def digest(value: Any) -> str:
    """sha256 (hex) of the canonical form of `value`."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()


def tree_digest(folder: Path) -> str:
    """Digest of every file below `folder` by relative name and content, leaving out the manifest
    itself."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST)
    return digest([[p.relative_to(folder).as_posix(), file_digest(p)] for p in files])


def content_of_files(path: str) -> str:
    """What a path in a recipe contributes to a key: the digest of the file or folder, or the text
    itself when it names neither (a shipped name, a hub id)."""
    here = Path(path).expanduser()
    if here.is_file():
        return file_digest(here)
    return tree_digest(here) if here.is_dir() else path


@dataclass(frozen=True)
class Result:
    """A finished result: its folder and its manifest."""

    path: Path
    manifest: dict[str, Any]

    @property
    def digest(self) -> str:
        """Digest of the content that was written (not of the key)."""
        return str(self.manifest["digest"])


@dataclass
class Build:
    """A result being made: write into `path`, put what is worth knowing into `counts` and
    `facts`."""

    path: Path
    counts: Counts = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    content: Callable[[Path], str] | None = None
    """Digests what children depend on, where that is not every file (a training log has times in
    it); default: `tree_digest`."""


class Store:
    """All results and columns of one root folder (the recipe's `store:`). Raises UserError for one
    that a newer version of this program wrote."""

    def __init__(self, root: Path) -> None:
        check_version(root)
        self.root = root

    def folder(self, stage: str, key: str) -> Path:
        """Where the result of `stage` under `key` lives (it may not exist yet)."""
        return self.root / "results" / stage / key[:16]

    def partial(self, stage: str, key: str) -> Path:
        """Where the result of `stage` under `key` is made."""
        folder = self.folder(stage, key)
        return folder.with_name(f"{folder.name}.partial")

    def find(self, stage: str, key: str) -> Result | None:
        """The finished result under this key, or None."""
        folder = self.folder(stage, key)
        with suppress(FileNotFoundError):
            remedy = f"remove the folder {folder} and run again"
            return Result(folder, read_json(folder / MANIFEST, remedy))
        return None

    def finished(self, stage: str, key: str) -> Result:
        """The result under this key, which exists. Raises UserError when it is gone."""
        result = self.find(stage, key)
        if result is None:
            raise UserError(f"{self.folder(stage, key)} is gone; run again.")
        return result

    @contextmanager
    def build(
        self,
        stage: str,
        key: str,
        spec: Mapping[str, Any],
        waiting: Callable[[str], None] | None = None,
    ) -> Iterator[Build | None]:
        """Make the result of `stage` under `key`, one process of all machines at a time.

        Yields a `Build` whose folder keeps what an earlier, killed attempt had left, or None where
        another process has just made the result. On a clean exit the folder is published; on an
        exception it stays as `.partial`. `spec` is what determined the key, kept in the manifest so
        that a later plan can say which field changed. While another process is making the same
        result this one waits, and says so by `waiting`; without it UserError is raised.
        """
        final = self.folder(stage, key)
        partial = self.partial(stage, key)
        elsewhere = (
            f"another run ({{holder}}) is making {stage} {key[:16]} in {self.root} right now; "
            "wait for it, or stop it first."
        )
        with leased(Path(f"{final}.lease"), elsewhere, waiting):
            if self.find(stage, key) is not None:
                yield None
                return
            partial.mkdir(parents=True, exist_ok=True)
            started = time.time()
            build = Build(partial)
            yield build
            content = (build.content or tree_digest)(partial)
            fsync_tree(partial)
            manifest = {
                "stage": stage,
                "key": key,
                "spec": json.loads(canonical(dict(spec))),
                "digest": content,
                "counts": build.counts,
                "started": started,
                "seconds": time.time() - started,
                **build.facts,
            }
            remove(final)  # has no manifest: an earlier run was killed between the next two steps
            partial.rename(final)
            fsync_folder(final.parent)
            text = json.dumps(finite(manifest), indent=2, default=_plain, allow_nan=False)
            write_atomic(final / MANIFEST, text)
