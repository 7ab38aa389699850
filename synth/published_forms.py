"""How a published row maps to ours, by columns: the names each of our columns goes by, the two published forms, and what an export puts back.

Nothing of a published row is lost in our form: other columns are kept under their own names, an unknown label stands in `failed_tags`, a
conversation that is not just the row's instruction and response stands in `messages` or `source_conversations`, and `source_columns` remembers
names and order, so that an export writes what was read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Literal

import polars as pl

from core.columns import FAILED, OK
from core.errors import UserError
from core.store import digest
from synth.measures import CATEGORY, DIFFICULTY, QUALITY
from synth.published_sampling import beyond, sampling
from synth.sources import Part

Form = Literal["magpie", "23", "25", "sharegpt", "messages"]
FORMS: tuple[Form, ...] = ("magpie", "23", "25", "sharegpt", "messages")

# Our name -> (type, the names it goes by in published files). None: kept as it is.
NAMES: dict[str, tuple[Any, tuple[str, ...]]] = {
    "id": (pl.String, ("uuid", "conversation_id", "id")),
    "model": (pl.String, ("model",)),
    "gen_input_config": (None, ("gen_input_config", "gen_input_configs")),
    "instruction": (pl.String, ("input", "instruction", "prompt")),
    "response": (pl.String, ("output", "response")),
    "task_category": (pl.String, ("task_category",)),
    "other_task_category": (pl.List(pl.String), ("other_task_category",)),
    "task_category_generator": (pl.String, ("task_category_generator",)),
    "difficulty": (pl.String, ("difficulty",)),
    "intent": (pl.String, ("intent",)),
    "knowledge": (pl.String, ("knowledge",)),
    "difficulty_generator": (pl.String, ("difficulty_generator",)),
    "input_quality": (pl.String, ("input_quality",)),
    "quality_explanation": (pl.String, ("quality_explanation",)),
    "quality_generator": (pl.String, ("quality_generator",)),
    "llama_guard_2": (pl.String, ("llama_guard_2",)),
    "reward_model": (pl.String, ("reward_model",)),
    "instruct_reward": (pl.Float64, ("instruct_reward",)),
    "base_output": (pl.String, ("base_output",)),
    "base_reward": (pl.Float64, ("base_reward",)),
    "reward_difference": (pl.Float64, ("reward_difference",)),
    "min_neighbor_distance": (pl.Float64, ("min_neighbor_distance",)),
    "repeat_count": (pl.Int64, ("repeat_count",)),
    "min_similar_id": (pl.String, ("min_similar_uuid", "min_similar_conversation_id", "min_similar_id")),
    "language": (pl.String, ("language",)),
    "instruction_length": (pl.Int64, ("input_length", "instruction_length")),
    "response_length": (pl.Int64, ("output_length", "response_length")),
}
_ODD = "_odd_"
"""Before the name of a column that holds what was not of that column's kind, until it is told."""
_LABELS = {"input_quality": QUALITY, "difficulty": DIFFICULTY, "task_category": CATEGORY}
TAGS = (*_LABELS, "llama_guard_2", "instruct_reward", "base_reward", "reward_difference", "min_neighbor_distance", "language")
"""Columns in which a null is that row's failed tag."""

ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "bing": "assistant", "bard": "assistant"}
_SPEAKERS = {"user": "human", "assistant": "gpt"}
_CONVERSATIONS = ("conversations", "messages", "conversation")
_TURN = pl.Struct({"from": pl.String, "value": pl.String})
_PLAIN = pl.List(_TURN)
MESSAGES = pl.List(pl.Struct({"role": pl.String, "content": pl.String}))
_TROUBLE = pl.Struct({"column": pl.String, "reason": pl.String, "value": pl.String})
_OWN_TYPES: dict[str, Any] = {
    "messages": MESSAGES, "source_conversations": _PLAIN, "reason": pl.String, "failed_tags": pl.List(_TROUBLE), "source_columns": pl.String,
}  # fmt: skip
_OWN = ("messages", "source_conversations", "source_columns", "status", "reason", "failed_tags")


def is_ours(frame: pl.DataFrame) -> bool:
    """Whether a frame is in our form already."""
    return {"id", "instruction", "status", "reason", "failed_tags"} <= set(frame.columns)


