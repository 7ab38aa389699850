"""What a tag by a language model is: its column, what that holds, its codes, its prompt and the
fields of an explanation."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import polars as pl

from core.errors import UserError, nearest
from core.store import canonical
from synth.config.tags import Kind
from synth.generate.ask import Fields
from synth.measures import MEASURES, Measure

if TYPE_CHECKING:
    from jinja2 import Template

Mode = Literal["label", "explain"]
MODES: tuple[Mode, ...] = ("label", "explain")
DIGITS = "123456789"
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
PROMPTS = Path(__file__).parents[1] / "prompts"
KNOWN = {"instruction", "response", "fence", "mode", "labels", "codes", "column", "kind", "between"}
"""What a prompt may name."""

Labels = tuple[str, ...] | tuple[int, ...]
Schema = dict[str, Any]
"""A JSON schema."""

TYPES: dict[str, tuple[type, Any]] = {
    "string": (str, pl.String),
    "integer": (int, pl.Int64),
    "number": (float, pl.Float64),
    "array": (list, pl.List(pl.String)),
}
"""How the JSON of an explanation says a type, how Python and a stored column do."""


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
    mass: str = ""
    """The column with what the codes carry of the probability in label mode."""
    own: Literal["instruction", "response"] | None = None
    """Which text the prompt of a recipe's own column must show; None of a shipped one, whose
    prompt also says how to answer."""

    @property
    def fields(self) -> Fields:
        """Value columns of this tag's frames with their types."""
        texts = {
            self.names.get(name, name): TYPES[schema["type"]][1]
            for name, schema in self.explanation.items()
        }
        ranks = {self.rank: pl.Float64} if self.rank else {}
        return {self.label: texts[self.label], **ranks, **texts, self.mass: pl.Float64}

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
    codes, mass = codes[: len(labels)], f"{name}_mass"
    return Tag(label, "label", labels, codes, rank, prompt, explanation, names, mass)


TAGS = {name: _declared(name, measure) for name, measure in MEASURES.items() if measure.asks}
"""How clear, specific and coherent an instruction is; how hard; which of twelve categories; how
well the response answers it."""


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
