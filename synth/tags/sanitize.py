"""What a teacher writes around an instruction, taken off: labels, wrappers, and its own answer. For
the teachers that need it (Gemma, Llama 3).

The original does this too (str_utils.py, `instruction_post_process`), but eats decimals, cuts at
the first "?" or the first line, never finds "Answer:", and keeps what became empty. Here only what
is recognised goes; everything else stays, to the letter. The raw text is kept beside.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import polars as pl

from core.columns import FAILED, OK
from synth.config import SynthConfig
from synth.context import Context

VERSION = 2
"""Part of the column's key."""

FIELDS: dict[str, Any] = {"sanitized_instruction": pl.String, "sanitizer_rule": pl.String}
EMPTY = "nothing is left of the instruction after sanitizing"

Rules = Literal["gemma", "llama-3"]

_LABEL = r"(?:original prompt|task|prompt|question|problem|scenario|situation|context|challenge|query|request|instructions?|descriptions?)"
_COUNTED = r"(?:question|part|problem|task|prompt|challenge)[ \t]+\d{1,3}"
_NUMBER = r"(?:\d{1,3}\.|\(?\d{1,3}\)|\(?[A-Za-z]\))[ \t\n]+"  # "3.14" has no space after its point
_PREFIX = (
    rf"(?i)\A(?:{_NUMBER}|Q\d{{0,3}}[.:][ \t\n]*"
    # "Task:", "**Task**:", "**Task:**", "## Task:"
    rf"|(?:#{{1,6}}[ \t]*)?\*{{0,2}}(?:{_LABEL}|{_COUNTED})[ \t]*(?:\*\*[ \t]*:|:[ \t]*\*\*|:)\s*"
    # "## Task" or "**Task**" on a line of its own
    rf"|(?:#{{1,6}}[ \t]*\*{{0,2}}|\*\*)(?:{_LABEL}|{_COUNTED})\*{{0,2}}[ \t]*\n\s*)+"
)
# One of several numbered things: then the numbers are the text's own.
_NUMBERED = rf"(?im)^[ \t*#]*(?:{_NUMBER}|Q\d{{1,3}}[.:]|{_COUNTED})"

_ANSWER = (
    r"(?im)^[ \t>]*(?:"
    r"(?:#{1,6}[ \t]*)?\*{0,2}(?:(?:correct|model|sample|final|suggested|possible|example)[ \t]+)?"
    r"(?:answer|solution)s?(?:[ \t]+key)?[ \t]*\*{0,2}[ \t]*:"
    r"|(?:#{1,6}[ \t]*\*{0,2}|\*\*)(?:answer|solution|response|explanation)s?[ \t]*:?[ \t]*\*{0,2}[ \t]*:?[ \t]*$"
    r"|\*{0,2}(?:assistant|chatbot)\*{0,2}[ \t]*:|assistant[ \t]*$"
    r")"
)
_EXPLANATION = r"(?im)^[ \t>]*\*{0,2}explanation\*{0,2}[ \t]*:"
_EXAMPLES = (
    r"(?im)^\W*(?:example|input|output)\b"  # of a programming task, whose explanations belong to it
)
_STEP = r"(?im)^[ \t]*#{1,6}[ \t]*\*{0,2}step[ \t]*1\b"

# what follows shows how to answer, and is no answer itself
_FORMAT = r"(?i)\b(?:format|template|structure)\b"
_TO_END = r"(?s:.*)\z"

_QUOTED = r"\A[\"“]([^\"“”]+)[\"”]\z"
_BOLD = r"\A(?:\*\*([^*\n]+)\*\*|\*([^*\s][^*\n]*)\*|<(?:b|strong)>([^<\n]+)</(?:b|strong)>)[ \t]*(\n|\z)"


