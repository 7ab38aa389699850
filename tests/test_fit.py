"""Fit to the model that is trained, and the IFD of a small model: which tokens are scored, and what
comes of it in a recipe."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from core.errors import UserError
from core.models import resolve
from core.models import tokenizer as tokenizer_of
from recipes import schema
from recipes.stages import graph
from recipes.stages.tokens import student
from synth.chat.encoding import encode_text
from synth.tags.scores.fit import fit
from synth.tags.scores.ifd import ifd
from tests import small_recipe, tiny
from tests.scripted_server import Fault, ScriptedServer, completion
from tests.test_ifd import ROWS
from train.config import TrainConfig

SMOLLM2 = "embedded/SmolLM2-135M-Instruct"


@pytest.fixture(scope="module")
def trained() -> Any:
    return student(TrainConfig(base=SMOLLM2, chat_template_path="smollm2"), resolve)


def by_id(path: str, body: dict[str, Any]) -> dict[str, Any] | Fault:
    """A model to which token i of a text has the log-probability -i / 1000."""
    if body.get("prompt_logprobs") is None:
        return small_recipe.answer(path, body)
    given = [None, *({str(i): {"logprob": -i / 1000}} for i in body["prompt"][1:])]
    made = completion("x")
    made["choices"][0]["prompt_logprobs"] = given
    return made | {"usage": {"prompt_tokens": len(body["prompt"]), "completion_tokens": 1}}


def test_fit_is_the_mean_log_probability_of_what_is_trained_on(serve: Any, trained: Any) -> None:
    endpoint, server = serve(by_id)
    (made,) = pl.concat(fit(ROWS, trained, endpoint)).to_dicts()
    own = tokenizer_of(resolve(SMOLLM2).path)
    # as the training template writes it: the answer, with what it spells as plain text, and the end
    end = own.convert_tokens_to_ids("<|im_end|>")
    answer = [*encode_text(own, ROWS["response"][0]), end]
    asked = server.requests[0].body["prompt"]
    at = len(asked) - 1 - asked[::-1].index(end)
    assert asked[at + 1 - len(answer) : at + 1] == answer and end not in answer[:-1]
    supervised = asked[at + 1 - len(answer) :]
    means = [-math.fsum(ids) / len(ids) / 1000 for ids in (answer, supervised)]
    assert any(made["fit"] == pytest.approx(mean, abs=1e-9) for mean in means)
    ids, mask = trained.encode([[{"role": "user", "content": ROWS["instruction"][0]}]])[0]
    assert sum(mask) == 0 and asked[: len(ids)] == ids, "no token of the user's is scored"
    assert made["status"] == "ok" and made["prompt_tokens"] == len(asked)


def test_without_loss_on_the_assistant_alone_every_token_but_the_first_is_scored(
    serve: Any,
) -> None:
    config = TrainConfig(
        base=SMOLLM2, chat_template_path="smollm2", trainer={"assistant_only_loss": False}
    )
    endpoint, server = serve(by_id)
    whole = student(config, resolve)
    (made,) = pl.concat(fit(ROWS, whole, endpoint)).to_dicts()
    asked = server.requests[0].body["prompt"][1:]
    assert made["fit"] == pytest.approx(-math.fsum(asked) / len(asked) / 1000)
    usual = student(config.model_copy(update={"trainer": {}}), resolve)
    assert whole.determines != usual.determines


def test_a_row_that_no_server_takes_or_scores_is_a_failed_cell(serve: Any, trained: Any) -> None:
    endpoint, _ = serve(by_id, args={"max_model_len": 60})
    rows = pl.concat([ROWS, ROWS.with_columns(id=pl.lit("b"), response=pl.lit("word " * 200))])
    made = {r["id"]: r for r in pl.concat(fit(rows, trained, endpoint)).to_dicts()}
    assert made["a"]["status"] == "ok" and "max_model_len 60" in made["b"]["reason"]
    silent, _ = serve(lambda path, body: completion("x"))
    (made_silent,) = pl.concat(fit(ROWS, trained, silent)).to_dicts()
    assert "no log-probabilities" in made_silent["reason"] and made_silent["fit"] is None


def test_a_model_without_a_chat_template_reads_plain_text(serve: Any) -> None:
    plain = tiny.tokenizer("chatml")
    plain.chat_template = None
    endpoint, server = serve(by_id)
    (made,) = pl.concat(ifd(ROWS, plain, endpoint, "superfilter")).to_dicts()
    given = server.requests[0].body["prompt"]
    text = ROWS["instruction"][0] + "\n"
    answer = encode_text(plain, ROWS["response"][0])
    assert given == [*encode_text(plain, text), *answer]
    assert made["superfilter"] == pytest.approx(1.0) and "ifd" not in made


def recipe(folder: Path, url: str, **arm: Any) -> Path:
    llama = small_recipe.model(folder / "llama")
    where = {"model": str(llama), "server": {"urls": [url]}}
    arms = {"chosen": {**arm, "budget": {"rows": 6}}}
    path = small_recipe.recipe(
        folder,
        llama,
        url,
        train=True,
        arms=arms,
        random_arm=False,
        eval=None,
        synth__rows=40,
        synth__heldout=0.0,
        synth__tags={"fit": {"server": {"urls": [url]}}, "superfilter": where},
    )
    return path


@pytest.mark.parametrize(
    ("arm", "column", "highest"),
    [
        ({"strategy": "fit"}, "fit", True),
        ({"strategy": "fit", "params": {"part": "low"}}, "fit", False),
        ({"strategy": "superfilter", "params": {"max_ifd": 99}}, "superfilter", True),
    ],
)
def test_an_arm_of_a_recipe_chooses_by_it(
    tmp_path: Path, arm: dict[str, Any], column: str, highest: bool
) -> None:
    with ScriptedServer(by_id) as server:
        path = recipe(tmp_path, server.url, **arm)
        graph.run(schema.load(path, []), "select")
        folder = tmp_path / "store" / "recipes" / "small"
        pool = pl.read_parquet(folder / "measure" / "pool.parquet").drop_nulls(column)
        chosen = pl.read_parquet(folder / "select" / "chosen" / "selection.parquet")["id"]
        asked = len(server.requests)
        assert {s.state for s in graph.run(schema.load(path, []), "select").steps} == {"reuse"}
    assert len(pool) == 40 and len(chosen) == 6 and len(server.requests) == asked
    ordered = pool.sort(column, descending=highest)[column].head(6)
    taken = pool.filter(pl.col("id").is_in(chosen.implode()))[column]
    assert taken.sort().to_list() == ordered.sort().to_list()


def test_without_a_training_there_is_nothing_to_fit(tmp_path: Path) -> None:
    path = recipe(tmp_path, "http://127.0.0.1:9", strategy="fit")
    with pytest.raises(UserError, match="no way to measure; add `train`"):
        graph.plan(schema.load(path, ["train=null"]))


def test_the_base_model_and_the_rendering_determine_a_fit(tmp_path: Path) -> None:
    from recipes.stages.walk import Arms

    loaded = schema.load(recipe(tmp_path, "http://127.0.0.1:9", strategy="fit"), [])

    def cell(**changes: Any) -> Any:
        train = loaded.recipe.train
        assert train is not None
        made = loaded.recipe.model_copy(update={"train": train.model_copy(update=changes)})
        arms = Arms.of(made)
        return graph.pool_of(made, arms, resolve, tmp_path, planning=True).cells["fit"]

    every = {"assistant_only_loss": False}
    assert cell() == cell(seeds=(5,)) != cell(trainer=every)
    other = tmp_path / "other"
    tiny.llama(other)
    assert cell(base=str(other))["base"] != cell()["base"]
