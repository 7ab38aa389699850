"""Arena-Hard on stored battles and judgments: scores, question-level intervals, style control, the
official interval."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from core.errors import UserError
from eval import stats
from eval.judging import verdicts
from eval.scoring import arena, of_files, style_control

SHARED = (
    Path(os.environ.get("MAGPIE_SHARED", Path(__file__).parents[2] / "shared"))
    / "data/eval/arena_hard"
)
OFFICIAL = SHARED / "battles_gpt-4-0613.jsonl"
OPEN = SHARED / "battles_local_judge_r4dm.jsonl.gz"
needs_data = pytest.mark.skipif(
    not OFFICIAL.exists(), reason=f"the stored battles are not at {SHARED}"
)


def write(folder: Path, rows: list[dict[str, Any]], name: str = "file.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def judgment(uid: str, first: str | None, second: str | None, **more: Any) -> dict[str, Any]:
    games = [None if label == "gone" else {"score": label} for label in (first, second)]
    return {
        "uid": uid,
        "model": "m",
        "judge": "j",
        "category": "hard_prompt",
        "baseline": "b",
        "games": games,
    } | more


@needs_data
def test_gpt_4_0613_has_its_published_score_and_a_question_level_error() -> None:
    (row,) = of_files.score_arena([OFFICIAL])
    assert row["score"] == pytest.approx(37.90, abs=0.01)
    assert row["standard_error"] == pytest.approx(2.01, rel=0.05)
    assert (row["lower"], row["upper"]) == (
        pytest.approx(34.0, abs=0.4),
        pytest.approx(41.8, abs=0.4),
    )
    assert row["questions"] == 500


@needs_data
def test_the_score_is_the_bradley_terry_win_rate() -> None:
    (games,) = arena.read([OFFICIAL])
    ones = np.ones((len(games.outcome), 1))
    problem = style_control._Regression(ones, games.outcome, games.weight, np.zeros(1))
    (strength,) = problem.fit(games.weight)
    assert 100 / (1 + math.exp(-strength)) == pytest.approx(arena.score(games), abs=1e-8)


@needs_data
def test_the_official_interval_resamples_battles_and_is_too_narrow() -> None:
    ours, official = (
        of_files.score_arena([OFFICIAL])[0],
        of_files.score_arena([OFFICIAL], compat="official")[0],
    )
    assert official["score"] == ours["score"]
    assert official["standard_error"] == pytest.approx(1.26, rel=0.15)
    assert official["lower"] > ours["lower"] and official["upper"] < ours["upper"]


@needs_data
def test_question_values_have_the_score_as_mean_and_its_bootstrap_error() -> None:
    (games,) = arena.read([OFFICIAL])
    found = stats.mean_interval(list(arena.items(games).values()))
    assert found.value == pytest.approx(arena.score(games), abs=1e-9)
    assert found.standard_error == pytest.approx(arena.interval(games).standard_error, rel=0.03)


@needs_data
def test_every_model_of_the_open_judge_is_scored_in_one_call() -> None:
    rows = of_files.score_arena([OPEN])
    assert len(rows) == 9 and {r["baseline"] for r in rows} == {"Phi-3-medium-128k-instruct"}
    assert all(
        0 < r["lower"] < r["score"] < r["upper"] < 100 for r in rows if r["model"] != r["baseline"]
    )
    (own,) = [r for r in rows if r["model"] == r["baseline"]]
    assert own["score"] == pytest.approx(50, abs=0.5) and "50 by definition" in own["notes"][0]


@needs_data
def test_stored_judge_texts_are_parsed_without_a_mismatch() -> None:
    games = none = 0
    for path in sorted((SHARED / "judgment_samples").glob("*.jsonl")):
        for line in path.read_text().split("\n"):
            for game in json.loads(line)["games"] if line else ():
                assert verdicts.parse_v01(game["judgment"]) == game["score"]
                games += 1
                none += game["score"] is None
    assert (games, none) == (404, 4)


@needs_data
def test_a_game_without_a_verdict_is_dropped_alone_under_v01() -> None:
    rows = of_files.score_arena(sorted((SHARED / "judgment_samples").glob("*.jsonl")))
    assert sum(r["unjudged"] for r in rows) == 4
    athene = next(r for r in rows if "Athene" in r["model"])
    assert athene["unjudged"] == 2 and athene["baseline"] == arena.V01_BASELINE


def test_clear_verdicts_count_three_times_and_places_are_swapped_back(tmp_path: Path) -> None:
    path = write(tmp_path, [judgment("q1", "A>>B", "A>B"), judgment("q2", "B<A", "A=B")])
    (games,) = arena.read([path])
    assert list(zip(games.outcome.tolist(), games.weight.tolist(), strict=True)) == [
        (0, 3),
        (1, 1),
        (0, 1),
        (0.5, 1),
    ]
    assert arena.score(games) == pytest.approx(100 * 1.5 / 6)


def test_half_a_question_counts_as_none_under_v2(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        [
            judgment("q1", "A>B", None),
            judgment("q2", "gone", "A>B"),
            judgment("q3", "[[A]]", "A>B"),
            judgment("q4", "B>A", "A>B"),
        ],
    )
    (row,) = of_files.score_arena([path])
    assert (row["score"], row["questions"], row["unjudged"]) == (100.0, 1, 6)


def test_a_label_that_is_no_verdict_counts_as_unjudged(tmp_path: Path) -> None:
    old = {
        "question_id": "q",
        "model": "m",
        "judge": "j",
        "games": [{"score": "A"}, {"score": "A>B"}],
    }
    (games,) = arena.read([write(tmp_path, [old])])
    assert (games.outcome.tolist(), games.unjudged) == ([1.0], 1)


def test_a_judgment_without_a_stored_verdict_is_parsed_by_its_versions_rules(
    tmp_path: Path,
) -> None:
    texts = [{"judgment": "[[A>B]] no, [[B>A]]"}, {"judgment": "my verdict is [a>>b]"}]
    (games,) = arena.read([write(tmp_path, [judgment("q", None, None, games=texts)])])
    assert games.outcome.tolist() == [1.0, 1.0] and games.weight.tolist() == [1, 3]
    old = {"question_id": "q", "model": "m", "judge": "j", "games": texts}
    (games,) = arena.read([write(tmp_path, [old])])
    assert games.unjudged == 2  # two distinct labels, and single brackets


def test_categories_are_scored_apart_and_judges_of_one_category_are_pooled(tmp_path: Path) -> None:
    hard = [judgment(f"h{i}", "B>A", "A>B") for i in range(45)]
    creative = [
        judgment(f"c{i}", "A>B", "B>A", category="creative_writing", judge=j)
        for i in range(45)
        for j in ("gpt", "gemini")
    ]
    rows = of_files.score_arena([write(tmp_path, hard + creative)])
    assert [(r["category"], r["score"], r["questions"]) for r in rows] == [
        ("hard_prompt", 100.0, 45),
        ("creative_writing", 0.0, 45),
    ]
    assert rows[1]["notes"] == ["pooled over the judges gpt, gemini"]
    official = of_files.score_arena([write(tmp_path, hard + creative)], compat="official")
    assert [(r["category"], r["score"]) for r in official] == [
        ("hard_prompt", 100.0),
        ("creative_writing", 0.0),
    ]


def test_few_questions_get_a_t_interval_within_0_and_100(tmp_path: Path) -> None:
    rows = [judgment(f"q{i}", "B>A" if i else "A>B", "A>B") for i in range(6)]
    (row,) = of_files.score_arena([write(tmp_path, rows)])
    assert (
        row["upper"] == 100.0
        and row["lower"] < row["score"]
        and "too few for a bootstrap" in row["notes"][0]
    )


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        (
            [{"question_id": "q", "model_a": "a", "model_b": "b", "winner": "a"}],
            "record 1: the winner 'a' is none of",
        ),
        ([{"model_a": "a", "model_b": "b", "winner": "tie"}], "record 1: no question_id"),
        ([{"text": "x"}], "record 1: neither a battle"),
        (
            [judgment("q", "A>B", "A>B"), judgment("q", "A>B", "A>B")],
            "record 2: a second judgment of question q",
        ),
        ([judgment("q", "A>B", "A>B", games=[{"score": "A>B"}])], "record 1: 1 games"),
        (
            [{"question_id": "q", "model": "m", "games": [{"score": 3}, {"score": "A>B"}]}],
            "record 1: the verdict 3 is no label",
        ),
        (
            [{"question_id": "q", "model_a": "a", "winner": "tie"}],
            "record 1: a battle needs model_a and model_b",
        ),
        ([judgment("q", "A>B", "A>B", games=["A>B", "A>B"])], "record 1: a game is a text"),
        ([judgment("q", "A>B", "A>B", games="A>B")], "record 1: `games` is a text"),
        ([judgment("q", "A>B", "A>B", games=[None] * 3)], "record 1: 3 games"),
    ],
)
def test_malformed_records_are_one_sentence(
    rows: list[dict[str, Any]], sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=sentence):
        arena.read([write(tmp_path, rows)])


def test_battles_without_a_common_baseline_are_refused(tmp_path: Path) -> None:
    rows = [
        {"question_id": "q", "model_a": a, "model_b": b, "winner": "tie"}
        for a, b in (("a", "b"), ("c", "d"))
    ]
    with pytest.raises(UserError, match="no baseline"):
        arena.read([write(tmp_path, rows)])


# Made-up games


def made_up(name: str, questions: int, seed: int, category: str = "") -> arena.Games:
    """Two games a question, with clear verdicts among them."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(["A>>B", "A>B", "A=B", "B>A", "B>>A"], 2 * questions)
    played = [
        (f"q{k // 2}", *arena.outcome(label, model_first=bool(k % 2)))
        for k, label in enumerate(labels)
    ]
    return arena.Games(name, "base", category, (), *arena.arrays(played), 0)


