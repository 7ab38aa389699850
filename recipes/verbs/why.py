"""`magpie why`: the way back from a score to the rows behind it, and from a row to the arms that
took it.

ARM[/SEED]            score <- judgments, answers <- checkpoint <- selection <- pool
ARM[/SEED]/ITEM       one cell: a prompt, a task's document or a held-out row with its scores, both
                      answers and every judgment, then the checkpoint and the rows behind it
ROW                   one row: where it came from, its tags, what each arm's filter said
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import polars as pl

from core.cells.kept import look
from core.columns import FAILED
from core.errors import UserError, nearest
from core.files import read_json
from core.store import Result
from recipes.schema import Loaded, Recipe, load, with_random
from recipes.stages import graph
from recipes.stages.sets.beside import MIXTURE, mixture_of, rows_of
from recipes.stages.walk import Arms
from recipes.verbs import cells, refusals
from synth.filters.arm import PartConfig

Results = Mapping[str, Result]


def explain(loaded: Loaded, what: str) -> Iterator[str]:
    """Lines that lead from `what` back to where it came from. Raises UserError when nothing is
    called that, and where the files that it reads are damaged."""
    recipe = loaded.recipe
    look(Path(recipe.store), recipe.name, only=("measure", "select"))
    results = graph.plan(loaded).results
    arm, _, rest = what.partition("/")
    if arm not in with_random(recipe):
        yield from _row(loaded, what)
        return
    runs = _runs(recipe, results)
    named = [run for run in runs if f"{what}/".startswith(f"{run}/")]
    of_arm = [run for run in runs if run.startswith(f"{arm}/")]
    if named or rest.partition("/")[0] in _seeds(recipe):
        of_arm = []  # a seed is named, not an item
    selected = list(_selected(recipe, results, arm, rest)) if not named + of_arm else []
    if selected:
        yield f"{what}: no finished score yet; its selection:"
        yield from selected
        return
    if not named + of_arm:
        hint = f"`magpie plan` shows what is missing{nearest(what, runs)}"
        raise UserError(f"{what}: this arm has no finished score; {hint}.")
    if of_arm and rest:
        yield from _cell(loaded, results, of_arm, rest)
        return
    if not named:
        for run in sorted(of_arm, key=_by_seed):
            yield from _run(recipe, results, run)
        return
    run = min(named)
    item = what.removeprefix(run).removeprefix("/")
    yield from _cell(loaded, results, [run], item) if item else _run(recipe, results, run)


def _runs(recipe: Recipe, results: Results) -> list[str]:
    """The runs that have scores, and those that have none of their own because others were judged
    against them."""
    scored = {name.removeprefix("score/") for name in results if name.startswith("score/")}
    seeds = _seeds(recipe)
    trained = (f"{arm}/{seed}" for arm in with_random(recipe) for seed in seeds)
    others = {*with_random(recipe), *trained} - scored
    return sorted(scored | {run for run in others if cells.met(results, run)})


def _by_seed(run: str) -> int:
    """The seed of a run, as a number."""
    return int(run.rpartition("/")[2])


def _seeds(recipe: Recipe) -> set[str]:
    """The training seeds of a recipe, as they are written."""
    trained = recipe.train or recipe.dpo
    return set(map(str, trained.seeds)) if trained else set()


# -- a run -----------------------------------------------------------------------------------------


def _run(recipe: Recipe, results: Results, run: str) -> Iterator[str]:
    """From a score to the answers and judgments behind it, its checkpoint, and the selection that
    trained it."""
    if f"score/{run}" in results:
        yield _line(f"score/{run}", results[f"score/{run}"])
        yield from _scores(results[f"score/{run}"].path / "summary.json")
    else:
        yield f"{run}: others are judged against it, so it scores by definition"
    kinds = [f"{kind}/{run}" for kind in ("answers", "heldout", "tasks")]
    for name in (*_of_run(results, "judge", run), *filter(results.get, kinds)):
        yield _line(f"  <- {name}", results[name])
    for name in cells.met(results, run):
        yield _line(f"  it was the rival in {name}", results[name])
    yield from _made_of(recipe, results, run)


def _made_of(recipe: Recipe, results: Results, run: str) -> Iterator[str]:
    """The checkpoint of a run, and the selection that trained it."""
    arm, _, seed = run.partition("/")
    trained = results.get(f"train/{run}")
    if trained is None:
        yield f"  <- model {with_random(recipe)[arm].model}"
        return
    yield _line(f"    <- train/{run}", trained)
    yield f"       {_counts(trained.manifest['counts'])}"
    before = with_random(recipe)[arm].dpo
    if before is not None:
        yield from _went_on(results, arm, before, seed)
        arm = before
    yield from _selected(recipe, results, arm, seed)


def _went_on(results: Results, arm: str, before: str, seed: str) -> Iterator[str]:
    """The pairs that an arm went on with, and the checkpoint that it went on from."""
    names = (f"{of}{at}" for of in (arm, before) for at in ("", f"/{seed}"))
    pairs = next((name for name in names if f"preferences/{name}" in results), None)
    if pairs is not None:
        yield _line("      <- pairs", results[f"preferences/{pairs}"])
    base = results.get(f"train/{before}/{seed}")
    if base is not None:
        yield _line(f"      <- train/{before}/{seed}", base)
        yield f"         {_counts(base.manifest['counts'])}"


def _selected(recipe: Recipe, results: Results, arm: str, seed: str) -> Iterator[str]:
    """What an arm chose, and how it came to it; `seed` "": of the first seed that there is."""
    of_arm = [name for name in results if f"{name}/".startswith(f"select/{arm}/")]
    mine = [name for name in of_arm if name in (f"select/{arm}", f"select/{arm}/{seed}")]
    name = next(iter(mine if seed else of_arm), "")
    if not name:
        return
    chosen = results[name]
    yield _line("      <- selection", chosen)
    folder = recipe.folder / name
    if (folder / "funnel.json").is_file():
        yield from _funnel(folder / "funnel.json")
    if mixture := mixture_of(folder):
        yield from _mixture(mixture)
    if (chosen.path / "selection.parquet").is_file():
        ids = pl.read_parquet(chosen.path / "selection.parquet", columns=["id"], glob=False)["id"]
        more = " ..." if len(ids) > 5 else ""
        rows = ", ".join(_with_seeds(recipe, ids.head(5).to_list()))
        yield f"         rows: {rows}{more} (`magpie why RECIPE ROW` for one)"


def _with_seeds(recipe: Recipe, ids: list[str]) -> Iterator[str]:
    """Rows by their ids, those of the pool that were drawn here with their sampling seed."""
    pool = recipe.folder / "measure" / "pool.parquet"
    seeds: dict[str, int | None] = {}
    if pool.is_file() and "seed" in pl.scan_parquet(pool, glob=False).collect_schema():
        known = (
            pl.scan_parquet(pool, glob=False).filter(pl.col("id").is_in(ids)).select("id", "seed")
        )
        seeds = dict(known.collect().iter_rows())
    for row in ids:
        seed = seeds.get(row)
        yield row if seed is None else f"{row} (sampling seed {seed})"


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


def _mixture(mixture: Mapping[str, Any]) -> Iterator[str]:
    """What each part gave to a mixture."""
    for part in mixture["sources"]:
        licences = ", ".join(f"{name} ({rows})" for name, rows in part["licences"].items())
        yield (
            f"         {part['name']} ({part['from']}): {part['amount']} {mixture['unit']} of "
            f"{part['asked']}; {part['twice']} passed over as taken already; licence: {licences}"
        )
    yield f"         mixed {mixture['chosen']}"


# -- a cell ----------------------------------------------------------------------------------------


def _cell(loaded: Loaded, results: Results, runs: list[str], item: str) -> Iterator[str]:
    """One item under each of some runs of an arm, and what the first of them comes from."""
    for run in runs:
        yield from cells.lines(results, run, item)
    recipe = loaded.recipe
    if recipe.eval is not None and recipe.eval.heldout is not None:
        yield from _of_pool(recipe, item, whole=True)
    yield from _made_of(recipe, results, runs[0])


# -- a row -----------------------------------------------------------------------------------------


def _row(loaded: Loaded, row: str) -> Iterator[str]:
    """Everything that is known of a row of the pool or of an arm's data, by the beginning of its
    id, and what became of it in each arm; of a row of a mixture ("PART:ID"), where it is from."""
    recipe = loaded.recipe
    mixed = _in_mixture(recipe, row)
    if mixed is not None:
        arm, origin = mixed
        yield (
            f"mixture {arm}: {origin['source']} gave it, as {origin['source_id']} (licence: "
            f"{origin['licence'] or 'not stated'})"
        )
        yield from _of_part(loaded, arm, str(origin["source"]), str(origin["source_id"]))
        return
    becomes = list(_becomes(recipe, row))
    found = list(_of_pool(recipe, row, whole=bool(becomes)))
    if found and not becomes:
        becomes = list(_becomes(recipe, found[0].removeprefix("id: ")))
    if not found and not becomes:
        pool = recipe.folder / "measure" / "pool.parquet"
        if not pool.is_file():
            raise UserError(
                f"{row}: not an arm of this recipe, and there is no pool snapshot yet to look for "
                "a row in; `magpie run` makes it."
            )
        near = nearest(row, with_random(recipe))
        raise UserError(f"{row}: no arm and no row is called that{near}.")
    yield from found
    yield from becomes


def _in_mixture(recipe: Recipe, row: str) -> tuple[str, dict[str, Any]] | None:
    """(arm, where the row is from) of a mixture that holds it."""
    for path in sorted((recipe.folder / "select").rglob(MIXTURE)):
        known = rows_of(path.parent)
        if known is not None and len(at := known.filter(pl.col("id") == row)):
            arm = path.parent.relative_to(recipe.folder / "select").as_posix()
            return arm, at.row(0, named=True)
    return None


def _of_part(loaded: Loaded, arm: str, source: str, row: str) -> Iterator[str]:
    """What is known of a row where the part of a mixture has it from."""
    recipe = loaded.recipe
    part, _, inner = source.partition("/")
    config = (with_random(recipe)[arm.partition("/")[0]].mix or {}).get(part)
    if isinstance(config, PartConfig) and config.recipe:
        other = load(config.recipe)
        yield f"recipe {other.recipe.name}, arm {config.arm}:"
        yield from _row(other, row)
    elif isinstance(config, PartConfig):
        yield f"data {config.data}"
    elif inner or config is not None:
        yield from _row(loaded, row)


def _of_pool(recipe: Recipe, row: str, *, whole: bool) -> Iterator[str]:
    """What the pool's snapshot holds of a row, the id first; nothing where it is not there.
    `whole`: `row` is no beginning of an id."""
    found = _in_pool(recipe, row, whole=whole)
    if found is not None:
        yield from _values(found)


def _in_pool(recipe: Recipe, row: str, *, whole: bool) -> dict[str, Any] | None:
    """The same as values by column."""
    pool = recipe.folder / "measure" / "pool.parquet"
    if not pool.is_file():
        return None
    named = pl.col("id") == row if whole else pl.col("id").str.starts_with(row)
    found = pl.scan_parquet(pool, glob=False).filter(named).head(2).collect()
    if len(found) > 1:
        raise UserError(f"{row}: more than one row begins so; write more of it.")
    return found.row(0, named=True) if len(found) else None


def _row_beside(folder: Path, row: str) -> dict[str, Any] | None:
    """What is kept of a row beside the selection in a folder; None where nothing is."""
    known = rows_of(folder)
    if known is None or not len(at := known.filter(pl.col("id") == row)):
        return None
    return at.row(0, named=True)


def _values(values: Mapping[str, Any]) -> Iterator[str]:
    """A row's columns that hold something, and the measures that failed of it."""
    yield f"id: {values['id']}"
    failed = []
    for name, value in values.items():
        measure = name.removeprefix("status:")
        if measure == name and value is not None and name != "id":
            yield f"{name}: {value}"
        elif measure != name and value == FAILED:
            failed.append(measure)
    if failed:
        yield f"failed: {', '.join(failed)}"


