"""What is measured of every checkpoint: lm-eval, answers, held-out loss, judgments, scores; then
the comparison and the report.

A run is a checkpoint by its name: "ARM/SEED", or "ARM" of a finished model.
"""

from __future__ import annotations

from core.store import Result
from eval.config import EvalConfig, pairwise_benchmarks, rated_benchmarks
from eval.protocols import PAIRWISE
from recipes.schema import Recipe
from recipes.stages.evaluating import (
    answering,
    comparing,
    declared,
    duels,
    judging,
    length_control,
    reporting,
    steps,
)
from recipes.stages.evaluating.answering import Asked
from recipes.stages.evaluating.judging import Judged, PromptSet
from recipes.stages.evaluating.runs import evaluated
from recipes.stages.session import Results, Session
from recipes.stages.sets import overlap
from recipes.stages.walk import HELDOUT, Arms, Selections


def stages(
    session: Session,
    recipe: Recipe,
    config: EvalConfig,
    arms: Arms,
    checkpoints: Results,
    selections: Selections,
) -> None:
    """Everything after training, over `checkpoints` (run -> its result); `selections` are the rows
    of arms, and those kept out of training."""
    history = declared.declare(session, config, arms, checkpoints)
    checked = evaluated(recipe, arms, checkpoints)
    runs = [run.name for run in checked]
    parts: dict[str, Results] = {run: {} for run in runs}
    if config.tasks is not None:
        asked = config.tasks.server or config.answers.server
        tasks = config.tasks.model_copy(update={"server": asked})
        for one in checked:
            parts[one.name]["tasks"] = answering.tasks(session, tasks, one)
    session.done("tasks")
    judged: list[Judged] = [*pairwise_benchmarks(config), *rated_benchmarks(config)]
    prompt_sets = _prompt_sets(session, config, judged)
    unseen = answering.unseen(session, recipe, selections.get(HELDOUT))
    answers: dict[str, dict[Asked, Result | None]] = {run: {} for run in runs}
    questions = answering.questions(config, prompt_sets, unseen)
    for one, question in answering.in_turn(checked, questions):
        found = answering.asked(session, config, one, question)
        if question.part is not None:
            parts[one.name][question.part] = found
        answers[one.name] |= dict.fromkeys(question.benchmarks, found)
        if "checks" in question.benchmarks:
            own = answering.followed(session, one.name, found, question.rows)
            parts[one.name]["checks"] = own
    session.done("answers")
    session.done("checks")
    session.done("heldout")
    direct: Results = {}
    for benchmark in judged:
        given = {run: answers[run][benchmark] for run in runs}
        told = _judged(session, config, arms, benchmark, given, prompt_sets[benchmark])
        for run, results in told.items():
            parts[run] |= results
        if benchmark == "alpaca" or benchmark == "arena":
            direct |= duels.duels(session, config, arms, benchmark, given, prompt_sets[benchmark])
    session.done("judge")
    session.remarks += declared.sentences(history)
    scores = {run: comparing.score(session, run, parts[run]) for run in runs if parts[run]}
    session.done("score")
    measured = {name: each.result for name, each in prompt_sets.items()} | unseen
    common = overlap.overlaps(session, arms, selections, measured)
    inputs = scores | direct | common
    first = declared.beforehand(history)
    comparison = comparing.compared(session, config, arms, runs, inputs, beforehand=first)
    session.done("compare")
    reporting.report(session, recipe, arms, comparison)
    session.done("report")


def _prompt_sets(
    session: Session, config: EvalConfig, judged: list[Judged]
) -> dict[Asked, PromptSet]:
    """What every checkpoint is asked, by benchmark."""
    found: dict[Asked, PromptSet]
    found = {name: answering.prompt_set(session, config, name) for name in judged}
    if config.checks is not None:
        found["checks"] = answering.checked_prompts(session, config.checks, config.limit)
    return found


def _judged(
    session: Session,
    config: EvalConfig,
    arms: Arms,
    benchmark: Judged,
    answers: Results,
    prompt_set: PromptSet,
) -> dict[str, Results]:
    """What a benchmark adds to the scores of each run that it judges."""
    kind = "judgments" if benchmark in PAIRWISE else "ratings"
    if benchmark == steps.BENCHMARK and config.judging == "sequential":
        results = steps.judge(session, config, arms, answers, prompt_set)
    else:
        results = judging.judge(session, config, arms, benchmark, answers, prompt_set)
    tables: Results = {}
    if benchmark == "alpaca":
        tables = length_control.reference(session, config, arms, prompt_set.result)
    return {run: {f"{kind}-{benchmark}": result, **tables} for run, result in results.items()}
