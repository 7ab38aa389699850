"""`magpie annotations`: the judgments of a recipe's finished runs as files of alpaca_eval and of
Arena-Hard."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from core.errors import UserError
from core.files import write_atomic
from core.store import Result
from eval.judging import several_judges
from eval.prompt_sets import prompts as benchmarks
from eval.prompt_sets.records import records
from eval.protocols import PAIRWISE, AlpacaProtocol, PairwiseProtocol
from eval.scoring import alpaca
from eval.scoring import official_files as forms
from recipes.schema import Loaded, Recipe, with_random
from recipes.stages import graph
from recipes.stages.walk import baseline_of

Results = Mapping[str, Result]


def write(loaded: Loaded, out: Path) -> list[Path]:
    """Write the judgments of every finished judged run below `out`; returns the files.

    `out`/alpaca_eval/MODEL/annotations.json, and
    `out`/arena-hard-VERSION/model_judgment/JUDGE/MODEL.jsonl, laid out as the two projects lay out
    theirs. MODEL is ARM-SEED, or the arm of a finished model. Several judges of one benchmark are
    one annotation an item (their mean) for AlpacaEval, and a file each for Arena-Hard. Raises
    UserError when nothing is judged yet.
    """
    recipe, results = loaded.recipe, graph.plan(loaded).results
    files = []
    for name, judged in results.items():
        for benchmark in PAIRWISE:
            run = name.removeprefix(f"judge/{benchmark}/")
            if recipe.eval is not None and run != name:
                protocols = recipe.eval.protocols(benchmark)
                games = pl.read_parquet(judged.path / "judgments.parquet", glob=False)
                for place, text in _texts(recipe, results, protocols, run, games):
                    write_atomic(out / place, text)
                    files.append(out / place)
    if not files:
        how = f"`magpie run {loaded.source.path} --until judge` makes them"
        raise UserError(f"recipe {recipe.name} has no finished judgments; {how}.")
    return files


def _texts(
    recipe: Recipe,
    results: Results,
    protocols: Sequence[PairwiseProtocol],
    run: str,
    games: pl.DataFrame,
) -> Iterator[tuple[str, str]]:
    """(path, text) of each file that one run's judgments in one benchmark make."""
    protocol = protocols[0]
    judges = several_judges.names([each.judge for each in protocols])
    baseline, named = _baseline(recipe, results, protocol, run)
    model = run.replace("/", "-")
    if isinstance(protocol, AlpacaProtocol):
        prompts = results["prompts/alpaca"].path / "prompts.jsonl"
        theirs = pl.read_parquet(baseline / "answers.parquet", glob=False)
        mine = pl.read_parquet(_answers(results, run, "alpaca") / "answers.parquet", glob=False)
        annotations = forms.alpaca(
            benchmarks.prompts(str(prompts)),
            (theirs, mine),
            (str(named), model),
            games if len(judges) == 1 else several_judges.by_item(games),
            annotator="+".join(judges),
        )
        text = json.dumps(annotations, ensure_ascii=False, indent=1)
        yield f"alpaca_eval/{model}/annotations.json", text
        return
    for judge in judges:
        lines = forms.arena(
            games if len(judges) == 1 else games.filter(pl.col("judge") == judge),
            model=model,
            baseline_model=named,
            judge=judge,
            version=protocol.version,
        )
        texts = [json.dumps(line, ensure_ascii=False) + "\n" for line in lines]
        folder = f"arena-hard-{protocol.version}/model_judgment"
        yield f"{folder}/{judge}/{model}.jsonl", "".join(texts)


def _answers(results: Results, run: str, benchmark: str) -> Path:
    """A run's answers in a benchmark; benchmarks that ask alike share them."""
    return (results.get(f"answers/{run}/{benchmark}") or results[f"answers/{run}"]).path


def _baseline(
    recipe: Recipe, results: Results, protocol: PairwiseProtocol, run: str
) -> tuple[Path, str | dict[str, str]]:
    """Folder of the baseline's answers, and its name, or names by category."""
    arms = with_random(recipe)
    source = protocol.baseline or baseline_of(recipe, arms)
    if isinstance(source, str) and source in arms:
        other = source
        if f"answers/{source}" not in results:
            trained = recipe.train or recipe.dpo
            seeds = trained.seeds if trained else (0,)
            other = f"{source}/{run.partition('/')[2] or seeds[0]}"
        return _answers(results, other, protocol.kind), other.replace("/", "-")
    folder = results[f"baseline/{protocol.kind}"].path
    if isinstance(source, dict):
        return folder, {category: _generator(Path(path)) for category, path in source.items()}
    if source != "hub":
        return folder, _generator(Path(source))
    if protocol.prompts == "alpaca_eval":
        return folder, alpaca.BASELINE
    published = benchmarks.HUB_BASELINES[str(protocol.prompts)]
    names = {category: Path(file).stem for category, (_, file) in published.items()}
    return folder, names.get("*") or names


def _generator(path: Path) -> str:
    """Whose answers a file holds: its records' `generator` (AlpacaEval) or `model` (Arena-Hard),
    else the file's name."""
    held = () if path.is_dir() else records(path)
    first: Mapping[str, Any] = next((record for _, record in held), {})
    names = map(first.get, ("generator", "model", "model_id"))
    return str(next(filter(None, names), path.name.partition(".")[0]))
