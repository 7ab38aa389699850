"""The stages of a recipe, in order: one description for planning and for running.

    instructions -> measure -> select (arm) -> preferences (arm) -> tokens (arm) -> train (arm,
    seed) -> tasks, answers, heldout, judge, score (arm, seed) -> compare -> report

Order matters for the machine: everything that needs the teacher's server comes first, no server is
alive while a model trains or lm-eval holds one, and each checkpoint's server answers every prompt
set and the held-out loss before it is swapped.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from core import models
from core.cells import kept, whole
from core.cells.references import columns_opened
from core.errors import UserError
from core.sending.purse import Bill, Ledger
from core.servers import Servers
from core.serving import temporary
from core.store import Result, Store
from core.tracking import Log
from recipes.checks import files, libraries, sampled
from recipes.schema import Loaded, Recipe
from recipes.stages import checks, preferences, synthesis, training
from recipes.stages.eval_prompts import eval_prompts
from recipes.stages.evaluating import evaluation
from recipes.stages.session import REUSE, Session, Step, StopHere, Trainings
from recipes.stages.sets import data_arms, others
from recipes.stages.sets.data_sets import data_sets
from recipes.stages.sets.mixtures import Mixing, from_mixtures
from recipes.stages.sets.shuffled import from_shuffled
from recipes.stages.tokens import counting, student_of, token_counter
from recipes.stages.walk import Arms, Selections, needs_pool, tracker_of
from synth.context import Context, Resolve
from synth.pool.pool import Pool
from train.config import TrainConfig

STAGES = (
    "instructions",
    "measure",
    "select",
    "preferences",
    "tokens",
    "train",
    "tasks",
    "answers",
    "checks",
    "heldout",
    "judge",
    "score",
    "compare",
    "report",
)

ALL = Trainings()
JOIN = 5.0
"""Seconds between two looks of another machine whether a training's data are made."""
BEFORE_TRAINING = "tokens"
"""The last stage before the trainings, which all of them share."""


@dataclass(frozen=True)
class Outcome:
    """What a walk over the stages found or made."""

    steps: list[Step]
    results: dict[str, Result]
    stopped: bool
    bills: Mapping[str, tuple[str, Bill]] = field(default_factory=dict)
    """What steps that must run can cost at most, and the model that is asked, by step."""
    damaged: Mapping[Path, str] = field(default_factory=dict)
    """What is wrong with files and folders of the store that are damaged."""


def plan(loaded: Loaded, *, judged: bool = False) -> Outcome:
    """Which stages are done, which must run, and why. Writes nothing but remembered digests, starts
    nothing but, where it is to be `judged`, the checks of its settings by their own libraries."""
    return _outcome(loaded, True, None, ALL, judged=judged)


def run(
    loaded: Loaded,
    until: str | None = None,
    trainings: Trainings = ALL,
    *,
    retry: bool = False,
    judged: bool = False,
) -> Outcome:
    """Make whatever is missing, up to the stage `until` (default: all), of the recipe's `trainings`
    (default: all); what servers failed at is asked again, with `retry` also what they failed at for
    good. Raises UserError for a training that the recipe does not have, and for one that
    is wanted alone and whose data are not made."""
    if trainings.finished:
        _check_made(loaded)
    if trainings.only is None:
        return _outcome(loaded, False, until, trainings, retry=retry, judged=judged)
    arm = loaded.recipe.arms.get(trainings.only.partition("/")[0])
    config = loaded.recipe.dpo if arm and arm.dpo is not None else loaded.recipe.train
    if config is not None and config.machine_rank:
        return _joined(loaded, config, trainings.only)
    outcome = _outcome(loaded, True, "train", trainings, judged=judged)
    name = f"train/{trainings.only}"
    if name not in outcome.results:
        waits = next(step.why for step in outcome.steps if step.name == name)
        raise UserError(
            f"{name} cannot start ({waits}): a training that is run alone makes nothing of what it "
            f"reads; make that first with `magpie run RECIPE --until {BEFORE_TRAINING}`."
        )
    return outcome


def _check_made(loaded: Loaded) -> None:
    """Raise UserError where a stage before the trainings is not made."""
    steps = _outcome(loaded, True, BEFORE_TRAINING, ALL).steps
    missing = next((step for step in steps if step.state != REUSE), None)
    if missing is not None:
        raise UserError(
            f"{missing.name} is not made ({missing.why}), and what is trained is evaluated without "
            f"making it; run `magpie run RECIPE --until {BEFORE_TRAINING}` first."
        )


