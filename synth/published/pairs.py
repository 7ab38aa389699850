"""Preference data of any layout in the form that TRL's trainers take: prompt, chosen, rejected
(pairs), or prompt, completion, label (rated answers), all conversational."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import polars as pl

from core.columns import FAILED, MESSAGES, OK
from core.errors import UserError
from synth.config.rows import Reading
from synth.published import files
from synth.published.cells.failed import OF_A_PART, no_texts
from synth.published.files import Notes, Part
from synth.published.forms import TROUBLE, names_of
from synth.published.layouts import JOINED, Layout, laid_out, recognised
from synth.published.to_ours import truth
from synth.published.turns import conversations, shown

Turns = list[dict[str, str]]


def read(source: str, limit: int | None, how: Reading, notes: Notes) -> Iterator[pl.DataFrame]:
    """Rows of preference data: [id where the file has one, every other column, prompt, chosen,
    rejected] or [..., prompt, completion, label], and status, reason, failed_tags.

    What both answers begin with is the prompt. Raises UserError for data that is no preference
    data, and as `rows.read`.
    """
    sft = how.model_copy(update={"as_": "sft"})
    left = limit
    for each in files.sources(source):
        for part in files.parts_of(each, 10_000, how, left):
            rows = part if left is None else part.head(left)
            yield _trained(rows, sft, notes)
            left = None if left is None else left - len(rows.frame)
            if left is not None and left <= 0:
                return


def _trained(part: Part, how: Reading, notes: Notes) -> pl.DataFrame:
    """One batch in TRL's form."""
    layout = recognised(part.frame.schema, part.name, how)
    wrong = no_texts(part, layout)
    frame = laid_out(part.frame, layout)
    if layout.rejected:
        made, names = _pairs(frame, layout), ("prompt", "chosen", "rejected")
    elif layout.rated:
        if not layout.talk and layout.answered is None:
            raise UserError(
                f"{part.name}: no column holds the answers that {layout.rated} rates; say which "
                "does: --map response=COLUMN."
            )
        made, names = _rated(frame, layout), ("prompt", "completion", "label")
    else:
        raise UserError(
            f"{part.name} is no preference data ({layout.line}); leave --as preferences out."
        )
    last = layout.rejected or layout.rated
    given = " + ".join(
        [*(shown(c, frame.schema[c]) for c, _ in layout.talk or _texts(layout)), str(last)]
    )
    notes.layouts.setdefault(f"{layout.name}: {given} -> {', '.join(names)}", part.name)
    used = {*names, "status", "reason", "failed_tags", JOINED}
    used |= {name for name, _ in layout.talk} | {str(layout.rejected), str(layout.rated)}
    id_names = [n for n in names_of("id") if n in frame.columns]
    ids = [pl.coalesce(id_names).cast(pl.String).alias("id")] if id_names else []
    rest = [c for c in frame.columns if c not in used and c not in id_names]
    whole = pl.concat([frame.select(*ids, *rest), made], how="horizontal")
    where = [f" ({part.name} {part.unit} {place})" for place in part.places]
    twice = pl.lit(part.twice)
    why = pl.coalesce(pl.lit(wrong), pl.col("reason"))
    reason = pl.coalesce(twice, why + pl.Series(where, dtype=pl.String))
    return whole.with_columns(
        reason=reason,
        status=pl.when(reason.is_null()).then(pl.lit(OK)).otherwise(pl.lit(FAILED)),
        failed_tags=pl.lit([], TROUBLE),
    )


def _pairs(frame: pl.DataFrame, layout: Layout) -> pl.DataFrame:
    """[prompt, chosen, rejected, reason] of each row."""
    *before, (chosen, speaker) = layout.talk
    told = [
        conversations(frame, [*before, (answer, speaker)], whole=True)
        for answer in (chosen, str(layout.rejected))
    ]
    sides = [side["_messages"].to_list() for side in told]
    rows = [_pair(good or [], bad or []) for good, bad in zip(*sides, strict=True)]
    schema = {name: MESSAGES for name in ("prompt", "chosen", "rejected")}
    made = pl.DataFrame(rows, {**schema, "reason": pl.String}, orient="row")
    return _without_odd(made, *told)


def _without_odd(made: pl.DataFrame, *told: pl.DataFrame) -> pl.DataFrame:
    """Rows that also fail where a turn holds something else than texts."""
    odd = pl.coalesce(*(pl.lit(side["_odd"]) for side in told))
    return made.with_columns(reason=pl.coalesce(pl.format(OF_A_PART, odd), "reason"))


def _pair(good: Turns, bad: Turns) -> tuple[Turns, Turns, Turns, str | None]:
    """(prompt, chosen, rejected, why it is no pair)."""
    same = 0
    while same < min(len(good), len(bad)) and good[same] == bad[same]:
        same += 1
    prompt, chosen, rejected = good[:same], good[same:], bad[same:]
    reason = None
    if not chosen or not rejected:
        reason = "both answers are the same, or one is missing"
    elif not any(turn["role"] == "user" for turn in prompt):
        reason = "no prompt"
    elif chosen[0]["role"] == "user" or rejected[0]["role"] == "user":
        reason = "the answers are to different prompts"
    elif not all((turn["content"] or "").strip() for turn in (chosen[-1], rejected[-1])):
        reason = "an answer without text"
    return prompt, chosen, rejected, reason


def _rated(frame: pl.DataFrame, layout: Layout) -> pl.DataFrame:
    """[prompt, completion, label, reason] of each row."""
    spoken = conversations(frame, layout.talk or _texts(layout))
    told = spoken["_messages"].to_list()
    labels = frame.select(truth(str(layout.rated)))[str(layout.rated)].to_list()
    rows = [_split(turns or [], label) for turns, label in zip(told, labels, strict=True)]
    schema: Mapping[str, Any] = {"prompt": MESSAGES, "completion": MESSAGES, "label": pl.Boolean}
    made = pl.DataFrame(rows, {**schema, "reason": pl.String}, orient="row")
    return _without_odd(made, spoken)


def _texts(layout: Layout) -> list[tuple[str, str]]:
    asked = JOINED if layout.join else str(layout.asked)
    return [(asked, "user"), (str(layout.answered), "assistant")]


def _split(turns: Turns, label: bool | None) -> tuple[Turns, Turns, bool | None, str | None]:
    """(prompt, completion, label, why it is no rated answer): the last answer is what is rated."""
    prompt, completion = turns[:-1], turns[-1:]
    reason = None
    if label is None:
        reason = "no rating"
    elif not prompt or not completion or completion[0]["role"] != "assistant":
        reason = "it does not end with an answer"
    elif not (completion[0]["content"] or "").strip():
        reason = "an answer without text"
    return prompt, completion, label, reason
