"""Pairwise benchmarks in a recipe of finished models: who is compared with whom, length control,
and what is asked again."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from core.errors import UserError
from core.sending import client
from core.sending.purse import Bill, Ledger
from recipes import schema
from recipes.stages import graph
from recipes.stages.graph import Outcome
from recipes.verbs import why
from tests import small_recipe
from tests.scripted_server import Fault, ScriptedServer, chat, completion

Answer = Callable[[str, dict[str, Any]], dict[str, Any] | Fault]
ONE_OF = {"one": "The first model says so.", "two": "The second one says something else."}


def answer(path: str, body: dict[str, Any]) -> dict[str, Any] | Fault:
    """Two checkpoints that always say the same, and a judge whose verdict follows from the prompt's
    length."""
    if "messages" not in body:
        return completion(f"{ONE_OF[Path(str(body['model'])).name]} {len(body['prompt'])}")
    first = 0.1 + 0.8 * (len(json.dumps(body["messages"])) % 7) / 7
    return verdict(first)


def verdict(first: float) -> dict[str, Any]:
    """A judge's reply: P(the first shown is better), as log-probabilities."""
    top = [{"token": code, "logprob": math.log(p)} for code, p in (("m", first), ("M", 1 - first))]
    reply = chat("m", "length")
    reply["choices"][0]["logprobs"] = {"content": [{**top[0], "top_logprobs": top}]}
    return reply


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of two checkpoints, `one` and `two`."""
    folder = tmp_path_factory.mktemp("models")
    for name, family in zip(ONE_OF, ("chatml", "llama3"), strict=True):
        small_recipe.model(folder / name, family)
    return folder


def recipe(folder: Path, models: Path, url: str, **changes: Any) -> Path:
    """Two finished models and a hosted judge, on six prompts; `changes` are those of
    small_recipe."""
    where = {"urls": [url], "max_in_flight": 8, "timeout": 5}
    evaluation = {
        "limit": 6,
        "judge": {"model": "big-judge", "server": where},
        "answers": {"sampling": {"temperature": 0, "max_tokens": 12}, "server": where},
        "alpaca": {},
    }
    arms = {name: {"model": str(models / name)} for name in ONE_OF}
    given = {"arms": arms, "random_arm": False, "eval": evaluation, "synth__heldout": 0, **changes}
    return small_recipe.recipe(folder, models / "one", url, **given)


def run(path: Path) -> Outcome:
    return graph.run(schema.load(path))


def comparison(outcome: Outcome) -> dict[str, Any]:
    """comparison.json of a run."""
    found: dict[str, Any] = json.loads(
        (outcome.results["compare"].path / "comparison.json").read_text()
    )
    return found


# the baseline


def test_a_recipe_that_only_judges_compares_its_arm_with_the_finished_model_it_is_judged_against(
    tmp_path: Path, models: Path
) -> None:
    with ScriptedServer(answer) as server:
        path = recipe(tmp_path, models, server.url)
        found = comparison(run(path))
    (difference,) = [d for d in found["differences"] if d["metric"] == "win_rate"]
    assert (difference["a"], difference["b"], found["baseline"]) == ("two", "one", "one")
    scores = {(s["arm"], s["metric"]): s["value"] for s in found["scores"]}
    assert scores["one", "win_rate"] == 50
    assert difference["difference"] == pytest.approx(scores["two", "win_rate"] - 50)
    item = found_items(path)[0]
    told = list(why.explain(schema.load(path), f"one/{item}"))
    assert any(line.startswith(f"prompt {item}: ") for line in told)
    assert any(ONE_OF["one"] in line for line in told if line.startswith("answer "))
    (game,) = [
        line for line in told if line.startswith("judge/alpaca/two, where one was the rival")
    ]
    assert '"preference": ' in game
    whole = list(why.explain(schema.load(path), "one"))
    assert whole[0].startswith("one: others are judged against it")
    assert any(line.startswith("  it was the rival in judge/alpaca/two: ") for line in whole)
    with pytest.raises(UserError, match="no prompt or item of one is called that"):
        list(why.explain(schema.load(path), "one/nothing"))


def found_items(path: Path) -> list[str]:
    """The prompts of a judged recipe."""
    judged = graph.plan(schema.load(path)).results["judge/alpaca/two"].path
    return list(pl.read_parquet(judged / "judgments.parquet")["item"])


def test_an_arm_that_is_judged_against_a_file_scores_nothing_by_definition(
    tmp_path: Path, models: Path
) -> None:
    tmp_path.mkdir(exist_ok=True)
    prompts = [{"id": f"p{n}", "prompt": f"Say {n}."} for n in range(6)]
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, prompts)))
    rival = [{"id": f"p{n}", "answer": f"A file says {n}."} for n in range(6)]
    (tmp_path / "rival.jsonl").write_text("\n".join(map(json.dumps, rival)))
    with ScriptedServer(answer) as server:
        path = recipe(
            tmp_path,
            models,
            server.url,
            eval__prompts=str(tmp_path / "prompts.jsonl"),
            eval__alpaca={"baseline": str(tmp_path / "rival.jsonl")},
            eval__arena={"sampling": {"max_tokens": 9}},
        )
        outcome = run(path)
    assert {name for name in outcome.results if name.startswith("judge/alpaca")} == {
        "judge/alpaca/one",
        "judge/alpaca/two",
    }
    values = {
        (s["arm"], s["metric"]): s["value"]
        for s in comparison(outcome)["scores"]
        if s["benchmark"] == "alpaca"
    }
    assert values["one", "win_rate"] != 50


# length control


def alpaca_tables(folder: Path, count: int = 48) -> Path:
    """A folder like AlpacaEval's: outputs of gpt4_1106_preview, difficulties, gamed rows."""
    folder.mkdir(parents=True)
    outputs = [
        {"instruction": f"Task {n}.", "output": "Sure. " * (1 + n % 5), "generator": GPT4}
        for n in range(count)
    ]
    (folder / "outputs.json").write_text(json.dumps(outputs))
    difficulty = [f"{n},{(n % 9 - 4) / 4}" for n in range(count)]
    (folder / "instruction_difficulty.csv").write_text("\n".join([",difficulty", *difficulty]))
    gamed = [f"{(n % 7 - 3) / 3},{(n % 9 - 4) / 4},{(n % 2)}" for n in range(20)]
    head = "std_delta_len,instruction_difficulty,preference"
    (folder / "df_gamed.csv").write_text("\n".join([head, *gamed]))
    return folder


