"""Tagged data sets as filters read them: the paper's filters against a plain loop over rows, both
namings, every file form, failed tags."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from core.errors import UserError
from recipes.verbs.filter import apply_all
from synth.filters.arm import ArmConfig
from synth.filters.orders import hash_rank
from synth.filters.rule import Rule, resolve
from synth.filters.strategies import STRATEGIES
from synth.measures import CATEGORY, DIFFICULTY, QUALITY
from synth.published.rows import read as read_rows
from synth.published.rows import write as write_rows
from synth.published.tagged import read
from tests.test_published import loaded, row23, row25, saved

PAPER = [name for name in STRATEGIES if name.startswith("magpie-")]
"""The filters of the paper, its cards and its notebook."""
Row = dict[str, Any]


def tagged(n: int, seed: int = 0) -> list[Row]:
    """Rows of the 23-column form with nulls, odd labels, exact duplicates, equal lengths, and
    instructions that end in a colon."""
    dice = random.Random(seed)
    rows = []
    for i in range(n):
        question = f"What is {i}?" + dice.choice(["", ":", " ", "\n:"])
        answer = "x" * dice.choice([0, 5, 50, 51, 52, 200, dice.randrange(10, 400)])
        alone = dice.random() < 0.7
        reward, base = dice.gauss(-11, 3), dice.gauss(-12, 3)
        rows.append(
            row23(
                i,
                input=question,
                output=answer,
                input_length=len(question),
                output_length=len(answer),
                conversations=[
                    {"from": "human", "value": question},
                    {"from": "gpt", "value": answer},
                ],
                input_quality=dice.choice([*QUALITY, None, "Good"]),
                difficulty=dice.choice([*DIFFICULTY, *DIFFICULTY, None]),
                task_category=dice.choice(CATEGORY),
                instruct_reward=dice.choice([reward, -12.0, -10.0, None]),
                base_reward=base,
                reward_difference=dice.choice([reward - base, 0.0, None]),
                min_neighbor_distance=dice.choice([0.0, 0.0, 0.3, 0.5, None]),
                repeat_count=0 if alone else 2,
                min_similar_uuid=None if alone else dice.choice([f"u{i}", f"u{max(0, i - 1)}"]),
            )
        )
    return rows


def table5(name: str, row: Row) -> bool:
    """Paper Table 5 and its two variants, as plain Python over one published row; a tag that is no
    value keeps the row out."""
    quality = QUALITY.index(row["input_quality"]) if row["input_quality"] in QUALITY else None
    difficulty = DIFFICULTY.index(row["difficulty"]) if row["difficulty"] in DIFFICULTY else None
    distance, reward, margin = (
        row["min_neighbor_distance"],
        row["instruct_reward"],
        row["reward_difference"],
    )
    apart = distance is not None and distance > 0
    paid = reward is not None and reward > -12
    ahead = margin is not None and margin > 0
    good = quality is not None and quality >= 3
    easy = difficulty is not None and difficulty >= 1
    whole = not row["input"].endswith(":")
    first = row["min_similar_uuid"] is None or row["min_similar_uuid"] == row["uuid"]
    return (
        row["output"] != ""
        and {
            "magpie-air": good and difficulty is not None and difficulty >= 2 and apart and ahead,
            "magpie-pro": quality is not None and quality >= 2 and apart and paid,
            "magpie-pro-2": good and easy and apart and paid,
            "magpie-pro-3": apart and paid,
            "magpie-pro-4": good and easy and apart and ahead,
            "magpie-pro-5": good and easy and apart and paid,
            "magpie-pro-6": apart and paid,
            "magpie-pro-300k-card": quality is not None
            and quality >= 2
            and reward is not None
            and reward >= -10
            and apart
            and whole,
            "magpie-notebook": good and reward is not None and reward > -10 and whole and first,
        }[name]
    )


def taken(name: str, rows: list[Row], budget: int) -> list[str]:
    """What a strategy takes of the rows that it keeps, as the paper says: the longest; for Filter5
    any; for Filter6 half and half."""
    ties = dict(
        zip([r["uuid"] for r in rows], hash_rank([r["uuid"] for r in rows], "ties"), strict=True)
    )
    draw = dict(
        zip([r["uuid"] for r in rows], hash_rank([r["uuid"] for r in rows], 0), strict=True)
    )
    longest = sorted(rows, key=lambda r: (-len(r["output"]), ties[r["uuid"]]))
    if name == "magpie-pro-5":
        return [r["uuid"] for r in sorted(rows, key=lambda r: draw[r["uuid"]])][:budget]
    if name == "magpie-pro-6":
        easy = [r["uuid"] for r in longest if r["difficulty"] in DIFFICULTY[:2]]
        hard = [r["uuid"] for r in longest if r["difficulty"] in DIFFICULTY[2:]]
        return [i for pair in zip(easy, hard, strict=False) for i in pair][:budget]
    return [r["uuid"] for r in longest][:budget]


@pytest.mark.parametrize("ending", [".parquet", ".jsonl"])
@pytest.mark.parametrize("budget", [40, 10_000])
def test_every_strategy_of_the_paper_chooses_what_a_plain_loop_chooses(
    tmp_path: Path, ending: str, budget: int
) -> None:
    rows = tagged(6000)
    applied = apply_all(
        saved(tmp_path / f"set{ending}", rows), PAPER, budget={"rows": budget}, allow_short=True
    )
    assert len(PAPER) == 9
    for name in PAPER:
        kept = [row for row in rows if table5(name, row)]
        assert applied.chosen[name].funnel["allowed"] == len(kept) > 40
        assert applied.chosen[name].ids == taken(name, kept, budget), name


@pytest.mark.parametrize("ending", [".parquet", ".jsonl"])
def test_a_filter_reads_the_texts_and_languages_that_an_import_gives(
    tmp_path: Path, ending: str
) -> None:
    alpaca = [
        {"instruction": "sum up", "input": "x" * n, "output": "y", "language": name}
        for n, name in enumerate(("English", "en", "German", None))
    ]
    path = saved(tmp_path / f"alpaca{ending}", alpaca)
    where = "language = 'EN' AND instruction_length > 6 AND instruction LIKE '%x'"
    rule = resolve("own", ArmConfig(where=where, choose="all"))
    tagged_rows = read(path, [rule])
    (answered,) = tagged_rows.rules
    assert answered.where is not None
    passing = tagged_rows.frame.filter(answered.where.root.expr)
    assert passing["language"].to_list() == ["EN"]  # the second: the first has no input


def test_thresholds_are_parameters(tmp_path: Path) -> None:
    rows = tagged(500)
    path = saved(tmp_path / "set.parquet", rows)
    params = {"tau1": -9.0, "quality": "excellent", "distance": 0.4, "difficulty": "hard"}
    applied = apply_all(path, ["magpie-pro-2"], params=params, allow_short=True)
    kept = [
        r
        for r in rows
        if r["output"]
        and r["input_quality"] == "excellent"
        and r["difficulty"] in ("hard", "very hard")
        and (r["instruct_reward"] or -99) > -9
        and (r["min_neighbor_distance"] or 0) > 0.4
    ]
    assert set(applied.chosen["magpie-pro-2"].ids) == {r["uuid"] for r in kept}


def test_both_namings_and_every_file_form_choose_the_same(tmp_path: Path) -> None:
    def later(row: Row) -> Row:
        names = {"uuid", *row23(0)} - {
            "input",
            "output",
            "input_length",
            "output_length",
            "gen_input_config",
            "base_output",
            "base_reward",
        }
        new = {"instruction": row["input"], "response": row["output"]}
        lengths = {
            "instruction_length": row["input_length"],
            "response_length": row["output_length"],
        }
        return {**row25(0), **{k: row[k] for k in names}, **new, **lengths}

    old, new = tagged(1200), [later(row) for row in tagged(1200)]
    folder = tmp_path / "parts"
    folder.mkdir()
    saved(folder / "1.parquet", old[:100])
    saved(folder / "2.parquet", old[100:])
    sources = [
        folder,
        saved(tmp_path / "new.parquet", new),
        saved(tmp_path / "new.jsonl", new),
        saved(tmp_path / "old.json", old),
        saved(tmp_path / "old.jsonl.gz", old),
    ]
    found = [
        {
            n: c.ids
            for n, c in apply_all(path, PAPER, budget={"rows": 30}, allow_short=True).chosen.items()
        }
        for path in sources
    ]
    assert all(each == found[0] for each in found) and all(found[0].values())


# -- columns ---------------------------------------------------------------------------------------


def rule(where: str | None = None, choose: str = "hash_order", **arm: Any) -> Rule:
    return resolve(
        "arm",
        ArmConfig.model_validate({"where": where, "choose": choose, "budget": {"rows": 5}, **arm}),
    )


def test_a_count_of_repeats_is_read_without_the_row_that_is_repeated(tmp_path: Path) -> None:
    rows = [row25(i, repeat_count=i, min_similar_uuid=None) for i in range(3)]
    path = tmp_path / "set.parquet"
    pl.from_dicts(rows, infer_schema_length=None).write_parquet(path)
    assert read(path, [rule("repeat_count < 2")]).frame["repeat_count"].to_list() == [0, 1, 2]


def kept(path: Path, where: str) -> list[str]:
    from synth.filters.verdicts import ALLOWED, verdicts

    data = read(path, [rule(where)])
    return data.frame.filter(verdicts(data.frame, data.rules[0]) == ALLOWED)["id"].to_list()


@pytest.mark.parametrize("ending", [".parquet", ".jsonl"])
@pytest.mark.parametrize(
    ("where", "ids"),
    [
        ("response LIKE '%two%'", ["b", "c"]),
        ("NOT response LIKE '%two%' OR LENGTH(instruction) > 7", ["a", "c"]),
        ("LENGTH(response) > 6 AND instruction NOT LIKE '%:'", ["c"]),
        ("response_length = 3", ["a", "b"]),
        ("instruction_length > 7", ["c"]),
        ("incomplete", ["b"]),
        ("refusal", ["c"]),
        ("exact_duplicate", ["b"]),
        ("near_duplicate", ["b"]),
        ("reward_difference > 0", ["a"]),
        ("difficulty_rank >= 3 AND input_quality_rank < 5", ["b"]),
        ("temperature > 1", ["b"]),
    ],
)
def test_columns_that_follow_from_others_are_made_when_they_are_asked_for(
    tmp_path: Path, ending: str, where: str, ids: list[str]
) -> None:
    def row(name: str, question: str, answer: str, **values: Any) -> Row:
        wanted = (
            "uuid",
            "input",
            "output",
            "difficulty",
            "input_quality",
            "instruct_reward",
            "base_reward",
            "repeat_count",
            "min_similar_uuid",
        )
        given = row23(
            0,
            uuid=name,
            input=question,
            output=answer,
            min_similar_uuid=None,
            repeat_count=0,
            **values,
        )
        return {**{k: given[k] for k in wanted}, "gen_input_config": given["gen_input_config"]}

    rows = [
        row(
            "a",
            "Fix it:",
            "one",
            instruct_reward=-3.0,
            base_reward=-5.0,
            difficulty="easy",
            gen_input_config={"temperature": 1.0, "top_p": 1.0},
        ),
        row("b", "Fix it:", "two", instruct_reward=-5.0, base_reward=-5.0, input_quality="good")
        | {"min_similar_uuid": "a", "repeat_count": 1},
        row(
            "c",
            "Why? Really?",
            "I'm sorry, two.",
            instruct_reward=None,
            base_reward=-5.0,
            gen_input_config={"temperature": 1.0, "top_p": 1.0},
        ),
    ]
    if where == "incomplete":
        rows[0]["input"] = "Fix it."
    assert kept(saved(tmp_path / f"set{ending}", rows), where) == ids


def test_a_column_that_is_not_there_is_named(tmp_path: Path) -> None:
    path = saved(tmp_path / "new.parquet", [row25(i) for i in range(3)])
    with pytest.raises(
        UserError,
        match=r"has no column `reward_difference`, which magpie-air needs\. "
        "It would follow from instruct_reward and",
    ):
        apply_all(path, ["magpie-air", "magpie-pro"])
    with pytest.raises(UserError, match=r"has no column `ifd`, which arm needs"):
        read(path, [rule("ifd < 1")])
    with pytest.raises(
        UserError, match=r"`min_similar_id` \(nor min_similar_uuid, min_similar_conversation_id\)"
    ):
        read(
            saved(tmp_path / "few.parquet", [{"uuid": "a", "input": "b", "output": "c"}]),
            [rule("min_similar_id = 'x'")],
        )


def test_failed_tags_are_counted_by_column_and_reason(tmp_path: Path) -> None:
    rows = [
        row23(0),
        row23(1, input_quality="Good"),
        row23(2, input_quality="Good"),
        row23(3, input_quality=None),
        row23(4, instruct_reward=float("nan")),
        row23(5, instruct_reward=None),
    ]
    path = saved(tmp_path / "set.parquet", rows)
    data = read(path, [rule("input_quality >= 'good' AND instruct_reward > -12")])
    assert data.failed == {
        "input_quality": {"unknown label 'Good'": 2, "null": 1},
        "instruct_reward": {"no number: 'NaN'": 1, "null": 1},
    }
    assert kept(path, "input_quality >= 'good' AND instruct_reward > -12") == ["u0"]
    lines = saved(tmp_path / "set.jsonl", rows[:4])
    assert read(lines, [rule("input_quality >= 'good'")]).failed == {
        "input_quality": {"unknown label 'Good'": 2, "null": 1}
    }


def test_rows_without_a_response_and_second_rows_of_an_id_are_never_chosen(tmp_path: Path) -> None:
    for ending in (".parquet", ".jsonl"):
        rows = [
            row23(0),
            row23(1, output="", output_length=0),
            row23(2),
            row23(2),
            row23(3, uuid="u4"),
        ]
        path = saved(tmp_path / f"set{ending}", rows)
        data = read(path, [rule("difficulty = 'hard'")])
        assert data.out == {"no response": 1, "the id occurs twice": 1}
        assert kept(path, "difficulty = 'hard'") == ["u0", "u2", "u4"]


@pytest.mark.parametrize("ending", [".parquet", ".jsonl"])
def test_our_own_form_is_read_with_the_failures_that_it_keeps(tmp_path: Path, ending: str) -> None:
    rows = [
        row23(0),
        row23(1, input_quality="Good"),
        row23(2, output="", conversations=[]),
        row23(3),
        row23(3),
    ]
    ours = tmp_path / f"ours{ending}"
    write_rows(read_rows(saved(tmp_path / "set.jsonl", rows)), ours, "magpie")
    data = read(ours, [rule("input_quality >= 'good'")])
    assert data.failed == {"input_quality": {"unknown label 'Good'": 1}} and data.out == {
        "no response": 1,
        "the id occurs twice": 1,
    }
    assert kept(ours, "input_quality >= 'good'") == ["u0", "u3"]


def test_files_of_both_kinds_in_one_folder_are_read_together(tmp_path: Path) -> None:
    folder = tmp_path / "mixed"
    folder.mkdir()
    saved(folder / "1.parquet", [row23(0), row23(1, difficulty="easy")])
    saved(folder / "2.jsonl", [row25(2)])
    assert kept(folder, "difficulty = 'hard'") == ["u0", "u2"]


def test_a_row_without_an_id_gets_one_from_its_content(tmp_path: Path) -> None:
    rows = [row23(0), row23(1, uuid=None), row23(2, uuid="")]
    first, second = (
        kept(saved(tmp_path / name, rows), "difficulty = 'hard'")
        for name in ("set.parquet", "set.jsonl")
    )
    assert first == second and len(set(first)) == 3 and first[0] == "u0" and all(first)


def test_of_parquet_only_the_needed_columns_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved(tmp_path / "set.parquet", [row23(i) for i in range(5)])
    monkeypatch.setattr("synth.published.rows.read", lambda *_: pytest.fail("read row by row"))
    data = read(path, [rule("input_quality >= 'good' AND instruction NOT LIKE '%:'", "longest")])
    assert {c for c in data.frame.columns if not c.startswith("status:")} == {
        "id",
        "input_quality",
        "response_length",
        "instruction ends with ':'",
        "heldout",
        "reserved",
    }


def test_a_snapshot_of_our_pool_is_read_with_its_held_out_rows(tmp_path: Path) -> None:
    frame = pl.DataFrame(
        {
            "id": list("abcd"),
            "instruction": ["q"] * 4,
            "response": ["long", "longer", None, "longest"],
            "response_length": [4, 6, None, 7],
            "input_quality": pl.Series(["good", "poor", "good", "good"], dtype=pl.Enum(QUALITY)),
            "heldout": [False, False, False, True],
            "reserved": [False, False, False, True],
            "status:quality": ["ok"] * 4,
            "status:response": ["ok", "ok", None, "ok"],
        }
    )
    frame.write_parquet(tmp_path / "pool.parquet")
    applied = apply_all(
        tmp_path / "pool.parquet", ["longest"], budget={"rows": 4}, allow_short=True
    )
    assert applied.chosen["longest"].ids == ["b", "a"]
    assert applied.chosen["longest"].funnel["heldout"] == 1
    assert kept(tmp_path / "pool.parquet", "input_quality >= 'good'") == ["a"]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "holds no rows|cannot be read|is not valid"),
        ('{"uuid": "a"}\n', "no instruction is to be found"),
        ("{oops\n", "is not valid JSON Lines"),
    ],
)
def test_an_unreadable_source_is_one_sentence(tmp_path: Path, content: str, says: str) -> None:
    path = tmp_path / "set.jsonl"
    path.write_text(content)
    with pytest.raises(UserError, match=says):
        read(path, [rule("difficulty = 'hard'")])
    (tmp_path / "bad.parquet").write_text("no")
    with pytest.raises(UserError, match="cannot be read as Parquet"):
        read(tmp_path / "bad.parquet", [rule("difficulty = 'hard'")])


def test_the_real_samples_are_read(shared: Path) -> None:
    path = shared / "magpie_samples" / "example_instructions.jsonl"
    data = read(path, [rule("input_quality >= 'very poor'")])
    assert len(data.frame) == 5 and sum(data.out.values()) == 5 and not data.failed, (
        "they hold tags, but no responses"
    )
    assert len(loaded(path)) == 5 and json.dumps(data.failed) == "{}"
