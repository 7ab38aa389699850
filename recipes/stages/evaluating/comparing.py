"""Scores of each run, and the comparison of all."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from core.files import read_json, write_atomic
from core.store import Counts, Result
from core.tracking import Log
from eval.config import EvalConfig, pairwise_benchmarks
from recipes.stages.evaluating import duels
from recipes.stages.evaluating.judging import rival
from recipes.stages.session import Results, Session, Stage, left, lost
from recipes.stages.sets import overlap
from recipes.stages.walk import Arms


def score(session: Session, run: str, parts: Results) -> Result | None:
    from eval.scoring import of_checkpoint

    def make(out: Path, log: Log, inputs: dict[str, Path]) -> Counts:
        counts = of_checkpoint.run(inputs, out)
        summary = read_json(out / "summary.json")
        values = {
            f"{benchmark}/{metric}": figures.get("value")
            for benchmark, metrics in summary.items()
            for metric, figures in metrics.items()
        }
        log.metrics({name: value for name, value in values.items() if value is not None})
        return counts

    return session.result(Stage(f"score/{run}", {"VERSION": of_checkpoint.VERSION}, parts, make))


def compared(
    session: Session,
    config: EvalConfig,
    arms: Arms,
    runs: Sequence[str],
    scores: Results,
    *,
    beforehand: bool,
) -> Result | None:
    """The comparison of all scored `runs`, which says what it goes without. An arm that others are
    judged against needs no scores of its own. Among the `scores` may be pairs of arms that were
    judged directly against each other, and what selections have in common (`overlap.COMMON`).
    `beforehand`: whether the primary was declared before there were scores (where it was not, a
    sentence of the session says so, and is part of the key)."""
    from eval import compare
    from eval.comparing.metrics import Declared

    judged: dict[str, str | None] = {}
    for name in pairwise_benchmarks(config):
        judged[name] = rival(config, arms, name)
    unscored = [run for run in runs if run not in scores and _arm(run) in judged.values()]
    known = {_arm(run) for run in [*scores, *unscored] if run in runs}
    against = arms.baseline if arms.baseline in known else None
    said = _left_out(session)
    declared = Declared(
        primary=str(config.deciding),
        baseline=against,
        controls=arms.controls,
        judged_against=judged,
        equivalent=config.equivalent,
        planned=session.planned,
        beforehand=beforehand,
    )

    def make(out: Path, log: Log, inputs: dict[str, Path]) -> Counts:
        scored = {run: inputs[run] for run in runs if run in inputs}
        counts = compare.run(scored, out, declared, unscored=unscored)
        beside = [name for name in inputs if name not in scored and name != overlap.COMMON]
        direct = [duels.shown(name, inputs[name]) for name in beside]
        comparison = read_json(out / "comparison.json")
        comparison["head_to_head"] = [row for row, _ in direct if row is not None]
        notes = [words for _, words in direct]
        comparison["notes"] = [*notes, *said, *comparison["notes"]]
        if overlap.COMMON in inputs:
            comparison = overlap.told(comparison, inputs[overlap.COMMON])
        text = json.dumps(comparison, indent=2, allow_nan=False, ensure_ascii=False)
        write_atomic(out / "comparison.json", text)
        return counts

    controls = {name: asdict(control) for name, control in arms.controls.items()}
    optional = {
        "controls": controls,
        "judged_against": judged,
        "equivalent": config.equivalent,
        "planned": session.planned,
        "unscored": unscored,
        "left_out": said,
    }
    spec: dict[str, Any] = {"baseline": arms.baseline, "primary": config.deciding}
    spec |= {"VERSION": compare.VERSION, **{name: of for name, of in optional.items() if of}}
    return session.result(Stage("compare", spec, scores, make))


def _arm(run: str) -> str:
    return run.partition("/")[0]


def _left_out(session: Session) -> list[str]:
    """Sentences on what this comparison goes without."""
    said = [f"{run} is left out: {why}." for run, why in session.left_out.items()]
    unjudged = session.unjudged.items()
    said += [f"{run} is not judged, because {other} is left out." for run, other in unjudged]
    asked = {name: made for name, made in session.results.items() if "again" in _counts(made)}
    said += [f"{name}: {lost(*left(made))}." for name, made in asked.items() if any(left(made))]
    return said + session.remarks


def _counts(result: Result) -> dict[str, Any]:
    counts: dict[str, Any] = result.manifest["counts"]
    return counts
