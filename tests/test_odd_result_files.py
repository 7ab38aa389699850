"""Result files that compare, but not as they seem to: figures that some items lack, tables of
another form, arms that were not judged alike."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from core.errors import UserError
from eval.files import reading
from eval.scoring import alpaca, arena, length_control
from tests.test_result_files import PLAIN, annotation, lines, run, sample, values

SCORES = [sample(doc, acc=float(doc % 2)) for doc in range(4)]


def both(folder: Path, task: str = "t", **results: Any) -> list[str]:
    """Two runs of one task, of which the second is `folder`'s."""
    other = run(folder.parent / "other", {task: SCORES})
    return [str(other), str(folder)]


@pytest.mark.parametrize("wrong", [{"acc": "1"}, {"acc": None}])
def test_items_without_a_number_stay_items_of_lm_eval(
    tmp_path: Path, wrong: dict[str, Any]
) -> None:
    broken = [*SCORES[:3], SCORES[3] | wrong]
    items = reading.read(both(run(tmp_path / "mine", {"t": broken})), PLAIN)
    assert values(items, "mine") == {"0": 0.0, "1": 1.0, "2": 0.0, "3": None}
    assert items.notes == [
        "mine: 1 of 4 items of t acc hold no number; they are items without a value."
    ]


def test_an_older_lm_eval_names_no_metrics_and_each_item_has_all(tmp_path: Path) -> None:
    old = [{k: v for k, v in row.items() if k != "metrics"} for row in SCORES]
    del old[1]["acc"]
    items = reading.read(both(run(tmp_path / "mine", {"t": old})), PLAIN)
    assert values(items, "mine") == {"0": 0.0, "1": None, "2": 0.0, "3": 1.0}


def test_an_item_that_has_a_metric_of_its_own_is_no_gap_of_the_others(tmp_path: Path) -> None:
    more = [*SCORES[:3], sample(3, acc=1.0, hard=1.0)]
    items = reading.read(both(run(tmp_path / "mine", {"t": more})), PLAIN)
    assert values(items, "mine", "hard") == {"3": 1.0} and not items.notes


def test_a_file_of_samples_that_is_empty_is_refused(tmp_path: Path) -> None:
    folder = run(tmp_path / "mine", {"t": SCORES, "u": []})
    with pytest.raises(UserError, match=r"samples_u_.*\.jsonl holds no samples; remove it, or"):
        reading.read(both(folder), PLAIN)


def test_tasks_whose_samples_are_lost_are_named(tmp_path: Path) -> None:
    figures = {"acc,none": 0.5}
    results = {"t": figures, "lost": figures, "group": figures}
    folder = run(tmp_path / "mine", {"t": SCORES}, results=results, groups={"group": figures})
    assert reading.read(both(folder), PLAIN).notes == [
        "mine: lm-eval ran lost too, whose sample files are not here; they are not compared."
    ]


@pytest.mark.parametrize(
    ("results", "said"),
    [
        ({"results": [1]}, "`results` is no object of objects"),
        ({"results": {"t": 3}}, "`results` is no object of objects"),
        ({"groups": "x"}, "`groups` is no object of objects"),
        ({"group_subtasks": {"g": "t"}}, "`group_subtasks` is no object of lists"),
        ({"higher_is_better": {"t": True}}, "`higher_is_better` is no object of objects"),
    ],
)
def test_a_table_of_lm_eval_in_another_form_is_named(
    tmp_path: Path, results: dict[str, Any], said: str
) -> None:
    folder = run(tmp_path / "mine", {"t": SCORES}, **results)
    with pytest.raises(UserError, match=f"results_.*json: {said}"):
        reading.read(both(folder), PLAIN)


def test_a_table_that_is_a_list_is_named(tmp_path: Path) -> None:
    folder = run(tmp_path / "mine", {"t": SCORES})
    next(folder.glob("results_*")).write_text("[]")
    with pytest.raises(UserError, match=r"results_.*json is a list; lm-eval writes an object"):
        reading.read(both(folder), PLAIN)


def test_runs_that_disagree_on_what_is_better_are_refused(tmp_path: Path) -> None:
    ways = [
        run(tmp_path / name, {"t": SCORES}, higher_is_better={"t": {"acc": better}})
        for name, better in (("a", True), ("b", False))
    ]
    with pytest.raises(UserError, match=r"t acc: more is better in .*a and worse in .*b;"):
        reading.read(list(map(str, ways)), PLAIN)


def test_values_whose_squares_are_no_numbers_are_refused(tmp_path: Path) -> None:
    huge = lines(tmp_path / "a.jsonl", [{"item": i, "value": 1e308} for i in range(3)])
    with pytest.raises(UserError, match="of item 0 is beyond what can be squared"):
        reading.read([f"a={huge}", f"b={huge}"], PLAIN)


