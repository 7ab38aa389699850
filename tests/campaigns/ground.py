"""Where faults are tried: the small recipe, its scripted server, harnesses that are forked, what a
run without any fault leaves, and stores that are finished up to a stage."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl
import psutil
import yaml
from filelock import FileLock, Timeout

from tests import small_recipe
from tests.scripted_server import Fault, ScriptedServer
from tests.test_kill import kind

ROOT = Path(__file__).parents[2]
MARK = "MAGPIE_FAULT_CASE"
"""The variable by which every process of a case is known, whatever became of its parents."""

GROUPS = ("select", "train", "judge", "")
"""Where a store is copied for the cases of the stages after it ("": the end)."""
STAGES: dict[str, str] = {
    "instructions": "select",
    "tags": "select",
    "responses": "select",
    "select": "select",
    "tokens": "train",
    "train": "train",
    "answers": "judge",
    "judging": "judge",
    "heldout": "",
    "score": "",
    "compare": "",
}
"""Stage -> the group that it is of."""
ASKED = ("instructions", "tags", "responses", "answers", "judging", "heldout")
"""Stages whose moments are requests; those of the others are what the run says."""
TIMEOUT = 2.0
"""Seconds that a request may take."""


class Model:
    """Answers as the scripted model; counts requests by stage, and misbehaves for a while when it
    is told to."""

    def __init__(self) -> None:
        self.seen: Counter[str] = Counter()
        self.bad: list[Fault] = []
        self._lock = threading.Lock()

    def __call__(self, path: str, body: dict[str, Any]) -> dict[str, Any] | Fault:
        with self._lock:
            self.seen[kind(body)] += 1
            if self.bad:
                return self.bad.pop()
        return small_recipe.answer(path, body)


class Zygote:
    """Harnesses that cost a fork."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.campaigns.zygote"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._lock = threading.Lock()
        self.codes: dict[int, int] = {}

    def start(self, argv: list[str], **asked: Any) -> int:
        """Start `magpie ARGV`; returns its process id."""
        return int(self._ask({"id": "-", "argv": argv, **asked})["pid"])

    def wait(self, pid: int, patience: float) -> int | None:
        """The exit code; None where it has not ended after so many seconds."""
        stop = time.monotonic() + patience
        while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
            if time.monotonic() > stop:
                return None
            time.sleep(0.02)
        if pid not in self.codes:
            self.codes[pid] = int(self._ask({"wait": pid})["code"])
        return self.codes[pid]

    def _ask(self, words: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None and self._process.stdout is not None
        with self._lock:
            self._process.stdin.write(json.dumps(words) + "\n")
            self._process.stdin.flush()
            answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer

    def close(self) -> None:
        """End it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:  # libraries' threads at the interpreter's end
            self._process.kill()
            self._process.wait()


@dataclass
class Place:
    """One case's folder: its store, recipe, log and folder for temporary files."""

    folder: Path
    store: Path
    mode: str
    until: str
    runs: int = 0

    @property
    def temporary(self) -> Path:
        """What TMPDIR is."""
        return self.folder / "t"

    @property
    def log(self) -> Path:
        """What its harnesses say."""
        return self.folder / "said.txt"

    def said(self) -> str:
        """All that its harnesses said."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""


@dataclass
class Ground:
    """What all cases share."""

    folder: Path
    model: Model = field(default_factory=Model)
    totals: dict[str, Counter[str]] = field(default_factory=dict)
    """Mode -> stage -> requests of a run without faults."""
    wanted: dict[tuple[str, str], dict[str, str]] = field(default_factory=dict)
    """(mode, group) -> what a store holds after it."""

    def __enter__(self) -> Ground:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.zygote = Zygote()
        self.server = ScriptedServer(self.model, delay=0.02).__enter__()
        self.llama = self.folder / "llama"
        if not (self.llama / "chat_template.jinja").exists():
            small_recipe.model(self.llama)
        return self

    def __exit__(self, *_: object) -> None:
        self.server.__exit__()
        self.zygote.close()

    def place(self, name: str, mode: str, until: str, store: Path | None = None) -> Place:
        """A folder with the recipe; its store is empty."""
        folder = self.folder / name
        shutil.rmtree(folder, ignore_errors=True)
        made = Place(folder, store or folder / "store", mode, until)
        made.temporary.mkdir(parents=True)
        server: dict[str, Any] = {"max_in_flight": 8, "timeout": TIMEOUT}
        server |= {} if mode == "own" else {"urls": [self.server.url]}
        path = small_recipe.recipe(folder, self.llama, self.server.url, train=True, synth__rows=60)
        recipe = yaml.safe_load(path.read_text())
        recipe["store"] = str(made.store)
        recipe["synth"]["teacher"]["server"] = server
        recipe["eval"]["judge"]["server"] = recipe["eval"]["answers"]["server"] = server
        del recipe["arms"]["same"]
        path.write_text(yaml.safe_dump(recipe, sort_keys=False))
        return made

    def start(self, place: Place) -> int:
        """Start the command of a place."""
        place.runs += 1
        argv = ["run", str(place.folder / "recipe.yaml")]
        argv += ["--until", place.until] if place.until else []
        env = {MARK: place.folder.name, "TMPDIR": str(place.temporary)}
        return self.zygote.start(
            argv, env=env, log=str(place.log), own=place.mode == "own", trainer=True
        )

    def learn(self, mode: str, groups: tuple[str, ...] = GROUPS) -> None:
        """Run without any fault, group by group, keeping the store before each."""
        memory = self.folder / f"{mode}-learned.json"
        if memory.exists() and (known := json.loads(memory.read_text()))["code"] == code_digest():
            self.totals[mode] = Counter(known["totals"])
            self.wanted |= {(mode, group): known["wanted"][group] for group in groups}
            return
        self.totals[mode] = Counter()
        store = self.folder / f"before-{mode}" / "store"
        for group in groups:
            shutil.rmtree(self.folder / f"{mode}-{group}", ignore_errors=True)
            place = self.place(f"clean-{mode}-{group}", mode, group)
            if store.is_dir():
                shutil.copytree(store, place.store)
                shutil.copytree(store, self.folder / f"{mode}-{group}")
            before = self.model.seen.copy()
            code = self.zygote.wait(self.start(place), 600)
            assert code == 0, place.said()[-2000:]
            self.totals[mode] += self.model.seen - before
            self.wanted[mode, group] = held(place.store)
            store = place.store
        wanted = {group: self.wanted[mode, group] for group in groups}
        learned = {"code": code_digest(), "totals": self.totals[mode], "wanted": wanted}
        memory.write_text(json.dumps(learned))

    def copied(self, place: Place) -> None:
        """Put what is finished before the place's group into its store."""
        finished = self.folder / f"{place.mode}-{place.until}"
        if finished.is_dir():
            shutil.copytree(finished, place.store, dirs_exist_ok=True)


def code_digest() -> str:
    """What the code is that the cases are tried on."""
    packages = ("core", "synth", "train", "eval", "recipes", "tests/campaigns")
    files = [path for name in packages for path in sorted((ROOT / name).rglob("*.py"))]
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


def held(store: Path) -> dict[str, str]:
    """What a store holds: the digest of each result, and of each column's cells."""
    found = {}
    for manifest in sorted((store / "results").glob("*/*/manifest.json")):
        # The page's key holds the recipe's settings, and among them where the store is.
        stage, key = manifest.parent.relative_to(store / "results").parts
        if stage != "report" and "." not in key:
            found[f"results/{stage}/{key}"] = json.loads(manifest.read_text())["digest"]
    for folder in sorted((store / "columns").glob("*/*")):
        parts = sorted(folder.glob("part-*.parquet"))
        if parts:
            cells = pl.concat([pl.read_parquet(part) for part in parts], how="diagonal").sort("id")
            text = cells.select(sorted(cells.columns)).write_ndjson().encode()
            found[folder.relative_to(store).as_posix()] = hashlib.sha256(text).hexdigest()
    return found


def unlike(store: Path, wanted: dict[str, str]) -> Iterator[str]:
    """What of a store is not what a run without faults leaves."""
    now = held(store)
    for name in sorted(wanted.keys() | now.keys()):
        if name not in now:
            yield f"{name} is missing"
        elif name in wanted and now[name] != wanted[name]:
            yield f"{name} holds something else"
        elif name not in wanted:
            yield f"{name} is there besides"


def doubled(store: Path) -> Iterator[str]:
    """Columns that hold an id twice."""
    for folder in (store / "columns").glob("*/*"):
        parts = [pl.read_parquet(p, columns=["id"]) for p in folder.glob("part-*.parquet")]
        if parts and (ids := pl.concat(parts)["id"]).n_unique() != len(ids):
            yield f"{folder.name} holds {len(ids) - ids.n_unique()} ids twice"


def left_over(place: Place) -> Iterator[str]:
    """Processes, temporary files and locks that are still there."""
    for process in processes(place):
        yield f"process: {' '.join(process.cmdline())[:120]}"
    for path in sorted(place.temporary.rglob("*")):
        yield f"temporary: {path.relative_to(place.temporary)}"
    for path in sorted(place.store.rglob("*")):
        if path.name.endswith((".tmp", ".partial")):
            yield f"unfinished: {path.relative_to(place.store)}"
        if path.suffix == ".lock" and path.is_file():
            try:
                FileLock(path).acquire(timeout=0).lock.release()
            except Timeout:
                yield f"held: {path.relative_to(place.store)}"


def processes(place: Place) -> list[psutil.Process]:
    """Every process of a place that lives."""
    found = []
    for process in psutil.process_iter():
        try:
            own = process.environ().get(MARK) == place.folder.name
            if own and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found
