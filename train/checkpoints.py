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
from core.files import write_atomic

MARK = "complete.json"


def mark(folder: Path, processes: int) -> None:
    """Write the completeness mark of a checkpoint folder; call it on one rank, after every rank has
    saved its part."""
    files = {
        p.relative_to(folder).as_posix(): p.stat().st_size
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }
    write_atomic(folder / MARK, json.dumps({"processes": processes, "files": files}, indent=2))


def fault(folder: Path) -> str | None:
    """Why a checkpoint folder is not complete ("it has no completeness mark", "x is missing"), or
    None when it is."""
    try:
        files: dict[str, int] = json.loads((folder / MARK).read_text())["files"]
    except (OSError, ValueError, KeyError):
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
    found = [
        (int(p.name.removeprefix("checkpoint-")), p)
        for p in scratch.glob("checkpoint-*")
        if p.name.removeprefix("checkpoint-").isdigit()
    ]
    return sorted(found, reverse=True)


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
            shutil.rmtree(
                folder
            )  # the trainer would count it among those it keeps, and write into it again
            continue
        made_by = json.loads((folder / MARK).read_text())["processes"]
        if made_by != processes:
            raise UserError(
                f"checkpoint {folder} was made by {made_by} processes and this run has {processes}; DeepSpeed cannot resume it so. Run with "
                f"train.num_processes={made_by}, or remove {scratch} to start again."
            )
        return folder
    return None