def test_what_a_question_adds_is_what_the_score_loses_without_it() -> None:
    games = made_up("m", 30, 0)
    found, whole = arena.items(games), arena.score(games)
    assert np.mean(list(found.values())) == pytest.approx(whole)
    for name, value in found.items():
        kept = np.array([question != name for question in games.questions])
        rest = games.weight[kept]
        without = 100 * (rest @ games.outcome[kept]) / rest.sum()
        pulled = (value - whole) / 30 * games.weight.sum() / rest.sum()
        assert whole - without == pytest.approx(pulled)


def test_the_interval_is_that_of_questions_drawn_again() -> None:
    games = made_up("m", 40, 1)
    found = arena.interval(games, resamples=300)
    names = sorted(set(games.questions))
    draws = []
    for counts in np.concatenate(list(stats.bootstrap_counts(40, 300, seed=0))):
        times = np.array([counts[names.index(question)] for question in games.questions])
        weight = games.weight * times
        draws.append(100 * (weight @ games.outcome) / weight.sum())
    assert (found.lower, found.upper) == pytest.approx(tuple(np.quantile(draws, [0.025, 0.975])))
    assert (found.value, found.df, found.n) == (arena.score(games), 39, 40)
    few = made_up("m", 39, 1)
    assert arena.interval(few) == stats.mean_interval(list(arena.items(few).values()))


