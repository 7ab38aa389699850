"""What a store had and has no more: whole results, whole columns, and what says how its files lie.

A result that is gone is missed where a recipe refers to it, or a result that is there was made of
it: its manifest is remembered (`core/store.py`). A column is missed that has noted parts
(`core/cells/whole.py`).
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from core.cells import journal, seals, whole
from core.cells.damage import ASIDE, damaged, hurt, is_hurt, mends, put_right
from core.cells.references import REFERS, References
from core.cells.seals import Memory
from core.errors import UserError
from core.files import read_json, remove, write_atomic
from core.store import COPY, MANIFEST, SAYS_LAYOUT, digest, layout, said_layout

AGAIN = "a run that needs it makes it again"
SHOWN = 3
"""How many of those that refer to what is gone are named."""


def check_layout(root: Path) -> None:
    """The two files that say how the store's files lie: where one of them does not, it is put right
    from the other. Raises UserError where neither does."""
    version = layout(root)
    if version is None:
        return  # a store of before there were such files
    text = json.dumps({"version": version})
    for name, other in ((SAYS_LAYOUT, COPY), (COPY, SAYS_LAYOUT)):
        path, said = root / name, None
        with suppress(FileNotFoundError, UserError):
            said = said_layout(path)
        if said == version:
            continue
        if not is_hurt(path):
            wrong = "is damaged" if path.exists() else seals.GONE
            hurt(path, f"{wrong}; {other} counts")
        put_right(path, text, root)


# -- columns ---------------------------------------------------------------------------------------


def check_columns(root: Path) -> None:
    """The columns that noted parts and are gone."""
    for notes in sorted((root / seals.VERIFIED / "columns").glob("*/*")):
        folder = root / "columns" / notes.relative_to(root / seals.VERIFIED / "columns")
        parts = len([*notes.glob("part-*.parquet")]) if notes.is_dir() else 0
        if parts and not folder.is_dir():
            hurt(folder, f"{seals.GONE} with its {parts} part{'s' * (parts > 1)}; {AGAIN}")
            if mends():
                remove(notes)


def check_about(root: Path, folder: Path) -> None:
    """What says what determines a column's cells; put right from its copy where there is one."""
    path, copy = folder / whole.ABOUT, whole.about_of(folder, root)
    wrong = _wrong(path, folder.name)
    if wrong is None:
        if not copy.exists():
            with suppress(OSError):
                write_atomic(copy, path.read_bytes())
        return
    if wrong == seals.GONE and not ([*folder.glob("part-*.parquet")] or journal.journals(folder)):
        return  # there is nothing in it
    if _wrong(copy, folder.name) is None:
        hurt(path, f"{wrong}; the copy of it in {copy} counts")
        put_right(path, copy.read_bytes(), root)
    elif wrong == seals.GONE:
        hurt(path, f"{wrong}; a run that reads this column writes it again")
    else:
        damaged(path, wrong, root)


def _wrong(path: Path, key: str) -> str | None:
    """What is wrong with a file that says what determines the cells of a column of this key; None
    where nothing is."""
    held: Any = None
    try:
        held = read_json(path)
    except FileNotFoundError:
        return seals.GONE
    except UserError:
        pass
    right = held is not None and digest(held)[:16] == key
    return None if right else "does not say what determines this column's cells"


# -- results ---------------------------------------------------------------------------------------


def check_results(root: Path) -> None:
    """The results that were made, are gone, and are referred to still. What was set aside is not
    missed: a run makes it again."""
    missed = dict(_missed(root))
    if not missed:
        return
    referring = _referring(root)
    for folder, manifest in missed.items():
        at = f"{folder.parent.name}/{folder.name}"
        by = [*referring.get(at, ()), *referring.get(str(manifest.get("digest")), ())]
        if by:
            shown = ", ".join(by[:SHOWN]) + (f" and {len(by) - SHOWN} more" * (len(by) > SHOWN))
            hurt(folder, f"{seals.GONE}, and is referred to by {shown}; {AGAIN}")


def _missed(root: Path) -> Iterator[tuple[Path, Mapping[str, Any]]]:
    """The folders of results that were made, are not there, and were not set aside; with their
    manifests."""
    kept = root / seals.VERIFIED / "results"
    for path in sorted(kept.glob("*/*.json")):
        folder = root / "results" / path.relative_to(kept).with_suffix("")
        aside = root / ASIDE / folder.relative_to(root)
        if folder.is_dir() or any(aside.parent.glob(f"{aside.name}.*")):
            continue
        manifest = Memory(path).held.get("manifest")
        if isinstance(manifest, dict):
            yield folder, manifest


def _referring(root: Path) -> dict[str, list[str]]:
    """Who refers to a result, by STAGE/KEY (recipes) and by the digest of its content (results that
    were made of it)."""
    found: dict[str, list[str]] = defaultdict(list)
    for folder in sorted((root / "recipes").glob("*")):
        for at in sorted({*References(folder / REFERS).results.values()}):
            found[at].append(f"recipe {folder.name}")
    there = set()
    for path in sorted((root / "results").glob(f"*/*/{MANIFEST}")):
        with suppress(OSError, UserError, AttributeError, TypeError):
            manifest = read_json(path)
            there.add(str(manifest.get("digest")))
            for held in {*(manifest["spec"].get("inputs") or {}).values()}:
                found[held].append("/".join(path.parts[-3:-1]))
    return {held: by for held, by in found.items() if held not in there}
