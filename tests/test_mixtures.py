"""Arms that mix arms, data and other recipes' selections: exact shares, no row twice, where each
row comes from."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml

from core.errors import UserError
from recipes import schema
from recipes.exchange import export_data
from recipes.exchange.export_data import Target
from recipes.report import page
from recipes.stages import graph
from tests import small_recipe
from tests.scripted_server import ScriptedServer
from tests.test_data_arms import ids, recipe, run, seeded, theirs


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_recipe.model(tmp_path_factory.mktemp("model") / "llama")


@pytest.fixture(scope="module")
def server() -> Iterator[ScriptedServer]:
    with ScriptedServer(small_recipe.answer) as running:
        yield running


def two(folder: Path) -> tuple[str, str]:
    """Two sets whose ids are the same and whose texts are not."""
    return str(theirs(folder / "a.jsonl", 60)), str(theirs(folder / "b.jsonl", 60, topic="sea"))


def origin(folder: Path, arm: str) -> pl.DataFrame:
    return pl.read_parquet(folder / f"store/recipes/small/select/{arm}/rows.parquet")


def told(folder: Path, arm: str) -> dict[str, Any]:
    path = folder / f"store/recipes/small/select/{arm}/mixture.json"
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def instructions(outcome: graph.Outcome, arm: str) -> list[str]:
    rows = pl.read_parquet(outcome.results[f"select/{arm}"].path / "selection.parquet")
    return [turns[0]["content"] for turns in rows["messages"].to_list()]


@pytest.mark.parametrize(("rows", "first", "second"), [(10, 7, 3), (11, 8, 3), (33, 23, 10)])
def test_a_mixture_of_an_arm_and_data_has_exactly_its_shares(
    tmp_path: Path, llama: Path, server: ScriptedServer, rows: int, first: int, second: int
) -> None:
    a, b = two(tmp_path)
    arms = {
        "long": {"data": a, "choose": "longest", "budget": {"rows": 40}},
        "mixed": {
            "mix": {"long": 0.7, "sea": {"share": 0.3, "data": b, "choose": "longest"}},
            "budget": {"rows": rows},
        },
    }
    made = run(recipe(tmp_path, llama, server, arms=arms))
    rows_of = origin(tmp_path, "mixed")
    assert Counter(rows_of["source"]) == {"long": first, "sea": second}
    assert ids(made, "mixed") == rows_of["id"].to_list() and rows_of["id"].n_unique() == rows
    assert ids(made, "long")[:first] == rows_of.filter(source="long")["source_id"].to_list()
    assert [int(n) for n in rows_of.filter(source="sea")["source_id"]] == list(
        range(59, 59 - second, -1)
    ), "the part's own order"


def test_a_text_that_two_parts_hold_is_taken_once_and_the_share_is_filled_from_further_rows(
    tmp_path: Path, llama: Path, server: ScriptedServer
) -> None:
    a = str(theirs(tmp_path / "a.jsonl", 60))
    same = str(theirs(tmp_path / "same.jsonl", 80))
    arms = {
        "mixed": {
            "mix": {
                "a": {"share": 0.5, "data": a, "choose": "all"},
                "same": {"share": 0.5, "data": same, "choose": "all"},
            },
            "budget": {"rows": 60},
        }
    }
    made = run(recipe(tmp_path, llama, server, arms=arms))
    texts = instructions(made, "mixed")
    assert len(texts) == len(set(texts)) == 60
    parts = {part["name"]: part for part in told(tmp_path, "mixed")["sources"]}
    assert (parts["a"]["rows"], parts["same"]["rows"]) == (30, 30)
    assert parts["same"]["twice"] == 30


def test_a_part_measures_no_more_rows_than_its_share_and_more_where_others_took_them(
    tmp_path: Path, llama: Path, server: ScriptedServer
) -> None:
    big = str(theirs(tmp_path / "big.jsonl", 900))
    first = str(theirs(tmp_path / "first.jsonl", 900))
    where = "input_quality >= 'very poor'"
    arms = {
        "mixed": {
            "mix": {
                "few": {"share": 0.1, "data": big, "where": where},
                "many": {"share": 0.9, "data": first, "where": "response_length > 0"},
            },
            "budget": {"rows": 200},
        }
    }
    before = len(server.requests)
    run(recipe(tmp_path, llama, server, arms=arms))
    assert len(server.requests) - before < 300, "20 rows are wanted of 900"
    assert Counter(origin(tmp_path, "mixed/0")["source"]) == {"few": 20, "many": 180}


def test_a_short_part_is_an_error_unless_the_mixture_allows_it(
    tmp_path: Path, llama: Path, server: ScriptedServer
) -> None:
    a, _ = two(tmp_path)
    few = str(theirs(tmp_path / "few.jsonl", 5, topic="lake"))
    mixed: dict[str, Any] = {
        "mix": {
            "a": {"share": 0.5, "data": a},
            "lake": {"share": 0.5, "data": few},
        },
        "budget": {"rows": 20},
    }
    path = recipe(tmp_path, llama, server, arms={"mixed": mixed})
    with pytest.raises(UserError, match=r"recipe.yaml:\d+: arms.mixed.mix.lake: .* 10 rows .* 5;"):
        run(path)
    mixed["allow_short"] = True
    made = run(recipe(tmp_path, llama, server, arms={"mixed": mixed}))
    assert len(ids(made, "mixed/0")) == 15
    lake = told(tmp_path, "mixed/0")["sources"][1]
    assert (lake["rows"], lake["short"]) == (5, 5)


def test_tokens_of_each_part_come_within_one_row_of_its_share(
    tmp_path: Path, llama: Path, server: ScriptedServer
) -> None:
    from core.models import resolve
    from recipes.stages.tokens import count_tokens

    a, b = two(tmp_path)
    parts = {"a": {"share": 0.6, "data": a}, "b": {"share": 0.4, "data": b}}
    arms = {"mixed": {"mix": parts, "budget": {"tokens": 3000}}}
    path = seeded(tmp_path, recipe(tmp_path, llama, server, arms=arms), 0)
    made = run(path)
    loaded = schema.load(path).recipe
    assert loaded.train is not None
    rows = pl.read_parquet(made.results["select/mixed/0"].path / "selection.parquet")
    counts = count_tokens(loaded.train, resolve(str(llama)), rows)
    by_part: Counter[str] = Counter()
    for name, tokens in counts.items():
        by_part[name.partition(":")[0]] += tokens
    longest = max(counts.values())
    assert 1800 - 2 * longest < by_part["a"] <= 1800 and 1200 - 2 * longest < by_part["b"] <= 1200
    assert {
        part["name"]: part["amount"] for part in told(tmp_path, "mixed/0")["sources"]
    } == by_part


def test_a_mixture_is_seeded_as_its_parts_are(
    tmp_path: Path, llama: Path, server: ScriptedServer
) -> None:
    a, b = two(tmp_path)
    fixed = {"share": 0.5, "data": b, "choose": "longest"}
    arms = {
        "long": {"data": a, "choose": "longest", "budget": {"rows": 20}},
        "drawn": {"data": a, "budget": {"rows": 20}},
        "same": {"mix": {"long": 0.5, "b": fixed}, "budget": {"rows": 10}},
        "anew": {"mix": {"drawn": 0.5, "b": fixed}, "budget": {"rows": 10}},
    }
    made = run(seeded(tmp_path, recipe(tmp_path, llama, server, arms=arms), 0, 1))
    assert "select/same" in made.results and "select/anew/1" in made.results
    zero, one = (set(ids(made, f"anew/{seed}")) for seed in (0, 1))
    assert {name for name in zero if name.startswith("b:")} == {
        name for name in one if name.startswith("b:")
    }
    assert {int(n.partition(":")[2]) for n in zero if n.startswith("drawn:")} == {
        int(n) for n in ids(made, "drawn/0")[:5]
    }
    assert zero != one


def test_mixtures_of_mixtures_name_the_source_within_the_source(
    tmp_path: Path, llama: Path, server: ScriptedServer
) -> None:
    a, b = two(tmp_path)
    arms = {
        "outer": {
            "mix": {"inner": 0.5, "b": {"share": 0.5, "data": b, "licence": "mit"}},
            "budget": {"rows": 12},
        },
        "inner": {
            "mix": {
                "a": {"share": 0.5, "data": a, "licence": "apache-2.0"},
                "b": {"share": 0.5, "data": b, "licence": "cc-by-4.0"},
            },
            "budget": {"rows": 6},
        },
    }
    run(recipe(tmp_path, llama, server, arms=arms))
    rows = origin(tmp_path, "outer/0")
    pairs = Counter(rows.select("source", "licence").iter_rows())
    assert pairs == {
        ("inner/a", "apache-2.0"): 3,
        ("inner/b", "cc-by-4.0"): 3,
        ("b", "mit"): 6,
    }


def test_a_rows_licence_is_its_own_else_that_of_the_datas_card(
    tmp_path: Path, llama: Path, server: ScriptedServer
) -> None:
    folder = tmp_path / "carded"
    folder.mkdir()
    (folder / "README.md").write_text("---\nlicense: odc-by\n---\n# A set\n")
    own = theirs(folder / "a.jsonl", 20, license=lambda n: "cc0-1.0" if n % 2 else None)
    b = str(theirs(tmp_path / "b.jsonl", 20, topic="sea"))
    parts = {"a": {"share": 0.5, "data": str(own), "choose": "all"}, "b": {"share": 0.5, "data": b}}
    run(recipe(tmp_path, llama, server, arms={"m": {"mix": parts, "budget": {"rows": 20}}}))
    rows = origin(tmp_path, "m/0")
    assert Counter(rows.select("source", "licence").iter_rows()) == {
        ("a", "odc-by"): 5,
        ("a", "cc0-1.0"): 5,
        ("b", None): 10,
    }


def test_what_the_recipe_holds_out_comes_in_by_no_part(
    tmp_path: Path, llama: Path, server: ScriptedServer
) -> None:
    a, b = two(tmp_path)
    parts = {"a": {"share": 0.5, "data": a}, "b": {"share": 0.5, "data": b}}
    arms = {"m": {"mix": parts, "budget": {"rows": 60}}}
    path = recipe(tmp_path, llama, server, arms=arms, synth__rows={"import": a}, synth__heldout=0.3)
    made = run(path)
    held = pl.read_parquet(made.results["select/heldout"].path / "heldout.parquet")
    texts = {turns[0]["content"] for turns in held["messages"].to_list()}
    assert len(texts) > 5 and not texts & set(instructions(made, "m/0"))


def test_another_recipes_selection_is_an_arm_and_a_part(
    tmp_path: Path, llama: Path, server: ScriptedServer
) -> None:
    a, b = two(tmp_path)
    first = {"long": {"data": a, "choose": "longest", "budget": {"rows": 20}, "licence": "mit"}}
    other = recipe(tmp_path / "other", llama, server, arms=first, name="other")
    arms = {
        "theirs": {"recipe": str(other), "arm": "long", "budget": {"rows": 5}},
        "m": {
            "mix": {
                "old": {"share": 0.5, "recipe": str(other), "arm": "long"},
                "b": {"share": 0.5, "data": b, "choose": "longest"},
            },
            "budget": {"rows": 10},
        },
    }
    path = recipe(tmp_path, llama, server, arms=arms)
    waiting = {s.name: s.why for s in graph.plan(schema.load(path)).steps}
    assert waiting["select/theirs/0"] == f"depends on arm long of {other}"
    with pytest.raises(UserError, match="has no finished selection"):
        run(path)
    run(other)
    made = run(path)
    assert [int(n) for n in ids(made, "theirs/0")] == [59, 58, 57, 56, 55]
    rows = origin(tmp_path, "m/0")
    assert Counter(rows.select("source", "licence").iter_rows()) == {
        ("old", "mit"): 5,
        ("b", None): 5,
    }


def test_a_plan_and_a_second_run_reuse_a_mixture_without_reading_its_parts(
    tmp_path: Path, llama: Path, server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    from recipes.stages.sets import parts

    a, b = two(tmp_path)
    arms = {
        "long": {"data": a, "choose": "longest", "budget": {"rows": 20}},
        "m": {"mix": {"long": 0.5, "b": {"share": 0.5, "data": b}}, "budget": {"rows": 10}},
    }
    path = recipe(tmp_path, llama, server, arms=arms)
    before = {s.name: s.state for s in graph.plan(schema.load(path)).steps}
    assert before["select/m/0"] == "waits"
    made = run(path)
    content = ids(made, "m/0")

    def unread(_: Path) -> Iterator[pl.DataFrame]:
        raise AssertionError("a part was read")

    monkeypatch.setattr(parts, "_read", unread)
    assert {s.name: s.state for s in graph.plan(schema.load(path)).steps}["select/m/0"] == "reuse"
    assert ids(run(path), "m/0") == content
    monkeypatch.undo()
    arms["m"]["budget"] = {"rows": 12}
    again = recipe(tmp_path, llama, server, arms=arms)
    assert {s.name: s.state for s in graph.plan(schema.load(again)).steps}["select/m/0"] == "run"
    assert len(ids(run(again), "m/0")) == 12


def test_an_arm_of_the_pool_mixes_with_data(
    tmp_path: Path, llama: Path, server: ScriptedServer
) -> None:
    _, b = two(tmp_path)
    arms = {
        "good": {"where": "input_quality >= 'average'", "choose": "longest", "budget": {"rows": 9}},
        "m": {"mix": {"good": 0.7, "b": {"share": 0.3, "data": b}}, "budget": {"rows": 10}},
    }
    made = run(recipe(tmp_path, llama, server, arms=arms, synth__rows=40))
    rows = origin(tmp_path, "m/0")
    assert Counter(rows["source"]) == {"good": 7, "b": 3}
    assert set(rows.filter(source="good")["source_id"]) == set(ids(made, "good")[:7])


@pytest.fixture(scope="module")
def exported(
    tmp_path_factory: pytest.TempPathFactory, llama: Path, server: ScriptedServer
) -> tuple[Path, Path]:
    """(folder, recipe) of a mixture of a pool's arm, an arm over tagged data, and more data."""
    folder = tmp_path_factory.mktemp("exported")
    a = theirs(folder / "a.jsonl", 30, input_quality=lambda n: ["poor", "good"][n % 2])
    b = theirs(folder / "b.jsonl", 30, topic="sea", source=lambda n: "GPT", license=lambda n: "mit")
    sea = {"share": 0.25, "data": str(b), "choose": "longest"}
    arms = {
        "good": {"where": "input_quality >= 'average'", "choose": "longest", "budget": {"rows": 9}},
        "tagged": {
            "data": str(a),
            "where": "input_quality >= 'good' AND language = 'EN'",
            "budget": {"rows": 9},
            "choose": "longest",
            "licence": "apache-2.0",
        },
        "m": {"mix": {"good": 0.5, "tagged": 0.25, "sea": sea}, "budget": {"rows": 12}},
    }
    path = recipe(folder, llama, server, arms=arms, synth__rows=40)
    run(path)
    return folder, path


