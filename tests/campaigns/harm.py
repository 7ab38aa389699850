"""The faults: what each does to a running case, and how it is taken back."""

from __future__ import annotations

import random
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from core.store import COPY
from tests.campaigns import real
from tests.campaigns.ground import ASKED, STAGES, TIMEOUT, Ground
from tests.campaigns.remains import Place, of_role, processes
from tests.scripted_server import Fault, ScriptedServer

APPEARS = 30.0
"""Seconds in which a process that is to be killed appears, or the fault strikes nothing."""

MOST = 5
"""Bad answers in a row: one fewer than a request is asked again after."""

Undo = Callable[[], None]
TRAINING = ("train",)
EVERYWHERE = tuple(STAGES)
REAL = tuple(real.STAGES)
GENERATING = ("instructions", "responses", "answers")
"""Stages of the real stack that a server of the run's own answers for long enough."""


@dataclass
class Scene:
    """A case while it runs."""

    ground: Ground
    place: Place
    pid: int
    dice: random.Random
    hit: bool = True
    """Whether the fault found what it strikes."""
    wrong: list[str] = field(default_factory=list)
    """What is wrong beyond what every case is looked at for."""


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
    loses: bool = False
    """Whether finished cells may be lost."""


def _signal(number: int) -> Callable[[Scene], None]:
    def act(scene: Scene) -> None:
        with suppress(psutil.Error):
            psutil.Process(scene.pid).send_signal(number)

    return act


def _stopped(scene: Scene) -> None:
    """The harness stands still for longer than a request may take."""
    with suppress(psutil.Error):
        process = psutil.Process(scene.pid)
        process.suspend()
        time.sleep(_past(scene.place))
        process.resume()


def _past(place: Place) -> float:
    """Seconds beyond which a request has failed."""
    return 1 + (real.TIMEOUT if real.is_real(place.mode) else TIMEOUT)


def _found(scene: Scene, role: str) -> psutil.Process | None:
    """A process of the case that is this; waited for while the run lasts."""
    stop = time.monotonic() + APPEARS
    with suppress(psutil.Error):
        if role in scene.place.pids:
            return psutil.Process(scene.place.pids[role])
    while time.monotonic() < stop and scene.ground.zygote.wait(scene.pid, 0) is None:
        if there := of_role(scene.place, role):
            return scene.dice.choice(there)
        time.sleep(0.02)
    return None


def _killed(role: str) -> Callable[[Scene], None]:
    """SIGKILL to a process that is this. A server must have had requests open."""

    def act(scene: Scene) -> None:
        process = _found(scene, role)
        if process is None:
            scene.hit = False
            return
        with suppress(psutil.Error):
            process.kill()
        if scene.place.mode == "own":
            scene.hit = scene.place.open() > 0

    return act


def _stands(role: str, *, for_good: bool = False) -> Callable[[Scene], None]:
    """A process that is this stands still, for longer than a request may take or until it is
    ended."""

    def act(scene: Scene) -> None:
        process = _found(scene, role)
        if process is None:
            scene.hit = False
            return
        with suppress(psutil.Error):
            process.suspend()
            if not for_good:
                time.sleep(_past(scene.place))
                process.resume()

    return act


def _misbehaves(fault: Fault) -> Callable[[Scene], None]:
    """The server answers some requests badly."""

    def act(scene: Scene) -> None:
        scene.ground.model.bad = [fault] * MOST

    return act


def _gone(scene: Scene) -> None:
    """The server's port is closed for half a second, and open again."""
    ground = scene.ground
    port = ground.server.port
    ground.server.__exit__()
    time.sleep(0.5)
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

    def undo() -> None:
        subprocess.run(["mount", "-o", "remount,rw", str(root)], check=True)

    return undo


def _damaged(how: str, most: int = 3, *patterns: str) -> Callable[[Scene], None]:
    """The harness is killed, and files of the store are damaged: up to `most` of those that a
    pattern names, or of all."""

    def act(scene: Scene) -> None:
        _signal(signal.SIGKILL)(scene)
        scene.ground.zygote.wait(scene.pid, 60)
        deadline = time.monotonic() + 30
        while processes(scene.place) and time.monotonic() < deadline:
            time.sleep(0.1)
        store = scene.place.store
        named = [path for pattern in patterns for path in store.glob(pattern)]
        there = sorted(filter(_counts, named or ([] if patterns else store.rglob("*"))))
        for path in scene.dice.sample(there, min(most, len(there))):
            damage(path, how)
        scene.hit = bool(there)

    return act


def _counts(path: Path) -> bool:
    """Whether a file is one to damage: of what is said twice, one is left alone."""
    return (
        path.is_file()
        and path.stat().st_size > 0
        and path.suffix not in (".lock", ".lease", ".log")
        and path.name != COPY
    )


def damage(path: Path, how: str) -> None:
    """Flip a bit in the middle of a file, cut off its second half, or empty it."""
    data = path.read_bytes()
    middle = len(data) // 2
    flipped = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
    path.write_bytes({"flipped": flipped, "cut off": data[:middle], "emptied": b""}[how])


