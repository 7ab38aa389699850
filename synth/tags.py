"""Tags by language models: quality, difficulty and category of an instruction, and the reward of a conversation.

Two ways to ask a judge. `label`: one token out of one-token codes (1 to 5, A to L) with its log-probabilities, so the label comes with an
expected rank. `explain`: JSON constrained by a schema, explanation first, as in the paper; a brace inside an explanation cannot break it
(the original stopped at the first "}" and lost those rows). What cannot be read is a failed cell with its reason.
"""

from __future__ import annotations

import functools
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from core.columns import OK
from core.endpoint import Endpoint, Reply, Request
from core.errors import UserError
from core.store import canonical
from synth.config import CATEGORY, DIFFICULTY, QUALITY
from synth.generate import Row, batched, completion, failed
from synth.templates import encode_conversation

if TYPE_CHECKING:
    from jinja2 import Template
    from transformers import PreTrainedTokenizerBase

VERSION = 1
"""Part of every key of a tag; raised when the same settings would give other tags."""

DIGITS = "12345"
LETTERS = "ABCDEFGHIJKL"
EXPLAIN_TOKENS = 512
"""max_tokens of an explanation where the recipe's sampling gives none."""


@dataclass(frozen=True)
class Tag:
    """One LLM tag: its label column, labels with one code each, the rank column of ordered labels, and the fields of an explanation in order."""

    label: str
    labels: tuple[str, ...]
    codes: str
    rank: str | None
    prompt: str
    explanation: Mapping[str, dict[str, Any]]
    names: Mapping[str, str]

    @property
    def fields(self) -> dict[str, Any]:
        """Value columns of this tag's frames with their types."""
        types = {"string": pl.String, "array": pl.List(pl.String)}
        texts = {self.names.get(name, name): types[schema["type"]] for name, schema in self.explanation.items()}
        return {self.label: pl.String, **({self.rank: pl.Float64} if self.rank else {}), **texts}


def _enum(labels: tuple[str, ...]) -> dict[str, Any]:
    return {"type": "string", "enum": list(labels)}


# maxLength lets the grammar close a string that a small model would never end.
_TEXT = {"type": "string", "minLength": 1, "maxLength": 600}

TAGS = {
    "quality": Tag(
        "input_quality", QUALITY, DIGITS, "input_quality_rank", "quality.jinja",
        {"explanation": _TEXT, "input_quality": _enum(QUALITY)}, {"explanation": "quality_explanation"},
    ),
    "difficulty": Tag(
        "difficulty", DIFFICULTY, DIGITS, "difficulty_rank", "difficulty.jinja",
        {"intent": _TEXT, "knowledge": _TEXT, "difficulty": _enum(DIFFICULTY)}, {},
    ),
    "category": Tag(
        "task_category", CATEGORY, LETTERS, None, "category.jinja",
        {"task_category": _enum(CATEGORY), "other_task_category": {"type": "array", "items": _enum(CATEGORY), "maxItems": 4}}, {},
    ),
}  # fmt: skip


def quality(
    rows: pl.DataFrame, settings: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase, endpoint: Endpoint, chat_template: str | None = None
) -> Iterator[pl.DataFrame]:
    """How clear, specific and coherent an instruction is.

    `rows`: id, instruction. `settings`: mode ("label" or "explain"), sampling (SamplingParams, verbatim; greedy when empty), prompt (a jinja
    file in place of the shipped one, or None). Yields frames [id, input_quality, input_quality_rank (1.0 to 5.0, label mode), quality_explanation
    (explain mode), tokens, prompt_tokens, status, reason].
    """
    return _judged("quality", rows, settings, tokenizer, endpoint, chat_template)


def difficulty(
    rows: pl.DataFrame, settings: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase, endpoint: Endpoint, chat_template: str | None = None
) -> Iterator[pl.DataFrame]:
    """How hard an instruction is. As `quality`, with [id, difficulty, difficulty_rank (1.0 to 5.0), intent, knowledge, ...]."""
    return _judged("difficulty", rows, settings, tokenizer, endpoint, chat_template)


