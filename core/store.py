"""Results: immutable directories named by what determines their content.

A result lives in `ROOT/results/STAGE/KEY/`. Work happens in `KEY.partial/`, which survives a kill
so that the next run continues it; publishing is fsync, rename, and `manifest.json` last. What has
no manifest is unfinished.

The key is a digest of whatever the caller says determines the content (config, digests of inputs,
VERSION of the code). The manifest also holds the digest of what was actually written, which
children put into their own keys: a rebuilt parent with other bytes leaves its children behind as
stale.

It holds a seal of every file too, and one of itself: a result of which a file was changed, emptied
or lost since does not count any more (`core/cells/damage.py` says what becomes of it). A copy of
each manifest lies in `ROOT/verified`, beside what is remembered of the files that were read.
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

from core.cells import seals
from core.cells.damage import damaged, hurt, mends, set_aside
from core.cells.leases import leased
from core.cells.seals import Memory, Seals
from core.errors import UserError, first_line
from core.files import (
    file_digest,
    finite,
    fsync_folder,
    fsync_tree,
    read_json,
    remove,
    write_atomic,
    write_changed,
)

Counts = dict[str, Any]
"""What a stage reports: numbers by name (rows, tokens, seconds, failures by reason); written into
the manifest, never part of a key."""

MANIFEST = "manifest.json"

Content = Callable[[Path], str] | str
"""Digests what children depend on in a result's folder; or the folder in it that is all that they
depend on."""

LAYOUT = 2
"""How files lie in a store. 1: columns in parts of 32 rows and more, by name; such a store has no
version file, and is read as it is. 2: columns in journals and in parts in the order of the pool."""


SAYS_LAYOUT, COPY = "store.json", ".store.json"
"""What says how a store's files lie, and the copy of it."""


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
    """Raises UserError for a store that a newer version of this program wrote, and for one of which
    that cannot be told."""
    if any("\ud800" <= each <= "\udfff" for each in str(root)):
        raise UserError(f"the name of the store {root} is no UTF-8 text; choose another.")
    version = layout(root)
    if version is not None and version > LAYOUT:
        raise UserError(
            f"the store {root} has layout {version} and this version of "
            f"magpie-harness knows layouts up to {LAYOUT}; install the version that wrote it, "
            "or give another `store:`."
        )


def layout(root: Path) -> int | None:
    """How the files of a store lie, None where nothing says so; by the copy where store.json is
    damaged or gone. Raises UserError where that does not help."""
    path = root / SAYS_LAYOUT
    try:
        return said_layout(path)
    except FileNotFoundError:
        with suppress(FileNotFoundError):
            version = said_layout(root / COPY)
            hurt(path, f"{seals.GONE}; the copy of it in {COPY} counts")
            return version
        return None
    except UserError as error:
        with suppress(FileNotFoundError, UserError):
            version = said_layout(root / COPY)
            hurt(path, f"is damaged; the copy of it in {COPY} counts")
            return version
        raise error


def said_layout(path: Path) -> int:
    """What a file says of how a store's files lie. Raises UserError where it does not."""
    remedy = 'restore it from a copy, or write {"version": 2} into it'
    written = read_json(path, remedy)
    version = written.get("version") if isinstance(written, dict) else None
    if type(version) is not int or version < 1:
        raise UserError(f"{path} does not say how the files of the store lie; {remedy}.")
    return version


def mark_version(root: Path) -> None:
    """Say in the store how its files lie, twice; for whoever writes in this layout."""
    check_version(root)
    text = json.dumps({"version": layout(root) or LAYOUT})
    for name in (SAYS_LAYOUT, COPY):
        write_changed(root / name, text)


def digest(value: Any) -> str:
    """sha256 (hex) of the canonical form of `value`."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()


def tree_digest(folder: Path) -> str:
    """Digest of every file below `folder` by relative name and content, leaving out the manifest
    itself."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST)
    return digest([[p.relative_to(folder).as_posix(), file_digest(p)] for p in files])


def _tree_of(files: Seals, below: str) -> str:
    """`tree_digest` of the folder `below` ("": of all), from the seals of its files."""
    start = f"{below}/" if below else ""
    named = {Path(name.removeprefix(start)): name for name in files if name.startswith(start)}
    return digest([[path.as_posix(), files[named[path]]["sha256"]] for path in sorted(named)])


