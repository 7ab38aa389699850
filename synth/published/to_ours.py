"""How a published row maps to ours, by columns: the names each of our columns goes by, the two
published forms, and what an export puts back.

Nothing of a published row is lost in our form: other columns are kept under their own names, an
unknown label stands in `failed_tags`, a conversation that is not just the row's instruction and
response stands in `messages` or `source_conversations`, and `source_columns` remembers names and
order, so that an export writes what was read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import polars as pl

from core.columns import FAILED, MESSAGES, OK
from core.errors import UserError
from core.store import digest
from synth.config.rows import Reading
from synth.measures import DECLARED
from synth.published.derived import MIN_SIMILAR_ID
from synth.published.files import AS_IT_IS, Notes, Part
from synth.published.forms import (
    PLAIN_TURNS,
    PUBLISHED,
    TAG_LABELS,
    TROUBLE,
    conversation_of,
    is_ours,
    names_of,
    of_turn,
    or_null,
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
_WHO, _WHAT = ("from", "role"), ("value", "content")
_OWN_TYPES: PolarsTypes = {
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
    """The ids that were read before: their hashes."""

    hashes: set[int] = field(default_factory=set)


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
    if is_ours(frame):
        seen.hashes.update(frame["id"].hash().to_list())
        # JSON does not say what a null or an empty list is of.
        return frame.with_columns(
            [pl.col(n).cast(t) for n, t in _OWN_TYPES.items() if n in frame.columns]
        )
    there = {name: _there(name, frame) for name in PUBLISHED}
    held = {name: aliases for name, aliases in there.items() if aliases}
    talk, plain = _conversation(frame)
    _check(part, held, talk)
    names = _own_names(frame, held, talk if plain else None)
    known = [each for name, aliases in held.items() for each in _cast(name, aliases, frame.schema)]
    used = {aliases[0] for aliases in held.values()} | ({talk} if plain else set())
    extra = [pl.col(c).alias(name) for c, name in names.items() if c not in used]
    if talk is None:
        ours = _texts(frame.select(*known, *extra), talk=False)
        ours = ours.with_columns(messages=pl.lit(None, MESSAGES))
    else:
        ours = _told(frame.select(*known, *extra, _talk=talk), plain)
    names_as_read = json.dumps(list(names.items()))
    ours = ours.with_columns(source_columns=pl.lit(names_as_read))
    ours = _labels(_identified(ours))
    if {"min_similar_id", "repeat_count"} <= set(ours.columns):
        ours = ours.with_columns(MIN_SIMILAR_ID)
    silent = bool(prompts) or (prompts is None and "response" not in held and talk is None)
    return _ordered(_status(ours, part, seen, prompts=silent))


def _there(name: str, frame: pl.DataFrame) -> list[str]:
    """Those of a column's published names that a file has."""
    return [alias for alias in names_of(name) if alias in frame.columns]


def _check(part: Part, held: Mapping[str, Sequence[str]], talk: str | None) -> None:
    """Raises UserError for a file in which no instruction is to be found, or half of one."""
    columns = part.frame.columns
    if "instruction" not in held and talk is None:
        wanted = ", ".join(sorted({*names_of("instruction"), *_CONVERSATIONS}))
        raise UserError(
            f"{part.name}: no instruction is to be found in the columns {', '.join(columns)}; "
            f"one of {wanted} is needed."
        )
    if {"input", "instruction"} <= set(columns):
        raise UserError(
            f"{part.name} holds both `instruction` and `input`, as Alpaca files do; "
            "join the two to one `instruction` column first."
        )


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
    value = pl.coalesce(held)
    declared = DECLARED[name]
    if declared.kind == "other":
        return [value.alias(name)]
    kind = declared.plain
    if not any(_foreign(schema[h], kind) for h in held):
        return [value.cast(kind, strict=True).alias(name)]
    number: pl.Expr
    text: pl.Expr
    if any(schema[h].is_nested() for h in held):
        number = pl.lit(None, kind)
        text = pl.when(value.is_not_null()).then(pl.lit("a list or object"))
    else:
        number, text = value.cast(kind, strict=False), value.cast(pl.String)
    return [number.alias(name), pl.when(number.is_null()).then(text).alias(f"{_ODD}{name}")]


