"""The files of a whole run as its stages write them, for tests of the report: fabricated, with
hostile, long and failed answers among them."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl

from core.store import Result, Store
from eval import compare
from eval.comparing.metrics import Declared
from eval.comparing.scores import COLUMNS
from synth.measures import CATEGORY, QUALITY

HOSTILE = (
    "<script>window.pwned=1</script></script><!-- <img src=x onerror='window.pwned=2'> & "
    "\u202eright to left\u202c \u2028 \x00 {{ 7*7 }} ]]>"
)
LONG = "long " * 20_000
ARMS = ("magpie", "random", "untuned")
LABELS = ("A>>B", "A>B", "A=B", "B>A", "B>>A")


def fabricate(
    root: Path, prompts: int = 24, rows: int = 192, seeds: tuple[str, ...] = ("0",)
) -> dict[str, Path]:
    """Folders of every stage as the stages write them, with hostile, long and failed answers among
    them."""
    chance, store, inputs = random.Random(7), Store(root), dict[str, Path]()

    def result(name: str, files: dict[str, Any]) -> None:
        stage = name.split("/")[0]
        key = f"{len(inputs):04d}{'a' * 60}"
        with store.build(stage, key, {"stage": stage, "seed": 0}) as build:
            for file, content in files.items():
                path = build.path / file
                if isinstance(content, pl.DataFrame):
                    content.write_parquet(path)
                else:
                    path.write_text(content if isinstance(content, str) else json.dumps(content))
            build.counts |= {
                "rows": 48,
                "judged": 46,
                "unjudged": 2,
                "position_consistency": 0.6818,
                "position_pairs": 22,
                "mass": 0.93,
            }
            build.facts["versions"] = {"torch": "2.13.0+cpu"}
        inputs[name] = store.folder(stage, key)

    ids = [f"row-{i:04d}" for i in range(rows)]
    quality = [chance.choices([*QUALITY, None], [1, 3, 6, 8, 3, 1])[0] for _ in ids]
    distance = [0.0 if chance.random() < 0.06 else chance.betavariate(2, 3) for _ in ids]
    result(
        "measure",
        {
            "pool.parquet": pl.DataFrame(
                {
                    "id": ids,
                    "index": range(rows),
                    "instruction": [f"How do I plan trip {i}?" for i in range(rows)],
                    "instruction_length": [int(chance.lognormvariate(4.2, 0.7)) for _ in ids],
                    "temperature": [0.8] * rows,
                    "incomplete": [chance.random() < 0.1 for _ in ids],
                    "min_neighbor_distance": distance,
                    "input_quality": pl.Series(quality, dtype=pl.Enum(QUALITY)),
                    "status:quality": ["ok" if q else "failed" for q in quality],
                    "task_category": [chance.choices(CATEGORY, range(12, 0, -1))[0] for _ in ids],
                    "quality_explanation": [f"because {i} {HOSTILE}" for i in range(rows)],
                }
            ),
            "cost.json": {
                "columns": [
                    {
                        "name": "instruction",
                        "cells": rows,
                        "tokens": 8123,
                        "prompt_tokens": 0,
                        "seconds": 61.2,
                        "untimed": 0.0,
                    },
                    {
                        "name": "quality",
                        "cells": rows,
                        "tokens": rows,
                        "prompt_tokens": 61000,
                        "seconds": 112.0,
                        "untimed": 0.0,
                    },
                    {
                        "name": "response",
                        "cells": 121,
                        "tokens": 14002,
                        "prompt_tokens": 6100,
                        "seconds": 44.8,
                        "untimed": 0.0,
                    },
                ],
                "tokens_spent": 22317,
                "tokens_avoided": 8216,
                "naive_tokens": 30533,
                "rows_answered": 121,
                "rows_pool": rows,
                "cost_per_kept_row": {"magpie": 348.7, "random": 201.5},
            },
        },
    )
    good = [
        i
        for i, q, d in zip(ids, quality, distance, strict=True)
        if q in ("good", "excellent") and d > 0
    ][:64]
    for arm, chosen in (("magpie", good), ("random", chance.sample(ids, 64))):
        stopped = sum(q not in ("good", "excellent") for q in quality)
        steps = [
            {"predicate": "input_quality >= 'good'", "stopped": stopped, "left": rows - stopped},
            {"predicate": "min_neighbor_distance > 0", "stopped": 6, "left": rows - stopped - 6},
        ]
        result(
            f"select/{arm}",
            {
                "selection.parquet": pl.DataFrame({"id": chosen}).with_columns(
                    messages=pl.lit([{"role": "user", "content": HOSTILE}])
                ),
                "dropped.parquet": pl.DataFrame(
                    {"id": ids[:3], "reason": ["not chosen", "not chosen", HOSTILE]}
                ),
                "funnel.json": {
                    "pool": rows,
                    "heldout": 10,
                    "steps": steps if arm == "magpie" else [],
                    "failed": {"tag failed": 7} if arm == "magpie" else {},
                    "allowed": rows - stopped - 6 if arm == "magpie" else rows - 10,
                    "chosen": len(chosen),
                    "budget": {"rows": 64},
                    "choose": "hash_order",
                },
            },
        )
        for seed in seeds:
            log = [
                {
                    "step": s,
                    "loss": 2.4 * 0.93**s + chance.gauss(0, 0.03) + (arm == "random") * 0.1,
                    "tokens_per_second": 93.1,
                }
                for s in range(1, 13)
            ]
            result(
                f"train/{arm}/{seed}",
                {
                    "log.jsonl": "\n".join(json.dumps(e) for e in log) + "\n",
                    "ledger.json": {
                        "key": "k",
                        "rows": 64,
                        "tokens": 24011,
                        "loss_tokens": 17202,
                        "truncated_rows": 0,
                        "dropped": {"no assistant turn": 2},
                    },
                },
            )
    names = [f"p{i:02d}" for i in range(prompts)]
    prompt_file = root / "prompts.jsonl"
    prompt_file.write_text(
        "".join(
            json.dumps({"id": n, "prompt": "", "category": CATEGORY[i % 12]}) + "\n"
            for i, n in enumerate(names)
        )
    )
    inputs["prompts/alpaca"] = prompt_file
    compared: dict[str, Path] = {}
    for arm in ARMS:
        for seed in ("0",) if arm == "untuned" else seeds:
            texts = [
                f"Answer {i} of {arm}, seed {seed}. "
                + "It depends on the budget. " * chance.randint(1, 20)
                for i in range(prompts)
            ]
            texts[1] = HOSTILE
            texts[2] = LONG
            failed = [i == 3 for i in range(prompts)]
            result(
                f"answers/{arm}/{seed}",
                {
                    "answers.parquet": pl.DataFrame(
                        {
                            "id": names,
                            "prompt": [
                                f"Question {i}: what should I cook for {i + 2} guests?"
                                for i in range(prompts - 1)
                            ]
                            + [HOSTILE],
                            "answer": [
                                None if f else t for f, t in zip(failed, texts, strict=True)
                            ],
                            "finish_reason": ["stop", "length"] * (prompts // 2),
                            "tokens": [len(t) // 5 for t in texts],
                            "status": ["failed" if f else "ok" for f in failed],
                            "reason": [
                                "the server closed the connection" if f else None for f in failed
                            ],
                        }
                    )
                },
            )
            wins = [
                max(0.0, min(100.0, chance.gauss({"magpie": 64, "random": 52}.get(arm, 50), 25)))
                for _ in names
            ]
            values: list[float | None] = [None if i == 3 else w for i, w in enumerate(wins)]
            scores = (
                [("alpaca", "win_rate", n, v) for n, v in zip(names, values, strict=True)]
                if arm != "untuned"
                else []
            )
            scores += [
                (
                    "heldout",
                    "loss",
                    f"h{i}",
                    chance.gauss({"magpie": 1.9, "random": 1.92}.get(arm, 2.1), 0.2),
                )
                for i in range(10)
            ]
            if arm != "untuned":
                result(
                    f"judge/alpaca/{arm}/{seed}",
                    {
                        "judgments.parquet": pl.DataFrame(
                            {
                                "item": names * 2,
                                "game": [1] * prompts + [2] * prompts,
                                "order": ["baseline"] * prompts + ["model"] * prompts,
                                "preference": [None if v is None else v / 100 for v in values] * 2,
                                "label": [chance.choice(LABELS) for _ in names * 2],
                                "verdict": [f"Both are fine. {HOSTILE} [[A>B]]"] * (2 * prompts),
                                "mass": [0.93] * (2 * prompts),
                                "status": ["failed" if v is None else "ok" for v in values] * 2,
                                "reason": [
                                    "no verdict in 3 tries" if v is None else None for v in values
                                ]
                                * 2,
                            }
                        )
                    },
                )
            rows_ = [
                (*s[:3], s[2], s[3], "ok" if s[3] is not None else "unjudged", None) for s in scores
            ]
            result(
                f"scores/{arm}/{seed}",
                {
                    "scores.parquet": pl.DataFrame(rows_, schema=COLUMNS, orient="row"),
                    "summary.json": {},
                },
            )
            compared[f"{arm}/{seed}" if arm != "untuned" else arm] = inputs[f"scores/{arm}/{seed}"]
    with store.build("compare", "f" * 64, {}) as build:
        compare.run(compared, build.path, Declared("alpaca", "untuned"), resamples=500)
    inputs["comparison"] = store.folder("compare", "f" * 64)
    return inputs


def fabricate_judged(
    root: Path, runs: Sequence[str], rival: str, prompts: int
) -> dict[str, Result]:
    """Results by name of `runs` that were judged against the answers of `rival`, which has no
    scores of its own."""
    ids = [f"p{i}" for i in range(prompts)]
    results: dict[str, Result] = {}

    def result(name: str, frame: pl.DataFrame, **inputs: str) -> str:
        folder = root / name
        folder.mkdir(parents=True)
        kind = name.partition("/")[0]
        file = {"answers": "answers", "judge": "judgments", "score": "scores"}[kind]
        frame.write_parquet(folder / f"{file}.parquet")
        results[name] = Result(folder, {"digest": name, "spec": {"inputs": inputs}})
        return name

    def answers(run: str) -> str:
        told = {"id": ids, "prompt": ids, "answer": [f"{run} says {each}" for each in ids]}
        return result(f"answers/{run}", pl.DataFrame(told))

    games = pl.DataFrame({"item": ids, "game": [1] * prompts, "preference": [0.5] * prompts})
    scored = [("alpaca", "win_rate", each, each, 50.0, "ok", None) for each in ids]
    scores = pl.DataFrame(scored, schema=COLUMNS, orient="row")
    baseline = answers(rival)
    for run in runs:
        judged = {"answers": answers(run), "baseline": baseline}
        result(f"judge/alpaca/{run}", games, **judged)
        result(f"score/{run}", scores)
    return results
