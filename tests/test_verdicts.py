"""What the page says of a comparison and of a run, as pure functions of their figures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from core.errors import UserError
from core.sending.purse import Bill, Ledger
from recipes.report.drawing.scatter import Cloud, Point, frame, panel, scatter
from recipes.report.sections import costs, judge_card, nearest, pool_map
from recipes.report.verdicts import (
    controls,
    disagreement,
    leaderboard,
    lengths,
    outcome,
    seeds,
)
from recipes.report.verdicts.sentence import answer

COLOURS = {"random": "s0", "x": "s1", "y": "s2"}


def score(arm: str, value: float | None, **more: Any) -> dict[str, Any]:
    return {
        "benchmark": "alpaca",
        "metric": "win_rate",
        "arm": arm,
        "value": value,
        "lower": None if value is None else value - 3,
        "upper": None if value is None else value + 3,
        "n": 100,
        "unjudged": 0,
        "primary": True,
        **more,
    }


def pair(a: str, b: str, verdict: str, difference: float = 8.0) -> dict[str, Any]:
    return {
        "benchmark": "alpaca",
        "metric": "win_rate",
        "a": a,
        "b": b,
        "difference": difference,
        "simultaneous_lower": difference - 5,
        "simultaneous_upper": difference + 4,
        "p_holm": 0.01,
        "detectable": 7.2,
        "n": 100,
        "verdict": verdict,
        "scope": "these filters",
    }


def comparison(**more: Any) -> dict[str, Any]:
    return {
        "baseline": "random",
        "primary": "alpaca",
        "arms": [{"name": arm, "seeds": ["0", "1"]} for arm in COLOURS],
        "scores": [score("random", 50.0), score("x", 58.0), score("y", 44.0)],
        "differences": [
            pair("x", "random", "x is better"),
            pair("y", "random", "random is better", -6.0),
            pair("x", "y", "x is better", 14.0),
        ],
        **more,
    }


def items(values: dict[tuple[str, str], dict[str, float | None]]) -> pl.DataFrame:
    """Items of the primary figure: (arm, seed) -> item -> value."""
    rows = [
        ("alpaca", "win_rate", arm, seed, item, value)
        for (arm, seed), own in values.items()
        for item, value in own.items()
        if value is not None
    ]
    return pl.DataFrame(rows, schema=list(seeds.ITEMS), orient="row")


# -- the answer in one sentence --------------------------------------------------------------------


def sentence(**more: Any) -> str:
    return answer(comparison(**more))


def test_an_arm_that_loses_to_the_baseline_is_worse_than_it() -> None:
    assert sentence().endswith(": x is better than random; y is worse than random.")


def test_arms_that_beat_the_baseline_are_named_together() -> None:
    both = [pair("x", "random", "x is better"), pair("random", "y", "y is better", -3.0)]
    assert sentence(differences=both).endswith(": x and y are better than random.")


def among(names: str, beaten: dict[str, str], otherwise: str = "cannot tell") -> str:
    """The answer of arms without a baseline: each key beats the arms of its value."""
    pairs = []
    for k, p in enumerate(names):
        for q in names[k + 1 :]:
            won = [x for x, y in ((p, q), (q, p)) if y in beaten.get(x, "")]
            pairs.append(pair(p, q, f"{won[0]} is better" if won else otherwise))
    return sentence(baseline=None, differences=pairs, scores=[score("c", 70.0), score("a", 60.0)])


def test_of_many_arms_only_the_first_is_said_with_counts() -> None:
    where = " on alpaca (win_rate), the primary benchmark: "
    twelve = "abcdefghijkl"
    assert among(twelve, {"a": "defghijkl", "b": "defghijkl", "d": "e"}) == (
        f"a leads{where}it is better than 9 of 11 others and cannot be told from b and c."
    )
    assert among(twelve, {"a": twelve[1:], "b": "cd"}) == (
        f"a won{where}it is better than all 11 others."
    )
    assert among(twelve, {}) == (
        f"Nobody won{where}66 of 66 pairs cannot be told apart, and no arm is better."
    )
    told = among(twelve, {"c": "ab", "a": "de"})
    assert told.startswith("c leads") and told.endswith("from d, e, f, g and 5 more.")
    told = among("abcde", {"a": "d", "c": "d"}, "equal within 2")
    assert told == f"c leads{where}it is better than 1 of 4 others and is as good as 3."


def test_who_leads_is_never_an_arm_that_another_is_better_than() -> None:
    assert among("abcdef", {"a": "bcde", "f": "a"}).startswith("f leads")


def test_of_many_arms_beside_a_baseline_the_first_are_named_and_the_rest_counted() -> None:
    pairs = [pair(arm, "random", f"{arm} is better") for arm in "abcdefghijklm"]
    told = sentence(differences=pairs)
    assert told.endswith(": a, b, c, d and 9 more are better than random.") and len(told) < 150


def shuffled(*shares: float, verdict: str, **more: Any) -> dict[str, Any]:
    rows = [
        {"arm": f"s{share}", "of": "random", "share": share, "verdict": verdict} for share in shares
    ]
    known = {"difference": -0.1, "simultaneous_lower": -1.0, "simultaneous_upper": 0.8}
    found = {
        "benchmark": "alpaca",
        "metric": "win_rate",
        "primary": True,
        "negative": [],
        "shuffled": [row | known for row in rows],
        "smallest_detected": None,
        "sees_nothing": False,
    }
    return found | more


AGAIN = {
    "arm": "again",
    "of": "random",
    "difference": 2.0,
    "simultaneous_lower": 1.0,
    "simultaneous_upper": 3.0,
}


@pytest.mark.parametrize(
    ("shown", "why"),
    [
        (
            shuffled(0.1, 1.0, verdict="cannot tell", sees_nothing=True),
            "not even 100% wrong answers are told from right ones",
        ),
        (
            shuffled(verdict="") | {"negative": [AGAIN | {"ties": False}]},
            "again, a second random sample, is no tie with random",
        ),
        (
            shuffled(0.3, verdict="s0.3 is better", smallest_detected=0.1),
            "30% wrong answers are better than none",
        ),
    ],
)
def test_where_a_control_failed_the_answer_begins_with_that(
    shown: dict[str, Any], why: str
) -> None:
    won = [pair("x", "random", "x is better"), pair("x", "y", "x is better")]
    told = sentence(controls=[shown], differences=won)
    assert told.startswith(f"Not to be believed ({why}): x won on alpaca (win_rate)")
    line = controls.line(comparison(controls=[shown]))
    assert line["against"] and line["text"].startswith(f"Controls failed: {why}")
    other = shown | {"metric": "another"}
    assert sentence(controls=[other], differences=won).startswith("x won on ")
    assert controls.line(comparison(controls=[other])) == {}


def test_controls_that_came_out_as_they_must_cast_no_doubt() -> None:
    good = shuffled(0.1, 0.3, verdict="random is better", smallest_detected=0.3)
    good["negative"] = [AGAIN | {"ties": True}]
    assert sentence(controls=[good]).startswith("x won on ")
    line = controls.line(comparison(controls=[good]))
    assert line == {
        "text": "Controls: again, a second random sample, ties with random; wrong answers are "
        "detected from 30% on (10% are not).",
        "against": False,
    }
    assert controls.line(comparison()) == {}


@pytest.mark.parametrize(
    ("verdict", "told"),
    [
        ("x is no worse", "x is no worse than random"),
        ("equal within 2", "x and random are equal within 2"),
        ("who knows", "who knows"),
    ],
)
def test_a_verdict_of_another_kind_names_both_arms(verdict: str, told: str) -> None:
    assert sentence(differences=[pair("x", "random", verdict)]).endswith(f": {told}.")


def test_the_evidence_says_what_would_settle_it_what_is_missing_and_what_arms_share() -> None:
    more = {
        "settled": {"sentence": "900 prompts would settle it."},
        "overlap": 0.25,
        "missing": {
            "cells": 3,
            "as_losses": {"difference": 1.0, "verdict": "cannot tell"},
            "worst_case": {"simultaneous_lower": -4.0, "simultaneous_upper": 9.0},
        },
    }
    [told] = outcome.lines(comparison(differences=[pair("x", "random", "cannot tell") | more]))
    assert told.endswith(
        ": cannot tell. 900 prompts would settle it. 3 values are missing: as losses +1.00 (cannot "
        "tell), whatever they are −4.00 to +9.00. The two have 25 % of their rows in common "
        "(Jaccard)."
    )
    shared = {"overlap": 0.0, "overlap_instructions": 1.0}
    [told] = outcome.lines(comparison(differences=[pair("x", "random", "cannot tell") | shared]))
    said = "The two have 0 % of their rows and 100 % of their instructions in common (Jaccard)."
    assert told.endswith(said)


def test_components_are_shown_as_deviations_and_what_was_not_measured_as_none() -> None:
    known = {"benchmark": "b", "metric": "m", "prompts": 9.0, "seeds": None, "rest": 4.0}
    deciding = {**known, "metric": "first", "primary": True}
    rows = outcome.components({"components": [{**known, "primary": False}, deciding]})
    assert [row["metric"] for row in rows] == ["first", "m"]
    assert rows[0]["deviations"] == [3.0, None, None, None, 2.0]


# -- the leaderboard -------------------------------------------------------------------------------


def test_the_best_arm_stands_first_with_its_difference_from_the_baseline() -> None:
    board = leaderboard.leaderboard(comparison(), COLOURS, {})
    assert [row["arm"] for row in board["rows"]] == ["x", "random", "y"]
    first, second, third = board["rows"]
    assert (first["against"]["difference"], first["against"]["verdict"]) == ("+8.00", "better")
    assert second["against"] is None and second["baseline"]
    assert (third["against"]["verdict"], third["against"]["tone"]) == ("worse", "worse")


def test_where_lower_is_better_the_lowest_stands_first() -> None:
    lower = [score("random", 2.0, lower_is_better=True), score("x", 1.5), score("y", 1.8)]
    board = leaderboard.leaderboard(comparison(scores=lower), COLOURS, {})
    assert [row["arm"] for row in board["rows"]] == ["x", "y", "random"]


def test_an_arm_without_a_score_stands_last() -> None:
    board = leaderboard.leaderboard(
        comparison(scores=[score("x", None), score("y", 3.0)]), COLOURS, {}
    )
    assert [row["arm"] for row in board["rows"]] == ["y", "x"]


def test_a_difference_from_the_baseline_is_turned_round_with_its_interval() -> None:
    turned = [pair("random", "x", "random is better", 6.0)]
    board = leaderboard.leaderboard(comparison(differences=turned), COLOURS, {})
    told = board["rows"][0]["against"]
    assert (told["difference"], told["lower"], told["upper"]) == ("−6.00", "−10.0", "−1.00")


def test_each_seed_is_a_dot_of_the_figure() -> None:
    known = {("alpaca", "win_rate", "x"): [("0", 55.0), ("1", 61.0)]}
    board = leaderboard.leaderboard(comparison(), COLOURS, known)
    assert board["figure"].count('class="seed"') == 2
    assert "seed 1: 61.0" in board["figure"]
    assert [row["seeds"] for row in board["rows"]] == [2, None, None]


def test_without_a_figure_that_decides_there_is_no_leaderboard() -> None:
    assert leaderboard.leaderboard({}, {}, {}) == {}


# -- seeds -----------------------------------------------------------------------------------------


def test_a_seeds_score_is_over_the_items_that_every_seed_has() -> None:
    table = items(
        {("x", "0"): {"a": 1.0, "b": 3.0, "c": 8.0}, ("x", "1"): {"a": 2.0, "b": 6.0, "c": None}}
    )
    assert seeds.scores(table) == {("alpaca", "win_rate", "x"): [("0", 2.0), ("1", 4.0)]}


def test_a_finished_model_has_no_dots() -> None:
    assert seeds.scores(items({("x", ""): {"a": 1.0}})) == {}


def test_items_that_lack_a_column_are_one_sentence(tmp_path: Path) -> None:
    pl.DataFrame({"item": ["a"]}).write_parquet(tmp_path / "comparison.parquet")
    with pytest.raises(UserError, match="lacks the column benchmark; remove"):
        seeds.items({"comparison": tmp_path})


# -- prompts that arms disagree on -----------------------------------------------------------------


def test_prompts_are_ranked_by_the_distance_of_the_means_over_seeds() -> None:
    table = items(
        {
            ("x", "0"): {"near": 10.0, "far": 90.0, "only x": 99.0},
            ("x", "1"): {"near": 20.0, "far": 70.0},
            ("y", "0"): {"near": 14.0, "far": 20.0},
        }
    )
    apart = disagreement.prompts(comparison(), table, COLOURS)
    assert [(row["item"], row["distance"]) for row in apart["rows"]] == [("far", 60.0), ("near", 1)]
    assert [arm for arm, _, _ in apart["rows"][0]["values"]] == ["x", "y"]
    assert (apart["of"], apart["means"], apart["ties"]) == (2, True, 0)


def test_prompts_that_lie_as_far_apart_as_the_last_are_counted() -> None:
    right = {f"i{k:02d}": 1.0 for k in range(14)}
    table = items({("x", ""): right, ("y", ""): dict.fromkeys(right, 0.0)})
    apart = disagreement.prompts(comparison(), table, COLOURS)
    assert (len(apart["rows"]), apart["ties"], apart["means"]) == (10, 4, False)


def test_controls_do_not_count_among_the_arms_furthest_apart() -> None:
    told = {"x": {"a": 1.0, "b": 2.0}, "y": {"a": 1.5, "b": 2.1}, "wrong": {"a": 1.0, "b": 90.0}}
    table = items({(arm, ""): values for arm, values in told.items()})
    shown = comparison() | {"controls": [{"shuffled": [{"arm": "wrong", "share": 1.0}]}]}
    apart = disagreement.prompts(shown, table, COLOURS)
    assert [row["item"] for row in apart["rows"]] == ["a", "b"]
    assert [arm for arm, _, _ in apart["rows"][1]["values"]] == ["wrong", "y", "x"]


def test_a_held_out_item_is_shown_by_its_first_message_with_three_rows_an_arm(
    tmp_path: Path,
) -> None:
    talk = [[{"role": "user", "content": f"how do rivers bend {n}"}] for n in range(5)]
    rows = pl.DataFrame({"id": [f"r{n}" for n in range(5)], "messages": talk})
    for folder, file in (("held", "heldout.parquet"), ("chosen", "selection.parquet")):
        (tmp_path / folder).mkdir()
        rows.write_parquet(tmp_path / folder / file)
    inputs = {"made/select/heldout": tmp_path / "held", "select/x": tmp_path / "chosen"}
    first = nearest.first_messages(inputs, ["r1", "gone"])
    assert first == {"r1": "how do rivers bend 1"}
    (near,) = nearest.nearest(inputs, list(first.values()), COLOURS, None)["rows"]
    assert len(near) == nearest.ROWS and near[0]["likeness"] >= near[1]["likeness"]


def test_one_arm_disagrees_with_nobody() -> None:
    assert disagreement.prompts(comparison(), items({("x", ""): {"a": 1.0}}), COLOURS)["rows"] == []


# -- lengths ---------------------------------------------------------------------------------------


def answers(folder: Path, tokens: list[int | None]) -> Path:
    folder.mkdir(parents=True)
    finish = ["length" if count == 512 else "stop" for count in tokens]
    frame = pl.DataFrame({"tokens": pl.Series(tokens, dtype=pl.Int64), "finish_reason": finish})
    frame.write_parquet(folder / "answers.parquet")
    return folder


def test_lengths_are_means_of_what_was_answered_and_seeds_are_dots(tmp_path: Path) -> None:
    inputs = {
        "answers/x/0": answers(tmp_path / "0", [100, 512, None]),
        "answers/x/1": answers(tmp_path / "1", [200, 200]),
    }
    known = {("alpaca", "win_rate", "x"): [("0", 55.0), ("1", 61.0)]}
    shown = lengths.lengths(inputs, comparison(), COLOURS, known)
    [row] = shown["rows"]
    assert (row["arm"], row["tokens"], row["cut"], row["score"]) == ("x", 253.0, 0.25, 58.0)
    assert "x, seed 1\n200 tokens an answer\n61.0" in shown["figure"]


def test_a_benchmark_that_asked_for_itself_has_its_own_lengths(tmp_path: Path) -> None:
    inputs = {
        "answers/x/0": answers(tmp_path / "shared", [10]),
        "answers/x/0/alpaca": answers(tmp_path / "own", [70]),
        "answers/x/0/arena": answers(tmp_path / "other", [500]),
        "judge/arena/x/0": tmp_path,
        "judge/alpaca/x/0": tmp_path,
    }
    [row] = lengths.lengths(inputs, comparison(), COLOURS, {})["rows"]
    assert row["tokens"] == 70.0


# -- judges ----------------------------------------------------------------------------------------


def judged(path: Path, games: list[tuple[float | None, int, int]]) -> Path:
    preference, mine, theirs = zip(*games, strict=True)
    named = ["j" if value is not None else None for value in preference]
    pl.DataFrame(
        {
            "preference": preference,
            "model_characters": mine,
            "baseline_characters": theirs,
            "judgment": named,
        }
    ).write_parquet(path)
    return path


def test_a_preference_for_longer_answers_counts_games_of_unequal_length(tmp_path: Path) -> None:
    games = [(0.9, 200, 100), (0.2, 100, 200), (0.9, 100, 200), (0.5, 300, 100), (0.9, 100, 101)]
    path = judged(tmp_path / "judgments.parquet", [*games, (None, 1, 900)])
    assert judge_card.longer_preferred(path) == {"longer": 2.5 / 4, "unequal": 4}


def test_a_card_weighs_each_judging_by_what_it_was_measured_on() -> None:
    shared = {"benchmark": "alpaca", "rows": 10, "judged": 10, "models": ["m"]}
    judges = [
        {**shared, "position_consistency": 1.0, "position_pairs": 30, "longer": None, "unequal": 0},
        {**shared, "position_consistency": 0.6, "position_pairs": 10, "longer": 0.7, "unequal": 9},
    ]
    [card] = judge_card.cards(judges, {"alpaca": ["agrees in 0.6"]})
    assert card["consistency"] == pytest.approx(0.9)
    assert (card["longer"], card["first"], card["judged"]) == (0.7, None, 20)
    assert card["people"] == ["agrees in 0.6"] and card["models"] == ["m"]


# -- costs -----------------------------------------------------------------------------------------


def made(folder: Path, **manifest: Any) -> Path:
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def test_costs_are_summed_by_stage_and_bills_by_model(tmp_path: Path) -> None:
    judging = {"asked": 7, "tokens": 70, "prompt_tokens": 900, "money": 0.5}
    ledger = Ledger(tmp_path / "spent")
    ledger.add("gpt", Bill(3, 100, 20, 0.25))
    ledger.add("gpt", Bill(1, 10, 2, 0.05))
    shown = costs.costs(
        {
            "train/x/0": made(tmp_path / "a", seconds=60, counts={"trained_tokens_total": 500}),
            "train/x/1": made(tmp_path / "b", seconds=30, counts={"trained_tokens_total": 400}),
            "judge/alpaca/x/0": made(tmp_path / "c", seconds=5, counts=judging),
            "scores/x/0": made(tmp_path / "d", seconds=9),
            "spent": tmp_path / "spent",
        }
    )
    train, judge, scores = shown["rows"]
    assert train == {"name": "training", "results": 2, "seconds": 90.0, "tokens": 900}
    assert (judge["name"], judge["calls"], judge["money"]) == ("judging: alpaca", 7, 0.5)
    assert scores["seconds"] == 9.0
    assert shown["total"] == {
        "seconds": 104.0,
        "prompt_tokens": 900,
        "tokens": 970,
        "calls": 7,
        "money": pytest.approx(0.3),
        "training_hours": pytest.approx(90 / 3600),
    }
    assert shown["bills"] == [
        {
            "model": "gpt",
            "calls": 4,
            "prompt_tokens": 110,
            "tokens": 22,
            "money": pytest.approx(0.3),
        }
    ]


# -- the map ---------------------------------------------------------------------------------------


def pool(tmp_path: Path, rows: int = 60) -> dict[str, Path]:
    about = ["bake bread with flour and yeast", "sort a list of numbers in python"]
    tmp_path.mkdir(exist_ok=True)
    pl.DataFrame(
        {
            "id": [f"r{k:03d}" for k in range(rows)],
            "instruction": [f"{about[k % 2]} number {k // 4}" for k in range(rows)],
        }
    ).write_parquet(tmp_path / "pool.parquet")
    (tmp_path / "x").mkdir()
    chosen = pl.DataFrame({"id": [f"r{k:03d}" for k in range(0, rows, 2)]})
    chosen.write_parquet(tmp_path / "x/selection.parquet")
    return {"measure": tmp_path, "select/x": tmp_path / "x"}


def test_a_map_of_words_parts_what_is_about_other_things(tmp_path: Path) -> None:
    texts = pl.read_parquet(pool(tmp_path)["measure"] / "pool.parquet")["instruction"].to_list()
    found = pool_map.project([str(k) for k in range(len(texts))], texts, None)
    first = found.places[:, 0]
    assert (first[::2] > first[1::2].max()).all() or (first[::2] < first[1::2].min()).all()
    assert 0 < found.explained <= 1 and "words" in found.of


def test_a_map_takes_the_embeddings_that_are_stored(tmp_path: Path) -> None:
    asked: list[int] = []

    def stored(texts: Any) -> Any:
        asked.append(len(texts))
        return np.random.default_rng(0).normal(size=(len(texts), 8)).astype(np.float32)

    shown = pool_map.pool_map(pool(tmp_path), COLOURS, stored)
    assert asked == [60] and "the instructions' embeddings" in shown["sentence"]
    assert [(one["arm"], one["rows"]) for one in shown["panels"]] == [("x", 30)]


def test_a_map_is_of_a_fixed_sample_and_shows_a_small_arm_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool_map, "ROWS", 20)
    inputs = pool(tmp_path, 400)
    few = pl.read_parquet(tmp_path / "x/selection.parquet").head(5)
    rows, found = pool_map.sample(tmp_path / "pool.parquet", {"x": few, "other": few.clear()})
    assert found == {"x": set(few["id"])} and set(few["id"]) <= set(rows["id"])
    assert rows["of_pool"].sum() == 20
    again, _ = pool_map.sample(inputs["measure"] / "pool.parquet", {"x": few})
    assert again.equals(rows)


def test_a_cloud_draws_what_lies_outside_at_the_edge_and_each_place_once() -> None:
    inside = np.array([[0.0, 0.0], [1.0, 1.0], [0.0, 0.0]])
    scales = frame([Cloud("", inside)])
    drawn = str(panel([Cloud("s0", np.vstack([inside, [[99.0, 0.0]]]))], scales, "map"))
    assert drawn.count("h0") == 3 and 'd="M' in drawn
    assert "M214," in drawn


def test_a_scatter_names_large_points_and_gives_every_point_its_values() -> None:
    drawn = str(
        scatter(
            [Point("s0", 1.0, 2.0, "x\n2", "x <b>"), Point("s0", 3.0, 4.0, "seed 1")],
            "label",
            ("tokens", "score"),
            3.0,
        )
    )
    assert "x &lt;b&gt;</text>" in drawn and drawn.count("<title>") == 2
    assert 'class="reference"' in drawn and drawn.count('class="seed"') == 1


# -- controls --------------------------------------------------------------------------------------


def control(arm: str, verdict: str, difference: float, **more: Any) -> dict[str, Any]:
    told = pair(arm, "random", verdict, difference)
    kept = {name: told[name] for name in told if name not in ("a", "b", "benchmark", "metric")}
    return {"arm": arm, "of": "random", **kept, **more}


def shown_controls(**more: Any) -> dict[str, Any]:
    return {
        "benchmark": "alpaca",
        "metric": "win_rate",
        "primary": True,
        "negative": [control("random-again", "cannot tell", 1.0, ties=True)],
        "shuffled": [control("shuffled-100", "random is better", -20.0, share=1.0, detected=True)],
        "smallest_detected": 1.0,
        "sees_nothing": False,
        "sentences": ["alpaca win_rate: 100% wrong answers are detected."],
        **more,
    }


def test_controls_that_came_out_as_they_must_are_drawn_around_nought() -> None:
    [entry] = controls.controls({"controls": [shown_controls()]}, COLOURS)
    said = [(line["text"].split(" ", 1)[0], line["against"]) for line in entry["lines"]]
    assert said == [("random-again,", False), ("100%", False)]
    assert "shuffled-100: −20.0" in entry["figure"] and 'class="reference"' in entry["figure"]


@pytest.mark.parametrize(
    ("more", "against"),
    [
        ({"sees_nothing": True, "smallest_detected": None}, [False, True]),
        (
            {"negative": [control("random-again", "random is better", -9.0, ties=False)]},
            [True, False],
        ),
        ({"shuffled": [control("s", "s is better", 9.0, share=1.0)]}, [False, True, False]),
    ],
)
def test_only_the_sentence_that_speaks_against_the_experiment_is_marked(
    more: Any, against: list[bool]
) -> None:
    [entry] = controls.controls({"controls": [shown_controls(**more)]}, COLOURS)
    assert [line["against"] for line in entry["lines"]] == against


def test_the_leaderboard_has_the_controls_with_their_own_differences() -> None:
    told = comparison(controls=[shown_controls()])
    told["scores"].append(score("shuffled-100", 30.0))
    row = leaderboard.leaderboard(told, COLOURS, {})["rows"][-1]
    assert (row["arm"], row["against"]["verdict"]) == ("shuffled-100", "worse")
    assert controls.arms(told) == {
        "random-again": "second sample",
        "shuffled-100": "100% wrong",
    }


# -- training rows near a prompt -------------------------------------------------------------------


def selection(folder: Path, texts: list[str | None]) -> Path:
    folder.mkdir(parents=True)
    turns = [[{"role": "user", "content": text}] for text in texts]
    frame = pl.DataFrame({"id": [f"r{k}" for k in range(len(texts))], "messages": turns})
    frame.write_parquet(folder / "selection.parquet")
    return folder


def test_the_nearest_training_row_of_each_arm_is_found_by_its_words(tmp_path: Path) -> None:
    texts = ["sort numbers in python", "bake sourdough bread", None, "a" * 300]
    inputs = {
        "select/x/0": selection(tmp_path / "0", texts),
        "select/x/1": selection(tmp_path / "1", ["how to bake bread"]),
        "select/y": selection(tmp_path / "y", ["bread of rye", "write a poem"]),
    }
    near = nearest.nearest(inputs, ["How do I bake bread?", "aaa"], COLOURS, None)
    first = {row["arm"]: row["id"] for row in reversed(near["rows"][0])}
    assert first == {"x": "r1", "y": "r0"}
    assert 0 < near["rows"][0][0]["likeness"] <= 1
    assert near["sentence"] == "Compared: the words of 2 rows of y, the words of 3 rows of x."


def test_stored_embeddings_decide_where_rows_and_prompts_have_them(tmp_path: Path) -> None:
    known = {"a": [1.0, 0.0], "b": [0.0, 1.0], "prompt": [0.6, 0.8]}

    def stored(texts: Any) -> Any:
        return np.array([known[text] for text in texts], np.float32)

    inputs = {"select/x": selection(tmp_path / "x", ["a", "b"])}
    near = nearest.nearest(inputs, ["prompt"], COLOURS, stored)
    assert (near["rows"][0][0]["text"], near["sentence"]) == (
        "b",
        "Compared: the embeddings of 2 rows of x.",
    )
    assert near["rows"][0][0]["likeness"] == pytest.approx(0.8)
