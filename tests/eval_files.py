"""Prompt files, answers folders and a judge's replies for the tests of eval/."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import polars as pl

from eval.prompt_sets.prompts import ANSWERS, Prompt, write_prompts
from eval.protocols import AlpacaProtocol, AnswersConfig, ArenaProtocol, JudgeConfig

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA3 = (
    "<|begin_of_text|>"
    "{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n"
    "{{ m['content'] | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)


def prompt_file(folder: Path, count: int, categories: Iterable[str] = ("",)) -> Path:
    """`count` prompts p0, p1, … with the categories in turn."""
    names = list(categories)
    folder.mkdir(parents=True, exist_ok=True)
    write_prompts(
        [Prompt(f"p{i}", f"What is {i} plus {i}?", names[i % len(names)]) for i in range(count)],
        folder / "prompts.jsonl",
    )
    return folder / "prompts.jsonl"


def answers_folder(folder: Path, answers: dict[str, str | None]) -> Path:
    """A folder like eval.checkpoint.answers writes; None is a failed answer."""
    rows = [
        {
            "id": name,
            "prompt": "",
            "answer": text,
            "finish_reason": "stop",
            "tokens": 1,
            "status": "failed" if text is None else "ok",
            "reason": "HTTP 400: too long" if text is None else None,
        }
        for name, text in answers.items()
    ]
    folder.mkdir(parents=True, exist_ok=True)
    pl.DataFrame(rows, schema=ANSWERS).write_parquet(folder / "answers.parquet")
    return folder


def duel(folder: Path, count: int, categories: Iterable[str] = ("",)) -> dict[str, Path]:
    """Inputs of eval.judging.pairwise.run: `count` prompts, the model's answers and the
    baseline's."""
    return {
        "prompts": prompt_file(folder, count, categories),
        "answers": answers_folder(
            folder / "answers", {f"p{i}": f"The model says {2 * i}." for i in range(count)}
        ),
        "baseline": answers_folder(
            folder / "baseline", {f"p{i}": f"The baseline says {2 * i + 1}." for i in range(count)}
        ),
    }


def judge(url: str, **settings: Any) -> JudgeConfig:
    """A hosted judge at `url`."""
    server = {"urls": [url], "timeout": 1.0, "max_in_flight": 8} | settings.pop("server", {})
    return JudgeConfig(model="scripted-judge", server=server, **settings)


def alpaca(
    url: str, judge_settings: dict[str, Any] | None = None, **settings: Any
) -> AlpacaProtocol:
    """The AlpacaEval protocol with a hosted judge."""
    who = judge(url, **(judge_settings or {}))
    return AlpacaProtocol(judge=who, answers=AnswersConfig(), **settings)


def arena(url: str, judge_settings: dict[str, Any] | None = None, **settings: Any) -> ArenaProtocol:
    """The Arena-Hard protocol with a hosted judge."""
    who = judge(url, **(judge_settings or {}))
    return ArenaProtocol(judge=who, answers=AnswersConfig(), **settings)


def chat_logprobs(top: dict[str, float]) -> dict[str, Any]:
    """A chat reply whose first token has these probabilities."""
    entries = [{"token": token, "logprob": math.log(p)} for token, p in top.items()]
    first = next(iter(top))
    return {
        "model": "judge-2026-01-01",
        "system_fingerprint": "fp_1",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": first},
                "finish_reason": "length",
                "logprobs": {"content": [{**entries[0], "top_logprobs": entries}]},
            }
        ],
        "usage": {"prompt_tokens": 100, "completion_tokens": 1},
    }


def shown(body: dict[str, Any]) -> str:
    """All that a judge was shown by a chat request."""
    return json.dumps(body["messages"], ensure_ascii=False)
