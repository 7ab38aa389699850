"""Draws without seeds of their own: every server starts with an engine seed that none had, so that
no two draw alike, whatever is killed."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl
import psutil
import pytest

from core.models import Model, resolve
from core.sending import client
from core.servers import Servers
from core.serving import vllm_server
from core.tracking import Log
from core.wire import Request, ServerSpec
from synth.config.synthesis import SynthConfig
from synth.context import Context
from synth.generate import engine_seeds
from synth.pool.columns import PoolColumns
from synth.pool.draw import draw
from synth.pool.pool import Pool
from tests import small_recipe

ROWS = 80


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_recipe.model(tmp_path_factory.mktemp("model") / "teacher")


@pytest.fixture
def pool(
    monkeypatch: pytest.MonkeyPatch, llama: Path, tmp_path: Path
) -> Callable[[str], tuple[Pool, Servers]]:
    """A pool of ROWS places on two servers of its own, which draw by their seeds as vLLM's
    engines do; and what starts them."""
    monkeypatch.setattr(vllm_server, "COMMAND", [sys.executable, "-m", "tests.scripted_server"])
    monkeypatch.setattr(client, "BACKOFF", (0.001, 0.005))
    monkeypatch.chdir(Path(__file__).parents[1])

    def make(seeds: str) -> tuple[Pool, Servers]:
        args = {"behaviour": "drawing", "delay": 0.02}
        server = {"replicas": 2, "max_in_flight": 2, "args": args}
        config = SynthConfig.model_validate(
            {"teacher": {"model": str(llama), "server": server}, "rows": ROWS, "seeds": seeds}
        )
        context = Context(tmp_path / "store", resolve)
        return Pool(config, context), Servers(Log(), tmp_path / "logs")

    return make


class Killing(Log):
    """Kills a server once a quarter of the rows is there."""

    def __init__(self, servers: Servers) -> None:
        super().__init__()
        self.servers, self.killed = servers, False

    def progress(self, done: int, total: int, unit: str = "rows") -> None:
        if done >= total // 4 and not self.killed:
            supervisor = psutil.Process(self.servers._live[0]._process.pid)  # type: ignore[union-attr]
            for child in supervisor.children(recursive=True):
                os.kill(child.pid, signal.SIGKILL)
            self.killed = True


def drawn(made: tuple[Pool, Servers]) -> pl.DataFrame:
    """The instructions after one server was killed on the way."""
    pool, servers = made
    log = Killing(servers)
    with servers:
        assert draw(pool, servers, log)["rows"] == ROWS
        assert log.killed and sum(server.generation for server in servers._live) == 1
    return pool.instruction.read()


def duplicates(rows: pl.DataFrame) -> int:
    return int(rows["instruction"].is_duplicated().sum())


@pytest.mark.process
def test_two_replicas_and_a_kill_draw_no_more_duplicates_than_seeds_of_the_rows(
    pool: Any, tmp_path: Path
) -> None:
    by_row, by_engine = drawn(pool("per_row")), drawn(pool("none"))
    assert duplicates(by_engine) <= duplicates(by_row) == 0
    assert by_row["seed"].null_count() == 0 and by_engine["seed"].null_count() == ROWS
    lines = (tmp_path / "store" / engine_seeds.FILE).read_text().splitlines()
    started = [json.loads(line)["seed"] for line in lines]
    assert len(started) == len(set(started)) == 3, "two replicas and one restart"


@pytest.mark.process
def test_servers_that_start_alike_draw_alike_so_the_test_above_can_fail(
    pool: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_seeds, "engine_seed", lambda root, model: 7)
    assert duplicates(drawn(pool("none"))) > ROWS // 10


def test_a_seed_is_never_given_twice_also_after_a_torn_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dice = iter([4, 4, 4, 5, 4, 5, 6])
    monkeypatch.setattr(engine_seeds.secrets, "randbelow", lambda _: next(dice))
    given = [engine_seeds.engine_seed(tmp_path, "m") for _ in range(2)]
    file = tmp_path / engine_seeds.FILE
    file.write_text(file.read_text().rstrip("\n")[:-5])
    given.append(engine_seeds.engine_seed(tmp_path, "m"))
    assert given == [5, 6, 7] and len(file.read_text().splitlines()) == 3


@pytest.mark.process
def test_a_server_without_a_seed_is_started_again_once_draws_need_one(
    servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vllm_server, "COMMAND", [sys.executable, "-m", "tests.scripted_server"])
    monkeypatch.chdir(Path(__file__).parents[1])
    endpoint = servers.serve(ServerSpec(model="m", args={"behaviour": "drawing"}))

    def ask() -> str:
        (reply,) = endpoint.stream([Request("a", {"prompt": [1]})])
        return str((reply.body or {})["choices"][0]["text"])

    first = ask()
    servers.engine_seeds = lambda model: 1
    assert ask() != first, "another engine"
    live = servers._live[0]
    ask()
    assert servers._live[0] is live, "and it stays"


def test_seeds_are_in_the_keys_only_where_they_are_none(tmp_path: Path) -> None:
    context = Context(tmp_path, lambda name, _: Model(name, name, "r1"))
    of = {
        seeds: PoolColumns(
            SynthConfig.model_validate({"teacher": {"model": "a/b"}, "turns": 2, **given}), context
        ).determines
        for seeds, given in (
            ("", {}),
            ("per_row", {"seeds": "per_row"}),
            ("none", {"seeds": "none"}),
        )
    }
    assert of[""] == of["per_row"] and "seeds" not in of[""]["instruction"]
    assert of["none"]["instruction"]["seeds"] == of["none"]["turns"]["seeds"] == "none"


@pytest.mark.parametrize(
    ("server", "sentence"),
    [
        ({"urls": ["http://a"]}, "may have been started alike"),
        ({"args": {"seed": 3}}, "take `seed` out"),
        ({"args": {"data_parallel_size": 2}}, "use `replicas`"),
    ],
)
def test_servers_whose_engine_seeds_are_not_given_here_are_refused(
    server: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        SynthConfig.model_validate({"teacher": {"model": "a/b", "server": server}, "seeds": "none"})


@pytest.mark.slow
@pytest.mark.stack
def test_real_engines_that_start_alike_draw_alike_and_ours_never_start_alike(
    teacher: Model, tmp_path: Path
) -> None:
    spec = ServerSpec(model=teacher.path, args={"max_model_len": 512}, max_in_flight=16)
    body = {"prompt": [1, 4093, 198], "temperature": 1.0, "max_tokens": 24, "stop_token_ids": [2]}

    def texts(servers: Servers) -> list[str]:
        replies = servers.serve(spec).stream(Request(str(i), dict(body)) for i in range(16))
        return [str((reply.body or {})["choices"][0]["text"]) for reply in replies]

    drawn = []
    for given in (lambda model: 5, lambda model: 5, partial(engine_seeds.engine_seed, tmp_path)):
        with Servers(Log(), tmp_path / "logs") as servers:
            servers.engine_seeds = given
            drawn.append(set(texts(servers)))
    alike, again, own = drawn
    assert len(alike & again) > 4 and not own & (alike | again)