def _foreign(given: pl.DataType, kind: PolarsType) -> bool:
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
        fields = _turn_fields(frame.schema.get(name))
        if fields & {*_WHO} and fields & {*_WHAT}:
            return name, fields in ({"from", "value"}, {"role", "content"})
    return None, False


def _told(ours: pl.DataFrame, plain: bool) -> pl.DataFrame:
    """Texts and conversations of rows with a conversation; those that just repeat instruction and
    response, nearly all, are told by a look."""
    talk = pl.col("_talk")
    usual = pl.lit(False)
    as_plain = plain and ours.schema["_talk"] == PLAIN_TURNS
    if as_plain and {"instruction", "response"} <= set(ours.columns):
        sides = enumerate((("human", "instruction"), ("gpt", "response")))
        repeats = [
            (turn_of(talk, at, "from") == who) & (turn_of(talk, at, "value") == pl.col(name))
            for at, (who, name) in sides
        ]
        usual = ((talk.list.len() == 2) & repeats[0] & repeats[1]).fill_null(False)
    ours = ours.with_columns(_usual=usual).with_row_index("_row")
    rest = _texts(ours.remove("_usual"), talk=True)
    rest = _conversations(rest, as_plain).drop("_messages")
    if len(rest) < len(ours):
        rest = pl.concat([ours.filter("_usual"), rest], how="diagonal")
    return rest.sort("_row").drop("_row", "_usual", "_talk")


def _texts(ours: pl.DataFrame, talk: bool) -> pl.DataFrame:
    """Instruction and response, taken from the conversation where they have no column or no text;
    `_messages` is that conversation as ours."""
    if talk:
        ours = ours.with_columns(_messages=_messages(ours))
    for name, who in (("instruction", "user"), ("response", "assistant")):
        own = or_null(name, ours.columns, pl.String)
        if talk and (name not in ours.columns or (ours[name].fill_null("") == "").any()):
            by_who = pl.element().filter(of_turn("role") == who)
            first = pl.col("_messages").list.eval(by_who.struct.field("content")).list.first()
            has = own.fill_null("") != ""
            own = pl.when(has).then(own).otherwise(pl.coalesce(first, own))
        ours = ours.with_columns(own.alias(name))
    return ours


def _messages(ours: pl.DataFrame) -> pl.Expr:
    """Conversations as a file writes them (`_talk`) in our roles."""
    known = _turn_fields(ours.schema["_talk"])

    def said(names: tuple[str, ...]) -> pl.Expr:
        return pl.coalesce(of_turn(n).cast(pl.String) for n in names if n in known)

    turn = pl.struct(role=said(_WHO).replace(ROLES), content=said(_WHAT))
    return pl.col("_talk").list.eval(turn).cast(MESSAGES)


def _turn_fields(kind: pl.DataType | None) -> set[str]:
    """The fields of the turns in a column of conversations; none where it is another column."""
    if isinstance(kind, pl.List) and isinstance(kind.inner, pl.Struct):
        return {each.name for each in kind.inner.fields}
    return set()


def _conversations(ours: pl.DataFrame, plain: bool) -> pl.DataFrame:
    """`messages` where a conversation is more than instruction and response; `source_conversations`
    where an export would write another one."""
    turns = pl.col("_messages")
    roles = [turn_of(turns, at, "role") for at in range(2)]
    pair = (turns.list.len() == 2) & (roles[0] == "user") & (roles[1] == "assistant")
    whole = (turns.list.len() > 0) & ~pair
    ours = ours.with_columns(messages=pl.when(whole).then(turns))
    if not plain:
        return ours
    talk = pl.col("_talk")
    unlike = talk.ne_missing(conversation_of(ours, "from", "value"))
    # An empty list stands for a row that had no conversation.
    return ours.with_columns(source_conversations=pl.when(unlike).then(talk.fill_null([])))


