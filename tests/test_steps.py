"""Judging in steps, through a whole recipe: two finished models of which one writes better."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from core import models
from core.errors import UserError
from core.store import digest
from eval import stats
from recipes import schema
from recipes.stages import graph
from recipes.stages.evaluating import steps
from tests import small_recipe
from tests.scripted_server import ScriptedServer, chat, completion


class Judge:
    """Prefers the second model's answer wherever `likes` says so of a prompt; counts its calls."""

    def __init__(self, likes: Callable[[str], bool]) -> None:
        self.likes, self.calls = likes, 0

    def __call__(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        if "messages" not in body:
            return completion(f"An answer #{Path(body['model']).name}.")
        self.calls += 1
        asked = json.dumps(body["messages"])
        second_is_first = asked.index("#second") < asked.index("#first")
        return chat("m" if second_is_first == self.likes(asked.partition("#")[0]) else "M")


def _recipe(folder: Path, url: str, **evaluation: Any) -> Path:
    server = {"urls": [url], "max_in_flight": 16}
    arms = {name: {"model": str(small_recipe.model(folder / name))} for name in ("first", "second")}
    teacher = small_recipe.model(folder / "teacher")
    asked = {
        "answers": {"sampling": {"temperature": 0, "max_tokens": 30}, "server": server},
        "judge": {"model": str(teacher), "server": server},
        "alpaca": {"mode": "text", "order": "both", "sampling": {"max_tokens": 500}},
        "judging": "sequential",
    }
    return small_recipe.recipe(
        folder,
        teacher,
        url,
        arms=arms,
        random_arm=False,
        baseline="first",
        eval=asked | evaluation,
        synth__rows=4,
        synth__heldout=0,
    )


def _compared(path: Path) -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:  # equal weights under two names are two models here
        patch.setattr(models, "folder_revision", lambda folder: digest(folder.name))
        made = graph.run(schema.load(path), "compare")
    return dict(json.loads((made.results["compare"].path / "comparison.json").read_text()))


@pytest.fixture(scope="module")
def clear(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Judge, dict[str, Any]]:
    """A difference that the first look sees."""
    folder, judge = (
        tmp_path_factory.mktemp("clear"),
        Judge(lambda prompt: sum(map(ord, prompt)) % 8 > 0),
    )
    with ScriptedServer(judge) as server:
        path = _recipe(folder, server.url)
        return path, judge, _compared(path)


def test_a_difference_that_is_clear_stops_the_judge(
    clear: tuple[Path, Judge, dict[str, Any]],
) -> None:
    _, judge, comparison = clear
    assert judge.calls == 2 * 40  # both orders of the fewest prompts that a look believes
    (difference,) = comparison["differences"][:1]
    assert difference["verdict"] == "second is better" and difference["n"] == 40
    (said,) = [note for note in comparison["notes"] if "judged in steps" in note]
    assert "after 40 of 48 every difference is told, so 17% of the calls were saved" in said
    assert "raw win rate decides: lengths are not controlled" in said


def test_the_raw_win_rate_decides_where_judging_stops_early(
    clear: tuple[Path, Judge, dict[str, Any]],
) -> None:
    _, _, comparison = clear
    assert comparison["primary"] == "alpaca/win_rate"
    assert [s["metric"] for s in comparison["scores"] if s["primary"]] == ["win_rate"] * 2


def test_a_difference_that_would_hardly_be_told_by_the_rest_is_given_up(tmp_path: Path) -> None:
    judge = Judge(lambda prompt: sum(map(ord, prompt)) % 2 == 0)
    with ScriptedServer(judge) as server:
        comparison = _compared(_recipe(tmp_path, server.url))
    assert judge.calls == 2 * 45  # the first look still hoped
    assert comparison["differences"][0]["verdict"] == "cannot tell"
    (said,) = [note for note in comparison["notes"] if "judged in steps" in note]
    assert "after 45 of 48 every difference is told or (second and first) would hardly be" in said


def test_of_prompts_too_few_for_a_look_all_are_judged_and_it_is_said(tmp_path: Path) -> None:
    judge = Judge(lambda prompt: sum(map(ord, prompt)) % 8 > 0)
    with ScriptedServer(judge) as server:
        comparison = _compared(_recipe(tmp_path, server.url, limit=12))
    (said,) = [note for note in comparison["notes"] if "in steps" in note]
    assert "12 prompts are too few for a look (none comes before 40): all were judged" in said
    assert "raw win rate decides: lengths are not controlled" in said
    (difference,) = comparison["differences"][:1]
    assert difference["test"] != "sequence", "looks that never were cost nothing"
    assert difference["simultaneous_upper"] == pytest.approx(difference["upper"])


def test_judging_that_no_look_ended_says_what_looking_cost() -> None:
    pair = {"a": "x", "b": "y", "hopeless": False}
    told = steps.said({"judged": 729, "stop": False, "pairs": [pair]}, 805)
    assert "no look ended it, so all 805 were judged and no call was saved" in told
    assert "raw win rate decides: lengths are not controlled" in told
    assert "by 14 to 15 % after all prompts" in told and "is found 72 to 74 times" in told
    for df, share in ((math.inf, 0.14), (40, 0.15)):
        wider = stats.t_critical(df, 0.975) / stats.t_critical(df, 0.95)
        assert wider == pytest.approx(1 + share, abs=0.005)


def test_looks_come_after_each_tenth_and_none_before_forty_prompts() -> None:
    assert steps.steps(805) == [81, 162, 243, 324, 405, 486, 567, 648, 729]
    assert steps.steps(48) == [40, 45]
    assert steps.steps(40) == []


@pytest.mark.parametrize(
    "evaluation", [{"alpaca": None, "checks": {}}, {"primary": "checks", "checks": {}}]
)
def test_only_the_win_rate_can_be_judged_in_steps(
    tmp_path: Path, evaluation: dict[str, Any]
) -> None:
    path = _recipe(tmp_path, "http://127.0.0.1:1", **evaluation)
    with pytest.raises(UserError, match="`judging: sequential` judges `alpaca`"):
        schema.load(path)
