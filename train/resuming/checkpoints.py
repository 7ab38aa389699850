"""Resumable checkpoints: which are complete, and which one to resume from.

The trainer writes a checkpoint file by file on every rank and resumes from the newest folder
whatever it holds; a kill in between leaves a folder that fails to load. So a list of all files with
their sizes and sums is written last, after every rank has saved, and only a checkpoint that still
matches its list is resumed from: torch checks no sums when it loads, and a flipped bit would go on
as a weight.

On a file system that machines share, one machine may see for a while what another has not got, or
an older size. So each rank lists the files that it wrote and checks those that it reads; and what
looks bad is set aside under another name, never deleted.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import zlib
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from core.errors import UserError
from core.files import fsync_tree, read_json, remove, write_atomic

MARK = "complete.json"
PREFIX = "checkpoint-"
"""What the trainer names a checkpoint's folder by, before its step."""

UNIVERSAL = "_universal"
"""At the end of the name of the folder that any number of processes loads (train/resuming/elastic).
"""

ASIDE = "aside-"
"""Before the name of a checkpoint that was found incomplete."""

_OF_RANK = re.compile(r"(?:_pp_rank_|rng_state_|pytorch_model_rank_)(\d+)")
"""The rank in the name of a file that one rank alone writes and reads: its part of the optimizer's
state (DeepSpeed), its random numbers (transformers)."""

Gather = Callable[[Any], list[Any]]
"""A value of this rank -> the values of all ranks, by rank."""

PIECE, THREADS = 1 << 24, 4
"""Bytes of a file that are summed up at once, and how many such pieces together."""


def own(names: Iterable[str], rank: int, world: int) -> list[str]:
    """Those files of a checkpoint that a rank answers for: its own, and rank 0 for everything that
    is no other rank's."""
    owners = {name: _OF_RANK.search(Path(name).name) for name in names}
    return [
        name
        for name, match in owners.items()
        if (int(match[1]) if match is not None and int(match[1]) < world else 0) == rank
    ]


Written = dict[str, tuple[int, int]]
"""Name -> (bytes, sum) of files in a checkpoint."""


def written(folder: Path, rank: int, world: int) -> Written:
    """The files that a rank wrote into a checkpoint, durable from here on."""
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    found = {}
    for name in sorted(own(names, rank, world)):
        if Path(name).name == MARK:
            continue
        fsync_tree(folder / name)
        found[name] = (folder / name).stat().st_size, summed(folder / name)
    return found


def summed(path: Path) -> int:
    """A sum of what a file holds: the CRC-32 of those of its pieces, which several threads read."""
    with path.open("rb") as handle, ThreadPoolExecutor(THREADS) as pool:
        number, size = handle.fileno(), os.fstat(handle.fileno()).st_size
        pieces = pool.map(
            lambda at: zlib.crc32(os.pread(number, PIECE, at)).to_bytes(4, "big"),
            range(0, size, PIECE),
        )
        return zlib.crc32(b"".join(pieces))


def listed(files: Written) -> dict[str, dict[str, int]]:
    """What a mark says of files."""
    return {
        "files": {name: size for name, (size, _) in files.items()},
        "sums": {name: total for name, (_, total) in files.items()},
    }


def mark(
    folder: Path, processes: int, files: Iterable[Written], per_step: int | None = None
) -> None:
    """Write the completeness mark of a checkpoint folder from what each rank has `written`; call it
    on one rank, after all have. `per_step`: the packs (of DPO: the pairs) of an optimizer step."""
    every: Written = {}
    for of_rank in files:
        every |= of_rank
    made = {"processes": processes, "per_step": per_step, **listed(every)}
    write_atomic(folder / MARK, json.dumps(made, indent=2))


def fault(folder: Path, rank: int = 0, world: int = 1, *, reads: bool = True) -> str | None:
    """Why a checkpoint folder is not complete as this rank sees it ("it has no completeness mark",
    "x is missing"), or None when it is. The rank looks at the files that it answers for (by
    default: at all); without `reads`, at their sizes alone."""
    try:
        made = read_json(folder / MARK)
        files: dict[str, int] = made["files"]
        sums: dict[str, int] = made.get("sums", {}) if reads else {}  # older ones have none
    except (OSError, UserError, KeyError):
        return "it has no completeness mark"
    for name in own(files, rank, world):
        try:
            # Opening asks the server of a shared file system; a bare stat may be answered from
            # this machine's memory.
            with (folder / name).open("rb") as handle:
                size = os.fstat(handle.fileno()).st_size
        except OSError:
            return f"{name} is missing"
        if size != files[name]:
            return f"{name} has {size} bytes instead of {files[name]}"
        if name in sums and summed(folder / name) != sums[name]:
            return f"{name} does not hold what was written"
    return None