def _twice(scene: Scene) -> Undo:
    """The same command is started a second time while the first runs."""
    second = scene.ground.start(scene.place)

    def undo() -> None:
        code = scene.ground.zygote.wait(second, 300)
        if code not in (0, 2):
            scene.wrong.append(f"the second run ended with {code}")

    return undo


BAD = {
    "429": Fault("status", 429, 0.05),
    "500": Fault("status", 500),
    "nothing": Fault("hang"),
    "half a body": Fault("cut"),
    "no JSON": Fault("garbage"),
    "no choices": Fault("wrong_schema"),
    "an empty body": Fault("empty"),
    "a dropped connection": Fault("drop"),
}
"""Ways to answer badly, by name."""

DAMAGES = ("flipped", "cut off", "emptied")
CHECKPOINTS = ("results/train/*.partial/scratch/checkpoint-*/**/*",)
EXPORTS = ("results/train/*/checkpoint/*",)

HARMS: Mapping[str, Harm] = {
    "SIGKILL of the harness": Harm(_signal(signal.SIGKILL)),
    "SIGTERM to the harness": Harm(_signal(signal.SIGTERM)),
    "Ctrl-C": Harm(_signal(signal.SIGINT)),
    "harness stopped past time-outs": Harm(_stopped, recovers=True),
    "two runs at once": Harm(_twice),
    "disk full": Harm(_full, disk=True),
    "read-only store": Harm(_read_only, before=True, disk=True),
    **{f"files {how} after a kill": Harm(_damaged(how), loses=True) for how in DAMAGES},
    **{
        f"checkpoint {how} after a kill": Harm(_damaged(how, 1, *CHECKPOINTS), TRAINING)
        for how in DAMAGES
    },
    **{
        f"export {how} after a kill": Harm(_damaged(how, 1, *EXPORTS), ("answers", "judging"))
        for how in DAMAGES
    },
    "server gone for half a second": Harm(_gone, ASKED, recovers=True),
    **{
        f"server answers {name}": Harm(_misbehaves(fault), ASKED, recovers=True)
        for name, fault in BAD.items()
    },
    "SIGKILL of the API server": Harm(_killed("server"), ASKED, True, "own"),
    "SIGKILL of the server's supervisor": Harm(_killed("supervisor"), ASKED, True, "own"),
    "SIGKILL of the harness, own server": Harm(_signal(signal.SIGKILL), ASKED, mode="own"),
    "SIGKILL of a rank": Harm(_killed("rank"), TRAINING),
    "SIGKILL of the launcher": Harm(_killed("launcher"), TRAINING),
    "SIGKILL of the trainer's supervisor": Harm(_killed("supervisor"), TRAINING),
}
"""On the scripted server and the tiny trainer."""

REAL_HARMS: Mapping[str, Harm] = {
    "SIGKILL of the API server": Harm(_killed("server"), GENERATING, True, "real"),
    "SIGKILL of the engine": Harm(_killed("engine"), GENERATING, True, "real"),
    "SIGKILL of the worker": Harm(_killed("worker"), ("instructions",), True, "real worker"),
    "SIGKILL of the server's supervisor": Harm(
        _killed("supervisor"), ("instructions", "answers"), True, "real"
    ),
    "API server stopped for good": Harm(
        _stands("server", for_good=True), ("responses",), True, "real"
    ),
    "engine stopped past time-outs": Harm(_stands("engine"), ("instructions",), True, "real"),
    "engine stopped for good": Harm(
        _stands("engine", for_good=True), ("instructions",), True, "real"
    ),
    "SIGKILL of the harness": Harm(_signal(signal.SIGKILL), REAL, mode="real"),
    "SIGTERM to the harness": Harm(_signal(signal.SIGTERM), ("responses", "train"), mode="real"),
    "Ctrl-C": Harm(_signal(signal.SIGINT), ("instructions", "train"), mode="real"),
    "harness stopped past time-outs": Harm(_stopped, ("responses", "train"), True, "real"),
    "two runs at once": Harm(_twice, ("instructions", "train"), mode="real"),
    "disk full": Harm(_full, ("responses", "train"), mode="real", disk=True),
    "read-only store": Harm(_read_only, ("answers",), mode="real", before=True, disk=True),
    "SIGKILL of a rank": Harm(_killed("rank"), TRAINING, mode="real"),
    "SIGKILL of the launcher": Harm(_killed("launcher"), TRAINING, mode="real"),
    "SIGKILL of the trainer's supervisor": Harm(_killed("supervisor"), TRAINING, mode="real"),
    "rank stopped for good": Harm(_stands("rank", for_good=True), TRAINING, mode="real"),
    **{
        f"files {how} after a kill": Harm(_damaged(how), ("responses",), mode="real", loses=True)
        for how in DAMAGES
    },
    **{
        f"checkpoint {how} after a kill": Harm(
            _damaged(how, 1, *CHECKPOINTS), TRAINING, mode="real"
        )
        for how in DAMAGES
    },
    **{
        f"export {how} after a kill": Harm(_damaged(how, 1, *EXPORTS), ("answers",), mode="real")
        for how in DAMAGES
    },
}
"""On real vLLM and TRL."""
