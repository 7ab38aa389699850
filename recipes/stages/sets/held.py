"""What a recipe's large files hold, said beside them, so that nobody need read them to know."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from core.cells.damage import hurt, left_out
from core.errors import UserError
from core.files import file_digest, read_json, write_changed
from core.store import digest, tree_digest

HELD: Final = "held.json"
"""The file beside a recipe's large files that says what they hold."""


def says(folder: Path, held: Mapping[str, str]) -> bool:
    """Whether it is said in one of a recipe's folders that its large files hold just this."""
    return _held(folder) == held


def say(folder: Path, held: Mapping[str, str]) -> None:
    """Say in one of a recipe's folders what its large files hold (name -> digest), so that nobody
    need read them to know."""
    write_changed(folder / HELD, json.dumps(dict(held), indent=1))


def told(folder: Path) -> str:
    """Digest of what one of a recipe's folders holds; of its large files, of what is said of
    them."""
    held = _held(folder)
    if not held:
        return tree_digest(folder)
    files = sorted(path for path in folder.iterdir() if path.is_file() and path.name != HELD)
    return digest([[path.name, held.get(path.name) or file_digest(path)] for path in files])


def _held(folder: Path) -> dict[str, str]:
    """What is said of the large files; {} where nothing is, and where it cannot be read: then they
    are written anew, and it with them."""
    path = folder / HELD
    if left_out(path) or not path.is_file():
        return {}
    try:
        held = read_json(path)
    except UserError as error:
        if isinstance(error.__cause__, OSError):
            raise
        held = None
    if not isinstance(held, dict):
        hurt(path, "does not say what lies beside it; that is written anew")
        return {}
    return held