def content_digest(folder: Path, content: Content | None) -> str:
    """What children of a result in a folder depend on (None: every file)."""
    if callable(content):
        return content(folder)
    return tree_digest(folder / content if content else folder)


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
    content: Content | None = None
    """What children depend on, where that is not every file (a training log has times in it)."""


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

    def memory(self, stage: str, key: str) -> Path:
        """What is remembered of the result of `stage` under `key`: its manifest, and the files that
        were found whole."""
        return self.root / seals.VERIFIED / "results" / stage / f"{key[:16]}.json"

    def find(self, stage: str, key: str, content: Content | None = None) -> Result | None:
        """The finished result under this key, or None.

        One whose files do not hold what its manifest says is damaged, and does not count (see
        core/cells/damage.py; what is wrong with files beside the `content` of a result is told, a
        run sets them aside, and it counts). Files are read once, then known by size and times.
        `content` judges results of before there were seals.
        """
        folder, memory = self.folder(stage, key), Memory(self.memory(stage, key))
        manifest = manifest_of(folder, key, memory, self.root)
        if manifest is None:
            return None
        within = manifest.get("within") or (content if isinstance(content, str) else "")
        start = f"{within}/" if within else ""
        fatal = {}
        for name, why in broken_files(folder, manifest, memory, content).items():
            if name.startswith(start):
                fatal[name] = why
            else:
                hurt(folder / name, f"{why}; {within} is whole, so the result counts")
                if mends():  # nobody reads what is wrong, and nothing is made again for it
                    set_aside(folder / name, self.root)
        if fatal:
            name, why = next(iter(fatal.items()))
            more = f" (and {len(fatal) - 1} more files)" if len(fatal) > 1 else ""
            damaged(folder, f"{name} {why}{more}", self.root)
            return None
        return Result(folder, manifest)

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
            for leftover in partial.rglob(".*.tmp"):  # a killed attempt's
                remove(leftover)
            started = time.time()
            build = Build(partial)
            yield build
            files = seals.sealed(partial, seals.names_below(partial, [MANIFEST]))
            counts = build.content or ""
            within = counts if isinstance(counts, str) else ""
            content = _tree_of(files, counts) if isinstance(counts, str) else counts(partial)
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
                "files": files,
            } | ({"within": within} if within else {})
            text = json.dumps(finite(manifest), default=_plain, allow_nan=False)
            manifest = seals.with_seal(json.loads(text))
            remove(final)  # has no manifest: an earlier run was killed between the next two steps
            partial.rename(final)
            fsync_folder(final.parent)
            write_atomic(final / MANIFEST, json.dumps(manifest, indent=2))
            Memory(self.memory(stage, key)).remember(final, files, {"manifest": manifest})


def manifest_of(folder: Path, key: str, memory: Memory, root: Path) -> dict[str, Any] | None:
    """What the manifest of a result says, or the copy of one that was lost or changed; None where
    there is no result, or nothing says what it is."""
    copy = memory.held.get("manifest")
    try:
        said = read_json(folder / MANIFEST)
        wrong = _complaint(said, key)
    except FileNotFoundError:
        if not folder.is_dir() or copy is None:
            return None  # there is none, or a run was killed before its manifest
        said, wrong = None, seals.GONE
    except UserError as error:
        if isinstance(error.__cause__, IsADirectoryError):
            said, wrong = None, seals.FOLDER
        elif isinstance(error.__cause__, OSError):
            raise
        else:
            said, wrong = None, "is not valid JSON"
    if wrong is None:
        return dict(said)
    if _complaint(copy, key) is None and copy:
        hurt(folder / MANIFEST, f"{wrong}; the copy of it in {memory.path} counts")
        if mends():
            if wrong == seals.FOLDER:
                set_aside(folder / MANIFEST, root)
            write_atomic(folder / MANIFEST, json.dumps(copy, indent=2))
        return dict(copy)
    damaged(folder, f"{MANIFEST} {wrong}", root)
    return None


def _complaint(manifest: Any, key: str) -> str | None:
    """What is wrong with what a manifest says; None where nothing is."""
    if not isinstance(manifest, dict):
        return "holds no manifest"
    if "seal" in manifest and manifest["seal"] != seals.seal_of(manifest):
        return seals.CHANGED
    if manifest.get("key") != key:
        return "is another result's"
    whole = isinstance(manifest.get("digest"), str) and isinstance(manifest.get("counts"), dict)
    return None if whole else "lacks its digest or its counts"


def broken_files(
    folder: Path,
    manifest: Mapping[str, Any],
    memory: Memory,
    content: Content | None,
    *,
    anew: bool = False,
) -> dict[str, str]:
    """What is wrong with the files of a result, by name. One of before there were seals is judged
    by its digest once, then sealed in the memory. Files are read `anew` even where they are known
    by size and times."""
    kept = manifest.get("files", memory.held.get("seals"))
    if seals.is_seals(kept):
        return seals.broken(folder, kept, memory, anew=anew)
    if content is None:
        return {}
    files = seals.sealed(folder, seals.names_below(folder, [MANIFEST]))
    where = f"{content}/" if isinstance(content, str) else "./"
    try:
        now = _tree_of(files, content) if isinstance(content, str) else content(folder)
    except Exception as error:  # whatever reads that kind of file
        return {where: f"cannot be read as what was made ({first_line(error)})"}
    if now != manifest["digest"]:
        return {where: "holds something else than was made"}
    memory.remember(folder, files, {"seals": files, "manifest": dict(manifest)})
    return {}
