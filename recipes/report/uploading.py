"""Uploading what was reported offline to W&B: every run once, also after kills.

W&B's own `wandb sync` sends a run's files and marks those that it has sent. What it cannot know is
how much of a file arrived before a kill. A file that begins a run may be sent again: its lines take
the places that they had. A file that continues one is added to the run's end, so it is noted beside
it how many lines the run had before; what has arrived is then not sent again.
"""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock

from core.errors import UserError
from core.files import only_holder, write_atomic
from core.tracking import wandb_mode

BLOCK = 32768
FILE_HEADER = 7
RECORD_HEADER = struct.Struct("<IHB")
"""Of a .wandb file (LevelDB's log format): checksum, length, kind (1 full, 2 first, 3 middle, 4
last)."""
LIVE = 120.0
"""Seconds since a file without an end was written to, within which it may still be."""


@dataclass(frozen=True)
class RunFile:
    """One attempt at a run: its .wandb file. `continues`: an earlier attempt's files lie here,
    written offline or online. `overtaken`: it does not, and a later attempt reported online."""

    path: Path
    run: str
    continues: bool
    overtaken: bool = False

    @property
    def sent(self) -> Path:
        """W&B's mark that all of it was sent."""
        return self.path.with_name(f"{self.path.name}.synced")

    @property
    def note(self) -> Path:
        """How many lines the run had before this file was sent, while that is not known to be
        done."""
        return self.path.with_name(f"{self.path.name}.before.json")


@dataclass
class Uploaded:
    """Names of run folders: what this call sent, what may still be written to, and what W&B did not
    take, with the reason."""

    sent: list[str] = field(default_factory=list)
    live: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)


def lines(done: Uploaded) -> Iterator[str]:
    """What was uploaded, and what was not, for a reader."""
    for name, why in done.failed.items():
        yield f"{name}: not uploaded ({why})"
    left = f", {len(done.live)} still written to and left for the next call" if done.live else ""
    failed = f", {len(done.failed)} not taken" if done.failed else ""
    yield f"{len(done.sent)} runs uploaded{left}{failed}"


def sync(root: Path, say: Callable[[str], None]) -> Uploaded:
    """Upload the offline runs below the store `root` that were not uploaded before.

    Runs that are still written to are left for the next call. Raises UserError without an API key,
    and while another call uploads from the same store.
    """
    if wandb_mode() != "online":
        raise UserError(
            "nothing can be uploaded without a W&B API key; set WANDB_API_KEY (and WANDB_BASE_URL "
            "for a server of your own), and WANDB_MODE to nothing or online."
        )
    folder = root / "wandb"
    done = Uploaded()
    if not folder.is_dir():
        return done
    complaint = f"another call is uploading the runs in {folder}; wait for it."
    with only_holder(FileLock(str(folder / ".sync.lock")), complaint):
        files = [file for file in run_files(folder) if not file.sent.exists()]
        done.live = [file.path.parent.name for file in files if not complete(file.path)]
        whole = [file for file in files if file.path.parent.name not in done.live]
        _send([file for file in whole if not (file.continues or file.overtaken)], done, say)
        _rest(files, done, say)
    return done


def _rest(files: Sequence[RunFile], done: Uploaded, say: Callable[[str], None]) -> None:
    """Send what continues a run, of each run in order: it is added to the run's end, and what
    begins the run would replace it there."""
    whole = [file for file in files if file.path.parent.name not in done.live]
    unsent = {file.run for file in files if not (file.continues or file.sent.exists())}
    unsent |= {file.run for file in files if file.path.parent.name in done.live}
    for file in whole:
        name = file.path.parent.name
        if file.overtaken:
            done.failed[name] = (
                "the run went on online since, and sending this beginning would replace those "
                f"lines; it stays in {file.path}"
            )
        elif file.continues and file.run in unsent:
            done.failed[name] = "an earlier part is not uploaded yet"
        elif file.continues:
            _continue(file, done, say)
            unsent |= set() if file.sent.exists() else {file.run}


def run_files(folder: Path) -> list[RunFile]:
    """Every offline run's files, the earliest first."""
    paths = [*folder.glob("offline-run-*/run-*.wandb"), *folder.glob("run-*/run-*.wandb")]
    paths.sort(key=lambda path: path.parent.name.removeprefix("offline-"))
    online = {path.stem for path in paths if path.parent.name.startswith("run-")}
    found, seen = [], set()
    for path in paths:
        begun = path.stem in seen
        seen.add(path.stem)
        if path.parent.name.startswith("offline-"):
            overtaken = not begun and path.stem in online
            found.append(RunFile(path, path.stem.removeprefix("run-"), begun, overtaken))
    return found