def test_an_arm_over_data_is_exported_with_what_was_measured_of_it(
    exported: tuple[Path, Path], tmp_path: Path
) -> None:
    folder, path = exported
    export_data.main(str(path), Target(tmp_path / "out", "25"), arm="tagged")
    rows = pl.read_parquet(tmp_path / "out/data/*.parquet")
    chosen = pl.read_parquet(folder / "store/recipes/small/select/tagged/selection.parquet")
    assert set(rows["uuid"]) == set(chosen["id"]) and len(rows) == 9
    assert set(rows["language"]) == {"EN"} and set(rows["input_quality"]) == {"good"}
    assert set(rows["licence"]) == {"apache-2.0"}
    card = (tmp_path / "out/README.md").read_text()
    assert yaml.safe_load(card.split("---\n")[1])["license"] == "apache-2.0"
    assert "columns measured by this recipe: language" in card


def test_new_answers_are_exported_with_who_wrote_them(
    tmp_path: Path, llama: Path, server: ScriptedServer
) -> None:
    a, _ = two(tmp_path)
    arms = {"new": {"data": a, "answers": "all", "budget": {"rows": 5}}}
    path = recipe(tmp_path, llama, server, arms=arms)
    made = run(path)
    export_data.main(str(path), Target(tmp_path / "out", "magpie"), arm="new")
    rows = pl.read_parquet(tmp_path / "out/data/*.parquet")
    chosen = pl.read_parquet(made.results["select/new/0"].path / "selection.parquet")
    said = {row["id"]: row["messages"][1]["content"] for row in chosen.to_dicts()}
    assert dict(rows.select("id", "response").iter_rows()) == said
    assert not rows["response"].str.starts_with("Fact").any()
    card = (tmp_path / "out/README.md").read_text()
    assert f"- responder: {llama}" in card and "- it wrote: all answers" in card


