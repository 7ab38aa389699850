"""What is known of the judges of a recipe, in sentences that stand below its scores."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from core.store import Result
    from recipes.schema import Recipe


def judge_lines(recipe: Recipe, results: Mapping[str, Result]) -> list[str]:
    """What is known of the judges: position consistency and verdict mass of this run, and that a
    small judge's word means little."""
    from eval.config import RATED
    from eval.judging import against_people

    config = recipe.eval
    lines = []
    for name, result in results.items():
        if name.startswith(("judge/", "verdicts/")):
            counts = result.manifest["counts"]
            what = "answers rated" if name.split("/")[1] in RATED else "games judged"
            said = [f"{counts.get('judged', 0)} of {counts.get('rows', 0)} {what}"]
            if counts.get("rewards"):
                said.append(
                    f"{counts['rewards']['judged']} of {counts['rewards']['rows']} compared with references"
                )
            if counts.get("position_pairs"):
                said.append(
                    f"both orders agree in {100 * counts['position_consistency']:.0f} % of {counts['position_pairs']} pairs"
                )
            if counts.get("first_preferred") is not None:
                said.append(f"the first answer is preferred with {counts['first_preferred']:.2f}")
            if counts.get("mass") is not None:
                said.append(
                    f"{100 * counts['mass']:.0f} % of the probability is on the verdict codes"
                )
            if counts.get("agreement_pairs"):
                said.append(
                    f"the judges agree on {100 * counts['agreement']:.0f} % of {counts['agreement_pairs']} items"
                )
            if counts.get("partly_judged"):
                said.append(f"{counts['partly_judged']} items lack a judge")
            lines.append(f"{name}: " + ", ".join(said))
    for benchmark in ("alpaca", "arena"):
        if (
            config is not None
            and getattr(config, benchmark) is not None
            and any(n.startswith(f"judge/{benchmark}/") for n in results)
        ):
            protocols = config.protocols(benchmark)
            for protocol in protocols:
                who = (
                    f"the judge {protocol.judge.model} of {benchmark}"
                    if protocol.judge and len(protocols) > 1
                    else f"the judge of {benchmark}"
                )
                known = against_people.find(protocol, Path(recipe.store))
                lines += [f"{who} {against_people.sentence(k)}" for k in known]
                if not known:
                    lines.append(
                        f"{who} was never compared with people: `magpie agreement RECIPE --data FOLDER` does"
                    )
    if recipe.caveat:
        lines.append(recipe.caveat)
    return lines
