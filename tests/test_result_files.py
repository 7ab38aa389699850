"""Result files of other tools as items of a comparison: who wrote a file, whose it is, and what is
refused."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from core.errors import UserError
from eval.checkpoint.lm_eval_tasks import SUBJECTS
from eval.files import reading
from eval.files.judgments import LengthControl
from eval.files.kinds import kind_of
from eval.files.parts import named
from eval.files.reading import Asked, Items
from eval.prompt_sets.records import records
from eval.scoring import alpaca, arena

PLAIN = Asked(LengthControl(wanted=False))
DATE = "2026-01-02T03-04-05.678901"


def lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def sample(doc: int, **metrics: Any) -> dict[str, Any]:
    """A sample as lm-eval 0.4.13 writes it."""
    return {
        "doc_id": doc,
        "doc": {"question": f"q{doc}"},
        "target": "0",
        "arguments": {},
        "resps": [[["-1.0", "False"]]],
        "filtered_resps": [["-1.0", "False"]],
        "filter": "none",
        "metrics": list(metrics),
        "doc_hash": f"doc{doc}",
        "prompt_hash": f"prompt{doc}",
        "target_hash": "t",
        **metrics,
    }


def run(folder: Path, tasks: Mapping[str, Sequence[Mapping[str, Any]]], **results: Any) -> Path:
    """A folder as `lm_eval --log_samples --output_path` leaves it."""
    for task, rows in tasks.items():
        lines(folder / f"samples_{task}_{DATE}.jsonl", rows)
    table = {"results": {}, "configs": {}, "group_subtasks": {}, **results}
    (folder / f"results_{DATE}.json").write_text(json.dumps(table))
    return folder


def values(items: Items, arm: str, metric: str | None = None) -> dict[str, float | None]:
    rows = items.rows.filter(pl.col("arm") == arm)
    if metric is not None:
        rows = rows.filter(pl.col("metric") == metric)
    return dict(rows.select("item", "value").iter_rows())


def two(tmp_path: Path, **asked: Any) -> Items:
    a = lines(tmp_path / "a.jsonl", [{"item": i, "value": i % 2} for i in range(4)])
    b = lines(tmp_path / "b.jsonl", [{"item": i, "value": True} for i in range(4)])
    return reading.read([str(a), str(b)], Asked(LengthControl(wanted=False), **asked))


# -- item and value --------------------------------------------------------------------------------


def test_rows_of_item_and_value_are_arms_by_their_files_names(tmp_path: Path) -> None:
    items = two(tmp_path)
    assert items.arms == {"a": [], "b": []}
    assert values(items, "a") == {"0": 0.0, "1": 1.0, "2": 0.0, "3": 1.0}
    assert values(items, "b") == {str(i): 1.0 for i in range(4)}


def test_values_are_better_when_larger_unless_they_are_losses(tmp_path: Path) -> None:
    assert two(tmp_path).rows["higher_is_better"].unique().to_list() == [True]
    losses = two(tmp_path, lower_is_better=True)
    assert losses.rows["higher_is_better"].unique().to_list() == [False]


def test_a_cluster_holds_items_together_and_a_null_is_an_item_without_value(tmp_path: Path) -> None:
    rows = [
        {"item": "q#1", "value": 1, "cluster": "q"},
        {"item": "q#2", "value": None, "cluster": "q"},
        {"item": "r", "value": float("nan")},
    ]
    path = lines(tmp_path / "a.jsonl", rows)
    items = reading.read([f"a={path}", f"b={path}"], PLAIN)
    first = items.rows.filter(pl.col("arm") == "a")
    assert first["cluster"].to_list() == ["q", "q", "r"]
    assert first["value"].to_list() == [1.0, None, None]


def test_seeds_of_an_arm_are_files_of_their_own(tmp_path: Path) -> None:
    path = lines(tmp_path / "x.jsonl", [{"item": "q", "value": 1}])
    items = reading.read([f"a/0={path}", f"a/1={path}", f"base={path}"], PLAIN)
    assert items.arms == {"a": ["0", "1"], "base": []}


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([{"item": "q", "value": "high"}], "record 1: the value 'high' is no number"),
        ([{"item": "q", "value": 1}, {"item": None, "value": 1}], "record 2: `item` is None"),
        ([{"item": "q", "value": 1}, {"item": "q", "value": 0}], "record 2: the item q comes a"),
        ([{"item": "q", "value": 1}, {"item": "r"}], "record 2: no `value`"),
        ([{"item": "q", "value": float("inf")}], "the value is infinite"),
        ([{"item": "q", "value": int("9" * 400)}], "the value is infinite"),
    ],
)
def test_a_row_that_is_none_is_named(tmp_path: Path, rows: list[Any], said: str) -> None:
    path = lines(tmp_path / "a.jsonl", rows)
    with pytest.raises(UserError, match=f"a.jsonl, {said}" if said[0] == "r" else said):
        reading.read([f"a={path}", f"b={path}"], PLAIN)


def test_an_infinite_value_is_named_whoever_wrote_it(tmp_path: Path) -> None:
    folder = run(tmp_path / "a", {"t": [sample(0, bits=1.0), sample(1, bits=float("inf"))]})
    with pytest.raises(UserError, match="the t bits of item 1 is infinite"):
        reading.read([str(folder)], PLAIN)
    own = tmp_path / "own"
    own.mkdir()
    row = {"benchmark": "b", "metric": "m", "item": "q7", "cluster": "q7", "value": -float("inf")}
    pl.DataFrame([row | {"status": "ok", "reason": ""}]).write_parquet(own / "scores.parquet")
    with pytest.raises(UserError, match="the b m of item q7 is infinite"):
        reading.read([f"x={own}"], PLAIN)


# -- arguments -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["=x.jsonl", "a/=x.jsonl", "a/0/1=x.jsonl"])
def test_a_name_of_another_form_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    lines(tmp_path / "x.jsonl", [{"item": "q", "value": 1}])
    monkeypatch.chdir(tmp_path)
    if name.startswith("="):
        assert named(name).arm == ""
        return
    with pytest.raises(UserError, match="write NAME=PATH or NAME/SEED=PATH"):
        reading.read([name], PLAIN)


def test_a_path_with_an_equals_sign_is_a_path(tmp_path: Path) -> None:
    path = lines(tmp_path / "ref=x" / "a.jsonl", [{"item": "q", "value": 1}])
    assert named(str(path)).path == path
    assert named(f"m={path}").path == path


def test_what_holds_no_results_is_refused_with_what_does(tmp_path: Path) -> None:
    (tmp_path / "notes.json").write_text('{"hello": 1}')
    with pytest.raises(UserError, match="holds nothing to compare; what is read: sample files"):
        reading.read([str(tmp_path)], PLAIN)
    with pytest.raises(UserError, match="neither a file nor a folder"):
        reading.read([str(tmp_path / "absent.jsonl")], PLAIN)


def test_one_arm_alone_is_no_comparison(tmp_path: Path) -> None:
    path = lines(tmp_path / "a.jsonl", [{"item": "q", "value": 1}])
    with pytest.raises(UserError, match=r"one arm only \(a\)"):
        reading.read([str(path)], PLAIN)


def test_an_item_twice_under_one_seed_is_refused(tmp_path: Path) -> None:
    path = lines(tmp_path / "a.jsonl", [{"item": "q", "value": 1}])
    with pytest.raises(UserError, match="a has the item q of values value more than once under s"):
        reading.read([f"a/0={path}", f"a/0={path}"], PLAIN)


def test_an_arm_has_seeds_for_all_of_its_files_or_for_none(tmp_path: Path) -> None:
    path = lines(tmp_path / "a.jsonl", [{"item": "q", "value": 1}])
    with pytest.raises(UserError, match="write a/SEED=PATH for all"):
        reading.read([f"a/0={path}", f"a={path}"], PLAIN)


# -- lm-eval ---------------------------------------------------------------------------------------


def test_samples_of_lm_eval_are_read_with_the_names_and_directions_of_their_run(
    tmp_path: Path,
) -> None:
    rows = [sample(i, acc=float(i % 2), mse=0.5) for i in range(4)]
    said = {"higher_is_better": {"task": {"acc": True, "mse": False}}}
    for name in ("one", "two"):
        run(tmp_path / name, {"task": rows}, model_name=f"maker/{name}", **said)
    items = reading.read([str(tmp_path / "one"), str(tmp_path / "two")], PLAIN)
    assert items.arms == {"one": [], "two": []}
    assert values(items, "one", "acc") == {"0": 0.0, "1": 1.0, "2": 0.0, "3": 1.0}
    directions = items.rows.group_by("metric").agg(pl.col("higher_is_better").first())
    assert dict(directions.iter_rows()) == {"acc": True, "mse": False}
    assert set(items.rows["benchmark"]) == {"task"}


def test_two_runs_of_one_model_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    for name in ("plain", "chat"):
        run(tmp_path / name / "model", {"t": [sample(0, acc=1.0)]}, model_name="m")
    items = reading.read([str(tmp_path / "plain"), str(tmp_path / "chat")], PLAIN)
    assert list(items.arms) == ["plain", "chat"]


def test_a_filter_is_part_of_the_metrics_name_and_lists_are_no_values(tmp_path: Path) -> None:
    rows = [sample(0, exact_match=1.0, by_instruction=[True, False]) | {"filter": "strict"}]
    folder = run(tmp_path / "m", {"gsm8k": rows})
    items = reading.read([f"a={folder}", f"b={folder}"], PLAIN)
    assert set(items.rows["metric"]) == {"exact_match,strict"}


def test_a_perplexity_is_compared_by_its_log_which_is_better_when_smaller(tmp_path: Path) -> None:
    """lm-eval's samples hold log-likelihoods under the name perplexity, of which more is better."""
    sure = run(tmp_path / "sure", {"t": [sample(0, perplexity=-1.0)]})
    unsure = run(tmp_path / "unsure", {"t": [sample(0, perplexity=-9.0)]})
    items = reading.read([f"sure={sure}", f"unsure={unsure}"], PLAIN)
    assert values(items, "sure", "log_perplexity") == {"0": 1.0}
    assert values(items, "unsure", "log_perplexity") == {"0": 9.0}


