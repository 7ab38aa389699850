"""The faults: what each does to a running case, and how it is taken back."""

from __future__ import annotations

import random
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.campaigns.ground import TIMEOUT, Ground, Place, processes
from tests.scripted_server import FAULTS, Fault, ScriptedServer

APPEARS = 30.0
"""Seconds in which a process that is to be killed appears, or the fault strikes nothing."""

Undo = Callable[[], None]
TRAINING = ("train",)
OWN = ("instructions", "tags", "responses")
EVERYWHERE = (
    "instructions",
    "tags",
    "responses",
    "select",
    "tokens",
    "train",
    "answers",
    "judging",
    "heldout",
    "score",
    "compare",
)
ASKING = ("instructions", "tags", "responses", "answers", "judging", "heldout")


@dataclass
class Scene:
    """A case while it runs."""

    ground: Ground
    place: Place
    pid: int
    dice: random.Random
    hit: bool = True
    """Whether the fault found what it strikes."""


@dataclass(frozen=True)
class Harm:
    """One kind of fault: the stages that it is done to, and whether the run must recover from it by
    itself."""

    act: Callable[[Scene], Undo | None]
    stages: tuple[str, ...] = EVERYWHERE
    recovers: bool = False
    mode: str = "urls"
    before: bool = False
    """Whether it is done before the run begins."""
    disk: bool = False
    """Whether the store is a small file system of its own."""


def _signal(number: int) -> Callable[[Scene], None]:
    def act(scene: Scene) -> None:
        with suppress(ProcessLookupError):
            psutil.Process(scene.pid).send_signal(number)

    return act


def _stopped(scene: Scene) -> None:
    """The harness stands still for longer than a request may take."""
    with suppress(psutil.Error):
        process = psutil.Process(scene.pid)
        process.suspend()
        time.sleep(TIMEOUT + 1)
        process.resume()


def _killed(*words: str, but: str = "supervisor.py") -> Callable[[Scene], None]:
    """SIGKILL to the first process of the case whose command line holds these words and not the
    other."""

    def act(scene: Scene) -> None:
        stop = time.monotonic() + APPEARS
        while time.monotonic() < stop and scene.ground.zygote.wait(scene.pid, 0) is None:
            if any(_hit(process, words, but) for process in processes(scene.place)):
                return
            time.sleep(0.02)
        scene.hit = False

    return act


def _hit(process: psutil.Process, words: tuple[str, ...], but: str) -> bool:
    """Kill a process whose command line holds these words and not the other; whether it is one."""
    with suppress(psutil.Error):
        line = " ".join(process.cmdline())
        if all(word in line for word in words) and not (but and but in line):
            process.send_signal(signal.SIGKILL)
            return True
    return False


def _misbehaves(fault: Fault) -> Callable[[Scene], None]:
    """The server answers some requests badly."""

    def act(scene: Scene) -> None:
        scene.ground.model.bad = [fault] * (4 if fault.kind == "hang" else 12)

    return act


def _gone(scene: Scene) -> None:
    """The server's port is closed for a second, and open again."""
    ground = scene.ground
    port = ground.server.port
    ground.server.__exit__()
    time.sleep(1)
    ground.server = ScriptedServer(ground.model, delay=0.02, port=port).__enter__()


def _full(scene: Scene) -> Undo:
    """No byte is left on the store's file system."""
    ballast = scene.place.store.parent / "ballast"
    with suppress(OSError), ballast.open("wb", buffering=0) as handle:
        while True:
            handle.write(b"\0" * 4096)
    return lambda: ballast.unlink()


def _read_only(scene: Scene) -> Undo:
    """The store's file system can only be read."""
    root = scene.place.store.parent
    subprocess.run(["mount", "-o", "remount,ro", str(root)], check=True)
    return lambda: subprocess.run(["mount", "-o", "remount,rw", str(root)], check=True) and None


def _damaged(how: str) -> Callable[[Scene], None]:
    """The harness is killed, and three files of the store are damaged."""

    def act(scene: Scene) -> None:
        _signal(signal.SIGKILL)(scene)
        scene.ground.zygote.wait(scene.pid, 60)
        deadline = time.monotonic() + 30
        while processes(scene.place) and time.monotonic() < deadline:
            time.sleep(0.1)
        there = [p for p in sorted(scene.place.store.rglob("*")) if _counts(p)]
        for path in scene.dice.sample(there, min(3, len(there))):
            damage(path, how)

    return act


def _counts(path: Path) -> bool:
    return path.is_file() and path.stat().st_size > 0 and path.suffix not in (".lock", ".log")


def damage(path: Path, how: str) -> None:
    """Flip a bit in the middle of a file, cut off its second half, or empty it."""
    data = path.read_bytes()
    middle = len(data) // 2
    flipped = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
    path.write_bytes({"flipped": flipped, "cut": data[:middle], "emptied": b""}[how])


def _twice(scene: Scene) -> Undo:
    """The same command is started a second time while the first runs."""
    second = scene.ground.start(scene.place)
    return lambda: scene.ground.zygote.wait(second, 300) and None


BAD = {" ".join((f.kind, str(f.status) * (f.kind == "status"))).strip(): f for f in FAULTS}
BAD |= {"drop": Fault("drop")}
"""Ways to answer badly, by name."""

HARMS: Mapping[str, Harm] = {
    "SIGKILL of the harness": Harm(_signal(signal.SIGKILL)),
    "SIGTERM to the harness": Harm(_signal(signal.SIGTERM)),
    "Ctrl-C": Harm(_signal(signal.SIGINT)),
    "harness stopped past time-outs": Harm(_stopped, recovers=True),
    "two runs at once": Harm(_twice),
    "disk full": Harm(_full, disk=True),
    "read-only store": Harm(_read_only, before=True, disk=True),
    "files flipped after a kill": Harm(_damaged("flipped")),
    "files cut off after a kill": Harm(_damaged("cut")),
    "files emptied after a kill": Harm(_damaged("emptied")),
    "server gone for a second": Harm(_gone, ASKING, recovers=True),
    **{
        f"server answers: {name}": Harm(_misbehaves(fault), ASKING, recovers=True)
        for name, fault in BAD.items()
    },
    "SIGKILL of the API server": Harm(_killed("tests.campaigns.served"), OWN, True, "own"),
    "SIGKILL of the server's supervisor": Harm(
        _killed("supervisor.py", "served", but=""), OWN, True, "own"
    ),
    "SIGKILL of the harness, own server": Harm(_signal(signal.SIGKILL), OWN, mode="own"),
    "SIGKILL of a rank": Harm(_killed("tiny_trainer", " rank"), TRAINING),
    "SIGKILL of the launcher": Harm(_killed("tiny_trainer", but=" rank"), TRAINING),
    "SIGKILL of the trainer's supervisor": Harm(
        _killed("supervisor.py", "tiny_trainer", but=""), TRAINING
    ),
}
