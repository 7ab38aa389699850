"""Resumable checkpoints: which are complete, and which one to resume from.

The trainer writes a checkpoint file by file on every rank and resumes from the newest folder
whatever it holds; a kill in between leaves a folder that fails to load. So a list of all files with
their sizes is written last, after every rank has saved, and only a checkpoint that still matches
its list is resumed from.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from core.errors import UserError
from core.files import read_json, write_atomic

MARK = "complete.json"
PREFIX = "checkpoint-"
"""What the trainer names a checkpoint's folder by, before its step."""


def mark(folder: Path, processes: int) -> None:
    """Write the completeness mark of a checkpoint folder; call it on one rank, after every rank has
    saved its part."""
    files = {
        path.relative_to(folder).as_posix(): path.stat().st_size
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    write_atomic(folder / MARK, json.dumps({"processes": processes, "files": files}, indent=2))


def fault(folder: Path) -> str | None:
    """Why a checkpoint folder is not complete ("it has no completeness mark", "x is missing"), or
    None when it is."""
    try:
        files: dict[str, int] = read_json(folder / MARK)["files"]
    except (OSError, UserError, KeyError):
        return "it has no completeness mark"
    for name, size in files.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes instead of {size}"
    return None


def steps(scratch: Path) -> list[tuple[int, Path]]:
    """(step, folder) of every checkpoint in `scratch`, newest first."""
    folders = {path.name.removeprefix(PREFIX): path for path in scratch.glob(f"{PREFIX}*")}
    return sorted(((int(step), path) for step, path in folders.items() if step.isdigit()))[::-1]


def resumable(scratch: Path, processes: int, say: Callable[[str], None]) -> Path | None:
    """The newest complete checkpoint, or None to start from the base model. Incomplete ones are
    removed, said so.

    Raises UserError when it was made by another number of processes: DeepSpeed's partitions do not
    load into another world size.
    """
    for step, folder in steps(scratch):
        why = fault(folder)
        if why is not None:
            say(f"checkpoint of step {step} is incomplete ({why}); it is skipped.")
            # The trainer would count it among those it keeps, and write into it again.
            shutil.rmtree(folder)
            continue
        made_by = read_json(folder / MARK)["processes"]
        if made_by != processes:
            raise UserError(
                f"checkpoint {folder} was made by {made_by} processes and this run has "
                f"{processes}; DeepSpeed cannot resume it so. Run with "
                f"train.num_processes={made_by}, or remove {scratch} to start again."
            )
        return folder
    return None


def step_of(folder: Path | None) -> int:
    """The step that a checkpoint was made after; 0 for none."""
    return int(folder.name.removeprefix(PREFIX)) if folder else 0