def _becomes(recipe: Recipe, row: str) -> Iterator[str]:
    """What each arm's filter said of a row that it saw; of one that it chose from other people's
    data, also what is known of it."""
    selections = recipe.folder / "select"
    arms, known = Arms.of(recipe), _in_pool(recipe, row, whole=True)
    rules = {**arms.data, **arms.rules}
    for dropped in sorted(selections.rglob("dropped.parquet")):
        folder = dropped.parent
        arm = folder.relative_to(selections).as_posix()
        out = pl.scan_parquet(dropped, glob=False).filter(pl.col("id") == row).collect()
        if len(out):
            rule, values = rules.get(arm.split("/")[0]), known or _row_beside(folder, row)
            said = refusals.sentence(out["reason"][0], rule, values, folder / "funnel.json")
            yield f"arm {arm}: dropped, {said}"
            continue
        chosen = (
            pl.scan_parquet(folder / "selection.parquet", glob=False)
            .filter(pl.col("id") == row)
            .collect()
        )
        if not len(chosen):
            continue
        yield f"arm {arm}: chosen"
        if (beside := _row_beside(folder, row)) is not None:
            yield from (f"  {line}" for line in _values(beside))
            turns = chosen["messages"][0].to_list()
            yield from (f"  {turn['role']}: {turn['content']}" for turn in turns)
