"""`magpie verify`: every file of a store is read, and compared with what was written."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl
from filelock import FileLock

from core.cells import journal, kept, seals, seconds, whole
from core.cells.damage import Damage, damaged, hurt
from core.cells.leases import leased
from core.cells.lines import sealed_lines
from core.cells.seals import Memory
from core.errors import UserError, first_line
from core.files import only_holder, read_json
from core.store import MANIFEST, broken_files, check_version, digest, manifest_of
from recipes.stages.tokens import Contents
from recipes.upkeep import gone
from synth.duplicates.kept_vectors import Index
from synth.duplicates.known_texts import Known

PARTIAL = ".partial"
LINES = ("spent-*.jsonl", "replies-*.jsonl", "journal-*.jsonl")
"""Files of lines that each end in a checksum."""


@dataclass
class Found:
    """What was read, and what is wrong with it."""

    results: int = 0
    parts: int = 0
    recipes: int = 0
    files: int = 0
    size: int = 0
    """Bytes of the files."""
    unsealed: list[str] = field(default_factory=list)
    """What was made before there were seals: it could be read, and is sealed now."""
    unfinished: int = 0
    damaged: dict[Path, str] = field(default_factory=dict)
    seconds: float = 0.0

    def read(self, *paths: Path) -> None:
        """Count files that were read."""
        for path in paths:
            with suppress(OSError):
                self.size += path.stat().st_size
                self.files += 1


def verify(root: Path, damage: Damage) -> Found:
    """Read everything in the store at `root`; what is damaged is dealt with as `damage` says.
    Raises UserError where there is no store, or one of another version."""
    if not any((root / name).is_dir() for name in ("results", "columns", "recipes")):
        raise UserError(f"{root} is no store: it has no results, columns or recipes.")
    found, began = Found(damaged=damage.found), time.monotonic()
    with damage.noted():
        check_version(root)
        gone.check_layout(root)
        gone.check_columns(root)
        gone.check_results(root)
        for folder in sorted((root / "recipes").glob("*")):
            with _going_on(folder):
                kept.look(root, folder.name, anew=True)
            found.recipes += folder.is_dir()
            found.read(*(path for path in folder.rglob("*") if path.is_file()))
        for folder in sorted((root / "results").glob("*/*")):
            if folder.is_dir():
                lease = Path(f"{folder}.lease")
                alone = partial(leased, lease, f"{folder}: another run ({{holder}}) {HOLDS}", None)
                _checked(check_result, root, folder, found, damage, alone)
        for folder in sorted((root / "columns").glob("*/*")):
            alone = partial(_locked, folder)
            _checked(check_column, root, folder, found, damage, alone)
        for folder in sorted((root / "vectors").glob("*")):
            alone = partial(_locked, folder)
            _checked(check_vectors, root, folder, found, damage, alone)
        found.read(*(root / "selections").glob("*"))
        with _going_on(root / "selections"):
            Contents(root).all()  # which tells of what it cannot read
        for pattern in LINES:
            for path in sorted(root.rglob(pattern)):
                with _going_on(path):
                    check_lines(path, found)
    found.seconds = time.monotonic() - began
    return found


Check = Callable[[Path, Path, Found], None]
"""Reads one folder of a store, and deals with what is damaged in it."""
HOLDS = "is writing it right now, so what is damaged there stays; verify it again afterwards"


def _checked(
    check: Check,
    root: Path,
    folder: Path,
    found: Found,
    damage: Damage,
    alone: Callable[[], AbstractContextManager[object]],
) -> None:
    """Check a folder; where something is set aside, no run may be writing there meanwhile: `alone`
    holds it. Where one is, what is damaged is named, and stays."""
    seen = Damage(lambda line: None, moves=False)
    with seen.noted(), _going_on(folder):
        check(root, folder, found)
    if not seen.found:
        return
    again = Found()
    if not damage.moves:
        with _going_on(folder):
            check(root, folder, again)
        return
    try:
        with alone(), _going_on(folder):
            check(root, folder, again)
    except UserError as error:
        damage.say(str(error))
        damage.found.update(seen.found)


@contextmanager
def _going_on(path: Path) -> Iterator[None]:
    """Name what the system does not let us read below a path, and go on behind the block: it stays
    where it is, for it may be whole."""
    try:
        yield
    except UserError as error:
        hurt(path, str(error).removeprefix(f"{path} "))
    except OSError as error:
        hurt(path, str(seals.unreadable(path, error)).removeprefix(f"{path} "))


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    lock = FileLock(str(folder / ".lock"))
    with only_holder(lock, f"{folder}: another run {HOLDS}."):
        yield


def lines(found: Found, *, repaired: bool) -> Iterator[str]:
    """What was found, for a reader; what is damaged was named already."""
    what = f"{found.results} results, {found.parts} parts of columns, {found.recipes} recipes"
    yield f"{what}: {found.files:,} files, {found.size / 1e9:,.2f} GB in {found.seconds:,.0f} s"
    if found.unfinished:
        yield f"{found.unfinished} unfinished results were left alone"
    if found.unsealed:
        yield (
            f"{len(found.unsealed)} results and parts were made before there were seals: they can "
            "be read, and are sealed now"
        )
    if not found.damaged:
        yield "all hold what was written"
    elif repaired:
        yield f"{len(found.damaged)} are damaged, and were set aside or put right"
    else:
        yield (
            f"{len(found.damaged)} are damaged: `magpie verify RECIPE --repair`, or a run of their "
            "recipe, sets them aside and makes only them again"
        )


def as_json(found: Found) -> dict[str, Any]:
    """The same as plain data."""
    counted = {name: getattr(found, name) for name in ("results", "parts", "recipes", "files")}
    return {
        **counted,
        "bytes": found.size,
        "seconds": round(found.seconds, 3),
        "unfinished": found.unfinished,
        "unsealed": found.unsealed,
        "damaged": {str(path): why for path, why in found.damaged.items()},
    }


def check_result(root: Path, folder: Path, found: Found) -> None:
    """One result: its manifest, and each of its files."""
    if folder.name.endswith(PARTIAL):
        found.unfinished += 1
        return
    stage = folder.parent.name
    memory = Memory(root / seals.VERIFIED / "results" / stage / f"{folder.name}.json")
    manifest = manifest_of(folder, _key(folder, memory), memory, root)
    if manifest is None:
        found.unfinished += folder.is_dir()
        return
    found.results += 1
    names = seals.names_below(folder, [MANIFEST])
    found.read(folder / MANIFEST, *(folder / name for name in names))
    if "files" not in manifest and memory.held.get("seals") is None:
        found.unsealed.append(f"{stage}/{folder.name}")
        wrong = _unsealed(folder, names, manifest, memory)
    else:
        wrong = broken_files(folder, manifest, memory, None, anew=True)
    within = manifest.get("within")
    for name, why in wrong.items():
        if within and not name.startswith(f"{within}/"):
            hurt(folder / name, f"{why}; {within} is whole, so the result counts")
        else:
            damaged(folder, f"{name} {why}", root)
            return


def check_vectors(root: Path, folder: Path, found: Found) -> None:
    """The vectors of one model: what its parts name, and the names by which texts are known."""
    index = Index(folder, root)
    index.read(anew=True)
    Known(index).places(())
    found.parts += len(index.parts)
    found.read(*(path for path in folder.iterdir() if path.is_file()))
    found.unsealed += [str(path.relative_to(root)) for path in index.seal()]


def check_lines(path: Path, found: Found) -> None:
    """One file of lines, each by its checksum."""
    found.read(path)
    for _ in sealed_lines(path, "what it says is asked again, or not in the bill"):
        pass


def _key(folder: Path, memory: Memory) -> str:
    """The key of the result in a folder, of which the folder's name is the beginning."""
    for said in (folder / MANIFEST, None):
        with suppress(OSError, UserError, AttributeError):
            held = read_json(said) if said else memory.held.get("manifest") or {}
            key = str(held.get("key"))
            if key.startswith(folder.name):
                return key
    return folder.name