def steps(scratch: Path) -> list[tuple[int, Path]]:
    """(step, folder) of every checkpoint in `scratch`, newest first."""
    folders = {path.name.removeprefix(PREFIX): path for path in scratch.glob(f"{PREFIX}*")}
    return sorted(((int(step), path) for step, path in folders.items() if step.isdigit()))[::-1]


def resumable(
    scratch: Path, rank: int, world: int, gather: Gather, say: Callable[[str], None]
) -> Path | None:
    """The newest checkpoint that is complete for every rank, or None to start from the base model.
    Every rank calls it. Others are set aside, and `say` (rank 0's) hears of it.

    Raises UserError when it was made by another number of processes and is not converted for this
    one: DeepSpeed's partitions do not load into another world size.
    """
    for step, folder in gather(steps(scratch))[0]:
        faults = gather(fault(folder, rank, world))
        seen = [(of, why) for of, why in enumerate(faults) if why is not None]
        if not seen:
            # Rank 0's: another machine may still see what it was before it was converted.
            _check_made_by(folder, gather(rank == 0 and read_json(folder / MARK))[0], world)
            return Path(folder)
        if rank == 0:
            # The trainer would count it among those it keeps, and write into it again.
            aside = set_aside(folder)
            of, why = seen[0]
            say(
                f"checkpoint of step {step} is incomplete (rank {of}: {why}); it is skipped, and "
                f"kept as {aside} until the training is done."
            )
        gather(None)  # nobody looks for the next before this one has its new name
    return None


def set_aside(folder: Path) -> Path:
    """Give a checkpoint a name under which nothing resumes from it; returns the new path."""
    aside, tries = folder.with_name(f"{ASIDE}{folder.name}"), 1
    while aside.exists():
        aside, tries = folder.with_name(f"{ASIDE}{folder.name}-{tries}"), tries + 1
    return folder.rename(aside)


def rotate(scratch: Path, limit: int | None) -> None:
    """Remove complete checkpoints beyond the newest `limit` (None or 0: keep all)."""
    whole = [folder for _, folder in steps(scratch) if (folder / MARK).exists()]
    for folder in whole[limit:] if limit else []:
        (folder / MARK).unlink()  # first: half of a folder is never taken for whole
        remove(folder)


def check_room(scratch: Path, step: int) -> None:
    """Raise UserError where the checkpoint of `step` would not fit on the disk; it will be about as
    large as the newest complete one (with none yet, nothing is known)."""
    whole = [folder for _, folder in steps(scratch) if (folder / MARK).exists()]
    if not whole:
        return
    files = read_json(whole[0] / MARK)["files"]
    needed = sum(size for name, size in files.items() if UNIVERSAL not in Path(name).parts[0])
    free = shutil.disk_usage(scratch).free
    if free < needed:
        raise no_room(
            scratch,
            f"the checkpoint of step {step}",
            f"it needs {needed / 1e9:,.1f} GB and {free / 1e9:,.1f} are free",
        )


def is_full(scratch: Path, error: BaseException) -> bool:
    """Whether writing failed with `error` for want of room (torch and safetensors wrap what the
    system says)."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    said = any(words in str(error) for words in ("No space left", "Disk quota", "os error 28"))
    return said or shutil.disk_usage(scratch).free < 1 << 20


def no_room(scratch: Path, what: str, why: str) -> UserError:
    """The error of a disk that has no room for `what`."""
    whole = [of for of, folder in steps(scratch) if (folder / MARK).exists()]
    back = f"continues from step {whole[0]}" if whole else "starts again"
    aside = sorted(path.name for path in scratch.glob(f"{ASIDE}*"))
    more = f" ({', '.join(aside)} in it can go)" if aside else ""
    return UserError(
        f"no room for {what} in {scratch}: {why}. Make room there{more}; the same command {back}."
    )


def _check_made_by(folder: Path, made: dict[str, Any], processes: int) -> None:
    if made["processes"] != processes and not made.get("elastic"):
        raise UserError(
            f"checkpoint {folder} was made by {made['processes']} process(es) and is not converted "
            f"for the {processes} of this run, which began from a newer one. The same command "
            "converts it."
        )


def step_of(folder: Path | None) -> int:
    """The step that a checkpoint was made after; 0 for none."""
    return int(folder.name.removeprefix(PREFIX)) if folder else 0
