"""Columns of a recipe's own: declared in `synth.tags.own`, and then like every other column."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from core.errors import UserError
from recipes.exchange import export_data, recipe_rows
from recipes.report.page import build
from recipes.schema import load
from recipes.stages import graph
from recipes.verbs import why
from synth.config.tags import OwnConfig, TagsConfig
from synth.filters.arm import ArmConfig
from synth.filters.rule import resolve
from synth.measures import SHIPPED
from synth.published import tagged
from synth.tags.asking import own as columns
from synth.tags.asking.tag import ask, prompt_text, template
from tests import small_recipe
from tests.scripted_server import ScriptedServer

CLEAR = {"prompt": "clarity.jinja", "labels": ["low", "mid", "high"]}


def own(**each: dict[str, Any]) -> TagsConfig:
    return TagsConfig.model_validate({"own": each})


def test_an_own_column_may_stand_in_where_and_choose_and_a_typing_error_gets_a_hint() -> None:
    known = columns.measures(own(clarity=CLEAR, field={**CLEAR, "ordered": False}))
    arm = {"where": "clarity >= 'mid' AND clarity_rank > 1.5", "budget": {"rows": 1}}
    rule = resolve("a", ArmConfig.model_validate({**arm, "choose": "top(clarity)"}), None, known)
    assert rule.columns == {"clarity", "clarity_rank"}
    assert known.filling(rule.columns) == ["clarity"]
    balanced = ArmConfig.model_validate({"choose": "balanced(field, clarity)", **arm})
    assert resolve("b", balanced, None, known).choose.ranks == ("field", "clarity")
    for where, hint in (
        ("clarity = 'hihg'", "did you mean 'high'"),
        ("clarty = 'high'", "did you mean 'clarity'"),
        ("field >= 'mid'", "have no order"),
    ):
        with pytest.raises(UserError, match=hint):
            resolve("c", ArmConfig.model_validate({**arm, "where": where}), None, known)
    with pytest.raises(UserError, match="unknown column `clarity`"):
        resolve("a", ArmConfig.model_validate(arm))


@pytest.mark.parametrize(
    ("name", "what"),
    [("difficulty", "`difficulty`"), ("pii", "`pii`"), ("seed", "`seed`"), ("safety", "`safety`")],
)
def test_a_name_that_is_taken_is_refused(name: str, what: str) -> None:
    with pytest.raises(UserError, match=rf"synth\.tags\.own\.{name}: {what} is the name of"):
        columns.measures(own(**{name: CLEAR}))


def test_a_rank_that_another_own_column_is_called_by_is_refused() -> None:
    with pytest.raises(UserError, match=r"`clarity_rank` is the name of a column of synth"):
        columns.measures(own(clarity=CLEAR, clarity_rank={"prompt": "x", "kind": "text"}))


@pytest.mark.parametrize(
    ("block", "problem"),
    [
        ({"prompt": "x"}, "say what it may hold"),
        ({"prompt": "x", "labels": ["a", "a"]}, "say what it may hold"),
        ({"prompt": "x", "kind": "text", "labels": ["a", "b"]}, "a text takes no `labels`"),
        ({"prompt": "x", "kind": "text", "mode": "label"}, "which cannot say text"),
        ({"prompt": "x", "between": [0, 100], "mode": "label"}, "one digit"),
        ({"prompt": "x", "between": [5, 1]}, "lowest, highest"),
        ({"prompt": "x", "labels": [*"abcdefghijklmnopqrstuvwxyz", "z2"]}, "26 labels"),
    ],
)
def test_settings_that_say_nothing_or_contradict_each_other_are_refused(
    block: dict[str, Any], problem: str
) -> None:
    with pytest.raises(ValueError, match=problem):
        OwnConfig.model_validate(block)


def test_kind_and_mode_follow_from_what_it_may_hold() -> None:
    said = [
        ({"labels": ["a", "b"]}, ("label", "label")),
        ({"between": [1, 5]}, ("number", "label")),
        ({"between": [0, 100]}, ("number", "explain")),
        ({"kind": "labels", "labels": ["a", "b"]}, ("labels", "explain")),
        ({"kind": "text"}, ("text", "explain")),
    ]
    for block, (kind, mode) in said:
        made = OwnConfig.model_validate({"prompt": "x", **block})
        assert (made.kind, made.mode) == (kind, mode)


def asked(tmp_path: Path, text: str, mode: str, **block: Any) -> str:
    """What a model is asked by a prompt file with this text."""
    file = tmp_path / "prompt.jinja"
    file.write_text(text)
    tag = columns.tags(own(clarity={**CLEAR, **block, "prompt": str(file)}))["clarity"]
    prompt = template(prompt_text(tag, "label"))
    return ask(tag, "Do it.", mode, prompt, "Done.")


def test_a_list_of_labels_is_looked_into_and_compared_with_nothing() -> None:
    known = columns.measures(own(subjects={**CLEAR, "kind": "labels"}))
    frame = pl.DataFrame({"subjects": [["low"], ["mid", "low"], [], None]})

    def said(where: str) -> list[bool | None]:
        arm = ArmConfig.model_validate({"where": where, "choose": "all"})
        return frame.select(resolve("a", arm, None, known).keeps.alias("x"))["x"].to_list()

    assert said("ARRAY_CONTAINS(subjects, 'low')") == [True, True, False, None]
    assert said("NOT ARRAY_CONTAINS(subjects, 'mid')") == [True, False, True, None]
    for where, problem in (
        ("ARRAY_CONTAINS(subjects, 'hihg')", "did you mean 'high'"),
        ("subjects = 'low'", "is a list; ask ARRAY_CONTAINS"),
        ("subjects IN ('low')", "is a list; ask ARRAY_CONTAINS"),
        ("subjects = subjects", "cannot be compared"),
        ("ARRAY_CONTAINS(difficulty, 'easy')", "`difficulty` is no list but"),
        ("ARRAY_CONTAINS(subjects, intent)", "a fixed label"),
    ):
        with pytest.raises(UserError, match=problem):
            said(where)


def test_how_to_answer_is_put_below_a_prompt_that_does_not_say_it(tmp_path: Path) -> None:
    plain = "How clear? {{ instruction }}"
    assert asked(tmp_path, plain, "label").endswith("1 = low\n2 = mid\n3 = high")
    assert '"clarity", one of low, mid, high.' in asked(tmp_path, plain, "explain")
    number = {"labels": [], "between": [1, 5], "kind": "number"}
    assert asked(tmp_path, plain, "label", **number).endswith("one digit from 1 to 5.")
    text = {"labels": [], "kind": "text"}
    assert asked(tmp_path, plain, "explain", **text).endswith('"clarity", a short text.')
    several = {"kind": "labels"}
    assert "all that fit of: low, mid, high." in asked(tmp_path, plain, "explain", **several)
    own_words = "{{ instruction }} {% if mode == 'label' %}say {{ codes }}{% endif %}"
    assert asked(tmp_path, own_words, "label") == "Do it. say 123"
    pair = "{{ instruction }} / {{ response }}"
    assert asked(tmp_path, pair, "label", reads="response").startswith("Do it. / Done.")


@pytest.mark.parametrize(
    ("text", "reads", "problem"),
    [
        ("How clear?", "instruction", "never shows the instruction"),
        ("{{ instruction }}", "response", "never shows the response"),
        ("{{ instruction }} {{ response }}", "instruction", "say `reads: response`"),
        ("{{ instructoin }}", "instruction", "did you mean 'instruction'"),
        ("{{ instruction }} {% if %}", "instruction", "no valid Jinja"),
    ],
)
def test_a_prompt_that_does_not_show_what_is_judged_is_refused(
    tmp_path: Path, text: str, reads: str, problem: str
) -> None:
    with pytest.raises(UserError, match=problem):
        asked(tmp_path, text, "label", reads=reads)


def test_a_file_with_own_columns_is_filtered_by_them(tmp_path: Path) -> None:
    rows = {"id": ["a", "b", "c"], "response": ["x"] * 3, "clarity": ["low", "high", "odd"]}
    pl.DataFrame(rows).write_parquet(tmp_path / "rows.parquet")
    known = columns.measures(own(clarity=CLEAR))
    arm = ArmConfig.model_validate({"where": "clarity_rank > 1", "choose": "all"})
    data = tagged.read(tmp_path / "rows.parquet", [resolve("a", arm, None, known)])
    assert data.frame["clarity_rank"].to_list() == [1.0, 3.0, None]


# -- in a recipe -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_recipe.model(tmp_path_factory.mktemp("model") / "llama")


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with ScriptedServer(small_recipe.answer) as made:
        yield made


def recipe(folder: Path, llama: Path, url: str, **changes: Any) -> Path:
    """A recipe with a column of each kind, chosen by them."""
    (folder / "clarity.jinja").write_text("How clear is this?\n{{ instruction }}")
    (folder / "pair.jinja").write_text("{{ instruction }}\nIs it served by:\n{{ response }}")
    prompt, pair = str(folder / "clarity.jinja"), str(folder / "pair.jinja")
    tags = {
        "clarity": {"prompt": prompt, "labels": ["low", "mid", "high"], "check": 5},
        "fields": {"prompt": prompt, "labels": ["law", "art", "sport"], "kind": "labels"},
        "age": {"prompt": prompt, "between": [0, 9]},
        "served": {"prompt": pair, "kind": "text", "reads": "response"},
    }
    arms = {
        "clear": {
            "where": "clarity >= 'mid' AND served LIKE '%a%' AND NOT ARRAY_CONTAINS(fields, 'law')",
            "choose": "top(age)",
            "budget": {"rows": 5},
            "allow_short": True,
        },
        "mixed": {"choose": "balanced(clarity, clarity_rank)", "budget": {"rows": 6}},
    }
    given = {"synth__tags__own": tags, "arms": arms, "random_arm": False}
    return small_recipe.recipe(folder, llama, url, **given, **changes)


def test_own_columns_are_measured_chosen_by_shown_exported_and_asked_about(
    tmp_path: Path, llama: Path, server: ScriptedServer
) -> None:
    path = recipe(tmp_path, llama, server.url)
    loaded = load(path)
    graph.run(loaded, until="select")
    folder = tmp_path / "store" / "recipes" / "small"
    funnel = json.loads((folder / "select" / "clear" / "funnel.json").read_text())
    assert [step["predicate"] for step in funnel["steps"]] == [
        "clarity >= 'mid'",
        "served matches 'a'",
        "NOT fields holds 'law'",
    ]
    assert funnel["steps"][2]["stopped"] > 0
    pool = pl.read_parquet(folder / "measure" / "pool.parquet")
    assert pool.schema["clarity"] == pl.Enum(["low", "mid", "high"])
    assert pool["clarity_rank"].is_between(1, 3).all() and pool["age"].is_between(0, 9).all()
    chosen = pl.read_parquet(folder / "select" / "mixed" / "selection.parquet")
    shares = pool.filter(pl.col("id").is_in(chosen["id"].implode()))["clarity"].value_counts()
    assert shares["count"].to_list() == [2, 2, 2]
    agreed = json.loads((folder / "measure" / "tag_agreement.json").read_text())
    assert agreed["clarity"]["n"] == 5 and "within_one" in agreed["clarity"]
    exported = pl.concat(recipe_rows.of_recipe(loaded, "clear", None).frames)
    assert {"clarity", "clarity_rank", "age", "served"} <= {*exported.columns}
    told = "\n".join(why.explain(loaded, exported["id"][0]))
    assert "clarity: " in told and "age: " in told
    build({"measure": folder / "measure"}, tmp_path, loaded.recipe.model_dump(mode="json"))
    page = (tmp_path / "report.html").read_text()
    assert "fields: share of rows by label" in page
    assert "clarity: share of rows by label" in page and "age: share of rows by value" in page
    before = len(server.requests)
    graph.run(loaded, until="select")
    assert len(server.requests) == before


def test_exported_own_columns_come_in_again_and_only_for_the_labels_they_were_made_for(
    tmp_path: Path, llama: Path, server: ScriptedServer
) -> None:
    loaded = load(recipe(tmp_path, llama, server.url))
    graph.run(loaded, until="select")
    target = export_data.Target(tmp_path / "rows.parquet", "magpie", None, None, False)
    export_data.main(str(loaded.source.path), target)
    rows = pl.read_parquet(tmp_path / "rows.parquet")
    imported: dict[str, Any] = {"import": str(tmp_path / "rows.parquet")}
    changes = ["synth.heldout=0", f"synth.rows={json.dumps(imported)}", "arms.mixed=null"]
    asked = len(server.requests)
    where = "arms.clear.where=\"clarity >= 'mid'\""
    graph.run(load(loaded.source.path, [*changes, where]), until="select")
    assert len(server.requests) - asked <= 5, "the labels came with the rows; `check` asked five"
    other = 'synth.tags.own.clarity.labels=["low", "mid", "top"]'
    graph.run(load(loaded.source.path, [*changes, where, other]), until="select")
    pool = pl.read_parquet(tmp_path / "store" / "recipes" / "small" / "measure" / "pool.parquet")
    lost = pool["clarity"].null_count() - rows["clarity"].null_count()
    assert lost == (rows["clarity"] == "high").sum() > 0
    assert (pool["status:clarity"] == "failed").sum() == pool["clarity"].null_count()


def test_a_column_that_a_recipe_gains_is_looked_for_in_rows_imported_before(
    tmp_path: Path, llama: Path, server: ScriptedServer
) -> None:
    (tmp_path / "clarity.jinja").write_text("{{ instruction }}")
    rows = {"id": ["a", "b"], "instruction": ["x y", "z"], "response": ["1", "2"]}
    pl.DataFrame({**rows, "clarity": ["low", "high"]}).write_parquet(tmp_path / "rows.parquet")
    changes = {"synth__rows": {"import": str(tmp_path / "rows.parquet")}, "synth__heldout": 0}
    arm = {"a": {"choose": "longest", "budget": {"rows": 1}}}
    path = small_recipe.recipe(tmp_path, llama, server.url, **changes, arms=arm, random_arm=False)
    graph.run(load(path), until="select")
    block = {**CLEAR, "prompt": str(tmp_path / "clarity.jinja")}
    overrides = [f"synth.tags.own.clarity={json.dumps(block)}", "arms.a.where=\"clarity = 'high'\""]
    graph.run(load(path, overrides), until="select")
    assert not server.requests


def test_the_shipped_table_is_what_there_is_without_own_columns() -> None:
    assert columns.measures(TagsConfig()) is SHIPPED
