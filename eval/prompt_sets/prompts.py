"""Prompt sets and baseline answers: our own 48 prompts, AlpacaEval 2, Arena-Hard v0.1 and v2.0, and
files of the user's.

The published sets are read from the hub or from files, never shipped. What a stage gets is always
our own form, one JSON object a line: {"id", "prompt", "category"}, and "history" where a
conversation precedes the prompt; `write_prompts` makes that file and `baseline` makes a folder of
answers like a checkpoint's. Tasks that are rated by themselves (WildBench, MT-Bench) are in
eval/prompt_sets/rated_tasks.py.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import polars as pl

from core.errors import UserError, nearest
from core.files import write_atomic
from core.pretrained.hub import refusal, require
from core.store import Counts, digest
from eval.prompt_sets.records import located, records

SHIPPED = {"magpie-48": Path(__file__).parent / "data" / "magpie-48.jsonl"}

HubFile = tuple[str, str]
"""A dataset repository on the hub, and a file of it."""

_ARENA = "lmarena-ai/arena-hard-auto"
HUB = {
    "alpaca_eval": ("tatsu-lab/alpaca_eval", "alpaca_eval_gpt4_baseline.json"),
    "arena-hard-v0.1": (_ARENA, "data/arena-hard-v0.1/question.jsonl"),
    "arena-hard-v2.0": (_ARENA, "data/arena-hard-v2.0/question.jsonl"),
}
ABOUT = {
    "alpaca_eval": (805, [165]),
    "arena-hard-v0.1": (500, [406]),
    "arena-hard-v2.0": (750, [1042]),
    "wildbench": (1024, [4000]),
    "mt_bench": (80, [300, 500]),
}
"""Prompts of a published set, and the mean characters that each call about one shows, for plans
before it is downloaded; those of WildBench, with its checklists, and of MT-Bench are rough."""
HUB_BASELINES: dict[str, dict[str, HubFile]] = {
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


Item = TypeVar("Item", bound=Prompt)


def prompts(source: str, limit: int | None = None, *, fetch: bool = True) -> list[Prompt]:
    """The prompt set `source`: a shipped name, a hub name, or the path of a file; see `load`.

    Understood forms of a record: ours (id, prompt, category), Arena-Hard's (uid, prompt, category;
    or question_id, turns) and AlpacaEval's (instruction, dataset; its id is a digest of the
    instruction).
    """
    path = set_file("prompt", source, {**SHIPPED, **HUB}, fetch)
    return load(path, _prompt, limit, "prompts")


def about(source: str, limit: int | None) -> list[int]:
    """The characters of each call about a published set, as far as they are known without it; []
    for any other."""
    prompts, characters = ABOUT.get(source, (0, [0]))
    return characters * min(prompts, limit or prompts)


def set_file(noun: str, source: str, known: Mapping[str, Path | HubFile], fetch: bool) -> Path:
    """The file of a set: one of the `known`, by name, or any by its path. Raises UserError for what
    is neither; `noun` says what the set is one of."""
    path = known.get(source, Path(source).expanduser())
    if isinstance(path, tuple):
        return download(*path, fetch=fetch)
    if not path.is_file():
        hint = nearest(source, known)
        raise UserError(f"{noun} set '{source}' is neither a known name nor a file{hint}")
    return path


def load(
    path: Path, parse: Callable[[Mapping[str, Any], str], Item], limit: int | None, noun: str
) -> list[Item]:
    """The entries of a .json, .jsonl (.gz too) or .parquet file; `parse` reads a record, given the
    words that name its place. `limit` takes so many, spread evenly over the set.

    Raises UserError, naming file and record, for a broken record, an empty prompt or an id that
    occurs twice, and for a file without entries.
    """
    items: dict[str, Item] = {}
    numbers: dict[str, int] = {}
    for number, record in records(path):
        where = f"{path}, record {number}"
        item = parse(record, where)
        turns = item.record().get("turns", ())
        if not all(text.strip() for text in (item.prompt, *turns)):
            raise UserError(
                f"{where}: the prompt '{item.id}' is empty; fill it in or remove the record."
            )
        if item.id in items:
            first = numbers[item.id]
            raise UserError(
                f"{where}: the id '{item.id}' was used in record {first}; ids must differ."
            )
        items[item.id] = item
        numbers[item.id] = number
    if not items:
        raise UserError(f"{path} holds no {noun}.")
    n = len(items)
    listed = list(items.values())
    taken = min(limit or n, n)
    return [listed[position * n // taken] for position in range(taken)]


def write_prompts(wanted: Sequence[Prompt], path: Path) -> None:
    """Write prompts in our form, one JSON object a line."""
    lines = [json.dumps(prompt.record(), ensure_ascii=False) + "\n" for prompt in wanted]
    write_atomic(path, "".join(lines))


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
    files = _baseline_files(source, prompt_set)
    answers = {category: _answers(path) for category, path in files.items()}
    rows = []
    for prompt in wanted:
        table = answers.get(prompt.category, answers.get("*"))
        if table is None:
            hint = nearest(prompt.category, answers)
            raise UserError(
                f"the baseline names no file for category '{prompt.category}' "
                f"(prompt {prompt.id}){hint}"
            )
        answer = table.get(prompt.id, table.get(text_id(prompt.prompt)))
        rows.append({"id": prompt.id, "prompt": prompt.prompt, "answer": answer})
    lacking = pl.col("answer").is_null()
    frame = pl.DataFrame(rows, schema=ANSWERS).with_columns(
        status=pl.when(lacking).then(pl.lit("failed")).otherwise(pl.lit("ok")),
        reason=pl.when(lacking).then(pl.lit("the baseline has no answer to this prompt")),
    )
    failed = frame["answer"].null_count()
    if failed == frame.height:
        named = ", ".join(str(path) for path in files.values())
        raise UserError(f"{named} holds no answer to any of the {len(wanted)} prompts.")
    out.mkdir(parents=True, exist_ok=True)
    frame.write_parquet(out / "answers.parquet")
    return {"rows": frame.height, "failed": failed}


def _baseline_files(source: str | Mapping[str, str], prompt_set: str) -> dict[str, Path]:
    """The files of a baseline by category ("*": all)."""
    if source == "hub":
        if prompt_set not in HUB_BASELINES:
            hint = nearest(prompt_set, HUB_BASELINES)
            raise UserError(f"the prompt set '{prompt_set}' has no published baseline{hint}")
        published = HUB_BASELINES[prompt_set]
        return {category: download(*where) for category, where in published.items()}
    named = {"*": source} if isinstance(source, str) else source
    return {category: Path(path) for category, path in named.items()}


def text_id(text: str) -> str:
    """The id of a prompt that a benchmark names by its text alone (AlpacaEval)."""
    return digest(text)[:16]


def _prompt(record: Mapping[str, Any], where: str) -> Prompt:
    """A record in any of the known forms."""
    category = str(record.get("category") or "")
    match record:
        case {"instruction": str(text)}:
            return Prompt(text_id(text), text, str(record.get("dataset", "")))
        case {"id": str(name) | int(name), "prompt": str(text)} | {
            "uid": str(name),
            "prompt": str(text),
        }:
            return Prompt(str(name), text, category, _history(record.get("history"), where))
        case {"question_id": str(name) | int(name), "turns": [{"content": str(text)}, *_]}:
            return Prompt(str(name), text, category)
    raise UserError(
        f"{where}: no prompt; a record needs id and prompt (or uid and prompt, or instruction)."
    )


def _history(given: Any, where: str) -> tuple[dict[str, str], ...]:
    """What was said before a prompt."""
    turns = given or []
    if not isinstance(turns, list) or not all(
        isinstance(turn, dict)
        and isinstance(turn.get("role"), str)
        and isinstance(turn.get("content"), str)
        for turn in turns
    ):
        raise UserError(f"{where}: `history` is no list of turns, each with role and content.")
    return tuple(turns)


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
        file = path / "answers.parquet"
        try:
            frame = pl.read_parquet(file, columns=["id", "answer", "status"], glob=False)
        except (OSError, pl.exceptions.PolarsError) as error:
            raise UserError(f"{file} cannot be read as answers ({error}).") from error
        return dict(frame.filter(pl.col("status") == "ok").select("id", "answer").iter_rows())
    table: dict[str, str] = {}
    for where, record in located(path):
        answer = _answer(record)
        if answer is None:
            raise UserError(
                f"{where}: no answer; a record needs id and answer "
                "(or instruction and output, or Arena-Hard's form)."
            )
        if answer[0] in table:
            raise UserError(f"{where}: a second answer to '{answer[0]}'; keep one.")
        table[answer[0]] = answer[1]
    return table


def download(repo: str, name: str, *, fetch: bool = True) -> Path:
    """A file of a dataset repository on the hub, from its cache where it is there (with `fetch`
    false: only from there).

    Raises UserError when it cannot be had.
    """
    from huggingface_hub import hf_hub_download

    with suppress(OSError):  # not in its cache
        return Path(hf_hub_download(repo, name, repo_type="dataset", local_files_only=True))
    try:
        if not fetch:
            raise UserError("it is not downloaded yet")
        require(name)
        return Path(hf_hub_download(repo, name, repo_type="dataset"))
    # The hub's client raises a dozen kinds: offline, gated, renamed, proxy.
    except Exception as error:
        known = isinstance(error, UserError)
        reason = str(error) if known else refusal(error, repo, "dataset")
        raise UserError(
            f"{name} of the hub's {repo} cannot be fetched ({reason.rstrip('.')}); "
            "download it elsewhere and give its path."
        ) from error


def is_folder(data: Path | None) -> None:
    """Raises UserError where a folder that was named with --data is none."""
    if data is not None and not data.is_dir():
        raise UserError(f"--data {data} is no folder; check the path.")
