"""`magpie import` and `magpie export`: round trips that lose nothing, counts, shards, a recipe's
arms, cards, and a push to a hub on loopback."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml
from huggingface_hub import constants
from polars.testing import assert_frame_equal
from typer.testing import CliRunner

from core.errors import UserError
from recipes import schema
from recipes.cli import app
from recipes.exchange import export_data, import_data
from recipes.exchange.export_data import Target
from recipes.stages import graph
from synth.published import files
from synth.published.files import hub as hub_rows
from synth.published.rows import read as read_rows
from synth.published.rows import write as write_rows
from tests import small_recipe
from tests.loopback_hub import TOKEN, Fault, Hub, point_at
from tests.scripted_server import ScriptedServer
from tests.test_published import row23, row25

OLD, NEW = (
    {"input": "instruction", "output": "response"},
    {"instruction": "input", "response": "output"},
)


def renamed(row: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    """A row in the other naming, lengths and the sampling struct included."""
    more = {f"{a}_length": f"{b}_length" for a, b in names.items()}
    config = (
        {"gen_input_config": "gen_input_configs"}
        if "input" in row
        else {"gen_input_configs": "gen_input_config"}
    )
    similar = {"uuid": "conversation_id", "min_similar_uuid": "min_similar_conversation_id"}
    return {{**names, **more, **config, **similar}.get(k, k): v for k, v in row.items()}


def published_set(row: Any, names: dict[str, str] | None) -> pl.DataFrame:
    """A set with everything that published rows show: nulls, unknown labels, other columns, further
    turns, conversations of other words."""
    talk = [
        {"from": w, "value": v}
        for w, v in (("system", "s"), ("human", "a"), ("gpt", "b"), ("human", "c"), ("gpt", "d"))
    ]
    rows = [row(i) for i in range(40)]
    rows += [
        row(
            50,
            task_category=None,
            repeat_count=0,
            min_similar_uuid=None,
            instruct_reward=None,
            quality_explanation=None,
        ),
        row(51, input_quality="Good", task_category="Other"),
        row(52, conversations=talk),
        row(53, conversations=None),
        row(
            54,
            conversations=[
                {"from": "human", "value": "as typed"},
                {"from": "gpt", "value": "as answered"},
            ],
        ),
        row(
            55, conversations=[{"from": "user", "value": "q"}, {"from": "assistant", "value": "a"}]
        ),
    ]
    for number, each in enumerate(rows):
        each |= {"raw_instruction": f"raw {number}" if number % 3 else None, "status": "done"}
        each["min_neighbor_distance"] = number / 100
        each["source"] = {"shard": number, "tags": ["x"] * (number % 2)}
        each["instruct_reward"] = -4.5 + number if each["instruct_reward"] is not None else None
    frame = pl.from_dicts(
        [renamed(r, names) if names else r for r in rows], infer_schema_length=None
    )
    return frame.with_columns(
        pl.Series("extra_score", [0.5] * len(frame), dtype=pl.Float32),
        pl.Series("votes", [3] * len(frame), dtype=pl.Int16),
    )


@pytest.mark.parametrize("ending", [".parquet", ".jsonl"])
@pytest.mark.parametrize(
    ("form", "row", "names"),
    [("23", row23, None), ("23", row23, OLD), ("25", row25, None), ("25", row25, NEW)],
    ids=["23", "23-new", "25", "25-old"],
)
def test_import_filter_export_gives_back_every_value_type_and_name(
    tmp_path: Path, ending: str, form: str, row: Any, names: Any
) -> None:
    before = published_set(row, names)
    source = tmp_path / f"set{ending}"
    before.write_parquet(source) if ending == ".parquet" else before.write_ndjson(source)
    import_data.main(str(source), tmp_path / "ours.parquet", form="magpie", limit=None)
    ours = pl.read_parquet(tmp_path / "ours.parquet")
    assert ours["status"].to_list() == ["ok"] * len(before)
    rule = ["--where", "min_neighbor_distance > 0.055", "--choose", "all"]
    done = CliRunner().invoke(
        app,
        ["filter", str(tmp_path / "ours.parquet"), *rule, "--out", str(tmp_path / "kept.parquet")],
    )
    assert done.exit_code == 0, done.output
    export_data.main(str(tmp_path / "kept.parquet"), Target(tmp_path / f"again{ending}", form))
    read = pl.read_parquet if ending == ".parquet" else pl.read_ndjson
    expected = read(source).filter(pl.col("min_neighbor_distance") > 0.055)
    assert len(expected) == len(before) - 6 and expected["instruct_reward"].null_count() == 1
    again = read(tmp_path / f"again{ending}")
    name = expected.columns[0]
    assert_frame_equal(again.sort(name), expected.sort(name), check_exact=True)
    assert again.schema == expected.schema and again.columns == expected.columns


def test_one_form_becomes_the_other_with_what_it_has_no_place_for_behind(tmp_path: Path) -> None:
    pl.from_dicts([row25(i) for i in range(3)]).write_parquet(tmp_path / "new.parquet")
    write_rows(read_rows(tmp_path / "new.parquet"), tmp_path / "old.parquet", "23")
    old = pl.read_parquet(tmp_path / "old.parquet")
    assert old.columns[:23] == list(row23(0))[:3] + [c for c in old.columns[3:23]] and {
        "input",
        "output",
        "base_reward",
    } <= set(old.columns[:23])
    tagging = {
        "language",
        "other_task_category",
        "task_category_generator",
        "difficulty_generator",
        "quality_generator",
    }
    assert set(old.columns[23:]) == tagging | {
        "input_generator",
        "seed",
        "pre_query_template",
        "extract_input",
    }
    assert old["gen_input_config"].to_list() == [{"temperature": 1.0, "top_p": 1.0}] * 3 and set(
        old["pre_query_template"]
    ) == {"<|im_start|>user\n"}
    assert (
        old["input"].to_list() == [row25(i)["instruction"] for i in range(3)]
        and old["base_reward"].null_count() == 3
    )


def test_our_form_as_json_lines_is_read_again_with_its_types(tmp_path: Path) -> None:
    for name, rows in (
        ("plain", [row23(i) for i in range(3)]),
        ("odd", published_set(row23, None).to_dicts()),
    ):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
        import_data.main(
            str(tmp_path / f"{name}.jsonl"),
            tmp_path / f"{name}-ours.jsonl",
            form="magpie",
            limit=None,
        )
        write_rows(read_rows(tmp_path / f"{name}-ours.jsonl"), tmp_path / "again.jsonl", "23")
        assert_frame_equal(
            pl.read_ndjson(tmp_path / "again.jsonl"), pl.read_ndjson(tmp_path / f"{name}.jsonl")
        )


def test_import_prints_rows_failed_rows_and_failed_tags_by_reason(tmp_path: Path) -> None:
    rows = [
        row23(0),
        row23(0),
        row23(1, output="", conversations=[]),
        row23(2, input_quality="Good"),
        row23(3, difficulty=None),
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    done = CliRunner().invoke(
        app, ["import", str(tmp_path / "a.jsonl"), "--out", str(tmp_path / "out")]
    )
    assert done.exit_code == 0, done.output
    assert done.output.splitlines() == [
        "published set: input -> instruction, output -> response, "
        "conversations[from, value] -> messages",
        "5 rows read, 2 of them failed",
        "  1 x an id occurs twice (first: a.jsonl line 2)",
        "  1 x no response (first: a.jsonl line 3)",
        "failed tags (those rows are kept):",
        "  difficulty: 1 x null",
        "  input_quality: 1 x unknown label 'Good'",
        f"5 rows written to {tmp_path / 'out'}",
    ]
    found = pl.read_parquet(tmp_path / "out" / "part-00000.parquet")
    assert found["status"].to_list() == ["ok", "failed", "failed", "ok", "ok"], (
        "failed rows stay visible in our form"
    )


def test_a_sharded_folder_of_both_forms_is_imported_shard_by_shard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "set").mkdir()
    pl.from_dicts([row23(i) for i in range(5)]).write_parquet(tmp_path / "set" / "1.parquet")
    pl.from_dicts([row25(i) for i in range(5, 10)]).write_parquet(tmp_path / "set" / "2.parquet")
    monkeypatch.setattr(import_data, "SHARD", 2)
    import_data.shards(read_rows(tmp_path / "set", batch=2), tmp_path / "out", "magpie")
    files = sorted((tmp_path / "out").iterdir())
    assert [len(pl.read_parquet(f)) for f in files] == [2, 2, 1, 2, 2, 1]
    assert [i for f in read_rows(tmp_path / "out") for i in f["id"]] == [
        f"u{i}" for i in range(10)
    ], "our own form is read as it is"
    assert "language" not in pl.read_parquet(files[0]).columns, (
        "an absent column is unmeasured, not failed"
    )


def test_files_of_two_namings_are_exported_to_shards_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    published_set(row23, None).write_parquet(tmp_path / "set" / "1.parquet")
    frame = published_set(row23, OLD)
    frame.with_columns(pl.format("x{}", "conversation_id").alias("conversation_id")).write_parquet(
        tmp_path / "set" / "2.parquet"
    )
    import_data.shards(read_rows(tmp_path / "set"), tmp_path / "out", "23")
    first, second = (pl.read_parquet(f) for f in sorted((tmp_path / "out").iterdir()))
    assert (
        first.columns[0] == "uuid"
        and second.columns[0] == "conversation_id"
        and len(first) == len(second) == 46
    )


def test_an_import_that_breaks_leaves_nothing_and_never_overwrites_a_folder(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps(row23(0)) + "\n{oops")
    with pytest.raises(UserError, match="line 2"):
        import_data.main(str(tmp_path / "a.jsonl"), tmp_path / "out", form="magpie", limit=None)
    assert [p.name for p in tmp_path.iterdir()] == ["a.jsonl"]
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    with pytest.raises(UserError, match="not an empty folder"):
        import_data.main(str(tmp_path / "a.jsonl"), tmp_path / "out", form="magpie", limit=None)
    with pytest.raises(UserError, match="no such form"):
        import_data.main(str(tmp_path / "a.jsonl"), tmp_path / "o", form="24", limit=None)


@pytest.mark.parametrize("out", ["set/a.jsonl", "set", "."])
def test_import_and_export_never_replace_their_own_source(tmp_path: Path, out: str) -> None:
    (tmp_path / "set").mkdir()
    source = tmp_path / "set" / "a.jsonl"
    source.write_text(json.dumps(row23(0)) + "\n")
    before = source.read_bytes()
    with pytest.raises(UserError, match="would replace the source"):
        import_data.main(str(source), tmp_path / out, form="magpie", limit=None)
    with pytest.raises(UserError, match="would replace the source"):
        export_data.main(str(source), Target(tmp_path / out, "messages"))
    assert source.read_bytes() == before


def test_sharegpt_with_strange_roles_or_silent_turns_is_a_failed_row(tmp_path: Path) -> None:
    talks = [
        ["human", "gpt"],
        ["human", "gpt", "narrator", "gpt"],
        ["human", "gpt", "human", "chatgpt"],
    ]
    rows = [
        {"id": str(n), "conversations": [{"from": w, "value": w} for w in talk]}
        for n, talk in enumerate(talks)
    ]
    rows.append(
        {
            "id": "3",
            "conversations": [
                {"from": w, "value": v}
                for w, v in (("human", "a"), ("gpt", "b"), ("human", ""), ("gpt", "c"))
            ],
        }
    )
    (tmp_path / "a.json").write_text(json.dumps(rows))
    found = pl.concat(read_rows(tmp_path / "a.json"))
    reasons = [
        None,
        "a turn of role 'narrator' (a.json row 2)",
        None,
        "a turn without text (a.json row 4)",
    ]
    assert found["reason"].to_list() == reasons
    assert found["messages"].list.len().to_list() == [None, 4, 4, 4]
    assert [m["role"] for m in found["messages"].to_list()[2]] == [
        "user",
        "assistant",
        "user",
        "assistant",
    ]


def test_a_data_set_as_the_hub_streams_it_is_read_in_batches_by_columns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "commit", lambda name, revision: revision)
    (tmp_path / "data").mkdir()
    published_set(row23, None).write_parquet(tmp_path / "data" / "train-00000.parquet")
    parts = list(
        hub_rows(str(tmp_path), batch=20)
    )  # the hub's client takes a folder for a data set just as well
    assert [len(p.frame) for p in parts] == [20, 20, 6] and parts[1].places[0] == 21
    assert_frame_equal(
        pl.concat([p.frame for p in parts]),
        pl.read_parquet(tmp_path / "data" / "train-00000.parquet"),
    )
    with pytest.raises(UserError, match="neither a file here nor to be had from the hub"):
        list(hub_rows(str(tmp_path / "nowhere"), batch=20))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A recipe that has drawn, tagged, answered and selected."""
    folder = tmp_path_factory.mktemp("recipe")
    llama = small_recipe.model(folder / "llama")
    with ScriptedServer(small_recipe.answer) as server:
        path = small_recipe.recipe(folder, llama, server.url)
        graph.run(schema.load(path), "select")
        yield path


