"""What AlpacaEval publishes beside its prompts (difficulties, gamed rows), found for a recipe whose
prompts and baseline are AlpacaEval's own: without it its length-controlled win rate cannot be had.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import polars as pl

from core.errors import UserError
from core.files import file_digest
from core.store import Counts, Result
from core.tracking import Log
from eval.config import EvalConfig
from recipes.stages.evaluating.judging import rival
from recipes.stages.session import Results, Session, Stage
from recipes.stages.walk import Arms

VERSION = 1
WITHOUT = (
    "alpaca has no length-controlled win rate of AlpacaEval's form, so its raw win rate decides "
    "and length_controlled_minimal (40 items or more) stands beside it"
)


def reference(session: Session, config: EvalConfig, arms: Arms, prompts: Result | None) -> Results:
    """{"alpaca-data": AlpacaEval's tables}, which a plan may have to wait for; {} where they do not
    hold for this recipe's prompts or baseline, and then the session's remarks say why.

    Raises UserError for an `eval.alpaca.data` that lacks one of them.
    """
    protocol = config.protocol("alpaca")
    if protocol.kind != "alpaca" or config.alpaca is None:
        return {}
    if why := unfit(config, arms):
        return _none(session, why)
    found = _tables(session, protocol.data)
    if found is None:
        return _none(
            session,
            "its tables cannot be had from the hub's tatsu-lab/alpaca_eval; give a folder that has "
            "them as `eval.alpaca.data`",
        )
    made = session.result(_stage(session, found, prompts))
    why = made.manifest["counts"]["why"] if made is not None else ""
    return _none(session, why) if why else {"alpaca-data": made}


def unfit(config: EvalConfig, arms: Arms) -> str:
    """Why a recipe's prompts or baseline are not AlpacaEval's own, as far as it says so itself; ""
    where they may be."""
    protocol = config.protocol("alpaca")
    arm = rival(config, arms, "alpaca")
    if arm is not None:
        return f"its baseline is the arm {arm}, not gpt4_1106_preview"
    data = protocol.data if protocol.kind == "alpaca" else None
    if data is None and str(protocol.prompts) != "alpaca_eval":
        return (
            f"its prompts are {protocol.prompts}; should they be AlpacaEval's, say by "
            "`eval.alpaca.data` where its tables are"
        )
    return ""


def _none(session: Session, why: str) -> Results:
    session.remarks.append(f"{WITHOUT}: {why}.")
    return {}


def _tables(session: Session, data: str | None) -> tuple[Path, ...] | None:
    """The three files, of a folder or of the hub; None where the hub has to be asked and does not
    answer (in a plan: where they are not downloaded yet)."""
    from eval.scoring import length_control

    folder = None if data is None else Path(data).expanduser()
    try:
        return length_control.tables(folder, fetch=not session.planning)
    except UserError as error:
        if folder is not None:
            raise UserError(f"eval.alpaca.data: {error}") from error
        if not session.planning:
            session.log.say(str(error))
        return None


def _stage(session: Session, tables: tuple[Path, ...], prompts: Result | None) -> Stage:
    """The tables, copied, and `why` they do not hold ("" where they do) among the counts."""
    from eval.prompt_sets import prompts as prompt_sets
    from eval.scoring import length_control

    def make(out: Path, log: Log, inputs: dict[str, Path]) -> Counts:
        outputs = f"outputs{''.join(tables[2].suffixes[-2:])}"
        names = ("instruction_difficulty.csv", "df_gamed.csv", outputs)
        for name, path in zip(names, tables, strict=True):
            shutil.copyfile(path, out / name)
        asked = prompt_sets.prompts(str(inputs["prompts"] / "prompts.jsonl"))
        answers = pl.read_parquet(inputs["baseline"] / "answers.parquet", glob=False)
        given = dict(answers.select("id", "answer").iter_rows())
        return {"why": length_control.misfit(out, [prompt.id for prompt in asked], given)}

    spec = {"tables": [file_digest(path) for path in tables], "VERSION": VERSION}
    parents = {"prompts": prompts, "baseline": session.results.get("baseline/alpaca")}
    return Stage("reference/alpaca", spec, parents, make)
