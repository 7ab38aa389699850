"""Where a case happens, what a store holds after it, and what is left over."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl
import psutil
from filelock import FileLock, Timeout

from core.cells.journal import frames, journals

MARK = "MAGPIE_FAULT_CASE"
"""The variable by which every process of a case is known, whatever became of its parents."""

SHARED = Path("/dev/shm")
LITTER = ("torchelastic_", "vllm_dist_", "wandb", "pymp-")
"""What libraries' folders in the temporary folder are called."""


def _names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} if folder.is_dir() else set()


@dataclass
class Place:
    """One case's folder: its store, recipe, log and folder for temporary files, whose name is short
    enough for sockets below it."""

    folder: Path
    store: Path
    mode: str
    until: str
    temporary: Path
    runs: int = 0
    sessions: set[int] = field(default_factory=set)
    """Sessions of processes that were seen to be of this case: some write over what they were
    given as environment."""
    ports: set[int] = field(default_factory=set)
    """Where its servers listened."""
    seen: set[int] = field(default_factory=set)
    """Processes that were seen to be of it."""
    pids: dict[str, int] = field(default_factory=dict)
    """Processes that were looked up beforehand, by what they are."""
    shared: set[str] = field(default_factory=lambda: _names(SHARED))
    around: set[str] = field(default_factory=lambda: _names(Path(tempfile.gettempdir())))
    """What was in /dev/shm and in the temporary folder of all before."""

    @property
    def log(self) -> Path:
        """What its harnesses say."""
        return self.folder / "said.txt"

    @property
    def notes(self) -> Path:
        """What its scripted servers of its own note."""
        return self.folder / "served.txt"

    def said(self) -> str:
        """All that its harnesses said."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def noted(self) -> list[list[str]]:
        """The notes of its own servers, in words."""
        text = self.notes.read_text() if self.notes.exists() else ""
        return [line.split() for line in text.splitlines()]

    def open(self) -> int:
        """How many requests its own servers took and have not answered."""
        events = [words[0] for words in self.noted()]
        return events.count("asked") - events.count("answered")


# -- what a store holds ----------------------------------------------------------------------------


PAGE = "unfinished: results/report/"

Held = dict[str, dict[str, str]]
"""Result -> {"": digest}; column -> digest of each cell by its id."""


def held(store: Path) -> Held:
    """What a store holds."""
    found: Held = {}
    for manifest in sorted((store / "results").glob("*/*/manifest.json")):
        # The page's key holds the recipe's settings, and among them where the store is.
        stage, key = manifest.parent.relative_to(store / "results").parts
        if stage != "report" and "." not in key:
            found[f"results/{stage}/{key}"] = {"": json.loads(manifest.read_text())["digest"]}
    for folder in sorted((store / "columns").glob("*/*")):
        if (cells := _cells(folder)) is not None:
            rows = cells.select(sorted(cells.columns)).write_ndjson().splitlines()
            digests = [hashlib.sha256(row.encode()).hexdigest()[:16] for row in rows]
            found[folder.relative_to(store).as_posix()] = dict(
                zip(cells["id"].to_list(), digests, strict=True)
            )
    return found


def _cells(folder: Path) -> pl.DataFrame | None:
    """The cells of a column's parts and of journals that no later writer needed to take up, in the
    order of their ids; None where there are none."""
    parts = [pl.read_parquet(part) for part in sorted(folder.glob("part-*.parquet"))]
    inside = pl.concat(parts, how="diagonal") if parts else None
    for frame in (frame for journal in journals(folder) for frame in frames(journal)):
        new = frame if inside is None else frame.join(inside, on="id", how="anti")
        inside = new if inside is None else pl.concat([inside, new], how="diagonal")
    return None if inside is None else inside.sort("id")


def unlike(store: Path, wanted: Held, *, lost: bool = False) -> Iterator[str]:
    """What of a store is not what a run without faults leaves. Where cells were `lost`, the run
    measures what it still needs, which may be other rows: cells of the same row are alike."""
    now = held(store)
    for name in sorted(wanted.keys() | now.keys()):
        ours, theirs = now.get(name, {}), wanted.get(name, {})
        changed = [key for key in ours.keys() & theirs.keys() if ours[key] != theirs[key]]
        if not ours:
            yield f"{name} is missing"
        elif not theirs:
            yield f"{name} is there besides"
        elif changed:
            yield f"{name} holds something else"
        elif ours.keys() != theirs.keys() and not lost:
            less, more = len(theirs.keys() - ours.keys()), len(ours.keys() - theirs.keys())
            yield f"{name} lacks {less} rows and has {more} others"


def doubled(store: Path) -> Iterator[str]:
    """Columns that hold an id twice."""
    for folder in (store / "columns").glob("*/*"):
        if (cells := _cells(folder)) is not None and (ids := cells["id"]).n_unique() != len(ids):
            yield f"{folder.name} holds {len(ids) - ids.n_unique()} ids twice"


# -- what is left over -----------------------------------------------------------------------------


def left_over(place: Place, *, lost: bool = False) -> Iterator[str]:
    """Processes, temporary files, locks, ports and shared memory that are still there. Where files
    were `lost`, a page may have another key than the one that was begun, which `magpie gc`
    removes."""
    for process in processes(place):
        with suppress(psutil.Error):
            yield f"process: {' '.join(process.cmdline())[:120]}"
    for path in sorted(place.temporary.rglob("*")):
        yield f"temporary: {path.relative_to(place.temporary)}"
    for name in sorted(_names(Path(tempfile.gettempdir())) - place.around):
        if name.startswith(LITTER):
            yield f"temporary: {tempfile.gettempdir()}/{name}"
    for name in sorted(_names(SHARED) - place.shared):
        if _own(place, name) and not _mapped(name):
            yield f"shared memory: {name}"
    yield from (said for said in _unfinished(place.store) if not (lost and PAGE in said))
    for port in sorted(place.ports):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                yield f"port: {port}"


def _own(place: Place, name: str) -> bool:
    """Whether a piece of shared memory may be of a place: loky's names hold who made it."""
    maker = name.removeprefix("sem.loky-").partition("-")[0]
    return not name.startswith("sem.loky-") or (maker.isdigit() and int(maker) in place.seen)