def category(
    rows: pl.DataFrame, settings: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase, endpoint: Endpoint, chat_template: str | None = None
) -> Iterator[pl.DataFrame]:
    """Which of the twelve categories an instruction belongs to. As `quality`, with [id, task_category, other_task_category (list), ...]."""
    return _judged("category", rows, settings, tokenizer, endpoint, chat_template)


def reward(
    rows: pl.DataFrame, tokenizer: PreTrainedTokenizerBase, endpoint: Endpoint, chat_template: str | None = None
) -> Iterator[pl.DataFrame]:
    """The score of a sequence-classification reward model behind a vLLM pooling server (`runner: pooling`): the logit, not its sigmoid.

    `rows`: id, instruction, response; `tokenizer` is the reward model's. Yields [id, instruct_reward, prompt_tokens, status, reason]. A model with
    several outputs, a conversation longer than the server takes, and a score that is not finite are failed cells.
    """

    def requests() -> Iterator[Request]:
        for row in rows.iter_rows(named=True):
            messages = [{"role": "user", "content": row["instruction"]}, {"role": "assistant", "content": row["response"]}]
            prompt = encode_conversation(tokenizer, messages, add_generation_prompt=False, chat_template=chat_template)
            # Thresholds such as the paper's -12 are logits; the server applies a sigmoid unless told otherwise.
            yield Request(row["id"], {"input": prompt, "use_activation": False}, "/classify")

    schema = {"id": pl.String, "instruct_reward": pl.Float64, "prompt_tokens": pl.Int64, "status": pl.String, "reason": pl.String}
    return batched((_score(reply) for reply in endpoint.stream(requests())), schema)


def prompt_text(name: str, mode: str, path: str | None = None) -> str:
    """What the tag `name` asks, for its key: the prompt file's text and, in mode "explain", the schema of the answer.

    `path` is a prompt file in place of the shipped one. Raises UserError when it is missing.
    """
    file = Path(path) if path else Path(__file__).with_name("prompts") / TAGS[name].prompt
    if not file.is_file():
        raise UserError(f"prompt file {file} of the tag {name} does not exist; check `prompt`.")
    return file.read_text() + (canonical(_schema(TAGS[name])) if mode == "explain" else "")


def ask(tag: Tag, instruction: str, mode: str, prompt: Template) -> str:
    """The judge's prompt for one instruction, which stands between fences that it cannot close: they are longer than any of its own."""
    longest = max((len(run) for run in re.findall("`+", instruction)), default=0)
    return prompt.render(instruction=instruction, fence="`" * max(3, longest + 1), mode=mode, labels=tag.labels, codes=tag.codes).strip()


def _judged(
    name: str, rows: pl.DataFrame, settings: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase, endpoint: Endpoint, chat_template: str | None
) -> Iterator[pl.DataFrame]:
    tag, mode = TAGS[name], settings.get("mode", "label")
    prompt = template(prompt_text(name, "label", settings.get("prompt")))
    fixed: dict[str, Any] = {"temperature": 0.0, **dict(settings.get("sampling") or {})}
    if mode == "label":
        _check_codes(tag, tokenizer)
        fixed |= {"max_tokens": 1, "logprobs": 20, "structured_outputs": {"choice": list(tag.codes)}}
    else:
        fixed = {"max_tokens": EXPLAIN_TOKENS, **fixed, "structured_outputs": {"json": _schema(tag)}}

    def requests() -> Iterator[Request]:
        for row in rows.iter_rows(named=True):
            messages = [{"role": "user", "content": ask(tag, row["instruction"], mode, prompt)}]
            ids = encode_conversation(tokenizer, messages, add_generation_prompt=True, chat_template=chat_template)
            yield Request(row["id"], {**fixed, "prompt": ids})

    read: Callable[[Tag, dict[str, Any]], Row] = _read_codes if mode == "label" else _read_json
    schema = {"id": pl.String, **tag.fields, "tokens": pl.Int64, "prompt_tokens": pl.Int64, "status": pl.String, "reason": pl.String}
    return batched((_tagged(tag, reply, read) for reply in endpoint.stream(requests())), schema)


