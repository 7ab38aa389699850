"""What lies in a store, how large it is, and which recipes refer to it."""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from core.cells.damage import ASIDE
from core.cells.references import REFERS, References
from core.cells.seals import VERIFIED
from core.errors import UserError
from core.files import read_json
from core.store import MANIFEST, canonical, check_version
from recipes.stages.sets.held import HELD
from recipes.stages.synthesis import POOL

PARTIAL = ".partial"

RESULT, UNFINISHED, COLUMN, SNAPSHOT, DAMAGED, LEFTOVER = (
    "result",
    "unfinished",
    "column",
    "snapshot",
    "set aside",
    "leftover",
)
"""What a thing can be. A leftover is what killed processes left under temporary names, what is
remembered of files that are gone, or a log that nothing has written to for LOGGED."""
LOGGED = 30 * 24 * 3600.0
"""Seconds after which a log is a leftover."""


@dataclass(frozen=True)
class Thing:
    """One result, column, or whatever else is removed as a whole."""

    kind: str
    name: str
    """The name of the stage that made it (train/magpie/0), or of the column."""
    path: Path
    size: int
    """Bytes; a file that has several names counts once, for the first."""
    changed: float
    """When a file of it was last written, seconds since 1970."""
    recipes: tuple[str, ...] = ()
    """Those that refer to it."""
    dropped: bool = False
    """Of a column: whether a recipe referred to it before. Others may be those of `magpie answer`
    and of judges' agreement, which no recipe names."""


@dataclass
class Contents:
    """Everything in a store that a recipe can refer to."""

    root: Path
    recipes: dict[str, References]
    things: list[Thing] = field(default_factory=list)
    other: dict[str, int] = field(default_factory=dict)
    """Bytes of every other folder (logs, vectors, W&B's runs ...)."""

    def of(self, recipe: str) -> list[Thing]:
        """What a recipe refers to."""
        return [thing for thing in self.things if recipe in thing.recipes]


def read(root: Path, forget: tuple[str, ...] = ()) -> Contents:
    """Read the store at `root`, as if it had not the recipes `forget`. Raises UserError where there
    is no store."""
    if not any((root / name).is_dir() for name in ("results", "columns", "recipes")):
        raise UserError(f"{root} is no store: it has no results, columns or recipes.")
    check_version(root)
    recipes = {
        folder.name: References(folder / REFERS)
        for folder in sorted((root / "recipes").glob("*"))
        if folder.is_dir()
    }
    staying = {name: refers for name, refers in recipes.items() if name not in forget}
    seen: set[tuple[int, int]] = set()
    found = Contents(root, staying)
    results = list(_results(root, staying, seen))
    found.things += [thing for thing, _ in results]
    found.things += _columns(root, recipes, staying, results, seen)
    for path in sorted((root / "snapshots").glob("*.parquet")):
        size, changed = measured(path, seen)
        held = tuple(name for name in staying if _snapshot(root, name) == path.stem)
        found.things.append(Thing(SNAPSHOT, path.stem[:16], path, size, changed, held))
    for path in sorted((root / ASIDE).rglob("*")):
        if _is_set_aside(path):
            size, changed = measured(path, seen)
            found.things.append(Thing(DAMAGED, path.name, path, size, changed))
    found.things += _leftovers(root, staying, seen)
    for folder in sorted(path for path in root.iterdir() if path.is_dir()):
        if folder.name not in ("results", "columns", "snapshots", ASIDE):
            found.other[folder.name] = measured(folder, seen)[0]
    return found


def _leftovers(
    root: Path, recipes: Mapping[str, References], seen: set[tuple[int, int]]
) -> Iterator[Thing]:
    """What nobody reads any more."""
    temporary = [path for pattern in (".*.tmp", ".*.grave") for path in root.rglob(pattern)]
    within = {path for path in temporary if not {*path.parents}.isdisjoint(temporary)}
    # a holder touches its lease: one that stood still was left by a process that is gone
    leases = [*(root / "results").glob("*/*.lease")]
    missed = {f"results/{at}" for refers in recipes.values() for at in refers.results.values()}
    remembered = [
        path
        for path in (root / VERIFIED).rglob("*.json")
        for of in [path.relative_to(root / VERIFIED).with_suffix("")]
        if not (root / of).exists() and of.as_posix() not in missed
    ]
    old = time.time() - LOGGED
    logs = [path for path in (root / "logs").rglob("*.log") if path.stat().st_mtime < old]
    for path in sorted({*temporary, *leases, *remembered, *logs} - within):
        size, changed = measured(path, seen)
        yield Thing(LEFTOVER, str(path.relative_to(root)), path, size, changed)


def _snapshot(root: Path, recipe: str) -> str | None:
    """The content of a recipe's pool, by which its snapshot is named; None where it has none."""
    with suppress(OSError, UserError, AttributeError):
        held: str | None = read_json(root / "recipes" / recipe / "measure" / HELD).get(POOL)
        return held
    return None


def _is_set_aside(path: Path) -> bool:
    """Whether this is what was set aside as a whole: the first below `aside` whose name ends in the
    time (core/cells/damage.py)."""
    return _timed(path) and not any(map(_timed, path.parents))


