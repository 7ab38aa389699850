"""When a fault strikes: after a share of the requests of a stage, or of the steps of a training, or
of a second after a stage is named."""

from __future__ import annotations

import re
import time
import urllib.request
from collections import Counter
from collections.abc import Callable
from contextlib import suppress

import psutil

from tests.campaigns import real
from tests.campaigns.ground import ASKED, Ground
from tests.campaigns.remains import Place, of_role

REAL_TOTALS = {"instructions": 40, "responses": 24, "answers": 16}
"""Requests of each stage on the real stack, or somewhat fewer."""

SAYS = {
    "instructions": "instructions: run",
    "responses": "measuring response",
    "answers": "answers/",
}
"""What the run says when a stage on the real stack begins."""

Reached = Callable[[], bool]


def watch(ground: Ground, place: Place, stage: str, moment: float, before: Counter[str]) -> Reached:
    """Says, asked again and again, whether the moment has come; `before` is what the scripted
    server had been asked."""
    total = ground.totals[real.plain(place.mode)].get(stage, 0)
    wanted = 1 + int(moment * max(0, total - 2))
    if stage == "train":
        return _trained(place, wanted)
    if stage not in ASKED:
        return _said(place, stage, moment)
    if place.mode == "urls":
        return lambda: ground.model.seen[stage] - before[stage] >= wanted
    if place.mode == "own":
        return _answered(place, stage, wanted)
    return _generated(place, stage, 1 + int(moment * REAL_TOTALS[stage]))


def _said(place: Place, stage: str, moment: float) -> Reached:
    def reached() -> bool:
        said = place.said()
        if f"{stage}/" not in said and f"\n{stage}:" not in said:
            return False
        time.sleep(moment)
        return True

    return reached


def _trained(place: Place, wanted: int) -> Reached:
    """So many steps are logged."""

    def reached() -> bool:
        logs = (place.store / "results" / "train").glob("*/log.jsonl")
        lines = 0
        with suppress(FileNotFoundError):  # renamed meanwhile
            lines = sum(log.read_bytes().count(b"\n") for log in logs)
        return lines >= wanted

    return reached


def _answered(place: Place, stage: str, wanted: int) -> Reached:
    """A scripted server of the run's own has answered so many, and others are open."""

    def reached() -> bool:
        noted = place.noted()
        events = Counter(tuple(words) for words in noted if len(words) == 2)
        done = events["answered", stage]
        if done < wanted or events["asked", stage] <= done:
            return False
        up = next(words for words in reversed(noted) if words[0] == "up")
        place.pids |= {"server": int(up[1]), "supervisor": int(up[2])}
        place.ports.add(int(up[3]))
        return True

    return reached


def _generated(place: Place, stage: str, wanted: int) -> Reached:
    """A real vLLM of the run's own has answered so many since the stage began, and others are
    open. Its processes are looked up when the stage begins."""
    begun: list[float] = []

    def reached() -> bool:
        if SAYS[stage] not in place.said():
            return False
        if "server" not in place.pids:
            looked_up(place)
            time.sleep(0.2)
            return False
        done, running = figures(max(place.ports))
        if done is None:
            return False
        if not begun:
            begun.append(done)
        return done - begun[0] >= wanted and running > 0

    return reached


def looked_up(place: Place) -> None:
    """Note which processes the server of a place has, once its engine is there."""
    for name in ("server", "supervisor", "engine", "worker"):
        for process in of_role(place, name)[-1:]:
            place.pids[name] = process.pid
    if "engine" not in place.pids or "server" not in place.pids:
        place.pids.pop("server", None)
        return
    with suppress(psutil.Error, ValueError, IndexError):
        line = psutil.Process(place.pids["server"]).cmdline()
        place.ports = {int(line[line.index("--port") + 1])}


def figures(port: int) -> tuple[float | None, float]:
    """(requests that a vLLM has answered, None where it does not say; those it works at)."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
            text = answer.read().decode()
    except OSError:
        return None, 0
    done = re.findall(r"^vllm:request_success_total\{.*\} ([\d.e+]+)$", text, re.MULTILINE)
    running = re.findall(r"^vllm:num_requests_running\{.*\} ([\d.e+]+)$", text, re.MULTILINE)
    return sum(map(float, done)), sum(map(float, running))
