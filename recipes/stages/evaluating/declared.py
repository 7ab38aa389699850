"""What was declared before the first score: what decides, against whom, with which controls and
seeds. It is kept by its digest below the recipe's folder before anything is measured that can be
read; a later change is said beside the comparison, because a design that was chosen by its figures
proves nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

from core.cells import kept
from core.errors import UserError
from core.files import read_json, write_atomic
from core.store import MANIFEST, digest
from eval.config import EvalConfig
from recipes.stages.session import Results, Session
from recipes.stages.walk import Arms

FILE = kept.DECLARED
ANSWERS = "answers"
READABLE = (
    "tasks", "heldout", "checks", "judge", "verdicts", "looks", "duels", "head-to-head", "score",
)  # fmt: skip
"""Kinds of results that say how good a checkpoint is, each after those that it is made of."""

History = Sequence[dict[str, Any]]
"""All that was declared, the first first: its `digest`, `when`, of how many runs there were
`scores` then, and what was `declared`."""


def of(config: EvalConfig, arms: Arms) -> dict[str, Any]:
    """What this recipe declares."""
    stated = {
        "primary": config.deciding,
        "baseline": arms.baseline,
        "controls": sorted(arms.controls),
        "seeds": list(arms.seeds),
    }
    return stated | ({"equivalent": config.equivalent} if config.equivalent else {})


def declare(session: Session, config: EvalConfig, arms: Arms, checkpoints: Results) -> History:
    """Keep what is declared, before anything of the `checkpoints` (by run) is measured in this
    run; all that was declared so far. A plan keeps nothing."""
    path = session.folder / FILE
    before: list[dict[str, Any]] = kept.said(session.store.root, session.name, FILE) or []
    now = of(config, arms)
    if not before or before[-1]["digest"] != digest(now):
        runs = _scored(session, checkpoints)
        # One arm that another recipe measured, a finished model as a rule, tells no difference.
        alone = not before and len({run.partition("/")[0] for run in runs}) < 2
        scored = 0 if alone else len(runs)
        when = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
        before.append({"digest": digest(now), "when": when, "scores": scored, "declared": now})
        if not session.planning:
            write_atomic(path, json.dumps(before, indent=1))
    return before


def _scored(session: Session, checkpoints: Results) -> set[str]:
    """The runs of which something can be read already: results of the store that come from their
    checkpoints, whoever made them and whatever run was killed since; and those of which an earlier
    run of this recipe had any."""
    runs: dict[str, set[str]] = {}
    for run, checkpoint in checkpoints.items():
        if checkpoint is not None:
            runs.setdefault(checkpoint.digest, set()).add(run)
    found = {run for run in checkpoints for kind in READABLE if session.last(f"{kind}/{run}")}
    for kind in (ANSWERS, *READABLE):
        for content, inputs in list(_results(session, kind)):
            of = set().union(*(runs.get(each, ()) for each in inputs))
            runs.setdefault(content, set()).update(of)
            if kind != ANSWERS:
                found |= of
    return found


def _results(session: Session, kind: str) -> Iterator[tuple[str, list[str]]]:
    """(digest, digests of what it is made of) of every finished result of a kind. The answers that
    others are judged against say nothing of their own run."""
    for path in sorted((session.store.root / "results" / kind).glob(f"*/{MANIFEST}")):
        with suppress(UserError, OSError, KeyError, TypeError, AttributeError):
            manifest = read_json(path)
            inputs = manifest["spec"]["inputs"]
            made_of = [str(each) for name, each in inputs.items() if name != "baseline"]
            yield str(manifest["digest"]), made_of


def beforehand(history: History) -> bool:
    """Whether what decides now was declared before there were scores."""
    stated = [entry["declared"].get("primary") for entry in history if not entry["scores"]]
    return history[-1]["declared"].get("primary") in stated


def sentences(history: History) -> list[str]:
    """A sentence for everything that was declared when scores were there already."""
    said = []
    first = history[0]
    if first["scores"]:
        facts = "; ".join(f"{name} {shown(value)}" for name, value in first["declared"].items())
        said.append(
            f"Nothing was declared before the first score: {facts} were declared on "
            f"{first['when']}, {_after(first)}, so all verdicts are exploratory."
        )
    for earlier, later in pairwise(history):
        if not later["scores"]:
            continue
        old, new = earlier["declared"], later["declared"]
        when = f"on {earlier['when']}" if earlier["scores"] else "beforehand"
        for name in sorted({*old, *new}):
            if old.get(name) != new.get(name):
                said.append(
                    f"Declared {when} was {name} {shown(old.get(name))}; "
                    f"{shown(new.get(name))} was declared on {later['when']}, {_after(later)}: "
                    "what follows from the change is exploratory."
                )
    return said


def _after(entry: dict[str, Any]) -> str:
    """That scores existed when something was declared."""
    scores = entry["scores"]
    return f"after scores of {scores} {'run' if scores == 1 else 'runs'} existed"


def shown(value: Any) -> str:
    """What was declared of one thing, in words."""
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return "none" if value is None else str(value)