def to_ours(part: Part, seen: set[int]) -> pl.DataFrame:
    """Rows of a published, ShareGPT or messages file in our form. `seen`: hashes of the ids read before, added to."""
    frame = part.frame
    if is_ours(frame):
        seen.update(frame["id"].hash().to_list())
        # JSON does not say what a null or an empty list is of.
        return frame.with_columns([pl.col(n).cast(t) for n, t in _OWN_TYPES.items() if n in frame.columns])
    found = {name: [a for a in aliases if a in frame.columns] for name, (_, aliases) in NAMES.items()}
    talk, plain = _conversation(frame)
    if not found["instruction"] and talk is None:
        wanted = ", ".join(sorted({*NAMES["instruction"][1], *_CONVERSATIONS}))
        raise UserError(f"{part.name}: no instruction is to be found in the columns {', '.join(frame.columns)}; one of {wanted} is needed.")
    if {"input", "instruction"} <= set(frame.columns):
        raise UserError(f"{part.name} holds both `instruction` and `input`, as Alpaca files do; join the two to one `instruction` column first.")
    taken = {held[0]: name for name, held in found.items() if held}
    if talk is not None and plain:
        taken[talk] = "messages"
    reserved = {*(n for n, held in found.items() if held), "instruction", "response", "id", *_OWN}
    names = {c: taken.get(c) or (f"source_{c}" if c in reserved else c) for c in frame.columns}
    extra = [pl.col(c).alias(n) for c, n in names.items() if c not in taken]
    cast = [e for name, held in found.items() if held for e in _cast(name, held, frame.schema)]
    ours = frame.select(*cast, *extra, *([pl.col(talk).alias("_talk")] if talk else []))
    ours = _told(ours, plain) if talk else _texts(ours, talk=False).with_columns(pl.lit(None, MESSAGES).alias("messages"))
    ours = ours.with_columns(pl.lit(json.dumps(list(names.items())), pl.String).alias("source_columns"))
    ours = _labels(_identified(ours))
    if "min_similar_id" in ours.columns and "repeat_count" in ours.columns:  # ours is always filled; published sets write null for no repeat
        lone = pl.col("min_similar_id").is_null() & (pl.col("repeat_count") == 0)
        ours = ours.with_columns(pl.when(lone).then("id").otherwise("min_similar_id").alias("min_similar_id"))
    return _status(ours, part, seen)


def _cast(name: str, held: list[str], schema: Mapping[str, Any]) -> list[pl.Expr]:
    """The first of a column's published names that holds a value, in its type; numbers keep theirs.

    What is of another kind is null there, and stands as text in a column of its own until it is some row's failed tag.
    """
    value = pl.coalesce(held) if len(held) > 1 else pl.col(held[0])
    kind = NAMES[name][0]
    if kind is None or not any(_foreign(schema[h], kind) for h in held):
        return [(value if kind is None else value.cast(kind, strict=True)).alias(name)]
    nested = any(schema[h].is_nested() for h in held)
    number = pl.lit(None, kind) if nested else value.cast(kind, strict=False)
    text = pl.when(value.is_not_null()).then(pl.lit("a list or object")) if nested else value.cast(pl.String)
    return [number.alias(name), pl.when(number.is_null()).then(text).alias(f"{_ODD}{name}")]


def _foreign(given: Any, kind: Any) -> bool:
    """Whether values of the type `given` may not be had as `kind`: texts that should be numbers, lists that should be texts."""
    whole = kind == pl.Int64 and given.is_float()
    return whole or given.is_nested() != (kind == pl.List(pl.String)) or (given == pl.String and kind in (pl.Float64, pl.Int64))


def _conversation(frame: pl.DataFrame) -> tuple[str | None, bool]:
    """The column that holds whole conversations, and whether it is the plain from/value or role/content form."""
    for name in _CONVERSATIONS:
        kind = frame.schema.get(name)
        if isinstance(kind, pl.List) and isinstance(kind.inner, pl.Struct):
            fields = {f.name for f in kind.inner.fields}
            if fields & {"from", "role"} and fields & {"value", "content"}:
                return name, fields in ({"from", "value"}, {"role", "content"})
    return None, False


