"""Questions to a checkpoint's server, one an id: cells are kept as the replies come, so that a
killed run that is started again asks for the rest, and an id without one has its reason."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from core import models
from core.columns import FAILED, OK, Column
from core.errors import UserError
from core.servers import Endpoint
from core.serving.adapters import Adapted
from core.store import Counts
from core.tracking import Log
from core.wire import Reply, Request, ServerSpec

Asked = str | Adapted
"""A checkpoint that is asked: a folder, `embedded/NAME` or hub id with a server of its own, or one
that the server of its base answers for."""


def folder_of(model: Asked) -> str:
    """The folder of its tokenizer, chat template and stop tokens."""
    if isinstance(model, Adapted):
        return model.checkpoint
    return str(models.folder(models.resolve(model)))


def server_of(model: Asked, folder: str, block: Mapping[str, Any]) -> ServerSpec:
    """Its server, by its folder and a recipe's `server` block."""
    if isinstance(model, Adapted):
        return model.spec(block)
    return ServerSpec(model=folder, **block)


def named(model: Asked) -> dict[str, str]:
    """What a request says of the model where it is not the server's own."""
    return {"model": model.name} if isinstance(model, Adapted) else {}


@dataclass(frozen=True)
class Questions:
    """What is asked, and what its cells hold."""

    ids: Sequence[str]
    unit: str  # what progress counts
    fields: Mapping[str, pl.DataType]
    ask: Callable[[str], Request | str]  # an id's request, or why there can be none
    read: Callable[[str, Mapping[str, Any]], dict[str, Any]]  # the fields in an id's reply
    nothing: str  # what an error says when not one id has a cell


def settle(
    questions: Questions,
    endpoint: Endpoint,
    work: Path,
    log: Log,
    earlier: Path | None = None,
) -> pl.DataFrame:
    """One row an id, in their order: id, the fields, status, reason, and `again`: whether it failed
    by the server's fault, so that the next run asks again. `work` is the folder of the finished
    cells; `earlier` the file of an attempt before, whose answers are taken over. Raises UserError
    when no id has one."""
    ids = questions.ids
    column = Column(work, questions.fields)
    missing = column.missing(ids)
    if earlier is not None and missing:
        found = pl.read_parquet(earlier, glob=False).filter(
            pl.col("status") == OK, pl.col("id").is_in(missing)
        )
        column.append(found.select("id", *questions.fields))
        missing = column.missing(ids)
    reasons: dict[str, str] = {}
    again: set[str] = set()

    def requests() -> Iterator[Request]:
        for name in missing:
            request = questions.ask(name)
            if isinstance(request, str):
                reasons[name] = request
            else:
                yield request

    done = len(ids) - len(missing)
    log.progress(done, len(ids), questions.unit)
    with column.filling() as keep:
        for reply in endpoint.stream(requests()) if missing else ():
            cell = _cell(reply, questions)
            if isinstance(cell, str):
                reasons[reply.key] = cell
                again |= {reply.key} if reply.fault == "server" else set()
            else:
                keep(cell)
            done += 1
            log.progress(done, len(ids), questions.unit)
    lost = pl.col("id").replace_strict(reasons, default=None, return_dtype=pl.String)
    cells = pl.DataFrame({"id": ids}).join(
        column.read(), on="id", how="left", maintain_order="left"
    )
    rows = cells.with_columns(
        pl.col("status").fill_null(FAILED),
        pl.coalesce("reason", lost),
        again=pl.col("id").is_in(list(again)),
    )
    if (rows["status"] == FAILED).all():
        raise UserError(f"{questions.nothing}; the first reason: {rows['reason'][0]}")
    return rows


def _cell(reply: Reply, questions: Questions) -> dict[str, Any] | str:
    """A cell of the column, or why there is none."""
    if reply.body is None:
        return reply.error or "no reply"
    try:
        return {"id": reply.key, **questions.read(reply.key, reply.body)}
    except (KeyError, IndexError, TypeError, ValueError) as error:
        return f"malformed reply: {type(error).__name__} {error}"


def tally(rows: pl.DataFrame) -> Counts:
    """How many rows there are, how many failed, how many of these the next run asks again, and how
    often for each reason."""
    reasons = rows.filter(pl.col("status") == FAILED)["reason"].value_counts().sort("reason")
    return {
        "rows": rows.height,
        "failed": int(reasons["count"].sum()),
        "again": int(rows["again"].sum()) if "again" in rows.columns else 0,
        "failed_reasons": dict(reasons.iter_rows()),
    }
