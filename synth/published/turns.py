"""Conversations as people write them -> turns of ours, whatever their fields are called.

A turn is a struct of who speaks and what is said (a text, or a list of parts), a bare text whose
speaker follows from its place, or a pair {input, output}. A part or field that holds thoughts is
kept beside the turn, a tool call is a turn of its own (role `tool_call`, its content the call as
JSON), a tool's answer is a turn of role `tool`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import polars as pl

from core.columns import MESSAGES
from synth.published.cells.texts import LIST, odd

if TYPE_CHECKING:
    pass

ROLES = {
    "human": "user",
    "prompter": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "developer": "system",
    "function_call": "tool_call",
    "observation": "tool",
    "function": "tool",
    "function_response": "tool",
    "tool_response": "tool",
    "ipython": "tool",
}
"""What speakers are called elsewhere -> our role."""
ANSWERS = ("assistant", "tool_call")
TOOL_ROLES = ("tool_call", "tool")
"""Turns that only some chat templates write out."""
KNOWN_ROLES = ("system", "user", *ANSWERS, "tool")

WHO, WHAT = ("from", "role"), ("value", "content")
_THOUGHTS = ("reasoning_content", "reasoning", "thinking")
"""Fields of a turn that hold what was thought before it."""
_PARTS = {
    **dict.fromkeys(("text", "input_text", "output_text", "tool_response"), "text"),
    **dict.fromkeys(("reasoning", "thinking"), "thought"),
    **dict.fromkeys(("tool_call", "function_call"), "call"),
}
"""Kind of a part -> what it is to us."""
_PART_TEXTS = ("value", "text", "thinking", "reasoning", "content")
_PAIR = ({"input", "output"}, {"user", "assistant"})
_LONG = {"role": pl.String, "content": pl.String, "thought": pl.String, "odd": pl.String}


def fields_of(kind: pl.DataType | None) -> dict[str, pl.DataType]:
    """The fields of the turns in a column of conversations, with their types; none where it is
    another column."""
    inner = kind.inner if isinstance(kind, pl.List) else None
    if not isinstance(inner, pl.Struct):
        return {}
    return {
        f.name: f.dtype if isinstance(f.dtype, pl.DataType) else f.dtype() for f in inner.fields
    }


def is_talk(kind: pl.DataType | None) -> bool:
    """Whether a column holds turns that say who speaks, or pairs of turns."""
    held = {*fields_of(kind)}
    return bool(held & {*WHO} and held & {*WHAT}) or held in _PAIR


def is_turn(kind: pl.DataType | None) -> bool:
    """Whether a column holds one turn."""
    return kind is not None and is_talk(pl.List(kind))


def is_plain(kind: pl.DataType | None) -> bool:
    """Whether turns have nothing but a speaker and a text, so that our form holds all of them."""
    held = fields_of(kind)
    return {*held} in ({"from", "value"}, {"role", "content"}) and not any(
        kind.is_nested() for kind in held.values()
    )


def shown(column: str, kind: pl.DataType) -> str:
    """A column of conversations with the fields of its turns."""
    held = [f for f in (*WHO, *WHAT, "input", "output") if f in fields_of(kind)]
    return f"{column}[{', '.join(held)}]" if held else column


def conversations(
    frame: pl.DataFrame, columns: Sequence[tuple[str, str]], *, whole: bool = False
) -> pl.DataFrame:
    """[_messages: MESSAGES, _thought, _odd, _led] of each row: the turns of these columns one after
    the other, in our roles; null where there is none.

    `columns`: (name, who says a bare text in it). Where a list of bare texts begins with that
    speaker, user and assistant alternate. `_thought` is what was thought before the first answer,
    `_odd` the kind of a part that is no text. `whole`: where the last column begins with the
    system or the user, it is the whole conversation. What an assistant says before the first user's
    turn is left out (`_led`).
    """
    rows = frame.select(name for name, _ in columns).with_row_index("_row")
    told = []
    for place, (name, speaker) in enumerate(columns):
        long = _long(rows.select("_row", _turn=name), rows.schema[name], speaker)
        told.append(long.with_columns(_place=pl.lit(place, pl.Int32)))
    turns = pl.concat(told).sort("_row", "_place", "_at", "_sub", maintain_order=True)
    if whole:
        last = pl.col("_place") == len(columns) - 1
        begins = (last & (pl.col("_at") == 0) & pl.col("role").is_in(["system", "user"])).any()
        turns = turns.filter(last | ~begins.over("_row"))
    started = (pl.col("role") == "user").cum_sum().over("_row") > 0
    early = ~started & pl.col("role").is_in([*ANSWERS, "tool"]).fill_null(False)
    turns = turns.with_columns(_early=early, _led=early.any().over("_row")).remove("_early")
    answer = pl.col("role").is_in(ANSWERS)
    by_row = turns.group_by("_row", maintain_order=True).agg(
        _messages=pl.struct("role", "content"),
        _thought=pl.col("thought").filter(answer).first(),
        _odd=pl.col("odd").drop_nulls().first(),
        _led=pl.col("_led").first(),
    )
    by_row = by_row.with_columns(pl.col("_messages").cast(MESSAGES))
    return (
        rows.select("_row").join(by_row, on="_row", how="left", maintain_order="left").drop("_row")
    )


def _long(rows: pl.DataFrame, kind: pl.DataType, speaker: str) -> pl.DataFrame:
    """[_row, _at, _sub, role, content, thought, odd] of one column [_row, _turn]."""
    if not isinstance(kind, pl.List):
        given = pl.col("_turn").is_not_null()
        if kind == pl.String:
            given = pl.col("_turn").str.strip_chars() != ""
        rows, kind = rows.filter(given).with_columns(pl.concat_list("_turn")), pl.List(kind)
    if isinstance(kind.inner, pl.List):  # pairs of texts, as histories have them
        rows, kind = rows.explode("_turn"), kind.inner
    turns = rows.explode("_turn").drop_nulls("_turn")
    turns = turns.with_columns(_at=pl.int_range(pl.len(), dtype=pl.Int32).over("_row"))
    held = fields_of(kind)
    if {*held} in _PAIR:
        return _pairs(turns, held)
    if not held:
        return _bare(turns, speaker)
    turns = turns.with_columns(
        role=_said(held, WHO).str.strip_chars().str.to_lowercase().replace(ROLES),
        thought=_said(held, _THOUGHTS),
    )
    told = _parts(turns, held) if _content(held) else _plain(turns, held)
    return _with_calls(told, turns, held)


def _said(held: Mapping[str, pl.DataType], names: Sequence[str]) -> pl.Expr:
    """The first of these fields of a turn that holds a text."""
    turn = pl.col("_turn").struct
    plain = [n for n in names if n in held and not held[n].is_nested()]
    known = [turn.field(n).cast(pl.String, strict=False) for n in plain]
    return pl.coalesce(*known, pl.lit(None, pl.String))


def _content(held: Mapping[str, pl.DataType]) -> str | None:
    """The field that holds lists of parts, if one does."""
    return next((n for n in WHAT if n in held and isinstance(held[n], pl.List)), None)


def _finished(turns: pl.DataFrame) -> pl.DataFrame:
    """The columns of a long frame, those that are lacking null."""
    lacking = {"_sub": pl.Int32, **_LONG}
    more = [pl.lit(None, kind).alias(n) for n, kind in lacking.items() if n not in turns.columns]
    turns = turns.with_columns(more).with_columns(pl.col("_sub").fill_null(0))
    return turns.select("_row", "_at", *lacking)


def _plain(turns: pl.DataFrame, held: Mapping[str, pl.DataType]) -> pl.DataFrame:
    thoughts = [n for n in _THOUGHTS if n in held and not held[n].is_nested()]
    strange = _strange(pl.col("_turn"), held, (*WHAT, *thoughts))
    return _finished(turns.with_columns(content=_said(held, WHAT), odd=strange))


def _strange(turn: pl.Expr, held: Mapping[str, pl.DataType], names: Sequence[str]) -> pl.Expr:
    """What the first of these fields that holds no text holds."""
    found = [odd(turn.struct.field(n), held[n]) for n in names if n in held]
    return pl.coalesce(*found, pl.lit(None, pl.String))


def _bare(turns: pl.DataFrame, speaker: str) -> pl.DataFrame:
    """Texts without speakers: the first is `speaker`'s, then user and assistant alternate."""
    even = pl.col("_at") % 2 == 0
    other = "assistant" if speaker == "user" else "user"
    role = pl.when(even).then(pl.lit(speaker)).otherwise(pl.lit(other))
    return _finished(turns.with_columns(role=role, content=pl.col("_turn").cast(pl.String)))