def _told(ours: pl.DataFrame, plain: bool) -> pl.DataFrame:
    """Texts and conversations of rows with a conversation; those that just repeat instruction and response, nearly all, are told by a look."""
    usual = pl.lit(False)
    if plain and ours.schema["_talk"] == _PLAIN and {"instruction", "response"} <= set(ours.columns):
        said = [(_turn(pl.col("_talk"), at, "from") == who) & (_turn(pl.col("_talk"), at, "value") == pl.col(name))
                for at, (who, name) in enumerate((("human", "instruction"), ("gpt", "response")))]  # fmt: skip
        usual = ((pl.col("_talk").list.len() == 2) & said[0] & said[1]).fill_null(False)
    ours = ours.with_columns(usual.alias("_usual")).with_row_index("_row")
    rest = ours.filter(~pl.col("_usual"))
    rest = _conversations(_texts(rest, talk=True), plain).drop("_messages")
    told = pl.concat([ours.filter("_usual"), rest], how="diagonal") if len(rest) < len(ours) else rest
    return told.sort("_row").drop("_row", "_usual", "_talk")


def _texts(ours: pl.DataFrame, talk: bool) -> pl.DataFrame:
    """Instruction and response, taken from the conversation where they have no column or no text; `_messages` is that conversation as ours."""
    if talk:
        kind = ours.schema["_talk"]
        assert isinstance(kind, pl.List) and isinstance(kind.inner, pl.Struct)
        fields = [f.name for f in kind.inner.fields]
        role = pl.coalesce([pl.element().struct.field(f).cast(pl.String) for f in ("from", "role") if f in fields])
        text = pl.coalesce([pl.element().struct.field(f).cast(pl.String) for f in ("value", "content") if f in fields])
        turns = pl.col("_talk").list.eval(pl.struct(role.replace(ROLES).alias("role"), text.alias("content")))
        ours = ours.with_columns(turns.cast(MESSAGES).alias("_messages"))
    for name, who in (("instruction", "user"), ("response", "assistant")):
        own = pl.col(name) if name in ours.columns else pl.lit(None, pl.String)
        if talk and (name not in ours.columns or (ours[name].fill_null("") == "").any()):
            said = pl.element().filter(pl.element().struct.field("role") == who).struct.field("content")
            own = pl.when(own.fill_null("") != "").then(own).otherwise(pl.coalesce(pl.col("_messages").list.eval(said).list.first(), own))
        ours = ours.with_columns(own.alias(name))
    return ours


def _conversations(ours: pl.DataFrame, plain: bool) -> pl.DataFrame:
    """`messages` where a conversation is more than instruction and response; `source_conversations` where an export would write another one."""
    turns = pl.col("_messages")
    two = (turns.list.len() == 2) & (_turn(turns, 0, "role") == "user") & (_turn(turns, 1, "role") == "assistant")
    whole = (turns.list.len() > 0) & ~two
    ours = ours.with_columns(pl.when(whole).then(turns).otherwise(None).alias("messages"))
    if plain and ours.schema["_talk"] == _PLAIN:
        made = _spoken(ours, "from", "value")
        # An empty list stands for a row that had no conversation.
        ours = ours.with_columns(pl.when(pl.col("_talk").ne_missing(made)).then(pl.col("_talk").fill_null([])).alias("source_conversations"))
    return ours


def _turn(turns: pl.Expr, at: int, field: str) -> pl.Expr:
    return turns.list.get(at, null_on_oob=True).struct.field(field)


def _spoken(ours: pl.DataFrame, who: str, what: str) -> pl.Expr:
    """The conversation of our rows as from/value or role/content."""
    names: Mapping[str, str] = _SPEAKERS if who == "from" else {}
    role, content = pl.element().struct.field("role").replace(names), pl.element().struct.field("content")
    whole = pl.col("messages").list.eval(pl.struct(role.alias(who), content.alias(what)))
    sides = (("user", "instruction"), ("assistant", "response"))
    pair = [pl.struct(pl.lit(names.get(role, role)).alias(who), pl.col(name).alias(what)) for role, name in sides]
    if ours["messages"].null_count() == len(ours):
        return pl.concat_list(pair)
    return pl.when(pl.col("messages").is_not_null()).then(whole).otherwise(pl.concat_list(pair))


def _identified(ours: pl.DataFrame) -> pl.DataFrame:
    """A row without an id gets one from its content."""
    if "id" not in ours.columns:
        ours = ours.with_columns(pl.lit(None, pl.String).alias("id"))
    missing = (ours["id"].fill_null("") == "").to_list()
    if not any(missing):
        return ours
    rows = zip(ours["id"], ours["instruction"], ours["response"], ours["messages"], missing, strict=True)
    ids = [digest([i, r] if m is None else m.to_list())[:20] if gone else known for known, i, r, m, gone in rows]
    return ours.with_columns(pl.Series("id", ids, dtype=pl.String))