def test_only_the_newest_samples_of_a_task_count(tmp_path: Path) -> None:
    folder = run(tmp_path / "m", {"t": [sample(0, acc=1.0)]})
    older = [sample(0, acc=0.0)]
    lines(folder / "samples_t_2025-01-02T03-04-05.678901.jsonl", older)
    items = reading.read([f"a={folder}", f"b={folder}"], PLAIN)
    assert values(items, "a") == {"0": 1.0}
    assert items.notes == [f"{folder}: 1 sample files of earlier runs are left out."]


def test_a_table_of_lm_eval_stands_for_the_samples_beside_it(tmp_path: Path) -> None:
    folder = run(tmp_path / "m", {"t_u": [sample(0, acc=1.0)]})
    lines(folder / "samples_t_u_2027-01-02T03-04-05.678901.jsonl", [sample(0, acc=0.0)])
    items = reading.read([f"a={folder / f'results_{DATE}.json'}", f"b={folder}"], PLAIN)
    assert (values(items, "a"), values(items, "b")) == ({"0": 1.0}, {"0": 0.0})


def test_a_table_without_samples_says_how_to_keep_them(tmp_path: Path) -> None:
    run(tmp_path, {})
    with pytest.raises(UserError, match="run lm-eval with --log_samples"):
        reading.read([str(tmp_path / f"results_{DATE}.json")], PLAIN)