def _identified(ours: pl.DataFrame) -> pl.DataFrame:
    """A row without an id gets one from its content."""
    ours = ours.with_columns(or_null("id", ours.columns, pl.String))
    nameless = (ours["id"].fill_null("") == "").arg_true()
    texts = ours.select("instruction", "response", "messages")[nameless]
    ids = [
        digest([instruction, response] if messages is None else messages)[:20]
        for instruction, response, messages in texts.iter_rows()
    ]
    return ours.with_columns(ours["id"].scatter(nameless, ids))


def _labels(ours: pl.DataFrame) -> pl.DataFrame:
    """A label that is no label is that row's failed tag, null in its column and kept in
    `failed_tags`."""
    trouble, cleaned = [], []
    for name, labels in TAG_LABELS.items():
        if name in ours.columns:
            bad = ~pl.col(name).is_in(labels)
            trouble.append(pl.when(bad).then(_trouble(name, name, "unknown label '{}'")))
            cleaned.append(pl.when(~bad).then(name).alias(name))
    odd = [c for c in ours.columns if c.startswith(_ODD)]
    for column in odd:
        item = _trouble(column.removeprefix(_ODD), column, "'{}' is not of the column's kind")
        trouble.append(pl.when(pl.col(column).is_not_null()).then(item))
    failed = pl.concat_list(trouble).list.drop_nulls() if trouble else pl.lit([], TROUBLE)
    return ours.with_columns(*cleaned, failed_tags=failed.cast(TROUBLE)).drop(odd)


def _trouble(name: str, value: str, reason: str) -> pl.Expr:
    """The failed tag `name` whose value stands in a column."""
    why = pl.format(reason, pl.col(value).str.slice(0, 40))
    return pl.struct(column=pl.lit(name), reason=why, value=pl.col(value))


def _status(ours: pl.DataFrame, part: Part, seen: Seen, *, prompts: bool) -> pl.DataFrame:
    """Which rows are failed rows, and why; every id is made the row's own."""
    hashes = ours["id"].hash()
    before = pl.Series([h in seen.hashes for h in hashes.to_list()], dtype=pl.Boolean)
    again = pl.lit(~hashes.is_first_distinct() | before)
    seen.hashes.update(hashes.to_list())
    place = pl.format("{} {} {}", pl.lit(part.name), pl.lit(part.unit), pl.lit(part.places))
    at = pl.format(" ({})", place)
    role, text = of_turn("role"), of_turn("content")
    turns = pl.col("messages").list
    strange = turns.eval(role.filter(~role.is_in(["system", "user", "assistant"]))).list.first()
    silent = turns.eval(_blank(text)).list.any().fill_null(False)
    reasons = (
        pl.when(again).then(pl.format("the id {} occurs twice{}", "id", at)),
        pl.when(_blank(pl.col("instruction"))).then(pl.format("no instruction{}", at)),
        pl.when(_blank(pl.col("response")) & ~pl.lit(prompts)).then(pl.format("no response{}", at)),
        pl.when(strange.is_not_null()).then(pl.format("a turn of role '{}'{}", strange, at)),
        pl.when(silent).then(pl.format("a turn without text{}", at)),
    )
    reason = pl.coalesce(reasons).cast(pl.String)
    return ours.with_columns(
        id=pl.when(again).then(pl.format("{}#{}", "id", place)).otherwise("id"),
        reason=reason,
        status=pl.when(reason.is_null()).then(pl.lit(OK)).otherwise(pl.lit(FAILED)),
    )


def _blank(text: pl.Expr) -> pl.Expr:
    return text.fill_null("").str.strip_chars() == ""


def _ordered(ours: pl.DataFrame) -> pl.DataFrame:
    """The columns of the published forms first, what is ours alone last."""
    last = [n for n in OWN_COLUMNS if n in ours.columns]
    first = [n for n in PUBLISHED if n in ours.columns]
    return ours.select(*first, pl.exclude(*first, *OWN_COLUMNS), *last)