def complete(path: Path) -> bool:
    """Whether nobody writes to a run's file any more: it has its end, or was left without one."""
    import time

    from google.protobuf.message import DecodeError
    from wandb.proto.wandb_internal_pb2 import Record

    if time.time() - path.stat().st_mtime > LIVE:
        return True
    *_, last = [b"", *records(path)]
    record = Record()
    try:
        record.ParseFromString(last)
    except DecodeError:
        return False  # half a record: it is being written
    return bool(record.WhichOneof("record_type") == "exit")


def records(path: Path) -> Iterator[bytes]:
    """The records of a .wandb file, in order, as far as they are whole."""
    data = path.read_bytes()
    at, pending = FILE_HEADER, b""
    while at + RECORD_HEADER.size <= len(data):
        left = BLOCK - at % BLOCK
        if left < RECORD_HEADER.size:
            at += left
            continue
        _, length, kind = RECORD_HEADER.unpack_from(data, at)
        if kind == 0 or at + RECORD_HEADER.size + length > len(data):
            return
        pending += data[at + RECORD_HEADER.size : at + RECORD_HEADER.size + length]
        at += RECORD_HEADER.size + length
        if kind in (1, 4):
            yield pending
            pending = b""


def _send(files: Sequence[RunFile], done: Uploaded, say: Callable[[str], None]) -> None:
    """Send files by W&B's own command, and see which of them it marked."""
    if not files:
        return
    say(f"uploading {len(files)} runs to W&B")
    command = [sys.executable, "-m", "wandb", "sync", *(str(file.path.parent) for file in files)]
    ended = subprocess.run(command, capture_output=True, text=True, env=_environment())
    said = (ended.stderr or ended.stdout).strip().splitlines()
    for file in files:
        name = file.path.parent.name
        if file.sent.exists():
            file.note.unlink(missing_ok=True)
            done.sent.append(name)
        else:
            own = [line for line in said if file.run in line and "rror" in line]
            done.failed[name] = (own or said or ["W&B said nothing"])[-1]


def _continue(file: RunFile, done: Uploaded, say: Callable[[str], None]) -> None:
    """Send a file that continues a run, where none of its lines has arrived; mark it where all
    have."""
    from google.protobuf.message import DecodeError

    name = file.path.parent.name
    try:
        project, entity, own = _about(file.path)
        there = lines_there(project, entity, file.run)
    except DecodeError as error:
        done.failed[name] = f"{file.path} is damaged ({error})"
        return
    except (OSError, ValueError, KeyError, TypeError) as error:
        done.failed[name] = f"W&B did not say what it holds of the run ({error})"
        return
    before = there
    with suppress(FileNotFoundError, ValueError, KeyError):
        before = int(json.loads(file.note.read_text())["lines"])
    if own and there - before >= own:
        file.sent.touch()
        file.note.unlink(missing_ok=True)
        done.sent.append(name)
    elif there > before:
        done.failed[name] = (
            f"{there - before} of its {own} lines arrived before an upload was killed, and sending "
            f"it again would repeat them; `wandb sync {file.path.parent}` does so all the same"
        )
    else:
        write_atomic(file.note, json.dumps({"lines": there}))
        _send([file], done, say)


def _about(path: Path) -> tuple[str, str | None, int]:
    """Project and entity of a run's file, and how many lines of history it holds."""
    from wandb.proto.wandb_internal_pb2 import Record

    project, entity, own = "", "", 0
    for data in records(path):
        record = Record()
        record.ParseFromString(data)
        kind = record.WhichOneof("record_type")
        if kind == "run":
            project, entity = record.run.project, record.run.entity
        own += kind == "history"
    return project, entity or None, own


QUERY = """query RunLines($project: String!, $entity: String, $name: String!) {
  model(name: $project, entityName: $entity) {
    bucket(name: $name, missingOk: true) { historyLineCount }
  }
}"""


def lines_there(project: str, entity: str | None, run: str) -> int:
    """How many lines of history W&B holds of a run; 0 where it has none."""
    import httpx

    key = os.environ.get("WANDB_API_KEY")
    auth: Any = ("api", key) if key else httpx.NetRCAuth(os.environ.get("NETRC"))
    base = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai").rstrip("/")
    asked = {"project": project, "entity": entity, "name": run}
    body = {"query": QUERY, "variables": asked}
    try:
        reply = httpx.post(f"{base}/graphql", json=body, auth=auth, timeout=60)
        reply.raise_for_status()
    except httpx.HTTPError as error:
        raise OSError(str(error)) from error
    bucket = (reply.json()["data"].get("model") or {}).get("bucket")
    return int(bucket["historyLineCount"]) if bucket else 0


def _environment() -> dict[str, str]:
    """For W&B's command: nothing of a run that may surround this process."""
    own = ("WANDB_RUN_ID", "WANDB_RESUME", "WANDB_MODE", "WANDB_DIR", "WANDB_SERVICE")
    return {name: value for name, value in os.environ.items() if name not in own}
