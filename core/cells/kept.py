"""The files of a recipe's own folder (its specs, funnels, tables, its page), which a run writes
wherever they differ from what they should be: sealed when a run ends, looked at when the next plan
or run begins.

What is damaged a run sets aside, and writes anew; what was declared beforehand, what stages were
last made by and what was paid cannot be made again, and are put right from their copies.
"""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from core.cells import seals
from core.cells.damage import damaged, hurt, mends, put_right, set_aside
from core.cells.lines import records
from core.cells.seals import Memory
from core.errors import UserError
from core.files import read_json

SPECS = "specs.json"
DECLARED = "declared.json"
COPIED = (DECLARED, SPECS)
"""Files of which a copy is kept."""
_SPENT = "spent"
SUMMED = 2**16
"""Bytes of a ledger of which a copy is kept."""
_WRITTEN = (*COPIED, "refers.json", "report.html", "select", "measure", "tables", "figures", _SPENT)
"""The files and folders that only runs write."""


def look(root: Path, recipe: str, *, anew: bool = False, only: tuple[str, ...] = ()) -> None:
    """Deal with what is damaged in the folder of a recipe (see core/cells/damage.py); `anew`: read
    also what is known by size and times; `only` files and folders of these names, where given."""
    folder, memory = _folder(root, recipe), _memory(root, recipe)
    kept = memory.held.get("seals")
    if not seals.is_seals(kept) or not folder.is_dir():
        return
    if only:
        kept = {name: seal for name, seal in kept.items() if _is_below(name, only)}
    for name, why in seals.broken(folder, kept, memory, anew=anew).items():
        copy = (memory.held.get("copies") or {}).get(name)
        if name.startswith(f"{_SPENT}/"):
            _money(folder / name, why, copy, memory, root)
        elif copy is not None:
            hurt(folder / name, f"{why}; the copy of it in {memory.path} counts")
            put_right(folder / name, copy, root)
        else:
            for snapshot in _same(folder / name, root / "snapshots"):
                damaged(snapshot, why, root)
            damaged(folder / name, why, root)


def _is_below(name: str, places: tuple[str, ...]) -> bool:
    return any(name == place or name.startswith(f"{place}/") for place in places)


def _money(path: Path, why: str, copy: str | None, memory: Memory, root: Path) -> None:
    """A ledger was changed since a run sealed it. One that says less than its copy is put right
    from that; one that says more was written on by a run that was killed."""
    if copy is None:
        hurt(path, f"{why}; what it says was paid may be too little")
        return
    if path.exists() and _paid(path.read_bytes()) >= _paid(copy.encode()):
        hurt(path, f"{why}; it says no less than it did, and counts")
        return
    hurt(path, f"{why}; the copy of it in {memory.path} counts")
    put_right(path, copy, root)


def _paid(ledger: bytes) -> float:
    """The money that a ledger's whole lines say."""
    said = [record.get("money") for _, record in records(ledger) if record is not None]
    return sum(money for money in said if isinstance(money, int | float))


def said(root: Path, recipe: str, name: str) -> Any:
    """What a JSON file of a recipe's folder says, or its copy where it cannot be read; None where
    there is nothing to be read."""
    path = _folder(root, recipe) / name
    try:
        return read_json(path)
    except FileNotFoundError:
        return None
    except UserError as error:
        if isinstance(error.__cause__, OSError) and path.is_file():
            raise
    copy = (_memory(root, recipe).held.get("copies") or {}).get(name)
    hurt(path, "is not valid JSON" + ("; its copy counts" if copy is not None else ""))
    if mends():
        set_aside(path, root)
    return None if copy is None else json.loads(copy)


def seal(root: Path, recipe: str) -> None:
    """Seal the files of a recipe's folder as they are now, at the end of a run."""
    folder, memory = _folder(root, recipe), _memory(root, recipe)
    if not folder.is_dir():
        return
    names = [name for name in seals.names_below(folder) if _is_sealed(name)]
    with suppress(OSError, UserError):  # another run of this recipe may be writing them
        files = memory.sealed(folder, names)
        copied = [name for name in files if name in COPIED or _is_small_ledger(name, files)]
        copies = {name: (folder / name).read_text() for name in copied}
        memory.remember(folder, files, {"seals": files, "copies": copies}, only=names)


def open_again(root: Path, recipe: str) -> None:
    """Forget the seals while a run writes: one that is killed leaves files that nobody sealed."""
    memory = _memory(root, recipe)
    if memory.held.get("seals"):
        memory.remember(_folder(root, recipe), {}, {"seals": None})


def _is_small_ledger(name: str, files: seals.Seals) -> bool:
    """Whether a file says what was paid, and a run has summed it up: one that was killed left a
    line a reply."""
    return name.startswith(f"{_SPENT}/") and files[name]["bytes"] <= SUMMED


def _is_sealed(name: str) -> bool:
    """Whether a file is one that only runs write, and no temporary one."""
    parts = Path(name).parts
    return parts[0] in _WRITTEN and not any(part.startswith(".") for part in parts)


def _same(path: Path, folder: Path) -> list[Path]:
    """Those files of a folder that are the same file under another name."""
    if not path.is_file():
        return []
    return [each for each in folder.glob("*.parquet") if each.samefile(path)]


def _folder(root: Path, recipe: str) -> Path:
    return root / "recipes" / recipe


def _memory(root: Path, recipe: str) -> Memory:
    return Memory(root / seals.VERIFIED / "recipes" / f"{recipe}.json")
