"""How a published row maps to ours, by columns: the names each of our columns goes by, the two
published forms, and what an export puts back.

Nothing of a published row is lost in our form: other columns are kept under their own names, an
unknown label stands in `failed_tags`, a conversation that is not just the row's instruction and
response stands in `messages` or `source_conversations`, and `source_columns` remembers names and
order, so that an export writes what was read.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import polars as pl

from core.columns import MESSAGES
from core.errors import UserError
from core.store import digest
from synth.config.rows import Reading
from synth.measures import DECLARED
from synth.published.cells.derived import MIN_SIMILAR_ID
from synth.published.cells.failed import (
    GOOD,
    NESTED,
    ODD,
    as_count,
    as_number,
    damaged,
    finite,
    labels,
    no_texts,
    of_ours,
    own_no_texts,
    with_status,
    worded,
)
from synth.published.cells.texts import as_texts
from synth.published.files import AS_IT_IS, Notes, Part
from synth.published.forms import (
    PLAIN_TURNS,
    PUBLISHED,
    TROUBLE,
    conversation_of,
    is_ours,
    names_of,
    of_turn,
    or_null,
    turn_of,
)
from synth.published.layouts import JOINED, Layout, laid_out, recognised
from synth.published.turns import ANSWERS, conversations, fields_of, is_plain
from synth.tags.language_codes import code_of

VERSION = 2
"""Part of the key of imported rows."""

_DIGESTS = ("prompt_id", "conversation_hash")
"""Ids that follow from a content: rows of the same content share them."""
_LED = "conversations began with the assistant: what it said before the user is left out"
_OWN_TYPES: PolarsTypes = {
    "id": pl.String,
    "instruction": pl.String,
    "response": pl.String,
    "status": pl.String,
    "messages": MESSAGES,
    "source_conversations": PLAIN_TURNS,
    "reason": pl.String,
    "failed_tags": TROUBLE,
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

if TYPE_CHECKING:
    from synth.measures import PolarsType, PolarsTypes


@dataclass
class Seen:
    """The ids that were read before: their hashes, and how often those came that a content or a
    counter gave."""

    hashes: set[int] = field(default_factory=set)
    again: Counter[str] = field(default_factory=Counter)


def to_ours(
    part: Part,
    seen: Seen,
    how: Reading = AS_IT_IS,
    *,
    prompts: bool | None = False,
    notes: Notes | None = None,
) -> pl.DataFrame:
    """Rows of a published, ShareGPT or messages file in our form. `seen`: what was read before,
    added to; the others as in `rows.read`."""
    frame = part.frame
    if is_ours(frame.columns):
        return damaged(of_ours(finite(_typed(part, seen)), own_no_texts(part), part), part)
    layout = recognised(frame.schema, part.name, how)
    if notes is not None:
        notes.layouts.setdefault(layout.line, part.name)
    wrong = no_texts(part, layout)
    frame = laid_out(frame, layout)
    held = {name: aliases for name in PUBLISHED if (aliases := _there(name, frame, layout))}
    plain = _plain_talk(frame, layout)
    names = _own_names(frame, held, plain)
    known = [each for name, aliases in held.items() for each in _cast(name, aliases, frame.schema)]
    used = {aliases[0] for aliases in held.values()} | {plain}
    extra = [pl.col(c).alias(name) for c, name in names.items() if c not in used]
    ours = frame.with_row_index("_row").select("_row", *known, *extra)
    if layout.rated:
        ours = ours.with_columns(truth(layout.rated).alias(GOOD))
    if layout.talk:
        ours = _told(ours, frame, layout, plain)
    else:
        ours = _texts(ours).with_columns(messages=pl.lit(None, MESSAGES))
    if "_led" in ours.columns and notes is not None and ours["_led"].any():
        notes.remarks[_LED] += int(ours["_led"].sum())
    ours = ours.drop("_row", "_led", strict=False)
    ours = ours.with_columns(source_columns=pl.lit(json.dumps(list(names.items()))))
    ours = _identified(ours, seen, _weak(frame, held.get("id", ())))
    ours = labels(_with_language(ours))
    if {"min_similar_id", "repeat_count"} <= set(ours.columns):
        ours = ours.with_columns(MIN_SIMILAR_ID)
    silent = bool(prompts) or (prompts is None and not layout.answered and not layout.talk)
    return _ordered(with_status(ours.with_columns(wrong), part, prompts=silent))


def _typed(part: Part, seen: Seen) -> pl.DataFrame:
    """Rows of our form in its types: JSON does not say what a null or an empty list is of. Raises
    UserError for a column that holds something else."""
    frame = as_texts(part.frame, ("instruction", "response", "thinking"))
    for name, kind in _OWN_TYPES.items():
        if name in frame.columns:
            try:
                frame = frame.with_columns(pl.col(name).cast(kind))
            except pl.exceptions.PolarsError as error:
                raise UserError(
                    f"{part.name} has the columns of our form, and its `{name}` holds something "
                    "else; import its source again, or rename that column."
                ) from error
    seen.hashes.update(frame["id"].hash().to_list())
    return frame


def truth(column: str) -> pl.Expr:
    """A column of truths, which a CSV file spells."""
    return pl.col(column).cast(pl.String).str.to_lowercase().is_in(["true", "1"])


def _there(name: str, frame: pl.DataFrame, layout: Layout) -> list[str]:
    """Those of a column's published names that a file has; of the texts, where the layout says
    they are."""
    if name == "instruction":
        asked = JOINED if JOINED in frame.columns else layout.asked
        return [asked] if asked else []
    if name == "response":
        return [layout.answered] if layout.answered else []
    return [alias for alias in names_of(name) if alias in frame.columns]


def _plain_talk(frame: pl.DataFrame, layout: Layout) -> str | None:
    """The one column of conversations, where our form holds all of it."""
    columns = [name for name, _ in layout.talk]
    plain = len(columns) == 1 and not layout.chosen and is_plain(frame.schema[columns[0]])
    return columns[0] if plain else None


def _own_names(
    frame: pl.DataFrame, held: Mapping[str, Sequence[str]], talk: str | None
) -> dict[str, str]:
    """Column of the file -> its name in our form. `talk`: the column of plain conversations."""
    taken = {aliases[0]: name for name, aliases in held.items()}
    if talk is not None:
        taken[talk] = "messages"
    reserved = {*held, "instruction", "response", "id", *OWN_COLUMNS}
    spare = {c: f"source_{c}" if c in reserved else c for c in frame.columns}
    return spare | taken


def _cast(name: str, held: Sequence[str], schema: Mapping[str, pl.DataType]) -> list[pl.Expr]:
    """The first of a column's published names that holds a value, in its type; numbers keep theirs.

    What is of another kind is null there, and stands as text in a column of its own until it is
    some row's failed tag.
    """
    declared = DECLARED[name]
    if declared.kind == "other":
        return [pl.coalesce(held).alias(name)]
    kind = declared.plain
    nested = [h for h in held if _apart(schema[h], kind)]
    # A list has no type in common with a text: what is nested is told beside the others.
    fit = [h for h in held if h not in nested]
    numbers = kind in (pl.Float64, pl.Int64)
    value = pl.lit(None)
    if fit:
        value = pl.coalesce(worded(h, schema[h]) if numbers else pl.col(h) for h in fit)
    if not nested and not any(_foreign(schema[h], kind) for h in held):
        plain = value.cast(kind, strict=True)
        if not kind.is_float():
            return [plain.alias(name)]
        return as_number(name, plain, plain.cast(pl.String))
    if nested:
        number = value.cast(kind, strict=False)
        odd = pl.any_horizontal(pl.col(h).is_not_null() for h in nested)
        text = pl.when(odd).then(pl.lit(NESTED)).otherwise(value.cast(pl.String))
    elif kind == pl.List(pl.String):  # as a CSV file has it
        number, text = pl.lit(None, kind), value.cast(pl.String)
    else:
        number = as_count(value) if kind == pl.Int64 else value.cast(kind, strict=False)
        text = value.cast(pl.String)
    if kind.is_float():
        return as_number(name, number, text)
    # The first of the names has no other place for what it holds.
    told = number.is_null() | (
        pl.col(held[0]).is_not_null() if held[0] in nested else pl.lit(False)
    )
    return [number.alias(name), pl.when(told).then(text).alias(f"{ODD}{name}")]


def _apart(given: pl.DataType, kind: PolarsType) -> bool:
    """Whether a column of lists or objects has no type in common with values of `kind`."""
    inner = given.inner if isinstance(given, pl.List) else None
    texts = inner is not None and not inner.is_nested()
    return given.is_nested() and not (texts and kind == pl.List(pl.String))


def _foreign(given: pl.DataType, kind: PolarsType) -> bool:
    """Whether values of the type `given` may not be had as `kind`: texts, truths and dates that
    should be numbers, lists that should be texts."""
    parts = kind == pl.Int64 and given.is_float()
    return (
        parts
        or given.is_nested() != (kind == pl.List(pl.String))
        or (not given.is_numeric() and given != pl.Null and kind in (pl.Float64, pl.Int64))
    )


def _told(
    ours: pl.DataFrame, frame: pl.DataFrame, layout: Layout, plain: str | None
) -> pl.DataFrame:
    """Texts and conversations of rows with a conversation; those that just repeat instruction and
    response, nearly all of a published set, are told by a look."""
    usual = pl.lit(False)
    if plain and frame.schema[plain] == PLAIN_TURNS and layout.asked and layout.answered:
        talk = pl.col(plain)
        sides = enumerate((("human", layout.asked), ("gpt", layout.answered)))
        repeats = [
            (turn_of(talk, at, "from") == who) & (turn_of(talk, at, "value") == pl.col(name))
            for at, (who, name) in sides
        ]
        usual = ((talk.list.len() == 2) & repeats[0] & repeats[1]).fill_null(False)
    as_usual = frame.select(_usual=usual)["_usual"]
    if len(as_usual) == 1:
        as_usual = as_usual.new_from_index(0, len(frame))
    own = frame.remove(as_usual)
    rest = ours.remove(as_usual)
    rest = rest.hstack(conversations(own, layout.talk, whole=layout.chosen is not None))
    if plain:
        rest = rest.with_columns(_talk=own[plain])
    rest = _conversations(_texts(rest))
    if len(rest) < len(ours):
        rest = pl.concat([ours.filter(as_usual), rest], how="diagonal").sort("_row")
    return rest


def _texts(ours: pl.DataFrame) -> pl.DataFrame:
    """Instruction and response, taken from the conversation (`_messages`) where they have no column
    or no text; what was thought before the response is in `thinking`."""
    for name, who in (("instruction", ["user"]), ("response", ANSWERS)):
        own = or_null(name, ours.columns, pl.String)
        lacks = name not in ours.columns or (ours[name].fill_null("") == "").any()
        if "_messages" in ours.columns and lacks:
            said = [
                pl.col("_messages")
                .list.eval(pl.element().filter(of_turn("role") == role).struct.field("content"))
                .list.first()
                for role in who
            ]
            has = own.fill_null("") != ""
            own = pl.when(has).then(own).otherwise(pl.coalesce(*said, own))
        ours = ours.with_columns(own.alias(name))
    if "_thought" in ours.columns and ours["_thought"].null_count() < len(ours):
        own = or_null("thinking", ours.columns, pl.String)
        ours = ours.with_columns(thinking=pl.coalesce(own, "_thought"))
    return ours


def _conversations(ours: pl.DataFrame) -> pl.DataFrame:
    """`messages` where a conversation is more than instruction and response; of plain ones,
    `source_conversations` where an export would write another one."""
    turns = pl.col("_messages")
    roles = [turn_of(turns, at, "role") for at in range(2)]
    pair = (turns.list.len() == 2) & (roles[0] == "user") & (roles[1] == "assistant")
    whole = (turns.list.len() > 0) & ~pair
    ours = ours.with_columns(messages=pl.when(whole).then(turns))
    if "_talk" in ours.columns:
        # An empty list stands for a row that had no conversation.
        talk = pl.col("_talk").fill_null([])
        if ours.schema["_talk"] == PLAIN_TURNS:
            unlike = pl.col("_talk").ne_missing(conversation_of(ours, "from", "value"))
            ours = ours.with_columns(source_conversations=pl.when(unlike).then(talk))
        elif ours["_led"].any():  # what an assistant said before the user
            held = fields_of(ours.schema["_talk"])
            sides = ("from", "value") if "from" in held else ("role", "content")
            given = [of_turn(n).alias(f) for n, f in zip(sides, ("from", "value"), strict=True)]
            as_read = talk.list.eval(pl.struct(given)).cast(PLAIN_TURNS)
            ours = ours.with_columns(source_conversations=pl.when("_led").then(as_read))
    return ours.drop("_talk", "_messages", "_thought", strict=False)


def _identified(ours: pl.DataFrame, seen: Seen, weak: bool) -> pl.DataFrame:
    """Rows with ids, and `_again`: whether another row of that id came before. A row without an id
    gets one from its content.

    `weak`: the file's ids are counters or digests, which different rows, or equal ones, may share:
    those, and ids from content, get a number at the end and are nobody's fault.
    """
    ours = ours.with_columns(or_null("id", ours.columns, pl.String))
    nameless = ours["id"].fill_null("") == ""
    texts = ours.select("instruction", "response", "messages").filter(nameless)
    ids = [
        digest([instruction, response] if messages is None else messages)[:20]
        for instruction, response, messages in texts.iter_rows()
    ]
    ours = ours.with_columns(ours["id"].scatter(nameless.arg_true(), ids))
    again = _again(ours["id"], seen)
    mine = again & (nameless | weak)
    if mine.any():
        numbered = []
        for name in ours["id"].filter(mine):
            seen.again[name] += 1
            numbered.append(f"{name}-{seen.again[name] + 1}")
        ours = ours.with_columns(ours["id"].scatter(mine.arg_true(), numbered))
        seen.hashes.update(ours["id"].filter(mine).hash().to_list())
        again = again & ~mine
    return ours.with_columns(_again=again)


def _again(ids: pl.Series, seen: Seen) -> pl.Series:
    """Which ids came before; all of them have now."""
    hashes = ids.hash()
    before = pl.Series([h in seen.hashes for h in hashes.to_list()], dtype=pl.Boolean)
    seen.hashes.update(hashes.to_list())
    return ~hashes.is_first_distinct() | before


def _weak(frame: pl.DataFrame, names: Sequence[str]) -> bool:
    """Whether a file's ids are counters, or digests of a content."""
    return any(name in _DIGESTS or frame.schema[name].is_integer() for name in names[:1])


def _with_language(ours: pl.DataFrame) -> pl.DataFrame:
    """Languages as our codes; where the file has them otherwise, its own beside."""
    if "language" not in ours.columns:
        return ours
    own = ours["language"]
    codes = ours.select(code_of(pl.col("language")))["language"]
    if codes.equals(own):
        return ours
    odd = own.zip_with(codes.is_null(), pl.Series([None], dtype=pl.String))
    kept = [] if "source_language" in ours.columns else [own.alias("source_language")]
    return ours.with_columns(codes, odd.alias(f"{ODD}language"), *kept)


def _ordered(ours: pl.DataFrame) -> pl.DataFrame:
    """The columns of the published forms first, what is ours alone last."""
    last = [n for n in OWN_COLUMNS if n in ours.columns]
    first = [n for n in PUBLISHED if n in ours.columns]
    return ours.select(*first, pl.exclude(*first, *OWN_COLUMNS), *last)
