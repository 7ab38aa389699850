"""What a column is: everything that can be measured of a row, declared once, light.

What computes a measure is in synth/pool/computed.py, how a column follows from others in
synth/published/cells/derived.py, and the order of a published form's columns in
synth/published/forms.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    import polars as pl

    PolarsType = pl.DataType | type[pl.DataType]
    PolarsTypes = Mapping[str, PolarsType]

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
    """One column. A filter may name numbers, truths, texts, labels (unordered) and ordered labels;
    `labels` is a list of labels, `turns` a conversation, and `other` is kept as it comes."""

    kind: Literal["number", "bool", "text", "label", "ordered", "labels", "turns", "other"]
    labels: tuple[str, ...] = ()
    """In rising order."""
    members: tuple[str, ...] = ()
    """What a list of labels may hold; none given: any label."""
    long: bool = False
    """A long text (instruction, response, explanation): read from disk only where a filter names
    it."""
    whole: bool = False
    """A number that is stored as an integer."""
    source: Literal["cell", "words", "reading"] = "cell"
    """Where a value comes from: a cell of its measure; the words, by synth/tags/text_figures.py;
    or what else there is when cells are read."""
    follows: str = ""
    """The column that it is worked out of or comes with: rows that bring that one bring this."""
    rank: str = ""
    """The column with the rank of a label: 1.0 is the lowest."""
    generator: str = ""
    """The column of a published file that names the model which filled this one."""
    published: tuple[str, ...] = ()
    """Its names in published files: in the form of 23 columns, in that of 25, then others that are
    read; none given: its own."""

    @property
    def stored(self) -> PolarsType:
        """The polars type of a stored cell."""
        import polars as pl

        return pl.Enum(self.labels) if self.labels else self.plain

    @property
    def plain(self) -> PolarsType:
        """The polars type where labels may be any text, as in published files."""
        import polars as pl

        from core.columns import MESSAGES

        if self.whole:
            return pl.Int64
        types: PolarsTypes = {
            "number": pl.Float64,
            "bool": pl.Boolean,
            "labels": pl.List(pl.String),
            "turns": MESSAGES,
        }
        return types.get(self.kind, pl.String)


@dataclass(frozen=True)
class Measure:
    """One thing that is measured at once and fills one or more columns.

    `cost` orders the schedule (cheapest first); `reads` says what a cell is of: the row's
    instruction, its conversation (instruction and response), or the whole pool; `after` names the
    measures whose cells it needs besides.
    """

    cost: int
    reads: Literal["instruction", "response", "pool"]
    columns: Mapping[str, Field_]
    after: tuple[str, ...] = ()
    beside: Mapping[str, Field_] = field(default_factory=dict)
    """What a cell holds besides, which no filter may name."""
    asks: bool = False
    """Its first column is a label that a language model is asked for (synth/tags/llm.py) with the
    prompt synth/tags/prompts/NAME.jinja; NAME_mass beside holds what its codes carry of the
    probability."""

    @property
    def of(self) -> str:
        """The column of the pool's frame that says which text a cell is of."""
        return "of_pair" if self.reads == "response" else "of"

    @property
    def stored(self) -> dict[str, PolarsType]:
        """What a cell holds, with its polars types."""
        held = {name: each for name, each in self.columns.items() if each.source == "cell"}
        return {name: each.stored for name, each in {**held, **self.beside}.items()}


NUMBER, WHOLE = Field_("number"), Field_("number", whole=True)
TEXT, LONG, BOOL = Field_("text"), Field_("text", long=True), Field_("bool")
TOKENS = {"tokens": WHOLE, "prompt_tokens": WHOLE}
"""Of a cell that was bought: tokens generated, and tokens of its prompt."""

_words = partial(Field_, source="words")
_reading = partial(Field_, source="reading")
_answer = partial(Field_, follows="response")
_answer_words = partial(_words, follows="response")

