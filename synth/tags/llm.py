"""Tags by language models: quality, difficulty and category of an instruction, and a score of the
pair of instruction and response.

Two ways to ask a judge. `label`: one token out of one-token codes (1 to 5, A to L) with its
log-probabilities, so the label comes with an expected rank. `explain`: JSON constrained by a
schema, explanation first, as in the paper; a brace inside an explanation cannot break it (the
original stopped at the first "}" and lost those rows). What cannot be read is a failed cell with
its reason.
"""

from __future__ import annotations

import functools
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from core.errors import UserError
from core.servers import Endpoint
from core.store import canonical
from synth.chat.encoding import encode_question
from synth.generate.ask import Fields, Frames, Row, Rows, Unreadable, answers
from synth.measures import MEASURES, Measure

if TYPE_CHECKING:
    from jinja2 import Template
    from transformers import PreTrainedTokenizerBase

VERSION = 1
"""Part of every key of a tag; raised when the same settings would give other tags."""

MODES = ("label", "explain")
DIGITS = "12345"
LETTERS = "ABCDEFGHIJKL"
EXPLAIN_TOKENS = 512
"""max_tokens of an explanation where the recipe's sampling gives none."""

Labels = tuple[str, ...] | tuple[int, ...]
Schema = dict[str, Any]
"""A JSON schema."""

# How the JSON of an explanation says a type, how Python and a stored column do.
_TYPES: dict[str, tuple[type, Any]] = {
    "string": (str, pl.String),
    "integer": (int, pl.Int64),
    "array": (list, pl.List(pl.String)),
}


@dataclass(frozen=True)
class Tag:
    """One LLM tag: its label column, labels with one code each, the rank column of ordered labels,
    and the fields of an explanation in order."""

    label: str
    labels: Labels
    codes: str
    rank: str | None
    prompt: str
    explanation: Mapping[str, Schema]
    names: Mapping[str, str] = field(default_factory=dict)
    """Columns of fields that are stored under another name."""

    @property
    def fields(self) -> Fields:
        """Value columns of this tag's frames with their types."""
        texts = {
            self.names.get(name, name): _TYPES[schema["type"]][1]
            for name, schema in self.explanation.items()
        }
        ranks = {self.rank: pl.Float64} if self.rank else {}
        return {self.label: texts[self.label], **ranks, **texts}

    @property
    def schema(self) -> Schema:
        """What the JSON of an explanation must be like."""
        return {
            "type": "object",
            "properties": dict(self.explanation),
            "required": list(self.explanation),
            "additionalProperties": False,
        }


# maxLength lets the grammar close a string that a small model would never end.
_TEXT = {"type": "string", "minLength": 1, "maxLength": 600}
_SCORES = (1, 2, 3, 4, 5)


def _declared(name: str, measure: Measure) -> Tag:
    """A tag as synth/measures.py declares its columns: texts are explained first, then comes the
    label, then other labels that fit as well."""
    label, declared = next(iter(measure.columns.items()))
    labels: Labels = declared.labels or _SCORES
    codes = LETTERS if declared.kind == "label" else DIGITS
    names = {
        "explanation" if column.endswith("_explanation") else column: column
        for column, each in measure.columns.items()
        if each.long
    }
    one: Schema = {"type": "string" if declared.labels else "integer", "enum": list(labels)}
    several: Schema = {"type": "array", "items": one, "maxItems": 4}
    others = [column for column, each in measure.beside.items() if each.kind == "labels"]
    explanation = {**dict.fromkeys(names, _TEXT), label: one, **dict.fromkeys(others, several)}
    rank = declared.rank or None
    prompt = f"{name}.jinja"
    return Tag(label, labels, codes[: len(labels)], rank, prompt, explanation, names)


TAGS = {name: _declared(name, measure) for name, measure in MEASURES.items() if measure.asks}
"""How clear, specific and coherent an instruction is; how hard; which of twelve categories; how
well the response answers it."""


def tag(
    name: str,
    rows: Rows,
    settings: Row,
    tokenizer: PreTrainedTokenizerBase,
    endpoint: Endpoint,
) -> Frames:
    """The LLM tag `name` (one of TAGS) of each row.

    `rows`: id, instruction, and for pair_score also response. `settings`: mode ("label" or
    "explain"), sampling (SamplingParams, verbatim; greedy when empty), prompt (a jinja file in
    place of the shipped one, or None). Yields frames [id, the tag's fields, tokens, prompt_tokens,
    status, reason]: the label; the rank of ordered labels (1.0 is the lowest) in label mode;
    explanations in explain mode, else null. Raises UserError when the codes are not one token each
    for this tokenizer.
    """
    chosen, mode = TAGS[name], settings.get("mode", "label")
    prompt = template(prompt_text(name, "label", settings.get("prompt")))
    sampling: Row = {"temperature": 0.0, **(settings.get("sampling") or {})}
    if mode == "label":
        _check_codes(chosen, tokenizer)
        sampling |= {"max_tokens": 1, "logprobs": 20}
        shape: Row = {"choice": list(chosen.codes)}
    else:
        sampling = {"max_tokens": EXPLAIN_TOKENS, **sampling}
        shape = {"json": chosen.schema}

    def body(row: Row) -> Row:
        question = ask(chosen, row["instruction"], mode, prompt, row.get("response") or "")
        ids = encode_question(tokenizer, question)
        return {**sampling, "structured_outputs": shape, "prompt": ids}

    read = _read_codes if mode == "label" else _read_json
    return answers(rows, body, functools.partial(read, chosen), endpoint, chosen.fields)


