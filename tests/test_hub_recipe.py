"""A recipe whose teacher, student, finished model, judge, rows and arms are all on a hub: run once
with it, then without."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests import small_recipe
from tests.loopback_hub import TOKEN, Hub, Repository, commit
from tests.scripted_server import ScriptedServer
from tests.test_hub import line

pytestmark = pytest.mark.slow


@dataclass
class Ran:
    """The runs, by what was done to the network: (exit code, all output, seconds); `hub` is what
    answered, `asked` how much by when."""

    hub: Hub
    home: Path
    recipe: Path
    runs: dict[str, tuple[int, str, float]] = field(default_factory=dict)
    asked: dict[str, int] = field(default_factory=dict)

    def magpie(self, name: str, *arguments: str, **environment: str) -> None:
        """Runs the command line with this hub."""
        started = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-m", "recipes.cli", *arguments],
            env={
                **os.environ,
                "HF_ENDPOINT": self.hub.url,
                "HF_HOME": str(self.home / "hf"),
                "MAGPIE_CACHE": str(self.home / "magpie"),
                "HF_TOKEN": TOKEN,
                **environment,
            },
            cwd=Path(__file__).parents[1],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=900,
            check=False,
        )
        self.runs[name] = (done.returncode, done.stdout, time.monotonic() - started)
        self.asked[name] = len(self.hub.asked)


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ran]:
    """The recipe, run to its end with the hub, and planned and run again without."""
    folder = tmp_path_factory.mktemp("hub")
    llama = small_recipe.model(folder / "llama")
    weights = {path.name: path.read_bytes() for path in llama.iterdir() if path.is_file()}
    moved_on = {**weights, "tokenizer.json": b"{}", "model.safetensors": b"newer"}
    rows = b"".join(line(f"Why is the river of stone {n} red?") for n in range(120))
    repositories = {
        "me/llama": Repository(moved_on, {"v1": weights}, kind="models"),
        "me/gated": Repository(weights, kind="models", gated=True),
        "me/rows": Repository({"rows.jsonl": rows}, kind="datasets", card={"license": "mit"}),
    }
    with Hub(repositories) as hub, ScriptedServer(small_recipe.answer) as server:
        at = {"model": "me/llama", "revision": "v1"}
        served = {**at, "server": {"urls": [server.url], "max_in_flight": 16}}
        recipe = small_recipe.recipe(
            folder,
            llama,
            server.url,
            train=True,
            synth__teacher=served,
            synth__rows={"import": "me/rows", "limit": 100, "answers": "all"},
            arms__theirs={"data": "me/rows", "choose": "hash_order", "budget": {"rows": 5}},
            arms__untuned=at,
            train__base="me/llama",
            train__revision="v1",
            eval__judge={**served, "api": "completions"},
        )
        made = Ran(hub, folder / "home", recipe)
        made.magpie("planned", "plan", str(recipe))
        made.magpie("first", "run", str(recipe))
        made.magpie("gated", "run", str(recipe), "train.base=me/gated", "train.revision=null")
        made.magpie("offline", "run", str(recipe), HF_HUB_OFFLINE="1")
        hub.__exit__(None, None, None)
        made.magpie("unplugged", "run", str(recipe))
        with socket.create_server(("127.0.0.1", 0)) as silent:
            address = f"http://127.0.0.1:{silent.getsockname()[1]}"
            made.magpie("silent", "run", str(recipe), HF_ENDPOINT=address)
            made.magpie(
                "import", "import", "me/rows", "--out", str(folder / "x"), HF_ENDPOINT=address
            )
        yield made


def test_everything_is_made_from_the_hub(ran: Ran) -> None:
    code, said, _ = ran.runs["first"]
    assert code == 0, said
    old = commit(ran.hub.repositories["me/llama"].revisions["v1"])
    new = commit(ran.hub.repositories["me/llama"].files)
    assert ran.hub.of("me/llama", f"/resolve/{old}/model.safetensors") > 0
    assert ran.hub.of("me/llama", f"/resolve/{new}/") == 0, "main has moved on"
    by_name = {path for _, path in ran.hub.asked if re.search("/resolve/(main|v1)/", path)}
    assert by_name <= {"/me/llama/resolve/v1/config.json"}, "the shape of the base, no more"
    store = ran.recipe.parent / "store"
    assert list(store.glob("columns/instruction/*/commit.json")), "the import's commit is noted"


def test_nothing_of_the_hubs_libraries_is_shown(ran: Ran) -> None:
    for name in ("planned", "first"):
        said = ran.runs[name][1]
        assert "Fetching" not in said and "HTTP Error" not in said and TOKEN not in said


def test_a_gated_student_is_refused_before_anything_is_spent(ran: Ran) -> None:
    code, said, _ = ran.runs["gated"]
    assert code == 2 and f"ask for it at {ran.hub.url}/me/gated" in said
    assert "Traceback" not in said and said.count("\n") < 10


@pytest.mark.parametrize("name", ["offline", "unplugged", "silent"])
def test_after_the_first_run_no_hub_is_needed(ran: Ran, name: str) -> None:
    code, said, _ = ran.runs[name]
    assert code == 0, said
    assert ran.asked[name] == ran.asked["gated"], "nobody asked"
    assert "downloading" not in said and "starting vLLM" not in said


def test_an_import_without_a_hub_is_one_sentence(ran: Ran) -> None:
    code, said, _ = ran.runs["import"]
    assert code == 2 and "cannot be reached (" in said and "Traceback" not in said
