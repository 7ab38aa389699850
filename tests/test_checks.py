"""Instructions whose answers a program checks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from core.errors import UserError
from eval.checkpoint import followed
from eval.prompt_sets.checked_prompts import SHIPPED, checked_prompts
from eval.prompt_sets.checks import ARGUMENTS, KINDS, follows, validated
from eval.prompt_sets.prompts import ANSWERS
from eval.scoring import of_checkpoint
from recipes import schema
from recipes.stages import graph
from tests import small_recipe
from tests.scripted_server import Fault, ScriptedServer, completion

LIST = "Here you are:\n- apples\n* pears\n 3. plums\n\nThat is all."

CASES: list[tuple[dict[str, Any], str, bool]] = [
    ({"check": "words", "at_most": 3}, "one two - three", True),
    ({"check": "words", "at_most": 3}, "one two three four", False),
    ({"check": "words", "at_least": 3}, "one two three", True),
    ({"check": "words", "at_least": 4}, "one two three", False),
    ({"check": "words", "at_most": 3}, " \n", False),
    (
        {"check": "sentences", "at_least": 2, "at_most": 2},
        "It costs 3.5 euros. Is that much?",
        True,
    ),
    ({"check": "sentences", "at_most": 1}, "First. Second", False),
    ({"check": "sentences", "at_most": 1}, 'He said: "Stop."', True),
    ({"check": "paragraphs", "at_least": 2, "at_most": 2}, "One\nline.\n \n\nTwo.\n", True),
    ({"check": "paragraphs", "at_most": 1}, "One.\n\nTwo.", False),
    ({"check": "items", "at_least": 3, "at_most": 3}, LIST, True),
    ({"check": "items", "at_most": 2}, LIST, False),
    ({"check": "items", "at_least": 1}, "-5 degrees and 1.5 metres", False),
    ({"check": "contains", "any": ["Paris", "Lyon"]}, "It is PARIS.", True),
    ({"check": "contains", "any": ["Paris"]}, "Parisians know.", False),
    ({"check": "contains", "all": ["red", "blue"]}, "red and green", False),
    ({"check": "contains", "all": ["red", "blue"]}, "blue, red", True),
    ({"check": "contains", "any": ["C++", ","]}, "I like C++ a lot", True),
    ({"check": "lacks", "texts": ["white"]}, "whiter than", True),
    ({"check": "lacks", "texts": ["white"]}, "White.", False),
    ({"check": "lacks", "texts": [","]}, "a, b", False),
    ({"check": "lacks", "texts": ["white"]}, "...", False),
    ({"check": "is", "any": ["no"]}, "**No.**", True),
    ({"check": "is", "any": ["no"]}, "No, it is not.", False),
    ({"check": "starts", "any": ["Dear"]}, "\ndear friend", True),
    ({"check": "starts", "any": ["Dear"]}, "My dear", False),
    ({"check": "ends", "any": ["?"]}, "Do you? ", True),
    ({"check": "ends", "any": ["?"]}, "Do you? Yes", False),
    ({"check": "case", "of": "lower"}, "hello, number 5!", True),
    ({"check": "case", "of": "lower"}, "Hello", False),
    ({"check": "case", "of": "upper"}, "WET FLOOR", True),
    ({"check": "case", "of": "upper"}, "123", False),
    ({"check": "json", "keys": ["a"]}, 'Sure:\n```json\n{"a": 1, "b": 2}\n```', True),
    ({"check": "json", "keys": ["a"]}, '{"a": 1}', True),
    ({"check": "json", "keys": ["a"]}, '{"b": 1}', False),
    ({"check": "json", "keys": ["a"]}, '["a"]', False),
    ({"check": "json", "keys": ["a"]}, "[" * 100_000 + "a", False),
    ({"check": "code", "any": ["def add"]}, "```python\ndef add(a, b):\n```", True),
    ({"check": "code", "any": ["def add"]}, "def add(a, b):", False),
]


@pytest.mark.parametrize(("check", "answer", "expected"), CASES)
def test_an_answer_follows_a_check_or_does_not(
    check: dict[str, Any], answer: str, expected: bool
) -> None:
    assert follows(answer, validated(check, "here")) is expected


def test_every_kind_of_check_is_tried_above() -> None:
    assert {check["check"] for check, _, _ in CASES} == KINDS.keys() == ARGUMENTS.keys()


@pytest.mark.parametrize(
    ("check", "said"),
    [
        ("words", "a check is a mapping"),
        ({"check": "word", "at_most": 1}, "did you mean 'words'"),
        ({"check": "words", "most": 1}, "takes no `most`"),
        ({"check": "words"}, "needs at_least or at_most"),
        ({"check": "words", "at_most": True}, "a whole number"),
        ({"check": "words", "at_most": -1}, "a whole number"),
        ({"check": "words", "at_least": 3, "at_most": 2}, "nothing can be both"),
        ({"check": "contains", "any": "Paris"}, "a list of texts"),
        ({"check": "contains", "any": []}, "a list of texts"),
        ({"check": "case", "of": "title"}, "lower or upper"),
    ],
)
def test_a_check_that_is_none_is_one_sentence_with_its_place(check: Any, said: str) -> None:
    with pytest.raises(UserError, match=said) as error:
        validated(check, "set.jsonl, record 3")
    assert str(error.value).startswith("set.jsonl, record 3: ")


def test_the_shipped_set_holds_what_it_says() -> None:
    prompts = checked_prompts("magpie-checks-48")
    assert len(prompts) == 48 and sum(len(prompt.checks) for prompt in prompts) == 81
    assert {prompt.category for prompt in prompts} >= {"Facts", "Lists", "Data", "Rewriting"}


def test_a_prompt_without_checks_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "set.jsonl"
    file.write_text('{"id": "a", "prompt": "Hello", "checks": []}\n')
    with pytest.raises(UserError, match=r"set.jsonl, record 1: a checked prompt needs"):
        checked_prompts(str(file))


def _answers(path: Path, rows: list[dict[str, Any]]) -> Path:
    table = [{"finish_reason": "stop", "status": "ok"} | row for row in rows]
    pl.DataFrame(table, schema=ANSWERS).write_parquet(path / "answers.parquet")
    return path / "answers.parquet"


def _scored(tmp_path: Path) -> dict[str, Any]:
    """Scores of three answers: one follows both of its checks, one of two and is cut off, one
    failed."""
    both = [{"check": "words", "at_most": 3}, {"check": "contains", "any": ["Nile"]}]
    records = [{"id": name, "prompt": "Name a river.", "checks": both} for name in "abc"]
    lines = [json.dumps(record) + "\n" for record in records]
    (tmp_path / "prompts.jsonl").write_text("".join(lines))
    rows: list[dict[str, Any]] = [
        {"id": "a", "answer": "The Nile."},
        {"id": "b", "answer": "The long river Nile", "finish_reason": "length"},
        {"id": "c", "status": "failed", "reason": "the server said no"},
    ]
    inputs = {"prompts": tmp_path / "prompts.jsonl", "answers": _answers(tmp_path, rows)}
    counts = followed.run(inputs, tmp_path / "checks")
    assert counts == {"rows": 6, "followed": 3, "failed": 2}
    of_checkpoint.run({"checks": tmp_path / "checks"}, tmp_path / "scores")
    summary = json.loads((tmp_path / "scores" / "summary.json").read_text())
    figures: dict[str, Any] = summary["checks"]
    return figures


def test_instructions_prompts_and_stops_are_scored_and_failures_counted(tmp_path: Path) -> None:
    figures = _scored(tmp_path)
    shown = {name: (of["value"], of["n"], of["unjudged"]) for name, of in figures.items()}
    assert shown == {
        "followed": (0.75, 4, 2),
        "all_followed": (0.5, 2, 1),
        "stopped": (0.5, 2, 1),
    }


def test_checks_of_a_prompt_are_one_cluster_and_the_reason_of_a_failure_stays(
    tmp_path: Path,
) -> None:
    _scored(tmp_path)
    scores = pl.read_parquet(tmp_path / "scores" / "scores.parquet")
    each = scores.filter(pl.col("metric") == "followed")
    assert each["item"].to_list() == ["a#1", "a#2", "b#1", "b#2", "c#1", "c#2"]
    assert each["cluster"].to_list() == list("aabbcc")
    assert set(each.filter(pl.col("value").is_null())["reason"]) == {"the server said no"}


def test_answers_that_lack_a_prompt_are_refused(tmp_path: Path) -> None:
    answers = _answers(tmp_path, [{"id": "facts-1", "answer": "Paris"}])
    inputs = {"prompts": SHIPPED["magpie-checks-48"], "answers": answers}
    with pytest.raises(UserError, match="no answer to the prompt facts-2"):
        followed.run(inputs, tmp_path / "out")


def _answer(path: str, body: dict[str, Any]) -> dict[str, Any] | Fault:
    """One model answers "yes" and stops; the other never ends."""
    if Path(str(body["model"])).name == "one":
        return completion("Yes.", "stop")
    return completion("and so on", "length")


def test_a_recipe_checks_and_compares_answers_without_a_judge_once(tmp_path: Path) -> None:
    models = [small_recipe.model(tmp_path / "one"), small_recipe.model(tmp_path / "two", "llama3")]
    with ScriptedServer(_answer) as server:
        where = {"urls": [server.url], "max_in_flight": 16}
        recipe = small_recipe.recipe(
            tmp_path,
            models[0],
            server.url,
            arms={path.name: {"model": str(path)} for path in models},
            random_arm=False,
            eval={"checks": {"limit": 12}, "answers": {"server": where}},
            synth__rows=4,
            synth__heldout=0,
        )
        loaded = schema.load(recipe)
        results = graph.run(loaded).results
        asked = len(server.requests)
        again = graph.run(loaded)
        judged = schema.load(recipe, ["eval.primary=checks/all_followed", "eval.equivalent=1.5"])
        declared = graph.run(judged).results["compare"]
    states = {step.state for step in again.steps if step.name != "measure"}
    assert asked == 2 * 12 and len(server.requests) == asked and states == {"reuse"}
    comparison = json.loads((results["compare"].path / "comparison.json").read_text())
    shown = {(s["arm"], s["metric"]): (s["value"], s["primary"]) for s in comparison["scores"]}
    assert shown["one", "stopped"] == (1.0, False) and shown["two", "stopped"] == (0.0, False)
    assert shown["one", "followed"][1]
    assert shown["one", "followed"][0] != shown["two", "followed"][0]
    # no two shares of prompts are 1.5 apart
    equal = json.loads((declared.path / "comparison.json").read_text())["differences"][0]
    assert (equal["metric"], equal["verdict"]) == ("all_followed", "equal within 1.5")
    kept = json.loads((tmp_path / "store" / "recipes" / "small" / "declared.json").read_text())
    assert [entry["declared"].get("equivalent") for entry in kept] == [None, 1.5]
