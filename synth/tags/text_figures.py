"""Free columns: what the text of an instruction or a response shows by itself. Pure polars; all
lengths are in characters.

Regular expressions run in polars' linear-time engine, so a hostile text cannot stall them.
"""

from __future__ import annotations

import polars as pl

from synth.duplicates.ngrams import characters, grams, words

VERSION = 3
"""Part of the name of what is remembered of a text; raised when the same text would give other
columns."""

SLICE = 20_000  # texts whose words are in memory at once
GRAM = 4  # words in a row that count as repeated

# An instruction that stops before it says what it is about: "Fix this code:", an opened bracket, a
# trailing "and the".
_CUT_END = (
    r"(?i)([:,;(\[{]|\.\.\.|…|-"
    r"|\b(and|or|but|the|a|an|of|to|with|for|in|is|are|that|which|because))\s*$"
)

# -- refusals --------------------------------------------------------------------------------------

_REFUSAL = (
    r"(?i)^\W*("
    # It is sorry,
    r"i['’]?m sorry|i am sorry|sorry,|i apologi[sz]e|my apologies"
    # or cannot,
    r"|i (can['’]?t|cannot|can not|won['’]?t|will not|am unable|am not able)\b"
    r"|i['’]?m (unable|not able)\b"
    # or says what it is.
    r"|as an? (ai|artificial intelligence|language model|large language model)\b"
    r"|unfortunately,? i (can['’]?t|cannot|am|['’]m))"
)

# An instruction refuses only as an assistant does: "I can't sleep" is a user's own sentence, and a
# response's pattern would take it for a refusal.
_NOT = r"(?:(?:can['’]?t|cannot|can not|won['’]?t|will not)|(?:am|['’]m) (?:unable|not able) to)"
_SERVE = (
    r"(?:assist|help (?:you\b|with|create|generat|writ)|help[.,!]|help$|provide|fulfil|comply"
    r"|satisfy|create|engage in|generate|promote)"
)
_AI = (
    r"(?:ai|artificial intelligence|(?:large )?language model)"
    r"(?: (?:language )?(?:model|assistant|chatbot))?"
    r"(?: (?:developed|created|trained) by [^,.\n]{1,40})?"
)
_SORRY = (
    r"(?:i['’]?m (?:\w+ )?sorry|i am (?:\w+ )?sorry|sorry|i apologi[sz]e|my apologies"
    r"|unfortunately)[,.:]? (?:but )?"
)
_AS_ASSISTANT = (
    rf"(?i)^\W*(?:{_SORRY}(?:as an? {_AI}\b"
    rf"|i ?{_NOT} (?:{_SERVE}|write|answer|discuss|offer|give|share|respond|do that))"
    rf"|as an? {_AI},? i(?:['’]m (?:not|unable)| am (?:not|unable)"
    rf"| ?{_NOT}| don['’]?t| do not| have no\b| must)|i['’]?m just an? {_AI}\b)"
)
# A refusal, unless the text goes on to ask something of its own.
_UNSORRY = rf"(?i)^\W*i ?{_NOT} {_SERVE}"
_ASKS = r"(?i)\?|\b(?:my|me|please|should i|do i|any (?:advice|ideas?|tips|suggestions))\b"
# What an assistant says of itself, and its offer of something else.
_ASSISTANTS_OWN = (
    r"(?i)\b(?:my (?:programming|guidelines|purpose|capabilit\w+|training|polic\w+|principles"
    r"|(?:ethical|safety) \w+)|let me know|for me to)\b"
    r"|[^.?!\n]*\b(?:(?:help|assist) you|(?:some|any)thing else|instead|would you like)\b"
    r"[^.?!\n]*\?"
)

# -- leaks -----------------------------------------------------------------------------------------

# Chat markup of the common families, so that a leak is seen without the tokenizer at hand.
_MARKUP = (
    r"<[|｜][^<>|｜\n]{1,40}[|｜]>|</?s>|<(start|end)_of_turn>|<(bos|eos|pad|unk)>"
    r"|\[/?INST\]|<</?SYS>>"
)

# A turn's header in plain words. Lower-case `user:` or `model:` is not one: those are keys of
# configuration files.
_SPEAKER = r"(USER|User|HUMAN|Human|ASSISTANT|Assistant|assistant|Chatbot)\**:"
_ROLE = (
    r"(?m)^[ \t>]*(#{2,4} ?\**((Instruction|Response)\**(:|[ \t]*$)|(Human|Assistant|User)\**:)"
    rf"|\**{_SPEAKER}|assistant[ \t]*$)"
    # Within a line, as templates without markup write them (" ASSISTANT:", "### Response:"): words
    # that no sentence has there. Not "chown $USER:$USER", and not "for the Assistant:".
    r"|[ \t](USER|ASSISTANT):(\s|\z)|#{3,4} (Instruction|Response):"
    r"|[.?!…\"”')][ \t]+(Human|Assistant):(\s|\z)"
)
# The words of such headers alone: what begins with letters is found many times faster than what
# begins with a line's start.
_ROLE_WORDS = rf"# ?\**(Instruction|Response)\**|{_SPEAKER}|assistant[ \t]*(\n|\z)"

