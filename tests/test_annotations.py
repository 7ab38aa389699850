"""Our judgments in the official tools' forms, read back by our own scoring and, in the slow tier,
by alpaca_eval itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from core.errors import UserError
from eval.judging.pairwise import JUDGMENTS
from eval.prompt_sets.prompts import Prompt
from eval.prompt_sets.records import records
from eval.scoring import alpaca as reading
from eval.scoring import arena, official_files

SHARED = (
    Path(os.environ.get("MAGPIE_SHARED", Path(__file__).parents[2] / "shared"))
    / "data/eval/alpaca_eval"
)


def answers(texts: dict[str, str | None]) -> pl.DataFrame:
    return pl.DataFrame(
        {"id": list(texts), "answer": list(texts.values())},
        schema={"id": pl.String, "answer": pl.String},
    )


def judgments(rows: list[dict[str, Any]]) -> pl.DataFrame:
    return pl.DataFrame(rows, schema=JUDGMENTS)


def test_annotations_keep_the_prompts_order_and_an_unjudged_row(tmp_path: Path) -> None:
    prompts = [Prompt("a", "say a", "x"), Prompt("b", "say b"), Prompt("c", "say c")]
    games = judgments(
        [
            {"item": "c", "preference": 0.9},
            {"item": "c", "preference": 0.5},
            {"item": "a", "preference": 0.25},
            {"item": "b", "preference": 1.0},
            {"item": "b", "preference": None},
        ]
    )
    texts = answers({"a": "one", "b": None, "c": "three"})
    rows = official_files.alpaca(prompts, (texts, texts), ("base", "m"), games, annotator="judge")
    assert [(r["instruction"], r["preference"]) for r in rows] == [
        ("say a", 1.25),
        ("say b", None),
        ("say c", 1.7),
    ]
    (tmp_path / "annotations.json").write_text(json.dumps(rows))
    (model,) = reading.read(tmp_path / "annotations.json")
    figures = reading.win_rate(model)
    assert (figures["win_rate"], figures["n_total"], figures["n_unjudged"]) == (
        pytest.approx(47.5),
        2,
        1,
    )


def test_prompts_that_were_not_judged_are_refused() -> None:
    with pytest.raises(UserError, match="none for the prompt a"):
        nobody = answers({})
        official_files.alpaca(
            [Prompt("a", "p")], (nobody, nobody), ("b", "m"), judgments([]), annotator="j"
        )


@pytest.mark.parametrize("version", ["v0.1", "v2.0"])
def test_arena_judgments_are_read_back_with_the_same_score(version: str, tmp_path: Path) -> None:
    labels = [("A>>B", "A>B"), ("B>A", "A>>B"), (None, "A=B"), ("A=B", "B>A")]
    games = judgments(
        [
            {
                "item": f"q{i}",
                "category": "hard_prompt",
                "game": g + 1,
                "order": ("baseline", "model")[g],
                "label": label,
                "verdict": f"[[{label}]]" if label else "no idea",
                "status": "ok" if label else "unjudged",
            }
            for i, pair in enumerate(labels)
            for g, label in enumerate(pair)
        ]
    )
    rows = list(
        official_files.arena(
            games, model="m", baseline_model={"hard_prompt": "b"}, judge="j", version=version
        )
    )
    assert (
        rows[0]["games"][0] == {"judgment": "[[A>>B]]", "score": "A>>B"}
        and rows[2]["games"][0]["score"] is None
    )
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    (found,) = arena.read([tmp_path / "m.jsonl"])
    won = [(0, 3), (1, 1), (1, 1), (1, 3), (0.5, 1), (0.5, 1), (0, 1)]
    kept = (
        won if version == "v0.1" else won[:4] + won[5:]
    )  # v2.0 drops the whole question that lacks one verdict
    assert list(zip(found.outcome.tolist(), found.weight.tolist(), strict=True)) == kept
    assert found.unjudged == (1 if version == "v0.1" else 2)


def test_a_question_without_both_games_is_refused() -> None:
    games = judgments(
        [{"item": "q", "game": 1, "order": "baseline", "label": "A>B", "status": "ok"}]
    )
    with pytest.raises(UserError, match="question q has 1 games"):
        list(official_files.arena(games, model="m", baseline_model="b", judge="j", version="v0.1"))


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.is_dir(), reason=f"the published judgments are not at {SHARED}")
def test_alpaca_eval_itself_reads_what_we_write_and_agrees(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    outputs = [row for _, row in records(SHARED / "gpt4_1106_preview_model_outputs.json.gz")]
    prompts = [Prompt(f"p{i}", row["instruction"], row["dataset"]) for i, row in enumerate(outputs)]
    base = answers({p.id: row["output"] for p, row in zip(prompts, outputs, strict=True)})
    files = []
    for name, skill in (("even", 1.0), ("weak", 4.0)):
        own = answers(
            {
                p.id: "word " * int(n)
                for p, n in zip(prompts, rng.integers(20, 400, 805), strict=True)
            }
        )
        preferences = rng.beta(0.3, 0.3 * skill, 805)
        # A judge that failed now and then: those rows stay, with a null preference, so that no
        # other row moves.
        games = judgments(
            [
                {"item": p.id, "preference": None if i % 97 == 5 else float(v)}
                for i, (p, v) in enumerate(zip(prompts, preferences, strict=True))
            ]
        )
        rows = official_files.alpaca(
            prompts, (base, own), (reading.BASELINE, name), games, annotator="ours"
        )
        files.append(tmp_path / f"{name}.json")
        files[-1].write_text(json.dumps(rows))
    bench = Path(__file__).parents[1] / "benchmarks/bench_alpaca_lc.py"
    command = [
        sys.executable,
        str(bench),
        "--data",
        str(SHARED),
        "--json",
        "--annotations",
        *map(str, files),
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=bench.parents[1])
    assert done.returncode == 0, done.stderr
    for row in json.loads(done.stdout)["rows"]:
        assert row["win_rate_difference"] < 1e-9 and row["standard_error_difference"] < 1e-9
        assert row["lc_difference"] < 0.02 and row["lc_error_difference"] < 0.02, row
