"""Answers of a base model to the same instructions, and how much better the aligned model's answer
is.

The paper's reward difference (arXiv 2406.08464) is r* - r_base: the reward of the row's response
less that of a base model's answer, which is elicited by a few examples in the prompt (URIAL, arXiv
2312.01552). The original repository has no code for it; the examples are our own.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl

from core.servers import Endpoint
from synth.chat.encoding import encode_text, text_start
from synth.generate.ask import Frames, Row, Rows, Sampling, Unreadable, answers
from synth.tags.asking.tag import longest_run, template
from synth.tags.reward import reward

if TYPE_CHECKING:
    from jinja2 import Template
    from transformers import PreTrainedTokenizerBase

VERSION = 1
"""Part of every key of a base answer; raised when the same settings would give other answers."""

PROMPT = Path(__file__).with_name("prompts") / "base_answer.jinja"


def base_responses(
    rows: Rows,
    sampling: Sampling,
    tokenizer: PreTrainedTokenizerBase,
    endpoint: Endpoint,
) -> Frames:
    """What a base model answers after the examples of `prompts/base_answer.jinja`.

    `rows`: id, instruction. `sampling`: SamplingParams, verbatim; its `stop` adds to the headings
    that end an answer. Yields [id, base_output, base_finish_reason ("length" marks a cut-off
    answer), tokens, prompt_tokens, status, reason]; an empty answer is a failed cell.
    """
    start = text_start(tokenizer)
    given = sampling.get("stop") or []
    own_stops = [given] if isinstance(given, str) else given

    def body(row: Row) -> Row:
        prompt, headings = base_prompt(row["instruction"])
        ids = start + encode_text(tokenizer, prompt)
        return {**sampling, "prompt": ids, "stop": [*headings, *own_stops]}

    def read(choice: Row) -> Row:
        answer = choice["text"].strip()
        if not answer:
            raise Unreadable("empty base answer")
        return {"base_output": answer, "base_finish_reason": choice.get("finish_reason")}

    fields = {"base_output": pl.String, "base_finish_reason": pl.String}
    return answers(rows, body, read, endpoint, fields)


def base_prompt(instruction: str) -> tuple[str, list[str]]:
    """The prompt for one instruction and the strings that end its answer: the headings of the next
    turn.

    A heading is ruled by more "=" than the instruction has anywhere in a row, so that no heading
    written in it can open or end a turn; an answer may hold anything else, code fences included.
    """
    rule = "=" * max(3, 1 + longest_run("=", instruction))
    prompt = _examples().render(instruction=instruction, rule=rule)
    return prompt.strip() + "\n", [f"{rule} User", f"{rule} Assistant"]


@functools.cache
def _examples() -> Template:
    return template(PROMPT.read_text())


def reward_differences(
    rows: pl.DataFrame, tokenizer: PreTrainedTokenizerBase, endpoint: Endpoint
) -> Frames:
    """The reward of base answers, and how much more the response has.

    `rows`: id, instruction, base_output, instruct_reward; the reward model must be the one that
    gave `instruct_reward`. Yields [id, base_reward, reward_difference (instruct_reward -
    base_reward), prompt_tokens, status, reason].
    """
    asked = rows.select("id", "instruction", pl.col("base_output").alias("response"))
    aligned = rows.select("id", aligned="instruct_reward")
    for part in reward(asked, tokenizer, endpoint):
        both = part.join(aligned, on="id", how="left", maintain_order="left")
        yield both.select(
            "id",
            pl.col("instruct_reward").alias("base_reward"),
            (pl.col("aligned") - pl.col("instruct_reward")).alias("reward_difference"),
            "prompt_tokens",
            "status",
            "reason",
        )