def test_an_arm_of_a_recipe_is_exported_with_what_was_measured_and_a_card(
    finished: Path, tmp_path: Path
) -> None:
    out = tmp_path / "set"
    done = CliRunner().invoke(
        app,
        [
            "export",
            str(finished),
            "--arm",
            "good",
            "--form",
            "25",
            "--out",
            str(out),
            "--license",
            "cc-by-nc-4.0",
        ],
    )
    assert done.exit_code == 0, done.output
    rows = pl.read_parquet(sorted((out / "data").glob("*.parquet")))
    store = finished.parent / "store" / "recipes" / "small"
    chosen = pl.read_parquet(store / "select" / "good" / "selection.parquet")
    assert set(rows["uuid"]) == set(chosen["id"]) and len(rows) == len(chosen) == 10
    assert rows.columns[:25] == list(
        pl.read_parquet(sorted((out / "data").glob("*.parquet"))).columns[:25]
    )
    pool = pl.read_parquet(store / "measure" / "pool.parquet").join(
        rows.select(pl.col("uuid").alias("id")), on="id", how="semi"
    )
    same = rows.sort("uuid")
    pool = pool.sort("id")
    assert (
        same["instruction"].to_list() == pool["instruction"].to_list()
        and same["response"].to_list() == pool["response"].to_list()
    )
    assert same["input_quality"].to_list() == pool["input_quality"].cast(pl.String).to_list()
    assert same["gen_input_configs"].struct.field("seed").to_list() == pool["seed"].to_list()
    assert {"response_length", "input_quality_rank", "repetition", "heldout"} <= set(
        rows.columns
    ), "other measures come behind"
    assert not any(c.startswith(("status", "of_")) for c in rows.columns)
    assert rows["quality_generator"].n_unique() == 1 and rows["quality_generator"].null_count() == 0
    card = (out / "README.md").read_text()
    front = yaml.safe_load(card.split("---\n")[1])
    assert front["license"] == "cc-by-nc-4.0" and front["size_categories"] == ["n<1K"]
    assert front["configs"][0]["data_files"] == [{"split": "train", "path": "data/train-*.parquet"}]
    assert "input_quality >= 'good'" in card and "min_neighbor_distance" not in front
    assert (
        "| response, characters | 10 |" in card and "git commit" in card and "temperature" in card
    )
    assert str(finished.parent / "store") not in card, "where it ran is nobody's business"


