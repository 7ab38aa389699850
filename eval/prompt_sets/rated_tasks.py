"""What is rated by itself: WildBench's tasks with their checklists, and MT-Bench's questions of two
turns.

Read from the hub or from files, never shipped. The stages get our own form: {"id", "prompt",
"category"} and, where there are any, "history", "checklist", "tags", "turns" and "references".
MT-Bench's second turn is an item of its own, named "ID#2", in the cluster of its question.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import polars as pl

from core.errors import UserError, nearest
from eval.prompt_sets.prompts import Prompt, download, records, spread

HUB = {
    "wildbench": ("allenai/WildBench", "v2/test-00000-of-00001.parquet"),
    "mt_bench": ("HuggingFaceH4/mt_bench_prompts", "raw/question.jsonl"),
}
"""WildBench v2 and the 80 questions of FastChat's MT-Bench, on the hub."""

SECOND = "#2"
"""Ends the item name of a second turn."""

NO_HISTORY = "(none: the request is the first message)"


@dataclass(frozen=True)
class Task(Prompt):
    """A prompt that is rated by itself: `checklist` and `tags` are WildBench's; `turns` (both
    questions; the first is `prompt`) and `references` (one a turn, "" or absent for none) are
    MT-Bench's."""

    checklist: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    turns: tuple[str, ...] = ()
    references: tuple[str, ...] = ()

    def shown(self) -> dict[str, str]:
        """What a judge is shown of a WildBench task, answers aside, by slot: history, user_query,
        checklist."""
        history = "\n\n".join(
            f"{message['role'].upper()}: {message['content']}" for message in self.history
        )
        checklist = "\n".join(f"- {point}" for point in self.checklist)
        return {"history": history or NO_HISTORY, "user_query": self.prompt, "checklist": checklist}


def tasks(
    kind: Literal["wildbench", "mtbench"],
    source: str,
    limit: int | None = None,
    *,
    fetch: bool = True,
) -> list[Task]:
    """The tasks of `source`: a name of `HUB`, or the path of a .json, .jsonl (.gz too) or .parquet
    file.

    WildBench records: session_id or id; conversation_input (its last message, the user's, is the
    prompt), or prompt and history; checklist; primary_tag and secondary_tags, or tags. MT-Bench
    records: question_id, prompt_id or id; one or two turns (or prompt, a list); reference or
    references; category. `limit` takes so many, spread evenly; `fetch` false asks only the local
    cache for a hub set. Raises UserError, naming file and record, for whatever is missing, empty,
    or twice there.
    """
    path = _path(source, fetch)
    found: list[Task] = []
    seen: dict[str, int] = {}
    for number, record in _records(path):
        where = f"{path}, record {number}"
        task = (_wildbench if kind == "wildbench" else _mtbench)(record, where)
        if not all(text.strip() for text in (task.prompt, *task.turns)):
            raise UserError(
                f"{where}: a prompt of '{task.id}' is empty; fill it in or remove the record."
            )
        if task.id in seen:
            raise UserError(
                f"{where}: the id '{task.id}' was used in record {seen[task.id]}; ids must differ."
            )
        seen[task.id] = number
        found.append(task)
    if not found:
        raise UserError(f"{path} holds no tasks.")
    return spread(found, limit)


def _wildbench(record: Mapping[str, Any], where: str) -> Task:
    name = record.get("session_id", record.get("id"))
    match record:
        case {"conversation_input": [*before, {"role": "user", "content": str(text)}]} | {
            "prompt": str(text),
            "history": [*before],
        }:
            pass
        case {"prompt": str(text)}:
            before = []
        case _:
            raise UserError(
                f"{where}: a WildBench task needs conversation_input that ends with the user's message, or prompt."
            )
    if name is None:
        raise UserError(f"{where}: a WildBench task needs session_id or id.")
    if not all(
        isinstance(m, dict) and isinstance(m.get("role"), str) and isinstance(m.get("content"), str)
        for m in before
    ):
        raise UserError(
            f"{where}: every message before the prompt needs role and content, both texts."
        )
    tags = record.get("tags") or [
        tag for tag in (record.get("primary_tag"), *(record.get("secondary_tags") or ())) if tag
    ]
    checklist = _texts(record, "checklist", where)
    if not checklist:
        raise UserError(f"{where}: the WildBench task {name} has no checklist.")
    history = tuple({"role": m["role"], "content": m["content"]} for m in before)
    return Task(
        str(name),
        text,
        str(record.get("category") or next(iter(tags), "")),
        history,
        checklist,
        tuple(dict.fromkeys(map(str, tags))),
    )


def _mtbench(record: Mapping[str, Any], where: str) -> Task:
    name = next((record[key] for key in ("question_id", "prompt_id", "id") if key in record), None)
    turns = _texts(record, "turns" if "turns" in record else "prompt", where)
    if name is None or len(turns) not in (1, 2):
        raise UserError(f"{where}: an MT-Bench question needs question_id and one or two turns.")
    if str(name).endswith(SECOND):
        raise UserError(
            f"{where}: the id '{name}' ends with {SECOND}, which names second turns; rename it."
        )
    references = _texts(record, "references" if "references" in record else "reference", where)
    return Task(
        str(name), turns[0], str(record.get("category") or ""), turns=turns, references=references
    )


def _texts(record: Mapping[str, Any], field: str, where: str) -> tuple[str, ...]:
    """A field that holds a list of texts, or one text; none for null or no such field."""
    value = record.get(field)
    listed = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(listed, (list, tuple)) or not all(isinstance(text, str) for text in listed):
        raise UserError(f"{where}: {field} must be a list of texts.")
    return tuple(listed)


def _path(source: str, fetch: bool) -> Path:
    if source in HUB:
        return download(*HUB[source], fetch=fetch)
    path = Path(source).expanduser()
    if not path.is_file():
        raise UserError(
            f"task set '{source}' is neither a known name nor a file{nearest(source, HUB)}"
        )
    return path


def _records(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    if path.suffix != ".parquet":
        yield from records(path)
        return
    try:
        yield from enumerate(pl.read_parquet(path).iter_rows(named=True), 1)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise UserError(f"{path} cannot be read ({error}).") from error
