"""How far a judge can be believed: it judges pairs that people judged, in both orders, and its
agreement is stored beside it.

The judge is asked exactly as in a benchmark (`EvalConfig.protocol`), so its judgments are cached
alike and the figure is of that very judge, prompt and sampling. `find` is what a score prints
beside itself.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import polars as pl

from core.columns import OK
from core.files import finite, read_json, write_atomic
from core.servers import Servers
from core.store import digest
from core.tracking import Log
from eval.judging import pairwise, settle
from eval.judging.people import agreement
from eval.prompt_sets import prompts
from eval.protocols import AlpacaProtocol, PairwiseProtocol


@dataclass(frozen=True)
class Labelled:
    """Pairs that people labelled: a known set by its name, from its file in `folder`, or a file;
    `limit` takes so many, spread evenly."""

    name: str
    folder: Path
    limit: int | None = None

    def read(self) -> pl.DataFrame:
        """The pairs, with the columns of `eval.judging.people.agreement.PAIRS`."""
        pairs = agreement.pairs(self.name, self.folder)
        if self.limit is None or self.limit >= len(pairs):
            return pairs
        return pairs[[i * len(pairs) // self.limit for i in range(self.limit)]]


def run(
    protocol: PairwiseProtocol, labelled: Labelled, root: Path, *, servers: Servers, log: Log
) -> dict[str, Any]:
    """Judge labelled pairs, each in both orders, and store the agreement under `root`.

    Returns `eval.judging.people.agreement.agreement` plus `dataset`, `judge` and `mass` (mean
    probability on the verdict codes). Raises UserError for bad files, and when the judge gave no
    verdict at all.
    """
    pairs = labelled.read()
    if isinstance(protocol, AlpacaProtocol):
        protocol = protocol.model_copy(update={"order": "both"})
    with TemporaryDirectory() as temporary:
        work = Path(temporary)
        inputs = {
            "prompts": work / "prompts.jsonl",
            "answers": work / "answers",
            "baseline": work / "baseline",
        }
        asked = [prompts.Prompt(*pair) for pair in pairs.select("id", "prompt").iter_rows()]
        prompts.write_prompts(asked, inputs["prompts"])
        for name, side in (("answers", "answer_1"), ("baseline", "answer_2")):
            inputs[name].mkdir()
            answers = pairs.select("id", answer=side, status=pl.lit(OK), reason=pl.lit(""))
            answers.write_parquet(inputs[name] / "answers.parquet")
        counts = pairwise.run(protocol, inputs, root, work / "judged", servers=servers, log=log)
        games = pl.read_parquet(work / "judged" / "judgments.parquet", glob=False)
    name = Path(labelled.name).stem
    known = {
        "dataset": name,
        "judge": settle.determines(protocol.judge, protocol),
        **agreement.agreement(verdicts(games), pairs),
        "mass": counts["mass"],
    }
    write_atomic(
        _folder(root, protocol) / f"{name}.json",
        json.dumps(finite(known), indent=2, allow_nan=False),
    )
    return known


def verdicts(games: pl.DataFrame) -> pl.DataFrame:
    """Judgments of "the model" (answer_1) against "the baseline" (answer_2) as [id, order,
    verdict]; see `eval.judging.people.agreement.agreement`."""
    better = (pl.col("preference") - 0.5).sign()
    return games.select(
        pl.col("item").alias("id"),
        pl.when(pl.col("order") == "model").then(1).otherwise(2).alias("order"),
        better.replace_strict({1: 1, -1: 2, 0: 0}, return_dtype=pl.Int32).alias("verdict"),
    )


def find(protocol: PairwiseProtocol, root: Path) -> list[dict[str, Any]]:
    """What is known of this very judge's agreement with people, one entry a data set; empty when it
    was never measured."""
    return [read_json(path) for path in sorted(_folder(root, protocol).glob("*.json"))]


def sentence(known: dict[str, Any]) -> str:
    """One line for beside a score."""
    interval = f"[{known['lower']:.3f}, {known['upper']:.3f}]"
    line = (
        f"agrees with people on {known['dataset']} in {known['accuracy']:.3f} {interval} of cases"
    )
    ceiling = (known.get("human_ceiling") or {}).get("pairwise")
    return line if ceiling is None else f"{line} (people with each other: {ceiling:.3f})"


def _folder(root: Path, protocol: PairwiseProtocol) -> Path:
    return root / "agreement" / digest(settle.determines(protocol.judge, protocol))[:16]