@pytest.mark.parametrize("name", ["clutser", "Cluster", "clusters"])
def test_a_field_that_is_nearly_cluster_is_asked_about(tmp_path: Path, name: str) -> None:
    path = lines(tmp_path / "a.jsonl", [{"item": i, "value": 1, name: "q"} for i in range(2)])
    with pytest.raises(UserError, match=f"record 1: no `cluster`, but `{name}`; rename it"):
        reading.read([f"a={path}", f"b={path}"], PLAIN)


def test_other_fields_beside_item_and_value_are_passed_over(tmp_path: Path) -> None:
    row = {"item": "q", "value": 1, "cluster": "c", "clusters": 3, "model": "m"}
    path = lines(tmp_path / "a.jsonl", [row])
    assert reading.read([f"a={path}", f"b={path}"], PLAIN).rows["cluster"].to_list() == ["c", "c"]


def test_the_first_file_is_the_first_arm_whether_it_has_a_name_or_not(tmp_path: Path) -> None:
    paths = [
        lines(tmp_path / f"{name}.jsonl", [{"item": "q", "value": 1}]) for name in ("x", "y", "z")
    ]
    given = [str(paths[0]), f"named={paths[1]}", str(paths[2])]
    assert list(reading.read(given, PLAIN).arms) == ["x", "named", "z"]


@pytest.mark.parametrize("argument", ["..=PATH", ".=PATH", "../1=PATH"])
def test_a_folder_is_no_name_of_an_arm(tmp_path: Path, argument: str) -> None:
    path = lines(tmp_path / "x.jsonl", [{"item": "q", "value": 1}])
    with pytest.raises(UserError, match="is no name; write NAME=PATH"):
        reading.read([argument.replace("PATH", str(path)), str(path)], PLAIN)


def test_a_name_without_a_path_says_so() -> None:
    with pytest.raises(UserError, match="a=: no path stands behind the sign"):
        reading.read(["a=", "b="], PLAIN)


# -- judges ----------------------------------------------------------------------------------------


def annotations(path: Path, model: str, annotator: str) -> str:
    rows = [
        {
            "instruction": f"do {number}",
            "output_1": "x",
            "output_2": "y",
            "generator_1": "rival",
            "generator_2": model,
            "preference": 1 + number % 2,
            "annotator": annotator,
        }
        for number in range(8)
    ]
    path.write_text(json.dumps(rows))
    return str(path)


def test_arms_of_alpaca_eval_that_other_judges_judged_are_named(tmp_path: Path) -> None:
    given = [
        annotations(tmp_path / f"{model}.json", model, judge)
        for model, judge in (("a", "gpt4"), ("b", "gpt4"), ("c", "claude"))
    ]
    assert reading.read(given[:2], PLAIN).notes == []
    assert reading.read(given, PLAIN).notes == [
        "alpaca: the arms were not judged alike (a, b by gpt4; c by claude), so a difference "
        "between them may be the judges'."
    ]


def test_arms_of_arena_hard_that_other_judges_judged_are_named(tmp_path: Path) -> None:
    def judged(model: str, judge: str) -> str:
        games = [{"score": "A>B"}, {"score": "B>A"}]
        rows = [
            {"question_id": f"q{n}", "model": model, "judge": judge, "games": games}
            for n in range(3)
        ]
        return str(lines(tmp_path / f"{model}.jsonl", rows))

    alike = [judged("a", "gpt4"), judged("b", "gpt4")]
    assert arena.read([Path(alike[0])])[0].judges == ("gpt4",)
    assert reading.read(alike, PLAIN).notes == []
    notes = reading.read([*alike, judged("c", "claude")], PLAIN).notes
    assert notes[0].startswith("arena: the arms were not judged alike (a, b by gpt4; c by claude)")


def test_a_win_rate_at_equal_length_that_the_penalty_holds_at_half_is_not_certain(
    tmp_path: Path,
) -> None:
    rows = [annotation(n, 1.01 + 0.98 * (n % 2)) for n in range(60)]
    path = tmp_path / "a.json"
    path.write_text(json.dumps(rows))
    design = length_control.design(alpaca.read(path)[0], None)
    values = length_control.items(design)
    assert length_control.point(design) == values.mean() == pytest.approx(50)
    error = values.std(ddof=1) / 60**0.5
    assert error == pytest.approx(length_control.interval(design).standard_error, rel=0.25)


def test_items_of_two_filters_are_kept_apart(tmp_path: Path) -> None:
    rows = [sample(d, em=float(d % 2)) | {"filter": f} for f in ("none", "strict") for d in (0, 1)]
    items = reading.read(both(run(tmp_path / "mine", {"t": rows})), PLAIN).rows
    mine = items.filter(pl.col("arm") == "mine")
    assert sorted(set(mine["metric"])) == ["em", "em,strict"] and mine["value"].null_count() == 0