def _unsealed(
    folder: Path, names: list[str], manifest: dict[str, Any], memory: Memory
) -> dict[str, str]:
    """What is wrong with the files of a result of before there were seals, as far as it can be
    known without them; where nothing is, they are sealed."""
    wrong = {}
    for name in names:
        with suppress(FileNotFoundError):
            why = _unreadable(folder / name)
            if why:
                wrong[name] = why
    files = seals.sealed(folder, names)
    trees = {below: _tree(files, below) for below in ("", "checkpoint/")}
    if folder.parent.name == "train" and manifest["digest"] not in trees.values():
        wrong["checkpoint/"] = "holds something else than was made"
    if not wrong:
        memory.remember(folder, files, {"seals": files, "manifest": manifest})
    return wrong


def _tree(files: seals.Seals, below: str) -> str:
    named = sorted((Path(name.removeprefix(below)), name) for name in files if below in name[:20])
    return digest([[path.as_posix(), files[name]["sha256"]] for path, name in named])


def _unreadable(path: Path) -> str | None:
    """Why a file cannot be read as what its name says; None where it can."""
    try:
        if path.suffix == ".parquet":
            pl.scan_parquet(path, glob=False).collect()
        elif path.suffix == ".json":
            json.loads(path.read_text(encoding="utf-8"))
        elif path.suffix == ".jsonl":
            for line in path.read_text(encoding="utf-8").splitlines():
                json.loads(line or "null")
    except (ValueError, OSError, pl.exceptions.PolarsError) as error:
        return f"cannot be read ({first_line(error)})"
    return None


def check_column(root: Path, folder: Path, found: Found) -> None:
    """One column: its parts by the digests in their names, and its journals."""
    gone.check_about(root, folder)
    whole.count(folder, root)
    parts = sorted(folder.glob("part-*.parquet"))
    found.parts += len(parts)
    found.read(*parts)
    for path in parts:
        known = whole.is_known(path, root)
        why = whole.read_anew(path, root)
        if why is None and not known:
            found.unsealed.append(str(path.relative_to(root)))
            why = _unreadable(path)
        if why is not None:
            whole.spoiled(path, why, root)
    seconds.took(folder)  # which tells of what it cannot read
    for path in journal.journals(folder):
        found.read(path)
        with suppress(FileNotFoundError):
            journal.frames(path, whole.told(folder))
