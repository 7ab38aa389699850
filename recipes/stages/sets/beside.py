"""What lies beside a selection, below the recipe's own folder: the measured columns of its rows,
their licence, and which source each came from. A selection itself may be shared by two arms."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl

from core.files import read_json, replacing, write_atomic
from recipes.stages.session import Session

ROWS, MIXTURE = "rows.parquet", "mixture.json"


def folder_of(session: Session, name: str) -> Path:
    """Where the files of a selection lie ("ARM" or "ARM/SEED")."""
    return session.folder / "select" / name


def keep_rows(session: Session, name: str, rows: pl.DataFrame) -> None:
    """Keep what is known of a selection's rows [id, ...]; nothing is written where it is known
    already."""
    path = folder_of(session, name) / ROWS
    known = pl.read_parquet(path, glob=False) if path.is_file() else None
    if known is not None and known.schema == rows.schema and known.equals(rows):
        return
    with replacing(path) as temporary:
        rows.write_parquet(temporary)


def rows_of(folder: Path) -> pl.DataFrame | None:
    """What is known of the rows of the selection in a folder; None where nothing was kept."""
    path = folder / ROWS
    return pl.read_parquet(path, glob=False) if path.is_file() else None


def keep_mixture(session: Session, name: str, mixture: dict[str, Any]) -> None:
    """Keep what each part gave to a mixture."""
    path = folder_of(session, name) / MIXTURE
    text = json.dumps(mixture, indent=1)
    if not (path.is_file() and path.read_text() == text):
        write_atomic(path, text)


def mixture_of(folder: Path) -> dict[str, Any]:
    """What each part gave to the mixture in a folder; {} for another selection."""
    path = folder / MIXTURE
    found: dict[str, Any] = read_json(path) if path.is_file() else {}
    return found


def selected_folder(recipe_folder: Path, arm: str, seed: int | None) -> Path:
    """Where an arm's selection lies: that of the seed where it was drawn for several (the first of
    them where it was not drawn for this one), else the only one."""
    folder = recipe_folder / "select" / arm
    drawn = [p.name for p in folder.iterdir() if p.name.isdigit()] if folder.is_dir() else []
    if not drawn:
        return folder
    return folder / (str(seed) if str(seed) in drawn else min(drawn, key=int))