MEASURES: dict[str, Measure] = {
    "text": Measure(
        0,
        "instruction",
        {
            "instruction": Field_("text", long=True, published=("input", "instruction", "prompt")),
            "raw_instruction": LONG,
            "instruction_length": _words(
                "number", whole=True, published=("input_length", "instruction_length")
            ),
            "instruction_tokens": _reading("number"),
            "instruction_finish_reason": _reading("label", FINISH),
            "incomplete": _words("bool"),
            "exact_duplicate": _words("bool"),
            "repetition": _words("number"),
            "template_leak": _words("bool"),
            "role_leak": _words("bool"),
            "think_leak": _words("bool"),
            "instruction_refusal": _words("bool"),
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
            "repeat_count": WHOLE,
            "min_similar_id": Field_(
                "text",
                published=(
                    "min_similar_uuid",
                    "min_similar_uuid",
                    "min_similar_conversation_id",
                    "min_similar_id",
                ),
            ),
            "near_duplicate": _reading("bool", follows="min_similar_id"),
            "neighbor_group": TEXT,
            "neighbor_group_size": WHOLE,
            "neighbor_group_duplicate": BOOL,
            "neighbor_recall": NUMBER,
        },
    ),
    "eval_distance": Measure(2, "instruction", {"eval_distance": NUMBER}),
    "quality": Measure(
        3,
        "instruction",
        {
            "input_quality": Field_(
                "ordered", QUALITY, rank="input_quality_rank", generator="quality_generator"
            ),
            "input_quality_rank": Field_("number", follows="input_quality"),
            "quality_explanation": LONG,
        },
        beside={"quality_mass": NUMBER, **TOKENS},
        asks=True,
    ),
    "difficulty": Measure(
        3,
        "instruction",
        {
            "difficulty": Field_(
                "ordered", DIFFICULTY, rank="difficulty_rank", generator="difficulty_generator"
            ),
            "difficulty_rank": Field_("number", follows="difficulty"),
            "intent": LONG,
            "knowledge": LONG,
        },
        beside={"difficulty_mass": NUMBER, **TOKENS},
        asks=True,
    ),
    "category": Measure(
        3,
        "instruction",
        {"task_category": Field_("label", CATEGORY, generator="task_category_generator")},
        beside={"other_task_category": Field_("labels"), "category_mass": NUMBER, **TOKENS},
        asks=True,
    ),
    "response": Measure(
        5,
        "instruction",
        {
            "response": _answer("text", long=True, published=("output", "response")),
            "thinking": _answer("text", long=True),
            "response_length": _answer_words(
                "number",
                whole=True,
                published=("output_length", "response_length"),
            ),
            "response_tokens": _answer("number", source="reading"),
            "response_finish_reason": _answer("label", FINISH, source="reading"),
            "response_incomplete": _answer_words("bool"),
            "response_repetition": _answer_words("number"),
            "refusal": _answer_words("bool"),
            "response_template_leak": _answer_words("bool"),
            "response_role_leak": _answer_words("bool"),
            "response_think_leak": _answer_words("bool"),
        },
        # all_tokens: generated for several answers, of which this one is the best
        beside={"finish_reason": TEXT, **TOKENS, "all_tokens": WHOLE},
    ),
    "response_pii": Measure(6, "response", {"response_pii": TEXT}),
    "superfilter": Measure(6, "response", {"superfilter": NUMBER}, beside=TOKENS),
    "ifd": Measure(6, "response", {"ifd": NUMBER}, beside=TOKENS),
    "fit": Measure(6, "response", {"fit": NUMBER}, beside=TOKENS),
    "pair_score": Measure(
        6,
        "response",
        {
            "pair_score": Field_("number", whole=True, rank="pair_score_rank"),
            "pair_score_rank": NUMBER,
            "pair_score_explanation": LONG,
        },
        beside={"pair_score_mass": NUMBER, **TOKENS},
        asks=True,
    ),
    "reward": Measure(
        6,
        "response",
        {"instruct_reward": Field_("number", generator="reward_model")},
        beside={"prompt_tokens": WHOLE},
    ),
    "safety": Measure(
        7,
        "response",
        {
            "safety": Field_("ordered", SAFETY, follows="llama_guard_2"),
            "safety_categories": TEXT,
            "llama_guard_2": TEXT,
        },
        beside=TOKENS,
    ),
    "base_response": Measure(
        8,
        "instruction",
        {"base_output": LONG},
        after=("response",),
        beside={"base_finish_reason": TEXT, **TOKENS},
    ),
    "rip": Measure(
        8,
        "instruction",
        {"worst_reward": NUMBER, "worst_length": WHOLE, "reward_gap": NUMBER},
        beside=TOKENS,
    ),
    "reward_difference": Measure(
        9,
        "response",
        {"base_reward": NUMBER, "reward_difference": NUMBER},
        after=("base_response", "reward"),
        beside={"prompt_tokens": WHOLE},
    ),
    "turns": Measure(
        10,
        "response",
        {
            "messages": Field_("turns", long=True, published=("conversations", "conversations")),
            "turns": Field_("number", whole=True, follows="messages"),
        },
        beside=TOKENS,
    ),
}
"""Cheapest first (ties: the order here). `base_response` reads the instruction only, but is never
bought before the response."""