def test_without_a_judged_game_there_is_no_score() -> None:
    none = arena.Games("m", "base", "", (), [], np.empty(0), np.empty(0), 4)
    assert math.isnan(arena.score(none)) and arena.items(none) == {}
    assert arena.interval(none) == stats.NOTHING


def test_the_official_interval_of_v01_draws_the_battles_of_all_models_as_pandas_does() -> None:
    import pandas as pd

    models = [made_up("m", 9, 2), made_up("n", 5, 3)]
    battles = pd.DataFrame(
        [
            {"model": games.model, "won": won}
            for games in models
            for won, weight in zip(games.outcome, games.weight, strict=True)
            for _ in range(int(weight))
        ]
    )
    rng = np.random.RandomState(42)
    drawn = [battles.sample(frac=1.0, replace=True, random_state=rng) for _ in range(100)]
    for games, found in zip(models, arena.official_intervals(models), strict=True):
        own = np.array([100 * one[one["model"] == games.model]["won"].mean() for one in drawn])
        bounds = tuple(np.quantile(own, [0.025, 0.975]))
        assert (found.lower, found.upper) == pytest.approx(bounds)
        assert found.standard_error == pytest.approx(own.std(ddof=1))
        assert found.value == arena.score(games) and math.isinf(found.df)
        assert found.n == len(set(games.questions))


def test_the_official_interval_of_v2_is_90_percent_of_each_models_own_battles() -> None:
    models = [made_up("m", 9, 4, "hard_prompt"), made_up("n", 60, 5, "creative_writing")]
    rng = np.random.default_rng(42)
    for games, found in zip(models, arena.official_intervals(models), strict=True):
        battles = [
            won
            for won, weight in zip(games.outcome, games.weight, strict=True)
            for _ in range(int(weight))
        ]
        places = rng.integers(0, len(battles), size=(100, len(battles)))
        own = [100 * np.mean([battles[k] for k in row]) for row in places]
        assert (found.lower, found.upper) == pytest.approx(tuple(np.quantile(own, [0.05, 0.95])))
        assert found.value == pytest.approx(np.mean(own))
        assert found.standard_error == pytest.approx(np.std(own, ddof=1))