def test_subjects_that_lm_eval_averages_by_size_are_one_benchmark(
    tmp_path: Path,
) -> None:
    tasks = {
        "mmlu_law": [sample(0, acc=1.0), sample(1, acc=0.0), sample(2, acc=0.0)],
        "mmlu_art": [sample(0, acc=1.0)],
    }
    known = {
        "group_subtasks": {"mmlu": ["mmlu_h"], "mmlu_h": ["mmlu_law", "mmlu_art"]},
        "groups": {"mmlu": {"acc,none": 0.5}, "mmlu_h": {"acc,none": 0.5}},
    }
    folder = run(tmp_path / "m", tasks, **known)
    rows = reading.read([f"a={folder}", f"b={folder}"], PLAIN).rows.filter(pl.col("arm") == "a")
    assert set(rows["benchmark"]) == {"mmlu"}
    assert set(rows["item"]) == {"mmlu_law/0", "mmlu_law/1", "mmlu_law/2", "mmlu_art/0"}
    assert rows["cluster"].to_list() == rows["item"].to_list()


def test_many_subjects_are_the_clusters_of_their_group(tmp_path: Path) -> None:
    names = [f"mmlu_{i}" for i in range(SUBJECTS)]
    known = {"group_subtasks": {"mmlu": names}, "groups": {"mmlu": {"acc,none": 0.5}}}
    tasks = {name: [sample(0, acc=1.0), sample(1, acc=0.0)] for name in names}
    folder = run(tmp_path / "m", tasks, **known)
    rows = reading.read([f"a={folder}", f"b={folder}"], PLAIN).rows.filter(pl.col("arm") == "a")
    assert (rows["benchmark"].unique().to_list(), rows.height) == (["mmlu"], 2 * SUBJECTS)
    assert set(rows["cluster"]) == set(names)


