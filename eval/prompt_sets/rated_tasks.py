"""What is rated by itself: WildBench's tasks with their checklists, and MT-Bench's questions of two
turns.

Read from the hub or from files, never shipped. The stages get our own form: {"id", "prompt",
"category"} and, where there are any, "history", "checklist", "tags", "turns" and "references".
MT-Bench's second turn is an item of its own, named "ID#2", in the cluster of its question.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from core.errors import UserError
from eval.prompt_sets.prompts import Prompt, load, set_file

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
    """The tasks of `source`: a name of `HUB`, or the path of a file; see `prompts.load`.

    WildBench records: session_id or id; conversation_input (its last message, the user's, is the
    prompt), or prompt and history; checklist; primary_tag and secondary_tags, or tags. MT-Bench
    records: question_id, prompt_id or id; one or two turns (or prompt, a list); reference or
    references; category.
    """
    return load(set_file("task", source, HUB, fetch), _PARSE[kind], limit, "tasks")


def _wildbench(record: Mapping[str, Any], where: str) -> Task:
    """A record in WildBench's form or ours."""
    name = record.get("session_id", record.get("id"))
    before: list[Any] = []
    match record:
        case {"conversation_input": [*before, {"role": "user", "content": str(text)}]}:
            pass
        case {"prompt": str(text), **rest}:
            before = _history(rest, where)
        case _:
            raise UserError(
                f"{where}: a WildBench task needs conversation_input that ends with the user's "
                "message, or prompt."
            )
    if name is None:
        raise UserError(f"{where}: a WildBench task needs session_id or id.")
    checklist = _texts(record, "checklist", where)
    if not checklist:
        raise UserError(f"{where}: the WildBench task {name} has no checklist.")
    own_tags = [record.get("primary_tag"), *_texts(record, "secondary_tags", where)]
    tags = _texts(record, "tags", where) or [tag for tag in own_tags if tag]
    return Task(
        id=str(name),
        prompt=text,
        category=str(record.get("category") or next(iter(tags), "")),
        history=tuple(_message(message, where) for message in before),
        checklist=checklist,
        tags=tuple(dict.fromkeys(map(str, tags))),
    )


def _history(record: Mapping[str, Any], where: str) -> list[Any]:
    held = record.get("history") or ()
    if not isinstance(held, (list, tuple)):
        raise UserError(f"{where}: history must be a list of messages.")
    return list(held)


def _message(message: Any, where: str) -> dict[str, str]:
    """Role and content of a message, without what else the record says of it."""
    match message:
        case {"role": str(role), "content": str(content)}:
            return {"role": role, "content": content}
    raise UserError(f"{where}: every message before the prompt needs role and content, both texts.")


def _mtbench(record: Mapping[str, Any], where: str) -> Task:
    """A record in FastChat's form or ours."""
    names = [record[key] for key in ("question_id", "prompt_id", "id") if key in record]
    turns = _texts(record, "turns" if "turns" in record else "prompt", where)
    if not names or names[0] is None or len(turns) not in (1, 2):
        raise UserError(f"{where}: an MT-Bench question needs question_id and one or two turns.")
    name = str(names[0])
    if name.endswith(SECOND):
        raise UserError(
            f"{where}: the id '{name}' ends with {SECOND}, which names second turns; rename it."
        )
    references = _texts(record, "references" if "references" in record else "reference", where)
    category = str(record.get("category") or "")
    return Task(name, turns[0], category, turns=turns, references=references)


_PARSE = {"wildbench": _wildbench, "mtbench": _mtbench}


def _texts(record: Mapping[str, Any], field: str, where: str) -> tuple[str, ...]:
    """A field that holds a list of texts, or one text; none for null or no such field."""
    value = record.get(field)
    if value is None:
        return ()
    listed = [value] if isinstance(value, str) else value
    if not isinstance(listed, (list, tuple)) or not all(isinstance(text, str) for text in listed):
        raise UserError(f"{where}: {field} must be a list of texts.")
    return tuple(listed)
