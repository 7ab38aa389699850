"""Prompt sets and baseline answers: our own 48 prompts, AlpacaEval 2, Arena-Hard v0.1 and v2.0, and
files of the user's.

The published sets are read from the hub or from files, never shipped. What a stage gets is always
our own form, one JSON object a line: {"id", "prompt", "category"}, and "history" where a
conversation precedes the prompt; `write_prompts` makes that file and `baseline` makes a folder of
answers like a checkpoint's. Tasks that are rated by themselves (WildBench, MT-Bench) are in
eval/prompt_sets/rated_tasks.py.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import polars as pl

from core.errors import UserError, nearest
from core.files import write_atomic
from core.store import Counts, digest

Item = TypeVar("Item")

DATA = Path(__file__).parent / "data"
SHIPPED = {"magpie-48": DATA / "magpie-48.jsonl"}

_ARENA = "lmarena-ai/arena-hard-auto"
HUB = {
    "alpaca_eval": ("tatsu-lab/alpaca_eval", "alpaca_eval_gpt4_baseline.json"),
    "arena-hard-v0.1": (_ARENA, "data/arena-hard-v0.1/question.jsonl"),
    "arena-hard-v2.0": (_ARENA, "data/arena-hard-v2.0/question.jsonl"),
}
HUB_BASELINES: dict[str, dict[str, tuple[str, str]]] = {
    "alpaca_eval": {"*": HUB["alpaca_eval"]},  # gpt4_1106_preview
    "arena-hard-v0.1": {"*": (_ARENA, "data/arena-hard-v0.1/model_answer/gpt-4-0314.jsonl")},
    "arena-hard-v2.0": {
        "hard_prompt": (_ARENA, "data/arena-hard-v2.0/model_answer/o3-mini-2025-01-31.jsonl"),
        "creative_writing": (
            _ARENA,
            "data/arena-hard-v2.0/model_answer/gemini-2.0-flash-001.jsonl",
        ),
    },
}
"""Whose answers each published benchmark compares with, by category ("*": all)."""

ANSWERS = {
    "id": pl.String,
    "prompt": pl.String,
    "answer": pl.String,
    "finish_reason": pl.String,
    "tokens": pl.Int64,
    "status": pl.String,
    "reason": pl.String,
}
"""Columns of `answers.parquet`; tokens is null where nobody counted them."""


@dataclass(frozen=True)
class Prompt:
    """One prompt of a benchmark; `category` is "" where the set has none, `history` the messages
    (role, content) before the prompt."""

    id: str
    prompt: str
    category: str = ""
    history: tuple[dict[str, str], ...] = ()

    def record(self) -> dict[str, Any]:
        """The prompt in our form: id, prompt, category, and of all else what is not empty."""
        always = ("id", "prompt", "category")
        return {name: value for name, value in asdict(self).items() if name in always or value}


def prompts(source: str, limit: int | None = None, *, fetch: bool = True) -> list[Prompt]:
    """The prompt set `source`: a shipped name, a hub name, or the path of a .jsonl or .json file
    (.gz too).

    Understood forms of a record: ours (id, prompt, category), Arena-Hard's (uid, prompt, category;
    or question_id, turns) and AlpacaEval's (instruction, dataset; its id is a digest of the
    instruction). `limit` takes so many, spread evenly over the set; `fetch` false asks only the
    local cache for a hub set. Raises UserError, naming file and line, for a broken record, an empty
    prompt or an id that occurs twice.
    """
    path = _path(source, fetch)
    found: list[Prompt] = []
    seen: dict[str, int] = {}
    for number, record in records(path):
        prompt = _prompt(record)
        if prompt is None:
            raise UserError(
                f"{path}, record {number}: no prompt; a record needs id and prompt (or uid and prompt, or instruction)."
            )
        if not prompt.prompt.strip():
            raise UserError(
                f"{path}, record {number}: the prompt '{prompt.id}' is empty; fill it in or remove the record."
            )
        if prompt.id in seen:
            raise UserError(
                f"{path}, record {number}: the id '{prompt.id}' was used in record {seen[prompt.id]}; ids must differ."
            )
        seen[prompt.id] = number
        found.append(prompt)
    if not found:
        raise UserError(f"{path} holds no prompts.")
    return spread(found, limit)


def spread(found: Sequence[Item], limit: int | None) -> list[Item]:
    """`limit` of `found`, spread evenly over them in their order (None, or more than there are:
    all)."""
    if limit is None or limit >= len(found):
        return list(found)
    return [found[position * len(found) // limit] for position in range(limit)]


def write_prompts(wanted: Sequence[Prompt], path: Path) -> None:
    """Write prompts in our form, one JSON object a line."""
    write_atomic(
        path, "".join(json.dumps(prompt.record(), ensure_ascii=False) + "\n" for prompt in wanted)
    )


def baseline(
    source: str | Mapping[str, str], wanted: Sequence[Prompt], out: Path, *, prompt_set: str = ""
) -> Counts:
    """Write `out`/answers.parquet with the baseline's answer to each of `wanted`, in their order.

    `source` is a file of answers, a mapping from category to file, or "hub": the published baseline
    of `prompt_set`. Understood forms: ours (id, answer), AlpacaEval's (instruction, output),
    Arena-Hard's (question_id, choices; or uid, messages), or an answers folder of ours. A prompt
    without an answer stays, failed and counted. Raises UserError when the source has no answer to
    any prompt, or two to one.
    """
    by_category: dict[str, str | Path]
    if source == "hub":
        if prompt_set not in HUB_BASELINES:
            raise UserError(
                f"the prompt set '{prompt_set}' has no published baseline{nearest(prompt_set, HUB_BASELINES)}"
            )
        by_category = {
            category: download(*where) for category, where in HUB_BASELINES[prompt_set].items()
        }
    else:
        by_category = {"*": source} if isinstance(source, str) else dict(source)
    answers = {category: _answers(Path(path)) for category, path in by_category.items()}
    rows = []
    for prompt in wanted:
        table = answers.get(prompt.category, answers.get("*"))
        if table is None:
            raise UserError(
                f"the baseline names no file for category '{prompt.category}' (prompt {prompt.id}){nearest(prompt.category, answers)}"
            )
        answer = table.get(prompt.id, table.get(text_id(prompt.prompt)))
        rows.append(
            {
                "id": prompt.id,
                "prompt": prompt.prompt,
                "answer": answer,
                "finish_reason": None,
                "tokens": None,
                "status": "failed" if answer is None else "ok",
                "reason": "the baseline has no answer to this prompt" if answer is None else None,
            }
        )
    frame = pl.DataFrame(rows, schema=ANSWERS)
    failed = frame.filter(pl.col("status") == "failed").height
    if failed == frame.height:
        raise UserError(
            f"{', '.join(str(p) for p in by_category.values())} holds no answer to any of the {len(wanted)} prompts."
        )
    out.mkdir(parents=True, exist_ok=True)
    frame.write_parquet(out / "answers.parquet")
    return {"rows": frame.height, "failed": failed}


def text_id(text: str) -> str:
    """The id of a prompt that a benchmark names by its text alone (AlpacaEval)."""
    return digest(text)[:16]


def _prompt(record: Mapping[str, Any]) -> Prompt | None:
    match record:
        case {"instruction": str(text)}:
            return Prompt(text_id(text), text, str(record.get("dataset", "")))
        case {"id": str(name) | int(name), "prompt": str(text)} | {
            "uid": str(name),
            "prompt": str(text),
        }:
            return Prompt(
                str(name),
                text,
                str(record.get("category") or ""),
                tuple(record.get("history") or ()),
            )
        case {"question_id": str(name) | int(name), "turns": [{"content": str(text)}, *_]}:
            return Prompt(str(name), text, str(record.get("category") or ""))
    return None


def _answer(record: Mapping[str, Any]) -> tuple[str, str] | None:
    """(id, answer) of a record in any of the known forms."""
    match record:
        case {"instruction": str(text), "output": str(answer)}:
            return text_id(text), answer
        case {"id": str(name) | int(name), "answer": str(answer)}:
            return str(name), answer
        case {
            "question_id": str(name) | int(name),
            "choices": [{"turns": [*_, {"content": str(answer)}]}, *_],
        }:
            return str(name), answer
        case {
            "uid": str(name),
            "messages": [*_, {"content": str(answer) | {"answer": str(answer)}}],
        }:
            return name, answer
    return None


def _answers(path: Path) -> dict[str, str]:
    """Answers by id from a file in any known form, or from a folder that holds answers.parquet."""
    if path.is_dir():
        try:
            frame = pl.read_parquet(
                path / "answers.parquet", columns=["id", "answer", "status"]
            ).filter(pl.col("status") == "ok")
        except (OSError, pl.exceptions.PolarsError) as error:
            raise UserError(
                f"{path / 'answers.parquet'} cannot be read as answers ({error})."
            ) from error
        return dict(zip(frame["id"], frame["answer"], strict=True))
    table: dict[str, str] = {}
    for number, record in records(path):
        answer = _answer(record)
        if answer is None:
            raise UserError(
                f"{path}, record {number}: no answer; a record needs id and answer (or instruction and output, or Arena-Hard's form)."
            )
        if answer[0] in table:
            raise UserError(f"{path}, record {number}: a second answer to '{answer[0]}'; keep one.")
        table[answer[0]] = answer[1]
    return table


def _path(source: str, fetch: bool = True) -> Path:
    if source in SHIPPED:
        return SHIPPED[source]
    if source in HUB:
        return download(*HUB[source], fetch=fetch)
    path = Path(source).expanduser()
    if not path.is_file():
        raise UserError(
            f"prompt set '{source}' is neither a known name nor a file{nearest(source, [*SHIPPED, *HUB])}"
        )
    return path


def download(repo: str, name: str, *, fetch: bool = True) -> Path:
    """A file of a dataset repository on the hub, from its cache where it is there (with `fetch`
    false: only from there).

    Raises UserError when it cannot be had.
    """
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(repo, name, repo_type="dataset", local_files_only=not fetch))
    except (
        Exception
    ) as error:  # the hub client raises a dozen kinds: offline, gated, renamed, proxy
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"{name} of the hub's {repo} cannot be fetched ({reason}); download it elsewhere and give its path."
        ) from error


def records(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(number, record) from a .jsonl file (number = line) or from a .json file that holds one list
    (number = place in it, from 1)."""
    try:
        data = path.read_bytes()
        text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8-sig")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read ({error}).") from error
    pairs: Iterable[tuple[int, Any]]
    if path.name.removesuffix(".gz").endswith(".json"):
        try:
            whole = json.loads(text)
        except json.JSONDecodeError as error:
            raise UserError(
                f"{path}, line {error.lineno}: not valid JSON ({error.msg})."
            ) from error
        pairs = enumerate(whole if isinstance(whole, list) else [whole], 1)
    else:
        pairs = _lines(path, text)
    for number, record in pairs:
        if not isinstance(record, dict):
            raise UserError(
                f"{path}, record {number}: expected a JSON object, found {type(record).__name__}."
            )
        yield number, record


def located(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """`records`, each with the words that name its place in an error: "PATH, record NUMBER"."""
    for number, record in records(path):
        yield f"{path}, record {number}", record


def _lines(path: Path, text: str) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(
        text.split("\n"), 1
    ):  # not splitlines: a prompt may hold other line separators
        if line.strip():
            try:
                yield number, json.loads(line)
            except json.JSONDecodeError as error:
                raise UserError(f"{path}, line {number}: not valid JSON ({error.msg}).") from error