def _joined(loaded: Loaded, config: TrainConfig, run: str) -> Outcome:
    """Take part in a training on another machine than its first, which makes everything; returns
    when it is trained."""
    from train import launch

    log = Log()
    told = False
    while True:
        outcome = _outcome(loaded, True, "train", Trainings(run, makes=False))
        step = next(step for step in outcome.steps if step.name == f"train/{run}")
        if step.state == REUSE:
            return outcome
        if step.path is not None:
            launch.join(config, step.path.with_name(f"{step.path.name}.partial"), log)
            return outcome
        if not told:
            log.say(f"waiting for machine 0: {step.name} {step.why}")
            told = True
        time.sleep(JOIN)


def _outcome(
    loaded: Loaded,
    planning: bool,
    until: str | None,
    trainings: Trainings,
    *,
    retry: bool = False,
    judged: bool = False,
) -> Outcome:
    """A walk over all stages. A run of one training plans everything else."""
    recipe = loaded.recipe
    store = Store(Path(recipe.store))
    log = Log()
    with temporary.own(), Servers(log, store.root / "logs") as servers:
        tracker = tracker_of(recipe, store)
        servers.retry = retry
        servers.ledger = Ledger(recipe.folder / "spent")
        session = Session(store, recipe.name, planning, tracker, servers, log, until, trainings)
        session.retry, session.judged = retry, judged
        stopped = False
        try:
            if not planning:
                kept.open_again(store.root, recipe.name)
            with session.damage.noted(), columns_opened() as columns:
                _walk(loaded, session)
                for at in () if planning else sorted(columns):
                    whole.count(store.root / "columns" / at, store.root)
            if not planning:
                session.references.write(columns, whole=trainings == ALL)
        except StopHere:
            stopped = True
        except UserError as error:
            raise loaded.source.sentence(error) from error
        finally:
            servers.ledger.close()
            if not planning:
                kept.seal(store.root, recipe.name)
    return Outcome(session.steps, session.results, stopped, session.bills, session.damage.found)


def _walk(loaded: Loaded, session: Session) -> None:
    """All stages in order."""
    recipe = loaded.recipe
    arms = Arms.of(recipe)
    resolve = cache(models.resolve)
    _check(loaded, session, arms, resolve)
    selections: Selections = {}
    if needs_pool(arms, recipe.synth):
        selections |= _from_pool(session, recipe, arms, resolve)
    selections |= _from_others(session, recipe, arms, resolve, selections)
    session.done("select")
    context = Context(session.store.root, resolve, spent=recipe.folder / "spent")
    pairs = preferences.stages(session, recipe.synth, arms, context, selections)
    checkpoints = training.stages(session, recipe, arms, selections, pairs, resolve)
    if recipe.eval is not None and checkpoints:
        evaluation.stages(session, recipe, recipe.eval, arms, checkpoints, selections)


def _check(loaded: Loaded, session: Session, arms: Arms, resolve: Resolve) -> None:
    """Refuse what can be found wrong before anything is spent."""
    recipe = loaded.recipe
    sampled.check(recipe.synth, recipe.eval)
    files.check(recipe)
    checks.models(recipe, arms, resolve)
    prompts = eval_prompts(recipe.eval, arms, session.store.root, planning=session.starts_nothing)
    checks.queries(recipe, arms, prompts)
    if session.judged:
        libraries.judge(recipe, loaded.source, resolve, session.log.say)
    for config in (recipe.train, recipe.dpo):
        if config is not None and not session.starts_nothing:
            checks.trainer(config, loaded.source)


def _from_pool(session: Session, recipe: Recipe, arms: Arms, resolve: Resolve) -> Selections:
    pool = pool_of(recipe, arms, resolve, session.store.root, planning=session.starts_nothing)
    tokens = token_counter(recipe.train, arms, pool, resolve, planning=session.planning)
    # A plan writes no file of the evaluation's prompts, so there the pool knows of none.
    unknown = session.starts_nothing and recipe.eval is not None
    later = ("overlap", "eval_distance") if unknown else ()
    return synthesis.from_pool(session, arms, pool, tokens, later)


def _from_others(
    session: Session, recipe: Recipe, arms: Arms, resolve: Resolve, selections: Selections
) -> Selections:
    """The arms that are someone else's data, other recipes' selections, mixtures, and shuffled."""
    sets = data_sets(session, recipe, arms, resolve)
    found = data_arms.from_data(session, sets, selections)
    count, counts = counting(recipe.train, resolve)
    found |= others.from_recipes(session, recipe, arms, count)
    mixing = Mixing(recipe, arms, sets, count, counts, selections | found)
    found |= from_mixtures(session, mixing)
    return found | from_shuffled(session, arms, selections | found)


def pool_of(recipe: Recipe, arms: Arms, resolve: Resolve, root: Path, *, planning: bool) -> Pool:
    """The pool of the recipe, in the store at `root`."""
    prompts = eval_prompts(recipe.eval, arms, root, planning=planning)
    student = student_of(recipe.train, arms, resolve)
    return Pool(recipe.synth, Context(root, resolve, prompts, recipe.folder / "spent", student))