def test_the_baseline_is_who_takes_part_in_every_battle(tmp_path: Path) -> None:
    def battle(a: str, b: str, winner: str, question: str = "q") -> dict[str, Any]:
        return {"question_id": question, "model_a": a, "model_b": b, "winner": winner}

    def read(*battles: dict[str, Any]) -> list[tuple[str, str, list[float]]]:
        found = arena.read([write(tmp_path, list(battles))])
        return [(games.model, games.baseline, games.outcome.tolist()) for games in found]

    # first or second, the outcome is the model's
    assert read(battle("base", "m", "model_b"), battle("n", "base", "model_b")) == [
        ("m", "base", [1.0]),
        ("n", "base", [0.0]),
    ]
    # of two that always meet, the one that is model_a more often
    assert read(
        battle("z", "m", "model_a"), battle("m", "z", "tie"), battle("z", "m", "tie (bothbad)")
    ) == [("m", "z", [0.0, 0.5, 0.5])]
    assert read(battle("x", "x", "model_a")) == [("x", "x", [0.0])]


def test_an_empty_file_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no judgments"):
        arena.read([write(tmp_path, [])])


# Style control


def styled(
    tmp_path: Path, bias: float, longer: float, n: int = 400
) -> tuple[list[arena.Games], dict[str, dict[str, Any]]]:
    """A model as good as the baseline whose answers are longer; the judge likes length with
    strength `bias`."""
    rng = np.random.default_rng(5)
    base = rng.integers(100, 900, n)
    own = np.maximum(1, base * np.exp(rng.normal(longer, 0.5, n))).astype(int)
    chance = 1 / (1 + np.exp(-bias * (own - base) / (own + base + 1)))
    games = arena.Games(
        "m",
        "b",
        "",
        (),
        [str(i) for i in range(n)],
        (rng.uniform(size=n) < chance).astype(float),
        np.ones(n),
        0,
    )
    answers = {
        name: {str(i): style_control.count("word", int(t)) for i, t in enumerate(tokens)}
        for name, tokens in (("m", own), ("b", base))
    }
    return [games], answers


def test_style_control_takes_the_judges_taste_for_length_out(tmp_path: Path) -> None:
    games, answers = styled(tmp_path, bias=4.0, longer=0.8)
    assert arena.score(games[0]) > 70
    (row,) = style_control.scores(games, answers, control=("length",), resamples=200)
    assert row["lower"] < 50 < row["upper"]
    assert row["style"]["tokens"] > 0.5


def test_official_style_control_centres_and_so_keeps_the_advantage(tmp_path: Path) -> None:
    games, answers = styled(tmp_path, bias=4.0, longer=0.8)
    (row,) = style_control.scores(games, answers, control=("length",), compat="official")
    assert row["score"] > 65


def test_controls_take_their_own_columns(tmp_path: Path) -> None:
    games, answers = styled(tmp_path, bias=4.0, longer=0.8)
    (length,) = style_control.scores(games, answers, control=("length",), resamples=50)
    (markdown,) = style_control.scores(games, answers, control=("markdown",), resamples=50)
    assert list(length["style"]) == ["tokens"]
    assert list(markdown["style"]) == ["headers", "lists", "bold"]


def test_markdown_is_counted_outside_code() -> None:
    text = (
        "# One\n\n- a\n  * b\n1. c\n**bold** and __too__\n"
        "```\n# no\n- no\n**no**\n```\n####### no\n## Two"
    )
    assert style_control.count(text, 9).tolist() == [9, 2, 3, 2]


@needs_data
def test_style_control_reads_published_answers(tmp_path: Path) -> None:
    (row,) = of_files.score_arena([OFFICIAL], SHARED, control=("length", "markdown"))
    assert 37 < row["score"] < 50  # shorter answers than the baseline's: style control helps it
    assert row["lower"] < row["score"] < row["upper"]


def test_style_control_names_the_answers_it_lacks(tmp_path: Path) -> None:
    games, answers = styled(tmp_path, bias=1.0, longer=0.1, n=50)
    del answers["b"]
    with pytest.raises(UserError, match="needs the answers of b"):
        style_control.scores(games, answers)
    with pytest.raises(UserError, match="needs --data"):
        of_files.score_arena([write(tmp_path, [judgment("q", "A>B", "A>B")])], control=("length",))
    with pytest.raises(UserError, match="did you mean 'length'"):
        of_files.score_arena([write(tmp_path, [judgment("q", "A>B", "A>B")])], control=("lenght",))
