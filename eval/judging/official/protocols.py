"""Which published protocol a recipe's benchmark is, if it is one: a win rate can be laid beside a
published table only where everything that decides it is the table's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from eval.protocols import PairwiseProtocol, WildBenchProtocol

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
            },
        ),
    ),
    "wildbench": (
        (
            "WildBench v2 (WB-Score)",
            {"prompts": "wildbench", "judge": "gpt-4o-2024-05-13", "limit": None},
        ),
    ),
}
"""What decides the figure of each published table."""


def differs(
    protocol: PairwiseProtocol | WildBenchProtocol, published: Mapping[str, Any]
) -> list[str]:
    """What a benchmark of a recipe does in another way than a published one, as "SETTING mine
    (theirs)"."""
    found = []
    for name, theirs in published.items():
        mine = protocol.judge.model if name == "judge" else getattr(protocol, name, None)
        same = str(mine).startswith(str(theirs)) if name == "judge" else mine == theirs
        if not same:
            found.append(f"{name} {_said(mine)} ({_said(theirs)})")
    return found


def _said(value: Any) -> str:
    return "none" if value is None else str(value)


def sentence(protocol: PairwiseProtocol | WildBenchProtocol, limit: int | None = None) -> str:
    """Which published protocol this is, or that it is none, with what is different from the
    nearest; `limit`: of the prompts."""
    name, known = min(PUBLISHED[protocol.kind], key=lambda each: len(differs(protocol, each[1])))
    others = differs(protocol, known)
    if limit is not None and "limit" not in known:
        others.append(f"limit {limit} (none)")
    if not others:
        return f"{protocol.kind} is {name} as published"
    return (
        f"{protocol.kind} is no published protocol and its figures are not to be laid beside "
        f"published ones; in the place of {name}'s it has {', '.join(others)}"
    )
