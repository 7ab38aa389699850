"""One pass over a recipe's stages, to plan or to run: what is done, what must run, and which field
caused it.

A stage is known by its name in the recipe ("train/magpie/0"), which is shown but enters no key, and
by its key: the digest of its spec and of the digests of the results it reads. In a plan, a stage
whose parent must run has no key yet and says what it waits for.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Literal

from core.cells import kept
from core.cells.damage import Damage
from core.cells.references import REFERS, References, columns_opened
from core.cells.seals import VERIFIED
from core.errors import UserError
from core.files import sweep, write_changed
from core.sending.purse import Bill
from core.servers import Servers
from core.store import (
    Content,
    Counts,
    Result,
    Store,
    canonical,
    content_digest,
    digest,
    tree_digest,
)
from core.tracking import Log, Made, Tracker
from recipes.stages.environment import environment

State = Literal["reuse", "run", "waits"]
REUSE: Final = "reuse"
RUN: Final = "run"
WAITS: Final = "waits"

Make = Callable[[Path, Log, dict[str, Path]], Counts]
"""Writes a result into a folder, given the log and the folders of the results that it is made from;
returns what the manifest counts."""

Results = dict[str, Result | None]
"""Results by name; None in a plan: it must be made first."""

UNMADE: Final = "unmade"
"""In the manifest of what a plan puts in the place of a result whose content nobody knows yet."""
SHOWN_FIELDS = 3
"""How many changed fields a plan names as the cause of a stage."""


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


@dataclass(frozen=True)
class Stage:
    """A result that a recipe asks for.

    `spec` determines the content together with the parents' digests; `make` writes into the build's
    folder, and gets the parents' folders by the same names.
    """

    name: str
    spec: Mapping[str, Any]
    parents: Mapping[str, Result | None]
    make: Make
    content: Content | None = None
    """What children depend on, where that is not every file."""
    because: Mapping[str, Any] = field(default_factory=dict)
    """Settings that explain the spec without being part of the key."""
    trainer: bool = False
    """Whether what runs reports to the tracker itself."""
    asks: bool = False
    """Whether servers are asked, who may fail at some of it: a further attempt, for which `make`
    finds the one before as "earlier", asks for that again."""

    @property
    def kind(self) -> str:
        """The first part of the name: train, answers, judge ..."""
        return self.name.partition("/")[0]

    @property
    def inputs(self) -> dict[str, str]:
        """Digests of the results that it is made from, by what it calls them."""
        return {name: parent.digest for name, parent in self.parents.items() if parent}

    def attempt(self, number: int) -> dict[str, Any]:
        """What the key of an attempt is the digest of; the first is number 0."""
        return self.determined | ({"attempt": number} if number else {})

    @property
    def determined(self) -> dict[str, Any]:
        """What its key is the digest of. Names of parents that merely repeat an arm's name never
        enter it; what a stage calls its input does."""
        return {"stage": self.kind, "spec": self.spec, "inputs": self.inputs}


@dataclass(frozen=True)
class Trainings:
    """Which trainings of a recipe a run is about; default: all, made where they are missing."""

    only: str | None = None
    """This one alone ("ARM/SEED"); what it is made of is planned, never made: a cluster's tasks
    would all make it at once."""
    finished: bool = False
    """Those that are finished; the others are left out."""
    makes: bool = True
    """False: `only` is made by another machine, and found out about here."""


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
    trainings: Trainings = Trainings()
    steps: list[Step] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    """Trainings ("ARM/SEED") that are left out because they are not finished, and why."""
    retry: bool = False
    """Whether also what servers failed at for good is asked again."""
    judged: bool = False
    """Whether other libraries judge their settings first, each in a process of its own."""
    unjudged: dict[str, str] = field(default_factory=dict)
    """Trainings that no judge compares, because the baseline's of their seed is left out: which."""
    planned: dict[str, int] = field(default_factory=dict)
    """Prompts of the benchmarks that are judged in steps, of which fewer may do."""
    remarks: list[str] = field(default_factory=list)
    """Sentences that stand below the comparison: what it goes without."""
    results: dict[str, Result] = field(default_factory=dict)
    bills: dict[str, tuple[str, Bill]] = field(default_factory=dict)
    """What steps can cost at most, and the model that is asked, by step."""
    _specs: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.references = References(self.folder / REFERS)
        self.damage = Damage(self.log.say, moves=not self.starts_nothing)
        if not self.starts_nothing:
            self._sweep()
        with self.damage.noted():
            kept.look(self.store.root, self.name)
            last = kept.said(self.store.root, self.name, kept.SPECS)
        self._last: dict[str, Any] = last if isinstance(last, dict) else {}

    def _sweep(self) -> None:
        """Remove what killed runs left half written, where small files are written."""
        root = self.store.root
        known = (f"{VERIFIED}/*/*", f"{VERIFIED}/columns/*/*")
        patterns = ("snapshots", "selections", "columns/*/*", "results/*", *known)
        shared = (folder for pattern in patterns for folder in root.glob(pattern))
        for folder in (root, *shared, self.folder, *self.folder.rglob("*")):
            if folder.is_dir():
                sweep(folder)

    @property
    def folder(self) -> Path:
        """Where this recipe's own files lie: the report, the pool's snapshot, each arm's funnel."""
        return self.store.root / "recipes" / self.name

    @property
    def starts_nothing(self) -> bool:
        """Whether this is a plan and nothing else."""
        return self.planning and not self.made_now

    @property
    def made_now(self) -> tuple[str, ...]:
        """The stages that are made although everything before them is only planned."""
        run = self.trainings.only
        return (f"train/{run}",) if run and self.trainings.makes else ()

    @property
    def waiting(self) -> Callable[[str], None] | None:
        """What is told of another run that makes the same result, which is then waited for; None:
        that is an error."""
        return self.log.say if self.trainings.only else None

    def find(self, stage: Stage) -> Result | None:
        """The finished result of a stage, or None; makes nothing."""
        return None if None in stage.parents.values() else self._attempts(stage)[1]

    def _attempts(self, stage: Stage) -> tuple[int, Result | None]:
        """(how many attempts at a stage are finished, the last of them)."""
        content = stage.content or tree_digest
        last = self.store.find(stage.kind, digest(stage.determined), content)
        number = int(last is not None)
        while stage.asks and last is not None and any(left(last)):
            further = self.store.find(stage.kind, digest(stage.attempt(number)), content)
            if further is None:
                break
            last, number = further, number + 1
        return number, last

    def note(self, name: str, state: State, why: str, path: Path | None = None) -> None:
        """Add a line to the plan; while running, also say it."""
        self.steps.append(Step(name, state, why, path))
        if path is not None:
            self.references.note(name, path)
        if not self.planning:
            self.log.step(name, state, why)

    def add(self, name: str, text: str) -> None:
        """Say more about a step that is already in the plan."""
        if text:
            self.steps = [
                replace(step, why=f"{step.why}; {text}") if step.name == name else step
                for step in self.steps
            ]

    def expect(self, name: str, model: str, most: Bill | None) -> None:
        """Say of a step in the plan what it can cost at most, of a model that is asked."""
        if most is None:
            return
        self.bills[name] = (model, most)
        money = f", {most.money:.2f} in money" if most.money else ""
        read = f"{most.prompt_tokens:,} prompt tokens, {most.tokens:,} generated"
        self.add(name, f"at most {most.calls} calls, {read}{money}")

    def result(self, stage: Stage) -> Result | None:
        """The result of a stage: reused, made now, or (in a plan) None because it or a parent must
        run."""
        spec = json.loads(canonical({**stage.spec, **stage.because}))
        waiting = [name for name, parent in stage.parents.items() if parent is None]
        if waiting:
            self._specs[stage.name] = spec
            self.note(stage.name, WAITS, f"depends on {', '.join(waiting)}")
            return None
        self._specs[stage.name] = {**spec, "inputs": stage.inputs}
        number, stored = self._attempts(stage)
        if stored is not None:
            again, final = left(stored) if stage.asks else (0, 0)
            self.note(stage.name, REUSE, lost(again, final), stored.path)
            if not self.planning and (again or (self.retry and final)):
                stored = self._again(stage, number, stored)
            self.results[stage.name] = stored
            return stored
        determined = stage.determined
        key = digest(determined)
        known = not any(parent.manifest.get(UNMADE) for parent in stage.parents.values() if parent)
        folder = self.store.folder(stage.kind, key) if known else None
        why = (self.damage.of(folder) if folder else None) or self._cause(stage.name)
        self.note(stage.name, RUN, why, folder)
        if self.planning and not (known and stage.name in self.made_now):
            return None
        self.results[stage.name] = self._make(stage, key, determined)
        return self.results[stage.name]

    def _make(self, stage: Stage, key: str, determined: Mapping[str, Any]) -> Result:
        """Make a result in the store, tracked; `determined` is what its key is the digest of."""
        spec = json.loads(canonical(dict(stage.spec)))
        inputs = determined["inputs"]
        config = {"recipe": self.name, "stage": stage.name, "spec": spec, "inputs": inputs}
        tracked = self.tracker.stage(stage.name, stage.kind, key, config, trainer=stage.trainer)
        with tracked as log:
            with self.store.build(stage.kind, key, determined, self.waiting) as build:
                if build is None:  # another run has just made it
                    return self.store.finished(stage.kind, key)
                facts = {"name": stage.name, "environment": environment(), "wandb": log.run_id}
                build.facts.update(facts)
                build.content = stage.content
                folders = {name: parent.path for name, parent in stage.parents.items() if parent}
                with columns_opened() as columns:
                    build.counts.update(stage.make(build.path, log, folders))
                build.facts["columns"] = sorted(columns)
            made = self.store.finished(stage.kind, key)
            self.references.note(stage.name, made.path)
            self.references.write(columns)
            counts = made.manifest["counts"]
            facts = {"output": made.digest, "path": made.path.name, "counts": counts}
            parents = [_made(parent) for parent in stage.parents.values() if parent]
            log.finish(facts, _made(made), [parent for parent in parents if parent.name])
        return made

    def _again(self, stage: Stage, number: int, earlier: Result) -> Result:
        """A further attempt at a result; the earlier one where it comes to nothing new."""

        def make(out: Path, log: Log, folders: dict[str, Path]) -> Counts:
            counts = stage.make(out, log, folders | {"earlier": earlier.path})
            if content_digest(out, stage.content) == earlier.digest:
                raise UserError("nothing has changed")
            return counts

        determined = stage.attempt(number)
        try:
            return self._make(replace(stage, make=make), digest(determined), determined)
        except UserError as error:
            self.log.say(f"{stage.name}: asked again in vain ({error}); what was there stays")
            return earlier

    def last(self, name: str) -> Mapping[str, Any]:
        """What the last run of this recipe's stage of this name was made by; empty where there was
        none."""
        spec = self._last.get(name)
        return spec if isinstance(spec, dict) else {}

    def unmade(self, name: str, because: Mapping[str, Any]) -> Result:
        """In a plan: a selection that is to be made, and whose content is not known before that;
        what is made of it is then to be made as well."""
        self._specs[name] = json.loads(canonical({**because, "rows": "others"}))
        self.note(name, RUN, self._cause(name))
        return Result(Path(), {"digest": "others", UNMADE: True})

    def done(self, name: str) -> None:
        """Called after each group of stages: remembers their specs, and stops here when `--until`
        asks for it."""
        if not self.planning:
            last = {**self._last, **self._specs}
            write_changed(self.folder / kept.SPECS, json.dumps(last, indent=1))
            self.log.tell_reused()
        if self.until == name:
            raise StopHere

    def _cause(self, name: str) -> str:
        """The fields that differ from the last run of this recipe's stage of this name."""
        before = self._last.get(name)
        if before is None:
            return "not made yet"
        old, new = dict(_leaves(before)), dict(_leaves(self._specs[name]))
        changed = [at for at in sorted({*old, *new}) if old.get(at) != new.get(at)]
        stale = [at.removeprefix("inputs.") for at in changed if at.startswith("inputs.")]
        fields = [at for at in changed if not at.startswith("inputs.")]
        if fields:
            shown = [
                f"{at}: {_short(old.get(at))} -> {_short(new.get(at))}"
                for at in fields[:SHOWN_FIELDS]
            ]
            if len(fields) > SHOWN_FIELDS:
                shown.append(f"and {len(fields) - SHOWN_FIELDS} more")
            return "; ".join(shown)
        if stale:
            return f"stale: {', '.join(stale)} has other content now"
        return "its result is gone from the store"


def left(result: Result) -> tuple[int, int]:
    """How many questions of a result have no answer: (those that a server failed at, which are
    asked again, those that are final)."""
    counts = result.manifest["counts"]
    again = counts.get("again", 0)
    lost = counts.get("failed", counts.get("unjudged", 0))
    return again, max(0, lost - again)


def lost(again: int, final: int) -> str:
    """What is said of them."""
    said = [f"{again} that servers failed at are asked again by a run"] if again else []
    said += [f"{final} without an answer are final: `--retry` asks again"] if final else []
    return ", ".join(said)


def _made(result: Result) -> Made:
    """A result as the tracker's lineage names it; without a name where no stage of a recipe made
    it."""
    fields = [str(result.manifest.get(name, "")) for name in ("name", "stage", "key", "digest")]
    return Made(*fields)


def _leaves(value: Any, at: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted path, value) of everything inside nested mappings."""
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _leaves(inner, f"{at}.{key}" if at else str(key))
    else:
        yield at, value


def _short(value: Any) -> str:
    text = "unset" if value is None else str(value)
    if isinstance(value, str) and len(value) == 64:  # a digest
        text = value[:12]
    return text if len(text) <= 60 else text[:57] + "..."