GPT4 = "gpt4_1106_preview"


def of_alpaca(folder: Path, models: Path, url: str, tables: Path, **alpaca: Any) -> Path:
    """The recipe on AlpacaEval's prompts (here from a file) against AlpacaEval's baseline."""
    given = {"baseline": str(tables / "outputs.json"), **alpaca}
    prompts = str(tables / "outputs.json")
    return recipe(folder, models, url, eval__alpaca=given, eval__prompts=prompts, eval__limit=None)


def test_the_length_controlled_win_rate_decides_where_alpacaevals_tables_are_given(
    tmp_path: Path, models: Path
) -> None:
    tables = alpaca_tables(tmp_path / "tables")
    with ScriptedServer(answer) as server:
        path = of_alpaca(tmp_path, models, server.url, tables, data=str(tables))
        found = comparison(run(path))
    deciding = {s["metric"] for s in found["scores"] if s["primary"]}
    assert deciding == {"length_controlled_winrate"}
    assert {s["metric"] for s in found["scores"]} == {"win_rate", "length_controlled_winrate"}


def test_without_the_tables_both_other_win_rates_stand_there_and_a_line_says_why(
    tmp_path: Path, models: Path
) -> None:
    tables = alpaca_tables(tmp_path / "tables")
    other = json.loads((tables / "outputs.json").read_text())
    other[3]["output"] = "Another answer."
    (tmp_path / "other.json").write_text(json.dumps(other))
    without = {"baseline": str(tables / "outputs.json")}
    foreign = {"baseline": str(tmp_path / "other.json"), "data": str(tables)}
    with ScriptedServer(answer) as server:
        none = comparison(run(of_alpaca(tmp_path / "a", models, server.url, tables, **without)))
        path = of_alpaca(tmp_path / "b", models, server.url, tables, **foreign)
        misfit = comparison(run(path))
    for found in (none, misfit):
        deciding = {s["metric"] for s in found["scores"] if s["primary"]}
        assert deciding == {"win_rate"}
        assert {s["metric"] for s in found["scores"]} == {"win_rate", "length_controlled_minimal"}
    assert "say by `eval.alpaca.data` where its tables are" in none["notes"][0]
    assert f"1 of 48 answers of its baseline are not {GPT4}'s" in misfit["notes"][0]


