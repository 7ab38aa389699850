"""How a published row maps to ours, by columns: the names each of our columns goes by, the two
published forms, and what an export puts back.

Nothing of a published row is lost in our form: other columns are kept under their own names, an
unknown label stands in `failed_tags`, a conversation that is not just the row's instruction and
response stands in `messages` or `source_conversations`, and `source_columns` remembers names and
order, so that an export writes what was read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import polars as pl

from core.columns import FAILED, MESSAGES, OK
from core.errors import UserError
from core.store import digest
from synth.published.files import Part
from synth.published.forms import (
    NAMES,
    PLAIN_TURNS,
    TAG_LABELS,
    conversation_of,
    is_ours,
    turn_of,
)

_ODD = "_odd_"
"""Before the name of a column that holds what was not of that column's kind, until it is told."""
ROLES = {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
}
_CONVERSATIONS = ("conversations", "messages", "conversation")
_TROUBLE = pl.Struct({"column": pl.String, "reason": pl.String, "value": pl.String})
_OWN_TYPES: dict[str, Any] = {
    "messages": MESSAGES,
    "source_conversations": PLAIN_TURNS,
    "reason": pl.String,
    "failed_tags": pl.List(_TROUBLE),
    "source_columns": pl.String,
}
OWN_COLUMNS = (
    "messages",
    "source_conversations",
    "source_columns",
    "status",
    "reason",
    "failed_tags",
)


def to_ours(part: Part, seen: set[int]) -> pl.DataFrame:
    """Rows of a published, ShareGPT or messages file in our form. `seen`: hashes of the ids read
    before, added to."""
    frame = part.frame
    if is_ours(frame):
        seen.update(frame["id"].hash().to_list())
        # JSON does not say what a null or an empty list is of.
        return frame.with_columns(
            [pl.col(n).cast(t) for n, t in _OWN_TYPES.items() if n in frame.columns]
        )
    found = {
        name: [a for a in aliases if a in frame.columns] for name, (_, aliases) in NAMES.items()
    }
    talk, plain = _conversation(frame)
    if not found["instruction"] and talk is None:
        wanted = ", ".join(sorted({*NAMES["instruction"][1], *_CONVERSATIONS}))
        raise UserError(
            f"{part.name}: no instruction is to be found in the columns {', '.join(frame.columns)}; one of {wanted} is needed."
        )
    if {"input", "instruction"} <= set(frame.columns):
        raise UserError(
            f"{part.name} holds both `instruction` and `input`, as Alpaca files do; join the two to one `instruction` column first."
        )
    taken = {held[0]: name for name, held in found.items() if held}
    if talk is not None and plain:
        taken[talk] = "messages"
    reserved = {
        *(n for n, held in found.items() if held),
        "instruction",
        "response",
        "id",
        *OWN_COLUMNS,
    }
    names = {c: taken.get(c) or (f"source_{c}" if c in reserved else c) for c in frame.columns}
    extra = [pl.col(c).alias(n) for c, n in names.items() if c not in taken]
    cast = [e for name, held in found.items() if held for e in _cast(name, held, frame.schema)]
    ours = frame.select(*cast, *extra, *([pl.col(talk).alias("_talk")] if talk else []))
    ours = (
        _told(ours, plain)
        if talk
        else _texts(ours, talk=False).with_columns(pl.lit(None, MESSAGES).alias("messages"))
    )
    ours = ours.with_columns(
        pl.lit(json.dumps(list(names.items())), pl.String).alias("source_columns")
    )
    ours = _labels(_identified(ours))
    if (
        "min_similar_id" in ours.columns and "repeat_count" in ours.columns
    ):  # ours is always filled; published sets write null for no repeat
        lone = pl.col("min_similar_id").is_null() & (pl.col("repeat_count") == 0)
        ours = ours.with_columns(
            pl.when(lone).then("id").otherwise("min_similar_id").alias("min_similar_id")
        )
    return _status(ours, part, seen)


def _cast(name: str, held: list[str], schema: Mapping[str, Any]) -> list[pl.Expr]:
    """The first of a column's published names that holds a value, in its type; numbers keep theirs.

    What is of another kind is null there, and stands as text in a column of its own until it is
    some row's failed tag.
    """
    value = pl.coalesce(held) if len(held) > 1 else pl.col(held[0])
    kind = NAMES[name][0]
    if kind is None or not any(_foreign(schema[h], kind) for h in held):
        return [(value if kind is None else value.cast(kind, strict=True)).alias(name)]
    nested = any(schema[h].is_nested() for h in held)
    number = pl.lit(None, kind) if nested else value.cast(kind, strict=False)
    text = (
        pl.when(value.is_not_null()).then(pl.lit("a list or object"))
        if nested
        else value.cast(pl.String)
    )
    return [number.alias(name), pl.when(number.is_null()).then(text).alias(f"{_ODD}{name}")]