class Filled(NamedTuple):
    """A column as it is declared, and the measure that fills it."""

    measure: str
    field: Field_


@dataclass(frozen=True, eq=False)
class Measures:
    """A table of measures: the one above, or with a recipe's own columns besides
    (`synth.tags.own`)."""

    table: Mapping[str, Measure]

    @cached_property
    def columns(self) -> dict[str, Filled]:
        """Every column that can be measured, by name."""
        return {
            name: Filled(measure, declared)
            for measure, m in self.table.items()
            for name, declared in m.columns.items()
        }

    @cached_property
    def fields(self) -> dict[str, Field_]:
        """What a filter may name: every column but the list of turns, which nothing compares."""
        return {name: each for name, (_, each) in self.columns.items() if name != "messages"}

    def by_cost(self) -> list[str]:
        """The measures, cheapest first."""
        return sorted(self.table, key=lambda m: self.table[m].cost)

    def filling(self, columns: Iterable[str]) -> list[str]:
        """The measures that fill these columns, cheapest first; what the text itself shows needs no
        measuring."""
        wanted = {self.columns[c].measure for c in columns} - {"text"}
        return [m for m in self.by_cost() if m in wanted]

    def prerequisites(self, measure: str) -> tuple[str, ...]:
        """The measures whose cells a cell of `measure` needs, direct ones only, the response among
        them where it reads one."""
        declared = self.table[measure]
        return (("response",) if declared.reads == "response" else ()) + declared.after

    def long_columns(self, columns: Iterable[str]) -> frozenset[str]:
        """Those of the columns that hold long texts."""
        return frozenset(c for c in columns if self.columns[c].field.long)


SHIPPED = Measures(MEASURES)
"""What can be measured without a recipe's own columns."""

COLUMNS = SHIPPED.columns

POOLED = tuple(name for name, m in MEASURES.items() if m.reads == "pool")
"""The measures of the whole pool; a recipe's own columns are none of them."""

GENERATORS = {c.field.generator: name for name, c in COLUMNS.items() if c.field.generator}
"""Column that names a model -> the column that this model filled."""

_IDS = ("conversation_id", "id", "prompt_id", "conversation_hash", "idx")

DECLARED: dict[str, Field_] = {
    "id": Field_("text", published=("uuid", "uuid", *_IDS)),
    "model": TEXT,
    "gen_input_config": Field_("other", published=("gen_input_config", "gen_input_configs")),
    **MEASURES["category"].beside,
    **dict.fromkeys(GENERATORS, TEXT),
    **{name: declared for name, (_, declared) in COLUMNS.items()},
}
"""Every column that rows are exchanged with: those that are measured, and those that are not."""