@pytest.mark.parametrize("form", ["magpie", "25"])
def test_a_mixture_is_exported_with_source_and_licence_of_every_row(
    exported: tuple[Path, Path], tmp_path: Path, form: str
) -> None:
    folder, path = exported
    export_data.main(str(path), Target(tmp_path / "out", form), arm="m")
    rows = pl.read_parquet(tmp_path / "out/data/*.parquet")
    name = "uuid" if form == "25" else "id"
    told = Counter(rows.select("source", "licence").iter_rows())
    assert told == {("good", None): 6, ("tagged", "apache-2.0"): 3, ("sea", "mit"): 3}
    assert set(rows[name]) == set(origin(folder, "m")["id"])
    chosen = pl.read_parquet(folder / "store/recipes/small/select/m/selection.parquet")
    texts = {row["id"]: [turn["content"] for turn in row["messages"]] for row in chosen.to_dicts()}
    for row in rows.to_dicts():
        assert [row["instruction"], row["response"]] == texts[row[name]]
    assert rows.filter(pl.col("source") != "sea")["input_quality"].null_count() == 0


def test_the_card_of_a_mixture_lists_its_sources_and_states_no_licence_of_the_whole(
    exported: tuple[Path, Path], tmp_path: Path
) -> None:
    _, path = exported
    export_data.main(str(path), Target(tmp_path / "out", "messages"), arm="m")
    card = (tmp_path / "out/README.md").read_text()
    assert "| tagged | arm tagged | 0.25 | 3 | 3 | apache-2.0 |" in card
    assert "| good | arm good | 0.5 | 6 | 6 | not stated |" in card
    assert "license" not in yaml.safe_load(card.split("---\n")[1])


