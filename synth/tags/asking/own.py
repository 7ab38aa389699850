"""A recipe's own columns (`synth.tags.own`): declared and asked for like those of
synth/measures.py."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from core.errors import UserError
from synth.config.tags import OwnConfig, TagsConfig
from synth.measures import DECLARED, LONG, MEASURES, NUMBER, SHIPPED, TOKENS, WHOLE, Field_, Measure
from synth.measures import Measures as Table
from synth.tags.asking.tag import DIGITS, LETTERS, TAGS, TEXT, Labels, Schema, Tag

Own = Mapping[str, OwnConfig]

COST = {"instruction": 3, "response": 6}
"""As the shipped tags of the same text."""

_ROWS = """status reason heldout reserved of of_pair of_response index seed cell place sampling
revision template finish_reason tokens prompt_tokens failed_tags source_columns source_conversations
conversations source licence tool_turns row verdict keep unranked out has response_prompt_tokens"""
TAKEN = frozenset((*DECLARED, *MEASURES, *_ROWS.split()))
"""Names that a row's columns have already."""


def measures(config: TagsConfig) -> Table:
    """The shipped measures and the recipe's own. Raises UserError for a column whose name is
    taken."""
    if not config.own:
        return SHIPPED
    own = {name: _measure(name, each) for name, each in config.own.items()}
    _check_names(own)
    return Table({**MEASURES, **own})


def tags(config: TagsConfig) -> dict[str, Tag]:
    """Every LLM tag, the shipped ones and the recipe's own, by name."""
    asked = {name: each for name, each in config.own.items() if each.prompt is not None}
    return {**TAGS, **{name: _tag(name, each) for name, each in asked.items()}}


def _check_names(own: Mapping[str, Measure]) -> None:
    taken = dict.fromkeys(TAKEN, "a column that rows have anyway")
    for name, measure in own.items():
        for column in measure.columns:
            if column in taken:
                raise UserError(
                    f"synth.tags.own.{name}: `{column}` is the name of {taken[column]}; "
                    "take another name."
                )
        taken |= dict.fromkeys(measure.columns, f"a column of synth.tags.own.{name}")


def _measure(name: str, own: OwnConfig) -> Measure:
    """What the columns of one of them are: the value, the rank of an ordered label, and why."""
    asked = own.prompt is not None
    explained = {f"{name}_explanation": LONG} if asked and own.kind != "text" else {}
    columns = {name: _field(name, own), **explained}
    if columns[name].rank:
        columns[columns[name].rank] = Field_("number", follows=name)
    bought = {f"{name}_mass": NUMBER, **TOKENS}
    beside = bought if asked else {"prompt_tokens": WHOLE}
    return Measure(COST[own.reads], own.reads, columns, beside=beside)


def _field(name: str, own: OwnConfig) -> Field_:
    match own.kind:
        case "number":
            return NUMBER
        case "text":
            return LONG
        case "labels":
            return Field_("labels", members=own.labels)
    if own.ordered:
        return Field_("ordered", own.labels, rank=f"{name}_rank")
    return Field_("label", own.labels)


def _tag(name: str, own: OwnConfig) -> Tag:
    """How one of them is asked for."""
    explanation: dict[str, Schema] = {} if own.kind == "text" else {"explanation": TEXT}
    labels = _labels(own)
    return Tag(
        name,
        own.kind,
        labels,
        codes_of(labels, own),
        _field(name, own).rank or None,
        Path(own.prompt or "").expanduser(),
        {**explanation, name: _schema(own, labels)},
        {"explanation": f"{name}_explanation"},
        f"{name}_mass",
        own.reads,
    )


def _labels(own: OwnConfig) -> Labels:
    """What the codes stand for: labels, or the whole numbers between two."""
    if own.kind == "number" and own.between:
        low, high = own.between
        return tuple(range(low, high + 1)) if own.mode == "label" else ()
    return own.labels


def codes_of(labels: Labels, own: OwnConfig) -> str:
    """A code for each label: a number is its own, few labels in order are numbered from 1, others
    are lettered."""
    if own.kind == "number":
        return "".join(map(str, labels))
    if own.ordered and len(labels) < 10:
        return DIGITS[: len(labels)]
    return LETTERS[: len(labels)]


def _schema(own: OwnConfig, labels: Labels) -> Schema:
    """What an answer in JSON must be like."""
    match own.kind:
        case "text":
            return TEXT
        case "labels":
            items = {"type": "string", "enum": list(labels)}
            return {"type": "array", "items": items, "maxItems": len(labels)}
        case "number":
            low, high = own.between or (None, None)
            limits = {"minimum": low, "maximum": high}
            return {"type": "number", **{k: v for k, v in limits.items() if v is not None}}
    return {"type": "string", "enum": list(labels)}
