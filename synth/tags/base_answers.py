"""Answers of a base model to the same instructions, and how much better the aligned model's answer
is.

The paper's reward difference (arXiv 2406.08464) is r* - r_base: the reward of the row's response
less that of a base model's answer, which is elicited by a few examples in the prompt (URIAL, arXiv
2312.01552). The original repository has no code for it; the examples are our own.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from core.servers import Endpoint
from synth.chat.templates import encode_text, text_start
from synth.generate.ask import Row, Unreadable, answers
from synth.tags.llm import template
from synth.tags.reward import reward

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

VERSION = 1
"""Part of every key of a base answer; raised when the same settings would give other answers."""

PROMPT = Path(__file__).with_name("prompts") / "base_answer.jinja"

_TURN = re.compile("=+")


def base_responses(
    rows: pl.DataFrame,
    sampling: Mapping[str, Any],
    tokenizer: PreTrainedTokenizerBase,
    endpoint: Endpoint,
) -> Iterator[pl.DataFrame]:
    """What a base model answers after the examples of `prompts/base_answer.jinja`.

    `rows`: id, instruction. `sampling`: SamplingParams, verbatim; its `stop` adds to the headings
    that end an answer. Yields [id, base_output, base_finish_reason ("length" marks a cut-off
    answer), tokens, prompt_tokens, status, reason]; an empty answer is a failed cell.
    """
    text = template(PROMPT.read_text())
    start = text_start(tokenizer)

    def body(row: Row) -> dict[str, Any]:
        prompt, stop = base_prompt(row["instruction"], text)
        return {
            **sampling,
            "prompt": start + encode_text(tokenizer, prompt),
            "stop": [*stop, *_listed(sampling.get("stop"))],
        }

    def read(choice: dict[str, Any]) -> Row:
        answer = str(choice["text"]).strip()
        if not answer:
            raise Unreadable("empty base answer")
        return {"base_output": answer, "base_finish_reason": choice.get("finish_reason")}

    return answers(
        rows, body, read, endpoint, {"base_output": pl.String, "base_finish_reason": pl.String}
    )


def base_prompt(instruction: str, text: Any = None) -> tuple[str, list[str]]:
    """The prompt for one instruction and the strings that end its answer: the headings of the next
    turn.

    A heading is ruled by more "=" than the instruction has anywhere in a row, so that no heading
    written in it can open or end a turn; an answer may hold anything else, code fences included.
    """
    rule = "=" * max(3, 1 + max((len(run) for run in _TURN.findall(instruction)), default=0))
    prompt = (text or template(PROMPT.read_text())).render(
        instruction=instruction, rule=rule
    ).strip() + "\n"
    return prompt, [f"{rule} User", f"{rule} Assistant"]


def reward_differences(
    rows: pl.DataFrame, tokenizer: PreTrainedTokenizerBase, endpoint: Endpoint
) -> Iterator[pl.DataFrame]:
    """The reward of base answers, and how much more the response has.

    `rows`: id, instruction, base_output, instruct_reward; the reward model must be the one that
    gave `instruct_reward`. Yields [id, base_reward, reward_difference (instruct_reward -
    base_reward), prompt_tokens, status, reason].
    """
    asked = rows.select("id", "instruction", pl.col("base_output").alias("response"))
    for part in reward(asked, tokenizer, endpoint):
        known = part.join(
            rows.select("id", aligned="instruct_reward"), on="id", how="left", maintain_order="left"
        )
        yield known.with_columns(
            base_reward=pl.col("instruct_reward"),
            reward_difference=pl.col("aligned") - pl.col("instruct_reward"),
        ).select("id", "base_reward", "reward_difference", "prompt_tokens", "status", "reason")


def _listed(stop: Any) -> list[str]:
    return [] if stop is None else [stop] if isinstance(stop, str) else list(stop)
