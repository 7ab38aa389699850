"""The comparison of arms: pairing, clusters, seeds, unjudged items, verdicts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from core.errors import UserError
from eval import compare, stats
from eval.comparing import metrics
from eval.comparing.arms import Noise
from eval.comparing.metrics import Declared
from eval.comparing.scores import arm as arm_of
from eval.comparing.shown.table import figures


def scores(
    folder: Path,
    values: dict[str, float | None],
    *,
    benchmark: str = "bench",
    metric: str = "win_rate",
    clusters: dict[str, str] | None = None,
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    rows = [
        {
            "benchmark": benchmark,
            "metric": metric,
            "item": i,
            "cluster": (clusters or {}).get(i, i),
            "value": v,
            "status": "ok" if v is not None else "failed",
            "reason": "",
        }
        for i, v in values.items()
    ]
    frame = pl.DataFrame(rows, schema_overrides={"value": pl.Float64})
    path = folder / "scores.parquet"
    (pl.concat([pl.read_parquet(path), frame]) if path.exists() else frame).write_parquet(path)
    return folder


def run(inputs: dict[str, Path], out: Path, **options: Any) -> dict[str, Any]:
    declared = Declared(**({"primary": "bench"} | options))
    compare.run(inputs, out, declared)
    return json.loads((out / "comparison.json").read_text())


def difference(result: dict[str, Any], a: str, b: str) -> dict[str, Any]:
    (found,) = [d for d in result["differences"] if {d["a"], d["b"]} == {a, b}]
    return found


def draws(seed: int, shift: float = 0.0, n: int = 200) -> dict[str, float | None]:
    shared = np.random.default_rng(0).normal(50, 30, n)
    return {
        f"q{i}": float(v)
        for i, v in enumerate(shared + shift + np.random.default_rng(seed).normal(0, 5, n))
    }


def test_items_are_paired_by_name_whatever_their_order(tmp_path: Path) -> None:
    a, b = draws(1), draws(2)
    straight = run(
        {"a/0": scores(tmp_path / "a", a), "b/0": scores(tmp_path / "b", b)}, tmp_path / "x"
    )
    turned = run(
        {
            "a/0": scores(tmp_path / "a2", dict(reversed(a.items()))),
            "b/0": scores(tmp_path / "b2", b),
        },
        tmp_path / "y",
    )
    one, two = difference(straight, "a", "b"), difference(turned, "a", "b")
    assert one["difference"] == pytest.approx(two["difference"], abs=1e-12)
    assert one["standard_error"] == pytest.approx(two["standard_error"], abs=1e-12)
    assert one["standard_error"] < 0.7  # unpaired it would be 3


def test_an_unjudged_item_is_counted_and_moves_no_other_item(tmp_path: Path) -> None:
    a, b = draws(1), draws(2)
    holed = a | {"q5": None}
    result = run(
        {"a/0": scores(tmp_path / "a", holed), "b/0": scores(tmp_path / "b", b)}, tmp_path / "x"
    )
    found = difference(result, "a", "b")
    assert found["n"] == 199
    assert found["difference"] == pytest.approx(np.mean([a[k] - b[k] for k in a if k != "q5"]))
    assert [s["unjudged"] for s in result["scores"]] == [1, 0]
    assert any("a: 1 unjudged items" in note for note in result["notes"])


def test_questions_judged_twice_count_once(tmp_path: Path) -> None:
    once_a, once_b = draws(1, n=60), draws(2, n=60)
    twice = [{f"{k}#{g}": v for k, v in d.items() for g in (1, 2)} for d in (once_a, once_b)]
    clusters = {k: k.split("#")[0] for k in twice[0]}
    single = run(
        {"a/0": scores(tmp_path / "a", once_a), "b/0": scores(tmp_path / "b", once_b)},
        tmp_path / "x",
    )
    double = run(
        {
            "a/0": scores(tmp_path / "a2", twice[0], clusters=clusters),
            "b/0": scores(tmp_path / "b2", twice[1], clusters=clusters),
        },
        tmp_path / "y",
    )
    for key in ("difference", "lower", "upper", "simultaneous_upper", "p"):
        assert difference(single, "a", "b")[key] == pytest.approx(
            difference(double, "a", "b")[key], abs=1e-9
        )


def test_a_clear_difference_is_told_and_none_is_not(tmp_path: Path) -> None:
    inputs = {
        name + "/0": scores(tmp_path / name, draws(seed, shift))
        for name, seed, shift in [("good", 1, 8.0), ("same", 2, 0.0), ("base", 3, 0.0)]
    }
    result = run(inputs, tmp_path / "x", baseline="base")
    assert difference(result, "good", "base")["verdict"] == "good is better"
    assert difference(result, "good", "same")["verdict"] == "good is better"
    assert difference(result, "same", "base")["verdict"] == "cannot tell"
    assert difference(result, "good", "base")["p_holm"] >= difference(result, "good", "base")["p"]
    assert [d["b"] for d in result["differences"]][:2] == ["base", "base"]


def test_simultaneous_intervals_contain_the_single_ones(tmp_path: Path) -> None:
    result = run(
        {f"arm{i}/0": scores(tmp_path / str(i), draws(i)) for i in range(5)}, tmp_path / "x"
    )
    assert len(result["differences"]) == 10
    for d in result["differences"]:
        assert d["simultaneous_lower"] < d["lower"] < d["upper"] < d["simultaneous_upper"]


def test_where_lower_is_better_the_smaller_loss_wins(tmp_path: Path) -> None:
    inputs = {
        name + "/0": scores(tmp_path / name, draws(seed, shift), metric="loss")
        for name, seed, shift in [("worse", 1, 9.0), ("lower", 2, 0.0)]
    }
    assert difference(run(inputs, tmp_path / "x"), "worse", "lower")["verdict"] == "lower is better"


def test_one_seed_speaks_of_checkpoints_and_several_of_filters(tmp_path: Path) -> None:
    one = run(
        {f"{a}/0": scores(tmp_path / a, draws(i)) for i, a in enumerate("ab")}, tmp_path / "x"
    )
    assert one["differences"][0]["scope"] == "these two checkpoints"
    three = run(
        {
            f"{a}/{s}": scores(tmp_path / f"{a}{s}", draws(10 * i + s))
            for i, a in enumerate("ab")
            for s in range(3)
        },
        tmp_path / "y",
    )
    assert three["differences"][0]["scope"] == "these filters"
    assert three["arms"] == [
        {"name": "a", "seeds": ["0", "1", "2"]},
        {"name": "b", "seeds": ["0", "1", "2"]},
    ]


def test_spread_between_seeds_widens_the_interval(tmp_path: Path) -> None:
    def three(folder: str, spread: float) -> dict[str, Any]:
        shifts = {"a": [-spread, 0, spread], "b": [spread, -spread, 0]}
        return run(
            {
                f"{a}/{s}": scores(tmp_path / f"{folder}{a}{s}", draws(s + 5, x))
                for a, xs in shifts.items()
                for s, x in enumerate(xs)
            },
            tmp_path / folder,
        )

    calm, wild = difference(three("calm", 0.0), "a", "b"), difference(three("wild", 4.0), "a", "b")
    assert wild["standard_error"] == pytest.approx(
        np.sqrt(calm["standard_error"] ** 2 + 2 * 16 / 3), rel=0.1
    )
    assert wild["test"] == "t"


def test_the_baseline_scores_by_definition_where_it_is_not_judged_against_itself(
    tmp_path: Path,
) -> None:
    a = {f"q{i}": 70.0 + i % 3 for i in range(48)}
    inputs = {
        "a/0": scores(tmp_path / "a", a),
        "base": scores(tmp_path / "b", {"h": 1.0}, benchmark="heldout", metric="loss"),
    }
    result = run(inputs, tmp_path / "x", baseline="base", primary="bench/win_rate")
    found = next(d for d in result["differences"] if d["benchmark"] == "bench")
    assert (found["a"], found["b"], found["difference"]) == ("a", "base", pytest.approx(21.0))
    assert found["verdict"] == "a is better"


def test_zero_one_outcomes_use_mcnemars_exact_test(tmp_path: Path) -> None:
    a = {f"q{i}": float(i < 12) for i in range(50)}
    b = {f"q{i}": float(3 <= i < 10 or i == 20) for i in range(50)}
    found = run(
        {"a/0": scores(tmp_path / "a", a), "b/0": scores(tmp_path / "b", b)}, tmp_path / "x"
    )["differences"][0]
    assert found["test"] == "McNemar"
    assert found["p"] == pytest.approx(2 * (1 + 6) / 2**6)  # 5 against 1 discordant items


def test_benchmarks_other_than_the_primary_are_called_exploratory(tmp_path: Path) -> None:
    inputs = {}
    for i, arm in enumerate("ab"):
        scores(tmp_path / arm, draws(i))
        inputs[f"{arm}/0"] = scores(tmp_path / arm, draws(i + 5), benchmark="other")
    result = run(inputs, tmp_path / "x")
    assert [("exploratory" in d["scope"]) for d in result["differences"]] == [False, True]
    assert any(
        "bench is the primary benchmark, declared beforehand, and its win_rate decides" in note
        for note in result["notes"]
    )


def test_identical_arms_and_single_items_cannot_be_told_apart(tmp_path: Path) -> None:
    same = run({f"{a}/0": scores(tmp_path / a, draws(1)) for a in "ab"}, tmp_path / "x")[
        "differences"
    ][0]
    assert (same["difference"], same["verdict"], same["p"]) == (0.0, "cannot tell", 1.0)
    lone = run(
        {f"{a}/0": scores(tmp_path / f"{a}1", {"q": v}) for a, v in (("a", 0.0), ("b", 100.0))},
        tmp_path / "y",
    )["differences"][0]
    assert lone["verdict"] == "cannot tell" and lone["lower"] is None
    three = {f"q{i}": 1.0 for i in range(3)}
    flat = run(
        {
            f"{a}/0": scores(tmp_path / f"{a}3", {k: v * m for k, v in three.items()})
            for a, m in (("a", 1), ("b", 2))
        },
        tmp_path / "z",
    )
    assert (
        flat["differences"][0]["verdict"] == "cannot tell"
    )  # all three items agree, which three coin flips also do


def test_the_terminal_table_shows_score_difference_and_verdict(tmp_path: Path) -> None:
    result = run(
        {
            f"{a}/0": scores(tmp_path / a, draws(i, s))
            for i, (a, s) in enumerate([("a", 9.0), ("b", 0.0)])
        },
        tmp_path / "x",
        baseline="b",
    )
    [figure] = figures(result)
    assert figure.title.startswith("bench win_rate (primary, of these two checkpoints, ")
    first, second = figure.rows
    assert first["against b"].startswith("+") and first["verdict"] == "better"
    assert second["arm"] == "b" and second["verdict"] == "baseline"


def test_every_item_is_kept_beside_the_comparison(tmp_path: Path) -> None:
    run({f"{a}/0": scores(tmp_path / a, draws(i)) for i, a in enumerate("ab")}, tmp_path / "x")
    items = pl.read_parquet(tmp_path / "x" / "comparison.parquet")
    assert (
        items.columns == ["benchmark", "metric", "arm", "seed", "item", "value"]
        and items.height == 400
    )


@pytest.mark.parametrize(
    ("options", "sentence"),
    [({"baseline": "bas"}, "did you mean 'base'"), ({"primary": "benhc"}, "did you mean 'bench'")],
)
def test_unknown_names_are_one_sentence(
    tmp_path: Path, options: dict[str, str], sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence):
        run({"base/0": scores(tmp_path / "a", draws(1))}, tmp_path / "x", **options)


def test_a_missing_or_doubled_scores_file_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="scores of a/0 are missing"):
        run({"a/0": tmp_path}, tmp_path / "x")
    scores(tmp_path / "b", draws(1))
    with pytest.raises(UserError, match="more than once"):
        run({"b/0": scores(tmp_path / "b", draws(1))}, tmp_path / "x")


def test_arms_that_share_no_item_or_few_are_said(tmp_path: Path) -> None:
    a = draws(1)
    few = {name: value for name, value in draws(2).items() if int(name[1:]) < 20}
    few |= {f"z{k}": 1.0 for k in range(9)}
    result = run(
        {
            "a/0": scores(tmp_path / "a", a),
            "few/0": scores(tmp_path / "few", few),
            "other/0": scores(tmp_path / "other", {f"p{k}": float(k) for k in range(30)}),
        },
        tmp_path / "out",
    )
    notes = [note for note in result["notes"] if note.startswith("bench win_rate: ")]
    assert notes[1:] == [
        "bench win_rate: arms that share no item are not compared: a and other, few and other.",
        "bench win_rate: compared on the items that both have only: a and few 20 of 29.",
    ]


def test_a_seed_without_any_value_leaves_the_others(tmp_path: Path) -> None:
    a, b = draws(1), draws(2)
    result = run(
        {
            "a/0": scores(tmp_path / "a", a),
            "a/1": scores(tmp_path / "lost", dict.fromkeys(a)),
            "b/0": scores(tmp_path / "b", b),
        },
        tmp_path / "out",
    )
    found = difference(result, "a", "b")
    assert found["n"] == 200 and found["missing"]["cells"] == 200
    lost = found["missing"]["as_losses"]
    assert lost["difference"] < found["difference"] - 20
    # its two seeds then lie 50 apart
    assert lost["simultaneous_upper"] - lost["simultaneous_lower"] > 100
    assert "a has 1 of its 2 seeds in bench win_rate: it counts with those." in result["notes"]


@pytest.mark.parametrize("level", [0.0, 1e6])
def test_rounding_is_no_error_that_a_verdict_could_rest_on(tmp_path: Path, level: float) -> None:
    of = {"a": {"p": 0.4, "q": level + 0.7}, "b": {"p": 0.3, "q": level + 0.6}}
    inputs = {
        name: scores(tmp_path / name, dict(own), metric="accuracy") for name, own in of.items()
    }
    found = difference(run(inputs, tmp_path / "out"), "a", "b")
    assert found["verdict"] == "cannot tell" and found["standard_error"] == 0


def test_only_a_verdict_that_one_is_better_is_said_to_hang_on_missing_values(
    tmp_path: Path,
) -> None:
    b = draws(2) | dict.fromkeys([f"q{k}" for k in range(5)])
    inputs = {"a": scores(tmp_path / "a", draws(1)), "b": scores(tmp_path / "b", b)}
    result = run(inputs, tmp_path / "out", equivalent=40.0)
    assert difference(result, "a", "b")["verdict"] == "equal within 40"
    assert not [note for note in result["notes"] if "does not hold" in note]


def test_equal_values_have_no_error() -> None:
    assert stats.residuals([0.3, 0.1 + 0.2]).variance == 0


def test_small_values_that_differ_have_an_error() -> None:
    assert stats.residuals([1e-14, 3e-14]).variance > 0


def test_a_difference_that_is_all_rounding_is_no_difference(tmp_path: Path) -> None:
    first = {f"p{i}": 0.1 + 0.2 * (i % 3) for i in range(30)}
    other = {f"p{i}": 0.3 * ((i + 1) % 3) for i in range(30)}
    shift = (sum(other.values()) - sum(first.values())) / 30
    second = {name: value - shift for name, value in other.items()}
    inputs = {"a": scores(tmp_path / "a", first), "b": scores(tmp_path / "b", second)}
    compare.run(inputs, tmp_path / "out", Declared("bench", "b"))
    (row,) = json.loads((tmp_path / "out" / "comparison.json").read_text())["differences"]
    assert row["difference"] == 0


def test_a_look_is_at_the_metric_that_decides_and_in_its_direction(tmp_path: Path) -> None:
    inputs = {}
    for seed, name, shift in ((1, "lower", 0.0), (2, "higher", 20.0)):
        folder = scores(tmp_path / name, draws(seed, shift, 60), metric="loss")
        inputs[f"{name}/0"] = scores(folder, draws(seed, -shift, 60), benchmark="other")
    planned = Declared(primary="bench", baseline="higher", planned={"bench": 90})
    seen = compare.look(inputs, planned)
    assert (seen.judged, seen.planned) == (60, 90)
    assert [(one.a, one.b, one.verdict) for one in seen.pairs] == [
        ("lower", "higher", "lower is better")
    ]
    other = compare.look(inputs, Declared(primary="other/win_rate", planned={"other": 60}))
    assert [one.verdict for one in other.pairs] == ["lower is better"]
    within = Declared(primary="bench", planned={"bench": 60}, equivalent=50.0)
    tied = {name: scores(tmp_path / f"t{name}", draws(k, 0, 60)) for k, name in enumerate("ab")}
    assert [one.verdict for one in compare.look(tied, within).pairs] == ["equal within 50"]


def test_what_was_averaged_away_is_known_where_an_item_says_it() -> None:
    columns = {
        "arm": "a",
        "seed": "0",
        "item": ["p", "q", "r"],
        "cluster": ["p", "q", "r"],
        "value": [1.0, 2.0, 3.0],
        "answers": [4.0, 8.0, None],
        "answer_variance": [0.5, 1.5, None],
        "judges": pl.Series([None, 3.0, None], dtype=pl.Float64),
        "judge_variance": pl.Series([None, 0.25, None], dtype=pl.Float64),
    }
    own = arm_of("a", "m", pl.DataFrame(columns), False)
    assert own is not None
    assert (own.answers, own.judges) == (Noise(6, 1.0), Noise(3, 0.25))
    none = pl.DataFrame(columns).with_columns(answer_variance=pl.lit(None, pl.Float64))
    bare = arm_of("a", "m", none.drop("judge_variance"), False)
    assert bare is not None and bare.answers == bare.judges == Noise()


def test_an_arms_items_are_those_judged_under_every_seed_that_has_any() -> None:
    rows = [
        {"arm": name, "seed": seed, "item": item, "cluster": f"c{item}", "value": value}
        for name, seed, item, value in (
            ("a", "0", "p", 1.0), ("a", "0", "q", 2.0), ("a", "0", "r", None),
            ("a", "1", "q", 4.0), ("a", "1", "p", 3.0),
            ("a", "2", "p", None), ("a", "2", "q", None),
            ("b", "0", "p", 9.0),
        )
    ]  # fmt: skip
    table = pl.DataFrame(rows, schema_overrides={"value": pl.Float64})
    own = arm_of("a", "loss", table, False)
    assert own is not None and (own.items, own.clusters) == (["p", "q"], ["cp", "cq"])
    assert own.seeds == ("0", "1") and own.values.tolist() == [[1.0, 2.0], [3.0, 4.0]]
    assert own.unjudged == 3 * 3 - 4 and not own.by_definition
    assert own.asked is not None and own.asked.seeds == ("0", "1", "2")
    assert own.asked.items == ["p", "q", "r"]
    assert np.nan_to_num(own.asked.values, nan=-1).tolist() == [
        [1.0, 2.0, -1.0], [3.0, 4.0, -1.0], [-1.0, -1.0, -1.0],
    ]  # fmt: skip
    whole = arm_of("b", "loss", table, False)
    assert whole is not None and whole.asked is None and whole.unjudged == 0


def test_a_baseline_that_was_not_scored_scores_by_definition_where_it_is_compared_with() -> None:
    rows = {"arm": "a", "seed": "0", "item": ["p", "q"], "cluster": ["p", "q"], "value": [1.0, 2.0]}
    table = pl.DataFrame(rows)
    base = arm_of("base", "win_rate", table, True)
    assert base is not None and base.by_definition and base.seeds == ()
    assert base.values.tolist() == [[50.0, 50.0]] and base.unjudged == 0
    assert arm_of("base", "loss", table, True) is None
    assert arm_of("base", "win_rate", table, False) is None
    scored = arm_of("a", "win_rate", table, True)
    assert scored is not None and not scored.by_definition


def test_what_a_benchmark_judges_against_is_the_baseline_unless_it_says_otherwise() -> None:
    assert Declared("x", "base").rival("arena") == "base"
    apart = Declared("x", "base", judged_against={"arena": "other", "arena-creative": None})
    assert apart.rival("arena") == "other" == apart.rival("arena-hard_prompt")
    assert apart.rival("arena-creative") is None and apart.rival("mtbench") is None


def test_of_a_primary_benchmark_the_length_controlled_rate_decides_or_its_first_metric() -> None:
    families = [("other", "loss"), ("alpaca", "win_rate"), ("alpaca", "length_controlled_winrate")]
    assert metrics.deciding("alpaca", families) == families[2]
    assert metrics.deciding("alpaca/win_rate", families) == families[1]
    assert metrics.deciding("alpaca", families[:2]) == families[1]
    with pytest.raises(UserError, match="'alpca' has no scores"):
        metrics.deciding("alpca", families)


def test_the_better_direction_is_what_scores_say_else_what_the_metrics_name_says() -> None:
    assert metrics.lower_is_better("win_rate", False) and not metrics.lower_is_better("loss", True)
    assert metrics.lower_is_better("loss") and metrics.lower_is_better(
        "wikitext word_perplexity,none"
    )
    assert not metrics.lower_is_better("win_rate") and not metrics.lower_is_better(
        "ter_task acc,none"
    )
    assert metrics.trained_baseline("win_rate", ["0", "1"]) == ("0", "1")
    assert metrics.trained_baseline("wb_score", ["0", "1"]) == ()
