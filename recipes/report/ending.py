"""How a run ends in the terminal, as sentences: the answer, the notes, and what a person takes home
from it: what was made, what it cost, what can be told and what cannot."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from core.files import read_json
from core.sending.purse import Ledger
from core.store import Result
from eval.comparing.shown.notes import without_bounds
from recipes.report.drawing.marks import number
from recipes.report.sections import costs
from recipes.report.sections.judges import judge_lines
from recipes.report.verdicts import outcome, sentence, words
from recipes.schema import Recipe

NAMED = 3
"""More pairs than these are counted, not named."""
MADE = {
    "select": ("selection", "selections", "rows"),
    "train": ("training", "trainings", "steps"),
    "answers": ("set of answers", "sets of answers", "prompts"),
    "judge": ("judging", "judgings", "games"),
    "heldout": ("held-out loss", "held-out losses", "conversations"),
    "tasks": ("run of lm-eval", "runs of lm-eval", "tasks"),
}
"""What a run makes of each kind, one and several of it, and what its results count."""


def answer(comparison: Mapping[str, Any], unusable: Mapping[str, str]) -> list[str]:
    """The answer first, then what speaks against believing it. `unusable`: benchmark -> why its
    scores say nothing."""
    return [sentence.answer(comparison, unusable), *words.doubts(comparison)]


def unusable(results: Mapping[str, Result]) -> dict[str, str]:
    """Benchmarks whose judge mostly changed its verdict with the order of the answers, and how
    seldom it kept it."""
    counted = []
    for name, result in results.items():
        if name.startswith("judge/"):
            counts = result.manifest["counts"]
            counted.append({"benchmark": name.split("/")[1], **counts})
    return outcome.unusable(counted)


def notes(
    recipe: Recipe, results: Mapping[str, Result], comparison: Mapping[str, Any]
) -> list[str]:
    """Everything else that a reader should know: the controls, the comparison's notes, what was
    spent, the judges."""
    from synth.pool import spending

    doubted = words.doubts(comparison)
    primary = [one for one in comparison.get("controls", []) if one["primary"]]
    found = [said for one in primary for said in one["sentences"] if said not in doubted]
    found += [*comparison.get("notes", []), *without_bounds(comparison)]
    cost = recipe.folder / "measure" / "cost.json"
    if cost.is_file():
        found.append(_synthesis(read_json(cost)))
    found += spending.lines(Ledger(recipe.folder / "spent").bills())
    return [*found, *judge_lines(recipe, results)]


def closing(
    recipe: Recipe, results: Mapping[str, Result], comparison: Mapping[str, Any]
) -> dict[str, str]:
    """What was made, what it cost, what can be told and what cannot; a line each that there is
    something to say in."""
    said = {
        "made": "; ".join(_made(recipe, results)),
        "cost": _cost(recipe, results),
        "can be told": _told(comparison),
        "cannot be told": _untold(comparison),
    }
    return {name: text for name, text in said.items() if text}


def plain(
    recipe: Recipe, results: Mapping[str, Result], comparison: Mapping[str, Any]
) -> dict[str, Any]:
    """All of it for programs; scores as `values` of eval/comparing/shown has them."""
    from eval.comparing.shown.table import values

    report = recipe.folder / "report.html"
    said: dict[str, Any] = {"answer": None, "doubts": [], "scores": []}
    of_judges = unusable(results)
    if comparison:
        first, *doubts = answer(comparison, of_judges)
        said = {"answer": first, "doubts": doubts, "scores": values(comparison)}
    return {
        "recipe": recipe.name,
        **said,
        "unusable": of_judges,
        "notes": notes(recipe, results, comparison),
        **closing(recipe, results, comparison),
        "report": str(report) if report.is_file() else None,
    }


def _made(recipe: Recipe, results: Mapping[str, Result]) -> Iterator[str]:
    """The rows of the pool, then how many results of each kind there are and what they hold."""
    cost = recipe.folder / "measure" / "cost.json"
    if cost.is_file():
        spent = read_json(cost)
        yield f"{spent['rows_pool']:,} rows of which {spent['rows_answered']:,} are answered"
    held: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for name, result in results.items():
        held[name.partition("/")[0]].append(result.manifest["counts"])
    for kind, (one, several, unit) in MADE.items():
        if kind in held:
            many = f"{len(held[kind]):,} {one if len(held[kind]) == 1 else several}"
            of = sorted({int(_size(kind, counts)) for counts in held[kind]} - {0})
            size = " to ".join(f"{each:,}" for each in dict.fromkeys([*of[:1], *of[-1:]]))
            yield f"{many} of {size} {unit}" if of else many


def _size(kind: str, counts: Mapping[str, Any]) -> float:
    return float(counts.get("steps" if kind == "train" else "rows") or 0)


def _cost(recipe: Recipe, results: Mapping[str, Result]) -> str:
    """Hours, tokens and money of everything that this recipe's results took, whenever they were
    made."""
    inputs: dict[str, Path] = {name: result.path for name, result in results.items()}
    spent = costs.costs(
        inputs | {"measure": recipe.folder / "measure", "spent": recipe.folder / "spent"}
    )
    total, lacks = spent["total"], spent["lacks"]
    if not total["seconds"]:
        return ""
    said = [f"{_time(total['seconds'])} of machine time{f' ({lacks})' if lacks else ''}"]
    if total["training_hours"]:
        said.append(f"{number(total['training_hours'])} device hours of training")
    said.append(f"{total['tokens']:,} tokens generated or trained on")
    said.append(f"{total['money']:,.2f} in money" if total["money"] else "nothing was paid")
    return ", ".join(said)


def _told(comparison: Mapping[str, Any]) -> str:
    found, _ = words.told(comparison)
    return _named(found) or ("" if not comparison else "nothing by the figure that decides")


def _untold(comparison: Mapping[str, Any]) -> str:
    """The pairs that cannot be told apart, and what could have been found."""
    _, untold = words.told(comparison)
    least = words.smallest(comparison)
    if not untold:
        return ""
    found = f" (a difference of {number(least)} is found 8 times in 10)" if least else ""
    return f"{_named(untold)}{found}"


def _named(pairs: Sequence[str]) -> str:
    more = f" and {len(pairs) - NAMED} more" if len(pairs) > NAMED else ""
    return ", ".join(pairs[:NAMED]) + more


def _time(seconds: float) -> str:
    return f"{seconds / 3600:,.1f} hours" if seconds >= 5400 else f"{seconds / 60:,.0f} minutes"


def _synthesis(spent: Mapping[str, Any]) -> str:
    naive, total = spent["naive_tokens"], spent["tokens_spent"]
    share = f" ({100 * (naive - total) / naive:.0f} % avoided)" if naive else ""
    return (
        f"synthesis generated {total:,} tokens for {spent['rows_kept']} distinct kept rows "
        f"({spent['cost_per_kept_row']} a kept row); "
        f"tagging and answering all {spent['rows_pool']} rows first "
        f"would have cost about {naive:,}{share}"
    )