def test_a_recipes_rows_in_the_form_23_have_its_two_sampling_fields(
    finished: Path, tmp_path: Path
) -> None:
    export_data.main(str(finished), Target(tmp_path / "set.parquet", "23"), arm="good")
    made = pl.read_parquet(tmp_path / "set.parquet")
    assert made.schema["gen_input_config"] == pl.Struct(
        {"temperature": pl.Float64, "top_p": pl.Float64}
    )
    assert (
        set(made["gen_input_config"].struct.field("temperature")) == {1.0}
        and made["seed"].null_count() == 0
    )


def test_imported_rows_are_exported_with_the_models_their_source_names(tmp_path: Path) -> None:
    llama = small_recipe.model(tmp_path / "llama")
    rows = [row25(i) for i in range(6)]
    for row in rows[:3]:
        row["difficulty_generator"] = None
    for row in rows:
        row |= {
            "model": "Qwen2-72B-Instruct",
            "instruct_reward": 1.0,
            "reward_model": "some/reward",
        }
        del row["input_quality"], row["quality_explanation"], row["quality_generator"]
    pl.from_dicts(rows, infer_schema_length=None).write_parquet(tmp_path / "source.parquet")
    with ScriptedServer(small_recipe.answer) as server:
        arms = {
            "good": {
                "where": "input_quality >= 'very poor' AND difficulty >= 'very easy'",
                "choose": "all",
            }
        }
        path = small_recipe.recipe(
            tmp_path,
            llama,
            server.url,
            synth__rows={"import": str(tmp_path / "source.parquet")},
            synth__heldout=0,
            arms=arms,
            random_arm=False,
        )
        graph.run(schema.load(path), "select")
    export_data.main(str(path), Target(tmp_path / "out", "25"), arm="good")
    made = pl.read_parquet(tmp_path / "out" / "data" / "*.parquet").sort("uuid")
    assert set(made["model"]) == {"Qwen2-72B-Instruct"} and set(made["reward_model"]) == {
        "some/reward"
    }
    assert (
        made["difficulty_generator"].to_list()
        == [None] * 3 + ["meta-llama/Meta-Llama-3-8B-Instruct"] * 3
    )
    assert set(made["quality_generator"]) == {str(llama)}, (
        "the quality was missing, so the recipe's tagger gave it"
    )
    assert (
        made["gen_input_configs"].struct.field("pre_query_template").to_list()
        == ["<|im_start|>user\n"] * 6
    )
    assert set(made["gen_input_configs"].struct.field("input_generator")) == {"Qwen2-72B-Instruct"}
    card = (tmp_path / "out" / "README.md").read_text()
    facts = card.partition("## Provenance")[2].partition("## Selection")[0]
    assert (
        "rows imported from: source.parquet" in facts
        and "columns measured by this recipe: input_quality" in facts
    )
    assert (
        "difficulty"
        not in facts.partition("columns measured by this recipe: ")[2].partition("\n")[0]
    )
    for absent in ("teacher:", "sampling", "embeddings", "responder"):
        assert absent not in facts
    licence = card.partition("## Licence")[2].partition("## Figures")[0]
    assert (
        "Qwen2" in licence
        and str(llama) not in licence
        and "were made with the [Magpie]" not in card
    )


