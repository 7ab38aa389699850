"""What is known of the judges of a recipe, in sentences that stand below its scores."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval.config import EvalConfig, pairwise_benchmarks, rated_benchmarks
from eval.protocols import PAIRWISE, RATED, PairwiseProtocol, WildBenchProtocol

if TYPE_CHECKING:
    from core.store import Result
    from recipes.schema import Recipe


def judge_lines(recipe: Recipe, results: Mapping[str, Result]) -> list[str]:
    """What each judging of this run counted, how far its judges agree with people, and the recipe's
    own caveat."""
    from eval.judging.people import labelled as people_said

    lines = [
        f"{name}: {_counted(name.split('/')[1], result.manifest['counts'])}"
        for name, result in results.items()
        if name.startswith(("judge/", "verdicts/"))
    ]
    for benchmark in PAIRWISE:
        judged = any(name.startswith(f"judge/{benchmark}/") for name in results)
        if recipe.eval is not None and judged:
            protocols = recipe.eval.protocols(benchmark)
            lines += _against_people(protocols, Path(recipe.store))
    if recipe.eval is not None:
        lines += asked_by(recipe.eval)
    lines += people_said.find(recipe.folder)
    return [*lines, recipe.caveat] if recipe.caveat else lines


def people(recipe: Recipe, results: Mapping[str, Result]) -> dict[str, list[str]]:
    """How far the judges of each pairwise benchmark agree with people, where that was measured:
    sentences by benchmark."""
    from eval.judging.people import against_people

    known: dict[str, list[str]] = {}
    for benchmark in PAIRWISE:
        judged = any(name.startswith(f"judge/{benchmark}/") for name in results)
        if recipe.eval is not None and judged:
            protocols = recipe.eval.protocols(benchmark)
            found = [
                (p, each) for p in protocols for each in against_people.find(p, Path(recipe.store))
            ]
            for protocol, agreement in found:
                who = f"{protocol.judge.model} " if len(protocols) > 1 else ""
                known.setdefault(benchmark, []).append(who + against_people.sentence(agreement))
    return known


def asked_by(config: EvalConfig) -> list[str]:
    """Which published protocol each judged benchmark is, and what is known of presets."""
    from eval.judging.official import protocols as published
    from eval.presets import judges

    lines, who = [], []
    for pairwise in pairwise_benchmarks(config):
        protocols = config.protocols(pairwise)
        lines += [published.sentence(one, config.limit, len(protocols)) for one in protocols]
        who += [one.judge for one in protocols]
    for name in rated_benchmarks(config):
        rated = config.rating(name)
        who.append(rated.judge)
        lines.append(published.sentence(rated))
        if isinstance(rated, WildBenchProtocol) and rated.references:
            lines.append(published.sentence(rated, figure=published.REWARD))
    lines += [judges.sentence(judge.preset) for judge in who if judge.preset]
    return list(dict.fromkeys(lines))


def _against_people(protocols: Sequence[PairwiseProtocol], store: Path) -> Iterator[str]:
    """How far each judge of a benchmark agrees with people, on every data set where that was
    measured."""
    from eval.judging.people import against_people

    for protocol in protocols:
        name = f" {protocol.judge.model}" if len(protocols) > 1 else ""
        who = f"the judge{name} of {protocol.kind}"
        agreements = against_people.find(protocol, store)
        for agreement in agreements:
            yield f"{who} {against_people.sentence(agreement)}"
        if not agreements:
            remedy = "`magpie agreement RECIPE --data FOLDER` does"
            yield f"{who} was never compared with people: {remedy}"


# -- one function for each thing that a judging may have counted; "" where it did not -------------

Counts = Mapping[str, Any]


def _counted(benchmark: str, counts: Counts) -> str:
    what = "answers rated" if benchmark in RATED else "games judged"
    said = [f"{counts.get('judged', 0)} of {counts.get('rows', 0)} {what}"]
    said += [sentence(counts) for sentence in SENTENCES]
    return ", ".join(filter(None, said))


def _references(counts: Counts) -> str:
    rewards = counts.get("rewards")
    if not rewards:
        return ""
    return f"{rewards['judged']} of {rewards['rows']} compared with references"


def _orders(counts: Counts) -> str:
    pairs = counts.get("position_pairs")
    if not pairs:
        return ""
    return f"both orders agree in {100 * counts['position_consistency']:.0f} % of {pairs} pairs"


def _first(counts: Counts) -> str:
    share = counts.get("first_preferred")
    return "" if share is None else f"the first answer is preferred with {share:.2f}"


def _mass(counts: Counts) -> str:
    mass = counts.get("mass")
    if mass is None:
        return ""
    return f"{100 * mass:.0f} % of the probability is on the verdict codes"


def _judges_agree(counts: Counts) -> str:
    pairs = counts.get("agreement_pairs")
    if not pairs:
        return ""
    return f"the judges agree on {100 * counts['agreement']:.0f} % of {pairs} items"


def _partly(counts: Counts) -> str:
    items = counts.get("partly_judged")
    return f"{items} items lack a judge" if items else ""


def _thoughts(counts: Counts) -> str:
    thoughts = counts.get("thoughts")
    return f"{thoughts} answers judged without the thoughts before them" if thoughts else ""


SENTENCES = (_references, _orders, _first, _mass, _judges_agree, _partly, _thoughts)
