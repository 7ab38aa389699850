"""What a teacher writes around an instruction, taken off: labels, wrappers, and its own answer. For
the teachers that need it (Gemma, Llama 3).

The original does this too (str_utils.py, `instruction_post_process`), but eats decimals, cuts at
the first "?" or the first line, never finds "Answer:", and keeps what became empty. Here only what
is recognised goes; everything else stays, to the letter. The raw text is kept beside.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any, Literal

import polars as pl

from core.columns import FAILED, OK
from synth.config.synthesis import SynthConfig
from synth.context import Context

VERSION = 3
"""Part of the column's key."""

EMPTY = "nothing is left of the instruction after sanitizing"

Rules = Literal["gemma", "llama-3"]

# -- what stands before an instruction -------------------------------------------------------------

_LABEL = (
    r"(?:original prompt|task|prompt|question|problem|scenario|situation|context|challenge|query"
    r"|request|instructions?|descriptions?)"
)
_COUNTED = r"(?:question|part|problem|task|prompt|challenge)[ \t]+\d{1,3}"
_NUMBER = r"(?:\d{1,3}\.|\(?\d{1,3}\)|\(?[A-Za-z]\))[ \t\n]+"  # "3.14" has no space after its point
_NAMED = (
    # "Task:", "**Task**:", "**Task:**", "## Task:"
    rf"(?:#{{1,6}}[ \t]*)?\*{{0,2}}(?:{_LABEL}|{_COUNTED})[ \t]*(?:\*\*[ \t]*:|:[ \t]*\*\*|:)\s*"
    # "## Task" or "**Task**" on a line of its own
    rf"|(?:#{{1,6}}[ \t]*\*{{0,2}}|\*\*)(?:{_LABEL}|{_COUNTED})\*{{0,2}}[ \t]*\n\s*"
)
_PREFIX = rf"(?i)\A(?:{_NUMBER}|Q\d{{0,3}}[.:][ \t\n]*|{_NAMED})+"
# One of several numbered things: then the numbers are the text's own.
_NUMBERED = rf"(?im)^[ \t*#]*(?:{_NUMBER}|Q\d{{1,3}}[.:]|{_COUNTED})"
_LAST_NUMBER, _LAST_LETTER = r"\b(\d{1,3})[.)]\s*\z", r"(?:\A|[\s(])([A-Za-z])\)\s*\z"
_NEXT_LETTER = {
    a: b
    for case in ("abcdefghijklmnopqrstuvwxyz", "ABCDEFGHIJKLMNOPQRSTUVWXYZ")
    for a, b in pairwise(case)
}

# -- where the teacher's own answer begins ---------------------------------------------------------

_ANSWER = (
    r"(?im)^[ \t>]*(?:"
    # "Answer:", "**Correct answer**:", "## Solution key:"
    r"(?:#{1,6}[ \t]*)?\*{0,2}(?:(?:correct|model|sample|final|suggested|possible|example)[ \t]+)?"
    r"(?:answer|solution)s?(?:[ \t]+key)?[ \t]*\*{0,2}[ \t]*:"
    # "## Solution" or "**Response**" on a line of its own
    r"|(?:#{1,6}[ \t]*\*{0,2}|\*\*)(?:answer|solution|response|explanation)s?"
    r"[ \t]*:?[ \t]*\*{0,2}[ \t]*:?[ \t]*$"
    # "Assistant:", or "assistant" alone
    r"|\*{0,2}(?:assistant|chatbot)\*{0,2}[ \t]*:|assistant[ \t]*$"
    r")"
)
_EXPLANATION = r"(?im)^[ \t>]*\*{0,2}explanation\*{0,2}[ \t]*:"
_STEP = r"(?im)^[ \t]*#{1,6}[ \t]*\*{0,2}step[ \t]*1\b"

# -- what says that such a place belongs to the instruction ----------------------------------------

# A programming task, whose explanations belong to it.
_EXAMPLES = r"(?im)^\W*(?:example|input|output)\b"
# What follows shows how to answer, and is no answer itself.
_FORMAT = r"(?i)\b(?:format|template|structure)\b"
_TO_END = r"(?s:.*)\z"

# -- what stands around an instruction -------------------------------------------------------------

_QUOTED = r"\A[\"“]([^\"“”]+)[\"”]\z"
_BOLD = (
    r"\A(?:\*\*([^*\n]+)\*\*|\*([^*\s][^*\n]*)\*|<(?:b|strong)>([^<\n]+)</(?:b|strong)>)"
    r"[ \t]*(\n|\z)"
)


