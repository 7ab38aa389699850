"""Scores of each run, and the comparison of all."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from core.files import read_json, write_atomic
from core.store import Counts, Result
from core.tracking import Log
from eval.config import EvalConfig
from recipes.stages.session import Results, Session, Stage
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


def compared(session: Session, config: EvalConfig, arms: Arms, scores: Results) -> Result | None:
    """The comparison of all scored runs, which says what it goes without."""
    from eval import compare
    from eval.comparing.metrics import Declared

    def make(out: Path, log: Log, inputs: dict[str, Path]) -> Counts:
        scored = {run.partition("/")[0] for run in inputs}
        against = arms.baseline if arms.baseline in scored else None
        declared = Declared(str(config.deciding), against, arms.controls)
        counts = compare.run(inputs, out, declared)
        if left_out:
            comparison = read_json(out / "comparison.json")
            comparison["notes"] = [*left_out, *comparison["notes"]]
            text = json.dumps(comparison, indent=2, allow_nan=False, ensure_ascii=False)
            write_atomic(out / "comparison.json", text)
        return counts

    spec: dict[str, Any] = {"baseline": arms.baseline, "primary": config.deciding}
    if arms.controls:
        spec["controls"] = {name: asdict(control) for name, control in arms.controls.items()}
    spec["VERSION"] = compare.VERSION
    left_out = _left_out(session)
    if left_out:
        spec["left_out"] = left_out
    return session.result(Stage("compare", spec, scores, make))


def _left_out(session: Session) -> list[str]:
    """Sentences on what this comparison goes without."""
    said = [f"{run} is left out: {why}." for run, why in session.left_out.items()]
    unjudged = session.unjudged.items()
    return said + [f"{run} is not judged, because {other} is left out." for run, other in unjudged]
