"""Best of n: the answer with the highest reward is the row's response, and its answers are those
of preference pairs."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml

from core.sending import client
from recipes import schema
from recipes.stages import graph
from synth.config.synthesis import SynthConfig
from tests import small_recipe
from tests.scripted_server import Fault, ScriptedServer, chat

ROWS = 12


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "BACKOFF", (0.001, 0.005))


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_recipe.model(tmp_path_factory.mktemp("model") / "llama")


def words(seed: int) -> str:
    return " ".join(["word"] * (1 + seed % 17))


class Room:
    """A service whose answers differ in length by their seed, and a reward model that likes long
    ones."""

    def __init__(self, folder: Path, llama: Path) -> None:
        self.folder, self.llama = folder, llama
        lines = [{"id": f"r{i}", "instruction": f"say {i}"} for i in range(ROWS)]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / "prompts.jsonl").write_text(text)
        self.server = ScriptedServer(self.answer).__enter__()

    def answer(self, path: str, body: dict[str, Any]) -> dict[str, Any] | Fault:
        if path.endswith("/classify"):
            score = {"index": 0, "probs": [float(len(body["input"]))], "num_classes": 1}
            return {"data": [score], "usage": {"prompt_tokens": len(body["input"])}}
        return chat(words(body["seed"]))

    def asked(self, ending: str) -> list[dict[str, Any]]:
        return [r.body for r in self.server.requests if r.path.endswith(ending)]

    def run(self, name: str, until: str = "select", **synth: Any) -> schema.Loaded:
        urls = {"urls": [self.server.url], "max_in_flight": 8}
        hosted = {"model": "big-1", "api": "chat", "server": urls}
        data = {
            "name": name,
            "store": str(self.folder / "store"),
            "track": "none",
            "random_arm": False,
            "synth": {
                "teacher": hosted,
                "rows": {"import": str(self.folder / "prompts.jsonl"), "answers": "missing"},
                "tags": {"reward": {"model": str(self.llama), "server": urls}},
                **synth,
            },
            "arms": {"every": {"choose": "all"}},
        }
        path = self.folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump(data))
        loaded = schema.load(path)
        self.outcome = graph.run(loaded, until=until)
        return loaded


@pytest.fixture
def room(tmp_path: Path, llama: Path) -> Iterator[Room]:
    made = Room(tmp_path, llama)
    yield made
    made.server.__exit__(None, None, None)


def pool(loaded: schema.Loaded) -> pl.DataFrame:
    return pl.read_parquet(loaded.recipe.folder / "measure" / "pool.parquet")


def test_the_answer_with_the_highest_reward_is_the_response(room: Room) -> None:
    rows = pool(room.run("best", responses={"n": 4}))
    bodies = room.asked("/chat/completions")
    assert len(bodies) == ROWS * 4 and {body["temperature"] for body in bodies} == {0.8}
    longest: dict[str, str] = {}
    for body in bodies:
        prompt, said = body["messages"][0]["content"], words(body["seed"])
        longest[prompt] = max(longest.get(prompt, ""), said, key=len)
    assert dict(zip(rows["instruction"], rows["response"], strict=True)) == longest
    tokens = {prompt: len(text.split()) for prompt, text in longest.items()}
    assert dict(zip(rows["instruction"], rows["response_tokens"], strict=True)) == tokens
    cost = json.loads((room.folder / "store/recipes/best/measure/cost.json").read_text())
    spent = {column["name"]: column["tokens"] for column in cost["columns"]}
    assert spent["response"] == sum(len(words(body["seed"]).split()) for body in bodies)


def test_pairs_of_five_beside_the_best_of_four_buy_the_fifth_answer_only(room: Room) -> None:
    pairs = {"k": 5, "margin": 0.0}
    room.run("best", responses={"n": 4})
    scored = len(room.asked("/classify"))
    room.run("both", until="preferences", responses={"n": 4}, preferences=pairs)
    assert len(room.asked("/chat/completions")) == ROWS * 5
    assert scored <= len(room.asked("/classify")) <= scored + ROWS
    room.run("fewer", responses={"n": 3}, preferences=pairs)
    assert len(room.asked("/chat/completions")) == ROWS * 5, "three of the five"


def test_rows_of_which_no_answer_could_be_scored_are_counted(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer(path: str, body: dict[str, Any]) -> dict[str, Any] | Fault:
        if path.endswith("/classify"):
            return room.answer(path, body)
        number = int(body["messages"][0]["content"][4:])
        if number == 1:
            return chat(words(body["seed"]), "length")
        return Fault("status", 400) if number == 2 else chat(words(body["seed"]))

    monkeypatch.setattr(room.server, "answer", answer)
    loaded = room.run("best", responses={"n": 4})
    funnel = json.loads((loaded.recipe.folder / "select/every/funnel.json").read_text())
    assert sum(funnel["failed"].values()) == 2
    parts = (room.folder / "store/columns").rglob("part-*.parquet")
    cells = list(map(pl.read_parquet, parts))
    reasons = [reason for frame in cells for reason in frame["reason"].drop_nulls()]
    assert Counter(reason for reason in reasons if reason.startswith("none of")) == {
        "none of 4 answers could be scored: cut off at max_tokens": 1,
        "none of 4 answers could be scored: request failed: HTTP 400: scripted failure": 1,
    }


def test_best_of_n_needs_a_reward_model_and_a_temperature() -> None:
    for block, sentence in [
        ({"n": 4}, "`responses` needs a reward model"),
        ({"n": 4, "sampling": {"temperature": 0}}, "all n answers would be the same"),
        ({"n": 1}, "greater than or equal to 2"),
    ]:
        with pytest.raises(ValueError, match=sentence):
            SynthConfig.model_validate({"teacher": {"model": "m"}, "responses": block})