def _unfinished(store: Path) -> Iterator[str]:
    for path in sorted(store.rglob("*")):
        if path.name.endswith((".tmp", ".partial")):
            yield f"unfinished: {path.relative_to(store)}"
        if path.suffix == ".lock" and path.is_file():
            try:
                FileLock(path).acquire(timeout=0).lock.release()
            except Timeout:
                yield f"held: {path.relative_to(store)}"


def _mapped(name: str) -> bool:
    """Whether a process uses a piece of shared memory: then it is another's."""
    for process in psutil.process_iter():
        with suppress(OSError):
            if f"/dev/shm/{name}" in Path(f"/proc/{process.pid}/maps").read_text():
                return True
    return False


def processes(place: Place) -> list[psutil.Process]:
    """Every process of a place that lives."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            session = os.getsid(process.pid)
            if process.status() == psutil.STATUS_ZOMBIE:
                continue
            if session in place.sessions or process.environ().get(MARK) == place.folder.name:
                place.sessions.add(session)
                place.seen.add(process.pid)
                found.append(process)
    return found


_SERVERS = ("tests.campaigns.served", "openai.api_server")


def role(line: str) -> str:
    """What a process of a case is by its command line; "" for any other."""
    if "supervisor.py" in line:
        return "supervisor"
    for name, known in (
        ("server", any(words in line for words in _SERVERS)),
        ("engine", "VLLM::EngineCore" in line),
        ("worker", "VLLM::Worker" in line),
        ("launcher", "accelerate.commands.launch" in line),
        ("rank", "train.sft" in line or line.endswith(" rank")),
        ("launcher", "tiny_trainer" in line),
    ):
        if known:
            return name
    return ""


def of_role(place: Place, wanted: str) -> list[psutil.Process]:
    """The processes of a place that are this."""
    found = []
    for process in processes(place):
        with suppress(psutil.Error):
            if role(" ".join(process.cmdline())) == wanted:
                found.append(process)
    return found