def test_the_whole_answered_pool_is_exported_without_an_arm(finished: Path, tmp_path: Path) -> None:
    export_data.main(str(finished), Target(tmp_path / "pool.jsonl", "messages"))
    pool = pl.read_parquet(
        finished.parent / "store" / "recipes" / "small" / "measure" / "pool.parquet"
    )
    lines = [json.loads(line) for line in (tmp_path / "pool.jsonl").read_text().splitlines()]
    assert [r["id"] for r in lines] == pool.filter(pl.col("status:response") == "ok")[
        "id"
    ].to_list()
    assert all([m["role"] for m in r["messages"]] == ["user", "assistant"] for r in lines)


def test_a_seeded_arm_is_exported_by_seed_and_wrong_names_are_one_sentence(
    finished: Path, tmp_path: Path
) -> None:
    store = finished.parent / "store" / "recipes" / "small"
    export_data.main(str(finished), Target(tmp_path / "r.jsonl", "messages"), arm="random", seed=0)
    chosen = pl.read_parquet(store / "select" / "random" / "0" / "selection.parquet")
    assert {
        json.loads(line)["id"] for line in (tmp_path / "r.jsonl").read_text().splitlines()
    } == set(chosen["id"])
    for arm, seed, sentence in (
        ("goood", None, "no such arm; did you mean"),
        ("random", 7, "was drawn for the seeds 0"),
    ):
        with pytest.raises(UserError, match=sentence):
            export_data.main(str(finished), Target(tmp_path / "x", "25"), arm=arm, seed=seed)
    with pytest.raises(UserError, match="no recipe"):
        export_data.main(str(tmp_path / "r.jsonl"), Target(tmp_path / "x", "25"), arm="good")