def _pairs(turns: pl.DataFrame, held: Mapping[str, pl.DataType]) -> pl.DataFrame:
    """Turns that hold what a user said and what was answered."""
    asked, answered = ("input", "output") if "input" in held else ("user", "assistant")
    sides = [
        turns.with_columns(
            role=pl.lit(role),
            content=_said(held, [name]),
            _sub=pl.lit(sub, pl.Int32),
            odd=_strange(pl.col("_turn"), held, [name]),
        )
        for sub, (role, name) in enumerate((("user", asked), ("assistant", answered)))
    ]
    return pl.concat([_finished(side) for side in sides])


def _parts(turns: pl.DataFrame, held: Mapping[str, pl.DataType]) -> pl.DataFrame:
    """Turns whose content is a list of parts, or of texts."""
    name = str(_content(held))
    inner = fields_of(held[name])
    content = pl.col("_turn").struct.field(name)
    parts = turns.select("_row", "_at", "role", _part=content).explode("_part")
    if inner:
        part = pl.col("_part").struct
        texts = [n for n in _PART_TEXTS if n in inner and not inner[n].is_nested()]
        said = pl.coalesce(
            *(part.field(n).cast(pl.String, strict=False) for n in texts), pl.lit(None, pl.String)
        )
        given = part.field("type").cast(pl.String) if "type" in inner else pl.lit("text")
        given = pl.coalesce(_strange(pl.col("_part"), inner, texts), given)
    else:
        said, given = pl.lit(None, pl.String), pl.lit(LIST)
    parts = parts.drop_nulls("_part").with_columns(said=said, given=given)
    parts = parts.with_columns(kind=pl.col("given").replace_strict(_PARTS, default="odd"))

    def joined(kind: str) -> pl.Expr:
        return pl.when((pl.col("kind") == kind).any()).then(
            pl.col("said").filter(pl.col("kind") == kind).str.join("")
        )

    told = parts.group_by("_row", "_at", maintain_order=True).agg(
        content=joined("text"),
        _thought=joined("thought"),
        odd=pl.col("given").filter(pl.col("kind") == "odd").first(),
        _calls=pl.col("said").filter(pl.col("kind") == "call"),
    )
    whole = turns.join(told, on=["_row", "_at"], how="left", maintain_order="left")
    return whole.with_columns(thought=pl.coalesce("_thought", "thought"))


