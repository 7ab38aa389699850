"""`magpie why`: the way back from a score to the rows behind it, and from a row to the arms that
took it.

ARM[/SEED]            score <- judgments, answers <- checkpoint <- selection <- pool
ARM[/SEED]/PROMPT     one prompt: both answers, every judgment
ROW                   one row: where it came from, its tags, what each arm's filter said
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import polars as pl

from core.errors import UserError, nearest
from core.store import Result
from recipes.schema import Loaded, with_random
from recipes.stages import graph


def explain(loaded: Loaded, what: str) -> Iterator[str]:
    """Lines that lead from `what` back to where it came from. Raises UserError when nothing is
    called that."""
    outcome = graph.plan(loaded)
    arm, _, rest = what.partition("/")
    if arm in with_random(loaded.recipe):
        runs = sorted(
            {name.removeprefix("score/") for name in outcome.results if name.startswith("score/")}
        )
        run = next(
            (
                r
                for r in runs
                if what == r or what.startswith(f"{r}/") or (r.startswith(f"{arm}/") and not rest)
            ),
            None,
        )
        if run is None:
            raise UserError(
                f"{what}: this arm has no finished score; `magpie plan` shows what is missing{nearest(what, runs)}."
            )
        prompt = what.removeprefix(run).removeprefix("/")
        yield from (
            _prompt(outcome.results, run, prompt) if prompt else _run(loaded, outcome.results, run)
        )
        return
    yield from _row(loaded, what)


def _line(name: str, result: Result | None) -> str:
    if result is None:
        return f"{name}: not finished"
    when = result.manifest.get("seconds")
    return (
        f"{name}: {result.path} (content {result.digest[:12]}{f', {when:.0f} s' if when else ''})"
    )


def _run(loaded: Loaded, results: dict[str, Result], run: str) -> Iterator[str]:
    arm = run.partition("/")[0]
    yield _line(f"score/{run}", results.get(f"score/{run}"))
    summary = json.loads((results[f"score/{run}"].path / "summary.json").read_text())
    for benchmark, metrics in summary.items():
        shown = ", ".join(
            f"{m} {v['value']:.4g} (n {v.get('n')})"
            for m, v in metrics.items()
            if v.get("value") is not None
        )
        yield f"  {benchmark}: {shown}"
    for name in sorted(n for n in results if n.startswith("judge/") and n.endswith(f"/{run}")):
        yield _line(f"  <- {name}", results[name])
    for kind in ("answers", "heldout", "tasks"):
        if f"{kind}/{run}" in results:
            yield _line(f"  <- {kind}/{run}", results[f"{kind}/{run}"])
    trained = results.get(f"train/{run}")
    if trained is None:
        yield f"  <- model {with_random(loaded.recipe)[arm].model}"
        return
    yield _line(f"    <- train/{run}", trained)
    counts = trained.manifest["counts"]
    yield "       " + ", ".join(
        f"{k} {v:,}" if isinstance(v, int) else f"{k} {v:.4g}"
        for k, v in counts.items()
        if isinstance(v, (int, float))
    )
    chosen = results.get(f"select/{arm}") or results.get(f"select/{run}")
    yield _line("      <- selection", chosen)
    folder = _notes(loaded) / "select" / arm
    funnel = next(
        (
            f
            for f in (folder / "funnel.json", folder / run.partition("/")[2] / "funnel.json")
            if f.is_file()
        ),
        None,
    )
    if funnel is not None:
        said = json.loads(funnel.read_text())
        yield f"         pool {said['pool']}, held out {said['heldout']}"
        for step in said["steps"]:
            yield f"         {step['predicate']}: stopped {step['stopped']}, left {step['left']}"
        yield f"         chosen {said['chosen']} by {said['choose']}"
    if chosen is not None and (chosen.path / "selection.parquet").is_file():
        ids = pl.read_parquet(chosen.path / "selection.parquet", columns=["id"])["id"]
        yield f"         rows: {', '.join(ids.head(5).to_list())}{' ...' if len(ids) > 5 else ''} (`magpie why RECIPE ROW` for one)"


def _prompt(results: dict[str, Result], run: str, prompt: str) -> Iterator[str]:
    for name in sorted(
        n for n in results if n == f"answers/{run}" or n.startswith(f"answers/{run}/")
    ):
        rows = pl.read_parquet(results[name].path / "answers.parquet")
        found = rows.filter(pl.col("id") == prompt)
        if found.is_empty():
            raise UserError(
                f"{prompt}: no such prompt in {name}{nearest(prompt, rows['id'].to_list())}."
            )
        row = found.row(0, named=True)
        yield f"prompt {prompt}: {row['prompt']}"
        yield f"answer ({row['finish_reason']}, {row['tokens']} tokens, {name}):\n{row['answer']}"
    for name in sorted(n for n in results if n.startswith("judge/") and n.endswith(f"/{run}")):
        games = pl.read_parquet(results[name].path / "judgments.parquet").filter(
            pl.col("item") == prompt
        )
        for game in games.iter_rows(named=True):
            fields = (
                "judge",
                "game",
                "order",
                "preference",
                "label",
                "mass",
                "status",
                "reason",
                "verdict",
            )
            shown = {k: game[k] for k in fields if game.get(k) is not None}
            yield f"{name}: {json.dumps(shown, ensure_ascii=False)}"


def _row(loaded: Loaded, row: str) -> Iterator[str]:
    pool = _notes(loaded) / "measure" / "pool.parquet"
    if not pool.is_file():
        raise UserError(
            f"{row}: not an arm of this recipe, and there is no pool snapshot yet to look for a row in; `magpie run` makes it."
        )
    found = pl.scan_parquet(pool).filter(pl.col("id").str.starts_with(row)).head(2).collect()
    if len(found) != 1:
        problem = (
            "no arm and no row is called that"
            if found.is_empty()
            else "more than one row begins so; write more of it"
        )
        raise UserError(f"{row}: {problem}{nearest(row, with_random(loaded.recipe))}.")
    values = found.row(0, named=True)
    for name, value in values.items():
        if value is not None and not name.startswith("status:"):
            yield f"{name}: {value}"
    failed = [
        n.removeprefix("status:")
        for n, v in values.items()
        if n.startswith("status:") and v == "failed"
    ]
    if failed:
        yield f"failed: {', '.join(failed)}"
    for dropped in sorted((_notes(loaded) / "select").rglob("dropped.parquet")):
        reasons = pl.read_parquet(dropped).filter(pl.col("id") == values["id"])["reason"].to_list()
        arm = dropped.parent.relative_to(_notes(loaded) / "select").as_posix()
        yield f"arm {arm}: {'dropped, ' + reasons[0] if reasons else 'chosen'}"


def _notes(loaded: Loaded) -> Path:
    return Path(loaded.recipe.store) / "recipes" / loaded.recipe.name
