"""Which of the things that prompts ask for in so many words a checkpoint's answers do, and whether
the answers end by themselves. No judge and no model is asked."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from core.errors import UserError
from core.store import Counts
from eval.prompt_sets.checked_prompts import checked_prompts
from eval.prompt_sets.checks import follows

VERSION = 1

FOLLOWED = {
    "id": pl.String,
    "number": pl.Int64,
    "check": pl.String,
    "followed": pl.Boolean,
    "stopped": pl.Boolean,
    "status": pl.String,
    "reason": pl.String,
}
"""Columns of followed.parquet, a row a check: its place among the prompt's, from 1, its kind,
whether the answer follows it, and whether that answer ended by itself; both null where there is no
answer."""


def run(inputs: dict[str, Path], out: Path) -> Counts:
    """Write `out`/followed.parquet from `inputs`: `prompts`, a file of checked prompts, and
    `answers`, the answers.parquet of a checkpoint.

    An answer that was cut off counts as it stands. Counts: rows (checks), followed, failed (those
    without an answer). Raises UserError when the answers lack one of the prompts.
    """
    answers = {
        name: (answer, finish_reason, status, reason)
        for name, answer, finish_reason, status, reason in pl.read_parquet(
            inputs["answers"],
            columns=["id", "answer", "finish_reason", "status", "reason"],
            glob=False,
        ).iter_rows()
    }
    rows = []
    for prompt in checked_prompts(str(inputs["prompts"])):
        if prompt.id not in answers:
            raise UserError(f"{inputs['answers']} has no answer to the prompt {prompt.id}.")
        answer, finish_reason, status, reason = answers[prompt.id]
        answered = status == "ok"
        for number, check in enumerate(prompt.checks, 1):
            row = {"id": prompt.id, "number": number, "check": check["check"], "status": status}
            if answered:
                row |= {"followed": follows(answer, check), "stopped": finish_reason == "stop"}
            rows.append(row | {"reason": reason})
    frame = pl.DataFrame(rows, schema=FOLLOWED)
    out.mkdir(parents=True, exist_ok=True)
    frame.write_parquet(out / "followed.parquet")
    failed = frame["followed"].null_count()
    return {"rows": frame.height, "followed": int(frame["followed"].sum()), "failed": failed}
