"""Recipes: every shipped one loads, and every mistake is one sentence with file, line, key and the
nearest valid name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from core.errors import UserError
from recipes.schema import json_schema, load, shipped, with_random
from synth.filters.rule import resolve

MINIMAL = """\
name: small
synth:
  teacher: {model: embedded/SmolLM2-135M-Instruct}
  rows: 10
arms:
  good:
    where: "input_quality >= 'good'"
    budget: {rows: 3}
"""


def write(folder: Path, text: str, name: str = "recipe.yaml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


@pytest.mark.parametrize("path", shipped(), ids=lambda p: p.stem)
def test_every_shipped_recipe_loads_and_its_filters_resolve(path: Path) -> None:
    loaded = load(path)
    for name, arm in with_random(loaded.recipe).items():
        if arm.kind == "pool":
            assert resolve(name, arm).budget is not None


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        (
            "  rows: 10",
            "  rowz: 10",
            "recipe.yaml:4: unknown key `synth.rowz`; did you mean 'rows'?",
        ),
        ("  rows: 10", "  rows: -1", "recipe.yaml:4"),
        (
            "budget: {rows: 3}",
            "budgets: {rows: 3}",
            "recipe.yaml:8: unknown key `arms.good.budgets`; did you mean 'budget'?",
        ),
        (
            "budget: {rows: 3}",
            "budget: {row: 3}",
            "recipe.yaml:8: unknown key `arms.good.budget.row`; did you mean 'rows'?",
        ),
        (
            "{model: embedded",
            "{modle: x, model: embedded",
            "unknown key `synth.teacher.modle`; did you mean 'model'?",
        ),
        ("name: small", "name: small\nname: twice", "recipe.yaml:2: `name` is written twice"),
        (
            "name: small",
            "baseline: goood\nname: small",
            "no arm is called 'goood'; did you mean 'good'?",
        ),
        ("arms:", "arms: [", "not valid YAML"),
        ("name: small", "", "`name` is missing"),
    ],
)
def test_a_mistake_is_one_sentence_with_its_place(
    tmp_path: Path, old: str, new: str, says: str
) -> None:
    path = write(tmp_path, MINIMAL.replace(old, new))
    with pytest.raises(UserError) as error:
        load(path)
    assert says in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        (
            "'good'\"",
            "'goood'\"",
            "recipe.yaml:7: arms.good.where: 'goood' is not a label of `input_quality`; "
            "did you mean 'good'?",
        ),
        (
            "input_quality >=",
            "input_qualty >=",
            "recipe.yaml:7: arms.good.where: unknown column `input_qualty`; "
            "did you mean 'input_quality'?",
        ),
        ("SmolLM2-135M-Instruct", "SmolLM2-135M-Instrct", "recipe.yaml:3: synth.teacher.model: "),
    ],
)
def test_unknown_labels_columns_and_models_name_file_and_line(
    tmp_path: Path, old: str, new: str, says: str
) -> None:
    from recipes.stages.graph import plan

    with pytest.raises(UserError) as error:
        plan(load(write(tmp_path, MINIMAL.replace(old, new)), [f"store={tmp_path}"]))
    assert says in str(error.value)


@pytest.mark.process
def test_the_command_line_exits_2_with_one_line(tmp_path: Path) -> None:
    import subprocess
    import sys

    path = write(tmp_path, MINIMAL.replace("rows: 10", "rowz: 10"))
    done = subprocess.run(
        [sys.executable, "-m", "recipes.cli", "plan", str(path)], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr.strip().count("\n") == 0 and "Traceback" not in done.stderr


def test_an_override_replaces_one_value_and_is_named_in_errors(tmp_path: Path) -> None:
    path = write(tmp_path, MINIMAL)
    assert load(path, ["synth.rows=99"]).recipe.synth.rows == 99
    with pytest.raises(UserError, match=r"command line: unknown key `synth\.rowz`"):
        load(path, ["synth.rowz=99"])


def test_extends_merges_one_level_deep(tmp_path: Path) -> None:
    write(tmp_path, MINIMAL, "base.yaml")
    child = load(
        write(tmp_path, "extends: base.yaml\nname: child\narms:\n  good: {budget: {rows: 5}}\n")
    ).recipe
    assert child.arms["good"].budget is not None and child.arms["good"].budget.rows == 5
    assert child.arms["good"].where == "input_quality >= 'good'"


def test_extends_of_an_extending_recipe_is_refused(tmp_path: Path) -> None:
    write(tmp_path, MINIMAL, "base.yaml")
    write(tmp_path, "extends: base.yaml\nname: middle\n", "middle.yaml")
    with pytest.raises(UserError, match="one level"):
        load(write(tmp_path, "extends: middle.yaml\nname: child\n"))


def test_the_store_may_lie_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load(write(tmp_path, MINIMAL), ["store=~/runs"]).recipe.store == str(tmp_path / "runs")
    with pytest.raises(UserError, match=r"`store`: there is no such user's home: ~nobody-here/x"):
        load(write(tmp_path, MINIMAL), ["store=~nobody-here/x"])


def test_extends_names_a_shipped_recipe_too(tmp_path: Path) -> None:
    """Also one that extends another; a file beside it of that name comes first."""
    for name in ("smollm2-filter-comparison", "llama3-8b-magpie-air-300k", "demo.yaml"):
        child = load(write(tmp_path, f"extends: {name}\nname: child\nsynth: {{rows: 77}}\n"))
        assert child.recipe.synth.rows == 77
        shipped = load(name.removesuffix(".yaml")).recipe
        assert child.recipe.arms == shipped.arms and child.recipe.train == shipped.train
    write(tmp_path, MINIMAL, "demo.yaml")
    child = load(write(tmp_path, "extends: demo.yaml\nname: child\n"))
    assert set(child.recipe.arms) == set(load(tmp_path / "demo.yaml").recipe.arms)
    with pytest.raises(UserError, match=r"recipe.yaml:1: `extends` .* did you mean 'demo'\?"):
        load(write(tmp_path, "extends: demoo\nname: child\n"))


@pytest.mark.parametrize("given", ["[x]", "x", "arc_easy"])
def test_tasks_without_their_block_are_told_of_it(tmp_path: Path, given: str) -> None:
    with pytest.raises(UserError, match=r"`eval.tasks`: .* `tasks` has the names: \{tasks: \["):
        load(write(tmp_path, MINIMAL), [f"eval.tasks={given}"])


def test_a_random_arm_of_equal_size_is_added_unless_declined(tmp_path: Path) -> None:
    recipe = load(write(tmp_path, MINIMAL)).recipe
    added = with_random(recipe)["random"]
    assert (
        added.budget is not None
        and added.budget.rows == 3
        and added.choose == "hash_order"
        and added.where is None
    )
    assert list(with_random(recipe.model_copy(update={"random_arm": False}))) == ["good"]


def test_each_distinct_budget_gets_its_own_random_arm(tmp_path: Path) -> None:
    text = MINIMAL + "  more:\n    where: \"input_quality >= 'good'\"\n    budget: {rows: 6}\n"
    assert list(with_random(load(write(tmp_path, text)).recipe)) == [
        "good",
        "more",
        "random-3-rows",
        "random-6-rows",
    ]


def test_an_explicit_random_arm_is_not_doubled() -> None:
    assert sorted(with_random(load("llama3-8b-magpie-pro-300k").recipe)) == [
        "instruct",
        "magpie-pro",
        "random",
    ]


def test_the_json_schema_documents_its_fields() -> None:
    schema = json_schema()
    assert "description" in schema["$defs"]["SynthConfig"]["properties"]["heldout"]
    json.dumps(schema)
