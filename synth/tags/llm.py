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
from typing import TYPE_CHECKING, Any, Literal

import polars as pl

from core.errors import UserError, nearest
from core.servers import Endpoint
from core.store import canonical
from synth.chat.encoding import encode_question
from synth.config.tags import Kind
from synth.generate.ask import Fields, Frames, Row, Rows, Unreadable, answers
from synth.measures import MEASURES, Measure

if TYPE_CHECKING:
    from jinja2 import Template
    from transformers import PreTrainedTokenizerBase

VERSION = 1
"""Part of every key of a tag; raised when the same settings would give other tags."""

MODES = ("label", "explain")
DIGITS = "123456789"
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
PROMPTS = Path(__file__).with_name("prompts")
EXPLAIN_TOKENS = 512
"""max_tokens of an explanation where the recipe's sampling gives none."""

KNOWN = {"instruction", "response", "fence", "mode", "labels", "codes", "column", "kind", "between"}
"""What a prompt may name."""

Labels = tuple[str, ...] | tuple[int, ...]
Schema = dict[str, Any]
"""A JSON schema."""

# How the JSON of an explanation says a type, how Python and a stored column do.
_TYPES: dict[str, tuple[type, Any]] = {
    "string": (str, pl.String),
    "integer": (int, pl.Int64),
    "number": (float, pl.Float64),
    "array": (list, pl.List(pl.String)),
}


@dataclass(frozen=True)
class Tag:
    """One LLM tag: its column and what that holds, labels with one code each, the rank column of
    ordered labels, its prompt file, and the fields of an explanation in order."""

    label: str
    kind: Kind
    labels: Labels
    codes: str
    rank: str | None
    prompt: Path
    explanation: Mapping[str, Schema]
    names: Mapping[str, str] = field(default_factory=dict)
    """Columns of fields that are stored under another name."""
    own: Literal["instruction", "response"] | None = None
    """Which text the prompt of a recipe's own column must show; None of a shipped one, whose
    prompt also says how to answer."""

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
    def ranking(self) -> str | None:
        """The column that ranks rows; None where the labels have no order."""
        return self.label if self.kind == "number" else self.rank

    def place(self, value: Any) -> int:
        """The place of a value among the labels; of a number that lies between two, the nearer."""
        if self.kind == "number":
            return min(range(len(self.labels)), key=lambda at: abs(float(self.labels[at]) - value))
        return list(self.labels).index(value)

    @property
    def between(self) -> tuple[float, float] | None:
        """The lowest and the highest number, where the column holds numbers that have bounds."""
        of_number = self.explanation[self.label]
        if self.kind != "number" or "minimum" not in of_number:
            return None
        return of_number["minimum"], of_number["maximum"]

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
TEXT: Schema = {"type": "string", "minLength": 1, "maxLength": 600}
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
    explanation = {**dict.fromkeys(names, TEXT), label: one, **dict.fromkeys(others, several)}
    rank = declared.rank or None
    prompt = PROMPTS / f"{name}.jinja"
    return Tag(label, "label", labels, codes[: len(labels)], rank, prompt, explanation, names)


TAGS = {name: _declared(name, measure) for name, measure in MEASURES.items() if measure.asks}
"""How clear, specific and coherent an instruction is; how hard; which of twelve categories; how
well the response answers it."""


def tag(
    chosen: Tag,
    rows: Rows,
    settings: Row,
    tokenizer: PreTrainedTokenizerBase,
    endpoint: Endpoint,
) -> Frames:
    """An LLM tag of each row.

    `rows`: id, instruction, and for a tag of conversations also response. `settings`: mode ("label"
    or "explain"), sampling (SamplingParams, verbatim; greedy when empty), prompt (a jinja file in
    place of the tag's, or None). Yields frames [id, the tag's fields, tokens, prompt_tokens,
    status, reason]: the label; the rank of ordered labels (1.0 is the lowest) in label mode;
    explanations in explain mode, else null. Raises UserError when the codes are not one token each
    for this tokenizer.
    """
    mode = settings.get("mode", "label")
    prompt = template(prompt_text(chosen, "label", settings.get("prompt")))
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


def prompt_text(tag: Tag, mode: str, path: str | None = None) -> str:
    """What a tag asks, for its key: the prompt file's text and, in mode "explain", the schema of
    the answer.

    `path` is a prompt file in place of the tag's. Raises UserError when it is missing, and where
    that of a recipe's own column does not show the text that is judged.
    """
    file = Path(path).expanduser() if path else tag.prompt
    if not file.is_file():
        raise UserError(
            f"prompt file {file} of the tag {tag.label} does not exist; check `prompt`."
        )
    text = file.read_text()
    if tag.own is not None:
        text = _answerable(tag, text, file)
    return text + (canonical(tag.schema) if mode == "explain" else "")


def _answerable(tag: Tag, text: str, file: Path) -> str:
    """The prompt of a recipe's own column, with how to answer below it where it says nothing of
    that itself."""
    from jinja2 import TemplateSyntaxError, meta
    from jinja2.sandbox import SandboxedEnvironment

    at = f"synth.tags.own.{tag.label}.prompt: {file}"
    try:
        named = meta.find_undeclared_variables(SandboxedEnvironment().parse(text))
    except TemplateSyntaxError as error:
        raise UserError(f"{at}, line {error.lineno}, is no valid Jinja: {error.message}") from error
    if odd := sorted(named - KNOWN):
        near = nearest(odd[0], KNOWN)
        raise UserError(f"{at} names `{odd[0]}`, which is not known{near}.")
    if tag.own not in named:
        raise UserError(f"{at} never shows the {tag.own}: write {{{{ {tag.own} }}}} in it.")
    if tag.own == "instruction" and "response" in named:
        raise UserError(f"{at} shows the response; say `reads: response` beside it.")
    if named & {"mode", "codes"}:
        return text
    return f"{text.rstrip()}\n\n{(PROMPTS / 'own_answer.jinja').read_text()}"


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
        column=tag.label,
        kind=tag.kind,
        between=tag.between,
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
    if tag.kind == "number":
        weighed = zip(map(float, tag.labels), mass.values(), strict=True)
        return {tag.label: sum(n * p for n, p in weighed) / total}
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
        besides = values.get(tag.label) if name != tag.label else None
        return [label for label in dict.fromkeys(value) if label != besides]
    if kind is float:
        return _number(tag, name, value)
    if type(value) is not kind:  # true is no 1
        raise Unreadable(f"the answer has no {name}")
    if name == tag.label and tag.kind == "label" and value not in tag.labels:
        raise Unreadable(f"unknown label {str(value)[:40]!r}")
    return value


def _number(tag: Tag, name: str, value: Any) -> float:
    """A number within its bounds."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise Unreadable(f"the answer has no {name}")
    low, high = tag.between or (-math.inf, math.inf)
    if not low <= value <= high:
        raise Unreadable(f"{name} is {value:g}, not between {low} and {high}")
    return float(value)


def _check_codes(tag: Tag, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raises UserError when the codes are not one token each, alone on a line."""
    ends = [tokenizer(f"\n{code}", add_special_tokens=False)["input_ids"][-1] for code in tag.codes]
    if [tokenizer.decode([end]).strip() for end in ends] != list(tag.codes):
        raise UserError(
            f"the codes {tag.codes[0]} to {tag.codes[-1]} are not one token each "
            f"for {tokenizer.name_or_path}; use mode: explain."
        )
