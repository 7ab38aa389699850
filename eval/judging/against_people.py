"""How far a judge can be believed: it judges pairs that people judged, in both orders, and its
agreement is stored beside it.

The judge is asked exactly as in a benchmark (`EvalConfig.protocol`), so its judgments are cached
alike and the figure is of that very judge, prompt and sampling. `find` is what a score prints
beside itself.
"""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import polars as pl

from core.files import write_atomic
from core.servers import Servers
from core.store import digest
from core.tracking import Log
from eval.config import AlpacaConfig, ArenaConfig
from eval.judging import agreement, pairwise, settle
from eval.prompt_sets import prompts

Protocol = AlpacaConfig | ArenaConfig


def run(
    protocol: Protocol,
    dataset: str,
    folder: Path,
    root: Path,
    *,
    limit: int | None,
    servers: Servers,
    log: Log,
) -> dict[str, Any]:
    """Judge the labelled pairs of `dataset` (a known name with its `folder`, or a file) and store
    the agreement under `root`.

    `limit`: only so many pairs, spread evenly. Every pair is asked in both orders. Returns
    `eval.agreement.agreement` plus `dataset`, `judge` and `mass` (mean probability on the verdict
    codes). Raises UserError for bad files, and when the judge gave no verdict at all.
    """
    labelled = agreement.pairs(dataset, folder)
    if limit is not None and limit < len(labelled):
        labelled = labelled[[i * len(labelled) // limit for i in range(limit)]]
    both = (
        protocol.model_copy(update={"order": "both"})
        if isinstance(protocol, AlpacaConfig)
        else protocol
    )
    with TemporaryDirectory() as temporary:
        work = Path(temporary)
        prompts.write_prompts(
            [prompts.Prompt(i, p) for i, p in labelled.select("id", "prompt").iter_rows()],
            work / "prompts.jsonl",
        )
        for name, side in (("answers", "answer_1"), ("baseline", "answer_2")):
            (work / name).mkdir()
            _answers(labelled, side).write_parquet(work / name / "answers.parquet")
        inputs = {
            "prompts": work / "prompts.jsonl",
            "answers": work / "answers",
            "baseline": work / "baseline",
        }
        counts = pairwise.run(both, inputs, root, work / "judged", servers=servers, log=log)
        games = pl.read_parquet(work / "judged" / "judgments.parquet")
    found = agreement.agreement(verdicts(games), labelled)
    said = {
        "dataset": Path(dataset).stem,
        "judge": settle.determines(_judge(both), both),
        **found,
        "mass": counts.get("mass"),
    }
    write_atomic(_folder(root, both) / f"{Path(dataset).stem}.json", json.dumps(said, indent=2))
    return said


def verdicts(games: pl.DataFrame) -> pl.DataFrame:
    """Judgments of "the model" (answer_1) against "the baseline" (answer_2) as [id, order,
    verdict]; see `eval.agreement.agreement`."""
    preference = pl.col("preference")
    verdict = (
        pl.when(preference > 0.5)
        .then(1)
        .when(preference < 0.5)
        .then(2)
        .when(preference == 0.5)
        .then(0)
    )
    return games.select(
        pl.col("item").alias("id"),
        pl.when(pl.col("order") == "model").then(1).otherwise(2).alias("order"),
        verdict.alias("verdict"),
    )


def find(protocol: Protocol, root: Path) -> list[dict[str, Any]]:
    """What is known of this very judge's agreement with people, one entry a data set; empty when it
    was never measured."""
    folder = _folder(root, protocol)
    return (
        [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
        if folder.is_dir()
        else []
    )


def sentence(known: dict[str, Any]) -> str:
    """One line for beside a score."""
    low, high = known["lower"], known["upper"]
    ceiling = known.get("human_ceiling") or {}
    people = (
        f" (people with each other: {ceiling['pairwise']:.3f})"
        if ceiling.get("pairwise") is not None
        else ""
    )
    return f"agrees with people on {known['dataset']} in {known['accuracy']:.3f} [{low:.3f}, {high:.3f}] of cases{people}"


def _folder(root: Path, protocol: Protocol) -> Path:
    return root / "agreement" / digest(settle.determines(_judge(protocol), protocol))[:16]


def _judge(protocol: Protocol) -> Any:
    assert protocol.judge is not None, "EvalConfig.protocol fills the judge in"
    return protocol.judge


def _answers(labelled: pl.DataFrame, side: str) -> pl.DataFrame:
    return labelled.select(
        "id",
        "prompt",
        pl.col(side).alias("answer"),
        pl.lit(None, pl.String).alias("finish_reason"),
        pl.lit(None, pl.Int64).alias("tokens"),
        pl.lit("ok").alias("status"),
        pl.lit(None, pl.String).alias("reason"),
    )
