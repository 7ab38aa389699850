"""Judging in steps (`judging: sequential`): prompts in random order, a look at all differences
after each tenth of them, and no further call when every difference is decided or hopeless
(eval/comparing/sequential.py).

The steps of a run are results of their own, and what they asked is kept like every judgment, so the
judgments of the step that it stopped at cost nothing again, nor does a run that goes on.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from core.files import read_json, write_atomic
from core.store import Counts
from core.tracking import Log
from eval.config import EvalConfig
from eval.protocols import PairwiseProtocol
from recipes.stages.evaluating import judging
from recipes.stages.evaluating.judging import LOOKED_AT, PromptSet
from recipes.stages.session import Results, Session, Stage
from recipes.stages.walk import Arms

if TYPE_CHECKING:
    from eval.comparing.metrics import Declared

BENCHMARK: Final = "alpaca"
STEPS = 10
WIDER = "14 to 15 %"
"""How much wider the interval of one pair is after all prompts than where nothing was looked at
before: 97.5 % in place of 95 (eval/comparing/sequential.py); of several pairs it is less."""
FOUND = "72 to 74"
"""How often steps find a difference that judging everything would find 80 times in 100
(benchmarks/bench_sequential.py: with one seed and with three)."""


@dataclass(frozen=True)
class Judged:
    """What is judged, and compared at every look."""

    protocols: tuple[PairwiseProtocol, ...]
    pairs: Mapping[str, Results]
    """The answers of each run and its baseline's."""
    prompt_set: PromptSet
    declared: Declared
    unscored: Sequence[str]
    """The baseline's runs, which nobody judges."""

    def first(self, number: int | None) -> tuple[PairwiseProtocol, ...]:
        """The protocols for so many prompts, None for all."""
        return tuple(one.model_copy(update={"first": number}) for one in self.protocols)


def judge(
    session: Session, config: EvalConfig, arms: Arms, answers: Results, prompt_set: PromptSet
) -> Results:
    """The judgments of each run's `answers`, by run, of as many prompts as were needed; a sentence
    below the comparison says how many, what decides, and what looking costs. A plan that does not
    know yet where judging stops expects all. Of prompts that are too few for a look all are judged
    as ever, and no interval is wider."""
    from eval.comparing.metrics import Declared

    known = prompt_set.result
    pairs = judging.against_baselines(session, config, arms, BENCHMARK, answers, known)
    protocols = config.protocols(BENCHMARK)
    if known is None or not pairs:
        return judging.compare(session, protocols, BENCHMARK, pairs, prompt_set)
    planned = int(known.manifest["counts"]["rows"])
    looks = steps(planned)
    if looks:
        session.planned[BENCHMARK] = planned
    there = {run.partition("/")[0] for run in answers}
    declared = Declared(
        primary=str(config.deciding),
        baseline=arms.baseline if arms.baseline in there else None,
        controls=arms.controls,
        judged_against={BENCHMARK: judging.rival(config, arms, BENCHMARK)},
        equivalent=config.equivalent,
        planned={BENCHMARK: planned},
    )
    unscored = [run for run in answers if run not in pairs]
    judged = Judged(protocols, pairs, prompt_set, declared, unscored)
    stopped, look = None, None
    for number in looks:
        look = _look(session, judged, number)
        if look is None:  # a plan, of which this look is still to come
            break
        if look["stop"]:
            stopped = number
            break
    if look is not None or not looks:
        session.remarks.append(said(look, planned))
    return judging.compare(session, judged.first(stopped), BENCHMARK, pairs, prompt_set)


def steps(planned: int) -> list[int]:
    """After how many of the planned prompts all differences are looked at; after the last of them
    there is nothing to save."""
    from eval.comparing.sequential import FEWEST

    step = -(-planned // STEPS)
    return [max(number, FEWEST) for number in range(step, planned, step) if number + step > FEWEST]


def _look(session: Session, judged: Judged, number: int) -> dict[str, Any] | None:
    """What a look at the first `number` prompts says; None in a plan that has not come to it."""
    from eval import compare
    from eval.scoring import of_checkpoint

    kind = f"{LOOKED_AT}/{number}"
    before = dict(session.bills)
    protocols = judged.first(number)
    found = judging.compare(session, protocols, BENCHMARK, judged.pairs, judged.prompt_set, kind)
    session.bills = before  # these calls are among those of the whole, which is expected as well

    def make(out: Path, log: Log, inputs: dict[str, Path]) -> Counts:
        scores = {}
        for run, folder in inputs.items():
            scores[run] = out / "scores" / run.replace("/", "-")
            of_checkpoint.run({f"judgments-{BENCHMARK}": folder}, scores[run])
        look = compare.look(scores, judged.declared, unscored=judged.unscored)
        shown = {"judged": look.judged, "planned": look.planned, "stop": look.stop}
        pairs = [asdict(pair) for pair in look.pairs]
        write_atomic(out / "look.json", json.dumps({**shown, "pairs": pairs}, indent=1))
        return shown

    stated = asdict(judged.declared)
    for name in ("beforehand", "beside"):  # changes no look
        del stated[name]
    spec = {
        "declared": stated,
        "unscored": judged.unscored,
        "score": of_checkpoint.VERSION,
        "VERSION": compare.VERSION,
    }
    result = session.result(Stage(f"{kind}/{BENCHMARK}", spec, found, make))
    return None if result is None else read_json(result.path / "look.json")


def said(look: Mapping[str, Any] | None, planned: int) -> str:
    """What a reader must know of judging in steps. `look`: the last one; None where there was none
    because so few prompts are `planned`."""
    decides = (
        "Its raw win rate decides: lengths are not controlled, since length control has no "
        "interval that holds at every look."
    )
    if look is None:
        from eval.comparing.sequential import FEWEST

        return (
            f"{BENCHMARK} was to be judged in steps, but {planned} prompts are too few for a look "
            f"(none comes before {FEWEST}): all were judged, and no interval is wider for it. "
            f"{decides}"
        )
    return (
        f"{BENCHMARK} was judged in steps, its prompts in random order: {_ended(look, planned)}. "
        f"{decides} The intervals hold at every look, and are wider for it (by {WIDER} after all "
        "prompts, for one pair): a difference that judging everything finds 80 times in 100 is "
        f"found {FOUND} times."
    )


def _ended(look: Mapping[str, Any], planned: int) -> str:
    """Where judging stopped, and why."""
    if not look["stop"]:
        return f"no look ended it, so all {planned} were judged and no call was saved"
    hopeless = [f"{pair['a']} and {pair['b']}" for pair in look["pairs"] if pair["hopeless"]]
    untold = f" or ({', '.join(hopeless)}) would hardly be with all of them" if hopeless else ""
    return (
        f"after {look['judged']} of {planned} every difference is told{untold}, so "
        f"{1 - look['judged'] / planned:.0%} of the calls were saved"
    )
