"""`magpie annotations`: the judgments of a recipe's finished runs as files of alpaca_eval and of
Arena-Hard."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl

from core.errors import UserError
from core.files import write_atomic
from core.store import Result
from eval.config import AlpacaConfig, ArenaConfig
from eval.judging import several_judges
from eval.prompt_sets import prompts as benchmarks
from eval.scoring import alpaca
from eval.scoring import official_files as forms
from recipes.schema import Loaded, with_random
from recipes.stages import graph
from recipes.stages.walk import baseline_of


def write(loaded: Loaded, out: Path) -> list[Path]:
    """Write the judgments of every finished judged run below `out`; returns the files.

    `out`/alpaca_eval/MODEL/annotations.json, and
    `out`/arena-hard-VERSION/model_judgment/JUDGE/MODEL.jsonl, laid out as the two projects lay out
    theirs. MODEL is ARM-SEED, or the arm of a finished model. Several judges of one benchmark are
    one annotation an item (their mean) for AlpacaEval, and a file each for Arena-Hard. Raises
    UserError when nothing is judged yet.
    """
    config = loaded.recipe.eval
    results = graph.plan(loaded).results
    judged = [
        name.split("/", 2)[1:]
        for name in results
        if name.startswith(("judge/alpaca/", "judge/arena/"))
    ]
    if config is None or not judged:
        raise UserError(
            f"recipe {loaded.recipe.name} has no finished judgments; `magpie run {loaded.source.path} --until judge` makes them."
        )
    files = []
    for benchmark, run in judged:
        protocols = config.protocols("alpaca" if benchmark == "alpaca" else "arena")
        protocol, judges = (
            protocols[0],
            several_judges.names([p.judge for p in protocols if p.judge]),
        )
        games = pl.read_parquet(results[f"judge/{benchmark}/{run}"].path / "judgments.parquet")
        baseline, named = _baseline(loaded, results, protocol, run)
        model = run.replace("/", "-")
        if isinstance(protocol, AlpacaConfig):
            prompts = benchmarks.prompts(
                str(results[f"prompts/{benchmark}"].path / "prompts.jsonl")
            )
            mine, theirs = (
                pl.read_parquet(folder / "answers.parquet")
                for folder in (_answers(results, run, benchmark), baseline)
            )
            shown = games if len(judges) == 1 else several_judges.by_item(games)
            rows = forms.alpaca(
                prompts,
                mine,
                theirs,
                shown,
                model=model,
                baseline_model=str(named),
                annotator="+".join(judges),
            )
            files.append(
                _write(
                    out / "alpaca_eval" / model / "annotations.json",
                    json.dumps(rows, ensure_ascii=False, indent=1),
                )
            )
            continue
        for judge in judges:
            own = games if len(judges) == 1 else games.filter(pl.col("judge") == judge)
            lines = forms.arena(
                own, model=model, baseline_model=named, judge=judge, version=protocol.version
            )
            text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
            files.append(
                _write(
                    out
                    / f"arena-hard-{protocol.version}"
                    / "model_judgment"
                    / judge
                    / f"{model}.jsonl",
                    text,
                )
            )
    return files


def _write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, text)
    return path


def _answers(results: Mapping[str, Result], run: str, benchmark: str) -> Path:
    """A run's answers in a benchmark; benchmarks that ask alike share them."""
    return (results.get(f"answers/{run}/{benchmark}") or results[f"answers/{run}"]).path


def _baseline(
    loaded: Loaded, results: Mapping[str, Result], protocol: AlpacaConfig | ArenaConfig, run: str
) -> tuple[Path, str | dict[str, str]]:
    """Folder of the baseline's answers, and its name, or names by category."""
    arms = with_random(loaded.recipe)
    source = protocol.baseline or baseline_of(loaded.recipe, arms)
    if isinstance(source, str) and source in arms:
        seeds = loaded.recipe.train.seeds if loaded.recipe.train else (0,)
        other = (
            source
            if f"answers/{source}" in results
            else f"{source}/{run.partition('/')[2] or seeds[0]}"
        )
        return _answers(results, other, protocol.kind), other.replace("/", "-")
    folder = results[f"baseline/{protocol.kind}"].path
    if isinstance(source, dict):
        return folder, {category: _generator(Path(path)) for category, path in source.items()}
    if source != "hub":
        return folder, _generator(Path(source))
    if protocol.prompts == "alpaca_eval":
        return folder, alpaca.BASELINE
    published = {
        category: Path(file).stem
        for category, (_, file) in benchmarks.HUB_BASELINES[str(protocol.prompts)].items()
    }
    return folder, published.get("*") or published


def _generator(path: Path) -> str:
    """Whose answers a file holds: its records' `generator` (AlpacaEval) or `model` (Arena-Hard),
    else the file's name."""
    first: dict[str, Any] = (
        {} if path.is_dir() else next((record for _, record in benchmarks.records(path)), {})
    )
    return str(
        first.get("generator")
        or first.get("model")
        or first.get("model_id")
        or path.name.partition(".")[0]
    )
