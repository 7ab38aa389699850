"""`magpie compare PILOT FULL`: what a cheap run of the same arms was worth, by how often its pairs
came out as in the full one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from core.errors import UserError
from core.files import finite, read_json
from eval.comparing.decisions import Comparison, Decisions, decisions, trained
from recipes.comparisons.asked import RecipeAsked
from recipes.comparisons.of_recipes import finished


def main(asked: Sequence[RecipeAsked], *, as_json: bool) -> None:
    """Print the decision accuracy of each recipe but the last, which is the full run, in every
    metric. Raises UserError where a comparison is not finished or no two arms are in both."""
    *pilots, full = [(one.name, _comparison(one)) for one in asked]
    found = []
    notes = []
    for name, pilot in pilots:
        own = list(decisions(pilot, full[1]))
        if not own:
            raise UserError(
                f"{name} and {full[0]} have no two trained arms of the same name with a metric in "
                "common; a pilot trains the arms of the full recipe on a smaller base."
            )
        found += [(name, one) for one in own]
        notes += _notes(name, pilot, full)
    if as_json:
        shown = [{"pilot": name, "full": full[0], **one.row()} for name, one in found]
        print(json.dumps(finite({"decisions": shown, "notes": notes}), indent=2, allow_nan=False))
        return
    _show(found, notes)


def _comparison(asked: RecipeAsked) -> Comparison:
    _, outcome = finished(asked)
    comparison: dict[str, Any] = read_json(outcome.results["compare"].path / "comparison.json")
    return comparison


def _notes(name: str, pilot: Comparison, full: tuple[str, Comparison]) -> list[str]:
    """What the figures leave out."""
    mine, theirs = trained(pilot), trained(full[1])
    only = [arm for arm in (*mine, *theirs) if (arm in mine) != (arm in theirs)]
    notes = []
    if only:
        notes.append(f"{name}, {full[0]}: only one of them trains {', '.join(only)}; left out.")
    still = [arm["name"] for arm in full[1]["arms"] if not arm["seeds"]]
    if still:
        notes.append(
            f"finished models ({', '.join(still)}) are the same in both runs and count nowhere."
        )
    return notes


def _show(found: Sequence[tuple[str, Decisions]], notes: Sequence[str]) -> None:
    """A table, and what its columns mean."""
    from recipes.verbs import terminal

    columns = ["pilot", "benchmark", "metric", "arms", "pairs", "ordered alike", "decided in full"]
    columns += ["same verdict", "cannot tell", "opposite"]
    rows = []
    for name, one in found:
        share = f"{one.decision_accuracy:.2f} [{one.lower:.2f}, {one.upper:.2f}]"
        told = (one.decided, one.same, one.untold, one.opposite)
        rows.append([name, one.benchmark, one.metric, one.arms, one.pairs, share, *told])
    terminal.table(columns, rows)
    for note in (
        "ordered alike: the share of pairs that the pilot orders as the full run does (decision "
        "accuracy; half of them by chance), with a 95 % interval for other such arms.",
        "decided in full: pairs that the full run told apart, and what the pilot said of them. A "
        "pair that the full run cannot tell apart is no mistake of the pilot's.",
        *dict.fromkeys(notes),
    ):
        terminal.say(note, "- ")