def prompt_text(name: str, mode: str, path: str | None = None) -> str:
    """What the tag `name` asks, for its key: the prompt file's text and, in mode "explain", the
    schema of the answer.

    `path` is a prompt file in place of the shipped one. Raises UserError when it is missing.
    """
    chosen = TAGS[name]
    file = Path(path) if path else Path(__file__).with_name("prompts") / chosen.prompt
    if not file.is_file():
        raise UserError(f"prompt file {file} of the tag {name} does not exist; check `prompt`.")
    return file.read_text() + (canonical(chosen.schema) if mode == "explain" else "")


def ask(tag: Tag, instruction: str, mode: str, prompt: Template, response: str = "") -> str:
    """The judge's prompt for one row, whose texts stand between fences that they cannot close: they
    are longer than any of their own."""
    fence = "`" * max(3, 1 + longest_run("`", f"{instruction}\0{response}"))
    return prompt.render(
        instruction=instruction,
        response=response,
        fence=fence,
        mode=mode,
        labels=tag.labels,
        codes=tag.codes,
    ).strip()


def longest_run(character: str, text: str) -> int:
    """How often `character` comes in a row at most."""
    return max(map(len, re.findall(f"{re.escape(character)}+", text)), default=0)


@functools.lru_cache(maxsize=16)
def template(text: str) -> Template:
    """A prompt file's text as a template; only its own text is evaluated, never an
    instruction's."""
    from jinja2 import StrictUndefined
    from jinja2.sandbox import SandboxedEnvironment

    return SandboxedEnvironment(undefined=StrictUndefined).from_string(text)


def _read_codes(tag: Tag, choice: Row) -> Row:
    """Label of the likeliest code, and the expected rank under the codes' renormalised
    probabilities (1.0 is the lowest label)."""
    tops = (choice.get("logprobs") or {}).get("top_logprobs") or [{}]
    mass = dict.fromkeys(tag.codes, 0.0)
    for token, log_probability in (tops[0] or {}).items():
        if token.strip() in mass:
            mass[token.strip()] += math.exp(log_probability)
    total = sum(mass.values())
    if total <= 0:
        raise Unreadable("no label code among the answer's log-probabilities")
    best = max(mass, key=mass.__getitem__)  # of equal ones the first
    row: Row = {tag.label: tag.labels[tag.codes.index(best)]}
    if tag.rank:
        row[tag.rank] = sum(rank * p for rank, p in enumerate(mass.values(), 1)) / total
    return row


def _read_json(tag: Tag, choice: Row) -> Row:
    """The fields of an explanation, under the names of their columns."""
    if choice.get("finish_reason") == "length":
        raise Unreadable("cut off at max_tokens before the JSON closed")
    try:
        values = json.loads(choice["text"])
    except json.JSONDecodeError as error:
        raise Unreadable(f"no JSON: {error.msg}") from error
    if not isinstance(values, dict):
        raise Unreadable("the answer is JSON but no object")
    return {tag.names.get(name, name): _field(tag, name, values) for name in tag.explanation}


def _field(tag: Tag, name: str, values: Row) -> Any:
    """One field of an explanation; of a list of labels, those besides the label itself."""
    value = values.get(name)
    kind = _TYPES[tag.explanation[name]["type"]][0]
    if kind is list:
        if not isinstance(value, list) or not all(label in tag.labels for label in value):
            raise Unreadable(f"the answer's {name} is no list of labels")
        return [label for label in dict.fromkeys(value) if label != values.get(tag.label)]
    if type(value) is not kind:  # true is no 1
        raise Unreadable(f"the answer has no {name}")
    if name == tag.label and value not in tag.labels:
        raise Unreadable(f"unknown label {str(value)[:40]!r}")
    return value


def _check_codes(tag: Tag, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raises UserError when the codes are not one token each, alone on a line."""
    ends = [tokenizer(f"\n{code}", add_special_tokens=False)["input_ids"][-1] for code in tag.codes]
    if [tokenizer.decode([end]).strip() for end in ends] != list(tag.codes):
        raise UserError(
            f"the codes {tag.codes[0]} to {tag.codes[-1]} are not one token each "
            f"for {tokenizer.name_or_path}; use mode: explain."
        )
