"""A recipe whose filter needs every tag of a conversation: what is asked of which model, in which
order, and never twice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from core.errors import UserError
from core.models import tokenizer as tokenizer_of
from recipes.schema import load
from recipes.stages import graph
from tests import small_recipe
from tests.scripted_server import ScriptedServer, completion

WHERE = (
    "safety <= 'controversial' AND pair_score_rank >= 1 AND ifd > 0 AND reward_difference > -100"
)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {
        name: small_recipe.model(folder / name)
        for name in ("teacher", "Llama-Guard-3-8B", "base", "rm")
    }


def answer(path: str, body: dict[str, Any]) -> Any:
    """Each model by its name: every tenth base answer is empty, and the guard calls a text with the
    word "water" unsafe."""
    name = Path(body["model"]).name
    if name == "Llama-Guard-3-8B":
        tokenizer = tokenizer_of(body["model"])
        return completion("unsafe\nS2" if "water" in tokenizer.decode(body["prompt"]) else "safe")
    if name == "base":
        return completion("" if sum(body["prompt"]) % 10 == 0 else "A plain answer.")
    return small_recipe.answer(path, body)


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with ScriptedServer(answer) as made:
        yield made


def recipe(folder: Path, models: dict[str, Path], url: str, **tags: Any) -> Path:
    def at(name: str) -> dict[str, Any]:
        return {"model": str(models[name]), "server": {"urls": [url], "max_in_flight": 8}}

    given = {"safety": at("Llama-Guard-3-8B"), "base": at("base"), "reward": at("rm")} | tags
    arms = {"tagged": {"where": WHERE, "choose": "hash_order", "budget": {"rows": 8}}}
    return small_recipe.recipe(
        folder,
        models["teacher"],
        url,
        synth__tags=given,
        arms=arms,
        synth__rows=40,
        synth__heldout=0.0,
    )


def test_every_tag_of_a_conversation_is_measured_once_and_chosen_rows_pass_the_filter(
    tmp_path: Path, models: dict[str, Path], server: ScriptedServer
) -> None:
    path = recipe(tmp_path, models, server.url)
    graph.run(load(path, []), until="select")
    first = len(server.requests)
    pool = pl.read_parquet(tmp_path / "store" / "recipes" / "small" / "measure" / "pool.parquet")
    safe = pool.filter(pl.col("status:safety") == "ok")
    assert set(safe["safety"]) == {"safe", "unsafe"} and set(
        safe.filter(safety="unsafe")["safety_categories"]
    ) == {"Non-Violent Crimes"}
    assert safe["llama_guard_2"].is_null().all(), "the codes of Llama-Guard-3 mean other things"
    compared = pool.filter(pl.col("status:reward_difference") == "ok")
    assert len(compared) >= 8
    assert (
        compared["instruct_reward"] - compared["base_reward"] - compared["reward_difference"]
    ).abs().max() < 1e-9  # type: ignore[operator]
    empty = pool.filter(pl.col("status:base_response") == "failed")
    assert (
        empty["reward_difference"].is_null().all()
        and not (empty["status:reward_difference"] == "ok").any()
    )
    assert (pool.filter(pl.col("status:ifd") == "ok")["ifd"] > 0).all()
    asked = Counter(Path(r.body["model"]).name for r in server.requests)
    assert asked["Llama-Guard-3-8B"] == len(pool.filter(pl.col("status:safety").is_not_null()))
    assert asked["base"] <= len(
        pool.filter(pl.col("status:safety").is_in(["ok"]) & pl.col("safety").is_in(["safe"]))
    )
    graph.run(load(path, []), until="select")
    assert len(server.requests) == first


def test_a_guard_whose_family_its_name_does_not_tell_is_one_sentence(
    tmp_path: Path, models: dict[str, Path], server: ScriptedServer
) -> None:
    path = recipe(
        tmp_path,
        models,
        server.url,
        safety={"model": str(models["base"]), "server": {"urls": [server.url]}},
    )
    with pytest.raises(
        UserError, match=r"which guard is .*say which one its answers are like with `family:`"
    ):
        graph.run(load(path, []), until="select")
    assert server.requests == []


def test_a_reward_model_that_vllm_cannot_serve_is_refused_before_anything_is_drawn(
    tmp_path: Path, models: dict[str, Path], server: ScriptedServer
) -> None:
    path = recipe(tmp_path, models, server.url, reward={"model": "RLHFlow/ArmoRM-Llama3-8B-v0.1"})
    with pytest.raises(UserError, match="vLLM cannot serve RLHFlow/ArmoRM"):
        graph.run(load(path, []), until="select")
    assert server.requests == []


def test_a_filter_on_a_tag_that_no_model_is_named_for_says_which_to_name(
    tmp_path: Path, models: dict[str, Path], server: ScriptedServer
) -> None:
    path = recipe(tmp_path, models, server.url)
    for name in ("safety", "base"):
        with pytest.raises(UserError, match=f"synth.tags.{name}"):
            graph.run(load(path, [f"synth.tags.{name}=null"]), until="select")
