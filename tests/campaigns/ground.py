"""Where faults are tried: the small recipe, its scripted server, harnesses that are forked, what a
run without any fault leaves, and stores that are finished up to a stage."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import yaml

from tests import small_recipe
from tests.campaigns import real
from tests.campaigns.remains import MARK, Held, Place, held
from tests.campaigns.served import NOTES
from tests.scripted_server import Fault, ScriptedServer

ROOT = Path(__file__).parents[2]

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
    "heldout": "judge",
    "score": "",
    "compare": "",
}
"""Stage -> the group that it is of."""
ASKED = ("instructions", "tags", "responses", "answers", "judging", "heldout")
"""Stages whose moments are requests; those of the others are what the run says."""
TIMEOUT = 2.0
"""Seconds that a request may take; of a real vLLM four times that."""


THREADS = ("POLARS_MAX_THREADS", "OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "RAYON_NUM_THREADS")
"""Threads of libraries: more of them only slow so small a recipe down."""


class Model:
    """Answers as the scripted model; counts requests by stage, and misbehaves for a while when it
    is told to."""

    def __init__(self) -> None:
        self.seen: Counter[str] = Counter()
        self.bad: list[Fault] = []
        self._lock = threading.Lock()

    def __call__(self, path: str, body: dict[str, Any]) -> dict[str, Any] | Fault:
        with self._lock:
            self.seen[small_recipe.kind(body)] += 1
            if self.bad:
                return self.bad.pop()
        return small_recipe.answer(path, body)


class Zygote:
    """Harnesses that cost a fork."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.campaigns.zygote"],
            cwd=ROOT,
            env={**os.environ, **dict.fromkeys(THREADS, "1")},
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
class Ground:
    """What all cases share."""

    folder: Path
    model: Model = field(default_factory=Model)
    totals: dict[str, Counter[str]] = field(default_factory=dict)
    """Mode -> stage -> requests of a run without faults, and steps of its trainings."""
    wanted: dict[tuple[str, str], Held] = field(default_factory=dict)
    """(mode, group) -> what a store holds after it."""

    def __enter__(self) -> Ground:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.temporary = Path(tempfile.mkdtemp(prefix="faults-"))
        self.zygote = Zygote()
        self.server = ScriptedServer(self.model, delay=0.02).__enter__()
        self.llama = self.folder / "llama"
        if not (self.llama / "chat_template.jinja").exists():
            small_recipe.model(self.llama)
        return self

    def __exit__(self, *_: object) -> None:
        self.server.__exit__()
        self.zygote.close()
        shutil.rmtree(self.temporary, ignore_errors=True)

    def place(self, name: str, mode: str, until: str, store: Path | None = None) -> Place:
        """A folder with the recipe; its store is empty."""
        folder = self.folder / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        temporary = Path(tempfile.mkdtemp(dir=self.temporary))
        made = Place(folder, store or folder / "store", mode, until, temporary)
        recipe = real.recipe(folder, self.llama, mode) if real.is_real(mode) else self._small(made)
        recipe["store"] = str(made.store)
        (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
        return made

    def _small(self, place: Place) -> dict[str, Any]:
        """The small recipe on the scripted server, or on servers of the run's own."""
        url = self.server.url
        path = small_recipe.recipe(place.folder, self.llama, url, train=True, synth__rows=60)
        recipe: dict[str, Any] = yaml.safe_load(path.read_text())
        server: dict[str, Any] = {"max_in_flight": 8, "timeout": TIMEOUT, "urls": [url]}
        if place.mode == "own":
            server = {"max_in_flight": 2, "timeout": TIMEOUT}
        recipe["synth"]["teacher"]["server"] = server
        recipe["eval"]["judge"]["server"] = recipe["eval"]["answers"]["server"] = server
        del recipe["arms"]["same"]
        return recipe

    def start(self, place: Place) -> int:
        """Start the command of a place."""
        place.runs += 1
        argv = ["run", str(place.folder / "recipe.yaml")]
        argv += ["--until", place.until] if place.until else []
        env = {MARK: place.folder.name, "TMPDIR": str(place.temporary), NOTES: str(place.notes)}
        own, tiny = place.mode == "own", not real.is_real(place.mode)
        unset = () if tiny else THREADS
        asked = {"env": env, "unset": unset, "log": str(place.log), "own": own, "trainer": tiny}
        pid = self.zygote.start(argv, **asked)
        place.sessions.add(pid)
        return pid

    def learn(self, mode: str) -> None:
        """Run without any fault, group by group, keeping the store before each."""
        groups = real.GROUPS if real.is_real(mode) else GROUPS
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
            code = self.zygote.wait(self.start(place), 1800)
            assert code == 0, place.said()[-2000:]
            answered = Counter(words[1] for words in place.noted() if words[0] == "answered")
            self.totals[mode] += self.model.seen - before + answered
            self.wanted[mode, group] = held(place.store)
            store = place.store
        logs = (store / "results" / "train").glob("*/log.jsonl")
        self.totals[mode]["train"] = sum(log.read_text().count("\n") for log in logs)
        wanted = {group: self.wanted[mode, group] for group in groups}
        learned = {"code": code_digest(), "totals": self.totals[mode], "wanted": wanted}
        memory.write_text(json.dumps(learned))

    def copied(self, place: Place) -> None:
        """Put what is finished before the place's group into its store."""
        finished = self.folder / f"{real.plain(place.mode)}-{place.until}"
        if finished.is_dir():
            shutil.copytree(finished, place.store, dirs_exist_ok=True)


def code_digest() -> str:
    """What the code is that the cases are tried on."""
    packages = ("core", "synth", "train", "eval", "recipes", "tests/campaigns")
    files = [path for name in packages for path in sorted((ROOT / name).rglob("*.py"))]
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()