def test_a_folder_that_lacks_a_table_is_a_sentence_with_the_place_in_the_recipe(
    tmp_path: Path, models: Path
) -> None:
    tables = alpaca_tables(tmp_path / "tables")
    (tables / "df_gamed.csv").unlink()
    with ScriptedServer(answer) as server:
        path = of_alpaca(tmp_path, models, server.url, tables, data=str(tables))
        with pytest.raises(UserError, match=r"recipe.yaml:\d+: eval.alpaca.data: .*df_gamed"):
            run(path)


# what failed


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Back-off in milliseconds."""
    monkeypatch.setattr(client, "BACKOFF", (0.001, 0.005))


FIRST = "Say 0, please."


def failing(
    *, answers: Fault | None = None, judgments: dict[str, Any] | Fault | None = None
) -> Answer:
    """The scripted models, which fail at the first prompt: `two` at answering it, or the judge."""

    def answered(path: str, body: dict[str, Any]) -> dict[str, Any] | Fault:
        if "messages" in body:
            mine = FIRST in json.dumps(body["messages"])
            return judgments if judgments is not None and mine else answer(path, body)
        of_two = Path(str(body["model"])).name == "two"
        if of_two and answers is not None and body["prompt"] == FIRST_IDS:
            return answers
        return answer(path, body)

    return answered


FIRST_IDS: list[int] = []


@pytest.fixture
def prompts(tmp_path: Path, models: Path) -> str:
    """Six prompts in a file."""
    from core.models import render, tokenizer

    asked = [{"role": "user", "content": FIRST}]
    ids = render(tokenizer(str(models / "two")), asked, add_generation_prompt=True)
    FIRST_IDS[:] = ids
    texts = [FIRST, *(f"Say {number}, will you?" for number in range(1, 6))]
    rows = [{"id": f"p{number}", "prompt": text} for number, text in enumerate(texts)]
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return str(tmp_path / "prompts.jsonl")


def items(outcome: Outcome) -> int:
    """How many items the comparison of both arms has."""
    (difference,) = [d for d in comparison(outcome)["differences"] if d["metric"] == "win_rate"]
    return int(difference["n"])


def again(path: Path, server: ScriptedServer, *, retry: bool = False) -> tuple[Outcome, int]:
    """Another run, and how many requests it sent."""
    before = len(server.requests)
    return graph.run(schema.load(path), retry=retry), len(server.requests) - before


@pytest.mark.usefixtures("quick")
def test_a_judgment_that_the_server_failed_at_is_asked_again_by_the_next_run(
    tmp_path: Path, models: Path, prompts: str
) -> None:
    with ScriptedServer(failing(judgments=Fault("status", 503))) as server:
        path = recipe(tmp_path, models, server.url, eval__prompts=prompts)
        assert items(run(path)) == 5
        said = {step.name: step.why for step in graph.plan(schema.load(path)).steps}
        assert said["judge/alpaca/two"] == "1 that servers failed at are asked again by a run"
        kept, _ = again(path, server)
        assert items(kept) == 5
        server.answer = answer
        mended, asked = again(path, server)
        assert (items(mended), asked) == (6, 1)
        assert again(path, server)[1] == 0


@pytest.mark.usefixtures("quick")
def test_an_answer_that_the_server_failed_at_is_asked_again_and_then_judged(
    tmp_path: Path, models: Path, prompts: str
) -> None:
    with ScriptedServer(failing(answers=Fault("status", 503))) as server:
        path = recipe(tmp_path, models, server.url, eval__prompts=prompts)
        assert items(run(path)) == 5
        server.answer = answer
        mended, asked = again(path, server)
    assert (items(mended), asked) == (6, 2)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("final", [Fault("status", 400, words="too long"), "no verdict"])
def test_what_is_final_says_so_and_is_asked_again_by_a_retry_alone(
    tmp_path: Path, models: Path, prompts: str, final: Fault | str
) -> None:
    unread = verdict(0.5)
    unread["choices"][0]["logprobs"]["content"][0]["top_logprobs"] = [
        {"token": "The", "logprob": -0.1}
    ]
    reply = final if isinstance(final, Fault) else unread
    with ScriptedServer(failing(judgments=reply)) as server:
        path = recipe(tmp_path, models, server.url, eval__prompts=prompts)
        assert items(run(path)) == 5
        server.answer = answer
        kept, asked = again(path, server)
        assert (items(kept), asked) == (5, 0)
        why = {step.name: step.why for step in kept.steps}["judge/alpaca/two"]
        assert why == "1 without an answer are final: `--retry` asks again"
        assert f"judge/alpaca/two: {why}." in comparison(kept)["notes"]
        mended, asked = again(path, server, retry=True)
        assert (items(mended), asked) == (6, 1)
        assert items(again(path, server)[0]) == 6


# head to head


def test_two_arms_are_judged_directly_against_each_other_beside_the_baseline(
    tmp_path: Path, models: Path, prompts: str
) -> None:
    rival = [{"id": f"p{n}", "answer": f"A file says {n}."} for n in range(6)]
    (tmp_path / "rival.jsonl").write_text("\n".join(map(json.dumps, rival)))

    def likes_the_second(path: str, body: dict[str, Any]) -> dict[str, Any]:
        if "messages" not in body:
            made = answer(path, body)
            assert isinstance(made, dict)
            return made
        shown = json.dumps(body["messages"])
        mine, other = (shown.find(text[:12]) for text in (ONE_OF["two"], ONE_OF["one"]))
        if min(mine, other) < 0:  # one of them against the file
            return verdict(0.5)
        return verdict(0.9 if mine < other else 0.2)

    alpaca = {"baseline": str(tmp_path / "rival.jsonl"), "head_to_head": [["two", "one"]]}
    with ScriptedServer(likes_the_second) as server:
        path = recipe(tmp_path, models, server.url, eval__prompts=prompts, eval__alpaca=alpaca)
        found = comparison(run(path))
        assert again(path, server)[1] == 0
    (direct,) = found["head_to_head"]
    assert (direct["a"], direct["b"], direct["n"]) == ("two", "one", 6)
    assert direct["verdict"] == "two is better" and 30 <= direct["difference"] <= 40
    (beside,) = [d for d in found["differences"] if d["metric"] == "win_rate"]
    assert beside["verdict"] == "cannot tell"
    assert found["notes"][0].startswith("head to head (alpaca win_rate): two against one ")


def test_a_pair_of_an_arm_that_is_none_is_a_sentence(tmp_path: Path, models: Path) -> None:
    with ScriptedServer(answer) as server:
        path = recipe(tmp_path, models, server.url, eval__alpaca={"head_to_head": [["two", "on"]]})
        with pytest.raises(UserError, match=r"head_to_head: no arm is called 'on'.*one"):
            run(path)


def test_the_page_is_made_anew_where_the_recipe_that_it_prints_or_the_bill_changed(
    tmp_path: Path, models: Path, prompts: str
) -> None:
    with ScriptedServer(answer) as server:
        path = recipe(tmp_path, models, server.url, eval__prompts=prompts)
        run(path)

    def state(*overrides: str) -> str:
        steps = graph.plan(schema.load(path, overrides)).steps
        return {step.name: step.state for step in steps}["report"]

    assert state() == "reuse"
    assert state("gpu_hours=99") == "run"
    ledger = Ledger(schema.load(path).recipe.folder / "spent")
    ledger.add("big-judge", Bill(1, 10, 1, 0.5))
    ledger.close()
    assert state() == "run"