def test_the_card_of_published_rows_shows_figures_and_warns_of_the_teachers_licence(
    tmp_path: Path,
) -> None:
    published_set(row23, None).write_parquet(tmp_path / "set.parquet")
    export_data.main(str(tmp_path / "set.parquet"), Target(tmp_path / "out", "23"))
    card = (tmp_path / "out" / "README.md").read_text()
    assert "**No licence is stated.**" in card and "license" not in yaml.safe_load(
        card.split("---\n")[1]
    )
    assert "forbids the use of outputs" in card and "Meta-Llama-3-70B-Instruct" in card
    assert "| excellent | 45 | 97.8 % |" in card and "| messages a conversation | 46 |" in card


def test_texts_of_models_are_plain_text_in_the_card(tmp_path: Path) -> None:
    pl.from_dicts(
        [row23(0, llama_guard_2="<img src=x onerror=alert(1)> | [a](b)", model="<b>m</b>")]
    ).write_parquet(tmp_path / "set.parquet")
    export_data.main(str(tmp_path / "set.parquet"), Target(tmp_path / "out", "23"))
    card = (tmp_path / "out" / "README.md").read_text()
    assert "<img" not in card and "<b>" not in card and "&lt;img src=x" in card


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub with nothing on it, and the token that may write."""
    with Hub({}) as served:
        point_at(served.url, tmp_path, monkeypatch)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        yield served


def test_push_creates_a_private_repository_and_uploads_shards_and_card(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    published_set(row23, None).write_parquet(tmp_path / "set.parquet")
    target = Target(None, "23", licence="other", push="me/set", private=True)
    export_data.main(str(tmp_path / "set.parquet"), target)
    made = hub.repositories["me/set"]
    assert made.private and made.kind == "datasets"
    assert set(made.files) == {"README.md", "data/train-00000.parquet"}
    (tmp_path / "sent.parquet").write_bytes(made.files["data/train-00000.parquet"])
    assert len(pl.read_parquet(tmp_path / "sent.parquet")) == 46
    assert hub.tokens == {TOKEN}
    printed = capsys.readouterr()
    assert "pushed to" in printed.out and TOKEN not in printed.out + printed.err


def test_large_shards_are_uploaded_before_the_commit_and_a_second_push_adds_to_it(
    hub: Hub, tmp_path: Path
) -> None:
    texts = [hashlib.sha512(b"%d" % n).hexdigest() for n in range(1800)]  # nothing compresses them
    rows = pl.DataFrame({"instruction": texts[:900], "output": texts[900:]})
    rows.write_ndjson(tmp_path / "set.jsonl")
    export_data.main(str(tmp_path / "set.jsonl"), Target(None, "messages", "mit", "me/set"))
    first = hub.repositories["me/set"]
    (shard,) = (body for path, body in first.files.items() if path.startswith("data/"))
    assert list(hub.uploads.values()) == [shard]
    (tmp_path / "sent.parquet").write_bytes(shard)
    assert len(pl.read_parquet(tmp_path / "sent.parquet")) == 900
    export_data.main(str(tmp_path / "set.jsonl"), Target(None, "messages", "mit", "me/set"))
    assert hub.repositories["me/set"] is first, "what exists is committed to, not made anew"


def test_push_without_a_token_is_one_sentence(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    published_set(row23, None).write_parquet(tmp_path / "set.parquet")
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(UserError, match="HF_TOKEN"):
        export_data.main(str(tmp_path / "set.parquet"), Target(None, "23", push="me/set"))


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        (Fault("/create", 403), "the hub did not take me/set: the hub forbids data set me/set"),
        (Fault("/preupload/", 403), "did not take me/set: the hub forbids data set me/set"),
        (Fault("/commit/", 403), "did not take me/set: the hub forbids data set me/set"),
        (Fault("/create", 400, headers={"X-Error-Message": "Bad name"}), "400: Bad name"),
    ],
)
def test_a_hub_that_refuses_a_push_is_one_sentence_without_the_token(
    hub: Hub, tmp_path: Path, fault: Fault, sentence: str
) -> None:
    published_set(row23, None).write_parquet(tmp_path / "set.parquet")
    hub.faults.append(fault)
    with pytest.raises(UserError, match=sentence) as refused:
        export_data.main(str(tmp_path / "set.parquet"), Target(None, "23", push="me/set"))
    assert TOKEN not in str(refused.value)


def test_a_push_with_a_token_that_the_hub_does_not_know_is_one_sentence(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    published_set(row23, None).write_parquet(tmp_path / "set.parquet")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    with pytest.raises(UserError, match="does not accept the token in HF_TOKEN") as refused:
        export_data.main(str(tmp_path / "set.parquet"), Target(None, "23", push="me/set"))
    assert "hf_secret" not in str(refused.value)


def test_a_push_without_a_network_is_one_sentence_at_once(hub: Hub, tmp_path: Path) -> None:
    published_set(row23, None).write_parquet(tmp_path / "set.parquet")
    hub.__exit__(None, None, None)
    with pytest.raises(UserError, match=r"--push me/set needs the hub, and .* cannot be reached"):
        export_data.main(str(tmp_path / "set.parquet"), Target(None, "23", push="me/set"))


def test_a_field_of_turns_that_holds_nothing_but_null_is_written(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]
    odd = [{**turns[0], "note": None}, turns[1]]
    path = tmp_path / "rows.jsonl"
    rows = [{"messages": each} for each in (turns, turns, odd, turns)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "out.parquet"
    import_data.write(read_rows(path), out, "magpie")
    assert pl.read_parquet(out)["instruction"].to_list() == ["Why?"] * 4


def test_objects_without_fields_are_written_as_text(tmp_path: Path) -> None:
    path, out = tmp_path / "rows.jsonl", tmp_path / "out.parquet"
    rows = [{"instruction": f"Why {n}?", "response": "So.", "more": {}} for n in range(3)]
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, {**rows[0], "more": None}]))
    import_data.write(read_rows(path), out, "magpie")
    assert pl.read_parquet(out)["more"].to_list() == ["{}", "{}", "{}", None]


def test_objects_without_fields_within_others_are_refused_for_parquet(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"instruction": "Why?", "response": "So.", "more": [{"a": {}}]}))
    with pytest.raises(
        UserError, match=r"out.parquet: Parquet cannot hold this .*leave that field"
    ):
        import_data.write(read_rows(path), tmp_path / "out.parquet", "magpie")
    import_data.write(read_rows(path), tmp_path / "out.jsonl", "magpie")