def _timed(path: Path) -> bool:
    mark = path.name.rpartition(".")[2].split("-")
    return [len(part) for part in mark] == [8, 6, 6] and all(part.isdigit() for part in mark)


def measured(path: Path, seen: set[tuple[int, int]]) -> tuple[int, float]:
    """(bytes, when last written) of a file or of everything below a folder; files that are `seen`
    already, under another name, count nothing."""
    size, changed = 0, 0.0
    for file in _files(path):
        with suppress(OSError):  # a run may be removing it
            stat = os.lstat(file)
            changed = max(changed, stat.st_mtime)
            if (stat.st_dev, stat.st_ino) not in seen:
                seen.add((stat.st_dev, stat.st_ino))
                size += stat.st_size
    return size, changed


def _files(path: Path) -> Iterator[str]:
    if path.is_file():
        yield str(path)
    for folder, _, names in os.walk(path):
        yield from (os.path.join(folder, name) for name in names)  # noqa: PTH118 (a million files)


# -- results ---------------------------------------------------------------------------------------

Found = tuple[Thing, Mapping[str, Any]]
"""A result and its manifest ({} where it is not finished)."""


def _results(
    root: Path, recipes: Mapping[str, References], seen: set[tuple[int, int]]
) -> Iterator[Found]:
    """Every result, finished or not, with the recipes that refer to it."""
    manifests: dict[Path, Mapping[str, Any]] = {}
    for folder in sorted((root / "results").glob("*/*")):
        if folder.is_dir() and not folder.name.startswith("."):
            manifests[folder] = _manifest(folder)
    referred = _referred(root, recipes, manifests)
    for folder, manifest in manifests.items():
        size, changed = measured(folder, seen)
        kind = RESULT if manifest else UNFINISHED
        name = str(manifest.get("name") or folder.parent.name)
        yield Thing(kind, name, folder, size, changed, tuple(sorted(referred[folder]))), manifest


def _manifest(folder: Path) -> Mapping[str, Any]:
    with suppress(OSError, UserError):
        manifest = read_json(folder / MANIFEST)
        if isinstance(manifest, dict):
            return manifest
    return {}


def _referred(
    root: Path, recipes: Mapping[str, References], manifests: Mapping[Path, Mapping[str, Any]]
) -> dict[Path, set[str]]:
    """Recipes by result. Who refers to one attempt at a result refers to all of them: the later
    ones are found by the earlier."""
    found: dict[Path, set[str]] = defaultdict(set)
    attempts: dict[str, list[Path]] = defaultdict(list)
    specs = {name: _specs(root, name) for name, of in recipes.items() if not of.known}
    named = {name: set(of.results.values()) for name, of in recipes.items()}
    for folder, manifest in manifests.items():
        at = f"{folder.parent.name}/{folder.name.removesuffix(PARTIAL)}"
        found[folder] |= {name for name, of in named.items() if at in of}
        determined = manifest.get("spec")
        if not isinstance(determined, dict):
            continue
        first = {key: value for key, value in determined.items() if key != "attempt"}
        attempts[canonical(first)].append(folder)
        found[folder] |= {name for name, of in specs.items() if _is_of(first, of)}
    for folders in attempts.values():
        together = set[str]().union(*(found[folder] for folder in folders))
        for folder in folders:
            found[folder] |= together
    return found


def _specs(root: Path, recipe: str) -> dict[str, Any]:
    """What a recipe's stages were last made by, of runs that noted no references."""
    with suppress(OSError, UserError):
        specs = read_json(root / "recipes" / recipe / "specs.json")
        if isinstance(specs, dict):
            return specs
    return {}


def _is_of(determined: Mapping[str, Any], specs: Mapping[str, Any]) -> bool:
    """Whether what determined a result is what some stage of a recipe was last made by."""
    spec, inputs = determined.get("spec"), determined.get("inputs")
    if not isinstance(spec, dict):
        return False
    for name, last in specs.items():
        if name.partition("/")[0] == determined.get("stage") and isinstance(last, dict):
            same = all(key in last and last[key] == value for key, value in spec.items())
            if same and last.get("inputs") == inputs:
                return True
    return False


# -- columns ---------------------------------------------------------------------------------------


def _columns(
    root: Path,
    recipes: Mapping[str, References],
    staying: Mapping[str, References],
    results: list[Found],
    seen: set[tuple[int, int]],
) -> Iterator[Thing]:
    """Every column, with the recipes that read it or refer to a result that was made of it.

    Results of before do not say what they were made of; while a recipe refers to one of those, no
    column counts as dropped.
    """
    readers: dict[str, set[str]] = defaultdict(set)
    silent = any(not refers.known for refers in staying.values())
    for name, refers in staying.items():
        for at in refers.columns:
            readers[at].add(name)
    for thing, manifest in results:
        silent |= bool(thing.recipes and manifest and "columns" not in manifest)
        for at in manifest.get("columns", ()):
            readers[at].update(thing.recipes)
    known = set[str]().union(*(refers.ever for refers in recipes.values()))
    for folder in sorted((root / "columns").glob("*/*")):
        if folder.is_dir():
            at = "/".join(folder.parts[-2:])
            size, changed = measured(folder, seen)
            of, dropped = tuple(sorted(readers[at])), at in known and not silent
            yield Thing(COLUMN, folder.parent.name, folder, size, changed, of, dropped)
