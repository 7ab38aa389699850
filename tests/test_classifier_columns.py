"""Columns of a recipe's own by sequence-classification models: how texts are sent, and how logits
are read."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from core.errors import UserError
from core.models import resolve
from core.models import tokenizer as tokenizer_of
from recipes.schema import load
from recipes.stages import graph
from synth.config.tags import OwnConfig
from synth.tags.asking.classifier import classified, outputs_of
from tests import small_recipe
from tests.scripted_server import ScriptedServer

ROWS = pl.DataFrame({"id": ["a", "b"], "instruction": ["Hi [SEP] you", "x"]})
LEVELS = {"classifier": "org/levels", "labels": ["low", "mid", "high"]}


@pytest.fixture(scope="module")
def bert() -> Any:
    """A tokenizer that has no chat template: BERT's."""
    return tokenizer_of(resolve("embedded/all-MiniLM-L6-v2").path)


def scored(*logits: float) -> dict[str, Any]:
    return {"data": [{"index": 0, "probs": list(logits)}], "usage": {"prompt_tokens": 5}}


def cells(
    serve: Any,
    tokenizer: Any,
    block: dict[str, Any],
    answer: Any,
    rows: pl.DataFrame = ROWS,
    model: str = "org/levels",
    **server: Any,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(cells, what was asked)."""
    endpoint, here = serve(lambda _, body: answer, **server)
    own = OwnConfig.model_validate(block)
    made = pl.concat(classified("level", own, rows, model, tokenizer, endpoint)).sort("id")
    return made.to_dicts(), [request.body for request in here.requests]


def test_a_label_is_the_likeliest_output_and_its_rank_the_expected_one(
    serve: Any, bert: Any
) -> None:
    made, asked = cells(serve, bert, LEVELS, scored(0.0, math.log(3), math.log(6)))
    assert made[0]["level"] == "high" and made[0]["status"] == "ok"
    assert made[0]["level_rank"] == pytest.approx((1 * 1 + 2 * 3 + 3 * 6) / 10)
    assert asked[0]["use_activation"] is False


def test_a_text_without_a_chat_template_is_sent_as_the_tokenizer_frames_it(
    serve: Any, bert: Any
) -> None:
    _, asked = cells(serve, bert, LEVELS, scored(0.0, 1.0, 2.0))
    (spelled,) = [b["input"] for b in asked if len(b["input"]) > 3]
    assert bert.convert_ids_to_tokens(spelled)[0] == "[CLS]" and spelled.count(102) == 1
    plain = next(b["input"] for b in asked if len(b["input"]) == 3)
    assert plain == bert("x")["input_ids"]


def test_a_response_stands_below_its_instruction_or_in_the_chat_template(
    serve: Any, bert: Any
) -> None:
    rows = ROWS.with_columns(response=pl.lit("Done."))
    block = {**LEVELS, "reads": "response"}
    _, asked = cells(serve, bert, block, scored(0.0, 1.0, 2.0), rows)
    assert any(b["input"] == bert("x\n\nDone.")["input_ids"] for b in asked)
    chats = tokenizer_of(resolve("embedded/SmolLM2-135M-Instruct").path)
    _, asked = cells(serve, chats, block, scored(0.0, 1.0, 2.0), rows)
    assert chats.decode(asked[0]["input"]).endswith("<|im_start|>assistant\nDone.<|im_end|>\n")


def test_labels_are_found_by_the_names_of_the_models_outputs(
    serve: Any, bert: Any, tmp_path: Path
) -> None:
    names = {"0": "HIGH", "1": "low", "2": "mid"}
    (tmp_path / "config.json").write_text(json.dumps({"id2label": names}))
    assert outputs_of(str(tmp_path)) == ["HIGH", "low", "mid"]
    answer = scored(5.0, 0.0, 0.0)
    made, _ = cells(serve, bert, LEVELS, answer, model=str(tmp_path))
    assert made[0]["level"] == "high" and made[0]["level_rank"] > 2.9
    with pytest.raises(UserError, match="no label 'top'"):
        cells(serve, bert, {**LEVELS, "labels": ["low", "top"]}, answer, model=str(tmp_path))
    share = {"classifier": "x", "output": "HIGH"}
    made, _ = cells(serve, bert, share, answer, model=str(tmp_path))
    assert made[0]["level"] == pytest.approx(math.exp(5) / (math.exp(5) + 2))


def test_one_output_is_a_number_and_several_labels_a_list(serve: Any, bert: Any) -> None:
    made, _ = cells(serve, bert, {"classifier": "x"}, scored(-3.5))
    assert made[0]["level"] == -3.5
    several = {**LEVELS, "kind": "labels"}
    made, _ = cells(serve, bert, several, scored(2.0, -2.0, 0.1))
    assert made[0]["level"] == ["low", "high"]


@pytest.mark.parametrize(
    ("block", "answer", "reason"),
    [
        (LEVELS, scored(1.0), "has 1 outputs, not 3"),
        ({"classifier": "x"}, scored(1.0, 2.0), "say which with `output`"),
        ({"classifier": "x", "output": 7}, scored(1.0, 2.0), "no output 7"),
        (LEVELS, scored(1.0, math.nan, 2.0), "not a finite number"),
    ],
)
def test_what_cannot_be_read_is_a_failed_cell(
    serve: Any, bert: Any, block: dict[str, Any], answer: Any, reason: str
) -> None:
    made, _ = cells(serve, bert, block, answer)
    assert {cell["status"] for cell in made} == {"failed"} and reason in made[0]["reason"]


def test_a_long_text_fails_unless_it_may_be_cut(serve: Any, bert: Any) -> None:
    rows = pl.DataFrame({"id": ["a"], "instruction": ["word " * 50]})
    limit = {"args": {"max_model_len": 20}}
    made, asked = cells(serve, bert, LEVELS, scored(0.0, 1.0, 2.0), rows, **limit)
    assert "longer than max_model_len 20" in made[0]["reason"] and not asked
    cut = {**LEVELS, "truncate": True}
    made, asked = cells(serve, bert, cut, scored(0.0, 1.0, 2.0), rows, **limit)
    assert made[0]["status"] == "ok" and len(asked[0]["input"]) == 20


@pytest.mark.parametrize(
    ("block", "problem"),
    [
        ({"classifier": "x", "prompt": "y", "labels": ["a", "b"]}, "either a `prompt` or"),
        ({"classifier": "x", "kind": "text"}, "asked nothing"),
        ({"classifier": "x", "labels": ["a", "b"], "check": 3}, "asked nothing"),
        ({"prompt": "x", "labels": ["a", "b"], "output": 1}, "are for a `classifier`"),
        ({"classifier": "x", "labels": ["a", "b"], "output": 1}, "`kind: number`"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(block: Any, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        OwnConfig.model_validate(block)


def test_a_recipe_chooses_by_a_classifiers_column(tmp_path: Path) -> None:
    llama = small_recipe.model(tmp_path / "llama")

    def answer(path: str, body: dict[str, Any]) -> Any:
        if path == "/classify":
            return scored(*(float(token % 7) for token in body["input"][5:8]))
        return small_recipe.answer(path, body)

    with ScriptedServer(answer) as server:
        where = {"model": str(llama), "server": {"urls": [server.url]}}
        block = {"level": {"classifier": where, "labels": ["low", "mid", "high"]}}
        arm = {"where": "level >= 'mid'", "choose": "top(level_rank)", "budget": {"rows": 5}}
        changes = {"synth__tags__own": block, "arms": {"a": arm}, "random_arm": False}
        graph.run(load(small_recipe.recipe(tmp_path, llama, server.url, **changes)), "select")
    pool = pl.read_parquet(tmp_path / "store" / "recipes" / "small" / "measure" / "pool.parquet")
    assert pool["level"].n_unique() > 1 and pool["level_rank"].is_between(1, 3).all()