def test_subjects_that_lm_eval_averages_alike_stay_apart(tmp_path: Path) -> None:
    tasks = {"law": [sample(0, acc=0.0), sample(1, acc=0.0)], "art": [sample(0, acc=1.0)]}
    known = {"group_subtasks": {"g": ["law", "art"]}, "groups": {"g": {"acc,none": 0.5}}}
    folder = run(tmp_path / "m", tasks, **known)
    items = reading.read([f"a={folder}", f"b={folder}"], PLAIN)
    assert set(items.rows["benchmark"]) == {"law", "art"}


def test_a_figure_that_is_no_mean_of_its_items_is_said(tmp_path: Path) -> None:
    rows = [sample(0, f1=1.0), sample(1, f1=0.0)]
    folder = run(tmp_path / "m", {"t": rows}, results={"t": {"f1,none": 0.7}})
    items = reading.read([f"a={folder}", f"b={folder}"], PLAIN)
    assert items.notes[0].startswith("m: lm-eval reports 0.7 for t f1; the mean over its items")


def test_runs_on_different_documents_are_refused(tmp_path: Path) -> None:
    one = run(tmp_path / "one", {"t": [sample(0, acc=1.0)]})
    two_ = run(tmp_path / "two", {"t": [sample(0, acc=1.0) | {"doc_hash": "other"}]})
    with pytest.raises(UserError, match="t: the item 0 is not the same document in a and b"):
        reading.read([f"a={one}", f"b={two_}"], PLAIN)


def test_other_prompts_for_the_same_documents_are_said(tmp_path: Path) -> None:
    one = run(tmp_path / "one", {"t": [sample(0, acc=1.0), sample(1, acc=1.0)]})
    chat = [sample(0, acc=1.0) | {"prompt_hash": "chat"}, sample(1, acc=1.0)]
    two_ = run(tmp_path / "two", {"t": chat})
    items = reading.read([f"a={one}", f"b={two_}"], PLAIN)
    assert items.notes[0].startswith("t: 50 % of the prompts differ between arms")


# -- judgments -------------------------------------------------------------------------------------


def annotation(i: int, preference: float | None, **changes: Any) -> dict[str, Any]:
    return {
        "instruction": f"do {i}",
        "output_1": "x" * 10,
        "generator_1": "base",
        "output_2": "y" * (8 + i % 5),
        "generator_2": "mine",
        "preference": preference,
    } | changes