def _tagged(tag: Tag, reply: Reply, read: Callable[[Tag, dict[str, Any]], Row]) -> Row:
    choice, problem = completion(reply)
    usage = (reply.body or {}).get("usage") or {}
    spent = {"tokens": usage.get("completion_tokens"), "prompt_tokens": usage.get("prompt_tokens")}
    if choice is None:
        return failed(reply.key, problem, **spent)
    try:
        return {"id": reply.key, **spent, **read(tag, choice), "status": OK}
    except (_Unreadable, json.JSONDecodeError) as error:
        return failed(reply.key, f"no JSON: {error.msg}" if isinstance(error, json.JSONDecodeError) else str(error), **spent)


class _Unreadable(Exception):
    """An answer that holds no label."""


def _read_codes(tag: Tag, choice: dict[str, Any]) -> Row:
    """Label of the likeliest code, and the expected rank under the codes' renormalised probabilities (1.0 is the lowest label)."""
    tops = (choice.get("logprobs") or {}).get("top_logprobs") or [{}]
    mass = dict.fromkeys(tag.codes, 0.0)
    for token, log_probability in (tops[0] or {}).items():
        if token.strip() in mass:
            mass[token.strip()] += math.exp(log_probability)
    total = sum(mass.values())
    if total <= 0:
        raise _Unreadable("no label code among the answer's log-probabilities")
    best = max(mass, key=lambda code: (mass[code], -tag.codes.index(code)))
    row: Row = {tag.label: tag.labels[tag.codes.index(best)]}
    if tag.rank:
        row[tag.rank] = sum(p * (tag.codes.index(code) + 1) for code, p in mass.items()) / total
    return row


def _read_json(tag: Tag, choice: dict[str, Any]) -> Row:
    if choice.get("finish_reason") == "length":
        raise _Unreadable("cut off at max_tokens before the JSON closed")
    values = json.loads(choice["text"])
    if not isinstance(values, dict):
        raise _Unreadable("the answer is JSON but no object")
    row: Row = {}
    for name, schema in tag.explanation.items():
        value = values.get(name)
        if schema["type"] == "array":
            if not isinstance(value, list) or not all(v in tag.labels for v in value):
                raise _Unreadable(f"the answer's {name} is no list of labels")
            value = [v for v in dict.fromkeys(value) if v != values.get(tag.label)]
        elif not isinstance(value, str):
            raise _Unreadable(f"the answer has no {name}")
        elif name == tag.label and value not in tag.labels:
            raise _Unreadable(f"unknown label {value[:40]!r}")
        row[tag.names.get(name, name)] = value
    return row


def _score(reply: Reply) -> Row:
    if reply.error is not None or reply.body is None:
        return failed(reply.key, f"request failed: {reply.error or 'empty reply'}")
    spent = {"prompt_tokens": (reply.body.get("usage") or {}).get("prompt_tokens")}
    try:
        scores = reply.body["data"][0]["probs"]
        score = float(scores[0])
    except (KeyError, IndexError, TypeError, ValueError):
        return failed(reply.key, "request failed: the reply holds no score", **spent)
    if len(scores) != 1:
        return failed(reply.key, f"the reward model has {len(scores)} outputs, not one", **spent)
    if not math.isfinite(score):
        return failed(reply.key, "the score is not a finite number", **spent)
    return {"id": reply.key, "instruct_reward": score, **spent, "status": OK}


def _schema(tag: Tag) -> dict[str, Any]:
    return {"type": "object", "properties": dict(tag.explanation), "required": list(tag.explanation), "additionalProperties": False}


def _check_codes(tag: Tag, tokenizer: PreTrainedTokenizerBase) -> None:
    ends = [tokenizer(f"\n{code}", add_special_tokens=False)["input_ids"][-1] for code in tag.codes]
    if len(set(ends)) != len(tag.codes) or any(tokenizer.decode([i]).strip() != c for i, c in zip(ends, tag.codes, strict=True)):
        raise UserError(f"the codes {tag.codes[0]} to {tag.codes[-1]} are not one token each for {tokenizer.name_or_path}; use mode: explain.")


@functools.lru_cache(maxsize=16)
def template(text: str) -> Template:
    """A prompt file's text as a template; only its own text is evaluated, never an instruction's."""
    from jinja2 import StrictUndefined
    from jinja2.sandbox import SandboxedEnvironment

    return SandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=False).from_string(text)