def _foreign(given: Any, kind: Any) -> bool:
    """Whether values of the type `given` may not be had as `kind`: texts that should be numbers,
    lists that should be texts."""
    whole = kind == pl.Int64 and given.is_float()
    return (
        whole
        or given.is_nested() != (kind == pl.List(pl.String))
        or (given == pl.String and kind in (pl.Float64, pl.Int64))
    )


def _conversation(frame: pl.DataFrame) -> tuple[str | None, bool]:
    """The column that holds whole conversations, and whether it is the plain from/value or
    role/content form."""
    for name in _CONVERSATIONS:
        kind = frame.schema.get(name)
        if isinstance(kind, pl.List) and isinstance(kind.inner, pl.Struct):
            fields = {f.name for f in kind.inner.fields}
            if fields & {"from", "role"} and fields & {"value", "content"}:
                return name, fields in ({"from", "value"}, {"role", "content"})
    return None, False


def _told(ours: pl.DataFrame, plain: bool) -> pl.DataFrame:
    """Texts and conversations of rows with a conversation; those that just repeat instruction and
    response, nearly all, are told by a look."""
    usual = pl.lit(False)
    if (
        plain
        and ours.schema["_talk"] == PLAIN_TURNS
        and {"instruction", "response"} <= set(ours.columns)
    ):
        said = [
            (turn_of(pl.col("_talk"), at, "from") == who)
            & (turn_of(pl.col("_talk"), at, "value") == pl.col(name))
            for at, (who, name) in enumerate((("human", "instruction"), ("gpt", "response")))
        ]
        usual = ((pl.col("_talk").list.len() == 2) & said[0] & said[1]).fill_null(False)
    ours = ours.with_columns(usual.alias("_usual")).with_row_index("_row")
    rest = ours.filter(~pl.col("_usual"))
    rest = _conversations(_texts(rest, talk=True), plain).drop("_messages")
    told = (
        pl.concat([ours.filter("_usual"), rest], how="diagonal") if len(rest) < len(ours) else rest
    )
    return told.sort("_row").drop("_row", "_usual", "_talk")


def _texts(ours: pl.DataFrame, talk: bool) -> pl.DataFrame:
    """Instruction and response, taken from the conversation where they have no column or no text;
    `_messages` is that conversation as ours."""
    if talk:
        kind = ours.schema["_talk"]
        assert isinstance(kind, pl.List) and isinstance(kind.inner, pl.Struct)
        fields = [f.name for f in kind.inner.fields]
        role = pl.coalesce(
            [pl.element().struct.field(f).cast(pl.String) for f in ("from", "role") if f in fields]
        )
        text = pl.coalesce(
            [
                pl.element().struct.field(f).cast(pl.String)
                for f in ("value", "content")
                if f in fields
            ]
        )
        turns = pl.col("_talk").list.eval(
            pl.struct(role.replace(ROLES).alias("role"), text.alias("content"))
        )
        ours = ours.with_columns(turns.cast(MESSAGES).alias("_messages"))
    for name, who in (("instruction", "user"), ("response", "assistant")):
        own = pl.col(name) if name in ours.columns else pl.lit(None, pl.String)
        if talk and (name not in ours.columns or (ours[name].fill_null("") == "").any()):
            said = (
                pl.element()
                .filter(pl.element().struct.field("role") == who)
                .struct.field("content")
            )
            own = (
                pl.when(own.fill_null("") != "")
                .then(own)
                .otherwise(pl.coalesce(pl.col("_messages").list.eval(said).list.first(), own))
            )
        ours = ours.with_columns(own.alias(name))
    return ours


def _conversations(ours: pl.DataFrame, plain: bool) -> pl.DataFrame:
    """`messages` where a conversation is more than instruction and response; `source_conversations`
    where an export would write another one."""
    turns = pl.col("_messages")
    two = (
        (turns.list.len() == 2)
        & (turn_of(turns, 0, "role") == "user")
        & (turn_of(turns, 1, "role") == "assistant")
    )
    whole = (turns.list.len() > 0) & ~two
    ours = ours.with_columns(pl.when(whole).then(turns).otherwise(None).alias("messages"))
    if plain and ours.schema["_talk"] == PLAIN_TURNS:
        made = conversation_of(ours, "from", "value")
        # An empty list stands for a row that had no conversation.
        ours = ours.with_columns(
            pl.when(pl.col("_talk").ne_missing(made))
            .then(pl.col("_talk").fill_null([]))
            .alias("source_conversations")
        )
    return ours


