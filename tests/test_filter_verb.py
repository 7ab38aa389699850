"""`magpie filter`: the funnel, the rows as the source holds them, other forms, budgets, and what is
refused."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from core.errors import UserError
from recipes.exchange.likeness import Models
from recipes.verbs.filter import Asked, Output, main
from synth.published import chosen_rows
from tests import small_recipe, tiny
from tests.test_cli import call
from tests.test_published import loaded, row23, row25, saved
from tests.test_tagged import tagged


def run(source: Path, strategy: str | None = None, seed: int = 0, **given: Any) -> None:
    given = {"strategy": strategy, "path": given.pop("out", None), **given}
    asked = Asked(**among(Asked, given))
    models = Models(**among(Models, given))
    output = Output(**among(Output, given))
    main(str(source), asked, output, seed, models)


def among(part: type[Asked | Models | Output], given: dict[str, Any]) -> dict[str, Any]:
    """What is given of the fields of a part of the request."""
    return {field.name: given[field.name] for field in fields(part) if field.name in given}


def answer(
    capsys: pytest.CaptureFixture[str], source: Path, strategy: str | None = None, **given: Any
) -> Any:
    run(source, strategy, as_json=True, **given)
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("ending", [".parquet", ".jsonl"])
@pytest.mark.parametrize("row", [row23, row25])
def test_chosen_rows_are_written_as_they_were_in_the_order_of_the_choice(
    tmp_path: Path, ending: str, row: Any
) -> None:
    rows = [row(i, odd_column={"a": i}) for i in range(9)]
    length = "output_length" if "output_length" in rows[0] else "response_length"
    for i, each in enumerate(rows):
        each[length] = (i * 5) % 9 + 1
    run(saved(tmp_path / f"set{ending}", rows), "longest", rows=4, out=tmp_path / f"out{ending}")
    best = sorted(rows, key=lambda r: -r[length])[:4]
    assert loaded(tmp_path / f"out{ending}") == best


def test_parquet_keeps_its_types_and_metadata(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    turn = pa.list_(
        pa.struct(
            [pa.field("from", pa.string()), pa.field("value", pa.string(), metadata={"k": "v"})]
        )
    )
    schema = pa.schema(
        [
            ("uuid", pa.string()),
            ("input", pa.large_string()),
            ("output", pa.string()),
            ("n", pa.int32()),
            ("when", pa.timestamp("ms", "UTC")),
            ("kind", pa.dictionary(pa.int32(), pa.string())),
            ("conversations", turn),
        ],
        metadata={"huggingface": '{"info": {}}'},
    )
    rows = [
        {
            "uuid": f"u{i}",
            "input": "q",
            "output": "x" * (i + 1),
            "n": i,
            "when": i * 1000,
            "kind": "ab"[i % 2],
        }
        for i in range(5)
    ]
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), tmp_path / "set.parquet")
    run(tmp_path / "set.parquet", "longest", rows=3, out=tmp_path / "out.parquet")
    made, source = pq.read_table(tmp_path / "out.parquet"), pq.read_table(tmp_path / "set.parquet")
    assert made.schema.equals(source.schema, check_metadata=True)
    assert made.to_pylist() == source.to_pylist()[:1:-1]


def test_lines_are_copied_byte_for_byte(tmp_path: Path) -> None:
    lines = [
        '{"uuid":"a", "input": "caf\\u00e9",  "output":"x", "n": 1.50}',
        '{"output":"xyz","input":"b","uuid":"b"}',
        '{"uuid": "c", "input": "c", "output": "xy"}',
    ]
    (tmp_path / "set.jsonl").write_text("\r\n".join([lines[0], "", *lines[1:]]))
    run(tmp_path / "set.jsonl", "longest", rows=2, out=tmp_path / "out.jsonl")
    assert (tmp_path / "out.jsonl").read_text() == f"{lines[1]}\n{lines[2]}\n"


def test_more_rows_than_fit_into_memory_at_once_keep_their_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chosen_rows, "BUCKET", 7)
    monkeypatch.setattr(chosen_rows, "BATCH", 10)
    rows = [
        row23(i, output="x" * (i * 37 % 101 + 1), output_length=i * 37 % 101 + 1) for i in range(60)
    ]
    best = [r["uuid"] for r in sorted(rows, key=lambda r: -r["output_length"])[:30]]
    folder = tmp_path / "set"
    folder.mkdir()
    saved(folder / "1.parquet", rows[:25])
    saved(folder / "2.parquet", rows[25:])
    run(folder, "longest", rows=30, out=tmp_path / "out.parquet")
    assert [r["uuid"] for r in loaded(tmp_path / "out.parquet")] == best
    run(saved(tmp_path / "set.jsonl", rows), "longest", rows=30, out=tmp_path / "out.jsonl")
    assert [r["uuid"] for r in loaded(tmp_path / "out.jsonl")] == best


@pytest.mark.parametrize(
    ("form", "columns"), [("23", 23), ("25", 25), ("sharegpt", 2), ("messages", 2)]
)
def test_chosen_rows_can_be_written_in_another_form(
    tmp_path: Path, form: str, columns: int
) -> None:
    rows = [row23(i) for i in range(5)]
    run(
        saved(tmp_path / "set.parquet", rows),
        "random",
        rows=3,
        out=tmp_path / "out.jsonl",
        form=form,
    )
    made = loaded(tmp_path / "out.jsonl")
    assert len(made) == 3 and len(made[0]) >= columns
    talk = made[0].get("messages") or made[0]["conversations"]
    assert [next(iter(turn.values())) for turn in talk] in (["user", "assistant"], ["human", "gpt"])


def test_the_funnel_adds_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = tagged(2000)
    found = answer(capsys, saved(tmp_path / "set.parquet", rows), "magpie-pro-2", rows=20)
    funnel = found["strategies"]["magpie-pro-2"]
    stopped = sum(step["stopped"] for step in funnel["steps"]) + sum(funnel["failed"].values())
    assert found["rows"] == funnel["pool"] == 2000 == funnel["allowed"] + stopped
    assert funnel["chosen"] == 20 and [step["predicate"] for step in funnel["steps"]] == [
        "input_quality >= 'good'",
        "difficulty >= 'easy'",
        "min_neighbor_distance > 0",
        "instruct_reward > -12",
    ]
    assert found["rows_without"] == {"no response": sum(not r["output"] for r in rows)}
    assert found["failed_tags"]["input_quality"] == {
        "unknown label 'Good'": sum(r["input_quality"] == "Good" for r in rows),
        "null": sum(r["input_quality"] is None for r in rows),
    }


def test_the_command_prints_the_funnel_and_writes_the_rows(tmp_path: Path) -> None:
    path = saved(tmp_path / "set.parquet", [row23(i, instruct_reward=-9.0 - i) for i in range(6)])
    shown = call(
        "filter",
        str(path),
        "--strategy",
        "magpie-pro",
        "--param",
        "tau1=-11.5",
        "--rows",
        "2",
        "--out",
        str(tmp_path / "out.parquet"),
    )
    assert (
        "6 rows" in shown
        and "instruct_reward > -11.5" in shown
        and f"written to {tmp_path / 'out.parquet'}" in shown
    )
    assert len(loaded(tmp_path / "out.parquet")) == 2


def test_several_strategies_read_the_data_once_and_write_a_file_each(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = saved(tmp_path / "set.parquet", tagged(800))
    found = answer(
        capsys, path, "magpie-pro-3,random", rows=5, params=["tau1=-10"], out=tmp_path / "out"
    )
    assert {
        name: len(loaded(tmp_path / "out" / f"{name}.parquet")) for name in found["strategies"]
    } == {"magpie-pro-3": 5, "random": 5}
    assert found["strategies"]["magpie-pro-3"]["steps"][1]["predicate"] == "instruct_reward > -10"


def test_a_filter_needs_no_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = saved(tmp_path / "set.parquet", [row23(i, instruct_reward=float(i)) for i in range(6)])
    found = answer(
        capsys,
        path,
        where="instruct_reward < 5",
        choose="top(instruct_reward)",
        rows=2,
        out=tmp_path / "out.parquet",
    )
    assert [r["instruct_reward"] for r in loaded(tmp_path / "out.parquet")] == [4.0, 3.0]
    assert (
        found["strategies"]["filter"]["allowed"] == 5
        and found["strategies"]["filter"]["choose"] == "top(instruct_reward)"
    )


def test_another_seed_redraws_a_random_choice(tmp_path: Path) -> None:
    path = saved(tmp_path / "set.parquet", [row23(i) for i in range(50)])
    for seed in (0, 1):
        run(path, "random", rows=10, seed=seed, out=tmp_path / f"{seed}.parquet")
    first, second = ({r["uuid"] for r in loaded(tmp_path / f"{seed}.parquet")} for seed in (0, 1))
    assert len(first) == len(second) == 10 and first != second


def test_a_budget_in_tokens_counts_the_students_tokens(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    student = tiny.llama(tmp_path / "student")
    path = saved(tmp_path / "set.parquet", [row23(i) for i in range(20)])
    capsys.readouterr()  # what making the student printed
    found = answer(
        capsys, path, "longest", tokens=200, student=str(student), chat_template_path="chatml"
    )["strategies"]["longest"]
    assert 1 <= found["chosen"] < 20 and 0 < found["chosen_tokens"] <= 200
    with pytest.raises(UserError, match="--tokens needs --student MODEL"):
        run(path, "longest", tokens=200)


def test_diverse_takes_one_of_each_kind_of_instruction_first(tmp_path: Path) -> None:
    kinds = [
        "Write a poem about the sea.",
        "What is 17 times 23?",
        "How do I change a bicycle tyre?",
    ]
    rows = [
        row23(i, input=kinds[i % 3] + " Please." * (i // 3 % 2), input_length=9) for i in range(18)
    ]
    run(saved(tmp_path / "set.jsonl", rows), "diverse", rows=3, out=tmp_path / "out.jsonl")
    assert {
        kinds.index(r["input"].removesuffix(" Please.")) for r in loaded(tmp_path / "out.jsonl")
    } == {0, 1, 2}


@pytest.mark.parametrize(
    ("strategy", "given", "says"),
    [
        ("magpie-prof", {}, "unknown strategy 'magpie-prof'; did you mean 'magpie-pro'?"),
        ("longest", {}, "longest takes as much as it is told to: add --rows N or --tokens N"),
        (None, {"where": "input_quality >= 'good'"}, "add --rows N or --tokens N"),
        (
            "magpie-pro",
            {"params": ["tau=3"], "rows": 1},
            "'tau' is no parameter of this strategy; did you mean 'tau1'?",
        ),
        ("magpie-pro", {"params": ["tau1"], "rows": 1}, "write NAME=VALUE"),
        ("magpie-pro", {"params": ["tau1=low"], "rows": 1}, "tau1 is a number"),
        (
            "magpie-pro",
            {"rows": 99},
            "strategy magpie-pro: the budget asks for 99 rows but only 3 rows of 3 can be chosen",
        ),
        ("ifd-top", {"rows": 1}, "has no column `ifd`, which ifd-top needs"),
        ("random", {"rows": 1, "form": "24"}, "--form 24: no such form"),
        ("random", {"rows": 1, "out": Path("x.csv")}, "the name must end in .parquet or .jsonl"),
        ("random", {"rows": 1, "tokens": 1}, "either --rows or --tokens"),
        (
            "all",
            {"rows": 2},
            "strategy all: `all` takes every row; "
            "leave the budget out, or choose hash_order/longest.",
        ),
        ("magpie-pro", {"rows": 99}, "lower the budget, or add --allow-short."),
        (
            None,
            {"where": "input_quality >= 'god'", "rows": 1},
            "filter.where: 'god' is not a label",
        ),
    ],
)
def test_what_cannot_be_done_is_one_sentence(
    tmp_path: Path, strategy: str | None, given: dict[str, Any], says: str
) -> None:
    path = saved(tmp_path / "set.parquet", [row23(i) for i in range(3)])
    with pytest.raises(UserError) as error:
        run(path, strategy, **given)
    assert says in str(error.value)


@pytest.mark.parametrize("ending", [".parquet", ".jsonl"])
def test_the_source_is_never_replaced_by_what_was_chosen_of_it(tmp_path: Path, ending: str) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    path = saved(folder / f"a{ending}", [row23(i) for i in range(3)])
    before = path.read_bytes()
    (tmp_path / f"link{ending}").symlink_to(path)
    for source, out in (
        (path, folder / ".." / "set" / path.name),
        (path, tmp_path / f"link{ending}"),
        (folder, path),
    ):
        with pytest.raises(UserError, match="would replace the source"):
            run(source, "random", rows=1, out=out)
    assert path.read_bytes() == before
    run(folder, "random", rows=1, out=tmp_path / f"b{ending}")


def test_short_of_rows_takes_what_there_is_when_told_to(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = saved(tmp_path / "set.parquet", [row23(i) for i in range(3)])
    assert (
        answer(capsys, path, "magpie-pro", allow_short=True)["strategies"]["magpie-pro"]["chosen"]
        == 3
    )


def test_a_snapshot_without_texts_is_written_as_it_is(tmp_path: Path) -> None:
    frame = pl.DataFrame(
        {"id": ["a", "b"], "response_length": [3.0, 9.0], "status:response": ["ok", "ok"]}
    )
    frame.write_parquet(tmp_path / "pool.parquet")
    run(tmp_path / "pool.parquet", "longest", rows=1, out=tmp_path / "out.parquet")
    assert pl.read_parquet(tmp_path / "out.parquet").to_dicts() == [
        {"id": "b", "response_length": 9.0, "status:response": "ok"}
    ]


PLAIN = {
    "id": ["a", "b", "c"],
    "instruction": ["Write a poem.", "Write a poem.", "Mail bob@gmail.com today"],
    "response": ["x", "yy", "zzz"],
}


def test_what_a_file_lacks_and_needs_no_model_is_computed_and_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MAGPIE_CACHE", str(tmp_path / "cache"))
    source = tmp_path / "plain.parquet"
    pl.DataFrame(PLAIN).write_parquet(source)
    where = "pii = '' AND NOT minhash_duplicate AND instruction_length > 3"
    run(source, where=where, choose="longest", rows=1, out=tmp_path / "kept.parquet", as_json=True)
    told = capsys.readouterr()
    funnel = json.loads(told.out)["strategies"]["filter"]
    assert [step["stopped"] for step in funnel["steps"]] == [1, 1, 0]
    assert "computing what" in told.err and "pii, minhash" in told.err
    kept = pl.read_parquet(tmp_path / "kept.parquet")
    assert kept.columns == list(PLAIN) and kept["id"].to_list() == ["a"]
    run(source, where="pii = ''", choose="longest", rows=1, as_json=True)
    assert "measuring pii" not in capsys.readouterr().err, "it was kept"
    with pytest.raises(UserError, match="no column `min_neighbor_distance`"):
        run(source, where="min_neighbor_distance > 0", choose="longest", rows=1)


def test_neighbours_are_computed_by_a_model_that_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from core.models import resolve

    model = resolve("embedded/all-MiniLM-L6-v2").path
    monkeypatch.setenv("MAGPIE_CACHE", str(tmp_path / "cache"))
    source = tmp_path / "plain.jsonl"
    pl.DataFrame(PLAIN).write_ndjson(source)
    found = answer(
        capsys, source, where="NOT near_duplicate", choose="all", embedding=model, allow_short=True
    )
    assert found["strategies"]["filter"]["chosen"] == 2


def test_a_recipes_own_columns_may_be_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    block = {"clarity": {"prompt": "x.jinja", "labels": ["low", "mid", "high"]}}
    recipe = small_recipe.recipe(tmp_path, tmp_path, "http://x", synth__tags__own=block)
    source = tmp_path / "rated.parquet"
    pl.DataFrame({**PLAIN, "clarity": ["low", "high", "mid"]}).write_parquet(source)
    given = {"where": "clarity >= 'mid'", "choose": "top(clarity_rank)", "rows": 1}
    with pytest.raises(UserError, match="unknown column `clarity_rank`"):
        run(source, **given)
    run(source, **given, recipe=str(recipe), out=tmp_path / "kept.parquet")
    assert pl.read_parquet(tmp_path / "kept.parquet")["id"].to_list() == ["b"]
