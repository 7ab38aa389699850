"""`magpie why`: the way back from a score to the rows behind it, and from a row to the arms that
took it.

ARM[/SEED]            score <- judgments, answers <- checkpoint <- selection <- pool
ARM[/SEED]/PROMPT     one prompt: both answers, every judgment
ROW                   one row: where it came from, its tags, what each arm's filter said
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import polars as pl

from core.columns import FAILED
from core.errors import UserError, nearest
from core.files import read_json
from core.store import Result
from recipes.schema import Loaded, Recipe, with_random
from recipes.stages import graph

JUDGED = ("judge", "game", "order", "preference", "label", "mass", "status", "reason", "verdict")
"""What is shown of a judgment."""

Results = Mapping[str, Result]


def explain(loaded: Loaded, what: str) -> Iterator[str]:
    """Lines that lead from `what` back to where it came from. Raises UserError when nothing is
    called that."""
    recipe, results = loaded.recipe, graph.plan(loaded).results
    arm, _, rest = what.partition("/")
    if arm not in with_random(recipe):
        yield from _row(recipe, what)
        return
    runs = sorted(name.removeprefix("score/") for name in results if name.startswith("score/"))
    named = [run for run in runs if f"{what}/".startswith(f"{run}/")]
    of_arm = [run for run in runs if run.startswith(f"{arm}/") and not rest]
    if not named + of_arm:
        hint = f"`magpie plan` shows what is missing{nearest(what, runs)}"
        raise UserError(f"{what}: this arm has no finished score; {hint}.")
    run = min(named + of_arm)
    prompt = what.removeprefix(run).removeprefix("/")
    yield from _prompt(results, run, prompt) if prompt else _run(recipe, results, run)


# -- a run -----------------------------------------------------------------------------------------


def _run(recipe: Recipe, results: Results, run: str) -> Iterator[str]:
    """From a score to the answers and judgments behind it, its checkpoint, and the selection that
    trained it."""
    arm, _, seed = run.partition("/")
    yield _line(f"score/{run}", results[f"score/{run}"])
    yield from _scores(results[f"score/{run}"].path / "summary.json")
    kinds = [f"{kind}/{run}" for kind in ("answers", "heldout", "tasks")]
    for name in (*_of_run(results, "judge", run), *filter(results.get, kinds)):
        yield _line(f"  <- {name}", results[name])
    trained = results.get(f"train/{run}")
    if trained is None:
        yield f"  <- model {with_random(recipe)[arm].model}"
        return
    yield _line(f"    <- train/{run}", trained)
    yield f"       {_counts(trained.manifest['counts'])}"
    chosen = results.get(f"select/{arm}") or results.get(f"select/{run}")
    yield _line("      <- selection", chosen)
    folder = recipe.folder / "select" / arm
    for path in (folder / "funnel.json", folder / seed / "funnel.json"):
        if path.is_file():
            yield from _funnel(path)
            break
    if chosen is not None and (chosen.path / "selection.parquet").is_file():
        ids = pl.read_parquet(chosen.path / "selection.parquet", columns=["id"])["id"]
        more = " ..." if len(ids) > 5 else ""
        yield f"         rows: {', '.join(ids.head(5))}{more} (`magpie why RECIPE ROW` for one)"


def _line(name: str, result: Result | None) -> str:
    if result is None:
        return f"{name}: not finished"
    seconds = result.manifest.get("seconds")
    took = f", {seconds:.0f} s" if seconds else ""
    return f"{name}: {result.path} (content {result.digest[:12]}{took})"


def _of_run(results: Results, stage: str, run: str) -> list[str]:
    """The results of a stage of which there is one for each benchmark."""
    named = [name for name in results if name.startswith(f"{stage}/")]
    return sorted(name for name in named if name.endswith(f"/{run}"))


def _scores(summary: Path) -> Iterator[str]:
    for benchmark, metrics in read_json(summary).items():
        shown = [
            f"{metric} {score['value']:.4g} (n {score.get('n')})"
            for metric, score in metrics.items()
            if score.get("value") is not None
        ]
        yield f"  {benchmark}: {', '.join(shown)}"


def _counts(counts: Mapping[str, object]) -> str:
    shown = []
    for name, count in counts.items():
        if isinstance(count, int):
            shown.append(f"{name} {count:,}")
        elif isinstance(count, float):
            shown.append(f"{name} {count:.4g}")
    return ", ".join(shown)


def _funnel(path: Path) -> Iterator[str]:
    funnel = read_json(path)
    yield f"         pool {funnel['pool']}, held out {funnel['heldout']}"
    for step in funnel["steps"]:
        yield f"         {step['predicate']}: stopped {step['stopped']}, left {step['left']}"
    yield f"         chosen {funnel['chosen']} by {funnel['choose']}"


# -- a prompt --------------------------------------------------------------------------------------


def _prompt(results: Results, run: str, prompt: str) -> Iterator[str]:
    """A run's answers to one prompt, and every judgment of them."""
    answers = f"answers/{run}"
    for name in sorted(results):
        if not f"{name}/".startswith(f"{answers}/"):
            continue
        rows = pl.read_parquet(results[name].path / "answers.parquet")
        found = rows.filter(pl.col("id") == prompt).to_dicts()
        if not found:
            raise UserError(f"{prompt}: no such prompt in {name}{nearest(prompt, rows['id'])}.")
        row = found[0]
        yield f"prompt {prompt}: {row['prompt']}"
        yield f"answer ({row['finish_reason']}, {row['tokens']} tokens, {name}):\n{row['answer']}"
    for name in _of_run(results, "judge", run):
        games = pl.read_parquet(results[name].path / "judgments.parquet")
        for game in games.filter(pl.col("item") == prompt).iter_rows(named=True):
            shown = {field: game[field] for field in JUDGED if game.get(field) is not None}
            yield f"{name}: {json.dumps(shown, ensure_ascii=False)}"


# -- a row -----------------------------------------------------------------------------------------


def _row(recipe: Recipe, row: str) -> Iterator[str]:
    """Everything that is known of a row of the pool, by the beginning of its id, and what became of
    it in each arm."""
    pool = recipe.folder / "measure" / "pool.parquet"
    if not pool.is_file():
        raise UserError(
            f"{row}: not an arm of this recipe, and there is no pool snapshot yet to look for a "
            "row in; `magpie run` makes it."
        )
    found = pl.scan_parquet(pool).filter(pl.col("id").str.starts_with(row)).head(2).collect()
    if len(found) != 1:
        several = "more than one row begins so; write more of it"
        problem = several if len(found) else "no arm and no row is called that"
        raise UserError(f"{row}: {problem}{nearest(row, with_random(recipe))}.")
    values = found.row(0, named=True)
    failed = []
    for name, value in values.items():
        measure = name.removeprefix("status:")
        if measure == name and value is not None:
            yield f"{name}: {value}"
        elif measure != name and value == FAILED:
            failed.append(measure)
    if failed:
        yield f"failed: {', '.join(failed)}"
    selections = recipe.folder / "select"
    for dropped in sorted(selections.rglob("dropped.parquet")):
        rows = pl.read_parquet(dropped)
        reasons = rows.filter(pl.col("id") == values["id"])["reason"].to_list()
        arm = dropped.parent.relative_to(selections).as_posix()
        yield f"arm {arm}: {'dropped, ' + reasons[0] if reasons else 'chosen'}"
