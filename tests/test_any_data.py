"""From prompts without answers to a published mixture, killed twice on the way: every count is
exact.

`python -m tests.test_any_data FOLDER` runs it with embeddings as well and prints what it does.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml

from core.sending import client
from recipes import schema
from recipes.exchange import export_data
from recipes.exchange.export_data import Target
from recipes.stages import graph
from tests.scripted_server import Fault, ScriptedServer, chat
from tests.waiting import exit_code, last_words

PROMPTS, OTHERS = 150, 60
ROWS = 100
IN_FLIGHT = 8
LABELS = ("low", "mid", "high")
CLARITY = "How clear is this request?\n{{ fence }}\n{{ instruction }}\n{{ fence }}\n"


def prompt(number: int) -> str:
    return f"Explain thing {number} to me."


def clarity(text: str) -> str:
    """What the scripted tagger thinks of a text."""
    return LABELS[hashlib.sha256(text.encode()).digest()[0] % 3]


def answer_to(text: str) -> str:
    """What the scripted responder says: as long as nobody else's answer."""
    number = int("".join(filter(str.isdigit, text)))
    return "It is so. " + "Indeed. " * (1 + number * 7 % PROMPTS)


class Service:
    """A chat service that tags and answers; at the n-th request of a kind it kills the harness."""

    def __init__(self) -> None:
        self.seen: Counter[str] = Counter()
        self.when: tuple[str, int] | None = None
        self.pid = 0

    def __call__(self, path: str, body: dict[str, Any]) -> dict[str, Any] | Fault:
        assert path.endswith("/chat/completions"), "nothing but a chat is asked of a service"
        asked = body["messages"][-1]["content"]
        kind = "tags" if "How clear is this request?" in asked else "answers"
        self.seen[kind] += 1
        if self.pid and self.when and kind == self.when[0] and self.seen[kind] >= self.when[1]:
            self.when = None
            os.kill(self.pid, signal.SIGKILL)
        if kind == "answers":
            return chat(answer_to(asked))
        text = next(line for line in asked.splitlines() if line.startswith("Explain"))
        return chat(
            json.dumps({"clarity_explanation": "", "explanation": "", "clarity": clarity(text)})
        )


def write(folder: Path, url: str, where: str = "clarity >= 'mid'") -> Path:
    """The files, and the recipe over them."""
    lines = [{"id": f"p{number}", "prompt": prompt(number)} for number in range(PROMPTS)]
    others = [
        # every sixth asks what a prompt asks as well
        {
            "id": f"p{n}",
            "question": prompt(n) if n % 6 == 0 else f"Who is person {n}?",
            "answer": ".",
        }
        for n in range(OTHERS)
    ]
    for name, rows in (("prompts", lines), ("others", others)):
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(text)
    (folder / "clarity.jinja").write_text(CLARITY)
    service = {
        "model": "big-1",
        "api": "chat",
        "server": {"urls": [url], "max_in_flight": IN_FLIGHT},
        "prices": {"input": 1.0, "output": 2.0},
    }
    clear = {"prompt": str(folder / "clarity.jinja"), "labels": [*LABELS], "mode": "explain"}
    people = {
        "share": 0.3,
        "data": str(folder / "others.jsonl"),
        "map": {"instruction": "question", "response": "answer"},
        "licence": "cc0-1.0",
    }
    arms = {
        "clear": {"where": where, "choose": "longest", "budget": {"rows": 70}, "licence": "mit"},
        "mixed": {"mix": {"clear": 0.7, "people": people}, "budget": {"rows": ROWS}},
    }
    data = {
        "name": "any",
        "store": str(folder / "store"),
        "track": "none",
        "random_arm": False,
        "synth": {
            "teacher": {"model": "embedded/SmolLM2-135M-Instruct"},
            "responder": service,
            "rows": {"import": str(folder / "prompts.jsonl"), "answers": "missing"},
            "response": {"temperature": 0.0, "max_tokens": 2000},
            "tags": {"own": {"clarity": {**clear, "model": service}}},
        },
        "arms": arms,
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(data, sort_keys=False))
    return path