_THINK = r"(?i)</?(think|thinking|thought|reasoning)>|◁/?think▷|<\|(begin|end)_of_thought\|>"


def instruction_columns(rows: pl.DataFrame) -> pl.DataFrame:
    """Free columns of instructions.

    `rows`: id, instruction, and optionally finish_reason. Returns, in the same order, [id,
    instruction_length (characters), incomplete, repetition (0 to 1), template_leak (special tokens
    of a chat template), role_leak (a turn's header in plain words, such as "Assistant:" or "###
    Response", at the start of a line, or within one where no sentence has it), think_leak (a think
    tag, closed or not), instruction_refusal (it refuses as an assistant does), exact_duplicate
    (false for the first row with that text)].
    """
    texts = rows["instruction"].fill_null("")
    text = pl.col("instruction").fill_null("")
    return rows.select(
        "id",
        instruction_length=text.str.len_chars().cast(pl.Int64),
        incomplete=_cut_off(rows) | text.str.contains(_CUT_END) | _open_fence(text),
        repetition=_repetition(rows["instruction"]),
        template_leak=text.str.contains(_MARKUP),
        role_leak=_role(texts),
        think_leak=text.str.contains(_THINK),
        instruction_refusal=_declines(texts),
        exact_duplicate=~text.is_first_distinct(),
    )


def response_columns(rows: pl.DataFrame) -> pl.DataFrame:
    """Free columns of responses.

    `rows`: id, response, and optionally finish_reason. Returns, in the same order, [id,
    response_length (characters), response_incomplete (cut off at max_tokens, or an odd code fence),
    response_repetition (0 to 1), refusal, response_template_leak, response_role_leak,
    response_think_leak]; a null response gives nulls.
    """
    text = pl.col("response")
    repetition = pl.lit(_repetition(rows["response"]))
    return rows.select(
        "id",
        response_length=text.str.len_chars().cast(pl.Int64),
        response_incomplete=_cut_off(rows) | _open_fence(text),
        response_repetition=pl.when(text.is_not_null()).then(repetition),
        refusal=text.str.contains(_REFUSAL),
        response_template_leak=text.str.contains(_MARKUP),
        response_role_leak=_role(rows["response"]),
        response_think_leak=text.str.contains(_THINK),
    )


def _cut_off(rows: pl.DataFrame) -> pl.Expr:
    """Whether the text ended at max_tokens, where the rows know."""
    if "finish_reason" not in rows.columns:
        return pl.lit(False)
    return (pl.col("finish_reason") == "length").fill_null(False)


def _open_fence(text: pl.Expr) -> pl.Expr:
    return text.str.count_matches("```") % 2 == 1


def _role(texts: pl.Series) -> pl.Series:
    """Whether a text holds a turn's header; null for a null text."""
    leaks = texts.str.contains(_ROLE_WORDS)
    hits = leaks.arg_true()
    return leaks.scatter(hits, texts.gather(hits).str.contains(_ROLE))


def _declines(texts: pl.Series) -> pl.Series:
    """Whether an instruction is an assistant's refusal; a user's "I can't ..." is none."""
    hits = texts.str.contains(_UNSORRY).arg_true()
    bare = ~texts.gather(hits).str.replace_all(_ASSISTANTS_OWN, "").str.contains(_ASKS)
    refusals = texts.str.contains(_AS_ASSISTANT)
    return refusals.scatter(hits, refusals.gather(hits) | bare)


def _repetition(texts: pl.Series) -> pl.Series:
    """Share of a text's word 4-grams that occurred in it before (0: all new); texts of fewer than
    four words have 0.

    A text in one piece, without any space, is read by characters.
    """
    starts = range(0, max(len(texts), 1), SLICE)
    return pl.concat([_repeated(texts.slice(start, SLICE)) for start in starts])


def _repeated(texts: pl.Series) -> pl.Series:
    """`_repetition` of texts whose words are in memory at once."""
    shares = pl.repeat(0.0, len(texts), eager=True)
    spaced = texts.str.contains(r"\s").fill_null(True)
    for rows, split in ((spaced.arg_true(), words), ((~spaced).arg_true(), characters)):
        runs = grams(split(texts.gather(rows)), GRAM)
        frame = pl.DataFrame({"row": rows.gather(runs.row), "hash": runs.hash})
        again = 1 - pl.col("hash").n_unique() / pl.len()
        counted = frame.group_by("row").agg(share=again)
        shares = shares.scatter(counted["row"], counted["share"])
    return shares
