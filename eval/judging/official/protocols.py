"""Which published protocol a recipe's benchmark is, if it is one: a win rate can be laid beside a
published table only where everything that decides it is the table's."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from core.files import file_digest
from eval.protocols import PairwiseProtocol, RatedProtocol, WildBenchProtocol

WILDBENCH_SCORE, WILDBENCH_REWARD = "eval_template.score.v2.md", "eval_template.pairwise.v2.md"
WILDBENCHS = {
    WILDBENCH_SCORE: "c5984ae77b009f8dad0e8e37093348345f4e8d3099ce812bd7799ef7b73f005f",
    WILDBENCH_REWARD: "ccd57bd8c4c73f4f83cf8963ef3c2697c1c7b9e907ead91e0d0512cca4ae7a11",
}
"""WildBench's own templates of WB-Score and WB-Reward, known by their texts (at WildBench
d6b8dcaf)."""
FASTCHATS = "single-v1, single-math-v1"
"""FastChat's prompts of MT-Bench's grading, which nothing reads here: ours is another one."""
MARGINS = (None, 500)
"""What WB-Reward was published with: every slight win counts, and none of an answer that is longer
by more than so many characters."""

REWARD = "wb_reward"
"""WB-Reward, the figure that a WildBench block has beside its score."""

PUBLISHED: Mapping[str, tuple[tuple[str, Mapping[str, Any]], ...]] = {
    "alpaca": (
        (
            "AlpacaEval 2",
            {
                "prompts": "alpaca_eval",
                "baseline": "hub",
                "judge": "gpt-4-1106-preview",
                "prompt": "alpaca_eval",
                "mode": "logprob",
                "codes": ("m", "M"),
                "order": "random",
                "order_seed": "0",
                "sampling": {"temperature": 1, "max_tokens": 1, "top_logprobs": 5},
            },
        ),
    ),
    "arena": (
        (
            "Arena-Hard v0.1",
            {
                "prompts": "arena-hard-v0.1",
                "baseline": "hub",
                "judge": "gpt-4-1106-preview",
                "prompt": "arena-hard-v0.1",
                "version": "v0.1",
                "constrain": False,
                "sampling": {"temperature": 0, "max_tokens": 4096},
            },
        ),
        (
            "Arena-Hard v2.0",
            {
                "prompts": "arena-hard-v2.0",
                "baseline": "hub",
                "judge": "gpt-4.1",
                "prompt": {
                    "hard_prompt": "arena-hard-v2.0",
                    "creative_writing": "arena-hard-v2.0-creative",
                },
                "version": "v2.0",
                "constrain": False,
                "sampling": {"temperature": 0, "max_tokens": 16000},
            },
        ),
    ),
    "wildbench": (
        (
            "WildBench v2 (WB-Score)",
            {
                "prompts": "wildbench",
                "judge": "gpt-4o-2024-05-13",
                "prompt": WILDBENCH_SCORE,
                "limit": None,
                "sampling": {"temperature": 0},
            },
        ),
    ),
    REWARD: tuple(
        (
            f"WildBench v2 (WB-Reward, {'no margin' if margin is None else f'margin {margin}'})",
            {
                "prompts": "wildbench",
                "judge": "gpt-4-turbo-2024-04-09",
                "reward_prompt": WILDBENCH_REWARD,
                "references": {
                    "gpt-4-turbo-2024-04-09",
                    "claude-3-haiku-20240307",
                    "Llama-2-70b-chat-hf",
                },
                "margin": margin,
                "limit": None,
                "sampling": {"temperature": 0},
            },
        )
        for margin in MARGINS
    ),
    "mtbench": (
        (
            "MT-Bench (single-answer grading)",
            {
                "prompts": "mt_bench",
                "judge": "gpt-4",
                "prompt": FASTCHATS,
                "limit": None,
                "sampling": {"temperature": 0, "max_tokens": 2048},
            },
        ),
    ),
}
"""What decides the figure of each published table. A `sampling` that leaves `max_tokens` out says
that the published code leaves it open."""

ALWAYS: Mapping[str, Any] = {"share": None, "system": None, "answers_per_prompt": 1}
"""What holds of them all: one judge of every item, one answer a prompt, no system prompt of ours
before it."""

_DATE = re.compile(r"-\d{4}-\d\d-\d\d")


def differs(protocol: PairwiseProtocol | RatedProtocol, published: Mapping[str, Any]) -> list[str]:
    """What a benchmark of a recipe does in another way than a published one, as "SETTING mine
    (theirs)"."""
    mine = dict(protocol) | {
        "judge": protocol.judge.model,
        "system": protocol.answers.system,
        "answers_per_prompt": protocol.answers.answers_per_prompt,
    }
    if isinstance(protocol, WildBenchProtocol):
        mine["references"] = set(protocol.references)
        for field in ("prompt", "reward_prompt"):
            mine[field] = _wildbenchs(mine[field])
    found: list[str] = []
    for name, theirs in {**ALWAYS, **published}.items():
        if name == "sampling":
            found += _sampling(mine[name], theirs)
        elif mine[name] != theirs and not (name == "judge" and _snapshot(mine[name], theirs)):
            found.append(f"{name} {_said(mine[name])} ({_said(theirs)})")
    return found


def _snapshot(mine: str, theirs: str) -> bool:
    """Whether a model's name is the published one with a date: gpt-4.1-mini is another model."""
    return mine.startswith(theirs) and _DATE.fullmatch(mine[len(theirs) :]) is not None


def _sampling(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> Iterator[str]:
    for name in dict.fromkeys([*theirs, *mine]):
        left_open = name == "max_tokens" and name not in theirs
        if mine.get(name) != theirs.get(name) and not left_open:
            yield f"sampling.{name} {_said(mine.get(name))} ({_said(theirs.get(name))})"


def _wildbenchs(prompt: str) -> str:
    """The name of WildBench's own template where a prompt is the path of it; else the prompt."""
    path = Path(prompt)
    content = file_digest(path) if path.is_file() else ""
    return next((name for name, known in WILDBENCHS.items() if known == content), prompt)


def _said(value: Any) -> str:
    if isinstance(value, set):
        return ", ".join(sorted(value)) or "none"
    return "none" if value is None else str(value)


def sentence(
    protocol: PairwiseProtocol | RatedProtocol,
    limit: int | None = None,
    judges: int = 1,
    *,
    figure: str | None = None,
) -> str:
    """Which published protocol this is, or that it is none, with what is different from the
    nearest; `limit`: of the prompts; `judges`: over so many the figure is a mean; `figure`: one
    that a block has beside its first."""
    figure = figure or protocol.kind
    name, known = min(PUBLISHED[figure], key=lambda each: len(differs(protocol, each[1])))
    others = differs(protocol, known)
    if limit is not None and "limit" not in known:
        others.append(f"limit {limit} (none)")
    if judges > 1:
        others.append(f"{judges} judges (one)")
    if not others:
        return f"{figure} is {name} as published"
    return (
        f"{figure} is no published protocol and its figures are not to be laid beside "
        f"published ones; in the place of {name}'s it has {', '.join(others)}"
    )