def _with_calls(
    told: pl.DataFrame, turns: pl.DataFrame, held: Mapping[str, pl.DataType]
) -> pl.DataFrame:
    """Turns and their tool calls, each a turn of its own; one that is nothing but calls has no turn
    besides, and its thoughts go with the first of them."""
    if "_calls" not in told.columns:
        given = held.get("tool_calls")
        if given is None or given == pl.Null:
            return told
        calls = turns.select(
            "_row",
            "_at",
            pl.col("_turn").struct.field("tool_calls").alias("_raw"),
        )
        written = [_calls(raw) for raw in calls["_raw"].to_list()]
        unread = pl.Series([each is None for each in written], dtype=pl.Boolean)
        told = told.join(
            calls.select(
                "_row",
                "_at",
                _calls=pl.Series(written, dtype=pl.List(pl.String)),
                _unread=pl.when(unread).then(pl.lit("tool_calls that are none")),
            ),
            on=["_row", "_at"],
            how="left",
            maintain_order="left",
        ).with_columns(odd=pl.coalesce("odd", "_unread"))
    calls = told.select("_row", "_at", "thought", "content", "_calls").explode("_calls")
    calls = calls.drop_nulls("_calls").with_columns(
        role=pl.lit("tool_call"),
        _sub=pl.int_range(1, pl.len() + 1, dtype=pl.Int32).over("_row", "_at"),
    )
    silent = pl.col("content").fill_null("").str.strip_chars() == ""
    first = silent & (pl.col("_sub") == 1)
    calls = calls.with_columns(thought=pl.when(first).then("thought"), content=pl.col("_calls"))
    only_calls = silent & (pl.col("_calls").list.len() > 0).fill_null(False)
    return pl.concat([_finished(told.remove(only_calls)), _finished(calls)])


def _calls(raw: Any) -> list[str] | None:
    """Calls as chat APIs return them ({function: {name, arguments}}), each as JSON {name,
    arguments}; None where they are nothing of the kind."""
    held = _loaded(raw) if isinstance(raw, str) else raw
    if held in (None, "", [], {}):
        return []
    if not isinstance(held, list) or not all(isinstance(call, dict) for call in held):
        return None
    texts = []
    for call in held:
        told = call.get("function") or call
        if not isinstance(told, dict):
            return None
        given = told.get("arguments")
        arguments = _loaded(given) if isinstance(given, str) else _without_nulls(given)
        texts.append(
            json.dumps({"name": told.get("name"), "arguments": arguments}, ensure_ascii=False)
        )
    return texts


def _loaded(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _without_nulls(value: Any) -> Any:
    """Arguments without the fields that only other rows' calls have: a column has one type."""
    if isinstance(value, dict):
        return {name: _without_nulls(each) for name, each in value.items() if each is not None}
    return [_without_nulls(each) for each in value] if isinstance(value, list) else value
