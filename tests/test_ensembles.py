"""Several judges on one benchmark."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from core.errors import UserError
from core.servers import Servers
from core.tracking import Log
from eval.config import EvalConfig
from eval.judging import pairwise, settle, several_judges
from eval.protocols import AlpacaConfig, JudgeConfig
from eval.scoring import of_checkpoint
from recipes import schema
from recipes.report.sections.judges import judge_lines
from recipes.stages import graph
from recipes.verbs import annotations as written
from recipes.verbs.readiness import doctor
from recipes.verbs.why import explain
from tests import small_recipe
from tests.eval_files import alpaca, arena, chat_logprobs, duel, shown
from tests.scripted_server import Fault, ScriptedServer, chat
from tests.test_recipe_annotations import models_only


def test_judges_of_one_name_are_numbered() -> None:
    judge = [JudgeConfig(model=name) for name in ("a/judge", "b/judge", "other", "judge")]
    assert several_judges.names(judge) == ["judge", "judge~2", "other", "judge~3"]


def test_a_benchmark_names_one_judge_or_several() -> None:
    one = JudgeConfig(model="a")
    with pytest.raises(ValueError, match="`judge` or `judges`, not both"):
        AlpacaConfig(judge=one, judges=(one,))
    config = EvalConfig(
        judge=one,
        alpaca=AlpacaConfig(judges=(JudgeConfig(model="b"), JudgeConfig(model="c"))),
        arena=None,
    )
    assert [p.judge.model for p in config.protocols("alpaca") if p.judge] == ["b", "c"]
    plain = EvalConfig(judge=one, alpaca=AlpacaConfig())
    assert [p.judge.model for p in plain.protocols("alpaca") if p.judge] == ["a"]


def test_a_judgments_key_does_not_change_when_other_judges_join() -> None:
    one = JudgeConfig(model="a", server={"urls": ["http://127.0.0.1:1"]})
    alone = EvalConfig(alpaca=AlpacaConfig(judge=one)).protocol("alpaca")
    first = EvalConfig(alpaca=AlpacaConfig(judges=(one, JudgeConfig(model="b")))).protocol("alpaca")
    assert settle.determines(one, alone) == settle.determines(one, first)
    assert "judges" not in settle.determines(one, first)


def _ask(
    tmp_path: Path, protocols: dict[str, Any], inputs: dict[str, Path]
) -> tuple[dict[str, Any], pl.DataFrame]:
    folders = {}
    with Servers(Log(), tmp_path / "logs") as servers:
        for name, protocol in protocols.items():
            folders[name] = tmp_path / name
            asked = protocol.model_copy(
                update={"judge": protocol.judge.model_copy(update={"model": name})}
            )
            pairwise.run(
                asked, inputs, tmp_path / "store", folders[name], servers=servers, log=Log()
            )
    counts = several_judges.combine(folders, tmp_path / "judgments")
    return counts, pl.read_parquet(tmp_path / "judgments" / "judgments.parquet")


def test_an_items_preference_is_the_mean_over_the_judges_that_judged_it(tmp_path: Path) -> None:
    def strict(path: str, body: dict[str, Any]) -> dict[str, Any] | Fault:
        if "What is 2 plus" in shown(body):
            return chat_logprobs({"The": 0.9})  # no verdict token
        return chat_logprobs(
            {"m": 0.2, "M": 0.6} if "0 plus" in shown(body) else {"m": 0.6, "M": 0.2}
        )

    with (
        ScriptedServer(lambda path, body: chat_logprobs({"m": 0.9, "M": 0.1})) as kind,
        ScriptedServer(strict) as other,
    ):
        counts, games = _ask(
            tmp_path, {"kind": alpaca(kind.url), "strict": alpaca(other.url)}, duel(tmp_path, 3)
        )
    by_judge = {(j, i): p for j, i, p in games.select("judge", "item", "preference").iter_rows()}
    items = several_judges.by_item(games).rows_by_key("item", named=True, unique=True)
    assert items["p0"]["preference"] == pytest.approx(
        (by_judge["kind", "p0"] + by_judge["strict", "p0"]) / 2
    )
    assert items["p2"]["preference"] == by_judge["kind", "p2"] and by_judge["strict", "p2"] is None
    assert items["p2"]["partly"] and items["p2"]["reason"].startswith(
        "1 of 2 judges left a game unjudged (neither m nor M"
    )
    assert counts["partly_judged"] == 1 and counts["unjudged_by_judge"] == {"strict": 1}
    assert (counts["agreement"], counts["agreement_pairs"]) == (
        0.5,
        2,
    )  # alike on p1, opposed on p0
    of_checkpoint.run({"judgments-alpaca": tmp_path / "judgments"}, tmp_path / "scores")
    rows = pl.read_parquet(tmp_path / "scores" / "scores.parquet")
    assert rows["value"].to_list() == pytest.approx(
        [100 * items[i]["preference"] for i in ("p0", "p1", "p2")]
    )
    assert (
        rows["reason"].to_list()[:2] == [None, None]
        and "1 of 2 judges" in rows["reason"][2]
        and rows["status"][2] == "ok"
    )
    figure = json.loads((tmp_path / "scores" / "summary.json").read_text())["alpaca"]["win_rate"]
    assert (figure["judges"], figure["partly_judged"], figure["judge_agreement"], figure["n"]) == (
        2,
        1,
        0.5,
        3,
    )


def test_the_games_of_all_judges_enter_an_arena_score(tmp_path: Path) -> None:
    with (
        ScriptedServer(lambda p, b: chat("[[A>>B]]")) as one,
        ScriptedServer(lambda p, b: chat("[[A=B]]")) as other,
    ):
        counts, games = _ask(
            tmp_path,
            {"one": arena(one.url, version="v2.0"), "other": arena(other.url, version="v2.0")},
            duel(tmp_path, 2),
        )
    assert (
        games.height == 8
        and counts["position_pairs"] == 4
        and counts["position_consistency"] == 0.5
    )
    of_checkpoint.run({"judgments-arena": tmp_path / "judgments"}, tmp_path / "scores")
    assert json.loads((tmp_path / "scores" / "summary.json").read_text())["arena"]["arena_score"][
        "value"
    ] == pytest.approx(50)


def test_a_folder_without_judgments_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="run that judge first"):
        several_judges.combine({"x": tmp_path}, tmp_path / "out")


def test_a_recipe_with_two_judges_asks_each_and_scores_their_mean(tmp_path: Path) -> None:
    def hosted(path: str, body: dict[str, Any]) -> dict[str, Any] | Fault:
        if body.get("model") in ("mild", "harsh"):
            mine = 0.6 if body["model"] == "mild" else 0.1
            return chat_logprobs({"1": mine, "2": 0.9 - mine})
        return small_recipe.answer(path, body)

    with ScriptedServer(hosted) as server:
        path = models_only(tmp_path, server.url)
        where = {"urls": [server.url], "max_in_flight": 8}
        pair = [
            {"model": name, "server": where, "prices": {"input": 1.0, "output": 1.0}}
            for name in ("mild", "harsh")
        ]
        loaded = schema.load(path, [f"eval.alpaca.judges={json.dumps(pair)}", "eval.arena=null"])
        graph.run(loaded, "answers")
        said = {s.name: s.why for s in graph.plan(loaded).steps}
        planned = [said[f"verdicts/alpaca/{name}/two"] for name in ("mild", "harsh")]
        assert all("at most 24 calls" in why and "in money" in why for why in planned)
        outcome = graph.run(loaded, "score")
        before = len(server.requests)
        assert {s.state for s in graph.run(loaded, "score").steps} == {"reuse"} and len(
            server.requests
        ) == before
    counts = outcome.results["judge/alpaca/two"].manifest["counts"]
    assert counts["rows"] == 48 and counts["position_consistency"] == 0
    *_, together, mild, _, _, _ = judge_lines(loaded.recipe, outcome.results)
    assert "judge/alpaca/two: 48 of 48 games judged, both orders agree in 0 % of 24" in together
    assert "the judges agree on 100 % of 12 items" in together
    assert mild.startswith("the judge mild of alpaca was never compared with people")
    assert [j.model for j in doctor.judges_of(loaded.recipe.eval)] == ["mild", "harsh"]
    item = pl.read_parquet(outcome.results["judge/alpaca/two"].path / "judgments.parquet")["item"][
        0
    ]
    games = [line for line in explain(loaded, f"two/{item}") if line.startswith("judge/")]
    assert [
        name in line for line, name in zip(games, ("mild", "mild", "harsh", "harsh"), strict=True)
    ] == [True] * 4
    (file,) = written.write(loaded, tmp_path / "files")
    rows = json.loads(file.read_text())
    assert {r["annotator"] for r in rows} == {"mild+harsh"} and all(
        math.isclose(r["preference"], 1.5) for r in rows
    )
