"""The licence that a data set's own card states."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from core.cells.seals import seal_of, with_seal
from core.errors import UserError
from core.files import read_json, write_atomic
from core.pretrained.hub import PATIENCE, out_of_reach

REMEMBERED = "licence.json"


def licence_of(source: str, revision: str | None, folder: Path, *, ask: bool) -> str | None:
    """What the front matter of a folder's README.md states as `license`, or the hub of a data set;
    None where nothing does.

    What the hub answered is remembered in `folder` (of the data's rows); it is asked only where
    `ask` says so, and one that cannot be reached states nothing.
    """
    path = Path(source).expanduser()
    if path.exists():
        return _of_card(path)
    remembered = folder / REMEMBERED
    with suppress(OSError, UserError):  # a damaged one is asked for again
        said = read_json(remembered)
        if (
            isinstance(said, dict)
            and "licence" in said
            and said.get("seal", seal_of(said)) == seal_of(said)
        ):
            return _plain(said.get("licence"))
    if not ask or out_of_reach() is not None:
        return None
    with suppress(Exception):  # the hub client's many ways to say that it cannot be reached
        stated = _of_hub(source, revision)
        write_atomic(remembered, json.dumps(with_seal({"licence": stated})))
        return stated
    return None


def _of_card(path: Path) -> str | None:
    """Of a file or folder: the card in that folder, or in the one above its `data`."""
    folder = path if path.is_dir() else path.parent
    cards = [folder / "README.md"] + [folder.parent / "README.md"] * (folder.name == "data")
    for card in cards:
        if card.is_file():
            return _front(card.read_text(encoding="utf-8", errors="replace"))
    return None


def _front(text: str) -> str | None:
    """`license` of a card's front matter."""
    if not text.startswith("---"):
        return None
    front: Any = None
    with suppress(yaml.YAMLError):
        front = yaml.safe_load(text.split("---", 2)[1])
    return _plain(front.get("license")) if isinstance(front, dict) else None


def _of_hub(name: str, revision: str | None) -> str | None:
    from huggingface_hub import HfApi

    card = HfApi().dataset_info(name, revision=revision, timeout=PATIENCE).card_data
    return _plain(card.get("license")) if card is not None else None


def _plain(licence: object) -> str | None:
    """A card may state several."""
    if isinstance(licence, list):
        return ", ".join(map(str, licence)) or None
    return str(licence) if licence else None
