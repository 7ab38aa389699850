"""`magpie gc`: what no recipe of a store refers to, shown, then removed."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from core.cells.leases import leased
from core.cells.seals import VERIFIED
from core.cells.whole import notes_of
from core.errors import UserError, nearest
from core.files import remove
from core.store import MANIFEST, Store
from recipes.upkeep import contents
from recipes.upkeep.contents import COLUMN, PARTIAL, RESULT, UNFINISHED, Contents, Thing
from recipes.upkeep.words import day, plain, size
from recipes.verbs.terminal import say, table

FRESH = 3600.0
"""Seconds that everything stays after it was written: a run may be about to say that it refers to
it."""


@dataclass(frozen=True)
class Asked:
    """What a person asked for."""

    forget: tuple[str, ...] = ()
    """Recipes whose own files go as well, and whatever only they refer to."""
    yes: bool = False
    """Whether it is removed without being asked about."""
    as_json: bool = False


def main(root: Path, asked: Asked, confirm: Callable[[str], bool]) -> None:
    """Show what nothing refers to, ask by `confirm`, and remove it. Where nobody can be asked, it
    is only shown. Raises UserError for a store or a recipe that there is not."""
    known = contents.read(root)
    for name in asked.forget:
        if name not in known.recipes:
            raise UserError(f"--forget {name}: {root} has no such recipe{_hint(name, known)}.")
    found = contents.read(root, asked.forget) if asked.forget else known
    going = unreferred(found, time.time())
    if asked.as_json:
        gone, failed = _removed(root, asked.forget, going) if asked.yes else ([], [])
        shown = {
            "unreferred": [plain(thing) for thing in going],
            "bytes": sum(thing.size for thing in going),
            "removed": [str(thing.path) for thing in gone],
            "failed": failed,
        }
        print(json.dumps(shown, indent=2))
        return
    _show(going, asked.forget)
    if not going and not asked.forget:
        return
    total = size(sum(thing.size for thing in going))
    if not asked.yes and not (sys.stdin.isatty() and confirm(f"Remove these ({total})?")):
        say("nothing was removed; --yes removes without a question")
        return
    # a run may have come to refer to some of it while the question stood open
    shown_paths = {thing.path for thing in going}
    now = unreferred(contents.read(root, asked.forget), time.time())
    gone, failed = _removed(root, asked.forget, [t for t in now if t.path in shown_paths])
    for sentence in failed:
        say(sentence)
    say(f"{len(gone)} removed, {size(sum(thing.size for thing in gone))}")


def _hint(name: str, known: Contents) -> str:
    return nearest(name, known.recipes) if known.recipes else ""


def _show(going: Sequence[Thing], forget: Iterable[str]) -> None:
    for name in forget:
        say(f"recipe {name}: its page, funnels and ledger of what was paid go as well")
    if not going:
        say("no recipe has left anything behind")
        return
    rows = [
        (thing.kind, thing.name, day(thing.changed), size(thing.size), thing.path.name)
        for thing in going
    ]
    table(["kind", "what", "written", "size", "folder"], rows)
    say("kept: all else, and whatever was written within the last hour")


def unreferred(found: Contents, now: float) -> list[Thing]:
    """What no recipe refers to and was written more than an hour before `now`, the largest first.
    Of columns only those that a recipe once referred to: others answer for nobody's recipe."""
    going = [
        thing
        for thing in found.things
        if not thing.recipes
        and now - thing.changed > FRESH
        and (thing.kind != COLUMN or thing.dropped)
    ]
    return sorted(going, key=lambda thing: -thing.size)


def _removed(
    root: Path, forget: Iterable[str], going: Iterable[Thing]
) -> tuple[list[Thing], list[str]]:
    """(what was removed, why the rest was not). The recipes go first: where this is stopped in
    between, the next call finds what they leave."""
    gone, failed = [], []
    for name in forget:
        remove(root / "recipes" / name)
        remove(root / VERIFIED / "recipes" / f"{name}.json")
    for thing in going:
        try:
            _remove(root, thing)
            gone.append(thing)
        except UserError as error:
            failed.append(f"{thing.path} stays: {error}")
    return gone, failed


def _remove(root: Path, thing: Thing) -> None:
    """Remove one thing; a result under its lease, and so that no half of it is ever read: first
    what is remembered of it, then its manifest, then its files. Raises UserError where a run is
    making it, and where the system refuses."""
    if thing.kind == COLUMN:  # what is noted of its parts first: nobody misses them
        remove(notes_of(thing.path, root))
    if thing.kind not in (RESULT, UNFINISHED):
        _files(thing.path)
        return
    stage, key = thing.path.parent.name, thing.path.name.removesuffix(PARTIAL)
    lease = thing.path.with_name(f"{key}.lease")
    with leased(lease, "another run ({holder}) is making it right now", None):
        if thing.kind == RESULT:
            remove(Store(root).memory(stage, key))
            remove(thing.path / MANIFEST)
        _files(thing.path)


def _files(path: Path) -> None:
    remove(path)
    if path.exists():
        raise UserError(f"the system refuses to remove {path}")
