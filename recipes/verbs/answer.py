"""`magpie answer`: any model's answers to prompts that exist, without a recipe.

The prompts become a pool of the store, so a run that was killed continues, and asking the same
model again for the same prompts buys nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import polars as pl
from pydantic import ValidationError

from core import models
from core.columns import FAILED, OK
from core.errors import UserError
from core.servers import Servers
from core.tracking import Tracker
from recipes.blocks.refusals import sentence
from recipes.exchange import import_data
from recipes.schema import override
from synth.config.models import ModelConfig
from synth.config.rows import ImportConfig
from synth.config.synthesis import SynthConfig
from synth.context import Context
from synth.filters.arm import ArmConfig
from synth.filters.rule import resolve
from synth.pool import draw, spending
from synth.pool.measure import measure
from synth.pool.pool import Pool
from synth.published.files import Notes
from synth.published.rows import read
from synth.published.to_ours import OWN_COLUMNS

Block = dict[str, Any]


@dataclass(frozen=True)
class Responder:
    """Who answers, as the command line says it: `settings` and `sampling` are KEY=VALUE texts."""

    model: str
    revision: str | None = None
    urls: Sequence[str] = ()
    api_key_env: str | None = None
    api: str | None = None
    settings: Sequence[str] = ()
    prices: str | None = None
    budget: float | None = None

    def block(self) -> Block:
        """The fields of a ModelConfig that are stated. Raises UserError for a setting that is
        none."""
        server: Block = {}
        for text in self.settings:
            override(server, text, "max_in_flight=64")
        if self.urls:
            server["urls"] = list(self.urls)
        if self.api_key_env:
            server["api_key_env"] = self.api_key_env
        api = self.api or ("chat" if self.urls else "completions")
        given = {"model": self.model, "revision": self.revision, "server": server, "api": api}
        more = {"prices": self._prices(), "budget": self.budget}
        return given | {name: value for name, value in more.items() if value is not None}

    def _prices(self) -> Block | None:
        if self.prices is None:
            return None
        parts = self.prices.split(",")
        try:
            read, made = map(float, parts)
        except ValueError as error:
            raise UserError(
                f"--prices {self.prices}: give the price of a million tokens read and that of a "
                "million generated, as in --prices 0.15,0.60."
            ) from error
        return {"input": read, "output": made}


@dataclass(frozen=True)
class Wanted:
    """What is answered and how: `rows` are the fields of an ImportConfig, `sampling` KEY=VALUE
    texts in place of greedy answers of up to 4,096 tokens."""

    rows: Block
    sampling: Sequence[str] = ()

    def response(self) -> Block:
        """The sampling as a recipe has it."""
        sampling: Block = {} if self.sampling else {"temperature": 0.0, "max_tokens": 4096}
        for text in self.sampling:
            override(sampling, text, "max_tokens=1024")
        return sampling


@dataclass(frozen=True)
class Output:
    """Where the answered rows go and in which form; the store that keeps every answer."""

    path: Path
    form: str
    store: Path


def main(wanted: Wanted, responder: Responder, output: Output) -> dict[str, Any]:
    """Answer, write the rows, print what was answered, what failed and what it cost, which is
    returned too."""
    form = import_data.checked(output.form)
    import_data.spare(wanted.rows["import"], output.path)
    if output.path.suffix not in (".parquet", ".jsonl"):
        import_data.check_new(output.path)
    config = _config(wanted, responder)
    root = output.store
    spent = root / "spent" / output.path.stem
    pool = Pool(config, Context(root, cache(models.resolve), spent=spent))
    answer(pool, Tracker("none", project="", group="", folder=root), root)
    failed: Counter[str] = Counter()
    written = import_data.write(_watched(rows(pool), failed), output.path, form)
    for reason, count in failed.most_common():
        print(f"{count:,} x {reason}")
    bills = pool.context.ledger().bills()
    for line in spending.lines(bills):
        print(line)
    answered = written - failed.total()
    print(f"{written:,} rows written to {output.path}, {answered:,} of them with an answer")
    return {
        "written": written,
        "answered": answered,
        "failed": dict(failed.most_common()),
        "spent": {model: bill._asdict() for model, bill in bills.items()},
        "form": form,
        "out": str(output.path),
    }


def _watched(frames: Iterable[pl.DataFrame], failed: Counter[str]) -> Iterator[pl.DataFrame]:
    """The same frames; the reasons of failed rows are counted as they pass, without the place."""
    for frame in frames:
        reasons = frame.filter(pl.col("status") == FAILED)["reason"]
        failed.update(reasons.str.replace(r" \([^()]*\)$", "").to_list())
        yield frame


def _config(wanted: Wanted, responder: Responder) -> SynthConfig:
    try:
        teacher = ModelConfig.model_validate(responder.block())
        given = {"teacher": teacher, "rows": ImportConfig.model_validate(wanted.rows)}
        return SynthConfig.model_validate({**given, "response": wanted.response()})
    except ValidationError as error:
        raise UserError(f"{sentence(error, {})}.") from error


def answer(pool: Pool, tracker: Tracker, root: Path) -> None:
    """Import the prompts and buy the answers that are missing."""
    with (
        tracker.stage("answer", "answer", "answer", {}) as log,
        Servers(log, root / "logs") as servers,
    ):
        draw.draw(pool, servers, log)
        frame = pool.frame()
        if pool.drawn().is_empty():
            raise UserError("the data holds no rows, so there is nothing to answer.")
        if frame.is_empty():
            return
        due = frame.filter(pl.col("status:response").is_null())["id"].to_list()
        estimate = spending.forecast(pool, {"response": due}) if due else ""
        log.say(f"{len(due):,} of {len(frame):,} rows to answer{estimate and '; '}{estimate}")
        every = resolve("answer", ArmConfig(choose="all"))
        measure(pool, [(every, (0,))], servers, log)


def rows(pool: Pool) -> Iterator[pl.DataFrame]:
    """The rows of the source in our form, with the answers that count: `response`, `thinking`, and
    of those that were bought the `response_model`; an answer that gave way to a new one is
    `imported_response`. A row without an answer is a failed row with the reason."""
    source = pool.config.rows
    if not isinstance(source, ImportConfig):
        raise ValueError("a pool that is drawn")
    frame = pool.frame()
    own = pool.own("response", frame).rename({"status": "_status", "reason": "_failed"})
    for given in read(source.import_, source.limit, how=source, prompts=True, notes=Notes()):
        here = frame.join(given.select("id"), on="id", how="semi")
        texts = pool.texts(here, ["response", "thinking"])
        texts = texts.rename({"response": "_new", "thinking": "_thought"})
        joined = given.join(own, on="id", how="left", maintain_order="left")
        yield _answered(joined.join(texts, on="id", how="left", maintain_order="left"), pool)


def _answered(given: pl.DataFrame, pool: Pool) -> pl.DataFrame:
    """Rows of the source with the answers that count. Beside them stand the text that counts, what
    was thought, and status and reason of what was asked for: _new, _thought, _status, _failed."""
    responder = (pool.config.responder or pool.config.teacher).model
    name = Path(responder).name if Path(responder).is_dir() else responder
    mine, good = pl.col("_status") == OK, pl.col("status") == OK
    lacking = good & pl.col("_new").is_null()
    why = pl.format("no answer: {}", pl.col("_failed").fill_null("not asked"))
    thought = "thinking" if "thinking" in given.columns else pl.lit(None, pl.String)
    columns: dict[str, pl.Expr] = {
        "response": pl.col("_new"),
        "thinking": pl.when(mine).then("_thought").otherwise(thought),
        "response_model": pl.when(mine).then(pl.lit(name)),
        # A pair now, whatever conversation the old answer was part of.
        "messages": pl.when(mine.fill_null(False).not_()).then("messages"),
        "status": pl.when(lacking).then(pl.lit(FAILED)).otherwise("status"),
        "reason": pl.when(lacking).then(why).otherwise("reason"),
    }
    if pool.answers == "all":
        given = given.with_columns(imported_response="response")
    answered = given.with_columns(**columns)
    last = [n for n in OWN_COLUMNS if n in answered.columns]
    return answered.select(pl.exclude(*last, "_new", "_thought", "_status", "_failed"), *last)
