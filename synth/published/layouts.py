"""Which layout a file has, by its columns: where the instruction, the response and the conversation
are. What may be two things is refused with both."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NoReturn

import polars as pl

from core.errors import UserError, nearest
from synth.config.rows import Reading
from synth.measures import DECLARED
from synth.published.cells.texts import as_texts, is_text
from synth.published.forms import names_of
from synth.published.turns import fields_of, is_talk, is_turn, shown

ASKED = ("instruction", "input", "prompt", "question", "query", "problem")
"""Names that an instruction goes by."""
ANSWERED = ("response", "output", "completion", "answer", "solution")
"""Names that a response goes by."""
TALKS = ("conversations", "messages", "conversation", "text", "dialogue", "dialog")
"""Names that a conversation goes by; others are known by the fields of their turns."""
_BARE = ("data", "dialogue", "dialog", "conversation", "conversations")
"""Columns whose lists of texts are turns without speakers (UltraChat)."""
_RATED = ("label", "kto_tag")
_PREFERRED = (("chosen", "rejected"), ("chosen_messages", "rejected_messages"))
_MAPPED = ("messages", "system", "history", "chosen", "rejected", "label", "prompt", "completion")
_KNOWN = {*ASKED, *ANSWERED, *TALKS, *_RATED, "context", "system", "history", "data", "tools"}
_FIELD = re.compile(r"\{([^{}]+)\}")

Schema = Mapping[str, pl.DataType]


def text_names(how: Reading) -> frozenset[str]:
    """The names, without capitals, of columns that may be read as texts."""
    given = {*how.map.values(), *_FIELD.findall(how.join or "")}
    known = {*_KNOWN, *_MAPPED, "system_prompt", "thinking"}
    return frozenset(name.lower() for name in known | given)


@dataclass(frozen=True)
class Layout:
    """How rows of one file are taken."""

    name: str
    """What such files are called."""
    renames: Mapping[str, str]
    """Column of the file -> the name that it has from here on."""
    asked: str | None = None
    """The column of the instruction."""
    join: str | None = None
    """The instruction, made of several columns."""
    answered: str | None = None
    """The column of the response."""
    talk: tuple[tuple[str, str], ...] = ()
    """The columns whose turns make the conversation, and who says a bare text in each."""
    rated: str | None = None
    """The column of truths that says whether an answer is good."""
    chosen: str | None = None
    """The column of preferred answers, in whose place `rejected` has the others."""
    rejected: str | None = None
    line: str = field(default="", compare=False)

    @property
    def texts(self) -> tuple[str, ...]:
        """The columns whose values must be texts, as they are called from here on."""
        joined = _FIELD.findall(self.join or "")
        talk = dict(self.talk)
        both = (self.asked, self.answered, *joined, self.chosen, self.rejected, *talk)
        return tuple(dict.fromkeys(name for name in both if name and name != JOINED))

    @property
    def loose(self) -> tuple[str, ...]:
        """Those of them that may hold lists of bare texts: conversations without speakers."""
        strict = (self.asked, self.answered, self.chosen, self.rejected, JOINED)
        return tuple(name for name, _ in self.talk if name not in strict)

    @property
    def published(self) -> bool:
        """Whether the texts stand under the names of the published sets, as they are."""
        names = (self.asked in names_of("instruction"), self.join is None, not self.renames)
        return all(names) and self.rated is None and self.chosen is None


def recognised(schema: Schema, name: str, how: Reading) -> Layout:
    """The layout of a file with these columns, as its user states or as it is recognised.

    Raises UserError where no instruction is to be found, where it may be one of several, and for
    preference data that is not taken as `how.as_`.
    """
    renames = _renames(schema, name, how)
    columns = {renames.get(column, column): kind for column, kind in schema.items()}
    found = _found(columns, name, how)
    found = replace(found, renames=renames)
    return replace(found, line=_line(found, columns))


def _renames(schema: Schema, name: str, how: Reading) -> dict[str, str]:
    """Column of the file -> the name that it is known by, where that is another: as `how.map` says,
    or without capitals."""
    renames: dict[str, str] = {}
    lower: dict[str, list[str]] = {}
    for column in schema:
        lower.setdefault(column.lower(), []).append(column)
    for known in _KNOWN - {*schema}:
        if len(lower.get(known, [])) == 1:
            renames[lower[known][0]] = known
    allowed = {*DECLARED, *_MAPPED}
    for ours, theirs in how.map.items():
        if ours not in allowed:
            raise UserError(f"--map {ours}={theirs}: {ours} is no column{nearest(ours, allowed)}.")
        _has(schema, theirs, name, "--map")
        if ours != theirs and ours in schema and ours not in how.map.values():
            renames[ours] = f"source_{ours}"
        renames[theirs] = ours
    return {theirs: ours for theirs, ours in renames.items() if theirs != ours}


def _has(schema: Schema, column: str, name: str, option: str) -> None:
    if column not in schema:
        hint = nearest(column, schema)
        raise UserError(
            f"{option}: {name} has no column {column}{hint}; it has {', '.join(schema)}."
        )


def _found(columns: Schema, name: str, how: Reading) -> Layout:
    if any(is_given(columns, pair) for pair in _PREFERRED):
        return _preferences(columns, name, how)
    found = _of_texts(columns, name, how, _talk(columns, name, how))
    rated = next((c for c in _RATED if _truth(c, columns.get(c))), None)
    if rated is None:
        return found
    if how.as_ != "sft":
        raise UserError(
            f"{name} holds rated answers ({rated}: true or false), as for KTO, which are no SFT "
            "rows as they stand: --as sft takes the good ones, --as preferences writes TRL's form."
        )
    return replace(found, name=f"rated answers ({found.name})", rated=rated)


def is_given(columns: Schema, names: Sequence[str]) -> bool:
    """Whether a file has all of these columns, with something in them."""
    return all(columns.get(name, pl.Null()) != pl.Null for name in names)


def _truth(column: str, kind: pl.DataType | None) -> bool:
    return kind == pl.Boolean or (column == "kto_tag" and kind is not None)


def _talk(columns: Schema, name: str, how: Reading) -> str | None:
    """The column of whole conversations. Raises UserError where there are two."""
    if "messages" in how.map:
        return "messages"
    if how.join is not None or "instruction" in how.map:
        return None
    bare = [c for c in _BARE if columns.get(c) == pl.List(pl.String)]
    found = [c for c, kind in columns.items() if is_talk(kind) and c not in _PARTIAL] + bare
    if len(found) > 1:
        could = " or ".join(f"--map messages={c}" for c in found)
        raise UserError(
            f"{name}: the conversation may be in {' or '.join(found)}; say which: {could}."
        )
    return found[0] if found else None


_PARTIAL = ("prompt", "completion", "history", "tools", "all_responses", "responses")
"""Columns whose turns are part of a conversation, or none."""


def _of_texts(columns: Schema, name: str, how: Reading, talk: str | None) -> Layout:
    """The layout of rows that are a conversation, texts, or (as published sets have it) both."""
    if talk is not None:
        return _of_talk(columns, name, talk, "messages" in how.map)
    prompt, completion = columns.get("prompt"), columns.get("completion")
    if is_talk(prompt):
        turns = [("prompt", "user")]
        if is_talk(completion) or is_turn(completion) or completion == pl.String:
            turns.append(("completion", "assistant"))
        return Layout("prompt and completion", {}, talk=tuple(turns))
    asked, join = _asked(columns, name, how)
    answered = _answered(columns, name, how, asked)
    system = _system(columns, asked)
    earlier = [c for c in ("history",) if is_given(columns, [c])]
    layout = Layout(_name(asked, answered, join), {}, asked, join, answered)
    if not system and not earlier:
        return layout
    told = [(c, "system") for c in system] + [(c, "user") for c in earlier]
    return replace(layout, talk=(*told, (JOINED, "user"), *_last(answered)))


JOINED = "_instruction"
"""The column of instructions, while a conversation is put together."""


def _last(answered: str | None) -> list[tuple[str, str]]:
    return [(answered, "assistant")] if answered else []


def _system(columns: Schema, asked: str | None) -> list[str]:
    """The column of a row's system prompt. `system_prompt` beside an instruction of the published
    sets is what it was drawn under, which its response never saw."""
    names = ["system"] if asked in ("instruction", "input", None) else ["system", "system_prompt"]
    return [c for c in names if columns.get(c) == pl.String][:1]


def _of_talk(columns: Schema, name: str, talk: str, stated: bool) -> Layout:
    """Conversations; where a published set's texts stand beside, those are the row's, unless the
    conversation is `stated`."""
    asked, answered = None, None
    texts = [c for c in ("instruction", "input") if is_text(columns.get(c)) and not stated]
    if len(texts) > 1:
        raise UserError(
            f"{name} may be Alpaca (instruction + input) or conversations ({talk}); say "
            f"--join '{{instruction}}\\n\\n{{input}}' or --map messages={talk}."
        )
    if texts:
        asked = texts[0]
        answers = ("response", "output") if asked == "instruction" else ("output", "response")
        answered = next((c for c in answers if is_text(columns.get(c))), None)
    fields = fields_of(columns[talk])
    kind = "messages" if "role" in fields else "ShareGPT"
    if not fields:
        kind = "turns without speakers"
    elif talk == "text":
        kind = "GenQA"
    elif not {"role", "from"} & {*fields}:
        kind = "pairs of turns"
    if asked:
        kind = "published set"
    system = [(c, "system") for c in ("system",) if columns.get(c) == pl.String]
    return Layout(kind, {}, asked, None, answered, talk=(*system, (talk, "user")))


def _asked(columns: Schema, name: str, how: Reading) -> tuple[str | None, str | None]:
    """The column of the instruction, or how several make it."""
    if how.join is not None:
        for column in _FIELD.findall(how.join):
            _has(columns, column, name, "--join")
        return None, how.join
    if "instruction" in how.map:
        return "instruction", None
    found = [c for c in ASKED if is_text(columns.get(c))]
    for second in ("input", "context"):
        if {*found, second} == {"instruction", second} and is_text(columns.get(second)):
            return None, f"{{instruction}}\n\n{{{second}}}"
    if "input" not in found and is_given(columns, ("instruction", "response")):
        return "instruction", None
    if len(found) == 1 and not is_given(columns, ("context",)):
        return found[0], None
    if not found:
        _nowhere(columns, name)
    could = [f"--map instruction={c}" for c in found]
    if "context" in columns:
        could.append(f"--join '{{context}}\\n\\n{{{found[0]}}}'")
    _ambiguous(name, "instruction", found, could)


def _answered(columns: Schema, name: str, how: Reading, asked: str | None) -> str | None:
    """The column of the response, if there is one."""
    if "response" in how.map:
        return "response"
    found = [c for c in ANSWERED if is_text(columns.get(c)) and c != asked]
    if asked == "instruction" and "response" in found and "input" not in columns:
        return "response"
    if len(found) > 1:
        _ambiguous(name, "response", found, [f"--map response={c}" for c in found])
    if not found and asked == "instruction":  # one that holds no text makes failed rows
        found = [c for c in ("response", "output") if is_given(columns, [c])]
    return found[0] if found else None


def _ambiguous(name: str, what: str, found: Sequence[str], could: Sequence[str]) -> NoReturn:
    where = " or ".join(found)
    raise UserError(f"{name}: the {what} may be in {where}; say which: {' or '.join(could)}.")


def _nowhere(columns: Schema, name: str) -> NoReturn:
    wanted = sorted({*ASKED, *TALKS})
    say = "say which column it is: --map instruction=COLUMN,response=COLUMN."
    held = [column for column in wanted if column in columns]
    if held:
        raise UserError(
            f"{name}: there is neither text nor a conversation in {' or '.join(held)}; "
            f"repair the file, or {say}"
        )
    raise UserError(
        f"{name}: no instruction is to be found in the columns {', '.join(columns)}; one of "
        f"{', '.join(wanted)} is needed, or {say}"
    )


def _name(asked: str | None, answered: str | None, join: str | None) -> str:
    """What files with these columns are called."""
    if answered is None:
        return "prompts without responses"
    if join is None:
        published = asked in ("instruction", "input")
        return "published set" if published else f"{asked} and {answered}"
    known = {("instruction", "input"): "Alpaca", ("instruction", "context"): "Dolly"}
    return known.get(tuple(_FIELD.findall(join)), "joined columns")


def _preferences(columns: Schema, name: str, how: Reading) -> Layout:
    """Pairs of a preferred and a rejected answer: the conversation is the prompt and the preferred
    one."""
    chosen, rejected = next(pair for pair in _PREFERRED if is_given(columns, pair))
    if how.as_ != "sft":
        raise UserError(
            f"{name} is preference data ({chosen}, {rejected}), which are no SFT rows as they "
            f"stand: --as sft takes {chosen}, --as preferences writes TRL's form."
        )
    layout = Layout("preference pairs", {}, chosen=chosen, rejected=rejected)
    last = (chosen, "assistant")
    known = ("prompt", "conversations", "conversation")
    if talk := next((c for c in known if is_talk(columns.get(c))), None):
        return replace(layout, talk=((talk, "user"), last))
    if any(is_text(columns.get(c)) for c in ASKED):
        asked, join = _asked(columns, name, how)
        return replace(layout, asked=asked, join=join, talk=((JOINED, "user"), last))
    if not is_talk(columns[chosen]):
        raise UserError(
            f"{name}: {chosen} holds answers, and no column holds their prompts; say which does: "
            "--map prompt=COLUMN."
        )
    return replace(layout, talk=(last,))


def _line(layout: Layout, columns: Schema) -> str:
    """The layout in a line: which columns become what."""
    text = layout.asked or " + ".join(_FIELD.findall(layout.join or ""))
    talk = " + ".join(_shown(c, text, columns) for c, _ in layout.talk)
    parts = []
    if text and JOINED not in dict(layout.talk):
        parts.append(f"{text} -> instruction")
    if layout.answered and JOINED not in dict(layout.talk):
        parts.append(f"{layout.answered} -> response")
    if talk:
        texts = "" if parts else "instruction, response, "
        parts.append(f"{talk} -> {texts}messages")
    if layout.chosen:
        parts.append(f"{layout.rejected} left out")
    if layout.rated:
        parts.append(f"only where {layout.rated} is true")
    return f"{layout.name}: {', '.join(parts)}"


def _shown(column: str, text: str, columns: Schema) -> str:
    return text if column == JOINED else shown(column, columns[column])


def laid_out(frame: pl.DataFrame, layout: Layout) -> pl.DataFrame:
    """A file's rows with the columns that the layout speaks of: renamed, and `_instruction` where
    it is made of others."""
    frame = frame.rename(layout.renames)
    talks = [n for n in layout.texts if is_talk(frame.schema[n]) or is_turn(frame.schema[n])]
    lists = [n for n in layout.loose if frame.schema[n].is_nested()]
    frame = as_texts(frame, [n for n in layout.texts if n not in (*talks, *lists)])
    if layout.join is not None:
        return frame.with_columns(_joined(layout.join).alias(JOINED))
    if JOINED in dict(layout.talk):
        return frame.with_columns(pl.col(str(layout.asked)).cast(pl.String).alias(JOINED))
    return frame


def _joined(template: str) -> pl.Expr:
    """Columns put together as the template says; an empty one goes with the text before it, or, at
    the front, with the text behind it. Null where all are empty."""
    *pieces, tail = _FIELD.split(template)
    before, names = pieces[::2], pieces[1::2]
    texts = [pl.col(name).cast(pl.String).fill_null("") for name in names]
    given = [text.str.strip_chars() != "" for text in texts]
    parts = []
    for at, text in enumerate(texts):
        led = pl.any_horizontal(given[:at]) if at else pl.lit(False)
        between = pl.when(led).then(pl.lit(before[at])).otherwise(pl.lit(before[0]))
        parts.append(pl.when(given[at]).then(pl.concat_str(between, text)).otherwise(pl.lit("")))
    whole = pl.concat_str(*parts, pl.lit(tail))
    return pl.when(pl.any_horizontal(given)).then(whole)
