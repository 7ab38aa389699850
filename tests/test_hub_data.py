"""What else comes from a hub, on loopback: prompts of evaluations, AlpacaEval's tables, licences,
the shape of a base, the commit of an import; and what `doctor` says of access."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from core.errors import UserError
from core.models import resolve
from core.pretrained import hub as asking
from core.tracking import Log
from eval.prompt_sets import prompts, rated_tasks
from eval.scoring import length_control
from recipes.stages import checks
from recipes.stages.sets.licences import licence_of
from recipes.verbs.readiness import doctor
from synth.config.rows import ImportConfig
from synth.pool import importing
from synth.published import files
from tests.loopback_hub import TOKEN, Hub, Repository, commit, point_at
from train.sizes.shapes import shape_of

ALPACA = [{"instruction": "Why?", "dataset": "helpful", "output": "So.", "generator": "gpt"}]
LLAMA = {
    "model_type": "llama",
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "vocab_size": 32,
    "tie_word_embeddings": False,
}
QUESTION = {
    "question_id": 81,
    "category": "writing",
    "turns": ["Write.", "Shorter."],
    "reference": [],
}


def data(**held: Any) -> Repository:
    """A data set repository of JSON and plain files."""
    files = {}
    for name, text in held.items():
        files[name] = (text if isinstance(text, str) else json.dumps(text)).encode()
    return Repository(files, kind="datasets")


def unplug(hub: Hub) -> None:
    """It is gone, and was not asked just before."""
    hub.__exit__(None, None, None)
    asking._knocked.clear()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    repositories = {
        "tatsu-lab/alpaca_eval": data(
            **{
                "alpaca_eval_gpt4_baseline.json": ALPACA,
                "instruction_difficulty.csv": "n,difficulty\n0,1\n",
                "df_gamed.csv": "a\n1\n",
            }
        ),
        "HuggingFaceH4/mt_bench_prompts": data(**{"raw/question.jsonl": QUESTION}),
        "me/set": Repository({"a.jsonl": b"1"}, card={"license": ["mit", "cc-by-4.0"]}),
        "me/bare": Repository({"a.jsonl": b"1"}),
        "me/llama": Repository({"config.json": json.dumps(LLAMA).encode()}, kind="models"),
        "me/gated": Repository({"config.json": b"{}"}, kind="models", gated=True),
    }
    with Hub(repositories) as served:
        point_at(served.url, tmp_path, monkeypatch)
        yield served


@pytest.mark.parametrize(
    "had",
    [
        lambda: [each.prompt for each in prompts.prompts("alpaca_eval")],
        lambda: [task.turns for task in rated_tasks.tasks("mtbench", "mt_bench")],
        lambda: [path.read_text() for path in length_control.tables(None)],
    ],
    ids=["prompts", "tasks", "tables"],
)
def test_what_an_evaluation_needs_is_downloaded_once(hub: Hub, had: Callable[[], Any]) -> None:
    first = had()
    asked = len(hub.asked)
    assert first and had() == first and len(hub.asked) == asked


def test_a_plan_downloads_no_prompts(hub: Hub) -> None:
    with pytest.raises(UserError, match=r"alpaca_eval cannot be fetched \(it is not downloaded ye"):
        prompts.prompts("alpaca_eval", fetch=False)
    assert hub.asked == []


def test_prompts_without_a_network_are_one_sentence_and_those_that_are_here_are_read(
    hub: Hub,
) -> None:
    known = prompts.prompts("alpaca_eval")
    unplug(hub)
    assert prompts.prompts("alpaca_eval") == known
    with pytest.raises(UserError, match=r"cannot be reached .*; download it elsewhere and give"):
        rated_tasks.tasks("mtbench", "mt_bench")


@pytest.mark.parametrize(("name", "licence"), [("me/set", "mit, cc-by-4.0"), ("me/bare", None)])
def test_a_data_sets_licence_is_asked_once(
    hub: Hub, tmp_path: Path, name: str, licence: str | None
) -> None:
    assert licence_of(name, None, tmp_path, ask=True) == licence
    asked = len(hub.asked)
    assert licence_of(name, None, tmp_path, ask=True) == licence and len(hub.asked) == asked
    kept = tmp_path / "licence.json"
    for damaged in ('{"licence": "gpl", "seal": "0"}', "{}", "[]", ""):
        kept.write_text(damaged)
        assert licence_of(name, None, tmp_path, ask=True) == licence


def test_a_licence_without_a_network_is_not_known_and_asked_for_later(
    hub: Hub, tmp_path: Path
) -> None:
    unplug(hub)
    assert licence_of("me/set", None, tmp_path, ask=True) is None
    assert not (tmp_path / "licence.json").exists()


def test_the_shape_of_a_base_comes_from_the_hub(hub: Hub) -> None:
    assert shape_of("me/llama", None).source == "the hub"
    unplug(hub)
    assert shape_of("me/llama", None).source == "the hub's cache"
    with pytest.raises(UserError, match=r"the hub gives no config.json \(.*cannot be reached"):
        shape_of("me/other", None)


def test_an_import_keeps_to_the_commit_that_it_began_with(hub: Hub, tmp_path: Path) -> None:
    pool: Any = SimpleNamespace(instruction=SimpleNamespace(folder=tmp_path / "cells"))
    source = ImportConfig.model_validate({"import": "me/set", "limit": 1})
    first = importing._at_one_commit(pool, source, Log())
    assert first.revision == commit(hub.repositories["me/set"].files)
    hub.repositories["me/set"].files = {"a.jsonl": b"2"}
    more = source.model_copy(update={"limit": 2})
    assert importing._at_one_commit(pool, more, Log()).revision == first.revision
    own = ImportConfig.model_validate({"import": str(tmp_path)})
    (tmp_path / "a.jsonl").write_text("{}")
    assert importing._at_one_commit(pool, own, Log()) is own


def test_a_data_set_without_a_network_is_one_sentence(hub: Hub) -> None:
    unplug(hub)
    with pytest.raises(UserError, match=r"neither a file here nor to be had .* cannot be reached"):
        files.commit("me/set", None)


def test_doctor_says_who_may_have_a_model(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    def said(name: str) -> tuple[str, str]:
        found = doctor._model("train.base", name, None)
        return found.state, found.what + found.advice

    state, text = said("me/gated")
    assert state == "fail" and f"ask for access at {hub.url}/me/gated" in text
    assert said("me/llama")[0] == "ok"
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.repositories["me/gated"].granted = True
    assert said("me/gated")[0] == "ok"
    assert said("me/nobody")[0] == "fail"
    unplug(hub)
    state, text = said("me/elsewhere")
    assert state == "warn" and "cannot be asked" in text


def test_a_gated_model_is_refused_before_anything_is_spent(hub: Hub, tmp_path: Path) -> None:
    from recipes import schema
    from recipes.stages.walk import Arms

    (tmp_path / "recipe.yaml").write_text(
        "name: gated\nsynth: {teacher: {model: me/gated}, rows: 10}\narms: {all: {choose: all}}\n"
    )
    recipe = schema.load(tmp_path / "recipe.yaml").recipe
    with pytest.raises(UserError, match=r"synth.teacher.model: model me/gated is gated: ask for"):
        checks.models(recipe, Arms.of(recipe), resolve)