def sanitized(texts: pl.Series, rules: Rules) -> pl.DataFrame:
    """Instructions without what the teacher wrote around them.

    `texts`: the raw instructions. `rules`: the family of the teacher; "llama-3" also cuts before a
    heading "Step 1", with which those models begin an answer. Returns, in the same order,
    [sanitized_instruction, sanitizer_rule], where the rule names what was done, in this order and
    joined by ",":

      answer   an answer that the teacher wrote itself, from its label ("Answer:", "## Solution",
               "assistant") at the start of a line to the end
      step     the same from "# Step 1"
      prefix   a label ("Task:", "**Prompt:**", "## Question 3:") or a list's number at the
               beginning, unless further numbers follow, on lines of their own or within the line
               ("A) foo B) bar")
      quote    quotation marks around the whole
      bold     asterisks or <b> around the whole first line

    "" means nothing but outer space was taken, and "empty" that nothing would be left: then the
    sanitized text is null.
    """
    text = pl.col("text")
    several = text.str.count_matches(_NUMBERED) > 1
    unlabelled = (
        pl.when(several)
        .then(text)
        .when(_goes_on(text))
        .then(text.str.replace(rf"(?i)\A(?:{_NAMED})+", ""))
        .otherwise(text.str.replace(_PREFIX, ""))
    )
    steps = [
        ("answer", _ANSWER, _before(_ANSWER)),
        ("answer", _EXPLANATION, _before(_EXPLANATION, unless=text.str.contains(_EXAMPLES))),
        ("step", _STEP, _before(_STEP)),
        ("prefix", _PREFIX, unlabelled),
        ("quote", _QUOTED, text.str.replace(_QUOTED, "$1")),
        ("bold", _BOLD, text.str.replace(_BOLD, "$1$2$3$4")),
        ("prefix", _PREFIX, unlabelled),  # of what stood inside quotes or asterisks
    ]
    stripped = texts.fill_null("").str.strip_chars()
    frame = pl.DataFrame({"text": stripped, "rule": pl.repeat("", len(texts), eager=True)})
    for name, pattern, shortened in steps:
        if name != "step" or rules == "llama-3":
            frame = _apply(frame, name, pattern, shortened)
    gone = text == ""
    named = pl.col("rule").str.strip_chars(",")
    return frame.select(
        sanitized_instruction=pl.when(~gone).then("text"),
        sanitizer_rule=pl.when(gone).then(pl.lit("empty")).otherwise(named),
    )


def with_raw(part: pl.DataFrame, rules: Rules | None) -> pl.DataFrame:
    """Instructions as they are answered and tagged, with the raw text beside.

    `part`: instruction and, where it holds whole cells, status and reason. Returns it with
    `raw_instruction`, and under `rules` with the sanitized text as `instruction`; a cell of which
    nothing is left has failed.
    """
    part = part.with_columns(raw_instruction="instruction")
    if rules is None:
        return part
    texts = sanitized(part["instruction"], rules)["sanitized_instruction"]
    part = part.with_columns(texts.alias("instruction"))
    if "status" not in part.columns:
        return part
    empty = pl.col("instruction").is_null() & (pl.col("status") == OK)
    return part.with_columns(
        status=pl.when(empty).then(pl.lit(FAILED)).otherwise("status"),
        reason=pl.when(empty).then(pl.lit(EMPTY)).otherwise("reason"),
    )


def cell(config: SynthConfig, context: Context) -> dict[str, Any] | None:
    """What determines a cell; None without `synth.sanitize`."""
    return {"rules": config.sanitize, "VERSION": VERSION} if config.sanitize else None


def compute(rows: pl.DataFrame, config: SynthConfig, context: Context) -> Iterator[pl.DataFrame]:
    """The measure `sanitized` of rows [id, raw_instruction]; nothing without `synth.sanitize`."""
    if config.sanitize:
        yield sanitized(rows["raw_instruction"], config.sanitize).insert_column(0, rows["id"])


def _apply(frame: pl.DataFrame, name: str, pattern: str, shortened: pl.Expr) -> pl.DataFrame:
    """Texts [text, rule] after one step; most texts hold no such pattern, and only those that do
    are looked at closely."""
    hits = frame["text"].str.contains(pattern).arg_true()
    text, rule = pl.col("text"), pl.col("rule")
    changed = (pl.col("shortened") != text) & ~rule.str.contains(name, literal=True)
    part = (
        frame[hits]
        .with_columns(shortened=shortened.str.strip_chars())
        .with_columns(rule=pl.when(changed).then(rule + f",{name}").otherwise("rule"))
    )
    return frame.with_columns(
        frame["text"].scatter(hits, part["shortened"]), frame["rule"].scatter(hits, part["rule"])
    )


def _goes_on(text: pl.Expr) -> pl.Expr:
    """Whether the list's number or letter that stands before a text has its successor in it."""
    prefix = text.str.extract(f"({_PREFIX})")
    number = prefix.str.extract(_LAST_NUMBER).cast(pl.Int64) + 1
    letter = prefix.str.extract(_LAST_LETTER).replace_strict(_NEXT_LETTER, default=None)
    mark = pl.coalesce(pl.format(r"\s\(?{}[.)]\s", number), pl.format(r"\s\(?{}\)", letter))
    return text.str.contains(mark).fill_null(False)


def _before(marker: str, unless: pl.Expr | None = None) -> pl.Expr:
    """The text before the first marker, unless that marker belongs to the instruction itself."""
    text = pl.col("text")
    head = text.str.replace(marker + _TO_END, "")
    fenced = head.str.count_matches("```") % 2 == 1
    # Examples, and a last label left open.
    left_open = (text.str.count_matches(marker) > 1) & text.str.contains(marker + r"\s*\z")
    # "Explanation: why is it so?"
    line = text.str.extract(f"({marker}[^\\n]*)").str.strip_chars(' \t*"”')
    asked = line.str.ends_with("?").fill_null(False)
    kept = fenced | left_open | asked | head.str.contains(_FORMAT)
    if unless is not None:
        kept |= unless
    return pl.when(kept).then(text).otherwise(head)
