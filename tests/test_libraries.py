"""What a recipe says to other libraries is judged by them, once for each value and version."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from core.errors import UserError
from recipes import schema
from recipes.checks import libraries, questions
from recipes.checks.libraries import Library
from recipes.checks.questions import Question
from tests.test_refused import BASE

JUDGE = libraries.judge
"""As it is where no fixture stands in its place."""


@pytest.fixture
def loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> schema.Loaded:
    monkeypatch.setenv("MAGPIE_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "recipe.yaml"
    path.write_text(BASE)
    return schema.load(path)


def _resolved(model: str, revision: str | None) -> Any:
    return type("Model", (), {"path": "/nowhere"})()


def _asked(loaded: schema.Loaded, *overrides: str) -> list[Question]:
    recipe = schema.load(loaded.source.path, overrides).recipe
    return questions.of_recipe(recipe, _resolved)


def test_every_distinct_value_is_one_question(loaded: schema.Loaded) -> None:
    kinds = [(each.library, each.kind) for each in _asked(loaded)]
    assert kinds.count(("vllm", "engine")) == 1  # teacher, judge and checkpoint are served alike
    assert kinds.count(("trl", "training")) == kinds.count(("lm_eval", "tasks")) == 1
    places = {each.place for each in _asked(loaded) if each.kind == "sampling"}
    assert ("eval", "answers", "sampling") in places and ("eval", "alpaca", "sampling") in places


def test_what_changes_no_answer_asks_nothing_anew(loaded: schema.Loaded) -> None:
    more = ("train.seeds=[7]", "train.grace=9", "synth.rows=99", "name=other", "gpu_hours=3")
    assert _asked(loaded) == _asked(loaded, *more)
    assert _asked(loaded) != _asked(loaded, "train.trainer.max_length=7")


def test_servers_of_others_are_not_asked_about(loaded: schema.Loaded) -> None:
    where = "server.urls=['http://x']"
    blocks = ("synth.teacher", "eval.judge", "eval.answers")
    asked = _asked(loaded, *(f"{block}.{where}" for block in blocks))
    assert {each.library for each in asked} == {"trl", "lm_eval"}


def _judged(loaded: schema.Loaded, monkeypatch: pytest.MonkeyPatch, says: str | None) -> list[int]:
    """How many questions were asked of libraries that all say `says`."""
    asked: list[int] = []

    def answers(open_: list[Question]) -> list[str | None]:
        asked.append(len(open_))
        return [says for _ in open_]

    monkeypatch.setattr(libraries, "answers", answers)
    JUDGE(loaded.recipe, loaded.source, _resolved, lambda _: None)
    return asked


def test_what_was_accepted_is_not_asked_again_until_a_version_changes(
    loaded: schema.Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = _judged(loaded, monkeypatch, None)
    assert first[0] >= 6 and _judged(loaded, monkeypatch, None) == []
    monkeypatch.setattr(libraries, "_version", lambda names: f"{names[0]} 99")
    assert _judged(loaded, monkeypatch, None) == first


def test_what_was_refused_is_asked_again_and_names_its_place(
    loaded: schema.Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(2):
        with pytest.raises(UserError, match=r"recipe\.yaml:\d+: no such thing \(and \d+ more like"):
            _judged(loaded, monkeypatch, "no such thing.")


@pytest.mark.process
def test_libraries_answer_in_processes_at_once_and_one_that_is_not_here_says_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    here = Library("tests.a_checker", (("pydantic",),), "here", "things")
    gone = Library("tests.a_checker", (("no-such-package",),), "gone", "things")
    broken = Library("tests.no_checker", (("pydantic",),), "broken", "things")
    named = {"here": here, "gone": gone, "broken": broken}
    monkeypatch.setattr(libraries, "LIBRARIES", named)
    asked = [
        Question(library, "kind", ("a", "b"), {"value": value})
        for value in (1, 2)
        for library in ("here", "gone", "broken")
    ]
    said = libraries.answers(asked)
    assert said == ["a.b: 1 is odd", None, None, None, None, None]
