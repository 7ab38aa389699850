"""Everything that can be measured of a row, and the columns that a filter may name. Light: what
computes them is in synth/pool/computed.py."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

QUALITY = ("very poor", "poor", "average", "good", "excellent")
DIFFICULTY = ("very easy", "easy", "medium", "hard", "very hard")
CATEGORY = (
    "Information seeking",
    "Reasoning",
    "Planning",
    "Editing",
    "Coding & Debugging",
    "Math",
    "Role playing",
    "Data analysis",
    "Creative writing",
    "Advice seeking",
    "Brainstorming",
    "Others",
)
SAFETY = ("safe", "controversial", "unsafe")
FINISH = ("stop", "length")


@dataclass(frozen=True)
class Field_:
    """One column a filter may name: `kind` is number, bool, text, label (unordered) or ordered;
    labels in rising order.

    `long` texts (instructions, responses, explanations) are read from disk only where a filter
    names them.
    """

    kind: Literal["number", "bool", "text", "label", "ordered"]
    labels: tuple[str, ...] = ()
    long: bool = False


@dataclass(frozen=True)
class Measure:
    """One thing that is measured at once and fills one or more columns.

    `cost` orders the schedule (cheapest first); `reads` says what a cell is of: the row's
    instruction, its conversation (instruction and response), or the whole pool; `after` names the
    measures whose cells it needs besides.
    """

    cost: int
    reads: Literal["instruction", "response", "pool"]
    columns: dict[str, Field_]
    after: tuple[str, ...] = ()


NUMBER, TEXT, BOOL, LONG = (
    Field_("number"),
    Field_("text"),
    Field_("bool"),
    Field_("text", long=True),
)

MEASURES: dict[str, Measure] = {
    "text": Measure(
        0,
        "instruction",
        {
            "instruction": LONG,
            "raw_instruction": LONG,
            "instruction_length": NUMBER,
            "instruction_tokens": NUMBER,
            "instruction_finish_reason": Field_("label", FINISH),
            "incomplete": BOOL,
            "exact_duplicate": BOOL,
            "repetition": NUMBER,
            "template_leak": BOOL,
            "role_leak": BOOL,
            "think_leak": BOOL,
            "instruction_refusal": BOOL,
            "temperature": NUMBER,
            "top_p": NUMBER,
            "system_prompt": TEXT,
        },
    ),
    "sanitized": Measure(1, "instruction", {"sanitized_instruction": LONG, "sanitizer_rule": TEXT}),
    "language": Measure(1, "instruction", {"language": TEXT}),
    "pii": Measure(1, "instruction", {"pii": TEXT}),
    "overlap": Measure(1, "instruction", {"eval_overlap": NUMBER, "eval_overlap_prompt": TEXT}),
    "minhash": Measure(2, "pool", {"minhash_group": TEXT, "minhash_duplicate": BOOL}),
    "neighbors": Measure(
        2,
        "pool",
        {
            "min_neighbor_distance": NUMBER,
            "repeat_count": NUMBER,
            "min_similar_id": TEXT,
            "near_duplicate": BOOL,
            "neighbor_group": TEXT,
            "neighbor_group_size": NUMBER,
            "neighbor_group_duplicate": BOOL,
            "neighbor_recall": NUMBER,
        },
    ),
    "eval_distance": Measure(2, "instruction", {"eval_distance": NUMBER}),
    "quality": Measure(
        3,
        "instruction",
        {
            "input_quality": Field_("ordered", QUALITY),
            "input_quality_rank": NUMBER,
            "quality_explanation": LONG,
        },
    ),
    "difficulty": Measure(
        3,
        "instruction",
        {
            "difficulty": Field_("ordered", DIFFICULTY),
            "difficulty_rank": NUMBER,
            "intent": LONG,
            "knowledge": LONG,
        },
    ),
    "category": Measure(3, "instruction", {"task_category": Field_("label", CATEGORY)}),
    "response": Measure(
        5,
        "instruction",
        {
            "response": LONG,
            "thinking": LONG,
            "response_length": NUMBER,
            "response_tokens": NUMBER,
            "response_finish_reason": Field_("label", FINISH),
            "response_incomplete": BOOL,
            "response_repetition": NUMBER,
            "refusal": BOOL,
            "response_template_leak": BOOL,
            "response_role_leak": BOOL,
            "response_think_leak": BOOL,
        },
    ),
    "response_pii": Measure(6, "response", {"response_pii": TEXT}),
    "ifd": Measure(6, "response", {"ifd": NUMBER}),
    "pair_score": Measure(
        6,
        "response",
        {"pair_score": NUMBER, "pair_score_rank": NUMBER, "pair_score_explanation": LONG},
    ),
    "reward": Measure(6, "response", {"instruct_reward": NUMBER}),
    "safety": Measure(
        7,
        "response",
        {"safety": Field_("ordered", SAFETY), "safety_categories": TEXT, "llama_guard_2": TEXT},
    ),
    "base_response": Measure(8, "instruction", {"base_output": LONG}, ("response",)),
    "reward_difference": Measure(
        9,
        "response",
        {"base_reward": NUMBER, "reward_difference": NUMBER},
        ("base_response", "reward"),
    ),
    "turns": Measure(10, "response", {"messages": LONG, "turns": NUMBER}),
}
"""Cheapest first (ties: the order here). `base_response` reads the instruction only, but is never
bought before the response."""

COLUMNS: dict[str, tuple[str, Field_]] = {
    name: (measure, field) for measure, m in MEASURES.items() for name, field in m.columns.items()
}
"""Column name -> (the measure that fills it, its declaration)."""


def by_cost() -> list[str]:
    """The measures, cheapest first."""
    return sorted(MEASURES, key=lambda m: MEASURES[m].cost)


def prerequisites(measure: str) -> tuple[str, ...]:
    """The measures whose cells a cell of `measure` needs, direct ones only, the response among them
    where it reads one."""
    declared = MEASURES[measure]
    return (("response",) if declared.reads == "response" else ()) + declared.after


def long_columns(columns: Iterable[str]) -> frozenset[str]:
    """Those of the columns that hold long texts."""
    return frozenset(c for c in columns if COLUMNS[c][1].long)