def magpie(*words: object) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "recipes.cli", *map(str, words)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def killed_at(path: Path, service: Service, kind: str, number: int) -> None:
    """Run the recipe and let the service kill it at its n-th request of a kind."""
    harness = magpie("run", path, "--until", "select")
    service.pid, service.when = harness.pid, (kind, number)
    assert exit_code(harness) == -signal.SIGKILL, last_words(harness)


def expected() -> list[str]:
    """The ids of the arm, by a plain loop: clear enough, the longest answers first."""
    clear = [n for n in range(PROMPTS) if clarity(prompt(n)) != "low"]
    assert len(clear) > 70
    ranked = sorted(clear, key=lambda n: -len(answer_to(prompt(n))))
    return [f"p{n}" for n in ranked[:70]]


def check(folder: Path, server: ScriptedServer) -> dict[str, Any]:
    """Assert that every count is what it has to be; returns them."""
    below = folder / "store/recipes/any"
    pool = pl.read_parquet(below / "measure/pool.parquet")
    clear = pool.filter(pl.col("clarity") >= pl.lit("mid", pool.schema["clarity"]))
    answered = pool.filter(pl.col("status:response") == "ok")
    assert len(pool) == PROMPTS and pool["clarity"].null_count() == 0
    assert set(answered["id"]) == set(clear["id"]), "what is unclear is never answered"
    asked = Counter(json.dumps(request.body, sort_keys=True) for request in server.requests)
    assert len(asked) == PROMPTS + len(clear)
    twice = sum(asked.values()) - len(asked)
    assert twice <= 2 * IN_FLIGHT, "a kill buys again only what was in flight"
    chosen = pl.read_parquet(below / "select/clear/selection.parquet")["id"].to_list()
    assert chosen == expected()
    exported = pl.read_parquet(folder / "out/data/*.parquet")
    told = Counter(exported.select("source", "licence").iter_rows())
    assert told == {("clear", "mit"): 70, ("people", "cc0-1.0"): 30}
    assert exported["instruction"].n_unique() == exported["id"].n_unique() == ROWS
    of_arm = exported.filter(source="clear")
    assert set(of_arm["id"]) == {f"clear:{name}" for name in chosen}
    for ask, say in of_arm.select("instruction", "response").iter_rows():
        assert say == answer_to(ask).strip() or say == answer_to(ask)
    return {
        "prompts": PROMPTS,
        "tagged": PROMPTS,
        "clear enough": len(clear),
        "answered": len(answered),
        "requests": sum(asked.values()),
        "asked again after kills": twice,
        "exported": {f"{source} ({licence})": n for (source, licence), n in told.items()},
    }


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "BACKOFF", (0.001, 0.005))


@pytest.mark.process
def test_prompts_are_answered_tagged_mixed_and_exported_though_killed_twice(
    tmp_path: Path,
) -> None:
    service = Service()
    with ScriptedServer(service, delay=0.01) as server:
        path = write(tmp_path, server.url)
        killed_at(path, service, "tags", 60)
        killed_at(path, service, "answers", 40)
        graph.run(schema.load(path), "select")
        export_data.main(str(path), Target(tmp_path / "out", "magpie"), arm="mixed")
        check(tmp_path, server)
        states = {step.name: step.state for step in graph.plan(schema.load(path)).steps}
        assert set(states.values()) == {"reuse"}


def main(folder: Path) -> None:
    """The same on embedded models, near-duplicates by embeddings too, with what is printed."""
    folder.mkdir(parents=True)
    service = Service()
    with ScriptedServer(service, delay=0.01) as server:
        path = write(folder, server.url, "min_neighbor_distance > 0 AND clarity >= 'mid'")
        killed_at(path, service, "tags", 60)
        print(f"killed while tagging, at request {sum(service.seen.values())}")
        killed_at(path, service, "answers", 40)
        print(f"killed while answering, at request {sum(service.seen.values())}")
        for words in (
            ("run", path, "--until", "select"),
            ("export", path, "--arm", "mixed", "--form", "magpie", "--out", folder / "out"),
            ("why", path, "mixed"),
            ("plan", path),
        ):
            print("$ magpie", *words)
            out, err = magpie(*words).communicate()
            print((err + out).decode())
        print(json.dumps(check(folder, server), indent=1))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