def test_annotations_of_alpaca_eval_have_its_win_rate_and_one_at_equal_length(
    tmp_path: Path,
) -> None:
    rows = [annotation(i, 1 + (i * 37 % 100) / 100) for i in range(60)] + [annotation(60, None)]
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps(rows))
    items = reading.read([str(path)], Asked())
    found = items.rows.filter(pl.col("metric") == "win_rate")
    published = alpaca.win_rate(alpaca.read(path)[0])
    assert items.arms == {"mine": []} and items.rivals == {"alpaca": "base"}
    assert found["value"].mean() == pytest.approx(published["win_rate"])
    assert found["value"].null_count() == 1
    assert set(items.rows["metric"]) == {"win_rate", "length_controlled_minimal"}


def test_arms_that_were_judged_against_different_models_are_refused(tmp_path: Path) -> None:
    for name, rival in (("a", "x"), ("b", "y")):
        rows = [annotation(0, 1.5, generator_1=rival, generator_2=name)]
        (tmp_path / f"{name}.json").write_text(json.dumps(rows))
    with pytest.raises(UserError, match="a was judged against x, b against y"):
        reading.read([str(tmp_path / "a.json"), str(tmp_path / "b.json")], PLAIN)


def test_a_file_of_several_models_takes_no_name(tmp_path: Path) -> None:
    rows = [annotation(0, 1.5, generator_2=name) for name in ("a", "b")]
    path = tmp_path / "both.json"
    path.write_text(json.dumps(rows))
    assert list(reading.read([str(path)], PLAIN).arms) == ["a", "b"]
    with pytest.raises(UserError, match=r"the file holds 2 models \(a, b\)"):
        reading.read([f"mine={path}"], PLAIN)


def test_judgments_of_arena_hard_have_its_score(shared: Path) -> None:
    battles = shared / "eval" / "arena_hard" / "battles_gpt-4-0613.jsonl"
    items = reading.read([str(battles)], PLAIN)
    (games,) = [g for g in arena.read([battles]) if g.model != g.baseline]
    assert items.rivals == {"arena": "gpt-4-0314"}
    assert items.rows["value"].mean() == pytest.approx(arena.score(games), abs=1e-9)
    assert items.rows["item"].n_unique() == games.asked


def test_wildbench_judgments_have_their_ratings(shared: Path) -> None:
    folder = shared / "eval" / "wildbench"
    items = reading.read(
        [str(folder / f"score_{m}.json.gz") for m in ("gemma-7b-it", "reka-edge")], PLAIN
    )
    means = items.rows.group_by("arm").agg(pl.col("value").mean())
    assert dict(means.iter_rows())["gemma-7b-it"] == pytest.approx(5.50879, abs=1e-5)


def test_a_kind_is_known_by_the_first_record_however_the_file_is_written(tmp_path: Path) -> None:
    rows = [annotation(0, 1.5)]
    spread = tmp_path / "a.json"
    spread.write_text(json.dumps(rows, indent=2))
    packed = tmp_path / "a.jsonl.gz"
    packed.write_bytes(gzip.compress(json.dumps(rows[0]).encode()))
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    assert [kind_of(path) for path in (spread, packed, empty)] == ["alpaca", "alpaca", None]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jsonl.gz", gzip.compress(b"x" * 5_000)[:20] + b"\xff" * 20, "cannot be read"),
        ("a.json", b"[" * 200_000, "JSON that cannot be read"),
        ("a.jsonl", b'{"item": ' + b"[" * 200_000 + b"\n", "JSON that cannot be read"),
        ("a.jsonl", b'{"item": 1, "value": ' + b"9" * 5_000 + b"}\n", "JSON that cannot be read"),
    ],
    ids=["damaged gz", "nested list", "nested record", "long integer"],
)
def test_a_damaged_or_hostile_file_is_one_sentence(
    tmp_path: Path, name: str, content: bytes, said: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    for read in (kind_of, lambda file: list(records(file))):
        with pytest.raises(UserError, match=f"{name}.*{said}"):
            read(path)


def test_a_preference_beyond_all_numbers_is_refused(tmp_path: Path) -> None:
    path = lines(tmp_path / "a.jsonl", [annotation(0, int("9" * 400))])
    with pytest.raises(UserError, match="is not a number from 1 to 2"):
        reading.read([f"a={path}", f"b={path}"], PLAIN)