def _labels(ours: pl.DataFrame) -> pl.DataFrame:
    """A label that is no label is that row's failed tag, null in its column and kept in `failed_tags`."""
    trouble, cleaned = [], []
    for name, labels in _LABELS.items():
        if name in ours.columns:
            bad = ~pl.col(name).is_in(labels)
            reason = pl.format("unknown label '{}'", pl.col(name).str.slice(0, 40))
            item = pl.struct(pl.lit(name).alias("column"), reason.alias("reason"), pl.col(name).alias("value"))
            trouble.append(pl.when(bad).then(item))
            cleaned.append(pl.when(~bad).then(name).alias(name))
    odd = [c for c in ours.columns if c.startswith(_ODD)]
    for column in odd:
        name = column.removeprefix(_ODD)
        reason = pl.format("'{}' is not of the column's kind", pl.col(column).str.slice(0, 40))
        item = pl.struct(pl.lit(name).alias("column"), reason.alias("reason"), pl.col(column).alias("value"))
        trouble.append(pl.when(pl.col(column).is_not_null()).then(item))
    failed = pl.concat_list(trouble).list.drop_nulls() if trouble else pl.lit([], pl.List(_TROUBLE))
    return ours.with_columns(failed.cast(pl.List(_TROUBLE)).alias("failed_tags")).with_columns(cleaned).drop(odd)


def _status(ours: pl.DataFrame, part: Part, seen: set[int]) -> pl.DataFrame:
    """Which rows are failed rows, and why; every id is made the row's own."""
    hashes = ours["id"].hash()
    again = ~hashes.is_first_distinct() | pl.Series([h in seen for h in hashes.to_list()], dtype=pl.Boolean)
    seen.update(hashes.to_list())
    place = pl.format("{} {} {}", pl.lit(part.name), pl.lit(part.unit), pl.lit(part.places))
    at = pl.format(" ({})", place)
    reasons = [pl.when(pl.lit(again)).then(pl.format("the id {} occurs twice{}", "id", at))]
    for name in ("instruction", "response"):
        reasons.append(pl.when(pl.col(name).fill_null("").str.strip_chars() == "").then(pl.format(f"no {name}{{}}", at)))
    role, text = pl.element().struct.field("role"), pl.element().struct.field("content")
    strange = pl.col("messages").list.eval(role.filter(~role.is_in(["system", "user", "assistant"]))).list.first()
    silent = pl.col("messages").list.eval(text.fill_null("").str.strip_chars() == "").list.any()
    reasons.append(pl.when(strange.is_not_null()).then(pl.format("a turn of role '{}'{}", strange, at)))
    reasons.append(pl.when(silent.fill_null(False)).then(pl.format("a turn without text{}", at)))
    ours = ours.with_columns(pl.coalesce(reasons).cast(pl.String).alias("reason"))
    ours = ours.with_columns(
        pl.when(pl.lit(again)).then(pl.format("{}#{}", "id", place)).otherwise("id").alias("id"),
        pl.when(pl.col("reason").is_null()).then(pl.lit(OK)).otherwise(pl.lit(FAILED)).alias("status"),
    )
    first = [n for n in NAMES if n in ours.columns]
    return ours.select(*first, pl.exclude(*first, *_OWN), *[n for n in _OWN if n in ours.columns])


# -- out --------------------------------------------------------------------------------------------------------------------------------------

_FORMS: dict[str, tuple[str, ...]] = {
    "23": (
        "id", "model", "gen_input_config", "instruction", "response", "messages", "task_category", "difficulty", "intent", "knowledge",
        "input_quality", "quality_explanation", "llama_guard_2", "reward_model", "instruct_reward", "base_output", "base_reward",
        "reward_difference", "min_neighbor_distance", "repeat_count", "min_similar_id", "instruction_length", "response_length",
    ),
    "25": (
        "id", "model", "gen_input_config", "instruction", "response", "messages", "task_category", "other_task_category",
        "task_category_generator", "difficulty", "intent", "knowledge", "difficulty_generator", "input_quality", "quality_explanation",
        "quality_generator", "llama_guard_2", "reward_model", "instruct_reward", "min_neighbor_distance", "repeat_count", "min_similar_id",
        "instruction_length", "response_length", "language",
    ),
}  # fmt: skip
_OLD_NAMES = {"gen_input_config": "gen_input_config", "instruction": "input", "response": "output", "instruction_length": "input_length",
              "response_length": "output_length", "id": "uuid", "messages": "conversations", "min_similar_id": "min_similar_uuid"}  # fmt: skip