def sanitized(texts: pl.Series, rules: Rules) -> pl.DataFrame:
    """Instructions without what the teacher wrote around them.

    `texts`: the raw instructions. `rules`: the family of the teacher; "llama-3" also cuts before a
    heading "Step 1", with which those models begin an answer. Returns, in the same order,
    [sanitized_instruction, sanitizer_rule], where the rule names what was done, in this order and
    joined by ",":

      answer   an answer that the teacher wrote itself, from its label ("Answer:", "## Solution", "assistant") at the start of a line to the end
      step     the same from "# Step 1"
      prefix   a label ("Task:", "**Prompt:**", "## Question 3:") or a list's number at the beginning, unless further numbers follow
      quote    quotation marks around the whole
      bold     asterisks or <b> around the whole first line

    "" means nothing but outer space was taken, and "empty" that nothing would be left: then the
    sanitized text is null.
    """
    frame = (
        texts.fill_null("")
        .str.strip_chars()
        .alias("text")
        .to_frame()
        .with_columns(pl.lit("").alias("rule"))
    )
    markers = {"answer": [_ANSWER, _EXPLANATION], "step": [_STEP] if rules == "llama-3" else []}
    for name, patterns in markers.items():
        for pattern in patterns:
            frame = _apply(frame, name, pattern, _before(pattern))
    frame = _apply(frame, "prefix", _PREFIX, _unlabelled())
    frame = _apply(frame, "quote", _QUOTED, pl.col("text").str.replace(_QUOTED, "$1"))
    frame = _apply(frame, "bold", _BOLD, pl.col("text").str.replace(_BOLD, "$1$2$3$4"))
    frame = _apply(frame, "prefix", _PREFIX, _unlabelled())
    gone = pl.col("text") == ""
    return frame.select(
        pl.when(~gone).then("text").alias("sanitized_instruction"),
        pl.when(gone)
        .then(pl.lit("empty"))
        .otherwise(pl.col("rule").str.strip_chars(","))
        .alias("sanitizer_rule"),
    )


def with_raw(part: pl.DataFrame, rules: Rules | None) -> pl.DataFrame:
    """Instructions as they are answered and tagged, with the raw text beside.

    `part`: instruction and, where it holds whole cells, status and reason. Returns it with
    `raw_instruction`, and under `rules` with the sanitized text as `instruction`; a cell of which
    nothing is left has failed.
    """
    part = part.with_columns(pl.col("instruction").alias("raw_instruction"))
    if rules is None:
        return part
    part = part.with_columns(
        sanitized(part["instruction"], rules)["sanitized_instruction"].alias("instruction")
    )
    if "status" not in part.columns:
        return part
    empty = pl.col("instruction").is_null() & (pl.col("status") == OK)
    marks = {"status": FAILED, "reason": EMPTY}
    return part.with_columns(
        [
            pl.when(empty).then(pl.lit(mark)).otherwise(name).alias(name)
            for name, mark in marks.items()
        ]
    )


def cell(config: SynthConfig, context: Context) -> dict[str, Any] | None:
    """What determines a cell; None without `synth.sanitize`."""
    return {"rules": config.sanitize, "VERSION": VERSION} if config.sanitize else None


def compute(rows: pl.DataFrame, config: SynthConfig, context: Context) -> Iterator[pl.DataFrame]:
    """The measure `sanitized` of rows [id, raw_instruction]."""
    assert config.sanitize is not None
    yield pl.concat(
        [rows.select("id"), sanitized(rows["raw_instruction"], config.sanitize)], how="horizontal"
    )


def _apply(frame: pl.DataFrame, name: str, pattern: str, made: pl.Expr) -> pl.DataFrame:
    """Texts [text, rule] after one rule; most texts hold no such pattern, and only those that do
    are looked at closely."""
    hits = frame["text"].str.contains(pattern).arg_true()
    if hits.is_empty():
        return frame
    part = frame[hits].with_columns(made.str.strip_chars().alias("made"))
    named = pl.col("rule").str.contains(name, literal=True)
    rule = (
        pl.when((pl.col("made") != pl.col("text")) & ~named)
        .then(pl.col("rule") + f",{name}")
        .otherwise("rule")
    )
    part = part.select("made", rule.alias("rule"))
    return frame.with_columns(
        frame["text"].scatter(hits, part["made"]), frame["rule"].scatter(hits, part["rule"])
    )


def _unlabelled() -> pl.Expr:
    text = pl.col("text")
    return (
        pl.when(text.str.count_matches(_NUMBERED) > 1)
        .then(text)
        .otherwise(text.str.replace(_PREFIX, ""))
    )


def _before(marker: str) -> pl.Expr:
    """The text before the first marker, unless that marker belongs to the instruction itself."""
    text = pl.col("text")
    head = text.str.replace(marker + _TO_END, "")
    fenced = head.str.count_matches("```") % 2 == 1
    shown = (text.str.count_matches(marker) > 1) & text.str.contains(
        marker + r"\s*\z"
    )  # examples, and a last label left open
    asked = (
        text.str.extract(f"({marker}[^\\n]*)")
        .str.strip_chars(' \t*"”')
        .str.ends_with("?")
        .fill_null(False)
    )  # "Explanation: why is it so?"
    kept = fenced | shown | asked | head.str.contains(_FORMAT)
    if marker == _EXPLANATION:
        kept |= text.str.contains(_EXAMPLES)
    return pl.when(kept).then(text).otherwise(head)
