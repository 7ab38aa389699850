"""What was declared before the first score: what decides, against whom, with which controls and
seeds. It is kept by its digest below the recipe's folder; a later change is said beside the
comparison, because a design that was chosen by its figures proves nothing."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

from core.cells import kept
from core.files import write_atomic
from core.store import digest
from eval.config import EvalConfig
from recipes.stages.session import Session
from recipes.stages.walk import Arms

FILE = kept.DECLARED


def of(config: EvalConfig, arms: Arms) -> dict[str, Any]:
    """What this recipe declares."""
    stated = {
        "primary": config.deciding,
        "baseline": arms.baseline,
        "controls": sorted(arms.controls),
        "seeds": list(arms.seeds),
    }
    return stated | ({"equivalent": config.equivalent} if config.equivalent else {})


def declare(session: Session, config: EvalConfig, arms: Arms, runs: Sequence[str]) -> list[str]:
    """Keep what is declared, before any of `runs` is scored, and say as sentences what was changed
    after one was. A plan keeps nothing."""
    path = session.folder / FILE
    before: list[dict[str, Any]] = kept.said(session.store.root, session.name, FILE) or []
    now = of(config, arms)
    if not before or before[-1]["digest"] != digest(now):
        scored = sum(bool(session.last(f"score/{run}")) for run in runs)
        when = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
        before.append({"digest": digest(now), "when": when, "scores": scored, "declared": now})
        if not session.planning:
            write_atomic(path, json.dumps(before, indent=1))
    return sentences(before)


def sentences(history: Sequence[dict[str, Any]]) -> list[str]:
    """A sentence for everything that was changed when scores were there already."""
    said = []
    for earlier, later in pairwise(history):
        if not later["scores"]:
            continue
        old, new = earlier["declared"], later["declared"]
        for name in sorted({*old, *new}):
            if old.get(name) != new.get(name):
                said.append(
                    f"Declared beforehand was {name} {_shown(old.get(name))}; it was changed to "
                    f"{_shown(new.get(name))} on {later['when']}, when {later['scores']} runs had "
                    "been scored: what follows from the change is exploratory."
                )
    return said


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return "none" if value is None else str(value)
