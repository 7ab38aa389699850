"""Queries that rows are chosen like (RDS+): examples of what the model is wanted for. Prompts that
it will be evaluated on are refused: an arm chosen by them would be tuned to the test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl

from core.errors import UserError
from core.files import read_json_lines
from synth.context import Conversation
from synth.duplicates.decontaminate import overlap, read_prompts

MOST_SHARED = 0.5
"""Share of one's words that lie in n-grams of the other, beyond which a query is an evaluation
prompt (Tulu 3's bound, arXiv 2411.15124)."""
_WRITE = 'write one object a line: {"instruction": ..., "response": ...} or {"messages": [...]}'


def read_queries(path: Path) -> list[Conversation]:
    """The queries of a JSON Lines file: `messages`, or `instruction` (or `prompt`) and `response`
    where there is one. Raises UserError for a file that is not there or holds none, and for a line
    that is no query."""
    if not path.is_file():
        raise UserError(f"the file of queries {path} does not exist; check its name.")
    queries = [_query(record, path, at) for at, record in read_json_lines(path, _WRITE)]
    if not queries:
        raise UserError(f"{path} holds no queries; {_WRITE}.")
    return queries


def _query(record: Any, path: Path, number: int) -> Conversation:
    fields = record if isinstance(record, dict) else {}
    messages = fields.get("messages")
    if messages is None:
        asked = fields.get("instruction", fields.get("prompt"))
        pair = [("user", asked), ("assistant", fields.get("response"))]
        messages = [{"role": role, "content": text} for role, text in pair if text is not None]
    sound = isinstance(messages, list) and all(map(_is_message, messages))
    if not sound or not any(message["role"] == "user" for message in messages):
        raise UserError(f"{path}, line {number}: no query; {_WRITE}.")
    return [{"role": m["role"], "content": m["content"]} for m in messages]


def _is_message(message: Any) -> bool:
    if not isinstance(message, dict):
        return False
    return isinstance(message.get("role"), str) and isinstance(message.get("content"), str)


def refuse_prompts(path: Path, prompts: list[Path], n: int) -> None:
    """Raise UserError where a query is a prompt of these files (JSONL {id, prompt}): its words, or
    more than MOST_SHARED of the words of one in n-grams of the other."""
    queries = pl.DataFrame(list(_asked(read_queries(path))), schema=["id", "text"], orient="row")
    for file in prompts:
        known = read_prompts(file)
        found = pl.concat([_shared(queries, known, n), _shared_back(queries, known, n)])
        if len(found):
            row = found.row(0, named=True)
            count = found["query"].n_unique()
            raise UserError(
                f"{path}: {count} of {queries['id'].n_unique()} queries are prompts that the model "
                f"will be evaluated on, the first in line {row['query']} (prompt {row['prompt']}); "
                "take other examples of the same kind, a benchmark's training split for instance."
            )


def _asked(queries: list[Conversation]) -> Iterator[tuple[str, str]]:
    """(number of the query, words) of every message of a user's."""
    for number, query in enumerate(queries, 1):
        for message in query:
            if message["role"] == "user":
                yield str(number), message["content"]


def _shared(queries: pl.DataFrame, prompts: pl.DataFrame, n: int) -> pl.DataFrame:
    """[query, prompt] where a query holds most of a prompt."""
    rows = queries.select("id", instruction="text")
    held = overlap(rows, prompts, n).filter(pl.col("eval_overlap") > MOST_SHARED)
    return held.select(query="id", prompt="eval_overlap_prompt")


def _shared_back(queries: pl.DataFrame, prompts: pl.DataFrame, n: int) -> pl.DataFrame:
    """[query, prompt] where a prompt holds most of a query."""
    rows = prompts.select("id", instruction="prompt")
    held = overlap(rows, queries.select("id", prompt="text"), n)
    held = held.filter(pl.col("eval_overlap") > MOST_SHARED)
    return held.select(query="eval_overlap_prompt", prompt="id")