def test_a_mixture_exported_to_one_file_is_data_of_another_recipe_with_its_licences(
    exported: tuple[Path, Path], tmp_path: Path, llama: Path, server: ScriptedServer
) -> None:
    _, path = exported
    export_data.main(str(path), Target(tmp_path / "m.parquet", "magpie"), arm="m")
    _, b = two(tmp_path)
    parts = {
        "old": {"share": 0.6, "data": str(tmp_path / "m.parquet"), "choose": "all"},
        "b": {"share": 0.4, "data": b, "choose": "all"},
    }
    run(recipe(tmp_path, llama, server, arms={"m": {"mix": parts, "budget": {"rows": 20}}}))
    licences = Counter(origin(tmp_path, "m").filter(source="old")["licence"])
    assert licences == {None: 6, "apache-2.0": 3, "mit": 3}


def test_the_report_shows_what_each_part_of_a_mixture_gave(
    exported: tuple[Path, Path], tmp_path: Path
) -> None:
    folder, _ = exported
    below = folder / "store/recipes/small"
    inputs = {f"select/{arm}": below / "select" / arm for arm in ("good", "tagged", "m")}
    page.build({**inputs, "measure": below / "measure"}, tmp_path, {"name": "small"})
    html = (tmp_path / "report.html").read_text()
    assert "m: a mixture of 12 rows" in html and "apache-2.0" in html
    assert "m: nothing was selected" not in html
    assert html.count("3 of 3") == 2 and "6 of 6" in html