_LATER_NAMES = {**_OLD_NAMES, "gen_input_config": "gen_input_configs", "instruction": "instruction", "response": "response",
                "instruction_length": "instruction_length", "response_length": "response_length"}  # fmt: skip


def to_form(frame: pl.DataFrame, form: Form) -> pl.DataFrame:
    """Our rows in a published form, failed rows left out ("magpie": as they are).

    "23" and "25": the form's columns as the cards name, order and type them (null where nothing was measured), then every other column there is;
    rows that were read from a file of the same form keep that file's names and order. "sharegpt" and "messages": the id and the conversation.
    """
    if form == "magpie":
        return frame
    kept = frame.filter(pl.col("status") != FAILED) if "status" in frame.columns else frame
    if "messages" not in kept.columns:
        kept = kept.with_columns(pl.lit(None, MESSAGES).alias("messages"))
    if form == "messages":
        return kept.select("id", _spoken(kept, "role", "content").alias("messages"))
    turns = _spoken(kept, "from", "value").cast(_PLAIN)
    if kept.schema.get("source_conversations") == _PLAIN:
        own = pl.col("source_conversations")
        turns = pl.when(own.is_null()).then(turns).when(own.list.len() > 0).then(own)
    if form == "sharegpt":
        return kept.select(pl.col("id").alias("conversation_id"), turns.alias("conversations"))
    source = _source(kept, form)
    names = {**(_OLD_NAMES if form == "23" else _LATER_NAMES), **{ours: name for name, ours in source.items() if ours in _FORMS[form]}}
    columns: dict[str, pl.Expr] = {names.get(n, n): _published(kept, n, form) for n in _FORMS[form]}
    columns[names["messages"]] = turns
    own_names = {ours: name for name, ours in source.items()}
    others = [c for c in kept.columns if c not in _FORMS[form] and c not in _OWN]
    columns |= {_free(own_names.get(c, c), columns): pl.col(c) for c in others}
    columns |= {_free(n, columns): value for n, value in (beyond(kept) if form == "23" and not source else {}).items()}
    made = kept.select([value.alias(name) for name, value in columns.items()])
    place = {name: at for at, name in enumerate(source)}
    ordered: list[str] = sorted(made.columns, key=lambda c: place.get(c, len(place)))
    return made.select(ordered)


def _source(frame: pl.DataFrame, form: Form) -> dict[str, str]:
    """Published name -> our name of the one file form that all rows were read from, where that is `form`; else nothing."""
    known = frame["source_columns"].unique().to_list() if "source_columns" in frame.columns else []
    if len(known) != 1 or known[0] is None:
        return {}
    source: dict[str, str] = dict(json.loads(known[0]))
    return source if set(_FORMS[form]) - {"gen_input_config"} <= set(source.values()) else {}


def _free(name: str, used: Mapping[str, Any]) -> str:
    return f"source_{name}" if name in used else name


def _published(frame: pl.DataFrame, name: str, form: Form) -> pl.Expr:
    """One column of a published form, in the type of the cards."""
    if name in ("instruction_length", "response_length") and name not in frame.columns:
        return pl.col(name.removesuffix("_length")).str.len_chars().cast(pl.Int64)
    if name == "gen_input_config":
        return sampling(frame, form, bool(_source(frame, form)))
    kind = NAMES[name][0] if name in NAMES else _PLAIN
    if name not in frame.columns:
        return pl.lit(None, kind)
    value = pl.col(name)
    if name in _LABELS and "failed_tags" in frame.columns and frame["failed_tags"].list.len().sum():
        item = pl.element().filter(pl.element().struct.field("column") == name).struct.field("value")
        value = pl.coalesce(value.cast(pl.String), pl.col("failed_tags").list.eval(item).list.first())
    if name == "min_similar_id" and "repeat_count" in frame.columns:
        value = pl.when(~((pl.col("repeat_count") == 0) & (value == pl.col("id"))).fill_null(False)).then(value)
    return value.cast(kind)