def _identified(ours: pl.DataFrame) -> pl.DataFrame:
    """A row without an id gets one from its content."""
    if "id" not in ours.columns:
        ours = ours.with_columns(pl.lit(None, pl.String).alias("id"))
    missing = (ours["id"].fill_null("") == "").to_list()
    if not any(missing):
        return ours
    rows = zip(
        ours["id"], ours["instruction"], ours["response"], ours["messages"], missing, strict=True
    )
    ids = [
        digest([i, r] if m is None else m.to_list())[:20] if gone else known
        for known, i, r, m, gone in rows
    ]
    return ours.with_columns(pl.Series("id", ids, dtype=pl.String))


def _labels(ours: pl.DataFrame) -> pl.DataFrame:
    """A label that is no label is that row's failed tag, null in its column and kept in
    `failed_tags`."""
    trouble, cleaned = [], []
    for name, labels in TAG_LABELS.items():
        if name in ours.columns:
            bad = ~pl.col(name).is_in(labels)
            reason = pl.format("unknown label '{}'", pl.col(name).str.slice(0, 40))
            item = pl.struct(
                pl.lit(name).alias("column"), reason.alias("reason"), pl.col(name).alias("value")
            )
            trouble.append(pl.when(bad).then(item))
            cleaned.append(pl.when(~bad).then(name).alias(name))
    odd = [c for c in ours.columns if c.startswith(_ODD)]
    for column in odd:
        name = column.removeprefix(_ODD)
        reason = pl.format("'{}' is not of the column's kind", pl.col(column).str.slice(0, 40))
        item = pl.struct(
            pl.lit(name).alias("column"), reason.alias("reason"), pl.col(column).alias("value")
        )
        trouble.append(pl.when(pl.col(column).is_not_null()).then(item))
    failed = pl.concat_list(trouble).list.drop_nulls() if trouble else pl.lit([], pl.List(_TROUBLE))
    return (
        ours.with_columns(failed.cast(pl.List(_TROUBLE)).alias("failed_tags"))
        .with_columns(cleaned)
        .drop(odd)
    )


def _status(ours: pl.DataFrame, part: Part, seen: set[int]) -> pl.DataFrame:
    """Which rows are failed rows, and why; every id is made the row's own."""
    hashes = ours["id"].hash()
    again = ~hashes.is_first_distinct() | pl.Series(
        [h in seen for h in hashes.to_list()], dtype=pl.Boolean
    )
    seen.update(hashes.to_list())
    place = pl.format("{} {} {}", pl.lit(part.name), pl.lit(part.unit), pl.lit(part.places))
    at = pl.format(" ({})", place)
    reasons = [pl.when(pl.lit(again)).then(pl.format("the id {} occurs twice{}", "id", at))]
    for name in ("instruction", "response"):
        reasons.append(
            pl.when(pl.col(name).fill_null("").str.strip_chars() == "").then(
                pl.format(f"no {name}{{}}", at)
            )
        )
    role, text = pl.element().struct.field("role"), pl.element().struct.field("content")
    strange = (
        pl.col("messages")
        .list.eval(role.filter(~role.is_in(["system", "user", "assistant"])))
        .list.first()
    )
    silent = pl.col("messages").list.eval(text.fill_null("").str.strip_chars() == "").list.any()
    reasons.append(
        pl.when(strange.is_not_null()).then(pl.format("a turn of role '{}'{}", strange, at))
    )
    reasons.append(pl.when(silent.fill_null(False)).then(pl.format("a turn without text{}", at)))
    ours = ours.with_columns(pl.coalesce(reasons).cast(pl.String).alias("reason"))
    ours = ours.with_columns(
        pl.when(pl.lit(again)).then(pl.format("{}#{}", "id", place)).otherwise("id").alias("id"),
        pl.when(pl.col("reason").is_null())
        .then(pl.lit(OK))
        .otherwise(pl.lit(FAILED))
        .alias("status"),
    )
    first = [n for n in NAMES if n in ours.columns]
    return ours.select(
        *first, pl.exclude(*first, *OWN_COLUMNS), *[n for n in OWN_COLUMNS if n in ours.columns]
    )


# -- out -------------------------------------------------------------------------------------------
