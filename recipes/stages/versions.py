"""Files count by content: what a path in a recipe contributes to a key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from core.files import file_digest
from core.store import tree_digest


def content_of_files(path: str | None) -> Any:
    """The digest of a file or folder, or the text itself when it names neither (a shipped name, a
    hub id)."""
    if path is None:
        return None
    here = Path(path).expanduser()
    return file_digest(here) if here.is_file() else tree_digest(here) if here.is_dir() else path
